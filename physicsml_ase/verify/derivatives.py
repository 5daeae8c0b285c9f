"""Forces and stress against finite differences of the energy.

Along random directions that move all atoms, or strain all axes, at once: any wrong component shows in the sum.
Central differences over two steps are exact to the fourth order, but where a second derivative jumps within them, as
those of ANI's CELU do: to the first. So what differs is tried again with smaller steps, which a mistake survives.
N atoms of a structure.
"""

from collections.abc import Callable, Sequence

import numpy as np

from physicsml_ase.verify.compare import worst
from physicsml_ase.verify.result import Check, at_most
from physicsml_ase.verify.subject import Floats, Structure, Subject, in_words

STEPS = (1e-3, 1e-4, 1e-5)
"""Å for atoms, and strain: with the first, rounding of the energy and what the differences leave out are both below
1e-8; with the last, rounding is 1e-6 at most."""
DIRECTIONS = 2
LIMIT = 1e-5
"""Of the largest force; rounding gives 1e-8, a sign or an atom left out more than 1e-2."""


def check_derivatives(subject: Subject, structures: Sequence[Structure]) -> list[Check]:
    """Forces, and stress where there are crystals; in float64."""
    rng = np.random.default_rng(0)
    results = subject.results(structures)
    largest = worst(
        _forces(subject, structure, found["forces"], rng)
        for structure, found in zip(structures, results)
        for _ in range(DIRECTIONS)
    )
    what = f"forces against differences of the energy, part of the largest; {in_words(structures)}, float64"
    checks = [at_most("forces", largest, LIMIT, what)]
    crystals = [(s, found) for s, found in zip(structures, results) if s.is_periodic]
    if crystals:
        largest = worst(_stress(subject, s, found["stress"], rng) for s, found in crystals for _ in range(2))
        what = "stress against differences of the energy of strained cells, part of the largest virial; "
        checks.append(at_most("stress", largest, LIMIT, what + in_words([s for s, _ in crystals])))
    return checks


def _forces(subject: Subject, structure: Structure, forces: Floats, rng: np.random.Generator) -> float:
    """Error of the forces along one direction, for each atom moved."""
    direction = rng.choice([-1.0, 1.0], forces.shape) * rng.uniform(0.5, 1.0, forces.shape)  # (N, 3)
    x = structure.atoms.positions
    size = max(float(np.abs(forces).max()), subject.domain.energy_scale) * np.sqrt(len(x))

    def error(step: float) -> float:
        moved = [structure.changed(x + k * step * direction) for k in (-2, -1, 1, 2)]
        return abs(_slope(subject.energies(moved), step) + float((forces * direction).sum())) / size

    return _least(error)


def _stress(subject: Subject, structure: Structure, stress: Floats, rng: np.random.Generator) -> float:
    """Error of the stress along one strain."""
    strain = rng.choice([-1.0, 1.0], (3, 3)) * rng.uniform(0.5, 1.0, (3, 3))
    strain = (strain + strain.T) / 2
    atoms = structure.atoms
    virial = stress * atoms.get_volume()
    size = max(float(np.abs(virial).max()), subject.domain.energy_scale * np.sqrt(len(atoms)))

    def error(step: float) -> float:
        strained = [
            structure.changed(atoms.positions @ f, atoms.cell.array @ f)
            for f in (np.eye(3) + k * step * strain for k in (-2, -1, 1, 2))
        ]
        return abs(_slope(subject.energies(strained), step) - float((virial * strain).sum())) / size

    return _least(error)


def _least(error: Callable[[float], float]) -> float:
    """Of the errors found with one step after the other, until one is within the limit, the least; NaN is none."""
    errors = list[float]()
    for step in STEPS:
        errors.append(error(step))
        if not errors[-1] > LIMIT:
            return errors[-1]
    return min(errors)


def _slope(energies: Floats, step: float) -> float:
    """Derivative at zero of values at -2, -1, 1, 2 steps."""
    a, b, c, d = energies.tolist()
    return (8 * (c - b) - (d - a)) / (12 * step)
