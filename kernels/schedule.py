"""The per-step schedule: which attention runs at which sigma, as text and as JSON.

One form is shared by nodes, trainer, checkpoint header and workflows::

    # fps-schedule v1, unit sigma
    # until   attention   granularity   window t h w
      0.90    fp8         x2            all 15 12
      0.00    fp8         x1            all 60% 40%

Only phase ends are written, from sigma 1 down to 0, so gaps and overlaps cannot be expressed. A window is given per
axis in latent tokens, as a share of the axis (``60%``), or as ``all``; a word in its place names another selector.
Sigma, never a step number: it does not depend on step count, sampler, shift or split samplers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from .selectors import SELECTORS

VERSION = 1
ATTENTIONS = ("dense", "bf16", "fp8")
GRANULARITIES = ("token", "x1", "x2", "x4", "x8")
MAX_PHASES = 20
MAX_WORD = 40
# Host sigmas are float32: a boundary written with two decimals must hold the sigma that was computed from it.
SIGMA_TOLERANCE = 1e-6


class ScheduleError(ValueError):
    """A schedule that cannot be used; the message is one sentence with the place and the fix."""


@dataclass(frozen=True)
class Phase:
    """One stretch of the denoising trajectory, down to sigma ``until``.

    ``window`` holds one extent per axis (t, h, w): an int in latent tokens, a string such as ``"60%"`` of the axis,
    or None for all of it. ``selector`` is a word with its arguments instead of a window. Both are None when dense.
    """

    until: float
    attention: str
    granularity: str | None = None
    window: tuple[int | str | None, int | str | None, int | str | None] | None = None
    selector: str | None = None

    def __post_init__(self) -> None:
        def fail(message: str) -> ScheduleError:
            return ScheduleError(f"the phase until {self.until:g}: {message}")

        if self.attention not in ATTENTIONS:
            raise fail(f"'{self.attention}' is no attention; write one of {', '.join(ATTENTIONS)}.")
        if self.attention == "dense":
            if (self.granularity, self.window, self.selector) != (None, None, None):
                raise fail("'dense' takes no granularity, window or selector; leave them out.")
            return
        _granularity(self.attention, self.granularity, fail)
        if (self.window is None) == (self.selector is None):
            raise fail("it needs a window or a selector, and not both.")
        if self.selector is not None:
            _selector(self.selector.split() or [""], fail)
        elif len(self.window) != 3:
            raise fail(f"a window has three extents t h w, got {len(self.window)}.")
        else:
            object.__setattr__(self, "window", tuple(_extent(extent, fail) for extent in self.window))

    @property
    def is_full(self) -> bool:
        """True if every token sees every token."""
        return self.attention == "dense" or self.window == (None, None, None)

    @property
    def uses_heads(self) -> bool:
        """True if a head table decides, which is not part of a schedule."""
        return self.selector is not None and self.selector.split()[0] == "heads"


@dataclass(frozen=True)
class Schedule:
    """Phases from sigma 1 down to 0."""

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        _check_order([(phase.until, f"phase {i}") for i, phase in enumerate(self.phases, 1)])

    @staticmethod
    def parse(text: str) -> Schedule:
        """Return the schedule that ``text`` (table, or JSON if it starts with ``{`` or ``[``) says.

        Raises ScheduleError with one sentence: place, value and fix.
        """
        if not isinstance(text, str):
            raise ScheduleError(f"a schedule is text, got {type(text).__name__}; choose a preset or write a table.")
        text = text.removeprefix("\ufeff")  # a byte order mark, as some editors write it
        stripped = text.strip()
        if not stripped:
            raise ScheduleError("the schedule is empty; choose a preset or write at least '0.00 dense'.")
        return _parse_json(stripped) if stripped[0] in "{[" else _parse_table(text)

    def format(self) -> str:
        """Return the canonical table; ``Schedule.parse`` of it gives this schedule back."""
        lines = [
            f"# fps-schedule v{VERSION}, unit sigma",
            "# until   attention   granularity   window t h w",
        ]
        for phase in self.phases:
            head = f"  {_format_number(phase.until):<7} {phase.attention:<11}"
            if phase.attention == "dense":
                lines.append(head.rstrip())
                continue
            window = phase.selector or " ".join("all" if e is None else str(e) for e in phase.window)
            lines.append(f"{head} {phase.granularity or '-':<13} {window}")
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Return the JSON form; ``Schedule.parse`` of it gives this schedule back."""
        rows = []
        for phase in self.phases:
            row: dict = {"until": phase.until, "attention": phase.attention}
            if phase.granularity is not None:
                row["granularity"] = phase.granularity
            if phase.selector is not None:
                row["selector"] = phase.selector
            elif phase.window is not None:
                row["window"] = ["all" if e is None else e for e in phase.window]
            rows.append(row)
        return json.dumps({"version": VERSION, "unit": "sigma", "phases": rows})

    def at(self, sigma: float) -> tuple[int, Phase]:
        """Return index and phase of ``sigma``: the first that reaches down to it, the last for everything below.

        Raises ScheduleError for NaN.
        """
        if math.isnan(sigma):
            raise ScheduleError("sigma is NaN; the sampler's schedule is broken.")
        index = first_reaching([phase.until for phase in self.phases], sigma)
        return index, self.phases[index]

    @property
    def is_dense(self) -> bool:
        """True if no phase replaces the host's attention."""
        return all(phase.attention == "dense" for phase in self.phases)

    @property
    def uses_heads(self) -> bool:
        """True if a phase needs a head table."""
        return any(phase.uses_heads for phase in self.phases)


def first_reaching(untils: Sequence[float], sigma: float) -> int:
    """Return the index of the first of ``untils``, falling, that reaches down to ``sigma``; the last for all below."""
    reach = (index for index, until in enumerate(untils) if sigma >= until - SIGMA_TOLERANCE)
    return next(reach, len(untils) - 1)


def _check_order(untils: list[tuple[float, str]]) -> None:
    if not untils:
        raise ScheduleError("the schedule has no phase; write at least '0.00 dense'.")
    if len(untils) > MAX_PHASES:
        raise ScheduleError(f"the schedule has {len(untils)} phases, at most {MAX_PHASES} are allowed; merge some.")
    previous = math.inf
    for until, place in untils:
        if not 0.0 <= until <= 1.0:
            raise ScheduleError(f"{place}: 'until' is {until:g}, but sigma runs from 1 down to 0.")
        if until >= previous:
            raise ScheduleError(
                f"{place}: 'until' is {until:g} after {previous:g}; phases run from sigma 1 down, write a smaller one."
            )
        previous = until
    if previous != 0.0:
        raise ScheduleError(f"{untils[-1][1]}: the last phase ends at {previous:g}; it must end at 0.00.")


def _format_number(value: float) -> str:
    short = f"{value:.2f}"
    return short if float(short) == value else repr(value)


def _parse_table(text: str) -> Schedule:
    phases, places = [], []
    for number, line in enumerate(text.splitlines(), 1):
        body, _, comment = line.partition("#")
        _check_comment(comment, f"line {number}, column {len(body) + 1}")
        tokens = [(m.group(), m.start() + 1) for m in re.finditer(r"\S+", body)]
        if not tokens:
            continue
        places.append(f"line {number}, column {tokens[0][1]}")
        phases.append(_parse_row(tokens, number))
    _check_order([(phase.until, place) for phase, place in zip(phases, places)])
    return Schedule(tuple(phases))


def _check_comment(comment: str, place: str) -> None:
    found = re.match(r"\s*fps-schedule\s+v([^\s,;]+)(?:\W+unit\s+(\S+))?", comment)
    if not found:
        return
    if found.group(1) != str(VERSION):
        raise ScheduleError(
            f"{place}: this is a v{found.group(1)} schedule, this version reads v{VERSION}; update the node pack."
        )
    if found.group(2) not in ("sigma", None):
        raise ScheduleError(f"{place}: the unit is '{found.group(2)}', only 'sigma' is understood; convert the ends.")


def _parse_row(tokens: list[tuple[str, int]], line: int) -> Phase:
    def fail(index: int, message: str) -> ScheduleError:
        column = tokens[index][1] if index < len(tokens) else tokens[-1][1] + len(tokens[-1][0]) + 1
        return ScheduleError(f"line {line}, column {column}: {message}")

    for index, (word, _) in enumerate(tokens):
        if len(word) > MAX_WORD:
            raise fail(index, f"a word of {len(word)} characters ('{word[:20]}...') belongs to no schedule; remove it.")
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", tokens[0][0]):
        raise fail(0, f"{tokens[0][0]!r} is not a sigma; write a number between 0 and 1.")
    until = float(tokens[0][0]) + 0.0  # a written -0.0 is 0.0
    if len(tokens) < 2:
        raise fail(1, f"the attention is missing; write one of {', '.join(ATTENTIONS)}.")
    words = [word for word, _ in tokens]
    attention = words[1]
    if attention not in ATTENTIONS:
        raise fail(1, f"'{attention}' is no attention; write one of {', '.join(ATTENTIONS)}.")
    if attention == "dense":
        if len(words) > 2:
            raise fail(2, f"'dense' takes no further columns, but '{words[2]}' follows; remove it.")
        return Phase(until, attention)
    if len(words) < 3:
        raise fail(
            2,
            f"the granularity is missing; write {'-' if attention == 'bf16' else ', '.join(GRANULARITIES)}.",
        )
    granularity = _granularity(attention, words[2], lambda message: fail(2, message))
    if len(words) < 4:
        raise fail(3, "the window is missing; write three extents t h w (tokens, a share such as 60%, or all).")
    if re.match(r"[A-Za-z_]", words[3]) and words[3] != "all":
        selector = _selector(words[3:], lambda message: fail(3, message))
        return Phase(until, attention, granularity, None, selector)
    if len(words) != 6:
        raise fail(
            min(len(words), 6),
            f"a window has three extents t h w, got {len(words) - 3}; write for example 'all 20 60%'.",
        )
    window = tuple(_extent(word, lambda message, i=i: fail(i, message)) for i, word in enumerate(words[3:], 3))
    return Phase(until, attention, granularity, window)


def _granularity(attention: str, word: str | None, fail) -> str | None:
    if attention == "bf16":
        if word not in ("-", None):
            raise fail(f"'bf16' has no granularity, got '{word}'; write -.")
        return None
    if word not in GRANULARITIES:
        found = "the granularity is missing" if word is None else f"'{word}' is no granularity"
        raise fail(f"{found}; write one of {', '.join(GRANULARITIES)}.")
    return word


def _selector(words: list[str], fail) -> str:
    name, arguments = words[0], words[1:]
    if name not in SELECTORS:
        known = f", or one of {', '.join(sorted(SELECTORS))}" if SELECTORS else ""
        raise fail(f"'{name}' is no window; write three extents t h w (tokens, a share such as 60%, or all){known}.")
    wanted = SELECTORS[name].arguments
    least = sum(argument.required for argument in wanted)
    if not least <= len(arguments) <= len(wanted):
        usage = " ".join([name, *(argument.example for argument in wanted[:least])])
        raise fail(f"'{name}' takes {_numbers(least, len(wanted))}, got {len(arguments)}; write for example '{usage}'.")
    for argument, word in zip(wanted, arguments):
        fits = re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", word) and argument.low <= float(word) <= argument.high
        if not fits or (argument.above and float(word) == argument.low):
            bounds = f"{'above ' if argument.above else ''}{argument.low:g} to {argument.high:g}"
            raise fail(f"the {argument.name} of '{name}' is '{word}'; write a number from {bounds}.")
    return " ".join(words)


def _numbers(least: int, most: int) -> str:
    if most == 0:
        return "no number"
    return f"{least} number{'s' * (least != 1)}" if least == most else f"{least} to {most} numbers"


def read_extent(word: object) -> int | str | None:
    """Return a window's extent along one axis: tokens, a share such as ``"60%"``, or None for all; ScheduleError."""
    return _extent(word, ScheduleError)


def _extent(word: object, fail) -> int | str | None:
    if word in ("all", None):
        return None
    text = str(word)
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", text):
        share = float(text[:-1])
        if not 0 < share <= 100:
            raise fail(f"the extent '{text}' is outside 0-100 %; write a larger share, or all.")
        # Decimal writes small shares without an exponent, which this form does not have.
        return f"{Decimal(str(share)):f}%".replace(".0%", "%")
    if isinstance(word, bool) or not re.fullmatch(r"[+-]?[0-9]+", text):
        raise fail(f"'{text}' is no extent; write whole latent tokens, a share such as 60%, or all.")
    if len(text) > 9:
        raise fail("the extent is larger than any video; write at most 9 digits, or all.")
    if int(text) < 1:
        raise fail(f"the extent {text} is not positive; write at least 1, or all.")
    return int(text)


def _parse_json(text: str) -> Schedule:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ScheduleError(
            f"line {error.lineno}, column {error.colno}: the JSON is broken ({error.msg}); correct it there."
        ) from None
    except (ValueError, RecursionError):
        raise ScheduleError("the JSON holds a number or a nesting that is too large; write a plain list.") from None
    if isinstance(data, dict):
        version = data.get("version", VERSION)
        if version != VERSION:
            raise ScheduleError(f"'version' is {version!r}, this version reads {VERSION}; update the node pack.")
        if data.get("unit", "sigma") != "sigma":
            raise ScheduleError(f"the unit is '{data['unit']}', only 'sigma' is understood; convert the ends.")
        unknown = set(data) - {"version", "unit", "phases"}
        if unknown:
            raise ScheduleError(f"'{min(unknown)}' is no key of a schedule; write version, unit and phases.")
        rows = data.get("phases")
    else:
        rows = data
    if not isinstance(rows, list):
        raise ScheduleError('the JSON has no list \'phases\'; write {"phases": [{"until": 0, "attention": "dense"}]}.')
    phases = tuple(_parse_json_row(row, number) for number, row in enumerate(rows, 1))
    return Schedule(phases)


def _parse_json_row(row: object, number: int) -> Phase:
    def fail(message: str) -> ScheduleError:
        return ScheduleError(f"phase {number}: {message}")

    if not isinstance(row, dict):
        raise fail(f"expected an object with until and attention, got {type(row).__name__}.")
    unknown = set(row) - {"until", "attention", "granularity", "window", "selector"}
    if unknown:
        raise fail(f"'{min(unknown)}' is no column; write until, attention, granularity, window or selector.")
    until, attention = row.get("until"), row.get("attention")
    if isinstance(until, bool) or not isinstance(until, int | float) or not 0 <= until <= 1:
        raise fail(f"'until' is {until!r}; write a number between 0 and 1.")
    until = float(until) + 0.0  # a written -0.0 is 0.0
    if attention not in ATTENTIONS:
        raise fail(f"'attention' is {attention!r}; write one of {', '.join(ATTENTIONS)}.")
    if attention == "dense":
        extra = set(row) - {"until", "attention"}
        if extra:
            raise fail(f"'dense' takes no {min(extra)}; remove it.")
        return Phase(until, attention)
    granularity = _granularity(attention, row.get("granularity"), fail)
    if "selector" in row:
        if "window" in row:
            raise fail("both a window and a selector are given; keep one.")
        words = str(row["selector"]).split() or [""]
        return Phase(until, attention, granularity, None, _selector(words, fail))
    window = row.get("window")
    if not isinstance(window, list) or len(window) != 3:
        raise fail(f'\'window\' is {window!r}; write three extents such as ["all", 20, "60%"].')
    return Phase(until, attention, granularity, tuple(_extent(e, fail) for e in window))
