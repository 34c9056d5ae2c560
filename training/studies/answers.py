"""Questions that a study asks once: a cache of one JSON file per question."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...kernels.whole_file import write_whole
from .work import Deadline, OutOfTimeError


@dataclass(frozen=True)
class Answers:
    """``shared`` is what every answer depends on, beside its own settings."""

    cache: Path
    shared: dict[str, Any]
    stop: Deadline
    say: Callable[[str], None]

    def ask(self, kind: str, settings: dict[str, Any], work: Callable[[], Any]) -> Any:
        """Return the answer to a question, from the cache if it was asked before; raises OutOfTimeError."""
        text = json.dumps([kind, settings, self.shared], sort_keys=True)
        path = self.cache / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        if self.stop.requested:
            raise OutOfTimeError
        start = time.monotonic()
        answer = work()
        write_whole(path, json.dumps(answer).encode())
        self.say(f"{kind} {settings} ({time.monotonic() - start:.0f} s)")
        return answer
