"""The local source on small generated folders, and on real pixels where they are present."""

from __future__ import annotations

import json
import math
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

from gfmsum.config import LocalConfig
from gfmsum.data import files
from gfmsum.data.local import Local
from gfmsum.data.plan import stream
from gfmsum.data.sample import Labelled, Samples
from gfmsum.sensors import SENSORS

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "realdata"
DEGREE_M = math.radians(files.EARTH_RADIUS_M)

type Numbers = NDArray[Any]


# Small folders.


def write_scene(
    path: Path, numbers: Numbers, names: tuple[str, ...] = (), placed: bool = True
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    c, h, w = numbers.shape
    place: dict[str, Any] = {}
    if placed:
        place = {"transform": from_origin(300_000, 4_000_000, 10, 10), "crs": "EPSG:32612"}
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


def seen(source: Local, size_px: int, sensor: str = "s2", slots: int = 10**6) -> list[Samples]:
    return source.pretraining(sensor, range(slots), size_px, (0, 1))


def ids(parts: list[Samples]) -> list[str]:
    return [str(name) for part in parts for name in part.ids]


# Tiles and values.


def test_tiles_are_row_major_and_drop_the_remainder(two_files: Folder) -> None:
    source = two_files.open()
    scene = [f"a/scene.tif#0,{row},{col}" for row in (0, 8) for col in (0, 8, 16)]
    stack = [f"stack.npz#{i},0,0" for i in range(5)]
    assert source.available("s2", 8) == 11
    assert ids(seen(source, 8)) == scene + stack
    assert source.available("s2", 12) == 2  # the stack's images are too small


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
    numbers[3, 1, 2, 2] = np.inf
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


# Arms and replicates.


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(0, 30))
def test_a_smaller_arm_sees_part_of_what_a_larger_one_sees(
    tmp_path_factory: pytest.TempPathFactory, seed: int, few: int, many: int
) -> None:
    folder = Folder(tmp_path_factory.mktemp("nested"))
    folder.stack("x.npz", {}, images=images(12, 2, 4))
    folder.stack("y.npz", {"bands": ["B04", "B08"]}, images=images(9, 2, 4))
    source, (few, many) = folder.open(), sorted((few, many))
    small = ids(source.pretraining("s2", range(5, 5 + few), 4, (seed, 3)))
    large = ids(source.pretraining("s2", range(many), 4, (seed, 3)))
    assert set(small) <= set(large)
    assert len(set(small)) == len(small) == min(few, 21)
    assert len(set(large)) == len(large) == min(many, 21)


def test_a_draw_depends_on_seed_and_sensor_and_nothing_else(folder: Folder) -> None:
    folder.stack("x.npz", {}, images=images(60, 2, 4))
    folder.stack("y.npz", {"sensor": "landsat", "bands": ["B3", "B5"]}, images=images(60, 2, 4))

    def draw(sensor: str, *seed: int) -> list[str]:
        parts = folder.open().pretraining(sensor, range(6), 4, seed)
        return [name.split("#")[1] for name in ids(parts)]

    first = draw("s2", 0, 1)
    assert first == draw("s2", 0, 1)
    assert first != draw("s2", 0, 2)
    assert first != draw("s2", 1, 1)
    assert first != draw("landsat", 0, 1)
    # A draw by any other key would silently change every run of the same name.
    want = stream(0, 1, "local", "s2").permutation(60)[:6]
    assert first == [f"{i},0,0" for i in sorted(want)]


