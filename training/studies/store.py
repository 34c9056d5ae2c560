"""The cache of results: one JSON file per job, named by the hash of its settings, and the weights of the arms."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .plan import Job, settings_hash
from .sizes import Size


class Store:
    """Results below ``folder``; ``shared`` is what every job depends on beside its own settings (base, data)."""

    def __init__(self, folder: Path, size: Size, shared: dict[str, Any]) -> None:
        self.folder, self.size, self.shared = folder, size, shared

    def path(self, job: Job, suffix: str = ".json") -> Path:
        """Return the file of a job."""
        return self.folder / type(job).__name__.lower() / f"{settings_hash(job, self.size, self.shared)}{suffix}"

    def get(self, job: Job) -> dict[str, Any] | None:
        """Return a job's result, None if it has not been run with these settings."""
        path = self.path(job)
        if not path.is_file():
            return None
        return json.loads(path.read_text(encoding="utf-8"))["result"]

    def put(self, job: Job, result: dict[str, Any]) -> None:
        """Keep a job's result; the file appears complete or not at all."""
        path = self.path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps({"key": job.key, "result": result}, indent=1), encoding="utf-8")
        os.replace(partial, path)
