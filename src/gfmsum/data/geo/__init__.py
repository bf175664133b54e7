"""The ``torchgeo`` source: a folder of data sets as torchgeo's classes lay them out, read in place.

Each data set lies in a folder of its own below ``data.root``, which is the ``root`` (or ``paths``) of its
classes. What is absent is not offered.

==================  ==============================  =======  ================================================
folder              class of torchgeo               sensor   what it gives; where, on huggingface.co/datasets
==================  ==============================  =======  ================================================
ssl4eo_s12          ``SSL4EOS12(split='s1')``       s1       pretraining; wangyi111/SSL4EO-S12
                    ``SSL4EOS12(split='s2c')``      s2       pretraining at the same places
ssl4eo_l            ``SSL4EOL(split='oli_sr')``     landsat  pretraining; torchgeo/ssl4eo_l
naip                ``NAIP``                        naip     pretraining; quarter quads ``m_*.tif`` as USDA
                                                             names them: planetarycomputer.microsoft.com
mod09a1             :class:`MOD09A1`, of ours       modis    pretraining; it says how to get the files
                    with maps of CGLS-LC100         modis    task lc100_modis: 11 classes of pixels, mean IoU
                                                             (:class:`.ModisCover`); zenodo.org/records/3939050
copernicus_bench    ``CopernicusBenchEuroSATS1``    s1       task eurosat_s1: 10 classes, accuracy;
                                                             wangyi111/Copernicus-Bench, as the next five
                    ``CopernicusBenchEuroSATS2``    s2       task eurosat_s2: 10 classes, accuracy
                    ``CopernicusBenchLCZS2``        s2       task lcz_s2: 17 classes, accuracy; needs h5py
                    ``CopernicusBenchDFC2020S1``    s1       task dfc2020_s1: 8 classes of pixels, mean IoU
                    ``CopernicusBenchDFC2020S2``    s2       task dfc2020_s2: the same masks
                    ``CopernicusBenchFloodS1``      s1       task flood_s1: 3 classes of pixels from before
                                                             and after, mean IoU
usavars             ``USAVars``                     naip     task usavars_treecover: percent, R2;
                                                             torchgeo/usavars
ssl4eo_l_benchmark  ``SSL4EOLBenchmark('oli_sr')``  landsat  task ssl4eo_l_nlcd: 8 classes by majority,
                                                             balanced accuracy (:class:`.LandCover`);
                                                             torchgeo/ssl4eo-l-benchmark
                                                    landsat  task ssl4eo_l_nlcd_masks: 13 classes of pixels,
                                                             mean IoU (:class:`.NLCDMasks`)
                                                    landsat  task ssl4eo_l_cdl_masks: 17 classes of pixels,
                                                             mean IoU (:class:`.CDLMasks`)
chesapeake_cvpr     ``ChesapeakeCVPR``              naip     task chesapeake_cvpr: 6 classes of pixels, mean
                                                             IoU (:class:`.Chesapeake`);
                                                             lila.science/datasets/chesapeakelandcover
==================  ==============================  =======  ================================================

**Classes of pixels.** Codes that a data set calls no data, void or background are UNLABELLED; which they are
is said in :mod:`gfmsum.data.geo.tasks`. Naming these tasks reads the masks of their training and test items,
for the floor.

**Places.** Patches and scenes are cut into tiles, row-major from the upper left; what remains at the right
and below is not used. A tile is a place, shown at one date only, which is a pure function of the place.
torchgeo's global random draws are not used, and Python's, NumPy's and torch's random states are left as
they were.

**What pretraining may see.** Tiles within ``data.leakage_km`` of a validation or test item of any task
above, or on it, are left out: how many is seen by comparing the pool's length with that of a folder without
the tasks. It needs the header of one file of every place, about a millisecond each, once in every process,
and for scenes the pixels: pack large folders (``python -m gfmsum.data pack``) and read the shards.

**Units.** :mod:`gfmsum.data.geo.physics` holds scale and unit of every data set, and bands go by name.
SSL4EO's Sentinel-1 is dB as it is, whatever torchgeo's data module divides it by. Some data sets that
torchgeo also reads are not offered, see :data:`REFUSED`. Nor is SatlasPretrain's NAIP, whose lists of
high-resolution images, and which of them lack the infrared, are not documented.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gfmsum.config import TorchgeoConfig
from gfmsum.data.geo.cover import ModisCover
from gfmsum.data.geo.ground import Held
from gfmsum.data.geo.labels import Labels
from gfmsum.data.geo.patches import Patches, l_splits, s12_splits
from gfmsum.data.geo.scenes import MOD09A1, Maps, Modis, Naip
from gfmsum.data.geo.tasks import (
    DFC2020S1,
    DFC2020S2,
    LCZS2,
    CDLMasks,
    Chesapeake,
    EuroSATS1,
    EuroSATS2,
    FloodS1,
    LandCover,
    NLCDMasks,
    TreeCover,
)
from gfmsum.data.sample import Labelled, Pool
from gfmsum.records import Task
from gfmsum.sensors import SENSORS, Sensor, unknown

__all__ = ["FOLDERS", "MOD09A1", "REFUSED", "Torchgeo"]

VERSION = 2  # raised when a change of code changes pixels

type Archive = Patches | Maps


@dataclass(frozen=True, slots=True)
class Found:
    """What a data set's folder holds."""

    archives: tuple[Archive, ...] = ()
    labels: tuple[Labels, ...] = ()
    unsupported: tuple[tuple[str, str, str], ...] = ()  # sensor, name and kind
    files: tuple[str, ...] = ()  # patterns of what is read


