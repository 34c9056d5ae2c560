"""The README's block of measured figures, generated from the newest result file; without one it says so."""

from __future__ import annotations

from pathlib import Path

from .figures import cells_of, compare, fastest, find
from .store import RESULTS, ResultError, read_json

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
NONE = "*not measured*"
SHAPE = "720p, 81 frames, 40 heads"


def newest(folder: Path = RESULTS) -> tuple[Path, dict] | None:
    """Return the newest result of a plain benchmark on a card, by its own date; None if there is none.

    Stand-ins, smoke runs and tunings never count.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = read_json(path)
        except ResultError:
            continue  # another kind of file
        if data.get("standin") is False and data.get("purpose") == "benchmark":
            found.append((str(data.get("header", {}).get("date", "")), path, data))
    return max(found, key=lambda row: row[:2])[1:] if found else None


def block(folder: Path = RESULTS) -> str:
    """Return the README's block without its markers."""
    found = newest(folder)
    data = found[1] if found else {"cells": {}}
    rows = [*_sparse(data), *_dense(data), *_backward(data), *_step(data), *_start(data), *_overhead(data)]
    lines = ["| measured on a graphics card | |", "|---|---:|"]
    lines += [f"| {name} | {value or NONE} |" for name, value in rows]
    lines.append("")
    if found:
        header = data["header"]
        driver = (header.get("nvidia_smi") or {}).get("driver_version", "unknown")
        versions = header.get("versions", {})
        lines.append(
            f"{header.get('card')}, driver {driver}, torch {versions.get('torch')}, triton {versions.get('triton')}, "
            f"commit {header.get('commit')}{' with changes' if header.get('dirty') else ''}, "
            f"{str(header.get('date'))[:10]}; all cells in "
            f"[`kernels/results/{found[0].name}`](kernels/results/{found[0].name})."
        )
    else:
        lines.append("No result of a card is in `kernels/results/`.")
    lines.append(
        "E is the time of the fastest dense BF16 attention over ours, times the density: 1 means that nothing is "
        "wasted. Ours includes quantization; `python -m kernels.benchmark` measures it again."
    )
    return "\n".join(lines)


def update(path: Path, folder: Path = RESULTS) -> None:
    """Replace what stands between the markers of ``path``; raises ResultError if they are not there."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ResultError(f"{path.name} has no lines '{BEGIN}' and '{END}'; add them where the figures belong.")
    path.write_text(f"{before}{BEGIN}\n{block(folder)}\n{END}{after}", encoding="utf-8")


def _sparse(data: dict) -> list[tuple[str, str | None]]:
    rows = []
    for density in (25, 15, 10, 5):
        text = None
        result = find(data, density=density)
        ours = compare("", result) if result else None
        if ours:
            names = f"{ours.ours} at {ours.density:.1%}, against {ours.dense}"
            text = f"{ours.speedup:.2f}x, E {ours.efficiency:.2f} ({names})"
        rows.append((f"attention, {SHAPE}, {density} % density", text))
    return rows


def _dense(data: dict) -> list[tuple[str, str | None]]:
    result = find(data, density=100)
    ours = compare("", result, "triton-fp8-128") if result else None
    text = f"{ours.speedup:.2f}x (against {ours.dense})" if ours else None
    return [(f"attention, {SHAPE}, FP8 alone (100 % density)", text)]


def _backward(data: dict) -> list[tuple[str, str | None]]:
    result = find(data, density=15, direction="backward")
    ours = compare("", result) if result else None
    text = f"{ours.speedup:.2f}x, E {ours.efficiency:.2f} ({ours.ours}, against {ours.dense})" if ours else None
    return [("forward and backward, same shape, 15 % density", text)]


def _step(data: dict) -> list[tuple[str, str | None]]:
    rows = {"wan2.1-14b": None, "wan2.1-1.3b": None}
    for result in cells_of(data, "model").values():
        name = result["cell"]["model"]
        best = result.get("best_ratio")
        if name in rows and best and (rows[name] is None or best > rows[name][0]):
            density = result.get("mean_density")
            words = (
                f"{best:.2f}x ({result['cell']['label']}, mean density {density:.1%}, {result.get('best_name', '')})"
            )
            rows[name] = (best, words)
    return [(f"one whole denoising step, {name}", row[1] if row else None) for name, row in rows.items()]


def _start(data: dict) -> list[tuple[str, str | None]]:
    times = {}
    for name, result in cells_of(data, "start").items():
        firsts = [row["first_s"] for row in result.get("contestants", {}).values() if row.get("status") == "ok"]
        if firsts:
            times[name] = max(firsts)
    text = ", ".join(f"{name.removeprefix('start-')} {value:.1f} s" for name, value in times.items()) or None
    return [("first call with an empty kernel cache (the slowest backend)", text)]


def _overhead(data: dict) -> list[tuple[str, str | None]]:
    result = find(data, density=15)
    ours = fastest(result, "ours") if result else None
    share = ours[1].get("stages", {}).get("share") if ours else None
    text = f"{1 - share['attention']:.1%}" if share else None
    return [(f"share of quantization and everything else beside the attention kernel, {SHAPE}, 15 % density", text)]
