"""Rows of a batch's edges (`nn.pair_rows`) as a list of tensors, which a compiled training step is given.

How many there are depends on values, which a compiler does not see. Shapes: N atoms, E edges, P pairs, R rows of
J slots, Z tiles of n places (`nn.blocks`).
"""

import torch
from torch import Tensor

from physicsml_ase.graph import Graph
from physicsml_ase.nn.blocks import Tiles, make_tiles, of_one_element
from physicsml_ase.nn.pair_rows import PairRows, make_pair_rows
from physicsml_ase.nn.slots import Slots
from physicsml_ase.potential import Potential


def takes_rows(potential: Potential) -> bool:
    """Whether a potential's model can be given rows."""
    return getattr(potential.model, "takes_rows", False)


def row_tensors(potential: Potential, graph: Graph) -> list[Tensor]:
    """Rows of a batch."""
    rows = make_pair_rows(graph)
    width, row_atom = rows.slots.width, rows.slots.row_atom
    if row_atom is None:
        row_atom = torch.arange(rows.slots.reverse.shape[0] // width, device=rows.pair.device)
    slots = (x.view(-1, width) for x in (rows.slots.reverse, rows.pair, rows.neighbor))
    tensors = [*slots, rows.slots.slot, row_atom, rows.edge, rows.pair_of_edge]
    index = getattr(potential.model, "tiled", None)
    if index is not None and index.num > 1:
        tensors += make_tiles(index.places.index_select(0, graph.atomic_numbers), index.num)
    return tensors


def rows_of(potential: Potential, graph: Graph, tensors: list[Tensor]) -> PairRows:
    """Rows of the tensors that `row_tensors` gives."""
    (reverse, pair, neighbor, slot, row_atom, edge, pair_of_edge), tiles = tensors[:7], tensors[7:]
    index = getattr(potential.model, "tiled", None)
    blocks = None
    if tiles:
        blocks = Tiles(*tiles).blocks()
    elif index is not None:
        blocks = of_one_element(graph.atomic_numbers)
    slots = Slots(slot, reverse.reshape(-1), row_atom, reverse.shape[1])
    return PairRows(slots, edge, pair_of_edge, pair.reshape(-1), neighbor.reshape(-1), blocks)


def telling_rows(tensors: list[Tensor], graph: Graph, used: set[int]) -> list[Tensor]:
    """Tensors as `row_tensors` gives for a batch, but of sizes that nothing else has, beside the `used` ones."""
    sizes = (size for size in range(11, 10**6) if size % 2 and size not in used)
    num_rows, width, pairs, tiles, places = (next(sizes) for _ in range(5))
    num_atoms, num_edges = graph.positions.shape[0], graph.reverse.shape[0]
    shapes: list[tuple[int, ...]] = [(num_rows, width)] * 3
    shapes += [(num_edges,), (num_rows,), (pairs,), (num_edges,)]
    shapes += [(tiles,), (tiles, places), (num_atoms,)][: len(tensors) - len(shapes)]
    return [x.new_zeros(shape) for x, shape in zip(tensors, shapes, strict=True)]
