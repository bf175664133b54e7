"""The local source on small generated folders, and on real pixels where they are present."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from rasterio.warp import transform as reproject

from gfmsum.catalog import CATALOG
from gfmsum.config import LocalConfig
from gfmsum.data import files
from gfmsum.data.index import EXAMPLE, SCHEMA_HELP, _Entry
from gfmsum.data.local import Local, problems
from gfmsum.data.sample import UNLABELLED, Labelled, Samples
from gfmsum.probe.views import common, matched
from gfmsum.sensors import SENSORS, Band, Sensor, Unit

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "realdata"
DEGREE_M = math.radians(files.EARTH_RADIUS_M)

type Numbers = NDArray[Any]


# Small folders.


def write_scene(
    path: Path,
    numbers: Numbers,
    names: tuple[str, ...] = (),
    placed: bool = True,
    gsd_m: float = 10,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    c, h, w = numbers.shape
    place: dict[str, Any] = {}
    if placed:
        place = {"transform": from_origin(300_000, 4_000_000, gsd_m, gsd_m), "crs": "EPSG:32612"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        scene = rasterio.open(
            path, "w", driver="GTiff", count=c, height=h, width=w, dtype=numbers.dtype.name, **place
        )  # fmt: skip
    with scene:
        scene.write(numbers)
        for i, name in enumerate(names, 1):
            scene.set_band_description(i, name)


def images(n: int, c: int, side: int, seed: int = 0) -> Numbers:
    """Numbers that are all different from one image to the next, never constant and never zero."""
    return np.random.default_rng(seed).integers(1, 10_000, (n, c, side, side), dtype=np.uint16)


class Folder:
    """A folder with an index that tests fill, spoil and open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index: dict[str, Any] = {"schema": 1, "pretrain": [], "tasks": []}

    def stack(self, path: str, pretrain: dict[str, Any] | None = None, **arrays: Any) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        contents: dict[str, Any] = {key: np.asarray(array) for key, array in arrays.items()}
        np.savez(self.root / path, **contents)
        if pretrain is not None:
            self.pretrain(path, "stack", **pretrain)

    def pretrain(self, path: str, layout: str, **fields: Any) -> None:
        base = {
            "id": path, "sensor": "s2", "path": path, "layout": layout, "bands": ["B03", "B08"],
            "unit": "reflectance", "scale": 1e-4, "offset": 0, "nodata": None, "gsd_m": 10,
        }  # fmt: skip
        self.index["pretrain"].append(base | fields)

    def task(self, path: str, **fields: Any) -> None:
        base = {
            "name": "land", "sensor": "s2", "kind": "classification", "path": path,
            "bands": ["B03", "B08"], "unit": "reflectance", "scale": 1e-4, "offset": 0,
            "images": "images", "target": "labels", "classes": "class_names",
            "split": {"by": "array", "key": "split"}, "metric": "accuracy", "cluster": None,
        }  # fmt: skip
        self.index["tasks"].append(base | fields)

    def open(self) -> Local:
        (self.root / "index.json").write_text(json.dumps(self.index))
        return Local(LocalConfig(str(self.root)))

    def labelled(self) -> Labelled:
        """The items of the only task."""
        source = self.open()
        (task,) = source.tasks("s2")
        return source.labelled(task, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def two_files(folder: Folder) -> Folder:
    """A scene of 2 x 3 tiles of 8 px with remainders, and a stack of five images, one tile each."""
    numbers = images(1, 2, 32)[0, :, :20, :27]
    write_scene(folder.root / "a" / "scene.tif", numbers, ("B03", "B08"))
    folder.pretrain("a/scene.tif", "scene")
    folder.stack("stack.npz", {}, images=images(5, 2, 11, seed=1))
    return folder


@pytest.fixture
def task_folder(folder: Folder) -> Folder:
    """Ten rows of which the filter keeps eight: classes 1 and 3 of five, split 4/2/2."""
    folder.stack(
        "task.npz",
        images=images(10, 2, 9),
        labels=[1, 1, 3, 1, 3, 3, 3, 1, 0, 4],
        class_names=["water", "wood", "town", "field", "rock"],
        split=["train"] * 4 + ["val"] * 2 + ["test"] * 2 + ["train", "test"],
        event=["a", "a", "b", "", "", "c", "c", "c", "d", "d"],
        purity=[1.0] * 9 + [0.2],
        count=np.arange(10) * 1.5,
    )
    folder.task("task.npz", keep={"labels": {"min": 1}, "purity": {"min": 0.6}}, cluster="event")
    return folder


def seen(source: Local, size_px: int, sensor: str = "s2") -> list[Samples]:
    """All that pretraining may see, block by block."""
    blocks = source.pretraining(sensor, size_px).blocks
    return [block.read(np.arange(len(block))) for block in blocks]


def ids(parts: list[Samples]) -> list[str]:
    return [str(name) for part in parts for name in part.ids]


# Tiles and values.


def test_tiles_are_row_major_and_drop_the_remainder(two_files: Folder) -> None:
    source = two_files.open()
    scene = [f"a/scene.tif#0,{row},{col}" for row in (0, 8) for col in (0, 8, 16)]
    stack = [f"stack.npz#{i},0,0" for i in range(5)]
    assert len(source.pretraining("s2", 8)) == 11
    assert ids(seen(source, 8)) == scene + stack
    assert len(source.pretraining("s2", 12)) == 2  # the stack's images are too small


def test_tiles_hold_the_numbers_of_their_place(two_files: Folder) -> None:
    with rasterio.open(two_files.root / "a/scene.tif") as scene:
        files = {"a/scene.tif": scene.read()[None]}
    with np.load(two_files.root / "stack.npz") as arrays:
        files["stack.npz"] = arrays["images"]
    (part,) = seen(two_files.open(), 8)
    for name, pixels in zip(part.ids, part.pixels, strict=True):
        path, place = str(name).split("#")
        i, row, col = map(int, place.split(","))
        want = files[path][i, :, row : row + 8, col : col + 8] * 1e-4
        np.testing.assert_allclose(pixels, want, rtol=1e-6)
    assert part.pixels.dtype == np.float32


def test_a_value_is_number_times_scale_plus_offset_in_the_declared_unit(folder: Folder) -> None:
    numbers = np.array([[[[1000, 2000], [3000, 10_000]]]], np.uint16)
    reading = {"sensor": "landsat", "bands": ["B5"], "scale": 2e-5, "offset": -0.1, "gsd_m": 30}
    folder.stack("l8.npz", reading, images=numbers)
    (part,) = seen(folder.open(), 2, "landsat")
    np.testing.assert_allclose(part.pixels[0, 0], [[-0.08, -0.06], [-0.04, 0.1]], atol=1e-7)
    assert part.bands == SENSORS["landsat"].select(["B5"])
    assert part.gsd_m == 30


def test_files_of_other_bands_units_or_pixel_sizes_come_apart(folder: Folder) -> None:
    for i, reading in enumerate(
        [
            {"bands": ["VV"], "unit": "dB", "scale": -1e-3},
            {"bands": ["VV"], "unit": "stretched8", "scale": 1e-2},
            {"bands": ["VV"], "unit": "dB", "scale": -1e-3, "gsd_m": 30},
            {"bands": ["VH"], "unit": "dB", "scale": -1e-3},
            {"bands": ["VV"], "unit": "dB", "scale": -2e-3},
            {"bands": ["VV"], "unit": "dB", "scale": -1e-3, "gsd_m": 5},
        ]
    ):
        folder.stack(f"{i}.npz", {"sensor": "s1", **reading}, images=images(2, 1, 8, seed=i))
    parts = seen(folder.open(), 8, "s1")
    assert [[name[0] for name in part.ids] for part in parts] == [
        ["0", "0", "4", "4"], ["1", "1"], ["2", "2"], ["3", "3"], ["5", "5"],
    ]  # fmt: skip
    assert [(part.bands[0].unit, part.bands[0].gsd_m, part.gsd_m) for part in parts] == [
        ("dB", 10, 10), ("stretched8", 10, 10), ("dB", 30, 30), ("dB", 10, 10),
        ("dB", 10, 5),  # a finer grid adds no detail to the band
    ]  # fmt: skip


def test_nodata_in_any_band_infinities_and_fill_drop_a_tile(folder: Folder) -> None:
    numbers = images(7, 2, 4).astype(np.float32)
    numbers[1, 1, 3, 3] = -9  # nodata in one band
    numbers[2, 0, 0, 0] = np.nan
    numbers[3, 1, 2] = [np.inf, -np.inf, np.nan, 0]
    numbers[4] = 5  # constant in both bands
    numbers[5, 0] = 5  # constant in one band only: kept
    numbers[6, :] = np.array([3, 4])[:, None, None]  # constant in each band
    folder.stack("x.npz", {"nodata": -9}, images=numbers)
    assert ids(seen(folder.open(), 4)) == ["x.npz#0,0,0", "x.npz#5,0,0"]


def test_only_allowed_rows_are_seen(folder: Folder) -> None:
    rows = {"split": ["train"], "year": [2018, 2020]}
    arrays = {"split": ["train", "test", "train", "train"], "year": [2018, 2018, 2019, 2020]}
    folder.stack("x.npz", {"rows": rows}, images=images(4, 2, 4), **arrays)
    assert ids(seen(folder.open(), 4)) == ["x.npz#0,0,0", "x.npz#3,0,0"]


# Rows of the pool.


def mix(folder: Folder) -> Local:
    """A scene, a stack of the same kind, and one of another kind between them."""
    write_scene(folder.root / "a" / "scene.tif", images(1, 2, 20)[0])
    folder.pretrain("a/scene.tif", "scene", date="2020-07-15")
    folder.stack("other.npz", {"bands": ["B04", "B08"]}, images=images(3, 2, 8, seed=1))
    days = [f"2021-01-{day:02}" for day in range(1, 6)]
    at = [(9, day) for day in range(5)]
    folder.stack("stack.npz", {}, images=images(5, 2, 11, seed=2), lonlat=at, dates=days)
    return folder.open()


@pytest.fixture
def mixed(folder: Folder) -> Local:
    return mix(folder)


def test_a_pool_is_one_block_per_kind_laid_end_to_end(mixed: Local) -> None:
    pool = mixed.pretraining("s2", 8)
    assert pool.starts == [0, 9, 12]
    assert [[band.name for band in block.kind.bands] for block in pool.blocks] == [
        ["B03", "B08"], ["B04", "B08"],
    ]  # fmt: skip
    for block in pool.blocks:
        assert block.read(np.arange(2)).kind == block.kind
        assert not block.quick
    assert pool.limit is None


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(0, 8), max_size=20))
def test_samples_come_in_the_order_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int]
) -> None:
    source = mix(Folder(tmp_path_factory.mktemp("rows")))
    block = source.pretraining("s2", 8).blocks[0]
    whole, some = block.read(np.arange(9)), block.read(np.array(rows, np.int64))
    assert some.ids.tolist() == whole.ids[rows].tolist()
    assert some.kind == whole.kind
    np.testing.assert_array_equal(some.pixels, whole.pixels[rows])
    np.testing.assert_array_equal(some.lonlat, whole.lonlat[rows])  # type: ignore[index, arg-type]
    assert some.dates.tolist() == whole.dates[rows].tolist()  # type: ignore[union-attr, index]


def test_dates_come_from_the_index_or_the_file(mixed: Local) -> None:
    known, unknown = seen(mixed, 8)
    assert known.dates is not None
    assert known.dates.tolist() == ["2020-07-15"] * 4 + [f"2021-01-0{day}" for day in range(1, 6)]
    assert unknown.dates is None
    assert unknown.lonlat is None


