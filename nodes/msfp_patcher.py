"""The host's model patcher for packed weights: a LoRA is attached to its layer, where the host would write it in.

Only the patcher that loads whole layers needs this. The dynamic one attaches LoRAs itself, and asks nobody to round
them into codes, because ``MsfpLinear`` takes them first.
"""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy.utils import get_attr

from .msfp_facts import KEY
from .msfp_linear import MsfpLinear, PackedWeightError, extra_bytes

WEIGHT = ".weight"


class MsfpPatcher(ModelPatcher):
    """A ModelPatcher that leaves packed weights as they are, and counts their scales."""

    def patch_weight_to_device(
        self, key: str, device_to: Any = None, inplace_update: bool = False, return_weight: bool = False
    ) -> Any:
        """Attach what changes a packed weight to its layer; all else as the host does it."""
        layer = self._packed_layer(key)
        if layer is None or return_weight:
            return super().patch_weight_to_device(key, device_to, inplace_update, return_weight)
        layer.on_the_fly = LowVramPatch(key, self.patches) if key in self.patches else None
        return None

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Any]:
        """Return the host's; refuse for a part of the model, in which whoever extracts a LoRA looks for the patched
        weights of loaded layers."""
        if filter_prefix is not None and any(self._packed_layer(key) is not None for key in self.patches):
            raise PackedWeightError(
                "a LoRA cannot be extracted from an MSFP model that is patched; subtract it from the other model, not "
                "the other from it, and use the LoRA at strength -1."
            )
        return super().model_state_dict(filter_prefix)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        """Take LoRAs off the layers as well."""
        super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            for module in self.model.modules():
                if isinstance(module, MsfpLinear):
                    module.on_the_fly = None

    def _load_list(self, *args: Any, **kwargs: Any) -> list:
        found = []
        for *order, size, name, module, params in super()._load_list(*args, **kwargs):
            extra = extra_bytes(module)
            if len(order) == 1:  # what the module takes while it is away from the device
                order = [order[0] + extra]
            found.append((*order, size + extra, name, module, params))
        return found

    def _packed_layer(self, key: str) -> MsfpLinear | None:
        if not key.endswith(WEIGHT):
            return None
        layer = get_attr(self.model, key.removesuffix(WEIGHT))
        return layer if isinstance(layer, MsfpLinear) else None


def adopt(patcher: ModelPatcher) -> None:
    """Make ``patcher``, just loaded, one for packed weights, and every plain patcher that is cloned from it."""
    _become(patcher)
    patcher.size = patcher.model_size() + sum(map(extra_bytes, patcher.model.modules()))
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _adopt_clone)
    patcher.model.state_dict_for_saving = _refuse_to_save


def _adopt_clone(_: ModelPatcher, clone: ModelPatcher) -> None:
    _become(clone)


def _become(patcher: ModelPatcher) -> None:
    # Dynamic patchers, and those of other packs, stay what they are.
    if type(patcher) is ModelPatcher:
        patcher.__class__ = MsfpPatcher


def _refuse_to_save(*_: Any, **__: Any) -> dict[str, torch.Tensor]:
    raise ValueError("an MSFP model cannot be saved from here; its own file is what it was loaded from.")
