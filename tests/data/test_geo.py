"""The torchgeo source: torchgeo's real classes on small folders of their real layout."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchgeo.datamodules import SSL4EOS12DataModule
from torchgeo.datasets import (
    NAIP,
    SSL4EOL,
    SSL4EOS12,
    ChesapeakeCVPR,
    CopernicusBenchDFC2020S1,
    CopernicusBenchDFC2020S2,
    CopernicusBenchEuroSATS1,
    CopernicusBenchEuroSATS2,
    CopernicusBenchFloodS1,
    SSL4EOLBenchmark,
    USAVars,
)

from gfmsum.config import TorchgeoConfig
from gfmsum.data.geo import FOLDERS, MOD09A1, Torchgeo, labels, tasks
from gfmsum.data.geo.cover import ModisCover
from gfmsum.data.geo.patches import Split, Tiles, corners
from gfmsum.data.geo.physics import SSL4EO_OLI_SR, SSL4EO_S1, Physics
from gfmsum.data.modules import MixDataModule
from gfmsum.data.sample import UNLABELLED, Block, Labelled, Samples
from gfmsum.mix import Mix
from gfmsum.sensors import S2, SENSORS, Unit
from tests.data import layouts

REAL = Path(__file__).parents[3] / "shared" / "realdata"
SENSORS_OF_ALL = ["s1", "s2", "landsat", "naip", "modis"]


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets but LCZ-S2; not to be changed."""
    root = tmp_path_factory.mktemp("everything")
    layouts.everything(root)
    return root


@pytest.fixture(scope="session")
def source(everything: Path) -> Torchgeo:
    return open_folder(everything)


def open_folder(root: Path, leakage_km: float = 0.0) -> Torchgeo:
    return Torchgeo(TorchgeoConfig(str(root), leakage_km))


def some(everything: Path, root: Path, *names: str) -> Path:
    """A copy of some data sets, to be spoilt."""
    for name in names:
        shutil.copytree(everything / name, root / name)
    return root


def read(source: Torchgeo, sensor: str, size: int = 32, rows: list[int] | None = None) -> Samples:
    """Rows of the sensor's only block, or all of them."""
    (block,) = source.pretraining(sensor, size).blocks
    return block.read(np.arange(len(block)) if rows is None else np.array(rows))


def task_of(source: Torchgeo, name: str) -> Labelled:
    (task,) = [task for sensor in SENSORS for task in source.tasks(sensor) if task.name == name]
    return source.labelled(task, 32)


