"""Packed stores: what is read is what was packed, whatever happens on the way."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gfmsum.config import LocalConfig, ShardsConfig, SyntheticConfig
from gfmsum.data import chunks, growing, pack
from gfmsum.data.files import EARTH_RADIUS_M
from gfmsum.data.manifest import JOURNAL, MANIFEST, PRODUCTS, Numbers, seal
from gfmsum.data.pack import Order
from gfmsum.data.plan import permute
from gfmsum.data.sample import UNLABELLED, Kind, Labelled, Pool, Rows, Samples, Source
from gfmsum.data.shards import Held, Shards, problems
from gfmsum.data.synthetic import Synthetic
from gfmsum.records import Task
from gfmsum.sensors import NAIP, S1, S2, Band, Sensor, Unit, optical

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "realdata"
SIZE = 8
EARTH_KM = EARTH_RADIUS_M / 1000
FORMATS = ("npy", "litdata")

type Numbers_ = NDArray[Any]

# Two sensors that no catalog knows: hand-held numbers, and two kinds of units in one image.
OWN = Sensor(
    "own",
    "A sensor of one's own",
    3.0,
    optical(Unit.REFLECTANCE, ("x", 3, 0.5, 0.1), ("y", 6, 2, 1)),
)
MIXED = Sensor("mixed", "Two units", 5.0, (*S1.bands[:1], *NAIP.bands[:1]))


# A small source.


def lonlats(n: int, seed: int = 0) -> Numbers_:
    """Places within a few tens of kilometres."""
    return np.random.default_rng(seed).uniform((10.0, 50.0), (10.5, 50.3), (n, 2))


def samples(
    sensor: Sensor, name: str, n: int, *, bands: tuple[Band, ...] = (), seed: int = 0, size: int = SIZE,
    lonlat: Numbers_ | None = None, dates: Numbers_ | None = None,
) -> Samples:  # fmt: skip
    """Images in plausible values of their units; reflectance as an agency delivers it."""
    rng, bands = np.random.default_rng([seed, n]), bands or sensor.bands
    pixels = np.empty((n, len(bands), size, size), np.float32)
    for channel, band in zip(pixels.swapaxes(0, 1), bands, strict=True):
        if band.unit is Unit.DB:
            channel[:] = rng.normal(-12, 3, channel.shape)
        elif band.unit is Unit.REFLECTANCE:
            channel[:] = rng.integers(0, 9000, channel.shape).astype(np.float32) * np.float32(1e-4)
        else:
            channel[:] = rng.integers(0, 256, channel.shape)
    ids = np.array([f"{name}/ø{i:x}" for i in range(n)])
    return Samples(sensor.name, bands, sensor.gsd_m, pixels, ids, lonlat, dates)


@dataclass
class Few:
    """A source in memory: blocks by sensor, and tasks."""

    sensors: Mapping[str, Sensor]
    blocks: Mapping[str, tuple[Samples, ...]]
    lists: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[Labelled, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=lambda: {"source": "few", "of": 1})
    caveats: tuple[str, ...] = ("Only a few.",)
    limits: Mapping[str, int] = field(default_factory=dict)

    def places(self, sensor: str) -> str:
        return self.lists.get(sensor, f"few/{sensor}")

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        return Pool(self.blocks[sensor], self.places(sensor), self.limits.get(sensor))

    def tasks(self, sensor: str) -> list[Task]:
        return [one.task for one in self.labels if one.task.sensor == sensor]

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        return [("ships", "detection")] if sensor == "s1" else []

    def labelled(self, task: Task, size_px: int) -> Labelled:
        return next(one for one in self.labels if one.task == task)


def task(sensor: Sensor, name: str, items: Samples, folds: int = 1, **more: Any) -> Labelled:
    n = len(items)
    cuts = [np.roll(np.arange(n), k * (n // folds)) for k in range(folds)]
    parts = tuple((cut[2 * n // 3 :], cut[n // 2 : 2 * n // 3], cut[: n // 2]) for cut in cuts)
    named = Task(
        name, sensor.name, "classification", "accuracy", 0.25, 1.0, ("a", "ü"), "thin", True
    )
    target = np.arange(n) % 2
    clusters = np.array([f"place {i // 3}" for i in range(n)])
    return Labelled(replace(named, **more), items, target, clusters, parts)


def masks(n: int, height: int, width: int, classes: int, seed: int = 0) -> Numbers_:
    """A class for every pixel but a few."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (n, height, width), dtype=np.uint8)
    target[rng.random(target.shape) < 0.1] = UNLABELLED
    return target


def change(one: Labelled, name: str, seed: int) -> Labelled:
    """A task of change on the items of another; two of them have the same items before."""
    items = one.samples
    n, _, height, width = items.pixels.shape
    earlier = replace(items, pixels=items.pixels[::-1] - np.float32(1.5), dates=None)
    asked = replace(one.task, name=name, kind="change_segmentation", metric="iou_positive")
    return replace(one, task=asked, target=masks(n, height, width, 2, seed), before=earlier)


def few() -> Few:
    """All that can differ: aligned sensors with unlike blocks, unknown places and days, four units,
    and tasks of every kind, some on the same images, which are no squares."""
    days = np.array([f"2020-0{1 + i % 9}-15" if i % 4 else "" for i in range(40)])
    places = lonlats(40)
    some = places.copy()
    some[5] = np.nan
    one = samples(S1, "s1", 25, lonlat=some[:25], dates=days[:25], seed=1)
    other = samples(S1, "s1b", 15, bands=S1.bands[:1], lonlat=places[25:], seed=2)
    aligned = samples(S2, "s2", 40, lonlat=places, dates=days, seed=3)
    bright = samples(NAIP, "naip", 31, seed=4)
    own, mixed = samples(OWN, "own", 12, seed=5), samples(MIXED, "mixed", 6, seed=6)
    own.pixels[3] -= np.float32(0.5)  # below 0, and not as agencies do
    sensors = {s.name: s for s in (S1, S2, NAIP, OWN, MIXED)}
    items = samples(S1, "items", 12, lonlat=lonlats(12, 9), dates=days[:12], seed=7, size=12)
    tall = samples(OWN, "tall", 9, seed=8)
    value = task(
        OWN, "heights", tall, 3, kind="regression", metric="r2", classes=(), clustered=False
    )
    items = replace(items, pixels=items.pixels[..., :10])
    floods = task(S1, "floods", items)
    water = replace(floods.task, name="water", kind="segmentation", metric="mean_iou")
    labels = (
        floods,
        task(S1, "more floods", items, 2),
        replace(floods, task=water, target=masks(12, 12, 10, 3)),
        change(floods, "new water", 1),
        change(floods, "lost water", 2),
        replace(value, target=np.linspace(-1, 1, 9)),
    )
    return Few(
        sensors,
        {"s1": (one, other), "s2": (aligned,), "naip": (bright,), "own": (own,), "mixed": (mixed,)},
        {"s1": "few/pairs", "s2": "few/pairs"},
        labels,
        limits={"naip": 7},
    )


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks for every list."""
    monkeypatch.setattr(pack, "CHUNK_BYTES", 30_000)
    monkeypatch.setattr(growing, "BLANK_ROWS", 4)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The small source in every format."""
    root = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "CHUNK_BYTES", 30_000)
        for form in FORMATS:
            pack.pack(few(), root / form, Order(size_px=SIZE, format=form))
    return {form: root / form for form in FORMATS}


