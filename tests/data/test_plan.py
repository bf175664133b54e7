"""The batch plan: exact shares, no early repeats, a pure function of seed and step."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfmsum.data.plan import BatchPlan, allocate, offsets, stream
from gfmsum.mix import CORPORA, Mix

THREE = Mix((("a", Fraction(1, 2)), ("b", Fraction(1, 3)), ("c", Fraction(1, 6))))


def test_every_step_holds_the_exact_shares_when_they_divide_the_batch() -> None:
    plan = BatchPlan(THREE, {"a": 100, "b": 100, "c": 100}, 60, (0, 0))
    for t in range(20):
        assert {name: len(rows) for name, rows in plan.step(t).items()} == {
            "a": 30,
            "b": 20,
            "c": 10,
        }


@given(batch=st.integers(1, 50), t=st.integers(0, 200))
@settings(max_examples=60)
def test_shares_are_never_more_than_a_sample_off_and_batches_are_full(batch: int, t: int) -> None:
    plan = BatchPlan(THREE, {"a": 7, "b": 11, "c": 5}, batch, (1, 2))
    assert sum(len(rows) for rows in plan.step(t).values()) == batch
    seen = plan.seen(t + 1)
    for name, share in THREE.shares:
        assert abs(seen[name] - share * batch * (t + 1)) <= 1


@given(batch=st.integers(1, 40), size=st.integers(1, 90))
@settings(max_examples=60)
def test_no_sample_comes_again_before_all_have_come(batch: int, size: int) -> None:
    plan = BatchPlan(Mix.equal(["a"]), {"a": size}, batch, (3,))
    steps = 3 * size // batch + 1
    order = np.concatenate([plan.step(t)["a"] for t in range(steps)])
    for epoch in range(len(order) // size):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert plan.unique(steps)["a"] == len(set(order.tolist()))
    assert plan.seen(steps)["a"] == len(order)


def test_a_step_does_not_depend_on_which_steps_were_asked_for_before() -> None:
    def fresh() -> BatchPlan:
        return BatchPlan(THREE, {"a": 31, "b": 17, "c": 9}, 60, (5, 1))

    forwards = fresh()
    steps = {t: forwards.step(t) for t in range(12)}
    for t in reversed(range(12)):
        for name, rows in fresh().step(t).items():
            np.testing.assert_array_equal(rows, steps[t][name])


def test_epochs_sensors_and_seeds_have_orders_of_their_own() -> None:
    plan = BatchPlan(Mix.equal(["a", "b"]), {"a": 50, "b": 50}, 100, (0,))
    first, second = plan.step(0), plan.step(1)
    other = BatchPlan(Mix.equal(["a", "b"]), {"a": 50, "b": 50}, 100, (1,)).step(0)
    orders = [first["a"], first["b"], second["a"], other["a"]]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_a_sensor_without_samples_is_named() -> None:
    with pytest.raises(ValueError, match="no pretraining samples for b"):
        BatchPlan(Mix.equal(["a", "b"]), {"a": 3}, 2, (0,))


def test_streams_are_told_apart_by_every_part_of_their_key() -> None:
    keys = [(0, "x"), (1, "x"), (0, "y"), (0, "x", 0), (0, 0)]
    draws = [int(stream(*key).integers(2**62)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert int(stream(0, "x").integers(2**62)) == draws[0]


def test_the_order_of_a_stream_is_fixed_for_good() -> None:
    """A golden value: were it to change, stored runs would no longer be what their names say."""
    assert stream(0, 0, "order", "s1", 0).permutation(8).tolist() == [0, 1, 6, 5, 3, 7, 4, 2]


def test_offsets() -> None:
    assert offsets([3, 0, 2]) == [0, 3, 3, 5]


def test_shares_of_a_cycle_are_interleaved_not_blocked() -> None:
    plan = BatchPlan(THREE, {"a": 10, "b": 10, "c": 10}, 1, (0,))
    order = [next(iter(plan.step(t))) for t in range(6)]
    assert Counter(order) == {"a": 3, "b": 2, "c": 1}
    assert order[:3] != ["a", "a", "a"]


@given(weights=st.lists(st.integers(1, 40), min_size=1, max_size=6), samples=st.integers(0, 300))
@settings(max_examples=60)
def test_allocation_is_that_of_one_sample_after_another(weights: list[int], samples: int) -> None:
    mix = Mix.weighted({f"s{i}": weight for i, weight in enumerate(weights)})
    given_one_by_one = [0] * len(weights)
    for _ in range(samples):
        due = [
            Fraction(2 * count + 1, w) for count, w in zip(given_one_by_one, weights, strict=True)
        ]
        given_one_by_one[due.index(min(due))] += 1
    assert allocate(mix, samples).tolist() == given_one_by_one


def test_published_corpora_keep_their_shares_over_any_stretch() -> None:
    """Their period is tens of millions of samples: nothing may be laid out sample by sample."""
    counts = CORPORA["clay"]
    mix = Mix.parse("clay", list(counts))
    total = sum(counts.values())
    assert dict(zip(mix.sensors, allocate(mix, total).tolist(), strict=True)) == counts
    later = allocate(mix, total + 1_000_000) - allocate(mix, total)
    for sensor, got in zip(mix.sensors, later.tolist(), strict=True):
        assert abs(got - 1_000_000 * counts[sensor] / total) < len(counts)
