"""Energies: per atom or of the whole, their unit, those far from all others. S frames, Z elements.

What an element contributes is found by a fit that half the frames being wrong can not move: of many fits to a few
frames each, the one with the least 35th percentile of the residuals (Rousseeuw 1984).
"""

from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from ase.units import Hartree, kcal, kJ, mol
from numpy.typing import NDArray

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.frame import Floats, Frame
from physicsml_ase.data.isolated import doubtful_atoms
from physicsml_ase.data.references import in_words

TRIALS = 300
ENOUGH = 2000
"""Frames in the fit."""
COVERED, AT_MOST = 0.35, 0.5
"""Part of the frames whose residuals decide, beyond those that any fit goes through."""
DEVIATIONS, LEAST = 4.0, 2.0
"""An energy is far from the others by so many of the percentile above, at least by this [eV/atom], ..."""
SPREAD = 0.12
"""Part by which the ratio of two groups of energies may differ from that of their units."""
HALF = 0.3
"""Part of the frames from which on it is open which of two groups is the wrong one."""
GAP = 2.5
"""... and by so many times more than any that is not."""
LIGHT = (0, 0.5, 2.904, 7.478, 14.667, 24.654, 37.845, 54.589, 75.067, 99.734, 128.94)
"""Energies of light atoms [Hartree] by atomic number (exact, non-relativistic)."""
UNITS = {"Hartree": 1 / Hartree, "kcal/mol": mol / kcal, "kJ/mol": mol / kJ}
"""Numbers in these units for one eV."""
ALL_ELECTRON = 0.04
"""Part by which the energy of all electrons differs at most from the sum over atoms."""


class Table(NamedTuple):
    """Energies and compositions of the frames that have both, without isolated atoms."""

    energy: Floats  # (S,)
    counts: Floats  # (S, Z)
    elements: tuple[int, ...]
    places: list[tuple[str, int, str]]

    @property
    def sizes(self) -> Floats:
        """Atoms of each frame, (S,)."""
        return np.asarray(self.counts.sum(1))


class Energies:
    """Energies and compositions of all frames, as they come by."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, str, float]] = []
        self.compositions: list[dict[int, int]] = []
        self.isolated: dict[int, list[float]] = {}

    def see(self, frame: Frame) -> None:
        """One more frame."""
        if not np.isfinite(frame.energy) or frame.pairs is None:
            return
        z, counts = np.unique(frame.atoms.numbers, return_counts=True)
        if not len(frame.pairs.i):
            if len(frame.atoms) == 1:
                self.isolated.setdefault(int(z[0]), []).append(frame.energy)
            return
        self.rows.append((frame.set_, frame.index, frame.where, frame.energy))
        self.compositions.append(dict(zip(z.tolist(), counts.tolist())))

    def table(self) -> Table:
        """What was seen."""
        elements = tuple(sorted({z for composition in self.compositions for z in composition}))
        counts = np.zeros((len(self.rows), len(elements)))
        for row, composition in zip(counts, self.compositions):
            for z, n in composition.items():
                row[elements.index(z)] = n
        places = [(set_, index, where) for set_, index, where, _ in self.rows]
        return Table(np.array([row[-1] for row in self.rows]), counts, elements, places)

    def findings(self) -> list[Finding]:
        """What was found."""
        table = self.table()
        if not len(table.energy):
            return []
        found = absolute_unit(table)
        if len(table.energy) >= 6:
            per_atom = per_atom_energies(table)
            found += per_atom or outlying(table)
            if not per_atom and not found:
                found += self._references(table)
        return found

    def _references(self, table: Table) -> list[Finding]:
        """Whether the isolated atoms are of the same kind as the rest."""
        single = {z: float(np.median(energies)) for z, energies in self.isolated.items()}
        return [
            Finding(
                "warning",
                "isolated-atoms",
                f"structures have {cohesion:+.4g} eV for each {'/'.join(chemical_symbols[z] for z in elements)} "
                f"beyond the isolated atoms in the data ({in_words({z: single[z] for z in elements})}), which is no "
                "bonding",
                "are they of the same unit and method as the rest? reference energies come from them, unless with "
                "reference_energies=least_squares",
                evidence={"cohesion": cohesion},
            )
            for elements, cohesion in doubtful_atoms(table.elements, table.counts, table.energy, single)
        ]


def composition_fit(per_atom: Floats, fractions: Floats) -> tuple[Floats, float]:
    """Energy of each element (Z,) from energies (S,) of compositions (S, Z), and the percentile of the residuals."""
    step = max(1, -(-len(per_atom) // ENOUGH))
    x, y = fractions[::step], per_atom[::step]
    rng = np.random.default_rng(0)
    few = min(len(y), x.shape[1] + 1)
    best: np.ndarray = np.zeros(x.shape[1])
    least = np.inf
    kinds = np.unique(x, axis=0)
    covered = min(AT_MOST, COVERED + min(len(kinds), x.shape[1]) / len(y))
    for trial in range(TRIALS if len(kinds) > 1 else 60):
        rows = rng.choice(len(y), few, replace=False) if trial else np.arange(len(y))
        middle = float(np.median(y[rows]))
        solution = middle + np.linalg.lstsq(x[rows], y[rows] - middle, rcond=1e-6)[0]
        quantile = float(np.quantile(np.abs(y - x @ solution), covered))
        if quantile < least:
            best, least = solution, quantile
    for _ in range(3):
        near = np.abs(y - x @ best) <= max(6 * least, 1e-9)
        middle = float(y[near].mean())
        best = middle + np.linalg.lstsq(x[near], y[near] - middle, rcond=1e-6)[0]
        least = float(np.quantile(np.abs(y - x @ best), covered))
    return _with_rare(best, x, y, near), least


def _with_rare(best: Floats, x: Floats, y: Floats, near: NDArray[np.bool_]) -> Floats:
    """The energies, where elements that no frame of the fit has get what the others' leave to frames with them."""
    best, rare = best.copy(), np.flatnonzero(~x[near].any(0)).tolist()
    for z in rare:
        only = (x[:, z] > 0) & ~x[:, [other for other in rare if other != z]].any(1)
        if only.any():
            best[z] = 0.0
            best[z] = float(np.median((y[only] - x[only] @ best) / x[only, z]))
    return best


