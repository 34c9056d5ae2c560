"""The patterns that a search tries for every head: the paper's modes at several strengths each.

Sparse-vDiT (arXiv 2506.03065, section 4.2) fixes neither band widths nor stripes nor how sparse each mode is; these
strengths are ours. All are shares of the video, so that they mean the same at every resolution.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from ..grid import Tiling
from ..pattern_text import PatternError, family, parse_pattern
from ..patterns import Full, Pattern

MOST = 48
# 1 is a frame's own tiles only.
DIAGONAL = ("window 1 all all", "window 30% all all", "window 50% all all")
# Square, tall and flat: which of them serves a head depends on the picture's motion and on the head.
MULTI_DIAGONAL = tuple(
    f"window all {h} {w}"
    for h, w in (
        ("15%", "15%"), ("30%", "15%"), ("15%", "30%"), ("30%", "30%"), ("50%", "25%"), ("25%", "50%"), ("50%", "50%"),
        ("all", "15%"), ("15%", "all"), ("all", "30%"), ("30%", "all"), ("65%", "65%"), ("80%", "80%"),
    )
)  # fmt: skip
LOCAL = ("window 30% 30% 30%", "window 30% 60% 60%", "window 60% 30% 30%", "window 60% 60% 60%")
STRIPES = ("first 1", "window 1 all all + first 1", "window all 25% 25% + first 1")
DEFAULT = ("full", "skip", *DIAGONAL, *MULTI_DIAGONAL, *LOCAL, *STRIPES)
# The paper's four modes and no more, each at about a third of the work.
PAPER = ("full", "skip", "window 30% all all", "window all 55% 55%", "first 30%")
SETS = {"default": DEFAULT, "paper": PAPER}


class CandidateError(ValueError):
    """Candidates that cannot be searched; the message is one sentence."""


def read_candidates(words: Iterable[str]) -> list[Pattern]:
    """Return the patterns that ``words`` say, full first; raises CandidateError, one sentence."""
    try:
        found = [parse_pattern(word) for word in words]
    except PatternError as error:
        raise CandidateError(str(error)) from None
    if not any(family(p) not in ("full", "skip") for p in found):
        raise CandidateError("there is no candidate beside full and skip; add one, for example 'window all 30% 30%'.")
    return [Full(), *(p for p in found if p != Full())]


def named_candidates(text: str) -> list[Pattern]:
    """Return the candidates of a set's name, or of patterns with ';' or line ends between them; raises CandidateError,
    one sentence."""
    try:
        return read_candidates(
            SETS[text] if text in SETS else [w.strip() for w in re.split("[;\n]", text) if w.strip()]
        )
    except CandidateError as error:
        hint = "" if any(c in text for c in " ;\n") else f" (sets are {', '.join(SETS)})"
        raise CandidateError(f"{str(error).rstrip('.')}{hint}.") from None


def distinct(candidates: Sequence[Pattern], tiling: Tiling) -> list[Pattern]:
    """Return ``candidates`` without those that come to the same tiles as an earlier one on ``tiling``, full first.

    Raises CandidateError if more than ``MOST`` are left.
    """
    kept: dict[bytes, Pattern] = {}
    for pattern in (Full(), *candidates):
        kept.setdefault(hashlib.sha256(pattern.mask(tiling).tobytes()).digest(), pattern)
    if len(kept) > MOST:
        raise CandidateError(f"{len(kept)} candidates are left on this grid, at most {MOST} are tried; leave some out.")
    return list(kept.values())
