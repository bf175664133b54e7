"""Features of a task's images: an encoder's, or statistics of the bands as a floor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from gfmsum.data.modules import Statistics
from gfmsum.data.sample import Samples
from gfmsum.model.encoder import Encoder

type Features = Callable[[Samples, NDArray[np.int64]], NDArray[np.float64]]
"""From samples and the indices of the training items to float (n, features)."""


def encoded(encoder: Encoder, device: str = "cpu", batch: int = 128) -> Features:
    """The mean patch token of a frozen encoder.

    Bands are normalised with the training items' statistics, for every arm alike: an encoder that
    never saw the sensor has no statistics of its own.
    """
    encoder = encoder.to(device).eval()
    known: dict[tuple[int, bytes], tuple[Samples, NDArray[np.float64]]] = {}

    def features(samples: Samples, train: NDArray[np.int64]) -> NDArray[np.float64]:
        key = (id(samples), train.tobytes())
        if key not in known:  # tasks on the same images share their features
            known[key] = samples, encode(samples, train)
        return known[key][1]

    @torch.inference_mode()
    def encode(samples: Samples, train: NDArray[np.int64]) -> NDArray[np.float64]:
        statistics = Statistics.of(samples.pixels[train])
        rows = []
        for start in range(0, len(samples), batch):
            pixels = statistics.normalise(samples.pixels[start : start + batch])
            x = torch.from_numpy(pixels).to(device)
            rows.append(encoder.embed(x, samples.bands, samples.gsd_m).float().cpu().numpy())
        return np.concatenate(rows).astype(np.float64)

    return features


def band_means(samples: Samples, train: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of each band: what a scene's colour alone gives away."""
    return samples.pixels.mean(axis=(2, 3), dtype=np.float64)


def band_statistics(samples: Samples, train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean, standard deviation, 10th and 90th percentile of each band."""
    flat = samples.pixels.reshape(*samples.pixels.shape[:2], -1).astype(np.float64)
    tenth, ninetieth = np.percentile(flat, [10, 90], axis=2)
    return np.concatenate([flat.mean(axis=2), flat.std(axis=2), tenth, ninetieth], axis=1)


BASELINES: dict[str, Features] = {"band means": band_means, "band statistics": band_statistics}
"""Floors that need no model."""
