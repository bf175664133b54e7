"""Other people's encoders: what they are told, where tokens are taken, and how weights get in."""

import hashlib
import math
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gfmsum.budget import BUDGETS
from gfmsum.catalog import CATALOG, LANDSAT_TM, S2L2A, UMBRA
from gfmsum.data.sample import Labelled, Samples
from gfmsum.pretrain import initialised
from gfmsum.probe.features import BandStatistics, Encoded
from gfmsum.probe.fit import probe
from gfmsum.records import Task
from gfmsum.sensors import LANDSAT, MODIS, NAIP, S1, S2, Band, Unit
from gfmsum.zoo import ENTRIES, entry, load, recipe_of
from gfmsum.zoo.__main__ import look, main
from gfmsum.zoo.borrowed import Borrowed
from gfmsum.zoo.cards import Options
from gfmsum.zoo.channels import COLOURS, HLS, by_name, by_wavelength, complete
from gfmsum.zoo.recipe import Published, Recipe, read_state

HERE_TOO = [name for name in ENTRIES if not name.startswith("terratorch/")]


@pytest.fixture(autouse=True)
def nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and no weights but those that a test puts there."""

    def refuse(*args: Any) -> None:
        raise AssertionError("the zoo went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Let torchgeo build its models narrow or shallow; their real sizes are for the meta device."""
    from torchgeo import models

    shallow = SimpleNamespace(create_model=partial(timm.create_model, depth=1))
    patch.setattr("torchgeo.models.panopticon.timm", shallow)
    small = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    patch.setattr(models, "dofa_base_patch16_224", partial(models.DOFA, **small))
    patch.setattr(models, "copernicusfm_base", partial(models.CopernicusFM, **small))
    patch.setattr(models, "panopticon_vitb14", partial(models.Panopticon, attn_dim=96))
    patch.setattr(
        models, "scalemae_large_patch16", partial(models.ScaleMAE, patch_size=16, **small)
    )


