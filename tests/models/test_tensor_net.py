"""TensorNet equals torchmd-net's, its parts do what they say, and mirror images are told apart only under SO(3)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from references_for_tests import FOLDER, assert_equal, made_by_peer, read_reference

from physicsml_ase.atoms import to_graph
from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.importers.tensor_net import from_torchmdnet, import_torchmdnet
from physicsml_ase.models.tensor_net import TensorNetConfig
from physicsml_ase.nn.matrices import Matrices, orthonormal_basis
from physicsml_ase.nn.pairs import make_pairs
from physicsml_ase.potential import Potential

HCNO = (1, 6, 7, 8)
REFERENCE = FOLDER / "tensor_net.npz"


def test_equals_torchmdnet() -> None:
    reference = read_reference(REFERENCE)
    assert_equal(from_torchmdnet(reference.meta, reference.state, HCNO), reference)


@pytest.mark.peer
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("embedding_dimension=32", "num_rbf=16", "num_layers=3", "cutoff_upper=3.3"),
        ("rbf_type=gauss", "equivariance_invariance_group=SO(3)", "num_layers=1"),
        ("num_layers=0", "trainable_rbf=1"),
    ],
)
def test_equals_torchmdnet_now(tmp_path: Path, settings: tuple[str, ...]) -> None:
    reference = made_by_peer("torchmdnet", "make_tensor_net.py", tmp_path / "x.npz", *settings)
    assert_equal(from_torchmdnet(reference.meta, reference.state, HCNO), reference)


def test_imports_a_checkpoint(tmp_path: Path) -> None:
    reference = read_reference(REFERENCE)
    state = {f"model.{name}": value for name, value in reference.state.items()}
    state["model.std"] = torch.tensor(2.0, dtype=torch.float64)
    args = reference.meta | {"prior_model": "Atomref"}
    state["model.prior_model.0.atomref.weight"] = torch.arange(10.0, dtype=torch.float64)[:, None]
    torch.save({"hyper_parameters": args, "state_dict": state}, tmp_path / "x.ckpt")
    potential = import_torchmdnet(tmp_path / "x.ckpt", HCNO, energy_unit=3.0).eval()
    atoms = reference.structures["molecule"]
    energy = potential(to_graph(atoms, potential.domain.cutoff))["energy"].item()
    found = 3 * (2 * reference.found["molecule"]["energy"] + atoms.numbers.sum())
    assert energy == pytest.approx(found, rel=1e-9)


def test_imports_the_older_order_of_weights() -> None:
    reference = read_reference(REFERENCE)
    state = dict(reference.state)
    for name, value in reference.state.items():
        if "tensor_embedding.linears_scalar.1" in name or ("layers." in name and "linears_scalar.2" in name):
            state[name] = value.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)
    assert_equal(from_torchmdnet(reference.meta | {"check_errors": True}, state, HCNO), reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "tanh"}, "activation"),
        ({"cutoff_lower": 1.0}, "cutoff_lower"),
        ({"model": "equivariant-transformer"}, "model"),
        ({"prior_model": "ZBL"}, "ZBL"),
    ],
)
def test_what_can_not_be_imported(change: dict[str, object], message: str) -> None:
    reference = read_reference(REFERENCE)
    with pytest.raises(InputError, match=message):
        from_torchmdnet(reference.meta | change, reference.state, HCNO)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"is no checkpoint|can not be read"):
        import_torchmdnet(tmp_path / "x.ckpt", HCNO)


def test_the_basis_keeps_frobenius_norms() -> None:
    basis = orthonormal_basis().reshape(9, 9)
    np.testing.assert_allclose(basis @ basis.T, np.eye(9), atol=1e-15)
    matrices = Matrices().double()
    x = torch.randn(9, 5, 2, dtype=torch.float64)
    whole = matrices.whole(x)
    torch.testing.assert_close(whole.square().sum((0, 1)), x.square().sum(0))
    torch.testing.assert_close(matrices.parts(whole), x)
    assert (whole.movedim((0, 1), (-2, -1))[..., 0, 1] != 0).all()


def test_pairs_hold_both_directions() -> None:
    for self_interaction in (False, True):
        graph = to_graph(molecule("CH3CH2OH"), 2.0, self_interaction=self_interaction)
        pairs = make_pairs(graph)
        itself = graph.edge_index[0] == graph.edge_index[1]
        assert (pairs.of_edge == pairs.of_edge[graph.reverse]).all()
        assert (pairs.of_edge[itself] == len(pairs.edge)).all()
        taken = pairs.edge[pairs.of_edge[~itself]]
        same = (taken == torch.arange(len(itself))[~itself]) | (taken == graph.reverse[~itself])
        assert same.all()


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
def test_mirror_images(group: str) -> None:
    config = {"name": "tensor_net", "hidden_channels": 8, "equivariance_group": group}
    torch.manual_seed(0)
    domain = Domain(cutoff=5.0, elements=(1, 6, 7, 8, 9, 17))
    potential = Potential(validate(TensorNetConfig, config), domain, ()).double().eval()
    left = molecule("CH3CH2OH")[[0, 1, 2, 3, 4]]
    left.numbers[:] = [6, 1, 9, 17, 8]
    left.positions += np.random.default_rng(0).normal(size=left.positions.shape) * 0.2
    right = left.copy()
    right.positions[:, 0] *= -1
    a, b = (potential(to_graph(atoms, 5.0))["energy"].item() for atoms in (left, right))
    if group == "O(3)":
        assert a == pytest.approx(b, abs=1e-12)
    else:
        assert abs(a - b) > 1e-9
