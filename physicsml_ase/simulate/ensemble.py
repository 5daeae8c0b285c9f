"""ASE's integrators, with degrees of freedom counted so that small molecules get the temperature asked for.

Every integrator but Langevin's conserves a momentum that was zero at the start; those motions carry no heat.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

from physicsml_ase.conventions import InputError

THERMOSTATS = ("langevin", "nve", "nose-hoover", "bussi", "npt", "npt-full")
ATMOSPHERE_GPA = 1e-4
AT_REST = 1e-3
"""A total momentum below this fraction of the atoms' is none: float32 forces do not cancel exactly."""


class Ensemble(NamedTuple):
    """What is held constant. npt: the cell keeps its shape; npt-full: it does not."""

    thermostat: str
    temperature_K: float
    timestep_fs: float
    friction_per_fs: float
    pressure_GPa: float | None

    @property
    def has_pressure(self) -> bool:
        return self.thermostat.startswith("npt")


def check_ensemble(ensemble: Ensemble, atoms: Atoms) -> None:
    """Raise `InputError` for settings that make no sense, in themselves or for the structure."""
    kind = ensemble.thermostat
    if kind not in THERMOSTATS:
        raise InputError(f"thermostat {kind!r} is not known: use {', '.join(THERMOSTATS)}")
    cold = kind == "nve" and ensemble.temperature_K == 0
    if not (0 < ensemble.temperature_K < np.inf or cold):
        raise InputError(f"temperature_K must be positive, not {ensemble.temperature_K}")
    if not 0 < ensemble.friction_per_fs < np.inf:
        raise InputError(f"friction_per_fs must be positive, not {ensemble.friction_per_fs}")
    if ensemble.pressure_GPa is not None and not ensemble.has_pressure:
        raise InputError(f"a pressure acts on a cell that moves: use thermostat npt or npt-full, not {kind}")
    if not np.isfinite(ensemble.pressure_GPa or 0.0):
        raise InputError(f"pressure_GPa must be a number, not {ensemble.pressure_GPa}")
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    if ensemble.has_pressure and not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise InputError(f"{kind} needs a structure that is periodic in all three directions")
    if ensemble.has_pressure and atoms.constraints:
        raise InputError(f"{kind} does not work with constraints; remove them")


def stress_is_there(atoms: Atoms, ensemble: Ensemble) -> bool:
    """Whether there is a stress. Raises `InputError` where the ensemble needs one and there is none."""
    if not atoms.pbc.any() or atoms.cell.rank < 3:
        return False
    try:
        return bool(np.isfinite(atoms.get_stress()).all())
    except PropertyNotImplementedError:
        if ensemble.has_pressure:
            raise InputError(f"{ensemble.thermostat} needs stress, which this model does not give") from None
        return False


def temperature(kinetic: float, freedom: int) -> float:
    """Temperature [K] of `freedom` motions with a kinetic energy [eV]."""
    return float(2 * kinetic / (freedom * units.kB))


def start_velocities(atoms: Atoms, temperature_K: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann momenta, without drift, and for a molecule without rotation."""
    widths = np.sqrt(atoms.get_masses() * units.kB * temperature_K)  # (N,)
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * widths[:, None])
    # preserving ASE's temperature would put the heat of the removed motions into the others
    if not atoms.constraints and len(atoms) > 1:
        Stationary(atoms, preserve_temperature=False)
        if not atoms.pbc.any():
            with np.errstate(invalid="ignore"):  # of a linear molecule's axis, which ASE then leaves out
                ZeroRotation(atoms, preserve_temperature=False)


def degrees_of_freedom(atoms: Atoms, ensemble: Ensemble) -> int:
    """Number of motions that carry heat."""
    count = int(atoms.get_number_of_degrees_of_freedom())
    if ensemble.thermostat == "langevin" or atoms.constraints or len(atoms) == 1:
        return count
    momenta = atoms.get_momenta()
    size = np.linalg.norm(momenta, axis=1)
    if np.linalg.norm(momenta.sum(0)) <= AT_REST * size.sum():
        count -= 3
        arms = np.linalg.norm(atoms.positions - atoms.get_center_of_mass(), axis=1)
        spin = np.linalg.norm(atoms.get_angular_momentum())
        if not atoms.pbc.any() and spin <= AT_REST * (arms * size).sum():
            inertia = atoms.get_moments_of_inertia()
            count -= int((inertia > 1e-6 * inertia.max()).sum())
    return max(count, 1)


def make_integrator(
    atoms: Atoms, ensemble: Ensemble, freedom: int, rng: np.random.Generator
) -> MolecularDynamics:
    """ASE's integrator of an ensemble."""
    dt = ensemble.timestep_fs * units.fs
    relaxation = units.fs / ensemble.friction_per_fs
    # ASE's chains count 3N degrees of freedom
    target = ensemble.temperature_K * freedom / (3 * len(atoms))

    def nose_hoover() -> MolecularDynamics:
        return NoseHooverChainNVT(atoms, dt, temperature_K=target, tdamp=relaxation)

    def langevin() -> MolecularDynamics:
        # fixcm=True would heat small molecules
        friction = ensemble.friction_per_fs / units.fs
        return Langevin(
            atoms, dt, temperature_K=ensemble.temperature_K, friction=friction, fixcm=False, rng=rng
        )

    def bussi() -> MolecularDynamics:
        made = Bussi(atoms, dt, temperature_K=ensemble.temperature_K, taut=relaxation, rng=rng)
        made.ndof, made.target_kinetic_energy = freedom, freedom * made.temp / 2
        return made

    def npt() -> MolecularDynamics:
        """Of a cell that breathes, and for npt-full changes its shape."""
        kind = MTKNPT if ensemble.thermostat == "npt-full" else IsotropicMTKNPT
        given = ensemble.pressure_GPa
        pressure = (ATMOSPHERE_GPA if given is None else given) * units.GPa
        return kind(
            atoms, dt, temperature_K=target, pressure_au=pressure, tdamp=relaxation, pdamp=10 * relaxation
        )

    makers: dict[str, Callable[[], MolecularDynamics]] = {
        "nve": lambda: VelocityVerlet(atoms, dt),
        "langevin": langevin,
        "bussi": bussi,
        "nose-hoover": nose_hoover,
        "npt": npt,
        "npt-full": npt,
    }
    return makers[ensemble.thermostat]()
