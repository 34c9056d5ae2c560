"""What the launcher answers before any kernel runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fpsattention.kernels import triton_runtime
from fpsattention.kernels.attention import backends, dispatch, forget_backends

ROOT = Path(__file__).resolve().parents[3]
has_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def reason(monkeypatch, capability, hip=None):
    monkeypatch.setattr(triton_runtime, "available", lambda device=None: None)
    monkeypatch.setattr(triton_runtime, "capability", lambda device: capability)
    monkeypatch.setattr(dispatch, "_triton_reason", lambda needs: None)
    monkeypatch.setattr(torch.version, "hip", hip)
    forget_backends()
    return dict(backends("cuda", torch.bfloat16, 128, "fp8"))["triton-fp8"]


def test_fp8_needs_8_9(monkeypatch):
    for capability in (89, 90, 100, 120):
        assert reason(monkeypatch, capability) is None
    for capability in (80, 86, 75):
        expected = f"needs compute capability 8.9, this card has {capability / 10}"
        assert reason(monkeypatch, capability) == expected


def test_amd_is_not_taken_for_a_capable_card(monkeypatch):
    assert "AMD" in reason(monkeypatch, 110, hip="6.2")


def test_a_missing_triton_is_a_reason(monkeypatch):
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton_runtime.available() == "triton is not installed"


@has_triton
def test_a_broken_triton_is_a_reason(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it raises
    assert "triton cannot be imported" in triton_runtime.available()


def test_a_triton_without_a_compiler_is_a_reason(monkeypatch):
    def fails():
        raise RuntimeError("Failed to find C compiler. Please specify via CC\nmore")

    driver = SimpleNamespace(active=SimpleNamespace(get_current_target=fails))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(runtime=SimpleNamespace(driver=driver)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert triton_runtime.available() == (
        "triton cannot reach the card (RuntimeError: Failed to find C compiler. Please specify via CC); "
        "it needs a C compiler and Python's headers"
    )


@has_triton
def test_the_cpu_is_only_for_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert triton_runtime.available(torch.device("cpu")) == "Triton kernels need a CUDA device, the tensors are on cpu"
    if not torch.cuda.is_available():
        assert triton_runtime.available() == "torch finds no CUDA device"


def test_importing_the_launcher_does_not_import_triton():
    code = (
        "import sys, torch; before = 'triton' in sys.modules; "
        "import fpsattention.kernels.attention.triton_forward; "
        "sys.exit(('triton' in sys.modules) != before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=120)
