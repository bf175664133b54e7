"""Physics of sensors and bands, the catalog, and how far sensors are from each other."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from gfmsum import catalog
from gfmsum.catalog import CATALOG, read_sensors, register
from gfmsum.distance import distances, gsd_log_ratio, spectral_distance
from gfmsum.mix import CORPORA
from gfmsum.sensors import (
    LANDSAT,
    NAIP,
    RESERVED,
    S1,
    S2,
    SENSORS,
    Band,
    Sensor,
    Unit,
    optical,
    unknown,
)


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
    with pytest.raises(ValueError, match="gsd_m=inf must be above 0 and finite"):
        Band("x", math.inf, Unit.DB, polarisation="VV")
    with pytest.raises(ValueError, match="frequency_ghz=nan must be above 0"):
        Band("x", 10, Unit.DB, polarisation="VV", frequency_ghz=math.nan)
    with pytest.raises(ValueError, match="frequency_ghz is for radar"):
        Band("x", 10, Unit.REFLECTANCE, 0.5, 0.1, frequency_ghz=5.4)


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


@pytest.mark.parametrize("name", ["", "S1", "1s", "s-1", "s+1", "s1:2", "a b", "../x", "é", "s1\n"])
def test_a_sensor_name_is_safe_in_mixes_paths_and_pages(name: str) -> None:
    with pytest.raises(ValueError, match="must be small letters, digits and _"):
        Sensor(name, "X", 1, S1.bands)


def test_a_sensor_is_not_named_like_a_mix() -> None:
    assert set(RESERVED) == {"all", *CORPORA}
    for name in RESERVED:
        with pytest.raises(ValueError, match="already means a mix"):
            Sensor(name, "X", 1, S1.bands)


def test_a_sensor_has_a_grid() -> None:
    with pytest.raises(ValueError, match="sensor x: gsd_m=0 must be above 0"):
        Sensor("x", "X", 0, S1.bands)


# The catalog.


def test_the_catalog_begins_with_the_founding_five_and_knows_ten_more() -> None:
    counts = {name: (len(sensor.bands), sensor.gsd_m) for name, sensor in CATALOG.items()}
    assert list(counts)[:5] == list(SENSORS)
    assert {name: counts[name] for name in list(counts)[5:]} == {
        "s2l2a": (12, 10), "landsat_tm": (6, 30), "landsat_etm": (6, 30), "linz": (3, 0.3),
        "gaofen": (4, 4), "skysat": (4, 0.5), "pleiades_neo": (6, 1.2), "s3_olci": (21, 300),
        "enmap": (224, 30), "umbra": (1, 0.5),
    }  # fmt: skip
    assert all(name == sensor.name for name, sensor in CATALOG.items())
    assert "B10" not in {band.name for band in CATALOG["s2l2a"].bands}
    assert catalog.__doc__ and all(name in (Path(catalog.__file__).read_text()) for name in counts)


def test_bands_called_alike_lie_alike() -> None:
    """Of every sensor: wavelengths in micrometres, and red where red is."""
    reds = {
        "landsat_tm": "B3", "landsat_etm": "B3", "linz": "R", "gaofen": "B3", "skysat": "red",
        "pleiades_neo": "red", "s2l2a": "B04", "s3_olci": "Oa08", "enmap": "B48",
    }  # fmt: skip
    for name, red in reds.items():
        (band,) = CATALOG[name].select([red])
        assert band.wavelength_um is not None and 0.62 < band.wavelength_um < 0.68, name
    for sensor in CATALOG.values():
        for band in sensor.bands:
            if band.wavelength_um is not None and band.fwhm_um is not None:
                assert 0.39 < band.wavelength_um < 2.5, (sensor.name, band)
                assert 0.002 < band.fwhm_um < 0.3, (sensor.name, band)
            else:
                assert band.frequency_ghz is not None, (sensor.name, band)


def test_band_edges_become_centres_and_widths() -> None:
    (nir,) = CATALOG["landsat_tm"].select(["B4"])  # 0.76 to 0.90 um
    assert (nir.wavelength_um, nir.fwhm_um) == (pytest.approx(0.83), pytest.approx(0.14))
    (nir,) = CATALOG["pleiades_neo"].select(["nir"])  # 770 to 880 nm
    assert (nir.wavelength_um, nir.fwhm_um) == (pytest.approx(0.825), pytest.approx(0.11))
    (olci,) = CATALOG["s3_olci"].select(["Oa21"])
    assert (olci.wavelength_um, olci.fwhm_um) == (pytest.approx(1.02), pytest.approx(0.04))


def test_enmap_is_two_spectrometers_that_overlap() -> None:
    centres = np.array([band.wavelength_um or 0 for band in CATALOG["enmap"].bands])
    vnir, swir = centres[:91], centres[91:]
    assert (vnir[0], vnir[-1]) == (pytest.approx(0.4184), pytest.approx(0.9933))
    assert (swir[0], swir[-1]) == (pytest.approx(0.902), pytest.approx(2.4453))
    assert (np.diff(vnir) > 0.004).all() and (np.diff(vnir) < 0.0085).all()
    steps = np.diff(swir)
    assert ((steps > 0.007) & (steps < 0.0125)).sum() == len(steps) - 2  # two gaps: water vapour
    assert np.diff(vnir).mean() == pytest.approx(0.0065, abs=2e-4)  # as published: 6.5 nm


def test_c_band_and_x_band_are_told_apart() -> None:
    assert {band.frequency_ghz for band in S1.bands} == {5.405}
    (umbra,) = CATALOG["umbra"].bands
    assert (umbra.polarisation, umbra.frequency_ghz) == ("VV", 9.8)


# Adding sensors.

DOVE = Sensor(
    "superdove",
    "PlanetScope SuperDove",
    3.0,
    (
        *optical(Unit.REFLECTANCE, ("blue", 3, 0.490, 0.050), ("nir", 3.7, 0.865, 0.040)),
        Band("NO", 3, Unit.DB, polarisation="VH", frequency_ghz=9.65),
        *optical(Unit.BRIGHTNESS8, ("1", 3, 0.665, 0.031)),
    ),
)
DOVE_YAML = """
superdove:              # any comment
  title: PlanetScope SuperDove
  gsd_m: 3
  unit: reflectance
  bands:
    blue: {wavelength_um: 0.490, fwhm_um: 50e-3}
    nir: {wavelength_um: 0.865, fwhm_um: 0.040, gsd_m: 3.7}
    NO: {polarisation: VH, frequency_ghz: 9.65, unit: dB}
    1:
      wavelength_um: 0.665
      fwhm_um: 0.031
      unit: brightness8
