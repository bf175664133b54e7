"""What linear interpolation makes of hidden patches: the loss that a masked autoencoder has to pass.

A loss of 1 is predicting the mean. Between it and the best linear prediction of hidden pixels from visible
ones a model has learned that images are smooth, and nothing that a table of covariances does not know.

The prediction is kriging. A pixel's covariance with another is taken to depend on how far apart they lie
alone, in any of the eight poses of a square that pretraining shows an image in. Bands are turned into their
principal components, and each is predicted from itself: on synthetic Sentinel-1 and NAIP this comes within
0.001 of a prediction of all bands from all (cokriging), at a fraction of its cost, and 0.005 to 0.01 below
one of each band from itself. As a network does, it knows of an image what is visible: its inputs are
normalised by the mean and spread of the visible pixels. Knowing the whole image's, as the target does, would
gain another 0.005 to 0.01 that no network can have.

Shapes: n images, c bands or components, h by w pixels, v visible pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import fft, linalg

from gfmsum.data.plan import stream
from gfmsum.data.sample import Source

SAMPLES = 384  # images of a kind, at most: half to fit on, half to predict
VALUES = 2**25  # pixels times bands of a kind's images, at most: large images are fewer
FEWEST = 8  # images of a kind that say anything of its covariance
MASKS = 16
NEIGHBOURS = 320  # visible pixels that a hidden patch is predicted from, the nearest
PATCHES = 8  # hidden ones that are predicted of a mask, if not all have the same neighbours
PIXELS = 32  # of such a patch
NUGGET = 0.01  # share of the variance that is taken for noise, so that near doubles do no harm

type Floats = NDArray[np.float64]
type Places = NDArray[np.int64]
"""Rows and columns of pixels, (2, n)."""


def normalised(pixels: Floats, groups: Sequence[str], by: Floats | None = None) -> Floats:
    """Images at zero mean and unit variance over the bands of a group, each image by itself.

    Args:
        pixels: (n, c, ...).
        groups: of the c bands.
        by: the pixels (n, c, ...) whose mean and variance count; all of them if None.
    """
    out, by = np.empty_like(pixels), pixels if by is None else by
    for group in dict.fromkeys(groups):
        members = [band for band, name in enumerate(groups) if name == group]
        known = by[:, members].reshape(len(by), -1)
        shape = (-1, *[1] * (pixels.ndim - 1))
        mean, variance = known.mean(axis=1).reshape(shape), known.var(axis=1).reshape(shape)
        out[:, members] = (pixels[:, members] - mean) / np.sqrt(variance + 1e-6)
    return out


@dataclass(frozen=True, slots=True)
class Covariance:
    """How pixels of images go together: components of their bands, and each one's covariance by distance."""

    components: Floats  # (c, c), orthonormal columns
    at: Floats  # (c, h, w), covariance of a component with itself so many rows and columns away

    @classmethod
    def of(cls, images: Floats) -> Self:
        """That of images (n, c, h, w) with zero mean, pooled over images and poses."""
        within = np.tensordot(images, images, axes=([0, 2, 3], [0, 2, 3]))
        components = linalg.eigh(within)[1]
        n, c, h, w = images.shape
        size = (fft.next_fast_len(2 * h), fft.next_fast_len(2 * w))
        power = np.zeros((c, size[0], size[1] // 2 + 1))
        for image in images:  # one by one: transforms of all would be large
            turned = np.tensordot(components, image, axes=([0], [0]))
            power += np.abs(fft.rfft2(turned, size)) ** 2
        total = fft.irfft2(power, size)
        pairs = np.outer(h - np.arange(h), w - np.arange(w))
        # A lag down and right goes with one down and left, which the transform keeps at its end.
        left = -np.arange(w)
        both = (total[:, :h, :w] + total[:, np.arange(h)[:, None], left]) / (2 * n * pairs)
        if h == w:
            both = (both + both.swapaxes(1, 2)) / 2
        return cls(components, _possible(both))

    def turned(self, values: Floats) -> Floats:
        """Bands as components: (n, c, ...) to (n, c, ...)."""
        return np.moveaxis(np.tensordot(values, self.components, axes=([1], [0])), -1, 1)

    def weights(self, component: int, known: Places, wanted: Places) -> Floats:
        """Those of the best linear prediction of pixels from others: float (known, wanted)."""
        at = self.at[component]
        between = at[tuple(np.abs(known[:, :, None] - known[:, None, :]))]
        across = at[tuple(np.abs(known[:, :, None] - wanted[:, None, :]))]
        noise = NUGGET * at[0, 0] + 1e-12  # above zero even where nothing varies
        between[np.diag_indices_from(between)] += noise
        weights: Floats = linalg.solve(between, across, assume_a="pos", overwrite_a=True)
        return weights


def _possible(at: Floats) -> Floats:
    """The nearest covariances that some process can have, (c, h, w): estimates of each lag need not fit.

    Those of smooth images did not: their weights exploded. Mirrored, covariances are those of a process
    on a torus, whose spectrum must not be negative.
    """
    h, w = at.shape[1:]
    rows, columns = (np.minimum(np.arange(2 * k - 1), np.arange(2 * k - 1, 0, -1)) for k in (h, w))
    spectrum = fft.fft2(at[:, rows[:, None], columns]).real
    return np.ascontiguousarray(fft.ifft2(np.maximum(spectrum, 0)).real[:, :h, :w])


def interpolated(
    pixels: NDArray[np.float32],
    groups: Sequence[str],
    patch_px: int,
    mask_ratio: float,
    key: Sequence[int | str] = (0,),
) -> float:
    """The masked autoencoder's loss if it did no more than interpolate linearly.

    Half of the images tell the covariance by which the other half is predicted, and the other way round.

    Args:
        pixels: (n, c, h, w), normalised per band, h and w multiples of the patch.
        groups: of the c bands, :attr:`gfmsum.sensors.Band.group`.
        patch_px: side of a patch.
        mask_ratio: share of the patches that is hidden.
        key: names the random masks.

    Returns:
        Squared error of hidden pixels in units of each image's variance within each band group: 1 for
        predicting the mean, 0 for constant images.

    Raises:
        ValueError: if there are fewer than two images, or patches do not fit them.
    """
    n, _, h, w = pixels.shape
    if n < 2 or h % patch_px or w % patch_px:
        raise ValueError(
            f"{n} images of {h}x{w} px: interpolation needs two or more, of a multiple of "
            f"patch_px={patch_px} px"
        )
    halves = [pixels[first::2].astype(np.float64) for first in (0, 1)]
    targets = [normalised(half, groups) for half in halves]
    fits = [Covariance.of(target) for target in targets]
    rng = stream(*key, "interpolation")
    losses = []
    for mask in range(min(MASKS, n)):
        fit, other = fits[mask % 2], 1 - mask % 2
        some = slice(mask // 2, None, MASKS // 2)  # each image is predicted under one mask
        images, target = halves[other][some], fit.turned(targets[other][some])
        errors = []
        for seen, known, wanted in _views(h, w, patch_px, mask_ratio, rng):
            visible = images[:, :, *seen]
            inputs = fit.turned(normalised(images[:, :, *known], groups, visible))
            for c in range(inputs.shape[1]):
                error = target[:, c, *wanted] - inputs[:, c] @ fit.weights(c, known, wanted)
                errors.append(np.mean(error**2))
        losses.append(np.mean(errors))
    return float(np.mean(losses))


def _views(
    h: int, w: int, patch_px: int, mask_ratio: float, rng: np.random.Generator
) -> Iterator[tuple[Places, Places, Places]]:
    """Of one random mask: the visible pixels, those that a prediction uses, and those that it predicts."""
    corners = np.indices((h // patch_px, w // patch_px)).reshape(2, -1) * patch_px
    inside = np.indices((patch_px, patch_px)).reshape(2, -1)
    order = rng.permutation(corners.shape[1])
    keep = max(1, round(len(order) * (1 - mask_ratio)))

    def pixels(patches: Places) -> Places:
        return (corners[:, patches, None] + inside[:, None]).reshape(2, -1)

    seen = pixels(order[:keep])
    if seen.shape[1] <= NEIGHBOURS:
        yield seen, seen, pixels(order[keep:])
        return
    for patch in order[keep : keep + PATCHES]:
        corner = corners[:, patch, None]
        outside = seen - np.clip(seen, corner, corner + patch_px - 1)
        nearest = np.argsort((outside**2).sum(axis=0), kind="stable")[:NEIGHBOURS]
        chosen = rng.permutation(patch_px**2)[:PIXELS]
        yield seen, seen[:, nearest], corner + inside[:, chosen]


def interpolation_loss(
    source: Source, sensor: str, image_px: int, patch_px: int, mask_ratio: float
) -> float | None:
    """The loss that linear interpolation reaches on what a sensor's pretraining sees.

    Images of several kinds count by how many there are. A few hundred of a kind are read, evenly from all.

    Returns:
        See :func:`interpolated`; None if no kind has enough images to say.
    """
    from gfmsum.data.modules import Statistics  # which needs torch

    losses, counts = [], []
    for block in source.pretraining(sensor, image_px).blocks:
        bands = block.kind.bands
        most = min(SAMPLES, len(block), max(FEWEST, VALUES // (len(bands) * image_px**2)))
        if most < FEWEST:
            continue
        # Plain integers: a synthetic pool has more rows than products of 64 bits allow.
        rows = np.array([number * len(block) // most for number in range(most)], np.int64)
        pixels = block.read(rows).pixels
        shown = Statistics.of(pixels).normalise(pixels)
        losses.append(interpolated(shown, [band.group for band in bands], patch_px, mask_ratio))
        counts.append(len(block))
    return float(np.average(losses, weights=counts)) if losses else None
