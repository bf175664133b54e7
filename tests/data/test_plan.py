"""The batch plan: exact shares, no early repeats, a pure function of seed and step."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfmsum.data import plan as plans
from gfmsum.data.plan import BatchPlan, allocate, permute, share_out, stream
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
@settings(max_examples=60, deadline=None)
def test_shares_are_never_more_than_a_sample_off_and_batches_are_full(batch: int, t: int) -> None:
    plan = BatchPlan(THREE, {"a": 7, "b": 11, "c": 5}, batch, (1, 2))
    assert sum(len(rows) for rows in plan.step(t).values()) == batch
    seen = plan.seen(t + 1)
    for name, share in THREE.shares:
        assert abs(seen[name] - share * batch * (t + 1)) <= 1


@given(batch=st.integers(1, 40), size=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
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


def test_shares_of_a_cycle_are_interleaved_not_blocked() -> None:
    plan = BatchPlan(THREE, {"a": 10, "b": 10, "c": 10}, 1, (0,))
    order = [next(iter(plan.step(t))) for t in range(6)]
    assert Counter(order) == {"a": 3, "b": 2, "c": 1}
    assert order[:3] != ["a", "a", "a"]


@given(weights=st.lists(st.integers(1, 40), min_size=1, max_size=6), samples=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
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


# Permutations


@given(size=st.integers(1, 3000), key=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_permutation_holds_every_number_once(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(size=st.integers(2**16 + 1, 2**62), start=st.integers(0, 2**16), key=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_long_permutations_send_different_numbers_to_different_ones(
    size: int, start: int, key: int
) -> None:
    chosen = np.unique(np.minimum(start + np.arange(2000), size - 1))
    sent = permute(chosen, size, key)
    assert len(set(sent.tolist())) == len(chosen)
    assert sent.min() >= 0 and sent.max() < size
    # One at a time, in another order: the same.
    assert permute(chosen[::-1][:5], size, key).tolist() == sent[::-1][:5].tolist()


def test_a_remembered_permutation_is_the_one_that_is_walked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed = permute(np.arange(500), 500, "a")
    monkeypatch.setattr(plans, "LISTED", 0)
    np.testing.assert_array_equal(permute(np.arange(500), 500, "a"), listed)


def test_all_orders_of_four_come_about_equally_often() -> None:
    counts = Counter(tuple(permute(np.arange(4), 4, "order", i).tolist()) for i in range(1200))
    assert len(counts) == 24
    # Chi-squared with 23 degrees of freedom: above 49.7 in one of a thousand.
    assert sum((n - 50) ** 2 / 50 for n in counts.values()) < 49.7


@pytest.mark.parametrize("size", [100, 70_000, 10**8, 2**62])
def test_neighbours_are_sent_anywhere(size: int) -> None:
    """First numbers spread evenly over the whole, and neighbours do not stay neighbours."""
    n = min(size, 20_000)
    sent = permute(np.arange(n), size, "x", 7) / size
    # The standard error of a mean is .289 / sqrt(n), of a correlation 1 / sqrt(n).
    if n < size:
        assert abs(sent.mean() - 0.5) < 4 * 0.289 / np.sqrt(n)
    assert abs(np.corrcoef(sent[:-1], sent[1:])[0, 1]) < 4 / np.sqrt(n)


def test_golden_permutation() -> None:
    """What another machine must give too; nobody but this network says that it is right."""
    assert permute(np.arange(6), 10**8, 0, "places").tolist() == [
        8268314, 90137952, 26949267, 57359072, 78331336, 26931424,
    ]  # fmt: skip


# Who is given which places


def test_sensors_of_one_list_follow_each_other() -> None:
    one = dict.fromkeys("abc", "list")
    parts = {s: share_out(THREE, 60, s, one, 1000, colocated=False) for s in "abc"}
    assert parts == {"a": range(30), "b": range(30, 50), "c": range(50, 60)}
    together = {s: share_out(THREE, 60, s, one, 1000, colocated=True) for s in "abc"}
    assert together == {"a": range(30), "b": range(20), "c": range(10)}


def test_sensors_of_different_lists_start_at_the_beginning_of_their_own() -> None:
    lists = {"a": "one", "b": "two", "c": "one"}
    parts = {s: share_out(THREE, 60, s, lists, 1000, colocated=False) for s in "abc"}
    assert parts == {"a": range(30), "b": range(20), "c": range(30, 40)}


@given(held=st.integers(1, 100), unique=st.integers(6, 200))
@settings(max_examples=60, deadline=None)
def test_a_short_list_is_shared_out_whole_and_in_proportion(held: int, unique: int) -> None:
    one = dict.fromkeys("abc", "list")
    parts = [share_out(THREE, unique, s, one, held, colocated=False) for s in "abc"]
    taken = [place for part in parts for place in part]
    assert taken == list(range(min(held, unique)))
    for part, share in zip(parts, (1 / 2, 1 / 3, 1 / 6), strict=True):
        # Whole samples of the wanted and of the given number: each rounds by less than one.
        assert abs(len(part) - share * len(taken)) < 2
