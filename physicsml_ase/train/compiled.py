"""A compiled training step: energy and derivatives traced into one graph, which torch.compile then takes.

torch.compile can not differentiate a compiled function twice, which learning forces needs. Tracing the
energy together with its derivatives first leaves one function whose ordinary, single backward compiles.
"""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph, collate, edge_vectors
from physicsml_ase.potential import Potential, forces_and_stress
from physicsml_ase.train.agreement import gradient_error
from physicsml_ase.train.given_rows import row_tensors, rows_of, takes_rows, telling_rows

log = logging.getLogger("physicsml_ase")
Compiled = Callable[[list[Tensor], list[Tensor], Tensor, list[Tensor]], list[Tensor]]


WORTH_SECONDS = 600.0
"""Runs of at least this length are compiled where that is left to us: it takes half a minute or more, and makes
training one and a half times as fast."""
GRADIENTS = {True: 1e-2, False: 1e-6}
"""Relative difference of a weight's gradient, in float32 or not, at which compiled code is taken to be right."""


def can_compile() -> bool:
    """Whether there is a compiler that torch.compile can use for CPUs."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


class CompiledPotential:
    """Predicts what a potential in training mode predicts, from code compiled at its first batch."""

    def __init__(self, potential: Potential, options: bool | Mapping[str, Any]) -> None:
        self.potential = potential
        self.options = {} if isinstance(options, bool) else dict(options)
        self.given_up = not getattr(potential.model, "compiles", True)
        """Whether the compiled code was found to be wrong, or the model has none, and the plain code is used."""
        if self.given_up:
            log.warning(
                "compile: training steps of %s are not compiled: they go on as they are",
                potential.config.name,
            )
        self._function: Compiled | None = None
        self._names: list[str] = []
        self._core: Callable[..., Any] | None = None
        self._told = False

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """As `Potential.forward`; the first call compiles, which takes a minute or more."""
        if self.given_up:
            return self.potential(graph)
        if self.potential.explicit:
            return self._explicitly(graph) if _ordinary(graph, 0) else self._plainly(graph)
        with torch.no_grad():
            r_ij = edge_vectors(graph)
            if self.potential.wall is not None and self.potential.wall.near(graph, r_ij) is not None:
                return self.potential(graph)  # which no structure of the training data needs
        num_structures, graph = len(graph.num_atoms), _filled_up(graph)
        weights: list[Tensor] = list(self.potential.parameters())
        tensors = _without_labels(graph)
        rows = row_tensors(self.potential, graph) if takes_rows(self.potential) else []
        if not _ordinary(graph, len(graph.num_atoms)) or any(size < 2 for x in rows for size in x.shape):
            return _first(num_structures, graph, self._plainly(graph))
        if self._function is None:
            log.info("compiling the training step, once")
            self._function = self._compile(weights, graph, rows)
            if not self._agrees(graph, dict(zip(self._names, self._function(weights, tensors, r_ij, rows)))):
                self.given_up = True
                return _first(num_structures, graph, self(graph))
        out = dict(zip(self._names, self._function(weights, tensors, r_ij, rows)))
        return _first(num_structures, graph, out)

    def _plainly(self, graph: Graph) -> dict[str, Tensor]:
        if not self._told:
            self._told = True
            log.warning("compile: batches without two atoms, two edges and two rows of them are not compiled")
        return self.potential(graph)

    def _explicitly(self, graph: Graph) -> dict[str, Tensor]:
        """A model that writes out its gradient is compiled as it is: its training differentiates only once."""
        model = self.potential.model
        first = self._core is None
        if self._core is None:
            log.info("compiling the training step, once")
            try:
                self._core = torch.compile(model.on_slots, dynamic=True, **self.options)
            except TypeError as error:
                raise InputError(f"compile: {error}") from None
        model.core = self._core
        try:
            out = self.potential(graph)
        finally:
            model.core = None
        if first:
            self.given_up = not self._agrees(graph, out)
            return self(graph)  # the comparison has used up what leads to the gradients
        return out

    def _agrees(self, graph: Graph, compiled: Mapping[str, Tensor]) -> bool:
        """Whether the compiled code says what the plain code says, and so do its gradients: compilers have bugs."""
        single = self.potential.dtype == torch.float32
        tolerance, plain, wrong = 1e-3 if single else 1e-8, self.potential(graph), None
        for name, value in plain.items():
            missing = value.isnan() & compiled[name].isnan()  # such as the stress of a molecule
            error = torch.where(missing, 0.0, compiled[name] - value).abs().max().item()
            if not error <= tolerance * float(value.detach().nan_to_num().abs().max().clamp_min(1e-3)):
                wrong = name, error
        if wrong is None:
            weights = [p for p in self.potential.parameters() if p.requires_grad]
            error = gradient_error(weights, plain, compiled)
            wrong = None if error <= GRADIENTS[single] else ("gradient", error)
        if wrong is not None:
            log.warning(
                "the compiled %s is off by %.1e, so the training step stays uncompiled; "
                "torch %s's compiler is at fault: try another version",
                *(*wrong, torch.__version__),
            )
        return wrong is None

    def _compile(self, weights: list[Tensor], graph: Graph, rows: list[Tensor]) -> Compiled:
        potential, names = self.potential, [name for name, _ in self.potential.named_parameters()]
        inputs = list(graph.inputs)

        class Predict(nn.Module):
            """What is traced, as a module whose weights can be given."""

            def __init__(self) -> None:
                super().__init__()
                self.potential = potential

            def forward(self, graph: Graph, r_ij: Tensor, rows: list[Tensor]) -> dict[str, Tensor]:
                if not rows:
                    return self.potential._predict(graph, r_ij)
                r_ij = r_ij.to(self.potential.dtype)
                given = rows_of(self.potential, graph, rows)
                return self.potential._outputs(graph, r_ij, self.potential.model(graph, r_ij, given))

        predict = Predict()

        def function(
            weights: list[Tensor], tensors: list[Tensor], r_ij: Tensor, rows: list[Tensor]
        ) -> list[Tensor]:
            """All outputs, of weights and of a batch that are given as tensors."""
            batch = _graph(tensors, inputs)
            r_ij = r_ij.detach().requires_grad_()
            given = {f"potential.{name}": weight for name, weight in zip(names, weights)}
            out = torch.func.functional_call(predict, given, (batch, r_ij, rows))
            if potential.has_energy:
                (g,) = torch.autograd.grad(out["energy"].sum(), r_ij, create_graph=True)
                out = forces_and_stress(batch, r_ij.detach(), g) | out
            self._names = list(out)
            return list(out.values())

        example = _telling(graph, weights)
        used = {size for x in (*weights, *_without_labels(example)) for size in x.shape} | set(range(10))
        rows = telling_rows(rows, example, used) if rows else []
        with torch.no_grad():
            r_ij = edge_vectors(example)
        trace = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)
        with torch.enable_grad():
            traced = trace(weights, _without_labels(example), r_ij, rows)
        for node in list(traced.graph.nodes):
            # the trace holds a detach of every tensor that the derivative used again: the loss's gradient
            # would not flow through it
            if node.target is torch.ops.aten.detach.default:
                node.replace_all_uses_with(node.args[0])
                traced.graph.erase_node(node)
        traced.recompile()
        try:
            compiled: Compiled = torch.compile(traced, dynamic=True, **self.options)
        except TypeError as error:
            raise InputError(f"compile: {error}") from None
        # compiled for a batch, where sizes may be equal by chance, it would be compiled again for the next
        compiled(weights, _without_labels(example), r_ij, rows)
        return compiled


def _telling(graph: Graph, weights: list[Tensor]) -> Graph:
    """Copies of the batch side by side, as many as give N, E and S sizes that nothing else has: in a trace,
    equal sizes are taken for the same size."""
    others = {size for weight in weights for size in weight.shape} | set(range(10))
    for copies in range(1, 1000):
        example = collate([graph] * copies)
        sizes = {len(example.num_atoms), len(example.positions), len(example.reverse)}
        if len(sizes) == 3 and not sizes & others:
            break
    return example


def _ordinary(graph: Graph, num_structures: int) -> bool:
    """Whether code is compiled once for the batch's sizes: for 0, 1 and equal ones it would be anew, each time."""
    num_atoms, num_edges = len(graph.positions), len(graph.reverse)
    return min(num_atoms, num_edges) > 1 and len({num_structures, num_atoms, num_edges}) == 3


