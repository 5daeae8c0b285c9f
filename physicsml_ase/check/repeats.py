"""Frames that occur twice, whatever their order of atoms, orientation or choice of cell; also across the sets.

A frame leaves a fingerprint of a few numbers: sums over atoms of smooth functions of the pair distances. Equal
structures have equal ones; near fingerprints are looked at again, distance by distance. S frames, K numbers.
"""

import re
from collections.abc import Callable

import numpy as np
from ase import Atoms
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.frame import LABELS, Floats, Frame
from physicsml_ase.check.states import state_of
from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources import available_keys
from physicsml_ase.neighbors.pairs import find_pairs

REACH = 4.5
"""Distances in a fingerprint [Å], or the cut-off where that is less."""
DECAYS = np.array([0.0, 0.5, 1.0, 2.0])
SAME, NEAR = 0.002, 0.03
"""Largest difference of sorted distances [Å] of equal frames; RMS displacement of near ones."""
CLOSE = 0.02
"""Difference of fingerprints up to which frames are compared."""
SURELY = 1e-5
COMPARED = 400
"""Pairs of frames that are compared distance by distance, besides all whose fingerprints are equal."""
SPAN = 0.1
"""Of a molecule's radius of gyration [1/Å], in its fingerprint."""
FARTHER, SMALL = 3.0, 1000
"""How much farther distances are compared where atoms fall into groups that the reach does not connect; atoms of a
molecule of which all are."""
SOME = 4
OTHER_ENERGY = 2e-3
"""Energies of equal frames differ by no more [eV/atom]."""
OTHER_FORCES = 0.02
"""Nor do the sizes of their forces, as part of them, beyond 0.01 eV/Å."""
KNOWN = re.compile(r"energy|force|stress|virial|dipole|charge|magmom|polariz|gap|homo|lumo|hessian", re.I)
"""Keys of `Atoms.info` under which labels stand."""
ATOMS = 100_000
"""Of frames that are compared although there are COMPARED before them: surely equal ones, as a rule, but large."""
Read = Callable[[str, int], Atoms]
"""Gives a frame of a set again."""


