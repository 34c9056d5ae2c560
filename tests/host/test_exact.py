"""Dense is bit-identical, a full window is dense to 1e-5, and the bound is sharp."""

from __future__ import annotations

import pytest

BOUND = 1e-5


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_exact")


def test_dense_schedule_is_bit_identical(results):
    dense = results["dense_schedule"]
    assert dense["equal"] and dense["finite"] and dense["scale"] > 0.1


def test_dense_phase_of_a_sparse_schedule_is_bit_identical(results):
    assert results["dense_phase_of_a_sparse_schedule"]


def test_the_model_that_came_in_is_untouched(results):
    assert results["model_that_came_in_is_untouched"] == {"equal": True, "patches": 0, "wrappers": 0}


def test_full_window_equals_dense(results):
    assert results["full_runs"] < BOUND
    assert results["full_tiles"]["relative"] < BOUND
    assert results["full_tiles"]["density"] == 1.0


@pytest.mark.parametrize("mutation", ["one_tile_removed", "shifted_by_one"])
def test_the_bound_is_sharp(results, mutation):
    mutations = results["mutations"]
    assert mutations["unchanged"] < BOUND
    assert mutations[mutation] > 10 * BOUND


def test_fp8_and_sparsity_are_visible(results):
    assert BOUND < results["full_fp8"] < 2e-2
    assert results["sparse"] > results["full_fp8"]


def test_fp8_weights_keep_wide_attention(results):
    weights = results["fp8_weights"]
    assert weights["weight"] == "torch.float8_e4m3fn"
    assert weights["sparse"] > 0 and weights["dense"] == 0
    assert weights["relative"] < BOUND


def test_one_identity(results):
    """The real loader makes one copy of the package and of its ops, under the host's name for it."""
    identity = results["one_identity"]
    assert len(identity["modules"]) == len(identity["roots"]) == identity["files"] == 1
    assert identity["ops"] == ["fpsattention::backward", "fpsattention::forward"]
    assert not identity["outside_name"] and not identity["pack_on_path"]
    assert identity["host_nodes"].endswith("nodes.py")


def test_the_recorder_keeps_no_tensors(results):
    assert results["no_recorded_tensors"] == 0
