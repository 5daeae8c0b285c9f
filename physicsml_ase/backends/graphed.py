"""A step on a GPU recorded once and then replayed whole: a CUDA graph.

A step is some hundred kernels of a few microseconds, and launching them one by one takes ten times as long as they
do. A recorded step reads and writes the same memory each time, for inputs of the same sizes: in dynamics those of
one neighbour list after the other, whose sizes are rounded up on a GPU (`rows`).
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.backends.compiled import Function, Step, in_a_line
from physicsml_ase.backends.derived import derived_step
from physicsml_ase.potential import Potential

log = logging.getLogger("physicsml_ase")
WARM_UP = 2
"""Times that a step is computed before it is recorded: libraries allocate at first."""


def plain_function(potential: Potential) -> Function:
    """The step as it is, of inputs as `compiled.Step` has them."""
    step = Step(potential).eval()
    plain = step if potential.explicit else derived_step(potential, step.close)

    def function(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return plain(*inputs)

    return function


class Recorded(NamedTuple):
    """A recorded step and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Sequence[Tensor]


class Graphed:
    """`function`, replayed where inputs have the sizes of the last ones, and else computed as it is.

    What is computed once only, as one batch after another of unlike structures, is never recorded. The first replay
    of what was recorded is compared with the function itself: they may differ by `rounding` of the largest value, or
    of `scale` where all are smaller.
    """

    def __init__(self, function: Function, rounding: float, scale: float) -> None:
        self._function, self._rounding, self._scale = function, rounding, scale
        self._sizes: list[torch.Size] = []  # of the last inputs
        self._recorded: Recorded | None = None
        self._given: list[Tensor] = []  # what is in the recorded step's inputs
        self._checked = False
        self._refused = False

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """The function's outputs, which are nobody else's."""
        sizes = [x.shape for x in inputs]
        again, self._sizes = sizes == self._sizes, sizes
        if not again:
            self._recorded = None  # gives its memory back
        with torch.no_grad(), _on(inputs[0].device):
            if again and self._recorded is None and not self._refused:
                self._recorded, self._given, self._checked = self._record(inputs), inputs, False
                self._refused = self._recorded is None
            if self._recorded is None:
                return self._function(inputs)
            return self._replayed(inputs, *self._recorded)

    def _replayed(
        self, inputs: list[Tensor], graph: torch.cuda.CUDAGraph, kept: list[Tensor], outputs: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        moved = False
        for there, new, old in zip(kept, inputs, self._given, strict=True):
            if new is not old:
                there.copy_(new)
                moved = True
        self._given = inputs
        graph.replay()
        found = [x.clone() for x in outputs]
        if moved and not self._checked:
            self._checked = True
            plain = self._function(inputs)
            if not all(map(self._equal, found, plain)):
                log.warning(
                    "the recorded step gives other results than the plain one: it is launched in parts"
                )
                self._recorded, self._refused = None, True
                return plain
        return found

    def _equal(self, a: Tensor, b: Tensor) -> bool:
        if a.dtype == torch.bool:
            return bool((a == b).all())
        return not a.numel() or bool(
            (a - b).abs().max() <= self._rounding * b.abs().max().clamp_min(self._scale)
        )

    def _record(self, inputs: list[Tensor]) -> Recorded | None:
        kept = [x.clone() for x in inputs]
        try:
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(WARM_UP):
                    self._function(kept)
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = self._function(kept)
        except RuntimeError as error:
            log.warning("the step can not be recorded (%s), and is launched in parts", in_a_line(error))
            return None
        return Recorded(graph, kept, outputs)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
