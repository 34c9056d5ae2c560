"""The fake host of ``tests/nodes`` shows a patch the same things as the real one."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_contract")


def test_calls_look_the_same(results):
    """Layout, order of self- and cross-attention, heads as a keyword."""
    real, fake = results["real"]["calls"], results["fake"]["calls"]
    assert len(real) == len(fake) == 6
    for (q, k, positional, names), (fake_q, fake_k, fake_positional, fake_names) in zip(real, fake):
        assert (q, k, positional) == (fake_q, fake_k, fake_positional)
        assert positional == 0 and "heads" in names
        assert set(fake_names) <= set(names)


@pytest.mark.parametrize(
    "key", ["block_extra", "img", "positional", "options_last", "class", "attributes", "sigmas", "x"]
)
def test_hooks_look_the_same(results, key):
    assert results["real"][key] == results["fake"][key]


def test_arguments_and_options_are_there(results):
    assert set(results["fake"]["block_args"]) <= set(results["real"]["block_args"])
    assert set(results["fake"]["options"]) <= set(results["real"]["options"])


def test_the_patcher_has_what_the_patch_calls(results):
    assert results["signatures"] == []
    assert results["inner_model"] == {"dtype": "torch.float32", "cast": "None", "device": True}
