"""What potentials of pairs share: edges without those of atoms to themselves, switching functions, sums to atoms.

Shapes: N atoms, E edges.
"""

from typing import Literal

import torch
from torch import Tensor

from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.features import segment_sum

SwitchKind = Literal["smooth", "xplor", "shift"]


def apart(r_ij: Tensor, far: float) -> tuple[Tensor, Tensor]:
    """Distances (E,), and whether these are two atoms; an edge of an atom to itself has the distance `far`."""
    squared = r_ij.square().sum(1)
    two = squared > 0
    return torch.where(two, squared, far * far).sqrt(), two


def half_to_atoms(energy: Tensor, two: Tensor, graph: Graph) -> Tensor:
    """Half of each edge's pair energy (E,) at its centre, (N,): the pair's other edge has the other half."""
    return segment_sum(torch.where(two, energy / 2, 0.0), graph.edge_index[0], graph.atomic_numbers.shape[0])


def smooth_switch(d: Tensor, onset: float, cutoff: float) -> Tensor:
    """1 up to the onset, 0 from the cut-off on, with two continuous derivatives: 1 - t^3 (10 - 15 t + 6 t^2)."""
    t = ((d - onset) / (cutoff - onset)).clamp(0.0, 1.0)
    return 1 - t**3 * (10 - 15 * t + 6 * t * t)


def xplor_switch(d: Tensor, onset: float, cutoff: float) -> Tensor:
    """As `smooth_switch`, but with jumps of the curvature: HOOMD's and ASE's."""
    s = d.clamp(onset, cutoff).square()
    c, o = cutoff**2, onset**2
    return (c - s).square() * (c + 2 * s - 3 * o) / (c - o) ** 3


def settled_onset(name: str, onset: float | None, cutoff: float, default: float) -> float:
    """Where switching begins [Å]; by default at that part of the cut-off."""
    if onset is not None and onset >= cutoff:
        raise InputError(f"model {name}: onset {onset:g} Å must be less than the cut-off of {cutoff:g} Å")
    return default * cutoff if onset is None else onset


def refuse_attributes(name: str, domain: Domain) -> None:
    """Potentials of pairs have no use for attributes of structures."""
    if domain.attrs:
        raise InputError(
            f"model {name}: energies of pairs do not depend on {', '.join(domain.attrs)}; leave out x_graph_attrs"
        )
