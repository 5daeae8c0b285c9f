"""What is asked of the curves of dimers: repulsion where nothing was learned, smoothness, zero at the cut-off.

In float64. D dimers of a pair.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from physicsml_ase.potential import Potential
from physicsml_ase.verify.dimers import Curves, Pair, dimers
from physicsml_ase.verify.result import Check, at_least, at_most

HELD = 0.7
"""Up to this part of the pair's shortest distance atoms must repel each other."""
REPULSION = 0.1
"""Least force there [eV/Å]; the wall's is above 10."""
INNER, HOLE = 0.95, 0.5
"""Below this part of the shortest distance, a dimer may be lower than anywhere further out by so much [eV]."""
EDGE = 1e-4  # Å
"""Just within the cut-off. An envelope that is only smooth once leaves 1e-5 of the force there."""
CUTOFF_LIMIT = 1e-4
"""Of the energy scale, of energy [eV] and force [eV/Å] there; a jump is more than 1e-2."""
JUMP_LIMIT = 1e-4
"""Of the force, or of the energy scale where that is larger; what remains of a difference over 1e-7 Å."""
STEP, PROBED, SLOPE_LIMIT = 1e-4, 24, 1e-5
BISECTIONS, PARTS = 6, 8


def check_pairs(potential: Potential, pairs: Sequence[Pair], curves: Sequence[Curves]) -> list[Check]:
    """The checks over all pairs, each with its worst pair."""
    close = [curve.distance <= HELD * curve.shortest for curve in curves]
    repulsion = [float(c.force[near].min()) for c, near in zip(curves, close)]
    hole = [_hole(curve) for curve in curves]
    k, h = int(np.argmin(repulsion)), int(np.argmax(hole))
    words = f"below {HELD:g} of the shortest distance"
    checks = [
        at_least(
            "wall", repulsion[k], REPULSION, f"least repulsion {words} [eV/Å]; {_where(curves, k, close[k])}"
        ),
        at_most(
            "hole",
            hole[h],
            HOLE,
            f"how much lower dimers are below {INNER:g} of the shortest distance than further out [eV]; "
            f"{curves[h].name} of {len(curves)} pairs",
        ),
    ]
    edge = f"energy or force of dimers {EDGE:g} Å within the cut-off, by the energy scale"
    slopes = "forces of dimers against differences of their energy, part of the force"
    for name, function, limit, what in (
        ("cut-off", _at_cutoff, CUTOFF_LIMIT, edge),
        ("smooth", _jump, JUMP_LIMIT, "largest jump of a dimer's force anywhere, part of the force"),
        ("dimer forces", _slope_error, SLOPE_LIMIT, slopes),
    ):
        found = [function(potential, pair, curve) for pair, curve in zip(pairs, curves)]
        worst = int(np.argmax(np.nan_to_num(found, nan=np.inf)))
        checks.append(
            at_most(name, found[worst], limit, f"{what}; {curves[worst].name} of {len(curves)} pairs")
        )
    return checks


def _hole(curve: Curves) -> float:
    inner = curve.distance < INNER * curve.shortest
    return max(float(curve.energy[~inner].min() - curve.energy[inner].min()), 0.0)


def _where(curves: Sequence[Curves], k: int, near: NDArray[np.bool_]) -> str:
    curve = curves[k]
    at = float(curve.distance[near][curve.force[near].argmin()])
    return f"{curve.name} at {at:.2f} Å, of {len(curves)} pairs"


def _at_cutoff(potential: Potential, pair: Pair, curve: Curves) -> float:
    """Energy or force just within the cut-off, the larger."""
    energy, force = dimers(potential, pair.elements, np.array([potential.domain.cutoff - EDGE]))
    return float(max(abs(energy[0]), abs(force[0]))) / potential.domain.energy_scale


def _jump(potential: Potential, pair: Pair, curve: Curves) -> float:
    """What the force changes by over an interval that is made smaller and smaller, where it bends the most."""
    d, bend = curve.distance, np.abs(np.diff(curve.force, 2))  # (D - 2,)
    places = []
    for low, high in (
        (0.0, 1.05 * curve.shortest),
        (1.05 * curve.shortest, d[-1] - 0.5),
        (d[-1] - 0.5, np.inf),
    ):
        inside = (d[1:-1] >= low) & (d[1:-1] < high)
        if inside.any():
            k = int(np.flatnonzero(inside)[bend[inside].argmax()]) + 1
            places += [(d[k - 1], d[k]), (d[k], d[k + 1])]
    ends = np.array(places)  # (K, 2)
    for _ in range(BISECTIONS):
        grid = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * np.linspace(0, 1, PARTS + 1)  # (K, PARTS + 1)
        force = dimers(potential, pair.elements, grid.ravel())[1].reshape(grid.shape)
        size = np.maximum(np.abs(force).max(1, keepdims=True), potential.domain.energy_scale)
        change = np.abs(np.diff(force, axis=1)) / size
        k = change.argmax(1)
        rows = np.arange(len(k))
        ends = np.stack([grid[rows, k], grid[rows, k + 1]], axis=1)
    return float(change.max())


def _slope_error(potential: Potential, pair: Pair, curve: Curves) -> float:
    """Forces against central differences of the energy, over the whole curve."""
    d = np.linspace(curve.distance[0], potential.domain.cutoff - 0.01, PROBED)
    _, force = dimers(potential, pair.elements, d)
    steps = np.array([-2, -1, 1, 2]) * STEP
    energy, _ = dimers(potential, pair.elements, (d[:, None] + steps).ravel(), derivatives=False)
    e = energy.reshape(-1, 4)
    slope = (8 * (e[:, 2] - e[:, 1]) - (e[:, 3] - e[:, 0])) / (12 * STEP)
    size = np.maximum(np.abs(force), potential.domain.energy_scale)
    return float((np.abs(slope + force) / size).max())
