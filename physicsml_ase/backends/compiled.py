"""A potential's step as one function of tensors, which torch.compile or AOTInductor takes whole.

Of models that give their energy's gradient beside it (`Potential.explicit`) nothing is differentiated, so the step
is a plain function, exported once for structures of every size; for others see `derived`. Shapes: N atoms, rows of
J slots (`rows`), S structures, C channels.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from physicsml_ase.backends.derived import PLACES, of_elements, of_pairs, traced_step
from physicsml_ase.backends.rows import Rows, make_rows
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph, edge_vectors
from physicsml_ase.nn.elements import Elements
from physicsml_ase.nn.features import NUM_ELEMENTS, Features, segment_sum
from physicsml_ase.nn.geometry import Geometry
from physicsml_ase.nn.slots import Slots
from physicsml_ase.potential import Potential

Function = Callable[[list[Tensor]], Sequence[Tensor]]
"""`Step`, compiled: its inputs in a list, its outputs in a sequence."""

NO_VOLUME = 1e-9
"""Cells of no more than this have no stress [Å³]."""
KEPT = ("atomic_numbers", "cell", "edge_index", "edge_shift", "reverse", "num_edges")
"""What rows depend on."""


class OfList(NamedTuple):
    """What a step takes from the atoms and their neighbours, wherever they are."""

    slots: Slots
    elements: Elements
    channels: Tensor | None  # (N, J, W), element channels of the neighbours


class Step(nn.Module):
    """Everything from positions to energies, forces and virials."""

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.model = potential.model.frozen() if potential.explicit else potential.model
        self.scale, self.dtype = potential.domain.energy_scale, potential.dtype
        self.wall, self.features = potential.wall, bool(potential.headed)

    def forward(
        self,
        positions: Tensor,
        shift: Tensor,
        neighbor: Tensor,
        reverse: Tensor,
        atomic_numbers: Tensor,
        attrs: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Learned energies (N,), forces (N, 3), virials (N, 3, 3), all float64, eV and Å; whether atoms are so
        close, (), that the potential's wall is reached; and, where labels have heads, what these read."""
        n, width = neighbor.shape
        r = positions.index_select(0, neighbor.flatten()).view(n, width, 3) - positions[:, None, :] + shift
        geometry = self.model.geometry.in_rows(r.to(self.dtype))
        of_list = self.of_list(neighbor, reverse, atomic_numbers)
        energies, g, scalars, vectors = self.model.on_slots(
            geometry, of_list.channels, of_list.slots, of_list.elements, attrs, True
        )
        g = g.double() * self.scale  # (N J, 3)
        forces = (g - g.index_select(0, of_list.slots.reverse)).view(n, width, 3).sum(1)
        virials, close = (
            self.virials(r, g.view(n, width, 3)),
            self.is_close(r, geometry, neighbor, atomic_numbers),
        )
        features = (scalars, vectors) if self.features else ()
        return energies.double() * self.scale, forces, virials, close, *features

    def of_list(self, neighbor: Tensor, reverse: Tensor, atomic_numbers: Tensor) -> OfList:
        """What does not depend on where atoms are."""
        index = self.model.index.places.index_select(0, atomic_numbers)
        slots = Slots(reverse, reverse.flatten(), None, neighbor.shape[1])
        return OfList(slots, Elements(index, None), self._channels(index, neighbor))

    def virials(self, r: Tensor, g: Tensor) -> Tensor:
        """Those of the atoms (N, 3, 3), from pair vectors and the energy's gradient to them (N, J, 3)."""
        return (r[..., :, None] * g[..., None, :]).sum(1)

    def is_close(self, r: Tensor, geometry: Geometry, neighbor: Tensor, atomic_numbers: Tensor) -> Tensor:
        """Whether any two atoms are within the wall."""
        return self.close(r, atomic_numbers, neighbor.flatten())

    def close(self, r: Tensor, atomic_numbers: Tensor, j: Tensor) -> Tensor:
        """The same, of neighbours (N J,)."""
        if self.wall is None:
            return torch.zeros((), dtype=torch.bool, device=r.device)
        squared = r.square().sum(-1)
        # an edge to itself is not close
        return ((squared < self.outer(atomic_numbers, j).square()) & (squared > 0)).any()

    def outer(self, atomic_numbers: Tensor, j: Tensor) -> Tensor:
        """Where the wall of each pair begins [Å], (N, J) float64."""
        assert self.wall is not None
        of_j = atomic_numbers.index_select(0, j).view(atomic_numbers.shape[0], -1)
        pairs = atomic_numbers[:, None] * NUM_ELEMENTS + of_j
        return self.wall.outer.index_select(0, pairs.flatten()).view(pairs.shape).double()

    def _channels(self, index: Tensor, neighbor: Tensor) -> Tensor | None:
        """Element channels of the neighbour in each slot (N, J, W)."""
        model, num = self.model, self.model.index.num
        of_slots = index.index_select(0, neighbor.flatten())  # (N J,)
        if model.neighbor_channels is not None:
            channels = model.neighbor_channels.index_select(0, of_slots)
        elif num == 1:
            return None
        else:  # compiled, comparing costs less than one-hot vectors in memory
            channels = (of_slots[:, None] == torch.arange(num, device=index.device)).to(self.dtype)
        return channels.view(*neighbor.shape, -1)


