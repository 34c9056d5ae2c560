"""FPSAttention Profile in the real host: exact where it must be, and right about what was planted."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_profile")


def test_the_probed_dense_run_is_the_samplers_own(results):
    assert all(results["dense_is_exact"].values()), results["dense_is_exact"]


def test_known_predictions_are_handed_out_without_changing_anything(results):
    for name, case in results["replayed_runs_are_whole_runs"].items():
        assert case["same"], (name, case)
        assert case["error"] > 0
        if "cfg_pp" in name:
            assert case["computed"] == case["all"] and case["one_step"] is None
        else:
            assert case["computed"] < case["all"] and case["one_step"] > 0, (name, case)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("place", ["early", "middle", "late"])
def test_planted_sensitivity_is_found_and_gets_the_densest_phase(results, place, seed):
    case = results["planted"][f"{place} {seed}"]
    inside, outside = [], []
    for (first, last, *_), harm, density in zip(case["segments"], case["harm"], case["densities"]):
        overlap = max(0, min(last, case["last"]) - max(first, case["first"]) + 1)
        if overlap == last - first + 1:
            inside.append((harm, density))
        elif not overlap:
            outside.append((harm, density))
    assert inside and outside
    assert min(h for h, _ in inside) > 5 * max(h for h, _ in outside)
    assert max(d for _, d in inside) > 1.2 * max(d for _, d in outside)
    assert min(d for _, d in inside) >= max(d for _, d in outside)
    assert case["measured"] > case["uniform"]
    assert case["work"] <= 0.4 + 1e-9
    assert abs(case["predicted"] - case["measured"]) < 3


def test_one_step_losses_show_it_without_runs_and_propose_no_phases(results):
    for place, case in results["planted_without_runs"].items():
        inside = [s > 0.8 if place == "early" else s < 0.5 for s in case["sigmas"]]
        losses = [case["one_step"][str(i)] for i in range(len(inside))]
        within, without = ([x for x, h in zip(losses, inside) if h is wanted] for wanted in (True, False))
        assert min(within) > 3 * max(without), (place, losses)
        assert case["phases"] == 1 and case["measured"] is None and case["predicted"] is None


def test_nothing_is_invented_where_attention_does_not_count(results):
    case = results["switched_off"]
    assert case["phases"] == 1 and case["work"] == case["uniform_work"]


def test_a_target_psnr_is_met(results):
    case = results["psnr"]
    assert case["measured"] >= case["aimed"] - 0.2, case
    assert 1 <= case["tries"] <= 5


def test_a_psnr_out_of_reach_proposes_dense_and_says_so(results):
    case = results["psnr_out_of_reach"]
    assert case["work"] == 1 and any("no sparse schedule" in note for note in case["notes"])


def test_small_and_odd_runs(results):
    assert results["one_step"]["phases"] == 1 and results["one_step"]["measured"] is not None
    assert results["batch_and_guidance"]["measured"] > 0
    assert "adds noise" in results["stochastic"]["report"] and results["stochastic"]["measured"] > 0
    assert results["reference_tokens"]["grid"] == [192, 3, 12, 16]
    assert results["reference_tokens"]["measured"] > 0


def test_a_patched_model_is_profiled_as_it_was_before(results):
    assert all(results["already_patched"].values()), results["already_patched"]


def test_other_nodes_keep_their_place(results):
    case = results["other_nodes_stay"]
    assert case["calls"] > case["dense"]


def test_cancelling_leaves_the_model_as_it_was(results):
    case = results["cancelled"]
    assert case["raised"] == "InterruptProcessingException" and case["clean"]


def test_out_of_memory_is_one_sentence_and_leaves_the_model_as_it_was(results):
    case = results["out_of_memory"]
    assert case["raised"] == "ProfileError" and case["clean"]
    assert "out of memory" in case["text"] and "smaller" in case["text"] and "\n" not in case["text"]


@pytest.mark.parametrize("end", ["done", "cancelled", "out of memory"])
def test_nothing_is_left_of_it_even_without_a_garbage_collection(results, end):
    assert results["nothing_is_left"][end] == []


def test_progress_rises_to_the_end(results):
    assert results["progress"]["rising"] and results["progress"]["full"] and results["progress"]["count"] >= 2


SENTENCES = {
    "not wan": "works on Wan models, this one is Linear",
    "channels": "4 channels, this model's latents have 16",
    "no latent": "is empty",
    "no tensor": "no single video latent",
    "dimensions": "3 dimensions",
    "density": "density 0.01 cannot be met: the smallest window",
    "rows for psnr": "choose 'runs'",
    "steps": "steps is 0",
    "phases": "phases is 99",
    "nan": "density is nan",
    "seed": "seed is -1; write a whole number from 0 to 18446744073709551615",
    "one tile": "single tile",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_bad_input_is_one_sentence(results, name):
    text = results["bad_input"][name]
    assert text.startswith("ProfileError: ") and SENTENCES[name] in text and "\n" not in text, text


def test_the_node_gives_schedule_text_report_and_picture(results):
    case = results["node"]
    assert case["same"] and case["runs"] > 0
    assert case["report"].startswith("FPSAttention Profile: ") and "fps-schedule v1" in case["report"]
    assert case["image"][0] == 1 and case["image"][3] == 3 and case["image"][1] > 600
    assert 0 <= case["range"][0] < case["range"][1] <= 1
    assert results["host_names"]["predict_noise"]


def test_the_server_profiles_over_http(server, tiny):
    """The node as the page queues it: schedule into the sampler's patch, text and picture on the node."""
    tiny.write_tiny_wan(server.base / "models" / "diffusion_models" / "profiled.safetensors", layers=2)
    info = server.get("/object_info/FPSAttentionProfile")["FPSAttentionProfile"]
    assert info["output_node"] and all(info["output_tooltips"])
    assert info["input_order"]["required"] == [
        "model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "sampler_name", "scheduler", "effort",
        "aim", "density", "psnr", "phases",
    ]  # fmt: skip
    inputs = {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 4, "steps": 3,
        "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "effort": "runs", "aim": "density", "density": 0.5,
        "psnr": 25.0, "phases": 2,
    }  # fmt: skip
    size = {"width": 256, "height": 128, "length": 5, "batch_size": 1}
    graph = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "profiled.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 1, "tokens": 64}},
        "3": {"class_type": "EmptyHunyuanLatentVideo", "inputs": size},
        "4": {"class_type": "FPSAttentionProfile", "inputs": inputs},
        "5": {
            "class_type": "FPSAttentionApply",
            "inputs": {"model": ["1", 0], "backend": "auto", "schedule": ["4", 0]},
        },
        "6": {
            "class_type": "KSampler",
            "inputs": {name: inputs[name] for name in list(inputs)[1:9]} | {"model": ["5", 0], "denoise": 1.0},
        },
        "7": {"class_type": "SaveLatent", "inputs": {"samples": ["6", 0], "filename_prefix": "profiled"}},
    }
    entry = server.prompt(graph)
    shown = entry["outputs"]["4"]
    assert shown["text"][0].startswith("FPSAttention Profile: ") and len(shown["images"]) == 1
    assert any(path.suffix == ".latent" for path in server.files(entry))
    log = server.log()
    assert "dense steps with row probes" in log and "about the time of" in log and "s a step, about" in log
