"""Step directories: complete or not there, found again, refused when damaged, and a disk that fills up."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections import namedtuple

import pytest
import torch
from fpsattention.training import state
from fpsattention.training.state import Snapshot, SnapshotError, list_steps, load_latest, load_snapshot, save_snapshot
from safetensors import SafetensorError


def snapshot(step: int) -> Snapshot:
    return Snapshot(step, {"model": {"w": torch.full((4, 3), float(step))}, "rng": {"cpu": torch.zeros(2)}}, {"a": 1})


def test_round_trip_and_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        path = save_snapshot(tmp_path, snapshot(step), keep=2)
    assert sorted(step for step, _ in list_steps(tmp_path)) == [3, 4]
    assert load_latest(tmp_path)[0] == path == tmp_path / "step-000004"
    back = load_snapshot(path)
    assert back.step == 4 and back.meta == {"a": 1}
    assert torch.equal(back.tensors["model"]["w"], torch.full((4, 3), 4.0))
    assert not list(tmp_path.glob("*.tmp"))


def damage_nothing_but_name(path):
    path.rename(path.with_name(path.name + ".tmp"))


def remove_manifest(path):
    (path / "manifest.json").unlink()


def break_manifest(path):
    (path / "manifest.json").write_text('{"format": 1,')


def future_manifest(path):
    table = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**table, "format": 99}))


def remove_file(path):
    (path / "model.safetensors").unlink()


def cut_file(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-1])


def flip_bit(path):
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_nothing_but_name, "never finished"),
        (remove_manifest, "incomplete, it has no manifest"),
        (break_manifest, "manifest.json is damaged"),
        (future_manifest, "newer version"),
        (remove_file, "model.safetensors is missing"),
        (cut_file, "bytes, not"),
        (flip_bit, "recorded hash"),
    ],
)
def test_a_bad_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, harm, words):
    good = save_snapshot(tmp_path, snapshot(1), keep=5)
    bad = save_snapshot(tmp_path, snapshot(2), keep=5)
    harm(bad)
    with caplog.at_level(logging.WARNING):
        assert load_latest(tmp_path)[0] == good
    assert len(caplog.messages) == 1 and words in caplog.messages[0] and "step-000002" in caplog.messages[0]
    if bad.exists():
        with pytest.raises(SnapshotError, match="step-000002"):
            load_snapshot(bad)


def test_nothing_there(tmp_path):
    assert load_latest(tmp_path / "none") is None
    with pytest.raises(SnapshotError, match="no such checkpoint"):
        load_snapshot(tmp_path / "none")


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch, caplog):
    good = save_snapshot(tmp_path, snapshot(1), keep=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(state.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with caplog.at_level(logging.WARNING):
        assert save_snapshot(tmp_path, snapshot(2), keep=1) is None
    assert len(caplog.records) == 1 and "disk is full" in caplog.text and "training goes on" in caplog.text
    assert load_latest(tmp_path)[0] == good and [p.name for p in tmp_path.iterdir()] == [good.name]


@pytest.mark.parametrize("kind", ["oserror", "safetensors"])
def test_disk_that_fills_up_while_writing_leaves_the_last_good_one(tmp_path, monkeypatch, caplog, kind):
    good = save_snapshot(tmp_path, snapshot(1), keep=1)
    real, calls = state.save_file, []

    def fail_on_the_second_file(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"torn")
            if kind == "oserror":
                raise OSError(errno.ENOSPC, "No space left on device")
            raise state.SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path)

    monkeypatch.setattr(state, "save_file", fail_on_the_second_file)
    assert save_snapshot(tmp_path, snapshot(2), keep=1) is None
    assert "disk is full" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == [good.name]
    assert save_snapshot(tmp_path, snapshot(3), keep=1) is not None  # space came back


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("I/O error: There is not enough space on the disk. (os error 112)"), True),
        (SafetensorError("I/O error: Es steht nicht genug Speicherplatz zur Verfügung. (os error 112)"), True),
        (SafetensorError("I/O error: Permission denied (os error 13)"), False),
    ],
)
def test_a_full_disk_is_known_by_its_words_on_every_system(error, full):
    assert state.disk_is_full(error) is full


def test_every_file_is_hashed_once_on_resume(tmp_path, monkeypatch):
    path = save_snapshot(tmp_path, snapshot(1), keep=1)
    real, hashed = state.file_sha256, []
    monkeypatch.setattr(state, "file_sha256", lambda file: (hashed.append(file.name), real(file))[1])
    assert load_latest(tmp_path)[0] == path
    assert sorted(hashed) == ["model.safetensors", "rng.safetensors"]


def test_other_errors_are_not_swallowed(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(state, "save_file", fail)
    with pytest.raises(OSError, match="Input/output"):
        save_snapshot(tmp_path, snapshot(1), keep=1)
    assert not list(tmp_path.iterdir())


def test_saving_a_step_again_replaces_it(tmp_path):
    save_snapshot(tmp_path, snapshot(5), keep=1)
    path = save_snapshot(tmp_path, snapshot(5), keep=1)
    shutil.rmtree(path.with_name("nothing"), ignore_errors=True)
    assert load_snapshot(path).step == 5
