"""Whatever happens to a folder's files: it is read rightly, or refused in one line; never anything else."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from gfmsum.config import LocalConfig
from gfmsum.data.local import Local, problems
from gfmsum.data.sample import UNLABELLED, Samples
from gfmsum.data.units import PLAUSIBLE

SIZE = 8
BANDS = {"s1": ["VV", "VH"], "s2": ["B03", "B08"], "ours": ["red", "nir"]}

type Content = dict[str, Any]  # arrays of a .npz, or the numbers of a scene
type Corrupt = Callable[["Folder"], None]


class Folder:
    """A folder in memory: what is in its files, then their bytes, which corruptions change."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        at = rng.uniform(-60, 60, (12, 2))
        parts = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
        days = [f"2020-05-{day:02}" for day in range(1, 13)]
        self.contents: dict[str, Content] = {
            "radar.tif": {"numbers": rng.normal(-12, 3, (2, 40, 34)).astype(np.float32)},
            "s2/chips.npz": {
                "images": rng.integers(1, 6000, (12, 2, 9, 9), np.uint16), "lonlat": at,
                "split": parts, "dates": days, "bands": BANDS["s2"],
                "labels": np.arange(12) % 3, "names": ["a", "b", "c"], "event": list("aabbccddeeff"),
                "earlier": rng.integers(1, 6000, (12, 2, 9, 9), np.uint16),
                "masks": rng.choice([0, 1, 99], (12, 9, 9)),
            },
            "ours.npz": {"images": rng.integers(1, 9000, (6, 2, 10, 8), np.int16), "lonlat": at[:6]},
            "windows.npz": {
                "rowcol": rng.integers(0, 10, (9, 2)), "worth": rng.normal(0, 1, 9),
                "where": ["x", "y", ""] * 3,
            },
            "map.tif": {"numbers": rng.integers(0, 4, (1, 40, 34), np.uint8)},
        }  # fmt: skip
        reading = {"unit": "reflectance", "scale": 1e-4, "offset": 0}
        radar = {"sensor": "s1", "bands": BANDS["s1"], "unit": "dB", "scale": 1, "offset": 0}
        self.index: Any = {
            "schema": 1,
            "sensors": {
                "ours": {
                    "gsd_m": 5,
                    "unit": "reflectance",
                    "bands": {
                        name: {"wavelength_um": um, "fwhm_um": 0.03}
                        for name, um in (("red", 0.66), ("nir", 0.86))
                    },
                }
            },
            "pretrain": [
                {"path": "radar.tif", "layout": "scene", "gsd_m": 10, "nodata": -99, "dtype": "float32",
                 "shape": [2, 40, 34], "date": "2021-03-04", **radar},
                {"path": "s2/chips.npz", "layout": "stack", "gsd_m": 10, "sensor": "s2", "id": "chips",
                 "bands": BANDS["s2"], "rows": {"split": ["train"]}, "nodata": 0, **reading},
                {"path": "ours.npz", "layout": "stack", "gsd_m": 5, "sensor": "ours",
                 "bands": BANDS["ours"], **reading},
            ],
            "tasks": [
                {"name": "land", "kind": "classification", "metric": "accuracy", "path": "s2/chips.npz",
                 "sensor": "s2", "bands": BANDS["s2"], "target": "labels", "classes": "names",
                 "split": {"by": "array", "key": "split"}, "cluster": "lonlat", **reading,
                 "keep": {"labels": {"in": [0, 1, 2]}}, "n": {"all": 12}},
                {"name": "wet", "kind": "regression", "metric": "r2", "path": "windows.npz", **radar,
                 "scene": "radar.tif", "windows": "rowcol", "patch_px": 8, "target": "worth",
                 "split": {"by": "kfold", "k": 3}, "cluster": "where",
                 "keep": {"worth": {"min": -9, "max": 9}}},
                {"name": "later", "kind": "detection", "metric": "ap50", "path": "s2/chips.npz",
                 "sensor": "s2", "bands": BANDS["s2"], "target": "images", **reading,
                 "split": {"by": "array", "key": "split"}},
                {"name": "flood", "kind": "change_segmentation", "metric": "iou_positive",
                 "path": "s2/chips.npz", "sensor": "s2", "bands": BANDS["s2"], "target": "masks",
                 "images_before": "earlier", "ignore": 99, "classes": ["same", "flooded"], **reading,
                 "split": {"by": "array", "key": "split"}},
                {"name": "cover", "kind": "segmentation", "metric": "mean_iou", "path": "windows.npz",
                 "scene": "radar.tif", "windows": "rowcol", "patch_px": 8, "target_raster": "map.tif",
                 "classes": list("wxyz"), "split": {"by": "kfold", "k": 3}, **radar},
            ],
        }  # fmt: skip
        self.index = deepcopy(self.index)  # of its own, whatever is done to it
        self.raw: dict[str, bytes | None] = {}  # None: is missing

    def pack(self) -> None:
        """Makes bytes of what is there; files that are bytes already stay."""
        for path, content in self.contents.items():
            self.raw.setdefault(path, packed(path, content))
        self.raw.setdefault("index.json", json.dumps(self.index).encode())

    def write(self, root: Path) -> None:
        self.pack()
        for path, raw in self.raw.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            if raw is not None:
                (root / path).write_bytes(raw)


