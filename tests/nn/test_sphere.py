"""Harmonics, their gradient, and products on the grid: exact, whatever is allowed."""

import numpy as np
import pytest
import torch

from physicsml_ase.nn.sphere import (
    ATOMS_IN_CACHE,
    SphereProduct,
    SphericalHarmonics,
    degree_of_rows,
    harmonics,
    quadrature,
)

LMAX = [1, 2, 3, 4, 5, 6]


def directions(count: int) -> torch.Tensor:
    u = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return u / u.norm(dim=1, keepdim=True)


def turn(lmax: int, q: np.ndarray) -> torch.Tensor:
    """How harmonics change under q, (M, M), from their values at many directions."""
    u = directions(200).numpy()
    matrix, *_ = np.linalg.lstsq(harmonics(u, lmax), harmonics(u @ q, lmax), rcond=None)
    return torch.from_numpy(matrix)


def any_turn(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q


@pytest.mark.parametrize("lmax", LMAX)
def test_orthonormal_on_the_sphere(lmax: int) -> None:
    points, weights = quadrature(2 * lmax)
    points, weights = np.concatenate([points, -points]), np.concatenate([weights, weights])
    y = harmonics(points, lmax)
    np.testing.assert_allclose(y.T @ (weights[:, None] * y), np.eye(y.shape[1]), atol=1e-12)


def test_first_harmonics_are_known() -> None:
    u = directions(20)
    y = SphericalHarmonics(2).double()(u)
    x, z = u[:, 0], u[:, 2]
    rows = degree_of_rows(2)
    assert rows == [0, 2, 2, 2, 2, 2, 1, 1, 1]
    torch.testing.assert_close(y[:, 6:9], 3**0.5 * u)
    torch.testing.assert_close(y[:, 5], 5**0.5 / 2 * (3 * z**2 - 1))
    torch.testing.assert_close(y[:, 3], 15**0.5 * x * z)


@pytest.mark.parametrize("lmax", LMAX)
def test_polynomials_and_their_gradient(lmax: int) -> None:
    sphere = SphericalHarmonics(lmax).double()
    r = (2.5 * directions(30)).requires_grad_()
    d = r.norm(dim=1, keepdim=True)
    u = r / d
    y = sphere(u)
    np.testing.assert_allclose(y.detach(), harmonics(u.detach().numpy(), lmax), atol=1e-12)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad((y * g).sum(), r)
    gradient = sphere.gradient(y, g)
    along = (gradient * u).sum(1)
    torch.testing.assert_close(along, (y * g) @ torch.tensor(degree_of_rows(lmax)).double())
    torch.testing.assert_close((gradient - along[:, None] * u) / d, expected, rtol=0, atol=1e-11)


def test_float32_and_back_keeps_the_digits() -> None:
    sphere = SphericalHarmonics(3).float().double()
    u = directions(5)
    np.testing.assert_allclose(sphere(u), harmonics(u.numpy(), 3), atol=1e-14)


@pytest.mark.parametrize("lmax", LMAX)
@pytest.mark.parametrize("nu", [1, 2, 3, 4])
@pytest.mark.parametrize("ell", [0, 1, 2])
def test_products_turn_with_their_factors(lmax: int, nu: int, ell: int) -> None:
    """The rule integrates nu lmax + L exactly, so rotations and inversion commute with products to round-off."""
    if ell > lmax:
        pytest.skip("a product is not asked for degrees that its factors do not have")
    product = SphereProduct(lmax, nu, ell).double()
    a = torch.randn((lmax + 1) ** 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for seed in (0, 1):
        q = any_turn(seed)
        turned, _ = product(torch.einsum("mk,knc->mnc", turn(lmax, q), a))
        expected = torch.einsum("mk,knc->mnc", turn(ell, q), product(a)[0])
        size = expected.abs().max()
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-11 * float(size))


def test_products_are_pointwise() -> None:
    """The square of a function has the coefficients that an independent, finer rule finds."""
    lmax, ell = 3, 2
    a = torch.randn(16, 1, 1, dtype=torch.float64)
    out, _ = SphereProduct(lmax, 3, ell).double()(a)
    points, weights = quadrature(21)
    points, weights = np.concatenate([points, -points]), np.concatenate([weights, weights])
    f = harmonics(points, lmax) @ a[:, 0, 0].numpy() / (lmax + 1)
    for power in (2, 3):
        expected = harmonics(points, ell).T @ (weights * f**power)
        np.testing.assert_allclose(out[:, 0, power - 1], expected, atol=1e-12)


@pytest.mark.parametrize("nu", [1, 2, 3, 4])
@pytest.mark.parametrize("ell", [0, 1, 2])
def test_reverse_is_the_gradient(nu: int, ell: int) -> None:
    product = SphereProduct(3, nu, ell).double()
    a = torch.randn(16, 5, 2, dtype=torch.float64, requires_grad=True)
    out, on_grid = product(a)
    g = torch.randn_like(out)
    (expected,) = torch.autograd.grad((out * g).sum(), a)
    torch.testing.assert_close(product.reverse(on_grid, g), expected)


@pytest.mark.parametrize("ell", [0, 1])
def test_pieces_are_the_whole(ell: int) -> None:
    """Of many atoms inference takes some at a time, to the same figures."""
    product = SphereProduct(3, 3, ell).double()
    a = torch.randn(16, 2 * ATOMS_IN_CACHE + 3, 2, dtype=torch.float64, requires_grad=True)
    whole, on_grid = product(a)
    g = torch.randn_like(whole)
    assert len(on_grid) == 1
    with torch.no_grad():
        found, pieces = product(a)
        assert len(pieces) == 3
        torch.testing.assert_close(found, whole)
        torch.testing.assert_close(product.reverse(pieces, g), product.reverse(on_grid, g))
        torch.testing.assert_close(product.reverse(pieces, g), torch.autograd.grad(whole, a, g)[0])
