"""Every variant of Wan over HTTP, in a running server, with the host's own loaders, conditioning nodes and samplers.

Each is sampled in one stage, with two videos at once, and in two stages; under no patch, a dense schedule, a window of
everything, and a sparse schedule. The table of what ran is printed at the end of the test run.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

_SPEC = importlib.util.spec_from_file_location("fps_variant_graphs", Path(__file__).parent / "variant_graphs.py")
graphs = importlib.util.module_from_spec(_SPEC)
__import__("sys").modules["fps_variant_graphs"] = graphs
_SPEC.loader.exec_module(graphs)

VAE = Path(__file__).parents[2] / "training" / "assets" / "wan2.1-tiny-vae.safetensors"


@dataclass
class Outcome:
    """What one variant did, over all of its samplers."""

    variant: graphs.Variant
    latents: dict[str, torch.Tensor]
    runs: dict[str, list[dict]]

    def relative(self, mode: str, schedule: str) -> float:
        a, b = self.latents[f"{mode}-{schedule}"].double(), self.latents[f"{mode}-plain"].double()
        return float((a - b).norm() / b.norm())

    @property
    def steps(self) -> list[dict]:
        return [step for key, runs in self.runs.items() if "sparse" in key for run in runs for step in run["steps"]]

    @property
    def reasons(self) -> list[str]:
        return sorted({reason for step in self.steps for reason in step["reasons"]})


@pytest.fixture(scope="module")
def ready(server, inside):
    """The server with a tiny checkpoint of every class, and the tiny VAE."""
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    inside("fps_models", FPS_FOLDER=str(folder))["write"]
    server.add_model(VAE, "vae", "tiny-vae.safetensors")
    return server


@pytest.fixture(scope="module")
def outcomes(ready, show_at_end):
    """A function that samples a variant once and keeps what came of it; the table of all at the end."""
    kept: dict[str, Outcome] = {}

    def of(name: str) -> Outcome:
        if name not in kept:
            kept[name] = _sample(ready, name)
        return kept[name]

    yield of
    rows = table(kept)
    show_at_end("every Wan: what ran", rows)
    if os.environ.get("VARIANTS_TABLE"):
        Path(os.environ["VARIANTS_TABLE"]).write_text(rows, encoding="utf-8")


def _sample(server, name: str) -> Outcome:
    variant = graphs.VARIANTS[name]
    entry = server.prompt(graphs.graph(name, variant))
    latents, runs = {}, {}
    for mode in variant.modes:
        for schedule in variant.schedules(mode):
            key = f"{mode}-{schedule}"
            (saved,) = entry["outputs"][f"{key}-save"]["latents"]
            with safe_open(server.base / "output" / saved["subfolder"] / saved["filename"], framework="pt") as file:
                latents[key] = file.get_tensor("latent_tensor")
            if schedule in ("full", "sparse"):
                samplers = graphs.sampler_of(mode, schedule, variant)
                found = [
                    run
                    for place in range(len(variant.files))
                    for run in json.loads(entry["outputs"].get(f"{key}-runs{place}", {}).get("runs", ["[]"])[0])
                ]
                runs[key] = [run for run in found if run["node"] in samplers]
    return Outcome(variant, latents, runs)


def table(outcomes: dict[str, Outcome]) -> str:
    """The outcomes as a table in Markdown."""
    head = "variant | class | tokens of self-attention | runs | attention | finite | dense schedule | full window"
    lines = ["| " + head + " |", "|" + "---|" * 8]
    for outcome in outcomes.values():
        variant = outcome.variant
        t, h, w = variant.grid
        tokens = f"{t}x{h}x{w}"
        tokens += f" + {variant.front} in front" if variant.front else ""
        tokens += f" + {variant.behind} behind" if variant.behind else ""
        step = outcome.steps[0]
        attention = "sparse" if not step["dense"] else "dense" if not step["sparse"] else "sparse, partly dense"
        if outcome.reasons:
            attention += ": " + "; ".join(outcome.reasons)
        finite = all(bool(latent.isfinite().all()) for latent in outcome.latents.values())
        same = all(outcome.latents[f"{m}-dense"].equal(outcome.latents[f"{m}-plain"]) for m in variant.modes)
        worst = max(outcome.relative(mode, "full") for mode in variant.modes if mode != "stages")
        cells = (
            variant.label, variant.model_class, tokens, "yes", attention, "yes" if finite else "NO",
            "bit-identical" if same else "DIFFERS", f"{worst:.0e}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "One stage with one video, with two, and two stages; full window: largest relative difference from dense.",
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", graphs.VARIANTS)
def test_variant(outcomes, name):
    outcome, variant = outcomes(name), graphs.VARIANTS[name]
    for mode in variant.modes:
        latents = {schedule: outcome.latents[f"{mode}-{schedule}"] for schedule in variant.schedules(mode)}
        assert all(bool(latent.isfinite().all()) for latent in latents.values())
        assert latents["plain"].shape[0] == (2 if mode == "two" else 1)
        assert latents["dense"].equal(latents["plain"]), "a dense schedule must change nothing"
        assert "full" not in latents or outcome.relative(mode, "full") < 2e-5, "a full window must equal dense"
        if variant.sparse_calls:
            assert outcome.relative(mode, "sparse") > 1e-4, "a sparse window must change something"
        stages = 2 if mode == "stages" else 1
        assert len(outcome.runs[f"{mode}-sparse"]) == stages
        for run in outcome.runs[f"{mode}-sparse"]:
            assert run["class"] == variant.model_class and run["finished"] and run["stopped"] is None
            assert len(run["steps"]) == 2
            for step in run["steps"]:
                check_step(step, variant)


def check_step(step: dict, variant: graphs.Variant) -> None:
    evaluations = step["evaluations"]
    dense = variant.calls - variant.sparse_calls
    assert (step["sparse"], step["dense"]) == (variant.sparse_calls * evaluations, dense * evaluations)
    assert (tuple(step["grid"]), step["prefix"], step["suffix"]) == (variant.grid, variant.front, variant.behind)
    assert step["reasons"] == ({variant.reason: dense * evaluations} if variant.reason else {})
    assert step["planned_density"] < 1
    assert len(step["blocks"]) >= 3 and min(step["blocks"]) > 0
    assert sum(step["blocks"]) < step["seconds"]
