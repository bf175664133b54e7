"""What can be asked about the synthetic world: tasks whose answers are read off the ground, not off pixels.

``data.tasks`` chooses among :data:`TASKS`, by names joined with a plus; their table, with metric, the ends of
the scale, and why a good representation should help, is ``synthetic_tasks.json``.

Whole pictures: ``landuse`` is the pattern on the strong levels of the ladder; ``diversity`` and ``canopy``
are about the shares of materials, ``length``, ``coarseness`` and ``edges`` about their arrangement. Every
pixel: ``cover`` is what most of it is, ``extent`` how large the region is that it belongs to, and
``clearing`` whether it was cleared between two dates, see :func:`gfmsum.data.surface.revisit`.

The floors of dense tasks follow one convention for all sensors: the mean of what a constant answer scores on
300 training and 300 test items of the founding five in world 0, at 32 px. On each of these, and on any other
sensor of the catalog, it scores within 0.01 of that for cover and clearing. For extent, which depends on how
many periods a picture shows, it is within 0.03 for the founding five and within 0.09 for the catalog.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from gfmsum.data.surface import LANDUSES, MATERIALS, STRONG, Ground, Surface
from gfmsum.records import Task
from gfmsum.sensors import unknown

type Truths = dict[str, NDArray[Any]]
"""The answers for n pictures by the name of the task, (n,) or (n, h, w) each."""

TASKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    json.loads(resources.files("gfmsum.data").joinpath("synthetic_tasks.json").read_text())["tasks"]
)
"""Everything that can be asked: kind, metric, floor, ceiling, and why a good representation should help."""

COVERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "water": ("water",),
        "bare": ("soil", "sand"),
        "herbs": ("grass", "crop"),
        "trees": ("trees",),
        "built": ("built",),
    }
)
"""Materials by what can be told apart in one picture, by radar as well as by colour."""

EXTENTS = MappingProxyType({"small": 0, "middling": 100, "large": 500})
"""From how many of a picture's 32 by 32 pixels on a region is of each size."""

_CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "landuse": tuple(LANDUSES),
        "cover": tuple(COVERS),
        "extent": tuple(EXTENTS),
        "clearing": ("as it was", "cleared"),
    }
)
_PERIOD_PX = 25  # of a pattern of which a picture of 32 px shows a little more than one
_FAINT = 1e-4  # variance of the cover below which a picture counts as uniform


def asked(tasks: str) -> tuple[str, ...]:
    """The names in ``landuse+length``.

    Raises:
        ValueError: one line, for a task that is unknown or asked twice.
    """
    names = tuple(tasks.split("+"))
    for name in names:
        if name not in TASKS:
            raise ValueError(f"data.tasks={tasks}: {unknown('task', name, TASKS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"data.tasks={tasks} names a task twice; name each once")
    return names


def task_of(name: str, sensor: str, train: int) -> Task:
    """One of :data:`TASKS`, asked of a sensor with so many items to train on."""
    scale = {key: value for key, value in TASKS[name].items() if key != "why"}
    classes = _CLASSES.get(name, ())
    return Task(f"{name}_{sensor}", sensor, classes=classes, clustered=False, train=train, **scale)


def tell(names: Iterable[str], surface: Surface, ground: Ground, gsd_m: float) -> Truths:
    """The answers to tasks that are about one date; no other is worked out.

    Args:
        names: of the tasks.
        surface: n locations.
        ground: what covers the h by w pixels around each.
        gsd_m: size of the pixels, metres.
    """
    answers: Mapping[str, Callable[[], NDArray[Any]]] = {
        "landuse": lambda: surface.landuse[:, STRONG[0]],
        "diversity": lambda: _diversity(ground),
        "canopy": lambda: _shares(ground)[:, MATERIALS.index("trees")],
        "length": lambda: _length(surface, gsd_m),
        "coarseness": lambda: _coarseness(ground),
        "edges": lambda: _edges(most(ground)),
        "cover": lambda: most(ground),
        "extent": lambda: _extent(most(ground)),
    }
    return {name: answers[name]() for name in names}


def most(ground: Ground) -> NDArray[np.uint8]:
    """(n, h, w) which of COVERS has most of each pixel."""
    rows = [[MATERIALS.index(material) for material in group] for group in COVERS.values()]
    shares = np.stack([ground.cover[:, row].sum(1) for row in rows])
    return shares.argmax(0).astype(np.uint8)


def _shares(ground: Ground) -> NDArray[np.float64]:
    """(n, materials) of the footprint."""
    return np.asarray(ground.cover.mean((2, 3), dtype=np.float64))


def _diversity(ground: Ground) -> NDArray[np.float64]:
    """Simpson's index, (n,): the chance that two points of the footprint lie on different materials."""
    return np.asarray(1 - (_shares(ground) ** 2).sum(1))


def _length(surface: Surface, gsd_m: float) -> NDArray[np.float64]:
    """(n,) logarithms of the period in pixels of the strong pattern of which 32 px show about one period.

    It is the location's, whatever the size of the picture, and without the sensor's grain, which multiplies
    the periods of all locations by one factor in each direction.
    """
    typical = np.array([surface.levels[i].length_m for i in surface.strong])
    level = surface.strong[int(np.abs(np.log(typical / gsd_m / _PERIOD_PX)).argmin())]
    return np.log(surface.length_m[:, level].astype(np.float64) / gsd_m)


def _coarseness(ground: Ground) -> NDArray[np.float64]:
    """(n,) logarithms of the cover's variance within a picture over its mean squared gradient.

    The square root of that ratio is a length in pixels: what varies slowly has much of the one for little
    of the other. A picture of one material has neither, and gets 0.
    """
    cover = ground.cover.astype(np.float64)
    steps = sum((step**2).sum(1).mean((1, 2)) for step in np.gradient(cover, axis=(2, 3)))
    variance = cover.var((2, 3)).sum(1)
    return np.asarray(np.log(variance + _FAINT) - np.log(steps + _FAINT))


def _edges(cover: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n,) square roots of the share of neighbouring pixels that differ in cover, which spread more evenly."""
    down, right = cover[:, 1:] != cover[:, :-1], cover[:, :, 1:] != cover[:, :, :-1]
    return np.asarray(np.sqrt((down.mean((1, 2)) + right.mean((1, 2))) / 2))


def _extent(cover: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w) which of EXTENTS the region of one cover has that a pixel belongs to.

    Pixels that share a side are connected. A region ends where the picture does. In pictures of another
    size the limits are the same shares of the whole: about a tenth, and half.
    """
    area = np.zeros(cover.shape, np.int64)
    beside = np.zeros((3, 3, 3), bool)  # within a picture, and not from one to the next
    beside[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    for here in (cover == which for which in range(len(COVERS))):
        region, _ = label(here, beside)
        area[here] = np.bincount(region.ravel())[region[here]]
    whole = cover.shape[1] * cover.shape[2]
    return np.digitize(area * 32**2, np.array(list(EXTENTS.values())[1:]) * whole).astype(np.uint8)
