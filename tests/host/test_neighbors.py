"""Beside every kind of neighbor, in both orders: ours runs or says why not, a dense schedule changes nothing, and the
order does not matter."""

from __future__ import annotations

import pytest

SPARSE = {"sparse": [3, 3, 3, 3], "dense": [0, 0, 0, 0]}
TAKEN = "another node took over the attention of these blocks"
REPLACED = "another node replaced the patch of these blocks"
SKIPPED = "another node skipped the model in this step"

# What ran in each of the four steps (three blocks), and every reason; what differs from "all sparse, no reason".
NEIGHBORS = {
    "alone": ("no neighbor", {}),
    "lora": ("LoRA (core LoraLoaderModelOnly)", {}),
    "few_step_lora": ("few-step LoRA, 4 LCM steps", {"sparse": [0, 3, 3, 3], "dense": [3, 0, 0, 0]}),
    "control_patches": ("attn1_patch and attn2_patch", {}),
    "block_control": ("double_block patch that chains", {}),
    "attention_backend": ("Model Attention Backend, KJNodes' sage", {}),
    "other_sparse_attention": ("core's Model Sparse Attention", {}),
    "patched_self_attention": ("self_attn.forward through the host's attention", {}),
    "own_self_attention": (
        "self_attn.forward with an attention of its own",
        {"sparse": [0] * 4, "dense": [3] * 4, "reasons": {TAKEN: 12}, "changed": 0},
    ),
    "caching_forward": (
        "TeaCache's forward, without options",
        {"sparse": [0] * 4, "dense": [3, 0, 3, 0], "reasons": {TAKEN: 6, SKIPPED: 0}, "changed": 0},
    ),
    "block_swap": ("block swap", {}),
    "low_memory": ("the host's own weight offload, with a LoRA", {}),
    "fp8_weights": ("FP8 weights", {}),
    "scaled_fp8_weights": ("scaled FP8 files", {}),
    "packed_weights": ("GGUF-like packed weights", {}),
    "skip_layer_guidance": (
        "core SkipLayerGuidanceDiT",
        {"sparse": [5] * 4, "dense": [1] * 4, "reasons": {REPLACED: 4}},
    ),
}


@pytest.fixture(scope="module")
def results(inside, show_at_end):
    found = inside("fps_neighbors")
    lines = [f"{'neighbor':<50} {'before ours':<14} {'after ours':<14} order  dense schedule"]
    for name, (label, _) in NEIGHBORS.items():
        case = found[name]
        cells = [
            f"{sum(case[o]['sparse'])} of {sum(case[o]['sparse'] + case[o]['dense'])}" for o in ("before", "after")
        ]
        order = "same" if case["orders_differ"] == 0 else f"{case['orders_differ']:.0e}"
        exact = "bit-identical" if all(case[o]["dense_equal"] for o in ("before", "after")) else "DIFFERS"
        lines.append(f"{label:<50} {cells[0]:<14} {cells[1]:<14} {order:<6} {exact}")
    show_at_end("neighbors: self-attention calls that ran sparse", "\n".join(lines))
    return found


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", NEIGHBORS)
def test_neighbor(results, name, order):
    case, differing = results[name][order], NEIGHBORS[name][1]
    assert case["finite"] and case["dense_equal"], "a dense schedule must change nothing"
    assert {key: case[key] for key in SPARSE} == {key: differing.get(key, SPARSE[key]) for key in SPARSE}
    assert case["reasons"] == differing.get("reasons", {})
    assert case["stopped"] is None
    if differing.get("changed") == 0:
        assert case["changed"] == 0, "what stayed dense must be the neighbor's own result"
    else:
        assert case["changed"] > 1e-4
    for reason in case["reasons"]:
        assert any(reason in note for note in case["notes"])


@pytest.mark.parametrize("name", NEIGHBORS)
def test_the_order_does_not_matter(results, name):
    assert results[name]["orders_differ"] == 0


