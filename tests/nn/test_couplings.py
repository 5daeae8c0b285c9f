"""Clebsch-Gordan tensors: invariance, norm, e3nn's signs; irreps as text."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from physicsml_ase.conventions import InputError
from physicsml_ase.nn.couplings import (
    Irrep,
    clebsch_gordan,
    clebsch_gordan_0_4,
    irreps_text,
    parse_irreps,
)
from physicsml_ase.nn.harmonics import spherical_harmonics

TRIPLES = [(a, b, c) for a, b, c in itertools.product(range(4), repeat=3) if abs(a - b) <= c <= a + b]


def rotation_of_harmonics(l: int, matrix: np.ndarray) -> np.ndarray:
    """D with Y(R u) = D Y(u)."""
    u = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u /= u.norm(dim=1, keepdim=True)
    rows = slice(l * l, (l + 1) ** 2)
    before = spherical_harmonics(u, l)[:, rows]
    after = spherical_harmonics(u @ torch.from_numpy(matrix).T, l)[:, rows]
    return torch.linalg.lstsq(before, after).solution.T.numpy()


@pytest.mark.parametrize("tensor", [clebsch_gordan, clebsch_gordan_0_4])
def test_invariant_and_of_norm_one(tensor) -> None:
    d = [rotation_of_harmonics(l, Rotation.random(random_state=4).as_matrix()) for l in range(4)]
    for a, b, c in TRIPLES:
        found = tensor(a, b, c)
        turned = np.einsum("ia,jb,kc,abc->ijk", d[a], d[b], d[c], found)
        np.testing.assert_allclose(turned, found, atol=1e-13)
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-14)


def test_known_couplings() -> None:
    """Dot and cross product, and a product of harmonics, which fix order and sign."""
    np.testing.assert_allclose(clebsch_gordan(1, 1, 0)[:, :, 0], np.eye(3) / 3**0.5, atol=1e-15)
    a, b = np.array([0.3, -0.2, 0.9]), np.array([0.5, 0.1, -0.4])
    cross = np.einsum("ijk,i,j->k", clebsch_gordan(1, 1, 1), a, b)
    np.testing.assert_allclose(cross, np.cross(a, b) / 6**0.5, atol=1e-15)
    u = torch.from_numpy(a / np.linalg.norm(a))[None]
    y = spherical_harmonics(u, 3)[0].numpy()
    coupled = np.einsum("ijk,i,j->k", clebsch_gordan(1, 2, 3), y[1:4], y[4:9])
    np.testing.assert_allclose(coupled / np.linalg.norm(coupled), y[9:] / np.linalg.norm(y[9:]), atol=1e-14)


def test_signs_of_e3nn() -> None:
    """Signs of the largest entry, first of equals, as `e3nn.o3.wigner_3j` of 0.6.0 and of 0.4.4 has them."""

    def signs(tensor) -> str:
        out = ""
        for a, b, c in TRIPLES:
            flat = tensor(a, b, c).ravel()
            out += "+" if flat[np.flatnonzero(np.abs(flat) > np.abs(flat).max() - 1e-9)[0]] > 0 else "-"
        return out

    assert signs(clebsch_gordan) == NEW
    assert signs(clebsch_gordan_0_4) == OLD


NEW = "+++++++++-++-+++++--++--+++++-+--+"
OLD = "+++++++++++++++-+++-++--++-++-++-+"


def test_antisymmetry_of_the_old_signs() -> None:
    """The old tensors only change by (-1)^(l1 + l2 + l3) where two degrees change places."""
    for a, b, c in TRIPLES:
        swapped = (-1) ** (a + b + c) * clebsch_gordan_0_4(b, a, c).transpose(1, 0, 2)
        if len({a, b, c}) == 3:
            np.testing.assert_allclose(clebsch_gordan_0_4(a, b, c), swapped, atol=1e-15)


def test_irreps_as_text() -> None:
    irreps = parse_irreps("32x0e + 16x1o+2e")
    assert [(mul, ir.l, ir.p) for mul, ir in irreps] == [(32, 0, 1), (16, 1, -1), (1, 2, 1)]
    assert irreps_text(irreps) == "32x0e+16x1o+1x2e"
    assert [str(ir) for ir in Irrep(1, -1).times(Irrep(2, 1))] == ["1o", "2o", "3o"]
    with pytest.raises(InputError, match="'32y1o' is not like"):
        parse_irreps("32x0e+32y1o")


def test_degrees_that_do_not_couple() -> None:
    with pytest.raises(ValueError, match="do not couple"):
        clebsch_gordan(1, 1, 3)
