"""The main job, end to end: a clip, a joint fine-tune with its controls, a checkpoint, videos, pictures and a table."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..failures import exit_code

if TYPE_CHECKING:
    import torch

    from ...kernels.grid import TokenGrid
    from ..config import RunConfig
    from .rows import Row, Trained

PACK = Path(__file__).resolve().parent.parent.parent


class _Say:
    """Progress lines with the time since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        print(f"[{minutes}:{seconds:02d}] {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 0 done, 2 bad input (one sentence)."""
    parser = argparse.ArgumentParser(prog="python -m training.demo", description=__doc__)
    parser.add_argument(
        "--clip", type=Path, default=os.environ.get("CLIP") or None, help="your own video instead of the demo clip"
    )
    parser.add_argument("--out", type=Path, default=PACK / "output" / "demo", help="where everything is written")
    parser.add_argument("--steps", type=int, help="fine-tuning steps instead of the configured ones")
    parser.add_argument("--sampler", choices=("auto", "comfyui", "diffusers"), default="auto")
    parser.add_argument("--set", metavar="a.b=c", action="append", default=[], help="change one key of the run")
    parser.add_argument("--readme", action="store_true", help="also put table and pictures into the README")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    return exit_code(lambda: run(args, _Say()))


def run(args: argparse.Namespace, say: _Say) -> int:
    """Do the whole job and write everything into ``args.out``, which an earlier run may have used, and nobody else."""
    from ..config_file import EMBEDDED, as_override, load_config
    from ..data.demo_clip import DEFAULT, demo_clip
    from ..distributed import World, pick_device
    from ..prepare import prepare_data
    from .folder import claim
    from .rows import fine_tune, measure
    from .sampling import find_host

    say(f"using {args.clip}" if args.clip else "getting the clip")
    changes = [
        as_override("data.videos", str(args.clip or demo_clip(PACK / DEFAULT))),
        as_override("output.dir", args.out.as_posix()),
    ]
    if args.steps is not None:
        warmup = max(0, min(10, args.steps - 1))
        changes += [as_override("optim.steps", args.steps), as_override("optim.warmup", warmup)]
    config = load_config(EMBEDDED, changes + args.set)
    checkout = find_host(args.sampler)
    claim(args.out)
    say("decoding it and encoding latents with the tiny Wan VAE")
    dataset = prepare_data(config, World())
    grid = dataset.grid
    say(f"{len(dataset.train)} training and {len(dataset.val)} held-out samples of {grid.tokens} tokens")
    trained = fine_tune(config, dataset.train, say)
    say("validating on the held-out part")
    rows = measure(config, trained, dataset.val, say)
    done = _Done(config, trained, rows, grid, pick_device(config.device, World()))
    _write(done, args, checkout, say)
    return 0


@dataclass(frozen=True)
class _Done:
    """What the fine-tunes and their validation came to."""

    config: RunConfig
    trained: Trained
    rows: dict[str, Row]
    grid: TokenGrid
    device: torch.device


def _write(done: _Done, args: argparse.Namespace, checkout: Path | None, say: _Say) -> None:
    from ..journal import plot_losses
    from . import pictures, table
    from .sampling import Request, export_models, sample_videos
    from .speed import attention_speed

    out = args.out
    config, trained, rows, grid = done.config, done.trained, done.rows, done.grid
    files = export_models(config, trained, grid, out)
    plot_losses({"dense fine-tune": trained.dense.records, "joint fine-tune": trained.joint.records}, out / "loss.png")
    request = Request(frames=config.data.frames, height=config.data.height, width=config.data.width)
    videos, how = sample_videos(config, trained, rows, files, request, out, args.sampler, checkout, done.device, say)
    pictures.side_by_side({rows[key].title: seeds[0] for key, seeds in videos.items()}, out / "side_by_side.png")
    pictures.schedule_plot(config.attention.resolved(), grid, rows, request.steps, request.shift, out / "schedule.png")
    say("timing the attention alone")
    facts = {
        "fine-tune": f"{config.optim.steps} steps of batch {config.optim.batch}, dense {trained.dense.seconds:.0f} s, "
        f"joint {trained.joint.seconds:.0f} s",
        "videos": how,
        "attention alone": attention_speed(done.device),
    }
    table.save(rows, facts, out)
    if args.readme:
        table.into_readme(PACK / "README.md", table.markdown(rows, facts))
        for name in ("side_by_side.png", "schedule.png", "loss.png"):
            shutil.copyfile(out / name, PACK / "docs" / "images" / name)
    print("\n" + table.markdown(rows, facts))
    say(f"done; everything is in {out}:")
    for path in sorted(p for p in out.iterdir() if p.is_file()):
        print(f"  {path.name:<44} {path.stat().st_size / 1e6:8.2f} MB")
