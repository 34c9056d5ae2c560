"""FPSAttention Profile in the real host: exact where it must be, and right about what was planted."""

from __future__ import annotations

import time

import pytest


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_profile")


@pytest.fixture(scope="module")
def conduct(inside):
    return inside("fps_profile_conduct")


def test_the_probed_dense_run_is_the_samplers_own(results):
    assert all(results["dense_is_exact"].values()), results["dense_is_exact"]


def test_known_predictions_are_handed_out_without_changing_anything(results):
    for name, case in results["replayed_runs_are_whole_runs"].items():
        assert case["same"], (name, case)
        assert case["error"] > 0
        if "cfg_pp" in name or "APG" in name:
            assert case["computed"] == case["all"] and case["one_step"] is None
            assert len(case["notes"]) == 1 and "every run was sampled from its first step" in case["notes"][0]
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


def test_cancelling_leaves_the_model_as_it_was(conduct):
    case = conduct["cancelled"]
    assert case["raised"] == "InterruptProcessingException" and case["clean"]


def test_out_of_memory_is_one_sentence_and_leaves_the_model_as_it_was(conduct):
    case = conduct["out_of_memory"]
    assert case["raised"] == "ProfileError" and case["clean"]
    assert "out of memory" in case["text"] and "smaller" in case["text"] and "\n" not in case["text"]


@pytest.mark.parametrize("end", ["done", "cancelled", "out of memory"])
def test_nothing_is_left_of_it_even_without_a_garbage_collection(conduct, end):
    assert conduct["nothing_is_left"][end] == []


@pytest.mark.parametrize("end", ["nothing", "refused", "failed", "full", "cancelled"])
def test_no_patcher_outlives_a_profile_so_the_host_never_loses_its_model(conduct, end):
    raised = {"refused": "ProfileError", "failed": "ValueError", "full": "ProfileError", "nothing": "nothing"}
    case = conduct["no_patcher_is_left"][end]
    assert case["raised"] == raised.get(end, "InterruptProcessingException") and case["made"] >= 2
    assert case["alive"] == 0 and case["lost"] == 0, case


def test_progress_rises_to_the_end(conduct):
    assert conduct["progress"]["rising"] and conduct["progress"]["full"] and conduct["progress"]["count"] >= 2


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


def test_a_density_out_of_reach_is_refused_before_the_model_is_loaded_where_that_is_certain(conduct):
    case = conduct["density_out_of_reach"]
    assert {name for name, told in case.items() if not told["loaded"]} == {"plain", "image to video", "one tile"}
    for name, told in case.items():
        wanted = "single tile" if name == "one tile" else "density 0.01 cannot be met"
        assert wanted in told["text"] and told["steps"] == 0, name


@pytest.mark.parametrize("name", SENTENCES)
def test_bad_input_is_one_sentence(conduct, name):
    text = conduct["bad_input"][name]
    assert text.startswith("ProfileError: ") and SENTENCES[name] in text and "\n" not in text, text


def test_the_hosts_own_caches_are_refused_before_anything_is_sampled(conduct):
    for name, orders in conduct["core_caches"].items():
        assert set(orders) == {"alone", "behind", "before"}
        for case in orders.values():
            assert case["text"].startswith(f"ProfileError: {name} on the MODEL skips steps and reuses earlier ones")
            assert "connect the MODEL as it is before that node" in case["text"] and case["steps"] == 0


def test_a_node_that_skips_is_refused_in_the_step_that_it_skips(conduct):
    for level, case in conduct["other_caches"].items():
        step = 1 if level == "forward" else 5
        assert case["text"].startswith(f"ProfileError: another node on the MODEL skips steps ({step}, for example)")
        # That forward hands its attention no options, so nobody counts.
        assert case["steps"] == (0 if level == "forward" else step), (level, case)


def test_a_node_that_skips_in_a_sparse_run_only_is_refused_as_well(conduct):
    for level, case in conduct["caches_in_a_sparse_run_only"].items():
        assert case["text"].startswith("ProfileError: another node on the MODEL skips steps (5, for example)"), level


def test_a_replaced_forward_is_refused_in_the_first_step(conduct):
    case = conduct["replaced_forward"]
    assert "another node replaced the model's own forward" in case["text"] and case["steps"] == 1


def test_where_sparse_attention_cannot_run_nothing_is_sampled(conduct):
    case = conduct["backend"]
    assert case["slow"]["text"].startswith(
        "ProfileError: attention would stay dense here, so there is nothing to profile: no fast backend runs here ("
    )
    assert case["slow"]["steps"] == 0
    assert case["head dim"].startswith("ProfileError: attention cannot run sparse here")
    assert "not 96" in case["head dim"]
    assert any("reference runs in place of triton-fp8" in note for note in case["notes"])


