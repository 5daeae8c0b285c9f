"""A batch in parts of some structures each, which have nothing to do with each other."""

from typing import NamedTuple

import torch

from physicsml_ase.graph import Graph

MOST_PARTS = 32
"""Of a batch, by structures: what threads share."""
ATOMS_OF_A_PART = 24
"""With fewer atoms each, parts cost more than they give."""


class Share(NamedTuple):
    """Some structures of a batch: their atoms and edges."""

    atoms: slice
    edges: slice


def shares(graph: Graph) -> list[Share]:
    """Structures of a batch in parts of about equal numbers of atoms, by the batch alone."""
    num_atoms = graph.num_atoms.tolist()
    enough = max(ATOMS_OF_A_PART, -(-sum(num_atoms) // MOST_PARTS))
    ends, held, end = list[int](), 0, 0
    for n in num_atoms:
        held, end = held + n, end + n
        if held >= enough:
            ends.append(end)
            held = 0
    if held or not ends:  # few are left: they go with the last
        ends[-1:] = [end]
    i = graph.edge_index[0].contiguous()
    edges = torch.searchsorted(i, torch.tensor(ends)).tolist()  # they are sorted by centre
    starts = zip([0, *ends], [0, *edges])
    return [Share(slice(a, end), slice(e, last)) for (a, e), end, last in zip(starts, ends, edges)]
