"""ASE's own tools run on the calculator as on any other."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.fd import FiniteDifferenceCalculator
from ase.calculators.mixing import SumCalculator
from ase.db import connect
from ase.filters import FrechetCellFilter, StrainFilter
from ase.io import Trajectory, read, write
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import MTKNPT, NoseHooverChainNVT
from ase.md.npt import NPT
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGSLineSearch
from ase.phonons import Phonons
from ase.vibrations import Vibrations
from conftest import rattled, structures
from test_calculator import make

from physicsml_ase.calculator import PhysicsMLCalculator


@pytest.fixture
def calc() -> PhysicsMLCalculator:
    return PhysicsMLCalculator(make())


def moving(atoms: Atoms, calc: PhysicsMLCalculator, temperature: float = 300.0) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = calc
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    momenta = np.random.default_rng(0).normal(size=(len(atoms), 3)) * spread
    atoms.set_momenta(momenta - momenta.mean(0))
    return atoms


@pytest.mark.parametrize("kind", ["molecule", "crystal", "slab_without_c"])
def test_nve_conserves_energy(calc, kind):
    def deviation(timestep: float, steps: int) -> float:
        atoms = moving(structures()[kind], calc, temperature=600)
        dynamics = VelocityVerlet(atoms, timestep * units.fs)
        energies = [atoms.get_total_energy() for _ in dynamics.irun(steps)]
        return float(np.ptp(energies)) / len(atoms)

    coarse, fine = deviation(0.5, 80), deviation(0.25, 160)
    assert coarse < 1e-4
    assert (
        3 < coarse / fine < 5
    )  # the integrator's error falls with the square of the step, and no other is left
    assert calc._inputs.moving.verlet.rebuilds < 30


def test_skin_changes_no_trajectory():
    ends = []
    for skin in (0.0, 0.4, 3.0):
        atoms = moving(structures()["triclinic"], PhysicsMLCalculator(make(), skin=skin))
        VelocityVerlet(atoms, 2 * units.fs).run(30)
        ends.append(atoms.positions)
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-9)
    np.testing.assert_allclose(ends[2], ends[0], atol=1e-9)


def test_thermostats(calc):
    crystal = structures()["crystal"] * (2, 1, 1)
    atoms = moving(crystal, calc)
    Langevin(
        atoms, units.fs, temperature_K=300, friction=0.01, fixcm=False, rng=np.random.default_rng(1)
    ).run(10)
    NoseHooverChainNVT(atoms, units.fs, temperature_K=300, tdamp=100 * units.fs).run(10)
    assert 50 < atoms.get_temperature() < 1000


@pytest.mark.filterwarnings("ignore:NPT thermostat has been moved")
def test_barostats(calc):
    atoms = moving(structures()["crystal"] * (2, 2, 1), calc)
    volume = atoms.get_volume()
    settings = {"temperature_K": 300, "tdamp": 100 * units.fs, "pdamp": 500 * units.fs}
    MTKNPT(atoms, units.fs, pressure_au=0.0, **settings).run(10)
    assert atoms.get_volume() != volume
    atoms = moving(structures()["crystal"] * (2, 2, 1), calc)  # this one wants a triangular cell
    volume = atoms.get_volume()
    periods = {"ttime": 100 * units.fs, "pfactor": 75**2 * units.fs**2}
    NPT(atoms, units.fs, temperature_K=300, externalstress=0, **periods).run(10)
    assert atoms.get_volume() != volume
    fresh = atoms.copy()
    fresh.calc = PhysicsMLCalculator(calc.potential, skin=0)
    np.testing.assert_allclose(atoms.get_stress(), fresh.get_stress(), atol=1e-12)


@pytest.mark.parametrize("optimizer", [BFGS, FIRE, LBFGSLineSearch])
def test_optimizers(calc, optimizer):
    atoms = rattled(structures()["molecule"], 0.05)
    atoms.calc = calc
    energy, force = atoms.get_potential_energy(), np.abs(atoms.get_forces()).max()
    optimizer(atoms, logfile=None).run(fmax=0.02, steps=40)
    assert atoms.get_potential_energy() < energy
    assert np.abs(atoms.get_forces()).max() < force


@pytest.mark.parametrize("kind", ["crystal", "left_handed"])
def test_cell_filters(calc, kind):
    atoms = structures()[kind]
    atoms.calc = calc
    energy, volume = atoms.get_potential_energy(), atoms.get_volume()
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=15)
    assert atoms.get_potential_energy() < energy
    assert atoms.get_volume() != volume
    BFGS(StrainFilter(atoms), logfile=None).run(fmax=0.02, steps=3)


@pytest.mark.parametrize("shared", [True, False])
def test_neb(calc, shared):
    ends = [rattled(structures()["molecule"], 0.01, seed) for seed in (1, 2)]
    images = [ends[0], *(ends[0].copy() for _ in range(3)), ends[1]]
    for image in images:
        image.calc = calc if shared else PhysicsMLCalculator(calc.potential)
    neb = NEB(images, allow_shared_calculator=shared, climb=True, method="improvedtangent")
    neb.interpolate("idpp")
    BFGS(neb, logfile=None).run(fmax=0.05, steps=5)
    alone = PhysicsMLCalculator(calc.potential)
    for k in (1, 2, 3):
        assert images[k].get_potential_energy() == pytest.approx(alone.get_potential_energy(images[k]))


def test_neb_in_threads(calc):
    ends = [rattled(structures()["molecule"], 0.01, seed) for seed in (1, 2)]
    forces = []
    for parallel in (False, True):
        images = [ends[0].copy(), *(ends[0].copy() for _ in range(3)), ends[1].copy()]
        for image in images:
            image.calc = PhysicsMLCalculator(calc.potential)
        neb = NEB(images, parallel=parallel, method="improvedtangent")
        neb.interpolate()
        forces.append(neb.get_forces())
    np.testing.assert_allclose(forces[1], forces[0], atol=1e-10)


def test_vibrations(calc, tmp_path):
    water = molecule("H2O")
    water.calc = calc
    vibrations = Vibrations(water, name=str(tmp_path / "vib"))
    vibrations.run()
    assert len(vibrations.get_energies()) == 9
    hessian = vibrations.get_vibrations().get_hessian_2d()
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-10)


def test_phonons(calc, tmp_path):
    crystal = bulk("Cu")
    phonons = Phonons(crystal, calc, supercell=(3, 3, 3), delta=0.01, name=str(tmp_path / "phonon"))
    phonons.run()
    phonons.read(acoustic=True)
    omega = phonons.band_structure(np.array([[0.0, 0, 0], [0.5, 0.5, 0]]))
    np.testing.assert_allclose(omega[0], 0, atol=1e-4)  # translations cost nothing


def test_numerical_calculator_around_it(calc):
    atoms = structures()["tiny"]
    atoms.calc = calc
    forces, stress = atoms.get_forces(), atoms.get_stress()
    atoms.calc = FiniteDifferenceCalculator(calc, eps_disp=1e-4, eps_strain=1e-5)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-7)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=1e-9)


def test_sum_of_calculators(calc):
    atoms = structures()["crystal"]
    once = calc.predict([atoms])[0]
    atoms.calc = SumCalculator([calc, PhysicsMLCalculator(calc.potential)])
    assert atoms.get_potential_energy() == pytest.approx(2 * once["energy"])
    np.testing.assert_allclose(atoms.get_stress(), 2 * once["stress"], atol=1e-12)


@pytest.mark.parametrize("kind", ["crystal", "molecule"])
@pytest.mark.parametrize("name", ["run.traj", "run.xyz", "run.db", "run.json"])
def test_written_and_read(calc, tmp_path, kind, name):
    atoms = structures()[kind]
    atoms.calc = calc
    atoms.get_potential_energy()
    path: Path = tmp_path / name
    if path.suffix == ".traj":
        with Trajectory(path, "w", atoms) as trajectory:
            VelocityVerlet(atoms, units.fs, trajectory=trajectory).run(2)
    elif path.suffix == ".db":
        connect(path).write(atoms)
    else:
        write(path, atoms)
    back = read(path, index=-1)
    assert back.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(back.get_forces(), atoms.get_forces(), atol=1e-7)
    assert ("stress" in back.calc.results) == (kind == "crystal")
    if path.suffix == ".traj":
        assert back.calc.name == "physicsml_ase"
        np.testing.assert_array_equal(back.get_charges(), atoms.get_charges())
