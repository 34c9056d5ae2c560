"""Runs cells: each in a process of its own, under a time limit and a budget, recorded at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .cells import Cell
from .store import Store

ROOT = Path(__file__).resolve().parents[2]
MODULE = f"{__package__.rpartition('.')[0]}.benchmark"
# Nothing useful starts in less: importing torch alone takes some seconds.
SHORTEST = 10.0
MESSAGE_LINES = 6


@dataclass
class Options:
    """How a run is done: seconds of ``budget`` (None: no end), which peers, on a card or as a stand-in."""

    budget: float | None = None
    retry: bool = False
    standin: bool = False
    peers: str = "all"
    cache: str | None = None


def environment(options: Options, cache: str) -> dict[str, str]:
    """Return the variables of a child process: this pack on the path, compiled kernels in ``cache``."""
    result = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if (ROOT / "fpsattention.py").exists():
        result["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    if options.standin:
        # Triton reads this when it is imported; no card is touched even where there is one.
        result.update(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    else:
        result.pop("TRITON_INTERPRET", None)
        # Never the user's own caches: a first call must find them empty, and later cells the earlier ones' kernels.
        result["TRITON_CACHE_DIR"] = str(Path(cache) / "triton")
        result["TORCHINDUCTOR_CACHE_DIR"] = str(Path(cache) / "inductor")
    # FastVideo's Triton kernels are what is compared, also where its compiled ones are installed.
    result["FASTVIDEO_VSA_TRITON"] = "1"
    return result


def run_cell(cell: Cell, options: Options, limit: float, cache: str) -> dict:
    """Return the result of one cell, measured in a child process that may take ``limit`` seconds.

    Whatever the child does (crash, hang, be killed), a result comes back; ``status`` is 'ok', 'failed', 'timeout' or
    'killed', and ``message`` says more.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fps-cell-") as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        command = [sys.executable, "-m", MODULE, "--cell", cell.to_json(), "--answer", str(answer)]
        command += ["--peers", options.peers, *(["--standin"] if options.standin else [])]
        with log.open("wb") as output:
            # A session of its own, so that a hanging cell's own children end with it.
            # A first call is one with an empty cache.
            variables = environment(options, folder if cell.kind == "start" else cache)
            child = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                code = child.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                _end(child)
                code = None
            except BaseException:
                _end(child)
                raise
        tail = _tail(log)
        result: dict = {"cell": json.loads(cell.to_json()), "seconds": round(time.monotonic() - began, 2)}
        partial = _answer(answer)
        if partial is not None:
            result.update(partial)
        if code is None:
            result.update(status="timeout", message=f"took longer than {limit:.0f} s; {tail}".strip("; "))
        elif code < 0:
            name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
            result.update(status="killed", message=f"ended by {name}; {tail}".strip("; "))
        elif partial is None:
            result.update(status="failed", message=tail or f"ended with code {code} and said nothing")
        else:
            result.setdefault("status", "ok" if code == 0 else "failed")
        return result


def _answer(path: Path) -> dict | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-MESSAGE_LINES:])[-1500:]


def _end(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:  # Windows has no process groups to kill
            child.kill()
    child.wait()


def run(
    cells: Iterable[Cell], store: Store, options: Options, say: Callable[[str], None] = lambda text: None
) -> list[str]:
    """Run what ``store`` does not hold yet, in order, until the budget ends; return the names of what was left out.

    ``say`` gets one line per cell. The file is written after every cell. Raises ResultError where ``store`` holds
    results of another card, driver, software or code.
    """
    began = time.monotonic()
    left_out: list[str] = []
    with contextlib.ExitStack() as stack:
        cache = options.cache or stack.enter_context(tempfile.TemporaryDirectory(prefix="fps-kernels-"))
        header = run_cell(Cell("header", "header", limit=120.0), options, 120.0, cache)
        store.take_header({k: v for k, v in header.items() if k not in ("cell", "seconds", "status")})
        for cell in cells:
            if store.done(cell.id, options.retry):
                continue
            spent = time.monotonic() - began
            remaining = float("inf") if options.budget is None else options.budget - spent
            if remaining < SHORTEST:
                left_out.append(cell.id)
                continue
            result = run_cell(cell, options, min(cell.limit, remaining), cache)
            if result["status"] == "timeout" and remaining < cell.limit:
                # The budget ended it, not the cell: the next run starts it again.
                left_out.append(cell.id)
                say(f"{cell.id}: not finished within the budget")
                continue
            store.add(cell.id, result)
            say(f"{cell.id}: {result['status']} in {result['seconds']:.0f} s {_headline(result)}".rstrip())
    return left_out


def _headline(result: dict) -> str:
    if result["status"] != "ok":
        return f"({result.get('message', '')[:300]})"
    return result.get("headline", "")
