"""The step of models whose energy autograd differentiates, as one plain function: traced with its derivative.

For models that take rows of pairs (`takes_rows`, `nn.pair_rows`), and those to which slots are edges like others
(`takes_slots`: nothing waits for values, and edges beyond the cut-off count for nothing). Shapes: N atoms, rows of J
slots (`rows`), P pairs, of which the last is that of an atom and itself.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from physicsml_ase.backends.rows import Rows, rounded
from physicsml_ase.graph import Graph
from physicsml_ase.nn.blocks import Tiles, make_tiles, of_one_element
from physicsml_ase.nn.pair_rows import PairRows
from physicsml_ase.nn.slots import Slots
from physicsml_ase.potential import Potential

Close = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From r (N, J, 3), atomic numbers (N,) and neighbours (N J,): whether the potential's wall is reached."""
PARTS = 32
"""Where sizes are rounded up, the number of pairs is a multiple of this part of that of slots."""
TILES, PLACES = 37, 41
"""Sizes of tiles in what is traced."""


def of_pairs(rows: Rows) -> list[Tensor]:
    """A slot of each pair but the last (P - 1,), and the pair of each slot (N, J). P may be rounded up."""
    reverse = rows.reverse.flatten()
    slots = torch.arange(reverse.shape[0], device=reverse.device)
    is_first = slots <= reverse
    rank, first = is_first.cumsum(0) - 1, is_first.nonzero()[:, 0]
    size = rounded(first.shape[0], max(slots.shape[0] // PARTS, 1), slots.device)
    first = torch.cat([first, first[:1].expand(size - first.shape[0])])  # pairs that no slot has
    return [first, rank.index_select(0, torch.minimum(slots, reverse)).view_as(rows.reverse)]


def of_elements(potential: Potential, numbers: Tensor) -> list[Tensor]:
    """Of models that compute by element (`tiled`) the tiles (`nn.blocks`) of atoms with atomic numbers (N,)."""
    index = getattr(potential.model, "tiled", None)
    if index is None or index.num == 1:
        return []
    return list(make_tiles(index.places.index_select(0, numbers), index.num))


def derived_step(potential: Potential, close: Close) -> Callable[..., tuple[Tensor, ...]]:
    """Everything from positions to energies, forces and virials; inputs and outputs are those of `compiled.Step`.

    After the attributes, of which there may be none, come those of `of_pairs` and of `of_elements`.
    """
    model, dtype, scale = potential.model, potential.dtype, potential.domain.energy_scale
    tiled, by_rows = getattr(model, "tiled", None), getattr(model, "takes_rows", False)

    def step(
        positions: Tensor, shift: Tensor, neighbor: Tensor, reverse: Tensor, numbers: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Outputs of one step, of neighbours in slots."""
        tiles = None
        if tiled is not None and tiled.num > 1:
            *rest, elements, places, back = rest  # type: ignore[assignment]
            tiles = Tiles(elements, places, back).blocks()
        elif tiled is not None:
            tiles = of_one_element(numbers)
        *attrs, first, pair = rest
        pair = pair.reshape(-1)
        n, width = neighbor.shape
        j = neighbor.reshape(-1)
        i = torch.arange(n, device=j.device)[:, None].expand(n, width).reshape(-1)
        r = positions.index_select(0, j).view(n, width, 3) - positions[:, None, :] + shift
        swapped = reverse.reshape(-1)
        rows = PairRows(Slots(swapped, swapped, None, width), first, pair, pair, j, tiles)
        inputs = {"graph_attrs": attrs[0]} if attrs else {}
        graph = _graph(numbers, positions, torch.stack([i, j]), swapped, inputs)
        with torch.enable_grad():
            r_ij = r.reshape(-1, 3).to(dtype).detach().requires_grad_()
            features = model(graph, r_ij, rows) if by_rows else model(graph, r_ij)
            energy = features.node_energy
            if potential.energy_head is not None:
                energy = potential.energy_head(features.node_scalars)[:, 0]
            (g,) = torch.autograd.grad(energy.sum(), r_ij)
        g = g.double() * scale
        forces = (g - g.index_select(0, swapped)).view(n, width, 3).sum(1)
        virials = (r[..., :, None] * g.view(n, width, 1, 3)).sum(1)
        found = (energy.detach().double() * scale, forces, virials, close(r, numbers, j))
        if not potential.headed:
            return found
        vectors = features.node_vectors
        return *found, features.node_scalars.detach(), *([] if vectors is None else [vectors.detach()])

    return step


def _graph(
    numbers: Tensor, positions: Tensor, edge_index: Tensor, reverse: Tensor, inputs: dict[str, Tensor]
) -> Graph:
    """What models read of a graph, whose attributes in `inputs` are of its atoms (N, A); of the rest, nothing."""
    nothing, one = positions[:0], torch.zeros_like(numbers[:1])
    return Graph(
        numbers,
        positions,
        torch.arange(numbers.shape[0], device=numbers.device),  # of which each has its own attributes
        one,
        nothing,
        nothing,
        edge_index,
        nothing,
        reverse,
        one,
        inputs,
        {},
    )


def traced_step(
    potential: Potential, inputs: Sequence[Tensor], close: Close
) -> tuple[torch.fx.GraphModule, list[Tensor]]:
    """The step for any number of atoms and neighbours, and the inputs that it was traced with.

    `inputs` are those of `compiled.Step`, of sizes that nothing else has.
    """
    num_slots, num_pairs = inputs[2].numel(), 29
    pair = torch.arange(num_slots, device=inputs[2].device) % num_pairs
    given = [*inputs, pair[:num_pairs].clone(), pair.view_as(inputs[2])]
    if tiles := of_elements(potential, inputs[4]):
        n = inputs[4].shape[0]
        given += [tiles[0].new_zeros(TILES), tiles[1].new_zeros(TILES, PLACES), tiles[2].new_zeros(n)]
    weights = [p for p in potential.parameters() if p.requires_grad]
    for p in weights:  # the trace holds them as constants
        p.requires_grad_(False)
    try:
        trace = make_fx(derived_step(potential, close), tracing_mode="symbolic", _allow_non_fake_inputs=True)
        return trace(*given), given
    finally:
        for p in weights:
            p.requires_grad_()
