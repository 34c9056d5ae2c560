"""Schedules are keyed on sigma: 4, 8, 20 and 50 steps, in one stage or two, go through the phases that they should."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.outlook import sampler_sigmas, step_outlooks
from fpsattention.kernels.presets import PRESETS
from fpsattention.kernels.schedule import Schedule

GRID, SHIFT = TokenGrid(3, 6, 8), 8.0
THREE = "0.95 dense\n0.60 bf16 - 1 1 1\n0.00 fp8 x1 60% all all"
SCHEDULES = {"few-step": PRESETS["few-step"], "mild": PRESETS["mild"], "three": THREE}


@pytest.fixture(scope="module")
def ready(server, tiny):
    tiny.write_tiny_wan(server.base / "models" / "diffusion_models" / "t2v.safetensors")
    return server


def graph(schedule: str, steps: int, sampler: str, split: int | None) -> dict:
    api = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "t2v.safetensors", "weight_dtype": "default"}},
        "2": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0], "shift": SHIFT}},
        "3": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 1, "tokens": 512}},
        "4": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 128, "height": 96, "length": 9, "batch_size": 1},
        },
        "5": {
            "class_type": "FPSAttentionApply",
            "inputs": {"model": ["2", 0], "backend": "auto", "schedule": SCHEDULES[schedule]},
        },
    }
    latent = ["4", 0]
    ends = [0, steps] if split is None else [0, split, steps]
    for number, (start, end) in enumerate(pairwise(ends)):
        inputs = {
            "model": ["5", 0], "add_noise": "enable" if start == 0 else "disable", "noise_seed": 3, "steps": steps,
            "cfg": 1.0, "sampler_name": sampler, "scheduler": "simple", "positive": ["3", 0], "negative": ["3", 0],
            "latent_image": latent, "start_at_step": start, "end_at_step": end,
            "return_with_leftover_noise": "enable" if end < steps else "disable",
        }  # fmt: skip
        api[f"s{number}"] = {"class_type": "KSamplerAdvanced", "inputs": inputs}
        latent = [f"s{number}", 0]
    api["runs"] = {"class_type": "FPSTestRuns", "inputs": {"latent": latent, "model": ["5", 0]}}
    return api


@pytest.mark.parametrize(
    ("steps", "sampler", "split"),
    [(4, "euler", None), (4, "lcm", 2), (8, "lcm", None), (8, "euler", 4), (20, "euler", 9), (50, "euler", None)],
)
@pytest.mark.parametrize("name", SCHEDULES)
def test_steps_meet_their_phases(ready, name, steps, sampler, split):
    runs = json.loads(ready.prompt(graph(name, steps, sampler, split))["outputs"]["runs"]["runs"][0])
    assert len(runs) == (1 if split is None else 2) and all(run["stopped"] is None for run in runs)
    taken = [step for run in runs for step in run["steps"]]
    schedule = Schedule.parse(SCHEDULES[name])
    expected = step_outlooks(schedule, GRID, sampler_sigmas(steps, SHIFT)[:-1])
    assert len(taken) == steps
    for step, outlook in zip(taken, expected):
        assert step["sigma"] == pytest.approx(outlook.sigma, abs=4e-3)
        assert (step["phase"], step["attention"]) == (outlook.phase, outlook.attention)
        assert step["density"] == pytest.approx(outlook.density)
    if name == "few-step" and steps <= 8:
        assert [step["attention"] for step in taken] == ["dense"] + ["fp8"] * (steps - 1)
    if name == "three":
        assert {step["phase"] for step in taken} >= ({0, 1, 2} if steps > 4 else {0, 1})
