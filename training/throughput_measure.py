"""The trainer's whole optimizer step beside diffusers' plain dense one: same weights, batch, dtype, in one run.

The contestants take turns, so that a machine that warms up or is shared slows all of them alike. Nothing of ours is in
the plain one: diffusers' class with its own processors and checkpointing, torch's AdamW, one clip of the gradient.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import clip_grad_norm_

from ..kernels.bench.environment import header
from ..kernels.bench.model_shapes import schedule_text
from ..kernels.bench.timing import Clock, Timing
from ..kernels.grid import TokenGrid
from .assemble import assemble
from .config import RunConfig
from .config_file import check_config
from .distributed import World, pick_device
from .flow import draw, noisy, timestep, velocity_loss
from .memory import plan_memory
from .model import WanTransformer3DModel, autocast, keep_full_precision, random_model
from .names import WanShape
from .sparse import latent_grid
from .step import plan_step, train_step

SLOTS = 64
WARM_UP = 2


@dataclass(frozen=True)
class Problem:
    """What is trained on what: a model's shape, the latent size (T, H, W), and how."""

    name: str
    shape: WanShape
    latent: tuple[int, int, int]
    dtype: str
    text: int = 512
    recompute: str = "attention"
    density: float = 15.0

    @property
    def grid(self) -> TokenGrid:
        """The tokens of a sample."""
        return latent_grid((16, *self.latent))


# The tiny one runs on a CPU in minutes; the other is the paper's small model at its own length.
PROBLEMS = {
    "tiny": Problem("tiny", WanShape(256, 1024, 4, text_dim=64), (8, 32, 32), "fp32", text=32),
    "small": Problem("small", WanShape(128, 256, 2, text_dim=16), (3, 8, 8), "fp32", text=4),
    "1.3b": Problem("1.3b", WanShape(1536, 8960, 30), (21, 60, 104), "bf16"),
}


class Stored(Sequence):
    """Samples that lie on the disk, one file each, and are read when they are asked for."""

    def __init__(self, folder: Path, problem: Problem, count: int) -> None:
        self.folder, self.count = folder, count
        generator = torch.Generator().manual_seed(0)
        for i in range(count):
            latent = torch.randn(16, *problem.latent, generator=generator)
            text = torch.randn(problem.text, problem.shape.text_dim, generator=generator)
            save_file({"latent": latent, "text": text}, folder / f"{i}.safetensors")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return {**load_file(self.folder / f"{index}.safetensors"), "name": str(index)}


def run_config(problem: Problem, schedule: str, folder: Path, device: str, steps: int) -> RunConfig:
    """Return the configuration of the trainer's own run of this problem."""
    t, h, w = problem.latent
    shape = problem.shape
    table = {
        "device": device,
        "dtype": problem.dtype,
        "activation_checkpointing": problem.recompute,
        "model": {
            "init": "random", "dim": shape.dim, "ffn_dim": shape.ffn_dim, "layers": shape.layers,
            "text_dim": shape.text_dim,
        },
        "vae": {"path": "none"},
        "data": {"videos": "none", "frames": 4 * (t - 1) + 1, "height": 8 * h, "width": 8 * w},
        "attention": {"schedule": schedule, "slots": SLOTS},
        "optim": {"lr": 1e-6, "steps": steps, "warmup": 0},
        "checkpoint": {"dir": str(folder / "checkpoints"), "every": 0},
        "output": {"dir": str(folder / "out"), "name": "throughput", "report": False},
    }  # fmt: skip
    return check_config(table, "throughput")


class Ours:
    """The trainer's own step under a schedule."""

    def __init__(self, config: RunConfig, data: Sequence, model: WanTransformer3DModel) -> None:
        self.data, self.device = data, pick_device(config.device, World())
        self.run = assemble(config, World(), self.device, model)

    def __call__(self) -> dict[str, Any]:
        """Take one optimizer step and return its record."""
        places, passes = plan_step(self.run, self.run.step, self.data)
        samples = [self.data[place.index] for one in passes for place in one.places]
        return train_step(self.run, places, passes, samples)


class Plain:
    """Diffusers' model as diffusers has it, trained densely in the plainest loop."""

    def __init__(self, config: RunConfig, data: Sequence, model: WanTransformer3DModel) -> None:
        self.config, self.data, self.step = config, data, 0
        self.device = pick_device(config.device, World())
        self.model = model.to(self.device).train()
        keep_full_precision(self.model)
        if config.activation_checkpointing != "none":
            self.model.enable_gradient_checkpointing()
        optim = config.optim
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=optim.lr, fused=True)

    def __call__(self) -> float:
        """Take one optimizer step and return its loss."""
        sample = self.data[self.step % len(self.data)]
        one = draw(sample, self.config.flow.resolved(), self.config.seed, 0, self.step)
        self.step += 1
        latent, noise, text = (x[None].to(self.device) for x in (one.latent, one.noise, one.text))
        sigma = torch.tensor([one.sigma], dtype=torch.float32, device=self.device)
        with autocast(self.device, self.config.dtype):
            out = self.model(noisy(latent, noise, sigma), timestep(sigma), text, return_dict=False)[0]
        loss = velocity_loss(out, latent, noise).mean()
        loss.backward()
        norm = float(clip_grad_norm_(self.model.parameters(), self.config.optim.clip))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()) if norm == norm else float("nan")