def packed(path: str, content: Content) -> bytes:
    if not path.endswith(".tif"):
        file = io.BytesIO()
        np.savez(file, **{key: np.asarray(array) for key, array in content.items()})
        return file.getvalue()
    numbers: NDArray[Any] = content["numbers"]
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=len(numbers), height=numbers.shape[1], width=numbers.shape[2],
            dtype=numbers.dtype.name, crs="EPSG:32612", transform=from_origin(3e5, 4e6, 10, 10),
        ) as scene:  # fmt: skip
            scene.write(numbers)
            for i, name in enumerate(BANDS["s1"][: len(numbers)], 1):
                scene.set_band_description(i, name)
        return bytes(memory.read())


# What may happen to it.

FILES = sorted(Folder().contents)
ARRAYS = [(path, key) for path, content in Folder().contents.items() for key in content]
TYPES = ["bool", "int8", "uint8", "int64", "uint64", "float16", "float64", "complex64", "U3", "S3", "M8[D]",
         "V4", "O", ">f4"]  # fmt: skip


def truncated(path: str, share: float) -> Corrupt:
    def corrupt(folder: Folder) -> None:
        folder.pack()
        raw = folder.raw[path] or b""
        folder.raw[path] = raw[: int(share * len(raw))]

    return corrupt


def flipped(path: str, flips: list[tuple[float, int]]) -> Corrupt:
    def corrupt(folder: Folder) -> None:
        folder.pack()
        raw = bytearray(folder.raw[path] or b"")
        for share, mask in flips if raw else ():
            raw[int(share * len(raw))] ^= mask
        folder.raw[path] = bytes(raw)

    return corrupt


def swapped(path: str, other: str) -> Corrupt:
    def corrupt(folder: Folder) -> None:
        folder.pack()
        folder.raw[path], folder.raw[other] = folder.raw[other], folder.raw[path]

    return corrupt


def missing(path: str) -> Corrupt:
    def corrupt(folder: Folder) -> None:
        folder.raw[path] = None

    return corrupt


def array(path: str, key: str, change: Callable[[NDArray[Any]], Any]) -> Corrupt:
    def corrupt(folder: Folder) -> None:
        old = np.asarray(folder.contents[path].get(key, ()))
        try:
            with np.errstate(all="ignore"):
                new = change(old)
        except (TypeError, ValueError, IndexError):  # this array cannot take it
            return
        if path.endswith(".tif") and (new.ndim != 3 or new.dtype.kind not in "iuf" or not new.size):
            return  # no raster
        if path.endswith(".tif") and new.dtype == np.float16:
            new = new.astype(np.float64)
        folder.contents[path][key] = new

    return corrupt


def renamed(path: str, old: str, new: str) -> Corrupt:
    def corrupt(folder: Folder) -> None:
        if old in folder.contents[path]:
            folder.contents[path][new] = folder.contents[path].pop(old)

    return corrupt


def sprinkled(value: float, seed: int) -> Callable[[NDArray[Any]], Any]:
    """Puts a value into a tenth of the entries."""

    def change(old: NDArray[Any]) -> Any:
        new = (
            old.astype(np.promote_types(old.dtype, np.float32)) if old.dtype.kind in "iuf" else old
        )
        where = np.random.default_rng(seed).random(old.shape) < 0.1
        return np.where(where, np.asarray(value).astype(new.dtype), new)

    return change


