"""Frames of an xyz or extxyz file, plain or compressed, through an index of where they begin."""

import bz2
import gzip
import logging
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.files import File, file_hash, find_file, handle, one_line
from physicsml_ase.data.sources.source import Source
from physicsml_ase.data.sources.xyz_frame import c_parser, parse_frame, same_atoms
from physicsml_ase.data.sources.xyz_index import CHUNK, index_frames

log = logging.getLogger("physicsml_ase")

COMPRESSED: dict[str, Callable[[str], BinaryIO]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
"""A compressed file has no random access; its text is held in memory, in every process that reads it."""


@dataclass(frozen=True, eq=False)
class _XyzFrames:
    file: File
    offsets: NDArray[np.int64]  # (frames + 1,) bytes
    fast: bool

    def where(self, key: int) -> str:
        return f"{self.file.name} frame {key}"

    def read(self, key: int) -> Atoms:
        return self.parse(key, self.fast)

    def content_hash(self) -> str:
        return file_hash(self.file)

    def block(self, key: int) -> bytes:
        """The text of one frame."""
        start, end = self.offsets[key], self.offsets[key + 1]
        try:
            stream = handle(_open_bytes, self.file)
            stream.seek(int(start))
            block = stream.read(int(end - start))
            int(block.split(b"\n", 1)[0])
        except (OSError, ValueError):
            raise InputError(f"{self.where(key)}: the file has changed since it was opened") from None
        return block

    def parse(self, key: int, fast: bool) -> Atoms:
        return parse_frame(self.block(key), self.where(key), lambda: self._line(key), fast)

    def _line(self, key: int) -> int:
        """1-based number of the frame's first line; counted only when a message needs it."""
        stream = handle(_open_bytes, self.file)
        stream.seek(0)
        left, lines = int(self.offsets[key]), 1
        while left > 0 and (chunk := stream.read(min(left, CHUNK))):
            lines += chunk.count(b"\n")
            left -= len(chunk)
        return lines


def open_xyz(name: str, limit: int | None = None) -> Source:
    """The frames of an xyz file, the first `limit` of them when given; a file that was cut is refused."""
    file = find_file(name)
    try:
        stream = handle(_open_bytes, file)
        stream.seek(0)
        offsets = index_frames(stream, name, limit)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"{name} can not be read: {one_line(error)}") from None
    frames = _XyzFrames(file, offsets, fast=c_parser() is not None)
    count = len(offsets) - 1
    for key in {0, count - 1}:
        plain = frames.parse(key, fast=False)
        if frames.fast and not same_atoms(plain, frames.parse(key, fast=True)):
            log.info("%s: ase-extxyz reads it differently from ASE, whose reader is used", name)
            frames = _XyzFrames(file, offsets, fast=False)
    _refuse_cut_line(frames, count - 1)
    return Source(name, frames, np.arange(count, dtype=np.int64))


def _open_bytes(path: str) -> BinaryIO:
    for ending, open_ in COMPRESSED.items():
        if path.lower().endswith(ending):
            with open_(path) as stream:
                return BytesIO(stream.read())
    return open(path, "rb")


def _refuse_cut_line(frames: _XyzFrames, key: int) -> None:
    """Refuse a file cut within its very last number, which can still be read: its line is the one short one."""
    block = frames.block(key)
    widths = [len(row.rstrip()) for row in block.split(b"\n")[2:]]
    if block.endswith(b"\n") or len(widths) < 3:
        return
    if len(set(widths[:-1])) == 1 and widths[-1] < widths[0]:
        raise InputError(
            f"{frames.where(key)}: the file ends within the line of atom {len(widths) - 1}, "
            "which is shorter than all others of the frame"
        )
