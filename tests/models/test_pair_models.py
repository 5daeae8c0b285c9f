"""Lennard-Jones is ASE's, ZBL the published formula, and ZBL stands beside every other model."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.data import atomic_numbers

import physicsml_ase.models  # noqa: F401
from physicsml_ase.atoms import to_graph
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.models.lj import LJConfig
from physicsml_ase.models.zbl import ZBLConfig
from physicsml_ase.nn.wall import repulsion
from physicsml_ase.potential import Potential
from physicsml_ase.train.transfer import freeze

CUTOFF = 6.0


def pair(symbols: str, distance: float) -> Atoms:
    return Atoms(symbols, [[0, 0, 0], [0, 0, distance]])


def lj(**settings: object) -> Potential:
    config = validate(LJConfig, {"epsilon": {"Ar-Ar": 0.25}, "sigma": {"Ar-Ar": 2.5}} | settings)
    return Potential(config, Domain(cutoff=CUTOFF, elements=(18,)), ()).double().eval()


def zbl(*elements: str, **settings: object) -> Potential:
    domain = Domain(cutoff=CUTOFF, elements=tuple(sorted(atomic_numbers[s] for s in elements)))
    return Potential(validate(ZBLConfig, settings), domain, ()).double().eval()


@pytest.mark.parametrize(("switch", "smooth"), [("xplor", True), ("shift", False)])
def test_lennard_jones_is_that_of_ase(switch: str, smooth: bool) -> None:
    crystal = bulk("Ar", a=4.3, cubic=True).repeat((1, 1, 2))
    crystal.rattle(0.1, seed=0)
    crystal.set_cell(
        crystal.cell.array @ (np.eye(3) + 0.05 * np.arange(9).reshape(3, 3) / 8), scale_atoms=True
    )
    crystal.calc = LennardJones(epsilon=0.25, sigma=2.5, rc=CUTOFF, ro=4.0, smooth=smooth)
    out = lj(switch=switch, onset=4.0)(to_graph(crystal, CUTOFF))
    assert out["energy"].item() == pytest.approx(crystal.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(out["forces"], crystal.get_forces(), atol=1e-12)
    np.testing.assert_allclose(out["stress"][0], crystal.get_stress(voigt=False), atol=1e-13)
    np.testing.assert_allclose(out["energies"], crystal.get_potential_energies(), atol=1e-12)


def test_lennard_jones_up_to_the_onset_and_at_the_cutoff() -> None:
    potential = lj(onset=4.0)
    for d, expected in ((2.5 * 2 ** (1 / 6), -0.25), (2.5, 0.0), (3.0, (2.5 / 3) ** 12 - (2.5 / 3) ** 6)):
        energy = potential(to_graph(pair("Ar2", d), CUTOFF))["energy"].item()
        assert energy == pytest.approx(expected, abs=1e-12)
    assert potential(to_graph(pair("Ar2", CUTOFF - 1e-4), CUTOFF))["energy"].item() == pytest.approx(
        0, abs=1e-12
    )


def test_lennard_jones_of_several_elements() -> None:
    domain = Domain(cutoff=CUTOFF, elements=(1, 8))
    potential = Potential(validate(LJConfig, {"epsilon": {"O-H": 0.5}}), domain, ()).double().eval()
    energies = {}
    for symbols in ("H2", "HO", "OH", "O2"):
        atoms = pair(symbols, 1.0)
        energies[symbols] = [
            potential(to_graph(pair(symbols, d), CUTOFF))["energy"].item() for d in (0.9, 1.0, 1.2)
        ]
        assert len(atoms) == 2
    assert energies["HO"] == energies["OH"]
    assert len({tuple(values) for values in energies.values()}) == 3
    with pytest.raises(InputError, match="'C-H'"):
        Potential(validate(LJConfig, {"sigma": {"C-H": 1.0}}), domain, ())


def test_lennard_jones_learns() -> None:
    potential = lj()
    potential.train()
    out = potential(to_graph(pair("Ar2", 3.0), CUTOFF))
    (out["energy"].sum() + out["forces"].square().sum()).backward()
    assert all(p.grad.abs().max() > 0 for p in potential.parameters())
    assert not any(p.requires_grad for p in lj(trainable=False).parameters())


@pytest.mark.parametrize(("symbols", "d"), [("HO", 0.5), ("Si2", 1.0), ("CuAu", 1.5), ("C2", 2.9)])
def test_zbl_by_hand(symbols: str, d: float) -> None:
    """The formula as LAMMPS' documentation has it: e^2 / 4 pi epsilon0 = 14.399645 eV Å, a0 = 0.5291772 Å."""
    atoms = pair(symbols, d)
    z, w = atoms.numbers
    x = d / (0.8854 * 0.5291772 / (z**0.23 + w**0.23))
    phi = 0.18175 * np.exp(-3.1998 * x) + 0.50986 * np.exp(-0.94229 * x)
    phi += 0.28022 * np.exp(-0.4029 * x) + 0.02817 * np.exp(-0.20162 * x)
    found = zbl(*atoms.get_chemical_symbols())(to_graph(atoms, CUTOFF))["energy"].item()
    assert found == pytest.approx(14.399645 * z * w / d * phi, rel=2e-6)


def test_zbl_ends() -> None:
    potential = zbl("Si", onset=3.0)
    energies = [potential(to_graph(pair("Si2", CUTOFF - x), CUTOFF))["energy"].item() for x in (0.1, 0.05)]
    assert 0 < energies[1] < energies[0] / 6
    with pytest.raises(InputError, match="onset"):
        zbl("Si", onset=CUTOFF)


@pytest.mark.parametrize("name", ["lj", "zbl"])
def test_attributes_of_structures_are_refused(name: str) -> None:
    domain = Domain(cutoff=CUTOFF, elements=(18,), attrs=("T",), attr_shifts=(0.0,), attr_scales=(1.0,))
    with pytest.raises(InputError, match="do not depend on T"):
        Potential(validate(MODELS[name].config, {}), domain, ())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_short_range_repulsion_beside_every_model(name: str) -> None:
    """Far within the wall the energy changes by the wall's alone: the model is shown one distance."""
    from test_contract import SMALL

    config = validate(MODELS[name].config, {"name": name} | SMALL.get(name, {}))
    domain = Domain(cutoff=4.0, elements=(8,), shortest_distances={"O-O": 2.0}, short_range="zbl")
    potential = Potential(config, domain, ()).double().eval()
    energies = [potential(to_graph(pair("O2", d), 4.0))["energy"].item() for d in (0.6, 1.2)]
    d = torch.tensor([0.6, 1.2], dtype=torch.float64)
    z = torch.full_like(d, 8.0)
    wall, _ = repulsion(d, torch.full_like(d, 0.9 * 2.0), z, z)
    assert energies[0] - energies[1] == pytest.approx((wall[0] - wall[1]).item(), rel=1e-9)
    assert energies[0] - energies[1] > 100


@pytest.mark.parametrize("trainable", [False, True])
def test_what_is_not_to_be_trained_is_not(trainable: bool) -> None:
    potential = lj(trainable=trainable)
    freeze(potential, [])
    assert {p.requires_grad for p in potential.model.parameters()} == {trainable}
    freeze(potential, ["model"])
    assert not any(p.requires_grad for p in potential.parameters())
