"""Batches: normalised, mixed by share, the same for any number of workers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gfmsum.data.modules import MixDataModule, SensorDataModule, Statistics, turn
from gfmsum.data.sample import Labelled, Samples
from gfmsum.mix import Mix
from gfmsum.records import Task
from gfmsum.sensors import SENSORS, Sensor


class Noise:
    """A source whose samples know their number: the first pixel of the first band."""

    sensors: Mapping[str, Sensor] = SENSORS
    identity: Mapping[str, Any] = {"source": "noise"}
    caveats = ()

    def available(self, sensor: str, size_px: int) -> int | None:
        return None

    def pretraining(
        self, sensor: str, slots: range, size_px: int, seed: Sequence[int]
    ) -> list[Samples]:
        bands = SENSORS[sensor].bands
        rng = np.random.default_rng([*seed, len(sensor)])
        pixels = rng.normal(3, 2, (len(slots), len(bands), size_px, size_px)).astype(np.float32)
        ids = np.array([f"{sensor}/{k}" for k in slots])
        half = len(slots) // 2  # two kinds of one sensor: all bands, and the first alone
        return [
            Samples(sensor, bands, 10.0, pixels[:half], ids[:half]),
            Samples(sensor, bands[:1], 10.0, pixels[half:, :1], ids[half:]),
        ]

    def tasks(self, sensor: str) -> list[Task]:
        return []

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        return []

    def labelled(self, task: Task, size_px: int) -> Labelled:
        raise LookupError(task.name)


def module(**options: Any) -> MixDataModule:
    mix = Mix.parse("s1+s2+naip", list(SENSORS))
    settings = {"unique": 90, "seen": 300, "batch": 30, "image_px": 8} | options
    return MixDataModule(Noise(), mix, **settings)


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
    for a, b in zip(alone, helped, strict=True):
        for one, other in zip(a.parts, b.parts, strict=True):
            assert torch.equal(one.pixels, other.pixels)


def test_pixels_are_normalised_per_band() -> None:
    data = SensorDataModule(Noise(), "s1", unique=200, seen=200, batch=200, image_px=8)
    (batch,) = data.train_dataloader()
    for part in batch.parts:
        assert part.pixels.mean(dim=(0, 2, 3)) == pytest.approx(0, abs=1e-4)
        assert part.pixels.std(dim=(0, 2, 3)) == pytest.approx(1, abs=1e-2)


def test_an_arm_that_sees_a_part_of_the_mix_gets_that_part_of_the_locations() -> None:
    data = module(sees=("s2",))
    (batch, *_) = data.train_dataloader()
    assert {part.sensor for part in batch.parts} == {"s2"}
    assert data.batches is not None
    assert data.batches.plan.pools == {"s2": 30}
    ids = np.concatenate([samples.ids for samples, _ in data.batches.pools["s2"]])
    assert ids.tolist() == [f"s2/{k}" for k in range(30, 60)]


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