class Repeats:
    """Fingerprints of all frames."""

    def __init__(self, cutoff: float) -> None:
        self.reach = min(cutoff, REACH)
        self.prints: list[Floats] = []
        self.places: list[tuple[str, int, str]] = []
        self.energies: list[float] = []
        self.forces: list[float] = []  # RMS over atoms [eV/Å]
        self.states: list[str] = []
        self.labels: list[frozenset[str]] = []
        self._kinds: dict[frozenset[str], frozenset[str]] = {}  # each kept once

    def see(self, frame: Frame) -> None:
        """One more frame."""
        if frame.pairs is None or not len(frame.pairs.i):
            return
        self.prints.append(fingerprint(frame, self.reach).astype(np.float32))
        self.places.append((frame.set_, frame.index, frame.where))
        self.energies.append(frame.energy / len(frame.atoms))
        forces = frame.forces
        self.forces.append(float("nan") if forces is None else float(np.sqrt((forces**2).sum(1).mean())))
        self.states.append(repr(sorted(state_of(frame).items())))
        there = (np.isfinite(frame.energy), frame.forces is not None, frame.stress is not None)
        labels = {name for name, is_there in zip(LABELS, there) if is_there}
        places = available_keys(frame.atoms)
        for place in (
            "calculator",
            "arrays",
            "data",
        ):  # what stands in a line of its own tells of the frame, as a rule
            labels |= {key for key, shape in places.get(place, {}).items() if shape is not None}
        names = [name for keys in places.values() for name in keys]
        found = frozenset(labels | {name for name in names if KNOWN.search(name)})
        self.labels.append(self._kinds.setdefault(found, found))

    def findings(self, read: Read) -> list[Finding]:
        """What was found; `read` gives a frame of a set again."""
        if len(self.prints) < 2:
            return []
        prints = np.array(self.prints, dtype=np.float64)
        sets = np.array([set_ for set_, _, _ in self.places])
        found = list[Finding]()
        for set_ in dict.fromkeys(sets.tolist()):
            of = np.flatnonzero(sets == set_)
            found += self._within(prints, of, read)
            if set_ != "train" and (sets == "train").any():
                found += self._leaked(prints, of, np.flatnonzero(sets == "train"), set_, read)
        return found

    def _within(self, prints: Floats, of: np.ndarray, read: Read) -> list[Finding]:
        """Frames of one set that are like an earlier one of it."""
        if len(of) < 2:
            return []
        own = prints[of]
        distance, other = cKDTree(own).query(own, k=min(3, len(of)), distance_upper_bound=CLOSE)
        pairs = {
            (float(d), int(of[max(k, j)]), int(of[min(k, j)]))
            for k in range(len(of))
            for d, j in zip(distance[k], other[k])
            if np.isfinite(d) and j != k
        }
        # of many equal frames the nearest others need not be all: those next to each other when sorted are
        order = np.lexsort(own.T)
        apart = np.abs(np.diff(own[order], axis=0)).max(axis=1)
        for k, j, d in zip(order[:-1].tolist(), order[1:].tolist(), apart.tolist()):
            if d < SURELY:
                pairs.add((d, int(of[max(k, j)]), int(of[min(k, j)])))
        equal, alike = self._compared(pairs, read)
        # another charge or spin is another calculation of the same geometry
        first = self._best(_earliest([(k, j) for k, j in equal if self.states[k] == self.states[j]]))
        same, near = Places(), Places()
        for k in sorted(first):
            if first[k] != k and self.labels[k] <= self.labels[first[k]]:
                same.put(*self.places[k], f"as {self.places[first[k]][2]}")
        for k, j in dict(sorted(alike, reverse=True)).items():
            if k not in first:
                near.put(*self.places[k], f"near {self.places[j][2]}")
        set_ = self.places[of[0]][0]
        found = same.finding(
            "warning" if len(same) > max(SOME, 0.05 * len(of)) else "note",
            "duplicates",
            f"{{n}} of {len(of)} ({set_}) that occur before, turned, mirrored or reordered perhaps",
            "they teach nothing new and count more than others: keep one of each",
        )
        found += near.finding(
            "note",
            "near-duplicates",
            f"{{n}} of {len(of)} ({set_}) within {NEAR} Å of another",
            "as in steps of one trajectory: fewer would teach the same",
        )
        return found + self._disagreeing(first)

    def _leaked(
        self, prints: Floats, of: np.ndarray, train: np.ndarray, set_: str, read: Read
    ) -> list[Finding]:
        """Frames of another set that training has seen."""
        pairs = set[tuple[float, int, int]]()
        states = np.array(self.states)
        for state in np.unique(states[of]):  # another charge or spin is another calculation
            mine, theirs = of[states[of] == state], train[states[train] == state]
            if not len(theirs):
                continue
            distance, other = cKDTree(prints[theirs]).query(prints[mine], distance_upper_bound=CLOSE)
            known = np.flatnonzero(np.isfinite(distance))
            pairs |= {(float(distance[k]), int(mine[k]), int(theirs[other[k]])) for k in known.tolist()}
        equal, alike = self._compared(pairs, read)
        same, near = Places(), Places()
        for k, j in sorted(equal):
            same.put(*self.places[k], f"as {self.places[j][2]}")
        for k, j in sorted(alike):
            near.put(*self.places[k], f"near {self.places[j][2]}")
        part = len(same) / len(of)
        found = same.finding(
            "error" if part > 0.5 and len(same) > SOME else "warning",
            "leakage",
            f"{{n}} of {len(of)} of {set_} that are in the training data too, turned, mirrored or reordered "
            "perhaps",
            f"errors on {set_} are too small: leave them out of one of the two",
            part=part,
        )
        found += near.finding(
            "warning" if len(near) > 0.1 * len(of) else "note",
            "near-leakage",
            f"{{n}} of {len(of)} of {set_} within {NEAR} Å of a training frame",
            f"as from a random split of a trajectory: errors on {set_} say little of new structures",
        )
        return found

    def _compared(
        self, pairs: set[tuple[float, int, int]], read: Read
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Equal and near pairs among candidates (difference of fingerprints, frame, other)."""
        same, near = list[tuple[int, int]](), list[tuple[int, int]]()
        atoms = 0
        for number, (d, k, other) in enumerate(sorted(pairs)):
            if number >= COMPARED and (d >= SURELY or atoms > ATOMS):
                break  # they come in the order of d
            a, b = (read(*self.places[place][:2]) for place in (k, other))
            if _is_copy(a, b):
                same.append((k, other))
                continue
            atoms += len(a) if number >= COMPARED else 0
            try:
                most, moved = difference(a, b, self.reach)
            except InputError:  # too many neighbours, within what is farther than training looks
                continue
            if most < SAME:
                same.append((k, other))
            elif moved < NEAR:
                near.append((k, other))
        return same, near

    def _best(self, first: dict[int, int]) -> dict[int, int]:
        """In place of the earliest frame of a kind, the earliest of those with the most labels."""
        best: dict[int, int] = {}
        for k in sorted(first):
            kept = best.setdefault(first[k], k)
            if len(self.labels[k]) > len(self.labels[kept]):
                best[first[k]] = k
        return {k: best[root] for k, root in first.items()}

    def _disagreeing(self, first: dict[int, int]) -> list[Finding]:
        """Equal frames with unequal energies or forces."""
        places = Places()
        for k, other in sorted(first.items()):
            away = self.energies[k] - self.energies[other]
            # within what counts as equal, forces make a difference too
            if abs(away) > OTHER_ENERGY + SAME * np.nan_to_num(self.forces[other]):
                places.put(*self.places[k], f"{away:+.3g} eV/atom against {self.places[other][2]}")
                continue
            mine, its = self.forces[k], self.forces[other]
            if abs(mine - its) > OTHER_FORCES * its + 0.01:
                places.put(
                    *self.places[k], f"forces of {mine:.3g} eV/Å against {its:.3g} of {self.places[other][2]}"
                )
        return places.finding(
            "warning",
            "disagreeing-duplicates",
            "{n} with another energy, or other forces, than an equal frame",
            "labels of different methods, or failed calculations: keep those of one method",
        )


def _earliest(pairs: list[tuple[int, int]]) -> dict[int, int]:
    """The first frame of its kind for every frame in the pairs."""
    first: dict[int, int] = {}

    def root(k: int) -> int:
        while first.setdefault(k, k) != k:
            k = first[k]
        return k

    for a, b in pairs:
        ends = sorted((root(a), root(b)))
        first[ends[1]] = ends[0]
    return {k: root(k) for k in list(first)}


def fingerprint(frame: Frame, reach: float) -> Floats:
    """(K,) numbers that rotations, reflections, orders of atoms and choices of the cell leave as they are."""
    assert frame.pairs is not None
    n, near = len(frame.atoms), frame.pairs.distance < reach
    i, j, d = frame.pairs.i[near], frame.pairs.j[near], frame.pairs.distance[near]
    weight = 0.5 + np.modf(frame.atoms.numbers * 0.6180339887)[0]  # tells elements apart
    g = np.exp(-DECAYS * d[:, None]) * ((1 - (d / reach) ** 2) ** 2)[:, None]
    density = np.zeros((n, len(DECAYS)))
    np.add.at(density, i, g * weight[j][:, None])
    np.add.at(density, j, g * weight[i][:, None])
    density *= weight[:, None]
    sums = np.concatenate([density.mean(0), np.sqrt((density**2).mean(0)), np.cbrt((density**3).mean(0))])
    x = frame.atoms.positions  # across a molecule; a crystal has no such size
    size = 0.0 if frame.atoms.pbc.any() else SPAN * float(np.sqrt(np.square(x - x.mean(0)).sum(1).mean()))
    return np.concatenate([sums, [float(n), 10 * float(weight.mean()), size]])


def difference(a: Atoms, b: Atoms, reach: float) -> tuple[float, float]:
    """Largest difference of the sorted distances of each pair of elements, and the RMS displacement of the atoms [Å].

    The first is infinite for other atoms, the second for another order of them too.
    """
    if len(a) != len(b) or (np.sort(a.numbers) != np.sort(b.numbers)).any():
        return float("inf"), float("inf")
    moved = displaced(a, b) if (a.numbers == b.numbers).all() else float("inf")
    most = _of_distances(a, b, reach)
    if most < SAME and (far := max(_far(atoms, reach) for atoms in (a, b))) > reach:
        most = _of_distances(a, b, far)
    return most, moved


def _is_copy(a: Atoms, b: Atoms) -> bool:
    """Whether two structures are the same, number by number."""
    same = np.array_equal(a.numbers, b.numbers) and np.array_equal(a.positions, b.positions)
    return same and np.array_equal(a.pbc, b.pbc) and np.array_equal(a.cell.array, b.cell.array)


def _of_distances(a: Atoms, b: Atoms, reach: float) -> float:
    """Largest difference of the sorted distances up to the reach of each pair of elements."""
    lists = []
    for atoms in (a, b):
        pairs = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, reach)
        z = atoms.numbers.astype(np.int64)
        kind = np.minimum(z[pairs.i], z[pairs.j]) * 1000 + np.maximum(z[pairs.i], z[pairs.j])
        order = np.lexsort((pairs.distance, kind))
        lists.append((kind[order], pairs.distance[order]))
    most = 0.0
    for kind in np.union1d(lists[0][0], lists[1][0]):
        first, second = (d[k == kind] for k, d in lists)
        few, many = sorted((len(first), len(second)))
        if many - few > max(2, 0.02 * many):  # at the end of the reach some may be in one list only
            return float("inf")
        most = max(most, float(np.abs(first[:few] - second[:few]).max(initial=0.0)))
    return most


def _far(atoms: Atoms, reach: float) -> float:
    """How far distances tell all of a structure [Å]: across a molecule, and beyond the gaps in what is periodic."""
    x = atoms.positions
    if not atoms.pbc.any() and len(x) <= SMALL:
        return max(reach, 2 * float(np.linalg.norm(x - x.mean(0), axis=1).max()) + 0.1)
    pairs = find_pairs(x, atoms.cell.array, atoms.pbc, reach)
    bonds = coo_array((np.ones(len(pairs.i)), (pairs.i, pairs.j)), shape=(len(x), len(x)))
    groups, _ = connected_components(bonds, directed=False)
    return FARTHER * reach if groups > 1 else reach


def displaced(a: Atoms, b: Atoms) -> float:
    """RMS displacement from one frame to the other [Å], as well as they can be laid onto each other."""
    x, y = a.positions, b.positions
    if a.pbc.any():
        if np.abs(a.cell.array - b.cell.array)[a.pbc].max() > NEAR:
            return float("inf")
        box = a.cell.complete().array
        away = np.linalg.solve(box.T, (y - x).T).T
        away[:, a.pbc] -= np.round(away[:, a.pbc])
        away = away - away[:1]
        away[:, a.pbc] -= np.round(away[:, a.pbc])
        dx = (away - away.mean(0)) @ box
    else:
        x, y = x - x.mean(0), y - y.mean(0)
        u, _, vt = np.linalg.svd(y.T @ x)
        dx = y @ (u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt) - x
    return float(np.sqrt((dx**2).sum(1).mean()))
