"""Budgets never overspend."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfmsum.budget import BUDGETS, TINY


@given(st.integers(1, 10**9), st.integers(1, 4096))
def test_steps_fit_and_waste_less_than_one(seen: int, batch: int) -> None:
    if seen < batch:
        with pytest.raises(ValueError, match="does not pay for one step"):
            replace(BUDGETS["tiny"], seen=seen, batch=batch)
        return
    budget = replace(BUDGETS["tiny"], seen=seen, batch=batch)
    assert budget.steps * batch <= seen < (budget.steps + 1) * batch


def test_presets_hold_equal_mixes_in_equal_parts() -> None:
    for budget in BUDGETS.values():
        assert all(budget.batch % k == 0 for k in (1, 2, 4, 5))  # in every step
        assert all(budget.seen % k == 0 for k in range(1, 7))  # over the whole run
        assert all(budget.unique % k == 0 for k in (1, 2, 3, 4, 5))
        assert budget.seen % budget.batch == 0


def test_a_quarter_of_the_patches_is_visible() -> None:
    assert (TINY.patches, TINY.visible) == (64, 16)
