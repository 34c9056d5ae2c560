"""Steps are dealt out in equal numbers of passes, of one phase and size each, whatever the number of processes."""

from __future__ import annotations

import pytest
from fpsattention.training.passes import Place, deal, step_places
from hypothesis import given
from hypothesis import strategies as st

PLACES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([(1, 8, 8), (3, 8, 8)])), min_size=1, max_size=40)


@given(PLACES, st.integers(1, 8), st.integers(1, 8))
def test_every_sample_is_taken_once_and_no_process_waits_alone(kinds, batch, processes):
    places = [Place(i, 0, i, None, 0.5, phase, bucket) for i, (phase, bucket) in enumerate(kinds)]
    dealt = deal(places, batch, processes, cost=lambda place: place.bucket[0] * (1 + place.phase))
    assert len(dealt) == processes and len({len(passes) for passes in dealt}) == 1
    real = [place.place for passes in dealt for one in passes if one.counts for place in one.places]
    assert sorted(real) == list(range(len(places)))
    for passes in dealt:
        for one in passes:
            assert 1 <= len(one.places) <= batch
            assert len({(place.phase, place.bucket) for place in one.places}) == 1
    # A repeat is there only to fill the last round.
    assert all(one.counts for passes in dealt for one in passes[:-1])


def test_samples_and_noise_levels_of_a_step_depend_on_seed_and_step_only(make_config, samples):
    small, large = (
        make_config(optim__batch=1, optim__global_batch=4),
        make_config(optim__batch=4, optim__global_batch=4),
    )
    attention = small.attention.resolved()
    for step in range(3):
        assert step_places(small, step, samples, attention) == step_places(large, step, samples, attention)
    seen = [p.index for step in range(5) for p in step_places(small, step, samples, attention)]
    assert all(sorted(seen[i : i + 5]) == list(range(5)) for i in range(0, 20, 5))
    with pytest.raises(ValueError, match="training part of the data is empty"):
        step_places(small, 0, [], attention)


@pytest.mark.parametrize("samples_of_a_step", [1, 4, 16, 20])
def test_stratified_noise_levels_cover_all_parts_evenly(make_config, samples, samples_of_a_step):
    config = make_config(flow__stratified=True, optim__batch=1, optim__global_batch=samples_of_a_step)
    attention, flow = config.attention.resolved(), config.flow.resolved()
    parts = max(16, samples_of_a_step)
    steps = parts // samples_of_a_step
    for first in (0, steps):
        places = [
            place for step in range(first, first + steps) for place in step_places(config, step, samples, attention)
        ]
        assert sorted(place.part for place in places) == [(i, parts) for i in range(parts)]
        # A part's noise levels lie around its middle, in order.
        found = [place.sigma for place in sorted(places, key=lambda place: place.part)]
        assert found == sorted(found)
        middles = flow.quantiles(parts)
        assert all(middles[i - 1] <= found[i] <= middles[i + 1] for i in range(1, parts - 1))