def states() -> list[Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), kind, keys.tolist(), *rest, torch.get_rng_state().tolist()]


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class Reads:
    """Which files are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        original = rasterio.io.DatasetReader.read

        def counted(file: Any, *args: Any, **kwargs: Any) -> Any:
            self.names.append(file.name)
            return original(file, *args, **kwargs)

        monkeypatch.setattr(rasterio.io.DatasetReader, "read", counted)


# What is offered.


def test_what_there_is(source: Torchgeo) -> None:
    assert list(source.sensors) == SENSORS_OF_ALL
    assert all(source.sensors[name] is SENSORS[name] for name in SENSORS_OF_ALL)
    assert {name: [task.name for task in source.tasks(name)] for name in SENSORS_OF_ALL} == {
        "s1": ["eurosat_s1", "dfc2020_s1", "flood_s1"],
        "s2": ["eurosat_s2", "dfc2020_s2"],
        "landsat": ["ssl4eo_l_nlcd", "ssl4eo_l_nlcd_masks", "ssl4eo_l_cdl_masks"],
        "naip": ["usavars_treecover", "chesapeake_cvpr"],
        "modis": [],
    }
    assert all(source.unsupported(name) == [] for name in SENSORS_OF_ALL)
    assert source.caveats == ()
    assert source.tasks("enmap") == []


def test_what_is_absent_is_not_offered(tmp_path: Path) -> None:
    layouts.usavars(tmp_path / "usavars")
    source = open_folder(tmp_path)
    assert list(source.sensors) == [] and [t.name for t in source.tasks("naip")] == [
        "usavars_treecover"
    ]
    with pytest.raises(ValueError, match="unknown sensor 's1'"):
        source.pretraining("s1", 32)
    with pytest.raises(ValueError, match="unknown sensor 's1'"):
        source.places("s1")


@pytest.mark.parametrize("root", ["", "nowhere"])
def test_a_root_that_is_no_folder(root: str) -> None:
    with pytest.raises(ValueError, match="is not a folder; known are ssl4eo_s12, ssl4eo_l"):
        Torchgeo(TorchgeoConfig(root))


def test_no_known_data_set_lists_the_known_and_says_why_some_are_refused(tmp_path: Path) -> None:
    for name in ("m-eurosat", "bigearthnet", "photos"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="holds no known data set") as error:
        open_folder(tmp_path)
    text = one_line(error)
    assert "m-eurosat is not read: GEO-Bench names most of its channels wrongly" in text
    assert "bigearthnet is not read: torchgeo rounds its Sentinel-1" in text
    assert all(name in text for name in FOLDERS) and "photos" not in text


@pytest.mark.parametrize("name", FOLDERS)
def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="holds none of its data set's files") as error:
        open_folder(tmp_path)
    assert str(tmp_path / name) in one_line(error)
    assert "download=True" in str(error.value) or "https://" in str(error.value)


def test_archives_are_not_unpacked_behind_the_users_back(tmp_path: Path) -> None:
    (tmp_path / "copernicus_bench").mkdir()
    (tmp_path / "copernicus_bench" / "eurosat_s1.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="unpacked"):
        open_folder(tmp_path)


def test_geo_bench_and_bigearthnet_beside_others_are_not_offered(
    everything: Path, tmp_path: Path
) -> None:
    root = some(everything, tmp_path, "usavars")
    layouts.eurosat(root / "m-eurosat", "s2")
    for split in ("train", "val", "test"):
        (root / "copernicus_bench" / "bigearthnet_s1s2" / "BigEarthNet-S1-5%" / split).mkdir(
            parents=True
        )
    layouts.eurosat(root / "copernicus_bench", "s1")
    source = open_folder(root)
    assert [task.name for name in SENSORS for task in source.tasks(name)] == [
        "eurosat_s1",
        "usavars_treecover",
    ]
    assert all(source.unsupported(name) == [] for name in SENSORS)


def test_opening_decodes_no_pixels_but_masks(
    everything: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    source = open_folder(everything)
    assert json.loads(json.dumps(source.identity)) == source.identity
    for name in source.sensors:
        source.places(name), source.tasks(name), source.unsupported(name)
    assert source.caveats == () and source._held.grounds
    masks = r"/dfc/|/MK0_MLU_|/nlcd_2019.tif|/cdl_2019.tif|_lc.tif"
    assert reads.names and all(re.search(masks, name) for name in reads.names)


# Identity and places.


def test_identity_follows_the_files_and_not_their_place(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path / "a", "ssl4eo_l", "usavars")
    before = open_folder(root).identity
    assert open_folder(some(root, tmp_path / "b", "ssl4eo_l", "usavars")).identity == before
    assert before["sets"]["ssl4eo_l"]["files"] == 8
    listed = sorted((root / "ssl4eo_l").rglob("*.tif"))
    assert before["sets"]["ssl4eo_l"]["bytes"] == sum(path.stat().st_size for path in listed)

    assert open_folder(root, leakage_km=1).identity != before
    (root / "usavars" / "income.csv").write_text("")  # is not read
    assert open_folder(root).identity == before
    listed[0].write_bytes(listed[0].read_bytes() + b"\0")
    longer = open_folder(root).identity
    assert longer["sets"]["usavars"] == before["sets"]["usavars"] and longer != before
    shutil.move(listed[0].parent, listed[0].parent.with_name("LC08_172034_20210307"))
    assert open_folder(root).identity != longer


def test_both_sentinels_show_the_same_place_in_the_same_row(source: Torchgeo) -> None:
    assert source.places("s1") == source.places("s2")
    assert len({source.places(name) for name in SENSORS_OF_ALL}) == 4
    one, other = read(source, "s1"), read(source, "s2")
    assert len(one) == len(other) == 3 * 64
    assert one.lonlat is not None and other.lonlat is not None
    np.testing.assert_allclose(one.lonlat, other.lonlat, atol=1e-9)
    for a, b in zip(one.ids, other.ids, strict=True):
        assert a.split("/")[2] == b.split("/")[2] and a.split("#")[1] == b.split("#")[1]
    # The same season too: both have four dates, and the hash of the place points at one of them.
    assert one.dates is not None and other.dates is not None
    assert [day[:7] for day in one.dates] == [day[:7] for day in other.dates]


def test_places_do_not_depend_on_the_root(everything: Path, source: Torchgeo) -> None:
    moved = everything.with_name("moved")
    moved.symlink_to(everything)
    again = open_folder(moved)
    for name in SENSORS_OF_ALL:
        assert again.places(name) == source.places(name)
        assert source.pretraining(name, 32).places == source.places(name)


def test_sentinels_of_different_places_are_cut_to_the_shared_ones(
    everything: Path, tmp_path: Path
) -> None:
    root = some(everything, tmp_path, "ssl4eo_s12")
    whole = open_folder(root).places("s1")
    shutil.rmtree(root / "ssl4eo_s12" / "s1" / "0000001")
    shutil.rmtree(root / "ssl4eo_s12" / "s2c" / "0000002")
    source = open_folder(root)
    assert source.places("s1") == source.places("s2") != whole
    for name in ("s1", "s2"):
        assert {row.split("/")[2] for row in read(source, name).ids} == {"0000000"}
    (caveat,) = source.caveats
    assert caveat.startswith("The places of ssl4eo_s12 are 2 of s1 and 2 of s2: only those")


def test_one_sentinel_alone(everything: Path, tmp_path: Path) -> None:
    shutil.copytree(everything / "ssl4eo_s12" / "s2c", tmp_path / "ssl4eo_s12" / "s2c")
    assert list(open_folder(tmp_path).sensors) == ["s2"]


def test_sentinels_without_a_shared_place_are_lists_of_their_own(
    everything: Path, tmp_path: Path
) -> None:
    root = some(everything, tmp_path, "ssl4eo_s12")
    for place in range(3):
        folder = root / "ssl4eo_s12" / "s1" / f"{place:07}"
        folder.rename(folder.with_name(f"{place + 7:07}"))
    source = open_folder(root)
    assert source.places("s1") != source.places("s2")
    assert {name.split("/")[3] for name in read(source, "s1").ids} == {
        "0000007",
        "0000008",
        "0000009",
    }
    assert len(read(source, "s2")) == 192


# Global random states.


def test_no_global_random_state_is_touched(everything: Path) -> None:
    random.seed(5), np.random.seed(6), torch.manual_seed(7)  # noqa: NPY002
    before = states()
    source = open_folder(everything)
    for name in source.sensors:
        for task in source.tasks(name):
            source.labelled(task, 32)
        read(source, name)
    assert source.identity and source.caveats == ()
    assert states() == before
    # The trap is real: torchgeo's own class seeds NumPy.
    root = str(everything / "ssl4eo_l_benchmark")
    SSL4EOLBenchmark(root, "oli_sr", "nlcd", "train", checksum=False)
    assert states() != before


def test_dates_are_frozen(everything: Path, source: Torchgeo) -> None:
    first = {name: read(source, name) for name in ("s1", "s2", "landsat")}
    random.seed(99)
    again = open_folder(everything)
    for name, was in first.items():
        assert was.dates is not None and len(set(was.dates)) > 1  # and not always the first
        assert np.array_equal(read(again, name).ids, was.ids)
        assert np.array_equal(read(again, name).pixels, was.pixels)
        # Whatever else is read with them.
        assert read(again, name, rows=[70]).ids[0] == was.ids[70]
    # By hand: the hash of the place's name points at one of four dates in their order, which for
    # Sentinel-1 is not the order of the folders' names.
    for place in range(3):
        digest = hashlib.sha256(f"ssl4eo_s12/{place:07}".encode()).digest()
        folder = layouts.S12_DATES["s1"][int.from_bytes(digest[:8]) % 4]
        assert first["s1"].ids[64 * place] == f"ssl4eo_s12/s1/{place:07}/{folder}#0,0"


# Patches: torchgeo's pixels, in our unit, by name.


def torchgeo_patches(data: Any, index: int) -> dict[str, NDArray[np.float32]]:
    """All dates of a place as torchgeo gives them, by day."""
    sample = data[index]
    days = [
        datetime.fromtimestamp(t, UTC).date().isoformat() for t in sample["t"].double().tolist()
    ]
    return dict(zip(days, np.split(sample["image"].numpy(), len(days)), strict=True))


@pytest.mark.parametrize(("sensor", "scale"), [("s1", 1.0), ("s2", 1e-4), ("landsat", 0.3 / 255)])
def test_pixels_are_torchgeos(
    everything: Path, source: Torchgeo, sensor: str, scale: float
) -> None:
    if sensor == "landsat":
        data: Any = SSL4EOL(str(everything / "ssl4eo_l"), "oli_sr", seasons=4, checksum=False)
    else:
        split = {"s1": "s1", "s2": "s2c"}[sensor]
        root = str(everything / "ssl4eo_s12")
        data = SSL4EOS12(root, split, seasons=4, checksum=False)  # type: ignore[arg-type]
    tiles = read(source, sensor, size=100)
    assert tiles.dates is not None
    for place in range(2):
        patches = torchgeo_patches(data, place)
        assert len(patches) == 4
        for tile in range(4):
            i, row, col = 4 * place + tile, 100 * (tile // 2), 100 * (tile % 2)
            want = patches[tiles.dates[i]][:, row : row + 100, col : col + 100] * scale
            np.testing.assert_allclose(tiles.pixels[i], want, rtol=1e-6)
            assert tiles.ids[i].endswith(f"#{row},{col}")


def test_tiles_are_row_major_and_drop_the_remainder(source: Torchgeo) -> None:
    tiles = read(source, "s1", size=80)
    assert [name.split("#")[1] for name in tiles.ids[:9]] == [
        f"{row},{col}" for row in (0, 80, 160) for col in (0, 80, 160)
    ]
    assert len(tiles) == 3 * 9 and len(set(tiles.ids)) == 27
    whole = read(source, "s1", size=264)
    assert len(whole) == 3 and whole.lonlat is not None
    np.testing.assert_allclose(whole.lonlat, [layouts.centre(i) for i in range(3)])


@pytest.mark.parametrize("size", [0, -1, 265])
def test_sizes_that_do_not_fit(source: Torchgeo, size: int) -> None:
    with pytest.raises(ValueError, match="cannot be cut from patches of 264 px; choose 1 to 264"):
        source.pretraining("s2", size)


def test_lonlat_is_the_tiles_centre(source: Torchgeo) -> None:
    tiles = read(source, "landsat", size=132, rows=[0, 3])
    assert tiles.lonlat is not None
    lon, lat = layouts.centre(0)
    quarter = 66 * 30 / 111_320
    np.testing.assert_allclose(tiles.lonlat[:, 1], [lat + quarter, lat - quarter])
    east = quarter / np.cos(np.deg2rad(lat))
    np.testing.assert_allclose(tiles.lonlat[:, 0], [lon - east, lon + east])


def test_sentinel_1_is_db_whatever_torchgeos_data_module_divides_by(source: Torchgeo) -> None:
    assert float(SSL4EOS12DataModule.std) == 10_000  # the trap
    tiles = read(source, "s1")
    vv, vh = tiles.pixels.mean(axis=(0, 2, 3))
    assert (tiles.bands[0].name, tiles.bands[1].name) == ("VV", "VH")
    assert vv == pytest.approx(-11, abs=0.1) and vh == pytest.approx(-18, abs=0.1)
    assert {band.unit for band in tiles.bands} == {Unit.DB}


def test_radar_has_no_wavelength(everything: Path, source: Torchgeo) -> None:
    data = SSL4EOS12(str(everything / "ssl4eo_s12"), "s1", checksum=False)
    assert data[0]["wavelength"].max() > 100  # the trap: no micrometres
    for bands in (read(source, "s1", rows=[0]).bands, task_of(source, "eurosat_s1").samples.bands):
        assert [(band.wavelength_um, band.polarisation) for band in bands] == [
            (None, "VV"),
            (None, "VH"),
        ]


def test_bands_of_level_1c_are_ours_by_name(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_s12")
    for i, (name, side) in enumerate(layouts.S2C_SIDES.items()):
        for folder in (root / "ssl4eo_s12" / "s2c" / "0000000").iterdir():
            flat = np.full((1, side, side), 100 * (i + 1), np.uint16)
            layouts.patch(folder / f"{name}.tif", flat, 0)
    tile = read(open_folder(root), "s2", rows=[0])
    found = dict(zip([b.name for b in tile.bands], tile.pixels.mean(axis=(0, 2, 3)), strict=True))
    theirs = [name.replace("B0", "B") for name in found]  # B01 is their B1
    for name, value in zip(theirs, found.values(), strict=True):
        assert value == pytest.approx(0.01 * (list(layouts.S2C_SIDES).index(name) + 1)), name
    assert [band.gsd_m for band in tile.bands] == [band.gsd_m for band in S2.bands]


@pytest.mark.parametrize(
    ("target", "attribute", "match"),
    [
        (SSL4EOS12, "metadata", "SSL4EOS12.split='s1'. gives the bands VH, VV, known are VV, VH"),
        (CopernicusBenchEuroSATS1, "all_bands", "EuroSATS1 gives the bands VH, VV, known are VV"),
    ],
)
def test_a_torchgeo_that_orders_bands_otherwise_is_refused(
    everything: Path, monkeypatch: pytest.MonkeyPatch, target: Any, attribute: str, match: str
) -> None:
    swapped: Any = ("VH", "VV")
    if attribute == "metadata":
        swapped = target.metadata | {"s1": target.metadata["s1"] | {"bands": swapped}}
    monkeypatch.setattr(target, attribute, swapped)
    with pytest.raises(ValueError, match=match):
        task_of(open_folder(everything), "eurosat_s1")


def test_files_that_name_their_bands_in_another_order_are_refused(tmp_path: Path) -> None:
    layouts.eurosat(tmp_path / "a" / "copernicus_bench", "s1", names=("VH", "VV"))
    with pytest.raises(ValueError, match=r"AnnualCrop_1.tif: calls its bands VH, VV, its data"):
        task_of(open_folder(tmp_path / "a"), "eurosat_s1")
    layouts.eurosat(tmp_path / "b" / "copernicus_bench", "s1", names=("VV", "VH"))
    assert len(task_of(open_folder(tmp_path / "b"), "eurosat_s1").samples) == 42


# Landsat: 8-bit numbers of a clipped range.


def test_landsat_numbers_are_reflectance_up_to_three_tenths() -> None:
    numbers = np.array([0, 85, 255], np.uint8)
    np.testing.assert_allclose(SSL4EO_OLI_SR.values(numbers), [0, 0.1, 0.3], rtol=1e-6)


def test_landsat_of_another_type_is_refused(everything: Path, tmp_path: Path) -> None:
    """Collection 2 as USGS ships it has another scale, and would pass for bright reflectance."""
    root = some(everything, tmp_path, "ssl4eo_l")
    for path in (root / "ssl4eo_l").rglob("all_bands.tif"):
        layouts.patch(path, np.full((7, 264, 264), 9_000, np.uint16), 0)
    source = open_folder(root)
    with pytest.raises(
        ValueError, match="is uint16, its data set is uint8 with the scale"
    ) as error:
        read(source, "landsat", rows=[0])
    assert "all_bands.tif" in one_line(error)


def test_a_wrong_scale_is_refused_by_the_unit(
    everything: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = Physics(SENSORS["landsat"], SSL4EO_OLI_SR.bands, 30.0)  # 8-bit numbers as they are
    monkeypatch.setattr("gfmsum.data.geo.patches.SSL4EO_OLI_SR", raw)
    monkeypatch.setattr(tasks.LandCover, "physics", raw)
    root = some(everything, tmp_path, "ssl4eo_l", "ssl4eo_l_benchmark")
    source = open_folder(root)
    with pytest.raises(ValueError, match="reflectance must lie in"):
        task_of(source, "ssl4eo_l_nlcd")
    data = MixDataModule(source, Mix.equal(["landsat"]), unique=16, seen=16, batch=8)
    with pytest.raises(ValueError, match="reflectance must lie in"):
        data.setup()


# Missing pixels of patches.


def test_a_date_with_gaps_gives_way_to_the_next(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l")
    first = read(open_folder(root), "landsat", rows=[0, 1])
    folder = (
        root
        / "ssl4eo_l"
        / "ssl4eo_l_oli_sr"
        / first.ids[0].split("#")[0].removeprefix("ssl4eo_l/landsat/")
    )
    with rasterio.open(folder / "all_bands.tif") as file:
        numbers = file.read()
    numbers[:, 3, 4] = 0
    layouts.patch(folder / "all_bands.tif", numbers, 0, 30)
    again = read(open_folder(root), "landsat", rows=[0, 1])
    assert again.ids[1] == first.ids[1]  # the neighbour has no gap
    dates = list(layouts.L_DATES)
    assert folder.name in dates
    after = dates[(dates.index(folder.name) + 1) % 4]
    assert again.ids[0] == f"ssl4eo_l/landsat/0000000/{after}#0,0"
    numbers[:, 3, 4] = 0
    numbers[2, 3, 4] = 1  # dark in six bands is no gap
    layouts.patch(folder / "all_bands.tif", numbers, 0, 30)
    assert read(open_folder(root), "landsat", rows=[0]).ids[0] == first.ids[0]


def test_gaps_at_every_date_take_the_median(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l")
    place = root / "ssl4eo_l" / "ssl4eo_l_oli_sr" / "0000000"
    for d, name in enumerate(layouts.L_DATES):
        numbers = np.full((7, 264, 264), 50, np.uint8)
        numbers[:, 0, 0] = 200
        numbers[:, 5, : 10 + (d != 2)] = 0  # the third date has the fewest
        layouts.patch(place / name / "all_bands.tif", numbers, 0, 30)
    tile = read(open_folder(root), "landsat", rows=[0])
    assert tile.ids[0] == f"ssl4eo_l/landsat/0000000/{layouts.L_DATES[2]}#0,0"
    np.testing.assert_allclose(tile.pixels[0, :, 5], 50 * 0.3 / 255, rtol=1e-6)

    for name in layouts.L_DATES:
        layouts.patch(place / name / "all_bands.tif", np.zeros((7, 264, 264), np.uint8), 0, 30)
    with pytest.raises(ValueError, match="the tile at row 0, column 0 has no pixel on any date"):
        read(open_folder(root), "landsat", rows=[0])


def test_zero_db_is_a_value_and_nan_is_not(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_s12")
    for folder in (root / "ssl4eo_s12" / "s1" / "0000000").iterdir():
        for i, band in enumerate(("VV", "VH")):
            numbers = np.zeros((1, 264, 264), np.float32)
            numbers[0, 40, 40] = np.nan if i else 3
            layouts.patch(folder / f"{band}.tif", numbers, 0)
    tiles = read(open_folder(root), "s1", rows=[0, 9])
    assert (tiles.pixels == 0).all()  # the second holds the gap at (8, 8) in both bands


# Reading.


@pytest.mark.parametrize("sensor", SENSORS_OF_ALL)
def test_any_rows_in_any_order_are_the_same_tiles(source: Torchgeo, sensor: str) -> None:
    pool = source.pretraining(sensor, 24)
    (block,) = pool.blocks
    assert block.quick is False
    whole = block.read(np.arange(len(block)))
    rows = np.random.default_rng(0).integers(len(block), size=7)
    part = block.read(np.array([*rows, rows[0]]))
    again: Block = pickle.loads(pickle.dumps(block))  # as loader workers get it
    for got in (part, again.read(np.array([*rows, rows[0]]))):
        for name in ("pixels", "ids", "lonlat", "dates"):
            assert np.array_equal(getattr(got, name), getattr(whole, name)[[*rows, rows[0]]]), name
    assert whole.kind == block.kind and whole.pixels.dtype == np.float32
    assert len(set(whole.ids)) == len(whole) and np.isfinite(whole.pixels).all()
    assert len(block.read(np.empty(0, np.int64))) == 0


@pytest.mark.parametrize(("sensor", "files"), [("s1", 2), ("s2", 13), ("landsat", 1), ("naip", 1)])
def test_a_row_decodes_its_own_files_and_no_other(
    everything: Path, monkeypatch: pytest.MonkeyPatch, sensor: str, files: int
) -> None:
    (block,) = open_folder(everything).pretraining(sensor, 32).blocks
    reads = Reads(monkeypatch)
    sample = block.read(np.array([4]))
    folder = sample.ids[0].split("#")[0].split("/")[-1]
    assert len(reads.names) == files and all(folder in name for name in reads.names)
    if sensor != "naip":  # the window of each tile, there
        block.read(np.array([4, 5, 6]))
        assert len(reads.names) == 2 * files  # once for all tiles of a place


def test_broken_files_are_named(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l", "usavars")
    for path in [*(root / "ssl4eo_l").rglob("*.tif"), *(root / "usavars").rglob("tile_3,7.tif")]:
        path.write_bytes(path.read_bytes()[:200])
    source = open_folder(root)
    with pytest.raises(ValueError, match=r"all_bands.tif: cannot be read .*fetch it again"):
        read(source, "landsat", rows=[0])
    with pytest.raises(ValueError, match=r"tile_3,7.tif: cannot be read .*fetch it again") as error:
        task_of(source, "usavars_treecover")
    one_line(error)


def test_a_place_without_dates(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l")
    shutil.rmtree(root / "ssl4eo_l" / "ssl4eo_l_oli_sr" / "0000001")
    (root / "ssl4eo_l" / "ssl4eo_l_oli_sr" / "0000001").mkdir()
    with pytest.raises(ValueError, match="0000001: holds no dated patch; fetch it again or remove"):
        read(open_folder(root), "landsat", rows=[64])


@settings(max_examples=40, deadline=None)
@given(
    places=st.integers(1, 4),
    size=st.sampled_from([66, 88, 132]),
    data=st.data(),
)
def test_rows_skip_what_is_left_out(places: int, size: int, data: st.DataObject) -> None:
    """Against a plain list of what is not left out."""
    per = len(corners(size)[0])
    every = list(range(places * per))
    left_out = data.draw(st.lists(st.sampled_from(every), unique=True, max_size=len(every) - 1))
    kept = [row for row in every if row not in left_out]
    names = [f"{place:07}" for place in range(places)]
    split = _Flat()
    tiles = Tiles("c", split, names, size, np.array(sorted(left_out), np.int64))
    row, col = corners(size)
    got = tiles.read(np.arange(len(tiles)))
    assert [name.split("/")[2] + "#" + name.split("#")[1] for name in got.ids] == [
        f"{names[i // per]}#{row[i % per]},{col[i % per]}" for i in kept
    ]


class _Flat(Split):
    """A split without files."""

    def __init__(self) -> None:
        super().__init__(SSL4EO_S1, Path("nowhere"), ("VV.tif", "VH.tif"), "")

    def dates(self, place: str) -> dict[str, str]:
        return {"only": "2020-01-01"}

    def read(self, place: str, folder: str) -> tuple[NDArray[Any], None]:
        return np.zeros((2, 264, 264), np.float32), None


# Leakage.


def with_item_at(root: Path, lon: float, lat: float, part: str) -> Torchgeo:
    """A source whose only EuroSAT item at (lon, lat) belongs to ``part``; the others are far away."""
    shutil.rmtree(root / "copernicus_bench", ignore_errors=True)
    layouts.eurosat(root / "copernicus_bench", "s1")
    folder = root / "copernicus_bench" / "eurosat_s1"
    name = (folder / f"eurosat-{part}.txt").read_text().split()[0].replace(".jpg", ".tif")
    path = folder / "all_imgs" / name.split("_")[0] / name
    pixels = np.full((2, 64, 64), -12, np.float32)
    grid = rasterio.transform.from_origin(lon - 0.004, lat + 0.003, 0.008 / 64, 0.006 / 64)
    layouts.write_tif(path, pixels, crs="EPSG:4326", transform=grid)
    return open_folder(root)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_ground_of_test_items_is_left_out_of_all_sensors(
    everything: Path, tmp_path: Path, part: str
) -> None:
    root = some(everything, tmp_path, "ssl4eo_s12")
    before = {name: read(open_folder(root), name) for name in ("s1", "s2")}
    source = with_item_at(root, *layouts.centre(1), part)
    after = {name: read(source, name) for name in ("s1", "s2")}
    assert source.places("s1") == source.places("s2")
    gone = {name: set(before[name].ids) - set(after[name].ids) for name in ("s1", "s2")}
    if part == "train":
        assert gone == {"s1": set(), "s2": set()}
        return
    assert len(after["s1"]) == len(after["s2"]) == len(before["s1"]) - len(gone["s1"])
    ends = {n: {(i.split("/")[2], i.split("#")[1]) for i in ids} for n, ids in gone.items()}
    assert ends["s1"] == ends["s2"]
    # By hand: circles around a tile of 320 m and an item of 640 m meet within 679 m of their centres.
    lonlat, km = before["s1"].lonlat, 6371.0072 * np.pi / 180
    assert lonlat is not None
    dx, dy = ((lonlat - layouts.centre(1)) * [np.cos(np.pi / 4), 1] * km).T
    near = np.hypot(dx, dy) < (0.32 + 0.64) / np.sqrt(2)
    assert gone["s1"] == set(before["s1"].ids[near]) and 8 < near.sum() < 25


def test_the_margin_counts(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_s12")
    with_item_at(root, *layouts.centre(1), "test")
    counts = [len(open_folder(root, km).pretraining("s1", 32)) for km in (0, 0.5, 5, 16, 999)[:4]]
    assert counts[0] > counts[1] > counts[2] == 2 * 64 > counts[3] > 0  # 15.7 km between places
    with pytest.raises(ValueError, match="no tile of 32 px of s1 is whole and further"):
        open_folder(root, 999).pretraining("s1", 32)


def test_scenes_keep_away_too(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "naip")
    tiles = read(open_folder(root), "naip", size=10)
    assert len(tiles) == 70 and tiles.lonlat is not None
    layouts.usavars(root / "usavars")
    table = root / "usavars" / "treecover.csv"
    lon, lat = tiles.lonlat[0]
    # Item 5 is the first of val; its 152 m square then covers every tile of the scene.
    table.write_text(table.read_text().replace("-99.75,40.05", f"{lon},{lat}"))
    with pytest.raises(ValueError, match="no tile of 10 px of naip is whole and further"):
        open_folder(root).pretraining("naip", 10)
    south = lat - 0.0015  # 167 m: the first rows are now free
    table.write_text(table.read_text().replace(f"{lon},{lat}", f"{lon},{south}"))
    left = read(open_folder(root), "naip", size=10)
    assert 0 < len(left) < 70 and set(left.ids) < set(tiles.ids)


def test_unknown_places_are_said(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l", "copernicus_bench")
    for name in ("eurosat_s2", "dfc2020_s1s2", "flood_s1"):
        shutil.rmtree(root / "copernicus_bench" / name)
    placed = open_folder(root)
    assert placed.caveats == () and placed.tasks("s1")[0].clustered
    for path in (root / "copernicus_bench").rglob("*.tif"):
        strip_place(path)
    source = open_folder(root)
    (caveat,) = source.caveats
    assert "Where the items of eurosat_s1 lie is not known" in caveat
    (task,) = source.tasks("s1")
    found = source.labelled(task, 32)
    assert not task.clustered and found.samples.lonlat is None
    assert len(set(found.cluster)) == len(found.cluster)  # each for itself


def test_archives_without_places_are_said(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l", "usavars")
    for path in (root / "ssl4eo_l").rglob("*.tif"):
        strip_place(path)
    source = open_folder(root)
    (caveat,) = source.caveats
    assert "The pretraining files of landsat do not say where they lie" in caveat
    tiles = read(source, "landsat")
    assert len(tiles) == 128 and tiles.lonlat is None and tiles.dates is not None


def strip_place(path: Path) -> None:
    with rasterio.open(path) as file:
        numbers = file.read()
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        layouts.write_tif(path, numbers)


# NAIP.


def quads(tmp_path: Path) -> Callable[..., NDArray[Any]]:
    return lambda name, **options: layouts.naip(tmp_path / "naip", name, **options)


def test_naip_tiles_are_torchgeos_pixels(everything: Path, source: Torchgeo) -> None:
    data = NAIP(str(everything / "naip"), cache=False)
    tiles = read(source, "naip")
    assert len(tiles) == 2 * 3 and [band.name for band in tiles.bands] == ["R", "G", "B", "NIR"]
    for i, (row, col) in enumerate((r, c) for r in (0, 32) for c in (0, 32, 64)):
        x, y = 550_000 + col, 4_180_000 - row
        want = data[x : x + 32, y - 32 : y]["image"].numpy()  # type: ignore[misc]
        np.testing.assert_array_equal(tiles.pixels[i], want)
        assert tiles.ids[i] == f"naip/m_3712201_ne_10_100_20180712.tif#{row},{col}"
    assert tiles.dates is not None and set(tiles.dates) == {"2018-07-12"}
    assert {band.unit for band in tiles.bands} == {Unit.BRIGHTNESS8}


def test_naip_shows_each_quad_once_and_each_place_once(tmp_path: Path) -> None:
    write = quads(tmp_path)
    write(layouts.naip_name("3712201_ne", 20140612), seed=1)
    write(layouts.naip_name("3712201_ne", 20180712), seed=2)  # the later flight
    write(layouts.naip_name("3712201_nw", 20160801), at=(64, 0), seed=3)  # overlaps by 36 m
    write(layouts.naip_name("3712201_se", 20160801), at=(0, 70), seed=4)  # only touches
    tiles = read(open_folder(tmp_path), "naip", size=20)
    by_file = {
        quad: [name.split("#")[1] for name in tiles.ids if quad in name]
        for quad in ("ne_10_100_2014", "ne_10_100_2018", "nw", "se")
    }
    grid = [f"{row},{col}" for row in (0, 20, 40) for col in (0, 20, 40, 60, 80)]
    assert by_file["ne_10_100_2014"] == []
    assert by_file["ne_10_100_2018"] == grid and by_file["se"] == grid
    assert by_file["nw"] == [f"{row},{col}" for row in (0, 20, 40) for col in (40, 60, 80)]


def test_naip_of_another_zone_does_not_repeat_ground(tmp_path: Path) -> None:
    write = quads(tmp_path)
    first = write(layouts.naip_name("3712201_ne", 20180712), size=(80, 80))
    with rasterio.open(tmp_path / "naip" / layouts.naip_name("3712201_ne", 20180712)) as file:
        x, y = file.xy(0, 0)
    (east,), (north,) = rasterio.warp.transform("EPSG:32610", "EPSG:32611", [x], [y])
    write(
        "m_3712202_nw_11_100_20180712.tif", size=(200, 200), epsg=32611,
        at=(east - 550_000 - 60, 4_180_000 - north - 60),
    )  # fmt: skip
    tiles = read(open_folder(tmp_path), "naip", size=10)
    theirs = sum("3712202" in name for name in tiles.ids)
    assert sum("3712201" in name for name in tiles.ids) == 64 and first.shape == (4, 80, 80)
    assert 400 - 150 < theirs < 400 - 64  # the grids are turned against each other


def test_naip_pixel_sizes_are_blocks_of_their_own(tmp_path: Path) -> None:
    write = quads(tmp_path)
    write(layouts.naip_name("3712201_ne", 20180712))
    write(layouts.naip_name("3712201_sw", 20200712, "060"), at=(5000, 5000), gsd_m=0.6)
    pool = open_folder(tmp_path).pretraining("naip", 32)
    assert [(block.kind.gsd_m, len(block)) for block in pool.blocks] == [(0.6, 6), (1.0, 6)]
    assert [band.gsd_m for band in pool.blocks[0].kind.bands] == [1.0] * 4  # finer adds no detail
    assert "sw" in pool.blocks[0].read(np.array([5])).ids[0]


@pytest.mark.parametrize("strip", [1, 2**23])
def test_naip_tiles_beyond_the_flight_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    monkeypatch.setattr("gfmsum.data.geo.scenes.STRIP_PX", strip)
    name = layouts.naip_name("3712201_ne", 20180712)
    numbers = quads(tmp_path)(name, size=(64, 64))
    numbers[:, 10, 40] = 0
    numbers[:3, 50, 50] = 0  # black, but seen in the infrared
    grid = rasterio.transform.from_origin(550_000, 4_180_000, 1, 1)
    layouts.write_tif(tmp_path / "naip" / name, numbers, crs="EPSG:32610", transform=grid)
    tiles = read(open_folder(tmp_path), "naip")
    assert [item.split("#")[1] for item in tiles.ids] == ["0,0", "32,0", "32,32"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda numbers: numbers[:3], "has 3 bands, it must have 4"),
        (lambda numbers: numbers.astype(np.uint16), "is uint16, its data set is uint8"),
    ],
)
def test_naip_of_other_files_is_refused(tmp_path: Path, change: Any, match: str) -> None:
    name = layouts.naip_name("3712201_ne", 20180712)
    numbers = quads(tmp_path)(name)
    grid = rasterio.transform.from_origin(550_000, 4_180_000, 1, 1)
    layouts.write_tif(tmp_path / "naip" / name, change(numbers), crs="EPSG:32610", transform=grid)
    with pytest.raises(ValueError, match=match):
        open_folder(tmp_path).pretraining("naip", 32)


def test_naip_in_degrees_is_refused(tmp_path: Path) -> None:
    name = layouts.naip_name("3712201_ne", 20180712)
    numbers = quads(tmp_path)(name)
    grid = rasterio.transform.from_origin(-120, 40, 1e-5, 1e-5)
    layouts.write_tif(tmp_path / "naip" / name, numbers, crs="EPSG:4326", transform=grid)
    with pytest.raises(ValueError, match="its grid must be projected, north up"):
        open_folder(tmp_path).places("naip")


# MODIS.

GRANULE = "MOD09A1.A{day}.h10v07.061.2020194034517"


def test_modis_is_reflectance_by_name(everything: Path, source: Torchgeo) -> None:
    tiles = read(source, "modis", size=24)
    assert len(tiles) == 9 and [band.name for band in tiles.bands] == [
        f"B0{i}" for i in range(1, 8)
    ]
    data = MOD09A1(str(everything / "mod09a1"))
    x, y, pixel = -8 * layouts.MODIS_TILE_M, 2 * layouts.MODIS_TILE_M, layouts.MODIS_PIXEL_M
    want = data[x + 24 * pixel : x + 48 * pixel : pixel, y - 72 * pixel : y - 48 * pixel : pixel][
        "image"
    ].numpy()  # type: ignore[misc]
    np.testing.assert_allclose(tiles.pixels[7], want * 1e-4, rtol=1e-6)
    assert tiles.ids[7] == f"mod09a1/{GRANULE.format(day=2020185)}#48,24"
    assert tiles.dates is not None and set(tiles.dates) == {"2020-07-03"}  # day 185 of a leap year
    # The corner of h10v07 is 20 N; there 80 W on the sinusoidal map is 85.1 W.
    assert tiles.lonlat is not None
    np.testing.assert_allclose(tiles.lonlat[0], [-80 / np.cos(np.deg2rad(20)), 20], atol=0.1)


def test_modis_shows_one_date_of_each_place(tmp_path: Path) -> None:
    root = tmp_path / "mod09a1"
    days = ("2020177", "2020185", "2020193")
    for seed, day in enumerate(days):
        layouts.mod09a1(root, GRANULE.format(day=day), seed=seed)
    layouts.mod09a1(root, "MOD09A1.A2020185.h10v07.061.2021300000000", seed=9)  # produced anew
    tiles = read(open_folder(tmp_path), "modis", size=12)
    places = [name.split("#")[1] for name in tiles.ids]
    assert len(places) == len(set(places)) == 36
    assert tiles.dates is not None and len(set(tiles.dates)) == 3
    assert not any("A2020185" in name and "2020194034517" in name for name in tiles.ids)
    for name in tiles.ids:
        digest = hashlib.sha256(f"mod09a1/h10v07#{name.split('#')[1]}".encode()).digest()
        assert f".A{days[int.from_bytes(digest[:8]) % 3]}." in name


def spoil(root: Path, layer: str, value: int, row: int, col: int) -> None:
    with rasterio.open(root / f"{GRANULE.format(day=2020185)}_{layer}.tif", "r+") as file:
        numbers = file.read(1)
        numbers[row, col] = value
        file.write(numbers, 1)


@pytest.mark.parametrize(
    ("layer", "value", "whole"),
    [
        ("sur_refl_b05", -28672, False),
        ("sur_refl_b01", -101, False),
        ("sur_refl_b01", -100, True),
        ("sur_refl_b07", 16001, False),
        ("sur_refl_qc_500m", 0b10, False),  # not produced, for clouds
        ("sur_refl_qc_500m", 0b11, False),  # not produced, for other reasons
        ("sur_refl_qc_500m", 0b01, True),  # less than ideal
        ("sur_refl_qc_500m", 0b1100, True),  # of band 1
    ],
)
def test_modis_tiles_with_fill_are_left_out(
    tmp_path: Path, layer: str, value: int, whole: bool
) -> None:
    root = tmp_path / "mod09a1"
    layouts.mod09a1(root, GRANULE.format(day=2020185), quality=True)
    spoil(root, layer, value, 30, 70)
    tiles = read(open_folder(tmp_path), "modis", size=24)
    assert (f"mod09a1/{GRANULE.format(day=2020185)}#24,48" in tiles.ids) is whole
    assert len(tiles) == 8 + whole


def test_a_modis_tile_takes_the_date_that_has_it(tmp_path: Path) -> None:
    root = tmp_path / "mod09a1"
    for seed, day in enumerate(("2020177", "2020185")):
        layouts.mod09a1(root, GRANULE.format(day=day), seed=seed)
    for row in range(0, 72, 12):
        for col in range(0, 72, 12):
            spoil(root, "sur_refl_b02", -28672, row, col)
    tiles = read(open_folder(tmp_path), "modis", size=12)
    assert len(tiles) == 36 and all(".A2020177." in name for name in tiles.ids)


def test_modis_tiles_that_only_touch_are_all_kept(tmp_path: Path) -> None:
    """Neighbours meet at edges that are equal but for rounding."""
    root = tmp_path / "mod09a1"
    layouts.mod09a1(root, side=72, col=2400 - 72)
    layouts.mod09a1(root, "MOD09A1.A2020185.h11v07.061.2020194034517", seed=1)
    assert len(open_folder(tmp_path).pretraining("modis", 24)) == 9 + 9


def test_modis_needs_all_bands(tmp_path: Path) -> None:
    root = tmp_path / "mod09a1"
    layouts.mod09a1(root)
    (root / f"{GRANULE.format(day=2020185)}_sur_refl_b06.tif").unlink()
    with pytest.raises(ValueError, match=r"b06.tif: is missing; a granule needs all seven bands"):
        open_folder(tmp_path).pretraining("modis", 24)


# Land cover under MODIS.

FIELDS = np.array([[40, 111, 0, 60], [112, 121, 80, 200], [30, 40, 126, 20]], np.uint8)
FIELD_PX = 160  # of the map: 17 km


@pytest.fixture
def covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A granule of 36 tiles of 12 pixels, each a block, and a map of large fields below it."""
    monkeypatch.setattr(ModisCover, "SIDE", 12)
    monkeypatch.setattr(ModisCover, "BLOCK", 1)
    root = tmp_path / "mod09a1"
    layouts.mod09a1(root, GRANULE.format(day=2020185))
    layouts.lc100(root, -85.2, 20.05, np.kron(FIELDS, np.ones((FIELD_PX, FIELD_PX), np.uint8)))
    return tmp_path


