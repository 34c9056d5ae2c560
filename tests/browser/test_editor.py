"""The schedule editor in a real page, in the canvas renderer and in Nodes 2.0: what it does to the text, to undo, to
copies, subgraphs and prompts, and what it looks like.

``FPS_SHOTS`` names a folder for screenshots to look at; ``FPS_WRITE_IMAGES=1`` writes the README's picture.
``COMFYUI_FRONTEND`` names another frontend's ``static`` folder.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fpsattention.kernels.presets import PRESETS
from fpsattention.kernels.schedule import Schedule, ScheduleError

HERE = Path(os.path.abspath(__file__)).parent
IMAGE = HERE.parent.parent / "docs" / "images" / "editor.png"

HEAD = "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n"
THREE = HEAD + (
    "  0.95    dense\n"
    "  0.60    fp8         x2            all 50% 40%\n"
    "  0.00    fp8         x1            all 60% 60%\n"
)  # fmt: skip
WORDS = HEAD + (
    "  0.95    fp8         x1            heads\n"
    "  0.80    fp8         x2            svg 0.3\n"
    "  0.60    bf16        -             topk 0.15 0.6\n"
    "  0.30    fp8         x1            cdf 0.9\n"
    "  0.00    fp8         x1            all 60% 60%\n"
)  # fmt: skip
VIEW = {"width": 1280, "height": 720, "frames": 81, "steps": 20, "shift": 5, "side": 16, "heads": 40, "layers": 40}
BROKEN = [
    "",
    "0.5 sparse\n0 dense",
    "\n\n   0.5 fp8 x3 all all all",
    "0.5 fp8 x1 svg 0.3",
    '[{"until": 0, "attention": "dense"},]',
    '{"version": 7}',
    "0.5 dense",
    "0 fp8 x1 \u4e2d all all",
]
ENTRY = {
    "card": "NVIDIA H200", "backend": "triton-fp8", "attention": "fp8", "granularity": "x1", "slots": 64,
    "tile": [3, 5, 4], "head_dim": 128, "tokens": 32760, "heads": 12, "pattern": "window",
    "points": [[0.1, 1.5], [0.3, 3.75], [0.6, 7.0]], "dense_ms": 12.25, "dense_backend": "cudnn",
    "measured": "2026-11-01T10:00:00", "torch": "2.9", "triton": "3.5", "driver": "580",
}  # fmt: skip
CHECKS = [
    *("keyboard", "mouse", "invalid", "saveAndRun", "preset", "undo", "keys", "wheel", "copy", "subgraph", "linked"),
    *("unparsable", "anyText", "view", "tiles", "zoom", "old", "seconds", "promoted"),
    *("leaks", "viewFields", "drafts", "extremes", "paste", "dragged", "modes", "settings", "tabs", "window"),
    "answers",
]


def sentence(text: str) -> str | None:
    try:
        Schedule.parse(text)
    except ScheduleError as error:
        return str(error)
    return None


def rows(text: str) -> list[tuple]:
    """What a text says, as tuples that read well in a failure; raises where it does not parse."""
    return [
        (phase.until, phase.attention, *([phase.granularity, *phase.window] if phase.window else []))
        for phase in Schedule.parse(text).phases
    ]


def anything() -> list[str]:
    draw = random.Random(5)
    letters = " \n\t0.5densefp8x1%all#{}[]\":,\\<>&'\u4e2d\U0001f600\u2028\x00-"
    return ["".join(draw.choice(letters) for _ in range(draw.randrange(80))) for _ in range(150)]


@pytest.fixture(scope="module")
def job(renderer, shots) -> dict:
    return {
        "name": "nodes-2" if renderer else "canvas",
        "shots": shots,
        "mild": PRESETS["mild"],
        "three": THREE,
        "words": WORDS,
        "broken": BROKEN,
        "anything": anything(),
        "fpsView": VIEW,
        "entries": [ENTRY],
        "theme": "dark",
        "locale": "en",
    }


@pytest.fixture(scope="module")
def page(server, drive, renderer, job, editor_settings):
    """What every check found, in one page."""
    found = drive(server, "editor.mjs", job | {"checks": CHECKS}, editor_settings(renderer), timeout=600)
    assert found["startup"] == [] and found["askedEarly"] == 0, "the server starts Triton to answer"
    return found


pytestmark = pytest.mark.browser
MILD_WINDOW = ("fp8", "x1", None, "60%", "60%")


def test_keyboard(check):
    until, attention, window, moved, added, removed, back = map(rows, check["seen"])
    assert until == [(0.8, "dense"), (0.0, *MILD_WINDOW)]
    assert attention == [(0.8, *MILD_WINDOW), (0.0, *MILD_WINDOW)]
    edited = ("fp8", "x2", None, 13, "60%")
    assert window == [(0.8, *edited), (0.0, *MILD_WINDOW)]
    assert moved == [(0.8, *MILD_WINDOW), (0.0, *edited)]
    assert check["focused"] == ["1", "h"]
    assert [row[1:] for row in added] == [MILD_WINDOW, edited, edited] and 0 < added[1][0] < 0.8
    assert removed == [(added[1][0], *edited), (0.0, *edited)] or removed == added[1:]
    assert [row[0] for row in back] == [row[0] for row in removed]


def test_mouse(check):
    added, removed, dragged, chosen, ended, fast = check["seen"]
    first, second, third = (row[1:] for row in rows(THREE))
    assert [row[1:] for row in rows(added)] == [first, second, second, third]  # phase 2 is selected at first
    assert [row[1:] for row in rows(removed)] == [second, second, third]
    assert [row[1:] for row in rows(dragged)] == [third, second, second]
    assert [row[0] for row in rows(dragged)] == [row[0] for row in rows(removed)]
    assert rows(chosen)[1][1:] == ("bf16", None, *second[2:])
    assert rows(removed)[0][0] < rows(ended)[0][0] <= 1 and rows(ended)[1:] == rows(chosen)[1:]
    assert fast == PRESETS["fast"] and check["picked"] == "2"


def test_invalid(check):
    """A value that cannot be used stays in its field with Python's words, and the text stays as it was."""
    assert check["same"] and check["after"] == []
    said = {value: problems for value, problems, *_ in check["seen"]}
    for value, problems, invalid, shown in check["seen"]:
        assert len(problems) == 1 and invalid == "true" and shown == value, value
        assert problems[0].endswith(".") and not problems[0].startswith("line"), problems
    assert said["2"] == ["'until' is 2, but sigma runs from 1 down to 0."]
    assert "'until' is 0.6 after 0.3" in said["0.3"][0]
    assert said["0"] == ["the extent 0 is not positive; write at least 1, or all."]


