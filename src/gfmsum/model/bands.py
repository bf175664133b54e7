"""Dynamic band embedding: what a band measures decides the kernel that embeds its pixels.

After DOFA (Xiong et al. 2024), without padding, with polarisation told apart, bandwidth and GSD in the
code, and kernels laid out so that the order of the bands does not matter.

Shapes: b images, n patches, c bands, p pixels of a patch, d width of tokens, k width of band codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfmsum.model.blocks import blocks, linear, run_blocks
from gfmsum.records import fingerprint
from gfmsum.sensors import Band

_POLARISATIONS = ("H", "V")
# Periods in natural-log units. Wavelengths from 0.4 to 2.5 um span 1.8: the longest period orders all
# of them, the shortest tells B8 from B8A (0.04 apart) without making them orthogonal.
_WAVELENGTH_PERIODS = (0.25, 4.0)
_WIDTH_PERIODS = (8.0, 32.0)  # FWHM from 10 to 200 nm spans 3.0
_GSD_PERIODS = (4.0, 32.0)  # GSD from 0.3 m to 1 km spans 8.1
_CARRIER_PERIODS = (4.0, 32.0)  # radar's carrier from 0.4 to 35 GHz spans 4.5
_FREQUENCIES = 8
_MINOR = 0.4  # weight of width, carrier and GSD: they refine a code, wavelength or polarisation decide it


@lru_cache(maxsize=64)
def resize(old: int, new: int) -> Tensor:
    """The matrix that turns kernels of patches of ``old`` pixels a side into ones of ``new``.

    A patch that is interpolated from the old size to the new one has with the resized kernel the product
    it had before (Beyer et al. 2023, FlexiViT), exactly where the patch grows.

    Returns:
        float (new**2, old**2).
    """
    pixels = torch.eye(old**2, dtype=torch.float64).view(-1, 1, old, old)
    grown = F.interpolate(pixels, size=(new, new), mode="bilinear", antialias=new < old)
    # Columns are what single pixels become; the kernel is pulled back through it.
    pulled: Tensor = torch.linalg.pinv(grown.flatten(1)).float()
    return pulled


def _fourier(value: float, periods: tuple[float, float]) -> Tensor:
    """Sine and cosine of ``value`` at geometrically spaced periods: float (2 * _FREQUENCIES,)."""
    lowest, highest = (math.log(p) for p in periods)
    angle = 2 * math.pi * value / torch.linspace(lowest, highest, _FREQUENCIES).exp()
    return torch.cat([angle.sin(), angle.cos()])


def band_features(bands: Sequence[Band]) -> tuple[Tensor, Tensor]:
    """What is known of each band before anything is learned.

    Returns:
        float (c, 8 * _FREQUENCIES): Fourier features of log wavelength and log FWHM (zeros for radar), of
        radar's log carrier frequency (zeros where there is none or none is known), and of log GSD;
        int64 (c, 2): transmit and receive polarisation, 0 for optical bands.
    """
    rows, polarisations = [], []
    for band in bands:
        gsd = _MINOR * _fourier(math.log(band.gsd_m), _GSD_PERIODS)
        wavelength, width, carrier = torch.zeros(3, 2 * _FREQUENCIES)
        pair = (0, 0)
        if band.wavelength_um is not None and band.fwhm_um is not None:
            wavelength = _fourier(math.log(band.wavelength_um), _WAVELENGTH_PERIODS)
            width = _MINOR * _fourier(math.log(band.fwhm_um), _WIDTH_PERIODS)
        if band.frequency_ghz is not None:
            carrier = _MINOR * _fourier(math.log(band.frequency_ghz), _CARRIER_PERIODS)
        if band.polarisation is not None:
            transmit, receive = (1 + _POLARISATIONS.index(letter) for letter in band.polarisation)
            pair = (transmit, receive)
        rows.append(torch.cat([wavelength, width, carrier, gsd]))
        polarisations.append(pair)
    return torch.stack(rows), torch.tensor(polarisations)


type Generated = tuple[Tensor, Tensor]
"""Kernels of bands, float (c, p, d), and what the embedding's bias is made from, float (k,)."""


