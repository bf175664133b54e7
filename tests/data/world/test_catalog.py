"""Sensors beyond the founding five look at the world too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfmsum import catalog
from gfmsum.catalog import CATALOG, ENMAP, SKYSAT, UMBRA
from gfmsum.data import instruments, synthetic
from gfmsum.data.instruments import SIGNATURES, Instrument, signature
from gfmsum.data.surface import (
    Surface,
)
from gfmsum.data.synthetic import Synthetic
from gfmsum.data.truths import COVERS, EXTENTS, TASKS
from gfmsum.data.units import contradiction
from gfmsum.sensors import LANDSAT, S1, S2, SENSORS, Band, Sensor, Unit, optical
from tests.data.world.scenes import (
    SMALL,
    correlation,
    items_of,
    pixels,
    some_places,
)


@pytest.fixture(scope="module")
def zoo() -> Synthetic:
    return Synthetic(replace(SMALL, sensors="+".join(CATALOG)))


@pytest.mark.parametrize("sensor", [s for s in CATALOG.values() if s.name not in SENSORS])
def test_every_sensor_of_the_catalog_looks_at_the_world(zoo: Synthetic, sensor: Sensor) -> None:
    x = pixels(zoo, sensor.name, range(24))
    assert x.shape == (24, len(sensor.bands), 32, 32)
    assert np.isfinite(x).all()
    assert contradiction(sensor.bands, x.mean((0, 2, 3)).tolist()) is None
    assert (x.std((0, 2, 3)) > 0).all()
    assert [task.sensor for task in zoo.tasks(sensor.name)] == [sensor.name] * len(TASKS)
    assert zoo.places(sensor.name) == zoo.places("s1")


@pytest.mark.parametrize("sensor", CATALOG)
def test_every_sensor_of_the_catalog_has_dense_tasks(zoo: Synthetic, sensor: str) -> None:
    cover, extent, clearing = (
        items_of(zoo, name, sensor, 9) for name in ("cover", "extent", "clearing")
    )
    assert len(np.bincount(cover.target.ravel())) == len(COVERS)
    assert len(np.bincount(extent.target.ravel())) == len(EXTENTS)
    assert 0.03 < clearing.target.mean() < 0.12
    assert np.isfinite(clearing.samples.pixels).all()


def test_sensors_are_chosen_by_name_in_the_order_of_the_catalog(zoo: Synthetic) -> None:
    few = Synthetic(replace(SMALL, sensors="enmap+s1"))
    assert few.sensors == {"s1": S1, "enmap": ENMAP}
    assert np.array_equal(pixels(few, "s1", range(3)), pixels(zoo, "s1", range(3)))
    with pytest.raises(ValueError, match="unknown sensor 's2'"):
        few.tasks("s2")


def test_other_sensors_are_named_by_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(**words: str) -> dict[str, Any]:
        return dict(Synthetic(replace(SMALL, **words)).identity)

    plain = identity()
    assert identity(sensors="s2+s1") == plain
    known = identity(sensors="s1+enmap+umbra")
    assert set(known.pop("sensors")) == {"enmap", "umbra"}
    assert known == plain
    # Another sensor of the same name is another world; another title is not.
    mine = Sensor("mine", "Mine", 3, SKYSAT.bands)
    names = []
    others = replace(mine, bands=mine.bands[::-1]), replace(mine, gsd_m=4)
    for sensor in (mine, replace(mine, title="?"), *others):
        monkeypatch.setattr(synthetic, "CATALOG", {**CATALOG, "mine": sensor})
        names.append(identity(sensors="s1+mine"))
    assert names[0] == names[1]
    assert names[0] not in names[2:]


def test_a_sensor_that_is_registered_is_one_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_KNOWN", dict(CATALOG))
    monkeypatch.setattr(synthetic, "CATALOG", catalog._KNOWN)
    catalog.register(
        Sensor("viirs", "VIIRS", 750, optical(Unit.REFLECTANCE, ("M5", 750, 0.672, 0.02)))
    )
    x = pixels(Synthetic(replace(SMALL, sensors="modis+viirs")), "viirs", range(20))
    assert 0.1 < x.mean() < 0.3


def one_band(**fields: Any) -> Sensor:
    return Sensor(
        "odd", "Odd", fields.pop("grid_m", 10.0), (Band("b", **{"gsd_m": 10.0, **fields}),)
    )


@pytest.mark.parametrize(
    ("sensor", "problem"),
    [
        (one_band(unit=Unit.REFLECTANCE, wavelength_um=10.9, fwhm_um=0.6), "wavelength_um=10.9"),
        (one_band(unit=Unit.REFLECTANCE, wavelength_um=0.36, fwhm_um=0.1), "between 0.35 and 2.7"),
        (one_band(unit=Unit.REFLECTANCE, wavelength_um=0.5, fwhm_um=1e-4), "at least 0.001 wide"),
        (one_band(unit=Unit.DB, wavelength_um=0.5, fwhm_um=0.01), "unit=dB must be reflectance"),
        (one_band(unit=Unit.REFLECTANCE, polarisation="VV", frequency_ghz=5.4), "must be dB"),
        (one_band(unit=Unit.DB, polarisation="VV"), "frequency_ghz=None must be between 1 and 40"),
        (one_band(unit=Unit.DB, polarisation="VV", frequency_ghz=0.4), "frequency_ghz=0.4"),
        (replace(S2, name="odd", gsd_m=5000), "gsd_m=5000 must be between 0.1 and 3125"),
    ],
)
def test_what_physics_cannot_render_is_refused(
    sensor: Sensor, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "CATALOG", {**CATALOG, "odd": sensor})
    with pytest.raises(ValueError, match=f"cannot show odd.*{problem}.*; leave it out") as refusal:
        Synthetic(replace(SMALL, sensors="s1+odd"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"sensors": "s1+enmpa"}, "unknown sensor 'enmpa'.*did you mean 'enmap'"),
        ({"sensors": "s1+"}, "unknown sensor ''"),
        ({"sensors": "s1+s1"}, "names a sensor twice"),
        ({"sensors": "s1+s2", "control": "harm", "target": "modis"}, "unknown sensor 'modis'"),
    ],
)
def test_sensors_that_are_not_there_are_refused(words: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Synthetic(replace(SMALL, **words))


def test_neighbouring_bands_of_an_imaging_spectrometer_are_alike(zoo: Synthetic) -> None:
    x = pixels(zoo, "enmap", range(12)).astype(np.float64)
    um = np.array([band.wavelength_um for band in ENMAP.bands])
    assert np.median([correlation(x[:, i], x[:, i + 1]) for i in range(len(um) - 1)]) > 0.99
    # It and Landsat see the same plants on the same pixels, each in its own light.
    nir, red = (int(np.abs(um - centre).argmin()) for centre in (0.865, 0.655))
    landsat = pixels(zoo, "landsat", range(12))
    greenness = [
        (a - b) / (a + b) for a, b in ((x[:, nir], x[:, red]), (landsat[:, 4], landsat[:, 3]))
    ]
    assert correlation(*greenness) > 0.95


def test_bands_of_one_and_a_bit_pixels_average_over_their_own(zoo: Synthetic) -> None:
    """SkySat's 0.81 m on pixels of 0.5 m: each pixel shows the cell that its middle lies in."""
    x = pixels(zoo, "skysat", range(4))
    same = [int((i + 0.5) * 0.5 / 0.81) == int((i + 1.5) * 0.5 / 0.81) for i in range(31)]
    assert 0 < sum(same) < 31
    for i, expected in enumerate(same):
        assert (
            (x[..., i] == x[..., i + 1]).all()
            == (x[..., i, :] == x[..., i + 1, :]).all()
            == expected
        )