def measure(problem: Problem, *, device: str, rounds: int, per_round: int, seconds: float) -> dict[str, Any]:
    """Return the result as JSON has it: times, ratios, memory, the share of data loading, and the conditions."""
    words, label = schedule_text(f"{problem.density:g}%", (problem.grid.t, problem.grid.h, problem.grid.w), SLOTS)
    total = 2 * WARM_UP + rounds * per_round + 10
    with tempfile.TemporaryDirectory(prefix="fps-throughput-") as temporary:
        folder = Path(temporary)
        data = Stored(folder, problem, 4)
        sparse = run_config(problem, words, folder, device, total)
        dense = run_config(problem, "dense", folder, device, total)
        model = random_model(problem.shape, 0)
        torch.nn.init.normal_(model.proj_out.weight, std=0.02)
        where = pick_device(device, World())
        clock = Clock(where)
        ours = Ours(sparse, data, copy.deepcopy(model))
        memory = _memory(ours, sparse, problem, clock)
        contestants: dict[str, Callable[[], object]] = {
            "diffusers dense": Plain(dense, data, copy.deepcopy(model)),
            "trainer dense": Ours(dense, data, model),
            "trainer sparse": ours,
        }
        times = take_turns(contestants, clock, rounds, per_round, seconds)
        loading = _loading(sparse, data, folder)
    timings = {name: Timing.of(values) for name, values in times.items()}
    base = timings["diffusers dense"].median
    result: dict[str, Any] = {
        "purpose": "throughput",
        "problem": problem.name,
        "model": {"dim": problem.shape.dim, "ffn_dim": problem.shape.ffn_dim, "layers": problem.shape.layers,
                  "parameters": problem.shape.parameters},
        "tokens": problem.grid.tokens,
        "grid": [problem.grid.t, problem.grid.h, problem.grid.w],
        "dtype": problem.dtype,
        "recompute": problem.recompute,
        "schedule": label,
        "density": sparse.attention.resolved().plans(problem.grid, problem.shape.heads).density(0.5),
        "threads": torch.get_num_threads(),
        "device": where.type,
        "attention_backend": "plain torch reference" if where.type == "cpu" else "auto",
        "times": {name: timing.to_json() for name, timing in timings.items()},
        "ratio": base / timings["trainer sparse"].median,
        "ratio_dense": base / timings["trainer dense"].median,
        "memory": memory,
        "data_share": loading,
        **header(standin=where.type == "cpu"),
    }  # fmt: skip
    return result


def take_turns(
    contestants: dict[str, Callable[[], object]], clock: Clock, rounds: int, per_round: int, seconds: float
) -> dict[str, list[float]]:
    """Return the milliseconds of every step; rounds stop once ``seconds`` are spent, but not before two."""
    for contestant in contestants.values():
        for _ in range(WARM_UP):
            contestant()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    start = time.monotonic()
    for number in range(rounds):
        if number >= 2 and time.monotonic() - start > seconds:
            break
        for name, contestant in contestants.items():
            times[name] += [clock.once(contestant) for _ in range(per_round)]
    return times


def _memory(ours: Ours, config: RunConfig, problem: Problem, clock: Clock) -> dict[str, Any]:
    """Return predicted and measured peak bytes of two steps; a CPU does not tell what tensors took."""
    plan = plan_memory(config, problem.shape, problem.grid, cuda=clock.cuda, text=problem.text)
    found: dict[str, Any] = {"predicted": plan.allocated, "moment": plan.moment, "parts": dict(plan.gpu)}
    if clock.cuda:
        ours()
        clock.wait()
        torch.cuda.reset_peak_memory_stats(clock.device)
        ours()
        clock.wait()
        measured = torch.cuda.max_memory_allocated(clock.device)
        found |= {"measured": measured, "error": plan.allocated / measured - 1}
    return found


def _loading(config: RunConfig, data: Sequence, folder: Path) -> dict[str, float]:
    """Return the share of a run's time that it waited for data, by the trainer's own timers."""
    from .config_file import with_changes
    from .loop import fit

    short = with_changes(config, optim__steps=6, output__dir=str(folder / "loading"))
    records = fit(short, data, progress=None).records
    # The first step has nothing to load its data behind, and warms everything up.
    waited = sum(record["data_seconds"] for record in records[1:])
    return {"share": waited / sum(record["seconds"] for record in records[1:]), "steps": len(records) - 1}
