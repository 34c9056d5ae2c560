"""The node *FPSAttention (Wan)*: patch any Wan MODEL with a schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..kernels.attention import BACKENDS
from ..kernels.head_table import HeadTable, HeadTableError
from ..kernels.schedule import Schedule, ScheduleError
from ._api import CATEGORY, FpsHeads, FpsSchedule, io
from .dense_blocks import DenseBlocksError, parse_blocks
from .model_input import diffusion_model_of
from .patch import apply_patch
from .schedule import parse_schedule
from .settings import choose_settings, file_header

BACKEND_TOOLTIP = (
    "Which implementation runs the sparse attention. auto: the first of these that can run here; the report says which "
    "and why. On a GPU where only the reference could run, auto stays dense. triton-fp8: FP8 and sparse, NVIDIA from "
    "Ada on. triton-int8: 8-bit integers in place of FP8, on NVIDIA Ampere. triton-bf16: sparse only. reference: plain "
    "PyTorch, runs everywhere, on a GPU slower than dense. A backend that is named here and cannot run is an error "
    "before sampling starts."
)


class FPSAttentionApply(io.ComfyNode):
    """MODEL in, patched MODEL out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionApply",
            display_name="FPSAttention (Wan)",
            category=CATEGORY,
            description=(
                "Makes the self-attention of a Wan model sparse and FP8, step by step as a schedule says. Without a "
                "schedule it takes the model file's own, else the mild preset. It works with other attention nodes, "
                "any resolution and any sampler; what it does not understand stays dense, and FPSAttention Report says "
                "why. It does nothing to models other than Wan."
            ),
            search_aliases=["sparse attention", "sliding tile attention", "fp8 attention", "sta", "wan speed"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan2.1 or Wan2.2 model: T2V, I2V, Fun, VACE, Phantom and others."),
                io.Combo.Input("backend", options=list(BACKENDS), default="auto", tooltip=BACKEND_TOOLTIP),
                io.String.Input(
                    "dense_blocks",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Blocks (layers) that stay dense in every step, counted from 0: numbers and ranges such as "
                        "0, 1, 38-39. Empty: the schedule alone decides. Each one costs its share of dense attention. "
                        "FPSAttention Profile shows which layers lose most."
                    ),
                ),
                io.MultiType.Input(
                    "schedule",
                    types=[FpsSchedule, io.String],
                    optional=True,
                    tooltip=(
                        "From FPSAttention Schedule, or a text in the same form. Not connected: the schedule that the "
                        "model was trained with, or the mild preset (dense early, then about 40 % density) where the "
                        "file carries none."
                    ),
                ),
                FpsHeads.Input(
                    "heads",
                    optional=True,
                    tooltip=(
                        "A head table from Load Head Patterns: where the schedule says heads, every head of every "
                        "layer takes its own pattern from it. Without a schedule the table's own runs. Not connected: "
                        "the table in the model file, where it carries one."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "patched",
                    display_name="MODEL",
                    tooltip="The patched model, for the sampler and FPSAttention Report.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, schedule: Any = None, dense_blocks: Any = None) -> bool | str:
        """Return True, or what is wrong with text that was given; linked values are checked when they arrive."""
        try:
            as_schedule(schedule)
            parse_blocks("" if dense_blocks is None else dense_blocks)
        except (ScheduleError, DenseBlocksError) as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model: Any, backend: str, schedule: Any = None, dense_blocks: str = "", heads: Any = None
    ) -> io.NodeOutput:
        """Return the patched clone; raises ScheduleError, DenseBlocksError, HeaderError, HeadTableError, SelectorError,
        PatchError or BackendError, each with one sentence."""
        diffusion_model_of(model)
        blocks = parse_blocks("" if dense_blocks is None else dense_blocks)
        settings = choose_settings(file_header(model), as_schedule(schedule), backend, as_heads(heads))
        settings = replace(settings, dense_blocks=blocks)
        return io.NodeOutput(apply_patch(model, settings))


def as_schedule(value: Any) -> Schedule | None:
    """Return ``value`` as a schedule: a Schedule as it is, text parsed, nothing or empty text as None."""
    if value is None or isinstance(value, Schedule):
        return value
    if not isinstance(value, str):
        raise ScheduleError(f"a schedule is text or comes from FPSAttention Schedule, got {type(value).__name__}.")
    return parse_schedule(value) if value.strip() else None


def as_heads(value: Any) -> HeadTable | None:
    """Return ``value`` as a head table, nothing as None; raises HeadTableError for anything else."""
    if value is None or isinstance(value, HeadTable):
        return value
    raise HeadTableError(
        f"the input 'heads' got {type(value).__name__}, which is no head table; connect Load Head Patterns."
    )
