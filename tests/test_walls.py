"""Walls that are settled when a model is trained: no hole is left in its dimers, and the data are not touched."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from physicsml_ase.conventions import PROPERTIES, Label
from physicsml_ase.domain import Domain
from physicsml_ase.models.lj import LJConfig
from physicsml_ase.potential import Potential
from physicsml_ase.trust.dimers import dimers
from physicsml_ase.trust.walls import settle_walls

LABELS = tuple(Label(name, *PROPERTIES[name][:2], name) for name in ("energy", "forces"))
SHORTEST = 2.0


def potential_with(a_hole_from: float, depth: float) -> Potential:
    """Pairs that repel each other by 50 exp(-2 d) and fall steeply below some distance."""
    domain = Domain(cutoff=4.0, elements=(14,), shortest_distances={"Si-Si": SHORTEST})
    config = LJConfig(epsilon={"Si-Si": 0.01}, sigma={"Si-Si": 1.0})
    potential = Potential(config, domain, LABELS).double().eval()
    forward = potential.model.forward

    def with_a_hole(graph, r_ij: Tensor):  # type: ignore[no-untyped-def]
        features = forward(graph, r_ij)
        d = r_ij.square().sum(1, keepdim=True).sqrt()
        pairs = 50 * torch.exp(-2 * d) - depth * (a_hole_from - d).clamp(min=0) ** 2
        own = torch.zeros_like(features.node_scalars[:, :1]).index_add(0, graph.edge_index[0], pairs)
        return features._replace(node_energy=features.node_energy + own[:, 0])

    potential.model.forward = with_a_hole
    return potential


def deepest(potential: Potential) -> float:
    distance = np.linspace(0.4, 1.0, 200) * SHORTEST
    energy, _ = dimers(potential, (14, 14), distance)
    inwards = energy[::-1]
    return float((np.maximum.accumulate(inwards) - inwards).max())


@pytest.mark.parametrize(("begins", "expected"), [(0.5, 0.9), (0.93, 0.96), (0.948, 0.98)])
def test_the_wall_begins_before_the_hole(begins: float, expected: float) -> None:
    potential = potential_with(begins * SHORTEST, 1e5)
    if begins > 0.9:
        assert deepest(potential) > 1
    settle_walls(potential)
    begin, stiffness = potential.domain.walls["Si-Si"]
    assert begin / SHORTEST == pytest.approx(expected, abs=0.01)
    assert stiffness > 1000
    assert deepest(potential) < 0.3
    outside = np.array([SHORTEST, 1.1 * SHORTEST])
    bare = potential_with(begins * SHORTEST, 1e5)
    bare.wall = None
    np.testing.assert_array_equal(*(dimers(p, (14, 14), outside)[0] for p in (potential, bare)))


def test_forces_are_the_gradient_within_the_wall() -> None:
    potential = potential_with(0.97 * SHORTEST, 1e5)
    settle_walls(potential)
    d = np.linspace(0.5, 1.0, 23) * SHORTEST
    _, force = dimers(potential, (14, 14), d)
    up, down = (dimers(potential, (14, 14), d + h)[0] for h in (1e-5, -1e-5))
    np.testing.assert_allclose(force, -(up - down) / 2e-5, rtol=1e-5, atol=1e-4)


def test_a_potential_without_walls_is_left_alone() -> None:
    potential = potential_with(1.0, 1.0)
    without = Potential(potential.config, dataclasses.replace(potential.domain, short_range="none"), LABELS)
    settle_walls(without)
    assert without.domain.walls == {}
    assert without.wall is None
