"""The preview: right numbers at any size, a model's own facts, measured seconds, and a picture that holds them."""

from __future__ import annotations

import math

import pytest
import torch
from fpsattention.kernels.calibration import Calibration
from fpsattention.kernels.calibration_file import ENVIRONMENT
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.grid import GridError
from fpsattention.kernels.measure import measured_of
from fpsattention.kernels.patterns import Window
from fpsattention.kernels.presets import PRESETS, preset
from fpsattention.kernels.schedule import Schedule, ScheduleError
from fpsattention.nodes import preview_outlook, routes
from fpsattention.nodes.drawing import WIDTH
from fpsattention.nodes.host import current_card
from fpsattention.nodes.patch import PatchError, apply_patch
from fpsattention.nodes.preview_image import preview_image
from fpsattention.nodes.preview_outlook import make_preview
from fpsattention.nodes.preview_text import MAX_LINES, headline, preview_text, seconds_lines
from fpsattention.nodes.settings import choose_settings

WIDE = Schedule.parse("0.90 dense\n0.50 bf16 - 9 50% all\n0.00 fp8 x1 all all all")


@pytest.fixture(autouse=True)
def calibration(monkeypatch, tmp_path):
    path = tmp_path / "calibration.json"
    monkeypatch.setenv(ENVIRONMENT, str(path))
    return path


def measured(path, **changes) -> dict:
    entry = {
        "card": current_card(), "backend": "reference", "attention": "fp8", "granularity": "x1", "slots": 64,
        "tile": [3, 5, 4], "head_dim": 128, "tokens": 32760, "heads": 12, "pattern": "window",
        "points": [[0.2, 10.0], [1.0, 50.0]], "dense_ms": 100.0, "dense_backend": "torch",
        "measured": "2026-11-21T20:00:00+00:00",
    } | changes  # fmt: skip
    stored = Calibration.load(path)
    stored.put(entry)
    stored.save(path)
    return entry


def test_steps_and_work():
    preview, card = make_preview(WIDE, 832, 480, 81, 20, 8.0)
    assert card == current_card() and preview.grid.shape == (21, 30, 52) and len(preview.steps) == 20
    assert [step.phase for step in preview.steps] == sorted(step.phase for step in preview.steps)
    assert preview.cumulative[-1] == pytest.approx(preview.work) and preview.cumulative == sorted(preview.cumulative)
    assert headline(preview).startswith(f"20 steps: {preview.dense_steps} dense, {20 - preview.dense_steps} sparse")
    assert [phase.window for phase in preview.phases] == ["dense", "9 50% all", "all all all"]
    assert preview.phases[0].axes is None and preview.phases[2].axes is None and preview.phases[2].density == 1.0


