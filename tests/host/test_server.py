"""The nodes in a running server: what it knows of them, files good and bad, and the report."""

from __future__ import annotations

import urllib.request

import pytest
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.comfy_host import ComfyHostError, PromptRejectedError
from safetensors import safe_open
from safetensors.torch import save_file

NODES = (
    "FPSAttentionLoadWan",
    "FPSAttentionLoadMsfp",
    "FPSAttentionApply",
    "FPSAttentionSchedule",
    "FPSAttentionReport",
    "FPSAttentionTimestepLora",
)
SCHEDULE = "0.95 fp8 x2 all 1 1\n0.83 fp8 x1 all 60% 60%\n0.00 fp8 token all all all\n"


@pytest.fixture(scope="module")
def models(server, tiny):
    """Files in the server's model folder: plain, with our header, and broken in every way."""
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    header = Header(Schedule.parse(SCHEDULE), step=120).to_metadata()
    tensors = tiny.tiny_wan()
    save_file(tensors, folder / "plain.safetensors")
    save_file(tensors, folder / "trained.safetensors", metadata=header)
    save_file(
        {f"model.diffusion_model.{k}": v for k, v in tensors.items()}, folder / "prefixed.safetensors", metadata=header
    )
    small = {
        "blocks.0.self_attn.q.weight": tensors["blocks.0.self_attn.q.weight"],
        "head.modulation": tensors["head.modulation"],
    }
    save_file(small, folder / "damaged.safetensors", metadata=header | {"fpsattention.schedule": "0.9 fp9"})
    save_file(small, folder / "newer.safetensors", metadata=header | {"fpsattention.version": "99"})
    save_file({"weight": tensors["head.modulation"]}, folder / "other.safetensors")
    (folder / "text.safetensors").write_text("this is not a model\n" * 40)
    whole = (folder / "trained.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder


def graph(loader: dict, extra: dict | None = None, model: list | None = None, steps: int = 6) -> dict:
    """An API graph: loader, optional nodes in between, sampler, latent to a file."""
    return {
        "1": loader,
        "2": {"class_type": "ModelSamplingSD3", "inputs": {"model": model or ["1", 0], "shift": 8.0}},
        "3": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 1, "tokens": 512}},
        "4": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 0, "tokens": 512}},
        "5": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 256, "height": 192, "length": 9, "batch_size": 1},
        },
        "6": sampler(["2", 0], ["5", 0], steps=steps),
        "7": {"class_type": "SaveLatent", "inputs": {"samples": ["6", 0], "filename_prefix": "test"}},
    } | (extra or {})


def sampler(model: list, latent: list, seed: int = 5, steps: int = 6) -> dict:
    return {
        "class_type": "KSampler",
        "inputs": {
            "model": model, "seed": seed, "steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
            "positive": ["3", 0], "negative": ["4", 0], "latent_image": latent, "denoise": 1.0,
        },
    }  # fmt: skip


def ours(name: str, dtype: str = "default") -> dict:
    return {"class_type": "FPSAttentionLoadWan", "inputs": {"model_name": name, "weight_dtype": dtype}}


def stock(name: str, dtype: str = "default") -> dict:
    return {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": dtype}}


def latent_of(server, api: dict):
    entry = server.prompt(api)
    (path,) = [p for p in server.files(entry) if p.suffix == ".latent"]
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("latent_tensor")


def apply(model: list, **inputs: object) -> dict:
    return {"class_type": "FPSAttentionApply", "inputs": {"model": model, "backend": "auto"} | inputs}


def report(latent: list, model: list) -> dict:
    return {"class_type": "FPSAttentionReport", "inputs": {"latent": latent, "model": model}}


def test_every_node_is_registered_and_explained(server):
    for node in NODES:
        info = server.get(f"/object_info/{node}")[node]
        assert info["category"].startswith("model/patch/FPSAttention")
        assert info["description"] and info["search_aliases"]
        for inputs in (info["input"].get("required", {}), info["input"].get("optional", {})):
            for name, (_, options) in inputs.items():
                assert len(options.get("tooltip", "")) > 20, f"{node}.{name} has no tooltip"
        assert all(info["output_tooltips"]), node
    assert "(IMPORT FAILED)" not in server.log()


@pytest.mark.parametrize("node", NODES)
def test_help_pages_are_served(server, node):
    (root,) = [e for e in {p.name for p in server.packs} if e != "testpack"]
    with urllib.request.urlopen(f"{server.url}/extensions/{root}/docs/{node}.md", timeout=10) as page:
        text = page.read().decode()
    assert text.startswith("# ") and len(text) > 300


def test_the_pack_brings_its_two_scripts_and_no_other(server):
    (root,) = [e for e in {p.name for p in server.packs} if e != "testpack"]
    ours = [e for e in server.get("/extensions") if not e.startswith("/extensions/core/")]
    allowed = tuple(f"/extensions/{root}/{place}" for place in ("fps_schedule.js", "fps_output.js", "core/", "editor/"))
    assert set(allowed[:2]) <= set(ours) and all(e.startswith(allowed) for e in ours)


def test_ordinary_file_loads_dense(server, models):
    plain = latent_of(server, graph(stock("plain.safetensors")))
    api = graph(ours("plain.safetensors"), {"8": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}}})
    entry = server.prompt(api)
    assert "carries no FPSAttention schedule" in entry["outputs"]["8"]["text"][0]
    (path,) = [p for p in server.files(entry) if p.suffix == ".latent"]
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("latent_tensor").equal(plain)


