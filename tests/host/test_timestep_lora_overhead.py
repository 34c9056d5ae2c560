"""What a timestep-aware LoRA costs the host's processor in a model call of 400 adapted layers.

The shortest real call, Wan 1.3B at 832x480x81, is 0.28 PFLOP: 0.28 s at the peak of a card of 1 PFLOP/s. The card waits
only for what is done around a call; the layers themselves are queued while it computes.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "fps_interleaved", Path(__file__).parent.parent / "nodes" / "interleaved.py"
)
interleaved = importlib.util.module_from_spec(_SPEC)
sys.modules["fps_interleaved"] = interleaved
_SPEC.loader.exec_module(interleaved)

STEP, SHARE, PER_LAYER = 0.28, 0.02, 75e-6


def test_it_costs_little(inside, show_at_end):
    results = inside("fps_timestep_lora_overhead")
    layers, switch, around = (results[name] for name in ("layers", "switch", "around"))
    lines = [
        f"{what:<42} {case['median'] * 1e3:>6.3f} ms a model call [{case['low'] * 1e3:.3f}, {case['high'] * 1e3:.3f}]"
        for what, case in (
            (f"{around['layers']} adapted layers of one token", layers),
            ("  of that around the call", around),
            ("a switch in every call", switch),
        )
    ]
    show_at_end("what a timestep-aware LoRA costs the host", "\n".join(lines))
    assert around["layers"] == 400
    assert layers["median"] < around["layers"] * PER_LAYER * interleaved.SLACK
    assert around["median"] < SHARE * STEP * interleaved.SLACK
    # What a switch takes beside a LoRA that stays is far below what such a measurement scatters by.
    assert switch["low"] < SHARE * STEP * interleaved.SLACK
