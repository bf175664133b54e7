"""How smooth are real chips, and how smooth are synthetic ones?

    uv run python experiments/world/smoothness.py FOLDER

reads FOLDER, real pixels with an index.json, and measures chips of 32 px of the founding five; beside them
those of both synthetic worlds, data.smooth=false and true. Every picture of every band is brought to mean 0 and
variance 1 and cut into patches of 4 px. Two things say what can be known of a hidden patch from those around
it: the share of the variance that lies between patches, and how the means of patches correlate that lie one to
four apart.

Writes smoothness.csv beside this file, one row for each band of each block of real chips or of a world, and
prints the table of the README.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gfmsum.config import LocalConfig, SyntheticConfig
from gfmsum.data.plan import permute
from gfmsum.data.sample import Source
from gfmsum.data.sources import open_source
from gfmsum.sensors import SENSORS

HERE = Path(__file__).parent
SIDE_PX, PATCH_PX, LAGS = 32, 4, 4
CHIPS = 120  # of a block, or of a world
FEWEST = 40  # a block of fewer says little


def measure(pixels: NDArray[Any]) -> list[float]:
    """The share of the variance between patches, and correlations of their means at lags 1 to 4.

    Args:
        pixels: (n, h, w), one band. Pictures without any variance are left out.
    """
    _, h, w = pixels.shape
    pictures = pixels[:, : h // PATCH_PX * PATCH_PX, : w // PATCH_PX * PATCH_PX].astype(np.float64)
    pictures -= pictures.mean((1, 2), keepdims=True)
    spread = pictures.std((1, 2), keepdims=True)
    pictures = (pictures / np.where(spread > 1e-6, spread, 1))[spread[:, 0, 0] > 1e-6]
    means = pictures.reshape(-1, h // PATCH_PX, PATCH_PX, w // PATCH_PX, PATCH_PX).mean((2, 4))
    power = (means**2).mean()
    beside = (
        ((means[..., lag:] * means[..., :-lag]).mean(), (means[:, lag:] * means[:, :-lag]).mean())
        for lag in range(1, LAGS + 1)
    )
    return [float(power), *(float(sum(pair) / 2 / power) for pair in beside)]


def rows(
    name: str, source: Source, sensors: Iterable[str] = tuple(SENSORS)
) -> Iterator[dict[str, Any]]:
    """One for each band of each block of some sensors, as far as the source has them."""
    for sensor in (sensor for sensor in sensors if sensor in source.sensors):
        for number, block in enumerate(source.pretraining(sensor, SIDE_PX).blocks):
            if len(block) < FEWEST:
                continue
            chosen = permute(np.arange(min(CHIPS, len(block))), len(block), 0, "chips")
            samples = block.read(np.sort(chosen))
            for band, pixels in zip(samples.bands, samples.pixels.swapaxes(0, 1), strict=True):
                share, *lags = measure(pixels)
                yield {
                    "pixels": name, "sensor": sensor, "block": number, "gsd_m": samples.gsd_m,
                    "chips": len(chosen), "band": band.name, "share": share,
                    **{f"lag{i + 1}": lag for i, lag in enumerate(lags)},
                }  # fmt: skip


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """The range of real chips, over bands and over blocks, and the mean of each world over its bands.

    Returns:
        One row for each sensor and kind of pixels, texts.
    """
    figures = ["share", *(f"lag{lag + 1}" for lag in range(LAGS))]
    lines = []
    for (sensor, pixels), part in table.groupby(["sensor", "pixels"], sort=False):
        if pixels == "real":
            blocks = part.groupby("block")[figures].mean()
            lines.append([sensor, "real bands", *_ranges(part[figures])])
            lines.append([sensor, "real blocks", *_ranges(blocks)])
        else:
            lines.append([sensor, pixels, *(f"{mean:.2f}" for mean in part[figures].mean())])
    named = pd.DataFrame(lines, columns=["sensor", "pixels", *figures])
    return named.sort_values("sensor", key=lambda c: c.map(list(SENSORS).index), kind="stable")


def _ranges(figures: pd.DataFrame) -> list[str]:
    ends = zip(figures.min(), figures.max(), strict=True)
    return [f"{low:.2f} to {high:.2f}" for low, high in ends]


def main() -> None:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "index.json").is_file():
        sys.exit(
            "give one FOLDER with an index.json: python experiments/world/smoothness.py FOLDER"
        )
    warnings.simplefilter("ignore")  # what real files complain of is not the matter here
    sources = {
        "real": open_source(LocalConfig(root=sys.argv[1])),
        "smooth=false": open_source(SyntheticConfig()),
        "smooth=true": open_source(SyntheticConfig(smooth=True)),
    }
    table = pd.concat([pd.DataFrame(rows(name, source)) for name, source in sources.items()])
    table.to_csv(HERE / "smoothness.csv", index=False, float_format="%.4f")
    shown = compare(table)
    for cells in (shown.columns, ["---"] * len(shown.columns), *shown.to_numpy().tolist()):
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
