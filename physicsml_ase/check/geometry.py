"""Geometries: atoms on top of each other, cells that are none, and what the data cover."""

from collections import defaultdict

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.frame import Frame

IMPOSSIBLE, CLOSE = 0.25, 0.5
"""Distances as parts of the sum of the covalent radii: below the first no atoms are, below the second hardly any."""
FAR, MOST_FAR = 1.5, 0.2
"""The shortest distance of a frame, as such a part, beyond which atoms are not bonded: in Bohr, all are 1.9 times as
long; and the part of frames that may be closer."""
FEW = 3
"""Frames that the unit of positions is told from."""
UNBONDED = {2, 10, 18, 36, 54, 86}
"""Noble gases."""
CROWDED = 60.0
"""Volume of an atom [Å³] below which a cell is filled."""
EMPTY = 300.0
"""Volume of an atom [Å³] above which a cell is mostly vacuum."""
UNUSUAL_NEIGHBORS = (4, 120)


class Geometry:
    """Frames that no calculation should have given."""

    def __init__(self) -> None:
        self.unusable = Places()
        self.impossible, self.close = Places(), Places()
        self.dummy, self.forgotten = Places(), Places()
        self.shortest: list[float] = []
        """The shortest distance as a part of the sum of the covalent radii, of frames in which bonds are expected:
        two atoms may have been pulled apart."""

    def see(self, frame: Frame) -> None:
        """One more frame."""
        atoms, pairs = frame.atoms, frame.pairs
        if pairs is None:
            self.unusable.add(frame, frame.trouble)
            return
        volume = abs(float(np.linalg.det(atoms.cell.array))) / max(len(atoms), 1)
        if atoms.pbc.all() and len(atoms) > 1 and volume > EMPTY and not pairs.shift.any():
            self.dummy.add(frame)
        if not atoms.pbc.any() and len(atoms) > 1 and 1 < volume < CROWDED and len(atoms) >= 4:
            self.forgotten.add(frame)
        bonded = len(atoms) > 2 and not UNBONDED & set(atoms.numbers.tolist())
        if not len(pairs.i):
            self.shortest += [np.inf] * bonded
            return
        radii = covalent_radii[atoms.numbers]
        part = pairs.distance / (radii[pairs.i] + radii[pairs.j])
        k = int(part.argmin())
        self.shortest += [float(part[k])] * bonded
        if part[k] < CLOSE:
            image = " through the cell's boundary" if pairs.shift[k].any() else ""
            names = " and ".join(f"{atoms.symbols[a]} {a}" for a in (int(pairs.i[k]), int(pairs.j[k])))
            words = f"{names} {pairs.distance[k]:.2f} Å apart{image}"
            (self.impossible if part[k] < IMPOSSIBLE else self.close).add(frame, words)

    def findings(self) -> list[Finding]:
        """What was found."""
        found = self.unusable.finding(
            "error", "unusable-geometry", "{n} that training refuses", "correct or remove them"
        )
        found += self.impossible.finding(
            "error",
            "overlapping-atoms",
            "{n} with atoms on top of each other",
            "is the cell right, are positions in Å? remove them otherwise",
        )
        found += self.close.finding(
            "warning",
            "close-atoms",
            "{n} with atoms closer than half the sum of their covalent radii",
            "keep them only if that is meant",
        )
        found += self.dummy.finding(
            "note",
            "dummy-cell",
            "{n} periodic, but in a cell so large that no atom sees an image",
            "no harm is done; a stress of such a cell means nothing, and pbc can be switched off",
        )
        found += self.forgotten.finding(
            "warning",
            "forgotten-pbc",
            "{n} with a cell that its atoms fill, but without periodicity",
            "if these are crystals or liquids, switch on pbc: neighbours through the boundary are missing",
        )
        return found + self._unit()

    def _unit(self) -> list[Finding]:
        """Whether all distances are those of another unit."""
        if (
            len(self.shortest) < FEW
            or (shortest := float(np.quantile(self.shortest, MOST_FAR, method="lower"))) < FAR
        ):
            return []
        nearest = "no two are neighbours"
        if np.isfinite(shortest):
            nearest = f"the nearest two are {shortest:.2f} times the sum of their covalent radii apart"
        return [
            Finding(
                "warning",
                "positions-unit",
                f"atoms are far from each other in nearly all frames: {nearest}, as if in Bohr",
                "positions and cells are in Å: multiply them by 0.529177 if they are in Bohr",
                evidence={"shortest": shortest},
            )
        ]


