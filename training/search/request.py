"""What a search is asked for on the command line, turned into what the engine takes; every mistake is one sentence."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...kernels.head_table import HeadTableError
from ...kernels.headsearch.asked import dense_first, read_searched
from ...kernels.headsearch.candidates import CandidateError, named_candidates
from ...kernels.headsearch.rule import EPSILON, LAMBDA, PAPER_EPSILON, PAPER_LAMBDA, Rule
from ...kernels.headsearch.search import Request, phase_bands, step_bands
from ...kernels.patterns import Pattern
from ...kernels.schedule import Schedule, ScheduleError
from ..config import ConfigError

MOST_CLIPS = 10_000


class SearchError(ConfigError):
    """A search that cannot be made; the message is one sentence."""


def read_schedule(text: str) -> Schedule:
    """Return the schedule of a text with ';' for line ends, or of a file; raises SearchError."""
    try:
        path = Path(text)
        if len(text) < 1024 and path.is_file():
            text = path.read_text(encoding="utf-8-sig")
        return read_searched(text)
    except ScheduleError as error:
        lost = "" if " " in text.strip() else f"there is no file '{text[:80]}', and as a schedule: "
        raise SearchError(f"--schedule: {lost}{str(error).rstrip('.')}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SearchError(f"--schedule {text}: cannot be read as text ({error}); check the file") from None


def first_steps_dense(schedule: Schedule, sigmas: Sequence[float], steps: int) -> Schedule:
    """Return ``schedule`` with the first ``steps`` steps of a run dense; raises SearchError."""
    try:
        return dense_first(schedule, sigmas, steps)
    except ScheduleError as error:
        raise SearchError(str(error).rstrip(".")) from None


def read_layers(given: Sequence[str], layers: int) -> frozenset[int]:
    """Return the layers of numbers and ranges such as 0-1; raises SearchError for one that the model has not."""
    found: set[int] = set()
    for text in given:
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < layers:
            raise SearchError(
                f"--dense-layers: '{text}' is no layer or range of 0 to {layers - 1}; write for example 0-1"
            )
        found.update(range(first, last + 1))
    if len(found) == layers:
        raise SearchError("--dense-layers leaves no layer to search; give fewer")
    return frozenset(found)


def candidate_patterns(text: str) -> list[Pattern]:
    """Return the patterns of a set's name, or of patterns with ';' between them; raises SearchError."""
    try:
        return named_candidates(text)
    except CandidateError as error:
        raise SearchError(f"--candidates: {str(error).rstrip('.')}") from None


def read_rule(args: Any) -> tuple[Rule, str]:
    """Return rule and error of the arguments: the paper's if ``--rule paper``, else ours or what is said."""
    paper = args.rule == "paper"
    error = args.error or ("mse" if paper else "normalized")
    lam = args.lam if args.lam is not None else PAPER_LAMBDA if paper else LAMBDA
    epsilon = args.epsilon if args.epsilon is not None else PAPER_EPSILON if paper else EPSILON
    try:
        return Rule(lam, epsilon), error
    except ValueError as wrong:
        raise SearchError(f"--{str(wrong).rstrip('.')}") from None


def make_request(
    args: Any, schedule: Schedule, sigmas: Sequence[float], layers: int, extra: Sequence[Pattern]
) -> Request:
    """Return the engine's request; raises SearchError."""
    rule, error = read_rule(args)
    bands = phase_bands(schedule) if args.bands == "phases" else step_bands(sigmas)
    try:
        return Request(
            schedule=schedule,
            bands=bands,
            candidates=(*candidate_patterns(args.candidates), *extra),
            rule=rule,
            error=error,
            aggregate=args.aggregate,
            branches=args.branches,
            dense_layers=read_layers(args.dense_layers, layers),
            budget=args.budget,
        )
    except (ValueError, HeadTableError) as wrong:
        raise SearchError(str(wrong).rstrip(".")) from None


def settings_key(request: Request, facts: dict[str, Any]) -> str:
    """Return the hash of everything that a search depends on."""
    plain = replace(request, candidates=(), schedule=Schedule.parse("0 bf16 - heads"))
    parts = [repr(plain), repr(request.candidates), request.schedule.format(), facts]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
