"""Features of a task's images: a frozen encoder's beside statistics of the bands, or these alone as a floor.

What an encoder gives comes in two groups, which a linear probe scales and weighs (:mod:`gfmsum.probe.fit`):
mean and standard deviation over its patch tokens, and the statistics of the bands. A mean of tokens does not
say how varied a place is, and no encoder need learn what an image's histogram tells anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from torch import Tensor, nn

from gfmsum.data.modules import Statistics
from gfmsum.data.sample import Rows, Samples
from gfmsum.model.encoder import Encoder
from gfmsum.store import write_array

type Array = NDArray[np.float64]

NEIGHBOURS_PX = 5  # side of the square that a pixel's statistics are taken over


@dataclass(frozen=True, slots=True)
class Grid:
    """One vector for each cell of a grid over images."""

    cells: NDArray[np.float32]  # (n, rows, columns, k)
    h_px: int  # what the rows cover: the image's height, or more
    w_px: int  # what the columns cover


class Features(Protocol):
    """From samples, and the indices of the training images, to numbers that a probe can be fitted on."""

    def pooled(self, samples: Samples, train: Rows) -> Array:
        """One vector per image: float64 (n, k)."""

    def grid(self, samples: Samples, train: Rows) -> Grid:
        """One vector per cell of a grid that covers the image."""

    def vectors(self, samples: Samples, train: Rows) -> tuple[Array, ...]:
        """Groups of numbers per image for a linear probe, which weighs the first against the rest."""

    def grids(self, samples: Samples, train: Rows) -> tuple[Grid, ...]:
        """The same per cell; each group has a grid of its own."""


class OneGroup:
    """Features in which nothing needs weighing."""

    def vectors(self: Features, samples: Samples, train: Rows) -> tuple[Array, ...]:
        """What :meth:`pooled` gives."""
        return (self.pooled(samples, train),)

    def grids(self: Features, samples: Samples, train: Rows) -> tuple[Grid, ...]:
        """What :meth:`grid` gives."""
        return (self.grid(samples, train),)


class Kept:
    """Features that are computed once for the same samples and training images, and held in memory."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._known: dict[tuple[str, int, bytes], tuple[Samples, Any]] = {}

    def _get(self, what: str, samples: Samples, train: Rows) -> Any:
        key = what, id(samples), train.tobytes()
        if key not in self._known:
            # The samples are held, so that no others can get their number.
            self._known[key] = samples, getattr(self.features, what)(samples, train)
        return self._known[key][1]

    def pooled(self, samples: Samples, train: Rows) -> Array:
        """As the features give it."""
        found: Array = self._get("pooled", samples, train)
        return found

    def grid(self, samples: Samples, train: Rows) -> Grid:
        """As the features give it."""
        found: Grid = self._get("grid", samples, train)
        return found

    def vectors(self, samples: Samples, train: Rows) -> tuple[Array, ...]:
        """As the features give them."""
        found: tuple[Array, ...] = self._get("vectors", samples, train)
        return found

    def grids(self, samples: Samples, train: Rows) -> tuple[Grid, ...]:
        """As the features give them."""
        found: tuple[Grid, ...] = self._get("grids", samples, train)
        return found


@dataclass(frozen=True, slots=True)
class Cache:
    """Features by what they are made from: in memory, and on disk if there is a folder.

    Only vectors of whole images go to disk; the tokens of all patches are a hundred times as large, and as
    quick to make as to read.
    """

    encoder: str = ""  # its fingerprint; without one nothing goes to disk
    folder: Path | None = None
    _known: dict[str, tuple[Samples, NDArray[Any]]] = field(default_factory=dict)

    def get(
        self, what: str, samples: Samples, train: Rows, make: Callable[[], NDArray[Any]]
    ) -> NDArray[Any]:
        """The features named by ``what`` of these samples, made if they are not known."""
        key = f"{what} {id(samples)} {hashlib.sha256(train.tobytes()).hexdigest()}"
        if key not in self._known:
            # The samples are held, so that no others can get their number.
            self._known[key] = samples, self._load(what, samples, train, make)
        return self._known[key][1]

    def held(self, what: str, samples: Samples, train: Rows) -> NDArray[Any] | None:
        """The same if it is in memory."""
        key = f"{what} {id(samples)} {hashlib.sha256(train.tobytes()).hexdigest()}"
        return self._known[key][1] if key in self._known else None

    def _load(
        self, what: str, samples: Samples, train: Rows, make: Callable[[], NDArray[Any]]
    ) -> NDArray[Any]:
        if self.folder is None or not self.encoder or what.startswith("grid"):
            return make()
        # Pixels and not their names: what was computed from other pixels is never taken for it.
        shape = samples.pixels.shape
        digest = hashlib.sha256(f"1 {self.encoder} {what} {samples.kind} {shape}".encode())
        for part in (samples.pixels, train):
            digest.update(np.ascontiguousarray(part).data)
        path = self.folder / f"{digest.hexdigest()[:32]}.npy"
        if path.is_file():
            try:
                return np.asarray(np.load(path, allow_pickle=False))
            except (OSError, ValueError, EOFError):
                pass  # a damaged file is made again
        made = make()
        write_array(path, made)
        return made


