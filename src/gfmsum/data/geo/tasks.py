"""The labelled data sets that the probes can score, by torchgeo's classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from torchgeo.datasets import (
    NLCD,
    ChesapeakeCVPR,
    CopernicusBenchBase,
    CopernicusBenchDFC2020S1,
    CopernicusBenchDFC2020S2,
    CopernicusBenchEuroSATS1,
    CopernicusBenchEuroSATS2,
    CopernicusBenchFloodS1,
    CopernicusBenchLCZS2,
    SSL4EOLBenchmark,
    USAVars,
)

from gfmsum.data.geo.ground import to_lonlat
from gfmsum.data.geo.labels import Item, Labels, Masks, Shot, filled
from gfmsum.data.geo.physics import (
    CHESAPEAKE,
    DFC2020_S1,
    DFC2020_S2,
    EUROSAT_S1,
    EUROSAT_S2,
    FLOOD_S1,
    LCZ_S2,
    SSL4EO_OLI_SR,
    USAVARS,
    opened,
)
from gfmsum.data.geo.scenes import Scene, read
from gfmsum.data.sample import Rows

LEVEL_1 = {
    1: "water", 2: "developed", 3: "barren", 4: "forest", 5: "shrubland", 7: "herbaceous",
    8: "planted or cultivated", 9: "wetlands",
}  # fmt: skip
"""NLCD's classes by the tens of their codes."""
CODES = tuple(code for code in NLCD.valid_classes if code // 10 in LEVEL_1)
NLCD_LEGEND = {
    11: "open water", 21: "developed, open space", 22: "developed, low intensity", 31: "barren",
    41: "deciduous forest", 42: "evergreen forest", 43: "mixed forest", 52: "shrub", 71: "grassland",
    81: "pasture or hay", 82: "cultivated crops", 90: "woody wetlands", 95: "herbaceous wetlands",
}  # fmt: skip
CDL_LEGEND = {
    1: "corn", 5: "soybeans", 24: "winter wheat", 36: "alfalfa", 37: "other hay", 61: "fallow",
    111: "open water", 121: "developed, open space", 122: "developed, low intensity", 131: "barren",
    141: "deciduous forest", 142: "evergreen forest", 143: "mixed forest", 152: "shrub",
    176: "grassland or pasture", 190: "woody wetlands", 195: "herbaceous wetlands",
}  # fmt: skip
"""The classes that SSL4EO-L's tables count (``nlcd`` and ``cdl`` in torchgeo's ``experiments``)."""


class _CopernicusBench(Labels):
    """A data set of Copernicus-Bench, with the order of bands that torchgeo gives."""

    _class: ClassVar[type[CopernicusBenchBase]]

    def _open(self, part: Any) -> Any:
        self.physics.expect(self._class.all_bands, self._class.__name__)
        return self._class(str(self._root), part, download=False, checksum=False)


class _Classified(_CopernicusBench):
    """A data set of it with a class for each item, as torchgeo gives them."""

    def _classes(self) -> tuple[str, ...]:
        return self._class.classes

    def _read(self, part: str, row: int) -> Item:
        sample = self._data(part)[row]
        return Item(Shot(sample["image"].numpy()), int(sample["label"]))


class _EuroSAT(_Classified):
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


class LCZS2(_Classified):
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


class _DFC2020(_CopernicusBench, Masks):
    """Land cover of the Data Fusion Contest of 2020.

    Unlabelled are the background (code 0) and the two classes that do not occur, savanna (3) and snow (8), as
    in Copernicus-Bench. Radar pixels without a number take the median of their band in the item. Items whose
    files have no grid on the ground, as those of torchgeo's tests, have no place.
    """

    _folder: ClassVar[str]  # of the images, and what they are called where masks are called dfc
    legend: ClassVar[Mapping[int, str]] = {
        code: name
        for code, name in enumerate(CopernicusBenchDFC2020S1.classes)
        if name not in ("Background", "Savanna", "Snow/Ice")
    }

    def _list(self, data: Any) -> Sequence[str]:
        return _plain(data.files.tolist(), self._root)

    def _path(self, part: str, row: int) -> Path:
        name = self._names(part)[row].replace("dfc", self._folder)
        return self._root / self._class.directory / self._folder / name

    def _lonlat(self, part: str, rows: Rows) -> NDArray[np.float64] | None:
        return _centres([self._path(part, row) for row in rows.tolist()])

    def _codes(self, part: str, row: int) -> NDArray[Any]:
        return _mask(self._root / self._class.directory / "dfc" / self._names(part)[row])

    def _shots(self, part: str, row: int) -> tuple[Shot, ...]:
        return (Shot(filled(self._data(part)[row]["image"].numpy())),)


class DFC2020S1(_DFC2020):
    """Eight classes of land cover, in dB."""

    name, physics, _class, _folder = "dfc2020_s1", DFC2020_S1, CopernicusBenchDFC2020S1, "s1"


class DFC2020S2(_DFC2020):
    """The same patches and masks from Sentinel-2, Level-1C."""

    name, physics, _class, _folder = "dfc2020_s2", DFC2020_S2, CopernicusBenchDFC2020S2, "s2"


class FloodS1(_CopernicusBench, Masks):
    """Dry, permanent water or flood (Kuro Siwo), from the last pass before and the first pass after.

    These are the two images of torchgeo's ``mode=1``. Unlabelled is code 3, ground outside the mapped area.
    Numbers are linear backscatter; pixels without one take the median of their band in the item.
    """

    name, physics, _class = "flood_s1", FLOOD_S1, CopernicusBenchFloodS1
    kind = "change_segmentation"
    legend: ClassVar[Mapping[int, str]] = dict(enumerate(CopernicusBenchFloodS1.classes))

    def _list(self, data: Any) -> Sequence[str]:
        for place in data.metadata.values():
            _below(place["path"], self._root)
        return list(data.files)

    def _path(self, part: str, row: int) -> Path:
        return self._layer(part, row, "MS1_IVV")

    def _layer(self, part: str, row: int, layer: str) -> Path:
        """The file of an item's layer; its name ends with its day."""
        data = self._data(part)
        folder = (
            self._root / self._class.directory / "data" / data.metadata[data.files[row]]["path"]
        )
        try:
            found: Path = min(folder.glob(f"{layer}_*.tif"))
        except ValueError:
            raise ValueError(
                f"{folder}: holds no {layer}_*.tif; the {part} split lists it, fetch it again"
            ) from None
        return found

    @cached_property
    def _shape(self) -> tuple[int, int, int]:
        with opened(self._path("train", 0)) as file:
            return len(self.physics.bands), file.height, file.width

    def _lonlat(self, part: str, rows: Rows) -> NDArray[np.float64] | None:
        return _centres([self._path(part, row) for row in rows.tolist()])

    def _codes(self, part: str, row: int) -> NDArray[Any]:
        return _mask(self._layer(part, row, "MK0_MLU"))

    def _shots(self, part: str, row: int) -> tuple[Shot, ...]:
        before, after = self._data(part)[row]["image"].numpy()
        return tuple(
            Shot(filled(numbers), _day(self._layer(part, row, layer).stem))
            for numbers, layer in ((after, "MS1_IVV"), (before, "SL1_IVV"))
        )


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
        return Item(Shot(sample["image"].numpy()), float(sample["labels"][0]))


class _Landsat(Labels):
    """SSL4EO-L's benchmark: patches of the United States in 2019 with the masks of a product."""

    physics = SSL4EO_OLI_SR
    _product: ClassVar[Any]

    def _open(self, part: Any) -> Any:
        # It seeds NumPy's global random state to shuffle its files, which undisturbed() undoes.
        return SSL4EOLBenchmark(
            str(self._root),
            "oli_sr",
            self._product,
            part,
            download=False,
            checksum=False,
        )

    def _list(self, data: Any) -> Sequence[str]:
        files = [Path(image) for image, _ in data.sample_collection]
        return ["/".join(file.parts[-3:-1]) for file in files]  # place and date

    def _path(self, part: str, row: int) -> Path:
        return Path(self._data(part).sample_collection[row][0])

    def _lonlat(self, part: str, rows: Rows) -> NDArray[np.float64] | None:
        return _centres([self._path(part, row) for row in rows.tolist()])

    def _codes(self, part: str, row: int) -> NDArray[Any]:
        """As they are: torchgeo gives every unknown code the number of its first class, water."""
        return _mask(Path(self._data(part).sample_collection[row][1]))

    def _shots(self, part: str, row: int) -> tuple[Shot, ...]:
        """Only the middle of the patch, of the size of an item."""
        path, (_, h, w) = self._path(part, row), self._shape
        with opened(path) as file:
            self.physics.check(file, path, self.physics.theirs)
            window = Window((file.width - w) // 2, (file.height - h) // 2, w, h)
            return (Shot(file.read(window=window), _day(path.parent.name)),)


class LandCover(_Landsat):
    """Land cover of the United States in 2019, from SSL4EO-L's benchmark with the masks of NLCD.

    An item is the central WINDOW pixels of a patch. Its class is the level I class of NLCD's legend (the
    tens of the code) that covers most of them, the one with the lower code of equals; an item of which
    less than half is classified at all is left out.
    """

    name, metric, _product = "ssl4eo_l_nlcd", "balanced_accuracy", "nlcd"
    WINDOW = 64  # pixels of 30 m

    def _classes(self) -> tuple[str, ...]:
        return tuple(LEVEL_1.values())

    @property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.physics.bands), self.WINDOW, self.WINDOW

    def _read(self, part: str, row: int) -> Item | None:
        (shot,) = self._shots(part, row)
        codes = self._codes(part, row)
        top, left = ((side - self.WINDOW) // 2 for side in codes.shape)
        codes = codes[top : top + self.WINDOW, left : left + self.WINDOW]
        cover = np.bincount((codes // 10)[np.isin(codes, CODES)], minlength=10)
        if 2 * cover.sum() < codes.size:
            return None
        shares = [cover[code] for code in LEVEL_1]
        return Item(shot, int(np.argmax(shares)))


class NLCDMasks(_Landsat, Masks):
    """NLCD's classes in the whole patches of SSL4EO-L's benchmark, pixel by pixel.

    As in SSL4EO-L's own tables, all codes but the 13 most frequent are unlabelled: no data (0, 127 or 250),
    snow (12), and the denser built-up land (23, 24).
    """

    name, _product, legend = "ssl4eo_l_nlcd_masks", "nlcd", NLCD_LEGEND


class CDLMasks(_Landsat, Masks):
    """Crops and land cover (Cropland Data Layer) in the same patches.

    As in SSL4EO-L's own tables, all codes but the 17 most frequent are unlabelled: the background (0),
    clouds (81), and the rarer crops.
    """

    name, _product, legend = "ssl4eo_l_cdl_masks", "cdl", CDL_LEGEND


class Chesapeake(Masks):
    """Land cover of 1 m around the Chesapeake Bay, on NAIP (the layers naip-new and lc).

    An item is a tile of SIDE by SIDE pixels of a published quarter quad, cut row-major from its upper left;
    what remains at the right and below is not used. Its part is its quad's, in whichever of the six states
    the folder holds quads of. Unlabelled are codes 0 and 15, no data.
    """

    name, physics = "chesapeake_cvpr", CHESAPEAKE
    legend: ClassVar[Mapping[int, str]] = {
        1: "water", 2: "tree canopy", 3: "low vegetation", 4: "barren", 5: "impervious, other",
        6: "impervious, roads",
    }  # fmt: skip
    SIDE = 256  # pixels of 1 m

    @property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.physics.bands), self.SIDE, self.SIDE

    def _open(self, part: Any) -> Any:
        """Of each tile its quad, row and column; torchgeo's class knows the quads."""
        splits = [f"{state}-{part}" for state in ChesapeakeCVPR.states]
        data = ChesapeakeCVPR(
            str(self._root), splits, ["naip-new", "lc"], download=False, checksum=False
        )
        tiles = []
        for image, mask in sorted(zip(data.index["naip-new"], data.index["lc"], strict=True)):
            paths = _below(image, self._root), _below(mask, self._root)
            if not all(path.is_file() for path in paths):
                continue
            name = image.removesuffix("_naip-new.tif")
            with opened(paths[0]) as file:
                quad = Scene(name, name, "", (paths[0],), file.crs, file.transform, file.shape)
            rows, cols = (range(0, side - self.SIDE + 1, self.SIDE) for side in quad.shape)
            tiles += [(quad, paths[1], row, col) for row in rows for col in cols]
        return tiles

    def _list(self, data: Any) -> Sequence[str]:
        return [f"{quad.name}#{row},{col}" for quad, _, row, col in data]

    def _path(self, part: str, row: int) -> Path:
        quad: Scene = self._data(part)[row][0]
        return quad.paths[0]

    def _lonlat(self, part: str, rows: Rows) -> NDArray[np.float64]:
        out, tiles = np.empty((len(rows), 2)), self._data(part)
        by_quad: dict[Path, list[int]] = {}
        for i, row in enumerate(rows.tolist()):
            by_quad.setdefault(self._path(part, row), []).append(i)
        for here in by_quad.values():
            corners = np.array([tiles[rows[i]][2:] for i in here]) + self.SIDE / 2
            out[here] = tiles[rows[here[0]]][0].lonlat(*corners.T)
        return out

    def _codes(self, part: str, row: int) -> NDArray[Any]:
        quad, path, top, left = self._data(part)[row]
        with opened(path) as file:
            if (file.transform, file.shape) != (quad.transform, quad.shape):
                raise ValueError(
                    f"{path}: its grid differs from that of {quad.paths[0].name}; mask and image must share "
                    "theirs, fetch both again"
                )
            return np.asarray(file.read(1, window=Window(left, top, self.SIDE, self.SIDE)))

    def _shots(self, part: str, row: int) -> tuple[Shot, ...]:
        quad, _, top, left = self._data(part)[row]
        (numbers,) = read(self.physics, quad, [Window(left, top, self.SIDE, self.SIDE)])
        return (Shot(numbers),)


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


def _below(name: str, root: Path) -> Path:
    """A file or folder that a list names, which must lie below the list's."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(
            f"{root}: a split lists {name!r}; it must lie below this folder, fetch the list again"
        )
    return root / name


def _day(name: str) -> str:
    """The day that a name ends with, as 2020-07-15; empty if it does not."""
    found = re.search(r"(\d{4})(\d{2})(\d{2})$", name)
    return "-".join(found.groups()) if found else ""


def _mask(path: Path) -> NDArray[Any]:
    """The codes of a mask, as stored: (h, w)."""
    with opened(path) as file:
        return np.asarray(file.read(1))


def _centres(paths: Sequence[Path]) -> NDArray[np.float64] | None:
    """Of rasters, as longitude and latitude, from their headers: (n, 2), or None if one has no place."""
    out = np.empty((len(paths), 2))
    for i, path in enumerate(paths):
        with opened(path) as file:
            if file.crs is None or file.transform.is_identity:
                return None
            left, bottom, right, top = file.bounds
            out[i] = to_lonlat(file.crs, (left + right) / 2, (bottom + top) / 2)[0]
    return out