def outlying(table: Table) -> list[Finding]:
    """Frames whose energy is far from that of all others."""
    sizes = table.sizes
    fractions, per_atom = table.counts / sizes[:, None], table.energy / sizes
    solution, spread = composition_fit(per_atom, fractions)
    expected = fractions @ solution
    away = per_atom - expected
    far = np.flatnonzero(np.abs(away) > _limit(np.abs(away), max(DEVIATIONS * spread, LEAST)))
    if not len(far):
        return []
    ratios = per_atom[far] / expected[far]
    unit, others = _unit_of(ratios), _unit_of(1 / ratios) if len(far) > HALF * len(away) else None
    if others is not None:  # as many frames or more are in another unit: they are the wrong ones
        unit, far = others, np.setdiff1d(np.arange(len(away)), far)
    places = Places()
    for k in far[np.argsort(-np.abs(away[far]), kind="stable")].tolist():
        set_, index, where = table.places[k]
        places.put(set_, index, where, f"{per_atom[k]:.4g} eV/atom" if others else f"{away[k]:+.4g} eV/atom")
    return places.finding(
        "warning",
        "energy-outliers",
        f"{{n}} with an energy far from the others{f', as if in {unit}' if unit else ''}",
        "remove them or correct their unit"
        if unit
        else "failed calculations or another method: look at them",
        ratio=float(np.median(ratios)),
        spread=spread,
    )


def _unit_of(ratios: Floats) -> str | None:
    """The unit that explains nearly all of these ratios of energies to those expected."""
    middle = float(np.median(ratios))
    name = min(UNITS, key=lambda name: abs(np.log(abs(middle) / UNITS[name])))
    fits = np.abs(ratios / UNITS[name] - 1)
    return name if np.median(fits) < SPREAD and np.mean(fits < 2 * SPREAD) > 0.9 else None


def _limit(away: Floats, least: float) -> float:
    """Where a gap above `least` sets some frames apart from the others; infinite where there is none."""
    ordered = np.sort(away)
    first = int(np.searchsorted(ordered, least))
    below = np.maximum(ordered[max(first - 1, 0) : -1], LEAST / GAP)
    gaps = np.flatnonzero(ordered[max(first - 1, 0) + 1 :] > GAP * below)
    return float(below[gaps[0]]) if len(gaps) else np.inf


def per_atom_energies(table: Table) -> list[Finding]:
    """Energies that do not grow with the number of atoms are per atom."""
    sizes = table.sizes
    if len(sizes) < 10 or np.quantile(sizes, 0.9) < 1.5 * np.quantile(sizes, 0.1):
        return []
    fractions = table.counts / sizes[:, None]
    of_total, of_atom = (_misfit(x, table.energy) for x in (table.counts, fractions))
    if of_atom > 0.2 * of_total:
        return []
    return [
        Finding(
            "error" if of_atom < 0.03 * of_total and len(sizes) >= 20 else "warning",
            "energy-per-atom",
            "energies do not grow with the number of atoms: they are per atom",
            "multiply each by its number of atoms; energies are those of the whole structure",
            evidence={"spread_as_total": of_total, "spread_as_per_atom": of_atom},
        )
    ]


def _misfit(x: Floats, y: Floats) -> float:
    """What the best of all sums over elements leaves of the energies of most frames."""
    weights = np.ones(len(y))
    for _ in range(20):  # towards least absolute deviations
        root = np.sqrt(weights)
        rest = np.abs(y - x @ np.linalg.lstsq(x * root[:, None], y * root, rcond=1e-6)[0])
        weights = 1 / np.maximum(rest, 1e-3 * np.median(rest) + 1e-12)
        weights /= weights.max()
    return float(np.quantile(rest, 0.8))


def absolute_unit(table: Table) -> list[Finding]:
    """Whether the energies are those of all electrons, in another unit than eV."""
    atoms = np.array([all_electron_energy(z) for z in table.elements])
    ratio = float(np.median(table.energy / (table.counts @ atoms)))
    unit = next((name for name, r in UNITS.items() if abs(ratio / r - 1) < ALL_ELECTRON), None)
    if unit is None:
        return []
    return [
        Finding(
            "warning",
            "energy-unit",
            f"energies are in {unit}, not eV: they are {ratio:.4g} times those of all electrons of the atoms in eV",
            f"multiply them by {1 / UNITS[unit]:.6g}",
            evidence={"ratio": ratio},
        )
    ]


def all_electron_energy(z: int) -> float:
    """Energy of an atom's electrons [eV], to about a percent: Thomas-Fermi, corrected (Schwinger 1981)."""
    if z < len(LIGHT):
        return -LIGHT[z] * Hartree
    return float(-0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)) * Hartree
