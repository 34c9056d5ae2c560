"""Schedules: both forms give back what they were made of, every mistake gets one sentence with its place and fix."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from fpsattention.kernels.schedule import GRANULARITIES, MAX_PHASES, Phase, Schedule, ScheduleError
from hypothesis import given
from hypothesis import strategies as st

untils = st.one_of(
    st.integers(1, 100).map(lambda n: n / 100), st.floats(1e-9, 1.0, allow_subnormal=False), st.floats(0.3, 0.7)
)
extents = st.one_of(
    st.none(),
    st.integers(1, 999_999_999),
    st.integers(1, 100).map(lambda n: f"{n}%"),
    st.floats(1e-5, 100.0).map(lambda share: f"{share:.7f}%").filter(lambda text: float(text[:-1]) > 0),
)
windows = st.tuples(extents, extents, extents)


def phases(until: float):
    return st.one_of(
        st.just(Phase(until, "dense")),
        st.builds(lambda w: Phase(until, "bf16", None, w), windows),
        st.builds(lambda g, w: Phase(until, "fp8", g, w), st.sampled_from(GRANULARITIES), windows),
    )


@st.composite
def schedules(draw):
    ends = sorted(draw(st.sets(untils, max_size=MAX_PHASES - 1)), reverse=True)
    return Schedule(tuple(draw(phases(until)) for until in [*ends, 0.0]))


@given(schedules())
def test_both_forms_give_the_schedule_back(schedule):
    assert Schedule.parse(schedule.format()) == schedule
    assert Schedule.parse(schedule.to_json()) == schedule
    again = Schedule.parse(schedule.format())
    assert again.format() == schedule.format() and hash(again) == hash(schedule)
    assert Schedule.parse(json.dumps(json.loads(schedule.to_json())["phases"])) == schedule


@given(schedules())
def test_a_float32_sigma_of_an_end_is_in_the_phase_that_ends_there(schedule):
    previous = math.inf
    for index, phase in enumerate(schedule.phases):
        sigma = float(np.float32(phase.until))
        if previous - phase.until > 3e-6:  # closer ends cannot be told apart in float32
            assert schedule.at(sigma) == (index, phase)
            assert schedule.at(min(1.0, sigma + 3e-6))[0] <= index
        previous = phase.until


@given(schedules(), st.floats(-1, 2))
def test_every_sigma_has_a_phase(schedule, sigma):
    index, phase = schedule.at(sigma)
    assert schedule.phases[index] is phase
    assert phase is schedule.phases[-1] or sigma >= phase.until - 1e-6
    assert index == 0 or sigma < schedule.phases[index - 1].until


TABLE = """
# fps-schedule v1, unit sigma
# until   attention   granularity   window t h w

  0.90    fp8         x2            all 15 12     # coarse while the layout forms
  0.45    bf16        -             all 60% 33.5%
\t0.2\tdense
  0.00    fp8         token         20 20 1