@cache
def loaded(name: str, **options: Any) -> Any:
    """A small model with random weights, made once."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return load(name, "random", **options)


def images(bands: tuple[Band, ...], px: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, len(bands), px, px, generator=torch.Generator().manual_seed(1))


# Channels.


def test_red_green_and_blue_are_found_by_wavelength_whatever_their_names() -> None:
    assert by_wavelength(S2.bands, COLOURS) == (3, 2, 1)  # B04 B03 B02
    assert by_wavelength(MODIS.bands, COLOURS) == (0, 3, 2)  # 645, 555, 469 nm
    assert by_wavelength(NAIP.bands[::-1], COLOURS) == (3, 2, 1)
    assert by_wavelength(S1.bands, COLOURS) == (None, None, None)
    # Without red, the red edge at 704 nm is none; without blue, the coastal band at 443 nm is none.
    assert by_wavelength(S2.select(["B05", "B03", "B01"]), COLOURS) == (None, 1, None)
    assert by_wavelength(S2.bands, HLS) == (1, 2, 3, 8, 11, 12)  # B8A, not B08
    assert by_wavelength(LANDSAT.bands, HLS) == (1, 2, 3, 4, 5, 6)


def test_names_are_read_in_any_spelling_and_held_against_the_wavelength() -> None:
    assert by_name(S2.bands, ["B8a", "B1", "B12"], S2) == (8, 0, 12)
    assert by_name(LANDSAT.bands, ["SR_B4", "SR_B2"], LANDSAT) == (3, 1)
    assert by_name(S1.bands, ["VH", "VV"], S1) == (1, 0)
    assert by_name(S2L2A.bands, ["B9", "B10", "B11"], S2) == (9, None, 10)
    # Landsat 8's B6 is SWIR, a TOA product's channel B6 is thermal: no band of ours may fill it.
    assert by_name(LANDSAT_TM.bands, ["B5", "B6", "B7"], LANDSAT_TM) == (4, None, 5)
    assert by_name(S2.bands, ["B1", "B8", "B11"], LANDSAT) == (0, None, None)  # pan, thermal
    with pytest.raises(ValueError, match=r"band B2 \(0.482 µm\) is not Sentinel-2 MSI's \(0.4927"):
        by_name(LANDSAT.bands, ["B1", "B2"], S2)
    with pytest.raises(ValueError, match=r"VV at 9.8 GHz\) is not Sentinel-1 IW GRD's"):
        by_name(UMBRA.bands, ["VV"], S1)


def test_sentinel_2b_passes_for_sentinel_2a() -> None:
    blue = Band("B02", 10, Unit.REFLECTANCE, 0.4921, 0.066)
    swir = Band("B12", 20, Unit.REFLECTANCE, 2.1857, 0.185)
    assert by_name((swir, blue), ["B2", "B12"], S2) == (1, 0)


def test_channels_without_a_band_are_refused_or_zero() -> None:
    with pytest.raises(ValueError, match=r"no band for B10; say missing=zero"):
        complete((0, None), ["B9", "B10"], "refuse")
    assert complete((0, None), ["B9", "B10"], "zero") == (0, None)
    with pytest.raises(ValueError, match="none of the bands red, green, blue; use another model"):
        complete((None, None, None), list(COLOURS), "zero")


@given(st.permutations(range(13)))
def test_channels_do_not_depend_on_the_order_of_the_bands(order: list[int]) -> None:
    shuffled = tuple(S2.bands[i] for i in order)
    for find in (
        partial(by_wavelength, wanted=COLOURS),
        partial(by_name, channels=["B4", "B8A", "B1"], sensor=S2),
    ):
        want = [S2.bands[i] for i in find(S2.bands)]  # type: ignore[index]
        assert [shuffled[i] for i in find(shuffled)] == want  # type: ignore[index]


# Every entry.


@pytest.mark.parametrize("name", HERE_TOO)
def test_every_entry_can_be_looked_at_without_its_weights(name: str) -> None:
    seen = look(ENTRIES[name])
    assert seen.here in ("no", "-") and seen.where
    assert seen.accepts
    assert set(ENTRIES[name].family.facts) >= {"wavelengths", "radar", "GSD", "image", "scale"}


def test_parameters_are_those_of_the_papers() -> None:
    """Worked out by hand, in millions: 12 d² per block and more."""
    assert (
        look(entry("resnet50_s2_moco")).parameters == "23.5 M"
    )  # 25.6 less 2.05 of the classifier
    assert look(entry("timm/vit_base_patch16_224.mae")).parameters == "85.8 M"
    drawn = recipe_of(entry("resnet50_s2_moco")).sketch(Options())
    assert drawn is not None
    assert sum(p.numel() for p in drawn.parameters()) == 23_508_032 + 64 * 49 * 10
    assert {p.device.type for p in drawn.parameters()} == {"meta"}


def test_what_is_accepted() -> None:
    def accepts(name: str) -> set[str]:
        return set(look(ENTRIES[name]).accepts)

    assert accepts("dofa_base") == accepts("panopticon_base") == set(CATALOG)
    assert accepts("resnet50_s1_moco") == {"s1"}  # and not the X band
    assert accepts("resnet50_s2_dino") == {"s2", "(s2l2a)"}
    assert accepts("resnet50_oli_sr_moco") == {"landsat"}
    assert accepts("resnet18_oli_tirs_toa_moco") == {"(landsat)"}
    assert accepts("timm/vit_base_patch16_224.mae") == set(CATALOG) - {"s1", "umbra"}


def test_models_that_refuse_the_meta_device_are_counted_all_the_same() -> None:
    class Stubborn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = torch.linspace(0, 1, 3)[1].item()  # has no value on the meta device
            self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 5, bias=False)

    made = Recipe(lambda options, path: Stubborn())  # type: ignore[arg-type, return-value]
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    drawn = made.sketch(Options())
    assert drawn is not None and torch.equal(torch.rand(1), want)
    assert sum(p.numel() for p in drawn.parameters()) == 12 + 4 + 20
    assert {p.device.type for p in drawn.parameters()} == {"meta"}
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"  # afterwards all is as before


@pytest.mark.parametrize(
    ("name", "px", "n", "width"),
    [
        ("dofa_base", 32, 4, 64),
        ("copernicusfm_base", 32, 4, 64),
        ("panopticon_base", 28, 4, 768),
        ("scalemae_large", 32, 4, 64),
        ("timm/vit_tiny_patch16_224", 32, 4, 192),
        ("timm/vit_small_patch16_dinov3", 32, 4, 384),  # with register tokens
        ("resnet18_s2_moco", 64, 4, 512),
        ("resnet50_s1_decur", 32, 1, 2048),
        ("resnet18_tm_toa_simclr", 32, 1, 512),
    ],
)
def test_tokens_on_every_accepted_sensor(name: str, px: int, n: int, width: int) -> None:
    model = loaded(name, image_px=px)
    accepted = look(entry(name)).accepts
    assert accepted
    for sensor in accepted:
        known = CATALOG[sensor.strip("()")]
        model.missing = "zero" if sensor.startswith("(") else "refuse"
        x = images(known.bands, px, 1)
        tokens = model.forward_features(x, known.bands, known.gsd_m)
        assert tokens.shape == (1, n, width) and tokens.isfinite().all(), sensor
        assert tokens.std() > 0
        assert model.embed(x, known.bands, known.gsd_m).shape == (1, width)
    model.missing = "refuse"
    for sensor in set(CATALOG) - set(accepted):
        with pytest.raises(ValueError, match=r"image has no|none of the bands|these weights read"):
            model.embed(images(CATALOG[sensor].bands, px, 1), CATALOG[sensor].bands)


# What models are told.


def test_dofa_is_what_torchgeo_makes_of_wavelengths_in_micrometres() -> None:
    model = loaded("dofa_base", image_px=32)
    x = images(S2.bands, 32)
    waves = [band.wavelength_um for band in S2.bands]
    torch.testing.assert_close(model.embed(x, S2.bands), model.model(x, waves))
    tokens = model.forward_features(x, S2.bands)
    torch.testing.assert_close(model.model.fc_norm(tokens.mean(1)), model.embed(x, S2.bands))


def test_vv_and_vh_are_alike_to_dofa_and_copernicusfm() -> None:
    """A fault of theirs that the cards state; our own encoder does not have it."""
    x = images(S1.bands, 32)
    for name in ("dofa_base", "copernicusfm_base"):
        model = loaded(name, image_px=32)
        straight = model.forward_features(x, S1.bands)
        torch.testing.assert_close(
            model.forward_features(x.flip(1), S1.bands), straight, rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(
        loaded("dofa_base", image_px=32).embed(x, S1.bands),
        loaded("dofa_base", image_px=32).model(x, [3.75, 3.75]),
    )


def test_copernicusfm_is_told_widths_and_the_area_of_a_patch() -> None:
    model = loaded("copernicusfm_base", image_px=32)
    x, nan = images(S2.bands, 32), math.nan
    centres = [1e3 * (band.wavelength_um or 0) for band in S2.bands]
    widths = [1e3 * (band.fwhm_um or 0) for band in S2.bands]
    about = torch.tensor([[nan, nan, nan, 0.16**2]] * 2)  # 16 pixels of 10 m, in km
    want = model.model(x, about, centres, widths)
    torch.testing.assert_close(model.embed(x, S2.bands, 10.0), want)
    assert not torch.allclose(model.embed(x, S2.bands, 60.0), want)
    # Twice as large an image, resized: pixels of 5 m become pixels of 10 m.
    large = images(S2.bands, 64)
    small = torch.nn.functional.interpolate(large, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(
        model.embed(large, S2.bands, 5.0), model.embed(small, S2.bands, 10.0)
    )
    # 16 pixels of 1 m are finer than its code of areas reaches: unknown, whatever they are.
    naip = images(NAIP.bands, 32)
    unknown = model.model(naip, torch.full((2, 4), nan), [635, 555, 465, 845], [32, 60, 60, 74])
    torch.testing.assert_close(model.embed(naip, NAIP.bands, 1.0), unknown, rtol=1e-4, atol=1e-5)


def test_panopticon_tells_polarisations_apart_and_is_told_nanometres() -> None:
    model = loaded("panopticon_base", image_px=28)
    x = images(S2.bands, 28)
    numbers = torch.tensor([[1e3 * (band.wavelength_um or 0) for band in S2.bands]] * 2)
    want = model.model.model.forward_features({"imgs": x, "chn_ids": numbers})[:, 1:]
    torch.testing.assert_close(model.forward_features(x, S2.bands), want)
    assert torch.equal(model.embed(x, S2.bands), model.embed(x, S2.bands))  # told anew each time
    radar = images(S1.bands, 28)
    codes = model.model.model.patch_embed.chnfus.chnemb

    def seen() -> dict[str, torch.Tensor]:
        return {p: model.embed(radar[:, :1], (radar_band(p),)) for p in ("VV", "VH", "HH", "HV")}

    def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
        return [p for p in a if not torch.allclose(a[p], b[p], atol=1e-5)]

    before = seen()
    torch.testing.assert_close(before["VV"], before["HV"])  # random weights start from zero codes
    try:
        codes.embed_receive[1] += 1  # of H
        after = seen()
        assert moved(before, after) == ["VH", "HH"]
        codes.embed_transmit[1] += 1
        assert moved(after, seen()) == ["HH", "HV"]
    finally:
        codes.embed_receive.zero_(), codes.embed_transmit.zero_()


def radar_band(polarisation: str) -> Band:
    return Band(polarisation, 10, Unit.DB, polarisation=polarisation)


def test_scalemae_is_told_metres_of_the_resized_pixel() -> None:
    model, x = loaded("scalemae_large", image_px=32), images(S2.bands, 32)
    tokens = model.forward_features(x, S2.bands, 10.0)
    assert tokens.shape == (2, 4, 64) and tokens.isfinite().all()
    model.model.res = 10.0
    want = model.model.forward_features(x[:, [3, 2, 1]])[:, 1:]
    torch.testing.assert_close(tokens, want)
    assert not torch.allclose(model.forward_features(x, S2.bands, 20.0), want)
    model.forward_features(images(S2.bands, 64), S2.bands, 10.0)
    assert model.model.res == 20.0
    with pytest.raises(ValueError, match="none of the bands red, green, blue"):
        model.embed(images(S1.bands, 32), S1.bands)


def test_a_network_of_one_sensor_gets_its_channels_by_name() -> None:
    model = loaded("resnet18_s2_moco", image_px=64)
    x = images(S2.bands, 64)
    pooled = model.model.forward_head(model.model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model.embed(x, S2.bands), pooled)
    surface = [i for i, band in enumerate(S2.bands) if band.name != "B10"]
    zeroed = x.clone()
    zeroed[:, 10] = 0
    lenient = load("resnet18_s2_moco", "random", image_px=64, missing="zero")
    torch.testing.assert_close(
        lenient.embed(x[:, surface], S2L2A.bands), model.embed(zeroed, S2.bands)
    )
    with pytest.raises(ValueError, match="no band for B10; say missing=zero"):
        model.embed(x[:, surface], S2L2A.bands)


def test_timm_with_more_channels_takes_bands_in_their_order() -> None:
    model = loaded("timm/vit_tiny_patch16_224", image_px=32, in_chans=13)
    x = images(S2.bands, 32)
    torch.testing.assert_close(
        model.forward_features(x, S2.bands), model.model.forward_features(x)[:, 1:]
    )
    radar = loaded("timm/vit_tiny_patch16_224", image_px=32, in_chans=2)
    assert radar.embed(images(S1.bands, 32), S1.bands).shape == (2, 192)
    with pytest.raises(ValueError, match="loaded for in_chans=2; the image has 13"):
        radar.embed(x, S2.bands)


@pytest.mark.parametrize(
    ("name", "px"),
    [
        ("dofa_base", 32),
        ("copernicusfm_base", 32),
        ("panopticon_base", 28),
        ("timm/vit_tiny_patch16_224", 32),
        ("resnet18_s2_moco", 64),
    ],
)
def test_bands_may_come_in_any_order_but_with_their_pixels(name: str, px: int) -> None:
    model, x = loaded(name, image_px=px), images(S2.bands, px)
    straight = model.forward_features(x, S2.bands)
    order = np.random.default_rng(0).permutation(13)
    shuffled = tuple(S2.bands[i] for i in order)
    same = model.forward_features(x[:, order], shuffled)
    torch.testing.assert_close(same, straight, rtol=1e-3, atol=1e-4)
    mixed_up = model.forward_features(x[:, order], S2.bands)
    assert (mixed_up - straight).abs().max() > 30 * (same - straight).abs().max()
    assert (mixed_up - straight).norm() > 1e-3 * straight.norm()


# Sizes and pooling.


def test_images_are_resized_and_must_be_square() -> None:
    model = loaded("timm/vit_tiny_patch16_224", image_px=32)
    assert model.forward_features(images(NAIP.bands, 50), NAIP.bands).shape == (2, 4, 192)
    with pytest.raises(ValueError, match="32x48 px; this model takes square ones, crop it first"):
        model.embed(torch.zeros(1, 4, 32, 48), NAIP.bands)
    with pytest.raises(ValueError, match="one channel for each of 4 bands"):
        model.embed(torch.zeros(1, 3, 32, 32), NAIP.bands)
    with pytest.raises(ValueError, match="needs at least one band"):
        loaded("dofa_base", image_px=32).embed(torch.zeros(1, 0, 32, 32), ())


def test_pooling_is_the_mean_or_the_class_token() -> None:
    mean = loaded("timm/vit_small_patch16_dinov3", image_px=32)
    whole = load("timm/vit_small_patch16_dinov3", "random", image_px=32, pool="cls")
    x = images(NAIP.bands, 32)
    all_tokens = mean.model.forward_features(x[:, :3])
    assert all_tokens.shape[1] == 1 + 4 + 4  # class, registers, patches
    torch.testing.assert_close(mean.embed(x, NAIP.bands), all_tokens[:, 5:].mean(1))
    torch.testing.assert_close(whole.embed(x, NAIP.bands), all_tokens[:, 0])
    with pytest.raises(ValueError, match="no class token; say pool=mean"):
        load("resnet18_s2_moco", "random", image_px=32, pool="cls").embed(
            images(S2.bands, 32), S2.bands
        )


def test_gradients_reach_the_first_layer() -> None:
    with torch.enable_grad():
        model = load("timm/vit_tiny_patch16_224", "random", image_px=32)
        model.embed(images(NAIP.bands, 32), NAIP.bands).sum().backward()
    assert model.model.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dofa_bas", {}, "unknown model 'dofa_bas': .* did you mean 'dofa_base'"),
        ("timm/hf-hub:some/body", {}, "unknown model"),
        ("timm/vit_none", {}, "timm has no model 'vit_none'"),
        ("timm/vit_tiny_patch16_224.nope", {}, "no weights 'nope' for vit_tiny.* augreg_in21k"),
        ("timm/convnext_tiny", {"weights": "random"}, "is no vision transformer"),
        ("timm/swin_tiny_patch4_window7_224", {"weights": "random"}, "is no vision transformer"),
        ("random/huge", {}, "unknown budget 'huge'"),
        ("dofa_base", {"in_chans": 3}, "dofa_base takes no in_chans; leave it out"),
        ("random/tiny", {"image_px": 32}, "takes no image_px"),
        ("dofa_base", {"weights": "random", "image_px": 40}, "must be a multiple of its patch, 16"),
        ("resnet18_s2_moco", {"weights": "random", "image_px": 0}, "multiple of its patch, 32"),
        ("resnet18_s2_moco", {"weights": "random", "pool": "max"}, "unknown pool 'max'"),
        ("resnet18_s2_moco", {"weights": "random", "missing": "mean"}, "unknown missing 'mean'"),
        ("random/tiny", {"weights": "pretrained"}, "no published weights; say weights=random"),
        ("random/tiny", {"weights": "x.pth"}, "takes none from a file"),
        ("dofa_base", {"weights": "nowhere.pth"}, "weights=nowhere.pth: no such file"),
        ("gfmsum", {}, "weights=FOLDER"),
    ],
)  # fmt: skip
def test_mistakes_cost_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load(name, **options)
    assert "\n" not in str(raised.value)


# Weights.


def test_weights_that_are_not_here_are_named_with_the_command_that_gets_them(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        ValueError, match="dofa_base: its weights are not on this machine"
    ) as raised:
        load("dofa_base")
    place = tmp_path / "torch/hub/checkpoints/dofa_base_patch16_224-a0275954.pth"
    assert f"curl -fL --create-dirs -o {place} https://hf.co/torchgeo/dofa/" in str(raised.value)
    assert "or say weights=random" in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(
        ValueError, match=r"hf download timm/vit_small_patch14_dinov2.lvd142m model"
    ):
        load("timm/vit_small_patch14_dinov2.lvd142m")


def keep(state: dict[str, torch.Tensor], folder: Path, stem: str) -> Path:
    """A file named by its content, as torch hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "draft")
    name = hashlib.sha256((folder / "draft").read_bytes()).hexdigest()[:8]
    return (folder / "draft").rename(folder / f"{stem}-{name}.pth")


