"""The README's block of measured figures, generated from one result file; without one it says so."""

from __future__ import annotations

from pathlib import Path

from .figures import FEWEST_FOR_SPREAD, baselines, cells_of, compare, fastest, find
from .model_shapes import PUBLISHED
from .store import ResultError

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
NONE = "*not measured*"
SHAPE = "720p, 81 frames, 40 heads"


def block(found: tuple[Path, dict] | None) -> str:
    """Return the README's block, without its markers, of a result file and its path; None: nothing was measured."""
    if found is None:
        return "No card has been measured yet: `kernels/results/` holds no result, so there is no table."
    path, data = found
    rows = [*_sparse(data), *_dense(data), *_backward(data), *_step(data), *_start(data), *_overhead(data)]
    lines = ["| measured on a graphics card | |", "|---|---:|"]
    lines += [f"| {name} | {value or NONE} |" for name, value in rows]
    header = data["header"]
    driver = (header.get("nvidia_smi") or {}).get("driver_version", "unknown")
    versions = header.get("versions", {})
    lines += [
        "",
        f"{header.get('card')}, driver {driver}, torch {versions.get('torch')}, triton {versions.get('triton')}, "
        f"commit {header.get('commit')}, {str(header.get('date'))[:10]}; all cells in "
        f"[`kernels/results/{path.name}`](kernels/results/{path.name}).",
        f"E is the time of the fastest of {', '.join(baselines(data)) or 'none'}, the dense BF16 attentions in this "
        "result, over ours, times the density: 1 means that nothing is wasted. Ours includes quantization; "
        "`python -m kernels.benchmark` measures it again.",
    ]
    return "\n".join(lines)


def update(path: Path, found: tuple[Path, dict] | None) -> None:
    """Replace what stands between the markers of ``path`` by the block of a result (None: of none); raises ResultError
    if they are not there."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ResultError(f"{path.name} has no lines '{BEGIN}' and '{END}'; add them where the figures belong.")
    path.write_text(f"{before}{BEGIN}\n{block(found)}\n{END}{after}", encoding="utf-8")


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
    rows = []
    for name, words in PUBLISHED.items():
        result = cells_of(data, "model").get(name)
        rows.append((f"one whole denoising step, {words}", step_sentence(result) if result else None))
    return rows


def step_sentence(result: dict) -> str | None:
    """Return both ratios of a whole step with FP8 linear layers, None where one side was not measured."""
    variants = {name: v for name, v in result["variants"].items() if v.get("status") == "ok"}
    ours, same, bf16 = (variants.get(f"{kind} linears") for kind in ("sparse, fp8", "dense, fp8", "dense, bf16"))
    if not ours or not same or not bf16:
        return None
    count = min(v.get("count", 1) for v in (ours, same, bf16))
    spread = max(v.get("spread") or 0.0 for v in (ours, same, bf16))
    return (
        f"{same['ms'] / ours['ms']:.2f}x against dense with the same linear layers ({same.get('dense', '-')}), "
        f"{bf16['ms'] / ours['ms']:.2f}x against dense with bf16 linear layers ({bf16.get('dense', '-')}); n={count}"
        + (f", spread {spread:.1%}" if count >= FEWEST_FOR_SPREAD else "")
    )


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
