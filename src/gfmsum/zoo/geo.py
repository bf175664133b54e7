"""torchgeo's DOFA, Copernicus-FM, Panopticon, Scale-MAE and networks trained on one sensor.

Their own code embeds the images; here is what they are told of the bands, and where the tokens are
taken. Which numbers stand for radar comes from torchgeo's docstrings and the models' own repositories.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gfmsum.catalog import LANDSAT_ETM, LANDSAT_TM
from gfmsum.sensors import LANDSAT, S1, S2, Band, Sensor
from gfmsum.zoo.borrowed import Borrowed, codes, pick, side
from gfmsum.zoo.cards import COPERNICUSFM, DOFA, PANOPTICON, SCALEMAE, Entry, Options
from gfmsum.zoo.channels import COLOURS, Order, by_name, by_wavelength, complete
from gfmsum.zoo.recipe import Published, Recipe, fill, output_of, read_state

DOFA_RADAR_UM = 3.75  # what these weights' authors gave them for VV and VH alike
COPERNICUS_RADAR_NM = (5e7, 1e9)  # centre and width, the same for VV and VH
COPERNICUS_AREA_KM2 = (1e-3, 5.1e8)  # what its code of a patch's area spans
PANOPTICON_RADAR = {"VV": -1.0, "VH": -2.0, "HH": -3.0, "HV": -4.0}  # of an orbit that is not known


class Dofa(Borrowed):
    """Told the centre wavelength of each band, in µm."""

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        waves = [band.wavelength_um or DOFA_RADAR_UM for band in bands]
        model: Any = self.model
        with output_of(model.blocks[-1]) as seen:
            model.forward_features(x, waves)
        return seen[0][:, 1:], seen[0][:, 0]

    def _finish(self, pooled: Tensor) -> Tensor:
        normed: Tensor = self.model.get_submodule("fc_norm")(pooled)
        return normed


class Copernicus(Borrowed):
    """Told centre and width of each band, in nm, and the area of a patch."""

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        pairs = [
            (1e3 * band.wavelength_um, 1e3 * band.fwhm_um)
            if band.wavelength_um is not None and band.fwhm_um is not None
            else COPERNICUS_RADAR_NM
            for band in bands
        ]
        area = (gsd_m * self.patch_px / 1e3) ** 2
        least, most = COPERNICUS_AREA_KM2
        unknown = torch.nan  # longitude, latitude, days since 1970, km²
        about = codes([unknown, unknown, unknown, area if least <= area <= most else unknown], x)
        model: Any = self.model
        with output_of(model.blocks[-1]) as seen:
            model.forward_features(x, about.expand(len(x), -1), *zip(*pairs, strict=True))
        return seen[0][:, 1:], seen[0][:, 0]

    def _finish(self, pooled: Tensor) -> Tensor:
        normed: Tensor = self.model.get_submodule("fc_norm")(pooled)
        return normed


class Panopticon(Borrowed):
    """Told the centre wavelength of each band, in nm, or a negative number for a polarisation."""

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        ids = [
            PANOPTICON_RADAR[band.polarisation or ""]
            if band.wavelength_um is None
            else 1e3 * band.wavelength_um
            for band in bands
        ]
        # Made anew each time: the model writes into it.
        numbers = codes(ids, x).repeat(len(x), 1)
        model: Any = self.model
        tokens = model.model.forward_features({"imgs": x, "chn_ids": numbers})
        return tokens[:, 1:], tokens[:, 0]


class ScaleMae(Borrowed):
    """Red, green and blue, and the pixel size in metres."""

    def _check(self, bands: Sequence[Band]) -> None:
        self._order(bands)

    def _order(self, bands: Sequence[Band]) -> Order:
        return complete(by_wavelength(bands, COLOURS), list(COLOURS), self.missing)

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        model: Any = self.model
        model.res = gsd_m
        tokens = model.forward_features(pick(x, self._order(bands)))
        return tokens[:, 1:], tokens[:, 0]


class OneSensor(Borrowed):
    """A network of timm's whose first layer has a channel for each band of one sensor.

    Args:
        channels: names of the k channels.
        sensor: whose bands those names are.
    """

    def __init__(
        self, model: nn.Module, options: Options, channels: Sequence[str], sensor: Sensor
    ) -> None:
        super().__init__(model, options, native_px=224, patch_px=32, width=int(model.num_features))  # type: ignore[arg-type]
        self.channels, self.sensor = tuple(channels), sensor

    def _check(self, bands: Sequence[Band]) -> None:
        self._order(bands)

    def _order(self, bands: Sequence[Band]) -> Order:
        order = by_name(bands, self.channels, self.sensor)
        return complete(order, self.channels, self.missing)

    def _run(self, x: Tensor, bands: Sequence[Band], gsd_m: float) -> tuple[Tensor, Tensor | None]:
        model: Any = self.model
        features: Tensor = model.forward_features(pick(x, self._order(bands)))  # (b, d, h, w)
        return features.flatten(2).mT, None


def recipe(entry: Entry) -> Recipe:
    """How to build an entry with torchgeo's code."""
    from torchgeo import models

    match entry.family:
        case family if family is DOFA:
            size = entry.builds.split("_")[1].capitalize()
            weights = getattr(models, f"DOFA{size}16_Weights").DOFA_MAE
            build = partial(_dofa, getattr(models, entry.builds))
        case family if family is COPERNICUSFM:
            weights = models.CopernicusFM_Base_Weights.CopernicusFM_ViT
            build = partial(_copernicus, models.copernicusfm_base)
        case family if family is PANOPTICON:
            weights = models.Panopticon_Weights.VIT_BASE14
            build = partial(_panopticon, models.panopticon_vitb14)
        case family if family is SCALEMAE:
            weights = models.ScaleMAELarge16_Weights.FMOW_RGB
            build = partial(_scalemae, models.scalemae_large_patch16)
        case _:
            trunk, _, chosen = entry.builds.partition("/")
            weights = getattr(models, f"ResNet{trunk.removeprefix('resnet')}_Weights")[chosen]
            build = partial(
                _one_sensor, trunk, weights.meta["bands"], _SENSORS[chosen.rpartition("_")[0]]
            )
    return Recipe(build, Published.at(weights.url))


