"""Real packs as neighbors, where NEIGHBOR_PACKS names a folder that holds them (ComfyUI-KJNodes, ComfyUI-GGUF,
ComfyUI-TeaCache); NEIGHBOR_LIBRARIES may name a folder with what they import. Stand-ins of the same idioms run always,
in test_neighbors.py."""

from __future__ import annotations

import os

import pytest

TAKEN = "another node took over the attention of these blocks"
# Self-attention calls that run sparse, of twelve, and why not.
PACKS = {
    "kjnodes_sage": (12, []),
    "kjnodes_enhance": (12, []),
    "kjnodes_nag": (12, []),
    "gguf": (12, []),
    "teacache": (0, [TAKEN]),
}


@pytest.fixture(scope="module")
def results(inside):
    folder = os.environ.get("NEIGHBOR_PACKS")
    if not folder:
        pytest.skip("NEIGHBOR_PACKS names no folder with other packs")
    return inside("fps_packs", NEIGHBOR_PACKS=folder)


@pytest.mark.parametrize("name", PACKS)
def test_a_real_pack(results, name):
    case, (sparse, reasons) = results[name], PACKS[name]
    if isinstance(case, str):
        pytest.skip(case)
    for order in ("before", "after"):
        found = case[order]
        assert found["dense_equal"] and found["finite"], order
        assert (found["sparse"], found["dense"], found["reasons"]) == (sparse, 12 - sparse, reasons), order
        assert (found["changed"] > 1e-4) == bool(sparse)
    assert case["orders_differ"] == 0
    if name == "gguf":
        assert 1e-4 < case["near"] < 0.05
