"""Every sensor that is known by name: the founding five, ten more, and any that a user adds.

A sensor needs no change of this package. In Python::

    superdove = Sensor("superdove", "PlanetScope SuperDove", 3.0, optical(
        Unit.REFLECTANCE, ("blue", 3, 0.490, 0.050), ("nir", 3, 0.865, 0.040)
    ))
    register(superdove)

or in a YAML file, for ``register(*read_sensors("sensors.yaml"))``::

    superdove:              # the name: small letters, digits and _, a letter first
      title: PlanetScope SuperDove  # for people; the name if left out
      gsd_m: 3              # pixel of the delivered grid, metres
      unit: reflectance     # or dB, brightness8, stretched8; a band may have its own
      bands:                # in the order of delivery
        blue: {wavelength_um: 0.490, fwhm_um: 0.050}   # centre and width, micrometres
        nir: {wavelength_um: 0.865, fwhm_um: 0.040, gsd_m: 3.7}  # the sensor's if left out
    some_radar:
      gsd_m: 1
      unit: dB
      bands:
        VV: {polarisation: VV, frequency_ghz: 9.65}    # the carrier, if known

Where a source gives band edges, the centre is their middle and the width their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml  # type: ignore[import-untyped]

from gfmsum.sensors import NAIP, S2, SENSORS, Band, Sensor, Unit, optical, unknown


def _between(
    unit: Unit, gsd_m: float, *rows: tuple[str, float, float], scale: float = 1e-3
) -> tuple[Band, ...]:
    """Bands from rows of (name, lower edge, upper edge), the edges in ``scale`` micrometres."""
    return optical(unit, *((name, gsd_m, (a + b) / 2, b - a) for name, a, b in rows), scale=scale)


S2L2A = Sensor(
    "s2l2a",
    "Sentinel-2 MSI surface reflectance",
    10.0,
    tuple(band for band in S2.bands if band.name != "B10"),
)
"""Level-2A: the bands of Level-1C but for B10, which sees cirrus and not the surface. ESA, Sentinel-2
MSI spatial and spectral resolution tables, and the Level-2A product definition."""

LANDSAT_TM = Sensor(
    "landsat_tm",
    "Landsat 4-5 TM surface reflectance",
    30.0,
    _between(
        Unit.REFLECTANCE,
        30.0,
        ("B1", 0.45, 0.52),
        ("B2", 0.52, 0.60),
        ("B3", 0.63, 0.69),
        ("B4", 0.76, 0.90),
        ("B5", 1.55, 1.75),
        ("B7", 2.08, 2.35),
        scale=1.0,
    ),
)
"""Nominal edges: USGS, Landsat band designations. Without B6, which is thermal."""

LANDSAT_ETM = Sensor(
    "landsat_etm",
    "Landsat 7 ETM+ surface reflectance",
    30.0,
    _between(
        Unit.REFLECTANCE,
        30.0,
        ("B1", 0.45, 0.52),
        ("B2", 0.52, 0.60),
        ("B3", 0.63, 0.69),
        ("B4", 0.77, 0.90),
        ("B5", 1.55, 1.75),
        ("B7", 2.09, 2.35),
        scale=1.0,
    ),
)
"""Nominal edges: USGS, Landsat band designations. Without B6, thermal, and B8, panchromatic, which
surface reflectance products do not hold."""

LINZ = Sensor(
    "linz",
    "LINZ aerial imagery",
    0.3,
    tuple(replace(band, gsd_m=0.3) for band in NAIP.bands if band.name != "NIR"),
)
"""8-bit and uncalibrated. Toitū Te Whenua LINZ delivers RGB at 0.1 m in towns and mostly 0.3 m in the
country, and publishes no wavelengths: cameras vary by survey, so NAIP's stand in for them, as they do
in Clay's metadata."""

GAOFEN = Sensor(
    "gaofen",
    "Gaofen-1/2 PMS",
    4.0,
    _between(
        Unit.REFLECTANCE,
        4.0,
        ("B1", 450, 520),
        ("B2", 520, 590),
        ("B3", 630, 690),
        ("B4", 770, 890),
    ),
)
"""Blue, green, red and near infrared; edges: Chen et al. 2022, An Introduction to the Chinese
High-Resolution Earth Observation System. 4 m is Gaofen-2's; Gaofen-1 has the same bands at 8 m:
``GAOFEN.select(names, grid_m=8)``."""