def test_save_and_run(check):
    assert rows(check["edited"])[1] == (0.0, "fp8", "x1", None, "60%", "45%")
    assert check["reloaded"] == check["edited"]
    assert check["widgets"] == ["custom", check["edited"]]
    assert check["prompt"] == check["sent"] == {"preset": "custom", "schedule": check["edited"]}
    assert check["status"] == "success"
    assert any(check["edited"] in output.get("text", [""])[0] for output in check["outputs"].values())


def test_preset(check):
    """A preset is shown; the first change copies it into the text and selects custom."""
    assert "balanced" in check["note"] and check["before"] == ["balanced", PRESETS["mild"]]
    preset, text = check["after"]
    assert preset == "custom" and rows(text) == [
        row if i != 1 else (0.5, *row[1:]) for i, row in enumerate(rows(PRESETS["balanced"]))
    ]


def test_undo(check):
    assert check["edited"] != check["before"] and check["dragged"] != check["before"]
    assert check["undone"] == [check["before"]] * 3
    assert check["redone"] == [check["edited"]]
    assert check["focused"] == "h"


def test_keys(check):
    """No key that is pressed in the editor reaches the graph."""
    assert check == {"count": 2, "mode": 0}


def test_wheel(check):
    assert check["zoomed"] > check["before"]
    assert check["scrolled"] > 0 and check["after"] == check["before"]


def test_copy(check):
    assert len(check["ids"]) == check["editors"] == 2
    assert rows(check["copied"])[1][-1] == rows(check["first"])[1][-1] == "25%"
    assert rows(check["second"])[1][-1] == "55%"


def test_subgraph(check):
    assert rows(check["inside"])[1][-1] == "35%"
    assert ["FPSAttentionSchedule", check["inside"]] in check["prompt"]


def test_promoted(check):
    """Where a subgraph offers the text outside, the editor inside works on that one."""
    assert not check["note"].startswith("Read-only")
    assert ["FPSAttentionSchedule", PRESETS["mild"].replace("all 60% 60%", "all 60% 35%")] in check["prompt"]


def test_linked(check):
    assert check["shown"].startswith("Read-only") and "Edit it there" in check["shown"]
    assert check["rows"] == 3 and check["enabled"] == 0 and check["same"] and check["again"] > 0


