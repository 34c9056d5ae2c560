"""The report's text and picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.schedule import Schedule
from fpsattention.nodes.patch import apply_patch
from fpsattention.nodes.report_image import WIDTH, report_image
from fpsattention.nodes.report_text import report_summary, report_text
from fpsattention.nodes.settings import KEY, choose_settings

SCHEDULE = Schedule.parse("0.90 fp8 x2 all 1 1\n0.50 bf16 - all 60% 60%\n0.00 dense")


@pytest.fixture
def sampled(host):
    header = Header(SCHEDULE, tile=(3, 5, 4))
    model = apply_patch(host.Patcher(host.WanModel()), choose_settings(header, None, "auto"))
    host.run(model, [1.0, 0.7, 0.2])
    patched = model.get_attachment(KEY)
    return patched.settings, list(patched.recorder.runs)


def test_text_shows_every_step(sampled):
    text = report_text(*sampled, {})
    rows = [line.split() for line in text.splitlines() if line[:4].strip().isdigit()]
    assert [row[:3] for row in rows] == [["0", "1.0000", "1"], ["1", "0.7000", "2"], ["2", "0.2000", "3"]]
    assert rows[0][3:5] == ["fp8", "x2"] and rows[2][3] == "dense"
    assert "3/0" in rows[0] and "0/3" in rows[2]
    assert "schedule from the model file" in text
    assert "grid 3x12x16 = 576 tokens" in text
    assert "trained 3x5x4" in text
    assert "nothing stayed dense but the phases that the schedule makes dense" in text


def test_text_names_the_sampler(sampled):
    settings, runs = sampled
    runs[0].node_id = "8"
    assert "Run 1 (My sampler, node 8): 3 steps" in report_text(settings, runs, {"8": "My sampler"})


def test_text_shows_reasons_and_notes(sampled):
    settings, runs = sampled
    step = runs[0].steps[1.0]
    step.decline("a reason", 2)
    runs[0].note("stays dense: a reason.")
    runs[0].note("something else.")
    text = report_text(settings, runs, {})
    assert "2 calls stayed dense: a reason" in text
    assert "note: something else." in text
    assert text.count("a reason") == 1
    assert "nothing stayed dense" not in text


def test_text_before_sampling(sampled):
    assert "has not sampled yet" in report_text(sampled[0], [], {})
    assert "has not sampled yet" in report_summary(sampled[0], [], {})


def test_summary_has_no_table(sampled):
    summary = report_summary(*sampled, {})
    assert "sparse/dense" not in summary and "attention work" in summary


def test_picture(sampled):
    settings, runs = sampled
    image = report_image(settings, runs, {})
    assert image.shape[0] == 1 and image.shape[2:] == (WIDTH, 3) and image.dtype == torch.float32
    assert 0.0 <= float(image.min()) < float(image.max()) <= 1.0
    taller = report_image(settings, runs * 2, {})
    assert taller.shape[1] > image.shape[1]
    assert report_image(settings, [], {}).shape[2] == WIDTH


def test_picture_of_many_steps(sampled):
    settings, runs = sampled
    step = runs[0].steps[1.0]
    runs[0].steps = {i / 100: step for i in range(100)}
    assert report_image(settings, runs, {}).shape[2] == WIDTH


def test_hatched_bars_differ_from_filled_ones(sampled):
    settings, runs = sampled
    image = report_image(settings, runs, {})[0]
    colors = {tuple(round(c * 255) for c in pixel.tolist()) for pixel in image[150:400:3, ::5].reshape(-1, 3)}
    assert (0, 114, 178) in colors and (230, 159, 0) in colors


def test_chosen_blocks_are_told(host):
    settings = replace(choose_settings(None, SCHEDULE, "auto"), dense_blocks=frozenset({0, 1}))
    model = apply_patch(host.Patcher(host.WanModel()), settings)
    host.run(model, [1.0, 0.7])
    text = report_text(settings, list(model.get_attachment(KEY).recorder.runs), {})
    assert "backend auto, blocks 0-1 always dense" in text
    assert "nothing stayed dense but the blocks in dense_blocks" in text
