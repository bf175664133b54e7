"""Synthetic scenes: one land surface per location, seen by every sensor through its own bands.

The surface (:mod:`gfmsum.data.surface`) is the same for all sensors of a location, and each looks at it
with its own physics (:mod:`gfmsum.data.instruments`). Any sensor of the catalog can look: ``data.sensors``
names those that do.

**How much structure sensors share** is a dial, ``data.shared``: at 1 it is the world just described, at 0
each sensor has land of its own, and other sensors' pictures say nothing of it that they would not say of
any land. Two things go with it:

- *Places.* What a location is like comes in nine parts: the land uses on the strong levels of the ladder,
  each of the four weak levels, moisture, vigour, slope, and the kinds of its materials. Each part is
  common with the probability ``shared``; else it is that of another location, which the pair of location
  and sensor determines. A part that is common at one value of the dial is common at all higher ones.
- *Laws*, which the pair of world and sensor determines. All but ``shared`` of the signatures are dealt out
  anew among the materials, in each band group in another way, so that neither what a material looks like nor
  what red says of near infrared, or VV of VH, carries over; and the patterns have a size and a grain, a
  direction along which they are stretched, which fade as more is shared.

Labels are taken from the land as the task's sensor has it. Its laws rearrange what all land is made of, so
that a task asks about as much of a model that knows this sensor alone: going from 1 to 0, hand-made features
(band means and spectra of the pictures; 1,200 training items, mean of the founding five in four worlds) score
.70 and .69 on land use, .45 and .43 on diversity, .70 and .61 on canopy. What the dial never takes
apart is the six sorts of pattern, how often which cover is there, and the physics of seeing.

**Tasks** (:mod:`gfmsum.data.truths`), of which ``data.tasks`` chooses, are asked about one set of pictures,
whether they have one answer for each or one for every pixel. Only ``clearing`` wants two dates: of which
pixels more than half has been cleared in between, see :func:`gfmsum.data.surface.revisit`. Its earlier
pictures are those of the other tasks, the later ones were taken at another moment, in another season. It
asks about the first :data:`PAIRS` of every part.

**Smoothness.** Real chips are smoother than these. With ``data.smooth`` the land has another ladder of levels,
on which the large ones weigh more, and radar's speckle reaches over neighbouring pixels: then how much of the
variance lies between patches, and how these correlate, is within the range of real chips for each of the
founding five; experiments/world has the figures.

Where the instrument itself is to be tested, a control puts something else in the other sensors' place,
see :data:`gfmsum.config.CONTROLS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.catalog import CATALOG
from gfmsum.config import CONTROLS, SyntheticConfig
from gfmsum.data.instruments import Instrument, Noise, check
from gfmsum.data.patterns import Floats
from gfmsum.data.plan import stream
from gfmsum.data.sample import Kind, Labelled, Pool, Rows, Samples
from gfmsum.data.surface import (
    LANDUSES,
    LATENTS,
    LEVELS,
    PLACES,
    SMOOTH,
    Ground,
    Ids,
    Own,
    Surface,
    draws,
    respell,
    revisit,
)
from gfmsum.data.truths import Truths, asked, task_of, tell
from gfmsum.records import Task, fingerprint, plain
from gfmsum.sensors import SENSORS, Sensor, unknown

VERSION = 1  # raised when a change of code changes pixels
CHUNK = 64  # locations at once, of up to 16 bands and 32 px: more save calls, fewer save memory
PROBES = np.uint64(2**63)  # a bit beyond PLACES that only probe locations have: none is both

PAIRS = {"train": 120, "val": 60, "test": 160}  # items that are looked at twice, at most


def _chosen(config: SyntheticConfig) -> dict[str, Sensor]:
    """The sensors that look at the world, in the order of the catalog."""
    names = config.sensors.split("+") if config.sensors else list(SENSORS)
    for name in names:
        if name not in CATALOG:
            raise ValueError(unknown("sensor", name, CATALOG))
    if len(set(names)) != len(names):
        raise ValueError(f"data.sensors={config.sensors} names a sensor twice; name each once")
    chosen = {name: sensor for name, sensor in CATALOG.items() if name in names}
    for sensor in chosen.values():
        check(sensor)
    return chosen


def _instruments(config: SyntheticConfig, chosen: Mapping[str, Sensor]) -> dict[str, Instrument]:
    """What looks at the land under each sensor's name."""
    if config.control and config.target not in chosen:
        raise ValueError(unknown("sensor", config.target, chosen))
    if config.control in ("alias", "harm") and config.shared < 1:
        raise ValueError(
            f"data.shared={config.shared:g} would break what data.control={config.control} knows; "
            "leave one of them out"
        )

    def look(sensor: Sensor) -> Instrument:
        if not config.control or sensor.name == config.target:
            return Instrument(sensor, config.world, config.shared, config.smooth)
        if config.control == "harm":
            return Noise(sensor, config.world, config.shared, config.smooth)
        # The name draws the scene: the same physics at another moment.
        same = replace(chosen[config.target], name=sensor.name)
        return Instrument(same, config.world, config.shared, config.smooth)

    return {name: look(sensor) for name, sensor in chosen.items()}


