"""The node *FPSAttention Preview*: what a schedule comes to on a video, before anything is sampled."""

from __future__ import annotations

import math
from typing import Any

from ..kernels.calibration import Calibration, calibration_path
from ..kernels.grid import GridError
from ..kernels.outlook import PIXELS_PER_TOKEN
from ..kernels.schedule import ScheduleError
from ._api import CATEGORY, FpsSchedule, io, show_text, ui
from .apply import as_schedule
from .model_facts import model_facts
from .preview_image import preview_image
from .preview_outlook import HEAD_DIM, KNOWN_MODELS, Preview, outlook
from .preview_text import headline, preview_text, seconds_lines
from .routes import current_card
from .video_size import MAX_STEPS, size_inputs, size_problem, token_grid, video_words, whole_problem

MIN_SHIFT, MAX_SHIFT = 0.01, 1000.0


class FPSAttentionPreview(io.ComfyNode):
    """Schedule in, picture and table out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionPreview",
            display_name="FPSAttention Preview",
            category=CATEGORY,
            description=(
                "Shows what a schedule comes to on your video without sampling: density of every step, attention work "
                "of the run, the tiles that a query sees, and expected seconds where FPSAttention Benchmark has "
                "measured this GPU."
            ),
            search_aliases=["schedule preview", "plot schedule", "attention density", "sparse attention plot"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input(
                    "schedule",
                    types=[FpsSchedule, io.String],
                    tooltip="From FPSAttention Schedule or Load FPSAttention Wan, or a text in the same form.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "The model that will sample: its trained tile, its pixels per token, its layers and heads, and "
                        "the shift of its noise schedule are taken in place of what is assumed or entered here."
                    ),
                ),
                *size_inputs("that will be sampled"),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=MAX_STEPS,
                    tooltip="Steps of the sampler, over the whole noise range (denoise 1).",
                ),
                io.Float.Input(
                    "shift",
                    default=8.0,
                    min=MIN_SHIFT,
                    max=MAX_SHIFT,
                    step=0.1,
                    tooltip=(
                        "Shift of the noise schedule (ModelSamplingSD3), usually 3 to 8: a higher one gives more steps "
                        "to the noisy phases. Not used with a model, which brings its own."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="IMAGE", tooltip="Density per step, and the window of every phase in tiles."
                ),
                io.String.Output("text", display_name="text", tooltip="The same as a table."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        schedule: Any = None,
        width: Any = None,
        height: Any = None,
        frames: Any = None,
        steps: Any = None,
        shift: Any = None,
    ) -> bool | str:
        """Return True, or the sentence that says what is wrong; linked values are checked when they arrive."""
        try:
            as_schedule(schedule)
        except ScheduleError as error:
            return str(error)
        return size_problem(width, height, frames) or _problem(steps, shift) or True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Return what changes when the measured times do, so that they show without a change of the inputs."""
        del inputs
        try:
            stat = calibration_path().stat()
        except OSError:
            return "not measured"
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(
        cls, schedule: Any, width: int, height: int, frames: int, steps: int, shift: float, model: Any = None
    ) -> io.NodeOutput:
        """Return picture and table; raises ScheduleError, GridError or PatchError with one sentence."""
        preview, card = make_preview(schedule, width, height, frames, steps, shift, model)
        text = preview_text(preview, card)
        image = preview_image(preview, card)
        summary = "\n".join([headline(preview), *seconds_lines(preview, card)])
        show_text(cls.hidden.unique_id if cls.hidden is not None else None, summary)
        return io.NodeOutput(image, text, ui=ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(text).as_dict())


def _problem(steps: Any, shift: Any) -> str | None:
    if steps is not None and (problem := whole_problem("steps", steps, MAX_STEPS)):
        return problem
    if shift is None:
        return None
    number = isinstance(shift, int | float) and not isinstance(shift, bool) and math.isfinite(shift)
    if not number or not MIN_SHIFT <= shift <= MAX_SHIFT:
        return f"shift is {shift!r}, it must be from {MIN_SHIFT:g} to {MAX_SHIFT:g}; Wan's usual ones are 3 to 8."
    return None


def make_preview(
    schedule: Any, width: int, height: int, frames: int, steps: int, shift: float, model: Any = None
) -> tuple[Preview, str | None]:
    """Return the outlook and the card's name; raises ScheduleError, GridError or PatchError with one sentence."""
    parsed = as_schedule(schedule)
    if parsed is None:
        raise ScheduleError("the schedule is empty; choose a preset or write at least '0.00 dense'.")
    if problem := _problem(steps, shift):
        raise GridError(problem)
    pixels, tiles, notes, models, head_dim = PIXELS_PER_TOKEN, {}, [], KNOWN_MODELS, HEAD_DIM
    if model is not None:
        facts = model_facts(model)
        pixels, tiles, head_dim = facts.pixels, facts.tiles, facts.head_dim
        models = (("this model", facts.layers, facts.heads),)
        taken = [f"{facts.layers} layers and {facts.heads} heads", f"tokens of {facts.pixels} x {facts.pixels} pixels"]
        if tiles.get("tile"):
            taken.append(f"the trained tile {'x'.join(map(str, tiles['tile']))}")
        if facts.shift is not None:
            shift = facts.shift
            taken.append(f"shift {shift:g}")
        notes.append(f"taken from the model: {', '.join(taken)}.")
        notes += [facts.problem] if facts.problem else []
    grid = token_grid(width, height, frames, pixels)
    calibration = Calibration.load()
    notes += [calibration.problem] if calibration.problem else []
    card = current_card()
    preview = outlook(
        parsed,
        video_words(width, height, frames),
        grid,
        int(steps),
        float(shift),
        notes=notes,
        card=card,
        calibration=calibration,
        models=models,
        head_dim=head_dim,
        **tiles,
    )
    return preview, card