plain:
  gsd_m: 1
  unit: dB
  bands: {VV: {polarisation: VV}}
"""


@pytest.fixture
def _own_catalog(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten."""
    before = dict(CATALOG)
    yield
    for name in set(CATALOG) - set(before):
        del catalog._KNOWN[name]
    assert dict(CATALOG) == before


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "sensors.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_says_what_python_says(tmp_path: Path) -> None:
    dove, plain = read_sensors(write(tmp_path, DOVE_YAML))
    assert dove == DOVE
    assert plain == Sensor("plain", "plain", 1, (Band("VV", 1, Unit.DB, polarisation="VV"),))


@pytest.mark.usefixtures("_own_catalog")
def test_reading_registers_nothing_and_registering_does(tmp_path: Path) -> None:
    sensors = read_sensors(write(tmp_path, DOVE_YAML))
    assert "superdove" not in CATALOG
    register(*sensors)
    assert CATALOG["superdove"] == DOVE and "superdove" not in SENSORS
    register(DOVE)  # a notebook's cell runs twice


@pytest.mark.usefixtures("_own_catalog")
def test_a_name_means_one_sensor() -> None:
    other = replace(DOVE, gsd_m=4.0)
    with pytest.raises(ValueError, match=r"sensor 's1' already exists with other bands; rename it"):
        register(DOVE, replace(S1, gsd_m=20.0))
    assert "superdove" not in CATALOG  # all or none
    with pytest.raises(ValueError, match="'superdove' already exists"):
        register(DOVE, other)
    register(DOVE)
    with pytest.raises(ValueError, match="'superdove' already exists"):
        register(other)
    assert CATALOG["superdove"] is DOVE and CATALOG["s1"] is S1