def test_a_middle_tile_sees_what_the_mask_says():
    phase = make_preview(WIDE, 832, 480, 81, 20, 8.0)[0].phases[1]
    tiling = phase.tiling
    query = [n // 2 for n in tiling.pieces]
    row = Window(9, "50%", None).mask(tiling)[(query[0] * tiling.pieces[1] + query[1]) * tiling.pieces[2] + query[2]]
    seen = row.reshape(tiling.pieces)
    for axis, (at, first, count) in enumerate(phase.axes):
        along = seen.any(axis=tuple({0, 1, 2} - {axis}))
        assert at == query[axis] and along.nonzero()[0].tolist() == list(range(first, first + count))


def test_ends_that_nearly_touch_are_told_apart():
    schedule = Schedule.parse("0.5000005 bf16 - 1 1 1\n0.5 bf16 - all all 5\n0 dense")
    first, second, _ = make_preview(schedule, 320, 320, 9, 4, 1.0)[0].phases
    assert first.density < second.density and first.window != second.window


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("width, height, frames", [(832, 480, 81), (1, 1, 1), (17, 481, 2), (16384, 16, 5)])
def test_any_size_has_an_answer(name, steps, width, height, frames):
    preview, card = make_preview(preset(name), width, height, frames, steps, 5.0)
    text = preview_text(preview, card)
    image = preview_image(preview, card)
    assert 0 < preview.work <= 1 and f"{width} x {height}" in text and "nan" not in text
    assert image.shape[0] == 1 and image.shape[2:] == (WIDTH, 3) and image.isfinite().all()
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.01


def test_an_enormous_video_is_quick_and_right():
    preview, card = make_preview(preset("fast"), 4096, 4096, 81, 1000, 8.0)
    assert preview.grid.tokens == 1_376_256 and 0.05 < preview.work < 0.2
    text = preview_text(preview, card)
    assert text.count("\n") < MAX_LINES and "0-470" in text
    assert preview_image(preview, card).shape[1] < 2000


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"width": -1}, "width is -1, it must be from 1 to 16384"),
        ({"width": math.nan}, "width is nan, it must be a whole number"),
        ({"height": 480.5}, "height is 480.5, it must be a whole number"),
        ({"height": None}, "height is missing"),
        ({"steps": None}, "steps is missing"),
        ({"shift": None}, "shift is missing"),
        ({"frames": 0}, "frames is 0"),
        ({"frames": "81"}, "frames is '81'"),
        ({"frames": True}, "frames is True"),
        ({"width": 16384, "height": 16384}, "at most 2000000 are planned"),
        ({"steps": 0}, "steps is 0, it must be from 1 to 1000"),
        ({"steps": math.inf}, "steps is inf"),
        ({"shift": math.nan}, "shift is nan"),
        ({"shift": 0}, "shift is 0"),
        ({"shift": -3.0}, "shift is -3.0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_a_sentence(changes, words):
    values = {"width": 832, "height": 480, "frames": 81, "steps": 20, "shift": 8.0} | changes
    with pytest.raises(GridError, match=r"\.$") as refused:
        make_preview(WIDE, *values.values())
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_no_schedule_is_a_sentence():
    with pytest.raises(ScheduleError, match="the schedule is empty"):
        make_preview(None, 832, 480, 81, 20, 8.0)


def test_what_a_model_says_wins(host):
    model = apply_patch(
        host.Patcher(host.WanModel(heads=3, layers=5)), choose_settings(Header(WIDE, tile=(3, 5, 4)), None, "auto")
    )
    model.model.latent_format = type("Wan22", (), {"spacial_downscale_ratio": 16})()
    model.model.model_sampling = type("Sampling", (), {"shift": 3.0})()
    preview, card = make_preview(WIDE, 1280, 704, 121, 20, 8.0, model)
    assert preview.grid.shape == (31, 22, 40) and preview.shift == 3.0 and preview.tile == (3, 5, 4)
    text = preview_text(preview, card)
    assert (
        "taken from the model: 5 layers and 3 heads, tokens of 32 x 32 pixels, the trained tile 3x5x4, shift 3" in text
    )


def test_a_model_that_says_little(host):
    preview, _ = make_preview(WIDE, 832, 480, 81, 20, 8.0, host.Patcher(host.WanModel()))
    assert preview.shift == 8.0 and preview.tile is None and preview.grid.tokens == 32760
    with pytest.raises(PatchError, match="this one is Inner"):
        make_preview(WIDE, 832, 480, 81, 20, 8.0, host.Patcher(torch.nn.Linear(1, 1)))


def test_seconds_only_where_this_card_was_measured(calibration):
    few = preset("few-step")
    measured(calibration, card="another card")
    preview, card = make_preview(few, 832, 480, 81, 4, 5.0)
    assert preview.seconds == [] and seconds_lines(preview, card) == [
        f"No expected seconds: fp8 on reference was not measured on {card} yet. Run FPSAttention Benchmark once at "
        "this size with backend reference, and they appear here and in the editor."
    ]
    measured(calibration)
    preview, card = make_preview(few, 832, 480, 81, 4, 5.0)
    small, large = preview.seconds
    density = preview.steps[-1].density
    assert small.ours == pytest.approx(30 * (100 + 3 * 50 * density) / 1e3) and small.dense == pytest.approx(12.0)
    assert large.ours == pytest.approx(small.ours * 40 / 30 * 40 / 12)
    text = preview_text(preview, card)
    assert "Wan 1.3B (30 layers, 12 heads): 4.8 s instead of 12 s dense, 2.5 times as fast, for one model" in text
    assert "Wan 14B (40 layers, 40 heads): 22 s instead of 53 s dense, 2.5 times as fast" in text
    assert "measured 2026-11-21 on reference with 32,760 tokens and 12 heads)." in text and "heads, scaled)" in text
    assert preview_image(preview, card).isfinite().all()


def test_a_size_that_is_unlike_the_measured_one_has_no_seconds(calibration, monkeypatch):
    """From 768 tokens on a CPU nothing follows for 32,760; the sentence names both, and what to do."""
    few = preset("few-step")
    measured(calibration, tokens=768)
    preview, card = make_preview(few, 832, 480, 81, 4, 5.0)
    assert preview.seconds == [] and seconds_lines(preview, card) == [
        f"No expected seconds: this size was not measured on {card}, only fp8 on reference with 768 tokens, which says "
        "too little about 32,760. Run FPSAttention Benchmark once at this size with backend reference, and they appear "
        "here and in the editor."
    ]
    assert preview_image(preview, card).isfinite().all()
    line = seconds_lines(*make_preview(Schedule.parse("0 dense"), 832, 480, 81, 4, 5.0))[0]
    assert "only dense attention with 768 tokens" in line and "once at this size, and" in line
    # With bf16 steps that were never measured, those are named too, as before.
    runs_here(monkeypatch, {"fp8": "reference", "bf16": "triton-bf16"})
    line = seconds_lines(*make_preview(WIDE, 832, 480, 81, 20, 5.0))[0]
    assert "bf16 on triton-bf16 and fp8 on reference were not measured" in line and "at this size with backend" in line
    runs_here(monkeypatch, REFERENCE)
    assert len(make_preview(few, 256, 192, 33, 4, 5.0)[0].seconds) == 2, "1,728 tokens are near 768"


def test_slower_than_dense_is_said_in_words(calibration):
    measured(calibration, points=[[0.2, 400.0], [1.0, 1500.0]])
    preview, card = make_preview(preset("fast"), 832, 480, 81, 20, 5.0)
    line, *_ = seconds_lines(preview, card)
    assert "2 min 57 s instead of 1 min dense, 2.9 times slower, for one model call per step" in line


def test_a_models_steps_have_their_times(calibration, host):
    measured(calibration, heads=1)
    preview, card = make_preview(WIDE, 832, 480, 81, 4, 5.0, host.Patcher(host.WanModel(heads=1, layers=1)))
    assert preview.seconds == []
    measured(calibration, heads=1, attention="bf16", granularity=None)
    preview, card = make_preview(WIDE, 832, 480, 81, 4, 5.0, host.Patcher(host.WanModel(heads=1, layers=1)))
    lines = preview_text(preview, card).splitlines()
    head = next(i for i, line in enumerate(lines) if line.endswith("    expected"))
    assert lines[head + 1].endswith("      100 ms") and len(lines[head]) == len(lines[head + 1])


def test_one_step_without_a_measurement_means_no_seconds(calibration):
    measured(calibration)
    assert make_preview(Schedule.parse("0.9 bf16 - all 5 5\n0 fp8 x1 all 5 5"), 832, 480, 81, 4, 5.0)[0].seconds == []
    measured(calibration, attention="bf16", granularity=None)
    assert len(make_preview(Schedule.parse("0 bf16 - all 5 5"), 832, 480, 81, 4, 5.0)[0].seconds) == 2


CARD = {"fp8": "triton-fp8", "bf16": "triton-bf16"}
REFERENCE = {"fp8": "reference", "bf16": "reference"}
BF16, BOTH = "0 bf16 - all 5 5", "0.9 dense\n0.5 bf16 - all 5 5\n0 fp8 x2 all 5 5"


@pytest.mark.parametrize(
    "backends, there, schedule, words",
    [
        (CARD, "triton-fp8", BF16, "bf16 on triton-bf16 was not measured on CPU yet. Run FPSAttention Benchmark once "
         "at this size with backend triton-bf16, and they appear here and in the editor."),
        (CARD, "triton-fp8", BOTH, "bf16 on triton-bf16 was not measured on CPU yet. Run FPSAttention Benchmark once "
         "at this size with backend triton-bf16, and"),
        (CARD, None, BOTH, "bf16 on triton-bf16 and fp8 on triton-fp8 were not measured on CPU yet. Run FPSAttention "
         "Benchmark once at this size with backend triton-bf16 and once with triton-fp8, and"),
        (CARD | {"fp8": "triton-bf16"}, None, BOTH, "bf16 on triton-bf16 was not measured"),
        (REFERENCE, "reference", BF16, "FPSAttention Benchmark does not measure bf16 on reference."),
        (REFERENCE, None, BOTH, "FPSAttention Benchmark does not measure bf16 on reference."),
        (None, None, BOTH, "bf16 and fp8 were not measured on CPU yet. Run FPSAttention Benchmark once at "
         "this size, and"),
        (CARD, None, "0 dense", "dense attention was not measured on CPU yet. Run FPSAttention Benchmark once at "
         "this size, and"),
        (CARD | {"bf16": None}, "triton-fp8", BOTH, None),
    ],
)  # fmt: skip
def test_what_is_not_measured_is_named_and_how_to(calibration, monkeypatch, backends, there, schedule, words):
    if there is not None:
        measured(calibration, backend=there)
    runs_here(monkeypatch, backends)
    preview, card = make_preview(Schedule.parse(schedule), 832, 480, 81, 20, 5.0)
    line = seconds_lines(preview, card)[0].replace(card, "CPU")
    assert line.startswith(f"No expected seconds: {words}" if words else "Expected self-attention"), line


def test_following_the_advice_gives_seconds(calibration, monkeypatch):
    """What a benchmark of the backend that is named would keep is what was missing."""
    runs_here(monkeypatch, CARD)
    for left in (2, 1, 0):
        preview, _ = make_preview(Schedule.parse(BOTH), 832, 480, 81, 20, 5.0)
        assert len(preview.unmeasured) == left + (left == 2) and bool(preview.seconds) == (left == 0)
        if left:
            attention, backend = list(preview.unmeasured)[-1]
            assert attention == measured_of(backend)
            measured(calibration, backend=backend, attention=attention)


def test_dense_times_are_those_of_the_present_host(calibration, monkeypatch):
    """Started again with another attention, the host's dense steps take other times."""
    few = preset("few-step")
    measured(calibration, dense_ms=100.0)
    (line, *_) = seconds_lines(*make_preview(few, 832, 480, 81, 4, 5.0))
    assert "instead of 12 s dense" in line and "dense times" not in line
    monkeypatch.setattr(preview_outlook, "host_attention", lambda: ("attention_sage", None))
    (line, *_) = seconds_lines(*make_preview(few, 832, 480, 81, 4, 5.0))
    assert "12 s dense" in line and "; dense times are of torch, the host now runs attention_sage, which was" in line
    measured(calibration, tile=[3, 10, 4], dense_ms=40.0, dense_backend="attention_sage", measured="2026-11-01")
    preview, card = make_preview(few, 832, 480, 81, 4, 5.0)
    assert preview.seconds[0].dense == pytest.approx(4.8) and preview.seconds[0].steps[0] == pytest.approx(1.2)
    assert "dense times" not in preview_text(preview, card)
    # The editor works with the same entries.
    monkeypatch.setattr(routes, "host_attention", lambda: ("attention_sage", None))
    assert [entry["dense_ms"] for entry in routes.answer()["entries"]] == [None, 40.0]


def runs_here(monkeypatch, backends) -> None:
    monkeypatch.setattr(preview_outlook, "current_backends", lambda: backends)


def test_seconds_are_those_of_what_runs(calibration, monkeypatch):
    """A benchmark of another backend, however new, does not move them."""
    few = preset("few-step")
    measured(calibration, backend="triton-fp8")
    measured(calibration, points=[[0.2, 1e5], [1.0, 5e5]], measured="2026-11-22T20:00:00+00:00")
    runs_here(monkeypatch, {"fp8": "triton-fp8", "bf16": "triton-bf16"})
    preview, card = make_preview(few, 832, 480, 81, 4, 5.0)
    assert preview.seconds[0].ours < 12.0 and "measured 2026-11-21 on triton-fp8" in preview_text(preview, card)
    runs_here(monkeypatch, {"fp8": "triton-int8", "bf16": "triton-bf16"})
    preview, card = make_preview(few, 832, 480, 81, 4, 5.0)
    assert preview.seconds == [] and "triton-int8 was not measured on CPU" in preview_text(preview, card)


def test_seconds_of_a_patched_model_are_its_backends(calibration, host, monkeypatch):
    """On a GPU without a fast backend auto stays dense, and a patch that names the reference runs it."""
    monkeypatch.setattr(preview_outlook, "chosen_backends", lambda *asked: seen.append(asked[-1]) or {"fp8": None})
    for backend in ("auto", "reference"):
        seen = []
        model = apply_patch(host.Patcher(host.WanModel()), choose_settings(None, WIDE, backend))
        make_preview(WIDE, 832, 480, 81, 4, 5.0, model)
        assert seen == [backend]


def test_steps_that_stay_dense_here_take_what_dense_takes(calibration, monkeypatch):
    few = preset("few-step")
    runs_here(monkeypatch, {"fp8": None, "bf16": None})
    preview, card = make_preview(few, 832, 480, 81, 4, 5.0)
    assert f"No expected seconds: sparse steps stay dense on {card}; FPSAttention Check" in preview_text(preview, card)
    measured(calibration)
    preview, card = make_preview(few, 832, 480, 81, 4, 5.0)
    assert preview.seconds[0].ours == pytest.approx(preview.seconds[0].dense)
    assert "steps that stay dense here count as dense" in preview_text(preview, card)
    assert preview_image(preview, card).isfinite().all()


def test_a_damaged_calibration_is_told(calibration):
    calibration.write_text("{")
    preview, card = make_preview(WIDE, 832, 480, 81, 4, 5.0)
    assert "was damaged" in preview_text(preview, card) and preview.seconds == []


def test_a_selector_that_decides_while_sampling(monkeypatch):
    """Its density is not known before, so neither is the work."""
    preview, card = make_preview(WIDE, 832, 480, 81, 4, 5.0)
    from dataclasses import replace

    steps = [replace(step, density=None) if step.phase else step for step in preview.steps]
    phases = [replace(phase, density=None, axes=None) for phase in preview.phases]
    preview = replace(preview, steps=steps, phases=phases)
    assert preview.work is None and "a selector decides" in headline(preview)
    assert "?" in preview_text(preview, card) and preview_image(preview, card).isfinite().all()


@pytest.mark.parametrize("phases", [1, 3, 4, 20])
def test_every_phase_has_its_panel(phases):
    rows = [f"{1 - (i + 1) / phases:.3f} fp8 x1 all {i + 1} {i + 2}" for i in range(phases - 1)] + ["0 fp8 x1 all 3 3"]
    preview, card = make_preview(Schedule.parse("\n".join(rows)), 480, 832, 81, 50, 3.0)
    one = preview_image(make_preview(preset("dense"), 480, 832, 81, 50, 3.0)[0], card).shape[1]
    rows_of_panels = math.ceil(phases / 3)
    assert preview_image(preview, card).shape[1] == one - 110 + 190 * rows_of_panels
    assert preview_text(preview, card).count("(until sigma") == phases