def opened(root: Path, km: float = 0.0) -> Shards:
    return Shards(ShardsConfig(str(root), km))


def everything(pool: Pool) -> list[Samples]:
    return [block.read(np.arange(len(block))) for block in pool.blocks]


def same(one: Samples, other: Samples) -> None:
    """Equal in every bit and word."""
    assert one.kind == other.kind
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.pixels.dtype == other.pixels.dtype == np.float32
    for name in ("ids", "lonlat", "dates"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_array_equal(a, b)
            assert a.dtype.kind == b.dtype.kind


def same_labels(one: Labelled, other: Labelled) -> None:
    same(one.samples, other.samples)
    assert one.task == other.task
    assert one.target.dtype == other.target.dtype
    assert (one.before is None) == (other.before is None)
    if one.before is not None and other.before is not None:
        same(one.before, other.before)
    for name in ("target", "cluster"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype.kind == getattr(other, name).dtype.kind
    assert len(one.folds) == len(other.folds)
    for a, b in zip(one.folds, other.folds, strict=True):
        for rows, others in zip(a, b, strict=True):
            np.testing.assert_array_equal(rows, others)
            assert rows.dtype == others.dtype == np.int64


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def one_line(error: BaseException) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 600, text


# What is packed is what is read.


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_read_is_what_was_packed(stores: Mapping[str, Path], form: str) -> None:
    source, store = few(), opened(stores[form])
    assert store.sensors == source.sensors
    assert list(store.sensors) == list(source.sensors)
    assert store.caveats == source.caveats
    for name in source.sensors:
        pool, packed = source.pretraining(name, SIZE), store.pretraining(name, SIZE)
        assert len(packed) == len(pool)
        assert packed.limit == pool.limit
        assert packed.held == pool.held
        # A list that was packed whole is the same list: a run sees the same places of it.
        assert packed.places == pool.places == store.places(name)
        for block, kept in zip(pool.blocks, packed.blocks, strict=True):
            assert kept.kind == block.kind
            assert kept.quick is (form == "npy")
            rows = np.random.default_rng(0).integers(0, len(block), 2 * len(block))
            same(kept.read(rows), block.read(rows))
            assert not len(kept.read(np.empty(0, np.int64)))
        assert store.tasks(name) == source.tasks(name)
        assert store.unsupported(name) == source.unsupported(name)
        for each in source.tasks(name):
            same_labels(store.labelled(each, SIZE), source.labelled(each, SIZE))
    assert problems(str(stores[form])) == []


def test_numbers_are_as_small_as_values_allow(stores: Mapping[str, Path]) -> None:
    manifest = json.loads((stores["npy"] / MANIFEST).read_text())
    kept = {one["name"]: [block["dtype"] for block in one["blocks"]] for one in manifest["sensors"]}
    assert kept == {
        "s1": ["<f4", "<f4"], "s2": ["<u2"], "naip": ["|u1"], "own": ["<f4"], "mixed": ["<f4"]
    }  # fmt: skip
    # Tasks with the same images share them, those before a change too.
    found = [(one["task"]["name"], one["items"], one["before"]) for one in manifest["tasks"]]
    assert found == [
        ("floods", 0, None), ("more floods", 0, None), ("water", 0, None),
        ("new water", 0, 1), ("lost water", 0, 1), ("heights", 2, None),
    ]  # fmt: skip
    assert len(manifest["items"]) == 3
    # A class of a pixel takes a byte.
    assert manifest["files"]["tasks/2/target.npy"]["bytes"] == 128 + 12 * 12 * 10


@settings(deadline=None)
@given(
    st.sampled_from(PRODUCTS),
    st.lists(st.integers(-40_000, 70_000), min_size=1, max_size=20),
    st.floats(-1, 1, width=32),
)
def test_numbers_are_small_only_where_that_loses_nothing(
    way: Numbers, numbers: list[int], odd: float
) -> None:
    limits = np.iinfo(way.dtype)
    whole = np.clip(numbers, limits.min, limits.max).astype(way.dtype)
    values = way.decode(whole)
    found = way.encode(values)
    assert found is not None
    np.testing.assert_array_equal(found, whole)
    for spoilt in (np.append(values, np.float32(odd)), np.append(values, np.float32(1e6))):
        kept = way.encode(spoilt)
        assert kept is None or np.array_equal(way.decode(kept), spoilt)
    assert way.encode(np.append(values, np.float32(1e6))) is None


def test_a_late_value_that_does_not_fit_changes_how_all_are_kept(tmp_path: Path) -> None:
    late = samples(NAIP, "late", 40)
    late.pixels[33, 1, 2, 3] = 7.5
    source = Few({"naip": NAIP}, {"naip": (late,)})
    pack.pack(source, tmp_path / "a", Order(size_px=SIZE))
    (block,) = opened(tmp_path / "a").pretraining("naip", SIZE).blocks
    same(block.read(np.arange(40)), late)
    whole = Few({"naip": NAIP}, {"naip": (late.read(np.arange(33)),)})
    pack.pack(whole, tmp_path / "b", Order(size_px=SIZE))
    dtypes = [np.load(tmp_path / s / "pretraining/naip/0/pixels.npy").dtype for s in "ab"]
    assert dtypes == [np.float32, np.uint8]


def test_places_that_become_known_late_are_unknown_before(tmp_path: Path) -> None:
    known = samples(NAIP, "n", 20, lonlat=lonlats(20), dates=np.full(20, "2021-03-04"))

    class Late(Few):
        def pretraining(self, sensor: str, size_px: int) -> Pool:
            return Pool((Forgetful(),), "late")

    class Forgetful:
        kind, quick = known.kind, True

        def __len__(self) -> int:
            return 20

        def read(self, rows: Rows) -> Samples:
            some = known.read(rows)
            return some if rows[0] > 12 else replace(some, lonlat=None, dates=None)

    pack.CHUNK_BYTES = 7_000  # the fixture puts it back
    pack.pack(Late({"naip": NAIP}, {}), tmp_path / "s", Order(size_px=SIZE))
    (read,) = everything(opened(tmp_path / "s").pretraining("naip", SIZE))
    assert read.lonlat is not None and read.dates is not None
    blank = int(np.isnan(read.lonlat).all(axis=1).sum())
    assert 0 < blank < 20
    assert known.lonlat is not None
    np.testing.assert_array_equal(read.lonlat[blank:], known.lonlat[blank:])
    assert read.dates.tolist() == [""] * blank + ["2021-03-04"] * (20 - blank)


def test_the_files_are_those_that_numpy_writes(stores: Mapping[str, Path]) -> None:
    def saved(array: Numbers_) -> bytes:
        out = io.BytesIO()
        np.save(out, array, allow_pickle=False)
        return out.getvalue()

    source, folder = few(), stores["npy"] / "pretraining" / "s1" / "0"
    block = source.blocks["s1"][0]
    text = "".join(block.ids.tolist()).encode()
    assert block.lonlat is not None and block.dates is not None
    for name, array in {
        "pixels": block.pixels,
        "ids": np.cumsum([len(one.encode()) for one in block.ids.tolist()]),
        "ids-text": np.frombuffer(text, np.uint8),
        "lonlat": block.lonlat,
        "dates": block.dates.astype("S10"),
    }.items():
        assert (folder / f"{name}.npy").read_bytes() == saved(array), name


GOLDEN = {
    "schema": 2,
    "format": "npy",
    "size_px": 2,
    "leakage_km": 0.0,
    "source": {"source": "few", "of": 1},
    "caveats": ["Only a few."],
    "sensors": [
        {
            "name": "own",
            "title": "One band",
            "gsd_m": 3.0,
            "bands": [
                {
                    "name": "x", "gsd_m": 3.0, "unit": "reflectance", "wavelength_um": 0.5,
                    "fwhm_um": 0.1, "polarisation": None, "frequency_ghz": None,
                }
            ],
            "places": "few/own",
            "limit": None,
            "chosen": 2,
            "left_out": 0,
            "unplaced": 1,
            "unsupported": [],
            "blocks": [
                {
                    "block": 0,
                    "bands": [
                        {
                            "name": "x", "gsd_m": 3.0, "unit": "reflectance", "wavelength_um": 0.5,
                            "fwhm_um": 0.1, "polarisation": None, "frequency_ghz": None,
                        }
                    ],
                    "gsd_m": 3.0,
                    "rows": 2,
                    "height": 2,
                    "width": 2,
                    "dtype": "<u2",
                    "scale": 0.0001,
                    "offset": 0.0,
                    "text_bytes": 3,
                    "lonlat": True,
                    "dates": False,
                    # Of 0, 0.25, 0.5, ... 1.75.
                    "statistics": [
                        {
                            "band": "x", "mean": 0.875, "deviation": 0.57282196186948,
                            "min": 0.0, "max": 1.75,
                        }
                    ],
                }
            ],
        }
    ],
    "items": [],
    "tasks": [],
    "settings": {
        "schema": 2, "source": {"source": "few", "of": 1}, "data": {}, "sensors": ["own"],
        "size_px": 2, "samples": None, "leakage_km": 0.0, "format": "npy", "chunk_bytes": 30_000,
    },
}  # fmt: skip


def test_a_manifest_worked_out_by_hand(tmp_path: Path) -> None:
    own = Sensor("own", "One band", 3.0, optical(Unit.REFLECTANCE, ("x", 3.0, 0.5, 0.1)))
    pixels = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2) / 4
    places = np.array([[8.5, 47.25], [np.nan, np.nan]])
    two = Samples("own", own.bands, 3.0, pixels, np.array(["a", "bc"]), places)
    pack.pack(Few({"own": own}, {"own": (two,)}), tmp_path / "s", Order(size_px=2))
    found = json.loads((tmp_path / "s" / MANIFEST).read_text())
    deviation = found["sensors"][0]["blocks"][0]["statistics"][0].pop("deviation")
    assert deviation == pytest.approx(math.sqrt(sum((i - 3.5) ** 2 for i in range(8)) / 8) / 4)
    golden = json.loads(json.dumps(GOLDEN))
    del golden["sensors"][0]["blocks"][0]["statistics"][0]["deviation"]
    files = found.pop("files")
    del found["seal"]
    assert found == golden
    assert list(found) == list(golden)
    folder = "pretraining/own/0"
    assert {name: one["bytes"] for name, one in files.items()} == {
        f"{folder}/pixels.npy": 128 + 8 * 2,
        f"{folder}/ids.npy": 128 + 2 * 8,
        f"{folder}/ids-text.npy": 128 + 3,
        f"{folder}/lonlat.npy": 128 + 2 * 2 * 8,
    }


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**32))
def test_statistics_of_chunks_are_those_of_all(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(300, 2, (n, 3, 4, 4)).astype(np.float32) for n in sizes]
    moments = growing.Moments.of(parts[0])
    for part in parts[1:]:
        moments = growing.Moments.from_fields(json.loads(json.dumps(moments.as_fields()))) + (
            growing.Moments.of(part)
        )
    whole = np.concatenate(parts).astype(np.float64)
    bands = optical(Unit.BRIGHTNESS8, ("a", 1, 1, 1), ("b", 1, 1, 1), ("c", 1, 1, 1))
    for c, said in enumerate(moments.statistics(bands)):
        assert said["mean"] == pytest.approx(whole[:, c].mean(), rel=1e-12)
        assert said["deviation"] == pytest.approx(whole[:, c].std(), rel=1e-9)
        assert (said["min"], said["max"]) == (whole[:, c].min(), whole[:, c].max())


