"""Step directories: complete or not there, found again, refused when damaged, and a disk that fills up."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
from collections import namedtuple

import pytest
import torch
from fpsattention.training import state
from fpsattention.training.pieces import Piece, PiecesError
from fpsattention.training.state import (
    NotWrittenError,
    SnapshotError,
    check_complete,
    find_latest,
    list_steps,
    load_pieces,
    load_tensors,
    save_step,
)


def pieces(step: int, rows: int = 4) -> dict[str, Piece]:
    tensors = {"model/w": torch.full((rows, 3), float(step)), "model/s": torch.tensor(7.0), "rng/0/cpu": torch.zeros(2)}
    return {name: Piece.of(tensor) for name, tensor in tensors.items()}


def save(folder, step: int, keep: int = 5, rows: int = 4):
    return save_step(folder, step, pieces(step, rows), {"a": 1}, keep)


def told(caplog) -> list[str]:
    """Return what the pack logged; torch logs a lot of its own."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("fpsattention")]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_and_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        path = save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-000003", "step-000004"]
    found, manifest = find_latest(tmp_path)
    assert found == path == tmp_path / "step-000004"
    assert manifest["step"] == 4 and manifest["a"] == 1 and manifest["processes"] == 1
    assert set(manifest["files"]) == {"__0_0.distcp", ".metadata"}
    model = load_tensors(path, "model")
    assert torch.equal(model["w"], torch.full((4, 3), 4.0)) and model["s"] == 7
    with pytest.raises(SnapshotError, match="step-000004: holds no group 'ema'; look for 'model'"):
        load_tensors(path, "ema")
    with pytest.raises(SnapshotError, match="holds no tensor 'x' in 'model'"):
        load_tensors(path, "model", ["x"])


def test_a_process_reads_its_own_rows_only(tmp_path):
    path = save(tmp_path, 3, rows=10)
    rows = torch.empty(2, 3)
    load_pieces(path, {"model/w": Piece(rows, (7, 0), (10, 3))})
    assert torch.equal(rows, torch.full((2, 3), 3.0))
    with pytest.raises(SnapshotError, match="could not be read: KeyError: 'model/x'"):
        load_pieces(path, {"model/x": Piece.of(torch.empty(1))})


def damage_nothing_but_name(path):
    path.rename(path.with_name(path.name + ".tmp"))


def remove_manifest(path):
    (path / "manifest.json").unlink()


def break_manifest(path):
    (path / "manifest.json").write_text('{"format": 2,')


def change_format(path, number):
    table = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**table, "format": number}))


def remove_file(path):
    (path / "__0_0.distcp").unlink()


def cut_file(path):
    os.truncate(path / "__0_0.distcp", (path / "__0_0.distcp").stat().st_size - 1)


def flip_bit(path):
    data = bytearray((path / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "__0_0.distcp").write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_nothing_but_name, "never finished"),
        (remove_manifest, "incomplete, it has no manifest"),
        (break_manifest, "manifest.json is damaged"),
        (lambda path: change_format(path, 99), "newer version"),
        (lambda path: change_format(path, 1), "older version"),
        (remove_file, "__0_0.distcp is missing"),
        (cut_file, "bytes, not"),
        (flip_bit, "recorded hash"),
    ],
)
def test_a_bad_newest_state_is_named_and_the_one_before_is_used(tmp_path, caplog, harm, words):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    harm(bad)
    with caplog.at_level(logging.WARNING):
        assert find_latest(tmp_path)[0] == good
    (said,) = told(caplog)
    assert words in said and "step-000002" in said
    if bad.exists():
        with pytest.raises(SnapshotError, match="step-000002"):
            load_tensors(bad, "model")


def test_states_that_are_all_bad_are_not_a_reason_to_start_again(tmp_path):
    remove_file(save(tmp_path, 1))
    with pytest.raises(SnapshotError, match=r"__0_0\.distcp is missing; no checkpoint in .* can be used"):
        find_latest(tmp_path)


def test_nothing_there(tmp_path):
    assert find_latest(tmp_path / "none") is None
    (tmp_path / "step-000002.tmp").mkdir()
    assert find_latest(tmp_path) is None
    with pytest.raises(SnapshotError, match="no such checkpoint"):
        check_complete(tmp_path / "none")


def test_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(state.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    monkeypatch.setattr(state, "write_pieces", lambda *_: pytest.fail("nothing should be written"))
    with pytest.raises(NotWrittenError, match=r"the disk is full, a state in .* needs 1 MiB and 0 MiB are free"):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-000001"]


@pytest.fixture
def small_disk(tmp_path):
    """Give a file system of 3 MiB, if this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_while_writing_leaves_the_last_good_state(small_disk, monkeypatch):
    good = save(small_disk, 1)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:  # someone else's file takes the room after it was looked at
        real, seen = state.shutil.disk_usage, []
        patch.setattr(
            state.shutil, "disk_usage", lambda path: real(path) if seen else seen.append(1) or usage(0, 0, 1 << 40)
        )
        with pytest.raises(NotWrittenError, match=r"the disk is full, a state in .* needs 4 MiB and 3 MiB are free"):
            save(small_disk, 2, keep=1, rows=300_000)
    assert names(small_disk) == ["step-000001"] and find_latest(small_disk)[0] == good
    assert save(small_disk, 3, keep=1).name == "step-000003"


def test_other_errors_of_the_disk_are_named_too(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error", "x.distcp")

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_pieces", fail)
        with pytest.raises(NotWrittenError, match=r"x\.distcp: Input/output error"):
            save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(state, "write_pieces", lambda *_: (_ for _ in ()).throw(PiecesError("RuntimeError: odd")))
        with pytest.raises(NotWrittenError, match=r"^RuntimeError: odd$"):
            save(tmp_path, 1)
    assert not names(tmp_path)


def test_saving_a_step_again_replaces_it_and_never_leaves_neither(tmp_path, monkeypatch):
    save(tmp_path, 5)
    assert torch.equal(load_tensors(save(tmp_path, 5, rows=2), "model")["w"], torch.full((2, 3), 5.0))
    real = os.replace

    def die_before_the_new_name(source, target):
        if str(source).endswith(".tmp"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(state.os, "replace", die_before_the_new_name)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 5, rows=3)
    monkeypatch.undo()
    assert names(tmp_path) == ["step-000005.old", "step-000005.tmp"]
    assert find_latest(tmp_path)[0].name == "step-000005"
    save(tmp_path, 6)
    assert names(tmp_path) == ["step-000005", "step-000006"]


def test_states_of_a_later_step_are_set_aside_not_resumed_from(tmp_path, caplog):
    for step in (2, 4, 6):
        save(tmp_path, step)
    with caplog.at_level(logging.WARNING):
        save(tmp_path, 3, keep=1)  # the run went on from step 2
    assert names(tmp_path) == ["step-000003", "step-000004.aside", "step-000006.aside"]
    assert "step-000004 is of a later step" in told(caplog)[0]
    assert find_latest(tmp_path)[0].name == "step-000003" and [step for step, _ in list_steps(tmp_path)] == [3]


def test_what_is_not_a_state_of_ours_is_never_removed(tmp_path):
    change_format(save(tmp_path, 1), 1)
    for step in (2, 3):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == ["step-000001", "step-000003"]
