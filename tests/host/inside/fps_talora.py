"""What the scripts on timestep-aware LoRAs share: hub files, the node, and a naive oracle.

The oracle is a model of its own whose weights are W + strength * scale * B_i A_i, written into them anew at every model
call by the host's oldest hook, which also keeps the sigmas; it knows nothing of the pack but the numbers of the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fps_common import load_pack, model_of, pack_module

FOLDER = Path(tempfile.mkdtemp(prefix="fps_talora_"))
ROWS = ((0.97, 2), (0.88, 0), (0.6, 1), (0.3, 2), (0.0, 0))
SCALE = 0.7


def linears(model: Any, keep: Callable[[str], bool] = lambda name: True) -> dict[str, tuple[int, int]]:
    """Return (in, out) of the linear layers of ``model`` that ``keep`` says yes to."""
    found = model.model.diffusion_model.named_modules()
    return {n: (m.in_features, m.out_features) for n, m in found if isinstance(m, torch.nn.Linear) and keep(n)}


def in_blocks(name: str) -> bool:
    """The layers that a trainer adapts by default."""
    return name.startswith("blocks.")


class HubFile:
    """A hub with random matrices, written by the pack itself."""

    def __init__(
        self, name: str, layers: dict, *, rows: tuple = ROWS, hub: int = 3, rank: int = 4, seed: int = 0, base: str = ""
    ):
        import folder_paths

        kernel = pack_module("kernels.timestep_lora")
        generator = torch.Generator().manual_seed(seed)
        self.name, self.rows, self.matrices = f"{name}.safetensors", rows, {}
        for layer, (columns, out) in layers.items():
            first = torch.randn(hub, rank, columns, generator=generator) / columns**0.5
            second = torch.randn(hub, out, rank, generator=generator) * 0.4
            self.matrices[layer] = first, second
        kernel.write_timestep_lora(FOLDER / self.name, self.matrices, kernel.RouteTable(rows), SCALE, base=base)
        folder_paths.add_model_folder_path("loras", str(FOLDER))
        folder_paths.filename_list_cache.pop("loras", None)

    def index(self, sigma: float) -> int:
        """The LoRA of a sigma, by a plain look at the rows."""
        for until, index in self.rows:
            if sigma > until or abs(sigma - until) < 1e-6:
                return index
        raise AssertionError(sigma)


def adapt(model: Any, file: HubFile, strength: float = 1.0) -> Any:
    """Return ``model`` adapted by the node."""
    node = load_pack()["FPSAttentionTimestepLora"]
    return node.execute(model=model, lora_name=file.name, strength=strength).result[0]


def acting(model: Any) -> Any:
    """Return what the node attached."""
    return model.get_attachment("fpsattention_timestep_lora")


def recorded(model: Any) -> list[dict]:
    """Return what the node says that ran: per run the LoRAs by sigma."""
    return [run.steps for run in acting(model).record.runs]


def watched(model: Any, seen: list, before: Callable[[float], None] = lambda sigma: None) -> Any:
    """Return a clone whose model calls append their sigma to ``seen``, and call ``before`` with it."""
    m = model.clone()

    def function(apply_model: Any, args: dict) -> torch.Tensor:
        sigma = float(args["timestep"].flatten()[0])
        seen.append(sigma)
        before(sigma)
        return apply_model(args["input"], args["timestep"], **args["c"])

    m.set_model_unet_function_wrapper(function)
    return m


def oracle(model: Any, *files: tuple[HubFile, float]) -> tuple[Any, list]:
    """Return a clone of ``model``, which nobody else may use, that merges the LoRAs of every sigma into its weights,
    and the list of the sigmas that it is called with."""
    inner = model.model.diffusion_model
    kept = {layer: inner.get_submodule(layer).weight.detach().double() for file, _ in files for layer in file.matrices}

    def merge(sigma: float) -> None:
        weights = {layer: weight.clone() for layer, weight in kept.items()}
        for file, strength in files:
            i = file.index(sigma)
            for layer, (first, second) in file.matrices.items():
                weights[layer] += strength * SCALE * second[i].double() @ first[i].double()
        for layer, weight in weights.items():
            inner.get_submodule(layer).weight.data.copy_(weight)

    seen: list[float] = []
    return watched(model, seen, merge), seen


def traces(model: Any) -> list[str]:
    """Return the layers of the shared module that anything was left on."""
    return [
        name
        for name, module in model.model.diffusion_model.named_modules()
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    ]


def pair(**options: Any) -> tuple[Any, Any]:
    """Two models of the same weights: one for the node, one for the oracle."""
    return model_of(**options), model_of(**options)
