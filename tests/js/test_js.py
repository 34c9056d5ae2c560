"""The editor's JavaScript, run by node: its own tests, shared fixtures, and 2,000 texts that both languages read."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fpsattention.kernels.presets import PRESETS
from fpsattention.kernels.schedule import Schedule, ScheduleError
from fpsattention.kernels.selectors import SELECTORS

HERE = Path(os.path.abspath(__file__)).parent
GENERATOR = HERE.parent / "fixtures" / "make_schedule_cases.py"


@pytest.fixture(scope="session")
def node() -> str:
    """The path of a node that is new enough; without one a skip, or a failure where ``REQUIRE_HOST=1`` demands it."""
    path = shutil.which("node")
    if path is None:
        missing("no node: the editor's JavaScript was not tested")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < 18:
        missing(f"node {version} is too old, 18 or newer is needed: the editor's JavaScript was not tested")
    return path


def missing(reason: str) -> None:
    if os.environ.get("REQUIRE_HOST") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def test_committed_files_are_the_generated_ones():
    spec = importlib.util.spec_from_file_location("make_schedule_cases", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.contents().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run tests/fixtures/make_schedule_cases.py"


def test_javascript(node):
    files = sorted(str(path) for path in HERE.glob("*.test.mjs"))
    done = subprocess.run([node, "--test", *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


WORDS = [
    *("0", "0.00", "0.5", "0.90", ".7", "1.", "1", "1e-3", "1e400", "-0.0", "-1", "2", "nan", "0.123456789012345678"),
    *("dense", "bf16", "fp8", "FP8", "sparse", "-", "token", "x1", "x2", "x8", "x16", "all", "All", "4", "+4", "040"),
    *("60%", "0%", "100.0%", "101%", "1e1%", "33.333333333333333333%", "-3", "0.5%", "1234567890", "999999999", "#"),
    *("# note", "# fps-schedule v1, unit sigma", "# fps-schedule v9", "#fps-schedule v1 unit step", "{", "[", '"'),
    *("\u00e9\u4e2d", "\U0001f600", "\u200b", "it's", 'a"b', "it's\"x", "\x00", "\x85", "\u2028", "\ufeff", "y" * 45),
    *(*SELECTORS, *SELECTORS, "0.15", "-0.6", "1.01"),
]
GAPS = [" ", "  ", "\t", "\n", "\n", "\r\n", "\r", "\v", "\f", "\x1c", "\u00a0", "\u3000", "\u2029", ""]
JSON_PARTS = [
    *("{", "}", "[", "]", ",", ":", " ", "\n", '"', "\\", "\\u00e", "\\ud83d\\ude00", "\\x", "null", "true", "NaN"),
    *("1", "0", "-", "1.5", "1e5", "-0.0", "01", "Infinity", "12345678901234567890", '"until"', '"attention"', "'"),
    *('"dense"', '"fp8"', '"window"', '"granularity"', '"x1"', '"all"', '"60%"', '"phases"', '"version"', '"selector"'),
]
VALUES = [
    *(0, 1, 0.5, 0.25, -0.0, 1e-7, 2, -1, None, True, False, "dense", "bf16", "fp8", "token", "x1", "x2", "-", "all"),
    *("60%", "12.50%", 20, "20", 20.0, 12345678901, [], {}, [1], {"a": None}, ["all", 20, "60%"], [1, 1, 1], "it's"),
    *(
        [None, "4", "12.5%"],
        float("nan"),
        float("inf"),
        "sigma",
        "none 0.3",
        "",
        1e22,
        123456.789e3,
        *("heads", "svg 0.3", "svg", "topk 0.15 -0.5", "topk 0.15 2", "cdf 0", "sta\t1"),
        "\u2028",
        "\ud800",
    ),
]
KEYS = ["until", "attention", "granularity", "window", "selector", "when", "version", "unit", "phases", "zz", "\u00e9"]


def table(draw: random.Random) -> str:
    """Words and gaps, often in the right order."""
    if draw.random() < 0.5:
        return "".join(draw.choice(WORDS) + draw.choice(GAPS) for _ in range(draw.randrange(12)))
    lines, ends = (
        [],
        sorted((round(draw.random(), draw.randrange(1, 18)) for _ in range(draw.randrange(4))), reverse=True),
    )
    for until in [*ends, 0]:
        row = [str(until), draw.choice(["dense", "bf16 -", "fp8 x1", "fp8 x2"])]
        if row[1] != "dense" and draw.random() < 0.3:
            numbers = (f"{draw.uniform(-0.5, 1.3):.{draw.randrange(1, 11)}f}" for _ in range(draw.randrange(3)))
            row += [draw.choice(list(SELECTORS)), *numbers]
        elif row[1] != "dense":
            row += [
                draw.choice(["all", str(draw.randrange(1, 99)), f"{draw.random() * 100:.{draw.randrange(9)}f}%"])
            ] * 3
        lines.append(draw.choice(["", "  "]) + draw.choice([" ", "\t  "]).join(row))
    return mangled(draw, draw.choice(["\n", "\r\n"]).join(lines))


def mangled(draw: random.Random, text: str) -> str:
    """The text, in half of the cases with one place changed."""
    if draw.random() < 0.5 or not text:
        return text
    at = draw.randrange(len(text))
    return text[:at] + draw.choice(["", *WORDS, *GAPS, *JSON_PARTS]) + text[at + draw.randrange(3) :]


def json_text(draw: random.Random) -> str:
    """JSON of about the right form, or its parts in any order."""
    if draw.random() < 0.3:
        return draw.choice("{[") + "".join(draw.choice(JSON_PARTS) for _ in range(draw.randrange(10)))
    rows = []
    for _ in range(draw.randrange(4)):
        row = {"until": draw.choice([0, 0.5, 0.9, draw.random()]), "attention": draw.choice(["dense", "fp8", "bf16"])}
        if row["attention"] != "dense":
            row |= {"granularity": "x1", "window": ["all", draw.randrange(9), f"{draw.randrange(101)}%"]}
        for _ in range(draw.choice([0, 0, 1, 2])):
            row[draw.choice(KEYS)] = draw.choice(VALUES)
        rows.append(draw.choice([row, row, row, draw.choice(VALUES)]))
    data = rows if draw.random() < 0.5 else {"version": draw.choice([1, 1, 1, *VALUES]), "phases": rows}
    if isinstance(data, dict) and draw.random() < 0.3:
        data[draw.choice(KEYS)] = draw.choice(VALUES)
    text = json.dumps(data, ensure_ascii=draw.random() < 0.5, indent=draw.choice([None, 2]))
    return mangled(draw, text)


def python_reads(text: str) -> dict[str, str]:
    try:
        return {"canonical": Schedule.parse(text).format()}
    except ScheduleError as error:
        return {"error": str(error)}


def test_both_languages_read_alike(node):
    draw = random.Random(20261121)
    texts = [draw.choice([table, table, json_text])(draw) for _ in range(1900)]
    texts += [mangled(draw, draw.choice(list(PRESETS.values()))) for _ in range(100)]
    done = subprocess.run(
        [node, str(HERE / "parse_texts.mjs")], input=json.dumps(texts), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found, readable = json.loads(done.stdout), 0
    assert len(found) == len(texts) == 2000
    for text, theirs in zip(texts, found):
        ours = python_reads(text)
        readable += "canonical" in ours
        if sys.version_info >= (3, 13) and "trailing comma" in ours.get("error", ""):
            continue  # newer Pythons say more about these
        assert json.dumps(theirs) == json.dumps(ours), repr(text)
    assert 200 < readable < 1800, "the texts are no longer of both kinds"
