"""Running cells: one process each, limits, the budget, resuming, and a file that is valid whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fpsattention.kernels.bench import environment, runner
from fpsattention.kernels.bench.cells import Cell
from fpsattention.kernels.bench.cli import default_path
from fpsattention.kernels.bench.runner import Options, run, run_cell
from fpsattention.kernels.bench.store import RESULTS, ResultError, Store, plain, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]

# Takes the benchmark's place in a child process: each cell does what its label says.
FAKE = """
import json, os, signal, sys, time
cell = json.loads(sys.argv[sys.argv.index("--cell") + 1])
answer = sys.argv[sys.argv.index("--answer") + 1]
def say(**result):
    with open(answer, "w") as file:
        json.dump(result, file)
what = cell["label"]
if what == "raise":
    sys.stderr.write("a first line\\nRuntimeError: broken on purpose\\n")
    sys.exit(1)
if what == "kill":
    say(contestants={"first": {"status": "ok", "ms": 1.0}}, status="failed")
    os.kill(os.getpid(), signal.SIGKILL)
if what == "garbage":
    open(answer, "w").write('{"half": ')
    sys.exit(0)
if what.startswith("sleep"):
    say(started=True)
    time.sleep(float(what.split()[1]))
say(status="ok", card="made up", headline="fine", seen=os.environ.get("TRITON_CACHE_DIR"))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Replace the child by a script; return a maker of cells."""
    (tmp_path / "fake_benchmark.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setattr(runner, "MODULE", "fake_benchmark")
    monkeypatch.setattr(runner, "SHORTEST", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, what="fine", **more: Cell(name, "attention", label=what, **more)


def new_store(tmp_path, name="result.json") -> Store:
    return Store(tmp_path / name, standin=True, purpose="benchmark")


def test_a_crash_costs_one_cell_and_the_file_stays_valid(fake, tmp_path):
    store = new_store(tmp_path)
    seen = []

    def say(line):
        seen.append((line, read_json(store.path)["cells"].keys()))

    cells = [fake("a"), fake("b", "raise"), fake("c", "kill"), fake("d", "garbage"), fake("e")]
    assert run(cells, store, Options(standin=True), say) == []
    assert [len(keys) for _, keys in seen] == [1, 2, 3, 4, 5]  # written at once, cell by cell
    data = read_json(store.path)
    assert {name: cell["status"] for name, cell in data["cells"].items()} == {
        "a": "ok", "b": "failed", "c": "killed", "d": "failed", "e": "ok",
    }  # fmt: skip
    assert "broken on purpose" in data["cells"]["b"]["message"]
    assert "SIGKILL" in data["cells"]["c"]["message"]
    assert data["cells"]["c"]["contestants"]["first"]["ms"] == 1.0  # what was measured before is kept
    assert data["header"]["card"] == "made up"


def test_a_hanging_cell_is_ended_at_its_limit(fake):
    start = time.monotonic()
    result = run_cell(fake("slow", "sleep 60"), Options(standin=True), 1.0, "cache")
    assert result["status"] == "timeout" and "longer than 1 s" in result["message"]
    assert result["started"] and time.monotonic() - start < 20


def test_a_child_killed_from_outside_is_recorded_and_a_rerun_goes_on(fake, tmp_path):
    store = new_store(tmp_path)
    cells = [fake("a"), fake("victim", "sleep 60"), fake("z")]

    def kill():
        for _ in range(600):
            time.sleep(0.05)
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    line = Path("/proc", pid, "cmdline").read_bytes()
                except OSError:
                    continue
                if b"fake_benchmark" in line and b'"victim"' in line:
                    os.kill(int(pid), signal.SIGKILL)
                    return

    if not Path("/proc").is_dir():
        pytest.skip("no /proc to find the child in")
    killer = threading.Thread(target=kill)
    killer.start()
    run(cells, store, Options(standin=True))
    killer.join()
    statuses = {name: cell["status"] for name, cell in read_json(store.path)["cells"].items()}
    assert statuses == {"a": "ok", "victim": "killed", "z": "ok"}
    # A rerun starts nothing again, unless it is asked to try failures once more.
    said = []
    again = Store(store.path, standin=True, purpose="benchmark")
    run([fake("a"), fake("victim"), fake("z")], again, Options(standin=True), said.append)
    assert said == []
    run([fake("a"), fake("victim"), fake("z")], again, Options(standin=True, retry=True), said.append)
    assert len(said) == 1 and read_json(store.path)["cells"]["victim"]["status"] == "ok"


def test_a_killed_run_keeps_what_it_measured_and_goes_on(fake, tmp_path):
    """The whole benchmark is killed between two cells; started again it measures the rest only."""
    code = (
        "import json, sys, os, signal\n"
        "from pathlib import Path\n"
        "from fpsattention.kernels.bench import runner, store\n"
        "from fpsattention.kernels.bench.cells import Cell\n"
        "runner.MODULE = 'fake_benchmark'\n"
        "held = store.Store(Path(sys.argv[1]), standin=True, purpose='benchmark')\n"
        "cells = [Cell(n, 'attention') for n in 'abc']\n"
        "die = lambda line: os.kill(os.getpid(), signal.SIGKILL) if line.startswith('b') else None\n"
        "runner.run(cells, held, runner.Options(standin=True), die if sys.argv[2] == 'die' else print)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
    path = tmp_path / "held.json"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run([*command, "die"], env=env, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert set(read_json(path)["cells"]) == {"a", "b"}
    done = subprocess.run([*command, "live"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("c: ok") and set(read_json(path)["cells"]) == {"a", "b", "c"}


def test_the_budget_ends_a_run_and_leaves_the_rest_for_the_next(fake, tmp_path):
    store = new_store(tmp_path)
    cells = [fake("a"), fake("b", "sleep 30"), fake("c")]
    left = run(cells, store, Options(standin=True, budget=4.0))
    # b was ended by the budget, not by its own limit, so it is not held against it.
    assert left == ["b", "c"] and set(read_json(store.path)["cells"]) == {"a"}
    assert run([fake("a"), fake("b"), fake("c")], store, Options(standin=True)) == []
    assert set(read_json(store.path)["cells"]) == {"a", "b", "c"}


def test_first_calls_get_a_cache_of_their_own(fake, tmp_path):
    seen = [
        run_cell(Cell(f"s{i}", kind, label="fine"), Options(standin=False), 30.0, str(tmp_path / "shared"))["seen"]
        for i, kind in enumerate(("attention", "start", "start", "attention"))
    ]
    assert seen[0] == seen[3] == str(tmp_path / "shared" / "triton") and len(set(seen)) == 3


def test_standins_are_refused_among_results():
    with pytest.raises(ResultError, match="never written under kernels/results"):
        Store(RESULTS / "fake.json", standin=True, purpose="benchmark")


def test_a_file_of_another_kind_is_refused(tmp_path):
    new_store(tmp_path).save()
    with pytest.raises(ResultError, match="mixes stand-ins and a card"):
        Store(tmp_path / "result.json", standin=False, purpose="benchmark")
    with pytest.raises(ResultError, match="holds a run for 'benchmark', this one is for 'tune'"):
        Store(tmp_path / "result.json", standin=True, purpose="tune")
    for text in ("", "{", "[]", '{"format": 99, "cells": {}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ResultError, match="is no result file"):
            Store(tmp_path / "bad.json", standin=True, purpose="benchmark")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"card": "another"}, "with card a card, now it is another"),
        ({"commit": "f" * 12}, "with commit"),
        ({"changes": "0123abcd"}, "with changes None, now it is 0123abcd"),
        ({"nvidia_smi": {"driver_version": "2"}}, "with driver 1, now it is 2"),
        ({"versions": {"torch": "2.12"}}, "with package torch 2.11, now it is 2.12"),
        ({"versions": {"torch": "2.11", "fa3": "1"}}, "with package fa3 None, now it is 1"),
    ],
)
def test_a_file_holds_one_card_one_software_and_one_code(change, says, tmp_path):
    header = {"card": "a card", "commit": "0" * 12, "changes": None, "versions": {"torch": "2.11"}, "date": "today"}
    header["nvidia_smi"] = {"driver_version": "1", "clocks.sm": "300 MHz"}
    path = tmp_path / "r.json"
    Store(path, standin=False, purpose="benchmark").take_header(header)
    again = Store(path, standin=False, purpose="benchmark")
    again.take_header({**header, "date": "tomorrow", "nvidia_smi": {"driver_version": "1", "clocks.sm": "900 MHz"}})
    assert again.data["header"]["date"] == "today"
    with pytest.raises(ResultError) as caught:
        again.take_header({**header, **change})
    assert says in str(caught.value) and "give --out another name" in str(caught.value)
    trial = new_store(tmp_path)
    trial.take_header(header)
    trial.add("a", {"status": "ok"})
    trial.take_header(header)
    assert trial.done("a")
    trial.take_header({**header, **change})
    assert not trial.done("a")  # a stand-in tries the code as it is now


def test_changed_code_has_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]

    def do(*arguments: str) -> None:
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True, capture_output=True)

    code = tmp_path / "kernels" / "deep" / "a.py"
    code.parent.mkdir(parents=True)
    code.write_text("x = 1\n")
    do("init", "-q")
    do("add", ".")
    do("commit", "-q", "-m", "first")
    clean = environment.commit()
    assert clean["dirty"] is False and clean["changes"] is None and len(clean["commit"]) == 12
    (tmp_path / "kernels" / "results.json").write_text("{}")  # what measuring writes is no change
    assert environment.commit() == clean
    seen = set()
    for text in ("x = 2\n", "x = 3\n"):
        code.write_text(text)
        seen.add(environment.commit()["changes"])
    code.with_name("new.py").write_text("y = 1\n")
    seen.add(environment.commit()["changes"])
    assert len(seen) == 3 and None not in seen and environment.commit()["dirty"] is True
    monkeypatch.setattr(environment, "card_name", lambda: "card")
    names = {environment.commit()["changes"]: default_path(False, "benchmark").name}
    ((changes, name),) = names.items()
    assert name == f"card-{clean['commit']}-dirty-{changes}.json"
    # Without git the code itself is told apart.
    monkeypatch.setattr(environment, "_git", lambda *arguments: subprocess.run(["false"], check=True).stdout)
    monkeypatch.setenv("FPS_COMMIT", "abc")
    known = environment.commit()
    assert known["commit"] == "abc" and known["dirty"] is None and len(known["changes"]) == 8
    assert default_path(False, "tune").name == f"card-abc-code-{known['changes']}-tune.json"
    code.write_text("x = 4\n")
    assert environment.commit()["changes"] != known["changes"]


def test_a_child_is_ended_where_there_are_no_process_groups(monkeypatch):
    monkeypatch.delattr(os, "killpg")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    runner._end(child)
    assert child.returncode is not None


def test_a_driver_that_does_not_know_a_field_is_asked_for_fewer(monkeypatch):
    asked = []

    def ask(which, fields):
        asked.append((which, fields))
        return {} if "clocks_event_reasons.active" in fields else dict.fromkeys(fields, "1")

    monkeypatch.setattr(environment, "_ask", ask)
    monkeypatch.setattr(environment, "uuid", lambda device: "GPU-1")
    found = environment.state("cuda:1")
    assert "clocks_throttle_reasons.active" in found and {which for which, _ in asked} == {"GPU-1"}


def test_json_holds_no_nan_and_a_failed_write_leaves_the_old_file(tmp_path):
    import numpy as np

    assert plain({"a": float("nan"), "b": [float("inf"), 1.5], "c": np.float32(2.0), "d": Path("x")}) == {
        "a": None, "b": [None, 1.5], "c": 2.0, "d": "x",
    }  # fmt: skip
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    class Broken:
        def __str__(self):
            raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        write_json(path, {"new": Broken()})
    assert json.loads(path.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [path]
