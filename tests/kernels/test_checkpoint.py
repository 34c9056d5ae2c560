"""Checkpoint headers: round trips, one sentence for every bad file, and files that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import types

import pytest
import safetensors.torch
import torch
from fpsattention.kernels.checkpoint import (
    PREFIX,
    CheckpointError,
    Header,
    HeaderError,
    read_header,
    read_metadata,
    write_checkpoint,
)
from fpsattention.kernels.schedule import Phase, Schedule
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

SCHEDULE = Schedule.parse("0.9 dense\n0 fp8 x1 all 60% 20")
TENSORS = {"blocks.0.weight": torch.arange(12.0).reshape(3, 4), "head": torch.ones(5, dtype=torch.bfloat16)}

tiles = st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)))
schedules = st.lists(st.integers(1, 100), max_size=5, unique=True).map(
    lambda ends: Schedule(
        (*(Phase(end / 100, "fp8", "x2", (None, end, "40%")) for end in sorted(ends)[::-1]), Phase(0.0, "dense"))
    )
)
headers = st.builds(
    Header,
    schedule=schedules,
    slots=st.integers(64, 4096),
    tile=tiles,
    smooth_k=st.booleans(),
    base_sha256=st.text("0123456789abcdef", max_size=64),
    trainer=st.text(max_size=20),
    step=st.integers(0, 10**9),
)


@given(headers)
def test_metadata_give_the_header_back(header):
    metadata = header.to_metadata()
    assert all(key.startswith(PREFIX) and isinstance(value, str) for key, value in metadata.items())
    assert Header.from_metadata(metadata) == header
    assert Header.from_metadata({**metadata, "format": "pt", "config": "{}"}) == header


def test_a_file_gives_header_and_tensors_back(tmp_path):
    path = tmp_path / "new" / "folder" / "model.safetensors"
    header = Header(SCHEDULE, slots=128, tile=(3, 5, 8), smooth_k=False, step=7, trainer="0.1.0")
    write_checkpoint(path, {**TENSORS, "strided": torch.arange(6.0).reshape(2, 3).t()}, header, {"note": "mine"})
    assert read_header(path) == header
    metadata, tensors = read_metadata(path)
    assert metadata["note"] == "mine" and metadata["format"] == "pt"
    assert tensors == {"blocks.0.weight": ("F32", (3, 4)), "head": ("BF16", (5,)), "strided": ("F32", (3, 2))}
    loaded = safetensors.torch.load_file(path)
    assert torch.equal(loaded["blocks.0.weight"], TENSORS["blocks.0.weight"]) and loaded["head"].dtype == torch.bfloat16
    # The names that belong to ComfyUI stay free, and every reader sees the same strings.
    assert not {"config", "_quantization_metadata"} & set(metadata)
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata
    assert os.listdir(path.parent) == [path.name]


def test_a_header_that_could_not_be_read_back_is_not_written(tmp_path):
    for header in (Header(SCHEDULE, slots=64, tile=(4, 8, 8)), Header(SCHEDULE, step=-1), Header(SCHEDULE, version=2)):
        with pytest.raises(HeaderError):
            write_checkpoint(tmp_path / "model.safetensors", TENSORS, header)
    assert not os.listdir(tmp_path)


def test_an_ordinary_file_carries_none(tmp_path):
    path = tmp_path / "stock.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    assert read_header(path) is None and read_metadata(path)[0] == {}
    write_checkpoint(path, TENSORS)
    assert read_header(path) is None
    assert Header.from_metadata({"modelspec.title": "Wan"}) is None


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(end: object) -> dict:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, end]}


BAD_FILES = {
    "empty": (b"", "is not a safetensors file"),
    "short": (b"\x00\x00", "is not a safetensors file"),
    "text": (b"once upon a time there was a model", "is not a safetensors file"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(64), "is not a safetensors file"),
    "zip": (b"PK\x03\x04" + bytes(64), "is not a safetensors file"),
    "zeros": (bytes(4096), "is not a safetensors file"),
    "html": (b"<!DOCTYPE html><html>" + bytes(64), "is not a safetensors file"),
    "no-object": (raw(b"[1, 2, 3]"), "is not a safetensors file"),
    "header-cut": (raw({"a": entry(4)}, length=500), "truncated: its header alone needs 508 bytes"),
    "data-cut": (raw({"a": entry(4)}, b"\x00\x00"), "is truncated: "),
    "broken-json": (raw(b'{"a": {"dtype": "F32"'), "the header of bad.safetensors is damaged"),
    "not-utf8": (raw(b'{"\xff\xfe": 1}'), "the header of bad.safetensors is damaged"),
    "deep-json": (raw(b'{"a":' * 50_000), "the header of bad.safetensors is damaged"),
    "no-dtype": (raw({"a": {"shape": [1], "data_offsets": [0, 4]}}), "the header of bad.safetensors is damaged"),
    "no-offsets": (raw({"a": {"dtype": "F32", "shape": [1]}}), "the header of bad.safetensors is damaged"),
    "text-offsets": (raw({"a": entry("four")}), "the header of bad.safetensors is damaged"),
    "list-entry": (raw({"a": [1, 2]}), "the header of bad.safetensors is damaged"),
    "number-metadata": (raw({"__metadata__": {"a": 3}}), "its metadata are not strings"),
    "list-metadata": (raw({"__metadata__": ["a"]}), "its metadata are not strings"),
}


def one_sentence(message: str) -> str:
    assert message.endswith(".") and "\n" not in message and len(message) < 400, message
    return message


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_one_sentence(tmp_path, name):
    content, names = BAD_FILES[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    for read in (read_metadata, read_header):
        with pytest.raises(HeaderError) as caught:
            read(path)
        assert names in one_sentence(str(caught.value)) and "bad.safetensors" in str(caught.value)


def test_what_is_no_file_gets_one_sentence(tmp_path):
    for path, names in ((tmp_path / "missing.safetensors", "there is no file"), (tmp_path, "cannot be read")):
        for given_path in (path, str(path)):
            with pytest.raises(HeaderError) as caught:
                read_header(given_path)
            assert names in one_sentence(str(caught.value)) and path.name in str(caught.value)


def test_any_cut_of_a_real_file_is_noticed(tmp_path):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    write_checkpoint(whole, TENSORS, Header(SCHEDULE))
    content = whole.read_bytes()
    for size in {0, 1, 8, 9, 100, len(content) // 2, len(content) - 1}:
        cut.write_bytes(content[:size])
        with pytest.raises(HeaderError, match=r"truncated|not a safetensors file"):
            read_header(cut)


BAD_VALUES = {
    "newer": ({"version": "2"}, "a v2 FPSAttention header, this version reads up to v1; update"),
    "version-0": ({"version": "0"}, "version 0, which never existed"),
    "version-text": ({"version": "one"}, "'version' is 'one'"),
    "no-version": ({"version": None}, "no 'version'"),
    "no-schedule": ({"schedule": None}, "no 'schedule'"),
    "damaged-schedule": ({"schedule": "0.5 fp8"}, "is damaged: line 1, column 9"),
    "newer-schedule": (
        {"schedule": "# fps-schedule v3, unit sigma\n0 dense"},
        "is damaged: line 1, column 1: this is a v3",
    ),
    "no-slots": ({"slots": None}, "no 'slots'"),
    "slots-0": ({"slots": "0"}, "'slots' is 0, a tile has 2 to 4096"),
    "slots-huge": ({"slots": "99999999999"}, "'slots' is 99999999999"),
    "slots-text": ({"slots": "64.5"}, "'slots' is '64.5'"),
    "tile-too-large": ({"tile": "4x8x8"}, "tile 4x8x8 does not fit its 64 slots"),
    "tile-text": ({"tile": "large"}, "'tile' is 'large'"),
    "tile-two": ({"tile": "3x5"}, "'tile' is '3x5'"),
    "tile-zero": ({"tile": "0x5x4"}, "'tile' is '0x5x4'"),
    "smooth": ({"smooth_k": "maybe"}, "'smooth_k' is 'maybe'"),
    "fp8": ({"fp8_format": "e5m2"}, "'fp8_format' is 'e5m2'"),
    "timestep": ({"timestep": "sigma"}, "'timestep' is 'sigma'"),
    "step": ({"step": "-1"}, "'step' is -1"),
    "step-text": ({"step": "last"}, "'step' is 'last'"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_bad_header_gets_one_sentence_with_the_files_name(tmp_path, name):
    changes, names = BAD_VALUES[name]
    metadata = Header(SCHEDULE, tile=(3, 5, 4)).to_metadata()
    for key, value in changes.items():
        metadata[PREFIX + key] = value
    metadata = {key: value for key, value in metadata.items() if value is not None}
    with pytest.raises(HeaderError) as caught:
        Header.from_metadata(metadata)
    assert names in one_sentence(str(caught.value))
    path = tmp_path / "bad.safetensors"
    safetensors.torch.save_file(TENSORS, path, metadata=metadata)
    with pytest.raises(HeaderError, match=r"^bad\.safetensors: "):
        read_header(path)


KEYS = [PREFIX + key for key in ("version", "schedule", "slots", "tile", "step")]


@given(st.dictionaries(st.sampled_from(KEYS), st.text(max_size=12)))
def test_no_header_raises_anything_else(metadata):
    try:
        header = Header.from_metadata(metadata)
    except HeaderError as error:
        assert "\n" not in str(error)
    else:
        assert header is None or isinstance(header, Header)


def assert_old_file_survives(path, content):
    assert path.read_bytes() == content and os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), safetensors.SafetensorError("io error"), MemoryError()],
)
@pytest.mark.parametrize("where", ["safetensors.torch.save_file", "os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where, failure):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, TENSORS, Header(SCHEDULE))
    content = path.read_bytes()

    def fail(*args, **kwargs):
        if where == "safetensors.torch.save_file":
            with open(args[1], "wb") as file:
                file.write(b"half a file")
        raise failure

    monkeypatch.setattr(where, fail)
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(path, {"other": torch.zeros(3)}, Header(SCHEDULE, step=9))
    assert "model.safetensors could not be written" in one_sentence(str(caught.value))
    monkeypatch.undo()
    assert_old_file_survives(path, content)


def test_an_interrupted_write_leaves_the_old_file_too(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, TENSORS)
    content = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, {"other": torch.zeros(3)})
    monkeypatch.undo()
    assert_old_file_survives(path, content)


def test_too_little_space_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, TENSORS)
    content = path.read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=20 << 20))
    monkeypatch.setattr("safetensors.torch.save_file", lambda *args, **kwargs: pytest.fail("it wrote"))
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(path, {"large": torch.zeros(1 << 21)})
    message = one_sentence(str(caught.value))
    assert "20 MiB free" in message and "needs 24 MiB" in message and "free some space" in message
    monkeypatch.undo()
    assert_old_file_survives(path, content)


def test_a_folder_that_cannot_be_written_has_a_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"model\.safetensors could not be written to .*nothing was kept\.$"):
        write_checkpoint(tmp_path / "file" / "model.safetensors", TENSORS)
    if os.geteuid() == 0:
        return  # root may write everywhere
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="could not be written"):
        write_checkpoint(folder / "model.safetensors", TENSORS)


def test_a_file_has_the_permissions_that_the_user_gives_new_files(tmp_path):
    if os.name == "nt":
        pytest.skip("Windows has no umask")
    before = os.umask(0o027)
    try:
        write_checkpoint(tmp_path / "model.safetensors", TENSORS)
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640


def test_two_writers_do_not_meet(tmp_path):
    """A temporary file that another process left, or is writing, is not touched."""
    path = tmp_path / "model.safetensors"
    other = tmp_path / ".model.safetensors.tmp-1"
    other.write_bytes(b"theirs")
    write_checkpoint(path, TENSORS)
    assert other.read_bytes() == b"theirs" and read_header(path) is None
