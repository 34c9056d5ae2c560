"""Timestep-aware LoRA on the real host: the right LoRA at every sigma, equal to weights that were merged naively, and
nothing of it left on a model that others share."""

from __future__ import annotations

import pytest
import torch
from fpsattention.training.comfy_host import PromptRejectedError
from safetensors.torch import save_file

RUNS = [
    "4 euler simple",
    "4 lcm sgm_uniform",
    "20 uni_pc simple",
    "20 heun beta",
    "20 dpmpp_2m normal",
    "50 euler simple",
    "50 uni_pc beta",
]
# Merged in float64 and rounded to float32, or added beside the layer: 50 steps were seen to carry that to 2e-5.
FLOAT32 = 1e-4


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_timestep_lora")


@pytest.fixture(scope="module")
def files(inside):
    return inside("fps_timestep_lora_files")


def check(case: dict, bound: float = FLOAT32) -> None:
    assert case["relative"] < bound
    assert case["changed"] > 100 * bound, "the LoRAs change what is sampled"
    assert case["calls"], "both models were called at the same sigmas"
    assert case["ran"], "the LoRAs that ran are those of the table at the sampler's own sigmas"
    assert case["traces"] == [] and case["again"]


@pytest.mark.parametrize("name", RUNS)
def test_the_lora_of_the_sigma_acts(results, name):
    case = results["switches"][name]
    check(case)
    steps = int(name.split()[0])
    assert len(case["loras"]) >= steps and len(set(case["loras"])) >= (2 if steps == 4 else 3)


@pytest.mark.parametrize("name", ["two_stages", "every_linear", "image_to_video"])
def test_other_ways_to_sample(results, name):
    check(results[name])


WANS = {
    "vace": "VaceWanModel", "camera": "CameraWanModel", "fun": "WanModel", "phantom": "WanModel",
    "humo": "HumoWanModel", "wan2.2 5b": "WanModel",
}  # fmt: skip


@pytest.mark.parametrize("name", WANS)
def test_the_wan_family(results, name):
    case = results["other_wans"][name]
    check(case)
    assert case["class"] == WANS[name]


def test_strength_scales_and_zero_is_no_node(results):
    assert results["strengths"]["half"] < FLOAT32 and results["strengths"]["none"]


def test_two_nodes_add_up(results):
    case = results["a_chain_adds_up"]
    assert case["relative"] < FLOAT32 and case["ran"] and case["traces"] == []
    assert case["models"] == ["Hub", "Hub"]


def test_clones_do_not_mix(results):
    case = results["clones_do_not_mix"]
    assert case["same"] == [True] * 4 and case["apart"] > 0.01 and case["traces"] == []


def test_an_error_leaves_nothing(results):
    assert results["an_error_leaves_nothing"] == {"raised": True, "traces": [], "same": True}


def test_low_memory(results):
    case = results["low_memory"]
    assert case["same"] and case["partly"] == [True, True] and case["dtype"] == "torch.float32"
    assert case["loaded"][0] < case["loaded"][1] / 2


def test_dynamic_memory(inside):
    case = inside("fps_timestep_lora_dynamic")["numbers"]
    assert case["kinds"] == ["ModelPatcherDynamic"] * 2
    assert case["apart"] < 1e-6 < 0.01 < case["changed"]
    assert case["layers"][0] > 0 and case["layers"][1] == case["branches"], "each matrix has a place of its own"


def test_weights_of_eight_bits(results):
    case = results["weights_of_eight_bits"]
    check(case)
    assert case["weights"] == "torch.float8_e4m3fn"


def test_half_precision(results):
    case = results["half_precision"]
    assert case["dtype"] == "torch.bfloat16" and case["ran"] and case["traces"] == []
    assert case["relative"] < 2 * case["plain"] < case["changed"]


def test_several_sigmas_in_a_batch(results):
    case = results["several_sigmas_in_a_batch"]
    assert case["relative"] < 1e-5
    assert case["loras"] == [[0.1, [0]], [0.4, [2]], [0.95, [0]]]


def test_a_sigma_that_is_none(results):
    case = results["no_sigma"]
    assert case == {"notes": [["the sampler's sigma is not a number, so no LoRA acts."]], "traces": []}


def test_with_our_attention(results):
    case = results["with_our_attention"]
    assert case["equal"] and case["relative"] < FLOAT32 and case["apart"] > 0.01
    assert sum(count > 0 for count in case["sparse"]) == 3
    said = [line for line in case["report"] if line.startswith("timestep-aware LoRA")]
    assert said == ["timestep-aware LoRA sparse.safetensors: LoRA 2 at sigma 1.0000, LoRA 0 at sigma 0.9600 to 0.8889 "
                    "(2 steps), LoRA 1 at sigma 0.7273"]  # fmt: skip


def test_with_a_stock_lora(results):
    case = results["with_a_stock_lora"]
    assert max(case["relative"]) < FLOAT32 and case["traces"] == []