class View:
    """A sensor's pictures of the land, made when they are asked for.

    Args:
        instrument: what looks.
        world: which planet.
        shared: probability with which a part of the land is common to all sensors.
    """

    def __init__(self, instrument: Instrument, world: int, shared: float) -> None:
        self.instrument, self.shared = instrument, shared
        self._grain = _grain(stream("synthetic", world, "grain", instrument.sensor.name), shared)

    def surface(self, places: Ids) -> Surface:
        """The land around (n,) locations as the sensor has it."""
        levels = SMOOTH if self.instrument.smooth else LEVELS
        return Surface(places, None if self.shared == 1 else self.own(places), levels)

    def own(self, places: Ids) -> Own:
        """What stands in for (n,) locations, and in which parts."""
        ids, latents = places & ~PLACES, np.empty((len(places), LATENTS), bool)
        for i, rng in enumerate(draws(places, f"{self.instrument.sensor.name} own")):
            latents[i] = rng.random(LATENTS) >= self.shared
            ids[i] |= np.uint64(rng.bit_generator.random_raw()) & PLACES
        return Own(ids, latents, self._grain)

    def render(self, places: Ids, size_px: int) -> Floats:
        """Pixels (n, c, h, w)."""
        pixels = self._empty(places, size_px)
        for part, surface, ground in self._looks(places, size_px):
            pixels[part] = self.instrument.observe(surface, ground)
        return pixels

    def describe(self, places: Ids, size_px: int, tasks: Iterable[str]) -> tuple[Floats, Truths]:
        """The same pixels, and the answers to ``tasks`` about the ground they show."""
        pixels, truths, names = self._empty(places, size_px), list[Truths](), list(tasks)
        for part, surface, ground in self._looks(places, size_px):
            pixels[part] = self.instrument.observe(surface, ground)
            truths.append(tell(names, surface, ground, self.instrument.sensor.gsd_m))
        return pixels, {name: np.concatenate([truth[name] for truth in truths]) for name in names}

    def twice(self, places: Ids, size_px: int) -> tuple[Floats, Floats, NDArray[np.uint8]]:
        """The same pixels, those of a later date, and (n, h, w) 1 where most of the ground was cleared."""
        before, later = self._empty(places, size_px), self._empty(places, size_px)
        cleared = np.empty((len(places), size_px, size_px), np.uint8)
        for part, surface, ground in self._looks(places, size_px):
            before[part] = self.instrument.observe(surface, ground)
            ground, changed = revisit(surface.ids, ground)
            later[part] = self.instrument.observe(surface, ground, moment=" later")
            cleared[part] = changed > 0.5
        return before, later, cleared

    def _looks(self, places: Ids, size_px: int) -> Iterator[tuple[slice, Surface, Ground]]:
        """The land around locations, as many at once as memory allows: the pixels do not depend on it."""
        sensor = self.instrument.sensor
        at_once = max(1, CHUNK * 16 * 32**2 // (max(16, len(sensor.bands)) * max(32, size_px) ** 2))
        for start in range(0, len(places), at_once):
            part = slice(start, start + at_once)
            surface = self.surface(places[part])
            yield part, surface, surface.look(sensor.gsd_m, size_px)

    def _empty(self, places: Ids, size_px: int) -> Floats:
        bands = self.instrument.sensor.bands
        return np.empty((len(places), len(bands), size_px, size_px), np.float32)


def _grain(rng: np.random.Generator, shared: float) -> Floats:
    """(2, 2) stretches along a random direction, the less the more is shared."""
    turn, stretch, size = np.pi * rng.random(), rng.uniform(1.25, 1.5), rng.uniform(0.8, 1.25)
    there = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    along = np.diag(np.power([size * stretch, size / stretch], shared - 1))
    return np.asarray(there @ along @ there.T, np.float32)


class Scenes:
    """A block of all locations of a world: row r shows the location r XOR a number of the world's.

    So every number below 2**62 is a row and a location, once each, and any of them are picked without a list.
    """

    quick = False

    def __init__(self, name: str, view: View, world: int, size_px: int) -> None:
        sensor = view.instrument.sensor
        self.kind = Kind(name, sensor.bands, sensor.gsd_m)
        self._view, self._world, self._size_px = view, world, size_px

    def __len__(self) -> int:
        return int(PLACES) + 1

    def read(self, rows: Rows) -> Samples:
        """The samples at ``rows``, int64 (n,) in [0, 2**62)."""
        places = locations(self._world, rows)
        pixels = self._view.render(places, self._size_px)
        names = [f"synthetic/{self._world}/{place:016x}" for place in places.tolist()]
        return Samples(
            self.kind.sensor, self.kind.bands, self.kind.gsd_m, pixels, np.array(names, np.str_)
        )


def locations(world: int, rows: Rows) -> Ids:
    """The location that each row shows: another order in every world."""
    mask = stream("synthetic", world, "places").bit_generator.random_raw()
    return np.asarray((rows.astype(np.uint64) ^ np.uint64(mask)) & PLACES)


type _Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Items:
    """Labelled pictures that several tasks may ask about."""

    samples: Samples
    targets: Truths  # by the name of the task
    fold: tuple[_Ints, _Ints, _Ints]
    before: Samples | None = None


class Synthetic:
    """Source of synthetic scenes without end, with labels from the surface and not from pixels.

    Raises:
        ValueError: one line, for a sensor or a task that is unknown, a sensor that cannot be rendered, or a
            dial that a control leaves no room for.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self._chosen, self._asked = _chosen(config), asked(config.tasks)
        self._views = {
            name: View(instrument, config.world, config.shared)
            for name, instrument in _instruments(config, self._chosen).items()
        }
        self._items: dict[tuple[str, int, bool], _Items] = {}

    @property
    def sensors(self) -> Mapping[str, Sensor]:
        return {name: view.instrument.sensor for name, view in self._views.items()}

    @property
    def identity(self) -> Mapping[str, Any]:
        chosen = {
            name: getattr(self.config, name) for name in ("control", "target", "scarce", "smooth")
        }
        # The founding five are known by their names; what others are called may mean anything.
        chosen["sensors"] = {
            name: fingerprint({"gsd_m": sensor.gsd_m, "bands": plain(sensor.bands)})
            for name, sensor in self._chosen.items()
            if name not in SENSORS
        }
        # What is not chosen has no place in a name: runs from before there was a choice keep theirs.
        chosen = {name: value for name, value in chosen.items() if value}
        if self.config.shared < 1:
            chosen["shared"] = self.config.shared
        return {"source": "synthetic", "version": VERSION, "world": self.config.world, **chosen}

    @property
    def caveats(self) -> tuple[str, ...]:
        said = [
            "Synthetic scenes: this checks the instrument and is no evidence about real sensors."
        ]
        if control := self.config.control:
            said.insert(0, f"A control with target {self.config.target}: {CONTROLS[control]}.")
        if self.config.shared < 1:
            said.append(
                f"Of what a sensor sees of the land, {self.config.shared:.0%} is common to all sensors; "
                "the rest is its own."
            )
        return tuple(said)

    def places(self, sensor: str) -> str:
        self._view(sensor)
        return f"synthetic/{self.config.world}" + ("/scarce" if self._is_scarce(sensor) else "")

    def pretraining(self, sensor: str, size_px: int) -> Pool:
        scenes = Scenes(sensor, self._view(sensor), self.config.world, size_px)
        # The plan permutes a list by its name: the same few of it for all arms of a replicate.
        limit = self.config.scarce if self._is_scarce(sensor) else None
        return Pool((scenes,), self.places(sensor), limit)

    def tasks(self, sensor: str) -> list[Task]:
        self._view(sensor)
        train, twice = self.config.train, min(PAIRS["train"], self.config.train)
        return [
            task_of(name, sensor, twice if name == "clearing" else train) for name in self._asked
        ]

    def unsupported(self, sensor: str) -> list[tuple[str, str]]:
        return []

    def labelled(self, task: Task, size_px: int) -> Labelled:
        known = {t.name: t for t in self.tasks(task.sensor)}
        if task.name not in known:
            raise ValueError(unknown("task", task.name, known))
        change = task.kind == "change_segmentation"
        key = task.sensor, size_px, change
        if key not in self._items:
            make = self._pairs if change else self._singles
            self._items[key] = make(task.sensor, size_px)
        items = self._items[key]
        target = items.targets[task.name.removesuffix(f"_{task.sensor}")]
        return Labelled(task, items.samples, target, items.samples.ids, (items.fold,), items.before)

    def _singles(self, sensor: str, size_px: int) -> _Items:
        places, ids, fold = self._listed({part: getattr(self.config, part) for part in PAIRS})
        about_one_date = [name for name in self._asked if name != "clearing"]
        pixels, targets = self._view(sensor).describe(places, size_px, about_one_date)
        return _Items(self._samples(sensor, pixels, ids), targets, fold)

    def _pairs(self, sensor: str, size_px: int) -> _Items:
        few = {part: min(most, getattr(self.config, part)) for part, most in PAIRS.items()}
        places, ids, fold = self._listed(few)
        *dates, cleared = self._view(sensor).twice(places, size_px)
        before, later = (self._samples(sensor, pixels, ids) for pixels in dates)
        return _Items(later, {"clearing": cleared}, fold, before)

    def _samples(self, sensor: str, pixels: Floats, ids: NDArray[np.str_]) -> Samples:
        one = self._view(sensor).instrument.sensor
        return Samples(sensor, one.bands, one.gsd_m, pixels, ids)

    def _listed(
        self, counts: Mapping[str, int]
    ) -> tuple[Ids, NDArray[np.str_], tuple[_Ints, _Ints, _Ints]]:
        """Locations of labelled items, their names, and which of them are of which part."""
        places, names, parts = [], list[str](), []
        for part, count in counts.items():
            landuse = np.arange(count) % len(LANDUSES)  # balanced, as far as it is common
            places.append(respell(self._probe_places(part, count), landuse))
            parts.append(np.arange(len(names), len(names) + count))
            names += [f"synthetic/{self.config.world}/{part}/{i}" for i in range(count)]
        train, val, test = parts
        return np.concatenate(places), np.array(names, np.str_), (train, val, test)

    def _probe_places(self, part: str, count: int) -> Ids:
        """The first ``count`` locations of a part of the labelled items."""
        bits = stream("synthetic", self.config.world, part).bit_generator
        return np.asarray(bits.random_raw(count)) & PLACES | PROBES

    def _is_scarce(self, sensor: str) -> bool:
        return self.config.scarce > 0 and sensor == self.config.target

    def _view(self, sensor: str) -> View:
        if sensor not in self._views:
            raise ValueError(unknown("sensor", sensor, self._views))
        return self._views[sensor]