@given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_cells_share_out_the_pixels_they_cover(pieces: int, more: int, side: int) -> None:
    """A pixel has so many pieces, a cell some more: count them."""
    wide = pieces + more
    share, cell = instruments._Part([0], Unit.DB, True, wide / pieces).resample(side)
    pixel_of = np.arange(side * pieces) // pieces
    cell_of = np.arange(side * pieces) // wide
    for i, row in enumerate(share):
        count = np.bincount(pixel_of[cell_of == i], minlength=side)
        np.testing.assert_allclose(row, count / count.sum(), atol=1e-5)
    assert cell.tolist() == [int((2 * i + 1) * pieces / (2 * wide)) for i in range(side)]


def test_bands_finer_than_the_grid_are_the_grids() -> None:
    fine = replace(LANDSAT, bands=tuple(replace(band, gsd_m=5.0) for band in LANDSAT.bands))
    surface = Surface(some_places("x", 3))
    ground = surface.look(30, 16)
    a, b = (Instrument(sensor).observe(surface, ground) for sensor in (LANDSAT, fine))
    assert np.array_equal(a, b)


def test_backscatter_at_c_band_is_the_table() -> None:
    for band in S1.bands:
        table = 10 ** (np.array(instruments._BACKSCATTER[band.polarisation]) / 10)
        assert np.array_equal(signature(band), table.astype(np.float32))


