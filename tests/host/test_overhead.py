"""What the patch costs on the real host. The aims are 50 microseconds per attention call and 5 milliseconds per step of
40 blocks; three times that fails."""

from __future__ import annotations

BLOCKS = 40
PER_CALL, PER_STEP = 50e-6, 5e-3


def test_the_patch_costs_little(inside, show_at_end):
    results = inside("fps_overhead")
    dense, sparse = results["dense"], results["sparse"]
    show_at_end("what the patch costs, real host", dense["line"] + "\n" + sparse["line"])
    assert dense["median"] < 3 * PER_STEP
    assert dense["median"] / BLOCKS < 3 * PER_CALL
    assert sparse["median"] / BLOCKS < 3 * 10 * PER_CALL