def test_a_call_decodes_each_file_once_even_without_memory(
    two_files: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = two_files.open()
    source.available("s2", 8)
    monkeypatch.setattr(files, "CACHE_BYTES", 0)
    decoded: list[str] = []
    decode = source._files._decode

    def counted(path: str, key: str) -> Numbers:
        decoded.append(path)
        return decode(path, key)

    monkeypatch.setattr(source._files, "_decode", counted)
    source._files._cache.clear()
    seen(source, 8)
    assert sorted(decoded) == ["a/scene.tif", "stack.npz"]
    assert len(source._files._cache) == 1  # memory is bounded: only the last file stays


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
    task |= {"kind": "change_segmentation", "metric": "iou_positive"}
    source = task_folder.open()
    assert source.available("s2", 9) == 5
    assert source.tasks("s2") == []
    assert source.unsupported("s2") == [("land", "change_segmentation")]
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
    assert source.available("s2", 4) == 8
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


# The folder as a whole.


def test_sensors_come_in_the_order_of_the_table(folder: Folder) -> None:
    for sensor, bands in (("modis", ["B01"]), ("s1", ["VV"]), ("s2", ["B8A"])):
        folder.stack(f"{sensor}.npz", {"sensor": sensor, "bands": bands}, images=images(1, 1, 4))
    source = folder.open()
    assert list(source.sensors) == ["s1", "s2", "modis"]
    assert all(source.sensors[name] is SENSORS[name] for name in source.sensors)
    assert any("confounded" in caveat for caveat in source.caveats)


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
        (spoil("pretrain", 0, "gsd_m", value=0), "gsd_m is 0, it must be above 0"),
        (spoil("pretrain", 0, "rows", value={"split": "train"}), r"rows is .*\[allowed values\]"),
        (spoil("pretrain", 0, "shape", value="big"), "shape is 'big'"),
        (spoil("tasks", 0, "metric", value="f1"), r"tasks\[0\] 'land': unknown metric 'f1'"),
        (spoil("tasks", 0, "metric", value="r2"), "metric is 'r2', it must be one for classif"),
        (spoil("tasks", 0, "split", value={"by": "luck"}), "split: unknown by 'luck'"),
        (spoil("tasks", 0, "split", value={"by": "kfold", "k": 2}), "k is 2, it must be at least"),
        (spoil("tasks", 0, "split", value={"by": "kfold", "k": 3.5}), "k is 3.5.*whole number"),
        (spoil("tasks", 0, "split", value={"by": "array"}), "split: key is missing"),
        (spoil("tasks", 0, "keep", value={"labels": {"above": 1}}), "unknown rule 'above'"),
        (spoil("tasks", 0, "keep", value={"labels": [1]}), r"keep 'labels' is \[1\]"),
        (spoil("tasks", 0, "keep", value={"labels": {"in": 1}}), "in is 1, it must be a list"),
        (spoil("tasks", 0, "scene", value="no.tif"), "scene is 'no.tif', it must be a file"),
        (spoil("tasks", 0, "scene", value="task.npz"), "patch_px is missing"),
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
        (arrays(images=np.array([{}] * 10)), r"cannot be read \(Object arrays.*allow_pickle"),
        (arrays(images=images(10, 3, 9)), "task.npz: array 'images' has 3 bands, the index"),
        (arrays(images=images(10, 2, 9)[0]), "task.npz: array 'images' is uint16 .*4-dimensional"),
        (arrays(images=images(10, 2, 9).astype(complex)), "task.npz: array 'images' is complex"),
        (arrays(images=images(9, 2, 9)), "task.npz: array 'labels' has shape .* must be 9"),
        (arrays(bands=["B08", "B03"]), "task.npz: the file calls its bands B08, B03, the index"),
        (arrays(split=["train"] * 9), "task.npz: array 'split' has shape"),
        (arrays(split=["dev"] * 10), "task.npz: array 'split' holds 'dev'"),
        (arrays(split=["train"] * 10), "task.npz: array 'split' leaves no val row"),
        (arrays(labels=[9] * 10), "task.npz: array 'labels' holds labels 9 to 9"),
        (arrays(labels=[0.5] * 10), "task.npz: array 'labels' holds labels|keeps no row"),
        (arrays(purity=[0.1] * 10), "task.npz: task land keeps no row"),
        (arrays(purity=["a"] * 10), "task.npz: array 'purity' is .* needs numbers"),
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
        (spoil("pretrain", 0, "scale", value=1), "task.npz: values are .* reflectance must lie in"),
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
    with pytest.raises(ValueError, match=r"x.npz: values are 0\..* dB must lie in"):
        folder.open().available("s1", 4)


def test_what_nobody_knows_is_refused(two_files: Folder) -> None:
    source = two_files.open()
    for ask in (source.available, lambda s, px: source.pretraining(s, range(1), px, (0,))):
        with pytest.raises(ValueError, match="unknown sensor 's1': choose from s2"):
            ask("s1", 8)
    with pytest.raises(ValueError, match="unknown sensor 's9'"):
        source.tasks("s9")
    with pytest.raises(ValueError, match="size_px=0 must be at least 1"):
        source.available("s2", 0)
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
}


@pytest.fixture(scope="module")
def source() -> Local:
    return Local(LocalConfig(str(REAL)))


@real
def test_real_sensors_and_pools(source: Local) -> None:
    assert {name: source.available(name, 32) for name in source.sensors} == POOLS
    assert list(source.sensors) == list(SENSORS)


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
    assert source.unsupported("s1") == [("flood_change_s1", "change_segmentation")]
    assert source.unsupported("s2") == [("flood_change_s2", "change_segmentation")]


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
        "urban_trees": 102, "tree_count": 102, "modis_igbp16": 26,
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
        same = [part for part in pools if part.bands == items.samples.bands]
        assert len(held) > 250
        for part in same:
            assert not held & blocks(part, slice(None))
        if task.name == "zion_nlcd":  # what the check compares does meet where it should
            trained = blocks(items.samples, items.folds[0][0])
            assert all(trained & blocks(part, slice(None)) for part in same)