def test_places_and_dates_that_only_some_files_tell_are_not_made_up(folder: Folder) -> None:
    for i, told in enumerate([{}, {"dates": ["2021-01-01"]}, {"lonlat": [(1, 2)]}]):
        folder.stack(f"{i}.npz", {}, images=images(1, 2, 4, seed=i), **told)  # type: ignore[arg-type]
    (part,) = seen(folder.open(), 4)
    assert part.dates is not None
    assert part.dates.tolist() == ["", "2021-01-01", ""]
    np.testing.assert_array_equal(part.lonlat, [(np.nan,) * 2, (np.nan,) * 2, (1, 2)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dates", "fine"),
    [
        (np.array(["2020-02-29", "2021-12-31"], "datetime64[ns]"), True),
        (["2020-02-29", "2021-12-31"], True),
        (["2021-02-29", "2021-12-31"], False),
        (["2020-02", "2021-12"], False),
        (["", "2021-12-31"], False),
        (np.array(["2020-02-29", "NaT"], "datetime64[D]"), False),
        ([20200229, 20211231], False),
        (np.array([0, 10**8], "datetime64[D]"), False),
        (["2020-02-29"], False),
    ],
)
def test_a_date_is_a_day_or_refused(folder: Folder, dates: Any, fine: bool) -> None:
    folder.stack("x.npz", {}, images=images(2, 2, 4), dates=dates)
    if fine:
        (part,) = seen(folder.open(), 4)
        assert part.dates is not None
        assert part.dates.tolist() == ["2020-02-29", "2021-12-31"]
    else:
        with pytest.raises(ValueError, match=r"x.npz: array 'dates' "):
            seen(folder.open(), 4)


def test_reading_decodes_each_file_once_even_without_memory(
    two_files: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = two_files.open()
    (block,) = source.pretraining("s2", 8).blocks
    folder = source._folder.files
    folder._cache.clear()
    monkeypatch.setattr(files, "CACHE_BYTES", 0)
    opened: list[str] = []
    open_ = folder._open

    def counted(path: str) -> Any:
        opened.append(path)
        return open_(path)

    monkeypatch.setattr(folder, "_open", counted)
    block.read(np.array([0, 10, 3, 7, 5, 1]))  # back and forth between the two files
    assert sorted(opened) == ["a/scene.tif", "stack.npz"]
    assert list(folder._cache) == [("stack.npz", "images")]  # memory is bounded: only the last


@pytest.mark.parametrize("pieces", [1, 5_000, 2**25])
def test_a_scene_too_large_for_memory_gives_the_same_samples(
    task_folder: Folder, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    numbers = images(1, 2, 70, seed=3)[0]
    numbers[0, 33, 12] = 0
    write_scene(task_folder.root / "s.tif", numbers)
    task_folder.pretrain("s.tif", "scene", nodata=0)
    task_folder.pretrain("task.npz", "stack")
    whole = seen(task_folder.open(), 8)
    assert sum(map(len, whole)) == 63 + 5
    monkeypatch.setattr(files, "CACHE_BYTES", 0)
    monkeypatch.setattr(files, "PIECE_BYTES", pieces)
    for small, large in zip(seen(task_folder.open(), 8), whole, strict=True):
        assert small.ids.tolist() == large.ids.tolist()
        np.testing.assert_array_equal(small.pixels, large.pixels)


def test_each_sensor_has_its_own_places_which_change_with_what_makes_them(folder: Folder) -> None:
    folder.stack("x.npz", {}, images=images(3, 2, 4))
    folder.stack("y.npz", {"sensor": "landsat", "bands": ["B3", "B5"]}, images=images(3, 2, 4))
    source = folder.open()
    first = source.places("s2")
    assert first == folder.open().places("s2") == source.pretraining("s2", 4).places
    assert first != source.places("landsat")
    assert str(folder.root) not in first
    assert first != Local(LocalConfig(str(folder.root), leakage_km=1)).places("s2")
    folder.stack("x.npz", images=images(4, 2, 4))
    assert first != folder.open().places("s2")
    assert source.places("landsat") != folder.open().places("landsat")


# What pretraining must not see.


def test_val_and_test_rows_are_left_out_though_the_index_allows_them(task_folder: Folder) -> None:
    task_folder.pretrain("task.npz", "stack")
    # Rows 4 to 7 are val and test; row 9 is test, and stays out though the filter drops it.
    assert ids(seen(task_folder.open(), 9)) == [f"task.npz#{i},0,0" for i in (0, 1, 2, 3, 8)]


def test_a_path_spelt_in_another_way_is_the_same_file(task_folder: Folder) -> None:
    task_folder.pretrain(".//task.npz", "stack")
    source = task_folder.open()
    assert ids(seen(source, 9)) == [f"task.npz#{i},0,0" for i in (0, 1, 2, 3, 8)]
    assert list(source.identity["files"]) == ["task.npz"]


def test_rows_of_a_task_without_a_probe_are_left_out_too(task_folder: Folder) -> None:
    task_folder.pretrain("task.npz", "stack")
    (task,) = task_folder.index["tasks"]
    task |= {"kind": "detection", "metric": "ap50"}
    source = task_folder.open()
    assert len(source.pretraining("s2", 9)) == 5
    assert source.tasks("s2") == []
    assert source.unsupported("s2") == [("land", "detection")]
    assert source.unsupported("s1") == []


@pytest.mark.parametrize("size_px", [4, 5, 8, 16])
def test_tiles_that_overlap_a_held_window_are_left_out(folder: Folder, size_px: int) -> None:
    write_scene(folder.root / "s.tif", images(1, 2, 40)[0])
    folder.pretrain("s.tif", "scene")
    corners = np.array([(0, 0), (8, 8), (21, 3), (30, 32)])
    folder.stack(
        "w.npz", rowcol=corners, labels=[0, 1, 0, 1], split=["train", "val", "test", "test"]
    )
    folder.task("w.npz", scene="s.tif", windows="rowcol", patch_px=8, classes=["x", "y"], floor=0)
    pixels_held = np.zeros((40, 40), bool)
    for row, col in corners[1:]:
        pixels_held[row : row + 8, col : col + 8] = True
    want = [
        f"s.tif#0,{row},{col}"
        for row in range(0, 40 - size_px + 1, size_px)
        for col in range(0, 40 - size_px + 1, size_px)
        if not pixels_held[row : row + size_px, col : col + size_px].any()
    ]
    source = folder.open()
    assert ids(seen(source, size_px)) == want
    # The windows are also ground: another sensor's image around the test window is left out.
    (lon, lat) = source.labelled(source.tasks("s2")[0], 8).samples.lonlat[2]  # type: ignore[index]
    away = 2 * 100 / DEGREE_M
    other = {"sensor": "landsat", "bands": ["B3", "B5"]}
    folder.stack("o.npz", other, images=images(2, 2, 4), lonlat=[(lon, lat), (lon, lat - away)])
    assert ids(seen(folder.open(), 4, "landsat")) == ["o.npz#1,0,0"]


def test_images_whose_footprint_may_meet_a_held_one_are_left_out(folder: Folder) -> None:
    # 8 px of 10 m: circles around two such squares meet below 80 * sqrt(2) = 113.1 m.
    metres = np.array([0, 110, 116, 5_000])
    at = np.stack([metres / DEGREE_M, np.zeros(4)], axis=1)
    folder.stack("x.npz", {}, images=images(4, 2, 8), lonlat=at)
    folder.stack(
        "t.npz", images=images(3, 2, 8, seed=1), labels=[0, 1, 0], split=["test", "train", "val"],
        lonlat=[(0, 0), (5_000 / DEGREE_M, 0), (9, 9)],
    )  # fmt: skip
    folder.task("t.npz", classes=["x", "y"], floor=0)
    source = folder.open()
    # The last one lies on a training item, which is no reason to leave it out.
    assert ids(seen(source, 8)) == ["x.npz#2,0,0", "x.npz#3,0,0"]
    # A smaller tile is somewhere in the image, so the image's footprint counts.
    assert len(source.pretraining("s2", 4)) == 8
    (part,) = seen(source, 8)
    assert part.lonlat is not None
    np.testing.assert_array_equal(part.lonlat, at[2:])


def test_a_training_row_on_the_ground_of_a_test_row_of_its_own_file_is_left_out(
    folder: Folder,
) -> None:
    places: dict[str, Any] = {"lonlat": [(0, 0), (40 / DEGREE_M, 0), (1, 0), (2, 0)]}
    arrays = {"labels": [0, 1, 0, 1], "split": ["test", "train", "val", "train"], **places}
    folder.stack("t.npz", {}, images=images(4, 2, 8), **arrays)
    folder.task("t.npz", classes=["x", "y"], floor=0)
    assert ids(seen(folder.open(), 8)) == ["t.npz#3,0,0"]


def test_places_in_a_scene_are_centres_of_tiles_and_windows(folder: Folder) -> None:
    write_scene(folder.root / "s.tif", images(1, 2, 24)[0])
    folder.pretrain("s.tif", "scene")
    corners, split = [(0, 0), (3, 5), (9, 9)], ["train", "val", "test"]
    folder.stack("w.npz", rowcol=corners, labels=[0, 1, 0], split=split)
    folder.task("w.npz", scene="s.tif", windows="rowcol", patch_px=4, classes=["x", "y"], floor=0)

    def metres(samples: Samples) -> Numbers:
        """East and south of the scene's corner."""
        assert samples.lonlat is not None
        east, north = reproject("EPSG:4326", "EPSG:32612", *samples.lonlat.T)
        return np.stack([np.array(east) - 300_000, 4_000_000 - np.array(north)], axis=1)

    (part,) = seen(folder.open(), 8)
    assert ids([part])[-1] == "s.tif#0,16,16"
    np.testing.assert_allclose(metres(part)[-1], [200, 200], atol=0.01)
    want = [[20, 20], [70, 50], [110, 110]]
    np.testing.assert_allclose(metres(folder.labelled().samples), want, atol=0.01)


def test_a_scene_without_a_place_gives_tiles_without_one(folder: Folder) -> None:
    write_scene(folder.root / "s.tif", images(1, 2, 16)[0], placed=False)
    folder.pretrain("s.tif", "scene")
    (part,) = seen(folder.open(), 8)
    assert len(part) == 4
    assert part.lonlat is None


def test_scene_tiles_on_held_ground_are_left_out(folder: Folder) -> None:
    write_scene(folder.root / "s.tif", images(1, 2, 80)[0])
    folder.pretrain("s.tif", "scene")
    ground = {part.ids[i]: part.lonlat[i] for part in seen(folder.open(), 8) for i in range(100)}  # type: ignore[index]
    lon, lat = ground["s.tif#0,32,40"]
    folder.stack(
        "t.npz", images=images(3, 2, 8), labels=[0, 1, 0], split=["test", "train", "val"],
        lonlat=[(lon, lat), (0, 0), (0, 0)],
    )  # fmt: skip
    folder.task("t.npz", classes=["x", "y"], floor=0)
    gone = set(ground) - set(ids(seen(folder.open(), 8)))
    # Tiles are 80 m apart, circles meet below 113.1 m: the tile and its four neighbours, while
    # the corners' centres are just as far as that; the scale of UTM decides those.
    cross = {f"s.tif#0,{32 + r},{40 + c}" for r, c in [(0, 0), (8, 0), (-8, 0), (0, 8), (0, -8)]}
    corners = {f"s.tif#0,{32 + r},{40 + c}" for r in (8, -8) for c in (8, -8)}
    assert cross <= gone <= cross | corners


@settings(max_examples=200)
@given(
    lon=st.floats(-180, 180), lat=st.floats(-70, 70), side=st.floats(100, 20_000),
    other=st.floats(100, 20_000), turn=st.floats(0, math.pi), other_turn=st.floats(0, math.pi),
    distance=st.floats(0, 1.2), bearing=st.floats(0, 2 * math.pi),
)  # fmt: skip
def test_no_overlap_of_two_squares_is_missed_whatever_way_they_are_turned(
    lon: float, lat: float, side: float, other: float, turn: float, other_turn: float,
    distance: float, bearing: float,
) -> None:  # fmt: skip
    def square(x: float, y: float, side: float, turn: float) -> Numbers:
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * side / 2
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        return np.asarray(corners @ rotation.T + (x, y))

    far = distance * (side + other)
    x, y = far * math.cos(bearing), far * math.sin(bearing)
    squares = square(0, 0, side, turn), square(x, y, other, other_turn)
    # Separating axes: two convex shapes are apart iff some side's normal shows a gap, here 1 %.
    overlap = True
    for angle in (turn, turn + math.pi / 2, other_turn, other_turn + math.pi / 2):
        a, b = (corners @ (math.cos(angle), math.sin(angle)) for corners in squares)
        overlap &= bool(min(a.max(), b.max()) - max(a.min(), b.min()) > 0.01 * (side + other))
    shifted = (lon + x / DEGREE_M / math.cos(math.radians(lat)), lat + y / DEGREE_M)
    here = files.Ground(np.array([(lon, lat)]), side)
    there = files.Ground(np.array([shifted]), other)
    assert here.meets(there)[0] or not overlap
    assert not here.meets(files.Ground(np.array([(lon, lat - 1.5)]), other))[0]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32), n=st.integers(0, 40), m=st.integers(0, 40),
    side=st.floats(1, 50_000), other=st.floats(1, 50_000), margin=st.sampled_from([0, 1, 1e3, 1e5, 9e5]),
    spread=st.sampled_from([1e-5, 1e-2, 1, 20]), middle=st.tuples(st.floats(-180, 180), st.floats(-89, 89)),
)  # fmt: skip
def test_near_ground_is_what_all_great_circle_distances_say(
    seed: int, n: int, m: int, side: float, other: float, margin: float, spread: float,
    middle: tuple[float, float],
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    here, there = (
        np.clip(middle + rng.normal(0, spread, (count, 2)), (-360, -90), (360, 90))
        for count in (n, m)
    )
    # Haversine's formula, all pairs.
    lon, lat = np.deg2rad(here).T[:, :, None]
    far_lon, far_lat = np.deg2rad(there).T[:, None]
    chord = (
        np.sin((lat - far_lat) / 2) ** 2
        + np.cos(lat) * np.cos(far_lat) * np.sin((lon - far_lon) / 2) ** 2
    )
    metres = 2 * files.EARTH_RADIUS_M * np.arcsin(np.minimum(1, np.sqrt(chord)))
    reach = (side + other) / math.sqrt(2) + margin
    nearest = metres.min(axis=1, initial=np.inf)
    got = files.Ground(here, side).meets(files.Ground(there, other), margin)
    clear = np.abs(nearest - reach) > 1e-3  # rounding decides the rest
    np.testing.assert_array_equal(got[clear], (nearest < reach)[clear])


def test_a_million_places_are_compared_without_listing_all_pairs() -> None:
    rng = np.random.default_rng(0)  # a table of all pairs would take 80 GB
    places = files.Ground(rng.uniform((-180, -60), (180, 60), (10**6, 2)), 100)
    held = files.Ground(places.lonlat[:10_000] + np.array([0.001, 0]), 100)
    near = places.meets(held, 1000)
    assert near[:10_000].all()
    assert near.sum() < 20_000


@pytest.mark.parametrize(
    ("leakage_km", "kept"), [(0, [2, 3]), (0.003, [2, 3]), (0.006, [3]), (9, [])]
)
def test_images_near_a_held_one_are_left_out(
    folder: Folder, leakage_km: float, kept: list[int]
) -> None:
    # 8 px of 10 m: circles around two such squares meet below 113.1 m, so 118 m are 4.9 m apart.
    metres = np.array([0, 110, 118, 5_000])
    at = np.stack([metres / DEGREE_M, np.zeros(4)], axis=1)
    folder.stack("x.npz", {}, images=images(4, 2, 8), lonlat=at)
    folder.stack(
        "t.npz", images=images(3, 2, 8, seed=1), labels=[0, 1, 0], split=["test", "train", "val"],
        lonlat=[(0, 0), (5_000 / DEGREE_M, 0), (9, 9)],
    )  # fmt: skip
    folder.task("t.npz", classes=["x", "y"], floor=0)
    folder.open()
    source = Local(LocalConfig(str(folder.root), leakage_km=leakage_km))
    assert ids(seen(source, 8)) == [f"x.npz#{i},0,0" for i in kept]
    assert ("leakage_km" in source.identity) == (leakage_km > 0)


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize(("leakage_km", "margin"), [(0, 0), (0.0299, 3), (0.04, 4), (0.3, 30)])
def test_tiles_near_a_held_window_of_their_scene_are_left_out_to_the_pixel(
    folder: Folder, placed: bool, leakage_km: float, margin: int
) -> None:
    write_scene(folder.root / "s.tif", images(1, 2, 64)[0], placed=placed)
    folder.pretrain("s.tif", "scene")
    corners = np.array([(0, 0), (20, 9), (41, 60)])
    folder.stack("w.npz", rowcol=corners, labels=[0, 1, 0], split=["train", "val", "test"])
    folder.task("w.npz", scene="s.tif", windows="rowcol", patch_px=4, classes=["x", "y"], floor=0)
    held = np.zeros((64, 64), bool)
    for row, col in corners[1:]:
        held[max(0, row - margin) : row + 4 + margin, max(0, col - margin) : col + 4 + margin] = (
            True
        )
    want = [
        f"s.tif#0,{row},{col}"
        for row in range(0, 64, 4)
        for col in range(0, 64, 4)
        if not held[row : row + 4, col : col + 4].any()
    ]
    folder.open()
    assert ids(seen(Local(LocalConfig(str(folder.root), leakage_km=leakage_km)), 4)) == want


def test_a_pixel_size_that_contradicts_the_place_is_refused(folder: Folder) -> None:
    write_scene(folder.root / "s.tif", images(1, 2, 16)[0], gsd_m=30)
    folder.pretrain("s.tif", "scene")
    with pytest.raises(
        ValueError, match=r"s.tif: pixels are 29.93 x 30.06 m on the ground.*gsd_m=10"
    ):
        seen(folder.open(), 8)
    folder.index["pretrain"][0]["gsd_m"] = 30
    assert len(seen(folder.open(), 8)[0]) == 4


def test_ground_of_one_corpus_is_not_given_twice(folder: Folder) -> None:
    at = [(0, 0), (1, 1)]
    for path, corpus in (("a", "x"), ("b", "x"), ("c", "y")):
        folder.stack(f"{path}.npz", {"id": corpus}, images=images(2, 2, 8), lonlat=at)
    assert {name[0] for name in ids(seen(folder.open(), 8))} == {"a", "c"}


# Tasks.


def test_filtered_classes_are_renumbered_and_keep_their_names(task_folder: Folder) -> None:
    items = task_folder.labelled()
    assert items.task.classes == ("wood", "field")
    assert items.target.tolist() == [0, 0, 1, 0, 1, 1, 1, 0]
    assert items.target.dtype == np.int64
    assert [part.tolist() for part in items.folds[0]] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert [str(name) for name in items.samples.ids] == [f"task.npz#{row}" for row in range(8)]


def test_keep_in_chooses_labels(task_folder: Folder) -> None:
    task_folder.index["tasks"][0]["keep"] = {"labels": {"in": [1, 3]}, "count": {"max": 10.5}}
    assert task_folder.labelled().target.tolist() == [0, 0, 1, 0, 1, 1, 1, 0]


def test_tasks_that_are_a_pair_call_a_place_alike(task_folder: Folder) -> None:
    task_folder.stack(
        "radar.npz", images=images(10, 1, 9), labels=[1, 0] * 5, class_names=["dry", "wet"],
        split=["train"] * 4 + ["val"] * 2 + ["test"] * 4,
    )  # fmt: skip
    (land,) = task_folder.index["tasks"]
    task_folder.task(
        "radar.npz", name="wet", sensor="s1", bands=["VV"], unit="stretched8", scale=0.02,
        pairs_with="land",
    )  # fmt: skip
    for wrong in (None, "wet2", "land"):
        land["pairs_with"] = wrong
        with pytest.raises(
            ValueError, match="must be a task of another sensor that names this one"
        ):
            task_folder.open()
    land["pairs_with"] = "wet"
    source = task_folder.open()
    shown, seen = (source.labelled(source.tasks(name)[0], 8) for name in ("s2", "s1"))
    assert shown.samples.ids.tolist() == [f"land+wet#{row}" for row in range(8)]  # two are filtered
    assert seen.samples.ids.tolist() == [f"land+wet#{row}" for row in range(10)]
    few, others = matched(seen, shown.samples)
    assert few.target.tolist() == [1, 0] * 4 and others.ids.tolist() == few.samples.ids.tolist()


def test_floors_come_from_labels_alone(task_folder: Folder) -> None:
    (entry,) = task_folder.index["tasks"]

    def floor(**fields: Any) -> float:
        task_folder.index["tasks"] = [entry | fields]
        return task_folder.open().tasks("s2")[0].floor

    assert floor() == 0.5  # trained on wood wood field wood, tested on field wood
    assert floor(metric="balanced_accuracy") == 0.5
    assert floor(metric="balanced_accuracy", keep={}) == 0.25  # 0, 1, 3 and 4 occur
    assert floor(kind="regression", metric="r2", target="count", keep={}) == 0
    assert floor(floor=0.3) == 0.3
    assert task_folder.open().tasks("s2")[0].ceiling == 1
    task_folder.index["tasks"] = [entry | {"ceiling": 0.9, "caveat": "small"}]
    task = task_folder.open().tasks("s2")[0]
    assert (task.ceiling, task.caveat) == (0.9, "small")
    arrays(labels=[1, 1, 3, 1, 3, 3, 3, 3, 0, 4])(task_folder)
    assert floor() == 0  # trained mostly on wood, tested on fields alone


def test_regression_keeps_values(task_folder: Folder) -> None:
    task_folder.index["tasks"][0] |= {"kind": "regression", "metric": "r2", "target": "count"}
    items = task_folder.labelled()
    assert items.target.dtype == np.float64
    np.testing.assert_array_equal(items.target, np.arange(1, 9) * 1.5 - 1.5)
    assert items.task.classes == ()


def test_folds_are_stratified_and_each_takes_its_turn(folder: Folder) -> None:
    labels = [0] * 12 + [1] * 8
    folder.stack("t.npz", images=images(20, 2, 8), labels=labels)
    folder.pretrain("t.npz", "stack")
    folder.stack("other.npz", {}, images=images(1, 2, 8, seed=1))
    split = {"by": "kfold", "k": 4, "stratified": True}
    folder.task("t.npz", split=split, classes=["x", "y"], n={"all": 20})
    items = folder.labelled()
    assert len(items.folds) == 4
    for i, (train, val, test) in enumerate(items.folds):
        assert sorted([*train, *val, *test]) == list(range(20))
        assert np.bincount(items.target[test]).tolist() == [3, 2]
        assert val.tolist() == items.folds[(i + 1) % 4][2].tolist()
        assert np.array_equal(test, folder.labelled().folds[i][2])
    assert items.task.floor == pytest.approx(0.6)
    # Golden: other folds would be another task under the same name.
    assert folder.labelled().folds[0][2].tolist() == [4, 6, 10, 16, 19]
    # Every row is a test item once.
    assert ids(seen(folder.open(), 8)) == ["other.npz#0,0,0"]


def clusters(items: Labelled) -> list[str]:
    return [str(name).removeprefix("task.npz@").removeprefix("w.npz@") for name in items.cluster]


def test_clusters_are_the_values_of_an_array_and_an_empty_one_stands_alone(
    task_folder: Folder,
) -> None:
    items = task_folder.labelled()
    assert clusters(items) == ["a", "a", "b", "row 3", "row 4", "c", "c", "c"]
    assert items.task.clustered
    arrays(event=[1.0, 1.0, 2.5, np.nan, np.nan, 3, 3, 3, 4, 4])(task_folder)
    assert clusters(task_folder.labelled()) == ["1.0", "1.0", "2.5", "row 3", "row 4", *["3.0"] * 3]
    task_folder.index["tasks"][0]["cluster"] = None
    items = task_folder.labelled()
    assert len(set(clusters(items))) == 8
    assert not items.task.clustered


def test_windows_of_a_scene_cluster_in_blocks_of_eight_by_eight(folder: Folder) -> None:
    write_scene(folder.root / "s.tif", images(1, 2, 80)[0])
    folder.pretrain("s.tif", "scene")
    corners = [(0, 0), (28, 28), (32, 0), (0, 32), (31, 31), (76, 76)]
    folder.stack(
        "w.npz", rowcol=corners, labels=[0, 1, 0, 1, 0, 1], split=["train", "val", "test"] * 2
    )
    folder.task("w.npz", scene="s.tif", windows="rowcol", patch_px=4, classes=["x", "y"], floor=0)
    items = folder.labelled()
    want = ["block 0,0", "block 0,0", "block 1,0", "block 0,1", "block 0,0", "block 2,2"]
    assert clusters(items) == want
    with rasterio.open(folder.root / "s.tif") as scene:
        numbers = scene.read()
    np.testing.assert_allclose(items.samples.pixels[1], numbers[:, 28:32, 28:32] * 1e-4, rtol=1e-6)


def test_places_cluster_in_blocks_of_eight_footprints() -> None:
    # Blocks of 1000 m; one degree of longitude is half as long at 60 degrees north.
    north = np.array([0.1, 0.9, 1.1]) * 1000 / DEGREE_M
    assert files.Ground(np.stack([[5, 5, 5], north], axis=1), 1).blocks(1000)[:, 0].tolist() == [
        0,
        0,
        1,
    ]
    east = np.array([0.1, 0.9, 1.1]) * 1000 / DEGREE_M
    for latitude, stretch in ((0.0, 1), (60.0, 2)):
        places = np.stack([east * stretch, [latitude] * 3], axis=1)
        assert files.Ground(places, 1).blocks(1000)[:, 1].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("gsd_m", "blocks"), [(10, [0, 0, 1]), (100, [0, 0, 0])])
def test_block_sides_follow_the_footprint_but_not_below_a_kilometre(
    folder: Folder, gsd_m: float, blocks: list[int]
) -> None:
    north = np.array([0.1, 0.9, 1.1]) * 1000 / DEGREE_M
    at = np.stack([[0.001] * 3, north], axis=1)
    arrays: dict[str, Any] = {"labels": [0, 1, 0], "split": ["train", "val", "test"], "lonlat": at}
    folder.stack("task.npz", images=images(3, 2, 8), **arrays)
    folder.task("task.npz", classes=["x", "y"], cluster="lonlat", gsd_m=gsd_m, floor=0)
    assert clusters(folder.labelled()) == [f"block {row},0" for row in blocks]


@pytest.mark.parametrize(("side", "kept", "first"), [(8, 8, 0), (9, 8, 0), (10, 8, 1), (15, 12, 1)])
def test_items_keep_their_size_cropped_to_a_multiple_of_four(
    folder: Folder, side: int, kept: int, first: int
) -> None:
    numbers = images(3, 2, side)
    folder.stack("t.npz", images=numbers, labels=[0, 1, 0], split=["train", "val", "test"])
    folder.task("t.npz", classes=["x", "y"], floor=0)
    want = numbers[:, :, first : first + kept, first : first + kept] * 1e-4
    np.testing.assert_allclose(folder.labelled().samples.pixels, want, rtol=1e-6)


def test_an_item_with_nodata_is_refused_not_filled_in(folder: Folder) -> None:
    numbers = images(3, 2, 8)
    numbers[1, 0, 2, 2] = 0
    arrays: dict[str, Any] = {"labels": [0, 1, 0], "split": ["train", "val", "test"]}
    # The task inherits the pretraining entry's nodata, as it is the same file.
    folder.stack("t.npz", {"nodata": 0}, images=numbers, **arrays)
    folder.task("t.npz", classes=["x", "y"], floor=0)
    with pytest.raises(ValueError, match=r"t.npz: row 1 of task land holds nodata"):
        folder.labelled()


def test_labelled_images_that_contradict_their_unit_are_refused(task_folder: Folder) -> None:
    task_folder.index["tasks"][0]["scale"] = 1e-3  # about 5 on average
    message = (
        r"task.npz: band B03 is \d\.\d+ on average, reflectance must lie in -0.1..1.5; correct"
    )
    with pytest.raises(ValueError, match=message):
        task_folder.labelled()


def test_one_band_of_another_unit_is_found_out(folder: Folder) -> None:
    numbers = images(4, 2, 8)
    numbers[:, 0] = 2 + numbers[:, 0] % 2  # a mask in place of B03
    reading = {"sensor": "naip", "bands": ["R", "G"], "unit": "brightness8", "scale": 1, "gsd_m": 1}
    folder.stack("x.npz", reading, images=numbers)
    message = (
        r"x.npz: band G is \d+ on average, brightness8 must lie in 1..255; correct unit, scale=1 or"
    )
    with pytest.raises(ValueError, match=message):
        folder.open().pretraining("naip", 8)


def test_images_smaller_than_a_patch_are_refused(folder: Folder) -> None:
    folder.stack("t.npz", images=images(3, 2, 3), labels=[0, 1, 0], split=["train", "val", "test"])
    folder.task("t.npz", classes=["x", "y"], floor=0)
    with pytest.raises(ValueError, match=r"t.npz: images are 3x3 px, a task's must be 4 px"):
        folder.labelled()


def test_items_know_their_dates(task_folder: Folder) -> None:
    assert task_folder.labelled().samples.dates is None
    task_folder.index["tasks"][0]["date"] = "2020-07-15"
    assert task_folder.labelled().samples.dates.tolist() == ["2020-07-15"] * 8  # type: ignore[union-attr]
    arrays(dates=[f"2020-01-{day:02}" for day in range(1, 11)])(task_folder)
    found = task_folder.labelled().samples.dates
    assert found is not None
    assert found.tolist() == [f"2020-01-{day:02}" for day in range(1, 9)]


# Tasks with a label for each pixel.

CHANGE = {
    "kind": "change_segmentation", "metric": "mean_iou", "target": "masks", "images_before": "earlier",
    "classes": ["dry", "flooded", "snow"], "ignore": 7,
}  # fmt: skip


@pytest.fixture
def mask_folder(folder: Folder) -> Folder:
    """Four items of 10 x 9 px, split 2/1/1. Of the 8 x 8 px that are kept, four rows of the test item are
    flooded and one is not known; the rim is flooded everywhere."""
    masks = np.zeros((4, 10, 9), np.int16)
    masks[:, [0, 9]] = masks[:, :, 8] = 1
    masks[3, 1:5] = 1
    masks[3, 5] = 7
    folder.stack(
        "task.npz",
        images=images(4, 2, 10)[..., :9],
        earlier=images(4, 2, 10, seed=1)[..., :9],
        masks=masks,
        split=["train", "train", "val", "test"],
        dates=[f"2021-01-0{day}" for day in range(1, 5)],
        lonlat=[(day, 0) for day in range(4)],
    )
    folder.task("task.npz", **CHANGE)
    return folder


def test_masks_are_cropped_as_their_images_are_and_keep_their_labels(mask_folder: Folder) -> None:
    items = mask_folder.labelled()
    want = np.zeros((4, 8, 8), np.uint8)
    want[3, :4], want[3, 4] = 1, UNLABELLED
    np.testing.assert_array_equal(items.target, want)
    assert items.target.dtype == np.uint8
    assert items.task.classes == ("dry", "flooded", "snow")
    with np.load(mask_folder.root / "task.npz") as held:
        kept = held["images"][:, :, 1:9, :8]
    np.testing.assert_allclose(items.samples.pixels, kept * 1e-4, rtol=1e-6)


def test_before_is_the_same_items_earlier(mask_folder: Folder) -> None:
    items = mask_folder.labelled()
    assert items.before is not None
    with np.load(mask_folder.root / "task.npz") as held:
        kept = held["earlier"][:, :, 1:9, :8]
    np.testing.assert_allclose(items.before.pixels, kept * 1e-4, rtol=1e-6)
    assert items.before.kind == items.samples.kind
    assert items.before.ids.tolist() == items.samples.ids.tolist()
    np.testing.assert_array_equal(items.before.lonlat, items.samples.lonlat)  # type: ignore[arg-type]
    assert items.samples.dates is not None
    assert items.before.dates is None  # the dates are those of the images after
    mask_folder.index["tasks"][0]["kind"] = "segmentation"
    assert mask_folder.labelled().before is None


def test_floors_of_masks_come_from_labelled_pixels_alone(mask_folder: Folder) -> None:
    def floor(**fields: Any) -> float:
        mask_folder.index["tasks"][0] |= fields
        return mask_folder.open().tasks("s2")[0].floor

    # Trained on nothing but dry pixels; of the test's 56 labelled ones 24 are dry and 32 flooded.
    assert floor() == pytest.approx(24 / 56 / 2)
    assert floor(metric="iou_positive", classes=["dry", "flooded"]) == pytest.approx(32 / 56)
    assert floor(floor=0.3) == 0.3


def test_floors_of_folds_pool_their_pixels(mask_folder: Folder) -> None:
    masks = np.zeros((4, 10, 9), np.uint8)
    masks[0], masks[3, 1:5] = 1, 1
    arrays(masks=masks)(mask_folder)
    mask_folder.index["tasks"][0] |= {"split": {"by": "kfold", "k": 4}}
    # Every item is tested once: 64 + 32 pixels of 256 are flooded, 160 dry.
    assert mask_folder.labelled().task.floor == pytest.approx(160 / 256 / 2)


def test_a_number_is_no_label_only_if_the_index_says_so(mask_folder: Folder) -> None:
    with np.load(mask_folder.root / "task.npz") as held:
        masks = np.where(held["masks"] == 7, -1, held["masks"])
    for kind in (np.int8, np.int64):
        arrays(masks=masks.astype(kind))(mask_folder)
        mask_folder.index["tasks"][0]["ignore"] = -1
        assert (mask_folder.labelled().target == UNLABELLED).sum() == 8
    mask_folder.index["tasks"][0]["ignore"] = 10**30  # in no file, yet a number
    with pytest.raises(
        ValueError, match=r"row 3 of task land has label -1; labels must be 0 to 2 or"
    ):
        mask_folder.labelled()
    arrays(masks=np.where(masks < 0, 255, masks).astype(np.uint8))(mask_folder)
    del mask_folder.index["tasks"][0]["ignore"]
    with pytest.raises(
        ValueError, match=r"has label 255; labels must be 0 to 2, correct them or set"
    ):
        mask_folder.labelled()
    mask_folder.index["tasks"][0]["ignore"] = 0  # even a class
    arrays(masks=masks + 1)(mask_folder)
    assert (mask_folder.labelled().target == UNLABELLED).sum() == 8


@pytest.fixture
def mapped(folder: Folder) -> Folder:
    """Windows of a scene with a map of labels on the same grid."""
    rng = np.random.default_rng(3)
    write_scene(folder.root / "s.tif", images(1, 2, 40)[0])
    write_scene(folder.root / "map.tif", rng.integers(0, 3, (1, 40, 40), np.uint8))
    folder.pretrain("s.tif", "scene")
    corners, split = [(0, 0), (3, 20), (30, 30)], ["train", "val", "test"]
    folder.stack("w.npz", rowcol=corners, split=split)
    folder.task(
        "w.npz", scene="s.tif", windows="rowcol", patch_px=9, **CHANGE | {"kind": "segmentation"},
        target_raster="map.tif",
    )  # fmt: skip
    return folder


def test_labels_of_windows_come_from_a_map_or_an_array(mapped: Folder) -> None:
    items = mapped.labelled()
    with rasterio.open(mapped.root / "map.tif") as scene:
        numbers = scene.read(1)
    with np.load(mapped.root / "w.npz") as held:
        corners, split = held["rowcol"], held["split"]
    cut = np.stack([numbers[row : row + 9, col : col + 9] for row, col in corners])
    np.testing.assert_array_equal(items.target, cut[:, :8, :8])
    assert "map.tif" in mapped.open().identity["files"]
    del mapped.index["tasks"][0]["target_raster"]
    mapped.stack("w.npz", rowcol=corners, split=split, masks=cut)
    again = mapped.labelled()
    np.testing.assert_array_equal(again.target, items.target)
    np.testing.assert_array_equal(again.samples.pixels, items.samples.pixels)


@pytest.mark.parametrize(
    ("numbers", "gsd_m", "placed", "message"),
    [
        (
            np.zeros((1, 40, 41), np.uint8),
            10,
            True,
            "its grid of 40x41 px is not that of s.tif, 40x40",
        ),
        (np.zeros((1, 40, 40), np.uint8), 9, True, "size, CRS and transform must agree"),
        (np.zeros((1, 40, 40), np.uint8), 10, False, "size, CRS and transform must agree"),
        (
            np.zeros((1, 40, 40), np.float32),
            10,
            True,
            "the raster is float32; labels must be whole",
        ),
        (np.zeros((2, 40, 40), np.uint8), 10, True, "the raster has 2 bands"),
        (
            np.full((1, 40, 40), 3, np.uint8),
            10,
            True,
            "row 0 of task land has label 3; labels must",
        ),
    ],
)
def test_a_map_on_another_grid_or_of_other_numbers_is_refused(
    mapped: Folder, numbers: Numbers, gsd_m: float, placed: bool, message: str
) -> None:
    write_scene(mapped.root / "map.tif", numbers, gsd_m=gsd_m, placed=placed)
    with pytest.raises(ValueError, match=rf"map.tif: .*{message}") as refused:
        mapped.open().tasks("s2")
    mapped.open()
    assert str(refused.value) in problems(str(mapped.root))


# The folder as a whole.


def test_sensors_come_in_the_order_of_the_table_then_of_the_index(folder: Folder) -> None:
    folder.index["sensors"] = {"ours": OURS}
    for sensor, bands in (
        ("umbra", ["VV"]), ("modis", ["B01"]), ("ours", ["nir"]), ("s1", ["VV"]), ("s2", ["B8A"]),
        ("linz", ["R"]),
    ):  # fmt: skip
        folder.stack(f"{sensor}.npz", {"sensor": sensor, "bands": bands}, images=images(1, 1, 4))
    source = folder.open()
    assert list(source.sensors) == ["s1", "s2", "modis", "umbra", "ours", "linz"]
    assert all(source.sensors[name] is CATALOG[name] for name in source.sensors if name != "ours")


OURS: dict[str, Any] = {
    "title": "Ours",
    "gsd_m": 2,
    "unit": "reflectance",
    "bands": {
        "red": {"wavelength_um": 0.66, "fwhm_um": 0.03, "gsd_m": 4},
        "nir": {"wavelength_um": 0.86, "fwhm_um": 0.04, "unit": None},
        "HH": {"polarisation": "HH", "frequency_ghz": 9.6, "unit": "dB"},
    },
}


def test_a_folder_brings_its_own_sensors(task_folder: Folder) -> None:
    task_folder.index["sensors"] = {"ours": OURS}
    (task,) = task_folder.index["tasks"]
    task |= {"sensor": "ours", "bands": ["nir", "red"]}
    task_folder.stack(
        "x.npz", {"sensor": "ours", "bands": ["red", "nir"], "gsd_m": 3}, images=images(2, 2, 8)
    )
    source = task_folder.open()
    ours = Sensor(
        "ours",
        "Ours",
        2.0,
        (
            Band("red", 4.0, Unit.REFLECTANCE, 0.66, 0.03),
            Band("nir", 2.0, Unit.REFLECTANCE, 0.86, 0.04),
            Band("HH", 2.0, Unit.DB, polarisation="HH", frequency_ghz=9.6),
        ),
    )
    assert dict(source.sensors) == {"ours": ours}
    assert "ours" not in CATALOG
    (part,) = seen(source, 8, "ours")
    assert part.bands == ours.select(["red", "nir"], grid_m=3)
    (found,) = source.tasks("ours")
    assert source.labelled(found, 8).samples.bands == ours.select(["nir", "red"])
    assert source.tasks("umbra") == []


@pytest.mark.parametrize(
    ("sensors", "message"),
    [
        ({"s2": OURS}, "sensors: 's2' is another sensor in gfmsum.catalog; rename"),
        ({"all": OURS}, "sensors: all: sensor name 'all' already means a mix"),
        ({"Ours": OURS}, "sensors: Ours: sensor name 'Ours' must be small letters"),
        ({"ours": {}}, "sensors: ours: must hold entries"),
        (
            {"ours": OURS | {"gsd": 2}},
            "sensors: ours, gsd: unknown entry 'gsd'.*did you mean 'gsd_m'",
        ),
        ({"ours": OURS | {"gsd_m": None}}, "sensors: ours: has no gsd_m"),
        ({"ours": OURS | {"gsd_m": -2}}, "sensors: ours.*gsd_m=-2"),
        ({"ours": OURS | {"bands": ["red"]}}, "sensors: ours, bands: must hold entries"),
        ({"ours": OURS | {"unit": "kelvin"}}, "sensors: ours, unit: unknown unit 'kelvin'"),
        ({"ours": 3}, "sensors: ours: must hold entries"),
        ([OURS], r"sensors is \[.*it must be an object"),
    ],
)
def test_a_definition_that_is_wrong_or_another_one_s_is_refused(
    two_files: Folder, sensors: Any, message: str
) -> None:
    two_files.index["sensors"] = sensors
    with pytest.raises(ValueError, match=message) as refused:
        two_files.open()
    assert "index.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_known_sensor_may_be_described_as_it_is(two_files: Folder) -> None:
    bands = {
        band.name: {
            "gsd_m": band.gsd_m, "wavelength_um": band.wavelength_um, "fwhm_um": band.fwhm_um
        }
        for band in CATALOG["gaofen"].bands
    }  # fmt: skip
    described = {"title": "Gaofen-1/2 PMS", "gsd_m": 4, "unit": "reflectance", "bands": bands}
    two_files.index["sensors"] = {"gaofen": described}
    assert list(two_files.open().sensors) == ["s2"]
    described["gsd_m"] = 8
    with pytest.raises(ValueError, match="'gaofen' is another sensor"):
        two_files.open()


def test_a_sample_is_thin_where_places_are_few(folder: Folder) -> None:
    def far(n: int) -> Numbers:
        """Places 11 km apart, on the equator."""
        return np.stack([np.arange(n) * 0.1, np.zeros(n)], axis=1) + 0.001

    folder.stack("x.npz", {}, images=images(100, 2, 4), lonlat=far(100))
    assert folder.open().caveats == ()
    landsat = {"sensor": "landsat", "bands": ["B3", "B5"], "rows": {"split": ["train"]}}
    split = ["train"] * 98 + ["test"] * 10
    folder.stack("y.npz", landsat, images=images(108, 2, 4), lonlat=far(108), split=split)
    folder.stack("z.npz", landsat | {"rows": {}}, images=images(3, 2, 4))
    (thin,) = folder.open().caveats
    assert "shows 99 of landsat places 10 km wide" in thin


def test_who_does_not_tell_its_places_is_named(task_folder: Folder) -> None:
    task_folder.stack("x.npz", {}, images=images(2, 2, 8))
    write_scene(task_folder.root / "s.tif", images(1, 2, 8)[0])
    task_folder.pretrain("s.tif", "scene")
    _, unknown = task_folder.open().caveats
    assert (
        "1 of 2 files of s2, the items of land lie: whether pretraining tiles are on the" in unknown
    )
    _, unknown = Local(LocalConfig(str(task_folder.root), leakage_km=2.5)).caveats
    assert "within 2.5 km of validation and test items" in unknown


def test_identity_changes_with_index_and_files_and_holds_no_absolute_path(
    two_files: Folder,
) -> None:
    first = two_files.open().identity
    assert first["source"] == "local"
    assert list(first["files"]) == ["a/scene.tif", "stack.npz"]
    assert first["files"]["stack.npz"] == (two_files.root / "stack.npz").stat().st_size
    assert str(two_files.root) not in json.dumps(dict(first))
    assert two_files.open().identity == first
    two_files.index["pretrain"][0]["scale"] = 2e-4
    assert two_files.open().identity["index"] != first["index"]
    two_files.stack("stack.npz", images=images(6, 2, 11))
    assert two_files.open().identity["files"] != first["files"]


# Broken folders.


def spoil(path: str, *keys: Any, value: Any) -> Callable[[Folder], None]:
    """Puts ``value`` somewhere into the index; deletes the key if it is ``...``."""

    def change(folder: Folder) -> None:
        node: Any = folder.index[path]
        for key in keys[:-1]:
            node = node[key]
        if value is ...:
            del node[keys[-1]]
        else:
            node[keys[-1]] = value

    return change


def top(key: str, value: Any) -> Callable[[Folder], None]:
    return lambda folder: folder.index.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (top("schema", 2), "schema is 2, it must be 1"),
        (top("pretrain", {}), r"pretrain is \{\}, it must be a list"),
        (top("tasks", [3]), r"tasks\[0\] is 3, it must be an object"),
        (spoil("pretrain", 0, "sensor", value="s3"), r"pretrain\[0\]: unknown sensor 's3'"),
        (spoil("pretrain", 0, "bands", value=["B03", "B8"]), r"unknown band 'B8'.*did you mean"),
        (spoil("pretrain", 0, "bands", value=["B03", "B03"]), "bands is .* names that differ"),
        (spoil("pretrain", 0, "bands", value=[]), r"bands is \[\].* not empty"),
        (spoil("pretrain", 0, "unit", value="kelvin"), "unknown unit 'kelvin'"),
        (spoil("pretrain", 0, "layout", value="cube"), "unknown layout 'cube'"),
        (spoil("pretrain", 0, "path", value="no.npz"), "path is 'no.npz', it must be a file"),
        (spoil("pretrain", 0, "path", value="../x.npz"), "path is '../x.npz'.* stays inside"),
        (spoil("pretrain", 0, "path", value="/etc/hosts"), "path is '/etc/hosts'.* stays inside"),
        (spoil("pretrain", 0, "path", value=...), "path is missing, it must be a text"),
        (spoil("pretrain", 0, "scale", value="1"), "scale is '1', it must be a finite number"),
        (spoil("pretrain", 0, "offset", value=...), "offset is missing"),
        (spoil("pretrain", 0, "gsd_m", value=0), "gsd_m is 0, it must be a number from 0.001"),
        (spoil("pretrain", 0, "rows", value={"split": "train"}), r"rows is .*\[allowed values\]"),
        (spoil("pretrain", 0, "shape", value="big"), "shape is 'big'"),
        (spoil("tasks", 0, "metric", value="f1"), r"tasks\[0\] 'land': unknown metric 'f1'"),
        (spoil("tasks", 0, "metric", value="r2"), "metric is 'r2', it must be one for classif"),
        (spoil("tasks", 0, "metric", value="mean_iou"), "metric is 'mean_iou', .*: accuracy or bal"),
        (spoil("tasks", 0, "split", value={"by": "luck"}), "split: unknown by 'luck'"),
        (spoil("tasks", 0, "split", value={"by": "kfold", "k": 2}), "k is 2, it must be a whole number from 3"),
        (spoil("tasks", 0, "split", value={"by": "kfold", "k": 3.5}), "k is 3.5.*whole number"),
        (spoil("tasks", 0, "split", value={"by": "array"}), "split: key is missing"),
        (spoil("tasks", 0, "keep", value={"labels": {"above": 1}}), "unknown rule 'above'"),
        (spoil("tasks", 0, "keep", value={"labels": [1]}), r"keep 'labels' is \[1\]"),
        (spoil("tasks", 0, "keep", value={"labels": {"in": 1}}), "in is 1, it must be a list"),
        (spoil("tasks", 0, "scene", value="no.tif"), "scene is 'no.tif', it must be a file"),
        (spoil("tasks", 0, "scene", value="task.npz"), "scene is 'task.npz', .* a GeoTIFF"),
        (spoil("tasks", 0, "target", value=...), "target is missing"),
        (spoil("tasks", 0, "classes", value=...), "classes is missing"),
        (lambda folder: folder.index["tasks"].append(folder.index["tasks"][0]), "called 'land'"),
    ],
)  # fmt: skip
def test_a_broken_index_is_refused_in_one_line(
    task_folder: Folder, change: Callable[[Folder], None], message: str
) -> None:
    task_folder.pretrain("task.npz", "stack")
    task_folder.open()
    change(task_folder)
    with pytest.raises(ValueError, match=message) as refused:
        task_folder.open()
    assert "index.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_folder_or_index_is_refused(tmp_path: Path) -> None:
    for root, message in (
        ("", "root='' must be a folder"),
        (str(tmp_path / "no"), "must be a folder"),
        (str(tmp_path), r"index.json does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            Local(LocalConfig(root))
    (tmp_path / "index.json").write_text('{"schema": 1,')
    with pytest.raises(ValueError, match=r"index.json is not JSON: .*line 1"):
        Local(LocalConfig(str(tmp_path)))


def cut_short(path: str) -> Callable[[Folder], None]:
    def cut(folder: Folder) -> None:
        whole = (folder.root / path).read_bytes()
        (folder.root / path).write_bytes(whole[: len(whole) // 2])

    return cut


def arrays(**changed: Any) -> Callable[[Folder], None]:
    """Replaces arrays of task.npz."""

    def change(folder: Folder) -> None:
        with np.load(folder.root / "task.npz") as old:
            folder.stack("task.npz", **{**old, **changed})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_short("task.npz"), r"task.npz: cannot be read"),
        (cut_short("scene.tif"), r"scene.tif: cannot be read"),
        (arrays(images=np.array([{}] * 10)), "task.npz: array 'images' is object"),
        (arrays(images=images(10, 3, 9)), "task.npz: array 'images' has 3 bands, the index"),
        (arrays(images=images(10, 2, 9)[0]), "task.npz: array 'images' is uint16 .*4-dimensional"),
        (arrays(images=images(10, 2, 9).astype(complex)), "task.npz: array 'images' is complex"),
        (arrays(images=images(9, 2, 9)), "task.npz: array 'labels' has 10 rows.* are 9 images"),
        (arrays(bands=["B08", "B03"]), "task.npz: the file calls its bands B08, B03, the index"),
        (arrays(split=["train"] * 9), "task.npz: array 'split' has shape"),
        (arrays(split=["dev"] * 10), "task.npz: array 'split' holds 'dev'"),
        (arrays(split=["train"] * 10), "task.npz: array 'split' leaves no val row"),
        (arrays(labels=[9] * 10), "task.npz: array 'labels' holds labels 9 to 9"),
        (arrays(labels=[0.5] * 10), "task.npz: array 'labels' holds labels|keeps no row"),
        (arrays(purity=[0.1] * 10), "task.npz: task land keeps no row"),
        (arrays(purity=["a"] * 10), "task.npz: array 'purity' is .* must hold numbers"),
        (arrays(lonlat=[[500.0, 0.0]] * 10), "task.npz: array 'lonlat' must hold a longitude"),
        (spoil("tasks", 0, "target", value="label"), "task.npz: has no array 'label', only images"),
        (spoil("tasks", 0, "cluster", value="place"), "task.npz: has no array 'place'"),
        (spoil("tasks", 0, "cluster", value="lonlat"), "task.npz: task land clusters by a missing"),
        (spoil("tasks", 0, "n", value={"test": 3}), "task.npz: task land has 2 test items, .* 3"),
        (spoil("tasks", 0, "ceiling", value=0.5), "index.json: task land has ceiling=0.5"),
        (spoil("tasks", 0, "split", value={"by": "kfold", "k": 20}), "task.npz: 20 folds"),
        (spoil("pretrain", 0, "rows", value={"split": ["trian"]}), "task.npz: rows .* leave no"),
        (spoil("pretrain", 0, "rows", value={"fold": [1]}), "task.npz: has no array 'fold'"),
        (spoil("pretrain", 0, "shape", value=[10, 2, 9, 8]), "task.npz: array 'images' has shape"),
        (spoil("pretrain", 0, "dtype", value="int16"), "task.npz: array 'images' has dtype uint16"),
        (spoil("pretrain", 0, "scale", value=1), "task.npz: band B03 is .*, reflectance must lie in"),
        (spoil("pretrain", 1, "bands", value=["B03"]), "scene.tif: the raster has 2 bands"),
        (spoil("pretrain", 1, "bands", value=["B08", "B03"]), "scene.tif: the file calls"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_in_one_line_once_it_is_read(
    task_folder: Folder, change: Callable[[Folder], None], message: str
) -> None:
    def read() -> None:
        source = task_folder.open()
        seen(source, 9)
        for task in source.tasks("s2"):
            source.labelled(task, 9)

    task_folder.pretrain("task.npz", "stack")
    write_scene(task_folder.root / "scene.tif", images(1, 2, 64)[0], ("B03", "B08"))
    task_folder.pretrain("scene.tif", "scene")
    read()
    change(task_folder)
    with pytest.raises(ValueError, match=message) as refused:
        read()
    assert str(task_folder.root) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_scene_that_refers_to_other_files_is_not_followed(two_files: Folder) -> None:
    """GDAL reads many formats, some of which fetch what they name."""
    elsewhere = two_files.root.parent / "elsewhere.tif"
    write_scene(elsewhere, images(1, 2, 16)[0])
    (two_files.root / "a" / "scene.tif").write_text(
        '<VRTDataset rasterXSize="16" rasterYSize="16">'
        + "".join(
            f'<VRTRasterBand dataType="UInt16" band="{band}"><SimpleSource><SourceFilename>'
            f"{elsewhere}</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
            for band in (1, 2)
        )
        + "</VRTDataset>"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(two_files.root / "a" / "scene.tif") as followed:
            assert followed.read().any()
    with pytest.raises(ValueError, match=r"scene.tif: cannot be read"):
        seen(two_files.open(), 8)


def test_a_head_that_claims_more_than_a_file_can_hold_is_not_believed(folder: Folder) -> None:
    folder.stack("x.npz", {}, images=np.zeros((3000, 2, 100, 100), np.uint8))
    folder.stack("y.npz", {}, images=images(2, 2, 8))
    np.savez_compressed(folder.root / "x.npz", images=np.zeros((3000, 2, 100, 100), np.uint8))
    source = folder.open()
    folder_files = source._folder.files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "MOST_EXPANDED", 500)
        with pytest.raises(ValueError, match=r"x.npz: its pixels would be \d+ times its size"):
            seen(source, 8)
        assert not folder_files._cache


def test_a_slip_in_a_field_is_found_out_but_other_fields_are_welcome(task_folder: Folder) -> None:
    task_folder.pretrain("task.npz", "stack", note="ours", licence="CC0", caveat="thin")
    task_folder.index["comment"] = task_folder.index["tasks"][0]["taken_from"] = "x"
    task_folder.open()
    for part, slip, right in (("pretrain", "nodta", "nodata"), ("tasks", "clusters", "cluster")):
        entry = task_folder.index[part][0]
        entry.pop(right)
        entry[slip] = 0
        with pytest.raises(
            ValueError, match=f"field '{slip}' is not known; did you mean '{right}'"
        ):
            task_folder.open()
        entry.pop(slip)


# Everything that is wrong, at once.


def test_a_sound_folder_has_no_problems(task_folder: Folder) -> None:
    task_folder.pretrain("task.npz", "stack")
    task_folder.open()
    assert problems(str(task_folder.root)) == []


def test_all_that_is_wrong_with_an_index_is_told_at_once(task_folder: Folder) -> None:
    for path in ("a.npz", "b.npz", "c.npz"):
        task_folder.stack(path, {}, images=images(2, 2, 8))
    task_folder.index["sensors"] = {"s2": OURS, "ours": OURS | {"gsd_m": 0}}
    first, second, _ = task_folder.index["pretrain"]
    first |= {"scale": "1", "unit": "kelvin", "path": "no.npz", "date": "2020-02-30"}
    second |= {"bands": ["B03", "B8"], "nodata": "none"}
    del second["offset"]
    task_folder.index["pretrain"] += [7, task_folder.index["pretrain"][2]]
    (task,) = task_folder.index["tasks"]
    task |= {
        "name": "la/nd",
        "metric": "r2",
        "split": {"by": "array"},
        "keep": {"labels": {"up": 1}},
    }
    task_folder.index["tasks"] += [
        {"name": "other"},
        task | {"name": "same", "metric": "accuracy", "split": {"by": "kfold", "k": 3}, "keep": {}},
        task | {"name": "same", "metric": "accuracy", "split": {"by": "kfold", "k": 4}, "keep": {}},
    ]
    with pytest.raises(
        ValueError, match=r"\(\d\d more: python -m gfmsum.data check .* lists them\)"
    ):
        task_folder.open()
    found = problems(str(task_folder.root))
    assert len(set(found)) == len(found)
    for wanted in (
        "sensors: 's2' is another", "sensors: ours, bands, nir: band nir: gsd_m=0",
        "pretrain[0]: scale is '1'", "pretrain[0]: unknown unit 'kelvin'",
        "pretrain[0]: path is 'no.npz'", "pretrain[0]: date is '2020-02-30', it must be a day",
        "pretrain[1]: sensor s2: unknown band 'B8'", "pretrain[1]: nodata is 'none'",
        "pretrain[1]: offset is missing", "pretrain[3] is 7", "pretrain[4] is the file of pretrain[2]",
        "tasks[0]: name is 'la/nd'", "metric is 'r2', it must be one for classification",
        "split: key is missing", "keep 'labels': unknown rule 'up'", "tasks[1] 'other': kind",
        "tasks[1] 'other': path is missing", "tasks[1] 'other': bands is missing",
        "two tasks are called 'same'",
    ):  # fmt: skip
        assert [line for line in found if wanted in line], wanted
    sound = [line for line in found if "index.json" not in line]
    assert sound == [line for line in found if "task.npz: warning: task same is tested" in line]


def test_all_that_is_wrong_with_the_files_is_told_at_once(task_folder: Folder) -> None:
    write_scene(task_folder.root / "s.tif", images(1, 2, 40)[0], ("B08", "B03"))
    task_folder.pretrain("s.tif", "scene", shape=[2, 40, 41], dtype="int16")
    task_folder.stack("empty.npz", {"nodata": 0}, images=np.zeros((3, 2, 40, 40), np.uint16))
    task_folder.stack("dark.npz", {"scale": 1e-8, "unit": "dB"}, images=images(3, 2, 40))
    task_folder.stack("short.npz", {}, images=images(3, 2, 40))
    cut_short("short.npz")(task_folder)
    holes = images(10, 2, 9).astype(np.float32)
    holes[4:7, 0, 3, 3] = np.nan
    bad = {
        "split": ["train"] * 9 + ["dev"],
        "labels": [1, 1, 3, 1, 3, 3, 3, 1, 9, 9],
        "event": [[0]] * 10,
    }
    arrays(images=holes, **bad)(task_folder)
    (task,) = task_folder.index["tasks"]
    task |= {"keep": {"purity": {"min": 0.1}}, "n": {"all": 9}}
    value = {"kind": "regression", "metric": "r2", "target": "worth", "keep": {}}
    arrays(worth=[np.inf, *range(9)], at=[(0, 0)] * 9 + [(40, 2)])(task_folder)
    task_folder.index["tasks"] += [
        task | value | {"name": "worth"},
        task | value | {"name": "cut", "scene": "s.tif", "windows": "at", "patch_px": 8, "target": "labels"},
    ]  # fmt: skip
    task_folder.open()
    found = problems(str(task_folder.root))
    for wanted in (
        "s.tif: the raster has shape (2, 40, 40), the index says (2, 40, 41)",
        "s.tif: the raster has dtype uint16, the index says int16",
        "s.tif: the file calls its bands B08, B03",
        "empty.npz: warning: no tile of 32 px",
        "dark.npz: band B03 is 5", "short.npz: cannot be read",
        "task.npz: array 'split' holds 'dev'", "task.npz: array 'event' has shape",
        "task.npz: array 'labels' holds labels 1 to 9, task land names 5 classes",
        "task.npz: task land has 10 all items, the index says 9",
        "task.npz: array 'worth' holds values that are not finite",
    ):  # fmt: skip
        assert [line for line in found if wanted in line], (wanted, found)
    assert all(line.startswith(str(task_folder.root)) and "\n" not in line for line in found)
    # Once the first are mended, what they hid is told.
    arrays(**bad | {"split": ["train"] * 4 + ["val"] * 2 + ["test"] * 4, "labels": [0] * 9 + [1]})(
        task_folder
    )
    task_folder.index["pretrain"][0] |= {"shape": None, "dtype": None, "bands": ["B08", "B03"]}
    task_folder.index["tasks"][2] |= {"bands": ["B08", "B03"]}
    task["n"]["all"] = 10
    task_folder.open()
    found = problems(str(task_folder.root))
    for wanted in (
        "task.npz: array 'at' has windows of 8 px outside the scene of 40x40 px",
        "task.npz: row 4 of task land (and 2 more rows) holds nodata",
        "task.npz: warning: task land is tested on 'wood', which no train row shows",
    ):
        assert [line for line in found if wanted in line], (wanted, found)


def test_problems_of_no_folder_at_all_are_one_line(tmp_path: Path) -> None:
    (line,) = problems(str(tmp_path / "no"))
    assert "must be a folder with an index.json" in line
    (tmp_path / "index.json").write_text("[" * 10**5)
    (line,) = problems(str(tmp_path))
    assert "index.json is not JSON" in line
    (tmp_path / "index.json").write_text('{"schema": 1, "schema": 1}')
    (line,) = problems(str(tmp_path))
    assert "index.json: an object has 'schema' twice" in line


# Broken masks and images before.


def flawed(value: float) -> Callable[[Folder], None]:
    """Puts a value into one pixel of what was before."""

    def change(folder: Folder) -> None:
        earlier = images(4, 2, 10, seed=1)[..., :9].astype(np.float32)
        earlier[2, 1, 4, 4] = value
        arrays(earlier=earlier)(folder)

    return change


def marked(label: int, *where: Any) -> Callable[[Folder], None]:
    """Puts a label into the masks."""

    def change(folder: Folder) -> None:
        with np.load(folder.root / "task.npz") as held:
            masks = held["masks"].copy()
        masks[where] = label
        arrays(masks=masks)(folder)

    return change


def said(**fields: Any) -> Callable[[Folder], None]:
    return lambda folder: folder.index["tasks"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (marked(3, 2, 4, 4), "task.npz: row 2 of task land has label 3; labels must be 0 to 2 or ignore=7"),
        (marked(-1, 0, 4, 4), "task.npz: row 0 of task land has label -1"),
        (marked(7, 2), "task.npz: task land has no labelled pixel in a val part; every part needs one"),
        (arrays(masks=np.zeros((4, 10, 9))), "task.npz: array 'masks' is float64; it must hold whole"),
        (arrays(masks=np.zeros((4, 9, 10), int)), r"task.npz: array 'masks' has shape \(4, 9, 10\)"),
        (arrays(masks=np.zeros(4, int)), r"'masks' has shape \(4,\); .* makes \(4, 10, 9\)"),
        (arrays(masks=np.indices((5, 10, 9))[2] % 2, split=["train", "train", "val", "test", "test"]),
         "array 'masks' has 5 rows, and there are 4 images"),
        (arrays(masks=np.int64(3)), "task.npz: array 'masks' is a single value"),
        (said(target="mask"), "task.npz: has no array 'mask', only images"),
        (said(target=None), "index.json: .*target is None, it must be a text"),
        (said(classes=["dry"]), "names 1 classes; mean_iou takes 2 to 255, correct classes or metric"),
        (said(classes=[f"c{i}" for i in range(256)]), "names 256 classes; mean_iou takes 2 to 255"),
        (said(metric="iou_positive"), "names 3 classes; iou_positive takes 2, correct classes or"),
        (said(metric="accuracy"), "index.json.* it must be one for change_seg.*: mean_iou or iou_posi"),
        (said(ignore=0.5), "index.json: .*ignore is 0.5, it must be a whole number"),
        (said(images_before=None), "index.json: .*images_before is None, it must be a text"),
        (said(images_before="images"), "index.json: .*must be another array than 'images'"),
        (said(images_before="erlier"), "task.npz: has no array 'erlier', only images, earlier"),
        (said(dtype="uint16"), "array 'earlier' has dtype float32, the index says uint16"),
        (flawed(np.nan), "row 2 of task land holds nodata .* in array 'earlier'; fill it"),
        (flawed(1e9), "task.npz: band B08 is .* on average.* offset=0 of array 'earlier' in index.json"),
        (arrays(earlier=images(4, 2, 10)), r"'earlier' has shape \(4, 2, 10, 10\), array 'images' \(4, 2,"),
        (arrays(earlier=images(4, 3, 10)), "array 'earlier' has 3 bands, the index"),
    ],
)  # fmt: skip
def test_broken_masks_and_images_before_are_refused_in_one_line(
    mask_folder: Folder, change: Callable[[Folder], None], message: str
) -> None:
    if "float32" in message:
        flawed(1)(mask_folder)
    mask_folder.labelled()
    change(mask_folder)
    with pytest.raises(ValueError, match=message) as refused:
        mask_folder.labelled()
    assert str(mask_folder.root) in str(refused.value)
    assert "\n" not in str(refused.value)
    found = problems(str(mask_folder.root))
    assert any(re.search(message, line) for line in found), found


def test_nothing_changed_in_the_tests_leaves_nothing_to_score(mask_folder: Folder) -> None:
    said(metric="iou_positive", classes=["dry", "flooded"], floor=0)(mask_folder)
    mask_folder.labelled()
    marked(0, 3, slice(1, 5))(mask_folder)
    with pytest.raises(
        ValueError, match=r"task.npz: task land has no test pixel of class 'flooded'"
    ):
        mask_folder.labelled()


def test_windows_have_no_images_before(mapped: Folder) -> None:
    mapped.index["tasks"][0] |= {"kind": "change_segmentation", "target": "masks"}
    with pytest.raises(ValueError, match=r"scene is 's.tif', it must be left out: change_segmen"):
        mapped.open()
    mapped.index["tasks"][0] |= {"kind": "segmentation", "target_raster": "w.npz"}
    with pytest.raises(ValueError, match=r"target_raster is 'w.npz', it must be a GeoTIFF"):
        mapped.open()


def test_all_that_is_wrong_with_masks_and_before_is_told_at_once(mask_folder: Folder) -> None:
    flawed(np.nan)(mask_folder)
    marked(9, 1, 4, 4)(mask_folder)
    arrays(images=images(4, 2, 10, seed=5), split=["train"] * 4)(mask_folder)
    said(cluster="event")(mask_folder)
    mask_folder.open()
    found = problems(str(mask_folder.root))
    for wanted in (
        "array 'earlier' has shape (4, 2, 10, 9), array 'images' (4, 2, 10, 10)",
        "array 'masks' has shape (4, 10, 9)", "array 'split' leaves no val row",
        "has no array 'event'",
    ):  # fmt: skip
        assert [line for line in found if wanted in line], (wanted, found)
    arrays(images=images(4, 2, 10, seed=5)[..., :9])(mask_folder)
    found = problems(str(mask_folder.root))
    for wanted in ("row 1 of task land has label 9", "leaves no val row", "has no array 'event'"):
        assert [line for line in found if wanted in line], (wanted, found)
    marked(0, 1)(mask_folder)
    arrays(split=["test", "train", "val", "train"])(mask_folder)
    found = problems(str(mask_folder.root))
    assert [line for line in found if "holds nodata" in line and "'earlier'" in line], found


def test_a_class_that_no_mask_teaches_is_told(mask_folder: Folder) -> None:
    mask_folder.open()
    (line,) = problems(str(mask_folder.root))
    assert "task.npz: warning: task land is tested on 'flooded', which no train row shows" in line
    assert "snow" not in line


# What users are told of the format.


def test_the_example_of_the_help_is_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = SCHEMA_HELP.split("Example\n")[1]
    assert example.replace("\n  ", "\n").strip() == EXAMPLE.strip()
    folder = Folder(tmp_path)
    folder.index = json.loads(example)
    (scene,), (task,) = folder.index["pretrain"], folder.index["tasks"]
    write_scene(tmp_path / scene["path"], images(1, 2, 24)[0], tuple(scene["bands"]), gsd_m=3)
    n, parts = 30, ["train", "val", "test"]
    arrays = {"labels": np.arange(n) % 2, "split": np.repeat(parts, 10), "bands": task["bands"]}
    at = np.random.default_rng(0).uniform(10, 20, (n, 2))
    folder.stack(task["path"], images=images(n, 2, 12), lonlat=at, **arrays)
    source = folder.open()
    (part,) = seen(source, 8, "superdove")
    assert len(part) == 9
    assert part.dates is not None
    assert set(part.dates.tolist()) == {scene["date"]}
    (found,) = source.tasks("superdove")
    assert found.classes == ("field", "orchard")
    assert source.labelled(found, 8).samples.pixels.shape == (30, 2, 12, 12)
    assert problems(str(tmp_path)) == []


def test_the_help_lists_every_field_that_is_read(
    task_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[_Entry] = []
    made = _Entry.__init__

    def note(self: _Entry, *args: Any) -> None:
        made(self, *args)
        entries.append(self)

    monkeypatch.setattr(_Entry, "__init__", note)
    write_scene(task_folder.root / "s.tif", images(1, 2, 16)[0])
    task_folder.pretrain("task.npz", "stack")
    (task,) = task_folder.index["tasks"]
    task_folder.index["tasks"] += [
        task | {"name": "b", "scene": "s.tif", "windows": "at", "patch_px": 4},
        task | {"name": "c", "split": {"by": "kfold", "k": 3}},
        task | CHANGE | {"name": "d"},
        task | CHANGE | {"name": "e", "kind": "segmentation", "scene": "s.tif", "windows": "at",
                         "patch_px": 4, "target_raster": "s.tif"},
    ]  # fmt: skip
    task_folder.open()
    read = {key for entry in entries for key in entry._asked}
    assert {"schema", "nodata", "patch_px", "stratified", "min", "ceiling"} <= read
    assert {"images_before", "target_raster", "ignore"} <= read
    for key in read:
        assert re.search(rf'(^  |, |"){key}\b', SCHEMA_HELP, re.MULTILINE), key


def test_windows_beyond_the_scene_are_refused(folder: Folder) -> None:
    write_scene(folder.root / "s.tif", images(1, 2, 16)[0])
    folder.stack(
        "w.npz", rowcol=[(0, 0), (8, 9), (8, 8)], labels=[0, 1, 0], split=["train", "val", "test"]
    )
    folder.task("w.npz", scene="s.tif", windows="rowcol", patch_px=8, classes=["x", "y"], floor=0)
    with pytest.raises(ValueError, match=r"w.npz: array 'rowcol' has windows of 8 px outside"):
        folder.labelled()


def test_linear_backscatter_does_not_pass_for_decibels(folder: Folder) -> None:
    reading = {"sensor": "s1", "bands": ["VV", "VH"], "unit": "dB"}
    folder.stack("x.npz", reading, images=images(3, 2, 4))  # 0..1 with the default scale
    with pytest.raises(ValueError, match=r"x.npz: band VV is 0\.\d+ on average, dB must lie in"):
        folder.open().pretraining("s1", 4)


def test_what_nobody_knows_is_refused(two_files: Folder) -> None:
    source = two_files.open()
    for ask in (source.places, lambda sensor: source.pretraining(sensor, 8)):
        with pytest.raises(ValueError, match="unknown sensor 's1': choose from s2"):
            ask("s1")
    with pytest.raises(ValueError, match="unknown sensor 's9'"):
        source.tasks("s9")
    with pytest.raises(ValueError, match="size_px=0 must be at least 1"):
        source.pretraining("s2", 0)
    assert source.tasks("s1") == []


def test_a_task_of_another_source_is_refused(task_folder: Folder, tmp_path: Path) -> None:
    (task,) = task_folder.open().tasks("s2")
    task_folder.index["tasks"][0]["name"] = "lend"
    with pytest.raises(ValueError, match=r"unknown task 'land'.*did you mean 'lend'"):
        task_folder.open().labelled(task, 8)


# Real pixels.

real = pytest.mark.skipif(
    not (REAL / "index.json").is_file(), reason="no real pixels at ../shared/realdata"
)

POOLS = {"s1": 9_675, "s2": 7_310, "landsat": 5_270, "naip": 6_756, "modis": 101}
"""Tiles of 32 px, measured. The README's counts are before nodata, validation and test are taken
out (346 flood images of validation and test alone are 1,384 tiles of each sensor)."""

TASKS = {  # sensor, items in train, val, test, floor, side in pixels
    "eurosat200": ("s2", (120, 40, 40), 0.10, 64),
    "flood_s2": ("s2", (840, 120, 226), 0.40, 64),
    "flood_s1": ("s1", (840, 120, 226), 0.40, 64),
    "zion_nlcd": ("landsat", (930, 154, 450), 1 / 3, 32),
    "urban_trees": ("naip", (1564, 444, 408), 0.39, 64),
    "tree_count": ("naip", (1564, 444, 408), 0.0, 64),
    "modis_igbp16": ("modis", (501, 66, 240), 0.29, 16),
    "flood_change_s1": ("s1", (840, 120, 226), 0.30, 64),
    "flood_change_s2": ("s2", (840, 120, 226), 0.30, 64),
}


@pytest.fixture(scope="module")
def source() -> Local:
    return Local(LocalConfig(str(REAL)))


@real
def test_real_floods_are_matched_across_sensors(source: Local) -> None:
    radar, optical = (
        next(
            source.labelled(task, 64)
            for task in source.tasks(sensor)
            if task.name.startswith("flood_")
        )
        for sensor in ("s1", "s2")
    )
    few, shown = matched(radar, optical.samples)
    assert len(shown) == len(few.samples) == 1186
    assert few.target.tolist() == optical.target.tolist()  # one mask for both
    assert common(radar.samples, source.labelled(source.tasks("s2")[0], 64).samples) == 0  # EuroSAT


@real
def test_real_sensors_and_pools(source: Local) -> None:
    assert {name: len(source.pretraining(name, 32)) for name in source.sensors} == POOLS
    assert list(source.sensors) == list(SENSORS)


@real
def test_real_pixels_have_no_problems() -> None:
    assert problems(str(REAL)) == []


@real
def test_real_tiles_near_the_tests_go_when_asked() -> None:
    source = Local(LocalConfig(str(REAL), leakage_km=10))
    # Landsat's tests are windows all over one scene, of which nothing is left.
    assert {name: len(source.pretraining(name, 32)) for name in POOLS} == POOLS | {
        "landsat": 4_338, "modis": 74
    }  # fmt: skip


@real
def test_real_places_are_few(source: Local) -> None:
    thin, unknown = source.caveats
    assert "10 of s1, 12 of s2, 44 of landsat, 20 of naip places 10 km wide" in thin
    assert "3 of 10 files of s1, 2 of 18 files of s2, 1 of 4 files of landsat" in unknown


@real
def test_real_tasks(source: Local) -> None:
    found = {task.name: task for name in source.sensors for task in source.tasks(name)}
    assert set(found) == set(TASKS)
    for name, (sensor, sizes, floor, side) in TASKS.items():
        items = source.labelled(found[name], 32)
        assert found[name].sensor == sensor
        assert all(tuple(map(len, fold)) == sizes for fold in items.folds)
        assert found[name].floor == pytest.approx(floor, abs=0.005)
        assert items.samples.pixels.shape[2:] == (side, side)
        assert np.isfinite(items.samples.pixels).all()
    assert found["zion_nlcd"].classes == ("Barren", "Forest", "Shrubland")
    assert len(found["modis_igbp16"].classes) == 5
    assert all(source.unsupported(sensor) == [] for sensor in source.sensors)


@real
def test_real_floods_are_in_the_masks_and_the_ground_was_seen_before(source: Local) -> None:
    (task,) = (task for task in source.tasks("s1") if task.name == "flood_change_s1")
    items = source.labelled(task, 32)
    with np.load(REAL / "ombria" / "sentinel1" / "s1_flood_64px.npz") as arrays:
        tested, masks, wet = arrays["split"] == "test", arrays["masks"], arrays["flood_fraction"]
        earlier = arrays["images_before"]
    assert len(items.samples) == 1186
    assert [len(part) for part in items.folds[0]] == [840, 120, 226]
    np.testing.assert_array_equal(items.target, masks)
    # Whoever always says flooded is right in the flooded share of the pixels, which the file tells too.
    assert task.floor == pytest.approx(int(masks[tested].sum()) / (226 * 64 * 64))
    assert task.floor == pytest.approx(float(wet[tested].mean()), abs=1e-6)
    assert task.classes == ("unchanged", "flooded")
    assert items.before is not None
    np.testing.assert_array_equal(items.before.pixels, earlier)
    assert (items.before.pixels != items.samples.pixels).any(axis=(1, 2, 3)).all()


@real
def test_real_test_items_come_in_the_expected_clusters(source: Local) -> None:
    counts = {}
    for sensor in source.sensors:
        for task in source.tasks(sensor):
            items = source.labelled(task, 32)
            tested = np.concatenate([test for _, _, test in items.folds])
            counts[task.name] = len(set(items.cluster[tested]))
    assert counts == {
        "eurosat200": 196, "flood_s2": 4, "flood_s1": 4, "zion_nlcd": 19,
        "urban_trees": 102, "tree_count": 102, "modis_igbp16": 26, "flood_change_s1": 4,
        "flood_change_s2": 4,
    }  # fmt: skip


@real
def test_real_backscatter_is_plausible(source: Local) -> None:
    decibels = [part for part in seen(source, 32, "s1") if part.bands[0].unit == "dB"]
    assert len(decibels) == 2  # 10 m and 30 m
    for part in decibels:
        assert [band.name for band in part.bands] == ["VV", "VH"]
        vv, vh = part.pixels.mean(axis=(0, 2, 3))
        assert -20 < vh < vv < -4


@real
def test_real_cirrus_is_the_darkest_band(source: Local) -> None:
    part = next(part for part in seen(source, 32) if len(part.bands) == 13)
    means = dict(
        zip((band.name for band in part.bands), part.pixels.mean(axis=(0, 2, 3)), strict=True)
    )
    assert min(means, key=lambda name: means[name]) == "B10"
    assert means["B8A"] > means["B04"]  # plants


@real
def test_real_modis_patches_over_the_probe_are_left_out(source: Local) -> None:
    """The truth is in rows and columns of the scene's grid, which the source does not use."""
    folder = REAL / "mosaic_mcd43a4" / "modis"
    with np.load(folder / "mcd43a4_patches_16px.npz") as small:
        held = small["rowcol"][small["split"] != "train"].astype(int)
    with np.load(folder / "mcd43a4_patches_32px.npz") as large:
        corners, split = large["rowcol"].astype(int), large["split"]
    gap = corners[:, None] - held  # overlap: the small corner is less than 16 before, 32 after
    overlaps = ((gap < 16) & (gap > -32)).all(axis=2).any(axis=1)
    assert overlaps[split == "train"].sum() == 14
    kept = [int(name.split("#")[1].split(",")[0]) for name in ids(seen(source, 32, "modis"))]
    assert not overlaps[kept].any()
    assert set(split[kept]) == {"train"}


def blocks(samples: Samples, rows: NDArray[np.int64] | slice) -> set[bytes]:
    """Cuts of 16 px on the images' grid that are not constant."""
    pixels = samples.pixels[rows]
    n, c, h, w = pixels.shape
    cut = (
        pixels.reshape(n, c, h // 16, 16, w // 16, 16)
        .transpose(0, 2, 4, 1, 3, 5)
        .reshape(-1, c * 256)
    )
    return {block.tobytes() for block in cut[cut.min(axis=1) < cut.max(axis=1)]}


@real
@pytest.mark.parametrize("sensor", SENSORS)
def test_real_pretraining_holds_no_pixel_of_a_test(source: Local, sensor: str) -> None:
    pools = seen(source, 32, sensor)
    for task in source.tasks(sensor):
        items = source.labelled(task, 32)
        used = {row for _, val, test in items.folds for row in (*val, *test)}
        held = blocks(items.samples, np.array(sorted(used)))
        if items.before is not None:
            held |= blocks(items.before, np.array(sorted(used)))
        same = [part for part in pools if part.bands == items.samples.bands]
        assert len(held) > 250
        for part in same:
            assert not held & blocks(part, slice(None))
        if task.name == "zion_nlcd":  # what the check compares does meet where it should
            trained = blocks(items.samples, items.folds[0][0])
            assert all(trained & blocks(part, slice(None)) for part in same)
