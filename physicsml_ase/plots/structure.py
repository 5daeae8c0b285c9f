"""A picture of a structure: balls, bonds and the cell, seen from where it is widest. N atoms."""

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from physicsml_ase.plots.style import COLOURS, FAINT, INK, Array

Ints = NDArray[np.int64]
MOST = 400
"""Atoms that are drawn, the ones nearest to the marked atom."""
BALL = 0.62  # of the covalent radius
BOND = 1.2  # of the sum of covalent radii
WHITE = 0.93
"""Nothing is lighter, so that hydrogen is seen on white."""


def draw_structure(axes: Axes, atoms: Atoms, marked: int | None = None) -> None:
    """The atoms as they are, without images; `marked` has a ring around it."""
    x, corners = _seen(atoms)
    chosen = np.arange(len(atoms))
    if len(atoms) > MOST:
        chosen = np.argsort(np.linalg.norm(x - x[marked or 0], axis=1))[:MOST]
    order = chosen[np.argsort(x[chosen, 2])]  # the nearest last
    radii = covalent_radii[atoms.numbers] * BALL
    if len(corners):
        axes.add_collection(LineCollection(list(corners[:, :, :2]), colors=FAINT, linewidths=0.8, zorder=0))
    bonds = _bonds(x, atoms.numbers, chosen)
    axes.add_collection(LineCollection(list(x[bonds][:, :, :2]), colors=FAINT, linewidths=2.2, zorder=1))
    size = 2 * radii[order]
    axes.add_collection(
        EllipseCollection(
            size,
            size,
            np.zeros(len(order)),
            units="xy",
            offsets=x[order, :2],
            transOffset=axes.transData,
            facecolors=np.minimum(jmol_colors[atoms.numbers[order]], WHITE),
            edgecolors=INK,
            linewidths=0.6,
            zorder=2,
        )
    )
    if marked is not None:
        ring = 2 * radii[marked] + 0.5
        axes.add_collection(
            EllipseCollection(
                [ring],
                [ring],
                [0.0],
                units="xy",
                offsets=x[marked : marked + 1, :2],
                transOffset=axes.transData,
                facecolors="none",
                edgecolors=COLOURS[1],
                linewidths=1.8,
                zorder=3,
            )
        )
    shown = np.concatenate([x[chosen, :2], corners[:, :, :2].reshape(-1, 2)])
    low, high = shown.min(0) - 1.0, shown.max(0) + 1.0
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set_axis_off()


def _seen(atoms: Atoms) -> tuple[Array, Array]:
    """Positions (N, 3) and the edges of the cell (12 or 0, 2, 3), turned: x to the right, z to the eye."""
    middle = atoms.positions.mean(0)
    x = atoms.positions - middle
    if not atoms.pbc.any() or atoms.cell.rank < 3:
        if len(x) < 3:
            return x[:, [2, 0, 1]], np.zeros((0, 2, 3))
        axes = np.linalg.svd(x, full_matrices=True)[2]
        return x @ axes.T, np.zeros((0, 2, 3))
    turn = _rotation(-0.3, 0) @ _rotation(0.4, 1)
    ends = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], float)
    edges = [(p, q) for i, p in enumerate(ends) for q in ends[i:] if np.abs(p - q).sum() == 1]
    corners = np.array(edges) @ atoms.cell.array - middle
    # y of the cell to the top, z a little to the front
    return x @ turn.T, corners @ turn.T


def _rotation(angle: float, axis: int) -> Array:
    matrix, (a, b) = np.eye(3), [k for k in range(3) if k != axis]
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def _bonds(x: Array, numbers: Ints, chosen: Ints) -> Ints:
    """Pairs of atoms that are as near as bonded ones, (B, 2)."""
    radii = covalent_radii[numbers]
    pairs = cKDTree(x[chosen]).query_pairs(2 * BOND * float(radii.max()), output_type="ndarray")
    i, j = chosen[pairs[:, 0]], chosen[pairs[:, 1]]
    near = np.linalg.norm(x[i] - x[j], axis=1) < BOND * (radii[i] + radii[j])
    return np.stack([i, j], axis=1)[near].reshape(-1, 2)
