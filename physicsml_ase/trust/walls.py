"""Where the wall of each pair begins, and how steeply: before the model's hole does, as steeply as the model.

What a model learned ends with the data, often not far below the shortest distance. The wall (`nn.wall`) begins at
nine tenths of it, where the model's dimer still rises there; where it falls before, the wall begins before.
"""

import logging

import numpy as np
import torch
from ase.data import atomic_numbers

from physicsml_ase.nn.wall import HELD, MARGIN, STIFFNESS, held, repulsion
from physicsml_ase.potential import Potential
from physicsml_ase.trust.dimers import Floats, dimers

log = logging.getLogger("physicsml_ase")
MARGINS = (MARGIN, 0.92, 0.94, 0.96, 0.98, 0.995)
"""Where the wall may begin, as parts of the pair's shortest distance."""
DEEPEST = 0.4
"""A hole less deep than this [eV] is none: it may be a bond, and a wall close to the data would be in its way."""
EARLY = 0.95
"""A wall that begins beyond this part of the shortest distance is said to."""
AS_STEEP = 0.05
"""The spring has the model's force where the distance is this part shorter than where the wall begins."""
STIFFEST = 1e5
"""Of a spring [eV]."""
POINTS = 240


def settle_walls(potential: Potential) -> None:
    """Settle the walls of a trained potential; it then repels atoms at short range without a hole in its dimers."""
    if potential.wall is None:
        return
    found = {}
    wall, training = potential.wall, potential.training
    potential.eval()
    try:
        potential.wall = None
        for pair, distance in potential.domain.shortest_distances.items():
            a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
            found[pair] = settled(potential, (a, b), distance)
    finally:
        potential.wall = wall
        potential.train(training)
    potential.settle_walls(found)
    shortest = potential.domain.shortest_distances
    early = [pair for pair, (begin, _) in found.items() if begin > EARLY * shortest[pair]]
    if early:
        log.info("short range: the wall begins close to the data for %s", ", ".join(early))


def settled(potential: Potential, elements: tuple[int, int], shortest: float) -> tuple[float, float]:
    """Where the wall of a pair begins [Å] and how stiff its spring is [eV], of a potential without walls."""
    distance = np.linspace(MARGINS[0] * (1 - HELD) * shortest, shortest, POINTS)
    energy, force = dimers(potential, elements, distance)
    choices = [(part * shortest, _stiffness(distance, force, part * shortest)) for part in MARGINS]
    depths = [_deepest(distance, energy, elements, *choice) for choice in choices]
    shallow = [k for k, depth in enumerate(depths) if depth < DEEPEST]
    return choices[shallow[0] if shallow else int(np.argmin(depths))]


def _stiffness(distance: Floats, force: Floats, begin: float) -> float:
    """A spring that has twice the model's force a little further in."""
    here = float(np.interp(begin, distance, force))
    return float(np.clip(2 * abs(here) * begin / AS_STEEP**2, STIFFNESS, STIFFEST))


def _deepest(
    distance: Floats, energy: Floats, elements: tuple[int, int], begin: float, stiffness: float
) -> float:
    """How far the energy falls below what it was further out [eV], from the data inwards to half of `begin`."""
    d = torch.from_numpy(np.linspace(0.5, 1.0, POINTS) * begin)
    outer = torch.full_like(d, begin)
    shown, _ = held(d, outer)
    za, zb = (torch.full_like(d, z) for z in elements)
    pushed, _ = repulsion(d, outer, za, zb, stiffness)
    inside = np.interp(shown.numpy(), distance, energy) + pushed.numpy()
    outwards = np.concatenate([inside, energy[distance > begin]])
    inwards = outwards[::-1]
    highest = np.maximum.accumulate(inwards)
    return float(np.nan_to_num(highest - inwards, nan=np.inf).max())