def test_what_is_said_to_run_is_what_runs(results):
    for name, case in results["expected"].items():
        assert case["dense"] == 6 and case["probes"] == case["spent"] == 12
        assert "come on top" in case["sentence"] and "longer than the steps themselves" in case["sentence"]
        if "rows" in name:
            assert case["done"] == case["total"], (name, case)
        else:
            # Up to four runs check the proposal.
            assert case["total"] - 3 * 6 <= case["done"] <= case["total"], (name, case)
    assert results["expected"]["euler_cfg_pp rows"]["total"] == 6


def test_a_dense_step_is_timed_by_dense_steps_only(results):
    assert results["seconds_of_a_dense_step"] == {"1": None, "2": 1.0, "3": 1.0, "8": 1.0}


def test_the_time_to_go_counts_probes_and_then_what_is_measured(results):
    assert results["time_to_go"] == [
        "FPSAttention Profile: a test.",
        # Five steps of a second, four probes of three.
        "FPSAttention Profile: 1 s a step and 6 s for its row probes, about 17 s to go",
        "FPSAttention Profile: the rest (8 of 10 steps done, up to 4 s to go)",
    ]


BARS = {
    "final latent": "squared error of the final latent per step",
    "one-step loss": "squared one-step loss",
    "row error": "squared error of attention rows",
}


@pytest.mark.parametrize("measure", BARS)
def test_picture_and_report_name_the_measure_that_was_used(results, measure):
    case = results["measures"][measure]
    assert case["told by"] == measure and case["title"].startswith(f"Bars: {BARS[measure]}")
    assert case["right"] < 1120
    shown = f"(not measured; the picture shows the {measure})"
    assert (shown in case["report"]) == (measure != "final latent")
    assert "query rows in 2 steps x 2 of 2 layers" in case["report"]


def test_the_node_gives_schedule_text_report_and_picture(results):
    case = results["node"]
    assert case["same"] and case["runs"] > 0
    assert case["report"].startswith("FPSAttention Profile: ") and "fps-schedule v1" in case["report"]
    assert case["image"][0] == 1 and case["image"][3] == 3 and case["image"][1] > 600
    assert 0 <= case["range"][0] < case["range"][1] <= 1
    assert results["host_names"]["predict_noise"]


@pytest.fixture
def profile_graph(server, tiny):
    """A profile of a tiny model, and a run with the schedule that it proposes."""
    tiny.write_tiny_wan(server.base / "models" / "diffusion_models" / "profiled.safetensors", layers=2)
    inputs = {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 4, "steps": 3,
        "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "effort": "runs", "aim": "density", "density": 0.5,
        "psnr": 25.0, "phases": 2,
    }  # fmt: skip
    size = {"width": 256, "height": 128, "length": 5, "batch_size": 1}
    return {
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


def test_the_server_profiles_over_http(server, profile_graph):
    """The node as the page queues it: schedule into the sampler's patch, text and picture on the node."""
    info = server.get("/object_info/FPSAttentionProfile")["FPSAttentionProfile"]
    assert info["output_node"] and all(info["output_tooltips"])
    assert info["input_order"]["required"] == [
        "model", "positive", "negative", "latent_image", "seed", "steps", "cfg", "sampler_name", "scheduler", "effort",
        "aim", "density", "psnr", "phases",
    ]  # fmt: skip
    entry = server.prompt(profile_graph)
    shown = entry["outputs"]["4"]
    assert shown["text"][0].startswith("FPSAttention Profile: ") and len(shown["images"]) == 1
    assert any(path.suffix == ".latent" for path in server.files(entry))
    log = server.log()
    assert "dense steps with row probes" in log and "about the time of" in log and "for its row probes, about" in log


def test_the_server_refuses_to_aim_at_a_psnr_by_rows_when_it_is_queued(server, profile_graph):
    profile_graph["4"]["inputs"] |= {"effort": "rows", "aim": "psnr"}
    with pytest.raises(Exception, match="cannot aim at a PSNR; choose 'runs'"):
        server.prompt(profile_graph)
    profile_graph["4"]["inputs"] |= {"effort": "all", "aim": "density"}
    with pytest.raises(Exception, match="effort is 'all', which is none of its choices"):
        server.prompt(profile_graph)


def test_the_server_keeps_its_model_behind_a_profile_that_fails(server, profile_graph):
    """Refused in the first model call, since context windows decide what the model sees; then a collection."""
    windows = {"context_length": 81, "context_overlap": 30, "context_schedule": "standard_static", "context_stride": 1,
               "closed_loop": False, "fuse_method": "pyramid", "freenoise": False}  # fmt: skip
    profile_graph["8"] = {"class_type": "WanContextWindowsManual", "inputs": windows | {"model": ["1", 0]}}
    profile_graph["4"]["inputs"] |= {"model": ["8", 0], "density": 0.01}
    with pytest.raises(Exception, match=r"density 0\.01 cannot be met"):
        server.prompt(profile_graph)
    server.post("/free", {"free_memory": True})
    time.sleep(3)
    profile_graph["6"]["inputs"] |= {"model": ["1", 0], "seed": 5}
    server.prompt({key: profile_graph[key] for key in "12367"})
    assert "memory leak" not in server.log()
