"""EGNN is what the paper's equations say, term by term, and crystals are crystals where atoms move."""

import itertools

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from torch.nn.functional import silu

from physicsml_ase.atoms import to_graph
from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.domain import Domain
from physicsml_ase.graph import edge_vectors
from physicsml_ase.models.egnn import EGNN, EGNNConfig
from physicsml_ase.nn.radial import envelope
from physicsml_ase.potential import Potential

CUTOFF = 3.0


def make(**settings: object) -> EGNN:
    torch.manual_seed(0)
    config = validate(EGNNConfig, {"hidden_dim": 6, "num_layers": 3, "num_radial": 0} | settings)
    model = EGNN(config, Domain(cutoff=CUTOFF, elements=(1, 6, 8))).double()
    for parameter in model.parameters():  # also what moves atoms, which starts small
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_the_equations_of_the_paper(attention: bool, residual: bool) -> None:
    """With loops over atoms and places of atoms, as they are written."""
    model, atoms = make(attention=attention, residual=residual), molecule("CH3CH2OH")
    graph = to_graph(atoms, CUTOFF)
    out = model(graph, edge_vectors(graph))
    start = x = torch.from_numpy(atoms.positions / CUTOFF)
    h, moved = model.embed(graph), []
    near = torch.cdist(start, start)
    for layer in model.layers:
        sums, moves = torch.zeros_like(h), torch.zeros_like(x)
        weights = torch.cat([*layer.of_atoms.weight.chunk(2), layer.of_edges.weight], dim=1)  # of phi_e
        for i, j in itertools.permutations(range(len(atoms)), 2):
            if near[i, j] >= 1:
                continue
            told = torch.cat([h[i], h[j], (x[i] - x[j]).square().sum()[None]])
            m = silu(layer.message(silu(weights @ told + layer.of_edges.bias)))
            if attention:
                m = m * torch.sigmoid(layer.attention(m))
            end = envelope(near[i, j])
            sums[i] += end * m
            moves[i] += end * (x[i] - x[j]) * layer.move(m)
        update = layer.update(torch.cat([h, sums], dim=1))
        h, x = h + update if residual else update, x + moves
        moved.append(moves * CUTOFF)
    torch.testing.assert_close(out.node_scalars, h)
    torch.testing.assert_close(out.node_vectors, torch.stack(moved, dim=2))
    assert (moves.norm(dim=1) > 1e-3).any()


def test_atoms_move_alike_in_cell_and_supercell() -> None:
    crystal = bulk("C", "diamond", a=3.6, cubic=True)
    crystal.numbers[1] = 8
    crystal.rattle(0.1, seed=0)
    model, vectors = make(), []
    for atoms in (crystal, crystal.repeat((2, 1, 1))):
        graph = to_graph(atoms, CUTOFF)
        vectors.append(model(graph, edge_vectors(graph)).node_vectors)
    torch.testing.assert_close(vectors[1][:8], vectors[0])
    torch.testing.assert_close(vectors[1][8:], vectors[0])


def test_edges_have_features() -> None:
    graph = to_graph(molecule("CH3CH2OH"), CUTOFF)
    assert make()(graph, edge_vectors(graph)).edge_scalars is None
    features = make(edge_updates=True)(graph, edge_vectors(graph))
    assert features.edge_scalars.shape == (len(graph.reverse), 6)
    assert not torch.allclose(features.node_scalars, make()(graph, edge_vectors(graph)).node_scalars)


@pytest.mark.parametrize(
    "settings", [{"edge_updates": True, "attention": False}, {"coordinate_updates": False}]
)
def test_forces_of_all_variants(settings: dict[str, object]) -> None:
    domain = Domain(cutoff=CUTOFF, elements=(1, 6, 8), avg_num_neighbors=4.0)
    config = validate(EGNNConfig, {"hidden_dim": 6, "num_layers": 2, "num_radial": 4} | settings)
    potential = Potential(config, domain, ()).double().eval()
    atoms = molecule("CH3CH2OH")
    forces = potential(to_graph(atoms, CUTOFF))["forces"].numpy()
    energies = []
    for step in (1e-4, -1e-4):
        moved = atoms.copy()
        moved.positions[1, 0] += step
        energies.append(potential(to_graph(moved, CUTOFF))["energy"].item())
    assert forces[1, 0] == pytest.approx((energies[1] - energies[0]) / 2e-4, abs=1e-7)
    assert np.abs(forces).max() > 1e-3


def test_without_moves_there_are_no_vectors() -> None:
    config = EGNNConfig(coordinate_updates=False)
    with pytest.raises(InputError, match="no vectors"):
        Potential(config, Domain(cutoff=CUTOFF, elements=(1,)), (Label("mu", "structure", (3,), "mu"),))
