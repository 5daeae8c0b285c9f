"""Real spherical harmonics: known values, addition theorem, orthonormality, parity."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import legval

from physicsml_ase.nn.harmonics import EdgeHarmonics, spherical_harmonics
from physicsml_ase.nn.sphere import harmonics, quadrature

LMAX = 5


def directions(n: int) -> torch.Tensor:
    v = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return v / v.norm(dim=1, keepdim=True)


def test_low_degrees_are_known() -> None:
    x, y, z = directions(7).T
    expected = [torch.ones_like(x), *(math.sqrt(3) * v for v in (x, y, z))]
    expected += [math.sqrt(15) * x * z, math.sqrt(15) * x * y, math.sqrt(5) * (y * y - (x * x + z * z) / 2)]
    expected += [math.sqrt(15) * y * z, math.sqrt(15) / 2 * (z * z - x * x)]
    found = spherical_harmonics(torch.stack([x, y, z], dim=1), 2)
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=0, atol=1e-14)


def test_addition_theorem() -> None:
    """sum_m Y_lm(a) Y_lm(b) = (2l + 1) P_l(a . b)."""
    a, b = directions(20).chunk(2)
    products = spherical_harmonics(a, LMAX) * spherical_harmonics(b, LMAX)
    for l in range(LMAX + 1):
        expected = (2 * l + 1) * legval((a * b).sum(1).numpy(), [0] * l + [1])
        np.testing.assert_allclose(products[:, l * l : (l + 1) ** 2].sum(1), expected, atol=1e-13)


def test_orthonormal_on_the_sphere() -> None:
    points, weights = quadrature(2 * LMAX)
    points, weights = np.concatenate([points, -points]), np.concatenate([weights, weights])
    y = spherical_harmonics(torch.from_numpy(points), LMAX).numpy()
    np.testing.assert_allclose(y.T @ (weights[:, None] * y), np.eye((LMAX + 1) ** 2), atol=1e-12)


def test_same_functions_as_those_ordered_by_parity() -> None:
    """The polar axis is y here and z there: (z, x, y) is shown to those, whose rows have m from l down to 0."""
    u = directions(9)
    theirs = harmonics(u[:, [2, 0, 1]].numpy(), 3)
    ours = spherical_harmonics(u, 3).numpy()
    start = 0
    for l in (0, 2, 1, 3):
        for k, m in enumerate([m for j in range(l, 0, -1) for m in (j, -j)] + [0]):
            np.testing.assert_allclose(ours[:, l * l + l + m], theirs[:, start + k], atol=1e-13)
        start += 2 * l + 1


def test_zero_vector_and_length() -> None:
    """An atom's edge to itself has only degree 0; a longer vector has r^l Y."""
    assert spherical_harmonics(torch.zeros(1, 3), 3)[0].tolist() == [1.0] + 15 * [0.0]
    u = directions(3)
    powers = torch.tensor([2.0**l for l in range(4) for _ in range(2 * l + 1)], dtype=torch.float64)
    torch.testing.assert_close(spherical_harmonics(2 * u, 3), powers * spherical_harmonics(u, 3))


@pytest.mark.parametrize("lmax", [0, 1, 2, 4])
def test_differentiable_twice_in_any_precision(lmax: int) -> None:
    module = EdgeHarmonics(lmax).double()
    u = directions(2).requires_grad_()
    assert module(u).shape == (2, (lmax + 1) ** 2)
    if lmax:
        assert torch.autograd.gradgradcheck(module, (u,))
    there_and_back = EdgeHarmonics(lmax).float().double()
    torch.testing.assert_close(there_and_back(u), module(u), rtol=0, atol=0)
