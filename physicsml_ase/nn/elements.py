"""Weights that depend on an atom's element, and attributes of its structure. Shapes: N atoms, Z elements."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.features import NUM_ELEMENTS
from physicsml_ase.nn.sphere import degree_of_rows

FEW = 16
"""Up to so many elements a product with one-hot vectors is quicker than picking rows, above all backwards."""


class Elements(NamedTuple):
    """Place of each atom's element among the model's."""

    place: Tensor  # (N,) int64
    one_hot: Tensor | None  # (N, Z), where elements are few

    def pick(self, table: Tensor) -> Tensor:
        """The row of each atom's element, (Z, F) -> (N, F)."""
        return table.index_select(0, self.place) if self.one_hot is None else self.one_hot @ table

    def pick_each(self, tables: Tensor, rows: Tensor) -> Tensor:
        """The same of some tables, (L, Z, F) -> (M, N, F), that of each of the rows (M,)."""
        if self.one_hot is None or not torch.is_grad_enabled():
            return tables.index_select(1, self.place).index_select(0, rows)
        return self.one_hot @ tables.index_select(0, rows)  # (N, Z) @ (M, Z, F)


class KeptElements(Elements):
    """Elements of atoms that are asked for again and again, by weights that stay as they are."""

    def __init__(self, place: Tensor, one_hot: Tensor | None) -> None:
        self._picked: dict[int, tuple[Tensor, Tensor]] = {}

    def pick(self, table: Tensor) -> Tensor:
        return self._once(table, super().pick)

    def pick_each(self, tables: Tensor, rows: Tensor) -> Tensor:
        pick_each = super().pick_each
        return self._once(tables, lambda tables: pick_each(tables, rows))

    def _once(self, table: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        if id(table) not in self._picked:
            self._picked[id(table)] = table, pick(table)  # with the table, so that no other has its id
        return self._picked[id(table)][1]


def one_hot(place: Tensor, num: int, dtype: torch.dtype) -> Tensor:
    """Of each place (N,) among `num` a one in its column, (N, num); torch's own has to wait for a GPU."""
    return (place[:, None] == torch.arange(num, device=place.device)).to(dtype)


class ElementIndex(Constants):
    """From atomic numbers to places among the model's elements."""

    places: Tensor

    def __init__(self, elements: tuple[int, ...]) -> None:
        super().__init__()
        self.num = len(elements)
        places = np.zeros(NUM_ELEMENTS, np.int64)
        places[list(elements)] = np.arange(self.num)
        self.constant("places", places)

    def forward(self, atomic_numbers: Tensor, dtype: torch.dtype) -> Elements:
        place = self.places.index_select(0, atomic_numbers)
        if self.num > FEW:
            return Elements(place, None)
        return Elements(place, one_hot(place, self.num, dtype))


class ElementTable(Constants):
    """Factors of features by element and degree, which start as ones; of a single element there are none."""

    rows: Tensor

    def __init__(self, num_elements: int, lmax: int, width: int) -> None:
        super().__init__()
        self.table = None
        if num_elements > 1:
            self.table = nn.Parameter(torch.ones(lmax + 1, num_elements, width))
        self.constant("rows", np.array(degree_of_rows(lmax)))

    def forward(self, elements: Elements) -> Tensor | None:
        """((lmax + 1)^2, N, F), or None."""
        return None if self.table is None else elements.pick_each(self.table, self.rows)


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """Features times their factors, where there are any."""
    return x if gate is None else x * gate


class Attributes(nn.Module):
    """Attributes of each atom's structure in units of their spread, (N, A)."""

    shifts: Tensor
    scales: Tensor

    def __init__(self, domain: Domain) -> None:
        super().__init__()
        self.num = len(domain.attr_shifts)
        self.register_buffer("shifts", torch.tensor(domain.attr_shifts), persistent=False)
        self.register_buffer("scales", torch.tensor(domain.attr_scales), persistent=False)

    def forward(self, graph: Graph) -> Tensor | None:
        if not self.num:
            return None
        attrs = (graph.inputs["graph_attrs"].to(self.shifts.dtype) - self.shifts) / self.scales  # (S, A)
        return attrs.index_select(0, graph.batch)
