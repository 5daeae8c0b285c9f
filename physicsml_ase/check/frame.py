"""One frame as the checks see it: its labels as they stand, its pairs, and why it has none. N atoms, M pairs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from physicsml_ase.atoms import find_label, refuse_no_element
from physicsml_ase.conventions import PROPERTIES, InputError, Label
from physicsml_ase.neighbors.pairs import Pairs, checked, find_pairs

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LABELS = ("energy", "forces", "stress")


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of one of the sets. NaN or None where it has no such label, or a useless one."""

    set_: str
    index: int
    where: str
    atoms: Atoms
    energy: float
    forces: Floats | None  # (N, 3)
    stress: Floats | None  # (3, 3)
    missing: tuple[str, ...]
    """Labels that are not there."""
    faults: tuple[tuple[str, str], ...]
    """(kind, message) of labels that are there and can not be used: "not-finite" or "wrong-shape"."""
    pairs: Pairs | None
    trouble: str
    """Why there are no pairs: what training would refuse the frame with."""

    @property
    def usable(self) -> bool:
        """Whether the geometry is one."""
        return self.pairs is not None


def look(atoms: Atoms, set_: str, index: int, where: str, keys: Mapping[str, str], cutoff: float) -> Frame:
    """The frame with its labels, found under `keys` {our name: the user's}, and pairs within `cutoff` [Å]."""
    values: dict[str, Floats | None] = {}
    missing, faults = list[str](), list[tuple[str, str]]()
    for name in LABELS:
        label = Label(name, PROPERTIES[name].level, PROPERTIES[name].shape, keys.get(name, name))
        values[name] = None
        try:
            value = find_label(atoms, label, where, "missing")
        except InputError as error:
            faults.append(("wrong-shape", str(error).removeprefix(f"{where}: ")))
            continue
        if value is None:
            missing.append(name)
        elif not np.isfinite(value).all():
            places = np.argwhere(~np.isfinite(value))
            of_atom = f" of atom {places[0][0]}" if name == "forces" else ""
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            faults.append(("not-finite", f"{label.key}{of_atom}{more}"))
        else:
            values[name] = value
    pairs, trouble = None, ""
    try:
        refuse_no_element(atoms.numbers)
        pairs = find_pairs(*checked(atoms.positions, atoms.cell.array, atoms.pbc), cutoff)
    except InputError as error:
        trouble = str(error)
    energy = values["energy"]
    return Frame(
        set_=set_,
        index=index,
        where=where,
        atoms=atoms,
        energy=float("nan") if energy is None else float(energy),
        forces=values["forces"],
        stress=values["stress"] if np.linalg.matrix_rank(atoms.cell.array) == 3 else None,
        missing=tuple(missing),
        faults=tuple(faults),
        pairs=pairs,
        trouble=trouble,
    )


def vectors(frame: Frame) -> Floats:
    """Pair vectors r_ij, (M, 3) [Å]."""
    assert frame.pairs is not None
    x, p = frame.atoms.positions, frame.pairs
    return np.asarray(x[p.j] - x[p.i] + p.shift @ frame.atoms.cell.array, dtype=np.float64)
