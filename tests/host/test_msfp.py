"""Load MSFP Wan: its output is the trainer's, whatever the host does with its memory and whatever patches it."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

if importlib.util.find_spec("diffusers") is None:
    pytest.skip("the trainer's requirements are not installed (no diffusers)", allow_module_level=True)

from pathlib import Path

from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.comfy_host import PromptRejectedError
from fpsattention.training.quantized import load_quantized, quantized_layers

KINDS, MODES = ("t2v", "i2v", "flf"), ("as trained", "full precision")
CLASSES = {"t2v": "WAN21_T2V", "i2v": "WAN21_I2V", "flf": "WAN21_I2V"}
SCHEDULE = "0.98 dense\n0.00 bf16 - 60% 1 1\n"
# Two implementations of the model in float32, as in test_trainer_files.
FLOAT32 = 2e-5
# The same product, but LoRAs are added to a float32 weight in another place.
SAME = 1e-6


@pytest.fixture(scope="module")
def parts():
    path = Path(__file__).parent.parent / "training" / "msfp_parts.py"
    spec = importlib.util.spec_from_file_location("fps_msfp_parts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def states(tiny) -> dict[str, dict[str, torch.Tensor]]:
    i2v, generator = tiny.tiny_wan("i2v"), torch.Generator().manual_seed(2)
    flf = i2v | {"img_emb.emb_pos": torch.randn(1, 514, 1280, generator=generator)}
    return {"t2v": tiny.tiny_wan(), "i2v": i2v, "flf": flf}


def inputs(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    found = {
        "x": torch.randn(1, 16 if kind == "t2v" else 36, 3, 8, 12, generator=generator),
        "t": torch.tensor([613.5]),
        "context": torch.randn(1, 512, 4096, generator=generator),
    }
    if kind != "t2v":
        found["image"] = torch.randn(1, {"i2v": 257, "flf": 514}[kind], 1280, generator=generator)
    return found


def arguments(kind: str) -> list[torch.Tensor]:
    x = inputs(kind)
    return [x[name] for name in ("x", "t", "context", "image") if name in x]


@pytest.fixture(scope="module")
def folder(parts, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("msfp")
    for kind, state in states(tiny).items():
        parts.write_state(folder / f"{kind}.safetensors", state)
        save_file(inputs(kind), folder / f"{kind}.inputs")
        save_file({name: x for name, (x, _) in watched(folder, kind).items()}, folder / f"{kind}.layers")
    state = tiny.tiny_wan()
    parts.write_state(folder / "half.safetensors", {name: tensor.bfloat16() for name, tensor in state.items()})
    header = Header(Schedule.parse(SCHEDULE), step=7)
    parts.write_state(folder / "sparse.safetensors", state, header=header)
    bad_files(folder, parts, tiny)
    return folder


@pytest.fixture(scope="module")
def host(inside, folder):
    return inside("fps_msfp", FPS_FOLDER=str(folder))


@torch.no_grad()
def watched(folder: Path, kind: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What the trainer's quantized layers saw and gave, by name."""
    model, seen = load_quantized(folder / f"{kind}.safetensors"), {}
    for name, layer in quantized_layers(model).items():
        layer.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0].clone(), y.clone())}))
    model(*arguments(kind), return_dict=False)
    return seen


@torch.no_grad()
def trained(folder: Path, kind: str, mode: str) -> torch.Tensor:
    """The trainer's own fake-quantized output."""
    model = load_quantized(folder / f"{kind}.safetensors")
    if mode == "full precision":
        for layer in quantized_layers(model).values():
            layer.packed_layer = type(layer.packed_layer)(layer.packed_layer.weight, layer.packed_layer.columns)
    return model(*arguments(kind), return_dict=False)[0]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_the_output_is_the_trainers(host, folder, kind, mode):
    seen = host["velocity"][f"{kind} {mode}"]
    assert seen["class"] == CLASSES[kind] and seen["packed"] == 21 and seen["patcher"] == "MsfpPatcher"
    ours, theirs = trained(folder, kind, mode), load_file(folder / f"{kind} {mode}.out")["velocity"]
    other = trained(folder, kind, MODES[mode == MODES[0]])
    error, effect = apart(theirs, ours), apart(other, ours)
    print(f"{kind}, {mode}: relative difference {error:.1e}; the other mode is {effect:.1e} away")
    # Rounded inputs: float32 noise moves a few of a million numbers over the edge between two codes, and what that
    # changes moves others in later layers. The next test has nothing of this.
    assert error < (5e-2 if mode == "as trained" else FLOAT32)
    assert effect > 0.05 and effect > 2 * error


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_is_the_trainers(host, folder, kind):
    assert host["layers"]["kinds"] == len(KINDS)
    theirs = load_file(folder / f"{kind}.layers.out")
    ours = watched(folder, kind)
    assert theirs.keys() == ours.keys() and len(ours) == 21
    worst = max(apart(theirs[name], out) for name, (_, out) in ours.items())
    print(f"{kind}: largest relative difference of a layer {worst:.1e}")
    assert worst < SAME


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_it_is_bit_for_bit_the_hosts_model_of_the_same_values(host, kind, mode):
    assert host["velocity"][f"{kind} {mode}"]["equal"]