def same_tensors(graph: Graph, other: Graph, names: Sequence[str]) -> bool:
    """Whether two graphs share these tensors, and do not only have equal ones."""
    return all(getattr(graph, name) is getattr(other, name) for name in names)


WIDTH = 17
"""Neighbours in `examples`."""


def examples(potential: Potential) -> list[Tensor]:
    """Inputs of the step, of sizes that nothing else has: equal ones are taken for the same."""
    n, width = 23, WIDTH
    slots = torch.arange(n * width).view(n, width)
    inputs = [
        torch.linspace(0, 50, 3 * n, dtype=torch.float64).view(n, 3),
        torch.ones(n, width, 3, dtype=torch.float64),
        slots % n,
        slots,
        torch.full((n,), potential.domain.elements[0]),
    ]
    if potential.domain.attrs:
        inputs.append(torch.zeros(n, len(potential.domain.attr_shifts), dtype=potential.dtype))
    return [x.to(potential.references.table.device) for x in inputs]


def exported(potential: Potential) -> ExportedProgram:
    """The step for any number of atoms and neighbours from 2 on."""
    step, inputs = Step(potential).eval(), examples(potential)
    module: nn.Module = step
    if not potential.explicit:
        module, inputs = traced_step(potential, inputs, step.close)
    wide = ((WIDTH,), (PLACES,))
    shapes = tuple({0: Dim.AUTO} | ({1: Dim.AUTO} if x.shape[1:2] in wide else {}) for x in inputs)
    with torch.no_grad():
        # not strict: dynamo does not follow all of the model's Python
        return export(module, tuple(inputs), dynamic_shapes=shapes, strict=False)