class Encoded:
    """Features of a frozen encoder, computed once for tasks that share their images.

    Bands are normalised with the training items' statistics, for every arm alike: an encoder that never saw
    the sensor has no statistics of its own. Images whose side is no multiple of the patch are continued by
    reflection at the right and below.

    Args:
        encoder: ours, or one of the zoo.
        device: where it runs.
        batch: images at a time.
        blocks: 1 for what the encoder gives; more for the mean, or the tokens, of as many evenly spaced blocks
            of its trunk, the last among them, each brought to zero mean and unit variance per token.
        cache: where results are looked up.
    """

    def __init__(
        self,
        encoder: Encoder | Any,
        device: str = "cpu",
        batch: int = 64,
        blocks: int = 1,
        cache: Cache | None = None,
    ) -> None:
        self.encoder: Any = encoder.to(device).eval()
        self.device, self.batch, self.blocks = device, batch, blocks
        self._cache = cache or Cache()
        self._statistics = Kept(BandStatistics())
        if blocks != 1:
            _depths(self.encoder, blocks)

    def pooled(self, samples: Samples, train: Rows) -> Array:
        """The mean patch token, or what else the encoder's ``embed`` gives: float64 (n, k)."""
        if self._means:
            return np.split(self._moments(samples, train), 2, axis=1)[0]
        found = self._cache.get(
            f"pooled {self.blocks}", samples, train, lambda: self._run(samples, train, self._embed)
        )
        return found.astype(np.float64)

    def vectors(self, samples: Samples, train: Rows) -> tuple[Array, Array]:
        """Mean and standard deviation over patch tokens, float64 (n, 2 k), and the bands' statistics.

        Others' encoders add what ``embed`` gives, unless that is the mean.
        """
        own = []
        if self._means or hasattr(self.encoder, "forward_features"):
            own.append(self._moments(samples, train))
        if not self._means:
            embedded = self.pooled(samples, train)
            if not own or not np.allclose(embedded, own[0][:, : embedded.shape[1]], 1e-3, 1e-5):
                own.insert(0, embedded)
        return np.concatenate(own, axis=1), self._statistics.pooled(samples, train)

    def _moments(self, samples: Samples, train: Rows) -> Array:
        def make() -> NDArray[np.float32]:
            tokens = self._cache.held(f"grid {self.blocks}", samples, train)
            if tokens is None:
                return self._run(samples, train, self._mean_and_deviation)
            both = [f(axis=(1, 2), dtype=np.float64) for f in (tokens.mean, tokens.std)]
            return np.concatenate(both, axis=1).astype(np.float32)

        found = self._cache.get(f"moments {self.blocks}", samples, train, make)
        return found.astype(np.float64)

    def grids(self, samples: Samples, train: Rows) -> tuple[Grid, Grid]:
        """Patch tokens where they belong, and the statistics of every pixel."""
        return self.grid(samples, train), self._statistics.grid(samples, train)

    def grid(self, samples: Samples, train: Rows) -> Grid:
        """Patch tokens where they belong."""
        cells = self._cache.get(
            f"grid {self.blocks}", samples, train, lambda: self._run(samples, train, self._tokens)
        )
        h, w = samples.pixels.shape[-2:]
        return Grid(cells, h + -h % self._patch_px, w + -w % self._patch_px)

    @property
    def _patch_px(self) -> int:
        """What image sides must be a multiple of; others' encoders resize images."""
        return self.encoder.patch_px if isinstance(self.encoder, Encoder) else 1

    @property
    def _means(self) -> bool:
        """Whether a vector is the mean of the patch tokens."""
        return self.blocks != 1 or isinstance(self.encoder, Encoder)

    @torch.inference_mode()
    def _run(
        self, samples: Samples, train: Rows, see: Callable[[Tensor, Samples], Tensor]
    ) -> NDArray[np.float32]:
        statistics = Statistics.of(samples.pixels[train])
        rows = []
        for start in range(0, len(samples), self.batch):
            pixels = statistics.normalise(samples.pixels[start : start + self.batch])
            x = whole_patches(torch.from_numpy(pixels).to(self.device), self._patch_px)
            rows.append(see(x, samples).float().cpu().numpy())
        return np.concatenate(rows)

    def _embed(self, x: Tensor, samples: Samples) -> Tensor:
        vectors: Tensor = self.encoder.embed(x, samples.bands, samples.gsd_m)
        return vectors

    def _mean_and_deviation(self, x: Tensor, samples: Samples) -> Tensor:
        tokens = self._tokens(x, samples).flatten(1, 2)
        return torch.cat([tokens.mean(dim=1), tokens.std(dim=1, correction=0)], dim=1)

    def _tokens(self, x: Tensor, samples: Samples) -> Tensor:
        if self.blocks == 1:
            tokens = self.encoder.forward_features(x, samples.bands, samples.gsd_m)
        else:
            with _seen(self.encoder, self.blocks) as seen:
                n = self.encoder.forward_features(x, samples.bands, samples.gsd_m).shape[1]
            # What precedes the patches is a class token or registers.
            tokens = torch.cat([F.layer_norm(t[:, -n:], t.shape[-1:]) for t in seen], dim=-1)
        return on_grid(tokens, x)