@dataclass(frozen=True, slots=True)
class Folder:
    """A data set by its folder: how to look into it, and what to do if it is empty."""

    look: Callable[[Path], Found]
    fetch: str


def _ssl4eo_s12(root: Path) -> Found:
    splits = s12_splits(root)
    if not splits:
        return Found()
    shared = Patches("ssl4eo_s12", splits)
    if shared.names:
        return Found((shared,), files=tuple(split.root.name for split in splits))
    alone = tuple(Patches(f"ssl4eo_s12/{split.root.name}", [split]) for split in splits)
    return Found(alone, files=tuple(split.root.name for split in splits))


def _ssl4eo_l(root: Path) -> Found:
    splits = l_splits(root)
    return Found((Patches("ssl4eo_l", splits),), files=("ssl4eo_l_oli_sr",)) if splits else Found()


def _naip(root: Path) -> Found:
    if next(root.rglob("m_*.tif"), None) is None:
        return Found()
    return Found((Maps("naip", Naip(root)),), files=(".",))


def _mod09a1(root: Path) -> Found:
    if next(root.rglob(MOD09A1.filename_glob), None) is None:
        return Found()
    labels = (ModisCover(root),) if ModisCover.maps(root) else ()
    return Found((Maps("mod09a1", Modis(root)),), labels, files=(".",))


def _copernicus_bench(root: Path) -> Found:
    labels: list[Labels] = []
    other: list[tuple[str, str, str]] = []
    files: list[str] = []
    if (root / "eurosat_s1" / "eurosat-train.txt").is_file():
        labels.append(EuroSATS1(root))
        files.append("eurosat_s1")
    if (root / "eurosat_s2" / "eurosat-train.txt").is_file():
        labels.append(EuroSATS2(root))
        files.append("eurosat_s2")
    if (root / "lcz_train.h5").is_file():
        files += ["lcz_train.h5", "lcz_val.h5", "lcz_test.h5"]
        if LCZS2.readable():
            labels.append(LCZS2(root))
        else:
            other.append(("s2", "lcz_s2", "classification, read by h5py, which is not installed"))
    if (root / "dfc2020_s1s2" / "dfc-train-new.csv").is_file():
        labels += [DFC2020S1(root), DFC2020S2(root)]
        files.append("dfc2020_s1s2")
    if (root / "flood_s1" / "grid_dict_train.json").is_file():
        labels.append(FloodS1(root))
        files.append("flood_s1")
    return Found((), tuple(labels), tuple(other), tuple(files))


def _usavars(root: Path) -> Found:
    if not (root / "uar").is_dir():
        return Found()
    names = ("uar", "treecover.csv", "train_split.txt", "val_split.txt", "test_split.txt")
    return Found((), (TreeCover(root),), files=names)


