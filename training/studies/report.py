"""The study's report: Markdown and pictures, made from the results file and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import plan, plots, tables
from .results import Results, Row, load_results
from .statistics import SMALLEST_GAP, mean_and_spread

GOAL = {"cpu": 0.70, "h200": 0.95}


def write_report(results: Path, folder: Path) -> list[Path]:
    """Write ``fidelity.md`` (``fidelity-<size>.md`` for another size than cpu) with its pictures; return the paths.

    Raises ConfigError for a missing or broken results file.
    """
    loaded = load_results(results)
    stem = "fidelity" if loaded.size.name == "cpu" else f"fidelity-{loaded.size.name}"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(loaded, folder, stem)
    text = folder / f"{stem}.md"
    text.write_text(markdown(loaded, stem), encoding="utf-8")
    return [text, *pictures]


def draw(results: Results, folder: Path, stem: str) -> list[Path]:
    """Draw every picture that there are results for."""
    made = []
    if len(results.conditions["base"]["held_out"]) > 1:
        made.append(plots.plot_base(results.conditions["base"]["held_out"], folder / f"{stem}-base.png"))
    core = results.rows(plan.core(results.size))
    curves = {
        f"{row.arm.steps} steps": (results.curve(row.arm.control), results.curve(row.arm)) for row in plain(results)
    }
    if curves:
        made.append(plots.plot_core(curves, folder / f"{stem}-curve.png"))
    if core:
        first = core[0]
        lines = {
            "training-free, over the base (A)": {
                sigma: first.per_sigma["A"][sigma] / first.per_sigma["base"][sigma] * first.per_sigma["D"][sigma]
                for sigma in first.per_sigma["A"]
            },
            "dense fine-tune used sparse (B)": first.per_sigma["B"],
            "joint fine-tune (C)": first.per_sigma["C"],
        }
        made.append(plots.plot_sigma(lines, first.per_sigma["D"], folder / f"{stem}-sigma.png"))
    points = tables.density_points(results, results.rows(plan.density(results.size)))
    if all(points.values()):
        made.append(plots.plot_density(points, folder / f"{stem}-density.png"))
    if found := results.quantization():
        made.append(plots.plot_quantization(found, folder / f"{stem}-granularity.png"))
        made.append(plots.plot_steps(found, folder / f"{stem}-steps.png"))
    return made


def plain(results: Results) -> list[Row]:
    """Return the joint fine-tunes by flow matching alone, whose training loss is the dense one's kind of loss."""
    size = results.size
    rows = results.rows([*plan.rates(size), *plan.steps(size)])
    return [
        row
        for row in rows
        if not (row.arm.teacher or row.arm.seed)
        and row.arm.rate == size.rate
        and results.curve(row.arm)
        and results.curve(row.arm.control)
    ]


def markdown(results: Results, stem: str) -> str:
    """Return the report."""
    size = results.size
    rates, core = results.rows(plan.rates(size)), results.rows(plan.core(size))
    density, losses = results.rows(plan.density(size)), results.rows(plan.losses(size))
    tried = [*rates, *losses, *results.rows(plan.steps(size)), *core]
    searched = list({row.arm: row for row in tried if not row.arm.seed}.values())
    direction, videos = results.rows(plan.direction(size)), plan.videos(size)
    sections = [
        _head(results),
        _conditions(results, stem),
        _pairs(results, [*rates, *losses, *core, *density, *direction]),
        "## a. Core: joint fine-tuning at 15 % density",
        _core(results, core, stem),
        "### What was tried for the core: learning rate, steps, loss, ramp",
        tables.comparisons(searched, tables.recipe),
        tables.search(searched),
        _curves(results),
        f"![joint over dense while training]({stem}-curve.png)" if plain(results) else "",
        "## b. Density, and the shape of windows",
        tables.comparisons(density, lambda row: row.arm.window) + tables.refusals(density),
        tables.shape_cost(density),
        f"![excess by density]({stem}-density.png)" if density else "",
        "## c. Losses, and a ramp of sparsity",
        tables.comparisons(losses, tables.label_of_loss),
        _losses(losses),
        _repeated(results, core),
        "## d. Direction of the schedule at equal mean density",
        _DIRECTION,
        "Training-free, constant shapes of one density and the schedules (loss at the nine levels):",
        tables.shapes(results),
        "After joint fine-tuning (loss at the nine levels):",
        tables.directions(direction) + tables.refusals(direction),
        f"Sampled videos ({size.sampling_steps} steps, same noise, against the dense control's videos):",
        tables.video_table(results, videos),
        tables.video_sentence(results, videos),
        tables.direction_verdict(results, direction, videos),
        "## e. Quantization: granularity, noise levels, logits, outliers",
        _QUANTIZATION,
        tables.quantization_table(results),
        tables.quantization_sentences(results),
        f"![SNR by granularity]({stem}-granularity.png)" if results.quantization() else "",
        "Per noise level, the base's own inputs, against exact dense attention. Sparse is the core's window, which is "
        "smaller at low noise:",
        tables.step_table(results),
        f"![errors per noise level]({stem}-steps.png)" if results.quantization() else "",
        "## What falls short",
        _shortfalls(results, core, density),
    ]
    return "\n\n".join(section for section in sections if section).rstrip() + "\n"


