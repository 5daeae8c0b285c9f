"""The one data structure: a batch of S structures, N atoms, E directed edges.

A single structure is a batch with S = 1; there is no second, unbatched layout. Every tensor leads with
N, E or S, so batching is concatenation on dim 0. Edges are full (i->j and j->i) and sorted by centre,
and `reverse` maps every edge to its reverse, so what a neighbour sees is a permutation of what a centre
sees.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.conventions import Level


class Graph(NamedTuple):
    """A batch of structures with their neighbour lists; never changed in place."""

    atomic_numbers: Tensor  # (N,) int64
    positions: Tensor  # (N, 3) float64 [Å]
    batch: Tensor  # (N,) int64, structure of each atom, ascending
    num_atoms: Tensor  # (S,) int64
    cell: Tensor  # (S, 3, 3) float64 [Å], rows are lattice vectors
    pbc: Tensor  # (S, 3) bool
    edge_index: Tensor  # (2, E) int64, rows are centre i (ascending) and neighbour j
    edge_shift: Tensor  # (E, 3) float64, in lattice vectors
    reverse: Tensor  # (E,) int64, the edge j->i with the opposite shift; an involution
    num_edges: Tensor  # (S,) int64
    inputs: dict[str, Tensor]  # optional model inputs, (N | E | S, ...)
    targets: dict[str, Tensor]  # labels, (N | E | S, ...) float64, NaN where missing

    def map(self, change: Callable[[Tensor], Tensor]) -> "Graph":
        """The same graph with `change` applied to every tensor."""
        *tensors, inputs, targets = self
        inputs, targets = ({k: change(v) for k, v in named.items()} for named in (inputs, targets))
        return Graph(*map(change, tensors), inputs, targets)  # type: ignore[arg-type, call-arg]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Graph":
        """The same graph on another device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Graph":
        """The same graph in page-locked memory, for an asynchronous copy to a GPU."""
        return self.map(Tensor.pin_memory)


def edge_vectors(graph: Graph) -> Tensor:
    """r_ij = r_j + shift @ cell - r_i for every edge, (E, 3) float64 [Å]."""
    i, j = graph.edge_index
    vectors = graph.positions.index_select(0, j) - graph.positions.index_select(0, i)
    if not bool(graph.pbc.any()):
        return vectors
    if len(graph.cell) == 1:
        return torch.addmm(vectors, graph.edge_shift, graph.cell[0])
    cells = graph.cell.repeat_interleave(graph.num_edges, dim=0)  # (E, 3, 3)
    for axis in range(3):  # a sum over so short a dimension takes five times as long
        vectors = torch.addcmul(vectors, graph.edge_shift[:, axis : axis + 1], cells[:, axis])
    return vectors


def collate(graphs: Sequence[Graph]) -> Graph:
    """Concatenate graphs into one batch, in order."""
    if len(graphs) == 1:
        return graphs[0]

    def starts(sizes: list[int]) -> Tensor:  # offset of each graph, (len(graphs),)
        return torch.tensor([0, *sizes[:-1]]).cumsum(0)

    atoms = starts([len(g.positions) for g in graphs]).tolist()
    edges = starts([len(g.reverse) for g in graphs]).tolist()
    structures = starts([len(g.cell) for g in graphs]).tolist()

    def cat(name: str) -> Tensor:
        return torch.cat([getattr(g, name) for g in graphs])

    return Graph(
        atomic_numbers=cat("atomic_numbers"),
        positions=cat("positions"),
        batch=torch.cat([g.batch + s for g, s in zip(graphs, structures)]),
        num_atoms=cat("num_atoms"),
        cell=cat("cell"),
        pbc=cat("pbc"),
        edge_index=torch.cat([g.edge_index + a for g, a in zip(graphs, atoms)], dim=1),
        edge_shift=cat("edge_shift"),
        reverse=torch.cat([g.reverse + e for g, e in zip(graphs, edges)]),
        num_edges=cat("num_edges"),
        inputs={k: torch.cat([g.inputs[k] for g in graphs]) for k in graphs[0].inputs},
        targets={k: torch.cat([g.targets[k] for g in graphs]) for k in graphs[0].targets},
    )


def split(graph: Graph, levels: Mapping[str, Level]) -> list[Graph]:
    """The structures of a batch, each as a batch of one: the inverse of `collate`.

    `levels` says for every name in `inputs` and `targets` whether it leads with N, E or S.
    """
    parts = []
    atom = edge = 0
    for s, (n, e) in enumerate(zip(graph.num_atoms.tolist(), graph.num_edges.tolist())):
        of = {"atom": slice(atom, atom + n), "edge": slice(edge, edge + e), "structure": slice(s, s + 1)}
        parts.append(
            Graph(
                atomic_numbers=graph.atomic_numbers[of["atom"]],
                positions=graph.positions[of["atom"]],
                batch=torch.zeros_like(graph.batch[of["atom"]]),
                num_atoms=graph.num_atoms[of["structure"]],
                cell=graph.cell[of["structure"]],
                pbc=graph.pbc[of["structure"]],
                edge_index=graph.edge_index[:, of["edge"]] - atom,
                edge_shift=graph.edge_shift[of["edge"]],
                reverse=graph.reverse[of["edge"]] - edge,
                num_edges=graph.num_edges[of["structure"]],
                inputs={k: v[of[levels[k]]] for k, v in graph.inputs.items()},
                targets={k: v[of[levels[k]]] for k, v in graph.targets.items()},
            )
        )
        atom, edge = atom + n, edge + e
    return parts
