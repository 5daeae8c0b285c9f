"""Trajectories that can be continued: each frame carries its step, momenta and results.

`.traj` keeps positions and momenta exactly; `.xyz` and `.extxyz` to eight decimals, readable by anything.
"""

import io
import os
from pathlib import Path
from typing import Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import read_xyz, write_xyz
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from physicsml_ase.conventions import InputError

STEP = "step"
"""Key of `Atoms.info` under which a frame carries its step."""
TEXT = (".xyz", ".extxyz")


class Writer(Protocol):
    """Takes frames one by one; each is in the file when `write` returns."""

    def write(self, atoms: Atoms) -> None:
        """Append a frame."""

    def close(self) -> None:
        """Close the file."""


class _TextWriter:
    def __init__(self, path: Path, append: bool) -> None:
        self.stream = path.open("a" if append else "w", encoding="utf-8")

    def write(self, atoms: Atoms) -> None:
        write_xyz(self.stream, atoms)
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def check_name(path: Path) -> None:
    """Raise `InputError` for a file that no trajectory can be written to."""
    if path.suffix not in (*TEXT, ".traj"):
        raise InputError(f"{path}: a trajectory's name ends in .traj, .xyz or .extxyz")


def open_writer(path: Path, append: bool) -> Writer:
    """A file to which frames go, made anew or continued."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return (
        _TextWriter(path, append) if path.suffix in TEXT else TrajectoryWriter(path, "a" if append else "w")
    )


def frame(atoms: Atoms, step: int) -> Atoms:
    """A copy with its step and the results at hand, but without the calculator."""
    copy = atoms.copy()
    copy.info[STEP] = step
    results = {k: v for k, v in getattr(atoms.calc, "results", {}).items() if k in all_properties}
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def last_frame(path: Path) -> Atoms | None:
    """The last complete frame of a trajectory, None where there is none yet.

    A frame that was cut when its writer was killed is removed from the file. Raises `InputError` for a file
    that can not be continued.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        found = _last_of_text(path) if path.suffix in TEXT else _last_of_traj(path)
    except InputError:
        raise
    except Exception as error:  # ASE's readers raise anything for damaged files
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path} can not be read, so not continued ({reason}); {OTHERWISE}") from None
    if found is not None and not (
        isinstance(found.info.get(STEP), int | np.integer) and found.has("momenta")
    ):
        raise InputError(f"{path} was not written by md, so can not be continued; {OTHERWISE}")
    return found


OTHERWISE = "name another trajectory, or overwrite it with restart=False (--no-restart)"


def _is_whole(atoms: Atoms) -> bool:
    """A frame of ours, to its end: `info`, with the step, is written last."""
    return isinstance(atoms.info.get(STEP), int | np.integer) and atoms.has("momenta")


def _last_of_traj(path: Path) -> Atoms | None:
    last = None
    with TrajectoryReader(path) as reader:
        count = len(reader)
        for k in range(count - 1, -1, -1):
            try:
                last = reader[k]
            except Exception:  # a damaged frame raises anything; the one before it is good
                continue
            # interrupted while it wrote, the writer leaves the last frame without its end
            if _is_whole(last):
                break
        else:
            return last
    if k < count - 1:
        _keep_first(path, k + 1)
    return last


def _keep_first(path: Path, count: int) -> None:
    """Write the first frames of a .traj anew, beside it and then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with TrajectoryReader(path) as reader, TrajectoryWriter(beside, "w") as writer:
        for k in range(count):
            writer.write(reader[k])
    os.replace(beside, path)


def _last_of_text(path: Path) -> Atoms | None:
    """Cuts the file after its last complete frame and reads that."""
    start = end = 0
    with path.open("r+b") as stream:
        while (line := stream.readline()).endswith(b"\n"):
            rows = [stream.readline() for _ in range(int(line) + 1)]
            if not rows[-1].endswith(b"\n"):
                break
            start, end = end, stream.tell()
        stream.truncate(end)
        stream.seek(start)
        text = stream.read(end - start).decode()
    if not text:
        return None
    (atoms,) = read_xyz(io.StringIO(text), slice(None))
    return atoms