def at(frequency: float, polarisation: str = "VV") -> dict[str, float]:
    """Decibels of every signature."""
    band = Band("b", 1, Unit.DB, polarisation=polarisation, frequency_ghz=frequency)
    return dict(zip(SIGNATURES, (10 * np.log10(signature(band))).tolist(), strict=True))


def test_backscatter_at_twice_c_band_by_hand() -> None:
    twice = at(2 * 5.405)
    assert twice["dry soil"] == pytest.approx(-14.5 + 3.0103, abs=1e-3)
    # Crops: exp(-0.8) = 0.44933 of the soil's 0.035481 shows through, so the plants' own power is
    # (0.112202 - 0.015943) / 0.55067 = 0.174804; at twice the frequency exp(-1.6) = 0.201897 of twice
    # the soil shows through, 0.014327, and 0.798103 of the plants, 0.139511.
    assert twice["green crop"] == pytest.approx(10 * np.log10(0.014327 + 0.139511), abs=1e-3)
    assert twice["concrete"] == pytest.approx(-2.5)


@pytest.mark.parametrize("polarisation", ["VV", "VH", "HH"])
def test_short_waves_see_the_tops_of_plants_and_rougher_ground(polarisation: str) -> None:
    long, c, x = (at(g, polarisation) for g in (1.27, 5.405, UMBRA.bands[0].frequency_ghz))
    for name in ("water", "dry soil", "green grass", "broadleaf", "needleleaf"):
        assert long[name] < c[name] < x[name]
    # Crowns are opaque at C band already: X band adds little to them and much to soil and grass.
    gain = {name: x[name] - c[name] for name in c}
    assert gain["dry soil"] > gain["green grass"] > gain["broadleaf"]
    assert gain["broadleaf"] < 1


def test_polarisations_tell_surfaces_volumes_and_walls_apart() -> None:
    vv, hh, hv, vh = (at(5.405, p) for p in ("VV", "HH", "HV", "VH"))
    assert hv == vh
    assert hh["water"] < vv["water"] - 2
    assert hh["broadleaf"] == vv["broadleaf"]
    assert hh["concrete"] > vv["concrete"]
    assert all(hv[name] < hh[name] for name in hv)


@pytest.mark.parametrize("unit", [Unit.BRIGHTNESS8, Unit.STRETCHED8])
@pytest.mark.parametrize("sensor", [S1, LANDSAT])
def test_eight_bit_units_rank_pixels_as_the_measured_ones_do(sensor: Sensor, unit: Unit) -> None:
    eight = replace(sensor, bands=tuple(replace(band, unit=unit) for band in sensor.bands))
    surface = Surface(some_places("x", 30))
    ground = surface.look(sensor.gsd_m, 32)
    a, b = (Instrument(s).observe(surface, ground) for s in (sensor, eight))
    assert np.array_equal(b, np.rint(b))
    assert b.min() >= 0
    assert b.max() <= 255
    for one, other in zip(a[:, 0], b[:, 0], strict=True):
        order = np.diff(other.ravel()[one.ravel().argsort()])
        assert order.min() >= 0
    if unit is Unit.STRETCHED8:  # 2 % at either end, and every picture by itself
        assert 0.015 < (b == 0).mean() < 0.06
        assert 0.015 < (b == 255).mean() < 0.06
        assert b.mean((2, 3)).std() < 60


def test_radar_and_optical_bands_may_share_a_sensor() -> None:
    both = Sensor("both", "Both", 10, (*S1.bands, *(b for b in S2.bands if b.gsd_m == 10)))
    surface = Surface(some_places("x", 20))
    x = Instrument(both).observe(surface, surface.look(10, 16))
    assert contradiction(both.bands, x.mean((0, 2, 3)).tolist()) is None
    assert x[:, :2].mean() < -5
