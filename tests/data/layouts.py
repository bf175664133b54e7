"""Tiny copies of published data sets, in the folders, names and formats that torchgeo's classes read.

Pixels are random, of about the right size in the stored unit, and all different. Every function takes the
folder that the class is given as its root.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine, array_bounds, from_bounds, from_origin
from shapely.geometry import box

type Numbers = NDArray[Any]

SIDE = 264  # of an SSL4EO patch
S12_DATES = {
    "s1": (
        "S1A_IW_GRDH_1SDV_20200329T001515_20200329T001540_031883_03AE27_9BAF",
        "S1B_IW_GRDH_1SDV_20200627T001449_20200627T001514_022212_02A27E_2A09",
        "S1B_IW_GRDH_1SDV_20200928T120105_20200928T120130_023575_02CCB0_F035",
        "S1A_IW_GRDH_1SDV_20201230T001523_20201230T001548_035908_04349D_C91E",
    ),
    "s2c": (
        "20200323T162931_20200323T163750_T15QXA",
        "20200621T162901_20200621T164746_T15QXA",
        "20200924T162929_20200924T164434_T15QXA",
        "20201228T163711_20201228T164519_T15QXA",
    ),
}
S2C_SIDES = {
    "B1": 44, "B2": 264, "B3": 264, "B4": 264, "B5": 132, "B6": 132, "B7": 132, "B8": 264, "B8A": 132,
    "B9": 44, "B10": 44, "B11": 132, "B12": 132,
}  # fmt: skip
L_DATES = (
    "LC08_172034_20210306",
    "LC08_172034_20210829",
    "LC08_172034_20211203",
    "LC08_172034_20220715",
)
EUROSAT_CLASSES = (
    "AnnualCrop", "HerbaceousVegetation", "Industrial", "PermanentCrop", "River", "Forest", "Highway",
    "Pasture", "Residential", "SeaLake",
)  # fmt: skip
EUROSAT_MORE = (("train", "Forest"), ("test", "River"))  # have one item more than the others
EUROSAT_BANDS = {  # with the value that each holds on average, all different
    "B01": 1350, "B02": 1120, "B03": 1040, "B04": 950, "B05": 1200, "B06": 2000, "B07": 2370,
    "B08": 2300, "B09": 730, "B10": 12, "B11": 1820, "B12": 1110, "B8A": 2600,
}  # fmt: skip
SINUSOIDAL = "+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R=6371007.181 +units=m +no_defs"
MODIS_TILE_M = 1111950.519667
MODIS_PIXEL_M = MODIS_TILE_M / 2400
MASK_CODES = {
    "nlcd": (11, 21, 31, 41, 52, 71, 82, 90),  # one of each class of level I
    "cdl": (111, 121, 131, 141, 152, 176, 1, 190),
}
MASKED = 38  # side of the images with small masks: 36 px and one around them
DFC_STRIPES = {  # codes of 3 columns each; the last is most frequent
    "train": (1, 2, 4, 5, 6, 7, 9, 10, 3, 8, 0, 6),
    "val": (1, 2, 4, 5, 6, 7, 9, 10, 3, 8, 0, 1),
    "test": (1, 2, 4, 5, 6, 7, 9, 10, 3, 8, 0, 10),
}
FLOOD_STRIPES = {  # codes of 4 columns each
    "train": (0, 0, 0, 0, 0, 1, 1, 2, 3),
    "val": (0, 0, 0, 1, 1, 1, 2, 2, 3),
    "test": (0, 0, 1, 1, 1, 2, 2, 2, 3),
}
FLOOD_DAYS = {"SL2": "20170410", "SL1": "20170422", "MS1": "20170504"}
CHESAPEAKE_QUADS = {
    "de-train": ("de_1m_2013_extended-debuffered-train_tiles/m_3807503_ne_18_1", 26918),
    "de-val": ("de_1m_2013_extended-debuffered-val_tiles/m_3807504_nw_18_1", 26918),
    "de-test": ("de_1m_2013_extended-debuffered-test_tiles/m_3807505_se_18_1", 26918),
    "wv-val": ("wv_1m_2014_extended-debuffered-val_tiles/m_3708035_ne_17_1", 26917),
}
CHESAPEAKE_LAYERS = ("naip-new", "naip-old", "landsat-leaf-on", "landsat-leaf-off", "nlcd", "lc")
QUAD = (264, 520)  # two tiles of 256 px side by side, and a remainder


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def write_tif(path: Path, numbers: Numbers, names: Sequence[str] = (), **profile: Any) -> None:
    """Bands (c, h, w), with names if any; ``profile`` has ``crs`` and ``transform``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    c, h, w = numbers.shape
    shape = {"count": c, "height": h, "width": w, "dtype": numbers.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as file:
        file.write(numbers)
        for i, name in enumerate(names, 1):
            file.set_band_description(i, name)


def centre(place: int) -> tuple[float, float]:
    """Longitude and latitude of the middle of an SSL4EO place."""
    return 10 + 0.2 * place, 45.0


def around(place: int, side_m: float, side_px: int) -> Affine:
    """The grid of a square patch, in degrees."""
    lon, lat = centre(place)
    dy = side_m / 2 / 111_320
    dx = dy / np.cos(np.deg2rad(lat))
    return from_bounds(lon - dx, lat - dy, lon + dx, lat + dy, side_px, side_px)


def ssl4eo_s12(root: Path, places: int = 3, splits: Sequence[str] = ("s1", "s2c")) -> None:
    """Four dates of each place: a GeoTIFF per band, 20 and 60 m bands on coarser grids."""
    for split in splits:
        for place in range(places):
            for d, date in enumerate(S12_DATES[split]):
                folder = root / split / f"{place:07}" / date
                if split == "s1":
                    for b, (band, mean) in enumerate({"VV": -11.0, "VH": -18.0}.items()):
                        noise = rng(1, place, d, b).normal(mean, 2, (1, SIDE, SIDE))
                        patch(folder / f"{band}.tif", noise.astype(np.float32), place)
                else:
                    for b, (band, side) in enumerate(S2C_SIDES.items()):
                        noise = rng(2, place, d, b).integers(200, 4000, (1, side, side))
                        patch(folder / f"{band}.tif", noise.astype(np.uint16), place)
                (folder / "metadata.json").write_text(json.dumps({"system:index": date}))


def patch(path: Path, numbers: Numbers, place: int, gsd_m: float = 10) -> None:
    grid = around(place, SIDE * gsd_m, numbers.shape[1])
    write_tif(path, numbers, crs="+proj=latlong", transform=grid)


def ssl4eo_l(root: Path, places: int = 2) -> None:
    """Four dates of each place: one GeoTIFF of seven bands, 8-bit."""
    for place in range(places):
        for d, date in enumerate(L_DATES):
            numbers = rng(3, place, d).integers(1, 256, (7, SIDE, SIDE), dtype=np.uint8)
            path = root / "ssl4eo_l_oli_sr" / f"{place:07}" / date / "all_bands.tif"
            patch(path, numbers, place, 30)


def naip_name(quad: str, date: int, cm: str = "100") -> str:
    return f"m_{quad}_10_{cm}_{date}.tif"


def naip(
    root: Path, name: str, size: tuple[int, int] = (70, 100), at: tuple[float, float] = (0, 0),
    gsd_m: float = 1.0, epsg: int = 32610, seed: int = 0,
) -> Numbers:  # fmt: skip
    """A quarter quad of (rows, columns) whose upper left corner lies ``at`` metres east and south."""
    numbers = rng(4, seed).integers(1, 256, (4, *size), dtype=np.uint8)
    grid = from_origin(550_000 + at[0], 4_180_000 - at[1], gsd_m, gsd_m)
    write_tif(root / name, numbers, crs=f"EPSG:{epsg}", transform=grid)
    return numbers


def mod09a1(
    root: Path, granule: str = "MOD09A1.A2020185.h10v07.061.2020194034517", side: int = 72,
    quality: bool = False, seed: int = 0, col: int = 0,
) -> Numbers:  # fmt: skip
    """A granule from row 0 and ``col`` on: seven GeoTIFFs, and an all ideal quality layer if wanted."""
    tile = granule.split(".")[2]
    x, y = (int(tile[1:3]) - 18) * MODIS_TILE_M, (9 - int(tile[4:6])) * MODIS_TILE_M
    grid = from_origin(x + col * MODIS_PIXEL_M, y, MODIS_PIXEL_M, MODIS_PIXEL_M)
    place = {"crs": SINUSOIDAL, "transform": grid}
    numbers = rng(5, seed).integers(100, 5000, (7, side, side), dtype=np.int16)
    for i, band in enumerate(numbers, 1):
        write_tif(root / f"{granule}_sur_refl_b0{i}.tif", band[None], nodata=-28672, **place)
    if quality:
        ideal = np.zeros((1, side, side), np.uint32)
        write_tif(root / f"{granule}_sur_refl_qc_500m.tif", ideal, **place)
    return numbers


def lc100(root: Path, west: float, north: float, codes: Numbers, name: str = "") -> None:
    """A land cover map of 100 m (1/1008 degree) whose upper left corner is given, in degrees."""
    grid = from_origin(west, north, 1 / 1008, 1 / 1008)
    name = f"{name}PROBAV_LC100_global_v3.0.1_2019-nrt_Discrete-Classification-map_EPSG-4326.tif"
    write_tif(root / name, codes[None], crs="EPSG:4326", transform=grid, nodata=255)


def eurosat(
    root: Path, sensor: str, per_class: Mapping[str, int] | None = None, names: Sequence[str] = ()
) -> None:
    """Patches of 64 px by class, and lists of them by part that call them .jpg, as published."""
    folder, number = root / f"eurosat_{sensor}", 0
    for part, count in (per_class or {"train": 2, "val": 1, "test": 1}).items():
        listed = []
        for c, name in enumerate(EUROSAT_CLASSES):
            for _ in range(count + ((part, name) in EUROSAT_MORE)):
                number += 1
                if sensor == "s1":
                    means = np.array([-10.0, -20.0])[:, None, None]
                    pixels = rng(6, number).normal(means, 0.5, (2, 64, 64)).astype(np.float32)
                else:
                    means = np.array([*EUROSAT_BANDS.values()])[:, None, None]
                    pixels = (means + rng(7, number).integers(0, 9, (13, 64, 64))).astype(np.uint16)
                stem = f"{name}_{number}"
                grid = from_origin(400_000 + 2_000 * number, 5_500_000 - 9_000 * c, 10, 10)
                path = folder / "all_imgs" / name / f"{stem}.tif"
                write_tif(path, pixels, names, crs="EPSG:32632", transform=grid)
                listed.append(f"{stem}.jpg")
        (folder / f"eurosat-{part}.txt").write_text("\n".join(listed) + "\n")


def lcz(root: Path, n: int = 6) -> None:
    """HDF5 files of reflectance (n, 32, 32, 10) and labels, one of 17; needs h5py."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    for p, part in enumerate(("train", "val", "test")):
        with h5py.File(root / f"lcz_{part}.h5", "w") as file:
            file["sen2"] = 0.05 + 0.02 * np.arange(10) + 0.01 * rng(8, p).random((n, 32, 32, 10))
            file["label"] = np.eye(17)[(np.arange(n) // 2) % 17]


def stripes(codes: Sequence[int], dtype: str) -> Numbers:
    """A mask (1, MASKED, MASKED) of columns of equal width, and a frame of one pixel of code 2."""
    mask = np.full((1, MASKED, MASKED), 2, dtype)
    mask[:, 1:-1, 1:-1] = np.repeat(codes, (MASKED - 2) // len(codes))
    return mask


def dfc2020(root: Path, placed: bool = True, per_part: Mapping[str, int] | None = None) -> None:
    """Both Sentinels and masks by patch. Masks differ from part to part, see DFC_STRIPES.

    Whether the published files say where they lie is not known; those of torchgeo's tests have a
    reference system and no grid on it.
    """
    folder, number = root / "dfc2020_s1s2", 0
    for part, count in (per_part or {"train": 3, "val": 2, "test": 2}).items():
        listed = []
        for _ in range(count):
            number += 1
            listed.append(f"ROIs0000_test_dfc_0_p{number}.tif")
            place = {"crs": "EPSG:4326", "transform": Affine.identity()}
            if placed:
                grid = from_origin(500_000 + 3_000 * number, 7_000_000, 10, 10)
                place = {"crs": "EPSG:32634", "transform": grid}
            shape = (MASKED, MASKED)
            s1 = rng(11, number).normal([[[-11.0]], [[-18.0]]], 2, (2, *shape))
            s2 = rng(12, number).integers(200, 4000, (13, *shape)).astype(np.uint16)
            mask = stripes(DFC_STRIPES[part], "int32")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                for kind, numbers in (("s1", s1), ("s2", s2), ("dfc", mask)):
                    path = folder / kind / listed[-1].replace("dfc", kind)
                    write_tif(path, numbers, **place)
        (folder / f"dfc-{part}-new.csv").write_text("\n".join(listed) + "\n")


def flood(root: Path) -> None:
    """A folder for each item with two passes before and one after, in linear backscatter, and a mask."""
    number = 0
    for part, codes in FLOOD_STRIPES.items():
        listed = {}
        for _ in range(2):
            number += 1
            event, key = f"{100 * number}", f"{number:032x}"
            listed[key] = {"path": f"{event}/01/{key}", "info": {"actid": number}}
            folder = root / "flood_s1" / "data" / listed[key]["path"]
            grid = from_origin(2_000_000 + 4_000 * number, 4_700_000, 10, 10)
            place = {"crs": "EPSG:3857", "transform": grid}
            for p, (seen, day) in enumerate(FLOOD_DAYS.items()):
                for b, (band, mean) in enumerate({"VV": 0.1, "VH": 0.01}.items()):
                    power = mean / (p + 1) * rng(13, number, p, b).uniform(0.9, 1.1, (1, 38, 38))
                    path = folder / f"{seen}_I{band}_{event}_01_{day}.tif"
                    write_tif(path, power.astype(np.float32), **place)
            path = folder / f"MK0_MLU_{event}_01_{FLOOD_DAYS['MS1']}.tif"
            write_tif(path, stripes(codes, "uint8"), **place)
        (root / "flood_s1" / f"grid_dict_{part}.json").write_text(json.dumps(listed))


def chesapeake(root: Path) -> None:
    """Quarter quads of QUAD pixels and an index of all that are published, with their places.

    In the land cover of the test quad the left tile is no data, the right one half tree canopy (2) and
    half water (1). Elsewhere the left is tree canopy, the right low vegetation (3) below 100 rows of no
    data. The remainder at the right is road (6).
    """
    for state in ("de", "md", "ny", "pa", "va", "wv"):
        for part in ("train", "val", "test"):
            year = 2014 if state in ("va", "wv") else 2013
            name = f"{state}_1m_{year}_extended-debuffered-{part}_tiles"
            (root / name).mkdir(parents=True)
    rows = []
    for i, (split, (name, epsg)) in enumerate(CHESAPEAKE_QUADS.items()):
        grid = from_origin(450_000 + 9_000 * i, 4_300_000, 1, 1)
        corners = gpd.GeoSeries([box(*array_bounds(*QUAD, grid))], crs=epsg).to_crs(3857)
        paths = {layer: f"{name}_{layer}.tif" for layer in CHESAPEAKE_LAYERS}
        rows.append({"split": split, "geometry": corners[0], **paths})
        cover = np.full((1, *QUAD), 6, np.uint8)
        if split.endswith("test"):
            cover[:, :, :256], cover[:, :, 256:384], cover[:, :, 384:512] = 15, 2, 1
        else:
            cover[:, :, :256], cover[:, :100, 256:512], cover[:, 100:, 256:512] = 2, 0, 3
        numbers = rng(14, i).integers(1, 256, (4, *QUAD), dtype=np.uint8)
        write_tif(root / paths["naip-new"], numbers, crs=f"EPSG:{epsg}", transform=grid)
        write_tif(root / paths["lc"], cover, crs=f"EPSG:{epsg}", transform=grid)
    for layer in (
        *CHESAPEAKE_LAYERS,
        "buildings",
    ):  # without which torchgeo holds the data set for absent
        path = root / f"{CHESAPEAKE_QUADS['wv-val'][0]}_{layer}.tif"
        if not path.exists():
            path.touch()
    gpd.GeoDataFrame(rows, crs=3857).to_file(root / "spatial_index.geojson", driver="GeoJSON")


def usavars(root: Path, parts: Mapping[str, int] | None = None, side: int = 38) -> None:
    """GeoTIFFs of four 8-bit bands, a table for each of seven labels, and lists by part."""
    rows, lines = [], []
    for part, count in (parts or {"train": 5, "val": 2, "test": 3}).items():
        names = []
        for _ in range(count):
            i = len(rows)
            rows.append((f"{i},7", -100 + 0.05 * i, 40.0 + 0.01 * i))
            names.append(f"tile_{i},7.tif")
            numbers = rng(9, i).integers(1, 256, (4, side, side), dtype=np.uint8)
            place = {"crs": "EPSG:4326", "transform": from_origin(*rows[i][1:], 4e-5, 4e-5)}
            write_tif(root / "uar" / names[-1], numbers, **place)
        (root / f"{part}_split.txt").write_text("\n".join(names) + "\n")
    labels = "housing", "income", "roads", "nightlights", "population", "elevation", "treecover"
    for label in labels:
        lines = [f",ID,lon,lat,{label}"]
        lines += [f'{i},"{name}",{lon},{lat},{7.5 * i}' for i, (name, lon, lat) in enumerate(rows)]
        (root / f"{label}.csv").write_text("\n".join(lines) + "\n")


def ssl4eo_l_benchmark(root: Path, n: int = 54, products: Sequence[str] = ("nlcd", "cdl")) -> None:
    """Images and masks in folders of equal structure. Image i of the shuffled order is of class i mod 8."""
    order = np.arange(n)
    np.random.RandomState(0).shuffle(order)  # as SSL4EOLBenchmark does
    for position, i in enumerate(order.tolist()):
        place, date = f"{i:07}", f"LC08_045030_20190{1 + i % 9}15"
        level = rng(10, i).integers(40, 200, (7, 1, 1))
        numbers = (level + np.arange(SIDE) % 40).astype(np.uint8).repeat(SIDE, 1)
        path = root / "ssl4eo_l_oli_sr_benchmark" / place / date / "all_bands.tif"
        grid = from_origin(-120 + 0.2 * i, 40, 0.00035, 0.00027)
        write_tif(path, numbers, crs="EPSG:4326", transform=grid, compress="lzw")
        for product in products:
            mask = np.full((1, SIDE, SIDE), MASK_CODES[product][position % 8], np.uint8)
            path = root / f"ssl4eo_l_oli_{product}" / place / date / f"{product}_2019.tif"
            write_tif(path, mask, crs="EPSG:4326", transform=grid, compress="lzw")


def everything(root: Path) -> None:
    """A folder of all data sets but LCZ-S2, which needs h5py."""
    ssl4eo_s12(root / "ssl4eo_s12")
    ssl4eo_l(root / "ssl4eo_l")
    naip(root / "naip", naip_name("3712201_ne", 20180712))
    mod09a1(root / "mod09a1")
    eurosat(root / "copernicus_bench", "s1")
    eurosat(root / "copernicus_bench", "s2")
    dfc2020(root / "copernicus_bench")
    flood(root / "copernicus_bench")
    usavars(root / "usavars")
    ssl4eo_l_benchmark(root / "ssl4eo_l_benchmark")
    chesapeake(root / "chesapeake_cvpr")
