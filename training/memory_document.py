"""The page docs/memory.md: what the shipped recipes take of a machine, part by part."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .config import RunConfig
from .config_file import CONFIGS, PACK, load_config
from .dry_run import largest_grid
from .memory import COMMUNICATION, CONTEXT, FRAGMENTATION, GIB, Plan, plan_memory
from .memory_advice import verdict
from .names import WanShape

PAGE = PACK / "docs" / "memory.md"
SHAPES = {"1.3B": WanShape(1536, 8960, 30), "14B": WanShape(5120, 13824, 40)}


@dataclass(frozen=True)
class Row:
    """A machine that a recipe is planned for."""

    title: str
    recipe: str
    model: str
    processes: int
    gigabytes: float
    changes: tuple[str, ...] = ()
    shape: WanShape = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", SHAPES[self.model])

    def config(self) -> RunConfig:
        """Return the recipe with this row's changes."""
        return load_config(CONFIGS / f"{self.recipe}.toml", self.changes)

    def plan(self) -> Plan:
        """Return the memory plan of a process."""
        config = self.config()
        return plan_memory(config, self.shape, largest_grid(config), world=self.processes)


SHORT = ("data.frames=49", "activation_checkpointing=full")
ROWS = (
    Row("14B, all weights, 720p, 8 GPUs", "wan2.1-14b", "14B", 8, 80),
    Row("1.3B, all weights, 480p, 1 GPU", "wan2.1-1.3b-24gb", "1.3B", 1, 24),
    Row("1.3B, all weights, 480p, 1 GPU, no offload", "wan2.1-1.3b", "1.3B", 1, 80),
    Row("1.3B, all weights, 480p, 8 GPUs", "wan2.1-1.3b", "1.3B", 8, 24),
    Row("14B, LoRA, 480p, 1 GPU", "wan2.1-14b-lora", "14B", 1, 48),
    Row("14B, LoRA, 480p, 49 frames, 1 GPU", "wan2.1-14b-lora", "14B", 1, 24, SHORT),
)
# What does not fit, and what the dry run then says.
REFUSED = (
    Row("14B, all weights, 720p, 8 GPUs, tokens not shared", "wan2.1-14b", "14B", 8, 80, ("parallel.sequence=1",)),
    Row("1.3B, all weights, 480p, no offload", "wan2.1-1.3b-24gb", "1.3B", 1, 24, ("parallel.offload=false",)),
    Row("14B, LoRA, 480p, 81 frames", "wan2.1-14b-lora", "14B", 1, 24),
)


def page() -> str:
    """Return the page's text."""
    assumed = f"{CONTEXT / GIB:.1f} GiB for CUDA's context and its libraries, {COMMUNICATION / GIB:.1f} GiB for NCCL"
    lines = [
        "# What training takes of a machine",
        "",
        "Written by `python -m training.memory_plans`; a test holds it to the code. `python -m training.run --dry-run",
        "--world 8 --gpu-memory 80` says the same for any configuration and machine.",
        "",
        "Each table is one process at the fullest moment of a step, in GiB. Weights, gradients and moments are",
        "counted; what a block keeps for its backward, and what its recomputation takes, was measured on diffusers'",
        "Wan with the trainer's own attention, adapters and recomputation (`training/memory_measure.py`, on tensors",
        "without contents) and is held by tests.",
        "",
        f"Assumed, not measured: {assumed},",
        f"and {FRAGMENTATION:.0%} of all tensors for the allocator. No GPU has confirmed the sums yet;",
        "`make gpu PARTS=train` compares them with what CUDA reports.",
        "",
        "| run | recipe | GPU memory | of | CPU memory per process |",
        "|---|---|---|---|---|",
    ]
    plans = [(row, row.plan()) for row in ROWS]
    for row, plan in plans:
        offloaded = f"{sum(plan.cpu.values()) / GIB:.1f}" if plan.cpu else "-"
        lines.append(f"| {row.title} | `{row.recipe}` | {plan.total / GIB:.1f} | {row.gigabytes:g} | {offloaded} |")
    for row, plan in plans:
        lines += ["", f"## {row.title}", ""]
        lines += [f"`{row.recipe}.toml`" + "".join(f" `--set {change}`" for change in row.changes) + ". "]
        config = row.config()
        grid = largest_grid(config)
        lines[-1] += f"{grid.tokens:,} tokens, fullest at the {plan.moment}. "
        lines[-1] += f"It {verdict(config, row.shape, grid, row.processes, row.gigabytes)}."
        lines += ["", "| part | GPU | CPU |", "|---|---|---|"]
        names = sorted({*plan.gpu, *plan.cpu}, key=lambda name: (-plan.gpu.get(name, 0) - plan.cpu.get(name, 0), name))
        for name in names:
            sizes = (plan.gpu.get(name), plan.cpu.get(name))
            shown = " | ".join("-" if size is None else f"{size / GIB:.2f}" for size in sizes)
            lines.append(f"| {name}{' (assumed)' if name in plan.assumed else ''} | {shown} |")
        lines.append(f"| **sum** | **{plan.total / GIB:.2f}** | **{sum(plan.cpu.values()) / GIB:.2f}** |")
    lines += ["", "## What does not fit, and what the dry run says to it", ""]
    for row in REFUSED:
        config = row.config()
        said = verdict(config, row.shape, largest_grid(config), row.processes, row.gigabytes)
        lines.append(f"- {row.title}, {row.gigabytes:g} GB: {said}.")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    Path(PAGE).write_text(page(), encoding="utf-8")
    logging.getLogger(__name__).info("%s", PAGE)
    return 0