def whole_patches(x: Tensor, patch_px: int) -> Tensor:
    """Images (b, c, h, w) continued by reflection until patches of ``patch_px`` cover them."""
    h, w = x.shape[-2:]
    down, right = -h % patch_px, -w % patch_px
    if not down and not right:
        return x
    if down >= h or right >= w:
        raise ValueError(
            f"image is {h}x{w} px, too small for a patch of {patch_px} px; use larger images"
        )
    return F.pad(x, (0, right, 0, down), mode="reflect")


def on_grid(tokens: Tensor, x: Tensor) -> Tensor:
    """Patch tokens (b, n, d), row-major over images x (b, c, h, w), as (b, rows, columns, d)."""
    h, w = x.shape[-2:]
    rows = round((tokens.shape[1] * h / w) ** 0.5)
    return rearrange(tokens, "b (i j) d -> b i j d", i=rows)


def trunk_of(encoder: nn.Module) -> Sequence[nn.Module]:
    """An encoder's blocks, first to last.

    Raises:
        ValueError: for an encoder that has none.
    """
    for owner in (
        encoder,
        *encoder.children(),
        *(c for m in encoder.children() for c in m.children()),
    ):
        found = getattr(owner, "blocks", None)
        if isinstance(found, nn.Sequential | nn.ModuleList) and len(found):
            return list(found)
    raise ValueError(f"{type(encoder).__name__} has no transformer blocks; use blocks=1")


def _depths(encoder: nn.Module, count: int) -> list[int]:
    """The numbers of ``count`` evenly spaced blocks, the last among them."""
    depth = len(trunk_of(encoder))
    if not 1 <= count <= depth:
        raise ValueError(f"blocks={count} must be 1 to {depth}, as many as the encoder has")
    return [round((i + 1) * depth / count) - 1 for i in range(count)]


@contextmanager
def _seen(encoder: nn.Module, count: int) -> Iterator[list[Tensor]]:
    """What evenly spaced blocks give while the encoder runs."""
    seen: list[Tensor] = []

    def look(_: nn.Module, __: object, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    trunk = trunk_of(encoder)
    hooks = [trunk[i].register_forward_hook(look) for i in _depths(encoder, count)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class BandMeans(OneGroup):
    """The mean of each band: what a scene's colour alone gives away. On a grid, the pixels themselves."""

    def pooled(self, samples: Samples, train: Rows) -> Array:
        """Float64 (n, c)."""
        return samples.pixels.mean(axis=(2, 3), dtype=np.float64)

    def grid(self, samples: Samples, train: Rows) -> Grid:
        """A cell for each pixel, k = c."""
        return Grid(np.moveaxis(samples.pixels, 1, -1), *samples.pixels.shape[-2:])


class BandStatistics(OneGroup):
    """Mean, standard deviation, 10th and 90th percentile of each band.

    On a grid: the pixel, and mean and standard deviation of the square of NEIGHBOURS_PX around it.
    """

    def pooled(self, samples: Samples, train: Rows) -> Array:
        """Float64 (n, 4 c)."""
        flat = samples.pixels.reshape(*samples.pixels.shape[:2], -1).astype(np.float64)
        tenth, ninetieth = np.percentile(flat, [10, 90], axis=2)
        return np.concatenate([flat.mean(axis=2), flat.std(axis=2), tenth, ninetieth], axis=1)

    def grid(self, samples: Samples, train: Rows) -> Grid:
        """A cell for each pixel, k = 3 c."""
        # Deviations from the band's mean, over images that no answer is asked for: squares of small numbers
        # cancel without loss.
        pixels = samples.pixels - samples.pixels[train].mean(axis=(0, 2, 3), keepdims=True)
        size = (1, 1, NEIGHBOURS_PX, NEIGHBOURS_PX)
        mean = uniform_filter(pixels, size, mode="reflect")
        square = uniform_filter(pixels**2, size, mode="reflect")
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        found = np.concatenate([pixels, mean, deviation], axis=1)
        return Grid(np.moveaxis(found, 1, -1), *pixels.shape[-2:])