def _ssl4eo_l_benchmark(root: Path) -> Found:
    if not (root / "ssl4eo_l_oli_sr_benchmark").is_dir():
        return Found()
    labels: list[Labels] = []
    if (root / "ssl4eo_l_oli_nlcd").is_dir():
        labels += [LandCover(root), NLCDMasks(root)]
    if (root / "ssl4eo_l_oli_cdl").is_dir():
        labels.append(CDLMasks(root))
    names = ("ssl4eo_l_oli_sr_benchmark", "ssl4eo_l_oli_nlcd", "ssl4eo_l_oli_cdl")
    return Found((), tuple(labels), files=names)


def _chesapeake_cvpr(root: Path) -> Found:
    if not (root / "spatial_index.geojson").is_file():
        return Found()
    return Found((), (Chesapeake(root),), files=(".",))


def _by_torchgeo(call: str) -> str:
    return f"torchgeo.datasets.{call} fetches and unpacks it"


FOLDERS: Mapping[str, Folder] = MappingProxyType(
    {
        "ssl4eo_s12": Folder(
            _ssl4eo_s12, _by_torchgeo("SSL4EOS12('{root}', split='s1' or 's2c', download=True)")
        ),
        "ssl4eo_l": Folder(
            _ssl4eo_l, _by_torchgeo("SSL4EOL('{root}', split='oli_sr', download=True)")
        ),
        "naip": Folder(
            _naip,
            "quarter quads named m_*.tif are at https://planetarycomputer.microsoft.com/dataset/naip",
        ),
        "mod09a1": Folder(
            _mod09a1,
            "granules named MOD09A1.A*_sur_refl_b01.tif to b07 are at "
            "https://planetarycomputer.microsoft.com/dataset/modis-09A1-061",
        ),
        "copernicus_bench": Folder(
            _copernicus_bench,
            _by_torchgeo("CopernicusBenchEuroSATS1('{root}', split='train', download=True)"),
        ),
        "usavars": Folder(_usavars, _by_torchgeo("USAVars('{root}', download=True)")),
        "ssl4eo_l_benchmark": Folder(
            _ssl4eo_l_benchmark,
            _by_torchgeo("SSL4EOLBenchmark('{root}', 'oli_sr', product='nlcd', download=True)"),
        ),
        "chesapeake_cvpr": Folder(
            _chesapeake_cvpr,
            _by_torchgeo("ChesapeakeCVPR('{root}', splits=['de-test'], download=True)"),
        ),
    }
)
"""The data sets that are known, by their folder."""

_WRONG_NAMES = "GEO-Bench names most of its channels wrongly; use copernicus_bench/eurosat_s2"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "m-eurosat": _WRONG_NAMES,
        "m-brick-kiln": _WRONG_NAMES,
        "bigearthnet": "torchgeo rounds its Sentinel-1 to whole dB, VH first; use copernicus_bench/eurosat_s1",
    }
)
"""Folders that are not offered, and why."""


