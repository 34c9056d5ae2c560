"""The node *FPSAttention Profile*: measures where a model needs its attention, and proposes a schedule from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.grid import TokenGrid
from ..kernels.profiling.cost import LIMIT, Effort, plan_effort
from ..kernels.profiling.errors import ProfileError
from ..kernels.profiling.propose import ATTEMPTS, propose
from ..kernels.profiling.rows import RowPlan, plan_rows
from ..kernels.profiling.study import Goal, Study, check_goal, measure, probing_level
from ..kernels.profiling.trajectory import Segment, cut
from ..kernels.profiling.windows import Level, ladder, other_shapes
from ._api import CATEGORY, FpsSchedule, io, show_text, ui
from .memory import clear_frames, free_memory, out_of_memory
from .model_facts import compute_dtype
from .model_input import diffusion_model_of
from .profile_checks import check_backend, check_caches, check_conditioning, check_latent, known_grid
from .profile_image import profile_image
from .profile_inputs import AIMS, EFFORTS, arrived_problem, problem, profile_inputs
from .profile_meter import Meter
from .profile_model import model_shape, without_patch
from .profile_probe import Probe
from .profile_sampling import Job, Sampling
from .profile_text import Facts, headline, profile_text

# Sensitivities are measured for this many stretches of the run, more if more phases are asked for.
SEGMENTS = 6


class FPSAttentionProfile(io.ComfyNode):
    """MODEL and what a KSampler takes in; schedule, report and picture out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionProfile",
            display_name="FPSAttention Profile",
            category=CATEGORY,
            description=(
                "Finds out at which noise levels this model needs its attention, and proposes a schedule. It samples "
                "your prompt once dense, looks at the attention of some rows in every step, then samples again with "
                "only a part of the steps sparse, and compares the final latents on the same seed. With the effort "
                "'runs' that takes about as long as seven videos, with 'rows' as one. Probes and one-step losses come "
                "on top: at most three dense steps at 720p, but on small videos they can take longer than the steps "
                "themselves. The log says how long it takes. Do it once per model and keep the schedule text. Of the "
                "two models of Wan2.2 14B it samples the connected one at all noise levels, although it was trained "
                "for a part of them: see the help page."
            ),
            search_aliases=["find schedule", "attention sensitivity", "calibrate sparse attention", "auto schedule"],
            is_output_node=True,
            inputs=profile_inputs(),
            outputs=[
                FpsSchedule.Output(
                    "schedule", display_name="schedule", tooltip="The proposed schedule, for FPSAttention (Wan)."
                ),
                io.String.Output(
                    "text", display_name="text", tooltip="The same schedule as text, to keep in FPSAttention Schedule."
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="Everything that was measured, as tables of text."
                ),
                io.Image.Output(
                    "image",
                    display_name="IMAGE",
                    tooltip="Sensitivity of each part of the run, errors per step and layer, windows, granularities.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        steps: Any = None,
        density: Any = None,
        psnr: Any = None,
        phases: Any = None,
        cfg: Any = None,
        seed: Any = None,
        effort: Any = None,
        aim: Any = None,
    ) -> bool | str:
        """Return True, or the sentence that says what is wrong; linked values are checked when they arrive."""
        return problem(steps, density, psnr, phases, cfg, seed, effort, aim) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: dict,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        effort: str = EFFORTS[-1],
        aim: str = AIMS[0],
        density: float = 0.30,
        psnr: float = 25.0,
        phases: int = 3,
    ) -> io.NodeOutput:
        """Return schedule, text, report and picture; raises ProfileError with one sentence, and leaves ``model`` as it
        was whatever happens."""
        choices = {"effort": effort, "aim": aim, "sampler_name": sampler_name, "scheduler": scheduler}
        numbers = {"steps": steps, "density": density, "psnr": psnr, "phases": phases, "cfg": cfg, "seed": seed}
        if sentence := arrived_problem(choices, **numbers):
            raise ProfileError(sentence)
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        job = Job(positive, negative, latent_image, int(seed), int(steps), float(cfg), sampler_name, scheduler)
        goal = Goal(aim, float(density), float(psnr), int(phases))
        study, facts = run_profile(model, job, goal, effort == "runs", node_id)
        schedule = study.proposal.schedule
        report, image = profile_text(study, facts), profile_image(study, facts)
        show_text(node_id, headline(study))
        shown = ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(report).as_dict()
        return io.NodeOutput(schedule, schedule.format(), report, image, ui=shown)


@dataclass
class _Setting:
    """What the first model call decides: everything that depends on the token grid."""

    segments: list[Segment]
    levels: list[Level]
    probing: int
    grid: TokenGrid


def run_profile(model: Any, job: Job, goal: Goal, runs: bool, node_id: str | None) -> tuple[Study, Facts]:
    """Return the study of ``model`` and the facts for its report; raises ProfileError with one sentence.

    Out of memory becomes such a sentence as well; the host's memory is freed before.
    """
    try:
        return _profile(model, job, goal, runs, node_id)
    except BaseException as error:
        clear_frames(error)
        if not out_of_memory(error):
            raise
    # Outside of the handler, whose traceback would keep the memory.
    free_memory()
    raise ProfileError(
        "the GPU ran out of memory while profiling; profile a smaller or shorter video, which has the same phases, or "
        "close what else uses the GPU."
    )