class BandKernels(nn.Module):
    """Generates a linear map between a band's pixels in a patch and a token, for any set of bands.

    One transformer block lets the bands of an image know of each other; a set has no order, so
    neither have its kernels.
    """

    def __init__(self, code_width: int, patch_pixels: int, token_width: int) -> None:
        super().__init__()
        self.patch_pixels, self.token_width = patch_pixels, token_width
        self.project = linear(8 * _FREQUENCIES, code_width)
        self.transmit = nn.Embedding(3, code_width, padding_idx=0)
        self.receive = nn.Embedding(3, code_width, padding_idx=0)
        self.bias_token = nn.Parameter(torch.randn(1, code_width) * 0.02)
        self.block = blocks(code_width, depth=1, heads=4)
        self.norm = nn.LayerNorm(code_width)
        self.kernel = nn.Linear(code_width, patch_pixels * token_width)
        # Pixels of unit variance give tokens of unit variance. The factor of forward() rather than a
        # small initial weight keeps an optimiser step small: all inputs of a kernel move together.
        self.scale = code_width**-0.5
        nn.init.normal_(self.kernel.weight, std=patch_pixels**-0.5)
        nn.init.zeros_(self.kernel.bias)
        self._features: dict[tuple[Band, ...], tuple[Tensor, Tensor]] = {}

    def codes(self, bands: Sequence[Band]) -> Tensor:
        """The band codes before they see each other: float (c, k)."""
        key = tuple(bands)
        device = self.bias_token.device
        if key not in self._features or self._features[key][0].device != device:
            features, polarisations = band_features(key)
            self._features[key] = features.to(device), polarisations.to(device)
        features, polarisations = self._features[key]
        learned = self.transmit(polarisations[:, 0]) + self.receive(polarisations[:, 1])
        codes: Tensor = self.project(features) + learned
        return codes

    def forward(self, *sets: Sequence[Band]) -> list[Generated]:
        """Kernels, and what the bias token became, for each set of bands.

        The sets do not see each other, and several in one call take hardly longer than one: the block and the
        large last layer run once, on all of their bands.
        """
        lengths = tuple(map(len, sets))
        if not all(lengths):
            raise ValueError("an image needs at least one band, got none; name its bands")
        codes = self.codes([band for bands in sets for band in bands])
        order, apart, places, ends = _side_by_side(lengths, codes.device)
        tokens = torch.cat([codes, self.bias_token])[order]
        mixed = self.norm(
            run_blocks(self.block, tokens[None], apart.to(tokens), recompute=False)[0]
        )
        flat = self.scale * self.kernel(mixed[places])
        kernels = flat.unflatten(-1, (self.patch_pixels, self.token_width)).split(lengths)
        return list(zip(kernels, mixed[ends], strict=True))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept may be trained with, whoever asked first
