"""The labelled data sets that the probes can score, by torchgeo's classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from torchgeo.datasets import (
    NLCD,
    CopernicusBenchBase,
    CopernicusBenchEuroSATS1,
    CopernicusBenchEuroSATS2,
    CopernicusBenchLCZS2,
    SSL4EOLBenchmark,
    USAVars,
)

from gfmsum.data.geo.ground import to_lonlat
from gfmsum.data.geo.labels import Item, Labels
from gfmsum.data.geo.physics import (
    EUROSAT_S1,
    EUROSAT_S2,
    LCZ_S2,
    SSL4EO_OLI_SR,
    USAVARS,
    opened,
)
from gfmsum.data.sample import Rows

LEVEL_1 = {
    1: "water", 2: "developed", 3: "barren", 4: "forest", 5: "shrubland", 7: "herbaceous",
    8: "planted or cultivated", 9: "wetlands",
}  # fmt: skip
"""NLCD's classes by the tens of their codes."""
CODES = tuple(code for code in NLCD.valid_classes if code // 10 in LEVEL_1)


class _CopernicusBench(Labels):
    """A data set of Copernicus-Bench, with the classes and the order of bands that torchgeo gives."""

    _class: ClassVar[type[CopernicusBenchBase]]

    def _open(self, part: Any) -> Any:
        self.physics.expect(self._class.all_bands, self._class.__name__)
        return self._class(str(self._root), part, download=False, checksum=False)

    def _classes(self) -> tuple[str, ...]:
        return self._class.classes

    def _read(self, part: str, row: int) -> Item:
        sample = self._data(part)[row]
        return Item(sample["image"].numpy(), int(sample["label"]))


class _EuroSAT(_CopernicusBench):
    caveat = "The published split is random by patch, so train and test items are often neighbours."

    def _list(self, data: Any) -> Sequence[str]:
        return _plain([name.replace(".jpg", ".tif") for name in data.files.tolist()], self._root)

    def _targets(self, part: str) -> NDArray[np.int64]:
        numbers = {name: i for i, name in enumerate(self._classes())}
        try:
            return np.array([numbers[name.split("_")[0]] for name in self._names(part)])
        except KeyError as strange:
            raise ValueError(
                f"{self._root}: the {part} split of {self.name} lists an item of class {strange}; it must "
                f"be one of {', '.join(numbers)}, fetch it again"
            ) from None

    def _path(self, part: str, row: int) -> Path:
        name = self._names(part)[row]
        folder = self._root / self._class.directory / "all_imgs"
        return folder / name.split("_")[0] / name

    def _lonlat(self, part: str, rows: Rows) -> NDArray[np.float64] | None:
        return _centres([self._path(part, row) for row in rows.tolist()])


class EuroSATS1(_EuroSAT):
    """Ten kinds of land use in Europe, in dB."""

    name, physics, _class = "eurosat_s1", EUROSAT_S1, CopernicusBenchEuroSATS1


class EuroSATS2(_EuroSAT):
    """The same patches from Sentinel-2, Level-1C."""

    name, physics, _class = "eurosat_s2", EUROSAT_S2, CopernicusBenchEuroSATS2


class LCZS2(_CopernicusBench):
    """Local climate zones of cities; where the items lie was not published with them."""

    name, physics, _class = "lcz_s2", LCZ_S2, CopernicusBenchLCZS2

    @staticmethod
    def readable() -> bool:
        """Whether the package that torchgeo reads it with is installed."""
        return find_spec("h5py") is not None

    def _list(self, data: Any) -> Sequence[str]:
        return [f"{data.split}/{i}" for i in range(len(data))]

    def _targets(self, part: str) -> NDArray[np.int64]:
        import h5py

        with h5py.File(self._path(part, 0), "r") as file:
            return np.asarray(file["label"][:].argmax(axis=1), np.int64)

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        image = self._data("train")[0]["image"]
        c, h, w = image.shape
        return c, h, w

    def _path(self, part: str, row: int) -> Path:
        return Path(self._data(part).filepath)

    def _lonlat(self, part: str, rows: Rows) -> None:
        return None


class TreeCover(Labels):
    """Percent of tree cover in 1 km of the United States, on NAIP resampled to 4 m."""

    name, physics, kind, metric = "usavars_treecover", USAVARS, "regression", "r2"

    def _open(self, part: Any) -> Any:
        return USAVars(str(self._root), part, ("treecover",), download=False, checksum=False)

    def _list(self, data: Any) -> Sequence[str]:
        table, names = data.label_dfs["treecover"], _plain(data.files, self._root)
        if not {"lon", "lat", "treecover"} <= set(table.columns):
            raise ValueError(
                f"{self._root / 'treecover.csv'}: must have columns lon, lat and treecover; fetch it again"
            )
        rows = table.index.value_counts()
        for name in names:
            if (found := int(rows.get(_identifier(name), 0))) != 1:
                raise ValueError(
                    f"{self._root / 'treecover.csv'}: has {found} rows of ID {_identifier(name)}, which the "
                    f"{data.split} split lists; each must be there once, fetch it again"
                )
        return names

    def _path(self, part: str, row: int) -> Path:
        return self._root / "uar" / self._names(part)[row]

    def _lonlat(self, part: str, rows: Rows) -> NDArray[np.float64]:
        table, names = self._data(part).label_dfs["treecover"], self._names(part)
        wanted = [_identifier(names[row]) for row in rows.tolist()]
        return np.asarray(table.loc[wanted, ["lon", "lat"]].to_numpy(np.float64))

    def _read(self, part: str, row: int) -> Item:
        sample = self._data(part)[row]
        return Item(sample["image"].numpy(), float(sample["labels"][0]))


class LandCover(Labels):
    """Land cover of the United States in 2019, from SSL4EO-L's benchmark with the masks of NLCD.

    An item is the central WINDOW pixels of a patch. Its class is the level I class of NLCD's legend (the
    tens of the code) that covers most of them, the one with the lower code of equals; an item of which
    less than half is classified at all is left out. Codes are read from the masks as they are: torchgeo
    gives every unknown code the number of its first class, water.
    """

    name, physics, metric = "ssl4eo_l_nlcd", SSL4EO_OLI_SR, "balanced_accuracy"
    WINDOW = 64  # pixels of 30 m

    def _open(self, part: Any) -> Any:
        # It seeds NumPy's global random state to shuffle its files, which undisturbed() undoes.
        return SSL4EOLBenchmark(
            str(self._root),
            "oli_sr",
            "nlcd",
            part,
            download=False,
            checksum=False,
        )

    def _classes(self) -> tuple[str, ...]:
        return tuple(LEVEL_1.values())

    @property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.physics.bands), self.WINDOW, self.WINDOW

    def _list(self, data: Any) -> Sequence[str]:
        files = [Path(image) for image, _ in data.sample_collection]
        return ["/".join(file.parts[-3:-1]) for file in files]  # place and date

    def _path(self, part: str, row: int) -> Path:
        return Path(self._data(part).sample_collection[row][0])

    def _lonlat(self, part: str, rows: Rows) -> NDArray[np.float64] | None:
        return _centres([self._path(part, row) for row in rows.tolist()])

    def _read(self, part: str, row: int) -> Item | None:
        image, mask = map(Path, self._data(part).sample_collection[row])
        with opened(image) as file:
            self.physics.check(file, image, self.physics.theirs)
            window = Window(
                (file.width - self.WINDOW) // 2, (file.height - self.WINDOW) // 2,
                self.WINDOW, self.WINDOW,
            )  # fmt: skip
            numbers = file.read(window=window)
        with opened(mask) as file:
            codes = file.read(1, window=window)
        cover = np.bincount((codes // 10)[np.isin(codes, CODES)], minlength=10)
        if 2 * cover.sum() < codes.size:
            return None
        shares = [cover[code] for code in LEVEL_1]
        day = re.search(r"(\d{4})(\d{2})(\d{2})$", image.parent.name)
        return Item(numbers, int(np.argmax(shares)), "-".join(day.groups()) if day else "")


def _identifier(name: str) -> str:
    """Of an image of USAVars, as its tables have it, and as torchgeo cuts it out."""
    return name[len("tile_") : -len(".tif")]


def _plain(names: Sequence[str], root: Path) -> Sequence[str]:
    """File names from a list, which must lead nowhere else."""
    for name in names:
        if Path(name).name != name:
            raise ValueError(
                f"{root}: a split lists {name!r}; it must be the name of a file, fetch the list again"
            )
    return names


def _centres(paths: Sequence[Path]) -> NDArray[np.float64] | None:
    """Of rasters, as longitude and latitude, from their headers: (n, 2), or None if one has no place."""
    out = np.empty((len(paths), 2))
    for i, path in enumerate(paths):
        with opened(path) as file:
            if file.crs is None:
                return None
            left, bottom, right, top = file.bounds
            out[i] = to_lonlat(file.crs, (left + right) / 2, (bottom + top) / 2)[0]
    return out
