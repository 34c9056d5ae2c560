"""The report of a run: one HTML file that needs nothing else, and one picture, from the folder that the run wrote.

It can be made at any time, of a running run too.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

from ..files import replace_file
from .about import read_about
from .page import page
from .panels import Panel, Run, make_panels

LOG = "loss.jsonl"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fpsattention",
}

_log = logging.getLogger(__name__)


class ReportError(ValueError):
    """A folder that no report can be made of; the message is one sentence."""


def write_report(folder: str | Path, *, dense_run: str | Path | None = None) -> Path | None:
    """Return the path of the report just written into a run's folder, with a picture of the same name beside it.

    ``dense_run`` is the folder of a dense run to compare with; None: the one that the run's configuration names, if it
    is there. Without matplotlib, or on a full disk, None is returned and the log says why.
    Raises ReportError, one sentence, for a folder without a log.
    """
    folder = Path(folder)
    about = read_about(folder)
    run = _read_run(folder, about)
    dense = _dense_run(about, dense_run)
    try:
        from matplotlib import rc_context
    except ImportError:
        _log.warning("no report: matplotlib is not installed (pip install matplotlib)")
        return None
    panels = make_panels(run, dense)
    with rc_context(STYLE):
        drawings = [(panel, _svg(panel)) for panel in panels]
        picture = _picture(panels, run.name)
    target = folder / "report.html"
    try:
        replace_file(folder / "report.png", picture)
        replace_file(target, page(run, dense, about, drawings, folder).encode("utf-8"))
    except OSError as error:
        _log.warning("the report is not written: %s", error)
        return None
    return target


def _read_run(folder: Path, about: dict[str, Any]) -> Run:
    from ..journal import read_records

    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder; name the output folder of a run")
    records = read_records(folder / LOG)
    if not records:
        raise ReportError(f"{folder}: has no {LOG} with a step in it; name the output folder of a run")
    return Run(str(about.get("name") or folder.name), records, about.get("peak_flops"), _phase_names(about))


def _dense_run(about: dict[str, Any], given: str | Path | None) -> Run | None:
    if given is not None:
        return _read_run(Path(given), read_about(Path(given)))
    named = about.get("dense_run")
    if not named:
        return None
    path = Path(named).expanduser()
    try:
        return _read_run(path, read_about(path))
    except ReportError as error:
        _log.warning("no comparison with a dense run: %s", error)
        return None


def _phase_names(about: dict[str, Any]) -> tuple[str, ...]:
    from ...kernels.schedule import Schedule, ScheduleError

    try:
        phases = Schedule.parse(about.get("schedule") or "").phases
    except ScheduleError:
        return ()
    names = []
    for phase in phases:
        window = phase.selector or " ".join("all" if e is None else str(e) for e in phase.window or ())
        kind = " ".join(part for part in (phase.attention, phase.granularity, window) if part)
        names.append(f"σ ≥ {phase.until:.2f}  {kind}")
    return tuple(names)


def _svg(panel: Panel) -> str:
    figure = _figure((10.6, 3.6) if panel.wide else (5.2, 3.0))
    axes = figure.add_subplot()
    _draw(panel, axes)
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _picture(panels: list[Panel], name: str) -> bytes:
    wide, narrow = ([p for p in panels if p.wide is flag] for flag in (True, False))
    rows = len(wide) + (len(narrow) + 1) // 2
    figure = _figure((11, 0.4 + 3.1 * rows))
    figure.suptitle(name, x=0.01, ha="left", fontsize=13, fontweight="bold")
    grid = figure.add_gridspec(rows, 2)
    for i, panel in enumerate(wide):
        axes = figure.add_subplot(grid[i, :])
        axes.set_title(panel.title)
        _draw(panel, axes)
    for i, panel in enumerate(narrow):
        axes = figure.add_subplot(grid[len(wide) + i // 2, i % 2])
        axes.set_title(panel.title)
        _draw(panel, axes)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw(panel: Panel, axes: Any) -> None:
    axes.set_xlabel("optimizer step")
    panel.draw(axes)
