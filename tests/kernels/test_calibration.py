"""Calibration: the estimate's rule, and a file that survives damage, other versions and two writers at once."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fpsattention.kernels import calibration_file
from fpsattention.kernels.calibration import (
    REACH,
    Calibration,
    CalibrationError,
    calibration_path,
    entry_key,
    interpolate,
    is_near,
)
from fpsattention.kernels.calibration_file import ENVIRONMENT, MAX_ENTRIES, checked, shown
from fpsattention.kernels.expected import all_stay_dense, pace, pace_words, run_seconds, short_time
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.outlook import sampler_sigmas, step_outlooks
from fpsattention.kernels.schedule import Schedule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


def entry(**changes) -> dict:
    return {
        "card": "Card A", "backend": "triton-fp8", "attention": "fp8", "granularity": "x1", "slots": 64,
        "tile": [3, 5, 4], "head_dim": 128, "tokens": 32760, "heads": 12, "pattern": "window",
        "points": [[0.1, 1.0], [0.3, 2.5], [1.0, 8.0]], "dense_ms": 12.0, "dense_backend": "attention_pytorch",
        "measured": "2026-11-21T20:00:00+00:00", "torch": "2.13.0", "triton": "3.7.1", "driver": "580.65",
    } | changes  # fmt: skip


def estimate(entries: list[dict], **changes):
    question = {
        "card": "Card A", "tokens": 32760, "heads": 12, "head_dim": 128, "attention": "fp8", "granularity": "x1",
        "density": 0.3,
    } | changes  # fmt: skip
    return Calibration(entries).milliseconds(**question)


densities = st.floats(1e-3, 1.0)


@st.composite
def curves(draw) -> list[list[float]]:
    """Points of a rising line: what a sane measurement looks like."""
    xs = sorted(draw(st.lists(st.integers(1, 1000), min_size=1, max_size=8, unique=True)))
    ys = sorted(draw(st.lists(st.floats(1e-3, 1e4), min_size=len(xs), max_size=len(xs))))
    return [[x / 1000, y] for x, y in zip(xs, ys)]


@given(curves(), densities, densities)
def test_more_density_never_costs_less(points, a, b):
    low, high = sorted((a, b))
    assert interpolate(points, low) <= interpolate(points, high) * (1 + 1e-9) + 1e-9


@given(curves(), densities)
def test_the_line_goes_through_its_points_and_stays_between_them(points, density):
    for x, y in points:
        assert interpolate(points, x) == pytest.approx(y, rel=1e-9)
    value = interpolate(points, density)
    assert value >= 0 and math.isfinite(value)
    if points[0][0] <= density <= points[-1][0]:
        assert points[0][1] * (1 - 1e-9) <= value <= points[-1][1] * (1 + 1e-9)


@given(curves(), densities, st.floats(0.1, 10))
def test_twice_the_times_are_twice_the_estimate(points, density, factor):
    scaled = [[x, y * factor] for x, y in points]
    assert interpolate(scaled, density) == pytest.approx(factor * interpolate(points, density), rel=1e-6, abs=1e-9)


def test_ends_go_on_along_the_last_segment():
    points = [[0.2, 2.0], [0.4, 3.0], [0.5, 5.0]]
    assert interpolate(points, 0.1) == pytest.approx(1.5)
    assert interpolate(points, 0.7) == pytest.approx(9.0)
    assert interpolate([[0.2, 1.0], [0.4, 3.0]], 0.05) == 0.0
    assert interpolate([[0.2, 2.0]], 0.1) == pytest.approx(1.0)


@given(st.integers(8190, 4 * 32760), st.integers(1, 100), densities)
def test_tokens_count_squared_and_heads_once(tokens, heads, density):
    found = estimate([entry()], tokens=tokens, heads=heads, density=density)
    scale = (tokens / 32760) ** 2 * heads / 12
    assert found.ms == pytest.approx(interpolate(entry()["points"], density) * scale)
    assert found.dense_ms == pytest.approx(12.0 * scale)
    assert found.scaled == ((tokens, heads) != (32760, 12))


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_size_answers_up_to_a_quarter_and_four_times_its_tokens(measured, wanted):
    near = max(measured, wanted) <= REACH * min(measured, wanted)
    assert is_near(measured, wanted) == is_near(wanted, measured) == near
    for attention in ("fp8", "dense"):
        assert (estimate([entry(tokens=measured)], tokens=wanted, attention=attention) is not None) == near
        assert estimate([entry(tokens=measured)], tokens=wanted, attention=attention, any_size=True) is not None


def test_seconds_on_a_processor_are_not_told_from_a_tiny_video():
    """768 tokens were measured in two seconds, and 832 x 480, 81 frames was promised 105 days instead of 10."""
    tiny = entry(tokens=768, backend="reference", dense_ms=0.7, points=[[0.3, 5.0], [1.0, 7.0]])
    assert estimate([tiny]) is None and estimate([tiny], attention="dense") is None
    assert estimate([tiny], tokens=3072).scaled and estimate([tiny], tokens=192).scaled
    # A similar size comes before a better granularity of a size that says nothing.
    other = entry(granularity="x2")
    assert estimate([entry(tokens=768), other]).entry is other


def test_which_entry_answers():
    near, far = entry(tokens=30000, backend="near"), entry(tokens=75600, backend="far")
    assert estimate([near, far]).entry["backend"] == "near"
    assert estimate([near, far], tokens=70000).entry["backend"] == "far"
    # The distance is a ratio: 20,000 is nearer to 10,000 than to 45,000.
    ten, forty_five = entry(tokens=10000, backend="10"), entry(tokens=45000, backend="45")
    assert estimate([ten, forty_five], tokens=20000).entry["backend"] == "10"
    newer = entry(backend="newer", measured="2026-11-22")
    assert estimate([newer, entry()]).entry["backend"] == "newer" == estimate([entry(), newer]).entry["backend"]
    assert estimate([entry(backend="one"), entry(backend="two")]).entry["backend"] == "two"


def test_granularity_is_preferred_and_the_rest_demanded():
    x1, x2 = entry(), entry(granularity="x2", tokens=9000)
    assert estimate([x1, x2], granularity="x2").entry is x2
    assert estimate([x1, x2], granularity="x8").entry is x1
    for change in ({"card": "Card B"}, {"head_dim": 64}, {"attention": "bf16"}, {"pattern": "heads"}):
        assert estimate([entry()], **change) is None
    assert estimate([entry()], tokens=0) is None and estimate([entry()], heads=0) is None
    assert estimate([]) is None


def test_another_backends_times_are_no_estimate():
    """A benchmark of the reference, newer and a thousand times slower, changes nothing where Triton runs."""
    fast, slow = entry(), entry(backend="reference", points=[[0.3, 40_000.0]], measured="2026-11-22")
    for entries in ([fast, slow], [slow, fast]):
        assert estimate(entries).entry is fast and estimate(entries, backend="triton-fp8").ms == 2.5
        assert estimate(entries, backend="reference").entry is slow
        assert estimate(entries, backend="triton-int8") is None
    # Nearer in tokens is no excuse either, and where there is nothing else the reference answers.
    assert estimate([entry(tokens=9000), slow]).entry["backend"] == "triton-fp8"
    assert estimate([slow]).entry is slow and estimate([slow], backend="triton-fp8") is None
    # The host's own attention was measured beside it all the same.
    assert estimate([slow], attention="dense", backend="triton-fp8").ms == 12.0


def test_slots_are_preferred_and_a_tile_decides_between_equals():
    small, wide = entry(tokens=10000), entry(slots=128, tile=[3, 5, 8], measured="2026-11-22")
    assert estimate([small, wide], slots=64).entry is small and estimate([small, wide], slots=128).entry is wide
    assert estimate([small, wide], slots=32).entry is wide is estimate([small, wide]).entry
    other = entry(tile=[4, 4, 4], measured="2026-11-22")
    assert estimate([entry(), other]).entry is other
    assert estimate([entry(), other], tile=(3, 5, 4)).entry["tile"] == [3, 5, 4]
    assert estimate([entry(), other], tile=(9, 9, 9)).entry is other
    # The size says more than the form of a tile.
    assert estimate([entry(tokens=10000), other], tile=(3, 5, 4)).entry is other


def test_what_a_run_takes():
    schedule = Schedule.parse("0.9 dense\n0.5 fp8 x1 all 40% 40%\n0 bf16 - all 60% 60%")
    grid = TokenGrid(21, 30, 52)
    steps = step_outlooks(schedule, grid, sampler_sigmas(8, 5.0)[:-1])
    fast, bf16 = entry(), entry(backend="triton-bf16", attention="bf16", granularity=None, points=[[1.0, 20.0]])
    slow = entry(backend="reference", points=[[0.3, 40_000.0]], measured="2026-11-22")
    both = {"fp8": "triton-fp8", "bf16": "triton-bf16"}

    def run(entries, backends, tokens=32760, card="Card A"):
        return run_seconds(Calibration(entries), card, schedule, steps, tokens, 12, 30, backends=backends)

    found = run([fast, bf16, slow], both)
    assert found == run([fast, bf16, slow], None) and len(found.steps) == 8
    assert found.entry is fast and found.ran == ["triton-fp8", "triton-bf16"]
    assert not found.scaled and not found.stays_dense and run([fast, bf16], both, tokens=10_000).scaled
    assert run([fast, bf16], both, tokens=1000) is None
    assert found.dense_seconds == pytest.approx(8 * 30 * 0.012) and found.seconds == pytest.approx(sum(found.steps))
    assert found.steps[0] == pytest.approx(30 * 0.012) and found.steps[-1] == pytest.approx(
        30 * 0.02 * steps[-1].density
    )
    assert run([fast, slow], both) is None and run([fast, bf16], both, card=None) is None
    # A kind that stays dense takes what dense takes; a backend without FP8 was measured as bf16.
    half = run([fast], {"fp8": "triton-fp8", "bf16": None})
    assert half.stays_dense and half.ran == ["triton-fp8"] and half.steps[-1] == half.steps[0]
    none = run([slow], {"fp8": None, "bf16": None})
    assert none.seconds == pytest.approx(none.dense_seconds) and none.ran == ["attention_pytorch"]
    assert run([bf16], {"fp8": "triton-bf16", "bf16": "triton-bf16"}).ran == ["triton-bf16"]
    assert all_stay_dense(steps, {"fp8": None, "bf16": None}) and not all_stay_dense(steps, both)
    assert not all_stay_dense(steps, None) and not all_stay_dense(steps[:1], {"fp8": None, "bf16": None})


def test_times_are_written_as_a_person_would():
    times = [short_time(seconds) for seconds in (0.0123, 4.56, 12.0, 100, 3600, 9000, 151_807 * 60, 15_324 * 60)]
    assert times == ["12 ms", "4.6 s", "12 s", "1 min 40 s", "1 h", "2 h 30 min", "105 d", "11 d"]


@given(st.floats(1e-4, 1e9))
def test_a_time_in_words_is_the_time(seconds):
    sizes = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
    words = short_time(seconds).replace(",", "").split()
    told = sum(float(number) * sizes[unit] for number, unit in zip(words[::2], words[1::2]))
    assert told == pytest.approx(seconds, rel=0.06, abs=5e-5) and len(words) in (2, 4)
    if len(words) == 4:
        assert 0 < int(words[2]) < sizes[words[1]] / sizes[words[3]]


def test_ratios_say_which_way_they_go():
    words = [pace_words(ratio) for ratio in (1.5, 0.101, 0.01, 1.0, 0.97, 12.3)]
    assert words == [
        *("1.5 times as fast", "9.9 times slower", "100 times slower", "about as fast", "about as fast"),
        "12 times as fast",
    ]
    for ratio in (1.2, 3.0, 40.0):
        assert pace(ratio)[1] == pace(1 / ratio)[1] and (pace(ratio)[0], pace(1 / ratio)[0]) == ("faster", "slower")


def test_dense_steps_have_an_estimate_of_their_own():
    one = entry(dense_ms=None, tokens=32760)
    two = entry(attention="bf16", granularity=None, tokens=1000, dense_ms=0.5)
    assert estimate([one], attention="dense") is None and estimate([one]).dense_ms is None
    assert estimate([one, two], attention="dense", tokens=2000).ms == pytest.approx(2.0)
    assert estimate([one, two], attention="dense") is None


def test_dense_times_of_the_attention_that_the_host_has_now():
    old = entry(dense_ms=10.0, dense_backend="attention_pytorch", measured="2026-11-22")
    sage = entry(tile=[3, 10, 4], tokens=10_000, dense_ms=1.0, dense_backend="attention_sage")
    elsewhere = [entry(card="Card B"), entry(head_dim=64)]
    calibration = Calibration([old, sage, *elsewhere], "a problem")

    def dense(preferred, **changes):
        return estimate(calibration.preferring(preferred).entries, attention="dense", **changes).entry

    assert dense("attention_pytorch")["dense_ms"] == 10.0 and dense("attention_sage")["dense_ms"] == 1.0
    assert (
        dense("attention_sage", card="Card B") is elsewhere[0] and dense("attention_sage", head_dim=64) is elsewhere[1]
    )
    assert dense("never measured") is old
    preferred = calibration.preferring("attention_sage")
    assert preferred.problem == "a problem" and preferred.entries[1] is sage and old["dense_ms"] == 10.0
    assert [e["points"] for e in preferred.entries] == [e["points"] for e in calibration.entries]


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "here.json"))
    assert calibration_path() == tmp_path / "here.json"
    monkeypatch.setenv(ENVIRONMENT, "  ")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibration_path() == tmp_path / "fpsattention" / "calibration.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert calibration_path() == tmp_path / ".cache" / "fpsattention" / "calibration.json"
    assert shown(calibration_path()) == "~/.cache/fpsattention/calibration.json"
    assert shown(tmp_path.parent / "other") == str(tmp_path.parent / "other")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert calibration_path() == tmp_path / "Local" / "fpsattention" / "calibration.json"


def test_it_keeps_what_it_was_given(tmp_path):
    path = tmp_path / "new" / "folder" / "calibration.json"
    assert Calibration.load(path) == Calibration()
    calibration = Calibration()
    calibration.put(entry())
    calibration.put(entry(tile=[3, 5, 8]))
    calibration.put(entry(dense_ms=11.0))
    calibration.save(path)
    assert Calibration.load(path).entries == [entry(tile=[3, 5, 8]), entry(dense_ms=11.0)]
    assert json.loads(path.read_text())["version"] == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["calibration.json", "calibration.json.lock"]


@pytest.mark.parametrize(
    "change",
    [
        {"points": []}, {"points": [[0.1, 1.0], [0.1, 2.0]]}, {"points": [[0.5, 1.0], [0.1, 2.0]]}, {"points": None},
        {"points": [[0.5, float("nan")]]}, {"points": [[0.5, -1.0]]}, {"points": [[1.5, 1.0]]}, {"points": [[0.5]]},
        {"tokens": 0}, {"tokens": True}, {"tokens": 1.5}, {"heads": -1}, {"tokens": 10**400}, {"tile": [1, 2]},
        {"card": ""}, {"card": None}, {"card": "x" * 1000}, {"dense_ms": 0}, {"dense_ms": float("inf")},
        {"measured": "yesterday"}, {"measured": None}, {"attention": "dense"}, {"granularity": 1}, {"torch": 2},
    ],
    ids=str,
)  # fmt: skip
def test_entries_that_make_no_sense_are_refused(change):
    assert checked(entry(**change)) is None
    with pytest.raises(CalibrationError, match="no calibration entry"):
        Calibration().put(entry(**change))


def test_the_oldest_measurements_go(tmp_path, monkeypatch):
    monkeypatch.setattr("fpsattention.kernels.calibration.MAX_ENTRIES", 3)
    calibration = Calibration()
    for number, day in enumerate((5, 1, 4, 2, 3), 1):
        calibration.put(entry(tokens=number, measured=f"2026-11-0{day}"))
    assert [e["measured"][-1] for e in calibration.entries] == ["5", "4", "3"]
    assert MAX_ENTRIES * 8000 < calibration_file.MAX_BYTES


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null",
     b'{"entries": []}', b'{"version": 1}', b'{"version": 1, "entries": {}}',
     b"[" * 100_000, b"9" * 10_000, b'{"version": 1, "entries": [{}]}'],
    ids=lambda data: data[:24].decode("latin1"),
)  # fmt: skip
def test_a_damaged_file_is_set_aside(tmp_path, data):
    path = tmp_path / "calibration.json"
    for name in ("calibration.json.damaged", "calibration.json.damaged-2"):
        path.write_bytes(data)
        calibration = Calibration.load(path)
        assert calibration.entries == [] and name in calibration.problem
        assert calibration.problem.endswith(".") and calibration.problem.count("\n") == 0
        assert (tmp_path / name).read_bytes() == data and not path.exists()
    assert Calibration.load(path).problem is None


def test_good_entries_of_a_damaged_file_stay(tmp_path):
    path = tmp_path / "calibration.json"
    damaged = json.dumps({"version": 1, "entries": [entry(), entry(tokens="many"), 7]})
    path.write_text(damaged)
    calibration = Calibration.load(path)
    assert calibration.entries == [entry()] and "2 of 3 entries" in calibration.problem
    assert "1 good entries were kept" in calibration.problem
    assert (tmp_path / "calibration.json.damaged").read_text() == damaged
    assert Calibration.load(path) == Calibration([entry()])


def test_a_file_that_is_too_large_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_file, "MAX_BYTES", 2**20)
    path = tmp_path / "calibration.json"
    path.write_bytes(b" " * (2**20 + 1))
    assert "more than 1 MiB" in Calibration.load(path).problem and not path.exists()


@pytest.mark.parametrize("version", [2, 99, "2", None, 0, True, [1]])
def test_another_version_is_left_alone(tmp_path, version):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"version": version, "entries": [entry()], "more": 1}))
    before = path.read_bytes()
    calibration = Calibration.load(path)
    assert (
        calibration.entries == [] and "version" in calibration.problem and "update the node pack" in calibration.problem
    )
    calibration.put(entry())
    with pytest.raises(CalibrationError, match="update the node pack"):
        calibration.save(path)
    assert path.read_bytes() == before


def test_what_cannot_be_read_or_written(tmp_path):
    assert "is no ordinary file" in Calibration.load(tmp_path).problem
    calibration = Calibration([entry()])
    with pytest.raises(CalibrationError, match="is no ordinary file"):
        calibration.save(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="cannot be written"):
        calibration.save(tmp_path / "file" / "calibration.json")
    assert Calibration.load("\0").problem is not None


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "calibration.json"
    Calibration([entry()]).save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CalibrationError, match="No space left on device"):
        Calibration([entry(tokens=5)]).save(path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_what_another_wrote_meanwhile_stays(tmp_path):
    path = tmp_path / "calibration.json"
    one, two = Calibration.load(path), Calibration.load(path)
    one.put(entry(tokens=1))
    one.put(entry(tokens=3, measured="2026-12-01"))
    two.put(entry(tokens=2))
    two.put(entry(tokens=3, dense_ms=99.0))
    one.save(path)
    two.save(path)
    found = {e["tokens"]: e for e in Calibration.load(path).entries}
    assert sorted(found) == [1, 2, 3] and found[3]["dense_ms"] == 12.0


_WRITER = """
import sys
from fpsattention.kernels.calibration import Calibration
sys.path.insert(0, sys.argv[1])
from test_entry import entry
for number in range(25):
    calibration = Calibration.load(sys.argv[2])
    calibration.put(entry(tokens=1 + int(sys.argv[3]) * 100 + number))
    calibration.save(sys.argv[2])
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    (tmp_path / "test_entry.py").write_text(f"def entry(**changes):\n    return {entry()!r} | changes\n")
    path = tmp_path / "calibration.json"
    command = [sys.executable, "-c", _WRITER, str(tmp_path), str(path)]
    running = [subprocess.Popen([*command, str(i)], cwd=ROOT, stderr=subprocess.PIPE) for i in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-2000:]
    found = {e["tokens"] for e in Calibration.load(path).entries}
    assert found == {1 + i * 100 + n for i in range(3) for n in range(25)}


