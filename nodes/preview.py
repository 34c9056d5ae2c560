"""The node *FPSAttention Preview*: what a schedule comes to on a video, before anything is sampled."""

from __future__ import annotations

from typing import Any

from ..kernels.calibration import calibration_path
from ..kernels.schedule import ScheduleError
from ._api import CATEGORY, FpsSchedule, io, show_text, ui
from .apply import as_schedule
from .preview_image import preview_image
from .preview_outlook import make_preview
from .preview_text import headline, preview_text, seconds_lines
from .video_size import MAX_SHIFT, MAX_STEPS, MIN_SHIFT, sampling_problem, size_inputs, size_problem


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
        return size_problem(width, height, frames) or sampling_problem(steps, shift) or True

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
        preview, card = make_preview(as_schedule(schedule), width, height, frames, steps, shift, model)
        text = preview_text(preview, card)
        image = preview_image(preview, card)
        summary = "\n".join([headline(preview), *seconds_lines(preview, card)])
        show_text(cls.hidden.unique_id if cls.hidden is not None else None, summary)
        return io.NodeOutput(image, text, ui=ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(text).as_dict())
