"""A step on a GPU recorded once and then replayed whole: a CUDA graph.

A step is some hundred kernels of a few microseconds, and launching them one by one takes ten times as long as they
do. A recorded step reads and writes the same memory each time, for inputs of the same sizes: in dynamics those of
one neighbour list after the other, whose sizes are rounded up on a GPU (`rows`).
"""

import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.backends.compiled import Function, Step, in_a_line
from physicsml_ase.backends.derived import derived_step
from physicsml_ase.potential import Potential

log = logging.getLogger("physicsml_ase")
RECORDING = threading.Lock()
"""A process can record one step at a time."""
WARM_UP = 2
"""Times that a step is computed before it is recorded: libraries allocate at first."""


def plain_function(potential: Potential) -> Function:
    """The step as it is, of inputs as `compiled.Step` has them."""
    step = Step(potential).eval()
    plain = step if potential.explicit else derived_step(potential, step.close)

    def function(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch.inference_mode(False), torch.no_grad():  # autograd takes no tensors of inference mode
            return plain(*(x.clone() if x.is_inference() else x for x in inputs))

    return function


class Recorded(NamedTuple):
    """A recorded step and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: Sequence[Tensor]


class Graphed:
    """`function`, replayed where inputs have the sizes of the last ones, and else computed as it is.

    What is computed once only, as one batch after another of unlike structures, is never recorded. A recording is
    compared with the function itself, on positions (the first input) that were moved: they may differ by `rounding`
    of the largest value, or of `scale` where all are smaller. Several threads take turns.
    """

    def __init__(self, function: Function, rounding: float, scale: float) -> None:
        self._function, self._rounding, self._scale = function, rounding, scale
        self._sizes: list[torch.Size] = []  # of the last inputs
        self._recorded: Recorded | None = None
        self._given: list[Tensor] = []  # what is in the recorded step's inputs
        self._refused = False
        self._too_large: list[torch.Size] | None = None  # sizes for whose recording there was no memory
        self._lock = threading.Lock()

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """The function's outputs, which are nobody else's."""
        with self._lock, torch.inference_mode(False), torch.no_grad(), _on(inputs[0].device):
            sizes = [x.shape for x in inputs]
            again, self._sizes = sizes == self._sizes, sizes
            if not again:
                self._recorded = None  # gives its memory back
            if again and self._recorded is None and not self._refused and sizes != self._too_large:
                self._recorded, self._given = self._checked(inputs), []
            if self._recorded is None:
                return self._function(inputs)
            graph, kept, outputs = self._recorded
            for k, (there, new) in enumerate(zip(kept, inputs)):
                if not self._given or new is not self._given[k]:
                    there.copy_(new)
            self._given = inputs
            graph.replay()
            return [x.clone() for x in outputs]

    def _checked(self, inputs: list[Tensor]) -> Recorded | None:
        """A recording, None where there can be none or it is wrong."""
        try:
            with RECORDING:
                recorded = self._record(inputs)
            moved = recorded.inputs[0]
            moved += 0.01 * torch.arange(moved.numel(), device=moved.device).sin().view_as(moved)
            recorded.graph.replay()
            right = all(map(self._equal, recorded.outputs, self._function(recorded.inputs)))
        except torch.OutOfMemoryError:
            self._too_large = [x.shape for x in inputs]  # smaller structures may be recorded
            log.warning("there is no memory to record the step: it is launched in parts")
            return None
        except RuntimeError as error:
            self._refused = True
            log.warning("the step can not be recorded (%s): it is launched in parts", in_a_line(error))
            return None
        if not right:
            self._refused = True
            log.warning("the recorded step gives other results than the plain one: it is launched in parts")
        return recorded if right else None

    def _equal(self, a: Tensor, b: Tensor) -> bool:
        if a.dtype == torch.bool:
            return bool((a == b).all())
        return not a.numel() or bool(
            (a - b).abs().max() <= self._rounding * b.abs().max().clamp_min(self._scale)
        )

    def _record(self, inputs: list[Tensor]) -> Recorded:
        kept, before = [x.clone() for x in inputs], torch.cuda.current_stream()
        beside = torch.cuda.Stream()  # of this device: torch's own is that of the first device that recorded
        beside.wait_stream(before)
        try:
            with torch.cuda.stream(beside):
                for _ in range(WARM_UP):
                    self._function(kept)
            before.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
                outputs = self._function(kept)
        finally:
            torch.cuda.set_stream(before)  # which a recording that failed does not
        return Recorded(graph, kept, outputs)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