class Coverage:
    """What occurs: elements, pairs with their shortest distances, neighbours, isolated atoms."""

    def __init__(self, cutoff: float) -> None:
        self.cutoff = cutoff
        self.elements: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self.frames_of: dict[int, int] = defaultdict(int)
        self.shortest: dict[tuple[int, int], float] = defaultdict(lambda: np.inf)
        self.pairs_of: dict[tuple[int, int], int] = defaultdict(int)
        self.isolated: dict[int, Places] = defaultdict(Places)
        self.lonely = Places()
        self.neighbors = np.zeros(0, dtype=np.int64)  # atoms with 0, 1, 2, ... neighbours
        self.whole = True
        """Whether all atoms of every frame are neighbours: a longer cut-off finds no more."""
        self.atoms, self.frames, self.edges = 0, 0, 0

    def see(self, frame: Frame) -> None:
        """One more frame."""
        numbers, counts = np.unique(frame.atoms.numbers, return_counts=True)
        for z, count in zip(numbers.tolist(), counts.tolist()):
            if 0 < z < len(chemical_symbols):
                self.elements[frame.set_][z] += count
                self.frames_of[z] += 1
        self.atoms += len(frame.atoms)
        self.frames += 1
        if frame.pairs is None:
            return
        self.edges += 2 * len(frame.pairs.i)
        if len(frame.atoms) == 1 and not len(frame.pairs.i):
            self.isolated[int(numbers[0])].add(frame)
            return
        of_atom = np.bincount(np.concatenate([frame.pairs.i, frame.pairs.j]), minlength=len(frame.atoms))
        of_count = np.bincount(of_atom)
        size = max(len(of_count), len(self.neighbors))
        self.neighbors = np.pad(self.neighbors, (0, size - len(self.neighbors)))
        self.neighbors[: len(of_count)] += of_count
        size = len(frame.atoms)
        self.whole &= not frame.atoms.pbc.any() and len(frame.pairs.i) == size * (size - 1) // 2
        if not of_atom.all():
            self.lonely.add(frame, f"atom {int(of_atom.argmin())}")
        self._add_pairs(frame)

    def _add_pairs(self, frame: Frame) -> None:
        assert frame.pairs is not None
        z = frame.atoms.numbers.astype(np.int64)
        a, b = z[frame.pairs.i], z[frame.pairs.j]
        key = np.minimum(a, b) * 1000 + np.maximum(a, b)
        order = np.argsort(key, kind="stable")
        kinds, starts = np.unique(key[order], return_index=True)
        if not len(kinds):
            return
        nearest = np.minimum.reduceat(frame.pairs.distance[order], starts)
        numbers = np.diff(np.append(starts, len(key)))
        for kind, d, n in zip(kinds.tolist(), nearest.tolist(), numbers.tolist()):
            pair = divmod(kind, 1000)
            self.shortest[pair] = min(self.shortest[pair], d)
            self.pairs_of[pair] += n

    @property
    def mean_neighbors(self) -> float:
        """Over all atoms but isolated ones."""
        total = int(self.neighbors.sum())
        return float(self.neighbors @ np.arange(len(self.neighbors)) / total) if total else 0.0

    def findings(self) -> list[Finding]:
        """What was found."""
        found = []
        alone = sum(len(places) for places in self.isolated.values())
        if self.frames and alone == self.frames:
            found.append(
                Finding(
                    "error",
                    "only-isolated-atoms",
                    "there are only isolated atoms",
                    "nothing but reference energies can be learned: add molecules or crystals",
                )
            )
        elif self.frames == 1:
            found.append(
                Finding("note", "single-frame", "there is a single frame", "nothing is left to validate on")
            )
        known = set(self.elements.get("train", {}))
        for set_, of in self.elements.items():
            if set_ != "train" and known and (new := sorted(set(of) - known)):
                names = ", ".join(chemical_symbols[z] for z in new)
                found.append(
                    Finding(
                        "error",
                        "unseen-elements",
                        f"{set_} has {names}, which no training frame has",
                        "add training frames with them, or leave these out",
                    )
                )
        rare = [
            z for z, n in self.frames_of.items() if n < 5 and z not in self.isolated and self.frames >= 50
        ]
        if rare:
            names = ", ".join(f"{chemical_symbols[z]} (in {self.frames_of[z]})" for z in sorted(rare))
            found.append(
                Finding(
                    "note",
                    "rare-elements",
                    f"elements in hardly any frame: {names}",
                    "expect large errors there",
                )
            )
        mean, (few, many) = self.mean_neighbors, UNUSUAL_NEIGHBORS
        if self.neighbors.sum() and not few < mean < many and not (self.whole and mean < many):
            other = self.cutoff * ((few * 3 if mean < few else many / 2) / max(mean, 0.5)) ** (1 / 3)
            found.append(
                Finding(
                    "note",
                    "unusual-cutoff",
                    f"{mean:.3g} neighbours on average within {self.cutoff:g} Å",
                    f"a cut-off near {other:.1f} Å gives a more usual number",
                )
            )
        found += self.lonely.finding(
            "note",
            "lonely-atoms",
            f"{{n}} with an atom that has no neighbour within {self.cutoff:g} Å",
            "nothing can be learned of such an atom but its energy; is the cut-off long enough?",
        )
        return found

    def plain(self) -> dict[str, object]:
        """All of it as plain data."""
        counts = self.neighbors
        there = np.flatnonzero(counts)
        return {
            "elements": {
                set_: {chemical_symbols[z]: n for z, n in sorted(of.items())}
                for set_, of in self.elements.items()
            },
            "pairs": {
                f"{chemical_symbols[a]}-{chemical_symbols[b]}": {
                    "shortest": round(self.shortest[a, b], 4),
                    "count": self.pairs_of[a, b],
                }
                for a, b in sorted(self.shortest)
            },
            "neighbors": {
                "cutoff": self.cutoff,
                "mean": round(self.mean_neighbors, 2),
                "least": int(there[0]) if len(there) else 0,
                "most": int(there[-1]) if len(there) else 0,
            },
            "isolated_atoms": {chemical_symbols[z]: len(p) for z, p in sorted(self.isolated.items())},
            "frames": self.frames,
            "atoms": self.atoms,
            "edges": self.edges,
        }