def test_unparsable(check):
    """Python's sentence, word for word; the text is not touched, and a preset helps out."""
    for text, said, left, table in check["seen"]:
        assert said == sentence(text), text
        assert left == text and not table
    assert check["unknown"] == f"'turbo' is no preset; choose one of custom, {', '.join(PRESETS)}."
    assert check["mended"] == PRESETS["fast"]


def test_any_text(check):
    assert check == {"errors": [], "rows": 2}


def test_view(check):
    """The picture's resolution and steps change the picture and nothing that is sent."""
    assert check["before"] != check["after"] and check["bars"] == 4
    assert "height" in check["sentence"] and "16384" in check["sentence"]
    assert check["properties"] == VIEW | {"steps": 4, "shift": 8}
    assert set(check["prompt"]) == {"preset", "schedule"}
    assert "at most 2000000 are planned" in check["toolarge"]


def test_tiles(check):
    places = [caption.split("Query tile ")[1] for caption in check["seen"]]
    assert places[:7] == ["4, 4, 7.", "4, 4, 6.", "4, 3, 6.", "5, 3, 6.", "5, 3, 7.", "5, 4, 7.", "4, 4, 7."]
    assert len(set(places[6:])) == 3


def test_zoom(check):
    for found in check["found"]:
        assert abs(found["moved"] - 40) < 8
        (end, *_), (_, *window) = rows(found["text"])
        assert end < 0.92 and window[-2] == "20%"


def test_seconds(check):
    """Seconds only where the current card was measured, and named as such."""
    first, before, known, other, _, again, last, scaled, unlike, idle, nothing = check["seen"]
    assert first == known and check["asked"] == [0, 1, 2], "asked with the first editor, and after runs beside one"
    assert before == other == unlike and before.startswith("Seconds appear once the FPSAttention Benchmark node has")
    # 20 steps of 30 layers: 9 dense, 11 at 41 % (224 of 546 tiles, weighted by their tokens)
    assert known.startswith("4.9 s of attention instead of 7.3 s") and "on NVIDIA H200 with triton-fp8" in known
    assert "from 32,760 tokens measured on NVIDIA H200" in scaled
    assert "(about as fast)" in idle and "with cudnn. On this machine sparse steps stay dense" in idle
    assert nothing.startswith("On this machine sparse steps stay dense; the FPSAttention Check node")
    assert again.startswith("4.1 s of attention instead of 7.3 s") and last == known, "measured again, same size"


def test_old(check):
    """A workflow of a version without the editor opens unchanged, small as it is, and can be edited."""
    assert check["after"] == check["before"]
    assert rows(check["edited"])[1][0] == 0.55
    height, seen, width, room = check["scroll"]
    assert height > seen and width <= room


def test_leaks(check):
    """One editor: two observers and one timer, however many graphs came and went, and nothing at the end."""
    assert check.pop("cleared") == [0, 0]
    assert check == {name: [2, 1] for name in ("one", "loaded", "cloned", "subgraph", "subgraphLoaded")}


def test_view_fields(check):
    """What is no number is said for each field by name until that field is right, and never read as another number."""
    told = [[line.split(":")[0] for line in lines] for lines in check["seen"]]
    assert told == [["frames"], ["frames", "steps"], ["frames", "steps"], ["frames", "steps"], ["steps"], []]
    assert "“1,000”" in check["seen"][0][0] and "“ten”" in check["seen"][1][1]
    assert check["kept"][0] == "1,000" and check["kept"][1].endswith("-frames")
    view = check["view"]
    assert [view[name] for name in ("width", "frames", "steps", "shift")] == [1280, 33, 20, 2.1]


def test_drafts(check):
    """What cannot be used stays in its field, with its sentence, while other fields are taken."""
    (both,) = check["both"]
    assert "'many' is no extent" in both and "the extent 0 is not positive" in both
    assert check["left"] == ["many", [both]] and check["taken"] == ["many", "true", [both]]
    assert check["after"] == [] and rows(check["text"])[1][-3:] == (7, "50%", "30%")


