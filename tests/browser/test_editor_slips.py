"""The schedule editor where presets, links and subgraphs decide, where keys and pointers come at an awkward moment, and
what it draws: in a real page, in the canvas renderer and in Nodes 2.0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fpsattention.kernels.outlook import video_grid
from fpsattention.kernels.plan import plans_for
from fpsattention.kernels.presets import PRESETS
from fpsattention.kernels.schedule import Schedule

ROOT = Path(__file__).parent.parent.parent
HEAD = "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n"
THREE = HEAD + (
    "  0.95    dense\n"
    "  0.60    fp8         x2            all 50% 40%\n"
    "  0.00    fp8         x1            all 60% 60%\n"
)  # fmt: skip
NOTES = (
    "# fps-schedule v1, unit sigma (tuned for my cat)\n"
    "# until attention granularity window t h w -- keep t at all\n"
    "0.9 dense # first\n0 fp8 x1 all 50% 50%\n"
)
VIEW = {"width": 1280, "height": 720, "frames": 81, "steps": 20, "shift": 5, "side": 16, "heads": 40, "layers": 40}
CHECKS = [
    *("presetRows", "presetLinked", "sourceLinked", "blueprint", "twice"),
    *("runKey", "moveTyping", "neighbor", "twoFingers", "comma", "undoFocus", "notes", "panel", "drawing"),
    *("workflowView", "checkText"),
]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(server, drive, renderer, shots, editor_settings):
    """What every check found, in one page."""
    blueprint = json.loads((ROOT / "subgraphs" / "Wan2.1 + FPSAttention.json").read_text(encoding="utf-8"))
    job = {
        "name": "nodes-2" if renderer else "canvas",
        "shots": shots,
        "mild": PRESETS["mild"],
        "three": THREE,
        "notes": NOTES,
        "fpsView": VIEW,
        "blueprint": blueprint,
        "checks": CHECKS,
    }
    return drive(server, "editor.mjs", job, editor_settings(renderer), timeout=600)


def windows(text: str) -> list[tuple]:
    """What a text says, as tuples that read well in a failure."""
    return [(phase.until, *(phase.window or ("dense",))) for phase in Schedule.parse(text).phases]


BALANCED = windows(PRESETS["balanced"])


def test_preset_rows(check):
    """Rows of a preset that the text lacks are edited as any others, and the focus stays where it was."""
    for kind, place, changed in (
        ("arrows", ["2", "w"], (0.0, None, "40%", "50%")),
        ("typed", ["2", "h"], (0.0, None, "45%", "35%")),
    ):
        (preset, text), focused = check[kind]
        assert preset == "custom" and windows(text) == [*BALANCED[:2], changed], kind
        assert focused == place
    (preset, text), marked = check["dragged"]
    assert preset == "custom" and marked == 0
    assert [row[1:] for row in windows(text)] == [BALANCED[i][1:] for i in (2, 0, 1)]
    assert check["errors"] == []


def test_preset_linked(check):
    """A preset overrules a linked schedule: shown, said, and not to be changed."""
    assert "“balanced” runs, not the linked schedule" in check["note"]
    assert (check["rows"], check["enabled"]) == (3, 0)
    assert check["values"] == ["balanced", PRESETS["mild"]]


def test_source_linked(check):
    """What a linked node shows is not what runs if another node feeds it, so nothing is shown of it."""
    assert check["note"].startswith("Read-only: the schedule comes from") and not check["shown"]


def test_blueprint(check):
    """The pack's subgraph: its preset and text are edited inside, sent, kept outside, and undone."""
    note, rows = check["before"]
    assert note.startswith("The preset “mild” runs, not the text above.") and rows == 2
    edited = PRESETS["mild"].replace("all 60% 60%", "all 60% 35%")
    sent, outside, focused = check["edited"]
    assert (sent["preset"], sent["schedule"]) == ("custom", edited) and focused == ["1", "w"]
    assert outside in (["custom", edited], [None, None])
    sent, outside = check["undone"]
    assert (sent["preset"], sent["schedule"]) == ("mild", PRESETS["mild"])
    note, rows = check["fast"]
    assert "“fast” is meant for jointly trained weights" in note and rows == 3


def test_twice(check):
    """Two nodes of one subgraph have two texts, so the editor in it shows neither; where they share one, it does."""
    if check["linked"]:
        assert check["note"].startswith("Read-only") and not check["shown"]
    else:
        assert check["shown"]


