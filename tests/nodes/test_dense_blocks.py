"""The list of blocks that stay dense: as text, checked against the model, and in what runs."""

from __future__ import annotations

import pytest
from fpsattention.nodes.dense_blocks import DenseBlocksError, check_blocks, format_blocks, parse_blocks
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "text, blocks",
    [
        ("", set()),
        ("  ", set()),
        ("0", {0}),
        ("0, 1, 38-39", {0, 1, 38, 39}),
        ("3 - 5 7", {3, 4, 5, 7}),
        ("1,,1, 1-2,", {1, 2}),
    ],
)
def test_lists(text, blocks):
    assert parse_blocks(text) == blocks


@pytest.mark.parametrize(
    "text, said",
    [
        ("first", "'first' is no block"),
        ("-1", "'-1' is no block"),
        ("1.5", "'1.5' is no block"),
        ("5-3", "runs backwards; write 3-5"),
        ("99999", "'99999' is no block"),
        ("1," * 300, "600 letters"),
        (7, "got int"),
    ],
)
def test_what_is_no_list_is_one_sentence(text, said):
    with pytest.raises(DenseBlocksError, match="dense_blocks") as error:
        parse_blocks(text)
    assert said in str(error.value) and str(error.value).endswith(".")


@given(st.frozensets(st.integers(0, 60)))
def test_text_and_back(blocks):
    assert parse_blocks(format_blocks(blocks)) == blocks


def test_blocks_of_another_model():
    check_blocks(frozenset({29}), 30)
    with pytest.raises(DenseBlocksError, match="names block 38, but this model has 30 blocks, 0 to 29"):
        check_blocks(frozenset({0, 38, 39}), 30)


@given(st.text(max_size=60))
def test_any_text_is_a_list_or_a_sentence(text):
    try:
        parse_blocks(text)
    except DenseBlocksError as error:
        assert str(error).startswith("dense_blocks")
