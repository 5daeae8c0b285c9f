"""What must not change when a structure is turned, mirrored, moved, wrapped, reordered or repeated.

In float64, where all of these hold to rounding. N atoms of a structure.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from physicsml_ase.conventions import Level
from physicsml_ase.verify.compare import apart, worst
from physicsml_ase.verify.result import Check, at_most
from physicsml_ase.verify.subject import Floats, Results, Structure, Subject, in_words

LIMIT = 1e-7
"""Of the largest value; rounding gives 1e-13 to 1e-9, an edge that is lost or counted twice more than 1e-3."""
OFFSET = (1.7, -2.3, 0.4)  # Å
Levels = Mapping[str, Level]
Changed = tuple[Structure, Callable[[Results, Levels], Results]]
"""A structure that was changed, and what becomes of its results when the change is undone."""


def check_symmetries(subject: Subject, structures: Sequence[Structure]) -> list[Check]:
    """Rotation, reflection, translation, order of atoms; for crystals wrapping and supercells; batches."""
    crystals = [s for s in structures if s.atoms.pbc.any()]
    tried = {
        "rotation": ("a rotation", structures, _turned),
        "reflection": ("a reflection and a rotation", structures, _mirrored),
        "translation": ("a shift of all atoms", structures, _moved),
        "permutation": ("a change of the atoms' order", structures, _reordered),
        "wrapping": ("moving atoms by lattice vectors", crystals, _unwrapped),
        "supercell": ("repeating the cell along an axis", _smallest(crystals), _repeated),
    }
    plain = dict(zip(map(id, structures), subject.results(structures)))
    checks = []
    for name, (words, chosen, change) in tried.items():
        if not chosen:
            continue
        changed = [change(structure) for structure in chosen]
        found = [
            undo(results, subject.levels)
            for (_, undo), results in zip(changed, subject.results([structure for structure, _ in changed]))
        ]
        largest = worst(_apart(subject, s, plain[id(s)], again) for s, again in zip(chosen, found))
        what = f"results after {words}, part of the largest; {in_words(chosen)}, float64"
        checks.append(at_most(name, largest, LIMIT, what))
    alone = [subject.of_graph(subject.graph(s))[0] for s in structures]
    largest = worst(_apart(subject, s, plain[id(s)], results) for s, results in zip(structures, alone))
    checks.append(at_most("batch", largest, LIMIT, "results of structures in a batch and one by one"))
    return checks


def _apart(subject: Subject, structure: Structure, a: Results, b: Results) -> float:
    return apart(subject.domain, a, b, structure.atoms.cell.volume, tuple(b))


def _turned(structure: Structure) -> Changed:
    return _with_axes(structure, proper=True)


def _mirrored(structure: Structure) -> Changed:
    return _with_axes(structure, proper=False)


def _with_axes(structure: Structure, proper: bool) -> Changed:
    q, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    q = q if (np.linalg.det(q) > 0) == proper else -q

    def undo(results: Results, levels: Levels) -> Results:
        """Vectors and matrices in the axes from before."""
        found = dict(results)
        for name, value in results.items():
            shape = value.shape[1:] if levels.get(name) == "atom" else value.shape
            if shape == (3,):
                found[name] = value @ q.T
            elif shape == (3, 3):
                found[name] = q @ value @ q.T
        return found

    atoms = structure.atoms
    return structure.changed(atoms.positions @ q, atoms.cell.array @ q), undo


def _moved(structure: Structure) -> Changed:
    return structure.changed(structure.atoms.positions + OFFSET), _as_it_is


def _reordered(structure: Structure) -> Changed:
    order = np.random.default_rng(3).permutation(len(structure.atoms))

    def undo(results: Results, levels: Levels) -> Results:
        back = np.argsort(order)
        return {name: x[back] if levels.get(name) == "atom" else x for name, x in results.items()}

    return structure.taken(order), undo


def _unwrapped(structure: Structure) -> Changed:
    atoms = structure.atoms
    shifts = np.random.default_rng(4).integers(-2, 3, (len(atoms), 3)) * atoms.pbc
    return structure.changed(atoms.positions + shifts @ atoms.cell.array), _as_it_is


def _repeated(structure: Structure) -> Changed:
    atoms = structure.atoms
    times = np.ones(3, int)
    times[np.flatnonzero(atoms.pbc)[-1]] = 2

    def undo(results: Results, levels: Levels) -> Results:
        """Means over the copies, and of the structure what is known to be a sum or a mean."""
        found = dict[str, Floats]()
        for name, value in results.items():
            if levels.get(name) == "atom":
                found[name] = value.reshape(2, -1, *value.shape[1:]).mean(0)
            elif name in ("energy", "stress"):
                found[name] = value / 2 if name == "energy" else value
        return found

    return structure._replace(atoms=atoms.repeat(times)), undo


def _as_it_is(results: Results, levels: Levels) -> Results:
    return results


def _smallest(crystals: Sequence[Structure]) -> list[Structure]:
    return sorted(crystals, key=lambda s: len(s.atoms))[:1]