def test_modis_pixels_have_the_class_of_the_map_below_them(covered: Path) -> None:
    source = open_folder(covered)
    found = task_of(source, "lc100_modis")
    assert found.task.kind == "segmentation" and found.task.metric == "mean_iou"
    assert "no published split" in found.task.caveat and found.task.clustered
    legend = {code: i for i, code in enumerate(ModisCover.legend)}
    legend |= {112: legend[111], 126: legend[121]}  # forests of all leaves are one class
    kept = {"".join(name.split("#")[1]): i for i, name in enumerate(found.samples.ids)}
    with rasterio.open(
        covered / "mod09a1" / f"{GRANULE.format(day=2020185)}_sur_refl_b01.tif"
    ) as file:
        first = file.read(1)
        grid, crs = file.transform, file.crs
    checked = 0
    for name, i in kept.items():
        row, col = map(int, name.split(","))
        np.testing.assert_allclose(
            found.samples.pixels[i, 0], first[row : row + 12, col : col + 12] * 1e-4, rtol=1e-6
        )
        for y, x in np.ndindex(12, 12):
            steps = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
            east, north = zip(
                *(grid * (col + x + dx, row + y + dy) for dy, dx in steps), strict=True
            )
            lon, lat = (np.array(v) for v in rasterio.warp.transform(crs, "EPSG:4326", east, north))
            cells = (
                ((20.05 - lat) * 1008 // FIELD_PX).astype(int),
                ((lon + 85.2) * 1008 // FIELD_PX).astype(int),
            )
            codes = set(FIELDS[cells].tolist())
            if len(codes) == 1:  # the pixel lies in one field
                assert found.target[i, y, x] == legend.get(codes.pop(), UNLABELLED)
                checked += 1
    assert checked > 2000 and set(found.target.ravel().tolist()) == {0, 2, 6, 9, 10, UNLABELLED}


def test_modis_cover_is_dealt_by_place_and_kept_from_pretraining(covered: Path) -> None:
    found = task_of(source := open_folder(covered), "lc100_modis")
    ((train, val, test),) = found.folds
    assert min(map(len, (train, val, test))) >= 1 and len(train) > len(test) + len(val)
    places = [name.split("#")[1] for name in found.samples.ids]
    free = {name.split("#")[1] for name in read(source, "modis", size=12).ids}
    assert free and not free & {places[i] for i in (*val, *test)}
    # Other dates do not move a tile to another part.
    layouts.mod09a1(covered / "mod09a1", GRANULE.format(day=2020193), seed=3)
    again = task_of(open_folder(covered), "lc100_modis")
    assert again.samples.ids.tolist() == found.samples.ids.tolist()
    assert again.samples.dates is not None and len(set(again.samples.dates)) == 2


def test_modis_cover_leaves_out_what_was_never_seen_whole(covered: Path) -> None:
    before = task_of(open_folder(covered), "lc100_modis").samples.ids.tolist()
    row, col = map(int, before[0].split("#")[1].split(","))
    spoil(covered / "mod09a1", "sur_refl_b05", -28672, row + 3, col + 7)
    after = task_of(open_folder(covered), "lc100_modis").samples.ids.tolist()
    assert after == before[1:]


def test_without_a_map_modis_has_no_task(covered: Path) -> None:
    next((covered / "mod09a1").glob("PROBAV*")).unlink()
    assert open_folder(covered).tasks("modis") == []


# Tasks.


@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_eurosat_is_as_published(everything: Path, source: Torchgeo, sensor: str) -> None:
    kind = {"s1": CopernicusBenchEuroSATS1, "s2": CopernicusBenchEuroSATS2}[sensor]
    found = task_of(source, f"eurosat_{sensor}")
    task = found.task
    assert (task.kind, task.metric, task.ceiling) == ("classification", "accuracy", 1.0)
    assert task.classes == kind.classes and task.clustered and "neighbours" in task.caveat
    assert task.floor == 1 / 11  # Forest is most frequent in training; in the test part River is
    (fold,) = found.folds
    for part, rows in zip(("train", "val", "test"), fold, strict=True):
        data = kind(str(everything / "copernicus_bench"), part, checksum=False)  # type: ignore[arg-type]
        assert len(rows) == len(data)
        for i, row in enumerate(rows):
            sample = data[i]
            scale = {"s1": 1, "s2": 1e-4}[sensor]
            np.testing.assert_allclose(
                found.samples.pixels[row], sample["image"].numpy() * scale, rtol=1e-6
            )
            assert found.target[row] == int(sample["label"])
            assert found.samples.lonlat is not None
            np.testing.assert_allclose(
                found.samples.lonlat[row], [float(sample["lon"]), float(sample["lat"])]
            )
    assert found.target.dtype == np.int64 and found.samples.pixels.dtype == np.float32
    assert found.samples.dates is None and len(set(found.samples.ids)) == 42
    assert 1 < len(set(found.cluster)) < 42


def test_eurosats_b8a_is_last_and_not_where_it_belongs(source: Torchgeo) -> None:
    samples = task_of(source, "eurosat_s2").samples
    assert [band.name for band in samples.bands][-1] == "B8A"
    values = samples.pixels.mean(axis=(0, 2, 3))
    for band, value in zip(samples.bands, values, strict=True):
        assert value == pytest.approx(layouts.EUROSAT_BANDS[band.name] * 1e-4, abs=5e-4)
        assert band.wavelength_um == {b.name: b.wavelength_um for b in S2.bands}[band.name]
    assert values.argmin() == [b.name for b in samples.bands].index("B10")  # cirrus


def test_radar_tasks_are_vv_then_vh(source: Torchgeo) -> None:
    samples = task_of(source, "eurosat_s1").samples
    found = dict(
        zip([b.name for b in samples.bands], samples.pixels.mean(axis=(0, 2, 3)), strict=True)
    )
    assert found["VV"] == pytest.approx(-10, abs=0.1) and found["VH"] == pytest.approx(-20, abs=0.1)


def test_wrong_values_of_a_task_are_refused(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "copernicus_bench")
    for path in (root / "copernicus_bench" / "eurosat_s1").rglob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.write(10 ** (file.read() / 10))  # linear power
    with pytest.raises(ValueError, match=r"eurosat_s1: band VV is .* dB must lie in") as error:
        task_of(open_folder(root), "eurosat_s1")
    one_line(error)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda pixels: np.where(pixels > -100, np.nan, 0),
            "must be .2, 64, 64. of finite numbers",
        ),
        (lambda pixels: pixels[:, :60], "and is .2, 60, 64."),
    ],
)
def test_spoilt_items_are_named(everything: Path, tmp_path: Path, change: Any, match: str) -> None:
    root = some(everything, tmp_path, "copernicus_bench")
    path = root / "copernicus_bench" / "eurosat_s1" / "all_imgs" / "River" / "River_9.tif"
    with rasterio.open(path) as file:
        pixels, place = file.read(), {"crs": file.crs, "transform": file.transform}
    layouts.write_tif(path, change(pixels).astype(np.float32), **place)
    with pytest.raises(ValueError, match=match) as error:
        task_of(open_folder(root), "eurosat_s1")
    assert "River_9.tif" in one_line(error)


