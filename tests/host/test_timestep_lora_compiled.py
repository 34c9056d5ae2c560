"""Timestep-aware LoRAs in compiled models: the same result, whatever ran before, and no new graph at a switch."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_timestep_lora_compiled")


@pytest.mark.parametrize("order", ["before", "behind"])
@pytest.mark.parametrize("what", ["whole", "blocks"])
def test_models_in_turn(results, what, order):
    case = results[what][order]
    assert set(case["errors"]) == {"plain", "one", "both", "sparse"}
    assert max(case["errors"].values()) < 1e-6, case
    assert len(set(case["looked"])) == 1, "what is known is compiled again"
    assert case["traces"] == []


def test_blocks_that_were_compiled_in_place(results):
    case = results["compiled_in_place"]
    assert max(case["errors"]) < 1e-6 and case["traces"] == []
