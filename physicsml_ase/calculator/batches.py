"""Structures grouped into batches of a size that serves speed."""

from collections import deque
from collections.abc import Iterable, Iterator

from ase import Atoms

from physicsml_ase.graph import Graph


def passed_on(structures: Iterable[Atoms], waiting: deque[Atoms]) -> Iterator[Atoms]:
    """The structures, a copy of each left in `waiting`."""
    for atoms in structures:
        waiting.append(atoms.copy())
        yield atoms


def batches(graphs: Iterator[Graph], batch_size: int | None, max_edges: int) -> Iterator[list[Graph]]:
    """Consecutive graphs, `batch_size` at a time, or as many as have `max_edges` together."""
    batch, edges = list[Graph](), 0
    for graph in graphs:
        size = len(graph.reverse)
        full = len(batch) == batch_size if batch_size else edges + size > max_edges
        if batch and full:
            yield batch
            batch, edges = [], 0
        batch.append(graph)
        edges += size
    if batch:
        yield batch
