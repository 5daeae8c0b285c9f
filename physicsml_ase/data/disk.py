"""A store in an HDF5 file: the flat arrays of `flat`, read by contiguous blocks.

In memory are 40 bytes for each structure and the few blocks that were read last. Structures that are to be
shuffled are written in a random order, so that a block is a random draw of them. S structures.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError, Level
from physicsml_ase.data.batching import WINDOW
from physicsml_ase.data.flat import LEVELS, Flat, concat
from physicsml_ase.graph import Graph

Ints = NDArray[np.int64]

FORMAT = 1
BLOCK_BYTES = 2 << 20
"""Structures are read together in blocks of about this size."""
MAX_BLOCK = 4096
CHUNK_BYTES = 1 << 17
"""What HDF5 reads at the least."""
CACHED_BLOCKS = 2 * WINDOW
"""Where two windows meet, batches have structures of both."""


class Damaged(Exception):
    """The file is not what was written."""


class DiskStore:
    """Graphs in the file `path`; opened anew in each process, pickled as its path."""

    def __init__(self, path: Path) -> None:
        """Raises `Damaged`, `OSError`, `KeyError`, `ValueError` or `RuntimeError` where the file can not be used."""
        self.path = path
        self._blocks: OrderedDict[int, Flat] = OrderedDict()
        self._file, self._pid = _open(path), os.getpid()
        _refuse_crafted(self._file)
        of = self._file["structure"]
        self.frames, self.num_atoms, self.num_edges = (of[n][:] for n in ("frame", "num_atoms", "num_edges"))
        self.block = int(self._file.attrs["block"])
        if self._file.attrs["format"] != FORMAT or self._file.attrs["sizes"] != self._fingerprint():
            raise Damaged
        if min(c.min(initial=0) for c in (self.frames, self.num_atoms, self.num_edges)) < 0 or self.block < 1:
            raise Damaged
        for level in LEVELS:
            rows = int(self.starts[level][-1])
            if any(len(array) != rows for array in self._file[level].values()):
                raise Damaged

    def __len__(self) -> int:
        return len(self.frames)

    def __reduce__(self) -> tuple[type["DiskStore"], tuple[Path]]:
        return DiskStore, (self.path,)

    @cached_property
    def starts(self) -> dict[Level, Ints]:
        """First row of each structure at each level, and the end, (S + 1,)."""
        sizes = (np.ones_like(self.frames), self.num_atoms, self.num_edges)
        return {level: np.concatenate([[0], np.cumsum(size)]) for level, size in zip(LEVELS, sizes)}

    def read(self, indices: Ints) -> Graph:
        """The structures at `indices` as one batch, in that order."""
        indices = np.asarray(indices)
        block = indices // self.block
        by_block = np.argsort(block, kind="stable")
        parts = []
        for number in np.unique(block).tolist():
            within = indices[by_block[block[by_block] == number]] - number * self.block
            parts.append(self._block(number).take(torch.from_numpy(within)))
        place = np.empty_like(by_block)
        place[by_block] = np.arange(len(by_block))
        return concat(parts).take(torch.from_numpy(place)).to_graph()

    def parts(self) -> Iterator[Flat]:
        """One pass over all structures, as they lie."""
        return (self._read(number) for number in range(-(-len(self) // self.block)))

    def atomic_numbers(self) -> Iterator[tuple[int, NDArray[np.uint8], Ints]]:
        """One pass over structures without the rest of them, a block at a time: the number of the first one, the
        atomic numbers of all their atoms, and where those of each structure end."""
        starts = self.starts["atom"]
        for first in range(0, len(self), self.block):
            rows = starts[first : first + self.block + 1]
            yield first, self._file["atom/atomic_numbers"][rows[0] : rows[-1]], rows[1:] - rows[0]

    def _block(self, number: int) -> Flat:
        if os.getpid() != self._pid:  # a fork: the file is the parent's
            self._file.close()
            self._file, self._pid = _open(self.path), os.getpid()
            self._blocks.clear()
        if number in self._blocks:
            self._blocks.move_to_end(number)
        else:
            self._blocks[number] = self._read(number)
            if len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return self._blocks[number]

    def _read(self, number: int) -> Flat:
        first, last = number * self.block, min((number + 1) * self.block, len(self))
        rows = {level: slice(int(starts[first]), int(starts[last])) for level, starts in self.starts.items()}
        try:
            return Flat(
                {
                    level: {
                        name: torch.from_numpy(array[rows[level]])
                        for name, array in self._file[level].items()
                    }
                    for level in LEVELS
                }
            )
        except (OSError, RuntimeError, ValueError):
            raise InputError(f"{self.path} is damaged; delete it, and it will be built again") from None

    def _fingerprint(self) -> str:
        return fingerprint(self.frames, self.num_atoms, self.num_edges)


def _open(path: Path) -> h5py.File:
    return h5py.File(
        path, "r", locking=False
    )  # it is never written to again; some file systems have no locks


def _refuse_crafted(file: h5py.File) -> None:
    """A cache holds its own numbers and nothing else: no links, no pieces of other files, no more than is stored."""
    for level in LEVELS:
        if file.get(level, getclass=True, getlink=True) is not h5py.HardLink:
            raise Damaged
        for name in file[level]:
            if file[level].get(name, getclass=True, getlink=True) is not h5py.HardLink:
                raise Damaged
            array = file[level][name]
            if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external:
                raise Damaged
            if (
                array.dtype.kind not in "iufb"
                or array.compression
                or array.nbytes > array.id.get_storage_size()
            ):
                raise Damaged


def fingerprint(*columns: Ints) -> str:
    """Hash of the columns by which everything else in a file is found."""
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(column.astype("<i8").tobytes())
    return digest.hexdigest()


class _Output:
    """A file for HDF5 to write to that never fails it: on a full disk HDF5 can neither close a file nor exit.

    After the first error nothing is written any more; `error` says what it was.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115  closed by `close`
        self.seek, self.tell, self.flush, self.close = (
            getattr(self._file, name) for name in ("seek", "tell", "flush", "close")
        )
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        """Write all of it, unless something failed before; its length in either case."""
        rest = memoryview(data)
        try:
            while len(rest) and self.error is None:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            self.error = error
        return len(data)

    def read(self, size: int) -> bytes:
        data = self._file.read(size) or b""
        return data if self.error is None else data.ljust(size, b"\0")

    def truncate(self, size: int) -> None:
        try:
            self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error


