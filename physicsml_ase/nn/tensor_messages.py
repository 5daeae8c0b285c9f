"""Sums over neighbours of harmonics coupled to their features, weighted by functions of the distance.

    A_i,l3 = sum_j sum_paths R_path,c(d_ij) C_l1,l2,l3 h_j,l1,c Y_l2(u_ij)

Products are summed over neighbours before they are coupled: edges see matrix products with the harmonics only, and
Clebsch-Gordan tensors the atoms. Shapes: N atoms, R rows of J slots (`nn.slots`), C channels, M = (lmax + 1)^2.
"""

import numpy as np
import torch
from torch import Tensor, cat

from physicsml_ase.nn.constants import Constants
from physicsml_ase.nn.couplings import clebsch_gordan_0_4

Path = tuple[int, int, int]
"""Degrees of the neighbour's features, of the harmonics, and of what they are coupled to."""


def natural_paths(l_features: int, l_harmonics: int, l_out: int) -> list[Path]:
    """All paths between features of natural parity, in the order (l1, l2, l3)."""
    return [
        (l1, l2, l3)
        for l1 in range(l_features + 1)
        for l2 in range(l_harmonics + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, l_out) + 1)
        if (l1 + l2 + l3) % 2 == 0
    ]


class TensorMessages(Constants):
    """The sums of the module docstring, for features up to degree `l_features`."""

    coupling: Tensor

    def __init__(self, l_features: int, l_harmonics: int) -> None:
        super().__init__()
        self.paths = natural_paths(l_features, l_harmonics, l_harmonics)
        self.l_features, self.l_harmonics = l_features, l_harmonics
        self.num = [sum(p[0] == l1 for p in self.paths) for l1 in range(l_features + 1)]
        self.num_out = [sum(p[2] == l3 for p in self.paths) for l3 in range(l_harmonics + 1)]
        self.trivial = l_features == 0  # nothing to couple
        if not self.trivial:
            self.constant("coupling", self._coupling())

    def spans(self, l1: int) -> list[tuple[int, int]]:
        """First and last + 1 of the paths from l1, of each degree of the harmonics."""
        own = [p for p in self.paths if p[0] == l1]
        firsts = [sum(p[1] < l2 for p in own) for l2 in range(self.l_harmonics + 2)]
        return list(zip(firsts, firsts[1:]))

    def forward(self, radial: Tensor, h_j: Tensor, harmonics: Tensor) -> Tensor:
        """radial (R, J, P C), features of neighbours (R, J, (l_features + 1)^2 C) and harmonics (R, J, M) to
        sums of products (R, X, C), which `couple` takes."""
        rows = harmonics.shape[0]
        c = radial.shape[2] // len(self.paths)
        weights = radial.unflatten(2, (-1, 1, c)).split(self.num, dim=2)
        features = h_j.unflatten(2, (1, -1, c)).split([2 * l1 + 1 for l1 in range(len(self.num))], dim=3)
        y = harmonics.mT.split([2 * l2 + 1 for l2 in range(self.l_harmonics + 1)], dim=1)
        out = []
        for l1, (r, h) in enumerate(zip(weights, features)):
            counts = [end - first for first, end in self.spans(l1)]
            products = (r * h).flatten(2).split([count * (2 * l1 + 1) * c for count in counts], dim=2)
            for l2, count in enumerate(counts):
                if count:
                    part = torch.bmm(y[l2], products[l2])
                    out.append(part.view(rows, (2 * l2 + 1) * count * (2 * l1 + 1), c))
        return cat(out, dim=1)

    def couple(self, sums: Tensor) -> list[Tensor]:
        """(N, X, C) -> for each degree l3 (N, 2 l3 + 1, paths C)."""
        coupled = sums if self.trivial else self.coupling @ sums
        sizes = [(2 * l3 + 1) * self.num_out[l3] for l3 in range(self.l_harmonics + 1)]
        parts = coupled.split(sizes, dim=1)
        return [p.unflatten(1, (2 * l3 + 1, -1)).flatten(2) for l3, p in enumerate(parts)]

    def _coupling(self) -> np.ndarray:
        """From products (l1, l2, m2, path, m1) to features (l3, m3, path)."""
        columns: dict[tuple[Path, int, int], int] = {}
        for l1 in range(self.l_features + 1):
            own = [p for p in self.paths if p[0] == l1]
            for l2 in range(self.l_harmonics + 1):
                here = [p for p in own if p[1] == l2]
                for m2 in range(2 * l2 + 1):
                    for path in here:
                        for m1 in range(2 * l1 + 1):
                            columns[path, m2, m1] = len(columns)
        rows: dict[tuple[Path, int], int] = {}
        for l3 in range(self.l_harmonics + 1):
            for m3 in range(2 * l3 + 1):
                for path in self.paths:
                    if path[2] == l3:
                        rows[path, m3] = len(rows)
        out = np.zeros((len(rows), len(columns)))
        for (path, m3), row in rows.items():
            l1, l2, l3 = path
            tensor = (2 * l3 + 1) ** 0.5 * clebsch_gordan_0_4(l1, l2, l3)
            for m2 in range(2 * l2 + 1):
                for m1 in range(2 * l1 + 1):
                    out[row, columns[path, m2, m1]] = tensor[m1, m2, m3]
        return out
