"""Costs of patterns: exact densities, measured times and where they come from, a table that is asked first."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fpsattention.kernels.calibration import Calibration
from fpsattention.kernels.calibration_file import MAX_ENTRIES, checked
from fpsattention.kernels.cards import card_name
from fpsattention.kernels.grid import Tiling, TokenGrid, choose_tiling
from fpsattention.kernels.head_table import Band, HeadTable
from fpsattention.kernels.headsearch import cost
from fpsattention.kernels.headsearch.candidates import DEFAULT
from fpsattention.kernels.headsearch.cost import (
    Call,
    CostError,
    Costs,
    layer_milliseconds,
    pattern_costs,
    plan_milliseconds,
)
from fpsattention.kernels.measure_patterns import FULL_LAYER, measure_pattern_costs, pattern_key
from fpsattention.kernels.pattern_text import format_pattern, parse_pattern
from fpsattention.kernels.patterns import Full, Skip, Stripe
from hypothesis import given, settings
from hypothesis import strategies as st

TILING = choose_tiling(TokenGrid(3, 13, 17), 64)
CALL = Call("cpu", 8, 64, backend="reference", dtype=torch.float32)
WORDS = ("full", "skip", "window 1 all all", "window all 30% 30%", "window all 60% 60%", "first 1")
PATTERNS = [parse_pattern(word) for word in WORDS]


def naive_density(pattern, tiling: Tiling) -> float:
    """Count pairs of tokens one query tile after the other."""
    mask, live, pairs = pattern.mask(tiling), tiling.live, 0
    for i in range(tiling.count):
        for j in range(tiling.count):
            pairs += int(live[i]) * int(live[j]) * bool(mask[i, j])
    return pairs / tiling.grid.tokens**2


class PricedClock:
    """A clock of a made-up card: a call costs FIXED and, for every head, EACH and PAIRS by the density of its lists.

    It reads the plan that the call closes over and runs nothing.
    """

    cuda = False
    FIXED, EACH, PAIRS, LAYER = 3.0, 0.5, 20.0, 18.0

    def __init__(self) -> None:
        self.timed: list[str] = []

    def once(self, call) -> float:
        cells = dict(zip(call.__code__.co_freevars, (cell.cell_contents for cell in call.__closure__)))
        plan, heads = cells["plan"], cells["part"][0].shape[2]
        assert plan.lists.pattern_of_head.shape == (1, heads)
        self.timed.append(f"{plan.density:.4f}")
        if plan.tiling.runs:
            return heads * self.LAYER
        return self.FIXED + heads * (self.EACH + self.PAIRS * plan.density)

    def sample(self, call, repeats) -> list[float]:
        return [self.once(call) for _ in range(repeats)]


def measured(patterns=PATTERNS, tiling=TILING, call=CALL, calibration=None, **more) -> tuple[Costs, PricedClock]:
    clock = more.pop("clock", PricedClock())
    calibration = Calibration() if calibration is None else calibration
    return pattern_costs(
        patterns, tiling, kind="measured", call=call, calibration=calibration, clock=clock, **more
    ), clock


grids = st.builds(
    TokenGrid, st.integers(1, 5), st.integers(3, 14), st.integers(3, 14), st.integers(0, 9), st.integers(0, 9)
)


@settings(max_examples=30, deadline=None)
@given(grids, st.lists(st.sampled_from(DEFAULT), min_size=1, max_size=6))
def test_density_is_the_exact_share_of_pairs(grid, words):
    tiling = choose_tiling(grid, 64)
    patterns = [parse_pattern(word) for word in words]
    costs = pattern_costs(patterns, tiling)
    assert costs.relative == pytest.approx([naive_density(p, tiling) for p in patterns], abs=1e-12)
    assert costs.kind == "density" and costs.ms is None and costs.relative.dtype == np.float64
    assert costs.sources == ["exact density"] * len(words)
    for p, a in zip(patterns, costs.relative):
        for other, b in zip(patterns, costs.relative):
            if not (p.mask(tiling) & ~other.mask(tiling)).any():
                assert a <= b + 1e-12, (p, other)


def test_ends_of_density():
    assert pattern_costs([Full(), Skip()], TILING).relative.tolist() == [1.0, 0.0]


def test_a_made_up_cards_times_are_found_to_the_last_digit():
    costs, clock = measured()
    densities = np.array([naive_density(p, TILING) for p in PATTERNS])
    expected = clock.EACH + clock.PAIRS * densities
    assert costs.kind == "measured" and costs.sources == ["measured now"] * len(PATTERNS)
    assert costs.fixed_ms == pytest.approx(clock.FIXED)
    assert costs.ms == pytest.approx(expected)
    assert costs.relative == pytest.approx(expected / expected[0]) and costs.relative[0] == 1.0
    assert costs.relative[1] == pytest.approx(0.5 / 20.5), "skip costs what it really takes"
    assert costs.full_layer_ms == pytest.approx(clock.LAYER)
    assert "measured time (measured now)" in costs.says()


def test_the_table_is_asked_first_and_only_what_is_new_is_measured():
    calibration = Calibration()
    first, clock = measured(calibration=calibration)
    assert clock.timed
    again, clock = measured(calibration=calibration)
    assert clock.timed == [] and again.sources == ["measured on this grid before"] * len(PATTERNS)
    assert again.ms == pytest.approx(first.ms) and again.fixed_ms == first.fixed_ms
    assert again.full_layer_ms == first.full_layer_ms
    more, clock = measured([*PATTERNS, parse_pattern("window all 1 all")], calibration=calibration)
    assert set(clock.timed) == {f"{more.densities[-1]:.4f}"}
    assert more.sources == ["measured on this grid before"] * len(PATTERNS) + ["measured now"]


@pytest.mark.parametrize(
    "change", [{"attention": "bf16", "granularity": None}, {"granularity": "x2"}, {"head_dim": 128}]
)
def test_another_attention_is_measured_for_itself(change):
    calibration = Calibration()
    measured(calibration=calibration)
    _, clock = measured(calibration=calibration, call=Call(**{**CALL.__dict__, **change}))
    assert clock.timed


def test_times_survive_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FPSATTENTION_CALIBRATION", str(tmp_path / "c.json"))
    clock = PricedClock()
    first = pattern_costs(PATTERNS, TILING, kind="measured", call=CALL, clock=clock)
    rows = json.loads((tmp_path / "c.json").read_text())["entries"]
    assert {row["pattern"] for row in rows} == {*WORDS, FULL_LAYER} and all(checked(row) == row for row in rows)
    assert [row["heads"] for row in rows if row["pattern"] == "skip"] == [8, 2]
    assert Calibration.load().problem is None
    clock = PricedClock()
    again = pattern_costs(PATTERNS, TILING, kind="measured", call=CALL, clock=clock)
    assert clock.timed == [] and again.ms == pytest.approx(first.ms)


def test_a_file_that_cannot_be_written_costs_a_note_and_not_the_times(tmp_path, monkeypatch, caplog):
    (tmp_path / "c.json").mkdir()
    monkeypatch.setenv("FPSATTENTION_CALIBRATION", str(tmp_path / "c.json"))
    costs = pattern_costs(PATTERNS, TILING, kind="measured", call=CALL, clock=PricedClock())
    assert costs.kind == "measured" and "not kept" in costs.says() and "not kept" in caplog.text


def test_old_entries_stay_valid_and_a_density_of_nothing_is_one():
    row = Calibration()
    measured(calibration=row)
    window = row.entries[0] | {"pattern": "window", "points": [[0.1, 1.0], [1.0, 8.0]]}
    assert checked(window) == window
    assert checked(window | {"points": [[0, 0.5], [1.0, 8.0]]}) is not None
    for points in ([[-0.1, 1.0]], [[0.0, 0.0]], [[False, 1.0]], [[None, 1.0]], [["0", 1.0]], [[0.2, 1.0], [0, 2.0]]):
        assert checked(window | {"points": points}) is None, points


def entry(word: str, density: float, ms: float, **changes) -> dict:
    return {
        "card": card_name("cpu"), "backend": "reference", "attention": "fp8", "granularity": "x1", "slots": 64,
        "tile": list(TILING.tile), "head_dim": 64, "tokens": TILING.grid.tokens, "heads": 8, "pattern": word,
        "points": [[density, ms]], "dense_ms": None, "dense_backend": None, "measured": "2026-11-21T20:00:00+00:00",
        "torch": "2.13.0", "triton": None, "driver": None,
    } | changes  # fmt: skip


def unmeasured(word: str, *entries: dict) -> tuple[float, str]:
    """Return the time of a pattern that may not be measured, and its source."""
    costs, clock = measured([parse_pattern(word)], calibration=Calibration(list(entries)), measure=False)
    assert clock.timed == []
    return float(costs.ms[0]) if costs.ms is not None else float("nan"), costs.sources[0]


def test_what_answers_where_nothing_may_be_measured():
    """One step after the other takes over, and says that it does."""
    word, here = "window all 40% 40%", TILING.grid.tokens
    density = naive_density(parse_pattern(word), TILING)
    full = entry("full", 1.0, 80.0)
    known = unmeasured(word, full)
    assert known == (pytest.approx(10.0 * density), "density times Full's time")
    curve = entry("window", 0.1, 8.0, points=[[0.1, 8.0], [1.0, 80.0]])
    assert unmeasured(word, full, curve) == (pytest.approx(10.0 * density), "curve of windows over density")
    other = naive_density(parse_pattern("window all 60% 60%"), TILING)
    family = entry("window all 60% 60%", other, 70.0)
    ms, source = unmeasured(word, full, curve, family)
    assert source == "curve of multi-diagonal patterns over density" and ms < 8.75
    assert ms == pytest.approx(8.75 + (10.0 - 8.75) * (density - other) / (1.0 - other))
    there = entry(word, 0.5, 20.0, tokens=2 * here)
    ms, source = unmeasured(word, full, curve, family, there)
    assert source == f"measured on {2 * here:,} tokens, by pairs"
    assert ms == pytest.approx(20.0 / 8 / 4 * density / 0.5)
    own = entry(word, density, 24.0)
    assert unmeasured(word, full, curve, family, there, own) == (3.0, "measured on this grid before")


def test_without_any_time_it_is_density_and_says_so():
    costs, _ = measured(measure=False)
    assert costs.kind == "density" and costs.ms is None
    assert costs.relative == pytest.approx([naive_density(p, TILING) for p in PATTERNS])
    assert "no time was measured for fp8 x1 attention" in costs.sources[0] and "density" in costs.says()
    far = entry("full", 1.0, 80.0, tokens=5 * TILING.grid.tokens)
    assert measured(calibration=Calibration([far]), measure=False)[0].kind == "density"


def test_a_device_without_a_clock_is_said():
    call = Call(torch.device("meta"), 8, 64, backend="reference")
    costs = pattern_costs(PATTERNS, TILING, kind="measured", call=call, calibration=Calibration())
    assert costs.kind == "density" and "on meta there is no clock" in costs.says()


def test_an_upright_video_is_not_a_lying_one():
    """Both have as many tokens, and a window of other tiles."""
    word = "window all 1 all"
    lying, upright = (choose_tiling(TokenGrid(1, *shape), 64, (1, 8, 8)) for shape in ((16, 40), (40, 16)))
    assert lying.grid.tokens == upright.grid.tokens and lying.tile == upright.tile
    calibration = Calibration()
    pattern = [parse_pattern(word)]
    measured(pattern, lying, calibration=calibration)
    costs, clock = measured(pattern, upright, calibration=calibration)
    assert f"{costs.densities[0]:.4f}" in clock.timed and costs.sources == ["measured now"]


def test_what_does_not_fit_the_limit_is_told_from_the_others():
    costs, _ = measured(seconds=3.0)
    left_out = [source for source in costs.sources if source != "measured now"]
    assert left_out and costs.kind == "measured"
    assert all("curve" in source or "density times" in source for source in left_out)
    assert "was not measured" in costs.says() and "3 s" in costs.says()


def test_a_pattern_that_fails_costs_itself(monkeypatch):
    class Failing(PricedClock):
        def once(self, call):
            ms = super().once(call)
            if abs(float(self.timed[-1]) - naive_density(PATTERNS[3], TILING)) < 1e-4:
                raise RuntimeError("broken on purpose")
            return ms

    costs, _ = measured(clock=Failing())
    assert costs.sources[3] != "measured now" and costs.sources[4] == "measured now"
    assert "broken on purpose" in costs.says()


def test_progress_can_end_a_measurement():
    class EnoughError(Exception):
        pass

    def tick(share):
        assert 0 <= share <= 1
        raise EnoughError

    with pytest.raises(EnoughError):
        measured(tick=tick)


def test_a_long_stripe_has_a_word_of_its_own():
    tiles = Stripe((9, 20, 20), tuple(range(0, 3600, 2)))
    others = Stripe((9, 20, 20), tuple(range(0, 3600, 2))[:-1])
    assert len(pattern_key(tiles)) <= 200 and pattern_key(tiles) != pattern_key(others)
    assert pattern_key(PATTERNS[3]) == WORDS[3]
    wide = measured([tiles])[0]
    assert wide.sources == ["measured now"]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_plans_time_is_the_sum_of_its_heads(data):
    costs, clock = measured()
    layers, heads = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    numbers = st.lists(st.integers(0, len(PATTERNS) - 1), min_size=heads, max_size=heads)
    chosen = np.array(data.draw(st.lists(numbers, min_size=layers, max_size=layers)), dtype=np.uint8)
    naive = []
    for row in chosen.tolist():
        if all(number == 0 for number in row):
            naive.append(heads * clock.LAYER)
            continue
        total = clock.FIXED
        for number in row:
            total += clock.EACH + clock.PAIRS * naive_density(PATTERNS[number], TILING)
        naive.append(total)
    assert plan_milliseconds(chosen, costs) == pytest.approx(naive)
    # A table that names the same patterns in another order means the same.
    order = data.draw(st.permutations(range(len(PATTERNS))))
    place = np.argsort(order)
    band = Band(0.0, place[chosen][None].astype(np.uint8))
    table = HeadTable(tuple(PATTERNS[i] for i in order), (band,), TILING.grid, TILING.tile)
    assert plan_milliseconds(table, costs) == pytest.approx(naive)
    both = np.stack([chosen[0], chosen[0]])
    if not (chosen[0] == 0).all():
        assert layer_milliseconds(both, costs) == pytest.approx(2 * naive[0] - clock.FIXED)


def test_what_cannot_be_asked_gets_one_sentence():
    costs, _ = measured(PATTERNS[:2])
    table = HeadTable((PATTERNS[3],), (Band(0.0, np.zeros((1, 1, 2), np.uint8)),), TILING.grid, TILING.tile)
    for says, ask in [
        ("'speed' is no kind of cost", lambda: pattern_costs(PATTERNS, TILING, kind="speed")),
        ("there is no pattern to price", lambda: pattern_costs([], TILING)),
        ("say which with call=", lambda: pattern_costs(PATTERNS, TILING, kind="measured")),
        ("hold no times", lambda: layer_milliseconds(np.array([0]), pattern_costs(PATTERNS, TILING))),
        ("numbers from 0 to 1", lambda: layer_milliseconds(np.array([2]), costs)),
        ("numbers from 0 to 1", lambda: layer_milliseconds(np.array([0.5]), costs)),
        (f"'{format_pattern(PATTERNS[3])}' has no cost", lambda: plan_milliseconds(table, costs)),
    ]:
        with pytest.raises(CostError, match=says) as caught:
            ask()
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert cost.KINDS == ("density", "measured")


def test_real_calls_on_this_machine_give_entries_that_hold():
    """No clock of ours here: the reference runs."""
    tiling = choose_tiling(TokenGrid(2, 8, 8), 64)
    done = measure_pattern_costs([Full(), Skip(), parse_pattern("window all 1 all")], tiling, CALL, seconds=20)
    assert done.notes == [] and len(done.entries) == 5
    assert all(checked(e) == e and e["points"][0][1] > 0 for e in done.entries)


def test_patterns_never_push_windows_out_of_the_file():
    calibration = Calibration()
    calibration.put(entry("window", 0.3, 1.0, measured="2020-01-01"))
    for tokens in range(1, MAX_ENTRIES + 20):
        calibration.put(entry("full", 1.0, 1.0, tokens=tokens))
    assert len(calibration.entries) == MAX_ENTRIES
    assert [e["measured"] for e in calibration.entries if e["pattern"] == "window"] == ["2020-01-01"]
    assert min(e["tokens"] for e in calibration.entries if e["pattern"] == "full") > 1


def test_another_backend_than_the_phase_asks_for_is_said(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    costs, _ = measured(call=Call("cpu", 8, 64, dtype=torch.float32))
    assert costs.kind == "measured" and "reference runs in place of triton-fp8" in costs.says()
