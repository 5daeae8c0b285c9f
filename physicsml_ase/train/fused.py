"""Training steps of Gaunt-ACE by the C++ kernel: the same figures and gradients, several times as fast on a CPU."""

import logging

import torch
from torch import Tensor

from physicsml_ase.backends.totals import Summed
from physicsml_ase.backends.training import TrainingKernel, training_kernel_reason
from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential
from physicsml_ase.train.agreement import gradient_error

log = logging.getLogger("physicsml_ase")
TOLERANCE = 2e-3
"""Relative difference of the weights' gradients, in float32, at which the kernel is taken to be right."""


def fused_reason(potential: Potential) -> str | None:
    """Why the kernel can not train this potential, in one line; None if it can."""
    if not potential.explicit:
        return "there is a kernel for the architecture gaunt_ace only"
    if potential.headed:
        return f"the kernel has no heads for {', '.join(potential.headed)}"
    if potential.dtype != torch.float32:
        return "the kernel trains in float32"
    return training_kernel_reason(potential.model)


class FusedPotential:
    """Predicts what a potential in training mode predicts, by the kernel, once that agrees at the first batch."""

    def __init__(self, potential: Potential) -> None:
        self.potential, self.kernel = potential, TrainingKernel(potential.model)
        self.given_up = False
        """Whether the kernel was found to be wrong here, and the plain code is used."""
        self._checked = self._values_checked = False

    def __call__(self, graph: Graph) -> dict[str, Tensor]:
        """As `Potential.forward`."""
        if not self._checked:
            self._checked = True
            self.given_up = not self._agrees(graph)
        if self.given_up or graph.positions.device.type != "cpu":
            return self.potential(graph)
        return self._by_kernel(graph)

    def evaluate(self, graph: Graph) -> dict[str, Tensor]:
        """As `Potential.forward` without gradients of weights: by the kernel once its forces were right."""
        if self.given_up or graph.positions.device.type != "cpu":
            return self.potential(graph)
        if self._checked or self._values_checked:
            return self._by_kernel(graph)
        plain = self.potential(graph)
        forces, right = (out["forces"].detach() for out in (self._by_kernel(graph), plain))
        error = float((forces - right).norm() / right.norm().clamp_min(1e-9))
        self._values_checked, self.given_up = True, not error <= TOLERANCE
        if self.given_up:
            log.warning("the training kernel's forces are off by %.1e: it is not used", error)
        return plain

    def _by_kernel(self, graph: Graph) -> dict[str, Tensor]:
        batch = Summed(graph, self.potential)
        if not batch.near:
            out = self.kernel.predict(graph, batch)
            return {name: getattr(out, name) for name in ("forces", "stress", "energy", "energies")}
        model = self.potential.model
        model.fused = self.kernel  # the wall is the potential's business
        try:
            return self.potential(graph)
        finally:
            model.fused = None

    def _agrees(self, graph: Graph) -> bool:
        """Whether the gradients are those of the plain code."""
        weights = [p for p in self.potential.parameters() if p.requires_grad]
        error = gradient_error(weights, self.potential(graph), self._by_kernel(graph))
        if not error <= TOLERANCE:
            log.warning("the training kernel's gradients are off by %.1e: it is not used", error)
        return error <= TOLERANCE
