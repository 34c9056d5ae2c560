"""An MSFP file as a MODEL of the host: the host's own model class and memory management around packed layers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import comfy.model_detection
import comfy.ops
import comfy.sd
import comfy.utils
import torch

from ..kernels.checkpoint import HeaderError
from ..kernels.msfp.file import PREFIX, MsfpFile, read_msfp
from ..kernels.msfp.weights import PackedWeight
from .layout import is_wan
from .msfp_linear import as_host_tensor, operations
from .msfp_patcher import adopt

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_msfp_model(path: str, round_inputs: bool, disable_dynamic: bool = False) -> Any:
    """Return the MODEL of an MSFP file, its layers packed as they are in the file.

    Raises HeaderError, one sentence, for a file that is not a Wan model, before any weight is read, and for scales that
    are not finite.
    """
    file = read_msfp(path)
    check_model(file)
    options = {"custom_operations": operations(file.layers, round_inputs)}
    model = comfy.sd.load_diffusion_model_state_dict(
        _state(file), model_options=options, disable_dynamic=disable_dynamic
    )
    adopt(model)
    model.cached_patcher_init = (load_msfp_model, (path, round_inputs))
    return model


def check_model(file: MsfpFile) -> None:
    """Raise HeaderError if the file's tensors are not those of a Wan model as the host builds it; reads no weight."""
    shapes, name = file.shapes(), file.path.name
    config = None
    if "head.modulation" in shapes:
        state = {key: torch.empty(shape, device="meta", dtype=torch.bfloat16) for key, shape in shapes.items()}
        try:
            config = comfy.model_detection.model_config_from_unet(state, "")
        except (KeyError, IndexError, ValueError, RuntimeError):
            config = None
    if config is None:
        raise HeaderError(f"{name} holds no Wan model that this ComfyUI knows; quantize the model again.")
    config.custom_operations = comfy.ops.manual_cast
    with torch.device("meta"):
        model = config.get_model(state, "").diffusion_model
    if not is_wan(model):
        raise HeaderError(f"{name} holds a {type(model).__name__}, not a Wan model; quantize a Wan model.")
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for key, shape in wanted.items():
        if key not in shapes:
            raise HeaderError(f"{name} lacks the tensor {key}; the file is incomplete, quantize the model again.")
        if tuple(shapes[key]) != shape:
            raise HeaderError(
                f"{name}: {key} has shape {tuple(shapes[key])}, this model needs {shape}; quantize the model again."
            )
    strange = min(shapes.keys() - wanted.keys(), default=None)
    if strange is not None:
        raise HeaderError(f"{name} has the tensor {strange}, which this model has no place for; update ComfyUI.")


def _state(file: MsfpFile) -> dict[str, torch.Tensor]:
    """Return the file's tensors by original name, packed weights as the host's quantized tensors; codes stay mapped."""
    tensors = comfy.utils.load_torch_file(str(file.path))
    state = {name: tensors[PREFIX + name] for name in file.plain}
    dtype = _usual_dtype(file)
    for name, layer in file.layers.items():
        scales = file.scales(name, tensors.__getitem__)
        packed = PackedWeight(tensors[f"{PREFIX}{name}.codes"], *scales, layer.weight, layer.columns)
        state[f"{name}.weight"] = as_host_tensor(packed, dtype)
    return state


def _usual_dtype(file: MsfpFile) -> torch.dtype:
    """Return the dtype of most of what is not packed: what the weights had before, and what the host shall see."""
    sizes: Counter = Counter()
    for dtype, shape in file.plain.values():
        sizes[dtype] += torch.Size(shape).numel()
    return next((_DTYPES[dtype] for dtype, _ in sizes.most_common() if dtype in _DTYPES), torch.bfloat16)
