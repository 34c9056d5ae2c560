"""The node *FPSAttention Benchmark*: what attention costs on this device at the user's size, and the calibration."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from ..kernels.attention import BACKENDS
from ..kernels.calibration import Calibration, CalibrationError, calibration_path
from ..kernels.calibration_file import shown
from ..kernels.grid import GridError
from ..kernels.measure import Measurement, Size, measure
from ..kernels.outlook import PIXELS_PER_TOKEN
from ._api import CATEGORY, io, progress, show_text, ui
from .benchmark_image import benchmark_image
from .benchmark_text import benchmark_text, headline
from .model_facts import ModelFacts, model_facts
from .video_size import size_inputs, size_problem, token_grid, video_words, whole_problem

logger = logging.getLogger(__name__)

MAX_HEADS = 256
MIN_SECONDS, MAX_SECONDS = 0.5, 600.0
HEAD_DIM = 128


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
                "FPSAttention Preview can tell expected seconds. Run it once per GPU and size, with nothing else "
                "running."
            ),
            search_aliases=["attention speed", "measure gpu", "sparse attention benchmark", "calibration"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "A Wan model whose heads, head dimension, precision and trained tile are taken in place of the "
                        "values below. It is not run, and makes room if memory is short."
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
                        "take. One that cannot run is said to be, and only dense attention is measured."
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
                        "give steadier times; what does not fit is left out and named."
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
        return size_problem(width, height, frames) or _problem(heads, seconds) or True

    @classmethod
    def execute(
        cls, width: int, height: int, frames: int, heads: int, backend: str, seconds: float, model: Any = None
    ) -> io.NodeOutput:
        """Return picture and table; keeps the times. Raises GridError or PatchError with one sentence."""
        if problem := _problem(heads, seconds):
            raise GridError(problem)
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        facts = None if model is None else model_facts(model)
        size = wanted_size(width, height, frames, int(heads), backend, float(seconds), facts)
        make_room(size)
        name, host = host_attention()
        result = measure(size, host, name, Ticker(node_id))
        if facts is not None and facts.problem:
            result.notes.append(facts.problem)
        video = video_words(width, height, frames)
        kept = keep(result)
        text = benchmark_text(result, video, kept)
        image = benchmark_image(result, video, kept)
        show_text(node_id, "\n".join([headline(result), kept]))
        return io.NodeOutput(image, text, ui=ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(text).as_dict())


class Ticker:
    """Between two measurements: move the progress bar, and stop where the user canceled."""

    def __init__(self, node_id: str | None) -> None:
        self.bar, self.done = progress(100, node_id), 0

    def __call__(self, share: float) -> None:
        """Show ``share``; raises the host's own exception where the user canceled."""
        try:
            from comfy.model_management import throw_exception_if_processing_interrupted
        except ImportError:
            pass
        else:
            throw_exception_if_processing_interrupted()
        now = max(self.done, min(100, round(share * 100)))
        self.bar.update(now - self.done)
        self.done = now


def _problem(heads: Any, seconds: Any) -> str | None:
    if heads is not None and (problem := whole_problem("heads", heads, MAX_HEADS)):
        return problem
    if seconds is None:
        return None
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not number or not MIN_SECONDS <= seconds <= MAX_SECONDS:
        return f"seconds is {seconds!r}, it must be from {MIN_SECONDS:g} to {MAX_SECONDS:g}."
    return None


def wanted_size(
    width: int, height: int, frames: int, heads: int, backend: str, seconds: float, facts: ModelFacts | None
) -> Size:
    """Return what is to be measured: the model's shape where there is one, else ``heads`` of dimension 128."""
    pixels = PIXELS_PER_TOKEN if facts is None else facts.pixels
    grid = token_grid(width, height, frames, pixels)
    if facts is not None:
        return Size(
            grid, facts.heads, facts.head_dim, facts.dtype, facts.device, backend, seconds=seconds, **facts.tiles
        )
    device = host_device()
    return Size(grid, heads, HEAD_DIM, default_dtype(device), device, backend, seconds=seconds)


def host_device() -> torch.device:
    """Return the device that the host computes on; the processor where there is no host."""
    try:
        from comfy.model_management import get_torch_device
    except ImportError:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(get_torch_device())


def default_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which the host runs Wan on ``device``: bfloat16 where the card has it."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 or torch.version.hip else torch.float16


def host_attention() -> tuple[str, Any]:
    """Return name and function of the host's own attention as ``function(q, k, v, heads)``; torch's without a host."""
    try:
        from comfy.ldm.modules import attention
    except ImportError:
        from ..kernels.measure import torch_attention

        return "torch", torch_attention
    function = attention.optimized_attention
    return getattr(function, "__name__", "optimized_attention"), lambda q, k, v, heads: function(q, k, v, heads=heads)


def make_room(size: Size) -> None:
    """Let the host unload models where its memory would not hold the measurement."""
    if size.device.type == "cpu":
        return
    try:
        from comfy.model_management import free_memory, soft_empty_cache
    except ImportError:
        return
    free_memory(size.bytes, size.device)
    soft_empty_cache()


def keep(result: Measurement) -> str:
    """Put the times into the calibration file; return the sentence that says where, or why not."""
    entry = result.entry()
    if entry is None:
        return "Nothing was kept: no time of FPSAttention's was measured."
    calibration = Calibration.load()
    said = [calibration.problem] if calibration.problem else []
    try:
        calibration.put(entry)
        calibration.save()
    except CalibrationError as error:
        sentence = str(error)
        logger.warning("FPSAttention: %s", sentence)
        return f"The times were not kept: {sentence}"
    count = len(calibration.entries)
    where = f"Kept in {shown(calibration_path())} ({count} measurement{'s' if count != 1 else ''})."
    return " ".join([where, *(f"Note: {sentence}" for sentence in said)])