def changes() -> st.SearchStrategy[Callable[[NDArray[Any]], Any]]:
    """Of one array."""
    wild = st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e300, 0, -99, 65535, -1])
    return st.one_of(
        st.sampled_from(TYPES).map(lambda kind: lambda old: old.astype(kind)),
        st.builds(sprinkled, wild, st.integers(0, 99)),
        wild.map(lambda value: lambda old: np.full(old.shape, value).astype(old.dtype)),
        st.floats(1e-6, 1e6).map(lambda factor: lambda old: old * factor),
        st.floats(-1e5, 1e5).map(lambda more: lambda old: old + more),
        st.integers(0, 3).map(lambda axis: lambda old: np.delete(old, 0, axis)),
        st.integers(0, 3).map(lambda axis: lambda old: np.expand_dims(old, axis)),
        st.integers(0, 3).map(lambda axis: lambda old: old[(slice(None),) * axis + (slice(0, 0),)]),
        st.just(lambda old: old[0]),
        st.just(lambda old: old[::-1].swapaxes(0, -1)),
        st.just(lambda old: np.concatenate([old, old])),
        st.sampled_from(["train", "x\ny", "", "2020-02-30", "B08"]).map(
            lambda text: lambda old: np.full(old.shape, text)
        ),
    )


def steps(tree: Any) -> list[tuple[Any, ...]]:
    """The way to every node of a tree but its root."""
    if not isinstance(tree, dict | list):
        return []
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [
        way for key, node in children for way in [(key,), *((key, *rest) for rest in steps(node))]
    ]


STEPS = steps(Folder().index)
NASTY = [None, True, 0, -1, 3, 1e308, -1e-300, 10**400, float("nan"), float("inf"), "", " ", "\n", "x\ny",
         "../x", "/etc/passwd", "a" * 5000, "\u2028", "\x00", "\ud800", "s2", "split", "labels", "lonlat",
         "stretched8", "dB", "radar.tif", "s2/chips.npz", "windows.npz", "images", [], {}, [None], [[]],
         {"": None}, ["VV", "VH"], ["B08", "B03"], ["red"]]  # fmt: skip
VALUES = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def node(way: tuple[Any, ...], value: Any) -> Corrupt:
    """Puts a value there, or takes away what is there if it is ``...``."""

    def corrupt(folder: Folder) -> None:
        tree = folder.index
        try:
            for key in way[:-1]:
                tree = tree[key]
            if value is ...:
                del tree[way[-1]]
            else:
                tree[way[-1]] = deepcopy(value)
        except (
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
        ):  # another corruption was here before
            pass

    return corrupt


def copied(source: tuple[Any, ...], target: tuple[Any, ...]) -> Corrupt:
    """Puts what is in one place of the index into another: names, paths and units that others have."""

    def corrupt(folder: Folder) -> None:
        value = Folder().index
        for key in source:
            value = value[key]
        node(target, value)(folder)

    return corrupt


def again(way: tuple[Any, ...]) -> Corrupt:
    """Lists an entry twice."""

    def corrupt(folder: Folder) -> None:
        part, i = way
        if isinstance(folder.index.get(part), list) and len(folder.index[part]) > i:
            folder.index[part].append(folder.index[part][i])

    return corrupt


SHARE = st.floats(0, 1, exclude_max=True)
FLIPS = st.lists(st.tuples(SHARE, st.integers(1, 255)), min_size=1, max_size=4)
ANYWHERE = [*FILES, "index.json"]

OF_BYTES = st.one_of(
    st.builds(truncated, st.sampled_from(ANYWHERE), SHARE),
    st.builds(flipped, st.sampled_from(ANYWHERE), FLIPS),
    # Most of a file is pixels: the heads need aiming at.
    st.builds(
        flipped, st.sampled_from(FILES), st.lists(st.tuples(st.floats(0, 0.1), st.integers(1, 255)))
    ),
    st.builds(swapped, st.sampled_from(ANYWHERE), st.sampled_from(ANYWHERE)),
    st.builds(missing, st.sampled_from(ANYWHERE)),
)
OF_ARRAYS = st.builds(
    lambda where, change: array(*where, change), st.sampled_from(ARRAYS), changes()
) | st.builds(
    lambda where, name: renamed(*where, name),
    st.sampled_from([where for where in ARRAYS if where[0].endswith(".npz")]),
    st.sampled_from(["x\ny", "lonlat", "dates", "bands", "images", " "]),
)
OF_INDEX = st.one_of(
    st.builds(node, st.sampled_from(STEPS), VALUES | st.just(...)),
    st.builds(copied, st.sampled_from(STEPS), st.sampled_from(STEPS)),
    st.builds(
        again, st.sampled_from([("pretrain", 0), ("pretrain", 1), ("tasks", 0), ("tasks", 1)])
    ),
)


