"""What the zoo holds and what each model makes of our images, in words; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from types import MappingProxyType

from gfmsum.budget import BUDGETS
from gfmsum.sensors import unknown


@dataclass(frozen=True, slots=True)
class Options:
    """How an entry is built; see :func:`gfmsum.zoo.load`."""

    image_px: int | None = None
    pool: str = "mean"
    missing: str = "refuse"
    in_chans: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one making."""

    home: str  # module of this package that builds them
    takes: tuple[str, ...]  # options
    facts: Mapping[str, str]  # by subject, what it does with our images


@dataclass(frozen=True, slots=True)
class Entry:
    """One model that can be loaded."""

    name: str
    family: Family
    builds: str  # its name where it comes from
    source: str


_SCALE = "ours gives each band zero mean and unit variance over a task's training items"
_RESIZED = "square images are resized to {}; other shapes are refused"
_FIXED = (
    "channels are filled by band name, and the wavelength is checked within 1.5 %; bands that the weights "
    "do not know are left out; channels without a band are refused, or zero with missing=zero, the mean of a "
    "normalised band. No sensor of the catalog has thermal or panchromatic bands, so weights that "
    "know them (tm_toa, etm_toa, oli_tirs_toa) always need missing=zero"
)
_FIXED_SCALE = (
    f"{_SCALE}; {{}}. Its first layer was trained on that scale, from which ours differs by one gain and "
    "one offset per band"
)