def _profile(model: Any, job: Job, goal: Goal, runs: bool, node_id: str | None) -> tuple[Study, Facts]:
    diffusion_model_of(model)
    base, patched, header = without_patch(model)
    check_latent(base, job.latent)
    check_conditioning(positive=job.positive, negative=job.negative)
    check_caches(base)
    note = check_backend(base)
    sampling = Sampling(base, job, header, Meter(base, job.steps, node_id))
    if note:
        sampling.notes.append(note)
    try:
        return _studied(sampling, goal, runs, patched)
    finally:
        sampling.forget()


def _studied(sampling: Sampling, goal: Goal, runs: bool, patched: bool) -> tuple[Study, Facts]:
    base, job, header, meter = sampling.base, sampling.job, sampling.header, sampling.meter
    tiles = {} if header is None else {"slots": header.slots, "tile": header.tile}
    shape = model_shape(base)
    sigmas = sampling.step_sigmas
    float32 = compute_dtype(base) == torch.float32
    found: dict[str, _Setting] = {}

    def reachable(grid: TokenGrid) -> list[Level]:
        levels = ladder(grid, target=goal.density if goal.aim == "density" else None, **tiles)
        check_goal(goal, levels, runs)
        return levels

    # Said before the model is loaded, where that can be.
    if (grid := known_grid(base, sampling.image, job.positive, job.negative)) is not None:
        reachable(grid)

    def prepare(grid: TokenGrid) -> tuple[RowPlan, Effort]:
        levels = reachable(grid)
        probing = probing_level(levels, goal)
        density = levels[probing].density

        def effort_with(candidates: Sequence[int]) -> Effort:
            # A one-step loss needs the dense run's predictions.
            steps = tuple(candidates) if sampling.replays else ()
            return plan_effort(shape, grid.tokens, len(sigmas), density, candidates=steps, float32=float32)

        segments, effort = _parts(sigmas, goal, runs, effort_with)
        found["setting"] = _Setting(segments, levels, probing, grid)
        _expect(meter, segments, effort, runs, goal, sampling)
        windows = [*levels[:-1], *other_shapes(grid, density, **tiles)]
        return plan_rows(grid, windows, seed=job.seed, **tiles), effort

    probe = Probe(prepare, meter.spend)
    sampling.dense(probe)
    if "setting" not in found:
        raise ProfileError(
            "the sampler never called the model, so there is nothing to profile; connect a positive conditioning that "
            "holds a prompt, and check the sampler."
        )
    setting, table, effort = found["setting"], probe.finish(), probe.effort
    study = Study(setting.segments, setting.levels, setting.probing, sampling.peak, table, goal)
    level = setting.levels[setting.probing]
    for step in effort.one_step:
        if (loss := sampling.one_step(step, level)) is not None:
            study.one_step[step] = loss
    if runs:
        measure(study, sampling.run)
        propose(study, sampling.run)
    else:
        propose(study, None)
    meter.finish()
    study.notes += sampling.notes
    return study, Facts(
        grid=setting.grid,
        job=job,
        sigmas=sigmas,
        shape=shape,
        effort=effort,
        probe_seconds=probe.seconds,
        step_seconds=meter.seconds,
        was_patched=patched,
        trained=header is not None,
        model_steps=meter.done,
    )


def _parts(
    sigmas: list[float], goal: Goal, runs: bool, effort_with: Callable[[Sequence[int]], Effort]
) -> tuple[list[Segment], Effort]:
    """Return the segments and what is probed in them.

    With runs, the first step of every segment is compared anyway, and one-step losses go to other steps. Without, as
    many segments are made as one-step losses fit, and each gets one in its middle; all steps get one if they fit.
    """
    count = max(SEGMENTS, goal.phases)
    if runs:
        segments = cut(sigmas, count)
        free = {segment.first for segment in segments}
        return segments, effort_with([i for i in range(len(sigmas)) if i not in free])
    effort = effort_with(range(len(sigmas)))
    fitting = len(effort.one_step)
    segments = cut(sigmas, min(count, fitting) if fitting >= min(goal.phases, len(sigmas)) else count)
    if fitting < len(sigmas):
        effort = effort_with([(segment.first + segment.last) // 2 for segment in segments])
    return segments, effort


def _expect(meter: Meter, segments: list[Segment], effort: Effort, runs: bool, goal: Goal, sampling: Sampling) -> None:
    """Tell the meter, and the log, what is going to run."""
    steps = sum(segment.steps for segment in segments)
    last = steps if sampling.replays else 0
    alone = sum(steps - segment.first for segment in segments) if last else len(segments) * steps
    tries = ATTEMPTS + 3 if goal.aim == "psnr" else 4
    total = steps + len(effort.one_step) + ((alone + steps * (1 + tries)) if runs else 0)
    planned = float(steps)
    sentence = f"{steps} dense steps with row probes"
    if runs:
        sparse = steps * (1 + tries) + sum(segment.steps for segment in segments)
        planned += alone - steps + sparse * effort.loss
        sentence += (
            f", then {len(segments)} runs with a part of the steps sparse, one with all, and up to {tries} to check "
            f"the proposal: about the time of {planned / steps:.1f} dense runs in all"
        )
    losses = f" and {len(effort.one_step)} one-step losses" if effort.one_step else ""
    sentence += (
        f". Row probes{losses} come on top: {effort.total:.2g} dense steps by their operations (at most {LIMIT:g} at "
        "720p); on a small video they can take longer than the steps themselves."
    )
    planned += effort.loss * len(effort.one_step)
    meter.expect(total, steps, planned, sentence, len(effort.steps) * len(effort.layers))