def test_another_nodes_forward_comes_back(results):
    assert results["another_nodes_forward_comes_back"] == {"calls": 2, "back": True, "traces": ["blocks.0.ffn.0"]}


# What validation says when the workflow is queued, and what running says where only that can know.
QUEUED = {
    "ordinary": "ordinary.safetensors is not a timestep-aware LoRA; train one with [talora], or give an ordinary LoRA "
    "to the stock LoRA loader.",
    "damaged": "damaged.safetensors",
    "noise": "noise.safetensors",
    "newer": "newer.safetensors: its header is v9, this version reads up to v1; update the node pack.",
    "table": "table.safetensors: the table of routes does not reach sigma 0",
    "missing": "missing.safetensors is not in models/loras; choose another file, or refresh the list.",
}
RUN = {
    "wide": "wide.safetensors is for another model: it adapts blocks.0.ffn.0 of 5120 -> 13824 features, this one's is "
    "256 -> 512.",
    "other": "other.safetensors is for another model: it adapts double_blocks.0.img_mlp, which this one does not have.",
    "nan": "nan.safetensors: the LoRA of blocks.1.ffn.2 is not finite; export it again.",
    "scaled": "scaled.safetensors: the LoRA of blocks.0.cross_attn.k at scale 1e+300 and strength 1 exceeds what "
    "float32 holds; choose a smaller strength, or export it again.",
    "strength": "strength is nan; it must be a number of -100 to 100, such as 1.",
    "huge": "strength is 1e+30; it must be a number of -100 to 100, such as 1.",
    "endless": "strength is 1" + "0" * 39 + " ... (int); it must be a number of -100 to 100, such as 1.",
    "no name": "lora_name is None, which is no file's name; choose a file in the node.",
    "no model": "the input 'model' got object, which is no diffusion model; connect the MODEL output of a loader.",
}


@pytest.mark.parametrize("name", [*QUEUED, *RUN])
def test_refusals(files, name):
    queued, ran = files["refusals"][name]
    if name in QUEUED:
        assert queued.startswith(QUEUED[name]) and ran == queued
    else:
        assert queued == "" and ran == RUN[name]
    assert "\n" not in ran and ran.endswith(".")


def test_a_good_file_is_taken(files):
    assert files["refusals"]["good"] == ["", ""]


def test_the_base_is_compared(files):
    cases = files["bases"]
    for name in ("same", "both plain"):
        assert cases[name]["notes"] == [[], []], name
    assert "# trained on this quantized model (aaaaaaaaaaaaaaaa)" in cases["same"]["text"]
    for name, words in (
        ("another", "was trained on another quantization (aaaaaaaaaaaaaaaa) than this model's (bbbbbbbbbbbbbbbb)"),
        ("plain model", "was trained on a quantized model (aaaaaaaaaaaaaaaa) and this model is not one"),
        ("plain hub", "was trained on a model in full precision"),
    ):
        first, second = cases[name]["notes"]
        assert len(first) == 1 and first == second and words in first[0] and words in cases[name]["text"]


def test_the_hosts_names(results):
    assert results["names"] == {"apply_model": True}


def test_the_server_refuses_an_ordinary_lora_when_it_is_queued(server, tiny):
    """And takes a hub; what is refused is said at the node that asks for it."""
    from fpsattention.kernels.timestep_lora import RouteTable, write_timestep_lora

    for kind in ("loras", "diffusion_models"):
        (server.base / "models" / kind).mkdir(parents=True, exist_ok=True)
    loras = server.base / "models" / "loras"
    save_file(tiny.tiny_wan(layers=1), server.base / "models" / "diffusion_models" / "wan.safetensors")
    save_file({"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.ones(4, 256)}, loras / "ordinary.safetensors")
    matrices = {"blocks.0.ffn.0": (torch.ones(2, 4, 256), torch.ones(2, 512, 4))}
    write_timestep_lora(loras / "hub.safetensors", matrices, RouteTable(((0.9, 1), (0.0, 0))), 0.5)
    with pytest.raises(PromptRejectedError, match=r"ordinary\.safetensors is not a timestep-aware LoRA"):
        server.prompt(graph("ordinary.safetensors"))
    (text,) = server.prompt(graph("hub.safetensors"))["outputs"]["lora"]["text"]
    assert text.splitlines() == [
        "# hub.safetensors: 2 LoRAs of rank 4 for each of 1 layers, strength 0.5",
        "sigma 1.0000 .. 0.9000   LoRA 1",
        "sigma 0.9000 .. 0.0000   LoRA 0",
    ]


def graph(name: str) -> dict:
    """A graph that asks for the node's text."""
    inputs = {"model": ["wan", 0], "lora_name": name, "strength": 0.5}
    return {
        "wan": {"class_type": "UNETLoader", "inputs": {"unet_name": "wan.safetensors", "weight_dtype": "default"}},
        "lora": {"class_type": "FPSAttentionTimestepLora", "inputs": inputs},
        "see": {"class_type": "PreviewAny", "inputs": {"source": ["lora", 1]}},
    }