def test_a_lock_that_is_held_is_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "calibration.json"
    monkeypatch.setattr(calibration_file, "LOCK_SECONDS", 0.1)
    with calibration_file.locked(path), pytest.raises(CalibrationError, match="holds the lock"):
        Calibration([entry()]).save(path)
    Calibration([entry()]).save(path)


mutations = st.one_of(
    st.binary(max_size=60),
    st.tuples(st.integers(0, 10**6), st.binary(max_size=6), st.integers(0, 40)),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(mutations)
def test_any_file_is_survived_and_none_is_lost(tmp_path, mutation):
    folder = tmp_path / os.urandom(6).hex()
    folder.mkdir()
    path = folder / "calibration.json"
    data = json.dumps({"version": 1, "entries": [entry(), entry(tokens=5)]}).encode()
    if isinstance(mutation, bytes):
        data = mutation
    else:
        at, new, gone = mutation
        at %= len(data)
        data = data[:at] + new + data[at + gone :]
    path.write_bytes(data)
    calibration = Calibration.load(path)
    assert any(p.read_bytes() == data for p in folder.iterdir())
    for e in calibration.entries:
        assert checked(e) == e and entry_key(e)
        asked = {name: e[name] for name in ("card", "tokens", "attention", "head_dim", "pattern")}
        assert estimate([e], **asked)
    assert calibration.problem is None or calibration.problem.endswith(".")
    if calibration.problem is None or "update the node pack" not in calibration.problem:
        calibration.put(entry(tokens=77))
        calibration.save(path)
        assert Calibration.load(path).entries == calibration.entries


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_left_alone(tmp_path, kind):
    """Neither read, which a pipe would never end, nor replaced, which a device would not survive."""
    path = tmp_path / "odd"
    if kind == "folder":
        path.mkdir()
    else:
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no named pipes")
        os.mkfifo(path)
    before = path.stat().st_ino
    calibration = Calibration.load(path)
    assert "is no ordinary file; name another" in calibration.problem
    with pytest.raises(CalibrationError, match="is no ordinary file"):
        calibration.save(path)
    assert path.stat().st_ino == before and [p.name for p in tmp_path.iterdir()] == ["odd"]
