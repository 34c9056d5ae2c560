"""The inputs of *Search Head Patterns*, what they ask for, and the sentence for values that cannot be."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ..kernels.headsearch.asked import check_searched, read_searched
from ..kernels.headsearch.candidates import SETS, CandidateError, named_candidates
from ..kernels.headsearch.cost import KINDS
from ..kernels.headsearch.rule import EPSILON, LAMBDA, PAPER_EPSILON, PAPER_LAMBDA, Rule
from ..kernels.headsearch.search import BRANCHES, ERRORS, Request
from ..kernels.patterns import Pattern
from ..kernels.schedule import Schedule, ScheduleError
from ._api import FpsSchedule, io
from .dense_blocks import DenseBlocksError, parse_blocks
from .profile_inputs import MAX_SEED, MAX_STEPS, TABLES, host_names, sampling_inputs
from .sentence import one_line, written

RULES = ("budget", "ours", "paper")
BANDS = ("steps", "phases")
CUSTOM = "custom"
CANDIDATES = (*SETS, CUSTOM)
DEFAULT_SCHEDULE = "0 fp8 x1 heads"
DEFAULT_NAME = "heads"
MAX_RUNS, MAX_LETTERS = 100, 10_000
CHOICES = {
    "candidates": CANDIDATES, "rule": RULES, "error": ERRORS, "cost": KINDS, "branches": BRANCHES, "bands": BANDS,
}  # fmt: skip
# name: (least, most, whole)
NUMBERS = {
    "seed": (0, MAX_SEED, True), "steps": (1, MAX_STEPS, True), "cfg": (0.0, 1000.0, False),
    "runs": (1, MAX_RUNS, True), "budget": (0.0, 100.0, False), "stripes": (0.0, 100.0, False),
    "lambda_cost": (0.0, 1e9, False), "epsilon": (0.0, 1e9, False), "dense_steps": (0, MAX_STEPS - 1, True),
}  # fmt: skip


class HeadSearchError(ValueError):
    """A search that cannot be made; the message is one sentence."""


@dataclass(frozen=True)
class Wanted:
    """What is searched; ``budget`` and ``stripes`` are shares, ``budget`` None where the rule has no budget."""

    schedule: Schedule
    candidates: tuple[Pattern, ...]
    rule: str
    budget: float | None
    lam: float
    epsilon: float
    error: str
    cost: str
    branches: str
    bands: str
    stripes: float
    dense_steps: int
    dense_blocks: frozenset[int]
    prompts: int = 1

    def request(self, schedule: Schedule, bands: tuple[float, ...]) -> Request:
        """Return the engine's request; the paper's rule is the published one, whatever the numbers say."""
        paper = self.rule == "paper"
        rule = Rule(PAPER_LAMBDA, PAPER_EPSILON) if paper else Rule(self.lam, self.epsilon)
        return Request(
            schedule=schedule,
            bands=bands,
            candidates=self.candidates,
            rule=rule,
            error="mse" if paper else self.error,
            branches=self.branches,
            dense_layers=self.dense_blocks,
            budget=self.budget,
        )


def search_inputs() -> list[io.Input]:
    """Return the inputs: links, what a KSampler has, then what is asked of the search; the last ones are advanced."""
    return [
        io.Model.Input(
            "model",
            tooltip=(
                "The Wan model as the sampler would get it, with LoRAs and shift. A patch by FPSAttention (Wan) on it "
                "is left aside; the model that comes in is not changed."
            ),
        ),
        io.Conditioning.Input(
            "positive",
            tooltip=(
                "A prompt that is typical of what you make. A list of prompts is searched together, one run each; "
                "Create List makes one."
            ),
        ),
        io.Conditioning.Input(
            "negative", tooltip="The negative prompt; not used with cfg 1. One, or a list with one for each prompt."
        ),
        io.Latent.Input(
            "latent_image",
            tooltip=(
                "An empty latent video, or the latent of an image-to-video node. Patterns are searched for its size "
                "and carried to others by rule. One, or a list with one for each prompt."
            ),
        ),
        *sampling_inputs(
            seed="Seed of the noise of the first run; further runs take the next numbers.",
            steps="Sampling steps of every run, as you will sample later.",
            sampler="The sampler that you will use.",
            scheduler="The scheduler that you will use. Patterns are kept by noise level, not by step.",
        ),
        io.Int.Input(
            "runs",
            default=1,
            min=1,
            max=MAX_RUNS,
            tooltip=(
                "Seeds per prompt: seed, seed + 1 and so on. Errors are averaged over them, so patterns hold for more "
                "than one video. The time grows with it."
            ),
        ),
        io.Combo.Input(
            "candidates",
            options=list(CANDIDATES),
            default="default",
            tooltip=(
                "Patterns that are tried for every head. default: the paper's modes at several strengths each, about "
                "five dense runs per pass. paper: four modes, about half of that. custom: the patterns below."
            ),
        ),
        io.Combo.Input(
            "rule",
            options=list(RULES),
            default=RULES[0],
            tooltip=(
                "How a head's pattern is chosen. budget: the least error for the mean cost below, in two passes. ours: "
                "lambda and epsilon below. paper: lambda 0.5, epsilon 1, plain MSE, as Sparse-vDiT was published."
            ),
        ),
        io.Float.Input(
            "budget",
            default=30.0,
            min=1.0,
            max=100.0,
            step=1.0,
            tooltip=(
                "Mean cost of the searched attention in percent of full attention; lower is faster and changes the "
                "video more. Used with the rule budget."
            ),
        ),
        io.String.Input(
            "name",
            default=DEFAULT_NAME,
            tooltip=(
                "Name of the file in the folder fpsattention of ComfyUI's output folder; a counter is added, so "
                "nothing is overwritten. Load Head Patterns lists it."
            ),
        ),
        *_advanced(),
    ]


def _advanced() -> list[io.Input]:
    usual = {"optional": True, "advanced": True}
    return [
        io.MultiType.Input(
            "schedule",
            types=[FpsSchedule, io.String],
            tooltip=(
                "From FPSAttention Schedule, or a text in the same form: it says heads where patterns are wanted. "
                "Phases with windows run dense while searching. Not connected: heads with FP8 in every step."
            ),
            **usual,
        ),
        io.Int.Input(
            "dense_steps",
            default=0,
            min=0,
            max=MAX_STEPS - 1,
            tooltip="So many first steps stay dense, where the video's layout forms. 0: the schedule alone decides.",
            **usual,
        ),
        io.String.Input(
            "dense_blocks",
            default="",
            tooltip=(
                "Blocks (layers) that stay full in every step, counted from 0: numbers and ranges such as 0, 1, 38-39."
            ),
            **usual,
        ),
        io.String.Input(
            "patterns",
            multiline=True,
            default="skip\nwindow 1 all all\nwindow all 30% 30%\nfirst 1",
            tooltip=(
                "One pattern per line: full, skip, window with its extents along time, height and width, first with a "
                "number of frames, or some of them with + between. Used with the candidates custom."
            ),
            **usual,
        ),
        io.Float.Input(
            "stripes",
            default=10.0,
            min=0.0,
            max=100.0,
            step=1.0,
            tooltip=(
                "Also try vertical stripes: up to 4 sets of tiles, each of this percentage of the video, that heads "
                "look at from everywhere. They are found in a dense run before the search. 0: none, and no such run."
            ),
            **usual,
        ),
        io.Combo.Input(
            "bands",
            options=list(BANDS),
            default=BANDS[0],
            tooltip="steps: every sampling step has patterns of its own. phases: one choice per phase of the schedule.",
            **usual,
        ),
        io.Combo.Input(
            "branches",
            options=list(BRANCHES),
            default=BRANCHES[0],
            tooltip=(
                "joint: the same patterns for prompt and negative prompt. separate: one choice each, which needs cfg "
                "above 1 here and in the sampler."
            ),
            **usual,
        ),
        io.Combo.Input(
            "cost",
            options=list(KINDS),
            default=KINDS[0],
            tooltip=(
                "What the budget and lambda count. density: token pairs, as in the paper. measured: the time of each "
                "pattern on this card, measured once in up to a minute and kept."
            ),
            **usual,
        ),
        io.Combo.Input(
            "error",
            options=list(ERRORS),
            default=ERRORS[0],
            tooltip=(
                "normalized: a head's squared error over the mean power of its layer's heads, so that all layers "
                "count alike. mse: the plain mean squared error."
            ),
            **usual,
        ),
        io.Float.Input(
            "lambda_cost",
            display_name="lambda",
            default=LAMBDA,
            min=0.0,
            max=1000.0,
            step=0.01,
            tooltip="Price of cost in units of the error; higher gives sparser heads. Used with the rule ours.",
            **usual,
        ),
        io.Float.Input(
            "epsilon",
            default=EPSILON,
            min=0.0,
            max=1000.0,
            step=0.01,
            tooltip="A head stays full where every other loss exceeds this. Used with the rule ours.",
            **usual,
        ),
    ]


def problem(**values: Any) -> str | None:
    """Return the sentence for the first value that cannot be, or None; a value that is None is not known yet."""
    known = {name: value for name, value in values.items() if value is not None}
    for name, options in (CHOICES | {table: host_names(table, ()) for table in TABLES}).items():
        value = known.get(name)
        if name in known and not (isinstance(value, str) and (not options or value in options)):
            return f"{name} is {written(value)}, which is none of its choices; choose one in the node."
    for name, (least, most, whole) in NUMBERS.items():
        if name in known and not _fits(known[name], least, most, whole):
            kind = "a whole number" if whole else "a number"
            return f"{name} is {written(known[name])}; write {kind} from {least:g} to {_number(most)}."
    if known.get("rule") == "budget" and known.get("budget") == 0:
        return "budget is 0; write a percentage of full attention above 0, up to 100."
    if known.get("branches") == "separate" and known.get("cfg") == 1:
        return "branches is 'separate', but with cfg 1 the negative prompt is not sampled; choose joint, or raise cfg."
    if known.get("dense_steps", 0) and known.get("dense_steps") >= known.get("steps", math.inf):
        return f"dense_steps is {known['dense_steps']} of {known['steps']} steps, so none is searched; write fewer."
    return _text_problem(known)


def _text_problem(known: dict[str, Any]) -> str | None:
    try:
        if "schedule" in known:
            read_schedule(known["schedule"])
        if known.get("candidates") == CUSTOM and "patterns" in known:
            custom_candidates(known["patterns"])
        if "dense_blocks" in known:
            parse_blocks(known["dense_blocks"])
        if "name" in known:
            check_name(known["name"])
    except (ScheduleError, DenseBlocksError, HeadSearchError) as error:
        return one_line(error)
    return None


def read_schedule(given: Any) -> Schedule:
    """Return the schedule of a link or a text; raises ScheduleError with one printable line."""
    try:
        if isinstance(given, Schedule):
            check_searched(given)
            return given
        if not isinstance(given, str):
            raise ScheduleError(f"schedule got {written(given)}, which is no schedule; connect FPSAttention Schedule.")
        return read_searched(given)
    except ScheduleError as error:
        raise ScheduleError(one_line(error)) from None


def custom_candidates(text: Any) -> list[Pattern]:
    """Return the patterns of a text, one per line; raises HeadSearchError."""
    if not isinstance(text, str) or len(text) > MAX_LETTERS:
        raise HeadSearchError(
            f"patterns is {written(text)}; write one pattern per line, at most {MAX_LETTERS} letters."
        )
    try:
        # A line end makes it patterns, never a set's name.
        return named_candidates(f"{text}\n")
    except CandidateError as error:
        raise HeadSearchError(f"patterns: {one_line(error)}") from None


def check_name(name: Any) -> None:
    """Raise HeadSearchError for a name that is none of a file below the output folder."""
    parts = re.split(r"[/\\]", name) if isinstance(name, str) else [""]
    bad = not all(part.strip(" .") for part in parts) or not name.isprintable() or re.search(r'[:*?"<>|]', name)
    if bad or len(name) > 120:
        raise HeadSearchError(f"name is {written(name)}, which is no file's name; write for example wan/heads.")


def _fits(value: Any, least: float, most: float, whole: bool) -> bool:
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return number and not isinstance(value, bool) and least <= value <= most and (not whole or value == int(value))


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