def test_a_file_in_bf16(host):
    assert host["half_precision"]["equal"]


def test_the_host_knows_what_it_takes(host):
    sizes = host["sizes"]
    assert sizes["told"] == sizes["clone"] == sizes["size"]
    # What is in the list are all modules that it can move; only bare parameters are left out.
    assert 0 <= sizes["size"] - sizes["listed"] < 0.01 * sizes["size"]


def test_codes_stay_in_the_file(host):
    case = host["mapped"]
    if case is None:
        pytest.skip("this system does not say what is mapped")
    assert case["mapped"] == case["layers"] == 21


@pytest.mark.parametrize("mode", MODES)
def test_loras_act_as_on_the_dequantized_model(host, mode):
    for name in ("whole", "half", "two"):
        case = host["lora"][f"{name}, {mode}"]
        assert case["relative"] < SAME and case["changed"] > 0.01, name
    assert host["lora"][f"after, {mode}"] == {"equal": True, "state": True, "on_layers": False}


@pytest.mark.parametrize("name", ["plain", "lora"])
def test_little_memory_gives_the_same_numbers(host, name):
    found = host["little_memory"]
    for budget in (1, 1_500_000, 9_000_000):
        case = found[f"{name}, {budget}"]
        assert case["equal"] and case["partly"], budget
    away = [found[f"lora, {budget}"]["away"] for budget in (1, 1_500_000, 9_000_000)]
    assert away[0] == 12 and away == sorted(away, reverse=True)
    assert found[f"{name}, after"]["equal"]


@pytest.mark.parametrize("name", ["plain", "lora"])
def test_moving_in_and_out_changes_nothing(host, name):
    case = host["moves"][name]
    assert [equal for equal, _, _ in case["steps"]] == [True] * 5 and not case["left"]
    if name == "lora":
        assert case["steps"][0][2] < case["steps"][1][2], "more of them went away"
        assert case["steps"][-1][1:] == [12, 0], "all of them came back"


def test_clones_do_not_mix(host):
    case = host["clones"]
    assert case["same"] == [True] * 7 and case["state"] and min(case["apart"]) > 0.01
    assert case["kinds"] == ["MsfpPatcher"]


def test_the_hosts_bypass_loras(host):
    case = host["bypass_lora"]
    assert case["relative"] < 1e-5 and case["changed"] > 0.01


@pytest.mark.parametrize("place", ["first", "second"])
def test_merging(host, place):
    case = host["merged"][place]
    assert case["relative"] < SAME and case["changed"] > 0.01


def test_what_cannot_be_done_is_said(host):
    said = host["refused_on_the_model"]
    assert "use a LoRA loader without hooks" in said["hooks"]
    assert "an MSFP model cannot be saved" in said["saving"]
    assert "subtract it from the other model, not the other from it" in said["extracting"]
    assert said["nothing saved"] and said["equal"]
    assert host["extracted"]["same"], "the other way around, as it says, a LoRA comes out"


def test_a_file_that_is_written_again_is_loaded_again(host):
    assert host["file_written_again"] == {"prints": 3, "first": "no file"}


@pytest.mark.parametrize("mode", MODES)
def test_with_the_packs_other_nodes(host, mode):
    case = host["with_fpsattention"][mode]
    assert case["calls"] > 0 and case["relative"] < (5e-2 if mode == "as trained" else 1e-4)
    line = f"21 linear layers at 4.75 bits per weight, activations {mode}"
    assert line in case["report"] and line in case["unpatched"]
    assert len(case["check"]) == 1 and line in case["check"][0]


