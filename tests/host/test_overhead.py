"""What the patch costs on the real host, by the bounds of ``tests/nodes/interleaved.py``: three times those fail, and
with FPS_STRICT=1 the bounds themselves."""

from __future__ import annotations


def test_the_patch_costs_little(inside, show_at_end):
    results = inside("fps_overhead")
    cases = [results["dense"], results["sparse"]]
    show_at_end("what the patch costs, real host", "\n".join(case["line"] for case in cases))
    assert all(case["within"] for case in cases), cases
