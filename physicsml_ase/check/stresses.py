"""Stresses: sign, unit and order of the components, from the virial that the forces imply.

A fit to the forces gives the virial up to what an even strain does, well enough to tell 160 from 1 and xy from
yz. S frames, six components in ASE's order xx yy zz yz xz xy.
"""

from itertools import permutations

import numpy as np
from ase.units import Bohr, GPa, Hartree

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.frame import Floats, Frame
from physicsml_ase.check.probe import Probe
from physicsml_ase.check.slopes import NOTHING, Slope, slope
from physicsml_ase.conventions import matrix_to_voigt

FEW = 6
"""Frames with a stress."""
ORDINARY = 3.0
"""Slopes up to this factor from one are the fit's own error."""
TOLERANCE = 2.0
SURE, SURE_OF_FEW = 0.75, 0.9
"""Correlations from which a slope is believed, of many frames and of fewer."""
LEAST = 1e-4
"""Mean size of a shear component [eV/Å³, as the fit says] below which its place can not be told."""
FOLLOWS, ROUGHLY = 0.85, 0.5
"""Correlation of a frame's stress, but for its pressure, with what the forces imply, from which it tells a sign, if
half of them do by as much, and a unit, which is less of a question."""
LIKE = 2.0
"""Of a frame with another sign, what is so many times the usual size may be the fit's error."""
LEAST_FORCE = 0.1
"""RMS component [eV/Å], of half the frames, from which forces tell a stress."""
APART = 30.0
"""It is of another unit at so many times what the forces imply, ..."""
RIGHT = 0.05
"""... which is said of single frames where at least this part of them are as they should be."""
SIZABLE = 0.3
"""Part of the median of what the forces imply, from which on a frame is judged by itself."""
ORDERS = {
    "xx yy zz xy yz xz (VASP's)": (5, 3, 4),
    "xx yy zz xy xz yz": (5, 4, 3),
    "xx yy zz yz xy xz": (3, 5, 4),
    "xx yy zz xz yz xy": (4, 3, 5),
    "xx yy zz xz xy yz": (4, 5, 3),
}
"""What the places of yz, xz, xy hold in other orders, as numbers of ASE's components."""


def stresses(fit: Probe) -> list[Finding]:
    """What is wrong with the stresses of the frames that a fit was made to."""
    rows = [k for k, f in enumerate(fit.frames) if f.stress is not None and f.stress.any()]
    if not rows or fit.correlation < 0.6:
        return []
    frames = [fit.frames[k] for k in rows]
    label = np.array([matrix_to_voigt(f.stress) for f in frames if f.stress is not None])  # (S, 6)
    volume = np.array([abs(np.linalg.det(f.atoms.cell.array)) for f in frames])
    implied = fit.virial[rows] / volume[:, None]  # (S, 6)
    order, correlations = _order(implied, label)
    found = _order_finding(order, correlations, len(rows))
    if order:
        label = label[:, [0, 1, 2, *_inverse(ORDERS[order])]]
    return found + (_of_some(frames, implied, label) or _unit(implied, label, volume))


def _order(implied: Floats, label: Floats) -> tuple[str, dict[str, float]]:
    """The order that the shear components have if it is not ASE's, and the mean correlation of each order."""
    if len(label) < FEW or (np.abs(implied[:, 3:]).mean(0) < LEAST).any():
        return "", {}
    table = np.array(
        [[abs(slope(implied[:, a], label[:, b], True).correlation) for b in (3, 4, 5)] for a in (3, 4, 5)]
    )
    scores = {}
    for places in permutations((3, 4, 5)):
        name = next((n for n, p in ORDERS.items() if p == places), "")
        scores[name] = float(np.mean([table[held - 3, place] for place, held in enumerate(places)]))
    best = max(scores, key=lambda name: scores[name])
    moved = [] if not best else [k for k, held in enumerate(ORDERS[best]) if held != k + 3]
    # every component that moves must fit its new place well and its old one badly
    clear = all(
        table[ORDERS[best][k] - 3, k] > SURE and table[ORDERS[best][k] - 3, k] > table[k, k] + 0.3
        for k in moved
    )
    return (best if moved and clear else ""), scores


def _order_finding(order: str, correlations: dict[str, float], count: int) -> list[Finding]:
    if not order:
        return []
    own, best = correlations[""], correlations[order]
    return [
        Finding(
            "warning",
            "stress-order",
            f"stress components are in the order {order}, not xx yy zz yz xz xy: the shears follow the forces with "
            f"r {best:.2f} so, and {own:.2f} as they stand ({count} frames)",
            "reorder them",
            evidence={"as_found": best, "as_labelled": own},
        )
    ]


