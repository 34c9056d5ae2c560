"""What a step's record becomes: curves, rates, the log, and a few words behind the progress bar."""

from __future__ import annotations

import json

import pytest
import torch
from fpsattention.training.distributed import World
from fpsattention.training.journal import Journal, read_records, status
from fpsattention.training.watch.about import about_run, read_about
from fpsattention.training.watch.rates import BUCKETS, bucket, bucket_name, peak_flops, per_phase, per_sigma, rates
from fpsattention.training.watch.tensorboard import scalars

RECORD = {
    "step": 3, "loss": 1.5, "norm": 0.25, "lr": 1e-4, "samples": [[0, 1], [0, 2], [0, 3]], "sigma": [0.99, 0.96, 0.3],
    "phase": [0, 0, 1], "losses": [1.0, 2.0, 1.5], "seconds": 2.0, "data_seconds": 0.03, "tokens": 3000, "flops": 4e12,
    "density": 0.2, "memory": 3 << 30, "block_norms": [0.1, 0.2], "validation": 1.25, "skipped": 0,
}  # fmt: skip


def test_a_record_becomes_every_curve():
    found = scalars(RECORD, peak=10e12)
    assert found["loss/total"] == 1.5 and found["loss/held_out"] == 1.25
    assert found["loss/phase_1"] == 1.5 and found["loss/phase_2"] == 1.5
    assert found["loss/sigma_0.875-1.000"] == 1.5 and found["loss/sigma_0.250-0.375"] == 1.5
    assert found["gradient/total"] == 0.25 and found["gradient/block_01"] == 0.2
    assert found["speed/tokens_per_second"] == 1500 and found["speed/data_wait_share"] == pytest.approx(0.015)
    assert found["speed/mfu"] == pytest.approx(0.2) and found["memory/peak_gib"] == 3
    assert found["optimizer/learning_rate"] == 1e-4 and found["attention/density"] == 0.2
    assert not {"step", "loss", "flops", "tokens"} & set(found)


def test_utilization_is_left_out_where_no_peak_is_known():
    assert peak_flops(torch.device("cpu")) is None
    assert "mfu" not in rates(RECORD, None) and "speed/mfu" not in scalars(RECORD)


def test_a_skipped_step_and_an_old_log_have_fewer_curves():
    skipped = {**RECORD, "loss": None, "norm": None, "losses": None}
    assert per_phase(skipped) == per_sigma(skipped) == {}
    assert "loss/total" not in scalars(skipped)
    assert scalars({"step": 0, "loss": 1.0, "other": 2}) == {"loss/total": 1.0, "other": 2}


def test_buckets_cover_all_noise_levels():
    assert [bucket(s) for s in (0.0, 0.124, 0.125, 0.99, 1.0)] == [0, 0, 1, BUCKETS - 1, BUCKETS - 1]
    assert bucket_name(0) == "0.000-0.125"


def test_the_status_line_says_loss_rate_speed_and_waiting():
    assert status(RECORD) == "loss 1.5000, held-out 1.2500, lr 1.0e-04, 1.5k tokens/s, data 1.5%"
    assert status({"step": 1, "loss": None}) == "loss skipped"


def test_the_log_keeps_records_facts_and_events(make_config, tmp_path):
    pytest.importorskip("tensorboard")
    about = about_run(make_config(), World(), torch.device("cpu"), parameters=7)
    journal = Journal(tmp_path, tensorboard=True, about=about)
    journal.add(RECORD)
    journal.board.add_picture("preview", torch.zeros(8, 8, 3, dtype=torch.uint8), 3)
    journal.close()
    assert read_records(tmp_path / "loss.jsonl") == [RECORD]
    facts = read_about(tmp_path)
    assert facts["parameters"] == 7 and facts["peak_flops"] is None and facts["steps"] == 6
    assert facts["config"]["optim"]["lr"] == 1e-3 and "fp8" in facts["schedule"]
    names = _tags(tmp_path / "tensorboard")
    assert {"loss/total", "gradient/block_00", "speed/tokens_per_second"} <= names["scalars"]
    assert names["images"] == {"preview"}


def test_a_resumed_log_goes_on_where_the_weights_do(tmp_path):
    for records, start in (([0, 1, 2, 3], 0), ([2, 3], 2)):
        journal = Journal(tmp_path, from_step=start)
        for step in records:
            journal.add({"step": step, "loss": float(start)})
        journal.close()
    assert [r["loss"] for r in read_records(tmp_path / "loss.jsonl")] == [0, 0, 2, 2]


def test_torn_and_foreign_lines_of_a_log_are_left_out(tmp_path):
    log = tmp_path / "loss.jsonl"
    log.write_bytes(json.dumps(RECORD).encode() + b'\n[1]\n{"loss": 2}\n\xff\xfe\n{"step": 4, "lo')
    assert read_records(log) == [RECORD]
    (tmp_path / "run.json").write_text('{"name": ')
    assert read_about(tmp_path) == {}


def _tags(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {kind: set(events.Tags()[kind]) for kind in ("scalars", "images")}
