"""Every Wan class of the host: sparse where the sequence is known, dense with a reason where not."""

from __future__ import annotations

import pytest

# class, self-attention calls per step, prefix, suffix, grid
VARIANTS = {
    "t2v": ("WanModel", 3, 0, 0, [3, 6, 8]),
    "i2v": ("WanModel", 3, 0, 0, [3, 6, 8]),
    "fun_reference": ("WanModel", 3, 48, 0, [3, 6, 8]),
    "fun_without_reference": ("WanModel", 3, 0, 0, [3, 6, 8]),
    "phantom": ("WanModel", 3, 0, 0, [5, 6, 8]),
    # Three main blocks, and the control block behind the first of them.
    "vace": ("VaceWanModel", 4, 0, 0, [3, 6, 8]),
    "camera": ("CameraWanModel", 3, 0, 0, [3, 6, 8]),
    "s2v": ("WanModel_S2V", 3, 0, 116, [3, 6, 8]),
    "humo": ("HumoWanModel", 3, 0, 48, [3, 6, 8]),
    "animate": ("AnimateWanModel", 5, 0, 0, [3, 6, 8]),
    "scail": ("SCAILWanModel", 3, 0, 36, [4, 6, 8]),
    "wan22_5b": ("WanModel", 3, 0, 0, [3, 6, 8]),
}


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_variants")


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(results, variant):
    name, calls, prefix, suffix, grid = VARIANTS[variant]
    case = results[variant]
    assert case["class"] == name
    assert case["relative"] < 1e-5, "a full window must equal dense"
    assert case["finite"] and case["changed"] > 1e-4, "a sparse window must change something"
    for step in case["sparse"]["steps"]:
        assert (step["sparse"], step["dense"]) == (calls, 0)
        assert (step["prefix"], step["suffix"], step["grid"]) == (prefix, suffix, grid)
        assert step["planned"] < 1
        assert step["reasons"] == {}


def test_unknown_class_with_extra_tokens_stays_dense(results):
    case = results["unknown_class_with_extra_tokens"]
    assert case["equal"]
    for step in case["run"]["steps"]:
        assert step["sparse"] == 0 and step["density"] == 1.0
        assert list(step["reasons"]) == ["48 extra tokens in a model class that is not known"]
