"""The evaluation: its measures against their definitions, its table and page, what it keeps, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from fpsattention.kernels.checkpoint import Header, write_checkpoint
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.config import LoraSection
from fpsattention.training.evaluation import sampling
from fpsattention.training.evaluation.cli import main
from fpsattention.training.evaluation.metrics import Lpips, psnr, ssim
from fpsattention.training.evaluation.request import (
    EvaluationError,
    ModelFile,
    make_methods,
    read_models,
    read_prompts,
    read_seeds,
    read_size,
)
from fpsattention.training.evaluation.table import Mean, count, time_of
from fpsattention.training.evaluation.vbench import DIMENSIONS
from fpsattention.training.lora import add_lora, lora_state
from fpsattention.training.model import random_model
from fpsattention.training.names import WanShape

ASSETS = Path(__file__).parents[2] / "training" / "assets"
TINY = ASSETS / "wan2.1-tiny-t2v.safetensors"
SMALL = ["--size", "32x32x5", "--steps", "2", "--attention", "fast=0.9 dense; 0 fp8 x1 all 1 1", "--slots", "4"]
SMALL += ["--device", "cpu"]


def videos(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 256, shape, generator=generator)
    b = (a + torch.randint(-40, 41, shape, generator=generator)).clamp(0, 255)
    return a.to(torch.uint8), b.to(torch.uint8)


def naive_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """SSIM of one frame as it is defined: a weighted window around every inner pixel, channel by channel."""
    place = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    weight = torch.tensor([[x * y for x in place] for y in place], dtype=torch.float64)
    weight /= weight.sum()
    values = []
    for channel in range(3):
        x, y = a[..., channel].double(), b[..., channel].double()
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                cov = (weight * (p - mp) * (q - mq)).sum()
                c1, c2 = 2.55**2, 7.65**2
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(torch.stack(values).mean())


def test_ssim_is_the_published_one():
    a, b = videos(2, 14, 13, 3)
    expected = sum(naive_ssim(x, y) for x, y in zip(a, b)) / 2
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)
    assert 0.3 < expected < 0.98 and ssim(a, a) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(a[:, :8], b[:, :8])


def test_psnr_is_the_mean_over_frames():
    a = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    b = a.clone()
    b[0] += 10
    b[1] += 20
    assert psnr(a, b) == pytest.approx((20 * math.log10(25.5) + 20 * math.log10(12.75)) / 2)
    assert psnr(a, a) == math.inf
    b[1] = 0
    assert psnr(a, b) < 80
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(a, a[:1])


def test_lpips_is_used_where_it_is_installed(monkeypatch):
    a, b = videos(3, 16, 16, 3)
    monkeypatch.setitem(sys.modules, "lpips", None)
    missing = Lpips(torch.device("cpu"))
    assert missing.reason == "not installed" and missing(a, b) is None

    class Distance(torch.nn.Module):
        def forward(self, x, y):
            assert x.shape == (1, 3, 16, 16) and -1 <= float(x.min()) < float(x.max()) <= 1
            return (x - y).abs().mean().view(1, 1, 1, 1)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=lambda **_: Distance()))
    there = Lpips(torch.device("cpu"))
    assert there.reason is None
    assert there(a, b) == pytest.approx(float((a.float() - b.float()).abs().mean() / 127.5), rel=1e-5)

    def offline(**_):
        raise OSError("no network\nat all")

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=offline))
    assert Lpips(torch.device("cpu")).reason == "no weights (no network)"


def model(name: str, header: Header | None = None) -> ModelFile:
    return ModelFile(name, Path(f"{name}.safetensors"), header)


def test_methods_are_models_times_attentions_after_the_dense_reference(tmp_path):
    header = Header(Schedule.parse("0 fp8 x2 all 4 4"), slots=16, smooth_k=False)
    text = tmp_path / "mine.txt"
    text.write_text("\ufeff0.5 dense\n0 bf16 - 4 4 4\n", encoding="utf-8")
    models = [model("base"), model("joint", header)]
    given = ["file", "short=0.5 dense; 0 fp8 x1 all 2 2", f"own={text}"]
    methods = make_methods(models, given)
    assert [m.title for m in methods] == [
        "base: dense", "base: short", "base: own", "joint: file", "joint: short", "joint: own",
    ]  # fmt: skip
    own = methods[3].attention
    assert own.schedule == header.schedule and own.slots == 16 and not own.smooth_k
    assert methods[4].attention.slots == 16 and methods[1].attention.slots == 64
    assert [m.key for m in make_methods([model("a")], [])] == ["dense", "mild"]
    assert [m.key for m in make_methods([model("a", header)], ["fast", "dense"])] == ["dense", "fast"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["quick"], "'quick' is neither a preset"),
        (["file"], "no model file carries a schedule"),
        (["x=0.5 fp8"], "--attention x: "),
        (["0 dense"], "has no name"),
        (["a=fast", "a=mild"], "two are called 'a'"),
        (["a=/no/such.txt"], "neither a preset"),
    ],
)
def test_attentions_that_cannot_be_are_one_sentence(given, said):
    with pytest.raises(EvaluationError, match=said) as error:
        make_methods([model("a")], given)
    assert "\n" not in str(error.value)


def test_prompts_come_from_texts_and_files(tmp_path):
    path = tmp_path / "prompts ü.txt"
    path.write_bytes("\ufeffa fox\r\n\r\n  a dog  \r\n".encode())
    assert read_prompts([str(path), "a cat"], encoder=True) == ("a fox", "a dog", "a cat")
    assert read_prompts([], encoder=False) == ("",)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    for given, said in (
        ([], "--prompts is missing"), ([str(empty)], "holds no prompt"), (["a", " "], "a prompt is empty"),
        ([str(tmp_path / "none.txt")], "no such file"), (["a", "a"], "there twice"), (["x.jsonl"], "not a text file"),
    ):  # fmt: skip
        with pytest.raises(EvaluationError, match=said):
            read_prompts(given, encoder=True)


def test_sizes_and_seeds():
    assert read_size("832x480x81") == (81, 480, 832) and read_size("64x32") == (81, 32, 64)
    for text, said in (
        ("830x480x81", "use 816"),
        ("64x64x80", "use 77 or 81"),
        ("big", "write WIDTHx"),
        ("0x16x1", "use 16"),
    ):
        with pytest.raises(EvaluationError, match=said):
            read_size(text)
    assert read_seeds(["3", "5-7"]) == (3, 5, 6, 7)
    for given in (["-1"], ["a"], ["5-3"], ["1", "1-2"], ["0-99999999"], ["5-"]):
        with pytest.raises(EvaluationError, match="--seeds"):
            read_seeds(given)


def test_models_are_named_and_must_be_there(tmp_path):
    found = read_models([str(TINY), f"other={TINY}"])
    assert [m.name for m in found] == ["wan2.1-tiny-t2v", "other"] and found[0].header is None
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for given, said in (
        ([str(tmp_path / "none.safetensors")], "there is no file"), ([str(TINY)] * 2, "two models are called"),
        ([str(tmp_path / "broken.safetensors")], "not a safetensors file"),
    ):  # fmt: skip
        with pytest.raises(EvaluationError, match=said):
            read_models(given)


def test_a_lora_is_one_more_model_and_its_weights_become_the_model_s(tmp_path):
    path = tmp_path / "small.safetensors"
    tiny = random_model(WanShape(128, 64, 1, text_dim=16), 0)
    torch.nn.init.normal_(tiny.proj_out.weight, std=0.1)
    add_lora(tiny, LoraSection(rank=2, targets=("self_attn.q", "ffn.2")), 0)
    for name, parameter in tiny.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.5)
    write_checkpoint(path, lora_state(tiny), Header(Schedule.parse("0 fp8 x1 all 2 2"), slots=4))
    base, adapted = read_models([str(TINY)], [f"joint={path}"])
    assert (base.lora, adapted.name, adapted.path, adapted.lora) == (None, "joint", base.path, path)
    assert [m.key for m in make_methods([base, adapted], [])][-1] == "joint.file"
    x, level, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.zeros(1, 1, 16)
    with torch.no_grad():
        before = tiny(x, level, text, return_dict=False)[0]
        sampling.merge_lora(tiny)
        after = tiny(x, level, text, return_dict=False)[0]
    assert not any("lora" in name for name, _ in tiny.named_parameters())
    assert torch.allclose(before, after, atol=1e-5)
    with pytest.raises(EvaluationError, match="--lora /no/lora: there is no file"):
        read_models([str(TINY)], ["/no/lora"])


def test_numbers_are_written_as_tables_write_them():
    assert [count(x) for x in (77.52e15, 3e12, 2.5e9, 1e6)] == ["77.52P", "3.00T", "2.50G", "1.00M"]
    assert [time_of(x) for x in (271.4, 12.345)] == ["271 s", "12.3 s"]
    assert Mean.of([None, 2.0, 4.0]) == Mean(3.0, 1.0) and Mean.of([None]) is None and Mean.of([1.0]).error is None


class FakeVBench:
    calls = 0

    def __init__(self, device, info, out):
        assert info.endswith("VBench_full_info.json")
        self.out = Path(out)

    def evaluate(self, videos_path, name, dimension_list, mode):
        assert mode == "custom_input" and {p.suffix for p in Path(videos_path).iterdir()} == {".mp4"}
        FakeVBench.calls += 1
        self.out.mkdir(exist_ok=True)
        results = {"imaging_quality": [67.0, []], "subject_consistency": [0.95, []]}
        assert set(dimension_list) == set(results) == set(DIMENSIONS)
        (self.out / f"{name}_eval_results.json").write_text(json.dumps(results))


def test_a_table_and_a_page_of_the_tiny_model_and_nothing_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    fake = types.SimpleNamespace(VBench=FakeVBench, __file__=str(tmp_path / "vbench" / "__init__.py"))
    monkeypatch.setitem(sys.modules, "vbench", fake)
    out = tmp_path / "out folder"
    args = [*SMALL, "--out", str(out), "--seeds", "0-1", "--prompts", "a <fox>"]
    assert main(args) == 0
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    with (out / "table.csv").open(encoding="utf-8") as file:
        dense, fast = csv.DictReader(file)
    assert (dense["method"], fast["method"]) == ("dense", "fast")
    assert dense["PSNR"] == "" and 5 < float(fast["PSNR"]) < 80 and 0 < float(fast["SSIM"]) < 1
    assert float(dense["density"]) == 1 > float(fast["density"]) > 0
    assert float(dense["FLOPs"]) > float(fast["FLOPs"]) > 0 and float(dense["speedup"]) == 1
    assert fast["VBench ImgQual"] == "0.67" and fast["LPIPS"] == "" and fast["videos"] == "2"
    page = (out / "index.html").read_text(encoding="utf-8")
    for words in (
        "a &lt;fox&gt;", 'src="videos/fast/000_seed1.mp4"', "SubjCons", "0.6700", "LPIPS: not installed", "no text",
    ):  # fmt: skip
        assert words in page
    assert FakeVBench.calls == 2

    def sampled(*_, **__):
        raise AssertionError("sampled again")

    kept = (out / "videos" / "fast" / "000_seed1.mp4").stat().st_mtime_ns
    (out / "measures" / "fast" / "000_seed0.json").write_text("{torn")
    monkeypatch.setattr(sampling, "sample", sampled)
    assert main(args) == 0
    assert "4 of 4 videos are there" in capsys.readouterr().err and FakeVBench.calls == 2
    assert (out / "videos" / "fast" / "000_seed1.mp4").stat().st_mtime_ns == kept
    with pytest.raises(AssertionError, match="sampled again"):
        main([*args, "--shift", "4"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--size", "100x64x5"], "not a multiple of 16"),
        (["--steps", "0"], "--steps is 0"),
        (["--cfg", "-1"], "--cfg is -1"),
        (["--model", str(TINY)], "--vae is missing"),
        (["--model", str(TINY), "--vae", "/no/vae.safetensors"], "no such VAE"),
        (["--model", "/no/model.safetensors"], "there is no file"),
        (["--vae", str(TINY)], "not a Wan VAE"),
        (["--text-encoder", "/no/umt5", "--prompts", "a"], "no such folder"),
        (["--text-encoder", "/no/umt5"], "--prompts is missing"),
        (["--backend", "magic"], "'magic' is no backend"),
        (["--device", "cuda:99"], "cuda"),
        (["--out", str(TINY)], "is a file; name a folder"),
        (["--out", str(TINY / "below")], "is a file; name a folder"),
    ],
)
def test_bad_input_is_one_sentence(args, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fpsattention.training.evaluation.sampling._load", None)
    assert main([*SMALL, "--out", str(tmp_path / "out"), *args]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("error: ")
