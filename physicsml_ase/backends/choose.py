"""Which backend computes: the one asked for, or the fastest that works here; each is checked against eager.

A backend is a function from a `Graph` to what `Potential.forward` returns of it.
"""

import logging
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from physicsml_ase.atoms import build_graph
from physicsml_ase.backends.compiled import Function, OnRows, compiled_function
from physicsml_ase.backends.graphed import Graphed, plain_function
from physicsml_ase.backends.heap import Heap, page_faults
from physicsml_ase.backends.native import OnKernel, Step, not_native
from physicsml_ase.backends.package import (
    Package,
    cached_package,
    not_compilable,
    package_function,
    unfit,
)
from physicsml_ase.backends.plain import step_function
from physicsml_ase.config import did_you_mean
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph
from physicsml_ase.neighbors import Origin, neighbor_list
from physicsml_ase.potential import Potential

log = logging.getLogger("physicsml_ase")

Backend = Callable[[Graph], dict[str, Tensor]]
NAMES = ("auto", "eager", "compile", "aoti", "kernel", "cuda_graph")
LARGE = 2000
"""Of structures of more atoms a piece is enough to check a backend, where eager might not have the memory."""
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Deviations from eager up to this, of the largest value, are rounding."""


class Engine:
    """The backend in use. It is checked on `frames`, and without any on the first structure computed."""

    def __init__(self, potential: Potential, name: str, backend: Backend, frames: Iterable[Graph]) -> None:
        self.potential, self.name, self._backend = potential, name, backend
        self._checked = backend is potential
        self._heap = Heap() if potential.references.table.device.type == "cpu" else None
        if not self._checked:
            for frame in frames:
                self._check(frame.to(potential.references.table.device))

    @property
    def whole_lists(self) -> int:
        """Lists of up to so many edges may hold some beyond the cut-off, which is quicker than removing them."""
        if any(label.level == "edge" for label in self.potential.labels):
            return 0
        return getattr(self._backend, "whole_lists", 0)

    @property
    def features(self) -> Tensor | None:
        """The model's scalars of each atom (N, F) in the last batch, where the kernel kept them."""
        return self._backend.features if isinstance(self._backend, OnKernel) else None

    @property
    def close(self) -> bool:
        """Whether atoms of the last structure were within a wall, where the backend knows."""
        return isinstance(self._backend, OnKernel) and self._backend.close

    @property
    def follows(self) -> bool:
        """Whether `follow` may tell something."""
        return self._checked and isinstance(self._backend, OnKernel)

    def keep_features(self) -> None:
        """Keep them from now on, where that costs nothing."""
        if isinstance(self._backend, OnKernel):
            self._backend.keep_features = True

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """What `Potential.forward` returns."""
        if not self._checked:
            if graph.positions.shape[0] <= LARGE:
                return self._check(graph)
            self._check(piece(graph, self.potential))
        if self._heap is None or isinstance(self._backend, OnKernel):
            return self._backend(graph)
        before = page_faults()
        results = self._backend(graph)
        self._heap.after_step(page_faults() - before)
        return results

    def follow(self, graph: Graph, origin: Origin) -> Step | None:
        """As `OnKernel.follow`; None by any other backend."""
        return self._backend.follow(graph, origin) if isinstance(self._backend, OnKernel) else None

    def _check(self, graph: Graph) -> dict[str, Tensor]:
        fast = self._backend(graph)
        if not getattr(self._backend, "by_itself", True):
            return fast  # it is eager's, and tells nothing: the next structure will
        plain, self._checked = self.potential(graph), True
        wrong = disagreement(self.potential, graph, plain, fast)
        if wrong is not None:
            log.warning("backend %s is not used: %s; using eager", self.name, wrong)
            self.name, self._backend = "eager", self.potential
        return plain


