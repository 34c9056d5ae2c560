"""Whole-step cells: which Wan, at which size, under which schedule. Imports no torch."""

from __future__ import annotations

import re

from .cells import Cell, CellError, latent_grid, window_for

# Wan2.1's published shapes.
SHAPES = {
    "wan2.1-14b": {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, "text_dim": 4096},
    "wan2.1-1.3b": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "text_dim": 4096},
    "tiny": {"num_attention_heads": 2, "num_layers": 2, "ffn_dim": 256, "text_dim": 32},
}
HEAD_DIM = 128
TEXT_TOKENS = 512
STEPS = 50
# Wan's own sampler settings.
SHIFT = {"480p": 3.0, "720p": 5.0}
# The whole-step speed-up that the paper reports at 720p.
TARGET_RATIO = 4.96

# The cells whose figures the README shows, and what they are: fixed beforehand, not the best of what was tried.
PUBLISHED = {
    f"model-{model}-{resolution}-81f-s64-uniform-15-fp8-compiled": (
        f"{model}, {resolution}, 81 frames, 15 % density in every step, FP8 linear layers, compiled"
    )
    for model, resolution in (("wan2.1-14b", "720p"), ("wan2.1-1.3b", "480p"))
}


def model_cells(
    model: str,
    resolution: str,
    frames: int,
    schedule: str,
    linears: str,
    compiled: bool,
    standin: bool,
    slots: int = 64,
) -> list[Cell]:
    """Return the one cell of a whole step; raises CellError or ScheduleError with a sentence for what cannot be."""
    grid = latent_grid(resolution, frames)
    if standin:
        model, grid = "tiny", (2, 6, 8)
    text, label = schedule_text(schedule, grid, slots)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")[:40]
    compiled_name = "-compiled" if compiled else ""
    return [
        Cell(
            f"model-{model}-{resolution}-{frames}f-s{slots}-{name}-{linears}{compiled_name}", "model", grid,
            heads=SHAPES[model]["num_attention_heads"], dim=HEAD_DIM, limit=580.0, model=model, schedule=text,
            linears=linears, compiled=compiled, label=f"{resolution}, {label}", slots=slots,
            shift=SHIFT[resolution],
        )
    ]  # fmt: skip


def schedule_text(schedule: str, grid: tuple[int, int, int], slots: int) -> tuple[str, str]:
    """Return the schedule's table and a short label of a density ('15%'), a preset's name, or a schedule as text."""
    from ..presets import PRESETS
    from ..schedule import Schedule, ScheduleError

    words = schedule.strip()
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*%", words)
    if found:
        window = window_for(grid, slots, float(found.group(1)))
        return f"0.00 fp8 x1 {window.words}", f"uniform {float(found.group(1)):g} %"
    if words in PRESETS:
        return PRESETS[words], words
    try:
        parsed = Schedule.parse(schedule)
    except ScheduleError as error:
        raise CellError(
            f"'{words[:40]}' is neither a density such as 15%, nor one of {', '.join(PRESETS)}, nor a schedule: {error}"
        ) from None
    return parsed.format(), f"own schedule {abs(hash_of(parsed.format())) % 10**6}"


def hash_of(text: str) -> int:
    """Return a number that stays the same between processes, for names."""
    import zlib

    return zlib.crc32(text.encode())
