"""Pixels of a packed store in chunks for object storage, through the litdata library (optional).

A block's folder ``pixels/`` holds ``chunk-0-K.bin`` and an ``index.json`` as litdata reads them; one item
is the bytes of one image. litdata is imported when pixels are written or read, and nothing else is
asked of it than bytes: an index that names another format, which might unpickle, is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMES = ("s3://", "gs://", "azure://", "r2://", "local:")
"""Where litdata reads chunks from; ``local:`` is a folder that it treats like the others."""

_INDEX = "index.json"
_LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'  # an item is one value


def need_litdata() -> None:
    """Say at once if litdata is not there."""
    if find_spec("litdata") is None:
        raise ValueError("format=litdata needs the litdata library; pip install gfmsum[litdata]")


def names(folder: str, count: int) -> tuple[str, ...]:
    """The files of a block's pixels: the index and each chunk."""
    return (
        f"{folder}/pixels/{_INDEX}",
        *(f"{folder}/pixels/chunk-0-{k}.bin" for k in range(count)),
    )


# Writing.


def write_chunk(folder: Path, k: int, numbers: NDArray[Any]) -> None:
    """Write images (n, ...) as chunk ``k`` of a block, over what a stopped writer left of it."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder / "pixels"), chunk_size=len(numbers), chunk_index=k)
    for row, image in enumerate(numbers):
        writer.add_item(row, image.tobytes())
    written = Path(writer.write_chunk(on_done=True))
    with written.open("rb+") as file:
        os.fsync(file.fileno())
    if written.name != f"chunk-0-{k}.bin":
        raise ValueError(
            f"{written} is named for one of several processes; pack in a process of its own"
        )


def write_index(folder: Path, count: int) -> list[int]:
    """Write the index of a block's chunks; returns how many images each holds."""
    files = [folder / "pixels" / f"chunk-0-{k}.bin" for k in range(count)]
    rows = [_held(file) for file in files]
    index = {
        "chunks": _entries(rows, [file.stat().st_size for file in files]),
        "config": _config(max(rows)),
    }
    with (folder / "pixels" / _INDEX).open("w") as file:
        json.dump(index, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    return rows


def _held(chunk: Path) -> int:
    """How many items a chunk holds: its first number."""
    with chunk.open("rb") as file:
        return int.from_bytes(file.read(4), "little")


def _entries(rows: Sequence[int], sizes: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"chunk_bytes": size, "chunk_size": n, "dim": None, "filename": f"chunk-0-{k}.bin"}
        for k, (n, size) in enumerate(zip(rows, sizes, strict=True))
    ]


def _config(most: int) -> dict[str, Any]:
    """What litdata's own writer says of items that are bytes; it gives no time, as litdata does."""
    return {
        "chunk_bytes": None, "chunk_size": most, "compression": None, "compression_batch_size": None,
        "compression_level": None, "data_format": ["bytes"], "data_spec": _LEAF, "encryption": None,
        "ipc_compression": None, "item_loader": "PyTreeLoader", "types": "bytes",
    }  # fmt: skip


# Reading.


def index_problem(path: Path, rows: Sequence[int], sizes: Sequence[int]) -> str | None:
    """What is wrong with a block's index, by the rows and bytes of each chunk."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as wrong:
        found = str(wrong)
    if found == {"chunks": _entries(rows, sizes), "config": _config(max(rows))}:
        return None
    return f"{path} is not the index of these chunks; fetch the file again, or pack the store anew"


def is_remote(root: str) -> bool:
    return root.startswith(SCHEMES)


class Remote:
    """A store at an address. Its small files are copied into the user's cache, by the store's digest."""

    def __init__(self, root: str) -> None:
        need_litdata()
        self.root = root.rstrip("/")
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._cache = Path(home) / "gfmsum" / "stores"
        self.folder = self._cache

    def settle(self, seal: str) -> None:
        """From now on, copies are those of the store with this digest."""
        self.folder = self._cache / seal[:16]

    def manifest(self) -> bytes:
        """The bytes of the manifest as they are now."""
        with tempfile.TemporaryDirectory() as folder:
            return self._copy("manifest.json", Path(folder)).read_bytes()

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """A file's copy, fetched and checked if it is not there yet."""
        path = self.folder / name
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".fetch") as folder:
                copy = self._copy(name, Path(folder))
                with copy.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if copy.stat().st_size != size or found != sha256:
                    raise ValueError(
                        f"{self.root}/{name} is not the file that the manifest names; pack the store anew"
                    )
                copy.replace(path)
        return path

    def _copy(self, name: str, folder: Path) -> Path:
        from litdata.streaming.downloader import get_downloader

        path = folder / Path(name).name
        try:
            get_downloader(self.root, str(folder), []).download_file(
                f"{self.root}/{name}", str(path)
            )
            path.stat()
        except Exception as wrong:  # of whatever kind the storage's client has
            raise _failure(f"{self.root}/{name}", wrong) from None
        return path


def _failure(what: str, wrong: Exception) -> ValueError:
    said = " ".join(str(wrong).split())[:200] or type(wrong).__name__
    return ValueError(f"{what} cannot be read ({said}); see python -m gfmsum.data check")


class Chunks:
    """The images of a block, read by row.

    Args:
        root: of the store.
        folder: of the block.
        rows: of each chunk.
        sizes: in bytes, of each chunk.
        image: type and shape of one.
    """

    def __init__(
        self,
        root: Remote | str,
        folder: str,
        rows: tuple[int, ...],
        sizes: tuple[int, ...],
        image: tuple[str, tuple[int, ...]],
    ) -> None:
        self._root, self._folder, self._image = root, folder, image
        self._rows, self._sizes = rows, sizes
        self._starts = np.array([0, *accumulate(rows)])
        self._opened: tuple[int, Any] | None = None

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The numbers (n, ...) of some images."""
        need_litdata()
        from litdata.streaming.sampler import ChunkedIndex

        dtype, shape = self._image
        out = np.empty((len(rows), *shape), dtype)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for i in np.argsort(rows, kind="stable").tolist():  # chunk by chunk
            # Said with its chunk: litdata would look through the list of all of them.
            at = ChunkedIndex(int(rows[i]), int(which[i]))
            try:
                out[i] = np.frombuffer(self._dataset[at], dtype).reshape(shape)
            except Exception as wrong:  # of whatever kind storage and library have
                raise _failure(f"{self._where}/pixels, image {rows[i]}", wrong) from None
        return out

    @property
    def _where(self) -> str:
        root = self._root.root if isinstance(self._root, Remote) else self._root
        return f"{root.rstrip('/')}/{self._folder}"

    @property
    def _dataset(self) -> Any:
        """litdata's reader, one for each process: clients of storage do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self._open()
        return self._opened[1]

    def _open(self) -> Any:
        from litdata import StreamingDataset
        from litdata.streaming.item_loader import PyTreeLoader

        # By default it would decode hundreds of neighbours of every image.
        loader = PyTreeLoader(batch_decode=False)
        loader.set_mmap_allowed_chunks(set(range(len(self._rows))))
        cache = self._root.folder / self._folder if isinstance(self._root, Remote) else None
        dataset = StreamingDataset(
            f"{self._where}/pixels",
            cache_dir=None if cache is None else str(cache),
            item_loader=loader,
            batch_decode=False,
        )
        # The index decides how bytes are decoded, and may just have been fetched.
        index = Path(dataset.input_dir.path) / _INDEX
        if index_problem(index, self._rows, self._sizes):
            raise ValueError("its index.json is not the index of these chunks")
        return dataset

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}
