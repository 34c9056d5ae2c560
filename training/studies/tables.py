"""The report's tables and sentences, each read from the results."""

from __future__ import annotations

from collections.abc import Sequence

from .plan import DENSITIES, ORDERS, SCHEDULES, SHAPES, THIRDS, Measure, Videos
from .quantization import GRANULARITIES, INPUTS, LOGIT_STD
from .results import Results, Row
from .statistics import mean_and_spread, paired_interval

NOTHING = "*not run*"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table; the first ``left`` columns are text, the rest figures."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float, digits: int = 2) -> str:
    """Return a signed percentage."""
    return f"{100 * value:+.{digits}f} %"


def closed(row: Row) -> list[str]:
    """Return the shares of the gap that are closed, or that they are refused."""
    found = row.figures
    return ["refused"] * 2 if found.closed is None else [f"**{found.closed:.0%}**", f"{found.against_base:.0%}"]


def comparison_cells(row: Row) -> list[str]:
    """Return density, losses and figures of a comparison."""
    found = row.figures
    return [
        f"{row.density:.1%}",
        *(f"{row.losses[name]:.4f}" for name in ("A", "D", "B", "C")),
        percent(found.free), percent(found.control), percent(found.joint), *closed(row),
    ]  # fmt: skip


HEAD = ("density", "A", "D", "B", "C", "A over base", "B over D", "C over D", "gap closed", "against the base")


def comparisons(rows: Sequence[Row], label) -> str:
    """Return the table of some comparisons; ``label(row)`` names them."""
    if not rows:
        return NOTHING
    return table(("arm", *HEAD), [[label(row), *comparison_cells(row)] for row in rows])


def refusals(rows: Sequence[Row]) -> str:
    """Return why ratios were refused, a sentence per row that was, or nothing."""
    said = [f"{row.arm.window}: {row.figures.refusal}" for row in rows if row.figures.refusal]
    return f"\n\nRefused ratios: {'; '.join(said)}." if said else ""


def spread(rows: Sequence[Row]) -> str:
    """Return mean and standard deviation over the seeds."""
    shares = [row.figures.closed for row in rows]
    parts = []
    if all(share is not None for share in shares):
        mean, deviation = mean_and_spread(shares)
        parts.append(f"gap closed **{mean:.1%} ± {deviation:.1%}**")
        mean, deviation = mean_and_spread([row.figures.against_base for row in rows])
        parts.append(f"against the base {mean:.1%} ± {deviation:.1%}")
    for name, values in (
        ("C over D", [row.figures.joint for row in rows]),
        ("B over D", [row.figures.control for row in rows]),
    ):
        mean, deviation = mean_and_spread(values)
        parts.append(f"{name} {percent(mean)} ± {100 * deviation:.2f}")
    return f"Over {len(rows)} seeds (mean ± standard deviation): {', '.join(parts)}."


def verdict(rows: Sequence[Row], goal: float) -> str:
    """Return whether the goal was met, by the mean over seeds."""
    shares = [row.figures.closed for row in rows]
    if not rows or any(share is None for share in shares):
        return f"The goal of {goal:.0%} cannot be judged: a ratio was refused or nothing was run."
    mean, _ = mean_and_spread(shares)
    if mean >= goal:
        return f"The goal of {goal:.0%} of the gap is met."
    return f"**The goal of {goal:.0%} of the gap is not met: {mean:.0%} is closed.**"


def density_points(results: Results, rows: Sequence[Row]) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return (density, A over base, B over D, C over D) by shape."""
    points: dict[str, list[tuple[float, float, float, float]]] = {"time": [], "cube": []}
    for row in rows:
        found = row.figures
        points[row.arm.window.split()[0]].append((row.density, found.free, found.control, found.joint))
    return {shape: sorted(found, reverse=True) for shape, found in points.items()}


def shape_cost(rows: Sequence[Row]) -> str:
    """Return how much more cubic windows cost at equal density, trained."""
    by_name = {row.arm.window: row.figures.joint for row in rows}
    ratios = [
        by_name[f"cube {share}"] / by_name[f"time {share}"]
        for share in DENSITIES
        if {f"cube {share}", f"time {share}"} <= by_name.keys() and by_name[f"time {share}"] > 0.001
    ]
    if not ratios:
        return ""
    return (
        f"At about equal density, and after joint training, cubic windows cost {min(ratios):.1f} to {max(ratios):.1f} "
        "times as much as windows that keep all of time."
    )


def shapes(results: Results) -> str:
    """Return the training-free excess of constant shapes of one density."""
    dense = results.of(Measure(None, "dense", THIRDS))
    found = [(name, results.of(Measure(None, name, THIRDS))) for name in (*SHAPES, *SCHEDULES, *ORDERS[1:])]
    rows = [
        [name, f"{one['density']:.1%}", f"{one['loss']:.4f}", percent(one["loss"] / dense["loss"] - 1)]
        for name, one in found
        if one is not None and dense is not None
    ]
    return table(("constant window, or schedule", "mean density", "loss", "A over base"), rows) if rows else NOTHING


def directions(rows: Sequence[Row]) -> str:
    """Return the schedules' one-step losses and the difference to the constant window."""
    if not rows:
        return NOTHING
    constant = rows[0].losses["C"]
    cells = [
        [row.arm.window, *comparison_cells(row), percent(row.losses["C"] / constant - 1) if i else "0"]
        for i, row in enumerate(rows)
    ]
    return table(("schedule", *HEAD, "C over constant"), cells)