def piece(graph: Graph, potential: Potential) -> Graph:
    """Some hundred atoms next to each other of the first structure of a batch, as a cluster."""
    domain, device = potential.domain, graph.positions.device
    x = graph.positions[graph.batch == 0].cpu()
    some = (x - x[0]).square().sum(1).argsort()[: LARGE // 8]
    positions, numbers = x[some].numpy(), graph.atomic_numbers.cpu()[some].numpy()
    cell, pbc = np.zeros((3, 3)), np.zeros(3, bool)
    neighbors = neighbor_list(positions, cell, pbc, domain.cutoff, domain.self_interaction)
    inputs = {name: value[:1] for name, value in graph.inputs.items()}
    return build_graph(numbers, positions, cell, pbc, neighbors, inputs, {}).to(device)


def check_name(wanted: str) -> None:
    """Raise `InputError` for what is no backend's name."""
    if wanted not in NAMES:
        raise InputError(f"backend {wanted!r} is not known: {did_you_mean(wanted, NAMES)}")


def choose(
    wanted: str,
    potential: Potential,
    frames: Iterable[Graph] = (),
    package: Package | None = None,
    threads: int | None = None,
) -> Engine:
    """The backend `wanted`, of `NAMES`, for a potential, and the `package` it came from, if it did.

    Raises `InputError` where one that is asked for by name can not be had.
    """
    check_name(wanted)
    if wanted == "auto":
        name, backend = _fastest(potential, package, threads)
    else:
        name, backend = wanted, _make(wanted, potential, package, threads)
    engine = Engine(potential, name, backend, frames)
    log.info("backend: %s", engine.name)
    return engine


def _make(name: str, potential: Potential, package: Package | None, threads: int | None) -> Backend:
    if name == "eager":
        return _eager(potential)
    if name == "kernel":
        return _kernel(potential, threads)
    device = potential.references.table.device
    if name == "cuda_graph" and device.type != "cuda":
        raise InputError(f"backend cuda_graph: is for GPUs, and the model is on {device}: use device='cuda'")
    if (reason := not_compilable(potential)) is not None:
        raise InputError(f"backend {name}: {reason}")
    if name == "cuda_graph":
        return OnRows(potential, recorded(potential, plain_function(potential)))
    if name == "compile":
        function = compiled_function(potential)
        if device.type == "cuda":
            function = recorded(potential, function)
        return OnRows(potential, function)
    if package is not None and (reason := unfit(package, potential)) is not None:
        raise InputError(f"{package.path}: {reason}")
    return OnRows(potential, package_function(package or cached_package(potential)))


def recorded(potential: Potential, function: Function) -> Graphed:
    """A step that a GPU replays."""
    return Graphed(function, ROUNDING[potential.dtype], potential.domain.energy_scale)


def _fastest(potential: Potential, package: Package | None, threads: int | None) -> tuple[str, Backend]:
    """The fastest that can be had without a long wait."""
    if potential.references.table.device.type == "cpu":
        names = ["kernel", *(["aoti"] if package is not None else [])]
    else:
        names = [*(["aoti"] if package is not None else []), "cuda_graph"]
    for name in names:
        try:
            return name, _make(name, potential, package, threads)
        except InputError as error:
            log.log(logging.WARNING if name == "aoti" else logging.DEBUG, "%s", error)
    return "eager", _eager(potential)


def _eager(potential: Potential) -> Backend:
    """The potential itself, or, on a CPU, what it does with less of what is the same at each step of dynamics."""
    on_cpu = potential.references.table.device.type == "cpu"
    on_rows = potential.explicit and hasattr(potential.model, "on_slots")
    if not on_cpu or not on_rows or not_compilable(potential) is not None:
        return potential
    return OnRows(potential, step_function(potential))


def _kernel(potential: Potential, threads: int | None) -> Backend:
    reason = not_native(potential)
    if reason is not None:
        raise InputError(f"backend kernel: {reason}")
    return OnKernel(potential, threads)


def disagreement(
    potential: Potential, graph: Graph, plain: dict[str, Tensor], fast: dict[str, Tensor]
) -> str | None:
    """Where `fast` results differ from `plain` ones by more than rounding, in words."""
    if plain.keys() != fast.keys():
        return f"it gives {', '.join(fast)}, and not {', '.join(plain)}"
    domain, num_atoms = potential.domain, graph.positions.shape[0]
    references = potential.references(graph.atomic_numbers)
    volume = torch.linalg.det(graph.cell).abs()[:, None, None]
    for name, right in plain.items():
        found, least = fast[name], domain.label_scales.get(name, 1.0)
        if name == "energies":  # the learned part: reference energies would hide an error
            right, found, least = right - references, found - references, domain.energy_scale
        elif name == "energy":
            right, found, least = right - references.sum(), found - references.sum(), domain.energy_scale
            least *= num_atoms
        elif name == "forces":
            least = domain.energy_scale
        elif name == "stress":  # as a virial, of such forces times about an Å
            right, found, least = right * volume, found * volume, domain.energy_scale * num_atoms
        if not torch.equal(right.isnan(), found.isnan()):
            return f"its {name} is not a number where it should be one, or one where there is none"
        if not right.numel():
            continue
        largest = max(float(right.nan_to_num().abs().max()), least)
        error = float((found - right).nan_to_num().abs().max())
        if not error <= ROUNDING[potential.dtype] * largest:
            return f"its {name} differs from the plain one's by {error / largest:.1e} of the largest value"
    return None
