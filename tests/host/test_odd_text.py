"""Schedule text of any kind, 2,000 times, in every node that takes one: one sentence each time, and a readable log."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_odd_text")


def test_no_text_in_a_widget_gets_past_with_anything_but_a_sentence(results):
    case = results["widgets"]
    assert case["wrong"] == [] and case["refused"] > 4000
    assert case["log"] == []


def test_no_linked_text_raises_anything_but_a_sentence(results):
    case = results["links"]
    assert case["wrong"] == [] and case["raised"] > 4000 and case["ran"] > 20


def test_what_a_profile_takes_over_links_is_looked_at(results):
    case = dict(results["profile"])
    assert case.pop("good") is None and len(case) == 72
    for place, sentence in case.items():
        assert sentence.startswith(place.split()[0]) and sentence.isprintable() and len(sentence) < 200, place


def test_a_profile_without_conditioning_is_a_sentence(results):
    case = results["profile_conditioning"]
    for name, words in {"none": "positive", "negative": "negative", "empty": "never called"}.items():
        assert case[name].startswith("ProfileError: ") and words in case[name] and case[name].endswith("."), case


def test_odd_titles_give_names_of_one_line(results):
    assert results["report_names"] == {"1": "A", "2": "mine", "3": "", "4": r"two\nlines \ud83d"}


def test_what_is_no_file_and_no_precision_is_a_sentence(results):
    case = results["loads"]
    assert len(case) == 20
    for place, sentence in case.items():
        kind = "weight_dtype is " if place.startswith("dtype") else ("model_name is ", "foo")
        error = {"name": "HeaderError: ", "widget": "", "dtype": "ValueError: "}[place.split()[0]]
        assert sentence.startswith(error) and sentence.removeprefix(error).startswith(kind), (place, sentence)
        assert sentence.isprintable() and sentence.endswith(".") and "; c" in sentence and len(sentence) < 450, place
