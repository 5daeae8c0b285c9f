"""Allegro equals nequip-allegro's, is strictly local, and multiplies what its paths say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from references_for_tests import FOLDER, NEQUIP_ZBL, assert_equal, made_by_peer, read_reference

from physicsml_ase.atoms import to_graph
from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.importers.allegro import from_allegro
from physicsml_ase.importers.nequip import import_nequip
from physicsml_ase.models.allegro import AllegroConfig
from physicsml_ase.nn.couplings import Irrep
from physicsml_ase.nn.strictly_local import products
from physicsml_ase.potential import Potential

REFERENCE = FOLDER / "allegro.npz"


def test_equals_nequip_allegro() -> None:
    reference = read_reference(REFERENCE)
    assert_equal(from_allegro(reference.meta, reference.state), reference)


@pytest.mark.peer
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("num_layers=1", "tp_path_channel_coupling=false", "radial_chemical_embed_dim=6"),
        ("num_layers=3", "l_max=2", "allegro_mlp_hidden_layers_depth=2", NEQUIP_ZBL),
        ("num_layers=3", "l_max=3", "parity=false", "scalar_embed_mlp_hidden_layers_depth=2"),
        ("tp_path_channel_coupling=false", "allegro_mlp_hidden_layers_depth=0"),
    ],
)
def test_equals_nequip_allegro_now(tmp_path: Path, settings: tuple[str, ...]) -> None:
    reference = made_by_peer("allegro", "make_nequip.py", tmp_path / "x.npz", "allegro", *settings)
    assert_equal(from_allegro(reference.meta, reference.state), reference)


def test_imports_a_file(tmp_path: Path) -> None:
    reference = read_reference(REFERENCE)
    torch.save({"meta": reference.meta, "state": reference.state}, tmp_path / "x.pt")
    assert_equal(import_nequip(tmp_path / "x.pt"), reference)


def test_splines_can_not_be_imported() -> None:
    reference = read_reference(REFERENCE)
    meta = reference.meta | {"unknown": ["radial_chemical_embed TwoBodySplineScalarEmbed"]}
    with pytest.raises(InputError, match="TwoBodySplineScalarEmbed"):
        from_allegro(meta, reference.state)


def made(**settings: object) -> Potential:
    torch.manual_seed(0)
    config = validate(AllegroConfig, {"num_scalar_features": 8, "num_tensor_features": 4, **settings})
    return Potential(config, Domain(cutoff=4.0, elements=(1, 6, 8)), ()).double().eval()


def test_it_is_strictly_local() -> None:
    """However many layers, an atom's energy knows nothing beyond the cut-off."""
    potential = made(num_layers=3)
    chain = Atoms("CHOC", [[0, 0, 0], [2.5, 0.5, 0], [4.5, 0, 0.4], [8.2, 0.2, 0]])
    moved = chain.copy()
    moved.positions[3] += [0, 0.4, 0.3]
    before, after = (potential(to_graph(atoms, 4.0))["energies"] for atoms in (chain, moved))
    assert (before[:2] == after[:2]).all()
    assert (before[2:] != after[2:]).all()


def test_paths_lead_to_scalars() -> None:
    """Of what the first of two layers can make, only natural parity can still be brought to a scalar."""
    first, last = products(2, 1, True)
    assert first.outputs == (Irrep(0, 1), Irrep(1, -1))
    assert last.outputs == (Irrep(0, 1),)
    middle = products(3, 1, True)[0].outputs
    assert set(middle) == {Irrep(0, 1), Irrep(1, -1), Irrep(1, 1)}
    assert set(products(3, 1, False)[0].outputs) == {Irrep(0, 1), Irrep(1, -1)}


def test_energies_of_edges_have_both_directions() -> None:
    """Centre and neighbour are embedded apart: CO's atoms have other energies, and equal atoms the same."""
    for symbols, same in (("CO", False), ("CC", True)):
        energies = made()(to_graph(Atoms(symbols, [[0, 0, 0], [0, 0, 1.3]]), 4.0))["energies"].numpy()
        assert np.isclose(*energies, rtol=1e-12) == same