def test_trained_file_loads_in_both_loaders(server, models):
    """Stock: an ordinary Wan file. Ours: patched. Stock and our node: the file's schedule is found all the same."""
    plain = latent_of(server, graph(stock("plain.safetensors")))
    assert latent_of(server, graph(stock("trained.safetensors"))).equal(plain)
    patched = latent_of(server, graph(ours("trained.safetensors")))
    assert not patched.equal(plain)
    assert latent_of(server, graph(ours("prefixed.safetensors"))).equal(patched)
    by_node = graph(stock("trained.safetensors"), {"9": apply(["1", 0])}, model=["9", 0])
    assert latent_of(server, by_node).equal(patched)


def test_schedule_output_feeds_the_node(server, models):
    """The loader's schedule, into the node, on the same weights without a header."""
    patched = latent_of(server, graph(ours("trained.safetensors")))
    extra = {"8": ours("trained.safetensors"), "9": apply(["1", 0], schedule=["8", 1])}
    assert latent_of(server, graph(stock("plain.safetensors"), extra, model=["9", 0])).equal(patched)
    as_text = {"8": ours("trained.safetensors"), "9": apply(["1", 0], schedule=["8", 2])}
    assert latent_of(server, graph(stock("plain.safetensors"), as_text, model=["9", 0])).equal(patched)


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2", "fp8_e4m3fn_fast"])
def test_fp8_weights(server, models, dtype):
    """The same weights in FP8, from both loaders: the same numbers where nothing is patched, others where it is."""
    plain = latent_of(server, graph(stock("plain.safetensors", dtype), steps=2))
    assert latent_of(server, graph(ours("plain.safetensors", dtype), steps=2)).equal(plain)
    patched = latent_of(server, graph(ours("trained.safetensors", dtype), steps=2))
    assert patched.isfinite().all() and not patched.equal(plain)


@pytest.mark.parametrize(
    "name, words",
    [
        ("text.safetensors", "not a safetensors file"),
        ("truncated.safetensors", "truncated"),
        ("other.safetensors", "not a Wan diffusion model"),
        ("damaged.safetensors", "damaged"),
        ("newer.safetensors", "v99"),
        ("missing.safetensors", "not in models/diffusion_models"),
    ],
)
def test_bad_files_are_refused_before_loading(server, models, name, words):
    before = server.log()
    with pytest.raises(PromptRejectedError) as refused:
        server.prompt(graph(ours(name)))
    (sentence,) = sentences(refused.value)
    assert words in sentence and name in sentence
    assert sentence.count("\n") == 0 and sentence.endswith(".")
    assert "Requested to load" not in server.log().removeprefix(before)


def sentences(refused: PromptRejectedError) -> list[str]:
    """The distinct sentences of a refusal, without the input's name in front."""
    errors = [e for node in refused.details["node_errors"].values() for e in node["errors"]]
    return sorted({e["details"].split(" - ", 1)[1] for e in errors})


@pytest.mark.parametrize(
    "text, words",
    [
        ("0.5 fp8 x1 all 1 1\n0.9 dense", "line 2"),
        ("0.00 fp8 x1 all 0 1", "not positive"),
        ("0.00 fp7", "'fp7' is no attention"),
        ("0.30 dense", "must end at 0.00"),
        ("", "empty"),
        ('{"phases": 3}', "phases"),
    ],
)
def test_bad_schedules_are_refused_before_loading(server, models, text, words):
    extra = {
        "8": {"class_type": "FPSAttentionSchedule", "inputs": {"preset": "custom", "schedule": text}},
        "9": apply(["1", 0], schedule=["8", 0]),
    }
    with pytest.raises(PromptRejectedError) as refused:
        server.prompt(graph(stock("plain.safetensors"), extra, model=["9", 0]))
    (sentence,) = sentences(refused.value)
    assert words in sentence and sentence.endswith(".")


def test_a_bad_schedule_beside_a_preset_is_not_used(server, models):
    extra = {
        "8": {"class_type": "FPSAttentionSchedule", "inputs": {"preset": "fast", "schedule": "nonsense"}},
        "10": {"class_type": "PreviewAny", "inputs": {"source": ["8", 1]}},
    }
    entry = server.prompt(extra)
    assert "# fps-schedule v1" in entry["outputs"]["10"]["text"][0]
    assert entry["outputs"]["8"]["text"] == entry["outputs"]["10"]["text"]


def test_a_schedule_that_arrives_by_a_link_is_checked_too(server, models):
    extra = {
        "8": {"class_type": "PrimitiveString", "inputs": {"value": "0.00 fp7"}},
        "9": apply(["1", 0], schedule=["8", 0]),
    }
    with pytest.raises(ComfyHostError, match="'fp7' is no attention"):
        server.prompt(graph(stock("plain.safetensors"), extra, model=["9", 0]))


