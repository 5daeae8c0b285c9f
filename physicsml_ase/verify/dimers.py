"""Pairs of atoms from far too near to beyond the cut-off: repulsion, no holes, no jumps.

D dimers at once, as one batch of 2 D atoms; P pairs of elements.
"""

from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii

from physicsml_ase.domain import Domain
from physicsml_ase.potential import Potential
from physicsml_ase.trust.dimers import Floats, dimers, name_of

MOST_PAIRS = 66
"""Pairs that are tried, those that were neighbours in the training data first."""
POINTS = 320
NEAR = 0.3
"""Curves begin at this part of the pair's shortest distance."""


class Curves(NamedTuple):
    """A pair's energy against its distance."""

    name: str  # "H-O"
    shortest: float  # in the training data, or of the covalent radii [Å]
    seen: bool  # whether the pair was in the training data
    distance: Floats  # (D,) [Å]
    energy: Floats  # (D,) less that of the atoms far apart [eV]
    force: Floats  # (D,) positive where they repel each other [eV/Å]


class Pair(NamedTuple):
    """Two elements and the distance where the data end."""

    elements: tuple[int, int]
    shortest: float
    seen: bool


def pairs_to_try(domain: Domain) -> list[Pair]:
    """Pairs of a potential's elements, those seen in training first."""
    found = []
    for k, a in enumerate(domain.elements):
        for b in domain.elements[k:]:
            names = (name_of((a, b)), name_of((b, a)))
            known = next(
                (domain.shortest_distances[n] for n in names if n in domain.shortest_distances), None
            )
            # the wall of pairs that were never neighbours begins at nine tenths of their radii
            shortest = min(known or covalent_radii[a] + covalent_radii[b], 0.95 * domain.cutoff)
            found.append(Pair((a, b), float(shortest), known is not None))
    return sorted(found, key=lambda pair: not pair.seen)[:MOST_PAIRS]


def curve_of(potential: Potential, pair: Pair) -> Curves:
    """The pair from a third of its shortest distance to beyond the cut-off."""
    cutoff = potential.domain.cutoff
    distance = np.linspace(NEAR * pair.shortest, cutoff + 0.2, POINTS)
    energy, force = dimers(potential, pair.elements, distance)
    return Curves(name_of(pair.elements), pair.shortest, pair.seen, distance, energy, force)
