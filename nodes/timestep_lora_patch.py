"""The patch of a timestep-aware LoRA: around each model call the layers that it adapts add the LoRA of that sigma.

A layer's ``forward`` is replaced for the length of one call, on the instance. Nothing stays on the model, which other
clones share. A forward hook would do the same in plain PyTorch, but compiled code neither sees one that came later nor
misses one that went; a ``forward`` it does check. Weights stay as they are, in whatever form: no re-patching at a
switch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..kernels.timestep_lora import TimestepLora
from .patch import ON_CLEANUP, ON_PRE_RUN, PatchError
from .timestep_lora_record import KEY, LoraRecord

# The host's own name (comfy.patcher_extension); a host test holds it equal. This wrapper stands outside of everything
# that anybody compiles, and is given the sigma of every sample.
APPLY_MODEL = "apply_model"
# Where PyTorch keeps what a compiled module was made of.
COMPILED = "_orig_mod"
NO_SIGMA = "the sampler does not say its sigma, so no LoRA acts."
SIGMA_NAN = "the sampler's sigma is not a number, so no LoRA acts."


@dataclass(frozen=True)
class Entry:
    """One node's part: what its file says, and its hub (a module with ``branch(layer, index)``)."""

    file: TimestepLora
    hub: Any
    name: str


@dataclass
class Acting:
    """All timestep-aware LoRAs of one patched model, in the order of their nodes; shared by its clones."""

    entries: tuple[Entry, ...]
    record: LoraRecord
    _ready: dict[tuple, dict[str, list]] = field(default_factory=dict, repr=False)

    def choose(self, sigmas: list[float]) -> list[tuple[int, ...]]:
        """Return per sample the LoRA of each entry."""
        return [tuple(entry.file.table.at(sigma) for entry in self.entries) for sigma in sigmas]

    def branches(self, chosen: list[tuple[int, ...]]) -> Mapping[str, list[tuple[Any, tuple[int, ...] | None]]]:
        """Return per layer what is added to it: a branch, and the samples that it is for (None: all)."""
        key = tuple(chosen) if len(set(chosen)) > 1 else chosen[0]
        if key not in self._ready:
            if len(self._ready) > 64:
                self._ready.clear()
            ready: dict[str, list] = {}
            for place, entry in enumerate(self.entries):
                samples: dict[int, list[int]] = {}
                for sample, indices in enumerate(chosen):
                    samples.setdefault(indices[place], []).append(sample)
                for layer in entry.file.layers:
                    for index, members in samples.items():
                        only = None if len(samples) == 1 else tuple(members)
                        ready.setdefault(layer, []).append((entry.hub.branch(layer, index), only))
            self._ready[key] = ready
        return self._ready[key]


def apply_timestep_lora(model: Any, entry: Entry, additional: Any, notes: Sequence[str] = ()) -> Any:
    """Return a clone of ``model`` on which ``entry`` acts, beside those that it has; ``additional`` is the hub as the
    host manages it, ``notes`` are said once per run."""
    m = model.clone()
    earlier = m.get_attachment(KEY)
    entries, said = (entry,), tuple(notes)
    if isinstance(earlier, Acting):
        entries, said = (*earlier.entries, entry), (*earlier.record.notes, *said)
    acting = Acting(entries, LoraRecord(tuple(entry.name for entry in entries), said))
    m.set_attachments(KEY, acting)
    m.set_additional_models(KEY, [*m.get_additional_models_with_key(KEY), additional])
    m.remove_wrappers_with_key(APPLY_MODEL, KEY)
    m.add_wrapper_with_key(APPLY_MODEL, KEY, _wrapper(acting))
    for call_type, callback in ((ON_PRE_RUN, acting.record.begin), (ON_CLEANUP, acting.record.end)):
        m.remove_callbacks_with_key(call_type, KEY)
        m.add_callback_with_key(call_type, KEY, lambda *_, callback=callback: callback())
    return m


def _wrapper(acting: Acting) -> Callable:
    def wrapper(executor: Any, x: Any, t: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = _choose(acting, t)
        if chosen is None:
            return executor(x, t, *args, **kwargs)
        with adapted(executor.class_obj.diffusion_model, acting.branches(chosen), len(chosen)):
            return executor(x, t, *args, **kwargs)

    return wrapper


def _choose(acting: Acting, t: Any) -> list[tuple[int, ...]] | None:
    """Record and return per sample the LoRA of each entry, None where none shall act."""
    run = acting.record.current()
    if not isinstance(t, torch.Tensor) or not t.numel():
        run.note(NO_SIGMA)
        return None
    sigmas = [float(sigma) for sigma in t.flatten().tolist()]
    if any(math.isnan(sigma) for sigma in sigmas):
        run.note(SIGMA_NAN)
        return None
    chosen = acting.choose(sigmas)
    run.steps.update(zip((round(sigma, 6) for sigma in sigmas), chosen))
    return chosen


@contextmanager
def adapted(diffusion_model: Any, branches: Mapping[str, list], samples: int) -> Iterator[None]:
    """The layers of ``diffusion_model`` add their ``branches`` as long as this lasts; ``samples`` share a call."""
    kept: list[tuple[dict, Callable | None]] = []
    try:
        for layer, added in branches.items():
            module = find_layer(diffusion_model, layer)
            own = vars(module)
            kept.append((own, own.get("forward")))
            own["forward"] = _adapted_forward(module.forward, added, samples)
        yield
    finally:
        for own, forward in reversed(kept):
            if forward is None:
                own.pop("forward", None)
            else:
                own["forward"] = forward


def _adapted_forward(inner: Callable, added: list, samples: int) -> Callable:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = inner(x, *args, **kwargs)
        for branch, members in added:
            out = branch.add(x, out) if members is None else _add_to(branch, members, samples, x, out)
        return out

    return forward


def _add_to(branch: Any, members: tuple[int, ...], samples: int, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Add to some samples only; x (samples * n, ..., in)."""
    if x.shape[0] % samples:
        raise PatchError(
            f"the batch mixes {samples} sigmas, and a layer sees {x.shape[0]} rows, which cannot be told apart; sample "
            "one noise level at a time."
        )
    rows = list(members)
    out = out.clone() if torch.is_grad_enabled() else out
    parts, sums = x.unflatten(0, (samples, -1)), out.unflatten(0, (samples, -1))
    sums[rows] = branch.add(parts[rows], sums[rows])
    return sums.flatten(0, 1)


def find_layer(diffusion_model: Any, name: str) -> Any:
    """Return the layer ``name``, whatever parts of the model are compiled. Raises PatchError if it is gone."""
    module = _plain(diffusion_model)
    for part in name.split("."):
        module = _plain(module._modules.get(part))
        if module is None:
            raise PatchError(
                f"the layer {name} that a timestep-aware LoRA adapts is gone: another node replaced it after Timestep-"
                "aware LoRA; put that node before it, or leave one of them out."
            )
    return module


def _plain(module: Any) -> Any:
    """Return what a compiled module was made of, anything else as it is."""
    return module if module is None else module._modules.get(COMPILED, module)


def linear_layers(diffusion_model: Any) -> dict[str, tuple[int, int]]:
    """Return in and out features of every linear layer, whatever its weights look like, by name."""
    found = {}
    for name, module in diffusion_model.named_modules():
        sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if all(isinstance(size, int) for size in sizes):
            found[".".join(part for part in name.split(".") if part != COMPILED)] = sizes
    return found