def test_extremes(check):
    """Phases, bars, handles, error, caption of the largest and the smallest; a drag is drawn once per frame."""
    seen = {name: found for name, found in check.items() if isinstance(found, list)}
    assert all(found[3] == "" for found in seen.values()), seen
    drawn = {name: tuple(found[:3]) for name, found in seen.items()}
    assert drawn["twenty"] == (20, 20, 19) and drawn["one"] == (1, 20, 0) and drawn["oneStep"] == (1, 1, 0)
    assert drawn["manySteps"][1] <= 20 and drawn["thousand"][1] == 2, "steps narrower than a pixel are drawn together"
    assert check["full"] == "There are 20 phases already." and not check["removable"]
    assert "1 of 1 tiles" in seen["tiny"][4] and "of 16384 tiles" in seen["enormous"][4]
    assert "from 1 to 1000" in check["more"]
    assert 1 <= check["drag"]["redraws"] <= 12, "200 events in 10 frames"


def test_paste(check):
    """Tabs, CRLF, a byte order mark, comments and JSON: shown, and edited without loss of comments."""
    for pasted in check:
        if pasted["rows"]:
            given, after = rows(pasted["before"]), rows(pasted["after"])
            assert after == [(0.95, *given[0][1:]), *given[1:]]
        else:
            assert pasted["after"] == pasted["before"] and pasted["error"].startswith(sentence(pasted["before"]))
        comments = [line.partition("#")[2].strip() for line in pasted["before"].splitlines() if "#" in line]
        assert all(comment in pasted["after"] for comment in comments)
    assert [pasted["rows"] for pasted in check] == [2, 2, 0, 2]


def test_dragged(check):
    """What is dragged may go away meanwhile."""
    assert check["texts"][0] == "0 dense" and len(rows(check["texts"][1])) == 2
    assert check["held"] == [0, 0]


def test_modes(check):
    assert check == [["collapsed", False, True], ["muted", True, True], ["bypassed", True, True]]


def test_settings(check):
    """One editor through palettes, languages and renderers, and what is edited in each is in the text."""
    look = [[1, light, f"+ {'添加阶段' if zh else 'Add phase'}", 2, 1] for light, zh in (
        (False, False), (True, False), (False, False), (False, True), (False, False), (False, False), (False, False)
    )]  # fmt: skip
    assert check["seen"] == look
    assert check["texts"] == ["41%", "42%", "43%"]


def test_tabs(check):
    first, second = [2, "21%", "21%", [2, 1]], [3, "22%", "22%", [2, 1]]
    assert check == [first, second, first]


def test_window(check):
    for found in check:
        assert found["page"][0] == found["zoom"] and abs(found["moved"] - 40) < 3 and found["over"] <= 0, found


def test_answers(check):
    """A late answer does not replace a newer one, and no answer stops the editor."""
    assert not any("NaN" in line or "instead of" in line for line in check["seen"]), check["seen"]
    assert check["known"] == check["late"] and "measured on NVIDIA H200" in check["known"]
    assert rows(check["text"])[1][-1] == "44%"


def test_no_error_of_ours(page):
    assert page["errors"] == []


@pytest.fixture(scope="module", params=[("dark", "en"), ("light", "zh")], ids=["dark-en", "light-zh"])
def look(request, server, drive, renderer, job, editor_settings):
    theme, locale = request.param
    made = job | {"checks": ["look"], "theme": theme, "locale": locale}
    found = drive(server, "editor.mjs", made, editor_settings(renderer, theme, locale))
    server.post("/settings/Comfy.Locale", "en")
    assert found["errors"] == []
    return found["results"]["look"] | {"locale": locale}


def test_looks(look):
    assert "failed" not in look, look.get("failed")
    assert max(look["overflow"]) <= 0 and look["clipped"] == []
    assert ("添加阶段" in look["texts"]) == (look["locale"] == "zh")
    assert ("Add phase" in look["texts"]) == (look["locale"] == "en")


def test_accessible(look):
    assert "failed" not in look, look.get("failed")
    if look["custom"] is None:
        pytest.skip("axe-core cannot be installed")
    for state in ("custom", "preset", "broken", "invalid", "words"):
        assert look[state] == [], state


@pytest.mark.skipif(os.environ.get("FPS_WRITE_IMAGES") != "1", reason="FPS_WRITE_IMAGES=1 writes the README's picture")
def test_image(server, drive, renderer, job, editor_settings):
    if not renderer:
        pytest.skip("the picture is of Nodes 2.0")
    made = job | {"checks": ["image"], "images": True, "image": str(IMAGE)}
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    plain = editor_settings(renderer) | {"Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
    found = drive(server, "editor.mjs", made, plain)["results"]["image"]
    assert "failed" not in found, found.get("failed")
