"""The node *FPSAttention Schedule*: a schedule as plain text, checked before anything loads."""

from __future__ import annotations

from ..kernels.presets import PRESETS
from ..kernels.schedule import Schedule, ScheduleError
from ._api import CATEGORY, FpsSchedule, io, ui
from .sentence import one_line, written

CUSTOM = "custom"
DEFAULT_TEXT = PRESETS["mild"]


class FPSAttentionSchedule(io.ComfyNode):
    """Text or preset in, schedule out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionSchedule",
            display_name="FPSAttention Schedule",
            category=CATEGORY,
            description=(
                "Says which attention runs at which noise level (sigma, from 1 down to 0): dense, or sparse FP8 with a "
                "3D window. Connect it to FPSAttention (Wan). The text is checked when the workflow is queued."
            ),
            search_aliases=["fps schedule", "sparse attention schedule", "sliding tile window"],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[CUSTOM, *PRESETS],
                    default=CUSTOM,
                    tooltip=(
                        "custom: use the text below. mild: for weights that were not trained for sparsity. balanced, "
                        "fast: for jointly trained weights, about 20 % and 12 % of the attention work. dense: change "
                        "nothing. few-step: for 4 to 8 steps with a distilled LoRA, only the first step dense. With a "
                        "preset the text below is not used."
                    ),
                ),
                io.String.Input(
                    "schedule",
                    multiline=True,
                    default=DEFAULT_TEXT,
                    tooltip=(
                        "One line per phase, from sigma 1 down to 0: until, attention (dense, bf16, fp8), granularity "
                        "(token, x1, x2, x4, x8; - for bf16), window along time, height and width in latent tokens, in "
                        "percent of the axis, or all. Smaller windows are faster and change the video more. JSON is "
                        "accepted too. Used with the preset custom."
                    ),
                ),
            ],
            outputs=[
                FpsSchedule.Output("schedule_out", display_name="schedule", tooltip="For FPSAttention (Wan)."),
                io.String.Output("text", display_name="text", tooltip="The same schedule in its canonical form."),
            ],
        )

    @classmethod
    def validate_inputs(cls, preset: str | None = None, schedule: str | None = None) -> bool | str:
        """Return True, or the sentence that says what is wrong; a linked input arrives as None and is checked later."""
        try:
            if preset is not None:
                _check_preset(preset)
            if preset == CUSTOM and schedule is not None:
                parse_schedule(schedule)
        except ScheduleError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, preset: str, schedule: str) -> io.NodeOutput:
        """Return the schedule and its canonical text; raises ScheduleError."""
        _check_preset(preset)
        parsed = parse_schedule(schedule if preset == CUSTOM else PRESETS[preset])
        text = parsed.format()
        return io.NodeOutput(parsed, text, ui=ui.PreviewText(text))


def parse_schedule(text: object) -> Schedule:
    """Return the schedule that ``text`` says; raises ScheduleError with one printable line, whatever the text is."""
    try:
        return Schedule.parse(text)
    except ScheduleError as error:
        raise ScheduleError(one_line(error)) from None


def _check_preset(preset: object) -> None:
    names = [CUSTOM, *PRESETS]
    if not isinstance(preset, str) or preset not in names:
        raise ScheduleError(f"{written(preset)} is no preset; choose one of {', '.join(names)}.")
