"""Plain PyTorch, one operation after another, with what stays from step to step of dynamics computed once.

That is what depends on the weights alone, or on the atoms and their neighbours but not on where they are. Of a small
structure each operation takes some microseconds, whatever it does. Shapes: N atoms, rows of J slots (`rows`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.backends.compiled import Function, OfList, Step
from physicsml_ase.nn.elements import KeptElements
from physicsml_ase.nn.geometry import Geometry
from physicsml_ase.potential import Potential

MARGIN = 1.00001
"""Distances are compared with a wall's in the model's own precision; what is so little further out is close as well,
and the potential decides."""


class Last(NamedTuple):
    """The last list of neighbours, and what belongs to it."""

    neighbor: Tensor
    atomic_numbers: Tensor
    of_list: OfList
    most: Tensor | None  # (N J, 1), one over the distance at which each pair is close


class PlainStep(Step):
    """`Step` of one list of neighbours after another, with weights that stay as they are."""

    def __init__(self, potential: Potential) -> None:
        super().__init__(potential)
        self._last: Last | None = None

    def of_list(self, neighbor: Tensor, reverse: Tensor, atomic_numbers: Tensor) -> OfList:
        """As `Step.of_list`; the last one where neighbours (N, J) and atoms (N,) are the same tensors."""
        last = self._last
        if last is None or last.neighbor is not neighbor or last.atomic_numbers is not atomic_numbers:
            of_list, most = super().of_list(neighbor, reverse, atomic_numbers), None
            of_list = of_list._replace(elements=KeptElements(*of_list.elements))
            if self.wall is not None:
                most = (
                    (1 / (MARGIN * self.outer(atomic_numbers, neighbor.flatten()))).to(self.dtype).view(-1, 1)
                )
            last = self._last = Last(neighbor, atomic_numbers, of_list, most)
        return last.of_list

    def virials(self, r: Tensor, g: Tensor) -> Tensor:
        """As `Step.virials`, by one product."""
        return torch.bmm(r.mT, g)

    def is_close(self, r: Tensor, geometry: Geometry, neighbor: Tensor, atomic_numbers: Tensor) -> Tensor:
        """As `Step.is_close`, or a little further apart: in the model's own precision."""
        if self._last is None or self._last.most is None:
            return super().is_close(r, geometry, neighbor, atomic_numbers)
        return (geometry.inverse > self._last.most).any()


def step_function(potential: Potential) -> Function:
    """The step of a potential that gives its gradient itself, of inputs as `compiled.Step` has them."""
    step = PlainStep(potential).eval()

    def function(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch.inference_mode():
            return step(*inputs)

    return function