SKYSAT = Sensor(
    "skysat",
    "SkySat surface reflectance",
    0.5,
    _between(
        Unit.REFLECTANCE,
        0.81,
        ("blue", 450, 515),
        ("green", 515, 595),
        ("red", 605, 695),
        ("nir", 740, 900),
    ),
)
"""Edges: Planet, SkySat product pages. Orthorectified images come on 0.5 m pixels; the multispectral
half of the camera resolves 0.81 m at nadir since the orbits were lowered in 2020."""

PLEIADES_NEO = Sensor(
    "pleiades_neo",
    "Pléiades Neo",
    1.2,
    _between(
        Unit.REFLECTANCE,
        1.2,
        ("deep_blue", 400, 450),
        ("blue", 450, 520),
        ("green", 530, 590),
        ("red", 620, 690),
        ("red_edge", 700, 750),
        ("nir", 770, 880),
    ),
)
"""The multispectral bands before pansharpening, at nadir. Edges: Airbus, Pléiades Neo User Guide."""

S3_OLCI = Sensor(
    "s3_olci",
    "Sentinel-3 OLCI",
    300.0,
    optical(
        Unit.REFLECTANCE,
        ("Oa01", 300, 400, 15),
        ("Oa02", 300, 412.5, 10),
        ("Oa03", 300, 442.5, 10),
        ("Oa04", 300, 490, 10),
        ("Oa05", 300, 510, 10),
        ("Oa06", 300, 560, 10),
        ("Oa07", 300, 620, 10),
        ("Oa08", 300, 665, 10),
        ("Oa09", 300, 673.75, 7.5),
        ("Oa10", 300, 681.25, 7.5),
        ("Oa11", 300, 708.75, 10),
        ("Oa12", 300, 753.75, 7.5),
        ("Oa13", 300, 761.25, 2.5),
        ("Oa14", 300, 764.375, 3.75),
        ("Oa15", 300, 767.5, 2.5),
        ("Oa16", 300, 778.75, 15),
        ("Oa17", 300, 865, 20),
        ("Oa18", 300, 885, 10),
        ("Oa19", 300, 900, 10),
        ("Oa20", 300, 940, 20),
        ("Oa21", 300, 1020, 40),
        scale=1e-3,
    ),
)
"""Full resolution, top of atmosphere: Level-1B delivers radiance, which the solar flux in the same file
turns into reflectance. Nominal centres and widths: ESA, Sentinel-3 OLCI band table."""

UMBRA = Sensor(
    "umbra",
    "Umbra X-band SAR",
    0.5,
    (Band("VV", 0.5, Unit.DB, polarisation="VV", frequency_ghz=9.8),),
)
"""Spotlight, one polarisation to a scene, VV or HH; this is VV. Nominal centre frequency and resolution
from 0.25 to 1 m: Umbra, product guide. 0.5 m stands for them, and scenes name their own. The geocoded
images are amplitudes: calibrate them to dB first."""

