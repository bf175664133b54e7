"""Batches: normalised, mixed by share, the same for any number of workers, in memory or not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gfmsum.data import modules
from gfmsum.data.modules import Batch, MixDataModule, SensorDataModule, Statistics, turn
from gfmsum.data.sample import Kind, Labelled, Pool, Rows, Samples
from gfmsum.mix import Mix
from gfmsum.records import Task
from gfmsum.sensors import SENSORS, Sensor, Unit

PLACES = 1000


class Noise:
    """A source of a thousand places, whose samples are called after them."""

    sensors: Mapping[str, Sensor] = SENSORS
    identity: Mapping[str, Any] = {"source": "noise"}
    caveats = ()

    def places(self, sensor: str) -> str:
        return "noise"

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        bands = tuple(replace(band, unit=Unit.BRIGHTNESS8) for band in SENSORS[sensor].bands)
        rng = np.random.default_rng(len(sensor))
        shape = (PLACES, len(bands), size_px, size_px)
        pixels = rng.standard_normal(shape, np.float32) * 2 + 30
        ids = np.array([f"{sensor}/{k}" for k in range(PLACES)])
        # Two kinds of one sensor: all bands, and the first alone.
        return Pool(
            (
                Samples(sensor, bands, 10.0, pixels[:600], ids[:600]),
                Samples(sensor, bands[:1], 10.0, pixels[600:, :1], ids[600:]),
            ),
            self.places(sensor),
        )

    def tasks(self, sensor: str) -> list[Task]:
        return []

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        return []

    def labelled(self, task: Task, size_px: int) -> Labelled:
        raise LookupError(task.name)


class Slow:
    """A block that is not in memory, and counts how often a sample is made."""

    quick = False

    def __init__(self, samples: Samples) -> None:
        self.samples, self.made = samples, np.zeros(len(samples), int)

    @property
    def kind(self) -> Kind:
        return self.samples.kind

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, rows: Rows) -> Samples:
        np.add.at(self.made, rows, 1)
        return self.samples.read(rows)


class SlowNoise(Noise):
    """The same from somewhere slow."""

    def __init__(self) -> None:
        self.blocks: list[Slow] = []

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        pool = super().pretraining(sensor, size_px)
        blocks = [Slow(block) for block in pool.blocks if isinstance(block, Samples)]
        self.blocks += blocks
        return replace(pool, blocks=tuple(blocks))


def same(a: list[Batch], b: list[Batch]) -> bool:
    parts = [
        (one, other)
        for x, y in zip(a, b, strict=True)
        for one, other in zip(x.parts, y.parts, strict=True)
    ]
    return all(p.ids == q.ids and torch.equal(p.pixels, q.pixels) for p, q in parts)


def module(**options: Any) -> MixDataModule:
    settings = {
        "source": Noise(), "mix": Mix.parse("s1+s2+naip", list(SENSORS)), "unique": 90, "seen": 300,
        "batch": 30, "image_px": 8,
    }  # fmt: skip
    return MixDataModule(**settings | options)


def test_every_step_holds_every_sensor_by_its_share() -> None:
    batches = list(module().train_dataloader())
    assert len(batches) == 10
    for step, batch in enumerate(batches):
        assert batch.step == step
        counts: dict[str, int] = {}
        for part in batch.parts:
            assert part.pixels.shape[1] == len(part.bands)
            counts[part.sensor] = counts.get(part.sensor, 0) + len(part.pixels)
        assert counts == {"s1": 10, "s2": 10, "naip": 10}


def test_batches_are_the_same_for_any_number_of_workers() -> None:
    alone, helped = (list(module(num_workers=n).train_dataloader()) for n in (0, 2))
    assert same(alone, helped)


def test_slices_hold_what_the_whole_step_holds() -> None:
    data = module()
    data.setup()
    assert data.batches is not None
    whole = data.batches.batch(3)
    halves = [data.batches.batch(3, modules.Slice(j, 2)) for j in range(2)]
    for kind, _ in whole.counts:
        (part,) = (part for part in whole.parts if part.kind == kind)
        found = [part for half in halves for part in half.parts if part.kind == kind]
        rows = np.concatenate([np.array(part.rows) for part in found])
        assert sorted(rows.tolist()) == list(part.rows)
        pixels = torch.cat([part.pixels for part in found])
        assert torch.equal(pixels[np.argsort(rows)], part.pixels)


def test_slow_samples_are_made_once_if_memory_allows_and_anew_if_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = list(module().train_dataloader())
    kept, anew = SlowNoise(), SlowNoise()
    assert same(list(module(source=kept, seen=900).train_dataloader())[:10], fast)
    # And the first of each sensor once more, to see how much memory all will take.
    assert sum(block.made.sum() for block in kept.blocks) == 90 + 3
    monkeypatch.setattr(modules, "KEPT_BYTES", 1000)
    assert same(list(module(source=anew, seen=900).train_dataloader())[:10], fast)
    assert any(block.made.max() > 5 for block in anew.blocks)


def test_pixels_are_normalised_per_band() -> None:
    data = SensorDataModule(Noise(), "s1", unique=200, seen=200, batch=200, image_px=8)
    (batch,) = data.train_dataloader()
    for part in batch.parts:
        assert part.pixels.mean(dim=(0, 2, 3)) == pytest.approx(0, abs=1e-4)
        assert part.pixels.std(dim=(0, 2, 3)) == pytest.approx(1, abs=1e-2)


def shown(**options: Any) -> dict[str, set[int]]:
    """Of each sensor the places that a run shows."""
    places: dict[str, set[int]] = {}
    for batch in module(**options).train_dataloader():
        for part in batch.parts:
            numbers = {int(name.partition("/")[2]) for name in part.ids}
            places.setdefault(part.sensor, set()).update(numbers)
    return places


def test_each_place_goes_to_one_sensor_and_an_arm_that_sees_one_gets_its_places() -> None:
    mixed = shown()
    assert {name: len(places) for name, places in mixed.items()} == {"s1": 30, "s2": 30, "naip": 30}
    assert len(set.union(*mixed.values())) == 90
    assert shown(sees=("s2",)) == {"s2": mixed["s2"]}
    solo = shown(mix=Mix.equal(["s2"]))
    assert solo["s2"] == set.union(*mixed.values())  # one list for all arms
    other = shown(seed=(0, 1))
    assert other["s1"] != mixed["s1"]


def test_colocated_sensors_see_the_same_places() -> None:
    mixed = shown(colocated=True)
    assert mixed["s1"] == mixed["s2"] == mixed["naip"]
    assert len(mixed["s1"]) == 30
    assert shown(colocated=True, sees=("naip",)) == {"naip": mixed["naip"]}


@pytest.mark.parametrize("source", [Noise(), SlowNoise()])
def test_a_sensor_that_is_given_no_place_is_named(source: Noise) -> None:
    class OneKind(Noise):
        def pretraining(self, sensor: str, size_px: int) -> Pool:
            pool = source.pretraining(sensor, size_px)
            return replace(pool, blocks=pool.blocks[:1])

    for one in (source, OneKind()):
        with pytest.raises(ValueError, match="no pretraining samples for s1; drop them"):
            module(source=one, mix=Mix.parse("s1:1+s2:999", list(SENSORS)), unique=90).setup()


def test_pixels_that_are_no_numbers_are_refused_by_name() -> None:
    class Holed(Noise):
        def pretraining(self, sensor: str, size_px: int) -> Pool:
            pool = super().pretraining(sensor, size_px)
            for block in pool.blocks:
                assert isinstance(block, Samples)
                block.pixels[7, 0, 0, 0] = np.nan
            return pool

    with pytest.raises(ValueError, match=r"s2/(7|607): 1 of \d+ samples .* not finite"):
        module(source=Holed(), mix=Mix.equal(["s2"]), unique=1000).setup()


def test_values_that_contradict_their_unit_are_refused_with_the_numbers() -> None:
    class Thousands(Noise):
        def pretraining(self, sensor: str, size_px: int) -> Pool:
            pool = super().pretraining(sensor, size_px)
            wrong = [
                replace(b, pixels=b.pixels * 100) for b in pool.blocks if isinstance(b, Samples)
            ]
            return replace(pool, blocks=tuple(wrong))

    with pytest.raises(
        ValueError, match=r"s1 \(s1/\d+ and \d+ more\): band VV is (2|3)\d{3} on average"
    ):
        module(source=Thousands()).setup()


def test_a_constant_band_becomes_zero_not_infinity() -> None:
    pixels = np.full((4, 1, 2, 2), 7.0, dtype=np.float32)
    np.testing.assert_array_equal(Statistics.of(pixels).normalise(pixels), 0)


def test_the_eight_poses_are_the_eight_symmetries_of_a_square() -> None:
    image = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    poses = turn(np.repeat(image, 8, axis=0), np.arange(8))
    assert len({tuple(pose.ravel()) for pose in poses}) == 8
    np.testing.assert_array_equal(poses[0], image[0])
    np.testing.assert_array_equal(poses[4, 0], image[0, 0, :, ::-1])


def test_a_step_outside_the_plan_is_refused() -> None:
    data = module()
    data.setup()
    assert data.batches is not None
    with pytest.raises(IndexError, match="step 10 is not among"):
        data.batches[10]
