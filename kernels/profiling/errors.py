"""The one error that a profile raises for its user."""

from __future__ import annotations


class ProfileError(ValueError):
    """A profile that cannot be made as asked; the message is one sentence: what is wrong, the value, what to do."""
