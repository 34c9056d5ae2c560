"""Patterns in words: the form that head tables, search candidates and reports share.

full                      every token sees every token
skip                      nothing is seen, the head's output is zero
window t h w              extents in latent tokens, shares (``40%``) or ``all``, as in a schedule
first n                   the first n latent frames (or a share of them), seen by all
stripe 7x9x20 0-3,17      chosen key tiles of a video of 7 x 9 x 20 tiles, seen by all
window 1 all all + first 1    a union
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

from .patterns import FirstFrames, Full, Pattern, Skip, Stripe, Union, Window
from .schedule import ScheduleError, read_extent

# Families of heads, in the paper's words (Sparse-vDiT section 4.1); "window" is local in time and space.
FAMILIES = ("full", "skip", "diagonal", "multi-diagonal", "window", "vertical stripe", "union")
MAX_PARTS = 8
# More tiles than any plan could list; a table may say hundreds of stripes, and each is a number per tile in memory.
MAX_STRIPE_PIECES = 1 << 16


class PatternError(ValueError):
    """A text that is no pattern; the message is one sentence."""


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that ``text`` says; raises PatternError, one sentence, with what is wrong."""
    if not isinstance(text, str) or not text.strip():
        raise PatternError(f"a pattern is text such as 'window all 40% 40%', got {str(text)[:40]!r}.")
    return _parsed(text)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Pattern:
    parts = [part.split() for part in text.split(" + ")]
    if len(parts) > MAX_PARTS:
        raise PatternError(f"the pattern joins {len(parts)} parts, at most {MAX_PARTS} are allowed; leave some out.")
    if len(parts) > 1 and any(part[:1] in (["full"], ["skip"]) for part in parts):
        raise PatternError(f"'{text[:60]}' joins full or skip with others; a union is made of windows and stripes.")
    patterns = [_part(words, text) for words in parts]
    return patterns[0] if len(patterns) == 1 else Union(tuple(patterns))


def format_pattern(pattern: Pattern) -> str:
    """Return the words of ``pattern``; ``parse_pattern`` of them gives it back."""
    if isinstance(pattern, Union):
        return " + ".join(map(format_pattern, pattern.parts))
    if isinstance(pattern, Window):
        return "window " + " ".join("all" if e is None else str(e) for e in (pattern.t, pattern.h, pattern.w))
    if isinstance(pattern, FirstFrames):
        return f"first {pattern.frames}"
    if isinstance(pattern, Stripe):
        return f"stripe {'x'.join(map(str, pattern.pieces))} {_format_numbers(pattern.tiles)}"
    if isinstance(pattern, Full | Skip):
        return type(pattern).__name__.lower()
    raise PatternError(f"{type(pattern).__name__} has no words; add them to pattern_text.")


def family(pattern: Pattern) -> str:
    """Return which of ``FAMILIES`` a pattern belongs to: what limits time alone is a diagonal, what limits space alone
    a multi-diagonal."""
    if isinstance(pattern, Window):
        time, space = pattern.t is not None, pattern.h is not None or pattern.w is not None
        return {(0, 0): "full", (1, 0): "diagonal", (0, 1): "multi-diagonal", (1, 1): "window"}[time, space]
    if isinstance(pattern, FirstFrames | Stripe):
        return "vertical stripe"
    return type(pattern).__name__.lower()


def _part(words: list[str], text: str) -> Pattern:
    name, rest = (words or [""])[0], words[1:]

    def fail(message: str) -> PatternError:
        return PatternError(f"the pattern '{text[:80]}': {message}")

    if name in ("full", "skip"):
        if rest:
            raise fail(f"'{name}' stands alone; remove '{rest[0][:40]}'.")
        return Full() if name == "full" else Skip()
    if name == "window":
        if len(rest) != 3:
            raise fail(f"a window has three extents t h w, got {len(rest)}; write for example 'window all 40% 40%'.")
        return Window(*(_extent(word, fail) for word in rest))
    if name == "first":
        extent = _extent(rest[0], fail) if len(rest) == 1 else None
        if extent is None:
            raise fail("'first' takes one number of latent frames, or a share of them; write for example 'first 1'.")
        return FirstFrames(extent)
    if name == "stripe":
        if len(rest) != 2:
            raise fail("a stripe says pieces and tiles; write for example 'stripe 7x9x20 0-3,17'.")
        return _stripe(*rest, fail)
    raise fail(
        f"'{name[:40]}' is no pattern that this version knows (full, skip, window, first, stripe); "
        "update the node pack."
    )


def _extent(word: str, fail) -> int | str | None:
    try:
        return read_extent(word)
    except ScheduleError as error:
        raise fail(str(error)) from None


def _stripe(pieces: str, tiles: str, fail) -> Stripe:
    if not re.fullmatch(r"[0-9]{1,6}x[0-9]{1,6}x[0-9]{1,6}", pieces):
        raise fail(f"'{pieces[:40]}' are no pieces; write tiles along t, h and w such as 7x9x20.")
    shape = tuple(int(n) for n in pieces.split("x"))
    count = math.prod(shape)
    if not 1 <= count <= MAX_STRIPE_PIECES:
        raise fail(f"{pieces} are {count} tiles, allowed are 1 to {MAX_STRIPE_PIECES}.")
    numbers: set[int] = set()
    for part in tiles.split(","):
        if not re.fullmatch(r"[0-9]{1,7}(-[0-9]{1,7})?", part):
            raise fail(f"'{part[:40]}' are no tiles; write numbers and ranges such as 0-3,17.")
        low, _, high = part.partition("-")
        first, last = int(low), int(high or low)
        if last < first or last >= count:
            raise fail(f"the tiles '{part}' are not within 0 to {count - 1}.")
        numbers.update(range(first, last + 1))
    return Stripe(shape, tuple(sorted(numbers)))


def _format_numbers(numbers: tuple[int, ...]) -> str:
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
