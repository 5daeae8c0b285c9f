"""Structures with predictions in their calculator's place and the reference labels beside, as extxyz."""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_xyz
from numpy.typing import NDArray

from physicsml_ase.conventions import PROPERTIES, Label, Level, matrix_to_voigt
from physicsml_ase.data.sources.files import naming
from physicsml_ase.domain import Domain

Array = NDArray[np.float64]


def levels_of(labels: Sequence[Label]) -> dict[str, Level]:
    """Level of everything that a potential with these labels predicts."""
    levels = {name: known.level for name, known in PROPERTIES.items()} | {x.name: x.level for x in labels}
    return levels | {
        f"{name}_{kind}": level for name, level in levels.items() for kind in ("std", "uncertainty")
    }


def per_structure(
    values: Mapping[str, Array], labels: Sequence[Label], num_atoms: Sequence[int]
) -> Iterator[dict[str, Array]]:
    """A batch's values of structures and atoms, by structure: (...) and (n, ...). Edges are left out."""
    levels = levels_of(labels)
    end = 0
    for s, n in enumerate(num_atoms):
        start, end = end, end + n
        yield {
            name: np.asarray(value[s] if levels[name] == "structure" else value[start:end])
            for name, value in values.items()
            if levels[name] != "edge"
        }


def predicted_atoms(
    atoms: Atoms,
    results: Mapping[str, Array],
    reference: Mapping[str, Array],
    labels: Sequence[Label],
    domain: Domain,
) -> Atoms:
    """A copy with the predictions as calculator results and the reference labels as `ref_energy`, ....

    Cell and periodicity are those that the model saw: the domain's, where it overrides. What ASE has no place
    for goes to `info` and `arrays` under the label's name. Values that are not there, such as the stress of
    a molecule, are left out.
    """
    levels = levels_of(labels)
    copy = atoms.copy()
    if domain.cell is not None:
        copy.cell = domain.cell
    if domain.pbc is not None:
        copy.pbc = domain.pbc
    old = {label.key for label in labels} | set(all_properties) | set(results)
    copy.info = {k: v for k, v in copy.info.items() if k not in old and not isinstance(v, dict | None)}
    for key in old & set(copy.arrays):
        del copy.arrays[key]
    known = {}
    for name, value in results.items():
        unasked = name in ("energies", "energies_std") and "energies" not in {label.name for label in labels}
        if unasked or not np.isfinite(value).all() or (name == "stress" and not copy.pbc.any()):
            continue
        if name in all_properties:
            known[name] = _as_ase(name, value)
        else:
            _put(copy, levels[name], name, value)
    for name, value in reference.items():
        if np.isfinite(value).all():
            _put(copy, levels[name], f"ref_{name}", value)
    copy.calc = SinglePointCalculator(copy, **known)
    return copy


def write_frames(frames: Iterable[Atoms], path: Path) -> int:
    """Write structures one after the other, beside `path` and then renamed; returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    count = 0
    try:
        with naming(path), beside.open("w", encoding="utf-8") as stream:
            for atoms in frames:
                write_xyz(stream, atoms)
                count += 1
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return count


def _as_ase(name: str, value: Array) -> Array | float:
    if name == "stress":
        return matrix_to_voigt(value)
    return value if value.ndim else float(value)


def _put(atoms: Atoms, level: Level, name: str, value: Array) -> None:
    if level == "atom":
        atoms.arrays[name] = value
    else:
        atoms.info[name] = value if value.ndim else float(value)
