"""One small world, which the tests of this folder share."""

from __future__ import annotations

import pytest

from gfmsum.data.synthetic import Synthetic
from gfmsum.sensors import SENSORS
from tests.data.world.scenes import SMALL, Views, pixels


@pytest.fixture(scope="session")
def source() -> Synthetic:
    return Synthetic(SMALL)


@pytest.fixture(scope="session")
def views(source: Synthetic) -> Views:
    """120 locations through every sensor."""
    return {name: pixels(source, name, range(120)) for name in SENSORS}