_ENMAP_NM = """
418.4 424.0 429.5 434.7 439.8 444.7 449.5 454.3 459.0 463.7 468.4 473.1 477.7 482.4 487.1
491.8 496.5 501.2 506.0 510.8 515.7 520.6 525.5 530.4 535.4 540.5 545.6 550.7 555.9 561.1
566.4 571.8 577.2 582.6 588.2 593.8 599.4 605.2 611.0 616.9 622.9 629.0 635.1 641.3 647.5
653.8 660.2 666.6 673.1 679.7 686.3 693.0 699.8 706.6 713.5 720.5 727.5 734.7 741.8 749.1
756.4 763.7 771.1 778.6 786.1 793.6 801.2 808.9 816.6 824.4 832.1 840.0 847.8 855.8 863.7
871.7 879.7 887.7 895.8 903.9 912.0 920.1 928.2 936.3 944.5 952.6 960.7 968.9 977.0 985.2
993.3 902.0 911.6 921.3 931.2 941.2 951.4 961.6 972.0 982.5 993.1 1003.9 1014.7 1025.7
1036.7 1047.8 1059.1 1070.4 1081.8 1093.3 1104.8 1116.4 1128.1 1139.8 1151.6 1163.4 1175.3
1187.2 1199.1 1211.0 1223.0 1235.0 1246.9 1258.9 1270.9 1282.9 1294.9 1306.9 1318.9 1330.9
1342.8 1354.8 1366.7 1378.6 1390.5 1461.1 1472.7 1484.3 1495.9 1507.4 1518.9 1530.3 1541.7
1553.0 1564.3 1575.5 1586.8 1597.9 1609.0 1620.1 1631.1 1642.1 1653.0 1663.9 1674.7 1685.5
1696.2 1706.9 1717.5 1728.1 1738.6 1749.1 1759.5 1939.1 1948.7 1958.2 1967.7 1977.1 1986.5
1995.8 2005.1 2014.3 2023.5 2032.7 2041.8 2050.9 2060.0 2069.0 2077.9 2086.9 2095.7 2104.6
2113.4 2122.2 2130.9 2139.6 2148.3 2156.9 2165.5 2174.0 2182.5 2191.0 2199.5 2207.9 2216.2
2224.6 2232.9 2241.2 2249.4 2257.6 2265.8 2273.9 2282.0 2290.1 2298.2 2306.2 2314.2 2322.1
2330.1 2337.9 2345.8 2353.6 2361.4 2369.2 2376.9 2384.7 2392.3 2400.0 2407.6 2415.2 2422.8
2430.3 2437.8 2445.3
"""
ENMAP = Sensor(
    "enmap",
    "EnMAP surface reflectance",
    30.0,
    optical(
        Unit.REFLECTANCE,
        *(
            (f"B{i}", 30, float(nm), 8.1 if i <= 91 else 12.5)
            for i, nm in enumerate(_ENMAP_NM.split(), start=1)
        ),
        scale=1e-3,
    ),
)
"""Level-2A, 224 bands: 91 of the VNIR spectrometer, 418 to 993 nm in steps of 4.7 to 8.2 nm, then 133 of
the SWIR spectrometer, 902 to 2445 nm in steps of 7.5 to 12 nm without the water vapour at 1391 to 1461
and 1760 to 1939 nm; the two overlap from 902 to 993 nm.

Centres: EnMAP ground segment, EnMAP_Spectral_Bands_update, to 0.1 nm; a scene's own metadata may differ
by some nanometres, and which SWIR bands are delivered may differ too. Widths are approximate, one mean
per spectrometer: Guanter et al. 2015, The EnMAP Spaceborne Imaging Spectroscopy Mission, 8.1 nm and
12.5 nm with a spread of about 1 nm.
"""

_KNOWN: dict[str, Sensor] = dict(SENSORS) | {
    sensor.name: sensor
    for sensor in (
        S2L2A, LANDSAT_TM, LANDSAT_ETM, LINZ, GAOFEN, SKYSAT, PLEIADES_NEO, S3_OLCI, ENMAP, UMBRA,
    )
}  # fmt: skip

CATALOG: Mapping[str, Sensor] = MappingProxyType(_KNOWN)
"""All sensors by name, the founding five first; what is registered appears in it.

==============  =================================  ======  =======
name            product                            bands   grid, m
==============  =================================  ======  =======
s1              Sentinel-1 IW GRD, C-band radar    2       10
s2              Sentinel-2 Level-1C                13      10
landsat         Landsat 8 OLI                      7       30
naip            NAIP aerial photographs            4       1
modis           MODIS MOD09A1                      7       500
s2l2a           Sentinel-2 Level-2A                12      10
landsat_tm      Landsat 4-5 TM                     6       30
landsat_etm     Landsat 7 ETM+                     6       30
linz            LINZ aerial photographs            3       0.3
gaofen          Gaofen-1/2 PMS                     4       4
skysat          SkySat                             4       0.5
pleiades_neo    Pléiades Neo                       6       1.2
s3_olci         Sentinel-3 OLCI                    21      300
enmap           EnMAP, imaging spectrometer        224     30
umbra           Umbra, X-band radar                1       0.5
==============  =================================  ======  =======
"""


def register(*sensors: Sensor) -> None:
    """Add sensors to the catalog of this process; all or none.

    Raises:
        ValueError: if a name already stands for something else. The same sensor twice is one sensor.
    """
    added: dict[str, Sensor] = {}
    for sensor in sensors:
        if (_KNOWN | added).get(sensor.name, sensor) != sensor:
            raise ValueError(f"sensor {sensor.name!r} already exists with other bands; rename it")
        added[sensor.name] = sensor
    _KNOWN.update(added)


def register_file(path: str) -> None:
    """Add the sensors of a YAML file to the catalog of this process; nothing if the path is empty.

    Raises:
        ValueError: as :func:`read_sensors` and :func:`register` do.
    """
    if path:
        register(*read_sensors(path))


