"""Several processes build one cache: each its share, all the same data set; damage is mended where it is found."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fpsattention.training.data.cache import build_cache
from fpsattention.training.data.errors import DataError
from fpsattention.training.data.settings import DataConfig
from fpsattention.training.vae import load_vae, vae_hash

from .conftest import write_clip

CLIPS = 4


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    for number in range(CLIPS):
        write_clip(folder / f"{number}.mp4", frames=12 + number)
    return folder


@pytest.fixture
def config(clips, tmp_path):
    return DataConfig(
        videos=str(clips), frames=5, height=32, width=48, fps=25.0, samples_per_clip=2, holdout=0.0,
        captions="empty", cache=str(tmp_path / "cache"), max_bad=0.5,
    )  # fmt: skip


def run(config, vae_file, rank=0, size=1, barrier=lambda: None, encoded=None):
    def load():
        vae = load_vae(vae_file)
        if encoded is not None:
            vae.quant_conv.register_forward_hook(lambda *_: encoded.append(rank))
        return vae

    shares = {"rank": rank, "size": size, "barrier": barrier}
    return build_cache(config, load, vae_hash(vae_file), progress=False, **shares)


@pytest.mark.parametrize("size", [2, 3])
def test_every_process_encodes_its_share(config, vae_file, tmp_path, size):
    (tmp_path / "clips").mkdir()
    for path in sorted(__import__("pathlib").Path(config.videos).iterdir()):
        shutil.copy(path, tmp_path / "clips")
    (tmp_path / "clips" / "bad.mp4").write_bytes(b"nothing")
    config = config.model_copy(update={"videos": str(tmp_path / "clips")})
    encoded, barrier = [], threading.Barrier(size, timeout=120)
    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(run, config, vae_file, rank, size, barrier.wait, encoded) for rank in range(size)]
        parts = [job.result() for job in jobs]
    assert len(encoded) == 2 * CLIPS and set(encoded) == set(range(size))
    alone = run(config.model_copy(update={"cache": str(tmp_path / "alone")}), vae_file)
    for part in parts:
        assert part.train.fingerprint() == alone.train.fingerprint() and part.bad == 1
        assert all(torch.equal(a["latent"], b["latent"]) for a, b in zip(part.train, alone.train, strict=True))
    assert len((tmp_path / "cache" / "bad.jsonl").read_text().splitlines()) == 1


def test_all_processes_refuse_too_many_bad_clips(config, vae_file, tmp_path):
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "good.mp4", frames=12)
    for number in range(2):
        (tmp_path / "clips" / f"{number}.mp4").write_bytes(b"nothing at all")
    config = config.model_copy(update={"videos": str(tmp_path / "clips")})
    barrier = threading.Barrier(2, timeout=120)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(run, config, vae_file, rank, 2, barrier.wait) for rank in range(2)]
        for job in jobs:
            with pytest.raises(DataError, match="2 of 3 clips are unusable"):
                job.result()


def damage(path):
    content = bytearray(path.read_bytes())
    content[-60] ^= 0xFF
    path.unlink()
    path.write_bytes(content)


def test_a_file_damaged_after_the_start_is_made_again(config, vae_file, caplog):
    dataset = run(config, vae_file)
    sample = dataset.train.samples[3]
    want = dataset.train[3]["latent"]
    fresh = run(config, vae_file)
    damage(sample.shard)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(fresh.train[3]["latent"], want)
    assert "was damaged and is made again" in caplog.text


def test_a_process_that_cannot_mend_it_says_what_to_do(config, vae_file):
    import pickle

    dataset = run(config, vae_file)
    copy = pickle.loads(pickle.dumps(dataset.train))
    damage(copy.samples[0].shard)
    with pytest.raises(DataError, match=r"the cached file is damaged .* start again, and it is made anew"):
        copy[0]
    assert not copy.samples[0].shard.exists()
    assert len(run(config, vae_file).train) == 2 * CLIPS


def test_a_second_start_decodes_nothing(config, vae_file, monkeypatch):
    from fpsattention.training.data import build, clips, facts

    first = run(config, vae_file)

    def never(*args, **kwargs):
        raise AssertionError("decoded or hashed again")

    monkeypatch.setattr(facts, "scan_clip", never)
    monkeypatch.setattr(build, "read_clip", never)
    monkeypatch.setattr(clips, "file_sha256", never)
    assert run(config, vae_file).train.fingerprint() == first.train.fingerprint()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"length": 3}'])
def test_damaged_notes_are_made_again(config, vae_file, tmp_path, content):
    first = run(config, vae_file)
    notes = [*(tmp_path / "cache" / "clips").rglob("*.json"), tmp_path / "cache" / "digests.json"]
    assert len(notes) == CLIPS + 1 and all(json.loads(note.read_text()) for note in notes)
    for note in notes:
        note.write_text(content)
    assert run(config, vae_file).train.fingerprint() == first.train.fingerprint()


def test_any_number_of_threads_gives_the_same(config, vae_file, tmp_path):
    one, many = (
        run(config.model_copy(update={"workers": workers, "cache": str(tmp_path / str(workers))}), vae_file)
        for workers in (1, 8)
    )
    assert all(torch.equal(a["latent"], b["latent"]) for a, b in zip(one.train, many.train, strict=True))
