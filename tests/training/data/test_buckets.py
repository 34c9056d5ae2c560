"""A clip goes to the bucket that suits it, or is named with the reason."""

from __future__ import annotations

import pytest
from fpsattention.training.data.buckets import buckets_of, choose, histogram, image_buckets, latent_shape, tokens
from fpsattention.training.data.errors import DataError
from fpsattention.training.data.settings import DataConfig
from hypothesis import given, settings
from hypothesis import strategies as st

LISTED = [[81, 480, 832], [81, 832, 480], [33, 480, 832], [33, 240, 416], [1, 720, 1280]]


def config(**changes) -> DataConfig:
    return DataConfig(**{"videos": "x", "buckets": LISTED, **changes})


@pytest.mark.parametrize(
    ("size", "length", "bucket"),
    [
        ((720, 1280), 132, (81, 480, 832)),
        ((1280, 720), 132, (81, 832, 480)),
        ((720, 1280), 80, (33, 480, 832)),
        ((240, 416), 80, (33, 240, 416)),  # not enlarged where that can be had
        ((1280, 720), 40, (33, 240, 416)),  # nothing upright is as short, and the larger one would be enlarged
        ((500, 500), 81, (81, 480, 832)),
    ],
)
def test_the_bucket_that_suits(size, length, bucket):
    assert choose(config(), size, length) == bucket


def test_images_have_one_frame_of_every_size():
    assert set(image_buckets(config())) == {(1, 480, 832), (1, 832, 480), (1, 240, 416), (1, 720, 1280)}
    assert choose(config(), (1080, 1920), 1, image=True) == (1, 720, 1280)
    assert choose(config(), (900, 600), 1, image=True) == (1, 832, 480)


def test_a_video_does_not_become_a_picture():
    assert "do not hold one sample of 33" in choose(config(), (720, 1280), 20)
    assert choose(config(buckets=[[1, 64, 64]]), (64, 64), 20) == (1, 64, 64)


def test_small_clips_are_refused():
    said = choose(config(), (50, 90), 100)
    assert "90 x 50 pixels and would be enlarged" in said and "data.max_upscale = 4" in said
    assert choose(config(max_upscale=16.0), (50, 90), 100) == (81, 480, 832)


def test_one_bucket_without_buckets():
    assert buckets_of(DataConfig(videos="x")) == ((29, 128, 192),)


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 33_000), st.integers(0, 20), st.integers(1, 45), st.integers(1, 80))
def test_made_buckets_keep_within_the_budget(budget, k, height, width):
    made = DataConfig(videos="x", frames=4 * k + 1, height=16 * height, width=16 * width, bucket_tokens=budget)
    try:
        found = buckets_of(made)
    except DataError as error:
        assert "too few for any bucket" in str(error)
        return
    for bucket in found:
        frames, h, w = bucket
        assert tokens(bucket) <= budget and frames % 4 == 1 and frames <= 4 * k + 1
        assert h % 16 == 0 and w % 16 == 0 and h * w <= 256 * height * width
        assert 9 / 16 / 1.2 < h / w < 16 / 9 * 1.2
        assert latent_shape(bucket) == ((frames - 1) // 4 + 1, h // 8, w // 8)


def test_made_buckets_at_480p():
    found = buckets_of(DataConfig(videos="x", frames=81, height=480, width=832, bucket_tokens=32760))
    assert found[0] == (81, 480, 832) and tokens(found[0]) == 32760
    assert {frames for frames, _, _ in found} == {81, 41, 21, 9, 5}


def test_histogram():
    assert histogram([(5, 16, 16), (9, 32, 32), (5, 16, 16)]) == [((9, 32, 32), 1), ((5, 16, 16), 2)]


@settings(deadline=None, max_examples=100)
@given(st.integers(16, 3000), st.integers(16, 3000), st.integers(1, 300))
def test_a_clip_gets_a_bucket_or_a_reason(height, width, length):
    found = choose(config(), (height, width), length)
    if isinstance(found, str):
        assert length < 33 or "enlarged" in found
    else:
        assert found[0] <= length and max(found[1] / height, found[2] / width) <= 4
