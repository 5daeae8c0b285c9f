"""A source: structures by position, read when asked for, wherever they are kept.

`Frames` is what a file format provides: one structure by its key (a frame number or a row id). `Source` is
the keys chosen from it, in order. Slices, splits and shuffles are then other choices of keys from the same
frames, and a message can always name the frame of the user's own file. Both are plain data: they pickle,
and hold no file open (see `files.handle`).
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from physicsml_ase.conventions import InputError


class Frames(Protocol):
    """Where structures are kept, each under an integer key."""

    def where(self, key: int) -> str:
        """The structure's place in the user's words: 'train.xyz frame 7'."""

    def read(self, key: int) -> Atoms:
        """The structure, with its labels."""

    def content_hash(self) -> str:
        """Hash of all that is kept, whatever it is called."""


@dataclass(frozen=True, eq=False)
class Source:
    """A sequence of structures; `source[i]` reads one, nothing else is held in memory."""

    name: str
    frames: Frames
    keys: NDArray[np.int64]  # (len,)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Atoms:
        key = self._key(i)
        atoms = self.frames.read(key)
        if len(atoms) == 0:
            raise InputError(f"{self.frames.where(key)}: has no atoms; remove it")
        return atoms

    def __iter__(self) -> Iterator[Atoms]:
        return (self[i] for i in range(len(self)))

    def where(self, i: int) -> str:
        """The place of structure i in the user's own file, for messages."""
        return self.frames.where(self._key(i))

    def subset(self, indices: ArrayLike) -> "Source":
        """The structures at `indices`, in that order."""
        chosen = self.keys[np.asarray(indices, dtype=np.int64)]
        return Source(self.name, self.frames, chosen)

    def content_hash(self) -> str:
        """Hash of the content of the file or list and of which structures are chosen from it."""
        digest = hashlib.blake2b(self.frames.content_hash().encode(), digest_size=16)
        digest.update(self.keys.astype("<i8").tobytes())
        return digest.hexdigest()

    def files(self) -> list[Path]:
        """The files that it reads from."""
        if isinstance(self.frames, _Joined):
            return [path for source in self.frames.sources for path in source.files()]
        file = getattr(self.frames, "file", None)
        return [] if file is None else [Path(file.path)]

    def reads(self, path: str | Path) -> bool:
        """Whether that is one of the files that it reads from."""
        return Path(path).exists() and any(file.exists() and file.samefile(path) for file in self.files())

    def _key(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.name}: structure {i} of {len(self)}")
        return int(self.keys[i])


@dataclass(frozen=True, eq=False)
class _Joined:
    """Frames of several sources, one after the other; the key is the position in the whole."""

    sources: tuple[Source, ...]
    starts: list[int]

    def where(self, key: int) -> str:
        source, i = self._find(key)
        return source.where(i)

    def read(self, key: int) -> Atoms:
        source, i = self._find(key)
        return source[i]

    def content_hash(self) -> str:
        joined = " ".join(source.content_hash() for source in self.sources)
        return hashlib.blake2b(joined.encode(), digest_size=16).hexdigest()

    def _find(self, key: int) -> tuple[Source, int]:
        k = bisect_right(self.starts, key) - 1
        return self.sources[k], key - self.starts[k]


def concat(sources: Sequence[Source]) -> Source:
    """One source after the other."""
    if len(sources) == 1:
        return sources[0]
    ends = np.cumsum([len(source) for source in sources])
    frames = _Joined(tuple(sources), [0, *ends[:-1].tolist()])
    shown = ", ".join(source.name for source in sources[:3])
    name = shown if len(sources) <= 3 else f"{shown} and {len(sources) - 3} more"
    return Source(name, frames, np.arange(ends[-1], dtype=np.int64))