def test_a_trained_schedule_is_applied(host):
    case = host["trained_schedule"]
    assert case["patched"] and case["header"] and case["relative"] < 1e-4
    assert case["sparse"] == case["again"] and sum(case["sparse"]) > 0
    assert case["schedule"] in case["text"] and "trained with this schedule" in case["text"]


def test_the_text_says_what_the_file_is(host):
    text = host["trained_schedule"]["text"]
    assert "# MSFP weights from sparse.safetensors: 21 linear layers at 4.75 bits per weight" in text
    assert "# weights: e2m1 per channel (12 layers)" in text and "ue2m2 per group of 32 (3 layers)" in text
    assert "not rounded (3 layers)" in text and "unsigned ue2m2 static (3 layers)" in text
    assert "# activations as trained: every input of these layers is rounded" in text
    alone = "# inputs: not rounded (21 layers)\n# activations as trained: the file rounds no inputs"
    assert alone in host["trained_schedule"]["weights alone"]


def test_a_stock_loader_refuses_in_its_own_words(host):
    assert host["stock_loader"].startswith("RuntimeError: ERROR: Could not detect model type of: ")


def test_the_loaders_name_each_other(host):
    bad = host["bad_files"]
    assert bad["ours"]["good"] is True
    assert bad["ours"]["wan"] == (
        "t2v.safetensors is an MSFP model, whose weights are packed; load it with Load MSFP Wan."
    )
    assert "ordinary Wan file" in bad["bad-ordinary"]["queued"]
    assert "load it with Load FPSAttention Wan or Load Diffusion Model" in bad["bad-ordinary"]["queued"]
    assert "activations is 'both'" in bad["mode"] and "as trained, full precision" in bad["mode"]
    assert "is not in models/diffusion_models" in bad["missing"]


# What is wrong: the words of the refusal, and whether the header alone shows it.
BAD = {
    "ordinary": ("ordinary Wan file", True),
    "text": ("is not a safetensors file", True),
    "truncated": ("is truncated", True),
    "other": ("is not a Wan diffusion model", True),
    "future": ("update the node pack", True),
    "format": ("e9m9 has 19 bits", True),
    "group": ("does not divide into groups", True),
    "scales": ("has no scales", True),
    "schedule": ("the schedule in the file's header is damaged", True),
    "infinite": ("are not finite", False),
    "small": ("holds no Wan model", False),
    "incomplete": ("lacks the tensor blocks.1.ffn.2.bias", False),
    "shape": ("time_projection.1.weight has shape (1536, 128)", False),
    "strange": ("has the tensor blocks.0.extra.weight", False),
}


def bad_files(folder: Path, parts, tiny) -> None:
    """Write a file for every entry of BAD."""
    state = tiny.tiny_wan(layers=2)
    good = parts.write_state(folder / "bad.tmp", state)
    tensors, metadata = load_file(good), read_metadata(good)
    layers = json.loads(metadata["msfp.layers"])

    def write(name: str, tensors=tensors, **changes: str) -> None:
        save_file(tensors, folder / f"bad-{name}.safetensors", metadata=metadata | changes)

    def entry(**weight) -> str:
        first = next(iter(layers))
        return json.dumps(layers | {first: layers[first] | {"weight": layers[first]["weight"] | weight}})

    save_file(state, folder / "bad-ordinary.safetensors")
    (folder / "bad-text.safetensors").write_text("this is not a model\n" * 40)
    (folder / "bad-truncated.safetensors").write_bytes(good.read_bytes()[:-5000])
    save_file({"weight": torch.zeros(3)}, folder / "bad-other.safetensors")
    write("future", **{"msfp.version": "2"})
    write("format", **{"msfp.layers": entry(format="e9m9")})
    write("group", **{"msfp.layers": entry(granularity=48)})
    first = f"msfp_model.{next(iter(layers))}.scale"
    write("scales", {name: tensor for name, tensor in tensors.items() if name != first})
    write("schedule", **{"fpsattention.version": "1", "fpsattention.schedule": "0.9 fp9"})
    write("infinite", tensors | {first: torch.full_like(tensors[first], float("inf"))})
    write("small", {name: t for name, t in tensors.items() if "head.modulation" not in name})
    write("incomplete", {name: t for name, t in tensors.items() if name != "msfp_model.blocks.1.ffn.2.bias"})
    write("shape", tensors | {"msfp_model.time_projection.1.weight": torch.zeros(1536, 128)})
    write("strange", tensors | {"msfp_model.blocks.0.extra.weight": torch.zeros(4)})
    good.unlink()


