"""What goes wrong with data: each error is one sentence that names the file or key, the problem and the fix."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be trained on."""


class VideoError(DataError):
    """A clip that cannot be used. ``decoded`` is the number of frames that were read before it failed."""

    def __init__(self, message: str, decoded: int = 0) -> None:
        super().__init__(message)
        self.decoded = decoded

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.decoded)
