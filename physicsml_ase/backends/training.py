"""Training of Gaunt-ACE on a CPU by a kernel in C++ (`training.cpp`): values, then the weights' gradient.

    kernel = TrainingKernel(model)
    node_energy, edge_gradient = kernel(graph, r_ij)  # as the model's, for a loss of both
    loss(node_energy, edge_gradient).backward()  # fills the gradient of the model's parameters

Shapes: N atoms, E edges, P weights.
"""

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from physicsml_ase.backends.build import BuildError, build, tell_once
from physicsml_ase.backends.crew import Crew
from physicsml_ase.backends.shares import Share, shares
from physicsml_ase.backends.totals import Summed, Totals, library
from physicsml_ase.graph import Graph
from physicsml_ase.models.gaunt_ace import GauntACE
from physicsml_ase.nn.sphere import SphereProduct


def training_kernel_reason(model: nn.Module) -> str | None:
    """Why the kernel can not train this model, in one line; None if it can. Compiles it if need be."""
    if not isinstance(model, GauntACE):
        return "there is a training kernel for the architecture gaunt_ace only"
    weight, channels = model.in_order()[0].mix_density.weight, model.num_node_vectors
    parameters = list(model.parameters())
    if any(p.dtype != weight.dtype for p in parameters) or weight.dtype not in (torch.float32, torch.float64):
        return "the training kernel computes in float32 or float64, and so must all of the model"
    if any(p.device.type != "cpu" for p in parameters):
        return f"the training kernel is for CPUs, and the model is on {weight.device.type}"
    if model.attrs.num:
        return "the training kernel does not know attributes of structures"
    if channels % 16:
        return f"the training kernel is for multiples of 16 channels, and this model has {channels}"
    try:
        _library(model)
        library(weight.dtype)
    except BuildError as error:
        tell_once(str(error))
        return str(error)
    return None


class Plan(NamedTuple):
    """Edges of some structures in the kernel's order, in which an atom's neighbours are sorted by element.

    Places of atoms and edges are counted from the first of them.
    """

    of: Share
    num_atoms: int
    num_edges: int
    longest: int
    start: Tensor  # (N + 1,) int64
    order: Tensor  # (E,) int32, place in the graph's order
    reverse: Tensor  # (E,) int32
    element: Tensor  # (N,) int32
    other: Tensor  # (E,) int32, of the neighbour


