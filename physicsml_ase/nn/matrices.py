"""3x3 matrices as 1 + 3 + 5 coefficients of an orthonormal basis.

The basis: one / sqrt(3); the antisymmetric matrices [x], [y], [z] / sqrt(2), with [a] b = a x b; five symmetric
traceless ones. Shapes: N atoms, E edges, F channels.
"""

import numpy as np
import torch
from torch import Tensor

from physicsml_ase.nn.constants import Constants

SIZES = (1, 3, 5)
PARTS = (slice(0, 1), slice(1, 4), slice(4, 9))
"""Multiple of one, antisymmetric, symmetric traceless."""


def orthonormal_basis() -> np.ndarray:
    """The nine matrices, (9, 3, 3)."""
    basis = np.zeros((9, 3, 3))
    basis[0] = np.eye(3)
    for k, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        basis[1 + k, b, a], basis[1 + k, a, b] = 1, -1
        basis[4 + k, a, b] = basis[4 + k, b, a] = 1
    basis[7] = np.diag([1, -1, 0])
    basis[8] = np.diag([-1, -1, 2])
    return basis / np.linalg.norm(basis, axis=(1, 2), keepdims=True)


class Matrices(Constants):
    """From coefficients to matrices and back."""

    basis: Tensor
    traceless: Tensor
    part: Tensor

    def __init__(self) -> None:
        super().__init__()
        basis = orthonormal_basis()
        self.constant("basis", basis.reshape(9, 9))
        self.constant("traceless", basis[4:].reshape(5, 9).T)
        self.constant("part", np.repeat([0, 1, 2], SIZES))

    def whole(self, x: Tensor) -> Tensor:
        """Matrices from coefficients, (9, N, F) -> (3, 3, N, F)."""
        return (self.basis.T @ x.flatten(1)).view(3, 3, *x.shape[1:])

    def parts(self, matrices: Tensor) -> Tensor:
        """Coefficients of matrices, (3, 3, N, F) -> (9, N, F)."""
        return (self.basis @ matrices.flatten(0, 1).flatten(1)).view(9, *matrices.shape[2:])

    def of_directions(self, u: Tensor) -> Tensor:
        """Coefficients of one, [u] and the traceless part of u u^T, (E, 3) -> (E, 9); those of u = 0 are of one."""
        products = (u[:, :, None] * u[:, None, :]).flatten(1)
        one = torch.full_like(u[:, :1], 3**0.5)
        return torch.cat([one, 2**0.5 * u, products @ self.traceless], dim=1)

    def for_all(self, x: Tensor) -> Tensor:
        """A factor of each part for all coefficients in it, (3, ...) -> (9, ...)."""
        return x.index_select(0, self.part)