def _filled_up(graph: Graph) -> Graph:
    """The batch with structures without edges, and that no atom belongs to, where it has one or as many as atoms."""
    s, taken = len(graph.num_atoms), {0, 1, len(graph.positions), len(graph.reverse)}
    more = next(n for n in range(len(taken) + 1) if s + n not in taken)
    if not more:
        return graph

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, x[:1].expand(more, *x.shape[1:])])

    # means over their atoms would not be numbers without any
    return graph._replace(
        num_atoms=torch.cat([graph.num_atoms, graph.num_atoms.new_ones(more)]),
        num_edges=torch.cat([graph.num_edges, graph.num_edges.new_zeros(more)]),
        cell=longer(graph.cell),
        pbc=longer(graph.pbc),
        inputs={name: longer(x) if name == "graph_attrs" else x for name, x in graph.inputs.items()},
    )


def _first(num_structures: int, graph: Graph, out: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was predicted of the structures that a batch had before it was filled up."""
    filled = len(graph.num_atoms)
    if filled == num_structures:
        return out
    return {name: x[:num_structures] if len(x) == filled else x for name, x in out.items()}


def _without_labels(graph: Graph) -> list[Tensor]:
    *tensors, inputs, _ = graph
    return [*tensors, *inputs.values()]


def _graph(tensors: list[Tensor], inputs: list[str]) -> Graph:
    fields = len(Graph._fields) - 2
    return Graph(*tensors[:fields], dict(zip(inputs, tensors[fields:])), {})  # type: ignore[arg-type, call-arg]