def test_weights_in_torch_hubs_folder_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchgeo.models import ResNet18_Weights

    trained = loaded("resnet18_s2_moco", image_px=64, seed=7)
    state = trained.model.state_dict() | {"fc.weight": torch.zeros(3, 512)}
    there = keep(state, tmp_path / "torch/hub/checkpoints", "resnet18_sentinel2_all_moco")
    published = ResNet18_Weights.SENTINEL2_ALL_MOCO.value
    monkeypatch.setattr(published, "url", f"https://hf.co/a/b/resolve/main/{there.name}")
    assert look(ENTRIES["resnet18_s2_moco"]).here == "yes"
    x = images(S2.bands, 64)
    want = trained.embed(x, S2.bands)
    assert torch.equal(load("resnet18_s2_moco", image_px=64).embed(x, S2.bands), want)
    assert torch.equal(
        load("resnet18_s2_moco", there, image_px=64).embed(x, S2.bands), want
    )  # by path
    assert not torch.equal(loaded("resnet18_s2_moco", image_px=64).embed(x, S2.bands), want)
    with there.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="not what its name promises; delete it and get it anew"):
        load("resnet18_s2_moco")


def test_weights_in_the_hugging_face_cache_are_loaded(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    trained = timm.create_model("vit_tiny_patch16_224").eval()  # with its classifier, at 224 px
    name = "vit_tiny_patch16_224.augreg_in21k"
    repository = tmp_path / f"hub/models--timm--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(trained.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    x = images(NAIP.bands, 224, 1)
    want = trained.forward_features(x[:, :3])[:, 1:]
    model = load(f"timm/{name}")
    torch.testing.assert_close(model.forward_features(x, NAIP.bands), want)
    smaller = load(f"timm/{name}", image_px=32)  # position codes interpolated
    assert smaller.forward_features(x, NAIP.bands).shape == (1, 4, 192)
    wide = load(f"timm/{name}", image_px=32, in_chans=6)  # kernels of three colours, twice over
    kernels = wide.model.patch_embed.proj.weight
    torch.testing.assert_close(kernels[:, :3], trained.patch_embed.proj.weight * 0.5)
    torch.testing.assert_close(kernels[:, 3:], kernels[:, :3])


def small_dofa(**options: Any) -> Any:
    from torchgeo.models import DOFA

    return DOFA(embed_dim=32, depth=1, num_heads=2, patch_size=16, **options)


def test_dofas_weights_fit_another_grid_and_lack_only_the_last_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchgeo.models.dofa_base_patch16_224", small_dofa)
    torch.manual_seed(5)
    trained = small_dofa(img_size=224, num_classes=0)
    trained.pos_embed.data = torch.randn(1, 197, 32)
    state = {n: v for n, v in trained.state_dict().items() if not n.startswith("fc_norm")}
    path = keep(state, tmp_path, "dofa")
    x = images(S2.bands, 224)
    waves = [band.wavelength_um for band in S2.bands]
    at_home = load("dofa_base", path)
    torch.testing.assert_close(at_home.embed(x, S2.bands), trained(x, waves))
    away = load("dofa_base", path, image_px=32)
    assert away.forward_features(x, S2.bands).shape == (2, 4, 32)
    assert torch.equal(away.model.cls_token, trained.cls_token)
    codes = trained.pos_embed[0, 1:].T.reshape(1, 32, 14, 14)
    want = torch.nn.functional.interpolate(codes, (2, 2), mode="bicubic", antialias=True)
    torch.testing.assert_close(away.model.pos_embed[0, 1:].T.reshape(1, 32, 2, 2), want)

    for change, message in (
        ({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, "has another shape in blocks.0.attn.qkv"),
        ({"norm.weight": torch.zeros(32)}, "has no use for norm.weight; are these weights"),
    ):
        wrong = keep(state | change, tmp_path, "wrong")
        with pytest.raises(ValueError, match=message):
            load("dofa_base", wrong)
    del state["blocks.0.norm1.bias"], state["cls_token"]
    with pytest.raises(ValueError, match="lacks cls_token and 1 more; are these weights"):
        load("dofa_base", keep(state, tmp_path, "half"))


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path("ran").write_text, ("code",))


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(2), "x": Evil()}, "evil.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(ValueError, match=f"{name}: (holds more than|cannot be read)") as raised:
            read_state(Path(name))
        assert "\n" not in str(raised.value)
    assert not Path("ran").exists()


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    whole = tmp_path / "w.pth"
    torch.save({"model": {"a": torch.ones(2)}, "epoch": 3}, whole)
    assert read_state(whole)["a"].tolist() == [1, 1]  # as training scripts wrap them
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "number.pth")
    for name, message in (
        ("cut.pth", "cannot be read as weights|holds more than tensors"),
        ("cut.safetensors", "cannot be read as weights"),
        ("list.pth", "no tensors by name"),
        ("number.pth", "no tensors by name"),
        ("absent.pth", "absent.pth"),
    ):
        with pytest.raises((ValueError, OSError), match=message) as raised:
            read_state(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_published_addresses_are_looked_up_in_both_caches(tmp_path: Path) -> None:
    place = Published.at("https://hf.co/torchgeo/dofa/resolve/abc/some/file.pth")
    assert (place.repository, place.revision, place.files) == (
        "torchgeo/dofa", "abc", ("some/file.pth",),
    )  # fmt: skip
    assert place.on_this_machine() is None
    snapshot = tmp_path / "hub/models--torchgeo--dofa/snapshots/abc/some"
    snapshot.mkdir(parents=True)
    (snapshot / "file.pth").write_text("x")
    assert place.on_this_machine() == snapshot / "file.pth"


def test_random_weights_are_those_of_the_seed_and_leave_others_alone() -> None:
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    weights = [
        load("timm/vit_tiny_patch16_224", "random", image_px=32, seed=seed).model.pos_embed
        for seed in (4, 4, 5)
    ]
    assert torch.equal(torch.rand(3), want)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not load("timm/vit_tiny_patch16_224", "random").training


# Floors and probes.


def test_the_random_floor_is_the_floor_of_a_study() -> None:
    floor = load("random/micro", seed=3)
    want = initialised(BUDGETS["micro"], 3, 0).encoder.eval()
    x = images(S1.bands, 32)
    assert torch.equal(floor.forward_features(x, S1.bands), want.forward_features(x, S1.bands))


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([16, 32, 48]))
def test_imagestats_are_numpys(n: int, c: int, px: int) -> None:
    model, x = loaded("imagestats"), torch.randn(n, c, px, px)
    bands = S2.bands[:c]
    flat = x.numpy().reshape(n, c, -1).astype(float)
    parts = [flat.mean(2), flat.std(2), np.percentile(flat, 10, 2), np.percentile(flat, 90, 2)]
    np.testing.assert_allclose(model.embed(x, bands), np.hstack(parts), rtol=1e-5, atol=1e-6)
    tokens = model.forward_features(x, bands)
    assert tokens.shape == (n, (px // 16) ** 2, 4 * c)
    torch.testing.assert_close(tokens[:, 0], model.embed(x[:, :, :16, :16], bands))


def test_a_probe_reads_models_of_the_zoo_like_ours() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60)
    pixels = rng.normal(size=(60, 4, 32, 32)).astype(np.float32) * 20 + 100
    pixels[:, 2] += 8 * labels[:, None, None]
    samples = Samples("naip", NAIP.bands, 1.0, pixels, np.arange(60).astype(str))
    task = Task("t", "naip", "classification", "accuracy", 0.5, 1.0, ("a", "b"))
    folds = (np.arange(30), np.arange(30, 40), np.arange(40, 60))
    items = Labelled(task, samples, labels, np.arange(60).astype(str), (folds,))
    score, frame = probe(Encoded(load("timm/vit_tiny_patch16_224", "random", image_px=32)), items)
    assert 0 <= score.value <= 1 and len(frame) == 20
    assert np.isfinite(frame["contribution"]).all()
    floor, guesses = probe(Encoded(load("imagestats")), items, "mean")
    baseline, want = probe(BandStatistics(), items, "mean")
    assert floor.value == baseline.value > 0.9  # the planted class shows in a band's mean
    assert guesses["prediction"].tolist() == want["prediction"].tolist()


# The command.


def test_help_and_mistakes_load_no_torch() -> None:
    script = (
        "import sys\nfrom gfmsum.zoo.__main__ import main\n"
        "codes = [main(['--help']), main(['dofa_bas']), main(['sensor=s9']), main(['sensr=s1']),\n"
        "         main(['dofa_base', 'sensor=s1'])]\n"
        "import gfmsum.zoo\n"
        "print(codes, {'torch', 'timm', 'torchgeo', 'lightning'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[0, 2, 2, 2, 2] set()"
    errors = done.stderr.splitlines()
    assert len(errors) == 4 and all(line.startswith("gfmsum: ") for line in errors)


def test_the_table_and_the_cards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("imagestats", "dofa_base", "resnet50_s1_moco", "timm/vit_base_patch16_224.mae")
    monkeypatch.setattr("gfmsum.zoo.__main__.ENTRIES", {name: ENTRIES[name] for name in few})
    assert main(["sensor=s1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "imagestats", "dofa_base", few[2]]
    assert main([]) == 0
    assert "85.8 M      no            all but s1 umbra" in capsys.readouterr().out
    assert main(["dofa_base", "timm/vit_tiny_patch16_224.augreg_in21k"]) == 0
    card = capsys.readouterr().out
    assert "3.75 µm" in card and "curl -fL" in card and "in_chans=N" in card
    assert max(len(line) for line in card.splitlines() if "/" not in line) <= 100


# TerraTorch, where it is installed.


@pytest.mark.skipif(find_spec("terratorch") is not None, reason="TerraTorch is installed")
def test_without_terratorch_its_models_say_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ValueError, match=r"^terratorch/prithvi_eo_v2_300: TerraTorch is not instal"
    ):
        load("terratorch/prithvi_eo_v2_300")
    assert main(["terratorch/terramind_v1_base"]) == 0
    assert "TerraTorch is not installed" in capsys.readouterr().out


def needs_terratorch() -> None:
    pytest.importorskip("terratorch", reason="TerraTorch needs an environment of its own")


@pytest.mark.filterwarnings("ignore")
def test_terratorchs_models_give_tokens_on_what_they_accept() -> None:
    needs_terratorch()
    for name, px, shape, accepted in (
        ("terramind_v1_tiny", 32, (1, 4, 192), {"s1", "s2", "s2l2a"}),
        ("clay_v1_base", 32, (1, 16, 768), set(CATALOG)),
    ):
        model = loaded(f"terratorch/{name}", image_px=px)
        for sensor in CATALOG.values():
            x = images(sensor.bands, px, 1)
            if sensor.name in accepted:
                tokens = model.forward_features(x, sensor.bands)
                assert tokens.shape == shape and tokens.isfinite().all(), sensor.name
            else:
                with pytest.raises(ValueError, match=r"no band for|none of|these weights read"):
                    model.embed(x, sensor.bands)


@pytest.mark.filterwarnings("ignore")
def test_prithvis_channels_are_found_by_wavelength_and_its_weights_loaded(tmp_path: Path) -> None:
    needs_terratorch()
    from terratorch.models.backbones import prithvi_vit

    from gfmsum.zoo import terra

    registry = terra._terratorch()
    make = partial(terra._prithvi, registry, prithvi_vit, "prithvi_eo_tiny")
    model = make(Options(32), None).eval()
    x = images(S2.bands, 32)
    want = model.model.forward_features(x[:, [1, 2, 3, 8, 11, 12]])[-1]
    torch.testing.assert_close(model.forward_features(x, S2.bands), want[:, 1:])
    path = tmp_path / "prithvi.pt"
    torch.save({f"encoder.{n}": v for n, v in model.model.state_dict().items()}, path)
    again = make(Options(32), path).eval()
    assert torch.equal(again.embed(x, S2.bands), model.embed(x, S2.bands))
    with pytest.raises(ValueError, match="none of the bands BLUE"):
        model.embed(images(S1.bands, 32), S1.bands)


@pytest.mark.filterwarnings("ignore")
def test_terraminds_weights_are_loaded_and_radar_is_told_apart(tmp_path: Path) -> None:
    needs_terratorch()
    name = "terratorch/terramind_v1_tiny"
    model = loaded(name, image_px=32, seed=2)
    path = tmp_path / "tm.pt"
    torch.save(model.model.state_dict() | {"decoder.x": torch.zeros(1)}, path)
    x = images(S1.bands, 32)
    want = model.forward_features(x, S1.bands)
    assert torch.equal(load(name, path, image_px=32).forward_features(x, S1.bands), want)
    assert not torch.allclose(model.forward_features(x.flip(1), S1.bands), want, atol=1e-2)
    torch.testing.assert_close(model.forward_features(x.flip(1), S1.bands[::-1]), want)


@pytest.mark.filterwarnings("ignore")
def test_clays_weights_are_loaded_and_it_is_told_wavelengths(tmp_path: Path) -> None:
    needs_terratorch()
    name = "terratorch/clay_v1_base"
    model = loaded(name, image_px=32)
    x = images(S1.bands, 32)
    want = model.model.forward_features(x, waves=torch.tensor([3.5, 4.0]), gsd=10.0)[-1][:, 1:]
    torch.testing.assert_close(model.forward_features(x, S1.bands), want)
    start = "clay_encoder."
    state = {n.replace(start, "model.encoder."): v for n, v in model.model.state_dict().items()}
    path = tmp_path / "clay.ckpt"
    torch.save({"state_dict": state | {"model.teacher.x": torch.zeros(1)}, "epoch": 1}, path)
    other = load(name, path, image_px=32, seed=9)
    torch.testing.assert_close(other.forward_features(x, S1.bands), want)
    with pytest.raises(ValueError, match="Clay has no wavelength for HH"):
        model.embed(x[:, :1], (radar_band("HH"),))


def test_every_model_is_a_borrowed_one_or_ours() -> None:
    assert isinstance(loaded("dofa_base", image_px=32), Borrowed)
    assert not isinstance(load("random/micro"), Borrowed)
