"""The patch beside other nodes: overrides, block patches, wrappers, caches, torch.compile."""

from __future__ import annotations

import pytest

CALLS = 6  # two steps, three layers


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_chaining")


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_override(results, order):
    case = results[f"override_{order}"]
    assert case["equal"] and case["sparse"] == CALLS and case["dense"] == 0
    assert case["calls"] == CALLS
    assert any("another attention override" in note for note in case["notes"])


def test_another_override_sees_all_of_a_dense_phase(results):
    assert results["override_gets_what_stays_dense"] == {"calls": 2 * CALLS, "self": CALLS}


@pytest.mark.parametrize("case", ["block_patch_before", "block_patch_after_chaining"])
def test_another_block_patch(results, case):
    assert results[case]["equal"] and results[case]["seen"] == CALLS
    assert results[case]["sparse"] == CALLS and results[case]["reasons"] == {}


def test_a_replaced_block_patch_is_said(results):
    case = results["block_patch_after_replacing"]
    assert case["equals_dense"] and case["sparse"] == 0 and case["dense"] == CALLS
    assert case["reasons"] == {"another node replaced the patch of these blocks": CALLS}
    assert sum("stays dense" in note for note in case["notes"]) == 1


@pytest.mark.parametrize("case", ["applied_twice", "applied_around_a_chained_block_patch"])
def test_applied_twice_runs_once(results, case):
    assert results[case]["equal"] and results[case]["sparse"] == CALLS and results[case]["dense"] == 0


def test_recorders_belong_to_one_patch(results):
    assert results["two_models_from_one"] == {"first": 2, "second": 1}


def test_a_skipped_step_is_said(results):
    case = results["wrapper_that_skips_the_model"]
    assert case["sparse"] == CALLS // 2 and case["dense"] == 0
    assert case["reasons"] == {"another node skipped the model in this step": 0}


def test_a_taken_override_is_said(results):
    case = results["wrapper_that_takes_the_override"]
    assert case["equals_dense"] and case["sparse"] == 0
    assert case["reasons"] == {"another node took over the attention of these blocks": CALLS}


def test_core_easycache(results):
    case = results["core_easycache"]
    assert case["finite"] and case["sparse"] > 0 and case["dense"] == 0


def test_reasons_are_sentences(results):
    reasons = results["masked_or_reshaped_calls_stay_dense"]
    assert reasons[0] is None
    assert "mask" in reasons[1] and "mask" in reasons[2]
    assert "laid out" in reasons[3]
    assert "shape" in reasons[4]
    assert "17 tokens where 16" in reasons[5]
    assert "1 extra tokens in a model class that is not known" in reasons[6]
    assert "3 heads" in reasons[7]
    assert "head dimension is 32" in reasons[8]


def test_names_of_the_host(results):
    assert all(results["attention_override_names"])


def test_other_models_are_refused(results):
    assert results["not_wan"].startswith("FPSAttention works on Wan models")


def test_a_named_backend_that_cannot_run_is_refused(results):
    message = results["backend_that_cannot_run"]
    for backend in ("triton-fp8", "triton-bf16", "reference"):
        assert backend in message


@pytest.mark.parametrize("order", ["before", "after"])
def test_torch_compile(results, order):
    case = results["torch_compile"][order]
    assert case["relative"] < 1e-5 and case["sparse"] == CALLS and case["dense"] == 0