class Torchgeo:
    """Pretraining tiles and tasks of a folder of torchgeo's data sets; see the head of this module.

    Building one looks for files; headers are read, and pixels decoded, when something asks for them.

    Args:
        config: its ``root`` is the folder of folders.

    Raises:
        ValueError: one line with folder or file, rule and remedy, if there is no known data set, if a
            known one's folder holds none of its files; and, once pixels or labels are read, for a file
            that cannot be decoded, or whose bands, type or values contradict its data set.
    """

    def __init__(self, config: TorchgeoConfig) -> None:
        self._config, self._root = config, Path(config.root)
        if not config.root or not self._root.is_dir():
            raise ValueError(f"data.root={config.root!r} is not a folder; {_known()}")
        self._found = {
            name: _look(self._root / name, folder)
            for name, folder in FOLDERS.items()
            if (self._root / name).is_dir()
        }
        if not self._found:
            held = {entry.name for entry in self._root.iterdir()}
            reasons = [
                f"{name} is not read: {why}" for name, why in REFUSED.items() if name in held
            ]
            raise ValueError(
                "; ".join([f"{self._root}: holds no known data set", *reasons, _known()])
            )
        self._archives: dict[str, Archive] = {}
        for found in self._found.values():
            for archive in found.archives:
                self._archives |= dict.fromkeys(archive.sensors, archive)
        self._labels = {
            labels.name: labels for found in self._found.values() for labels in found.labels
        }

    # What is there: no pixels needed.

    @cached_property
    def sensors(self) -> Mapping[str, Sensor]:
        """Sensors with pretraining data, in the order of SENSORS."""
        return {name: sensor for name, sensor in SENSORS.items() if name in self._archives}

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Number and bytes of the files of every data set, and a SHA-256 of their names and sizes."""
        return {
            "source": "torchgeo",
            "version": VERSION,
            "leakage_km": self._config.leakage_km,
            "sets": {
                name: _measure(self._root / name, found.files)
                for name, found in self._found.items()
                if found.files
            },
        }

    @property
    def caveats(self) -> tuple[str, ...]:
        archives = {id(archive): archive for archive in self._archives.values()}
        said = [caveat for archive in archives.values() for caveat in archive.caveats]
        nowhere = [name for name, labels in self._labels.items() if not labels.located]
        if nowhere and self._archives:
            said.append(
                f"Where the items of {', '.join(nowhere)} lie is not known: pretraining may have seen their "
                "ground, which cannot be checked. Take their files out of the folder to do without them."
            )
        if len(nowhere) < len(self._labels):
            lost = [n for n in self.sensors if not self._archives[n].located(n)]
            if lost:
                said.append(
                    f"The pretraining files of {', '.join(lost)} do not say where they lie: they may show "
                    "the ground of test items, which cannot be checked. The published files say it; fetch "
                    "them again."
                )
        return tuple(said)

    def places(self, sensor: str) -> str:
        return self._archive(sensor).places(sensor)

    def _archive(self, sensor: str) -> Archive:
        if sensor not in self._archives:
            raise ValueError(unknown("sensor", sensor, self._archives))
        return self._archives[sensor]

    # Pretraining.

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        archive = self._archive(sensor)
        pool = Pool(archive.blocks(sensor, size_px, self._held), archive.places(sensor))
        if not len(pool):
            raise ValueError(
                f"{self._root}: no tile of {size_px} px of {sensor} is whole and further than "
                f"data.leakage_km={self._config.leakage_km:g} from every test item; lower either"
            )
        return pool

    @cached_property
    def _held(self) -> Held:
        if not self._archives:
            return Held((), 0.0)
        grounds = [ground for labels in self._labels.values() for ground in labels.held()]
        return Held(tuple(grounds), 1000 * self._config.leakage_km)

    # Tasks.

    def tasks(self, sensor: str) -> list[Task]:
        return [
            labels.task for labels in self._labels.values() if labels.physics.sensor.name == sensor
        ]

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        return [
            (name, kind)
            for found in self._found.values()
            for whose, name, kind in found.unsupported
            if whose == sensor
        ]

    def labelled(self, task: Task, size_px: int) -> Labelled:
        """The task's items at their own size, whatever ``size_px`` is: cutting would change the question."""
        if task.name not in self._labels:
            raise ValueError(unknown("task", task.name, self._labels))
        return self._labels[task.name].labelled(task)


def _known() -> str:
    return f"known are {', '.join(FOLDERS)}, each a folder of its own"


def _look(root: Path, folder: Folder) -> Found:
    found = folder.look(root)
    if not (found.archives or found.labels or found.unsupported):
        fetch = folder.fetch.replace("{root}", str(root))
        raise ValueError(f"{root}: holds none of its data set's files, unpacked; {fetch}")
    return found


def _measure(root: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """How many files there are, their bytes together, and a digest of their relative names and sizes."""
    digest, count, total = hashlib.sha256(), 0, 0
    for path, size in (each for name in names for each in _files(root / name)):
        digest.update(f"{path.relative_to(root).as_posix()}\0{size}\n".encode())
        count, total = count + 1, total + size
    return {"files": count, "bytes": total, "digest": digest.hexdigest()}


def _files(path: Path) -> Iterator[tuple[Path, int]]:
    """Every file below a folder, or the file itself, with its size; in a fixed order."""
    if not path.is_dir():
        if path.is_file():
            yield path, path.stat().st_size
        return
    with os.scandir(path) as entries:
        listed = sorted((entry.name, entry.is_dir(), entry) for entry in entries)
    for name, folder, entry in listed:
        if folder:
            yield from _files(path / name)
        else:
            yield path / name, entry.stat().st_size