# A part of it.


def test_a_part_is_drawn_by_the_plan_and_stays_aligned(tmp_path: Path) -> None:
    source = few()
    pack.pack(source, tmp_path / "s", Order(sensors=("s2", "s1"), size_px=SIZE, samples=17))
    store = opened(tmp_path / "s")
    assert list(store.sensors) == ["s2", "s1"]
    assert store.places("s1") == store.places("s2") != "few/pairs"
    chosen = np.sort(permute(np.arange(17), 40, "pack", "few/pairs"))
    (two,) = everything(store.pretraining("s2", SIZE))
    same(two, source.blocks["s2"][0].read(chosen))
    one, other = everything(store.pretraining("s1", SIZE))
    first = chosen < 25
    same(one, source.blocks["s1"][0].read(chosen[first]))
    same(other, source.blocks["s1"][1].read(chosen[~first] - 25))


def test_a_source_without_end_gives_as_many_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = samples(NAIP, "n", 3)

    class Endless:
        kind, quick = block.kind, False

        def __len__(self) -> int:
            return 2**62

        def read(self, rows: Rows) -> Samples:
            pixels = np.broadcast_to((rows % 251)[:, None, None, None], (len(rows), 4, SIZE, SIZE))
            ids = rows.astype(np.str_)
            return Samples("naip", NAIP.bands, 1.0, pixels.astype(np.float32), ids)

    class Ever(Few):
        def pretraining(self, sensor: str, size_px: int) -> Pool:
            return Pool((Endless(),), "ever")

    monkeypatch.setattr(pack, "SAMPLES", 33)
    for name, count in (("told", 21), ("untold", None)):
        pack.pack(Ever({"naip": NAIP}, {}), tmp_path / name, Order(size_px=SIZE, samples=count))
        (read,) = everything(opened(tmp_path / name).pretraining("naip", SIZE))
        rows = np.sort(permute(np.arange(count or 33), 2**62, "pack", "ever"))
        assert read.ids.tolist() == [str(row) for row in rows]
        np.testing.assert_array_equal(read.pixels[:, 0, 0, 0], rows % 251)


