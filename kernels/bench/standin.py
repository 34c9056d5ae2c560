"""Stand-in runs: what makes Triton's interpreter good enough to take the card's place on a CPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .. import triton_runtime

CORRECTIONS = Path(__file__).resolve().parents[2] / "tests" / "kernels" / "triton" / "interpreter.py"


def prepare() -> str | None:
    """Correct the interpreter in this process; return why our Triton kernels cannot stand in, None if they can.

    Uncorrected, it rounds to FP8 wrongly and multiplies the bits of bfloat16 numbers. The correction belongs to the
    tests, so it is there in a checkout only.
    """
    if not triton_runtime.interpreted():
        return "TRITON_INTERPRET is not set"
    reason = triton_runtime.available()
    if reason:
        return reason
    if not CORRECTIONS.exists():
        return "the interpreter's corrections come with a checkout's tests only"
    spec = importlib.util.spec_from_file_location("fps_interpreter_corrections", CORRECTIONS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.correct()
    return None
