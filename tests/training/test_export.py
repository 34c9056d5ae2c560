"""Exported files: original names, bit-equal weights, our header, and the sampler that reads them back."""

from __future__ import annotations

import pytest
import torch
from fpsattention.kernels.checkpoint import CheckpointError, read_header
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.outlook import sampler_sigmas
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.export import export
from fpsattention.training.model import load_model, random_model
from fpsattention.training.names import WanShape
from fpsattention.training.sample import sample, to_frames, write_video
from fpsattention.training.sparse import SparseAttention
from safetensors import safe_open

SHAPE = WanShape(dim=128, ffn_dim=64, layers=2, text_dim=16)
ATTENTION = SparseAttention(Schedule.parse("0.8 fp8 x1 all 2 2\n0 bf16 - all 4 2"), slots=4, smooth_k=False)


@pytest.fixture(scope="module")
def model():
    model = random_model(SHAPE, 0)
    # Seeded: with some heads a code of FP8 flips between a batch of two and of one, beyond the bound.
    torch.nn.init.normal_(model.proj_out.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    return model


def test_float32_export_is_bit_equal_and_carries_its_schedule(model, tmp_path):
    path = export(
        model,
        tmp_path / "a.safetensors",
        attention=ATTENTION,
        grid=TokenGrid(3, 4, 4),
        base_sha256="ab" * 32,
        step=7,
        dtype="fp32",
    )
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(SHAPE.tensors())
    back = load_model(path).state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    header = read_header(path)
    assert header.schedule == ATTENTION.schedule and header.slots == 4 and header.smooth_k is False
    assert header.tile is not None and header.tile[0] * header.tile[1] * header.tile[2] <= 4
    assert header.step == 7 and header.base_sha256 == "ab" * 32 and header.trainer.startswith("fpsattention")


def test_dense_export_is_an_ordinary_file_in_bfloat16(model, tmp_path):
    path = export(model, tmp_path / "a.safetensors")
    assert read_header(path) is None
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_export_that_fails_leaves_the_older_file(model, tmp_path):
    path = export(model, tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(CheckpointError):
        export(model, path / "below" / "b.safetensors")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_sampling_follows_the_schedule_and_its_seeds(model):
    text = torch.zeros(1, 16)
    both, report = sample(model, shape=(16, 3, 8, 8), seeds=[1, 2], text=text, steps=4, attention=ATTENTION)
    one, _ = sample(model, shape=(16, 3, 8, 8), seeds=[2], text=text, steps=4, attention=ATTENTION)
    assert both.shape == (2, 16, 3, 8, 8) and torch.allclose(both[1:], one, atol=1e-5)
    assert [step["sigma"] for step in report] == pytest.approx([1.0, 0.9375, 5 / 6, 0.625])
    assert [step["phase"] for step in report] == [0, 0, 0, 1]
    assert all(0 < step["density"] < 1 for step in report)
    guided, _ = sample(model, shape=(16, 3, 8, 8), seeds=[2], text=text, steps=4, attention=ATTENTION, cfg=3.0)
    assert torch.allclose(guided, one, atol=1e-4)  # prompt and negative are the same: guidance changes nothing


def test_sampler_sigmas_go_from_one_to_zero():
    assert sampler_sigmas(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = sampler_sigmas(10, 5.0)
    assert shifted[0] == 1 and shifted[-1] == 0 and shifted[5] == pytest.approx(0.8333, abs=1e-4)


def test_video_file(tmp_path):
    import av

    frames = to_frames(torch.rand(3, 9, 32, 48) * 2 - 1)
    assert frames.shape == (9, 32, 48, 3) and frames.dtype == torch.uint8
    path = write_video(tmp_path / "a.mp4", frames, 16)
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
        assert len(decoded) == 9 and (decoded[0].width, decoded[0].height) == (48, 32)
        assert container.streams.video[0].average_rate == 16
    with pytest.raises(ValueError, match="even sizes, not 47 x 32"):
        write_video(tmp_path / "b.mp4", frames[:, :, :47], 16)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
