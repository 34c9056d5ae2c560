"""Find a pattern for every attention head of a Wan model (Sparse-vDiT) and keep them as a head table."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..failures import exit_code

PACK = Path(__file__).resolve().parent.parent.parent
ASSETS = PACK / "training" / "assets"
PUBLISHED = {"size": "832x480x81", "steps": 50, "cfg": 5.0, "shift": 5.0}
# As the trainer: stopped and saved.
EXIT_STOPPED = 75
TINY = {"size": "192x128x29", "steps": 12, "cfg": 1.0, "shift": 3.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the search and return the exit code: 0 done, 2 bad input (one sentence on stderr), 75 stopped and saved,
    130 stopped with nothing new to save."""
    args = _parser().parse_args(argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)

    def work() -> int:
        from .passes import StopError
        from .work import search_heads

        try:
            for line in search_heads(args, say):
                print(line, flush=True)
        except StopError as stopped:
            say(str(stopped))
            return EXIT_STOPPED
        except KeyboardInterrupt:
            say("stopped; the same call goes on from what was saved, or begins anew")
            return 130
        return 0

    return exit_code(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.search",
        description=__doc__,
        epilog="Stop it at any time (Ctrl-C finishes the step and saves): the same call goes on where it was. "
        "Without a model it searches the tiny one that "
        "the pack ships, in a few minutes on a CPU.",
    )
    group = parser.add_argument_group("what is sampled")
    add = group.add_argument
    add("--model", metavar="FILE", help="a Wan text-to-video file or folder (default: the tiny model of the pack)")
    add("--prompts", metavar="FILE|TEXT", nargs="+", default=[], help="prompts, or text files with one per line")
    add("--text-encoder", metavar="FOLDER", default="zeros",
        help="folder of UMT5 and its tokenizer; 'zeros', the default: no text")  # fmt: skip
    add("--negative", metavar="TEXT", default="", help="negative prompt, where cfg is not 1")
    add("--seeds", metavar="N", nargs="+", default=["0-1"], help="seeds per prompt, or ranges such as 0-3 (0-1)")
    add("--size", metavar="WxHxFRAMES", help="video size (832x480x81; tiny model: 192x128x29)")
    add("--steps", type=int, help="sampling steps (50; tiny model: 12)")
    add("--cfg", type=float, help="guidance scale, 1 for none (5; tiny model: 1)")
    add("--shift", type=float, help="shift of the noise levels (5; tiny model: 3)")
    add("--together", type=int, default=1, metavar="N",
        help="clips in one call of the model: heads are chosen by all of them at once, for their memory")  # fmt: skip
    group = parser.add_argument_group("what is searched")
    add = group.add_argument
    add("--schedule", default="0 fp8 x1 heads", metavar="TEXT|FILE",
        help="says 'heads' where and how patterns are to run; ';' for line ends (0 fp8 x1 heads)")  # fmt: skip
    add("--candidates", default="default", metavar="SET|PATTERNS",
        help="'default', 'paper', or patterns with ';' between: 'skip; window all 30%% 30%%; first 1'")  # fmt: skip
    add("--stripes", type=float, default=0.1, metavar="SHARE",
        help="also try vertical stripes of this share of the tiles, from the evidence (0.1); 0 for none")  # fmt: skip
    add(
        "--bands",
        choices=("steps", "phases"),
        default="steps",
        help="one choice per sampling step (the default), or per phase of the schedule",
    )
    add("--branches", choices=("joint", "separate"), default="joint",
        help="where cfg is not 1: one pattern for prompt and negative prompt (default), or one for each")  # fmt: skip
    add("--dense-steps", type=int, default=0, metavar="N", help="the first N steps stay dense")
    add("--dense-layers", nargs="+", default=[], metavar="N", help="layers that stay full, such as 0-1")
    group = parser.add_argument_group("how heads are chosen")
    add = group.add_argument
    add("--rule", choices=("ours", "paper"), default="ours",
        help="paper: lambda 0.5, epsilon 1, plain MSE, as published; ours: 0.05, 0.05, normalized errors")  # fmt: skip
    add(
        "--lambda",
        dest="lam",
        type=float,
        metavar="L",
        help="price of a whole head's cost in units of the error",
    )
    add(
        "--epsilon",
        type=float,
        metavar="E",
        help="a head stays full where the loss (error + lambda x cost) of every other pattern exceeds this",
    )
    add("--budget", metavar="COST",
        help="in place of both: the mean cost to meet, as a share of full attention (0.3, 30%%), or with measured "
        "costs as seconds of self-attention per video (40s)")  # fmt: skip
    add("--error", choices=("output", "normalized", "mse"),
        help="normalized: by the mean power of the layer's heads; output: that, weighted by what a layer's error does "
        "to the model's output (measured first; default with a budget); mse: the paper's")  # fmt: skip
    add("--aggregate", choices=("mean", "max"), default="mean", help="how clips and steps of a band are joined")
    add("--cost", choices=("density", "measured"), default="density",
        help="density: the paper's; measured: this card's time per pattern, kept in the calibration")  # fmt: skip
    add("--passes", type=int, metavar="N", help="passes over the clips: 2 with a budget, else 1")
    group = parser.add_argument_group("how it runs, and what comes out")
    add = group.add_argument
    add("--evidence", type=int, default=2, metavar="CLIPS",
        help="clips that are first run dense, to see what heads look at (2); 0 for none, and no stripes")  # fmt: skip
    add("--slots", type=int, help="tokens per tile (64, or what the model's file says; tiny model: 8)")
    add("--backend", default="auto", help="attention backend of the candidates")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on a card, else fp32")
    add("--restart", action="store_true", help="forget what an interrupted search had found")
    add("--into", metavar="FILE", help="also write the model with the table in its header to this new file")
    add("--out", metavar="FILE", default="output/head-patterns/heads.json",
        help="the head table; its report goes beside it (output/head-patterns/heads.json)")  # fmt: skip
    return parser