class TrainingKernel:
    """Energies and their gradient of a Gaunt-ACE model on a CPU, differentiable once by the model's parameters.

    The parameters are read at each call. A batch is computed in parts of some structures each, always the same ones:
    results do not depend on the number of threads that share them, which is found by trying unless it is given. Not
    for several calls at once: the memory is kept.
    """

    def __init__(self, model: GauntACE, threads: int | None = None) -> None:
        reason = training_kernel_reason(model)
        if reason:
            raise BuildError(reason)
        self.crew = Crew(threads)
        self._library = _library(model)
        self._parameters = _parameters(model)
        self._sizes = [p.numel() for p in self._parameters]
        if sum(self._sizes) != self._library.num_weights():
            raise ValueError("the kernel and the model do not have the same weights")
        self._dtype = self._parameters[0].dtype
        self._places = model.index.places.contiguous()
        layers = model.in_order()
        self._grids = [*_grid(layers[0].product, self._dtype), *_grid(layers[-1].product, self._dtype)]
        geometry = model.geometry
        number = ctypes.c_double if self._dtype == torch.float64 else ctypes.c_float
        told = _told_type(number)
        self._told = told(
            model.scale, geometry.cutoff, geometry.stretch, *(x.data_ptr() for x in self._grids)
        )
        self._scratch = dict[int, Tensor]()  # of each thread

    def __call__(self, graph: Graph, r_ij: Tensor) -> tuple[Tensor, Tensor]:
        """Energies of the atoms (N,), and their sum's gradient to the pair vectors r_ij (E, 3) [Å], (E, 3)."""
        return _Function.apply(self, self.plan(graph), r_ij.detach().to(self._dtype), *self._parameters)

    def predict(self, graph: Graph, batch: Summed) -> Totals:
        """What a potential predicts of a batch, differentiable as above."""
        return Totals(*_Predictions.apply(self, self.plan(graph), batch, *self._parameters))

    def plan(self, graph: Graph) -> list[Plan]:
        """The batch's edges in the kernel's order, in parts."""
        return [self._plan(graph, share) for share in shares(graph)]

    def _plan(self, graph: Graph, share: Share) -> Plan:
        atoms, edges = share
        n, num_edges = atoms.stop - atoms.start, edges.stop - edges.start
        parts = [torch.empty(n + 1, dtype=torch.int64)]
        parts += [torch.empty(k, dtype=torch.int32) for k in (num_edges, num_edges, n, num_edges)]
        i, j = graph.edge_index[:, edges]
        given = [
            x.contiguous() for x in (i, j, graph.reverse[edges], graph.atomic_numbers[atoms], self._places)
        ]
        counts = (ctypes.c_int64(k) for k in (n, num_edges, atoms.start, edges.start))
        longest = self._library.plan(*counts, *(_at(x) for x in (*given, *parts)))
        return Plan(share, n, num_edges, longest, *parts)

    def values(self, plans: list[Plan], r_ij: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (N,) and gradient (E, 3) at weights (P,)."""
        energies = r_ij.new_empty(sum(plan.num_atoms for plan in plans))
        gradient = torch.zeros_like(r_ij)

        def part(k: int, thread: int) -> None:
            """Energies and gradient of the structures of one plan."""
            atoms, edges = plans[k].of
            results = _Results(energies[atoms].data_ptr(), gradient[edges].data_ptr(), None)
            self._library.values(
                ctypes.byref(_batch(plans[k], r_ij[edges], None)),
                ctypes.byref(self._told),
                ctypes.byref(results),
                _at(weights),
                ctypes.c_int64(plans[k].longest),
                self._memory(plans[k], 1, thread),
            )

        self.crew.each(part, len(plans))
        return energies, gradient

    def weights_gradient(
        self, plans: list[Plan], r_ij: Tensor, weights: Tensor, g_energies: Tensor, g_gradient: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradient to each parameter from that to energies (N,) and to their gradient (E, 3)."""
        g_energies, displacement = g_energies.contiguous(), g_gradient.contiguous()
        of_parts = weights.new_empty(len(plans), len(weights))

        def part(k: int, thread: int) -> None:
            """The weights' gradient of the structures of one plan."""
            atoms, edges = plans[k].of
            results = _Results(None, None, g_energies[atoms].data_ptr())
            self._library.weights_gradient(
                ctypes.byref(_batch(plans[k], r_ij[edges], displacement[edges])),
                ctypes.byref(self._told),
                ctypes.byref(results),
                _at(weights),
                _at(of_parts[k]),
                ctypes.c_int64(plans[k].longest),
                self._memory(plans[k], 2, thread),
            )

        self.crew.each(part, len(plans), size=len(r_ij))
        flat = of_parts[0].clone()  # and not a view that keeps all parts
        for row in of_parts[1:]:  # in this order, whoever computed them
            flat += row
        return tuple(x.view(p.shape) for x, p in zip(flat.split(self._sizes), self._parameters))

    def _memory(self, plan: Plan, parts: int, thread: int) -> ctypes.c_void_p:
        """Memory of a thread for a pass of so many parts (values, tangents)."""
        sizes = (plan.num_atoms, plan.num_edges, plan.longest)
        size = self._library.scratch_size(*(ctypes.c_int64(k) for k in sizes), parts)
        scratch = self._scratch.get(thread)
        if scratch is None or scratch.shape[0] < size:
            scratch = self._scratch[thread] = torch.empty(size + size // 8, dtype=torch.uint8)
        return _at(scratch)


class _Function(torch.autograd.Function):
    """The kernel's energies (N,) and gradient (E, 3), of r_ij (E, 3) and the weights, and the weights' gradient."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx, kernel: TrainingKernel, plans: list[Plan], r_ij: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energies (N,) and gradient (E, 3) of r_ij (E, 3), by the weights in the kernel's order."""
        r_ij = r_ij.contiguous()
        weights = torch.cat([p.reshape(p.numel()) for p in parameters])
        ctx.kernel, ctx.plans = kernel, plans
        ctx.save_for_backward(r_ij, weights)
        return kernel.values(plans, r_ij, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_energies: Tensor, g_gradient: Tensor):  # type: ignore[no-untyped-def, override]
        r_ij, weights = ctx.saved_tensors
        kernel: TrainingKernel = ctx.kernel
        gradients = kernel.weights_gradient(ctx.plans, r_ij, weights, g_energies, g_gradient)
        return None, None, None, *gradients


class _Predictions(torch.autograd.Function):
    """The predictions of a batch, of the weights."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def, override]
        ctx, kernel: TrainingKernel, plans: list[Plan], batch: Summed, *parameters: Tensor
    ) -> Totals:
        """As `Totals`."""
        weights = torch.cat([p.reshape(p.numel()) for p in parameters])
        ctx.kernel, ctx.plans, ctx.batch = kernel, plans, batch
        ctx.save_for_backward(weights)
        return tuple(batch.predict(*kernel.values(plans, batch.r_ij, weights)))  # type: ignore[return-value]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *g: Tensor):  # type: ignore[no-untyped-def, override]
        (weights,) = ctx.saved_tensors
        kernel: TrainingKernel = ctx.kernel
        back = ctx.batch.send_back(Totals(*g))
        return None, None, None, *kernel.weights_gradient(ctx.plans, ctx.batch.r_ij, weights, *back)


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_atoms", "num_edges")),
        *((name, ctypes.c_void_p) for name in ("start", "order", "reverse", "element", "other")),
        *((name, ctypes.c_void_p) for name in ("r_ij", "displacement")),
    ]


class _Results(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("energies", "gradient", "energies_gradient")]


def _told_type(number: Any) -> type[ctypes.Structure]:
    fields = [
        *((name, number) for name in ("scale", "cutoff", "stretch")),
        *((name, ctypes.c_void_p) for name in ("inward", "outward", "inward_last", "outward_last")),
    ]
    return type("_Told", (ctypes.Structure,), {"_fields_": fields})


def _at(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _batch(plan: Plan, r_ij: Tensor, displacement: Tensor | None) -> _Batch:
    tables = (x.data_ptr() for x in (plan.start, plan.order, plan.reverse, plan.element, plan.other))
    moved = None if displacement is None else displacement.data_ptr()
    return _Batch(plan.num_atoms, plan.num_edges, *tables, r_ij.data_ptr(), moved)


def _parameters(model: GauntACE) -> list[nn.Parameter]:
    """The model's parameters in the kernel's order."""
    found = [model.neighbor_channels, model.density_gate.table]
    for layer in model.in_order():
        found += [None if layer.message is None else layer.message.radial, layer.mix_density.weight]
        found += [None if layer.mix_message is None else layer.mix_message.weight]
        found += [layer.mix_gate.table, layer.product_gate.table]
        readout = layer.readout
        found += [readout.inward, readout.outward, readout.linear, readout.hidden_bias, readout.energy_bias]
        found += [None if layer.send is None else layer.send.weight, layer.send_bias]
    return [p for p in found if p is not None]


def _grid(product: SphereProduct, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Half the points on the sphere: harmonics there (G, M), and weighted and halved (G, (L + 1)^2)."""
    half = product.inward.shape[0] // 2
    inward, outward = product._exact["inward"][:half], product._exact["weighted_outward"].T[:half]
    return inward.to(dtype).contiguous(), outward.to(dtype).contiguous()


def _sizes(model: GauntACE) -> dict[str, int]:
    """What is compiled into the kernel."""
    layers = model.in_order()
    first, last = layers[0], layers[-1]
    return {
        "DOUBLE": int(first.mix_density.weight.dtype == torch.float64),
        "CHANNELS": first.mix_density.weight.shape[2],
        "RADIAL": model.geometry.num_radial,
        "ELEMENTS": model.index.num,
        "ELEMENT_CHANNELS": 0 if model.neighbor_channels is None else model.neighbor_channels.shape[1],
        "MAX_ELL": model.geometry.sphere.lmax,
        "CORRELATION": first.product.nu,
        "MESSAGE_ELL": max(last.message.degrees) if last.message is not None else 0,
        "LAYERS": len(layers),
        "HIDDEN": first.readout.outward.shape[0],
        "POINTS": first.product.inward.shape[0] // 2,
        "POINTS_LAST": last.product.inward.shape[0] // 2,
    }


def _library(model: GauntACE) -> ctypes.CDLL:
    library = build("training.cpp", tuple(_sizes(model).items()))
    library.scratch_size.restype = ctypes.c_size_t
    library.num_weights.restype = library.plan.restype = ctypes.c_int64
    library.values.restype = library.weights_gradient.restype = None
    return library
