"""One run to a folder: two that write into the same one would mix their logs and destroy each other's states."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from .config import ConfigError, RunConfig
from .distributed import World

LOCK = ".in-use"


@contextlib.contextmanager
def alone(config: RunConfig, world: World) -> Iterator[None]:
    """Hold the folders that the run writes while the body runs; the system lets them go when the process ends.

    The main process holds them for all. Raises ConfigError on every process if another run does.
    """
    with contextlib.ExitStack() as held:
        said = None
        if world.is_main:
            try:
                folders = {"checkpoint.dir": config.checkpoint.dir, "output.dir": config.output.dir}
                for place, key in {Path(text).resolve(): key for key, text in folders.items()}.items():
                    _hold(key, place, held)
            except ConfigError as error:
                said = str(error)
        said = world.gather_objects(said)[0]
        if said is not None:
            raise ConfigError(said)
        yield


def _hold(key: str, folder: Path, held: contextlib.ExitStack) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = held.enter_context((folder / LOCK).open("a+", encoding="utf-8"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read(200).strip() or "another process"
        raise ConfigError(
            f"{key} {folder} is in use by another run ({who}); wait until it has ended, or name another folder"
        ) from None
    except OSError:  # a file system without locks
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
    file.flush()
