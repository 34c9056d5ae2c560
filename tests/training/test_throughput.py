"""The throughput measurement: it runs, says its conditions, refuses what cannot be, and its page is up to date."""

from __future__ import annotations

import json

import pytest
from fpsattention.training import throughput_cli
from fpsattention.training.throughput_cli import PAGE, RESULTS, line, main, page, read


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--problem", "small", "--device", "cpu", "--rounds", "2", "--per-round", "1"]
    assert main([*arguments, "--results", str(folder)]) == 0
    (path,) = folder.glob("throughput-*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_result_has_times_ratios_and_conditions(result):
    assert set(result["times"]) == {"diffusers dense", "trainer dense", "trainer sparse"}
    assert all(timing["count"] == 2 and timing["ms"] > 0 for timing in result["times"].values())
    times = result["times"]
    assert result["ratio"] == pytest.approx(times["diffusers dense"]["ms"] / times["trainer sparse"]["ms"])
    assert 0 <= result["data_share"]["share"] < 1 and result["memory"]["predicted"] > 0
    assert {"date", "commit", "versions", "threads", "cpus", "card"} <= result.keys()
    assert "ms" in line(result)


def test_the_page_says_what_a_cpu_can_say(result):
    text = page([result])
    assert "stand-in" in text and "nothing about the kernels" in text and result["commit"] in text


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(read(RESULTS)), "run python -m training.throughput --report"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds is 0; give a number above 0"),
        (["--seconds", "-1"], "--seconds is -1; give a number above 0"),
        (["--problem", "7b"], "invalid choice"),
    ],
)
def test_mistakes_on_the_command_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and words in capsys.readouterr().err


def test_a_device_that_is_not_there(capsys, tmp_path):
    assert main(["--problem", "small", "--device", "cuda:99", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_memory_that_was_predicted_wrongly_fails(monkeypatch, result, tmp_path):
    from fpsattention.training import throughput_measure

    wrong = {**result, "memory": {"predicted": 1, "measured": 2, "error": -0.5}}
    monkeypatch.setattr(throughput_measure, "measure", lambda *_, **__: wrong)
    assert throughput_cli.main(["--problem", "small", "--results", str(tmp_path)]) == 1
