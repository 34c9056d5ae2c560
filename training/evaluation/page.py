"""The evaluation's page: the table, how it was made, and the videos of every prompt side by side, in step."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .measure import Clip
from .request import Method, Settings
from .table import Mean, Row, count, time_of

STYLE = """
:root { --ink: #1c1f24; --soft: #5d6570; --line: #dfe3e8; --card: #fff; --back: #f4f5f7; --blue: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 28px 0 8px; overflow-wrap: anywhere; }
.sub, .note { color: var(--soft); font-size: 13px; margin: 4px 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
          margin: 16px 0 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 12.5px; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; } td small { color: var(--soft); }
tr.reference td { background: #fafbfc; color: var(--soft); } td.none { color: #a3abb5; }
.bar { position: sticky; top: 0; z-index: 2; background: var(--back); display: flex; gap: 12px; align-items: center;
       padding: 10px 0; border-bottom: 1px solid var(--line); margin-top: 20px; font-size: 13px; }
.bar input[type=range] { flex: 1; } button, select { font: inherit; padding: 4px 12px; border-radius: 6px;
       border: 1px solid var(--line); background: var(--card); cursor: pointer; } button { min-width: 84px; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--cell), 1fr)); gap: 10px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
video { width: 100%; display: block; background: #000; } figcaption { padding: 5px 10px 7px; font-size: 12.5px; }
figcaption span { color: var(--soft); } .seed { color: var(--soft); font-size: 12.5px; margin: 10px 0 4px; }
details { margin-top: 10px; } summary { cursor: pointer; font-weight: 600; font-size: 14px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; overflow-x: auto;
      font-size: 12.5px; }
"""

# All videos follow one clock: those in view play, and one that drifts by more than a frame is set right.
SCRIPT = """
const all = [...document.querySelectorAll('video')], seen = new Set();
const [play, bar, rate] = ['play', 'time', 'rate'].map(id => document.getElementById(id));
const length = Number(bar.dataset.length), frame = Number(bar.dataset.frame);
let at = 0, running = false, last = 0;
const watcher = new IntersectionObserver(list => list.forEach(e => {
  if (e.isIntersecting) { seen.add(e.target); e.target.preload = 'auto'; start(e.target); }
  else { seen.delete(e.target); e.target.pause(); }
}), {rootMargin: '200px'});
all.forEach(v => watcher.observe(v));
function start(v) { if (running) { v.playbackRate = Number(rate.value); v.play().catch(() => {}); } }
function set(on) {
  running = on; play.textContent = on ? 'Pause' : 'Play'; last = performance.now();
  seen.forEach(v => on ? start(v) : v.pause());
}
function tick(now) {
  if (running) {
    at = (at + Math.max(0, now - last) / 1000 * Number(rate.value)) % length; last = now; bar.value = at;
  }
  seen.forEach(v => {
    const drift = Math.abs(v.currentTime - at);
    if (v.readyState > 0 && !v.seeking && drift > (running ? 1.5 * frame : frame / 4) && drift < length - 2 * frame)
      v.currentTime = Math.min(at, v.duration - frame / 4);
    if (running && v.paused) start(v);
  });
  requestAnimationFrame(tick);
}
play.onclick = () => set(!running);
bar.oninput = () => { at = Number(bar.value); };
rate.onchange = () => seen.forEach(v => { v.playbackRate = Number(rate.value); });
document.addEventListener('keydown', e => {
  if (e.target.closest('button, select, input')) return;
  if (e.key === ' ') { e.preventDefault(); set(!running); }
  if (e.key === 'ArrowRight' || e.key === 'ArrowLeft') {
    set(false);
    at = Math.min(length - frame, Math.max(0, at + (e.key === 'ArrowRight' ? frame : -frame)));
    bar.value = at;
  }
});
requestAnimationFrame(tick);
"""


def page(rows: Sequence[Row], clips: Sequence[Clip], settings: Settings, facts: dict[str, Any], out: Path) -> str:
    """Return the page; videos are named relative to ``out``. ``facts`` has reasons for columns without numbers."""
    length = settings.frames / settings.fps
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Attentions compared</title><style>{STYLE}</style></head><body><main>
<h1>Attentions compared</h1>
<p class="sub">{_(facts["settings"])}</p>
<div class="scroll">{_table(rows, facts)}</div>
{"".join(f'<p class="note">{_(note)}</p>' for note in facts["notes"])}
<details><summary>Schedules</summary>{_schedules([row.method for row in rows])}</details>
<div class="bar"><button id="play">Play</button>
<input id="time" type="range" aria-label="time" min="0" max="{length:.4f}" step="any" value="0"
 data-length="{length:.6f}" data-frame="{1 / settings.fps:.6f}">
<label>speed <select id="rate"><option value="0.25">¼</option><option value="0.5">½</option>
<option value="1" selected>1</option></select></label><span class="sub">space plays, arrows step by frames</span></div>
{_clips(rows, clips, settings, out)}
</main><script>{SCRIPT}</script></body></html>
"""


def _(value: Any) -> str:
    return html.escape(str(value))


def _table(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    heads = (
        "Method", "PSNR ↑", "SSIM ↑", "LPIPS ↓", "VBench ImgQual ↑", "SubjCons ↑", "density", "FLOPs", "latency",
        "speedup",
    )  # fmt: skip
    lines = ["<table><thead><tr>" + "".join(f"<th>{_(head)}</th>" for head in heads) + "</tr></thead><tbody>"]
    for row in rows:
        equal = row.equal == row.videos and not row.reference
        psnr = "<td>equal</td>" if equal else _mean(row.psnr, 2, None if row.reference else "–")
        cells = [
            f"<td>{_(row.method.title)}</td>",
            psnr,
            _mean(row.ssim, 4),
            _mean(row.lpips, 4, None if row.reference else facts["lpips"]),
            _cell(None if row.imaging is None else f"{row.imaging:.4f}", facts["vbench"]),
            _cell(None if row.subject is None else f"{row.subject:.4f}", facts["vbench"]),
            _cell(None if row.density is None else f"{row.density:.1%}", "chosen online"),
            _cell(None if row.flops is None else count(row.flops), "chosen online"),
            f"<td>{time_of(row.latency)}</td>",
            f"<td>{row.speedup:.2f}</td>",
        ]
        lines.append(f"<tr{' class=reference' if row.reference else ''}>{''.join(cells)}</tr>")
    return "".join(lines) + "</tbody></table>"


def _mean(mean: Mean | None, digits: int, missing: str | None = None) -> str:
    if mean is None:
        return _cell(None, missing)
    error = "" if mean.error is None else f" <small>± {mean.error:.{digits}f}</small>"
    return f"<td>{mean.value:.{digits}f}{error}</td>"


def _cell(text: str | None, missing: str | None = None) -> str:
    return f'<td class="none">{_(missing or "–")}</td>' if text is None else f"<td>{_(text)}</td>"


def _schedules(methods: Sequence[Method]) -> str:
    return "".join(
        f"<p class=note>{_(m.title)}: {_(m.model.files)}, {m.attention.slots} slots per tile</p>"
        f"<pre>{_(m.attention.schedule.format())}</pre>"
        for m in methods
    )


def _clips(rows: Sequence[Row], clips: Sequence[Clip], settings: Settings, out: Path) -> str:
    titles = {row.method.key: row.method.title for row in rows}
    cell = 240 if settings.width >= settings.height else 170
    parts = []
    for number, prompt in enumerate(settings.prompts):
        parts.append(f"<h2>{_(prompt) if prompt else 'No prompt'}</h2>")
        for seed in settings.seeds:
            parts.append(f'<p class="seed">seed {seed}</p><div class="clips" style="--cell: {cell}px">')
            for clip in clips:
                if (clip.prompt, clip.seed) == (number, seed):
                    source = quote(clip.video.relative_to(out).as_posix())
                    parts.append(
                        f'<figure><video src="{source}" muted playsinline preload="metadata"></video>'
                        f"<figcaption>{_(titles[clip.method])} <span>{_(_said(clip))}</span></figcaption></figure>"
                    )
            parts.append("</div>")
    return "".join(parts)


def _said(clip: Clip) -> str:
    took = time_of(clip.facts["seconds"])
    if clip.reference:
        return f"reference, {took}"
    return f"{'equal' if clip.psnr is None else f'{clip.psnr:.2f} dB'}, {took}"