# Leakage.


def haversine_km(a: Numbers_, b: Numbers_) -> Numbers_:
    """Distances (n, m) along great circles, written otherwise than in the source."""
    (lon, lat), (lon2, lat2) = np.deg2rad(a).T[..., None], np.deg2rad(b).T[:, None]
    half = np.sin((lat - lat2) / 2) ** 2
    half = half + np.cos(lat) * np.cos(lat2) * np.sin((lon - lon2) / 2) ** 2
    return 2 * EARTH_KM * np.arcsin(np.sqrt(half))


places = st.tuples(st.floats(-180, 180), st.floats(-90, 90))


@settings(deadline=None)  # the first call imports the tree
@given(
    st.lists(places, min_size=1, max_size=8),
    st.lists(places, min_size=1, max_size=8),
    st.floats(0.01, 999),
)
def test_nearness_is_that_of_the_haversine(
    some: list[tuple[float, float]], others: list[tuple[float, float]], km: float
) -> None:
    a, b = np.array(some), np.array(others)
    apart = haversine_km(a, b).min(axis=1)
    assume((abs(apart - km) > 1e-6 * km + 1e-6).all())
    np.testing.assert_array_equal(Held(b).near(a, len(a), km), apart <= km)
    unknown = np.vstack([a, [[np.nan, np.nan]]])
    assert not Held(b).near(unknown, len(unknown), km)[-1]
    assert not Held(b).near(None, 3, km).any()


@settings(deadline=None)
@given(st.floats(-180, 180), st.floats(-80, 80), st.floats(0.01, 900), st.booleans())
def test_nearness_ends_where_the_distance_does(
    lon: float, lat: float, km: float, north: bool
) -> None:
    """Along a meridian, and along the equator, degrees are distances."""
    degrees, lat = math.degrees(km / EARTH_KM), lat if north else 0.0
    way = np.array([0, 1] if north else [1, 0]) * np.array([[0.999], [1.001]]) * degrees
    found = Held(np.array([[lon, lat]])).near(np.array([lon, lat]) + way, 2, km)
    assert found.tolist() == [True, False]


@pytest.mark.parametrize("when", ["packing", "reading", "more at reading"])
def test_rows_near_held_items_are_left_out_of_every_sensor_that_shares_the_list(
    tmp_path: Path, when: str
) -> None:
    source, km = few(), 4.0
    floods, *_, heights = source.labels
    source.labels = (floods, heights)
    ((train, val, test),) = floods.folds
    held = np.concatenate([val, test])
    # The other sensor knows other places for some rows, and drops them for both. Far from all else: one
    # near an item that validates, and one near an item that may be trained on.
    lonlat = source.blocks["s2"][0].lonlat
    assert lonlat is not None
    assert floods.samples.lonlat is not None
    for row, item, place in ((7, test[0], None), (8, val[0], (20, 60)), (9, train[0], (30, 60))):
        if place:
            floods.samples.lonlat[item] = place
        lonlat[row] = floods.samples.lonlat[item] + 0.001
    packed = {"packing": km, "reading": 0.0, "more at reading": 1.0}[when]
    pack.pack(source, tmp_path / "s", Order(size_px=SIZE, leakage_km=packed))
    store = opened(tmp_path / "s", 0.0 if when == "packing" else km)

    near = np.zeros(40, bool)
    own = np.concatenate(
        [block.lonlat for block in source.blocks["s1"] if block.lonlat is not None]
    )
    for known in (own, lonlat):
        apart = haversine_km(known, floods.samples.lonlat[held])
        near |= np.nan_to_num(apart, nan=1e9).min(axis=1) <= km
    assert 3 < near.sum() < 37
    assert near[7:10].tolist() == [True, True, False]
    kept = np.flatnonzero(~near)
    (two,) = everything(store.pretraining("s2", SIZE))
    same(two, source.blocks["s2"][0].read(kept))
    one, other = everything(store.pretraining("s1", SIZE))
    same(one, source.blocks["s1"][0].read(kept[kept < 25]))
    same(other, source.blocks["s1"][1].read(kept[kept >= 25] - 25))
    assert store.places("s1") == store.places("s2") != "few/pairs"
    assert len(store.pretraining("naip", SIZE)) == 31

    _, kept_away, unchecked = store.caveats
    assert "keeps 4 km" in kept_away
    assert f"{near.sum()} of 40 places of s1, {near.sum()} of 40 places of s2, 0 of 31" in kept_away
    assert "1 of 40 places of s1, 31 of 31 places of naip" in unchecked
    assert "task heights" in unchecked
    if when != "packing":
        assert store.identity != opened(tmp_path / "s").identity
        assert store.places("naip") != opened(tmp_path / "s").places("naip")
        assert opened(tmp_path / "s", 1e-9 if when == "reading" else 0.5).identity != store.identity


def test_a_distance_that_leaves_nothing_is_refused(
    tmp_path: Path, stores: Mapping[str, Path]
) -> None:
    with pytest.raises(ValueError, match="leaves no place of s1") as error:
        opened(stores["npy"], 900).pretraining("s1", SIZE)
    one_line(error.value)
    with pytest.raises(ValueError, match=r"leaves no place of s1\+s2"):
        pack.pack(few(), tmp_path / "s", Order(size_px=SIZE, leakage_km=900))
    with pytest.raises(ValueError, match="is not finished"):
        opened(tmp_path / "s")


# Interruptions.