def read_metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_sentence(host, name):
    words, early = BAD[name]
    case = host["bad_files"][f"bad-{name}"]
    assert words in case["loaded"] and f"bad-{name}.safetensors" in case["loaded"]
    assert "\n" not in case["loaded"] and case["loaded"].startswith("HeaderError: ")
    assert (words in str(case["queued"])) == early


@pytest.fixture(scope="module")
def dynamic(inside, folder):
    return inside("fps_msfp_dynamic", FPS_FOLDER=str(folder))


@pytest.mark.parametrize("mode", MODES)
def test_dynamic_memory_gives_the_same_numbers(dynamic, mode):
    found = dynamic["numbers"]
    for name, attached in (("plain", 0), ("lora", 12)):
        for case in found[f"{name}, {mode}"]:
            assert case["apart"] < SAME and case["packed"] and case["attached"] == attached, name
    assert len(found[f"plain, {mode}"]) == 2 and found[f"codes, {mode}"]


def test_dynamic_memory_reserves_packed_bytes(dynamic):
    assert 0 <= dynamic["reserved"]["least"] <= dynamic["reserved"]["most"] < 3 * 1024


def test_the_same_model_without_dynamic_memory(dynamic):
    case = dynamic["without_dynamic"]
    assert case["kind"] == case["clone"] == "MsfpPatcher" and case["own"] and case["rounds"]
    assert case["apart"] < SAME


@pytest.fixture(scope="module")
def compiled(inside, folder):
    return inside("fps_msfp_compiled", FPS_FOLDER=str(folder))


@pytest.mark.parametrize("case", ["whole plain", "whole lora", "blocks lora", "blocks sparse"])
def test_compiled_models(compiled, case):
    what, name = case.split()
    found = compiled[what][name]
    # The compiled parts are run as they are written, and the packed layers not compiled at all.
    assert found["apart"] == [0.0, 0.0] and found["again"] == 0
    assert "recompile_limit" not in compiled.log


def test_a_compiled_model_with_little_memory(compiled):
    assert compiled["little_memory"]["partly"] and compiled["little_memory"]["apart"] == [0.0, 0.0]


def test_in_a_running_server(server, parts, tiny):
    """Queued as a workflow: loaded, sampled, reported; a file of the wrong kind is refused before anything runs."""
    models = server.base / "models" / "diffusion_models"
    models.mkdir(parents=True, exist_ok=True)
    parts.write_state(models / "packed.safetensors", tiny.tiny_wan(), header=Header(Schedule.parse(SCHEDULE)))
    tiny.write_tiny_wan(models / "wide.safetensors")

    def graph(name: str) -> dict:
        conditioning = {seed: {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": seed, "tokens": 512}}
                        for seed in (0, 1)}  # fmt: skip
        size = {"width": 128, "height": 96, "length": 5, "batch_size": 1}
        sampler = {
            "model": ["1", 0], "seed": 5, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
            "positive": ["3", 0], "negative": ["2", 0], "latent_image": ["4", 0], "denoise": 1.0,
        }  # fmt: skip
        loader = {"model_name": name, "activations": "full precision"}
        return {
            "1": {"class_type": "FPSAttentionLoadMsfp", "inputs": loader},
            "2": conditioning[0],
            "3": conditioning[1],
            "4": {"class_type": "EmptyHunyuanLatentVideo", "inputs": size},
            "5": {"class_type": "KSampler", "inputs": sampler},
            "6": {"class_type": "FPSAttentionReport", "inputs": {"latent": ["5", 0], "model": ["1", 0]}},
        }

    outputs = server.prompt(graph("packed.safetensors"))["outputs"]
    assert "21 linear layers at 4.75 bits per weight" in outputs["1"]["text"][0]
    report = outputs["6"]["text"][0]
    assert "activations full precision" in report.splitlines()[0] and "2 steps, attention work" in report
    with pytest.raises(PromptRejectedError) as refused:
        server.prompt(graph("wide.safetensors"))
    assert "load it with Load FPSAttention Wan" in json.dumps(refused.value.details)