def test_neighbors_did_their_own_work(results):
    """Every neighbor saw its calls: the patches all blocks, the overrides all of cross-attention."""
    seen = {name: [results[name][order]["seen"] for order in ("before", "after")] for name in NEIGHBORS}
    assert seen["control_patches"] == [24, 24]
    for name in (
        "attention_backend",
        "other_sparse_attention",
        "block_control",
        "patched_self_attention",
        "block_swap",
    ):
        assert seen[name] == [12, 12], name
    assert seen["caching_forward"] == [6, 6]
    assert results["lora"]["lora_changes"] > 0.01
    assert results["low_memory"]["partly"] and results["low_memory"]["same"] == 0
    for name in ("fp8_weights", "scaled_fp8_weights", "packed_weights"):
        assert 1e-4 < results[name]["near"] < 0.1, name


@pytest.mark.parametrize("name", ["easycache", "lazycache"])
def test_caches_skip_steps(results, name):
    for order in ("before", "after"):
        case = results[name][order]
        assert case["finite"] and case["dense_equal"]
        assert 0 < sum(case["sparse"]) < 3 * 8 and sum(case["dense"]) == 0
    assert results[name]["orders_differ"] == 0


@pytest.mark.parametrize("first", ["dense", "bf16"])
def test_what_a_cache_answered_is_no_step_that_ran(results, first):
    case = results["cache_report"][first]
    computed = {"dense": (0, 3, 0), "bf16": (3, 0, 0)}
    kinds = {attention: set() for attention in computed}
    for attention, *counts in case["steps"]:
        assert tuple(counts) in (computed[attention], (0, 0, 1)), attention
        kinds[attention].add(counts[-1])
    assert kinds[first] == {0, 1}, "some steps of the first phase are answered from the cache"
    assert case["text"].count("skipped  ") == sum(skipped for *_, skipped in case["steps"])


def test_a_prompt_for_a_part_of_the_picture(results):
    """The part's calls count with the density of their own grid, and the report names that grid."""
    case = results["area"]
    assert any("with the grid 3x4x4" in note for note in case["notes"])
    for step in case["steps"]:
        assert (step["evaluations"], step["sparse"], step["dense"]) == (2, 6, 0)
        assert step["density"] != pytest.approx(step["planned"])


def test_context_windows(results):
    """Every window of frames is a model call of its own, with a grid of its own."""
    for order in ("before", "after"):
        case = results["context_windows"][order]
        assert case["finite"] and case["dense_equal"] and case["reasons"] == {}
        assert sum(case["dense"]) == 0 and all(calls > 3 for calls in case["sparse"])


def test_text_as_long_as_the_video_is_never_taken_for_it(results):
    case = results["own_self_attention_where_text_is_as_long"]
    assert case["equal"] and case["sparse"] == [0]
    assert "cannot be told apart" in next(iter(case["reasons"]))


def test_the_later_of_two_patches_wins_and_says_so(results):
    case = results["two_of_ours"]
    assert case["equal"]
    said = "this model was already patched by an FPSAttention node (schedule from the schedule input, backend auto); "
    assert sum(said in note for note in case["notes"]) == 1 and said in case["text"]
    assert not any("already patched" in note for note in case["again"])


@pytest.mark.parametrize("merge", ["simple", "add"])
def test_merged_models(results, merge):
    case = results["merging"][merge]
    assert case["equal"] and case["sparse"] == SPARSE["sparse"] and case["second_is_plain"]


def test_clones(results):
    assert results["clones"] == {"same": True, "dense": True, "still": True, "runs": 4, "apart": 1}


@pytest.mark.parametrize(
    "name, why",
    [("out_of_memory", "out of memory"), ("cancelled", "cancelled"), ("cancelled_between_steps", "cancelled")],
)
def test_a_run_that_is_stopped(results, name, why):
    """The state is clean, the report tells of it, and the next run is right."""
    case = results[name]
    assert case["caught"] and case["clean"] and case["left"] == []
    assert case["stopped"]["stopped"] == why and case["stopped"]["reasons"] == {}
    assert f"(stopped in step 1: {why})" in case["text"]
    assert case["equal"] and case["next"]["stopped"] is None and case["next"]["sparse"] == [0, 3, 3, 3]
    assert case["report"] == 2


def test_a_sigma_that_is_no_number(results):
    case = results["a_batch_with_a_broken_sigma"]
    assert case["equal"] and list(case["reasons"]) == ["the sampler's sigma is not a number"]
