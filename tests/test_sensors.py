"""Physics of sensors and bands."""

import pytest

from gfmsum.sensors import NAIP, S1, S2, SENSORS, Band, Sensor, Unit, unknown


def test_the_five_sensors_in_their_order() -> None:
    assert list(SENSORS) == ["s1", "s2", "landsat", "naip", "modis"]
    assert [len(s.bands) for s in SENSORS.values()] == [2, 13, 7, 4, 7]


def test_every_optical_band_lies_where_its_name_says() -> None:
    def centre(sensor: str, band: str) -> float:
        (found,) = SENSORS[sensor].select([band])
        assert found.wavelength_um is not None
        return found.wavelength_um

    for red in (("s2", "B04"), ("landsat", "B4"), ("naip", "R"), ("modis", "B01")):
        assert 0.62 < centre(*red) < 0.69
    for nir in (("s2", "B08"), ("landsat", "B5"), ("naip", "NIR"), ("modis", "B02")):
        assert 0.76 < centre(*nir) < 0.90
    assert centre("s2", "B10") == pytest.approx(1.3735)  # cirrus, nanometres turned to micrometres


def test_a_band_is_optical_or_radar_never_both_or_neither() -> None:
    with pytest.raises(ValueError, match="either wavelength_um or polarisation"):
        Band("x", 10, Unit.DB)
    with pytest.raises(ValueError, match="either wavelength_um or polarisation"):
        Band("x", 10, Unit.DB, 0.5, 0.1, "VV")
    with pytest.raises(ValueError, match="go together"):
        Band("x", 10, Unit.REFLECTANCE, 0.5)
    with pytest.raises(ValueError, match="'XY' must be VV"):
        Band("x", 10, Unit.DB, polarisation="XY")
    with pytest.raises(ValueError, match="gsd_m=0 must be above 0"):
        Band("x", 0, Unit.DB, polarisation="VV")


def test_selection_goes_by_name_and_keeps_the_order_asked_for() -> None:
    vh, vv = S1.select(["VH", "VV"])
    assert (vh.polarisation, vv.polarisation) == ("VH", "VV")
    with pytest.raises(ValueError, match=r"unknown band 'B2'.*did you mean 'B"):
        S2.select(["B2"])


def test_a_finer_grid_adds_no_detail_and_a_coarser_one_takes_it() -> None:
    assert [b.gsd_m for b in S2.select(["B02", "B11"], grid_m=10)] == [10, 20]
    assert [b.gsd_m for b in S2.select(["B02", "B11"], grid_m=30)] == [30, 30]
    (stretched,) = S1.select(["VV"], unit=Unit.STRETCHED8)
    assert stretched.unit is Unit.STRETCHED8


def test_groups_hold_bands_of_one_kind() -> None:
    assert [b.group for b in NAIP.bands] == ["visible", "visible", "visible", "nir"]
    assert [b.group for b in S1.bands] == ["VV", "VH"]
    assert {b.group for b in S2.select(["B10", "B11", "B12"])} == {"swir"}


def test_a_sensor_does_not_have_two_bands_of_one_name() -> None:
    with pytest.raises(ValueError, match="must be unique"):
        Sensor("x", "X", 1, (S1.bands[0], S1.bands[0]))


def test_unknown_names_the_choices_and_the_nearest() -> None:
    text = unknown("sensor", "s3", SENSORS)
    assert text.startswith("unknown sensor 's3': choose from landsat, modis, naip, s1, s2")
    assert "did you mean 's" in text
    assert "did you mean" not in unknown("sensor", "zzzzzz", SENSORS)