# What may come of it.


def check(samples: Samples, height: int, width: int) -> None:
    """Samples are what they say."""
    assert samples.pixels.dtype == np.float32
    assert samples.pixels.shape == (len(samples.ids), len(samples.bands), height, width)
    assert np.isfinite(samples.pixels).all()
    assert len(set(samples.ids.tolist())) == len(samples)
    if len(samples):
        for band, mean in zip(
            samples.bands, samples.pixels.mean((0, 2, 3), np.float64), strict=True
        ):
            low, high = PLAUSIBLE[band.unit]
            slack = 1e-5 * max(1, abs(mean))
            assert low - slack <= mean <= high + slack
    if samples.lonlat is not None:
        assert samples.lonlat.shape == (len(samples), 2)
        assert (np.abs(samples.lonlat[~np.isnan(samples.lonlat)]) <= 360).all()
    if samples.dates is not None:
        told = samples.dates[samples.dates != ""]
        assert all(len(day) == 10 for day in told.tolist())
        assert not np.isnat(told.astype("datetime64[D]")).any()


def read(root: Path) -> None:
    """All that a folder offers."""
    source = Local(LocalConfig(str(root)))
    assert all(caveat.isprintable() for caveat in source.caveats)
    for sensor in source.sensors:
        for block in source.pretraining(sensor, SIZE).blocks:
            assert block.kind.sensor == sensor
            check(block.read(np.arange(len(block))[::-1]), SIZE, SIZE)
    for sensor in source._index.known:
        for task in source.tasks(sensor):
            items = source.labelled(task, SIZE)
            sides = items.samples.pixels.shape[2:]
            check(items.samples, *sides)
            n = len(items.samples)
            assert len(items.target) == len(items.cluster) == n
            if task.dense:
                assert items.target.dtype == np.uint8
                assert items.target.shape == (n, *sides)
                known = items.target[items.target != UNLABELLED]
                assert (known < len(task.classes)).all()
            if items.before is not None:
                check(items.before, *sides)
                assert items.before.ids.tolist() == items.samples.ids.tolist()
            assert np.isfinite(items.target).all()
            for fold in items.folds:
                assert all(len(part) for part in fold)
                assert len(set(np.concatenate(fold).tolist())) == sum(map(len, fold)) <= n
                assert not task.dense or all(
                    (items.target[part] != UNLABELLED).any() for part in fold
                )
            if task.kind == "classification":
                assert set(items.target.tolist()) == set(range(len(task.classes)))


def survive(*corruptions: Corrupt) -> str:
    """Reads a corrupted folder, and gives what it was refused for, if it was."""
    folder = Folder()
    for corrupt in corruptions:
        corrupt(folder)
    with tempfile.TemporaryDirectory() as name:
        folder.write(root := Path(name))
        refused = ""
        try:
            read(root)
        except ValueError as error:
            refused = str(error)
            assert name in refused, refused
            assert refused.splitlines() == [refused], refused
        found = problems(name, SIZE)
        assert all(line.splitlines() == [line] and name in line for line in found), found
        assert found or not refused, refused
        return refused


THOROUGH = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_the_folder_is_sound_to_begin_with() -> None:
    assert survive() == ""
    with tempfile.TemporaryDirectory() as name:
        Folder().write(Path(name))
        assert problems(name, SIZE) == []


@THOROUGH
@given(st.lists(OF_BYTES, min_size=1, max_size=2))
def test_damaged_files(corruptions: list[Corrupt]) -> None:
    survive(*corruptions)


@THOROUGH
@given(st.lists(OF_ARRAYS, min_size=1, max_size=2))
def test_other_arrays(corruptions: list[Corrupt]) -> None:
    survive(*corruptions)


@THOROUGH
@given(st.lists(OF_INDEX, min_size=1, max_size=2))
def test_another_index(corruptions: list[Corrupt]) -> None:
    survive(*corruptions)


