"""From a saved training state to a file, without the run: no model is built, no GPU, no data and no base are needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..kernels.checkpoint import write_checkpoint
from ..kernels.head_table import HeadTableError
from .config import RunConfig
from .config_file import check_config
from .export_file import base_hash, header_of
from .export_msfp import DTYPES, base_file, write_hub, write_trained
from .names import WanShape, block_count, original_names, shape_of
from .optimizer import ROUTER
from .prepare import data_grid
from .router import Router
from .same_run import saved_table
from .state import MANIFEST, SnapshotError, check_complete, find_latest, load_tensors
from .weights.write import write_model

_ADAPTER = re.compile(r"^(?P<layer>.*)\.(?P<part>lora_[AB])$")


def find_state(path: str | Path) -> Path | None:
    """Return the state that a path means: itself, or the newest complete one of a run's or a checkpoint folder.

    None if the path has nothing to do with training states. Raises SnapshotError if all that are there are damaged.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or re.match(r"^step-\d+", path.name):
        return path
    for folder in (path, path / "checkpoints"):
        if folder.is_dir() and (found := find_latest(folder)) is not None:
            return found[0]
    return None


def export_state(
    step_dir: Path, path: str | Path | None = None, dtype: str | None = None, *, average: bool = True
) -> Path:
    """Return the path of the file made of a saved state: the whole model, or the LoRA or hub of a run with adapters.

    What an MSFP model was trained to needs that model's file, as scales are not in a state.

    ``path`` defaults to ``<output.dir>/<output.name>-<step>.safetensors``, ``dtype`` to the run's own. ``average``
    False exports the trained weights of a run that keeps an average of them. Raises SnapshotError for a state that
    cannot be used, CheckpointError when the file cannot be written.
    """
    manifest = check_complete(step_dir)
    config = _config(manifest, step_dir)
    step, dtype = int(manifest["step"]), dtype or config.output.dtype
    if path is None:
        path = Path(config.output.dir) / f"{config.output.name}-{step:06d}.safetensors"
    saved = Saved(step_dir, average=average)
    header = header_of(config.attention.resolved(), data_grid(config.data), base_hash(config.model), step)
    base = base_file(config) if config.lora is None else None
    if dtype == "fp8" and (config.adapters is not None or base is not None):
        what = "a LoRA" if config.adapters is not None else "an MSFP model"
        raise SnapshotError(f"{step_dir}: is the state of {what}, which is exported as bf16 or fp32, not fp8")
    if config.lora is not None:
        write_checkpoint(path, saved.adapters(config.lora.alpha, DTYPES[dtype]), header)
        return Path(path)
    if config.talora is not None:
        write_hub(path, config, saved.hubs(DTYPES[dtype]), saved.router(), base, header)
        return Path(path)
    shape = saved.shape()
    if base is not None:
        write_trained(path, base, saved.model(shape), dtype=dtype, header=header, step=step)
        return Path(path)
    write_model(path, shape, saved.model(shape), dtype=dtype, header=header, fp8_matmul=config.fp8_linears is not None)
    return Path(path)


class Saved:
    """The tensors of a state that has been found complete, read one at a time."""

    def __init__(self, step_dir: Path, *, average: bool = True) -> None:
        self.path = step_dir
        self.sizes = group_sizes(step_dir, "model")
        self.averaged = set(group_sizes(step_dir, "ema")) if average else set()

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor by diffusers' name, averaged where there is an average."""
        group = "ema" if name in self.averaged else "model"
        return load_tensors(self.path, group, [name], verify=False)[name]

    def shape(self) -> WanShape:
        """Return the model's shape; raises ModelError if the state holds no whole model."""
        known = self._originals()
        return shape_of({known.get(name, name): size for name, size in self.sizes.items()}, str(self.path))

    def model(self, shape: WanShape) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (original name, tensor) in the order of the published files."""
        back = {original: name for name, original in original_names(shape).items()}
        for original in shape.tensors():
            yield original, self.read(back[original])

    def adapters(self, alpha: float | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return a LoRA's tensors under ComfyUI's names; ``alpha`` None is each adapter's rank."""
        known, found = self._originals(), {}
        for name in self.sizes:
            match = _ADAPTER.match(name)
            if match is None:
                continue
            layer = f"diffusion_model.{known[match['layer'] + '.weight'].removesuffix('.weight')}"
            tensor = self.read(name)
            found[f"{layer}.{match['part']}.weight"] = tensor.to(dtype)
            if match["part"] == "lora_A":
                found[f"{layer}.alpha"] = torch.tensor(float(alpha if alpha is not None else tensor.shape[0]))
        if not found:
            raise SnapshotError(f"{self.path}: its configuration has adapters, but it holds none; it is damaged")
        return found

    def hubs(self, dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return {original name: (A, B)} of the hubs of a timestep-aware LoRA."""
        known, end = self._originals(), ".talora_A"
        layers = [name.removesuffix(end) for name in self.sizes if name.endswith(end)]
        if not layers:
            raise SnapshotError(f"{self.path}: its configuration has hubs of LoRAs, but it holds none; it is damaged")
        parts = {layer: tuple(self.read(f"{layer}.talora_{part}").to(dtype) for part in "AB") for layer in layers}
        return {known[f"{layer}.weight"].removesuffix(".weight"): pair for layer, pair in parts.items()}

    def router(self) -> Router:
        """Return the router of a timestep-aware LoRA."""
        state = {name.removeprefix(ROUTER): self.read(name) for name in self.sizes if name.startswith(ROUTER)}
        try:
            router = Router(*state["second.weight"].shape)
            router.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError):
            raise SnapshotError(f"{self.path}: its configuration has a router, but it holds none that fits") from None
        return router.requires_grad_(False)

    def _originals(self) -> dict[str, str]:
        """Return the original name of every diffusers' name that a Wan of so many blocks can have."""
        return original_names(WanShape.of_kind("flf", 128, 128, max(1, block_count(self.sizes))))


def group_sizes(step_dir: Path, group: str) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of a group of a state's tensors; empty if there is none."""
    from .pieces import stored_tensors

    start = group + "/"
    return {n[len(start) :]: tuple(size) for n, (size, _) in stored_tensors(step_dir).items() if n.startswith(start)}


def _config(manifest: dict[str, Any], source: Path) -> RunConfig:
    if not isinstance(manifest.get("config"), dict):
        raise SnapshotError(f"{source}: its {MANIFEST} holds no configuration; it cannot be exported")
    try:
        table = saved_table(manifest)
    except HeadTableError as error:
        raise SnapshotError(f"{source}/{MANIFEST}: its head table: {error}") from None
    return check_config(manifest["config"], f"{source}/{MANIFEST}", heads=table)
