"""Frames held in memory: Atoms that the user gives, and files of formats without random access."""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic
from ase.io import iread

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.files import File, file_hash, find_file, one_line
from physicsml_ase.data.sources.source import Source

log = logging.getLogger("physicsml_ase")
MOVED = 1e-3
"""Distance [Å] that is no rounding."""
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""In how Python writes an object that says nothing of itself."""


@dataclass(frozen=True, eq=False)
class _Held:
    atoms: tuple[Atoms, ...]
    noun: str  # what the messages call a structure, with the file's name if there is one
    file: File | None = None

    def where(self, key: int) -> str:
        return f"{self.noun} {key}"

    def read(self, key: int) -> Atoms:
        return self.atoms[key]

    def content_hash(self) -> str:
        """Of the file where there is one, else of all that the structures hold."""
        if self.file:
            return file_hash(self.file)
        digest = hashlib.blake2b(digest_size=16)
        for atoms in self.atoms:
            results = getattr(atoms.calc, "results", {})
            for part in (atoms.cell.array, atoms.pbc, atoms.arrays, atoms.info, results):
                _feed(digest, part)
        return digest.hexdigest()


def hold_atoms(atoms: Sequence[Atoms]) -> Source:
    """A source of the user's own Atoms; the same objects, but for live calculators (see `_with_results`)."""
    if not atoms:
        raise InputError("no structures: the list is empty")
    moved = [k for k, a in enumerate(atoms) if _was_moved(a)]
    if moved:
        log.warning(
            "the atoms of %d of %d structures were moved after their energies and forces were computed, which are "
            "taken as they are: structure %d first",
            *(len(moved), len(atoms), moved[0]),
        )
    frames = _Held(tuple(_with_results(a) for a in atoms), "structure")
    return Source(f"{len(atoms)} Atoms", frames, np.arange(len(atoms), dtype=np.int64))


def hold_file(name: str) -> Source:
    """All structures of a file in any format that `ase.io` reads."""
    file = find_file(name)
    try:
        atoms = tuple(iread(file.path, ":", parallel=False))
    except Exception as error:  # ASE's many readers raise anything
        raise InputError(f"{name} can not be read by ase.io: {one_line(error)}") from None
    return from_file(file, atoms, "frame")


def from_file(file: File, atoms: tuple[Atoms, ...], noun: str) -> Source:
    """A source of structures that were read from a file at once."""
    if not atoms:
        raise InputError(f"no structures in {file.name}")
    frames = _Held(atoms, f"{file.name} {noun}", file)
    return Source(file.name, frames, np.arange(len(atoms), dtype=np.int64))


def _with_results(atoms: Atoms) -> Atoms:
    """Atoms whose calculator is plain results, so that they pickle and do not change behind our back.

    A live calculator that several Atoms share has results for the one it saw last only; for the others
    there are none.
    """
    calc = atoms.calc
    if calc is None or isinstance(calc, SinglePointCalculator):
        return atoms
    frozen = atoms.copy()
    if isinstance(calc, BaseCalculator) and calc.results and not calc.check_state(atoms):
        known = {name: value for name, value in calc.results.items() if name in all_properties}
        frozen.calc = SinglePointCalculator(frozen, **known)
        frozen.calc.results |= {
            k: v for k, v in calc.results.items() if k not in known
        }  # labels of other names
    return frozen


def _was_moved(atoms: Atoms) -> bool:
    """Whether atoms are elsewhere than when their results were computed, but for a shift or images of all of them."""
    then = getattr(atoms.calc, "atoms", None)
    if not isinstance(atoms.calc, SinglePointCalculator) or then is None or not atoms.calc.results:
        return False
    changes = atoms.calc.check_state(atoms)
    if not {"positions", "numbers", "cell"} & set(changes):
        return False
    periodic = atoms.pbc & then.pbc
    if "numbers" in changes or np.abs((atoms.cell.array - then.cell.array)[periodic]).max(initial=0) > MOVED:
        return True
    moves = atoms.positions - then.positions
    moves, lengths = find_mic(moves - moves[:1], atoms.cell, periodic)
    return bool(lengths.max() > MOVED)


def _feed(digest: "hashlib.blake2b", value: object) -> None:
    """Add a value to the hash: numbers by their bytes, what holds others one by one, all else by how it is
    written, without the address of an object, which is another one in every process."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(f"{key}:".encode())
            _feed(digest, value[key])
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        digest.update(f"{type(value).__name__} of {len(value)}:".encode())
        for item in value:
            _feed(digest, item)
    else:
        written = repr(sorted(value, key=repr) if isinstance(value, set | frozenset) else value)
        digest.update(f"{ADDRESS.sub('', written)};".encode())