def write(path: Path, parts: Iterable[Flat]) -> None:
    """Write flat arrays to a new file, part by part; memory does not grow with their number."""
    with closing(_Output(path)) as output:
        with h5py.File(output, "w") as file:
            total = 0
            for part in parts:
                for level, name, array in part.items():
                    _append(file, f"{level}/{name}", array.numpy())
                if output.error is not None:
                    break
                total += part.nbytes
            else:
                of = file["structure"]
                columns = [of[name][:] for name in ("frame", "num_atoms", "num_edges")]
                mean = total / len(columns[0])
                file.attrs["block"] = int(np.clip(BLOCK_BYTES / mean, 1, MAX_BLOCK))
                file.attrs["format"] = FORMAT
                file.attrs["sizes"] = fingerprint(*columns)
        if output.error is not None:
            raise output.error


def _append(file: h5py.File, name: str, rows: NDArray[np.generic]) -> None:
    if name not in file:
        row = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
        file.create_dataset(
            name,
            shape=(0, *rows.shape[1:]),
            maxshape=(None, *rows.shape[1:]),
            dtype=rows.dtype,
            chunks=(max(1, CHUNK_BYTES // row), *rows.shape[1:]),
            fletcher32=True,  # a damaged chunk is an error when it is read
        )
    dataset = file[name]
    dataset.resize(len(dataset) + len(rows), axis=0)
    dataset[len(dataset) - len(rows) :] = rows