def tampered(kill_at: int, spoil: bool) -> Callable[[], None]:
    """Ends this process by SIGKILL before the n-th time that something is made to last."""
    counts = {"n": 0}

    def count(original: Callable[..., Any], file: bool) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counts["n"] += 1
            if counts["n"] == kill_at:
                if file and spoil:  # what was not made to last may be anything
                    descriptor = args[0]
                    os.pwrite(descriptor, b"torn" * 50, os.fstat(descriptor).st_size)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        return call

    os.fsync, os.replace = count(os.fsync, True), count(os.replace, False)
    Path.mkdir, Path.unlink = count(Path.mkdir, False), count(Path.unlink, False)  # type: ignore[method-assign]
    return lambda: None


def _packed(out: Path, form: str, kill_at: int, spoil: bool) -> None:
    if kill_at:
        tampered(kill_at, spoil)
    pack.pack(few(), out, Order(size_px=SIZE, samples=20, format=form, leakage_km=2.0))


def die_everywhere(folder: str, form: str) -> None:
    """Pack, killed before every 11th step in turn, and go on; prints what came of it.

    Forks, and so has a process of its own.
    """
    pack.CHUNK_BYTES, growing.BLANK_ROWS = 30_000, 4
    context, root = multiprocessing.get_context("fork"), Path(folder)
    _packed(root / "whole", form, 0, False)
    whole, wrong, n = contents(root / "whole"), list[str](), 0
    stride = int(os.environ.get("STRIDE", 11))  # 1 takes some minutes
    while True:
        n += stride
        out = root / f"at{n}"
        process = context.Process(target=_packed, args=(out, form, n, n % 2 == 0))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        finished = (out / MANIFEST).is_file()
        try:
            opened(out)
        except ValueError as error:
            one_line(error)
            wrong += [f"{n}: refused with a manifest"] if finished else []
        else:
            wrong += [] if finished else [f"{n}: opened without a manifest"]
        wrong += [f"{n}: check is content"] if not finished and not problems(str(out)) else []
        # A second death on the way, a few steps on.
        process = context.Process(target=_packed, args=(out, form, 9, True))
        process.start()
        process.join()
        _packed(out, form, 0, False)
        found = contents(out)
        wrong += [f"{n}: {name}" for name in {*found, *whole} if found.get(name) != whole.get(name)]
        shutil.rmtree(out)
    print(json.dumps({"steps": n, "wrong": wrong}))


@pytest.mark.parametrize("form", FORMATS)
def test_a_store_made_in_many_goes_is_the_one_made_in_one(tmp_path: Path, form: str) -> None:
    code = f"from tests.data.test_shards import die_everywhere as d; d({str(tmp_path)!r}, {form!r})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["steps"] > 60


