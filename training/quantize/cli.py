"""Quantize a Wan model's linear layers to few-bit floating point (MSFP) after training, and write the file that Load
MSFP Wan and the trainer read."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..failures import exit_code
from .layers import KEEPS

PACK = Path(__file__).resolve().parent.parent.parent
ASSETS = PACK / "training" / "assets"
PUBLISHED = {"size": "832x480x81", "steps": 20, "cfg": 5.0, "shift": 5.0}
TINY = {"size": "192x128x29", "steps": 12, "cfg": 1.0, "shift": 3.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize and return the exit code: 0 done, 2 bad input (one sentence on stderr), 130 stopped, nothing written."""
    args = _parser().parse_args(argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)

    def work() -> int:
        from .work import quantize

        try:
            for line in quantize(args, say):
                print(line, flush=True)
        except KeyboardInterrupt:
            say("stopped; nothing was written")
            return 130
        return 0

    return exit_code(work)


def quantize_arguments(*arguments: str) -> argparse.Namespace:
    """Return the settings that a command line means, for callers from Python."""
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.quantize",
        description=__doc__,
        epilog="Without a model it quantizes the tiny one that the pack ships, in a minute on a CPU. Inputs in 4 bits "
        "cost quality that a fine-tune gives back; weights alone (--inputs none) hardly do.",
    )
    group = parser.add_argument_group("what is quantized, and how")
    add = group.add_argument
    add("--model", metavar="FILE", help="a Wan file or folder (default: the tiny model of the pack)")
    add("--out", metavar="FILE", help="the file to write (output/msfp/<model>-msfp4.safetensors)")
    add("--overwrite", action="store_true", help="replace a file that is there")
    add("--form", choices=("msfp", "nvfp4"), default="msfp",
        help="msfp: what the rest of this page is about, for Load MSFP Wan; nvfp4: ComfyUI's own 4-bit form of the "
        "weights, for any of its loaders and for Blackwell's matrix units (needs comfy-kitchen)")  # fmt: skip
    add("--bits", type=int, choices=(4, 6, 8), default=4, help="bits of a weight (4)")
    add("--granularity", default="64", metavar="G",
        help="what shares a scale: 'tensor', 'channel', or a group of so many neighbors in a row (64)")  # fmt: skip
    add("--inputs", choices=("static", "dynamic", "none"), default="static",
        help="ranges of the layers' inputs: found on calibration clips (static, the paper's), every token's own "
        "(dynamic), or inputs as they are (none: weights alone, and no clip is sampled)")  # fmt: skip
    add("--input-bits", type=int, choices=(4, 6, 8), default=4, help="bits of an input (4)")
    add("--method", choices=("msfp", "signed", "int"), default="msfp",
        help="msfp: all formats, unsigned with a zero point where inputs are asymmetric; signed: e2m1 alone (e3m2, "
        "e4m3); int: whole steps")  # fmt: skip
    add("--keep", nargs="+", default=[], metavar="LAYER",
        help=f"layers of every block that stay as they are: {', '.join(KEEPS)}, or such as self_attn.v")  # fmt: skip
    add("--keep-blocks", type=int, default=0, metavar="N", help="blocks at either end that stay as they are (0)")
    group = parser.add_argument_group("what inputs are calibrated on: clips that are sampled with the model as it is")
    add = group.add_argument
    add("--prompts", metavar="FILE|TEXT", nargs="+", default=[], help="prompts, or text files with one per line")
    add("--text-encoder", metavar="FOLDER", default="zeros",
        help="folder of UMT5 and its tokenizer; 'zeros', the default: no text")  # fmt: skip
    add("--negative", metavar="TEXT", default="", help="negative prompt, where cfg is not 1")
    add("--seeds", metavar="N", nargs="+", default=["0-1"], help="seeds per prompt, or ranges such as 0-3 (0-1)")
    add("--size", metavar="WxHxFRAMES", help="video size (832x480x81; tiny model: 192x128x29)")
    add("--steps", type=int, help="sampling steps (20; tiny model: 12)")
    add("--cfg", type=float, help="guidance scale, 1 for none (5; tiny model: 1)")
    add("--shift", type=float, help="shift of the noise levels (5; tiny model: 3)")
    add("--tokens", type=int, default=1024, metavar="N", help="tokens of a layer's input that are kept (1024)")
    group = parser.add_argument_group("how it runs")
    add = group.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="of the sampling; auto: bf16 on a card")
    add("--no-plots", action="store_true", help="leave out the distribution plots, which take a second per block")
    return parser
