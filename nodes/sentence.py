"""Sentences for people out of values that nobody foresaw: one line, printable, of readable length."""

from __future__ import annotations

MAX_LETTERS = 400


def one_line(text: object) -> str:
    """Return ``text`` on one line: what does not print is written as an escape, the middle of a long text left out.

    A host that logs half of a surrogate pair, as a text or a file name may hold it, loses its worker over it.
    """
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))
    if len(plain) <= MAX_LETTERS:
        return plain
    # The start says where and what, the end what to do.
    half = MAX_LETTERS // 2
    return f"{plain[:half]} ... {plain[-half:]}"


def written(value: object) -> str:
    """Return ``value`` as a short part of a sentence."""
    try:
        text = one_line(repr(value))
    except Exception:  # another node's object may do anything, and an integer may be too long to write
        return type(value).__name__
    return text if len(text) <= 60 else f"{text[:40]} ... ({type(value).__name__})"