BAND = "x:\n  gsd_m: 1\n  unit: dB\n  bands:\n    VV: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no sensor; describe at least one"),
        ("# nothing", "holds no sensor"),
        ("{}", ":1: file: must hold entries like 'name: value'"),
        ("- a\n- b", ":1: file: must hold entries"),
        ("just text", ":1: file: must hold entries"),
        ("x: [", ":1: not YAML: expected the node content"),
        ("x: 1\n---\ny: 2", ":2: not YAML: but found another document"),
        ("x: *a", ":1: not YAML: found undefined alias 'a'"),
        (b"x: \xff\xfe", "not YAML: "),
        ("[" * 2000, "not YAML: "),
        ("x:", ":1: x: must hold entries"),
        ("x:\n  gsd_m: 1", ":2: x: has no bands; give it one"),
        ("x:\n  bands: {VV: {polarisation: VV}}", ":2: x: has no gsd_m; give it one"),
        ("x:\n  gsd: 1", ":2: x, gsd: unknown entry 'gsd': choose from .*did you mean 'gsd_m'"),
        ("x:\n  gsd_m: 1\n  gsd_m: 2", ":3: x, gsd_m: is there twice; remove or rename one"),
        ("x:\n  gsd_m: 1\nx:\n  gsd_m: 2", ":4: x: is there twice"),
        (
            BAND + "{polarisation: VV}\n    VV: {polarisation: VH}",
            ":6: x, bands, VV: is there twice",
        ),
        ("x:\n  gsd_m: ten\n  bands: {}", "x, gsd_m: 'ten' must be a number, like 0.665"),
        ("x:\n  gsd_m: [1]\n  bands: {}", "x, gsd_m: must be one word or line of text"),
        ("x:\n  gsd_m:\n  bands: {}", "x, gsd_m: must be one word or line of text"),
        ("x:\n  gsd_m: 1\n  bands: {}", ":3: x, bands: must hold entries"),
        ("x:\n  gsd_m: 1\n  bands: &b {y: *b}", ":3: x, bands, y, y: unknown entry 'y'"),
        ("X:\n  gsd_m: 1\n  unit: dB\n  bands: {VV: {polarisation: VV}}", "name 'X' must be small"),
        ("x:\n  gsd_m: .inf\n  bands: {}", "'.inf' must be a number"),
        (
            "x:\n  gsd_m: -1\n  unit: dB\n  bands: {VV: {polarisation: VV}}",
            "gsd_m=-1.0 must be above",
        ),
        ("x:\n  gsd_m: 1\n  bands: {VV: {polarisation: VV}}", "has no unit; give it or its sensor"),
        (BAND + "{polarisation: VV, unit: db}", "unit: unknown unit 'db': .*did you mean 'dB'"),
        (BAND + "{polarisation: left}", ":5: x, bands, VV: band VV: polarisation 'left' must be"),
        (BAND + "{wavelength_um: 0.5}", "band VV: wavelength_um and fwhm_um go together"),
        (BAND + "{}", ":5: x, bands, VV: must hold entries"),
        (BAND + "{gsd_m: 1}", "give either wavelength_um or polarisation"),
        (BAND + "{polarisation: VV, frequency_ghz: 0}", "frequency_ghz=0.0 must be above 0"),
        (BAND + "{? [a] : 1}", "a name in x, bands, VV: must be one word"),
        ("x: !!python/object/apply:os.abort []", ":1: x: must hold entries"),
    ],
)
def test_every_mistake_in_a_file_has_its_own_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_sensors(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read sensors from '.*none\.yaml': No such file"):
        read_sensors(tmp_path / "none.yaml")


# Distances.


def one(centre: float, relative_width: float, gsd_m: float = 10.0) -> Sensor:
    """A sensor of one band, its standard deviation in ln wavelength ``relative_width``."""
    fwhm = centre * relative_width * math.sqrt(8 * math.log(2))
    return Sensor("x", "X", gsd_m, optical(Unit.REFLECTANCE, ("b", gsd_m, centre, fwhm)))


def test_distances_by_hand() -> None:
    assert spectral_distance(one(0.5, 0.02), one(0.6, 0.02)) == pytest.approx(
        math.log(1.2), abs=1e-6
    )
    # Of one centre: the mean of |z| times the difference of the standard deviations.
    wide = spectral_distance(one(0.5, 0.02), one(0.5, 0.05))
    assert wide == pytest.approx(0.03 * math.sqrt(2 / math.pi), abs=1e-5)
    # Half of one band's light moves from 0.5 to 0.6 um, the other half stays.
    both = Sensor("x", "X", 10, (*one(0.5, 0.02).bands, replace(one(0.6, 0.02).bands[0], name="c")))
    assert spectral_distance(one(0.5, 0.02), both) == pytest.approx(math.log(1.2) / 2, abs=1e-6)
    # The mean of ln wavelength lies at ln(c / f): 5.5466 cm and 3.0591 cm.
    assert spectral_distance(S1, CATALOG["umbra"]) == pytest.approx(math.log(9.8 / 5.405), abs=1e-6)
    far = spectral_distance(S1, one(0.55, 0.02))
    assert far == pytest.approx(math.log(55_465.8 / 0.55), abs=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "spectral"),
    [("s2", "landsat", 0.157), ("s2", "modis", 0.158), ("s2", "naip", 0.324),
     ("landsat", "landsat_tm", 0.104), ("naip", "enmap", 0.619), ("s1", "s2", 11.093)],
)  # fmt: skip
def test_known_sensors_agree_with_a_plain_oracle(a: str, b: str, spectral: float) -> None:
    """Quantiles of every band, and SciPy's distance between the two heaps of them."""

    def heap(sensor: Sensor) -> list[float]:
        points: list[float] = []
        for band in sensor.bands:
            if band.frequency_ghz:
                points += [math.log(299_792.458 / band.frequency_ghz)] * 400
            elif band.wavelength_um and band.fwhm_um:
                sigma = band.fwhm_um / band.wavelength_um / 2.354820045
                law = NormalDist(math.log(band.wavelength_um), sigma)
                points += [law.inv_cdf((i + 0.5) / 400) for i in range(400)]
        return points

    found = spectral_distance(CATALOG[a], CATALOG[b])
    assert found == pytest.approx(
        wasserstein_distance(heap(CATALOG[a]), heap(CATALOG[b])), abs=1e-3
    )
    assert found == pytest.approx(spectral, abs=1e-3)


