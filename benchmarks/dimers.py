"""Energies of pairs of atoms against their distance, with and without the wall at short distance.

    python benchmarks/dimers.py run/model.ckpt dimers.png

What the training data had is to the right of the dashed line: the shortest distance of the pair in them.
"""

import sys

import numpy as np
from ase import Atoms
from matplotlib import pyplot as plt

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.checkpoint import load_potential

FAR = 0.5
"""How far [Å] below the cut-off energies are taken as zero."""


def energies(calculator: PhysicsMLCalculator, pair: list[str], distances: np.ndarray) -> np.ndarray:
    """Energies [eV] of a dimer, less those of its atoms as far apart as they can see each other."""
    far = calculator.domain.cutoff - FAR
    dimers = [Atoms(pair, [[0, 0, 0], [0, 0, d]]) for d in (*distances, far)]
    values = np.array([result["energy"] for result in calculator.predict(dimers)])
    return values[:-1] - values[-1]


def main(ckpt: str, output: str) -> None:
    """Draw all pairs of a model's elements that were neighbours in its training data."""
    walled, bare = load_potential(ckpt), load_potential(ckpt)
    bare.wall = None
    shortest = walled.domain.shortest_distances
    columns = min(len(shortest), 3)
    rows = -(-len(shortest) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False)
    for axis, (pair, start) in zip(axes.flat, shortest.items()):
        distances = np.linspace(0.3, walled.domain.cutoff - FAR, 300)
        for potential, label, style in ((bare, "learned", "--"), (walled, "with the wall", "-")):
            curve = energies(PhysicsMLCalculator(potential, backend="eager"), pair.split("-"), distances)
            axis.plot(distances, curve, style, label=label)
        axis.axvline(start, color="0.5", linestyle=":")
        axis.set(title=pair, ylim=(-5, 20), xlabel="distance, Å", ylabel="energy, eV")
        print(pair, " ".join(f"{d:.2f}:{e:.1f}" for d, e in zip(distances[::30], curve[::30])))
    axes.flat[0].legend()
    for axis in list(axes.flat)[len(shortest) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