def test_a_backend_that_cannot_run_fails_before_sampling(server, models):
    extra = {"9": apply(["1", 0], backend="triton-fp8", schedule="0.00 fp8 x1 all 1 1")}
    with pytest.raises(ComfyHostError, match=r"FPSAttentionApply: .*triton-fp8.*triton-bf16.*reference"):
        server.prompt(graph(stock("plain.safetensors"), extra, model=["9", 0]))


def test_other_models_are_refused(server, models):
    """Only a Wan model can be patched; here the file is refused by the stock loader's own detection."""
    extra = {"9": apply(["1", 0])}
    with pytest.raises(ComfyHostError):
        server.prompt(graph(stock("other.safetensors"), extra, model=["9", 0]))


def test_the_report_shows_three_phases(server, models):
    extra = {"8": report(["6", 0], ["1", 0])}
    entry = server.prompt(graph(ours("trained.safetensors"), extra))
    (text,) = entry["outputs"]["8"]["text"]
    rows = [
        line.split()
        for line in text.splitlines()
        if line.strip()[:1].isdigit() and "fp8" in line and "reference" in line
    ]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row[2] for row in rows] == ["1", "1", "2", "2", "3", "3"]
    assert all("3/0" in row for row in rows)
    densities = [next(cell for cell in row if cell.endswith("%") and "." in cell) for row in rows]
    assert len(set(densities)) == 3 and densities[0] == densities[1]
    assert "schedule from the model file" in text and "KSampler" in text and "3x12x16 = 576 tokens" in text
    (picture,) = [p for p in server.files(entry) if p.suffix == ".png"]
    assert picture.stat().st_size > 2000


def test_reports_of_two_samplers_do_not_mix(server, models):
    extra = {
        "10": sampler(["2", 0], ["5", 0], seed=9, steps=3),
        "8": report(["6", 0], ["1", 0]),
        "11": report(["10", 0], ["2", 0]),
    }
    outputs = server.prompt(graph(ours("trained.safetensors"), extra, steps=2))["outputs"]
    first, second = outputs["8"]["text"][0], outputs["11"]["text"][0]
    assert "node 6" in first and "node 10" not in first and "2 steps" in first
    assert "node 10" in second and "node 6" not in second and "3 steps" in second


def test_the_report_follows_two_stages(server, models):
    common = {
        "add_noise": "enable", "noise_seed": 5, "steps": 6, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
        "positive": ["3", 0], "negative": ["4", 0], "model": ["2", 0],
    }  # fmt: skip
    first = common | {
        "latent_image": ["5", 0],
        "start_at_step": 0,
        "end_at_step": 3,
        "return_with_leftover_noise": "enable",
    }
    second = common | {
        "latent_image": ["10", 0], "start_at_step": 3, "end_at_step": 6, "return_with_leftover_noise": "disable",
        "add_noise": "disable",
    }  # fmt: skip
    extra = {
        "10": {"class_type": "KSamplerAdvanced", "inputs": first},
        "11": {"class_type": "KSamplerAdvanced", "inputs": second},
        "8": report(["11", 0], ["1", 0]),
    }
    text = server.prompt(graph(ours("trained.safetensors"), extra, steps=1))["outputs"]["8"]["text"][0]
    assert "Run 1 (KSamplerAdvanced, node 10): 3 steps" in text
    assert "Run 2 (KSamplerAdvanced, node 11): 3 steps" in text
    assert "node 6" not in text


def test_the_report_names_an_override(server, models):
    extra = {"9": apply(["1", 0], schedule="0.00 bf16 - all 1 1"), "8": report(["6", 0], ["9", 0])}
    text = server.prompt(graph(ours("trained.safetensors"), extra, model=["9", 0], steps=1))["outputs"]["8"]["text"][0]
    assert "in place of the model file's" in text
    assert "replaces the one that this model was trained with" in text


def test_stock_weights_get_the_mild_preset(server, models):
    extra = {"9": apply(["1", 0]), "8": report(["6", 0], ["9", 0])}
    text = server.prompt(graph(stock("plain.safetensors"), extra, model=["9", 0]))["outputs"]["8"]["text"][0]
    assert "the mild preset (the model file has none)" in text
    assert "not trained for this sparsity" not in text


def test_a_stronger_schedule_on_stock_weights_is_said(server, models):
    extra = {
        "10": {"class_type": "FPSAttentionSchedule", "inputs": {"preset": "fast", "schedule": ""}},
        "9": apply(["1", 0], schedule=["10", 0]),
        "8": report(["6", 0], ["9", 0]),
    }
    text = server.prompt(graph(stock("plain.safetensors"), extra, model=["9", 0], steps=1))["outputs"]["8"]["text"][0]
    assert text.count("was not trained for this sparsity") == 1


def test_the_report_of_an_unpatched_model(server, models):
    extra = {"8": report(["6", 0], ["1", 0])}
    text = server.prompt(graph(stock("plain.safetensors"), extra, steps=1))["outputs"]["8"]["text"][0]
    assert "carries no FPSAttention patch" in text