def _of_some(frames: list[Frame], implied: Floats, label: Floats) -> list[Finding]:
    """Single frames whose stress has another sign or unit than the forces imply, where that of others has not."""
    x, y = _without_pressure(implied), _without_pressure(label)
    sizes = np.linalg.norm(x, axis=1)
    judged = np.flatnonzero((sizes > SIZABLE * np.median(sizes)) & y.any(1))
    x, y, sizes = x[judged], y[judged], sizes[judged]
    ratio = np.linalg.norm(y, axis=1) / sizes
    follow = (x * y).sum(1) / (sizes**2 * ratio)
    other_unit = (np.abs(follow) > ROUGHLY) & (np.abs(np.log(ratio)) > np.log(APART))
    usual = float(np.median(ratio[~other_unit])) if (~other_unit).any() else 1.0
    other_sign = (follow < -FOLLOWS) & ~other_unit & (np.abs(np.log(ratio / usual)) < np.log(LIKE))
    forces = [np.sqrt(np.mean(f.forces**2)) for f in frames if f.forces is not None]
    if len(judged) < FEW or np.median(np.abs(follow)) < FOLLOWS or np.median(forces) < LEAST_FORCE:
        return []
    if (~other_unit & (follow > FOLLOWS)).sum() < max(3, RIGHT * len(judged)):
        return []
    signs, units = Places(), Places()
    for k in np.flatnonzero(other_sign).tolist():
        signs.add(frames[judged[k]], f"r {follow[k]:.2f}")
    for k in np.flatnonzero(other_unit).tolist():
        units.add(frames[judged[k]], f"{np.sign(follow[k]) * ratio[k]:.3g} times")
    looked_at = f"of {len(judged)} looked at"
    return signs.finding(
        "warning",
        "stress-sign-of-some",
        f"{{n}} {looked_at} with a stress of the other sign than the forces imply",
        "as VASP writes it, positive in compression: negate those of these frames, not all",
    ) + units.finding(
        "warning",
        "stress-unit-of-some",
        f"{{n}} {looked_at} with a stress of another unit than the forces imply",
        "1602 is kBar, with the other sign where VASP wrote it, 160 is GPa: stresses are in eV/Å³",
    )


def _without_pressure(stress: Floats) -> Floats:
    """The rest of stresses (S, 6), with the norm of the matrix."""
    even = stress[:, :3] - stress[:, :3].mean(1, keepdims=True)
    return np.concatenate([even, np.sqrt(2) * stress[:, 3:]], axis=1)


def _unit(implied: Floats, label: Floats, volume: Floats) -> list[Finding]:
    """Sign and unit from all components together."""
    even = _pooled(implied[:, :3] - implied[:, :3].mean(0), label[:, :3] - label[:, :3].mean(0))
    shear = _pooled(implied[:, 3:], label[:, 3:])
    found = max((s for s in (even, shear) if s.points), key=lambda s: abs(s.correlation), default=NOTHING)
    other = shear if found is even else even
    if len(label) < FEW and abs(found.correlation) < SURE_OF_FEW:
        return []
    if abs(found.correlation) < SURE or found.points < 9:
        return []
    middle = found.middle
    if other.points and abs(other.correlation) > SURE and np.sign(other.middle) != np.sign(middle):
        return []
    if 1 / ORDINARY < middle < ORDINARY:
        return []
    size, sign = abs(middle), middle < 0
    units = {
        "GPa": 1 / GPa,
        "kBar": 10 / GPa,
        "bar": 1e4 / GPa,
        "MPa": 1e3 / GPa,
        "Hartree/Bohr³": Bohr**3 / Hartree,
        "eV (a virial: volume times stress)": float(np.median(volume)),
    }
    names = sorted((abs(float(np.log(size / r))), name) for name, r in units.items())
    fitting = [name for distance, name in names if distance < np.log(TOLERANCE)]
    if not fitting and not 1 / ORDINARY < size < ORDINARY:
        return []
    words = ["the wrong sign (positive in compression, as VASP writes it)"] if sign else []
    words += ["another unit: as if in " + " or ".join(fitting[:2])] if fitting else []
    advice = "stress is dE/d(strain)/V in eV/Å³, positive in tension"
    return [
        Finding(
            "warning",
            "stress-unit" if fitting else "stress-sign",
            f"stresses have {' and '.join(words)}; they are {middle:.3g} times what the forces imply "
            f"(r {found.correlation:.2f}, {len(label)} frames)",
            advice
            + (
                f": multiply by {'-' if sign else ''}{1 / units[fitting[0]]:.6g}"
                if fitting
                else ": negate it"
            ),
            evidence={"slope": middle, "correlation": found.correlation},
        )
    ]


def _pooled(implied: Floats, label: Floats) -> Slope:
    """One slope for three components."""
    sizes = np.abs(implied).mean()
    if sizes < LEAST:
        return NOTHING
    return slope(implied.ravel(), label.ravel(), True)


def _inverse(places: tuple[int, ...]) -> list[int]:
    """Where ASE's components 3, 4, 5 are, if the places hold these."""
    return [3 + places.index(k) for k in (3, 4, 5)]