def bands() -> st.SearchStrategy[Band]:
    light = st.builds(
        lambda centre, width: Band("b", 10, Unit.REFLECTANCE, centre, centre * width),
        st.floats(0.35, 14), st.floats(0.002, 0.6),
    )  # fmt: skip
    radar = st.builds(
        lambda ghz: Band("b", 10, Unit.DB, polarisation="VV", frequency_ghz=ghz),
        st.floats(0.3, 40),
    )
    return light | radar


def sensors() -> st.SearchStrategy[Sensor]:
    def named(found: list[Band], gsd: float) -> Sensor:
        return Sensor("x", "X", gsd, tuple(replace(b, name=f"b{i}") for i, b in enumerate(found)))

    return st.builds(named, st.lists(bands(), min_size=1, max_size=5), st.floats(0.05, 5000))


@given(a=sensors(), b=sensors(), c=sensors())
@settings(max_examples=60, deadline=None)
def test_both_distances_are_metrics(a: Sensor, b: Sensor, c: Sensor) -> None:
    for distance in (spectral_distance, gsd_log_ratio):
        assert distance(a, a) == 0
        assert distance(a, b) == distance(b, a) >= 0
        assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-9
    shuffled = replace(a, bands=tuple(reversed(a.bands)))
    assert spectral_distance(a, shuffled) == pytest.approx(0, abs=1e-9)


def test_the_flanks_of_a_broad_band_count() -> None:
    """Half of this band's light lies beyond the shortest centre that is allowed."""
    narrow, broad = one(0.1, 0.001), one(0.1, 0.4)
    expected = (0.4 - 0.001) * math.sqrt(2 / math.pi)
    assert spectral_distance(narrow, broad) == pytest.approx(expected, abs=1e-3)


@given(a=sensors(), b=sensors(), times=st.floats(0.3, 3))
@settings(max_examples=40, deadline=None)
def test_distances_are_ratios_whatever_the_unit(a: Sensor, b: Sensor, times: float) -> None:
    """Another unit of length moves nothing: both sensors' wavelengths and grids times one factor."""

    def scaled(sensor: Sensor) -> Sensor:
        longer = (
            replace(band, wavelength_um=band.wavelength_um * times, fwhm_um=band.fwhm_um * times)
            if band.wavelength_um and band.fwhm_um
            else replace(band, frequency_ghz=(band.frequency_ghz or 0) / times)
            for band in sensor.bands
        )
        return replace(sensor, bands=tuple(longer), gsd_m=sensor.gsd_m * times)

    there = spectral_distance(scaled(a), scaled(b))
    assert there == pytest.approx(spectral_distance(a, b), abs=2e-3)
    assert gsd_log_ratio(scaled(a), scaled(b)) == pytest.approx(gsd_log_ratio(a, b), abs=1e-9)


def test_gsd_goes_by_the_grid() -> None:
    assert gsd_log_ratio(S2, LANDSAT) == pytest.approx(math.log(3))
    assert gsd_log_ratio(S1, S2) == 0


def test_the_table_holds_every_pair_once() -> None:
    table = distances(SENSORS.values())
    assert [(row.a, row.b) for row in table][:5] == [
        ("s1", "s2"), ("s1", "landsat"), ("s1", "naip"), ("s1", "modis"), ("s2", "landsat"),
    ]  # fmt: skip
    assert len(table) == 10
    row = table[-1]
    assert (row.a, row.b, row.gsd) == ("naip", "modis", pytest.approx(math.log(500)))
    assert row.spectral == spectral_distance(NAIP, SENSORS["modis"])


@pytest.mark.parametrize(
    ("band", "message"),
    [
        (
            Band("VV", 1, Unit.DB, polarisation="VV"),
            "x, band VV: its wavelength is not known; give freq",
        ),
        (
            Band("b", 1, Unit.REFLECTANCE, 0.05, 0.01),
            "band b: 0.05 um must be from 0.1 to 1e[+]07 um",
        ),
        (Band("b", 1, Unit.REFLECTANCE, 2e7, 1e5), re.escape("2e+07 um must be from 0.1")),
    ],
)
def test_what_cannot_be_compared_says_so(band: Band, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectral_distance(Sensor("x", "X", 1, (band,)), S2)