DOFA = Family(
    "geo",
    ("image_px", "pool"),
    {
        "wavelengths": "centre of each band in µm, whatever the order of the bands; widths are not used",
        "radar": "every radar band gets 3.75 µm, the placeholder of these weights' authors, so VV and VH are "
        "alike to it: it sees their sum",
        "GSD": "is not told to it",
        "image": _RESIZED.format("224 px, 14 x 14 patches; position codes are interpolated for others"),
        "scale": f"{_SCALE}; it was trained on each data set's own statistics, and ours are the task's",
        "pooling": "mean of the patch tokens, then a layer norm without learned weights, as its authors do",
        "known faults": "its convolution pads by one pixel, so patches are shifted by one; torchgeo ignores "
        "dynamic_embed_dim (128 always); with weights=random it has no position codes",
    },
)  # fmt: skip
COPERNICUSFM = Family(
    "geo",
    ("image_px", "pool"),
    {
        "wavelengths": "centre and full width at half maximum in nm, whatever the order of the bands",
        "radar": "every radar band gets 5e7 nm with a width of 1e9 nm, as its authors give Sentinel-1, so VV "
        "and VH are alike to it",
        "GSD": "is told as a patch's area in km²; patches below 0.001 km² (pixels finer than about 2 m) are "
        "outside its range and go as unknown, as do place and date",
        "image": _RESIZED.format("224 px, patches of 16 px for every sensor; Sentinel-3 had 8 px"),
        "scale": f"{_SCALE}; it was trained on each product's own statistics, and ours are the task's",
        "pooling": "mean of the patch tokens, then a layer norm without learned weights, as its authors do",
        "known faults": "its convolution pads by one pixel; with weights=random it has no position codes",
    },
)  # fmt: skip
PANOPTICON = Family(
    "geo",
    ("image_px", "pool"),
    {
        "wavelengths": "centre of each band in nm, whatever the order of the bands; widths are not used",
        "radar": "learned codes for VV, VH, HH and HV (ids -1 to -4), which tell them apart; the orbit is not "
        "known to us, so it is the mean of both; the carrier is not told to it",
        "GSD": "is not told to it",
        "image": _RESIZED.format("224 px, 16 x 16 patches of 14 px"),
        "scale": f"{_SCALE}; it was trained on each data set's own statistics, and ours are the task's",
        "pooling": "mean of the patch tokens; its authors use the class token: pool=cls",
        "known faults": "a patch costs 2,304 numbers per band: imaging spectrometers need small batches; with "
        "weights=random its radar codes are zero, so VV and VH are alike",
    },
)  # fmt: skip
SCALEMAE = Family(
    "geo",
    ("image_px", "pool", "missing"),
    {
        "wavelengths": "the bands nearest to red, green and blue, each within 5 %; others are left out",
        "radar": "is refused: it has no red, green or blue",
        "GSD": "metres of the resized pixel scale its position codes; it was trained on aerial and "
        "metre-scale images, so 10 m and more are outside what it knows",
        "image": _RESIZED.format("224 px, 14 x 14 patches"),
        "scale": f"{_SCALE}; it was trained with ImageNet's mean and deviation of 8-bit RGB",
        "pooling": "mean of the patch tokens",
    },
)  # fmt: skip
SINGLE = Family(
    "geo",
    ("image_px", "pool", "missing"),
    {
        "wavelengths": _FIXED,
        "radar": "as a channel, where the weights are of Sentinel-1; VV and VH are told apart",
        "GSD": "is not told to it",
        "image": _RESIZED.format("224 px; one token stands for 32 x 32 px"),
        "scale": _FIXED_SCALE.format("it was trained on reflectance by 10,000 or 8-bit by 255, or by channel "
        "statistics (Sentinel-1, SoftCon)"),
        "pooling": "mean of the tokens, which is a ResNet's own global pooling",
    },
)  # fmt: skip
TIMM = Family(
    "vit",
    ("image_px", "pool", "missing", "in_chans"),
    {
        "wavelengths": "the bands nearest to red, green and blue, each within 5 %; others are left out. With "
        "in_chans=N all N bands in their order: timm repeats the kernels of red, green and blue and rescales "
        "them, so the order matters and means nothing",
        "radar": "is refused, unless in_chans says how many bands there are",
        "GSD": "is not told to it",
        "image": _RESIZED.format("its pretraining's size (224 to 518 px); position codes are interpolated"),
        "scale": f"{_SCALE}; it was trained with one mean and deviation per colour for all images",
        "pooling": "mean of the patch tokens without class and register tokens; or the class token: pool=cls",
    },
)  # fmt: skip
PRITHVI = Family(
    "terra",
    ("image_px", "pool", "missing"),
    {
        "wavelengths": "six channels (blue, green, red, narrow NIR, SWIR 1.6 and 2.2 µm), each filled by the "
        "band nearest to it within 5 %; others are left out",
        "radar": "is refused",
        "GSD": "is not told to it; place and date of the TL models go as unknown",
        "image": _RESIZED.format("224 px, one date"),
        "scale": _FIXED_SCALE.format("it was trained with one mean and deviation per channel (HLS x 10,000)"),
        "pooling": "mean of the patch tokens",
    },
)  # fmt: skip
TERRAMIND = Family(
    "terra",
    ("image_px", "pool", "missing"),
    {
        "wavelengths": "the input for Sentinel-2 L1C (if there is a B10) or L2A, or Sentinel-1 GRD, filled by "
        "band name with the wavelength checked; no other sensor. Its other inputs (RTC, RGB, DEM, NDVI) rest",
        "radar": "two channels of the GRD input; VV and VH are told apart",
        "GSD": "is not told to it",
        "image": _RESIZED.format("224 px, 14 x 14 patches"),
        "scale": _FIXED_SCALE.format("it was trained with one mean and deviation per channel"),
        "pooling": "mean of the patch tokens; it has no class token",
    },
)  # fmt: skip
CLAY = Family(
    "terra",
    ("image_px", "pool"),
    {
        "wavelengths": "centre of each band in µm, whatever the order of the bands; its codes hardly tell "
        "neighbouring bands apart",
        "radar": "made-up wavelengths of its authors: 3.5 µm for VV, 4.0 µm for VH; HH and HV are refused",
        "GSD": "metres of the resized pixel scale its position codes; place and date go as zeros",
        "image": _RESIZED.format("256 px, 32 x 32 patches of 8 px"),
        "scale": _FIXED_SCALE.format("it was trained with one mean and deviation per band of each platform"),
        "pooling": "mean of the patch tokens",
    },
)  # fmt: skip
FLOOR = Family(
    "floors",
    (),
    {
        "wavelengths": "our own architecture as an ablation's floor has it, untrained: any bands, any size",
        "radar": "told apart by polarisation",
        "GSD": "positions are metres on the ground",
        "image": "as it is; its sides must be multiples of the patch",
        "scale": _SCALE,
        "pooling": "mean of the patch tokens. Its seed is that of the study whose first floor it equals",
    },
)
STATISTICS = Family(
    "floors",
    (),
    {
        "wavelengths": "are not used: mean, standard deviation, 10th and 90th percentile of each band, in "
        "the order of the bands",
        "radar": "like any band",
        "GSD": "is not used",
        "image": "as it is; tokens are of blocks of 16 px",
        "scale": f"{_SCALE}, which no linear probe on standardised features can tell from raw values",
        "pooling": "statistics of the whole image, not the mean of its blocks'",
    },
)
OURS = Family(
    "floors",
    (),
    dict(FLOOR.facts)
    | {
        "wavelengths": "an exported encoder of our own (gfmsum.model.export): weights=FOLDER",
        "pooling": "mean of the patch tokens",
    },
)

_MAE = "Xiong et al. 2024, arXiv 2403.15356"
_S12 = "Wang et al. 2023, SSL4EO-S12, arXiv 2211.07044"
_L = "Stewart et al. 2023, SSL4EO-L, arXiv 2306.09424"
_DECUR = "Wang et al. 2024, DeCUR, arXiv 2309.05300"
_SOFTCON = "Wang et al. 2024, SoftCon, arXiv 2405.20462"
_PRITHVI = "Szwarcman et al. 2024, arXiv 2412.02732"
_TERRAMIND = "Jakubik et al. 2025, arXiv 2504.11171"


