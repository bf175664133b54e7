"""Ground that pretraining must keep away from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.warp import transform as reproject

from gfmsum.data.files import Floats, Ground, Mask


@dataclass(frozen=True, slots=True)
class Held:
    """The footprints of the validation and test items of all tasks, and the distance to keep."""

    grounds: tuple[Ground, ...]
    margin_m: float

    def near(self, ground: Ground) -> Mask:
        """Which footprints come within the margin of held ground: (n,)."""
        near = np.zeros(len(ground.lonlat), np.bool_)
        for held in self.grounds:
            near |= ground.meets(held, self.margin_m)
        return near


def to_lonlat(crs: Any, x: Any, y: Any) -> Floats:
    """Points of a coordinate reference system as longitude and latitude in degrees: (n, 2)."""
    return np.stack(reproject(crs, "EPSG:4326", np.ravel(x), np.ravel(y))[:2], axis=1)