"""


def test_the_table_says_what_it_reads():
    assert Schedule.parse(TABLE).phases == (
        Phase(0.9, "fp8", "x2", (None, 15, 12)),
        Phase(0.45, "bf16", None, (None, "60%", "33.5%")),
        Phase(0.2, "dense"),
        Phase(0.0, "fp8", "token", (20, 20, 1)),
    )
    assert Schedule.parse(TABLE.replace("\n", "\r\n")) == Schedule.parse(TABLE)
    assert Schedule.parse("0.00 fp8 x1 100.0% 040 +4").format().splitlines()[-1].split()[3:] == ["100%", "40", "4"]
    assert Schedule.parse("0 dense").is_dense and not Schedule.parse(TABLE).is_dense
    assert [p.is_full for p in Schedule.parse("0.5 bf16 - all all all\n0.2 fp8 x1 all all 3\n0 dense").phases] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("sigma", [0.9, 0.45, 0.7, 0.3])
def test_sigma_that_was_computed_in_float32(sigma):
    """A boundary that a user copies from a sampler holds the sigma itself, whichever side float32 rounds to."""
    schedule = Schedule.parse(f"{sigma} fp8 x1 all 1 1\n0 dense")
    for value in (np.float32(sigma), np.nextafter(np.float32(sigma), np.float32(0)), np.float32(1) * np.float32(sigma)):
        assert schedule.at(float(value))[0] == 0
    assert schedule.at(sigma - 1e-5)[0] == 1
    assert schedule.at(0.0)[0] == schedule.at(-1.0)[0] == 1
    assert schedule.at(1.0)[0] == schedule.at(80.0)[0] == 0


WORDS = ["0", "0.5", "1", "nan", "dense", "bf16", "fp8", "-", "x1", "x2", "token", "all", "4", "60%", "0%", "-3", "#"]


def one_sentence(message: str) -> None:
    """What is wrong and what to do: one line, one full stop at its end."""
    assert message.endswith(".") and "\n" not in message and not re.search(r"\.\s+[A-Z]", message), message
    assert 10 < len(message) < 250, message


MISTAKES = [
    # (text, place, what the message names, the fix)
    ("", None, "empty", "preset"),
    ("   \n\t", None, "empty", "preset"),
    ("# only a comment", None, "no phase", "0.00 dense"),
    ("0.5 dense\n0.9 dense\n0 dense", "line 2, column 1", "0.9 after 0.5", "smaller"),
    ("0.5 dense\n0.5 dense\n0 dense", "line 2, column 1", "0.5 after 0.5", "smaller"),
    ("1.5 dense\n0 dense", "line 1, column 1", "1.5", "from 1 down to 0"),
    ("0.5 dense\n  -0.1 dense", "line 2, column 3", "-0.1", "from 1 down to 0"),
    ("0.9 dense\n0.1 dense", "line 2, column 1", "0.1", "must end at 0.00"),
    ("\n".join(f"{1 - i / 25} dense" for i in range(26)), None, "26 phases", "merge"),
    ("half dense", "line 1, column 1", "'half'", "number between 0 and 1"),
    ("nan dense", "line 1, column 1", "'nan'", "number between 0 and 1"),
    ("inf dense\n0 dense", "line 1, column 1", "'inf'", "number between 0 and 1"),
    ("-inf dense\n0 dense", "line 1, column 1", "'-inf'", "number between 0 and 1"),
    ("0.5", "line 1, column 5", "attention is missing", "dense, bf16, fp8"),
    ("0.5 fp4 x1 1 1 1", "line 1, column 5", "'fp4'", "dense, bf16, fp8"),
    ("0 FP8 x1 1 1 1", "line 1, column 3", "'FP8'", "dense, bf16, fp8"),
    ("0 dense x1", "line 1, column 9", "'x1'", "remove"),
    ("0 fp8", "line 1, column 7", "granularity is missing", "token, x1, x2, x4, x8"),
    ("0 bf16", "line 1, column 8", "granularity is missing", "write -"),
    ("0 fp8 x3 1 1 1", "line 1, column 7", "'x3'", "token, x1, x2, x4, x8"),
    ("0 fp8 - 1 1 1", "line 1, column 7", "'-'", "token, x1, x2, x4, x8"),
    ("0 bf16 x1 1 1 1", "line 1, column 8", "'x1'", "write -"),
    ("0 fp8 x1", "line 1, column 10", "window is missing", "t h w"),
    ("0 fp8 x1 all", "line 1, column 14", "got 1", "all 20 60%"),
    ("0 fp8 x1 all 3", "line 1, column 16", "got 2", "all 20 60%"),
    ("0 fp8 x1 1 2 3 4", "line 1, column 16", "got 4", "all 20 60%"),
    ("0 fp8 x1 0 2 3", "line 1, column 10", "0 is not positive", "at least 1"),
    ("0 fp8 x1 1 -2 3", "line 1, column 12", "-2 is not positive", "at least 1"),
    ("0 fp8 x1 1 2 2.5", "line 1, column 14", "'2.5'", "whole latent tokens"),
    ("0 fp8 x1 1 2 nan", "line 1, column 14", "'nan'", "whole latent tokens"),
    ("0 fp8 x1 1 2 -inf", "line 1, column 14", "'-inf'", "whole latent tokens"),
    ("0 fp8 x1 1 2 1e3", "line 1, column 14", "'1e3'", "whole latent tokens"),
    ("0 fp8 x1 0% 2 3", "line 1, column 10", "'0%'", "larger share"),
    ("0 fp8 x1 101% 2 3", "line 1, column 10", "'101%'", "or all"),
    ("0 fp8 x1 -5% 2 3", "line 1, column 10", "'-5%'", "share such as 60%"),
    ("0 fp8 x1 nan 2 3", "line 1, column 10", "'nan' is no window", "t h w"),
    ("0 fp8 x1 sideways 0.3", "line 1, column 10", "'sideways'", "t h w"),
    ("0 fp8 x1 " + "9" * 31 + " 1 1", "line 1, column 10", "larger than any video", "or all"),
    ("# fps-schedule v2, unit sigma\n0 dense", "line 1", "v2", "update"),
    ("0 dense # fps-schedule v1.1", "line 1", "v1.1", "update"),
    ("# fps-schedule v1, unit step\n0 dense", "line 1", "'step'", "convert"),
]
JSON_MISTAKES = [
    ('{"phases": [', "line 1, column 13", "broken", "correct"),
    ('{"phases": 3}', None, "no list 'phases'", "write {"),
    ("{}", None, "no list 'phases'", "write {"),
    ("[]", None, "no phase", "0.00 dense"),
    ('{"version": 2, "phases": []}', None, "'version' is 2", "update"),
    ('{"version": "1", "phases": []}', None, "'version' is '1'", "update"),
    ('{"unit": "step", "phases": []}', None, "'step'", "convert"),
    ('{"phases": [], "steps": 3}', None, "'steps'", "version, unit and phases"),
    ("[3]", "phase 1", "int", "an object"),
    ('[{"until": 0, "attention": "dense"}, {"attention": "dense"}]', "phase 2", "None", "number between 0 and 1"),
    ('[{"until": "0", "attention": "dense"}]', "phase 1", "'0'", "number between 0 and 1"),
    ('[{"until": true, "attention": "dense"}]', "phase 1", "True", "number between 0 and 1"),
    ('[{"until": NaN, "attention": "dense"}]', "phase 1", "nan", "number between 0 and 1"),
    ('[{"until": Infinity, "attention": "dense"}]', "phase 1", "inf", "number between 0 and 1"),
    ('[{"until": 0}]', "phase 1", "None", "dense, bf16, fp8"),
    ('[{"until": 0, "attention": ["fp8"]}]', "phase 1", "['fp8']", "dense, bf16, fp8"),
    ('[{"until": 0, "attention": "dense", "window": [1, 1, 1]}]', "phase 1", "window", "remove"),
    ('[{"until": 0, "attention": "fp8", "window": [1, 1, 1]}]', "phase 1", "granularity is missing", "token, x1"),
    ('[{"until": 0, "attention": "fp8", "granularity": "x1"}]', "phase 1", "'window' is None", '["all", 20, "60%"]'),
    ('[{"until": 0, "attention": "fp8", "granularity": "x1", "window": [1, 2]}]', "phase 1", "[1, 2]", "three extents"),
    ('[{"until": 0, "attention": "fp8", "granularity": "x1", "window": [1, 2, 2.5]}]', "phase 1", "'2.5'", "whole"),
    ('[{"until": 0, "attention": "fp8", "granularity": "x1", "window": [1, true, 1]}]', "phase 1", "'True'", "whole"),
    (
        '[{"until": 0, "attention": "fp8", "granularity": "x1", "window": [0, 1, 1]}]',
        "phase 1",
        "not positive",
        "least",
    ),
    ('[{"until": 0, "attention": "bf16", "selector": "sideways"}]', "phase 1", "'sideways'", "three extents"),
    ('[{"until": 0, "attention": "bf16", "selector": "a", "window": [1, 1, 1]}]', "phase 1", "both", "keep one"),
    ('[{"until": 0, "attention": "dense", "tile": 4}]', "phase 1", "'tile'", "write until"),
    ("[" * 50_000, None, "nesting", "plain list"),
    ('[{"until": 1' + "0" * 5000 + ', "attention": "dense"}]', None, "number", "plain list"),
    ('[{"until": 0.5, "attention": "dense"}, {"until": 0.7, "attention": "dense"}]', "phase 2", "0.7 after", "smaller"),
    ('[{"until": 0.5, "attention": "dense"}]', "phase 1", "0.5", "must end at 0.00"),
]


@pytest.mark.parametrize(("text", "place", "names", "fix"), MISTAKES + JSON_MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_has_place_value_and_fix_in_one_sentence(text, place, names, fix):
    with pytest.raises(ScheduleError) as caught:
        Schedule.parse(text)
    message = str(caught.value)
    assert message.startswith(place or ("the ", "'")), message
    assert names in message and fix in message, message
    one_sentence(message[:120] + "…." if len(message) > 250 else message)


@pytest.mark.parametrize("value", [None, 3, b"0 dense"])
def test_a_schedule_is_text(value):
    with pytest.raises(ScheduleError, match="a schedule is text"):
        Schedule.parse(value)


@given(st.text(max_size=60))
def test_no_text_raises_anything_else(text):
    try:
        schedule = Schedule.parse(text)
    except ScheduleError as error:
        assert "\n" not in str(error)
    else:
        assert Schedule.parse(schedule.format()) == schedule


@given(
    st.lists(
        st.lists(st.sampled_from(WORDS), max_size=8),
        max_size=4,
    )
)
def test_no_table_of_known_words_raises_anything_else(rows):
    try:
        schedule = Schedule.parse("\n".join(" ".join(row) for row in rows))
    except ScheduleError as error:
        one_sentence(str(error))
    else:
        assert schedule.phases[-1].until == 0.0


def test_nan_sigma_is_an_error():
    with pytest.raises(ScheduleError, match="sigma is NaN"):
        Schedule.parse("0 dense").at(math.nan)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schedule(()),
        lambda: Schedule((Phase(0.5, "dense"),)),
        lambda: Phase(0.0, "fp4"),
        lambda: Phase(0.0, "dense", "x1"),
        lambda: Phase(0.0, "fp8", None, (1, 1, 1)),
        lambda: Phase(0.0, "bf16", "x1", (1, 1, 1)),
        lambda: Phase(0.0, "fp8", "x1"),
        lambda: Phase(0.0, "fp8", "x1", (1, 1)),
        lambda: Phase(0.0, "fp8", "x1", (1, 1, 0)),
        lambda: Phase(0.0, "fp8", "x1", (1, 1, 1), "heads"),
        lambda: Phase(0.0, "fp8", "x1", None, "sideways"),
    ],
)
def test_a_phase_made_in_code_is_checked_too(make):
    with pytest.raises(ScheduleError) as caught:
        make()
    one_sentence(str(caught.value))


def test_a_phase_made_in_code_is_canonical():
    assert Phase(0.0, "fp8", "x1", ["all", "60.0%", 4]) == Phase(0.0, "fp8", "x1", (None, "60%", 4))


@pytest.mark.parametrize("until", ["0.\u0663", "0_5", "0.5_5", "nan", "inf", "1e", "\x000.5"])
def test_a_sigma_is_written_in_plain_digits(until):
    with pytest.raises(ScheduleError, match="is not a sigma"):
        Schedule.parse(f"{until} fp8 x1 all 1 1\n0 dense")


def test_other_digits_are_no_extent():
    with pytest.raises(ScheduleError, match="is no extent"):
        Schedule.parse("0 fp8 x1 all \u0663 1")


def test_a_byte_order_mark_and_a_negative_zero_are_harmless():
    schedule = Schedule.parse("\ufeff0.5 dense\r\n-0.0 fp8 x1 all 2 2\r\n")
    assert str(schedule.phases[1].until) == "0.0" and len(schedule.phases) == 2


@pytest.mark.parametrize("text", ["1" * 5000 + " dense", "0 " + "d" * 5000, "0 fp8 x1 all all " + "9" * 5000])
def test_long_values_are_not_told_in_full(text):
    with pytest.raises(ScheduleError) as caught:
        Schedule.parse(text)
    assert len(str(caught.value)) < 200