def _single_sensor() -> list[Entry]:
    """Weights of one sensor each, by the names that torchgeo gives them."""
    rows = [
        ("resnet18", "s2", "moco", "SENTINEL2_ALL_MOCO", _S12),
        ("resnet50", "s1", "decur", "SENTINEL1_ALL_DECUR", _DECUR),
        ("resnet50", "s1", "moco", "SENTINEL1_ALL_MOCO", _S12),
        ("resnet50", "s1", "softcon", "SENTINEL1_GRD_SOFTCON", _SOFTCON),
        ("resnet50", "s2", "decur", "SENTINEL2_ALL_DECUR", _DECUR),
        ("resnet50", "s2", "dino", "SENTINEL2_ALL_DINO", _S12),
        ("resnet50", "s2", "moco", "SENTINEL2_ALL_MOCO", _S12),
        ("resnet50", "s2", "softcon", "SENTINEL2_ALL_SOFTCON", _SOFTCON),
    ]
    products = ("tm_toa", "etm_toa", "etm_sr", "oli_tirs_toa", "oli_sr")
    rows += [
        (trunk, product_, method, f"LANDSAT_{product_}_{method}".upper(), _L)
        for trunk, product_, method in product(("resnet18", "resnet50"), products, ("moco", "simclr"))
    ]  # fmt: skip
    return [
        Entry(f"{trunk}_{data}_{method}", SINGLE, f"{trunk}/{weights}", source)
        for trunk, data, method, weights, source in rows
    ]


_TIMM_SHOWN = {
    "vit_small_patch16_224.augreg_in21k": "Steiner et al. 2022, ImageNet-21k",
    "vit_base_patch16_224.augreg_in21k": "Steiner et al. 2022, ImageNet-21k",
    "vit_base_patch16_224.mae": "He et al. 2022, ImageNet-1k",
    "vit_small_patch14_dinov2.lvd142m": "Oquab et al. 2023, DINOv2",
    "vit_base_patch14_dinov2.lvd142m": "Oquab et al. 2023, DINOv2",
    "vit_small_patch16_dinov3.lvd1689m": "Siméoni et al. 2025, DINOv3",
    "vit_base_patch16_dinov3.lvd1689m": "Siméoni et al. 2025, DINOv3",
    "vit_large_patch16_dinov3.lvd1689m": "Siméoni et al. 2025, DINOv3",
    "vit_large_patch16_dinov3.sat493m": "Siméoni et al. 2025, DINOv3 on satellite images",
}
_ALL = [
    Entry("imagestats", STATISTICS, "", "a floor"),
    Entry("random/tiny", FLOOR, "tiny", "a floor"),
    Entry("random/base", FLOOR, "base", "a floor"),
    Entry("gfmsum", OURS, "", "this package"),
    Entry("dofa_base", DOFA, "dofa_base_patch16_224", _MAE),
    Entry("dofa_large", DOFA, "dofa_large_patch16_224", _MAE),
    Entry("copernicusfm_base", COPERNICUSFM, "copernicusfm_base", "Wang et al. 2025, arXiv 2503.11849"),
    Entry("panopticon_base", PANOPTICON, "panopticon_vitb14", "Waldmann et al. 2025, arXiv 2503.10845"),
    Entry("scalemae_large", SCALEMAE, "scalemae_large_patch16", "Reed et al. 2023, arXiv 2212.14532"),
    *_single_sensor(),
    *(Entry(f"timm/{model}", TIMM, model, source) for model, source in _TIMM_SHOWN.items()),
    *(
        Entry(f"terratorch/{model}", PRITHVI, model, _PRITHVI)
        for model in ("prithvi_eo_v1_100", "prithvi_eo_v2_300", "prithvi_eo_v2_300_tl", "prithvi_eo_v2_600",
                      "prithvi_eo_v2_600_tl")
    ),
    *(
        Entry(f"terratorch/terramind_v1_{size}", TERRAMIND, f"terramind_v1_{size}", _TERRAMIND)
        for size in ("tiny", "small", "base", "large")
    ),
    Entry("terratorch/clay_v1_base", CLAY, "clay_v1_base", "Clay Foundation 2024, Clay v1"),
]  # fmt: skip

ENTRIES: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ALL})
"""The entries that are listed; any model of timm's and any budget's architecture is one too."""


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ValueError: for a name that is none.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    kind, _, rest = name.partition("/")
    # No other sign: timm would fetch what stands behind a colon.
    if kind == "timm" and re.fullmatch(r"\w+(\.\w+)?", rest, re.ASCII):
        return Entry(name, TIMM, rest, "timm")
    if kind == "random":
        if rest not in BUDGETS:
            raise ValueError(f"{name}: {unknown('budget', rest, BUDGETS)}")
        return Entry(name, FLOOR, rest, "a floor")
    near = get_close_matches(name, ENTRIES, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown model {name!r}: python -m gfmsum.zoo lists them{hint}")
