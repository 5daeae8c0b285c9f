"""Frames of an ASE trajectory (.traj), each read by its place in the file."""

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.io.trajectory import TrajectoryReader

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.files import File, file_hash, find_file, handle, one_line
from physicsml_ase.data.sources.source import Source


@dataclass(frozen=True, eq=False)
class _TrajectoryFrames:
    file: File

    def where(self, key: int) -> str:
        return f"{self.file.name} frame {key}"

    def read(self, key: int) -> Atoms:
        try:
            return handle(TrajectoryReader, self.file)[key]
        except Exception as error:  # ASE's reader of damaged files raises anything
            raise InputError(f"{self.where(key)} can not be read: {one_line(error)}") from None

    def content_hash(self) -> str:
        return file_hash(self.file)


def open_trajectory(name: str) -> Source:
    """The frames of an ASE trajectory; its first and last are read, so that a cut file is refused."""
    file = find_file(name)
    try:
        count = len(handle(TrajectoryReader, file))
    except Exception as error:
        raise InputError(f"{name} can not be read as an ASE trajectory: {one_line(error)}") from None
    if not count:
        raise InputError(f"no structures in {name}")
    frames = _TrajectoryFrames(file)
    for key in {0, count - 1}:
        frames.read(key)
    return Source(name, frames, np.arange(count, dtype=np.int64))
