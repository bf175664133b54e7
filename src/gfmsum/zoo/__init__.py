"""Other people's encoders behind the interface of our own, and the floors to hold all of them against.

    from gfmsum.probe.features import Encoded
    from gfmsum.zoo import load

    features = Encoded(load("dofa_base"))  # weights that lie on this machine
    features = Encoded(load("timm/vit_base_patch14_dinov2.lvd142m", image_px=224))
    features = Encoded(load("random/tiny", seed=3))  # a floor

Whatever is loaded has ``forward_features(x, bands, gsd_m=None)``, float (b, n, d), and
``embed(x, bands, gsd_m=None)``, float (b, d), for x with zero mean and unit variance in each band, as
:class:`gfmsum.model.encoder.Encoder` documents them. ``python -m gfmsum.zoo`` lists what there is, and with
a name says what that model makes of wavelengths, radar, pixel size and image size.

Nothing is ever downloaded: weights are used if they lie in the caches of torch hub or of the Hugging Face
hub. Of their files nothing but tensors is unpickled.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from gfmsum.zoo.cards import ENTRIES, Entry, Options, entry

if TYPE_CHECKING:
    from gfmsum.model.encoder import Encoder
    from gfmsum.zoo.borrowed import Borrowed
    from gfmsum.zoo.recipe import Recipe

__all__ = ["ENTRIES", "Entry", "entry", "load", "recipe_of"]


def recipe_of(found: Entry) -> Recipe:
    """How a model is built and where its weights are published.

    Raises:
        ValueError: if it needs a package that is not installed.
    """
    made: Recipe = import_module(f"gfmsum.zoo.{found.family.home}").recipe(found)
    return made


def load(
    name: str,
    weights: str | Path | None = None,
    *,
    seed: int = 0,
    image_px: int | None = None,
    pool: str = "mean",
    missing: str = "refuse",
    in_chans: int | None = None,
) -> Encoder | Borrowed:
    """An encoder of the zoo, in evaluation mode on the CPU.

    Args:
        name: an entry; ``timm/MODEL`` for any vision transformer of timm's; ``random/BUDGET``.
        weights: ``pretrained``, ``random``, or a file in the layout of the published one
            (.safetensors, or what ``torch.load`` reads without running code). If None, pretrained where
            weights are published, random for the floors.
        seed: of random weights.
        image_px: images are resized to this side, or to that of its pretraining if None. The pixel
            size that a model is told is that of the resized image.
        pool: what ``embed`` gives: ``mean`` of the patch tokens, or ``cls``, the class token.
        missing: what becomes of channels that an image has no band for, where a model has fixed
            channels: ``refuse``, or ``zero``, which is the mean of a normalised band.
        in_chans: for ``timm/MODEL``: how many bands images have. timm repeats and rescales its
            kernels of red, green and blue, in the order of the bands. If None, the bands nearest to red,
            green and blue are taken.

    Raises:
        ValueError: one line with the remedy, if weights are not on this machine or do not fit.
    """
    found, options = entry(name), Options(image_px, pool, missing, in_chans, seed)
    for option in fields(Options):
        if option.name in (*found.family.takes, "seed"):
            continue
        if getattr(options, option.name) != option.default:
            raise ValueError(f"{name} takes no {option.name}; leave it out")
    made = recipe_of(found)
    try:
        return made.make(options, _file(made, weights))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _file(made: Recipe, weights: str | Path | None) -> Path | None:
    """The file of the weights wanted; None for random ones."""
    wanted = weights or ("random" if made.published is None and made.draws else "pretrained")
    if wanted == "random" and made.draws:
        return None
    if wanted == "pretrained":
        if made.published is None:
            rest = "random" if made.draws else "FOLDER, an exported encoder"
            raise ValueError(f"has no published weights; say weights={rest}")
        if path := made.published.on_this_machine():
            return path
        raise ValueError(
            f"its weights are not on this machine; {made.published.how}, or say weights=random"
        )
    if not made.reads:
        raise ValueError(f"weights={wanted}: it takes none from a file; leave weights out")
    if not Path(wanted).exists():
        raise ValueError(f"weights={wanted}: no such file; name one, or say pretrained or random")
    return Path(wanted)
