"""The command line of the tiny VAE's training."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from ..kernels.checkpoint import CheckpointError
from .tiny_vae_fit import FitOptions, fit

_log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 unusable clip, options or place to write to."""
    defaults = FitOptions()
    parser = argparse.ArgumentParser(
        prog="python -m training.tiny_vae",
        description="Train the tiny Wan VAE (dim 8) on the first part of one clip; an interrupted run resumes.",
    )
    parser.add_argument("--clip", type=Path, required=True, help="the video to train on")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--holdout", type=float, default=defaults.holdout, help="share of the clip's end kept unseen")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fp32", action="store_true", help="no bf16 convolutions (slower)")
    parser.add_argument("--fresh", action="store_true", help="ignore the state of an interrupted run")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    options = FitOptions(steps=args.steps, lr=args.lr, holdout=args.holdout, seed=args.seed, bf16=not args.fp32)
    try:
        metadata = fit(args.clip, args.out, options, resume=not args.fresh)
    except (ValueError, CheckpointError) as error:
        parser.exit(2, f"{error}\n")
    for key, value in metadata.items():
        _log.info("%16s  %s", key.removeprefix("tiny_vae."), value)
    _log.info("wrote %s (%.1f MB)", args.out, args.out.stat().st_size / 1e6)
    return 0