def compiled_function(potential: Potential) -> Function:
    """The step by torch.compile, which compiles at the first call, for a minute or more, once for all sizes."""
    waiting: list[list[Tensor]] = []
    if potential.explicit:
        plain = exported(potential).module()
    else:  # what is exported has been taken apart further than the compiler wants it
        plain, example = traced_step(potential, examples(potential), Step(potential).close)
        waiting.append(example)  # compiled first for sizes that are equal by chance it would be for no others
    on_cpu = potential.references.table.device.type == "cpu"
    # one file of C++ compiles in half the time of many
    options: dict[str, Any] | None = {"cpp_wrapper": True} if on_cpu else None
    module = torch.compile(plain, dynamic=True, fullgraph=True, options=options)

    def function(inputs: list[Tensor]) -> Sequence[Tensor]:
        """As `Step.forward`; raises `InputError` where the compiler fails."""
        try:
            with torch.no_grad():
                while waiting:
                    module(*waiting.pop())
                return module(*inputs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise InputError(
                f"backend compile: {in_a_line(error)}; is there a C++ compiler? backend='eager' needs none"
            ) from None

    return function


def in_a_line(error: Exception) -> str:
    """The first line of a compiler's complaint, which may have hundreds."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


class OnRows:
    """A potential whose step is computed by `function`; what that can not do, by the potential itself."""

    whole_lists: int
    """Lists of up to so many edges may hold some beyond the cut-off: they cost less than removing them."""

    def __init__(self, potential: Potential, function: Function) -> None:
        on_cpu = potential.references.table.device.type == "cpu"
        self.whole_lists = 512 if on_cpu else sys.maxsize
        self.potential, self.function = potential, function
        self._last: tuple[Graph, Rows | None, Tensor, list[Tensor]] | None = None
        self._most = getattr(potential.model, "most_pairs_of_slots", sys.maxsize)
        self._weights = [w for w in potential.parameters() if not w.is_inference()]
        self._compiled_with = self._state()
        self.by_itself = True
        """Whether the last structure was computed here, and not by the potential."""

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """What `Potential.forward` returns."""
        rows, references, pairs = self._rows_of(graph)
        self.by_itself = rows is not None and self._state() == self._compiled_with
        if rows is None or not self.by_itself:
            return self.potential(graph)
        inputs = [graph.positions, rows.shift, rows.neighbor, rows.reverse, graph.atomic_numbers]
        if self.potential.explicit:
            attrs = self.potential.model.attrs(graph)
            if attrs is not None:
                inputs.append(attrs)
        elif self.potential.domain.attrs:
            inputs.append(graph.inputs["graph_attrs"].index_select(0, graph.batch).to(self.potential.dtype))
        inputs += pairs
        learned, forces, virials, close, *features = self.function(inputs)
        if bool(close):  # seldom; the wall is the potential's business
            self.by_itself = False
            return self.potential(graph)
        return outputs(self.potential, graph, learned + references, forces, virials, features)

    def _state(self) -> list[tuple[int, int]]:
        """What changes with the weights, of which compiled code may hold products."""
        return [(w.data_ptr(), w._version) for w in self._weights]

    def _rows_of(self, graph: Graph) -> tuple[Rows | None, Tensor, list[Tensor]]:
        """Rows, reference energies and pairs; those of the last graph, where only positions are others."""
        if self._last is not None:
            last, rows, references, pairs = self._last
            if same_tensors(graph, last, KEPT):
                return rows, references, pairs
        rows, most = make_rows(graph, self.potential.domain.cutoff), self._most
        if rows is not None and rows.neighbor.numel() * rows.neighbor.shape[1] > most:
            rows = None
        references = self.potential.references(graph.atomic_numbers)
        pairs = []
        if not self.potential.explicit and rows is not None:
            pairs = of_pairs(rows) + of_elements(self.potential, graph.atomic_numbers)
        self._last = graph, rows, references, pairs
        return rows, references, pairs


def outputs(
    potential: Potential,
    graph: Graph,
    energies: Tensor,
    forces: Tensor,
    virials: Tensor,
    features: Sequence[Tensor] = (),
) -> dict[str, Tensor]:
    """What `Potential.forward` returns, from energies (N,), forces (N, 3) and virials (N, 3, 3), all float64."""
    if graph.cell.shape[0] == 1:
        energy, virial = energies.sum(0, keepdim=True), virials.sum(0, keepdim=True)
    else:
        energy = segment_sum(energies, graph.batch, graph.cell.shape[0])
        virial = segment_sum(virials, graph.batch, graph.cell.shape[0])
    stress = stress_of(graph, virial)
    out = {"forces": forces, "stress": stress, "energy": energy, "energies": energies}
    if potential.headed:
        r_ij = edge_vectors(graph).to(potential.dtype)
        own = zip(potential.headed, potential.label_heads)
        with torch.no_grad():
            out |= {name: head(graph, Features(*features), r_ij) for name, head in own}
    return out


def stress_of(graph: Graph, virial: Tensor) -> Tensor:
    """Stress (S, 3, 3) from virials (S, 3, 3); NaN without a full cell."""
    if graph.cell.shape[0] == 1:
        size = volume(graph.cell[0])
        return (virial + virial.mT) / (2 * size) if size > NO_VOLUME else torch.full_like(virial, torch.nan)
    sizes = torch.linalg.det(graph.cell).abs()[:, None, None]
    return torch.where(sizes > NO_VOLUME, (virial + virial.mT) / (2 * sizes), torch.nan)


def volume(cell: Tensor) -> float:
    """Volume of a cell (3, 3) [Å³]; of so few numbers, Python's are the quickest."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = cell.tolist()
    return abs(ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx))
