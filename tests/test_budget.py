"""Budgets never overspend, and know what an image costs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gfmsum.budget import BUDGETS, TINY, Architecture
from gfmsum.model.mae import MaskedAutoencoder
from gfmsum.sensors import SENSORS


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


OTHER = Architecture(
    width=48, depth=3, heads=3, decoder_width=24, decoder_depth=2, decoder_heads=3,
    image_px=48, patch_px=8, mask_ratio=0.6,
)  # fmt: skip


@pytest.mark.parametrize("model", [TINY, OTHER])
@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_an_images_flops_are_those_of_the_real_graph(model: Architecture, sensor: str) -> None:
    mae, bands = MaskedAutoencoder(model), SENSORS[sensor].bands
    counted = []
    for images in (1, 2):
        pixels = torch.zeros(images, len(bands), model.image_px, model.image_px)
        with FlopCounterMode(display=False) as counter:
            errors = mae([(pixels, bands, 10.0)], torch.Generator())
            torch.autograd.grad(errors[0].sum(), list(mae.parameters()), allow_unused=True)
        counted.append(counter.get_total_flops())
    assert model.flops(len(bands)) == counted[1] - counted[0]
