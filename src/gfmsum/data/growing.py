"""Files of a packed store that grow chunk by chunk: arrays, texts, and stacks of images.

Every write says from which row on, and goes over whatever lies there; how many rows are good is the
caller's to remember. So nothing has to be cleaned up after an interruption.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gfmsum.data import chunks
from gfmsum.data.manifest import candidates
from gfmsum.data.sample import Samples
from gfmsum.sensors import Band

BLANK_ROWS = 2**16  # without places or dates that are written at a time

type Fields = dict[str, Any]


# Arrays and texts.


def _head(dtype: str, shape: Sequence[int]) -> bytes:
    """The head of a .npy; equally long for any number of rows, which NumPy leaves room for."""
    out = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()


def put(path: Path, start: int, rows: NDArray[Any]) -> None:
    """Write rows of an array from row ``start`` on, over whatever is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = _head(rows.dtype.str, (0, *rows.shape[1:]))
    with path.open("rb+" if start else "wb") as file:
        if not start:
            file.write(head)
        file.seek(len(head) + start * math.prod(rows.shape[1:]) * rows.itemsize)
        if rows.size:
            file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def finish(path: Path, dtype: str, shape: Sequence[int]) -> None:
    """Say in an array's head how many rows it has, and cut off what is beyond them."""
    head = _head(dtype, shape)
    size = len(head) + math.prod(shape) * np.dtype(dtype).itemsize
    with path.open("rb+") as file:
        held = os.fstat(file.fileno()).st_size
        if held < size:
            raise ValueError(
                f"{path} has {held} bytes where {size} were written; remove the store and pack anew"
            )
        if held != size or file.read(len(head)) != head:
            file.seek(0)
            file.write(head)
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())


# Statistics.


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the values of each band, added up chunk by chunk. Source: Chan et al. 1979."""

    count: int
    mean: NDArray[np.float64]
    square: NDArray[np.float64]  # sum of squared deviations from the mean
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, pixels: NDArray[np.float32]) -> Moments:
        """Of images (n, c, h, w)."""
        over, count = (0, 2, 3), pixels.size // pixels.shape[1]
        mean, variance = (f(pixels, axis=over, dtype=np.float64) for f in (np.mean, np.var))
        low, high = (f(pixels, axis=over).astype(np.float64) for f in (np.min, np.max))
        return cls(count, mean, variance * count, low, high)

    def __add__(self, other: Moments) -> Moments:
        count, apart = self.count + other.count, other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * (other.count / count),
            self.square + other.square + apart**2 * (self.count * other.count / count),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def as_fields(self) -> Fields:
        return {name: np.asarray(getattr(self, name)).tolist() for name in self.__slots__}

    @classmethod
    def from_fields(cls, fields: Fields) -> Moments:
        count, *rest = (fields[name] for name in cls.__slots__)
        return cls(count, *(np.array(one, np.float64) for one in rest))

    def statistics(self, bands: Sequence[Band]) -> list[Fields]:
        deviation = np.sqrt(self.square / self.count)
        columns = (column.tolist() for column in (self.mean, deviation, self.low, self.high))
        rows = zip(bands, *columns, strict=True)
        return [
            {"band": band.name, "mean": mean, "deviation": spread, "min": low, "max": high}
            for band, mean, spread, low, high in rows
        ]


# Stacks of images.


class Misfit(Exception):
    """Values came that the way of keeping numbers chosen for a block cannot hold: the next is tried."""


def fresh(way: int = 0) -> Fields:
    """What the journal says of a stack without rows. ``way``: of ``candidates``, its numbers'."""
    return {
        "rows": 0, "way": way, "text_bytes": 0, "lonlat": False, "dates": False, "chunks": 0,
        "moments": None,
    }  # fmt: skip


def append(folder: Path, state: Fields, samples: Samples, chunked: bool) -> Fields:
    """Add samples to the files in a folder; returns what the journal must say after it.

    Raises:
        Misfit: if numbers must be kept in another way from the first row on.
    """
    bands, done = samples.bands, state["rows"]
    ways = candidates(bands)
    way, numbers = state["way"], None
    while (numbers := ways[way].encode(samples.pixels)) is None:
        way += 1  # the last takes anything
    if way != state["way"] and done:
        raise Misfit
    if chunked:
        chunks.write_chunk(folder, state["chunks"], numbers)
    else:
        put(folder / "pixels.npy", done, numbers)
    after = state | {
        "rows": done + len(samples),
        "way": way,
        "chunks": state["chunks"] + chunked,
        "text_bytes": texts(folder / "ids", done, state["text_bytes"], samples.ids),
    }
    known = {"lonlat": samples.lonlat, "dates": None if samples.dates is None else _days(samples)}
    for name, column in known.items():
        if column is None and not state[name]:
            continue
        blank: NDArray[Any] = (
            np.full((BLANK_ROWS, 2), np.nan) if name == "lonlat" else np.zeros(BLANK_ROWS, "S10")
        )
        if not state[name]:  # rows before these have none
            for start in range(0, done, BLANK_ROWS):
                put(folder / f"{name}.npy", start, blank[: min(BLANK_ROWS, done - start)])
        if column is None:
            column = np.resize(blank, (len(samples), *blank.shape[1:]))
        put(folder / f"{name}.npy", done, column.astype(blank.dtype, copy=False))
        after[name] = True
    moments = Moments.of(samples.pixels)
    if state["moments"] is not None:
        moments = Moments.from_fields(state["moments"]) + moments
    return after | {"moments": moments.as_fields()}


def texts(path: Path, done: int, end: int, values: NDArray[np.str_]) -> int:
    """Add texts to a column of them; returns where the last ends."""
    coded = [text.encode() for text in values.tolist()]
    ends = end + np.cumsum([len(one) for one in coded], dtype=np.int64)
    put(path.with_name(f"{path.name}-text.npy"), end, np.frombuffer(b"".join(coded), np.uint8))
    put(path.with_name(f"{path.name}.npy"), done, ends)
    return int(ends[-1]) if len(ends) else end


def _days(samples: Samples) -> NDArray[np.bytes_]:
    """Dates as ten bytes each."""
    assert samples.dates is not None
    try:
        np.asarray(samples.dates[samples.dates != ""], "M8[D]")
        kept = samples.dates.astype("S10")
    except ValueError:
        kept = np.empty(0, "S10")
    if not np.array_equal(kept.astype(np.str_), samples.dates):
        raise ValueError(
            f"{samples.sensor} ({samples.ids[0]}): dates must be days like 2020-07-15 or empty; correct "
            "them in the source"
        )
    return kept


def checked(samples: Samples, what: str) -> Samples:
    """Samples that are what they should be."""
    if samples.pixels.dtype != np.float32:
        raise ValueError(f"{what} gives pixels of {samples.pixels.dtype}, not float32")
    if not np.isfinite(samples.pixels).all():
        bad = samples.ids[~np.isfinite(samples.pixels).all(axis=(1, 2, 3))][0]
        raise ValueError(f"{what}, sample {bad} holds a value that is not finite; fill or drop it")
    n, lonlat, dates = len(samples), samples.lonlat, samples.dates
    if lonlat is not None and (
        lonlat.shape != (n, 2) or not (np.isnan(lonlat) | (np.abs(lonlat) <= (360, 90))).all()
    ):
        raise ValueError(f"{what}: lonlat must be a longitude and latitude per sample, in degrees")
    if dates is not None and dates.shape != (n,):
        raise ValueError(f"{what}: dates must be one per sample")
    return samples