@settings(THOROUGH, max_examples=40)
@given(st.lists(OF_INDEX, min_size=1, max_size=2), OF_ARRAYS, st.none() | OF_BYTES)
def test_all_of_it_together(
    index: list[Corrupt], of_arrays: Corrupt, of_bytes: Corrupt | None
) -> None:
    survive(*index, of_arrays, *([of_bytes] if of_bytes else ()))


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (truncated("radar.tif", 0.7), "radar.tif: cannot be read"),
        (truncated("ours.npz", 0.99), "ours.npz: cannot be read"),
        (flipped("s2/chips.npz", [(0.05, 255)]), "chips.npz: cannot be read"),
        (array("ours.npz", "images", lambda old: old[:, :1]), "ours.npz: array 'images' has 1 bands"),
        (array("radar.tif", "numbers", lambda old: 10 ** (old / 10)), "radar.tif: band VV is 0."),
        (array("s2/chips.npz", "images", lambda old: old * np.nan), "row 0 of task land .* nodata"),
        (array("radar.tif", "numbers", lambda old: old.astype(np.float64)), "dtype float64, the index"),
        (array("s2/chips.npz", "split", lambda old: np.full(12, "train")), "leaves no val row"),
        (node(("pretrain", 2, "scale"), 1), "ours.npz: band red is .* reflectance must lie in"),
        (node(("tasks", 1, "name"), "land"), "index.json: two tasks are called 'land'"),
        (node(("sensors", "s1"), Folder().index["sensors"]["ours"]), "'s1' is another sensor"),
        (again(("pretrain", 0)), r"pretrain\[3\] is the file of pretrain\[0\]"),
        (node(("pretrain", 0, "shape"), [2, 34, 40]), r"shape \(2, 40, 34\), the index says"),
        (node(("tasks", 1, "ceiling"), 10**400), "ceiling is 1000.* must be a finite number"),
        (array("windows.npz", "rowcol", lambda old: old * np.nan), "'rowcol' .* must hold whole numbers"),
        (array("ours.npz", "images", lambda old: old[:0]), r"shape \(0, 2, 10, 8\), which holds no pixel"),
        (array("s2/chips.npz", "masks", lambda old: old + 1), "row 0 of task flood has label [2]"),
        (array("s2/chips.npz", "masks", lambda old: old * 1.0), "'masks' is float64; it must hold whole"),
        (array("s2/chips.npz", "masks", lambda old: old[:, 1:]), r"'masks' has shape \(12, 8, 9\)"),
        (array("s2/chips.npz", "masks", lambda old: old * 0 + 99), "no labelled pixel in a train part"),
        (array("s2/chips.npz", "masks", lambda old: old * 0), "no test pixel of class 'flooded'"),
        (array("s2/chips.npz", "earlier", lambda old: old[:, :, 1:]), r"'earlier' has shape \(12, 2, 8"),
        (array("s2/chips.npz", "earlier", lambda old: old * 1e3), "band B03 is .* of array 'earlier'"),
        (renamed("s2/chips.npz", "earlier", "before"), "has no array 'earlier', only images"),
        (array("map.tif", "numbers", lambda old: old + 1), "map.tif: row 0 of task cover has label 4"),
        (array("map.tif", "numbers", lambda old: old[:, 1:]), "map.tif: its grid of 39x34 px is not"),
        (truncated("map.tif", 0.5), "map.tif: cannot be read"),
        (node(("tasks", 4, "target_raster"), "radar.tif"), "radar.tif: the raster has 2 bands"),
        (node(("tasks", 3, "classes"), ["a", "b", "c"]), "names 3 classes; iou_positive takes 2"),
        (missing("windows.npz"), "path is 'windows.npz', it must be a file"),
        (swapped("radar.tif", "ours.npz"), "radar.tif: cannot be read"),
        (renamed("ours.npz", "images", "im\nages\u2028"), "has no array .images., only lonlat, im ages"),
    ],
)  # fmt: skip
def test_what_is_plainly_wrong_is_refused_for_it(corrupt: Corrupt, message: str) -> None:
    """So that reading is not allowed to find anything right."""
    refused = survive(corrupt)
    with pytest.raises(ValueError, match=message):
        raise ValueError(refused)


def test_nothing_at_all_to_see_is_a_problem_and_no_error() -> None:
    """A scene of nodata gives no tile: files of a large folder may be empty, but it is told."""
    folder = Folder()
    folder.index["tasks"] = folder.index["tasks"][:1]
    folder.contents["radar.tif"]["numbers"][:] = -99
    with tempfile.TemporaryDirectory() as name:
        folder.write(Path(name))
        assert len(Local(LocalConfig(name)).pretraining("s1", SIZE)) == 0
        (line,) = problems(name, SIZE)
        assert "radar.tif: warning: no tile of 8 px is free of nodata (-99.0)" in line
        with rasterio.open(Path(name) / "radar.tif") as scene:
            assert (scene.read() == -99).all()
