"""Budgets never overspend, and know what an image costs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfmsum.budget import BUDGETS, GPU_FLOPS, TINY, Architecture, table
from gfmsum.data.sample import Kind
from gfmsum.model.mae import MaskedAutoencoder
from gfmsum.pretrain import count_flops
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
    assert (TINY.patches, TINY.visible, TINY.predicted) == (64, 16, 48)


OTHER = Architecture(
    width=48, depth=3, heads=3, decoder_width=24, decoder_depth=2, decoder_heads=3,
    image_px=48, patch_px=8, mask_ratio=0.6, predict_ratio=0.5,
)  # fmt: skip


@pytest.mark.parametrize(
    "model", [TINY, OTHER, replace(OTHER, embed="per_sensor", predict_ratio=1.0)]
)
@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_an_images_flops_are_those_of_the_real_graph(model: Architecture, sensor: str) -> None:
    bands = SENSORS[sensor].bands
    mae = MaskedAutoencoder(model)
    mae.know(bands)
    _, each = count_flops(mae, Kind(sensor, bands, 10.0))
    assert model.flops(len(bands)) == each


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    budget = replace(BUDGETS["tiny"], warmup=0.1, decay=0.25)
    spent = [0.0, 0.05, 0.1, 0.5, 0.75, 0.875, 1.0]
    assert [budget.rate(x) for x in spent] == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0])
    steady = replace(BUDGETS["tiny"], warmup=0.0, decay=0.0)
    assert [steady.rate(x) for x in (0.0, 0.5, 1.0)] == [1, 1, 1]


@given(st.floats(0, 1), st.sampled_from([0.1, 0.2, 0.5]), st.sampled_from([0.2, 0.5, 1.0]))
def test_a_part_has_the_rates_of_the_whole_until_its_own_fall(
    spent: float, end: float, decay: float
) -> None:
    budget = replace(BUDGETS["tiny"], warmup=0.05, decay=decay)
    part, whole = budget.rate(spent * end, end), budget.rate(spent * end)
    assert part <= whole
    if spent <= 1 - decay and spent * end <= 1 - decay:
        assert part == whole
    assert budget.rate(end, end) == 0


def test_what_may_be_spent_in_each_currency() -> None:
    tiny = BUDGETS["tiny"]
    assert tiny.allowed == 12_000
    assert replace(tiny, match="tokens").allowed == 12_000 * 16
    assert replace(tiny, match="flops").allowed == 12_000 * TINY.flops(6)
    assert replace(tiny, match="flops", flops=5e9).allowed == 5e9
    assert replace(tiny, match="flops", flops=5e9).nothing().allowed == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"match": "flop"}, "unknown match 'flop'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"decay": 1.5}, "decay=1.5 in"),
        ({"tolerance": 0.0}, "tolerance=0.0 between 0 and 1"),
        ({"flops": -1.0}, "flops=-1.0 must be at least 0"),
    ],
)
def test_impossible_budgets_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(BUDGETS["tiny"], **change)  # type: ignore[arg-type]


def test_the_table_has_every_preset() -> None:
    lines = table().splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == list(BUDGETS)
    base = BUDGETS["base"]
    hours = base.seen * base.model.flops(6) / GPU_FLOPS / 3600
    assert f"{hours:.2g} h on an H100" in lines[1 + list(BUDGETS).index("base")]