_SENSORS = {
    "SENTINEL1_ALL": S1, "SENTINEL1_GRD": S1, "SENTINEL2_ALL": S2, "LANDSAT_TM_TOA": LANDSAT_TM,
    "LANDSAT_ETM_TOA": LANDSAT_ETM, "LANDSAT_ETM_SR": LANDSAT_ETM, "LANDSAT_OLI_TIRS_TOA": LANDSAT,
    "LANDSAT_OLI_SR": LANDSAT,
}  # fmt: skip


def _dofa(make: Any, options: Options, path: Path | None) -> Borrowed:
    model = make(img_size=side(options, 224, 16), num_classes=0)
    if path:
        _fill_but_last_norm(model, path)
    return Dofa(model, options, native_px=224, patch_px=16, width=model.embed_dim)


def _copernicus(make: Any, options: Options, path: Path | None) -> Borrowed:
    model = make()  # which fits its position codes to any image itself
    if path:
        _fill_but_last_norm(model, path)
    return Copernicus(model, options, native_px=224, patch_px=16, width=model.pos_embed.shape[-1])


def _fill_but_last_norm(model: Any, path: Path) -> None:
    """The published weights end before the norm that follows pooling; it stays without effect of its own."""
    norm = {f"fc_norm.{name}": value for name, value in model.fc_norm.state_dict().items()}
    fill(model, norm | read_state(path), path, beyond=("head.",))


def _panopticon(make: Any, options: Options, path: Path | None) -> Borrowed:
    image_px = side(options, 224, 14)
    model = make(img_size=image_px)
    if path:
        fill(model.model, read_state(path), path, beyond=("mask_token",))
    return Panopticon(model, options, native_px=224, patch_px=14, width=model.model.num_features)


def _scalemae(make: Any, options: Options, path: Path | None) -> Borrowed:
    model = make(img_size=side(options, 224, 16), num_classes=0)
    if path:
        fill(model, read_state(path), path, beyond=("",))
    return ScaleMae(model, options, native_px=224, patch_px=16, width=model.embed_dim)


def _one_sensor(
    trunk: str, channels: Sequence[str], sensor: Sensor, options: Options, path: Path | None
) -> Borrowed:
    import timm

    model = timm.create_model(trunk, num_classes=0, in_chans=len(channels))
    if path:
        fill(model, read_state(path), path, beyond=("fc.",))
    return OneSensor(model, options, channels, sensor)
