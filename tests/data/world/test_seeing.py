"""What sensors make of the land: physically plausible pixels in their units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gfmsum.data.instruments import LOOKS, SIGNATURES, Instrument, respond
from gfmsum.data.surface import (
    Surface,
)
from gfmsum.sensors import LANDSAT, MODIS, NAIP, S1, S2, SENSORS, Band, Unit
from tests.data.world.scenes import (
    Numbers,
    Views,
    blocks,
    correlation,
    plain_ground,
    some_places,
)


@pytest.mark.parametrize("band", [b for s in (S2, LANDSAT, NAIP, MODIS) for b in s.bands])
def test_bands_integrate_spectra(band: Band) -> None:
    grid = np.arange(0.35, 2.7, 0.001)
    assert respond(band, np.full_like(grid, 0.37)) == pytest.approx(0.37, abs=1e-12)
    # The mean of a straight line under a symmetric response is its value at the centre.
    assert respond(band, 3 * grid) == pytest.approx(3 * band.wavelength_um, abs=1e-3)


def test_the_width_of_a_band_is_its_full_width_at_half_maximum() -> None:
    grid = np.arange(0.35, 2.7, 0.001)
    band = Band("x", 10, Unit.REFLECTANCE, wavelength_um=1.0, fwhm_um=0.2)
    inside = (np.abs(grid - 1.0) < 0.1).astype(float)
    # erf(sqrt(ln 2)) = 0.7610 of a Gaussian lies within its half maximum.
    assert respond(band, inside) == pytest.approx(0.7610, abs=2e-3)


def test_plants_have_a_red_edge_and_water_has_none() -> None:
    shine = dict(zip(SIGNATURES, Instrument(S2).signatures.T, strict=True))
    red, edge, nir = (next(i for i, b in enumerate(S2.bands) if b.name == n)
                      for n in ("B04", "B06", "B08"))  # fmt: skip
    for plant in ("green grass", "green crop", "broadleaf", "needleleaf"):
        assert shine[plant][nir] > 5 * shine[plant][red]
        assert shine[plant][red] < shine[plant][edge] < shine[plant][nir]
    assert shine["water"][nir] < shine["water"][red]


def test_backscatter_follows_the_ground() -> None:
    radar = dict(zip(SIGNATURES, Instrument(S1).signatures.T, strict=True))
    vv, vh = 0, 1
    assert radar["wet soil"][vv] == pytest.approx(10 ** (4 / 10) * radar["dry soil"][vv])
    assert max(radar, key=lambda name: radar[name][vv]) == "concrete"  # double bounce
    assert radar["broadleaf"][vh] > radar["green crop"][vh] > radar["green grass"][vh]
    assert all(power[vv] > power[vh] for power in radar.values())


def test_pixels_are_in_their_units(views: Views) -> None:
    for name, x in views.items():
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
        unit = SENSORS[name].bands[0].unit
        if unit is Unit.REFLECTANCE:
            assert x.min() >= 0
            assert x.max() <= 1.2
            assert 0.1 < x.mean() < 0.4
        elif unit is Unit.DB:
            assert x.min() >= -35
            assert x.max() <= 10
            assert -14 < x[:, 0].mean() < -7
            assert -21 < x[:, 1].mean() < -13
        else:
            assert np.array_equal(x, np.rint(x))
            assert x.min() >= 0
            assert x.max() <= 255
            assert 60 < x.mean() < 180


def test_cirrus_is_the_darkest_band_over_land(views: Views) -> None:
    means = views["s2"].mean((0, 2, 3))
    assert S2.bands[means.argmin()].name == "B10"


def test_coarse_bands_repeat_their_own_pixels(views: Views) -> None:
    for i, band in enumerate(S2.bands):
        side = round(band.gsd_m / S2.gsd_m)
        x = views["s2"][:, i, :30, :30]
        repeated = np.kron(x[:, ::side, ::side], np.ones((side, side), np.float32))
        assert np.array_equal(x, repeated)
    fine = views["s2"][:, 1, :30, :30]
    assert not np.array_equal(fine, np.kron(fine[:, ::2, ::2], np.ones((2, 2), np.float32)))


def test_speckle_has_its_looks_and_is_independent() -> None:
    surface = Surface(some_places("x", 60))
    power = 10 ** (Instrument(S1).observe(surface, plain_ground(60, "trees")).astype(float) / 10)
    relative = power / power.mean((2, 3), keepdims=True)
    # A gamma variate of L looks has mean one, variance 1/L and skewness 2/sqrt(L).
    assert 1 / relative.var() == pytest.approx(LOOKS, rel=0.03)
    assert ((relative - 1) ** 3).mean() * LOOKS**1.5 == pytest.approx(2 / LOOKS**0.5, rel=0.06)
    assert abs(correlation(relative[:, 0], relative[:, 1])) < 0.02
    assert abs(correlation(relative[..., 1:], relative[..., :-1])) < 0.02


def test_wet_ground_scatters_more_and_reflects_less() -> None:
    surface = Surface(some_places("x", 30))
    dry, wet = (plain_ground(30, "soil", moisture=m) for m in (0.1, 0.9))
    radar, optical = Instrument(S1), Instrument(LANDSAT)
    assert (radar.observe(surface, wet) - radar.observe(surface, dry)).mean() > 1.5
    assert (optical.observe(surface, wet) < optical.observe(surface, dry)).mean() > 0.99


def test_slopes_that_face_the_light_are_brighter() -> None:
    surface = Surface(some_places("x", 20))
    flat = plain_ground(20, "soil", size=8)
    tilted = replace(flat, slope=flat.slope + np.float32(2))
    away = replace(flat, slope=flat.slope - np.float32(2))
    level, one, other = (Instrument(LANDSAT).observe(surface, g).mean((1, 2, 3))
                         for g in (flat, tilted, away))  # fmt: skip
    assert np.all((one - level) * (other - level) < 0)


def test_every_picture_has_its_own_light() -> None:
    """Two bands of one wavelength differ by more than their widths: by illumination and haze."""
    surface, ground = Surface(some_places("x", 60)), plain_ground(60, "trees", size=8)
    s2 = Instrument(S2).observe(surface, ground)[:, 8]
    landsat = Instrument(LANDSAT).observe(surface, ground)[:, 4]
    assert np.log(s2.mean((1, 2)) / landsat.mean((1, 2))).std() > 0.1


def test_sensors_share_the_land(views: Views) -> None:
    """S2 and the middle of Landsat see one place; so do red edge and VH."""

    def greenness(name: str, nir: int, red: int) -> Numbers:
        x = views[name] if name == "s2" else views[name][:, :, 11:21, 11:21]
        bright, dark = x[:, nir].mean((1, 2)), x[:, red].mean((1, 2))
        return (bright - dark) / (bright + dark)

    assert correlation(greenness("s2", 7, 3), greenness("landsat", 4, 3)) > 0.9
    # Raw bands agree less: each picture has its own light.
    swir = views["s2"][:, 11], views["landsat"][:, 5, 11:21, 11:21]
    assert correlation(*(band.mean((1, 2)) for band in swir)) > 0.4
    vh = views["s1"][:, 1].mean((1, 2))
    assert correlation(greenness("s2", 7, 3), vh) > 0.25
    # And pixel by pixel: shared edges, not just shared means. Shortwave infrared falls and VH
    # rises with canopies.
    inside = [correlation(blocks(a, 4), blocks(b, 4))
              for a, b in zip(views["s2"][:, 11], views["s1"][:, 1], strict=True)]  # fmt: skip
    assert np.median(inside) < -0.3
