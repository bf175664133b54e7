"""Prithvi, TerraMind and Clay as TerraTorch builds them, where TerraTorch is installed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from gfmsum.sensors import S1, S2, Band
from gfmsum.zoo.borrowed import Borrowed, codes, pick, side
from gfmsum.zoo.cards import PRITHVI, TERRAMIND, Entry, Options
from gfmsum.zoo.channels import HLS, Order, by_name, by_wavelength, complete
from gfmsum.zoo.recipe import Published, Recipe, fill, read_state

CLAY_RADAR_UM = {"VV": 3.5, "VH": 4.0}
_L1C = tuple(band.name for band in S2.bands)
TERRAMIND_INPUTS = {
    "S2L1C": (_L1C, S2),
    "S2L2A": (tuple(name for name in _L1C if name != "B10"), S2),
    "S1GRD": (("VV", "VH"), S1),
}
"""Channels of TerraMind's inputs by our bands' names, in TerraTorch's order, and whose bands they are."""


class Prithvi(Borrowed):
    """Six channels by wavelength."""

    def _check(self, bands: Sequence[Band]) -> None:
        self._order(bands)

    def _order(self, bands: Sequence[Band]) -> Order:
        return complete(by_wavelength(bands, HLS), list(HLS), self.missing)

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        model: Any = self.model
        tokens: Tensor = model.forward_features(pick(x, self._order(bands)))[-1]
        return tokens[:, 1:], tokens[:, 0]


class TerraMind(Borrowed):
    """The input that fits the bands."""

    def _check(self, bands: Sequence[Band]) -> None:
        self._input(bands)

    def _input(self, bands: Sequence[Band]) -> tuple[str, Order]:
        names = {band.name for band in bands}
        radar = any(band.polarisation is not None for band in bands)
        name = "S1GRD" if radar else "S2L1C" if "B10" in names else "S2L2A"
        channels, sensor = TERRAMIND_INPUTS[name]
        return name, complete(by_name(bands, channels, sensor), channels, self.missing)

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        name, order = self._input(bands)
        model: Any = self.model
        tokens: Tensor = model({name: pick(x, order)})[-1]
        return tokens, None


class Clay(Borrowed):
    """Told the centre wavelength of each band, in µm, and the pixel size."""

    def _check(self, bands: Sequence[Band]) -> None:
        self._waves(bands)

    def _waves(self, bands: Sequence[Band]) -> list[float]:
        for band in bands:
            if band.polarisation is not None and band.polarisation not in CLAY_RADAR_UM:
                raise ValueError(
                    f"Clay has no wavelength for {band.polarisation}; leave that band out"
                )
        return [band.wavelength_um or CLAY_RADAR_UM[band.polarisation or ""] for band in bands]

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        model: Any = self.model
        waves = codes(self._waves(bands), x)
        tokens: Tensor = model.forward_features(x, waves=waves, gsd=gsd_m)[-1]
        return tokens[:, 1:], tokens[:, 0]


@cache
def _terratorch() -> Any:
    """TerraTorch's registry, its models registered.

    Raises:
        ValueError: if it is not installed, or does not work with what is.
    """
    remedy = (
        "in an environment of its own: pip install terratorch hydra-core, then pip install --no-deps gfmsum "
        "(TerraTorch 1.2.13 needs torchgeo below 0.10, our data sets need 0.10)"
    )
    if find_spec("terratorch") is None:
        raise ValueError(f"TerraTorch is not installed; install it {remedy}")
    try:
        import_module("terratorch.models.backbones")
        return import_module("terratorch.registry").BACKBONE_REGISTRY
    except ImportError as error:
        raise ValueError(f"TerraTorch does not start here: {error}; install it {remedy}") from None


def recipe(entry: Entry) -> Recipe:
    """How to build an entry with TerraTorch's code."""
    try:
        registry = _terratorch()
    except ValueError as error:
        raise ValueError(f"{entry.name}: {error}") from None
    backbones = "terratorch.models.backbones"
    if entry.family is PRITHVI:
        theirs = import_module(f"{backbones}.prithvi_vit")
        return Recipe(partial(_prithvi, registry, theirs, entry.builds), _hub(theirs, entry.builds))
    if entry.family is TERRAMIND:
        theirs = import_module(f"{backbones}.terramind.model.terramind_register")
        return Recipe(partial(_terramind, registry, entry.builds), _hub(theirs, entry.builds))
    published = Published(repository="made-with-clay/Clay-legacy", files=("v1/clay-v1-base.ckpt",))
    return Recipe(partial(_clay, registry, entry.builds), published)


def _hub(theirs: Any, model: str) -> Published:
    place = theirs.pretrained_weights[model]
    return Published(repository=place["hf_hub_id"], files=(place["hf_hub_filename"],))


def _prithvi(
    registry: Any, theirs: Any, name: str, options: Options, path: Path | None
) -> Borrowed:
    patch_px = theirs.prithvi_cfgs[name]["patch_size"][-1]
    model = registry.build(
        f"terratorch_{name}", pretrained=False, img_size=side(options, 224, patch_px)
    )
    if path:
        channels = model.model_bands
        state = theirs.checkpoint_filter_fn_vit(read_state(path), model, channels, channels)
        fill(model, state, path)
    return Prithvi(model, options, native_px=224, patch_px=patch_px, width=model.embed_dim)


def _terramind(registry: Any, name: str, options: Options, path: Path | None) -> Borrowed:
    model = registry.build(
        f"terratorch_{name}", pretrained=False, modalities=list(TERRAMIND_INPUTS)
    )
    if path:  # of the whole model, of which an encoder is a part
        fill(model, read_state(path), path, beyond=("",))
    return TerraMind(model, options, native_px=224, patch_px=16, width=model.out_channels[-1])


def _clay(registry: Any, name: str, options: Options, path: Path | None) -> Borrowed:
    import timm

    model = timm.create_model(name, img_size=side(options, 256, 8))
    if path:  # of the whole model in training: its encoder, teacher and decoder
        state = read_state(path)
        start = "model.encoder."
        ours = {
            n.replace(start, "clay_encoder.", 1): v for n, v in state.items() if n.startswith(start)
        }
        fill(model, ours, path)
    return Clay(model, options, native_px=256, patch_px=8, width=768)
