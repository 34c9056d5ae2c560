"""The node *FPSAttention Benchmark*: what attention costs on this device at the user's size, and the calibration."""

from __future__ import annotations

from typing import Any

from ..kernels.attention import BACKENDS
from ..kernels.grid import GridError
from ..kernels.measure import measure
from ._api import CATEGORY, io, progress, show_text, ui
from .benchmark_image import benchmark_image
from .benchmark_run import (
    MAX_HEADS,
    MAX_SECONDS,
    MIN_SECONDS,
    Ticker,
    effort_problem,
    keep,
    kept,
    model_notes,
    wanted_size,
)
from .benchmark_text import benchmark_text, headline
from .host import host_attention, make_room
from .model_facts import model_facts
from .video_size import missing_problem, size_inputs, size_problem, video_words

MAX_AGAIN = 1_000_000


class FPSAttentionBenchmark(io.ComfyNode):
    """Times in, picture and table out; the times stay in the calibration file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionBenchmark",
            display_name="FPSAttention Benchmark",
            category=CATEGORY,
            description=(
                "Measures self-attention on this GPU at your video's size: dense, and FPSAttention at several "
                "densities, on random numbers and without a model. The times are kept, so that the schedule editor and "
                "FPSAttention Preview can tell expected seconds for this and similar sizes. Run it once per GPU and "
                "size, with nothing else running; later runs of the workflow show the same result, until an input "
                "changes."
            ),
            search_aliases=["attention speed", "measure gpu", "sparse attention benchmark", "calibration"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "A Wan model whose heads, head dimension, precision and trained tile are measured; the input "
                        "heads is not used then. It is not run, and makes room if memory is short."
                    ),
                ),
                *size_inputs("that attention is measured for"),
                io.Int.Input(
                    "heads",
                    default=12,
                    min=1,
                    max=MAX_HEADS,
                    tooltip=(
                        "Attention heads: 12 for Wan 1.3B, 24 for Wan2.2 5B, 40 for 14B. Time and memory grow with "
                        "them. Not used with a model."
                    ),
                ),
                io.Combo.Input(
                    "backend",
                    options=list(BACKENDS),
                    default="auto",
                    tooltip=(
                        "Which implementation is measured, as in FPSAttention (Wan). auto: the one that sampling would "
                        "take. One that cannot run is said to be, and only dense attention is measured; so it is with "
                        "auto on a GPU where only the reference could run, because sampling stays dense there. "
                        "Expected seconds of a step come from the backend that it runs: auto measures that of fp8 "
                        "steps, and bf16 steps need triton-bf16 measured too. FPSAttention Preview names what to "
                        "measure with which backend."
                    ),
                ),
                io.Float.Input(
                    "seconds",
                    default=20.0,
                    min=MIN_SECONDS,
                    max=MAX_SECONDS,
                    step=1.0,
                    tooltip=(
                        "Seconds that measuring may take, without what compiling takes the first time. More seconds "
                        "give steadier times; what does not fit is left out and named, and times of one call each "
                        "are shown and not kept."
                    ),
                ),
                io.Int.Input(
                    "again",
                    default=0,
                    min=0,
                    max=MAX_AGAIN,
                    optional=True,
                    tooltip=(
                        "Raise it by one to measure again with the same values, say after closing another program "
                        "that used the GPU. The new times take the old ones' place. It changes nothing else."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    "image", display_name="IMAGE", tooltip="A bar per contestant: milliseconds of one attention call."
                ),
                io.String.Output(
                    "text", display_name="text", tooltip="The same as a table, with conditions and what was left out."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, width: Any = None, height: Any = None, frames: Any = None, heads: Any = None, seconds: Any = None
    ) -> bool | str:
        """Return True, or the sentence that says what is wrong; linked values are checked when they arrive."""
        return size_problem(width, height, frames) or effort_problem(heads, seconds) or True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> int:
        """Return what changes when kept times are lost from the calibration file: then they are measured again."""
        del inputs
        return kept.losses()

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        frames: int,
        heads: int,
        backend: str,
        seconds: float,
        model: Any = None,
        again: int = 0,
    ) -> io.NodeOutput:
        """Return picture and table; keeps the times. Raises GridError or PatchError with one sentence."""
        del again  # another number is another run
        if problem := missing_problem(heads=heads, seconds=seconds) or effort_problem(heads, seconds):
            raise GridError(problem)
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        facts = None if model is None else model_facts(model)
        size = wanted_size(width, height, frames, int(heads), backend, float(seconds), facts)
        make_room(size.bytes, size.device)
        name, host = host_attention()
        result = measure(size, host, name, Ticker(progress(Ticker.PARTS, node_id)))
        result.notes += model_notes(model, facts)
        video = video_words(width, height, frames)
        where = keep(result)
        text = benchmark_text(result, video, where)
        image = benchmark_image(result, video, where)
        show_text(node_id, "\n".join([headline(result), where]))
        return io.NodeOutput(image, text, ui=ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(text).as_dict())