def _head(results: Results) -> str:
    return (
        "# Fidelity: what sparse FP8 attention costs, and what a joint fine-tune gives back\n\n"
        f"Generated from `training/studies/results/{results.size.name}.json` by `python -m training.studies report`; "
        "`make study-base` and `make study` make both again.\n\n"
        "Every joint fine-tune (C) stands against two controls: the dense fine-tune of equal steps, rate, batches, "
        "noise and noise levels, used densely (D), and the same weights used sparse without training (B). A is the "
        "base used sparse. Losses are the held-out flow-matching loss at fixed noise levels with fixed noise. "
        f"Gap closed = (B - C) / (B - D); it is refused where A is less than {SMALLEST_GAP:.0%} above the dense base. "
        "Against the base = (A - C) / (A - base): where the dense fine-tune (D) is no better than the base, this is "
        "the stricter one."
    )


def _conditions(results: Results, stem: str) -> str:
    facts, base = results.conditions, results.conditions["base"]
    curve = list(base["held_out"].items())
    start = f"from {base['start']}, {base['steps']} dense steps at lr {base['rate']:g} (cosine), {base['seconds']} s"
    lines = [
        "## Conditions",
        f"- {facts['parameters'] / 1e6:.1f} M parameters, {facts['tokens']} tokens a sample, batch {facts['batch']}; "
        f"tiles of {' x '.join(map(str, results.size.tile))} tokens; FP8 with a scale per tile.",
        f"- Clips: {', '.join(facts['clips'])}; {facts['training_samples']} training samples; validation on "
        f"{facts['held_out_samples']} samples of the clips' held-out ends: unseen time, not unseen content.",
        f"- {facts['machine']}, {facts['threads']} thread, torch {facts['torch']}; put together at commit "
        f"{facts['commit']}, {facts['date']}.",
        f"- Base: {start}; its file's SHA-256 begins {base['sha256'][:12]}.",
    ]
    if len(curve) > 1:
        (before, earlier), (last, final) = curve[-2:]
        change = final / earlier - 1
        flat = "flat" if abs(change) < 0.003 else "**not flat**: the base had not converged"
        lines.append(
            f"- Held-out loss of the base: {', '.join(f'{value:.4f} ({step})' for step, value in curve)}; "
            f"{tables.percent(change)} from step {before} to {last}, which is {flat}."
        )
    picture = [f"\n![held-out loss of the base]({stem}-base.png)"] if len(curve) > 1 else []
    return "\n".join([lines[0], "", *lines[1:], *picture])


def _pairs(results: Results, rows: Sequence[Row]) -> str:
    unpaired = results.unpaired(rows)
    if unpaired:
        return f"**Not paired**, so not comparable: {'; '.join(unpaired)} drew other noise levels than their control."
    return (
        f"Each of the {len(rows)} comparisons below is paired: the arm drew the noise levels of its control, in order."
    )


def _core(results: Results, core, stem: str) -> str:
    if not core:
        return tables.NOTHING
    parts = [
        tables.comparisons(core, tables.recipe),
        tables.spread(core) + " " + tables.verdict(core, GOAL[results.size.name]),
    ]
    alone, base = (results.of(plan.Measure(None, window)) for window in ("fp8 only", "dense"))
    if alone and base:
        change = tables.percent(alone["loss"] / base["loss"] - 1)
        parts.append(f"FP8 without sparsity changes the base's loss by {change}.")
    parts.append(f"![excess by noise level]({stem}-sigma.png)")
    return "\n\n".join(parts)


