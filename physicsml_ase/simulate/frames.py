"""Trajectories that can be continued: each frame carries its step, momenta and results.

`.traj` keeps positions and momenta exactly; `.xyz` and `.extxyz` to eight decimals, readable by anything.
"""

import io
import logging
import os
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError, all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import read_xyz, write_xyz
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.files import naming
from physicsml_ase.data.sources.keys import drop_labels

logger = logging.getLogger("physicsml_ase")

STEP = "step"
"""Key of `Atoms.info` under which a frame carries its step."""
TEXT = (".xyz", ".extxyz")

TIMESTEP = "timestep_fs"
"""Likewise its time step, in dynamics."""


class Writer(Protocol):
    """Takes frames one by one; each is in the file when `write` returns."""

    def write(self, atoms: Atoms) -> None:
        """Append a frame."""

    def close(self) -> None:
        """Close the file."""


class Last(NamedTuple):
    """Where a trajectory is continued."""

    atoms: Atoms
    keep: int  # what is whole up to its end: bytes of a text, frames of a .traj


class _TextWriter:
    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.stream = path, path.open("a" if keep else "w", encoding="utf-8")
        self.stream.truncate(keep)

    def write(self, atoms: Atoms) -> None:
        with naming(self.path):
            write_xyz(self.stream, atoms)
            self.stream.flush()

    def close(self) -> None:
        with naming(self.path):
            self.stream.close()


class _TrajWriter:
    def __init__(self, path: Path, keep: int) -> None:
        if keep:
            _keep_first(path, keep)
        self.path, self.file = path, TrajectoryWriter(path, "a" if keep else "w")

    def write(self, atoms: Atoms) -> None:
        with naming(self.path):
            self.file.write(atoms)

    def close(self) -> None:
        with naming(self.path):
            self.file.close()


def check_name(path: Path) -> None:
    """Raise `InputError` for a file that no trajectory can be written to."""
    if path.suffix not in (*TEXT, ".traj"):
        raise InputError(f"{path}: a trajectory's name ends in .traj, .xyz or .extxyz")


def open_writer(path: Path, keep: int = 0) -> Writer:
    """A file to which frames go, made anew, or cut to what is to `keep` (see `Last`) and continued."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _TextWriter(path, keep) if path.suffix in TEXT else _TrajWriter(path, keep)


class _Results(SinglePointCalculator):
    """Of a structure that does not change until it is written: to compare it each time that a writer asks for one of
    the properties takes as long as two steps of a molecule."""

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Nothing changed."""
        return []


def frame(atoms: Atoms, step: int, timestep_fs: float | None = None) -> Atoms:
    """A copy with its step, its time step and the results at hand, but without the calculator."""
    copy = atoms.copy()
    copy.info[STEP] = step
    if timestep_fs is not None:
        copy.info[TIMESTEP] = timestep_fs
    results = {k: v for k, v in getattr(atoms.calc, "results", {}).items() if k in all_properties}
    copy.calc = _Results(copy, **results)
    return copy


def check_gives_forces(atoms: Atoms, calculator: BaseCalculator) -> None:
    """Raise `InputError` for a model that has nothing to move atoms by; computes energy and forces."""
    try:
        atoms.get_potential_energy()
        atoms.get_forces()
    except PropertyNotImplementedError:
        given = ", ".join(getattr(calculator, "implemented_properties", ())) or "nothing"
        raise InputError(f"the model gives no energy and forces to move atoms by, but {given}") from None


def keys_seen(calculator: BaseCalculator) -> tuple[str, ...]:
    """Keys of `Atoms.info` that a calculator's model sees; none of ASE's own calculators."""
    potential = getattr(calculator, "potential", None)
    return () if potential is None else tuple(potential.domain.attrs)


def without_labels(atoms: Atoms, calculator: BaseCalculator) -> Atoms:
    """A copy to be moved: labels of where its atoms are now are not those of where they will be."""
    potential = getattr(calculator, "potential", None)
    names = [label.key for label in getattr(potential, "labels", ())]
    copy = atoms.copy()
    for name in ("key_value_pairs", "data"):  # a copy has the same ones
        if isinstance(copy.info.get(name), dict):
            copy.info[name] = dict(copy.info[name])
    dropped = drop_labels(copy, names, keys_seen(calculator))
    if dropped:
        logger.info("%s of the structure given: not kept, as its atoms move", ", ".join(dropped))
    return copy


def last_frame(path: Path) -> Last | None:
    """The last complete frame of a trajectory, None where there is none yet; the file is only read.

    After it there may be a frame that was cut when its writer was killed. Raises `InputError` for a file
    that can not be continued.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    try:
        last = _last_of_text(path) if path.suffix in TEXT else _last_of_traj(path)
    except Exception as error:  # ASE's readers raise anything for damaged files
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path} can not be read, so not continued ({reason}); {OTHERWISE}") from None
    if last is None:
        raise InputError(f"{path} was not written by md, so can not be continued; {OTHERWISE}")
    return last


def first_frame(path: Path) -> Atoms | None:
    """The first frame of a trajectory that has a last one."""
    if path.suffix not in TEXT:
        with TrajectoryReader(path) as reader:
            return reader[0]
    with path.open(encoding="utf-8") as stream:
        (atoms,) = read_xyz(stream, 0)
    return atoms


OTHERWISE = "name another trajectory, or overwrite it with restart=False (--no-restart)"


def _is_whole(atoms: Atoms) -> bool:
    """A frame of ours, to its end: `info`, with the step, is written last."""
    return isinstance(atoms.info.get(STEP), int | np.integer) and atoms.has("momenta")


def _last_of_traj(path: Path) -> Last | None:
    """The last whole frame of ours, None where the file ends in others."""
    with TrajectoryReader(path) as reader:
        for k in range(len(reader) - 1, -1, -1):
            try:
                last = reader[k]
            except Exception:  # a damaged frame raises anything; the one before it is good
                continue
            if _is_whole(last):
                return Last(last, k + 1)
            # interrupted while it writes, the writer leaves its last frame without an end; more are not ours
            if k < len(reader) - 1:
                return None
    return None


def _keep_first(path: Path, count: int) -> None:
    """Drop the frames of a .traj after the first `count`: written anew, beside it and then renamed."""
    with TrajectoryReader(path) as reader:
        if len(reader) == count:
            return
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with TrajectoryWriter(beside, "w") as writer:
            for k in range(count):
                writer.write(reader[k])
    os.replace(beside, path)


def _last_of_text(path: Path) -> Last | None:
    """The last whole frame, None where it is not ours."""
    start = end = 0
    with path.open("rb") as stream:
        while (line := stream.readline()).endswith(b"\n"):
            rows = [stream.readline() for _ in range(int(line) + 1)]
            if not rows[-1].endswith(b"\n"):
                break
            start, end = end, stream.tell()
        stream.seek(start)
        text = stream.read(end - start).decode()
    if not text:
        return None
    (atoms,) = read_xyz(io.StringIO(text), slice(None))
    return Last(atoms, end) if _is_whole(atoms) else None
