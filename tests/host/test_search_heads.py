"""Search Head Patterns in the real host: the engine's own choices, a table that runs, and nothing left behind."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fpsattention.kernels.head_table import read_head_table
from fpsattention.training.comfy_host import PromptRejectedError


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_search")


@pytest.fixture(scope="module")
def conduct(inside):
    return inside("fps_search_conduct")


@pytest.mark.parametrize("budget", [20, 40, 70])
def test_a_budget_gives_the_engines_table_and_is_met(results, budget):
    case = results["budget_is_the_engines"][f"{budget}.0"]
    assert case["same"] and case["choices"] == 3 * 2 * 2 and case["errors"][0] == case["errors"][1]
    assert budget / 100 - 0.1 < case["cost"] <= budget / 100 + 1e-9


@pytest.mark.parametrize("rule", ["ours", "paper"])
def test_the_rules_give_the_engines_table(results, rule):
    case = results["rules_are_the_engines"][rule]
    assert case["same"] and case["errors"][0] == case["errors"][1]


def test_several_prompts_and_seeds_are_one_search(results):
    case = results["prompts_and_runs_are_the_engines"]
    assert case["same"] and case["errors"][0] == case["errors"][1]
    assert (case["clips"], case["prompts"], case["seeds"]) == (4, 2, [7, 8])


def test_branches_of_guidance_whether_the_host_calls_once_or_twice(results):
    case = results["branches_in_one_call_and_in_two"]
    assert case["same"] and case["branches"] == 2 and case["differ"] and case["apart"]


def test_joint_guidance_and_a_sampler_that_evaluates_twice(results):
    case = results["joint_guidance_is_the_engines"]
    assert case["same"] and case["branches"] == 1


def test_stripes_come_from_a_dense_run(results):
    case = results["stripes_join_the_candidates"]
    assert case["more"] and all(word.startswith("stripe 1x3x4 ") or "stripe" in word for word in case["more"])
    assert len(case["evidence"]["sigmas"]) == 3 and sum(case["evidence"]["families"].values()) == 3 * 2 * 2
    assert case["none"] is False


def test_what_stays_dense_by_choice(results):
    case = results["dense_steps_blocks_and_phases"]
    assert case["first"] and case["block"] and case["rest"] <= 0.3 + 1e-9
    assert re.search(r"^  0\.92\d+ dense$", case["schedule"], re.M) and case["phases"] == [0.9, 0.7, 0.0]


def test_its_file_is_listed_loads_and_runs_at_the_densities_it_says(results):
    case = results["its_file_runs"]
    assert case["written"] == ["runs_00001_.json", "runs_00002_.json"] and case["listed"]
    assert case["same"] and case["deterministic"] and not case["dense"]
    assert case["densities"] == pytest.approx(case["expected"]) and case["reasons"] == [{}] * 3
    assert "saved as tests/runs_00001_.json in fpsattention of the output folder" in case["text"].replace("\\", "/")
    assert "mean cost " in case["text"] and "How it was found" in case["text"]
    assert case["image"][0] == 1 and case["image"][1] > 500 and 0 <= case["range"][0] < case["range"][1] <= 1


def test_a_patched_model_is_searched_as_it_was_before(results):
    case = results["a_patched_model_is_searched_as_it_was_before"]
    assert case == {"same": True, "said": True, "kept": 0}


@pytest.mark.parametrize("kind, prefix", [("i2v", 0), ("fun_ref", 192)])
def test_other_wans(results, kind, prefix):
    case = results["other_wans"][kind]
    assert case["finite"] and case["prefix"] == prefix and case["cost"] <= 0.4 + 1e-9
    assert all(sparse > 0 and dense == 0 and density < 1 for sparse, dense, density in case["steps"])
    assert np.mean([density for *_, density in case["steps"]]) == pytest.approx(case["cost"])


def test_a_batch_of_videos(results):
    assert results["a_batch_of_videos"]["branches"] == 2 and results["a_batch_of_videos"]["cost"] <= 0.4 + 1e-9


def test_measured_costs_are_what_the_budget_counts(results):
    case = results["measured_costs"]
    assert case["asked"] == [["measured", 2, 128, "fp8"]] and case["said"] == "measured"
    assert case["cost"] <= 0.4 + 1e-9 and case["density"] < 0.75 * case["cost"]


@pytest.mark.parametrize("end", ["done", "cancelled", "out of memory", "failed"])
def test_nothing_is_left_and_the_model_is_as_it_was(conduct, end):
    case = conduct["broken_off"][end]
    names = {"done": "nothing", "cancelled": "InterruptProcessingException", "failed": "ValueError"}
    assert case["raised"] == names.get(end, "HeadSearchError") and case["made"] >= 2
    assert (case["alive"], case["left"], case["lost"], case["clean"]) == (0, [], 0, True), case
    assert len(case["written"]) == (end == "done") and (end == "done" or case["calls"] == 3)
    assert end != "out of memory" or ("out of memory" in case["text"] and "smaller" in case["text"])


def test_progress_and_what_is_expected(conduct):
    case = conduct["progress"]
    for total in (9, 6):
        values = [value for value, of in case["seen"] if of == total]
        assert values == sorted(values) and values[-1] == total and len(values) >= total - 1
    assert any("a dense run that looks at the heads, then 2 passes over 1 run of 3 steps" in s for s in case["said"])
    assert any("for its look at the heads, about" in sentence for sentence in case["said"])
    assert any("pass 1 of 1, run 2 of 2 (3 of 6 steps done)" in sentence for sentence in case["said"])
    # Three candidates of density 0, 1/2 and 1 (FP8), and their dense run: more than a run, less than all attention.
    with_look, without = case["efforts"]
    assert 1 + 2 * 1 < with_look < 1 + 2 * 3 and 2 * 1 < without < 2 * 3


SENTENCES = {
    "not wan": "works on Wan models, this one is Linear",
    "no model": "the input 'model' got str",
    "channels": "4 channels, this model's latents have 16",
    "no tensor": "no single video latent",
    "no conditioning": "positive got int, which is no conditioning",
    "nothing linked": "positive is missing",
    "no text": "name is missing: what is linked to it gave nothing; write a value",
    "empty prompt": "never called the model",
    "lists": "latent_image is a list of 2 beside one of 3",
    "list of seeds": "seed got 2 values",
    "sizes": "the latents have different sizes",
    "budget": "budget is nan",
    "no budget": "budget is 0",
    "least": "a budget of 10.0% cannot be met, the least is 33.3%",
    "runs": "runs is 0; write a whole number from 1 to 100",
    "rule": "rule is 'mine'",
    "sampler": "sampler_name is 'nobody'",
    "separate": "with cfg 1 the negative prompt is not sampled",
    "dense steps": "dense_steps is 3 of 3 steps",
    "all blocks": "dense_blocks names all 2 blocks",
    "no block": "dense_blocks names block 7",
    "windows": "never says 'heads'",
    "online": "says 'svg 0.3'",
    "no phase": "none of the 3 steps is in a phase that says 'heads'",
    "schedule": "schedule got 3",
    "patterns": "'spiral' is no pattern",
    "only full": "no candidate beside full and skip",
    "one tile": "is too small: the candidates are all full or skip",
    "name": "which is no file's name",
    "absolute": "which is no file's name",
    "no name": "which is no file's name",
    "lambda": "lambda_cost is -1.0",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_bad_input_is_one_sentence(conduct, name):
    text = conduct["bad_input"][name]
    assert re.match(r"\w+Error: ", text) and SENTENCES[name] in text, text
    assert text.isprintable() and text.endswith(".") and len(text) < 400


def test_nodes_that_skip_steps_are_refused(conduct):
    for name, case in conduct["core_caches"].items():
        assert case["text"].startswith(f"HeadSearchError: {name} on the MODEL skips steps") and case["calls"] == 0
    for case in conduct["other_caches"].values():
        assert "another node on the MODEL skips steps" in case["text"]
        assert "connect the MODEL as it is before that node" in case["text"]


def test_attention_that_another_node_took_over_stays_full_and_is_said(conduct):
    case = conduct["attention_of_another_node"]
    assert case["one"]["full"] == ["Full()", True, True, True]
    assert "layers 1 were not searched and stay full" in case["one"]["text"]
    assert case["all"]["text"].startswith("HeadSearchError: the model's self-attention stays dense")


def test_a_table_elsewhere_keeps_its_name(conduct):
    case = conduct["a_table_of_that_name_elsewhere"]
    assert case["written"] == ["moved_00002_.json"] and "moved_00002_.json in fpsattention" in case["text"]


@pytest.mark.parametrize("change", ["ours", "mse", "budget", "look"])
def test_values_that_are_no_numbers_are_refused(conduct, change):
    case = conduct["values_that_are_no_numbers"]
    assert case[change].startswith("HeadSearchError: the model's attention gives values that are no finite numbers")
    assert case["written"] == []


def test_a_block_whose_values_are_no_numbers_stays_full_and_is_said(conduct):
    case = conduct["values_that_are_no_numbers"]
    assert case["full"] and "layers 1 gave values that are no finite numbers and stay full." in case["text"]


def test_where_it_cannot_run_nothing_is_sampled(conduct):
    case = conduct["where_it_cannot_run"]
    assert "so there is nothing to search: no fast backend runs here" in case["text"] and case["calls"] == 0


def test_a_table_that_cannot_be_saved_is_not_lost(conduct):
    case = conduct["a_folder_that_cannot_be_written"]
    assert case["layers"] == 2 and "not saved: [Errno 28] No space left on device" in case["text"]


# --- over HTTP


@pytest.fixture
def graph(server, tiny):
    """A search over a list of two prompts, its table in a sampler's run, and the report of that."""
    tiny.write_tiny_wan(server.base / "models" / "diffusion_models" / "searched.safetensors", layers=2)
    inputs = {
        "model": ["1", 0], "positive": ["list", 0], "negative": ["no", 0], "latent_image": ["3", 0], "seed": 4,
        "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "runs": 1, "candidates": "paper",
        "rule": "budget", "budget": 50.0, "name": "wan/found",
    }  # fmt: skip
    sampled = {name: inputs[name] for name in ("negative", "latent_image", "seed", "steps", "cfg")}
    sampled |= {"sampler_name": "euler", "scheduler": "simple", "positive": ["yes", 0], "denoise": 1.0}
    size = {"width": 256, "height": 192, "length": 9, "batch_size": 1}
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "searched.safetensors", "weight_dtype": "default"}},
        "yes": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 1, "tokens": 64}},
        "more": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 2, "tokens": 64}},
        "no": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 0, "tokens": 64}},
        "list": {"class_type": "CreateList", "inputs": {"inputs.input0": ["yes", 0], "inputs.input1": ["more", 0]}},
        "3": {"class_type": "EmptyHunyuanLatentVideo", "inputs": size},
        "4": {"class_type": "FPSAttentionSearchHeads", "inputs": inputs},
        "5": {"class_type": "FPSAttentionApply", "inputs": {"model": ["1", 0], "backend": "auto", "heads": ["4", 0]}},
        "6": {"class_type": "KSampler", "inputs": sampled | {"model": ["5", 0]}},
        "7": {"class_type": "FPSAttentionReport", "inputs": {"latent": ["6", 0], "model": ["5", 0]}},
    }


