"""A copy of data without what is certainly wrong: frames that training refuses, labels that are not numbers.

Nothing is guessed: units, signs and outliers stay as they are, for people to decide on.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict, write_xyz

from physicsml_ase.check.findings import in_number
from physicsml_ase.check.frame import LABELS, look
from physicsml_ase.check.report import Report
from physicsml_ase.conventions import InputError, matrix_to_voigt
from physicsml_ase.data.sources import Source, rival_keys, suggest_label_keys
from physicsml_ase.data.sources.files import naming

DROPPED = {
    "unreadable": "that can not be read",
    "unusable-geometry": "with a geometry that training refuses",
    "overlapping-atoms": "with atoms on top of each other",
    "duplicates": "that occur before",
}
"""Findings whose frames are left out."""
CUTOFF = 3.0


@dataclass
class Changes:
    """What is done to the frames that stay."""

    lost: int = 0
    """Labels that are not finite, or of a wrong shape."""
    renamed: int = 0
    """Frames with labels that were under other names than ours."""
    names: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Frames by (the other name, ours)."""
    rivals: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Frames by (our name, the name it is taken from, another that has other values)."""
    left: Counter[str] = field(default_factory=Counter)
    """Frames by what extxyz can not hold."""


def repair(report: Report, source: Source, set_: str, keys: Mapping[str, str], path: str | Path) -> list[str]:
    """Write the frames of a set that can stay to `path`, as extxyz; returns what was done, one line each.

    `keys` are the names of labels that were asked for, {ours: theirs}; where a frame has nothing under such a name,
    or under ours where none was asked for, it takes what seems to be the label.
    """
    path = written_to(path, source)
    dropped: dict[int, str] = {}
    disagree = {
        i for f in report.findings if f.code == "disagreeing-duplicates" for s, i in f.frames if s == set_
    }
    for finding in report.findings:
        if finding.code in DROPPED:
            for s, index in finding.frames:
                if s == set_ and not (finding.code == "duplicates" and index in disagree):
                    dropped.setdefault(index, finding.code)
    if len(dropped) == len(source):
        raise InputError(f"{source.name}: no frame could stay, nothing is written to {path}")
    changes = Changes()
    _write(_kept(source, dropped, keys, changes), path)
    done = [
        f"dropped {in_number(n)} {why}"
        for code, why in DROPPED.items()
        if (n := sum(of == code for of in dropped.values()))
    ]
    if changes.lost:
        done.append(
            f"removed {changes.lost} label{'s' * (changes.lost != 1)} that are not finite or of a wrong shape"
        )
    if changes.renamed:
        names = ", ".join(
            f"{theirs} to {ours}" + f" in {n}" * (n != changes.renamed)
            for (theirs, ours), n in changes.names.items()
        )
        done.append(f"renamed labels in {in_number(changes.renamed)}: {names}")
    for (name, taken, other), n in changes.rivals.items():
        done.append(f"took {name} of {in_number(n)} from {taken}, though {other} has other values")
    if changes.left:
        names = ", ".join(f"{key} of {in_number(n)}" for key, n in changes.left.items())
        done.append(f"left out, as extxyz can not hold it: {names}")
    done.append(f"wrote {in_number(len(source) - len(dropped))} to {path}; nothing else was changed")
    return done


def written_to(path: str | Path, *sources: Source) -> Path:
    """The path, if data repaired from `sources` can go there."""
    if Path(path).suffix not in (".xyz", ".extxyz"):
        raise InputError(
            f"{path}: repaired data are written as extxyz, so the name must end in .xyz or .extxyz"
        )
    if any(source.reads(path) for source in sources):
        raise InputError(f"{path}: is one of the files that are checked; give another name")
    return Path(path)


def _kept(
    source: Source, dropped: Mapping[int, str], keys: Mapping[str, str], changes: Changes
) -> Iterator[Atoms]:
    """The frames that stay, with labels under our names; notes what is done to them."""
    for index in range(len(source)):
        if index in dropped:
            continue
        original = source[index]
        known = {**keys, **suggest_label_keys(original, keys)}
        names = {name: known.get(name, name) for name in LABELS}
        rivals = rival_keys(original, names)
        frame = look(original, "", index, source.where(index), names, CUTOFF)
        atoms = frame.atoms.copy()
        others = dict(frame.atoms.calc.results) if frame.atoms.calc is not None else {}
        pairs = atoms.info.pop("key_value_pairs", None) or {}
        data = atoms.info.pop("data", None) or {}  # of a database's row
        taken = {*LABELS, *names.values()}
        for key, value in data.items():
            written = _writable(value)
            if written is None:
                changes.left[key] += 1
            elif written.ndim and len(written) == len(atoms):
                atoms.arrays.setdefault(key, written)
            else:
                pairs = {key: written if written.ndim else value, **pairs}
        info = {**{k: v for k, v in pairs.items() if k not in atoms.info}, **atoms.info}
        atoms.info = {k: v for k, v in info.items() if k not in taken}
        for key in taken & set(atoms.arrays):
            del atoms.arrays[key]
        doubtful = {"free_energy", "energies", "stresses"} if frame.faults else set()
        results: dict[str, object] = {}
        for name, value in others.items():
            if name in LABELS or name in doubtful or value is None:
                continue
            if name in all_properties:
                results[name] = value
            else:  # a calculator's own, which ASE would not write as a result
                each = np.ndim(value) > 0 and len(value) == len(atoms)
                (atoms.arrays if each else atoms.info).setdefault(name, np.asarray(value))
        if np.isfinite(frame.energy):
            results["energy"] = frame.energy
        if frame.forces is not None:
            results["forces"] = frame.forces
        if frame.stress is not None:
            results["stress"] = matrix_to_voigt(frame.stress)
        for place, held in ((atoms.info, _in_a_line), (atoms.arrays, _in_a_column), (results, _in_a_result)):
            for key in [key for key, value in place.items() if not held(str(key), value)]:
                del place[key]
                changes.left[str(key)] += 1
        atoms.calc = SinglePointCalculator(atoms, **results)
        changes.lost += len(frame.faults)
        renamed = [(names[name], name) for name in LABELS if name in results and names[name] != name]
        changes.renamed += bool(renamed)
        changes.names.update(renamed)
        changes.rivals.update((name, names[name], rivals[name]) for name in LABELS if name in rivals)
        yield atoms


def _writable(value: object) -> np.ndarray | None:
    """What extxyz can hold of a value, None where it can not."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return None
    return array if array.ndim <= 2 and array.dtype.kind in "biufU" else None


def _in_a_result(key: str, value: object) -> bool:
    """Whether a calculator's result can be written."""
    return _writable(value) is not None


def _in_a_column(key: str, values: object) -> bool:
    """Whether values of the atoms can be read again as they are written."""
    array = _writable(values)
    if array is None or len(key.split()) != 1 or set(key) & set(":=\"'"):
        return False
    return array.dtype.kind != "U" or all(len(text.split()) == 1 for text in array.ravel())


def _in_a_line(key: str, value: object) -> bool:
    """Whether a value of the frame can be read again, without loss of others in its line."""
    array = _writable(value)
    if array is None or (
        array.dtype.kind == "U" and any(len(text.splitlines()) != 1 for text in array.ravel())
    ):
        return False
    try:
        found = key_val_str_to_dict(key_val_dict_to_str({key: value, "end": 1}))
    except Exception:  # ASE's parser lets anything through
        return False
    return set(found) == {key, "end"} and (not isinstance(value, str) or str(found[key]) == value)


def _write(frames: Iterator[Atoms], path: Path) -> None:
    """Complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path), beside.open("w", encoding="utf-8") as stream:
            for atoms in frames:
                write_xyz(stream, atoms)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
