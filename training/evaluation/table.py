"""The evaluation's table: one row per method, in the shape of the method paper's Table 2, as CSV and for the page."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import replace_file
from .measure import Clip
from .request import Method, Settings
from .vbench import Scores

COLUMNS = (
    "method", "model", "PSNR", "SSIM", "LPIPS", "VBench ImgQual", "VBench SubjCons", "density", "FLOPs", "latency",
    "speedup", "videos", "PSNR_error", "SSIM_error", "LPIPS_error", "backend",
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error; ``error`` is None for one value."""

    value: float
    error: float | None

    @staticmethod
    def of(values: Sequence[float | None]) -> Mean | None:
        """Return the mean of what is there, or None."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
        return Mean(statistics.fmean(found), error)


@dataclass(frozen=True)
class Row:
    """One line of the table; what is None was not measured, or is the reference's own."""

    method: Method
    reference: bool
    psnr: Mean | None
    ssim: Mean | None
    lpips: Mean | None
    imaging: float | None
    subject: float | None
    density: float | None
    flops: float | None
    latency: float
    speedup: float
    videos: int
    equal: int
    backend: str


def make_rows(methods: Sequence[Method], clips: Sequence[Clip], scores: Scores) -> list[Row]:
    """Return the table's rows; latency is the median over the videos, speedup that of the first method over it."""
    rows: list[Row] = []
    for method in methods:
        mine = [clip for clip in clips if clip.method == method.key]
        latency = statistics.median(clip.facts["seconds"] for clip in mine)
        judged = scores.by_method.get(method.key, {})
        compared = [clip for clip in mine if not clip.reference]
        rows.append(
            Row(
                method=method,
                reference=mine[0].reference,
                psnr=Mean.of([clip.psnr for clip in compared]),
                ssim=Mean.of([clip.ssim for clip in compared]),
                lpips=Mean.of([clip.lpips for clip in compared]),
                imaging=judged.get("imaging_quality"),
                subject=judged.get("subject_consistency"),
                density=mine[0].facts["density"],
                flops=mine[0].facts["flops"],
                latency=latency,
                speedup=(rows[0].latency if rows else latency) / latency,
                videos=len(mine),
                equal=sum(clip.psnr is None for clip in compared),
                backend=mine[0].facts.get("backend", ""),
            )
        )
    return rows


def write_tables(rows: Sequence[Row], clips: Sequence[Clip], settings: Settings, out: Path) -> list[Path]:
    """Write ``table.csv`` (methods) and ``videos.csv`` (every video) and return their paths."""
    table, videos = io.StringIO(), io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        means = (row.psnr, row.ssim, row.lpips)
        writer.writerow(
            [
                row.method.title, row.method.model.files, *("" if m is None else f"{m.value:.6g}" for m in means),
                *map(_plain, (row.imaging, row.subject, row.density, row.flops, row.latency, row.speedup)), row.videos,
                *("" if m is None or m.error is None else f"{m.error:.3g}" for m in means), row.backend,
            ]
        )  # fmt: skip
    writer = csv.writer(videos, lineterminator="\n")
    writer.writerow(["method", "prompt", "seed", "PSNR", "SSIM", "LPIPS", "latency", "file"])
    for clip in clips:
        writer.writerow(
            [
                clip.method, settings.prompts[clip.prompt], clip.seed,
                *map(_plain, (clip.psnr, clip.ssim, clip.lpips, clip.facts["seconds"])),
                clip.video.relative_to(out).as_posix(),
            ]
        )  # fmt: skip
    paths = [out / "table.csv", out / "videos.csv"]
    for path, text in zip(paths, (table, videos)):
        replace_file(path, text.getvalue().encode("utf-8"))
    return paths


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def count(flops: float) -> str:
    """Return operations in the table's units: 77.52P."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= size:
            return f"{flops / size:.2f}{unit}"
    return f"{flops / 1e6:.2f}M"


def time_of(seconds: float) -> str:
    """Return a latency with three digits."""
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
