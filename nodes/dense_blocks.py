"""The blocks of a model that always stay dense, as the user writes them: ``0, 1, 38-39``."""

from __future__ import annotations

import re

from .sentence import written

MAX_LETTERS = 400


class DenseBlocksError(ValueError):
    """A list of blocks that cannot be read, or is for another model; the message is one sentence."""


def parse_blocks(text: str) -> frozenset[int]:
    """Return the block numbers, counted from 0, of ``text``: numbers and ranges, separated by commas or spaces; empty
    text gives none. Raises DenseBlocksError."""
    if not isinstance(text, str):
        raise DenseBlocksError(f"dense_blocks is text such as '0, 1, 38-39', got {type(text).__name__}.")
    if len(text) > MAX_LETTERS:
        raise DenseBlocksError(
            f"dense_blocks has {len(text)} letters; write ranges such as 0-3, at most {MAX_LETTERS}."
        )
    found: set[int] = set()
    for word in re.sub(r"\s*-\s*", "-", text).replace(",", " ").split():
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", word)
        if match is None:
            raise DenseBlocksError(
                f"dense_blocks: {written(word)} is no block; write numbers from 0 and ranges: 0, 1, 38-39."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise DenseBlocksError(f"dense_blocks: the range {word} runs backwards; write {last}-{first}.")
        found.update(range(first, last + 1))
    return frozenset(found)


def check_blocks(blocks: frozenset[int], count: int) -> None:
    """Raise DenseBlocksError if a model of ``count`` blocks lacks one of ``blocks``."""
    beyond = sorted(block for block in blocks if block >= count)
    if beyond:
        raise DenseBlocksError(
            f"dense_blocks names block {beyond[0]}, but this model has {count} blocks, 0 to {count - 1}; correct it."
        )


def format_blocks(blocks: frozenset[int]) -> str:
    """Return ``blocks`` as short text, neighbors as ranges."""
    parts: list[list[int]] = []
    for block in sorted(blocks):
        if parts and block == parts[-1][1] + 1:
            parts[-1][1] = block
        else:
            parts.append([block, block])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