def test_a_second_call_goes_on_and_reads_nothing_again(tmp_path: Path) -> None:
    class Counting(Few):
        reads: list[tuple[str, int]]

        def pretraining(self, sensor: str, size_px: int) -> Pool:
            pool, reads = super().pretraining(sensor, size_px), self.reads

            class Block:
                def __init__(self, block: Any) -> None:
                    self.block, self.kind, self.quick = block, block.kind, True

                def __len__(self) -> int:
                    return len(self.block)

                def read(self, rows: Rows) -> Samples:
                    reads.extend((sensor, int(row)) for row in rows)
                    if len(reads) > limit:
                        raise KeyboardInterrupt
                    return self.block.read(rows)

            return replace(pool, blocks=tuple(Block(block) for block in pool.blocks))

        def labelled(self, task: Task, size_px: int) -> Labelled:
            self.reads.append((task.name, -1))
            return super().labelled(task, size_px)

    plain = few()
    source = Counting(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    source.reads, limit = [], 60
    with pytest.raises(KeyboardInterrupt):
        pack.pack(source, tmp_path / "s", Order(size_px=SIZE))
    assert (tmp_path / "s" / JOURNAL).is_file()
    first, limit, source.reads = source.reads, 10**9, []
    told: list[tuple[str, int, int]] = []
    pack.pack(source, tmp_path / "s", Order(size_px=SIZE), lambda *what: told.append(what))
    again = set(first) & set(source.reads)
    assert len(again) <= 2 * 25  # the chunk that was under way
    assert not any(row == -1 for _, row in source.reads)
    assert told[1][1] > 0  # progress begins where it stood
    assert all(0 <= done <= total for _, done, total in told)
    before = {
        name: path.stat().st_mtime_ns
        for path in (tmp_path / "s").rglob("*")
        for name in [str(path)]
    }
    source.reads = []
    pack.pack(source, tmp_path / "s", Order(size_px=SIZE))
    assert source.reads == []
    after = {
        name: path.stat().st_mtime_ns
        for path in (tmp_path / "s").rglob("*")
        for name in [str(path)]
    }
    assert before.keys() == after.keys()
    assert all(before[name] == after[name] for name in before if Path(name).is_file())


def test_other_settings_and_other_folders_are_refused(
    tmp_path: Path, stores: Mapping[str, Path]
) -> None:
    store, source = stores["npy"], few()
    other = replace(source, identity={"source": "few", "of": 2})
    (tmp_path / "notes.txt").write_text("mine")
    for out, given_, order, match in (
        (store, source, Order(size_px=SIZE, samples=9), "samples=None, not 9"),
        (store, source, Order(size_px=SIZE, format="litdata"), "format='npy', not 'litdata'"),
        (store, source, Order(sensors=("s1",), size_px=SIZE), "sensors="),
        (store, source, Order(size_px=SIZE, data={"train": 7}), r"data=\{\}, not \{'train': 7\}"),
        (store, other, Order(size_px=SIZE), "source=another"),
        (tmp_path, source, Order(size_px=SIZE), "holds notes.txt"),
        (tmp_path / "notes.txt", source, Order(size_px=SIZE), "cannot be a folder"),
        (tmp_path / "x", source, Order(sensors=("s3",)), "unknown sensor 's3'"),
        (tmp_path / "x", source, Order(sensors=("s1", "s1")), "names one twice"),
    ):  # fmt: skip
        before = contents(store)
        with pytest.raises(ValueError, match=match) as error:
            pack.pack(given_, out, order)
        one_line(error.value)
        assert contents(store) == before
    for options in ({"size_px": 0}, {"samples": 0}, {"leakage_km": -1.0}, {"format": "zip"}):
        with pytest.raises(ValueError, match=r"must be|unknown format") as error:
            Order(**options)  # type: ignore[arg-type]
        one_line(error.value)


def test_two_cannot_pack_into_one_folder(tmp_path: Path) -> None:
    with (
        pack._claimed(tmp_path / "s"),
        pytest.raises(ValueError, match="is being packed by another process"),
    ):
        pack.pack(few(), tmp_path / "s", Order(size_px=SIZE))


def test_a_source_that_breaks_its_word_is_refused(tmp_path: Path) -> None:
    def spoilt(change: Callable[[Samples], Samples]) -> Few:
        return Few({"naip": NAIP}, {"naip": (change(samples(NAIP, "n", 9)),)})

    def holed(one: Samples) -> Samples:
        one.pixels[4, 1, 2, 3] = np.nan
        return one

    cases: list[tuple[Few, str]] = [
        (spoilt(holed), "sample n/ø4 holds a value that is not finite"),
        (spoilt(lambda one: replace(one, lonlat=np.full((9, 2), 91.0))), "lonlat must be"),
        (spoilt(lambda one: replace(one, dates=np.full(9, "15 July 2020"))), "dates must be days"),
        (spoilt(lambda one: replace(one, pixels=one.pixels.astype(np.float64))), "not float32"),
        (spoilt(lambda one: replace(one, pixels=one.pixels / 300)), "NIR|R is 0.* on average"),
        (spoilt(lambda one: replace(one, pixels=one.pixels[..., :4])), "than it promised"),
        (Few({"naip": NAIP}, {"naip": ()}), "must have rows"),
        (replace(few(), lists={"s1": "one", "naip": "one"}), "equally many"),
        *((replace(few(), labels=(one,)), match) for one, match in _untrue_labels()),
    ]
    for k, (source, match) in enumerate(cases):
        with pytest.raises(ValueError, match=match) as error:
            pack.pack(source, tmp_path / str(k), Order(size_px=SIZE))
        one_line(error.value)
        assert not (tmp_path / str(k) / MANIFEST).exists()


def _untrue_labels() -> Iterator[tuple[Labelled, str]]:
    floods, _, water, new, *_ = few().labels
    before, empty = new.before, np.empty(0, np.int64)
    assert before is not None
    holed = before.pixels.copy()
    holed[4, 1, 2, 3] = np.nan
    whole = replace(water, target=water.target.astype(np.int64))
    yield whole, "water gives targets of int64, not uint8"
    yield replace(floods, folds=((empty, empty, np.array([12])),)), "beyond the 12 that there are"
    for wrong in ({"ids": before.ids[::-1]}, {"gsd_m": 20.0}, {"bands": before.bands[::-1]}):
        untrue = replace(before, **wrong)  # type: ignore[arg-type]
        yield replace(new, before=untrue), "new water: pixels before have other"
    untrue = replace(before, pixels=holed)
    yield replace(new, before=untrue), "before, sample items/ø4 holds a value"


# Damage.


def read_all(store: Shards) -> tuple[dict[str, list[Samples]], dict[str, Labelled]]:
    pools = {name: everything(store.pretraining(name, SIZE)) for name in store.sensors}
    labels = {t.name: store.labelled(t, SIZE) for name in store.sensors for t in store.tasks(name)}
    assert all(isinstance(line, str) for line in store.caveats)
    return pools, labels


@pytest.fixture(scope="module", params=FORMATS)
def victim(
    request: pytest.FixtureRequest,
    stores: Mapping[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A store to be damaged, and mended after each time."""
    copy = tmp_path_factory.mktemp("victim") / request.param
    shutil.copytree(stores[request.param], copy)
    return copy


def damage(draw: st.DrawFn, content: bytes, others: list[bytes]) -> bytes | None:
    kind = draw(st.sampled_from(["flip", "cut", "grow", "replace", "remove", "blank"]))
    if kind == "flip":
        at, mask = draw(st.integers(0, len(content) - 1)), draw(st.integers(1, 255))
        return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "grow":
        return content + draw(st.binary(min_size=1, max_size=40))
    if kind == "blank":
        return bytes(len(content))
    return draw(st.sampled_from(others)) if kind == "replace" else None


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_file_is_refused_and_found(victim: Path, data: st.DataObject) -> None:
    names = sorted(contents(victim))
    name = data.draw(st.sampled_from([MANIFEST, *names]))
    path, others = victim / name, [p.read_bytes() for p in map(victim.joinpath, names)]
    whole = path.read_bytes()
    spoilt = data.draw(st.composite(damage)(whole, others))
    assume(spoilt != whole)
    try:
        if spoilt is None:
            path.unlink()
        else:
            path.write_bytes(spoilt)
        try:
            pools, labels = read_all(opened(victim))
        except ValueError as error:
            one_line(error)
        else:
            source = few()
            # Pretraining is read without checksums: what is wrong there is for ``check`` to find.
            if not name.startswith("pretraining/"):
                for sensor, blocks in pools.items():
                    for one, other in zip(blocks, source.blocks[sensor], strict=True):
                        same(one, other)
            for one in source.labels:
                same_labels(labels[one.task.name], one)
        found = problems(str(victim))
        harmless = name == MANIFEST and spoilt is not None and _says_the_same(spoilt, whole)
        assert harmless or found
        assert all("\n" not in line for line in found)
    finally:
        path.write_bytes(whole)


def _says_the_same(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_manifest_that_lies_is_refused_in_one_line(victim: Path, data: st.DataObject) -> None:
    path = victim / MANIFEST
    whole = path.read_bytes()
    fields = json.loads(whole)
    steps = data.draw(st.sampled_from(sorted(leaves(fields), key=repr)))
    assume(steps and steps != ("seal",))
    at = fields
    for step in steps[:-1]:
        at = at[step]
    old = at[steps[-1]]
    near = [0, 1, -1, 2**31, 2**62, 2**70, 0.5, "", "../../x", "<f8", "|O", None, True, [], {}]
    if isinstance(old, int | float) and not isinstance(old, bool):
        near += [old + 1, -old, old * 2]
    at[steps[-1]] = data.draw(st.sampled_from(near) | json_values)
    assume(at[steps[-1]] != old)
    try:
        path.write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=r"its seal is broken|schema is|no manifest") as error:
            opened(victim)
        one_line(error.value)
        fields["seal"] = seal(fields)
        path.write_text(json.dumps(fields))
        try:
            read_all(opened(victim))
        except ValueError as wrong:
            one_line(wrong)
        assert all("\n" not in line for line in problems(str(victim)))
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "name", ["tasks/2/target.npy", "items/1/pixels.npy", "items/1/ids-text.npy"]
)
def test_a_mask_or_an_earlier_image_that_differs_in_a_bit_is_found(victim: Path, name: str) -> None:
    path = victim / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert problems(str(victim)) == [
            f"{path} was altered: its SHA-256 is not the manifest's; fetch the file again, or pack the "
            "store anew"
        ]
        store = opened(victim)  # sizes and heads are right
        tasks = {each.name: each for each in store.tasks("s1")}
        store.labelled(tasks["floods"], SIZE)
        with pytest.raises(ValueError, match="was altered") as error:
            store.labelled(tasks["water" if name.startswith("tasks") else "new water"], SIZE)
        one_line(error.value)
    finally:
        path.write_bytes(whole)


def test_a_store_from_before_dense_tasks_is_read(tmp_path: Path) -> None:
    old, dense = tmp_path / "old", {"water", "new water", "lost water"}
    source = few()
    source.labels = tuple(one for one in source.labels if one.task.name not in dense)
    pack.pack(source, old, Order(size_px=SIZE))
    fields = json.loads((old / MANIFEST).read_text())
    fields["schema"] = fields["settings"]["schema"] = 1
    for one in fields["tasks"]:
        assert one.pop("before") is None
    for version, read in ((1, True), (3, False)):
        fields["schema"] = version
        (old / MANIFEST).write_text(json.dumps(fields | {"seal": seal(fields)}))
        if read:
            _, labels = read_all(opened(old))
            for one in source.labels:
                same_labels(labels[one.task.name], one)
            assert problems(str(old)) == []
            with pytest.raises(ValueError, match=r"with schema=1, not 2; .* choose another out="):
                pack.pack(few(), old, Order(size_px=SIZE))
        else:
            with pytest.raises(ValueError, match=r"schema is 3, not 2; .* pack the store anew"):
                opened(old)


BROKEN = {
    "task": "of another sensor",
    "length": "share their places",
    "folds": "0 folds",
    "no image before": "has images before",
    "an image before": "has images before",
    "other images before": "before and after differ",
    "nowhere": "before 9 of 3",
    "mask as numbers": r"water \(segmentation\) has target <i8",
    "numbers as mask": r"floods \(classification\) has target \|u1",
}


@pytest.mark.parametrize("change", BROKEN)
def test_parts_of_a_manifest_that_do_not_fit_each_other_are_refused(
    victim: Path, change: str
) -> None:
    path = victim / MANIFEST
    whole = path.read_bytes()
    fields = json.loads(whole)
    if change == "task":
        fields["tasks"][0]["task"]["sensor"] = "s2"
    elif change == "length":  # two lists become one, of two lengths
        fields["sensors"][2]["places"] = fields["sensors"][0]["places"]
    else:
        k, key, value = {
            "folds": (0, "folds", []),
            "no image before": (3, "before", None),
            "an image before": (2, "before", 1),
            "other images before": (3, "before", 2),
            "nowhere": (3, "before", 9),
            "mask as numbers": (2, "target", "<i8"),
            "numbers as mask": (0, "target", "|u1"),
        }[change]
        fields["tasks"][k][key] = value
    fields["seal"] = seal(fields)
    try:
        path.write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=BROKEN[change]):
            opened(victim)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["../../up", "/etc", "a/b", "S1", "all"])
def test_no_name_in_a_manifest_leads_out_of_the_store(victim: Path, name: str) -> None:
    path = victim / MANIFEST
    whole = path.read_bytes()
    fields = json.loads(whole)
    fields["sensors"][2]["name"] = name
    fields["seal"] = seal(fields)
    try:
        path.write_text(json.dumps(fields))
        with pytest.raises(ValueError, match="sensor name"):
            opened(victim)
    finally:
        path.write_bytes(whole)


def test_everything_that_is_wrong_is_said_at_once(
    tmp_path: Path, stores: Mapping[str, Path]
) -> None:
    shutil.copytree(stores["npy"], tmp_path / "s")
    folder = tmp_path / "s" / "pretraining"
    (folder / "naip/0/pixels.npy").unlink()
    os.truncate(folder / "s1/0/pixels.npy", 500)
    with (folder / "s2/0/pixels.npy").open("rb+") as file:
        file.seek(4000)
        file.write(b"\xff\xfe")
    shutil.copy(folder / "s1/0/ids.npy", folder / "s2/0/ids.npy")
    found = problems(str(tmp_path / "s"))
    assert len(found) == 4
    for name, word in (
        ("naip/0/pixels.npy", "missing"), ("s1/0/pixels.npy", "500 bytes"),
        ("s2/0/pixels.npy", "altered"), ("s2/0/ids.npy", "bytes"),
    ):  # fmt: skip
        assert any(name in line and word in line for line in found), (name, found)


@pytest.mark.parametrize("root", ["", "nowhere"])
def test_a_folder_without_a_store_is_refused(tmp_path: Path, root: str) -> None:
    with pytest.raises(ValueError, match="must be the folder of a packed store"):
        Shards(ShardsConfig(root and str(tmp_path / root)))
    with pytest.raises(ValueError, match=r"does not exist: every store has one"):
        opened(tmp_path)


def test_another_size_and_unknown_names_are_refused(stores: Mapping[str, Path]) -> None:
    store = opened(stores["npy"])
    with pytest.raises(ValueError, match=r"images of 8 px, and 32 px are wanted; .* size_px=32"):
        store.pretraining("s1", 32)
    with pytest.raises(ValueError, match="unknown sensor 's3'"):
        store.pretraining("s3", SIZE)
    with pytest.raises(ValueError, match="unknown task"):
        store.labelled(replace(store.tasks("s1")[0], name="fluds"), SIZE)


# As a source among sources.


@pytest.mark.parametrize("form", FORMATS)
def test_a_block_travels_to_another_process_without_its_pixels(
    stores: Mapping[str, Path], form: str
) -> None:
    pool = opened(stores[form]).pretraining("s2", SIZE)
    before = everything(pool)[0]
    sent = pickle.dumps(pool)
    assert len(sent) < 30_000 < before.pixels.nbytes
    same(everything(pickle.loads(sent))[0], before)


def test_reading_takes_memory_for_what_is_read_only(tmp_path: Path) -> None:
    many = samples(NAIP, "n", 30_000, size=2)
    pack.CHUNK_BYTES = 2**20  # the fixture puts it back
    pack.pack(Few({"naip": NAIP}, {"naip": (many,)}), tmp_path / "s", Order(size_px=2))
    tracemalloc.start()
    pool = opened(tmp_path / "s").pretraining("naip", 2)
    read = pool.blocks[0].read(np.array([29_999, 0, 12_345]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    same(read, many.read(np.array([29_999, 0, 12_345])))
    assert peak < 300_000 < many.pixels.nbytes


def test_identity_is_that_of_the_content(tmp_path: Path, stores: Mapping[str, Path]) -> None:
    shutil.copytree(stores["npy"], tmp_path / "moved")
    here, there = opened(stores["npy"]).identity, opened(tmp_path / "moved").identity
    assert here == there
    assert here["source"] == "shards"
    assert here["store"]["of"] == "few"
    json.dumps(here)
    changed = few()
    changed.blocks["naip"][0].pixels[0, 0, 0, 0] += 1
    pack.pack(changed, tmp_path / "other", Order(size_px=SIZE))
    assert opened(tmp_path / "other").identity != here


def test_a_run_sees_the_same_batches_from_a_store_as_from_its_source(
    stores: Mapping[str, Path],
) -> None:
    from gfmsum.data.modules import MixDataModule
    from gfmsum.mix import Mix

    def batches(source: Source) -> list[Any]:
        mix = Mix.parse("s1+s2+own", list(source.sensors))
        module = MixDataModule(source, mix, unique=36, seen=72, batch=12, image_px=SIZE)
        return list(module.train_dataloader())

    wanted = batches(few())
    for form in FORMATS:
        for one, other in zip(batches(opened(stores[form])), wanted, strict=True):
            assert [part.ids for part in one.parts] == [part.ids for part in other.parts]
            for a, b in zip(one.parts, other.parts, strict=True):
                assert a.kind == b.kind
                np.testing.assert_array_equal(a.pixels.numpy(), b.pixels.numpy())


# litdata.


def test_a_store_at_an_address_is_read_through_litdata(
    stores: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pools, labels = read_all(Shards(ShardsConfig(f"local:{stores['litdata']}")))
    source = few()
    for name, blocks in pools.items():
        for one, other in zip(blocks, source.blocks[name], strict=True):
            same(one, other)
    for one in source.labels:
        same_labels(labels[one.task.name], one)
    with pytest.raises(ValueError, match="pack it with format=litdata"):
        Shards(ShardsConfig(f"local:{stores['npy']}"))
    with pytest.raises(ValueError, match="cannot be read") as error:
        Shards(ShardsConfig(f"local:{tmp_path}/nowhere"))
    one_line(error.value)


def test_a_file_at_an_address_that_is_not_the_manifests_is_refused(
    stores: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(stores["litdata"], tmp_path / "far")
    folder = tmp_path / "far/pretraining/s2/0"
    store = Shards(ShardsConfig(f"local:{tmp_path}/far"))
    whole = (folder / "ids.npy").read_bytes()
    (folder / "ids.npy").write_bytes(whole[:-1] + b"x")
    (block,) = store.pretraining("s2", SIZE).blocks
    with pytest.raises(ValueError, match="is not the file that the manifest names"):
        block.read(np.arange(2))
    (folder / "ids.npy").write_bytes(whole)
    index = json.loads((folder / "pixels/index.json").read_text())
    index["config"]["data_format"] = ["pickle"]
    (folder / "pixels/index.json").write_text(json.dumps(index))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty cache"))
    (block,) = Shards(ShardsConfig(f"local:{tmp_path}/far")).pretraining("s2", SIZE).blocks
    with pytest.raises(ValueError, match="is not the index of these chunks") as error:
        block.read(np.arange(2))
    one_line(error.value)


def test_without_litdata_one_is_told_how_to_get_it(
    stores: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install gfmsum\[litdata\]"):
        pack.pack(few(), tmp_path / "s", Order(format="litdata"))
    with pytest.raises(ValueError, match=r"pip install gfmsum\[litdata\]"):
        opened(stores["litdata"]).pretraining("s1", SIZE).blocks[0].read(np.arange(1))
    with pytest.raises(ValueError, match=r"pip install gfmsum\[litdata\]"):
        Shards(ShardsConfig("s3://bucket/store"))
    opened(stores["npy"]).pretraining("s1", SIZE).blocks[0].read(np.arange(1))


def test_the_index_is_what_litdata_itself_says_of_bytes(tmp_path: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(tmp_path), chunk_size=5)
    writer.add_item(0, b"bytes")
    said = writer.get_config()
    ours = chunks._config(5)
    assert ours == {name: said[name] for name in ours}


# The real sources.


@pytest.mark.parametrize("form", FORMATS)
def test_the_synthetic_world_comes_back_as_it_was(tmp_path: Path, form: str) -> None:
    pack.CHUNK_BYTES = 2**20
    source = Synthetic(SyntheticConfig(train=60, val=60, test=60))
    order = Order(size_px=16, samples=40, format=form)
    pack.pack(source, tmp_path / "s", order)
    store = opened(tmp_path / "s")
    rows = np.sort(permute(np.arange(40), 2**62, "pack", source.places("s1")))
    assert len({store.places(name) for name in store.sensors}) == 1
    assert store.sensors == source.sensors
    for name in source.sensors:
        (block,) = source.pretraining(name, 16).blocks
        (read,) = everything(store.pretraining(name, 16))
        same(read, block.read(rows))
        for each in source.tasks(name):
            same_labels(store.labelled(each, 16), source.labelled(each, 16))
    assert store.caveats == source.caveats
    assert problems(str(tmp_path / "s")) == []


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder of real pixels is not here")
def test_real_pixels_come_back_as_they_were(tmp_path: Path) -> None:
    from gfmsum.data.local import Local

    pack.CHUNK_BYTES = 2**24
    source: Source = Local(LocalConfig(str(REAL)))
    names = ("s1", "modis")
    pack.pack(source, tmp_path / "s", Order(sensors=names, samples=900))
    store = opened(tmp_path / "s")
    assert store.sensors == {name: source.sensors[name] for name in names}
    for name in names:
        pool = source.pretraining(name, 32)
        size = len(pool)
        rows = np.arange(size)
        if size > 900:
            rows = np.sort(permute(np.arange(900), size, "pack", pool.places))
        ends, packed = pool.starts, iter(everything(store.pretraining(name, 32)))
        for block, start, end in zip(pool.blocks, ends, ends[1:], strict=False):
            mine = rows[(rows >= start) & (rows < end)] - start
            if len(mine):
                same(next(packed), block.read(mine))
        assert next(packed, None) is None
        assert store.unsupported(name) == source.unsupported(name)
        for each in source.tasks(name):
            same_labels(store.labelled(each, 32), source.labelled(each, 32))
    assert problems(str(tmp_path / "s")) == []
    # Floods lie in known places, and the chips that share them are near.
    far = opened(tmp_path / "s", 50.0)
    assert len(far.pretraining("modis", 32)) < len(store.pretraining("modis", 32))


def test_kinds_are_hashable_as_the_data_modules_need(stores: Mapping[str, Path]) -> None:
    (block,) = opened(stores["npy"]).pretraining("s2", SIZE).blocks
    assert {block.kind: 1} == {Kind("s2", S2.bands, 10.0): 1}