def read_sensors(path: str | Path) -> tuple[Sensor, ...]:
    """Sensors from a YAML file, as the head of this module describes it; registers nothing.

    Raises:
        ValueError: one line with file, line, value, rule and remedy.
    """
    try:
        # A tree of nodes and no objects: nodes know their lines, and "NO" or 1 stay the names they are.
        node = yaml.compose(Path(path).read_bytes(), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ValueError(f"cannot read sensors from {str(path)!r}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(
            f"{path}:{error.problem_mark.line + 1}: not YAML: {error.problem}"
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if node is None:
        raise ValueError(f"{path}: holds no sensor; describe at least one")
    file = _Entry(node, str(path), "file")
    return tuple(_sensor(name, entry) for name, entry in file.entries().items())


def sensors_from(described: Mapping[str, Any], where: str) -> tuple[Sensor, ...]:
    """Sensors from plain values, as JSON holds them, in the fields of a YAML file; registers nothing.

    Args:
        described: by the sensor's name. A field that is None counts as left out.
        where: the file and the place in it, for errors.

    Raises:
        ValueError: one line with place, value, rule and remedy.
    """
    try:
        plain = yaml.representer.SafeRepresenter(sort_keys=False)
        file = _Entry(plain.represent_data(_given(described)), where, "file")
    except (yaml.YAMLError, RecursionError):
        raise ValueError(f"{where}: must hold texts, numbers and objects of them only") from None
    return tuple(_sensor(name, entry) for name, entry in file.entries().items())


def _given(value: Any) -> Any:
    """A tree of plain values without those that are None."""
    if not isinstance(value, Mapping):
        return value
    return {key: _given(item) for key, item in value.items() if item is not None}


def _sensor(name: str, entry: _Entry) -> Sensor:
    given = entry.entries("title", "gsd_m", "unit", "bands", needed=("gsd_m", "bands"))
    gsd_m = given["gsd_m"].number()
    bands = tuple(
        _band(band, one, gsd_m, given.get("unit")) for band, one in given["bands"].entries().items()
    )
    title = given["title"].text() if "title" in given else name
    return entry.build(Sensor, name, title, gsd_m, bands)


def _band(name: str, entry: _Entry, gsd_m: float, unit: _Entry | None) -> Band:
    numbers = ("gsd_m", "wavelength_um", "fwhm_um", "frequency_ghz")
    given = entry.entries(*numbers, "polarisation", "unit")
    unit = given.get("unit", unit)
    if unit is None:
        raise entry.error(f"has no unit; give it or its sensor one of {', '.join(Unit)}")
    if unit.text() not in set(Unit):
        raise unit.error(unknown("unit", unit.text(), [known.value for known in Unit]))
    values: dict[str, Any] = {key: given[key].number() for key in numbers if key in given}
    if "polarisation" in given:
        values["polarisation"] = given["polarisation"].text()
    return entry.build(Band, name, **{"gsd_m": gsd_m, "unit": Unit(unit.text())} | values)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A node of YAML, which knows where it stands if it was read from a file."""

    node: Any  # yaml.Node
    path: str
    what: str  # what it describes, for people

    def error(self, message: str) -> ValueError:
        mark = self.node.start_mark
        line = f":{mark.line + 1}" if mark else ""
        return ValueError(f"{self.path}{line}: {self.what}: {message}")

    def entries(self, *known: str, needed: tuple[str, ...] = ()) -> dict[str, _Entry]:
        """The node as a mapping; of ``known`` keys only, if any are given."""
        if not isinstance(self.node, yaml.MappingNode) or not self.node.value:
            raise self.error("must hold entries like 'name: value'; indent them under it")
        found: dict[str, _Entry] = {}
        for key, value in self.node.value:
            name = _Entry(key, self.path, f"a name in {self.what}").text()
            entry = _Entry(
                value, self.path, name if self.what == "file" else f"{self.what}, {name}"
            )
            if known and name not in known:
                raise entry.error(unknown("entry", name, known))
            if name in found:
                raise entry.error("is there twice; remove or rename one")
            found[name] = entry
        for name in needed:
            if name not in found:
                raise self.error(f"has no {name}; give it one")
        return found

    def text(self) -> str:
        if not isinstance(self.node, yaml.ScalarNode) or not self.node.value.strip():
            raise self.error("must be one word or line of text; write it, in quotes if need be")
        return " ".join(str(self.node.value).split())

    def number(self) -> float:
        text = self.text()
        try:
            return float(text)
        except ValueError:
            raise self.error(f"{text[:40]!r} must be a number, like 0.665") from None

    def build[Kind](self, kind: Callable[..., Kind], *values: object, **more: object) -> Kind:
        """``kind`` of these values; what it refuses, it refuses at this place."""
        try:
            return kind(*values, **more)
        except ValueError as error:
            raise self.error(str(error)) from None
