"""The report's HTML: one file with its pictures and previews inside."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .curves import excess_over, series
from .panels import Panel, Run
from .preview_files import last_previews
from .rates import rates

EMBEDDED = 24 << 20  # bytes of previews that a page carries at most

STYLE = """
:root { --ink: #1c1f24; --soft: #5d6570; --line: #dfe3e8; --card: #fff; --back: #f4f5f7; --blue: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 10px; }
.sub { color: var(--soft); margin: 2px 0 18px; }
.badge { font-size: 12px; padding: 2px 9px; border-radius: 10px; background: #e3edf9; color: var(--blue);
         vertical-align: 3px; margin-left: 8px; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 0; }
.tile { padding: 9px 13px; }
.tile b { display: block; font-size: 19px; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 12.5px; }
.grid { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; margin-top: 14px; }
figure { padding: 12px 14px 8px; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figcaption b { font-size: 14px; }
figcaption { color: var(--soft); font-size: 12.5px; }
figcaption b { display: block; color: var(--ink); }
figure svg, figure img { width: 100%; height: auto; display: block; margin-top: 6px; }
.videos { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 12px; }
.videos div { font-size: 12.5px; color: var(--soft); }
video { display: block; max-width: 100%; border-radius: 6px; background: #000; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); width: 100%; }
td, th { border-bottom: 1px solid var(--line); padding: 4px 10px; text-align: left; vertical-align: top; }
td:first-child { color: var(--soft); white-space: nowrap; width: 1%; }
td { overflow-wrap: anywhere; white-space: pre-wrap; font-family: ui-monospace, monospace; font-size: 12.5px; }
details { margin-bottom: 8px; } summary { cursor: pointer; font-weight: 600; font-size: 14px; padding: 4px 0; }
@media (max-width: 760px) { .grid { grid-template-columns: 1fr; } }
@media print { body { background: #fff; } figure, .tile { break-inside: avoid; } }
"""


def page(
    run: Run, dense: Run | None, about: dict[str, Any], drawings: Sequence[tuple[Panel, str]], folder: Path
) -> str:
    """Return the whole page."""
    state, when = _state(run, about)
    figures = "\n".join(_figure(panel, svg) for panel, svg in drawings)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_(run.name)}: training report</title><style>{STYLE}</style></head><body><main>
<h1>{_(run.name)}<span class="badge">{_(state)}</span></h1>
<p class="sub">{_(when)}</p>
<div class="tiles">{_tiles(run, dense)}</div>
<div class="grid">{figures}</div>
{_previews(folder)}
{_configuration(about)}
</main></body></html>
"""


def _(value: Any) -> str:
    return html.escape(str(value))


def _state(run: Run, about: dict[str, Any]) -> tuple[str, str]:
    taken, planned = run.records[-1]["step"] + 1, about.get("steps")
    state = (
        "finished" if planned and taken >= planned else f"step {taken:,} of {planned:,}" if planned else _steps(taken)
    )
    parts = []
    if about.get("device"):
        count = about.get("processes", 1)
        parts.append(f"{count} x {about['device']}" if count > 1 else about["device"])
    if about.get("started"):
        parts.append("started " + time.strftime("%Y-%m-%d %H:%M", time.localtime(about["started"])))
    parts.append("report of " + time.strftime("%Y-%m-%d %H:%M"))
    return state, " · ".join(parts)


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _tiles(run: Run, dense: Run | None) -> str:
    records = run.records
    loss, held_out = series(records, "loss"), series(records, "validation")
    tail = records[-max(1, len(records) // 10) :]
    found = [rates(record, run.peak) for record in tail]
    tiles = [("steps", f"{records[-1]['step'] + 1:,}")]
    seconds = sum(record.get("seconds") or 0.0 for record in records)
    if seconds:
        tiles += [("time in steps", _duration(seconds)), ("per step", f"{seconds / len(records):.3g} s")]
    if len(loss):
        count = max(1, len(loss) // 20)
        tiles.append((f"loss, last {count} steps" if count > 1 else "last loss", f"{loss.values[-count:].mean():.4f}"))
    if len(held_out):
        tiles.append(("held-out loss", f"{held_out.values[-1]:.4f}"))
    excess = excess_over(records, dense.records) if dense is not None else None
    if excess is not None:
        value, half = excess.last
        tiles.append(("over the dense run", f"{value:+.2%} ± {half:.2%}"))
    for key, name, form in (
        ("tokens_per_second", "tokens per second", "{:,.0f}"),
        ("mfu", "MFU, of dense BF16", "{:.1%}"),
        ("data_wait", "waiting for data", "{:.2%}"),
    ):
        values = [rate[key] for rate in found if key in rate]
        if values:
            tiles.append((name, form.format(sum(values) / len(values))))
    density = series(records, "density")
    if len(density):
        tiles.append(("mean density", f"{density.values.mean():.1%}"))
    memory = series(records, "memory")
    if len(memory):
        tiles.append(("peak memory", f"{memory.values.max() / 2**30:.2f} GiB"))
    skipped = records[-1].get("skipped")
    if skipped is not None:
        tiles.append(("steps skipped", f"{skipped:,}"))
    return "".join(f'<div class="tile"><b>{_(value)}</b><span>{_(name)}</span></div>' for name, value in tiles)


def _figure(panel: Panel, svg: str) -> str:
    kind = ' class="wide"' if panel.wide else ""
    return f"<figure{kind}><figcaption><b>{_(panel.title)}</b>{_(panel.said)}</figcaption>{svg}</figure>"


def _previews(folder: Path) -> str:
    found = last_previews(folder)
    if found is None:
        return ""
    room, parts = EMBEDDED, []
    for path in found.videos:
        size = path.stat().st_size
        if size <= room:
            room -= size
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            parts.append(
                f'<div><video src="data:video/mp4;base64,{data}" controls loop muted playsinline></video>'
                f"{_(path.name)}</div>"
            )
        else:
            parts.append(f"<div>{_(path.name)} is too large for this page; it lies in previews/</div>")
    sheet = base64.b64encode(found.sheet.read_bytes()).decode("ascii")
    return (
        f'<h2>Previews, step {found.step:,}</h2><figure class="wide"><figcaption>{_(found.said)}</figcaption>'
        f'<img alt="frames of the previews" src="data:image/png;base64,{sheet}">'
        f'<div class="videos">{"".join(parts)}</div></figure>'
    )


def _configuration(about: dict[str, Any]) -> str:
    config = about.get("config")
    if not isinstance(config, dict):
        return ""
    plain = {key: value for key, value in config.items() if not isinstance(value, dict)}
    sections = {"run": plain, **{key: value for key, value in config.items() if isinstance(value, dict)}}
    sections["versions"] = about.get("versions") or {}
    parts = []
    for name, values in sections.items():
        rows = "".join(f"<tr><td>{_(key)}</td><td>{_(_shown(value))}</td></tr>" for key, value in values.items())
        if rows:
            state = " open" if name == "attention" else ""
            parts.append(f"<details{state}><summary>{_(name)}</summary><table>{rows}</table></details>")
    return "<h2>Configuration</h2>" + "".join(parts)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value).strip("\n") if isinstance(value, str) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