def test_run_key(check):
    once, twice = check["seen"]
    assert windows(once)[1] == (0.6, None, "50%", "33%") and check["sent"] == [once]
    assert windows(twice)[1] == (0.6, None, "44%", "33%")


def test_move_typing(check):
    first, second, third = windows(THREE)
    moved = [first, (second[0], *third[1:]), (third[0], None, "50%", "33%")]
    assert windows(check["moved"]) == moved
    assert windows(check["after"]) == moved and len(check["problem"]) == 1


def test_neighbor(check):
    for text, lower in zip(check["seen"], (0.06, 0.29, 0.57)):
        assert windows(text)[0][0] == round(lower + 0.01, 2)
        assert len(text.splitlines()[2].split()[0]) == 4, text


def test_two_fingers(check):
    one, two, after = (windows(check[name])[0][0] for name in ("one", "two", "after"))
    assert one == two != after


def test_comma(check):
    assert windows(check["text"])[:2] == [(0.85, "dense"), (0.6, None, "50%", "33.5%")]


def test_undo_focus(check):
    assert check["seen"] == ["steps", "fast"] and check["text"] == THREE


def test_notes(check):
    assert check["text"] == HEAD + (
        "# (tuned for my cat)\n# -- keep t at all\n  0.85    dense  # first\n"
        "  0.00    fp8         x1            all 50% 50%\n"
    )


def test_panel(check):
    assert check["after"] == check["before"] > 400


def test_workflow_view(check):
    """Size and frames of the workflow's one video are taken over; what it does not say stays, and so does the text."""
    taken = check["before"] | {"width": "640", "height": "368", "frames": "33"}
    assert check["taken"] == taken != check["before"]
    assert "From the workflow: width, height, frames." in check["words"]
    assert "No node of this workflow" in check["nothing"] and check["text"] == THREE


def test_check_text(check):
    """The text of FPSAttention Check stands on the node and is copied by its button; it is not saved."""
    assert check["empty"].startswith("Run this node")
    assert check["text"].startswith("FPSAttention Check") and check["copied"].strip() == check["text"].strip()
    assert check["size"][0] >= 560 and check["saved"] in ([], [None], [""])


def test_drawing(check):
    """Bars, line and tiles are as high, as wide and where the numbers say."""
    schedule, steps = Schedule.parse(THREE), VIEW["steps"]
    plans = plans_for(schedule, video_grid(VIEW["width"], VIEW["height"], VIEW["frames"]), heads=40)
    sigmas = [VIEW["shift"] * u / (1 + (VIEW["shift"] - 1) * u) for u in (1 - i / steps for i in range(steps))]
    densities = [plans.density(sigma) for sigma in sigmas]
    zero, hundred = check["zero"], check["hundred"]
    assert len(check["bars"]) == steps and zero > hundred > 0
    done = 0.0
    for i, (bar, density, sigma) in enumerate(zip(check["bars"], densities, sigmas)):
        high = density * (zero - hundred)
        assert bar["box"] == pytest.approx([zero - high, high], abs=0.5), i
        phase = schedule.at(sigma)[0]
        assert bar["hatched"] == (density == 1) and bar["bright"] == (phase == 1) and bar["seen"]
        assert f"σ {sigma:.3f}: phase {phase + 1}" in bar["says"]
        done += density / steps
        assert check["line"][i + 1][1] == pytest.approx(zero - done * (zero - hundred), abs=0.5)
    dense = densities.count(1.0)
    assert check["steps"] == f"{steps} steps: {dense} dense, {steps - dense} sparse"
    # Phase 2 is in focus: 5 of 9 tiles in height, 8 of 20 in width, all of time.
    (frame, strip), (seen, times) = check["tiles"]
    nt, nh, nw = plans.tiling(0.7).pieces
    tiles = [-(-share * n // 100) for share, n in ((50, nh), (40, nw))]
    assert [seen[3] / frame[3], seen[2] / frame[2]] == pytest.approx([tiles[0] / nh, tiles[1] / nw], abs=0.01)
    assert times[2:] == pytest.approx(strip[2:], abs=0.5) and nt == 7
    assert frame[0] < seen[0] and seen[0] + seen[2] < frame[0] + frame[2], "the query in the middle sees both sides"
