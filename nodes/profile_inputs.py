"""The inputs of *FPSAttention Profile*, and the sentence for values that cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..kernels.profiling.study import PSNR_NEEDS_RUNS
from ._api import io
from .sentence import written
from .video_size import missing_problem

EFFORTS = ("rows", "runs")
AIMS = ("density", "psnr")
# Where the host's KSampler keeps the choices of an input.
TABLES = {"sampler_name": "SAMPLERS", "scheduler": "SCHEDULERS"}
MAX_STEPS, MAX_PHASES, MAX_SEED = 1000, 8, 2**64 - 1


def profile_inputs() -> list[io.Input]:
    """Return the inputs: links, what a KSampler has, then what is asked of the profile."""
    return [
        io.Model.Input(
            "model",
            tooltip=(
                "The Wan model as the sampler would get it, with LoRAs and shift. A patch by FPSAttention (Wan) on it "
                "is left aside; the model that comes in is not changed."
            ),
        ),
        io.Conditioning.Input("positive", tooltip="A prompt that is typical of what you make."),
        io.Conditioning.Input("negative", tooltip="The negative prompt; not used with cfg 1."),
        io.Latent.Input(
            "latent_image",
            tooltip=(
                "An empty latent video, or the latent of an image-to-video node. Its size is what the schedule is "
                "measured for; a smaller video is faster and mostly has the same phases."
            ),
        ),
        *sampling_inputs(
            seed="Seed of the noise, the same in every run, and of the sampled rows. One seed is one sample.",
            steps="Sampling steps of every run, as you will sample later.",
            sampler="The sampler that you will use. Stochastic ones get the same random numbers in every run.",
            scheduler=(
                "The scheduler that you will use. The proposed schedule is written in noise levels, not in steps."
            ),
        ),
        io.Combo.Input(
            "effort",
            options=list(EFFORTS),
            default=EFFORTS[-1],
            tooltip=(
                "rows: one dense run with probes; a report of attention errors and one-step losses, and a uniform "
                "schedule. runs: also compares final latents, in about the time of seven runs, and proposes phases "
                "from that. Probes and one-step losses come on top: at most three dense steps at 720p, but on small "
                "videos they can take longer than the steps themselves."
            ),
        ),
        io.Combo.Input(
            "aim",
            options=list(AIMS),
            default=AIMS[0],
            tooltip=(
                "density: the best quality for the attention work below. psnr: the least work that keeps the final "
                "latent as close to the dense one as below; needs the effort runs."
            ),
        ),
        io.Float.Input(
            "density",
            default=0.30,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip=(
                "Attention work as a share of dense, averaged over all steps; lower is faster and changes the video "
                "more. Used with the aim density."
            ),
        ),
        io.Float.Input(
            "psnr",
            default=25.0,
            min=1.0,
            max=100.0,
            step=0.5,
            tooltip=(
                "PSNR in dB of the final latent against the dense one, peak = range of the dense latent; higher is "
                "closer. It is not the PSNR of the decoded video. Used with the aim psnr."
            ),
        ),
        io.Int.Input(
            "phases",
            default=3,
            min=1,
            max=MAX_PHASES,
            tooltip="The schedule has at most this many phases; fewer where more are not worth it.",
        ),
    ]


def sampling_inputs(*, seed: str, steps: str, sampler: str, scheduler: str) -> list[io.Input]:
    """Return what a KSampler has as well, with these tooltips."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            # Another seed would measure everything again with the next queued prompt.
            control_after_generate=getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True),
            tooltip=seed,
        ),
        io.Int.Input("steps", default=20, min=1, max=MAX_STEPS, tooltip=steps),
        io.Float.Input(
            "cfg", default=6.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance, as in KSampler."
        ),
        io.Combo.Input("sampler_name", options=host_names("sampler_name", ["euler", "uni_pc"]), tooltip=sampler),
        io.Combo.Input("scheduler", options=host_names("scheduler", ["simple"]), tooltip=scheduler),
    ]


def problem(
    steps: Any, density: Any, psnr: Any, phases: Any, cfg: Any, seed: Any, effort: Any = None, aim: Any = None
) -> str | None:
    """Return the sentence for the first value that cannot be, or None; a value that is None is not known yet."""
    for name, value, options in (("effort", effort, EFFORTS), ("aim", aim, AIMS)):
        if value is not None and (sentence := _choice_problem(name, value, options)):
            return sentence
    if effort == "rows" and aim == "psnr":
        return PSNR_NEEDS_RUNS
    for name, value, least, most, whole in (
        ("steps", steps, 1, MAX_STEPS, True),
        ("density", density, 0.0, 1.0, False),
        ("psnr", psnr, 0.0, 300.0, False),
        ("phases", phases, 1, MAX_PHASES, True),
        ("cfg", cfg, 0.0, 1000.0, False),
        ("seed", seed, 0, MAX_SEED, True),
    ):
        if value is None:
            continue
        number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        if not number or isinstance(value, bool) or not least <= value <= most or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            least, most = (least, most) if whole else (f"{least:g}", f"{most:g}")
            return f"{name} is {written(value)}; write {kind} from {least} to {most}."
    return None


def arrived_problem(choices: dict[str, Any], **numbers: Any) -> str | None:
    """Return the sentence for what arrived over links and cannot be, or None; ``numbers`` as ``problem`` takes them.

    The host looks at linked values no more, and takes its first sampler for a name that it does not know.
    """
    for name, value in choices.items():
        options = {"effort": EFFORTS, "aim": AIMS}.get(name) or host_names(name, [])
        if sentence := _choice_problem(name, value, options):
            return sentence
    return missing_problem(**numbers) or problem(**numbers, effort=choices["effort"], aim=choices["aim"])


def _choice_problem(name: str, value: Any, options: Sequence[str]) -> str | None:
    if isinstance(value, str) and (not options or value in options):
        return None
    return f"{name} is {written(value)}, which is none of its choices; choose one in the node."


def host_names(name: str, fallback: Sequence[str]) -> list[str]:
    """Return the host's choices of an input of ``TABLES``."""
    try:
        from comfy.samplers import KSampler
    except ImportError:
        return list(fallback)
    return list(getattr(KSampler, TABLES[name], fallback))
