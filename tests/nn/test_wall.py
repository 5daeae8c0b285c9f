"""The wall: zero for what was seen, smooth where it ends, the gradient of its energy, ZBL where cores overlap."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.units import Bohr, Hartree

from physicsml_ase.atoms import to_graph
from physicsml_ase.graph import edge_vectors
from physicsml_ase.nn.wall import FACTORS, STIFFNESS, Wall, held, repulsion

WALL = Wall({"H-O": 1.0, "O-O": 2.2 / 0.9}).double()


def wall(atoms: Atoms) -> tuple[float, np.ndarray]:
    graph = to_graph(atoms, 4.0)
    r_ij = edge_vectors(graph)
    near = WALL.near(graph, r_ij)
    if near is None:
        return 0.0, np.zeros((0, 3))
    energies, g = WALL(near, r_ij, len(atoms))
    return energies.sum().item(), g.numpy()


def test_zero_from_the_shortest_distance_on() -> None:
    assert wall(Atoms("OH", [[0, 0, 0], [0.9, 0, 0]]))[0] == 0
    assert wall(Atoms("HH", [[0, 0, 0], [0.1, 0, 0]]))[0] == 0  # a pair that no distance is known of
    assert wall(Atoms("OH", [[0, 0, 0], [0.8, 0, 0]]))[0] > 0


@pytest.mark.parametrize("d", [0.05, 0.3, 0.6, 0.85, 0.8999])
def test_gradient(d: float) -> None:
    ends = [wall(Atoms("OH", [[0, 0, 0], [0, d + h, 0]]))[0] for h in (1e-6, -1e-6)]
    slope = (ends[0] - ends[1]) / 2e-6
    _, g = wall(Atoms("OH", [[0, 0, 0], [0, d, 0]]))
    # both edges of the pair, and opposite
    assert g[0, 1] - g[1, 1] == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_is_zbl_where_cores_overlap() -> None:
    """phi(1) = 0.00741 + 0.19870 + 0.18730 + 0.02303 by hand, and 1 at no distance."""
    z = torch.tensor([8.0], dtype=torch.float64)
    a = 0.8854 * Bohr / (2 * 8**0.23)
    d = torch.tensor([a], dtype=torch.float64)
    energy, _ = repulsion(d, torch.tensor([1e6], dtype=torch.float64), z, z)
    assert energy.item() - STIFFNESS / 3 == pytest.approx(Hartree * Bohr * 64 / a * 0.41644, rel=1e-4)
    assert sum(FACTORS) == pytest.approx(1)


def test_pairs_that_were_never_neighbours() -> None:
    """Two carbon atoms are held apart at nine tenths of twice the covalent radius, 0.76 Å."""
    never = Wall({"H-O": 1.0}, (1, 6, 8)).double()
    energies = []
    for d in (1.36, 1.38):
        graph = to_graph(Atoms("C2", [[0, 0, 0], [d, 0, 0]]), 4.0)
        energies.append(never.near(graph, edge_vectors(graph)))
    assert energies[0] is not None
    assert energies[1] is None


def test_ends_within_the_cutoff() -> None:
    """Nine tenths of twice the covalent radius of Cs are 4.39 Å: beyond a cut-off of 4 Å there are no edges."""
    never = Wall({"H-O": 1.0}, (1, 8, 55), 4.0).double()
    energies = []
    for d in (3.9999, 3.9):
        graph = to_graph(Atoms("Cs2", [[0, 0, 0], [d, 0, 0]]), 4.0)
        r_ij = edge_vectors(graph)
        near = never.near(graph, r_ij)
        assert near is not None
        energies.append(never(near, r_ij, 2)[0].sum().item())
    assert energies[0] < 1e-9 < energies[1]


def test_what_the_model_is_shown() -> None:
    """The distance itself where the wall begins, at rest from 0.94 of it on, with the right derivative between."""
    outer = torch.ones(5, dtype=torch.float64)
    d = torch.tensor([0.9999999, 0.98, 0.96, 0.94, 0.3], dtype=torch.float64, requires_grad=True)
    shown, slope = held(d, outer)
    (expected,) = torch.autograd.grad(shown.sum(), d)
    torch.testing.assert_close(slope, expected)
    assert shown[0].item() == pytest.approx(1)
    assert shown[3].item() == shown[4].item() == pytest.approx(0.97)


def test_gradient_of_what_the_model_is_shown() -> None:
    graph = to_graph(Atoms("OHO", [[0, 0, 0], [0.7, 0.3, 0], [0.5, 1.7, 0]]), 4.0)
    r_ij = edge_vectors(graph).requires_grad_()
    near = WALL.near(graph, r_ij)
    assert near is not None
    g = torch.randn_like(r_ij)
    (expected,) = torch.autograd.grad((near.seen(r_ij) * g).sum(), r_ij)
    torch.testing.assert_close(near.gradient(r_ij.detach(), g), expected)


def test_a_wall_that_was_settled_elsewhere() -> None:
    """Stiffer, and from 0.97 of the shortest distance on; the other pair is as it was."""
    there = Wall({"H-O": 1.0, "O-O": 2.0}, settled={"O-H": (0.97, 5 * STIFFNESS)}).double()
    for symbols, begin, stiffness in (("OH", 0.97, 5 * STIFFNESS), ("OO", 1.8, STIFFNESS)):
        energies = []
        for part in (1.001, 0.999):
            graph = to_graph(Atoms(symbols, [[0, 0, 0], [part * begin, 0, 0]]), 4.0)
            r_ij = edge_vectors(graph)
            near = there.near(graph, r_ij)
            energies.append(0.0 if near is None else there(near, r_ij, 2)[0].sum().item())
        assert energies[0] == 0
        assert energies[1] == pytest.approx(stiffness / 3 * 1e-9, rel=0.5)


def test_three_atoms_add() -> None:
    close = Atoms("OHO", [[0, 0, 0], [0.7, 0, 0], [0, 1.9, 0]])
    pairs = [wall(close[[0, 1]])[0], wall(close[[0, 2]])[0], wall(close[[1, 2]])[0]]
    assert wall(close)[0] == pytest.approx(sum(pairs))
