"""A model file copied with another header: every byte of its weights, and nothing where it cannot be done."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest
import torch
from fpsattention.kernels.checkpoint import Header, HeaderError, read_header, read_metadata
from fpsattention.kernels.checkpoint_copy import copy_with_header
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.head_table import Band, HeadTable
from fpsattention.kernels.patterns import Full
from fpsattention.kernels.schedule import Schedule
from safetensors.torch import load_file, save_file

SCHEDULE = Schedule.parse("0 fp8 x1 heads")
TABLE = HeadTable((Full(),), (Band(0.0, np.zeros((1, 2, 3), dtype=np.uint8)),), TokenGrid(4, 8, 8), (2, 4, 4))
ENTRY = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


def test_weights_and_other_metadata_stay(tmp_path):
    tensors = {"a": torch.arange(5.0), "b": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "from.safetensors", metadata={"note": "größer", "fpsattention.old": "1"})
    target = copy_with_header(tmp_path / "from.safetensors", tmp_path / "to.safetensors", Header(SCHEDULE, heads=TABLE))
    found = load_file(target)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert read_header(target) == Header(SCHEDULE, heads=TABLE)
    metadata, _ = read_metadata(target)
    assert metadata["note"] == "größer" and "fpsattention.old" not in metadata


@pytest.mark.parametrize(
    "header", [b"{" + ENTRY + b"}   ", b'{"__metadata__":{"x":"\\ud800"},' + ENTRY + b"}"], ids=["odd", "surrogate"]
)
def test_foreign_files_are_copied(tmp_path, header):
    source = tmp_path / "from.safetensors"
    source.write_bytes(struct.pack("<Q", len(header)) + header + b"\1" * 8)
    target = copy_with_header(source, tmp_path / "to.safetensors", Header(SCHEDULE, heads=TABLE))
    assert target.read_bytes()[-8:] == b"\1" * 8 and read_header(target).heads == TABLE


def test_what_cannot_be_copied_has_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    source = tmp_path / "from.safetensors"
    save_file({"a": torch.zeros(2)}, source)
    header = Header(SCHEDULE, heads=TABLE)
    os.symlink(source, tmp_path / "link")
    for target in (source, tmp_path / "link"):
        with pytest.raises(HeaderError, match="is the file that is read"):
            copy_with_header(source, target, header)
    with pytest.raises(HeaderError, match="carries no head table"):
        copy_with_header(source, tmp_path / "to", Header(SCHEDULE))
    monkeypatch.setattr("fpsattention.kernels.checkpoint_copy.MAX_HEADER_BYTES", 100)
    with pytest.raises(HeaderError, match="fewer bands"):
        copy_with_header(source, tmp_path / "to", header)
    assert sorted(os.listdir(tmp_path)) == ["from.safetensors", "link"]


def test_an_offset_without_end_is_damage(tmp_path):
    header = b"{" + ENTRY.replace(b"8]", b"Infinity]") + b"}"
    (tmp_path / "from").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(HeaderError, match="damaged"):
        copy_with_header(tmp_path / "from", tmp_path / "to", Header(SCHEDULE, heads=TABLE))
