"""Several sensors' views of one place: probes that cross from one to another, and fusion at inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gfmsum.data.modules import Statistics
from gfmsum.data.sample import Labelled, Rows, Samples
from gfmsum.model.encoder import Encoder
from gfmsum.probe.features import (
    Array,
    BandStatistics,
    Encoded,
    Features,
    Grid,
    whole_patches,
)

SAME_DEGREE = 1e-5  # places that lie within about a metre of each other are one


def matched(items: Labelled, others: Samples) -> tuple[Labelled, Samples]:
    """Items whose places another sensor shows too, and what it shows, row by row.

    Places are the same if their ids are, or if no id is and they lie within SAME_DEGREE.

    Raises:
        ValueError: if a part of the split has no place in common.
    """
    where, names = _names(items.samples, others)
    there = {name: row for row, name in reversed(list(enumerate(names)))}
    kept = np.array([i for i, name in enumerate(where) if name in there], np.int64)
    new = np.full(len(items.samples), -1, np.int64)
    new[kept] = np.arange(len(kept))

    def renumbered(part: Rows) -> Rows:
        return new[part][new[part] >= 0]

    folds = tuple(
        (renumbered(train), renumbered(val), renumbered(test)) for train, val, test in items.folds
    )
    if any(not len(part) for fold in folds for part in fold):
        raise ValueError(
            f"task {items.task.name}: {others.sensor} shows {len(kept)} of its {len(items.samples)} places, "
            "and none of some part; choose sensors whose tasks share places"
        )
    few = replace(
        items,
        samples=items.samples.read(kept),
        target=items.target[kept],
        cluster=items.cluster[kept],
        folds=folds,
        before=None if items.before is None else items.before.read(kept),
        images=tuple(renumbered(part) for part in items.images),
    )
    return few, others.read(np.array([there[where[i]] for i in kept], np.int64))


def common(a: Samples, b: Samples) -> int:
    """How many places of one show in the other too, as :func:`matched` takes them."""
    return len(set.intersection(*map(set, _names(a, b))))


def _names(a: Samples, b: Samples) -> tuple[list[Any], list[Any]]:
    if a.lonlat is None or b.lonlat is None or set(a.ids.tolist()) & set(b.ids.tolist()):
        return a.ids.tolist(), b.ids.tolist()
    cells = (np.round(one / SAME_DEGREE) for one in (a.lonlat, b.lonlat))
    first, second = ([tuple(row) for row in some.tolist()] for some in cells)
    return first, second


@dataclass(frozen=True, slots=True)
class _Whole:
    """Features of whole images only."""

    def grid(self, samples: Samples, train: Rows) -> Grid:
        """Raises ValueError: views of two sensors have no common grid."""
        raise ValueError("views of several sensors have no common grid; use a task of whole images")

    def grids(self, samples: Samples, train: Rows) -> tuple[Grid, ...]:
        """Raises ValueError, as :meth:`grid` does."""
        return (self.grid(samples, train),)


@dataclass(frozen=True, slots=True)
class Across(_Whole):
    """Test items as another sensor sees them, the others as the task's own does.

    Only what an encoder gives can cross over: statistics of one sensor's bands are not those of another's.
    """

    features: Features
    items: Labelled
    others: Samples  # row by row the same places

    def pooled(self, samples: Samples, train: Rows) -> Array:
        """Float64 (n, k)."""
        return self._crossed(samples, train, lambda shown: self.features.pooled(shown, train))

    def vectors(self, samples: Samples, train: Rows) -> tuple[Array, ...]:
        """The first group alone, what the encoder gives: float64 (n, k)."""
        return (
            self._crossed(samples, train, lambda shown: self.features.vectors(shown, train)[0]),
        )

    def _crossed(self, samples: Samples, train: Rows, see: Callable[[Samples], Array]) -> Array:
        (test,) = (
            test
            for rows, _, test in self.items.folds
            if np.array_equal(self.items.images_of(rows), train)
        )
        own = see(samples).copy()
        own[test] = see(self.others)[test]
        return own


@dataclass(frozen=True, slots=True)
class SideBySide(_Whole):
    """Features of several views, one after the other: what specialists know together."""

    parts: tuple[tuple[Features, Samples | None], ...]  # None for the task's own images

    def pooled(self, samples: Samples, train: Rows) -> Array:
        """Float64 (n, k of all)."""
        found = [part.pooled(own or samples, train) for part, own in self.parts]
        return np.concatenate(found, axis=1)

    def vectors(self, samples: Samples, train: Rows) -> tuple[Array, ...]:
        """Each group of all views side by side."""
        found = [part.vectors(own or samples, train) for part, own in self.parts]
        return tuple(np.concatenate(group, axis=1) for group in zip(*found, strict=True))


@dataclass(frozen=True, slots=True)
class Together(_Whole):
    """Tokens of several views through one trunk."""

    encoded: Encoded
    others: tuple[Samples, ...]

    def pooled(self, samples: Samples, train: Rows) -> Array:
        """Float64 (n, d).

        Raises:
            ValueError: for an encoder that takes one image at a time.
        """
        encoder = self.encoded.encoder
        if not isinstance(encoder, Encoder):
            raise ValueError(
                f"{type(encoder).__name__} takes one sensor at a time; fuse encoders of gfmsum, or use "
                "their features side by side"
            )
        views = [(view, Statistics.of(view.pixels[train])) for view in (samples, *self.others)]
        rows: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for start in range(0, len(samples), self.encoded.batch):
                part = slice(start, start + self.encoded.batch)
                shown = [
                    (
                        whole_patches(
                            torch.from_numpy(scale.normalise(view.pixels[part])).to(
                                self.encoded.device
                            ),
                            encoder.patch_px,
                        ),
                        view.bands,
                        view.gsd_m,
                    )
                    for view, scale in views
                ]
                rows.append(encoder.embed_together(shown).float().cpu().numpy())
        return np.concatenate(rows).astype(np.float64)

    def vectors(self, samples: Samples, train: Rows) -> tuple[Array, Array]:
        """The mean over all tokens, and the statistics of all views' bands."""
        views = [BandStatistics().pooled(view, train) for view in (samples, *self.others)]
        return self.pooled(samples, train), np.concatenate(views, axis=1)