@pytest.mark.parametrize("line", ["Forest_../../x.jpg", "../Forest_1.jpg"])
def test_lists_cannot_lead_elsewhere(everything: Path, tmp_path: Path, line: str) -> None:
    root = some(everything, tmp_path, "copernicus_bench")
    (root / "copernicus_bench" / "eurosat_s1" / "eurosat-test.txt").write_text(line + "\n")
    with pytest.raises(ValueError, match="it must be the name of a file"):
        open_folder(root).tasks("s1")


def test_unknown_classes_and_empty_parts_are_refused(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "copernicus_bench")
    listed = root / "copernicus_bench" / "eurosat_s1" / "eurosat-test.txt"
    listed.write_text("Desert_1.jpg\n")
    with pytest.raises(ValueError, match="lists an item of class 'Desert'; it must be one of"):
        open_folder(root).tasks("s1")
    listed.unlink()
    with pytest.raises(ValueError, match="cannot be read") as error:
        open_folder(root).tasks("s1")
    one_line(error)


def test_labelled_items_are_read_once(everything: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_folder(everything)
    first = task_of(source, "usavars_treecover")
    reads = Reads(monkeypatch)
    assert task_of(source, "usavars_treecover").samples.pixels is first.samples.pixels
    assert reads.names == []


def test_an_unknown_task(source: Torchgeo) -> None:
    task = source.tasks("naip")[0]
    other = type(task)("eurosat_s3", "s1", "classification", "accuracy", 0, 1)
    with pytest.raises(ValueError, match=r"unknown task 'eurosat_s3'.*did you mean 'eurosat_s"):
        source.labelled(other, 32)


def test_tree_cover(everything: Path, source: Torchgeo) -> None:
    found = task_of(source, "usavars_treecover")
    task = found.task
    assert (task.kind, task.metric, task.floor, task.ceiling) == ("regression", "r2", 0.0, 1.0)
    assert found.samples.gsd_m == 4 and {b.gsd_m for b in found.samples.bands} == {4.0}
    assert [len(rows) for rows in found.folds[0]] == [5, 2, 3]
    assert found.target.tolist() == [7.5 * i for i in range(10)]
    assert found.samples.lonlat is not None
    np.testing.assert_allclose(found.samples.lonlat[3], [-99.85, 40.03])
    data = USAVars(str(everything / "usavars"), "test", ("treecover",), checksum=False)
    crop = data[1]["image"].numpy()[:, 1:37, 1:37]  # 38 px to a multiple of 4, at the centre
    assert np.array_equal(found.samples.pixels[8], crop)
    assert task.caveat == ""


def test_more_than_memory_holds_is_thinned_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.usavars(tmp_path / "usavars", {"train": 24, "val": 8, "test": 12})
    whole = task_of(open_folder(tmp_path), "usavars_treecover")
    item = 4 * 38 * 38 * 4
    monkeypatch.setattr(labels, "HELD_BYTES", 22 * item)
    thin = task_of(open_folder(tmp_path), "usavars_treecover")
    assert [len(rows) for rows in thin.folds[0]] == [12, 4, 6]
    assert "22 of the 44 published items are used" in thin.task.caveat
    assert set(thin.samples.ids) < set(whole.samples.ids)
    for part in range(3):  # each item stays in its part
        one = set(thin.samples.ids[thin.folds[0][part]])
        assert one < set(whole.samples.ids[whole.folds[0][part]])
    again = task_of(open_folder(tmp_path), "usavars_treecover")
    assert np.array_equal(again.samples.ids, thin.samples.ids)


def test_thinned_items_are_held_back_from_pretraining_all_the_same(
    everything: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [len(ground.lonlat) for ground in open_folder(everything)._held.grounds]
    monkeypatch.setattr(labels, "HELD_BYTES", 10**5)
    assert [len(ground.lonlat) for ground in open_folder(everything)._held.grounds] == before


def test_a_table_without_an_item(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "usavars")
    table = root / "usavars" / "treecover.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"treecover.csv: has 0 rows of ID 9,7, which") as error:
        task_of(open_folder(root), "usavars_treecover")
    one_line(error)
    table.write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(ValueError, match=r"has 2 rows of ID 9,7, .* each must be there once"):
        task_of(open_folder(root), "usavars_treecover")


# Land cover by majority.


def test_land_cover(everything: Path, source: Torchgeo) -> None:
    found = task_of(source, "ssl4eo_l_nlcd")
    task = found.task
    assert (task.kind, task.metric, task.floor) == ("classification", "balanced_accuracy", 1 / 8)
    assert task.classes[:3] == ("water", "developed", "barren") and len(task.classes) == 8
    assert found.samples.pixels.shape == (54, 7, 64, 64) and found.samples.gsd_m == 30
    root = str(everything / "ssl4eo_l_benchmark")
    first = 0
    for part, rows in zip(("train", "val", "test"), found.folds[0], strict=True):
        before = states()
        data = SSL4EOLBenchmark(root, "oli_sr", "nlcd", part, checksum=False)  # type: ignore[arg-type]
        np.random.set_state(("MT19937", np.array(before[2], np.uint32), *before[3:6]))  # noqa: NPY002
        assert [name.split("/")[1] for name in found.samples.ids[rows]] == [
            Path(image).parts[-3] for image, _ in data.sample_collection
        ]
        for i in (0, len(rows) - 1):
            want = data[i]["image"].numpy()[:, 100:164, 100:164] * 0.3 / 255
            np.testing.assert_allclose(found.samples.pixels[rows[i]], want, rtol=1e-6)
        assert found.target[rows].tolist() == [(first + i) % 8 for i in range(len(rows))]
        first += len(rows)
    assert found.samples.dates is not None and found.samples.dates[0].startswith("2019-0")


def masks(root: Path) -> list[Path]:
    """In the order of the items."""
    np.testing.assert_equal(True, root.is_dir())
    order = np.arange(54)
    np.random.RandomState(0).shuffle(order)
    listed = sorted((root / "ssl4eo_l_oli_nlcd").rglob("nlcd_2019.tif"))
    return [listed[i] for i in order]


def paint(path: Path, *parts: tuple[int, int]) -> None:
    """A mask whose central 64 x 64 px are filled, column by column, with (code, columns)."""
    with rasterio.open(path) as file:
        mask, place = file.read(), {"crs": file.crs, "transform": file.transform}
    col = 100
    for code, columns in parts:
        mask[:, 100:164, col : col + columns] = code
        col += columns
    layouts.write_tif(path, mask, **place)


def test_the_majority_is_of_level_one_and_of_known_codes(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l_benchmark") / "ssl4eo_l_benchmark"
    paths = masks(root)
    paint(paths[0], (41, 20), (42, 10), (43, 4), (82, 30))  # 34 columns of forest in three codes
    paint(paths[1], (0, 30), (90, 18), (95, 16))  # 0 is nothing, though torchgeo makes it water
    paint(paths[2], (250, 33), (11, 31))  # less than half is classified
    paint(paths[3], (250, 32), (11, 32))  # just half is
    paint(paths[4], (81, 32), (52, 32))  # of equals, the lower code
    found = task_of(open_folder(tmp_path), "ssl4eo_l_nlcd")
    names = [found.task.classes[i] for i in found.target[:4]]
    assert names == ["forest", "wetlands", "water", "shrubland"]  # the third is left out
    assert len(found.target) == 53 and [len(rows) for rows in found.folds[0]] == [36, 8, 9]
    assert found.samples.lonlat is not None and len(found.samples.lonlat) == 53
    kept = [f"ssl4eo_l_nlcd/{'/'.join(path.parts[-3:-1])}" for path in paths[:5]]
    assert found.samples.ids[:4].tolist() == [kept[0], kept[1], kept[3], kept[4]]


def test_classes_that_are_not_tested_are_refused(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l_benchmark") / "ssl4eo_l_benchmark"
    for path in masks(root)[-9:]:
        paint(path, (11, 64))
    source = open_folder(tmp_path)
    with pytest.raises(ValueError, match="has no test item of class 'developed', and its floor"):
        task_of(source, "ssl4eo_l_nlcd")


# Classes of pixels.


@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_dfc2020_is_as_published(everything: Path, source: Torchgeo, sensor: str) -> None:
    kind = {"s1": CopernicusBenchDFC2020S1, "s2": CopernicusBenchDFC2020S2}[sensor]
    found = task_of(source, f"dfc2020_{sensor}")
    task = found.task
    assert (task.kind, task.metric, task.ceiling) == ("segmentation", "mean_iou", 1.0)
    assert task.classes == (
        "Forest", "Shrubland", "Grassland", "Wetlands", "Croplands", "Urban/Built-up", "Barren", "Water",
    )  # fmt: skip
    # Croplands are most frequent in training; of 9 labelled stripes of the test part they have one.
    assert task.floor == pytest.approx(1 / 9 / 8)
    assert found.target.dtype == np.uint8 and found.target.shape == (7, 36, 36)
    assert [len(rows) for rows in found.folds[0]] == [3, 2, 2] and found.before is None
    unlabelled = {"Background", "Savanna", "Snow/Ice"}
    for part, rows in zip(("train", "val", "test"), found.folds[0], strict=True):
        data = kind(str(everything / "copernicus_bench"), part, checksum=False)  # type: ignore[arg-type]
        assert len(rows) == len(data)
        for i, row in enumerate(rows):
            sample = data[i]
            image = sample["image"].numpy()[
                :, 1:37, 1:37
            ]  # 38 px to a multiple of 4, at the centre
            scale = {"s1": 1, "s2": 1e-4}[sensor]
            np.testing.assert_allclose(found.samples.pixels[row], image * scale, rtol=1e-6)
            for index, code in zip(
                found.target[row].flat, sample["mask"].numpy()[1:37, 1:37].flat, strict=True
            ):
                name = kind.classes[code]
                assert (name in unlabelled) == (index == UNLABELLED)
                assert index == UNLABELLED or task.classes[index] == name


def test_dfc2020_shows_the_same_masks_to_both_sensors(source: Torchgeo) -> None:
    one, other = task_of(source, "dfc2020_s1"), task_of(source, "dfc2020_s2")
    assert np.array_equal(one.target, other.target) and one.task.floor == other.task.floor
    assert [name.split("/")[1] for name in one.samples.ids] == [
        name.split("/")[1] for name in other.samples.ids
    ]


def test_a_grid_that_is_nowhere_is_no_place(tmp_path: Path) -> None:
    layouts.dfc2020(tmp_path / "copernicus_bench", placed=False)
    layouts.ssl4eo_l(tmp_path / "ssl4eo_l")
    source = open_folder(tmp_path)
    found = task_of(source, "dfc2020_s1")
    assert found.samples.lonlat is None and not found.task.clustered
    (caveat,) = source.caveats
    assert "Where the items of dfc2020_s1, dfc2020_s2 lie is not known" in caveat


def test_floods_are_seen_before_and_after(everything: Path, source: Torchgeo) -> None:
    found = task_of(source, "flood_s1")
    task = found.task
    assert (task.kind, task.metric) == ("change_segmentation", "mean_iou")
    assert task.classes == CopernicusBenchFloodS1.classes
    assert task.floor == pytest.approx(2 / 8 / 3)  # 2 of 8 labelled stripes are dry, of 3 classes
    assert found.before is not None and found.before.bands == found.samples.bands
    assert np.array_equal(found.before.ids, found.samples.ids) and len(set(found.samples.ids)) == 6
    assert found.samples.dates is not None and set(found.samples.dates) == {"2017-05-04"}
    assert found.before.dates is not None and set(found.before.dates) == {"2017-04-22"}
    for part, rows in zip(("train", "val", "test"), found.folds[0], strict=True):
        root = str(everything / "copernicus_bench")
        data = CopernicusBenchFloodS1(root, part, mode=1, checksum=False)  # type: ignore[arg-type]
        for i, row in enumerate(rows):
            sample = data[i]
            for when, seen in enumerate((found.before, found.samples)):
                db = 10 * np.log10(sample["image"][when].numpy()[:, 1:37, 1:37])
                np.testing.assert_allclose(seen.pixels[row], db, rtol=1e-5)
            mask = sample["mask"].numpy()[1:37, 1:37]
            assert np.array_equal(found.target[row], np.where(mask == 3, UNLABELLED, mask))
            assert found.samples.lonlat is not None
            where = [float(sample["lon"]), float(sample["lat"])]
            np.testing.assert_allclose(found.samples.lonlat[row], where)
    # Backscatter of 0.1 and 0.01, halved and divided by three.
    means = [seen.pixels.mean(axis=(0, 2, 3)) for seen in (found.before, found.samples)]
    np.testing.assert_allclose(means, [[-13.0, -23.0], [-14.8, -24.8]], atol=0.1)


def test_water_without_an_echo_is_dark_and_a_gap_is_filled(
    everything: Path, tmp_path: Path
) -> None:
    root = some(everything, tmp_path, "copernicus_bench")
    folder = root / "copernicus_bench" / "flood_s1" / "data" / "100" / "01" / f"{1:032x}"
    (path,) = folder.glob("SL1_IVH_*.tif")
    with rasterio.open(path, "r+") as file:
        numbers = np.full((1, 38, 38), 0.01, np.float32)
        numbers[0, 1, 1], numbers[0, 1, 2] = 0, np.nan
        file.write(numbers)
    found = task_of(open_folder(root), "flood_s1")
    assert found.before is not None
    np.testing.assert_allclose(found.before.pixels[0, 1, 0, :3], [-50, -20, -20], rtol=1e-6)
    with rasterio.open(path, "r+") as file:
        file.write(np.full((1, 38, 38), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"must be .2, 38, 38. of finite numbers") as error:
        task_of(open_folder(root), "flood_s1")
    one_line(error)


def test_floods_that_are_db_already_are_refused(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "copernicus_bench")
    for path in (root / "copernicus_bench" / "flood_s1").rglob("SL1_I*.tif"):  # only those before
        with rasterio.open(path, "r+") as file:
            file.write(10 * np.log10(file.read()))
    with pytest.raises(ValueError, match=r"flood_s1: band VV is -50 on average, dB must lie in"):
        task_of(open_folder(root), "flood_s1")


def test_floods_cannot_lead_elsewhere(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "copernicus_bench")
    listed = root / "copernicus_bench" / "flood_s1" / "grid_dict_val.json"
    for name in ("../../x", "/x"):
        listed.write_text(json.dumps({"a": {"path": name}}))
        with pytest.raises(ValueError, match="it must lie below this folder") as error:
            open_folder(root).tasks("s1")
        one_line(error)
    listed.write_text(json.dumps({"a": {"path": "100/01/gone"}}))
    with pytest.raises(ValueError, match=r"gone: holds no MK0_MLU_\*.tif; the val split lists it"):
        task_of(open_folder(root), "flood_s1")


def test_codes_of_landsat_masks(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l_benchmark") / "ssl4eo_l_benchmark"
    # 23 is dense building, rarer than SSL4EO-L counts; torchgeo makes 0 and 127 water, as 11.
    paint(masks(root)[0], (0, 8), (127, 8), (250, 8), (23, 8), (11, 8), (95, 8), (43, 16))
    found = task_of(open_folder(tmp_path), "ssl4eo_l_nlcd_masks")
    assert found.samples.pixels.shape == (54, 7, 264, 264) and len(found.task.classes) == 13
    row = found.target[0, 130, 100:164]
    assert (row[:32] == UNLABELLED).all()
    assert [found.task.classes[i] for i in row[[32, 40, 48, 63]]] == [
        "open water", "herbaceous wetlands", "mixed forest", "mixed forest",
    ]  # fmt: skip
    assert found.task.classes[found.target[0, 0, 0]] == "open water"  # of code 11 beyond the middle
    assert found.samples.dates is not None and found.samples.dates[0].startswith("2019-0")


@pytest.mark.parametrize(
    ("product", "names"),
    [
        ("nlcd", ("open water", "developed, open space", "barren", "deciduous forest")),
        ("cdl", ("open water", "developed, open space", "barren", "deciduous forest")),
    ],
)
def test_landsat_masks(
    everything: Path, source: Torchgeo, product: str, names: tuple[str, ...]
) -> None:
    found = task_of(source, f"ssl4eo_l_{product}_masks")
    # Items are of one class each, in turn: 37 of training, of which water has 5, and 9 of test, the 46th on.
    assert [len(rows) for rows in found.folds[0]] == [37, 8, 9]
    assert found.task.floor == pytest.approx(1 / 9 / 8)
    seen = [np.unique(target).tolist() for target in found.target]
    assert all(len(each) == 1 for each in seen)
    assert tuple(found.task.classes[each[0]] for each in seen[:4]) == names
    before = states()
    root = str(everything / "ssl4eo_l_benchmark")
    data = SSL4EOLBenchmark(root, "oli_sr", product, "test", checksum=False)  # type: ignore[arg-type]
    np.random.set_state(("MT19937", np.array(before[2], np.uint32), *before[3:6]))  # noqa: NPY002
    rows = found.folds[0][2]
    for i in (0, len(rows) - 1):
        want = data[i]["image"].numpy() * 0.3 / 255
        np.testing.assert_allclose(found.samples.pixels[rows[i]], want, rtol=1e-6)
        code = layouts.MASK_CODES[product][(45 + i) % 8]
        assert data.inverse_map[data[i]["mask"]].unique().tolist() == [code]


def test_both_products_need_their_own_masks_only(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "ssl4eo_l_benchmark") / "ssl4eo_l_benchmark"
    shutil.rmtree(root / "ssl4eo_l_oli_nlcd")
    assert [task.name for task in open_folder(tmp_path).tasks("landsat")] == ["ssl4eo_l_cdl_masks"]


def test_chesapeake_is_a_grid_of_each_quad(everything: Path, source: Torchgeo) -> None:
    found = task_of(source, "chesapeake_cvpr")
    task = found.task
    assert (task.kind, task.metric, len(task.classes)) == ("segmentation", "mean_iou", 6)
    assert task.classes[:3] == ("water", "tree canopy", "low vegetation")
    quads = {split: name for split, (name, _) in layouts.CHESAPEAKE_QUADS.items()}
    assert [name.removeprefix("chesapeake_cvpr/") for name in found.samples.ids] == [
        f"{quads['de-train']}#0,0", f"{quads['de-train']}#0,256",
        f"{quads['de-val']}#0,0", f"{quads['de-val']}#0,256",
        f"{quads['wv-val']}#0,0", f"{quads['wv-val']}#0,256",
        f"{quads['de-test']}#0,256",  # of the other tile nothing is known
    ]  # fmt: skip
    assert [rows.tolist() for rows in found.folds[0]] == [[0, 1], [2, 3, 4, 5], [6]]
    # Tree canopy is most frequent in training; half of the test tile is, and the other class is water.
    assert task.floor == pytest.approx(1 / 2 / 2)
    assert (found.target[1, :100] == UNLABELLED).all()
    assert (found.target[1, 100:] == task.classes.index("low vegetation")).all()
    assert (found.target[6, :, :128] == 1).all() and (found.target[6, :, 128:] == 0).all()
    assert found.samples.gsd_m == 1 and {b.unit for b in found.samples.bands} == {Unit.BRIGHTNESS8}
    assert len(set(found.cluster)) >= 4 and found.cluster[0] == found.cluster[1]
    # torchgeo's class gives the same pixel wherever it is asked.
    root = str(everything / "chesapeake_cvpr")
    data = ChesapeakeCVPR(root, ["de-train", "wv-val"], ["naip-new", "lc"], checksum=False)
    for item, (x, y), crs in (
        (1, (450_000 + 256, 4_300_000), "EPSG:26918"),
        (4, (450_000 + 27_000, 4_300_000), "EPSG:26917"),
    ):
        for row, col in ((0, 0), (130, 7), (255, 255)):
            at = [x + col + 0.5], [y - row - 0.5]
            (east,), (north,) = rasterio.warp.transform(crs, "EPSG:3857", *at)
            sample = data[east - 0.5 : east + 0.5, north - 0.5 : north + 0.5]  # type: ignore[misc]
            assert sample["image"].shape == (4, 1, 1)
            assert (
                sample["image"].flatten().tolist()
                == found.samples.pixels[item, :, row, col].tolist()
            )
            code, index = int(sample["mask"]), found.target[item, row, col]
            assert code - 1 == index or (code == 0 and index == UNLABELLED)
            if (row, col) == (130, 7):
                assert found.samples.lonlat is not None
                (lon,), (lat,) = rasterio.warp.transform(crs, "EPSG:4326", [x + 128], [y - 128])
                np.testing.assert_allclose(found.samples.lonlat[item], [lon, lat], rtol=1e-9)


def test_chesapeake_takes_the_states_that_are_there(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "chesapeake_cvpr") / "chesapeake_cvpr"
    gone, _ = layouts.CHESAPEAKE_QUADS["de-val"]
    (root / f"{gone}_naip-new.tif").unlink()
    found = task_of(open_folder(tmp_path), "chesapeake_cvpr")
    assert [len(rows) for rows in found.folds[0]] == [2, 2, 1]
    gone, _ = layouts.CHESAPEAKE_QUADS["de-test"]
    (root / f"{gone}_lc.tif").unlink()
    with pytest.raises(ValueError, match="chesapeake_cvpr has no test item; fetch the whole of it"):
        open_folder(tmp_path).tasks("naip")


def test_chesapeake_masks_lie_on_their_images(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "chesapeake_cvpr") / "chesapeake_cvpr"
    path = root / f"{layouts.CHESAPEAKE_QUADS['de-train'][0]}_lc.tif"
    with rasterio.open(path) as file:
        cover, place = file.read(), {"crs": file.crs, "transform": file.transform}
    layouts.write_tif(path, cover[:, :, 1:], **place)
    with pytest.raises(ValueError, match=r"_lc.tif: its grid differs from that of .*naip-new.tif"):
        open_folder(tmp_path).tasks("naip")
    index = root / "spatial_index.geojson"
    index.write_text(index.read_text().replace('"de_1m', '"../de_1m'))
    with pytest.raises(ValueError, match="it must lie below this folder"):
        open_folder(tmp_path).tasks("naip")


def test_ground_of_dense_items_is_held(source: Torchgeo) -> None:
    held = {
        name: [(len(ground.lonlat), ground.side_m) for ground in labels.held()]
        for name, labels in source._labels.items()
        if labels.task.dense
    }
    assert held == {
        "dfc2020_s1": [(2, 380), (2, 380)],
        "dfc2020_s2": [(2, 380), (2, 380)],
        "flood_s1": [(2, 380), (2, 380)],
        "ssl4eo_l_nlcd_masks": [(8, 7920), (9, 7920)],
        "ssl4eo_l_cdl_masks": [(8, 7920), (9, 7920)],
        "chesapeake_cvpr": [(4, 256), (2, 256)],  # the tile that is left out as well
    }


@pytest.mark.parametrize(("east", "free"), [(0, True), (18_000, False)])
def test_scenes_keep_away_from_chesapeakes_test_quad(
    everything: Path, tmp_path: Path, east: int, free: bool
) -> None:
    some(everything, tmp_path, "chesapeake_cvpr")
    name = layouts.naip_name("3807503_ne", 20180712)
    layouts.naip(tmp_path / "naip", name, at=(east - 100_000, -120_000), epsg=26918)
    source = open_folder(tmp_path)
    if free:  # on the training quad
        assert len(source.pretraining("naip", 10)) == 70
        return
    with pytest.raises(ValueError, match="no tile of 10 px of naip is whole and further"):
        source.pretraining("naip", 10)


def test_dense_items_are_thinned_with_their_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.dfc2020(tmp_path / "copernicus_bench", per_part={"train": 8, "val": 4, "test": 4})
    layouts.flood(tmp_path / "copernicus_bench")
    source = open_folder(tmp_path)
    whole = task_of(source, "dfc2020_s1")
    monkeypatch.setattr(labels, "HELD_BYTES", 8 * 2 * 38 * 38 * 4)
    source = open_folder(tmp_path)
    thin = task_of(source, "dfc2020_s1")
    assert [len(rows) for rows in thin.folds[0]] == [4, 2, 2] and len(thin.target) == 8
    assert "8 of the 16 published items are used" in thin.task.caveat
    assert thin.task.floor == whole.task.floor  # masks of a part are alike
    for name, target in zip(thin.samples.ids, thin.target, strict=True):
        (there,) = np.flatnonzero(whole.samples.ids == name)
        assert np.array_equal(target, whole.target[there])
    # Both dates count: 6 items of two images are more than 8 images.
    assert [len(rows) for rows in task_of(source, "flood_s1").folds[0]] == [1, 1, 1]


def test_masks_that_cannot_be_are_refused(everything: Path, tmp_path: Path) -> None:
    root = some(everything, tmp_path, "copernicus_bench")
    folder = root / "copernicus_bench" / "dfc2020_s1s2" / "dfc"
    path = folder / "ROIs0000_test_dfc_0_p7.tif"  # the last test item
    place = {"crs": "EPSG:32634", "transform": rasterio.transform.from_origin(0, 0, 10, 10)}
    layouts.write_tif(path, np.ones((1, 38, 37), np.int32), **place)
    with pytest.raises(ValueError, match=r"p7.tif: its mask is .38, 37. px and it is .38, 38.;"):
        open_folder(root).tasks("s1")
    layouts.write_tif(path, np.zeros((1, 38, 38), np.int32), **place)
    found = task_of(open_folder(root), "dfc2020_s1")
    assert [len(rows) for rows in found.folds[0]] == [3, 2, 1]  # nothing is known of the last
    path.unlink()
    with pytest.raises(ValueError, match=r"p7.tif: cannot be read .*fetch it again") as error:
        open_folder(root).tasks("s1")
    one_line(error)
    for i in (6, 7):
        savanna = np.full((1, 38, 38), 3, np.int32)
        layouts.write_tif(folder / f"ROIs0000_test_dfc_0_p{i}.tif", savanna, **place)
    with pytest.raises(ValueError, match="dfc2020_s1 has no labelled pixel in its test part"):
        open_folder(root).tasks("s1")


# Local climate zones.


def test_local_climate_zones(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="torchgeo reads LCZ-S2 by h5py")
    layouts.lcz(tmp_path / "copernicus_bench")
    source = open_folder(tmp_path)
    found = task_of(source, "lcz_s2")
    assert found.samples.pixels.shape == (18, 10, 32, 32) and found.task.floor == 1 / 3
    assert [b.name for b in found.samples.bands] == [
        "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12",
    ]  # fmt: skip
    values = found.samples.pixels.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(
        values, 0.055 + 0.02 * np.arange(10), atol=1e-3
    )  # reflectance as it is
    assert found.target.tolist() == [0, 0, 1, 1, 2, 2] * 3 and not found.task.clustered
    assert source.caveats == ()  # nothing is pretrained here
    layouts.ssl4eo_l(tmp_path / "ssl4eo_l")
    (caveat,) = open_folder(tmp_path).caveats
    assert "Where the items of lcz_s2 lie is not known" in caveat


def test_local_climate_zones_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tasks, "find_spec", lambda name: None if name == "h5py" else find_spec(name)
    )
    (tmp_path / "copernicus_bench").mkdir()
    (tmp_path / "copernicus_bench" / "lcz_train.h5").touch()
    source = open_folder(tmp_path)
    assert source.tasks("s2") == []
    ((name, kind),) = source.unsupported("s2")
    assert name == "lcz_s2" and "h5py" in kind


# All together.


def test_a_mix_of_all_five(source: Torchgeo) -> None:
    data = MixDataModule(source, Mix.equal(SENSORS_OF_ALL), unique=20, seen=20, batch=10)
    data.setup()
    assert data.batches is not None
    batch = data.batches.batch(0)
    assert sorted(part.sensor for part in batch.parts) == sorted(SENSORS_OF_ALL)
    for part in batch.parts:
        assert torch.isfinite(part.pixels).all() and part.pixels.abs().mean() < 3


# Real pixels.


def test_a_real_patch_of_ssl4eo(tmp_path: Path) -> None:
    chip = REAL / "copernicus_fm_asset" / "sentinel2" / "S2L1C_T60HWB_20201002.tif"
    if not chip.exists():
        pytest.skip("real pixels are not here")
    with rasterio.open(chip) as file:
        numbers, place = file.read(), {"crs": file.crs, "transform": file.transform}
        names = [band.name for band in S2.bands]
    folder = tmp_path / "ssl4eo_s12" / "s2c" / "0000000" / "20201002T222549_20201002T222545_T60HWB"
    for name, band in zip(layouts.S2C_SIDES, numbers, strict=True):
        layouts.write_tif(folder / f"{name}.tif", band[None], **place)
    tiles = read(open_folder(tmp_path), "s2")
    values = dict(zip(names, tiles.pixels.mean(axis=(0, 2, 3)), strict=True))
    assert min(values, key=lambda name: values[name]) == "B10" and 0 < values["B04"] < 0.4
    np.testing.assert_allclose(tiles.pixels[0], numbers[:, :32, :32] * 1e-4, rtol=1e-5)


def test_real_quarter_quads(tmp_path: Path) -> None:
    native = sorted((REAL / "stactools_naip" / "naip" / "native").glob("NAIP_m_*.tif"))
    if not native:
        pytest.skip("real pixels are not here")
    (tmp_path / "naip").mkdir()
    for path in native:
        shutil.copy(path, tmp_path / "naip" / path.name.removeprefix("NAIP_"))
    pool = open_folder(tmp_path).pretraining("naip", 32)
    (block,) = pool.blocks  # both have pixels of 0.6 m, in zones 11 and 16
    tiles = block.read(np.arange(len(block)))
    assert block.kind.gsd_m == 0.6 and len(tiles) > 50
    assert tiles.dates is not None and set(tiles.dates) == {"2020-04-15", "2020-09-02"}
    assert tiles.lonlat is not None
    assert set(np.round(tiles.lonlat[:, 1]).astype(int).tolist()) == {33, 43}
    assert 20 < tiles.pixels.mean() < 235
