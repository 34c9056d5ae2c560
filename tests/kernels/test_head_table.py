"""Head tables: what a file may hold, what is refused, and tables that are equal."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.head_table import Band, HeadTable, HeadTableError, read_head_table, write_head_table
from fpsattention.kernels.pattern_text import parse_pattern
from fpsattention.kernels.patterns import Full, Stripe, Union, Window

WORDS = ("full", "skip", "window all 30% 30%")


def made(chosen=None, until=0.0, words=WORDS, **facts) -> HeadTable:
    chosen = np.zeros((1, 2, 3), dtype=np.uint8) if chosen is None else chosen
    band = Band(until, chosen)
    return HeadTable(tuple(map(parse_pattern, words)), (band,), TokenGrid(4, 8, 8), (2, 4, 4), **facts)


def changed(**values) -> str:
    return json.dumps({**json.loads(made().to_json()), **values})


def band(**values) -> str:
    return changed(bands=[{"until": 0, "chosen": [[[0, 1, 2], [0, 0, 0]]], **values}])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (band(until=10**400), "ends at sigma 1000"),
        (band(until=float("nan")), "ends at sigma nan"),
        (band(until=True), "not a sigma"),
        (band(chosen=[[[0, 1, -1], [0, 0, 0]]]), "names patterns -1 to 1"),
        (band(chosen=[[[0, 1, 2**63], [0, 0, 0]]]), "not whole numbers"),
        (band(chosen=[[[0, 1, 2.0], [0, 0, 0]]]), "not whole numbers"),
        (changed(patterns=[["full"]]), "a pattern is text"),
        (changed(patterns=[{}]), "a pattern is text"),
        (changed(patterns=["hop 3"]), "no pattern that this version knows"),
        (changed(patterns=["stripe 1024x1024x1 0-1048575"]), "allowed are 1 to 65536"),
        (changed(slots=10**12, grid=[1 << 20] * 3, tile=[1, 1, 1]), "allowed are 2 to 4096"),
        (changed(slots=1, tile=[1, 1, 1]), "allowed are 2 to 4096"),
        (changed(layers=0), "not whole numbers for 1 x 0 x 3"),
        (changed(version=2), "update the node pack"),
        ("[]", "no head table"),
        ('{"kind":' + "[" * 100_000, "too large"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) and not value.startswith("{") else "",
)
def test_a_bad_table_gets_one_sentence(text, sentence):
    with pytest.raises(HeadTableError, match=sentence) as caught:
        HeadTable.from_json(text)
    assert str(caught.value).count("\n") == 0 and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "pattern",
    [Union((Full(), Window(1, None, None))), Stripe((1, 1, 1), ()), Union((Window(1, 1, 1),)), Window("60.0%", 1, 1)],
)
def test_a_pattern_that_could_not_be_read_back_is_in_no_table(pattern):
    with pytest.raises(HeadTableError, match="cannot be in a table"):
        HeadTable((pattern,), (Band(0.0, np.zeros((1, 2, 3), dtype=np.uint8)),), TokenGrid(4, 8, 8), (2, 4, 4))


def test_what_is_built_equals_what_is_read_back():
    table = made(np.array([[[0, 1, 2], [2, 1, 0]]]), until=0)
    again = HeadTable.from_json(table.to_json())
    assert again == table and hash(again) == hash(table) and again.digest == table.digest
    assert made(made={"a": 1}) != made() and made(made={"a": 1}).digest == made().digest


def test_a_table_does_not_change_with_the_array_that_it_was_made_of():
    chosen = np.zeros((1, 2, 3), dtype=np.uint8)
    table = made(chosen)
    chosen[:] = 1
    assert not table.bands[0].chosen.any()
    with pytest.raises(ValueError, match="read-only"):
        table.bands[0].chosen[:] = 1
    for bad in (np.zeros((2, 3), dtype=np.uint8), np.zeros((1, 0, 3), dtype=np.uint8), np.zeros((1, 2, 3)), "x"):
        with pytest.raises(HeadTableError, match="whole numbers"):
            Band(0.0, bad)


def test_files(tmp_path):
    table = made(model="größer")
    path = write_head_table(tmp_path / "new" / "table.json", table)
    assert read_head_table(path) == table
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_head_table(path) == table, "an editor's byte order mark"
    for name, sentence in (("none.json", "no file"), (".", "cannot be read"), ("a\0b", "cannot be read")):
        with pytest.raises(HeadTableError, match=sentence):
            read_head_table(tmp_path / name)
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    with pytest.raises(HeadTableError, match="not text"):
        read_head_table(tmp_path / "text")


def test_what_json_cannot_hold_is_said_and_nothing_is_left(tmp_path):
    path = write_head_table(tmp_path / "table.json", made())
    before = path.read_bytes()
    with pytest.raises(HeadTableError, match="float32"):
        write_head_table(path, made(made={"x": np.float32(1)}))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["table.json"]
