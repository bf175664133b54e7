"""Tasks of the synthetic world: their answers are those of the ground, by hand where that is possible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from gfmsum.data.surface import (
    LANDUSES,
    MATERIALS,
    Surface,
    respell,
)
from gfmsum.data.synthetic import Synthetic
from gfmsum.data.truths import COVERS, EXTENTS
from gfmsum.sensors import SENSORS
from tests.data.world.scenes import (
    SMALL,
    fitted,
    items_of,
    rings,
)


@pytest.mark.parametrize("sensor", SENSORS)
def test_tasks_are_complete(source: Synthetic, sensor: str) -> None:
    scales = {task.name: (task.metric, task.floor, task.ceiling) for task in source.tasks(sensor)}
    assert scales == {
        f"landuse_{sensor}": ("accuracy", 1 / 6, 1.0),
        f"diversity_{sensor}": ("r2", 0.0, 1.0),
        f"canopy_{sensor}": ("r2", 0.0, 1.0),
        f"length_{sensor}": ("r2", 0.0, 1.0),
        f"coarseness_{sensor}": ("r2", 0.0, 1.0),
        f"edges_{sensor}": ("r2", 0.0, 1.0),
        f"cover_{sensor}": ("mean_iou", 0.0702, 1.0),
        f"extent_{sensor}": ("mean_iou", 0.1649, 1.0),
        f"clearing_{sensor}": ("iou_positive", 0.0707, 1.0),
    }
    names = "landuse", "diversity", "canopy"
    landuse, diversity, canopy = (items_of(source, name, sensor) for name in names)
    assert landuse.samples is diversity.samples is canopy.samples
    assert np.bincount(landuse.target).tolist() == [30] * 6
    for part in landuse.folds[0]:
        assert np.bincount(landuse.target[part]).tolist() == [10] * 6
    assert np.array_equal(np.concatenate(landuse.folds[0]), np.arange(180))
    assert landuse.samples.ids[landuse.folds[0][2][17]] == "synthetic/0/test/17"
    assert len(set(landuse.cluster)) == 180
    assert 0 <= diversity.target.min() < diversity.target.max() <= 1 - 1 / len(MATERIALS)
    assert diversity.target.std() > 0.05
    assert 0 <= canopy.target.min() < canopy.target.max() <= 1
    assert canopy.target.std() > 0.1


def test_labels_come_from_the_land_and_not_from_pixels(source: Synthetic) -> None:
    """S1 and S2 share a grid, so they share labels, though not a single pixel value."""
    for radar, camera in zip(source.tasks("s1"), source.tasks("s2"), strict=True):
        a, b = source.labelled(radar, 32), source.labelled(camera, 32)
        assert np.array_equal(a.target, b.target)
        assert a.samples.ids.tolist() == b.samples.ids.tolist()


def test_canopy_and_diversity_are_those_of_the_cover(source: Synthetic) -> None:
    surface = Surface(respell(source._probe_places("train", 6), np.arange(6)))
    cover = surface.look(30, 32).cover
    want = cover[:, MATERIALS.index("trees")].mean((1, 2))
    np.testing.assert_allclose(items_of(source, "canopy", "landsat").target[:6], want, rtol=1e-5)
    # The chance that two points drawn from the footprint lie on different materials.
    flat = cover[0].reshape(len(MATERIALS), -1).astype(np.float64)
    differ = 1 - (flat.T @ flat).mean()
    diversity = items_of(source, "diversity", "landsat", 32).target[0]
    assert diversity == pytest.approx(differ, rel=1e-5)


def test_labelled_items_do_not_depend_on_how_many_there_are(source: Synthetic) -> None:
    more = Synthetic(replace(SMALL, test=66))
    few, many = (items_of(world, "landuse", "s1") for world in (source, more))
    assert np.array_equal(few.samples.pixels, many.samples.pixels[:180])


@pytest.mark.parametrize("sensor", ["s1", "modis"])
def test_shape_tells_what_band_means_do_not(sensor: str) -> None:
    source = Synthetic(replace(SMALL, train=600, test=240))
    names = "landuse", "diversity", "canopy"
    landuse, diversity, canopy = (items_of(source, name, sensor) for name in names)
    x = landuse.samples.pixels.astype(np.float64)
    means, shape = x.mean((2, 3)), rings(x)

    by_means = fitted(LogisticRegression(C=0.1), means, landuse)
    both = np.concatenate([means, shape], axis=1)
    assert by_means < 0.65
    assert fitted(LogisticRegression(C=0.1), both, landuse) > by_means + 0.1
    by_means = fitted(Ridge(10), means, diversity)
    assert by_means < 0.5
    spread = np.concatenate([means, np.log(x.std((2, 3)))], axis=1)
    assert fitted(Ridge(10), spread, diversity) > by_means + 0.05
    assert 0.2 < fitted(Ridge(1), means, canopy) < 0.8


def test_classes_are_the_land_uses(source: Synthetic) -> None:
    classes = {task.name: task.classes for task in source.tasks("naip")}
    assert classes["landuse_naip"] == tuple(LANDUSES)
    assert classes["diversity_naip"] == classes["length_naip"] == ()
    assert classes["cover_naip"] == tuple(COVERS)
    assert classes["extent_naip"] == tuple(EXTENTS)
    assert len(classes["clearing_naip"]) == 2
