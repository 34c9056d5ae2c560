"""Sentences out of any value, and what the nodes say to links that give nothing or something else."""

from __future__ import annotations

import pytest
from fpsattention.nodes.dense_blocks import DenseBlocksError, parse_blocks
from fpsattention.nodes.model_input import diffusion_model_of
from fpsattention.nodes.patch import PatchError
from fpsattention.nodes.sentence import MAX_LETTERS, one_line, written
from fpsattention.nodes.video_size import missing_problem, sampling_problem, size_problem


@pytest.mark.parametrize("text", ["a\nb", "\x00", "\x1b[31m", "\ud83d", "\udcff", "\u2028", "\u202e", "x" * 10**6])
def test_any_text_becomes_one_printable_line(text):
    line = one_line(text)
    assert line.isprintable() and len(line) <= MAX_LETTERS + 5
    assert line.encode("utf-8")


def test_plain_text_stays_as_it_is():
    for text in ("line 1, column 5: 'x' is no attention.", "\u4e2d\u6587 \u00e9 \U0001f600", ""):
        assert one_line(text) == text


def test_any_value_can_be_written():
    class Rude:
        def __repr__(self):
            raise RuntimeError

    assert written(Rude()) == "Rude" and written(10**5000) == "int" and written("a") == "'a'"
    assert written("y" * 99).endswith("(str)") and len(written([1] * 1000)) < 70


@pytest.mark.parametrize("word", ["\ud83d", "0\x00", "z" * 300])
def test_words_that_do_not_print_are_shown_as_escapes(word):
    with pytest.raises(DenseBlocksError) as refused:
        parse_blocks(word)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 150


@pytest.mark.parametrize("thing", [None, "model", 5, object()])
def test_what_is_no_model_is_a_sentence(thing):
    with pytest.raises(PatchError, match=f"got {type(thing).__name__}, which is no diffusion model; connect"):
        diffusion_model_of(thing)


def test_long_values_are_cut():
    for sentence in (size_problem("w" * 9999), size_problem(1, 10**5000), sampling_problem(shift="s" * 9999)):
        assert len(sentence) < 200 and sentence.isprintable()
    assert missing_problem(steps=None) and missing_problem(steps=1, shift=0) is None