def _curves(results: Results) -> str:
    said = [
        tables.plateau(f"{row.arm.steps} steps", results.curve(row.arm.control), results.curve(row.arm))
        for row in plain(results)
    ]
    if not said:
        return ""
    return (
        "Training loss of the joint fine-tune over the dense one's on the same batches, flow matching alone. "
        + " ".join(said)
        + " Where the curve is flat, more steps give little: what is left is what these windows take away, or what "
        "training from dense weights does not find."
    )


def _losses(rows) -> str:
    if len(rows) < 2:
        return ""
    best = min(rows, key=lambda row: row.losses["C"])
    worst = max(rows, key=lambda row: row.losses["C"])
    return (
        f"Lowest C: {tables.label_of_loss(best)}; highest: {tables.label_of_loss(worst)}, "
        f"{tables.percent(worst.losses['C'] / best.losses['C'] - 1)} above it. One seed each; compare with the spread "
        "over seeds in a. The teacher is the base as it was: its own error bounds what it can teach."
    )


def _repeated(results: Results, core: Sequence[Row]) -> str:
    """Return flow matching alone beside the core's loss, over the seeds that both have."""
    plain_of = {row.arm.seed: row for row in results.rows(plan.steps(results.size)) if not row.arm.teacher}
    pairs = [(plain_of[row.arm.seed], row) for row in core if row.arm.seed in plain_of]
    if not pairs or not core[0].arm.teacher:
        return ""
    rows = [row for pair in pairs for row in pair]
    changes = [other.losses["C"] / one.losses["C"] - 1 for one, other in pairs]
    mean, deviation = mean_and_spread(changes)
    judged = f"{tables.percent(mean)} ± {100 * deviation:.2f}" if len(changes) > 1 else tables.percent(mean)
    return (
        f"The same with {core[0].arm.steps} steps, over {len(pairs)} seeds:\n\n"
        + tables.comparisons(rows, tables.recipe)
        + f"\n\nHalf the teacher's velocity instead of flow matching alone changes C by {judged} (paired by seed)."
    )


def _shortfalls(results: Results, core, density) -> str:
    lines = []
    goal = GOAL[results.size.name]
    lines.append(f"- {tables.verdict(core, goal)}")
    if core:
        excess = sum(row.figures.joint for row in core) / len(core)
        lines.append(
            f"- After joint training the loss is still {tables.percent(excess)} above the dense control"
            + (" (the paper reports less than 2 % at its size)." if excess >= 0 else ".")
        )
    if any(row.figures.closed is None for row in density):
        lines.append("- Where sparsity costs less than 3 % without training, nothing can be said about recovery.")
    lines += [
        "- One seed outside the core and the repeated losses; four clips; validation is unseen time of seen clips.",
        "- The base is small and was still improving where it ended; the recipe of the core was chosen on its seed 0.",
        "- Training from scratch with sparse attention was not tried, so whether dense weights are a bad start is "
        "open; learning rate, steps, loss and ramp were tried.",
        "- The large size (`--size h200`) is there to be run on a card and was not run."
        if results.size.name == "cpu"
        else "",
    ]
    missing = [job.key for job in plan.jobs(results.size) if results.of(job) is None]
    if missing:
        lines.append(f"- Not run: {len(missing)} of {len(plan.jobs(results.size))} jobs.")
    return "\n".join(line for line in lines if line)


_DIRECTION = (
    "A constant window is compared with the paper's sparse-dense-medium and with dense-medium-sparse (dense first), "
    "all of mean density 25 %. Which schedules, and sparse-dense-medium against constant as the question, was fixed "
    "before any of them was trained or sampled; the windows' shapes (tall: more rows than columns; flat: the reverse) "
    "were chosen by the training-free losses below. Each schedule has a third of the trajectory per phase: 8.3, 50 and "
    "16.7 % of the pairs, full time. Noise levels are the middles of nine equal parts of the trajectory."
)
_QUANTIZATION = (
    "Attention's output on the base's own Q, K and V, mean over layers and noise levels. Q and K are rounded, P and V "
    "are exact; sparse is against sparse, dense against dense. SNR in dB. e4m3 keeps 3 bits of mantissa at any scale, "
    "so the scale's granularity decides little; INT8 has one step size per scale."
)
