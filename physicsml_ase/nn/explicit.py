"""Layers that come with their reverse pass, written as ordinary operations that training differentiates once.

Shapes: N atoms, M = (lmax + 1)^2.
"""

import numpy as np
import torch
from torch import Tensor, nn

from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.elements import Elements
from physicsml_ase.nn.sphere import degree_of_rows


class DegreeLinear(Constants):
    """A linear map of channels for each degree, (M, N, a) -> (M, N, b), of weights of a size and times a factor."""

    rows: Tensor
    there: Tensor | None
    back: Tensor | None

    def __init__(self, lmax: int, fan_in: int, fan_out: int, size: float = 1.0, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(torch.randn(lmax + 1, fan_in, fan_out) * size * fan_in**-0.5)
        self.constant("rows", np.array(degree_of_rows(lmax)))
        self.register_buffer("there", None, persistent=False)
        self.register_buffer("back", None, persistent=False)

    def freeze(self) -> None:
        """Keep the maps of the rows, and their transposes: for weights that stay as they are."""
        self.there = self.maps().detach()
        self.back = self.there.mT.contiguous()

    def maps(self) -> Tensor:
        """The map of each row, (M, a, b)."""
        maps = self.weight.index_select(0, self.rows)
        return maps if self.factor == 1 else maps * self.factor

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        """The map of x (M, N, a), and `more` (M, N, b) added."""
        maps = self.maps() if self.there is None else self.there
        return torch.bmm(x, maps) if more is None else torch.baddbmm(more, x, maps)

    def reverse(self, g: Tensor) -> Tensor:
        """Gradient to the input from that to the output."""
        return torch.bmm(g, self.maps().mT if self.back is None else self.back)


class Readout(nn.Module):
    """Energy of each atom: a small network of its scalars and its element, plus a linear part."""

    def __init__(self, width: int, hidden: int, num_elements: int, num_attrs: int) -> None:
        super().__init__()
        self.width = width
        self.inward = nn.Parameter(torch.randn(width, hidden) * (2 / width) ** 0.5)
        self.outward = nn.Parameter(torch.randn(hidden) * 0.1 * hidden**-0.5)
        self.linear = nn.Parameter(torch.zeros(width))
        self.hidden_bias = nn.Parameter(torch.randn(num_elements, hidden) * 0.3)
        self.energy_bias = nn.Parameter(torch.zeros(num_elements, 1))
        self.attrs = nn.Parameter(torch.randn(num_attrs, hidden) * num_attrs**-0.5) if num_attrs else None

    def forward(self, x: Tensor, elements: Elements, attrs: Tensor | None) -> tuple[Tensor, Tensor]:
        """Energies (N,) and their gradient to x (N, F)."""
        a = torch.addmm(elements.pick(self.hidden_bias), x, self.inward)
        if self.attrs is not None and attrs is not None:
            a = a + attrs @ self.attrs
        s = torch.sigmoid(a)
        silu = a * s
        energies = silu @ self.outward + x @ self.linear + elements.pick(self.energy_bias)[:, 0]
        slope = self.outward * torch.addcmul(s + silu, silu, s, value=-1)  # d(SiLU)/da
        return energies, torch.addmm(self.linear, slope, self.inward.T)