def video_table(results: Results, jobs: Sequence[Videos]) -> str:
    """Return the sampled videos' PSNR and the paired difference to the constant window."""
    found = [(job, results.of(job)) for job in jobs]
    rows = []
    constant = found[0][1]
    for job, one in found:
        if one is None:
            continue
        mean, deviation = mean_and_spread(one["psnr"])
        cells = [job.arm.window, str(len(one["psnr"])), f"{one['density']:.1%}", f"{mean:.2f} ± {deviation:.2f}"]
        if one is constant or constant is None:
            rows.append([*cells, "0" if one is constant else "", ""])
            continue
        gain, low, high = paired_interval(constant["psnr"], one["psnr"])
        rows.append([*cells, f"{gain:+.2f}", f"{low:+.2f} ... {high:+.2f}"])
    head = ("schedule", "videos", "density", "PSNR against D, dB", "minus constant, dB", "95 % interval")
    return table(head, rows) if rows else NOTHING


def video_sentence(results: Results, jobs: Sequence[Videos]) -> str:
    """Return which schedules differ from the constant window beyond the interval."""
    constant = results.of(jobs[0])
    said = []
    for job in jobs[1:]:
        one = results.of(job)
        if one is None or constant is None:
            continue
        gain, low, high = paired_interval(constant["psnr"], one["psnr"])
        name = job.arm.window
        if low > 0:
            said.append(f"{name} is closer to dense than the constant window, by {gain:.2f} dB")
        elif high < 0:
            said.append(f"{name} is farther from dense than the constant window, by {-gain:.2f} dB")
        else:
            said.append(f"{name} cannot be told from the constant window (the interval holds 0)")
    return "; ".join(said) + "." if said else ""


def direction_verdict(results: Results, rows: Sequence[Row], jobs: Sequence[Videos]) -> str:
    """Return whether loss and sampled videos rank the schedules alike, and what the videos' measure means."""
    found = {job.arm.window: results.of(job) for job in jobs}
    if len(rows) < 2 or any(one is None for one in found.values()):
        return ""
    by_loss = min(rows, key=lambda row: row.losses["C"]).arm.window
    by_video = max(found, key=lambda name: mean_and_spread(found[name]["psnr"])[0])
    said = (
        f"Loss and videos agree: {by_loss} is best by both."
        if by_loss == by_video
        else f"Loss and videos disagree: {by_loss} has the lowest loss, {by_video} the videos nearest to dense."
    )
    return (
        f"{said} PSNR against the dense video of the same noise says how closely a trajectory is followed. The first "
        "steps decide the layout, so it rewards being dense early; it is no measure of a video's quality. One "
        "fine-tune seed; the interval is over videos, two schedules were compared, no correction was made."
    )


def quantization_table(results: Results) -> str:
    """Return mean SNR over noise levels, by input, form and granularity, dense and sparse."""
    found = results.quantization()
    if not found:
        return NOTHING
    rows = []
    for kind in INPUTS:
        for granularity in GRANULARITIES:
            cells = [
                f"{_mean(found, kind, f'{form}, {granularity}, {seen}', 'snr'):.1f}"
                for form in ("e4m3", "int8")
                for seen in ("dense", "sparse")
            ]
            cosines = [
                f"{1 - _mean(found, kind, f'{form}, {granularity}, dense', 'cosine'):.1e}" for form in ("e4m3", "int8")
            ]
            rows.append([kind, granularity, *cells, *cosines])
    head = (
        "inputs", "scale per", "e4m3, dense", "e4m3, sparse", "INT8, dense", "INT8, sparse",
        "1 - cos e4m3", "1 - cos INT8",
    )  # fmt: skip
    return table(head, rows, left=2)