def _side_by_side(
    lengths: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How sets of bands lie in one sequence, each set followed by the bias token, whose number is the last.

    Returns:
        int64 (n,), the token at each place; float (1, 1, n, n), minus infinity between tokens of different
        sets; int64, the places of bands and those of biases. Kept on the device: a step copies nothing to it.
    """
    taken, last = list[int](), sum(lengths)
    for length, end in zip(lengths, accumulate(lengths), strict=True):
        taken += [*range(end - length, end), last]
    order = torch.tensor(taken)
    of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths) + 1)
    apart = torch.zeros(len(of), len(of)).masked_fill_(of[:, None] != of, -torch.inf)
    places, ends = ((order != last).nonzero()[:, 0], (order == last).nonzero()[:, 0])
    return order.to(device), apart[None, None].to(device), places.to(device), ends.to(device)


class OwnKernels(nn.Module):
    """A kernel of its own for every band, learned and not generated: what an ablation compares with.

    For a sensor it amounts to a patch embedding of its own. It knows the bands that it was told of; any
    other band gets a random kernel, always the same, that nothing trains.
    """

    def __init__(self, patch_pixels: int, token_width: int) -> None:
        super().__init__()
        self.patch_pixels, self.token_width = patch_pixels, token_width
        self.shape = (patch_pixels + 1, token_width)  # a kernel, and below it its bias
        self.learned = nn.ParameterDict()
        self.register_buffer("seed", torch.randint(2**62, ()))

    def know(self, bands: Sequence[Band]) -> None:
        """Learn kernels for these bands too."""
        for band in bands:
            if (key := fingerprint(band)) not in self.learned:
                self.learned[key] = nn.Parameter(self._start(key))

    def forward(self, *sets: Sequence[Band]) -> list[Generated]:
        """Kernels, and the mean of the bands' biases, for each set of bands."""
        return [self._of(bands) for bands in sets]

    def _of(self, bands: Sequence[Band]) -> Generated:
        if not bands:
            raise ValueError("an image needs at least one band, got none; name its bands")
        keys = [fingerprint(band) for band in bands]
        found = torch.stack(
            [self.learned[key] if key in self.learned else self._start(key) for key in keys]
        )
        return found[:, :-1], found[:, -1].mean(dim=0)

    def _start(self, key: str) -> Tensor:
        """Pixels of unit variance give tokens of unit variance; no bias."""
        device = self.get_buffer("seed").device
        draws = torch.Generator().manual_seed((int(self.get_buffer("seed")) + int(key, 16)) % 2**63)
        kernel = torch.randn(self.shape, generator=draws) * self.patch_pixels**-0.5
        kernel[-1] = 0
        started: Tensor = kernel.to(device)
        return started

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        start = f"{prefix}learned."
        for name in state:
            if name.startswith(start) and (key := name.removeprefix(start)) not in self.learned:
                self.learned[key] = nn.Parameter(torch.empty_like(state[name]))
        super()._load_from_state_dict(state, prefix, *rest)


class BandEmbedding(nn.Module):
    """Pixels of patches to tokens, through kernels for the bands at hand."""

    def __init__(self, code_width: int, patch_px: int, width: int, embed: str = "dynamic") -> None:
        super().__init__()
        if embed == "dynamic":
            self.kernels: BandKernels | OwnKernels = BandKernels(code_width, patch_px**2, width)
            self.bias: nn.Module = linear(code_width, width)
        else:
            self.kernels, self.bias = OwnKernels(patch_px**2, width), nn.Identity()
        self.patch_px = patch_px

    def forward(
        self, patches: Tensor, bands: Sequence[Band], generated: Generated | None = None
    ) -> Tensor:
        """Embed patches.

        Args:
            patches: float (b, n, c, p), normalised, unitless. Where p is not the number of pixels that
                the kernels are made for, these are resized, see :func:`resize`.
            bands: the c bands, in the patches' order.
            generated: what :attr:`kernels` gave for them, if it was asked before.

        Returns:
            float (b, n, d). The mean over bands, so that tokens have one size for any band count.

        Raises:
            ValueError: if the patches do not have one channel per band.
        """
        if patches.shape[2] != len(bands):
            raise ValueError(
                f"patches have {patches.shape[2]} channels for {len(bands)} bands "
                f"({', '.join(band.name for band in bands)}); give one channel per band"
            )
        kernels, context = generated or self.kernels(bands)[0]
        if (side := math.isqrt(patches.shape[-1])) != self.patch_px:
            kernels = resize(self.patch_px, side).to(kernels) @ kernels
        weight = kernels.flatten(0, 1) / len(bands)
        tokens: Tensor = patches.flatten(2) @ weight + self.bias(context)
        return tokens


class BandPrediction(nn.Module):
    """Tokens to pixels of patches: the embedding's counterpart in the decoder."""

    def __init__(self, code_width: int, patch_px: int, width: int, embed: str = "dynamic") -> None:
        super().__init__()
        self.kernels: BandKernels | OwnKernels = (
            BandKernels(code_width, patch_px**2, width)
            if embed == "dynamic"
            else OwnKernels(patch_px**2, width)
        )

    def forward(self, tokens: Tensor, generated: Generated) -> Tensor:
        """Predict every band's pixels: float (b, n, d) to float (b, n, c, p)."""
        kernels, _ = generated
        flat: Tensor = tokens @ (kernels.flatten(0, 1).mT / math.sqrt(tokens.shape[-1]))
        bands_of_patch: Tensor = flat.unflatten(-1, kernels.shape[:2])  # type: ignore[no-untyped-call]
        return bands_of_patch
