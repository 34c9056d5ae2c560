"""A ComfyUI server in its own process, driven over HTTP: start it, post prompts, collect the files.

Standard library only. The server runs from a checkout, on the CPU unless told otherwise, with a base directory of its
own: nothing is written into the checkout, and only the packs named here are loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

# A CUDA-linked torchvision beside a CPU torch dies on import because its C library cannot load and its fake kernels
# have nothing to attach to. ComfyUI needs only the pure Python transforms, so the two operators are declared and the
# import is tried again. A torchvision that works, or is absent, is left alone.
TORCHVISION_SHIM = """
import sys, torch
try:
    import torchvision
except ImportError:
    pass
except RuntimeError:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    shim = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):
        shim.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
"""

_BOOT = """
import runpy, sys
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path("main.py", run_name="__main__")
"""


# The server is on this machine: a proxy that the environment names must not stand between.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ComfyHostError(RuntimeError):
    """The server could not be started, died, or a prompt failed."""


class PromptRejectedError(ComfyHostError):
    """The server refused a prompt before running it; ``details`` holds its JSON answer."""

    def __init__(self, message: str, details: dict):
        super().__init__(message)
        self.details = details


def find_checkout(start: Path) -> Path | None:
    """The ComfyUI checkout to use, or None.

    ``COMFYUI_PATH`` decides when it is set, and a wrong value raises ``ComfyHostError``. Otherwise the parents of
    ``start`` are searched for a ``custom_nodes`` folder beside ``comfyui_version.py``; links are not resolved, so a
    pack that is linked into ``custom_nodes`` finds the host that it was reached through.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser()
        if not (path / "comfyui_version.py").is_file():
            raise ComfyHostError(
                f"COMFYUI_PATH is {named!r}, which is not a ComfyUI checkout (no comfyui_version.py in it); "
                "name the folder that holds main.py, or unset it."
            )
        return path.absolute()
    for parent in Path(os.path.abspath(start)).parents:
        if parent.name == "custom_nodes" and (parent.parent / "comfyui_version.py").is_file():
            return parent.parent
    return None