def step_table(results: Results) -> str:
    """Return cosine, MSE and SNR per noise level of FP8 alone, sparsity alone and both."""
    found = results.quantization()
    if not found:
        return NOTHING
    names = ("FP8 attention, dense", "sparsity alone", "FP8 attention, sparse, against dense")
    rows = []
    for sigma, result in found.items():
        natural = result["inputs"]["natural"]
        cells = [f"{natural[n]['cosine']:.5f}" for n in names] + [f"{natural[n]['mse']:.1e}" for n in names]
        rows.append([f"{sigma:g}", *cells, *(f"{natural[n]['snr']:.1f}" for n in names)])
    short = ("FP8", "sparse", "both")
    head = ("sigma", *(f"{metric} {name}" for metric in ("cosine", "MSE", "SNR") for name in short))
    return table(head, rows)


def quantization_sentences(results: Results) -> str:
    """Return what the granularity is worth by input and form, and how large the logits were."""
    found = results.quantization()
    if not found:
        return ""
    lines = []
    for kind in INPUTS:
        std = sum(result["inputs"][kind]["logits"]["std"] for result in found.values()) / len(found)
        worth = []
        for form in ("e4m3", "int8"):
            values = {g: _mean(found, kind, f"{form}, {g}, dense", "snr") for g in GRANULARITIES}
            worth.append(f"{values['token'] - values['tensor']:+.1f} dB in {'INT8' if form == 'int8' else form}")
        whole = _mean(found, kind, "FP8 attention, dense", "snr")
        lines.append(
            f"- {kind} (logit std {std:.1f}): a scale per token instead of one per tensor is worth "
            f"{' and '.join(worth)}; all of FP8 attention (Q, K, V, P; scale per tile) has {whole:.1f} dB."
        )
    lines.append(
        f"- Planted logits have a standard deviation of {LOGIT_STD:g} over the keys of a row (layers that have more "
        "keep it); planted outlier channels change no logit before rounding."
    )
    return "\n".join(lines)


def _mean(found, kind: str, name: str, metric: str) -> float:
    return sum(result["inputs"][kind][name][metric] for result in found.values()) / len(found)


def recipe(row: Row) -> str:
    """Return seed, steps and learning rate of a row, and its loss."""
    arm = row.arm
    return f"seed {arm.seed}, {arm.steps} steps, lr {arm.rate:g}, {label_of_loss(row)}"


def label_of_loss(row: Row) -> str:
    """Return the name of a row's loss."""
    if row.arm.ramp:
        return f"flow matching, ramp over {row.arm.ramp} steps"
    return {0.0: "flow matching", 0.5: "half teacher's velocity", 1.0: "teacher's velocity"}.get(
        row.arm.teacher, f"teacher {row.arm.teacher:g}"
    )


def search(rows: Sequence[Row]) -> str:
    """Return which of the recipes of one seed came nearest to its control, and what the rate and the steps changed."""
    judged = [row for row in rows if row.figures.closed is not None]
    if len(judged) < 2:
        return ""
    best = max(judged, key=lambda row: row.figures.closed)
    nearest = min(judged, key=lambda row: row.losses["C"])
    said = [f"The largest share ({best.figures.closed:.0%}) is that of: {recipe(best)}."]
    if nearest is not best:
        said.append(f"The lowest loss ({nearest.losses['C']:.4f}) is that of: {recipe(nearest)}.")
    excess = [row.figures.joint for row in judged if not row.arm.teacher and not row.arm.ramp]
    if len(excess) > 1:
        said.append(
            f"Flow matching alone ends {percent(min(excess))} to {percent(max(excess))} above its control, over all "
            "rates and numbers of steps that were tried."
        )
    drift = {row.arm.control: row.losses["D"] / row.losses["base"] - 1 for row in judged}
    changes = ", ".join(f"{percent(change)} ({arm.steps} steps, lr {arm.rate:g})" for arm, change in drift.items())
    said.append(f"The dense fine-tune itself (D) changes the base's loss by {changes}.")
    return " ".join(said)


def plateau(label: str, dense: Sequence[float], joint: Sequence[float]) -> str:
    """Return how far a joint fine-tune's training loss was above the dense one's, by thirds and at the start."""

    def excess(first: int, last: int) -> str:
        return percent(sum(joint[first:last]) / sum(dense[first:last]) - 1, 1)

    n = len(dense)
    thirds = ", ".join(excess(i * n // 3, (i + 1) * n // 3) for i in range(3))
    return f"{label}: {excess(0, min(20, n))} over the first {min(20, n)} steps, then by thirds of the run {thirds}."
