"""What a set of structures holds: elements, sizes, and statistics of its labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from physicsml_ase.atoms import find_label
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.sources import Source
from physicsml_ase.domain import Domain

MOST = 2000
"""Structures of a set that are read, evenly spread over it."""


@dataclass
class Contents:
    """What was found in a set."""

    structures: int
    read: int
    atoms: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    groups: Counter[str] = field(default_factory=Counter)
    labels: dict[str, tuple[int, str, list[float]]] = field(default_factory=dict)
    """Number of structures with it, what the numbers are, and mean, standard deviation, least and largest."""


def contents_of(source: Source, labels: Sequence[Label], domain: Domain) -> Contents:
    """Counts and statistics of a set."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), MOST)).round().astype(int))
    found = Contents(len(source), len(chosen))
    values: dict[str, list[np.ndarray]] = {label.name: [] for label in labels}
    for k in chosen.tolist():
        try:
            atoms = source[k]
        except InputError:
            continue
        found.atoms.update(atoms.get_chemical_symbols())
        found.sizes.append(len(atoms))
        found.groups.update([str(atoms.info.get("config_type", ""))])
        for label in labels:
            try:
                value = find_label(atoms, label, non_finite="missing")
            except InputError:
                continue
            if value is None:
                continue
            if label.name == "energy":
                value = (value - sum(domain.atomic_energies.get(z, 0.0) for z in atoms.numbers)) / len(atoms)
            values[label.name].append(np.ravel(value))
    for label in labels:
        if values[label.name]:
            x = np.concatenate(values[label.name])
            x = x[np.isfinite(x)]
            numbers = [float(f(x)) for f in (np.mean, np.std, np.min, np.max)] if len(x) else []
            found.labels[label.name] = (len(values[label.name]), _words(label), numbers)
    return found


def _words(label: Label) -> str:
    if label.name == "energy":
        return "eV/atom, less the atoms' reference energies"
    if label.shape:
        return f"{label.unit} (components)".strip()
    return label.unit
