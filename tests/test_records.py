"""Runs are named by everything that changes their weights, and by nothing else."""

from dataclasses import replace
from fractions import Fraction

import pytest

from gfmsum.budget import BUDGETS
from gfmsum.mix import Mix
from gfmsum.records import Arm, Role, Run, Task, fingerprint, plain

MICRO, TINY = BUDGETS["micro"], BUDGETS["tiny"]
MIX = Mix.equal(["s1", "s2"])
RUN = Run.of(Arm(Role.MIX, MIX, MIX.sensors), MICRO, {"source": "x"}, seed=0, replicate=0)


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, seed=1),
        replace(RUN, replicate=1),
        replace(RUN, recipe=RUN.recipe + 1),
        replace(RUN, colocated=True),
        replace(RUN, data={"source": "y"}),
        replace(RUN, sees=("s1",)),
        replace(RUN, fraction=Fraction(1, 2)),
        replace(RUN, assignment=Mix.equal(["s1", "naip"])),
        replace(RUN, assignment=Mix((("s1", Fraction(1, 3)), ("s2", Fraction(2, 3))))),
        replace(RUN, budget=replace(MICRO, seen=MICRO.seen + 60)),
        replace(RUN, budget=replace(MICRO, model=replace(MICRO.model, depth=5))),
        replace(RUN, budget=replace(MICRO, learning_rate=1e-9)),
    ],
)
def test_every_field_changes_the_name(other: Run) -> None:
    assert other.fingerprint != RUN.fingerprint


def test_the_role_does_not() -> None:
    solo = Run.of(Arm(Role.SOLO, Mix.equal(["s1"]), ("s1",)), MICRO, {}, 0, 0)
    mixed = Run.of(Arm(Role.MIX, Mix.equal(["s1"]), ("s1",)), MICRO, {}, 0, 0)
    assert solo.fingerprint == mixed.fingerprint


def test_a_share_of_nothing_is_the_floor() -> None:
    floor = Run.of(Arm(Role.FLOOR, Mix(()), ()), MICRO, {"source": "x"}, 3, 1)
    share = Run.of(Arm(Role.SHARE, MIX, ()), MICRO, {"source": "y"}, 3, 1)
    assert share.fingerprint == floor.fingerprint
    assert floor.budget.steps == 0


def test_with_one_sensor_there_is_nothing_to_colocate() -> None:
    for arm, differs in (
        (Arm(Role.SOLO, Mix.equal(["s1"]), ("s1",)), False),
        (Arm(Role.FLOOR, Mix(()), ()), False),
        (Arm(Role.SHARE, MIX, ("s1",)), True),  # which sees the mix's places
        (Arm(Role.MIX, MIX, MIX.sensors), True),
    ):
        apart, together = (
            Run.of(arm, MICRO, {"source": "x"}, 0, 0, colocated=colocated)
            for colocated in (False, True)
        )
        assert (apart.fingerprint != together.fingerprint) is differs


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [Fraction(1, 3)]}) == fingerprint({"b": ["1/3"], "a": 1})
    assert len(fingerprint(1)) == 16
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(float("nan"))


def test_plain_gives_json_types() -> None:
    assert plain(Arm(Role.SHARE, MIX, ("s1",))) == {
        "role": "share",
        "assignment": {"shares": [["s1", "1/2"], ["s2", "1/2"]]},
        "sees": ["s1"],
        "fraction": "1",
    }


def test_utility_runs_from_floor_to_ceiling() -> None:
    task = Task("t", "s1", "classification", "accuracy", floor=0.2, ceiling=0.7)
    assert [task.utility(v) for v in (0.2, 0.45, 0.7)] == pytest.approx([0, 0.5, 1])


def test_few_labels_are_in_the_name() -> None:
    task = Task("t", "s1", "classification", "accuracy", floor=0.2, ceiling=0.7, train=90)
    few = task.at(10)
    assert (few.name, few.labels, few.train) == ("t@10", 10, 90)
    assert few.utility(0.45) == task.utility(0.45)
    assert task.at(0) is task
