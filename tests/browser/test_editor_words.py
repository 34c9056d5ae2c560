"""The schedule editor where a selector's word stands in place of a window: in a real page, in the canvas renderer and
in Nodes 2.0. What it writes is read by Python, and what it refuses is refused with Python's sentences."""

from __future__ import annotations

import pytest
from fpsattention.kernels.schedule import Schedule, ScheduleError
from fpsattention.kernels.selectors import SELECTORS

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
WRONG = [
    f"0 fp8 x1 {words}" for words in ("svg", "svg 1.5", "heads 2", "sta 1", "topk 0.15 -2", "cdf x", "spatial 0.3")
]
JSON = (
    '[{"until": 0.5, "attention": "fp8", "granularity": "x1", "selector": "svg  0.3"},{"until":0,"attention":"dense"}]'
)
CHECKS = ["wordKeys", "wordMouse", "wordText", "wordNarrow"]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(server, drive, renderer, shots, editor_settings):
    """What every check found, in one page."""
    job = {
        "name": "nodes-2" if renderer else "canvas",
        "shots": shots,
        "three": THREE,
        "words": WORDS,
        "wrongWords": WRONG,
        "jsonWords": JSON,
        "checks": CHECKS,
    }
    return drive(server, "editor.mjs", job, editor_settings(renderer), timeout=600)


def selectors(text: str) -> list[str | None]:
    """What stands in place of a window, by phase; raises where the text does not parse."""
    return [phase.selector for phase in Schedule.parse(text).phases]


def refused(text: str) -> str:
    """Python's sentence about ``text``."""
    with pytest.raises(ScheduleError) as caught:
        Schedule.parse(text)
    return str(caught.value)


def test_word_keys(check):
    chosen, typed, stepped, kept, undone, window = map(selectors, check["seen"])
    assert chosen == [None, "svg 0.3", None] and check["fields"]["number1"] == "0.3"
    assert "t" not in check["fields"] and "number2" not in check["fields"]
    assert typed == [None, "svg 0.25", None] and stepped == kept == [None, "svg 0.26", None]
    assert undone == typed and window == [None] * 3
    assert check["focused"] == check["back"] == "number1"
    caption, summary, title = check["said"]
    assert "Decided in every call, about 30 % of all tiles." in caption and "density, above 0 to 1" in caption
    assert summary.startswith("≈ ") and "estimated from “svg 0.3”" in summary and "No seconds" in summary
    assert SELECTORS["svg"].says in title and SELECTORS["svg"].says in caption
    *wrong, after = check["wrong"]
    assert after == []
    for value, problems, invalid in wrong:
        said = refused(f"0 fp8 x1 svg {value}").split(": ", 1)[1]
        assert problems == [said] and invalid == "true", value


def test_word_mouse(check):
    """Each word has its numbers, its sentence and no picture of tiles; what is not known is not shown as known."""
    arguments = {"heads": "", "sta": "", "svg": " 0.3", "topk": " 0.15", "cdf": " 0.9"}
    shares = {"heads": "?", "sta": "?", "svg": "≈ 30 %", "topk": "≈ 15 %", "cdf": "?"}
    decided = dict.fromkeys(arguments, "Decided in every call") | {"heads": "Decided by the head table."}
    for word, found in check["seen"].items():
        assert found["line"].split() == ["0.00", "fp8", "x1", *f"{word}{arguments[word]}".split()]
        numbers = [name for name in found["fields"] if name.startswith("number")]
        assert len(numbers) == len(SELECTORS[word].arguments), word
        assert decided[word] in found["caption"] and SELECTORS[word].says in found["caption"]
        assert not found["tiles"] and found["dashed"] > 0 and found["share"] == shares[word]
        known = shares[word] != "?"
        assert found["work"].startswith("≈ " if known else "? %") and "NaN" not in found["summary"]
        assert ("estimated from" if known else "it depends on “") in found["summary"]
        assert ("density about" if known else "density not known before the run") in found["plot"]
    problems, text = check["both"]
    assert "the share of key tiles of 'topk' is 'x'" in problems[0] and selectors(text)[2] == "topk 0.15 0.6"
    assert check["next"] == [[], "0.3"]
    gate, caption = check["gate"]
    assert gate.endswith("topk 0.15 0.6") and "about 15 % of all tiles and those of the gate" in caption
    assert check["without"].endswith("topk 0.15")
    line, tiles, work = check["window"]
    assert line.endswith("all 60% 60%") and tiles and work[0].isdigit()
    line, fields = check["dense"]
    assert line.split() == ["0.00", "dense"] and set(fields) == {"until", "attention"}


def test_word_text(check):
    heads, svg, topk, cdf, window = check["rows"]
    assert [row["pattern"] for row in check["rows"]] == ["heads", "svg", "topk", "cdf", "window"]
    assert svg["number1"] == "0.3" and (topk["number1"], topk["number2"]) == ("0.15", "0.6")
    assert (cdf["number1"], cdf["number2"]) == ("0.9", "") and "number1" not in heads and window["w"] == "60%"
    assert selectors(check["text"]) == ["heads", "svg 0.3", "topk 0.15 0.6", None, "cdf 0.9"]
    assert check["wrong"] == [refused(text) for text in WRONG]
    assert selectors(check["json"]) == ["svg 0.4", None]


def test_word_narrow(check):
    for found in check:
        assert found["over"] <= 0 and found["clipped"] == [], check


def test_no_error_of_ours(page):
    assert page["errors"] == [] and page["startup"] == []