# What a pack's folder holds beside the pack.
_NOT_COPIED = (".git", ".venv", ".cache", "output", "runs", "__pycache__")


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` show ``source``: a symbolic link, or a copy where links are not allowed."""
    if target.is_symlink() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.absolute(), target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        else:
            shutil.copy2(source, target)


def host_environment(pack: Path | None = None) -> dict[str, str]:
    """The environment for a process that imports ComfyUI: ours, without the pack on ``PYTHONPATH``.

    The pack has a folder called ``nodes``, and so has ComfyUI a module of that name.
    """
    env = dict(os.environ)
    pack = pack or Path(__file__).parent.parent
    kept = [p for p in env.pop("PYTHONPATH", "").split(os.pathsep) if p and Path(p).resolve() != pack.resolve()]
    if kept:
        env["PYTHONPATH"] = os.pathsep.join(kept)
    return env


class ComfyHost:
    """Context manager: a running ComfyUI server with the given packs.

    ``checkout`` is the ComfyUI folder, ``base`` a folder of its own for models, outputs and settings, ``pack`` this
    pack's folder, ``extra_packs`` further node packs, ``python`` the interpreter that has ComfyUI's requirements.
    ``arguments`` are further command line flags. Raises ``ComfyHostError`` with the end of the server's log when the
    server does not come up.
    """

    def __init__(
        self,
        checkout: Path,
        base: Path,
        pack: Path | None = None,
        *,
        extra_packs: Iterable[Path] = (),
        python: str | None = None,
        arguments: Iterable[str] = (),
        cpu: bool = True,
        start_timeout: float = 240.0,
    ):
        self.checkout = Path(checkout)
        self.base = Path(base)
        self.packs = [Path(p) for p in ([pack] if pack else []) + list(extra_packs)]
        self.python = python or os.environ.get("COMFYUI_PYTHON") or sys.executable
        self.arguments = (["--cpu"] if cpu else []) + list(arguments)
        # With a GPU the host wants to set up its allocator before torch is imported, and torchvision fits torch there.
        self._script = TORCHVISION_SHIM + _BOOT if cpu else _BOOT
        self.start_timeout = start_timeout
        self.log_path = self.base / "server.log"
        self.port = 0
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ComfyHost:
        for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for pack in self.packs:
            link_or_copy(pack, self.base / "custom_nodes" / pack.absolute().name)
        self.port = _free_port()
        command = [
            self.python, "-c", self._script, "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(self.base.absolute()), "--disable-auto-launch", "--disable-api-nodes",
            "--database-url", "sqlite:///:memory:", *self.arguments,
        ]  # fmt: skip
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.checkout,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=host_environment(self.packs[0] if self.packs else None),
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server: ask, wait ten seconds, then kill."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log(self) -> str:
        """Everything that the server has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def add_model(self, path: Path, folder: str = "diffusion_models", name: str | None = None) -> str:
        """Offer the file ``path`` under ``models/<folder>`` and return the name that loaders know it by."""
        name = name or Path(path).name
        link_or_copy(Path(path), self.base / "models" / folder / name)
        return name

    def get(self, path: str) -> object:
        """The JSON answer to ``GET path``; raises ``ComfyHostError`` with the server's own words on an HTTP error."""
        return self._request(path, None)

    def post(self, path: str, body: object) -> object:
        """The JSON answer to ``POST path``."""
        return self._request(path, body)

    def prompt(self, graph: dict, *, timeout: float = 1800.0, on_wait: Callable[[float], None] | None = None) -> dict:
        """Run an API-format ``graph`` and return its history entry (``outputs``, ``status``).

        ``on_wait`` is called about twice a second with the seconds passed. Raises ``PromptRejectedError`` with the
        server's sentences when the graph is refused, ``ComfyHostError`` when a node fails or time runs out.
        """
        answer = self.post("/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex})
        prompt_id = answer["prompt_id"]
        started = time.monotonic()
        while True:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                entry = history[prompt_id]
                if entry["status"]["status_str"] != "success":
                    raise ComfyHostError(_failure(entry))
                return entry
            passed = time.monotonic() - started
            if passed > timeout:
                raise ComfyHostError(f"The prompt did not finish within {timeout:.0f} s.{self._log_tail()}")
            if on_wait is not None:
                on_wait(passed)
            time.sleep(0.05 if passed < 3 else 0.5)

    def files(self, entry: dict) -> list[Path]:
        """The files that a history entry names, in node order: saved pictures, videos, latents."""
        found = []
        for output in entry.get("outputs", {}).values():
            for items in output.values():
                for item in items if isinstance(items, list) else []:
                    if isinstance(item, dict) and "filename" in item:
                        root = self.base / item.get("type", "output")
                        found.append(root / item.get("subfolder", "") / item["filename"])
        return found

    def _request(self, path: str, body: object | None) -> object:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        try:
            with _OPENER.open(request, timeout=120) as response:
                text = response.read()
                return json.loads(text) if text.strip() else None
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", errors="replace")
            raise _http_error(path, error.code, text) from None
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise ComfyHostError(f"The ComfyUI server does not answer ({error}).{self._log_tail()}") from None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            code = self._process.poll()
            if code is not None:
                raise ComfyHostError(
                    f"The ComfyUI server ended with exit code {code}; it ran on {self.python}, and COMFYUI_PYTHON "
                    f"names another interpreter.{self._log_tail()}"
                )
            try:
                with _OPENER.open(self.url + "/system_stats", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise ComfyHostError(f"The ComfyUI server was not ready after {self.start_timeout:.0f} s.{self._log_tail()}")

    def _log_tail(self, lines: int = 25) -> str:
        tail = self.log().splitlines()[-lines:]
        return "\nThe end of its log:\n" + "\n".join(tail) if tail else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _http_error(path: str, code: int, text: str) -> ComfyHostError:
    try:
        details = json.loads(text)
    except ValueError:
        return ComfyHostError(f"ComfyUI answered {code} to {path}: {text[:500]}")
    sentences = [
        f"{node.get('class_type', '?')}: {error.get('message', '')} ({error.get('details', '')})"
        for node in (details.get("node_errors") or {}).values()
        for error in node.get("errors", [])
    ]
    general = details.get("error")
    if not sentences and general:
        sentences = [general.get("message", "") if isinstance(general, dict) else str(general)]
    return PromptRejectedError(f"ComfyUI answered {code} to {path}: " + "; ".join(sentences), details)


def _failure(entry: dict) -> str:
    for kind, message in entry["status"].get("messages", []):
        if kind == "execution_error":
            return f"{message.get('node_type')}: {message.get('exception_message', '').strip()}"
    return f"The prompt ended as {entry['status']['status_str']!r}."
