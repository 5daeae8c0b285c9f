"""NequIP equals nequip's, refuses what has no counterpart, and two ways of its self-connection are one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from references_for_tests import FOLDER, NEQUIP_ZBL, assert_equal, made_by_peer, read_reference

from physicsml_ase.atoms import to_graph
from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.importers.nequip import from_nequip, import_nequip
from physicsml_ase.models import nequip
from physicsml_ase.models.nequip import NequIPConfig
from physicsml_ase.nn.couplings import Irrep
from physicsml_ase.potential import Potential

REFERENCE = FOLDER / "nequip.npz"


def test_equals_nequip() -> None:
    reference = read_reference(REFERENCE)
    assert_equal(from_nequip(reference.meta, reference.state), reference)


@pytest.mark.peer
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("l_max=2", "num_features=[6, 4, 2]", "num_layers=2", "convnet_resnet=true"),
        ("l_max=3", "num_features=3", "parity=false", "radial_mlp_depth=1"),
        ("num_layers=4", "convnet_resnet=true", "bessel_trainable=true", "type_embed_num_features=9"),
        ("num_layers=1", "polynomial_cutoff_p=8", "convnet_sc=false", "l_max=2"),
        ("readout_mlp_hidden_layers_depth=2", "per_type_energy_scales=2.5", "convnet_sc=false", NEQUIP_ZBL),
    ],
)
def test_equals_nequip_now(tmp_path: Path, settings: tuple[str, ...]) -> None:
    reference = made_by_peer("nequip", "make_nequip.py", tmp_path / "x.npz", "nequip", *settings)
    assert_equal(from_nequip(reference.meta, reference.state), reference)


def test_imports_a_file(tmp_path: Path) -> None:
    reference = read_reference(REFERENCE)
    torch.save({"meta": reference.meta, "state": reference.state}, tmp_path / "x.pt")
    assert_equal(import_nequip(tmp_path / "x.pt"), reference)
    (tmp_path / "y.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="dump_nequip"):
        import_nequip(tmp_path / "y.pt")
    with pytest.raises(InputError, match="no such file"):
        import_nequip(tmp_path / "z.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unknown": ["per_edge_type_cutoff"]}, "per_edge_type_cutoff"),
        ({"type_names": ["O", "H", "C", "A"]}, "types A are no elements"),
        ({"avg_num_neighbors": [0.2, 0.3]}, "avg_num_neighbors by type"),
        ({"bessel_factor": 1.0}, "bessel_factor"),
    ],
)
def test_what_can_not_be_imported(change: dict[str, object], message: str) -> None:
    reference = read_reference(REFERENCE)
    with pytest.raises(InputError, match=message):
        from_nequip(reference.meta | change, reference.state)


def made(**settings: object) -> Potential:
    torch.manual_seed(0)
    config = validate(NequIPConfig, {"num_features": 4, "invariant_neurons": 8, **settings})
    return Potential(config, Domain(cutoff=4.0, elements=(1, 6, 8)), ()).double().eval()


def test_elements_as_vectors_and_as_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few elements self-connections are matrices of each, of many they are products with their numbers."""
    graph = to_graph(molecule("CH3CH2OH"), 4.0)
    one_hot = made()
    monkeypatch.setattr(nequip, "FEW", 0)
    numbers = made()
    assert one_hot.model.by_element
    assert not numbers.model.by_element
    for name, value in one_hot(graph).items():
        torch.testing.assert_close(value, numbers(graph)[name], rtol=1e-11, atol=1e-12, equal_nan=True)


def test_irreps_are_those_that_can_be_reached() -> None:
    layers = made(max_ell=1).model.layers
    even, odd = Irrep(0, 1), Irrep(0, -1)
    vector, axial = Irrep(1, -1), Irrep(1, 1)
    assert [{ir for _, ir in layer.features} for layer in layers] == [
        {even, vector},
        {even, vector, axial},
        {even},
    ]
    assert odd in {ir for _, ir in made(max_ell=1, num_layers=4).model.layers[2].features}
    assert {ir for _, ir in made(parity=False).model.layers[1].features} == {even, vector}


def test_numbers_of_features_fit_degrees() -> None:
    with pytest.raises(InputError, match="num_features: 3 numbers"):
        made(num_features=(4, 4, 4))


def test_zbl_is_that_of_lammps() -> None:
    """Two carbon atoms at 1 Å: what is added is LAMMPS' formula."""
    with_it, without = made(zbl=True), made()
    energies = []
    for potential in (with_it, without):
        graph = to_graph(Atoms("C2", [[0, 0, 0], [0, 0, 1]]), 4.0)
        energies.append(potential(graph)["energy"].item())
    x = 2 * 6**0.23 / 0.4685
    factors, rates = (0.02817, 0.28022, 0.50986, 0.18175), (0.20162, 0.40290, 0.94229, 3.19980)
    screening = sum(f * np.exp(-r * x) for f, r in zip(factors, rates))
    envelope = 1 - 28 * 0.25**6 + 48 * 0.25**7 - 21 * 0.25**8
    assert energies[0] - energies[1] == pytest.approx(14.399645 * 36 * screening * envelope, rel=1e-12)