def test_the_server_searches_over_http(server, graph):
    info = server.get("/object_info/FPSAttentionSearchHeads")["FPSAttentionSearchHeads"]
    assert info["output_node"] and info["is_input_list"] and all(info["output_tooltips"])
    assert info["output"] == ["FPS_HEADS", "FPS_SCHEDULE", "STRING", "IMAGE"]
    advanced = {name for name, (_, options) in info["input"]["optional"].items() if options.get("advanced")}
    assert advanced == set(info["input"]["optional"])
    outputs = server.prompt(graph)["outputs"]
    path = server.base / "output" / "fpsattention" / "wan" / "found_00001_.json"
    table = read_head_table(path)
    assert table.model == "searched.safetensors" and table.made["prompts"] == 2 and table.made["mean_cost"] <= 0.5
    text = outputs["4"]["text"][0]
    assert "saved as" in text and "found_00001_.json" in text and len(outputs["4"]["images"]) == 1
    report = outputs["7"]["text"][0]
    assert "head table from the heads input" in report
    assert f"mean density {table.made['mean_density']:.1%} in the 3 steps that used it" in report
    load = {"class_type": "FPSAttentionLoadHeads", "inputs": {"file_name": str(path.relative_to(path.parent.parent))}}
    see = {"class_type": "PreviewAny", "inputs": {"source": ["8", 2]}}
    again = server.prompt({"8": load, "9": see})
    assert "searched on searched.safetensors: 2 layers of 2 heads" in again["outputs"]["9"]["text"][0]
    log = server.log()
    assert "Search Head Patterns: a dense run that looks at the heads" in log and "memory leak" not in log


@pytest.mark.parametrize(
    "change, words",
    [
        ({"budget": 0.0}, "budget is 0"),
        ({"rule": "all"}, "rule is 'all', which is none of its choices"),
        ({"candidates": "custom", "patterns": "jump"}, "'jump' is no pattern"),
        ({"schedule": "0 dense"}, "never says 'heads'"),
        ({"name": "a/../../b"}, "which is no file's name"),
        ({"branches": "separate"}, "with cfg 1 the negative prompt is not sampled"),
    ],
)
def test_the_server_refuses_when_it_is_queued(server, graph, change, words):
    graph["4"]["inputs"] |= change
    with pytest.raises(PromptRejectedError) as refused:
        server.prompt(graph)
    errors = refused.value.details["node_errors"]["4"]["errors"]
    assert all(words in error["details"] for error in errors), errors
