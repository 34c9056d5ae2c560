"""Training processes that are made to die: forked from one that has imported everything, watched through a pipe."""

from __future__ import annotations

import copy
import hashlib
import logging
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from fpsattention.training.config_file import check_config
from fpsattention.training.distributed import open_world
from fpsattention.training.failures import NonFiniteError
from fpsattention.training.loop import fit
from fpsattention.training.state import SnapshotError, check_complete, list_steps, load_tensors
from fpsattention.training.stopping import StopFlag

SCHEDULE = "0.90 fp8 x2 all 2 2\n0.50 fp8 x1 all 3 3\n0.00 fp8 x1 all 2 3"


def settings(folder: Path, **changes) -> dict:
    """Return a run's configuration as TOML would give it, with ``section__key=value`` changes."""
    table = {
        "device": "cpu",
        "model": {"init": "random", "dim": 128, "ffn_dim": 64, "layers": 2, "text_dim": 16},
        "vae": {"path": "vae.safetensors"},
        "data": {"videos": "clip.mp4", "frames": 9, "height": 64, "width": 64},
        "attention": {"schedule": SCHEDULE, "slots": 16},
        "optim": {"lr": 1e-3, "steps": 6, "batch": 1, "global_batch": 4, "warmup": 2, "decay": "cosine"},
        "ema": {"decay": 0.9},
        "checkpoint": {"dir": str(folder / "states"), "every": 2, "keep": 2},
        "output": {"dir": str(folder / "out"), "name": "tiny", "report": False},
    }
    table = copy.deepcopy(table)
    for name, value in changes.items():
        section, key = name.split("__")
        table[section][key] = value
    return table


def _samples() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"latent": torch.randn(16, 3, 8, 8, generator=generator), "text": torch.zeros(2, 16), "name": f"sample {i}"}
        for i in range(5)
    ]


class Life:
    """One training process, or several that train together, from start to death."""

    def __init__(self, table: dict, resume: str, *, size: int = 1, meddle: Callable[[int], None] | None = None) -> None:
        context = multiprocessing.get_context("fork")
        self.folder = Path(table["checkpoint"]["dir"])
        self.said: list[str] = []
        self._pipe, theirs = context.Pipe(duplex=False)
        port = _free_port()
        self.processes = [
            context.Process(target=_live, args=(table, resume, theirs, meddle, rank, size, port))
            for rank in range(size)
        ]  # fmt: skip
        for process in self.processes:
            process.start()
        theirs.close()

    def listen(self, seconds: float) -> bool:
        """Take in what the main process says for so long, or until it says something; False when it has ended."""
        try:
            if self._pipe.poll(seconds):
                self.said.append(self._pipe.recv())
            return True
        except EOFError:
            return False

    def wait_for_steps(self, count: int) -> bool:
        """Return True after so many more steps, False when the process ended before."""
        target = self.steps + count
        while self.steps < target:
            if not self.listen(600):
                return False
        return True

    @property
    def steps(self) -> int:
        """Return how many steps this life has made."""
        return sum(line.startswith("step ") for line in self.said)

    def losses(self) -> list[float]:
        """Return the losses of this life's steps."""
        return [float(line.split()[2]) for line in self.said if line.startswith("step ")]

    @property
    def came_from(self) -> str | None:
        """Return the directory that this life went on from."""
        return next((Path(line.split()[-1]).name for line in self.said if "going on from" in line), None)

    def kill(self, rank: int | None = None) -> None:
        """Send SIGKILL to one or all processes."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            process.kill()

    def end(self, seconds: float = 900) -> list[int]:
        """Return the exit codes, after everything was said."""
        while self.listen(seconds):
            pass
        for process in self.processes:
            process.join(seconds)
        return [process.exitcode for process in self.processes]


def _live(table: dict, resume: str, pipe, meddle, rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
        pipe = pipe if rank == 0 else None
    log = logging.getLogger("fpsattention")
    log.setLevel(logging.INFO)
    log.addHandler(_Tell(pipe))
    log.propagate = False
    if meddle is not None:
        meddle(rank)
    world = open_world("cpu")
    with StopFlag().on_signals() as stop:
        try:
            result = fit(
                check_config(table, "robustness"), _samples(), resume=resume, progress=None, world=world, stop=stop,
                on_step=lambda step, record: _tell(pipe, f"step {step} {record['loss']}"),
            )  # fmt: skip
        except NonFiniteError as error:
            _tell(pipe, str(error))
            code = 3
        except SnapshotError as error:
            _tell(pipe, str(error))
            code = 2
        else:
            code = 75 if result.stopped else 0
    world.close()
    sys.exit(code)


class _Tell(logging.Handler):
    def __init__(self, pipe) -> None:
        super().__init__()
        self.pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        _tell(self.pipe, f"{record.levelname.lower()} {record.getMessage()}")


def _tell(pipe, text: str) -> None:
    if pipe is not None:
        pipe.send(text)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def is_saving(folder: Path) -> bool:
    """Return True while a state is being written."""
    try:
        return any(name.endswith(".tmp") for name in os.listdir(folder))
    except FileNotFoundError:
        return False


def wait_for_save(life: Life, saving: bool, patience: float = 600) -> bool:
    """Return True when a save begins (or ends), False when the life ended."""
    until = time.monotonic() + patience
    while is_saving(life.folder) is not saving:
        if not life.listen(0.0005) or time.monotonic() > until:
            return False
    return True


def newest(folder: Path) -> tuple[int, int, list[str]]:
    """Return the newest complete step (-1: none), how many are complete, and those that only look so."""
    complete, torn = [], []
    for step, path in list_steps(folder):
        try:
            check_complete(path)
            complete.append(step)
        except SnapshotError:
            torn.append(path.name)
    return max(complete, default=-1), len(complete), torn


def state_hash(folder: Path) -> str:
    """Return a hash over every weight, average and moment of the newest state."""
    path, digest = list_steps(folder)[-1][1], hashlib.sha256()
    for group in ("model", "ema", "optimizer"):
        for name, tensor in sorted(load_tensors(path, group).items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def is_finite(folder: Path) -> bool:
    """Return True if the newest state holds numbers only."""
    path = list_steps(folder)[-1][1]
    return all(
        bool(torch.isfinite(tensor).all())
        for group in ("model", "ema", "optimizer")
        for tensor in load_tensors(path, group).values()
    )
