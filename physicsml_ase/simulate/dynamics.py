"""Molecular dynamics: ASE's integrators, with a guard, a log, and restart from the trajectory."""

import logging
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.constraints import FixAtoms
from ase.md.md import MolecularDynamics

from physicsml_ase.conventions import InputError
from physicsml_ase.simulate.ensemble import (
    Ensemble,
    check_ensemble,
    degrees_of_freedom,
    make_integrator,
    start_velocities,
    stress_is_there,
    temperature,
)
from physicsml_ase.simulate.frames import (
    OTHERWISE,
    STEP,
    TIMESTEP,
    check_gives_forces,
    first_frame,
    frame,
    keys_seen,
    last_frame,
    without_labels,
)
from physicsml_ase.simulate.guard import ADVICE, Guard, Unstable
from physicsml_ase.simulate.meter import meter
from physicsml_ase.simulate.outputs import open_outputs, trajectory_path

logger = logging.getLogger("physicsml_ase")

NOISE = 1
"""Of the thermostat's random numbers: what tells them from those of the velocities at the start."""
COLUMNS = {
    "step": "d",
    "time[ps]": ".6f",
    "epot[eV]": ".6f",
    "ekin[eV]": ".6f",
    "T[K]": ".2f",
}
STRESS_COLUMNS = {"volume[Å^3]": ".3f"} | {
    f"{k}[eV/Å^3]": ".6e" for k in ("sxx", "syy", "szz", "syz", "sxz", "sxy")
}


@dataclass(frozen=True)
class MDResult:
    """What a run did."""

    atoms: Atoms
    """The final structure, with momenta."""
    steps: int
    """Steps done by this call."""
    total_steps: int
    """Steps done since the trajectory began."""
    time_ps: float
    """Time since the trajectory began."""
    temperature_K: float
    """Mean over the steps of this call."""
    energy_drift: float | None
    """Slope of the total energy over the steps of this call [eV/atom/ps]; NVE only."""
    wall_s: float
    atom_steps_per_s: float

    def in_words(self) -> str:
        """One line for people."""
        parts = [
            f"{self.steps} steps, now at {self.time_ps:.4g} ps, in {self.wall_s:.1f} s "
            f"({self.atom_steps_per_s:.3g} atoms·steps/s)",
            f"mean temperature {self.temperature_K:.1f} K",
        ]
        if self.energy_drift is not None:
            parts.append(f"energy drift {self.energy_drift:+.2e} eV/atom/ps")
        return "; ".join(parts)


def md(
    calculator: BaseCalculator,
    atoms: Atoms,
    *,
    steps: int | None = None,
    time_ps: float | None = None,
    timestep_fs: float = 1.0,
    temperature_K: float = 300.0,
    thermostat: str = "langevin",
    friction_per_fs: float = 0.01,
    pressure_GPa: float | None = None,
    trajectory: str | Path | None = None,
    log: str | Path | None = None,
    every: int = 10,
    seed: int = 0,
    restart: bool = True,
) -> MDResult:
    """Run dynamics of a copy of `atoms` for `steps`, or for `time_ps`.

    Thermostats relax within 1 / `friction_per_fs`, barostats in ten times that, towards `pressure_GPa` (of npt alone;
    None: 1e-4, an atmosphere). Velocities are drawn at `temperature_K` unless the atoms carry momenta. Every `every`
    steps a frame goes to `trajectory` (.traj, .xyz or .extxyz) and a line to `log`. With `restart`, a trajectory that
    is already there is continued up to `steps` in all; without, it is overwritten. Raises `Unstable` when the
    simulation explodes.
    """
    started = time.perf_counter()
    ensemble = Ensemble(thermostat, temperature_K, timestep_fs, friction_per_fs, pressure_GPa)
    last = _number_of_steps(steps, time_ps, timestep_fs)
    if every < 1:
        raise InputError(f"every must be at least 1, not {every}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}")
    check_ensemble(ensemble, atoms)
    path = trajectory_path(trajectory)
    atoms = without_labels(atoms, calculator)
    atoms, first, keep = _start(atoms, path if restart else None, ensemble, seed, keys_seen(calculator))
    if first and first >= last:
        logger.warning("%s is at step %d already, so there is nothing to do", path, first)
    elif not last:
        logger.warning("nothing moves: the length asked for is 0 steps of %g fs", timestep_fs)
    atoms.calc = calculator
    check_gives_forces(
        atoms, calculator
    )  # what is wrong with the structure is said before any file is opened
    has_stress = stress_is_there(atoms, ensemble)
    freedom = degrees_of_freedom(atoms, ensemble)
    if freedom < 1:
        raise InputError("nothing can move: the constraints hold all atoms")
    # the last number makes it another stream than that of the velocities: a seed's trailing zeros do not count
    integrator = make_integrator(atoms, ensemble, freedom, np.random.default_rng([seed, first, NOISE]))
    integrator.nsteps = first
    guard = Guard(atoms, 10 * max(temperature_K, temperature(atoms.get_kinetic_energy(), freedom)) + 1000)
    kept = "nothing was kept" if path is None else f"the frames before are in {path}"
    temperatures, energies = array("d"), array("d")
    columns = COLUMNS | (STRESS_COLUMNS if has_stress else {})
    with (
        open_outputs(path, log, columns, keep=keep, continue_from=first or None) as (frames, lines),
        _saying_if_stopped(integrator, kept),
        meter("MD", first, last, len(atoms)) as show,
    ):
        began = time.perf_counter()
        for step, potential, kinetic, kelvin in _guarded(
            integrator, max(last - first, 0), guard, freedom, kept
        ):
            temperatures.append(kelvin)
            energies.append(potential + kinetic)
            show(step, f"{kelvin:.0f} K  {potential / len(atoms):.4f} eV/atom")
            if (step == first and first) or (step % every and step != last):
                continue
            # the log first: a line without its frame is dropped on restart, a frame without its line is not made up
            if lines is not None:
                stress = [atoms.get_volume(), *atoms.get_stress()] if has_stress else []
                lines.write(step, step * timestep_fs / 1000, potential, kinetic, kelvin, *stress)
            if frames is not None:
                frames.write(frame(atoms, step, timestep_fs))
    ended = time.perf_counter()
    return _result(atoms, ensemble, first, temperatures, energies, ended - started, ended - began)


def _result(
    atoms: Atoms,
    ensemble: Ensemble,
    first: int,
    temperatures: Sequence[float],
    energies: Sequence[float],
    wall_s: float,
    steps_s: float,
) -> MDResult:
    """Of temperatures [K] and total energies [eV] of the steps from `first` on, which took `steps_s`."""
    done = len(energies) - 1
    times = np.arange(done + 1) * ensemble.timestep_fs / 1000
    drift = None
    if ensemble.thermostat == "nve" and done > 1:
        drift = float(np.polyfit(times, np.array(energies) - energies[0], 1)[0]) / len(atoms)
    return MDResult(
        atoms=atoms,
        steps=done,
        total_steps=first + done,
        time_ps=(first + done) * ensemble.timestep_fs / 1000,
        temperature_K=float(np.mean(temperatures)),
        energy_drift=drift,
        wall_s=wall_s,
        atom_steps_per_s=done * len(atoms) / steps_s,
    )


@contextmanager
def _saying_if_stopped(integrator: MolecularDynamics, kept: str) -> Iterator[None]:
    """Tells where a run stands that is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("stopped after step %d; %s; the same run continues", integrator.nsteps, kept)
        raise


def _guarded(
    integrator: MolecularDynamics, steps: int, guard: Guard, freedom: int, kept: str
) -> Iterator[tuple[int, float, float, float]]:
    """The steps of an integrator, from the present one, with potential and kinetic energy [eV] and temperature [K];
    `Unstable` where it is no physics any more."""
    run, atoms = integrator.irun(steps), integrator.atoms
    while True:
        try:
            next(run)
            step = integrator.nsteps
            potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
            kelvin = temperature(kinetic, freedom)
            complaint = guard.complaint(atoms, potential, kelvin)
        except StopIteration:
            return
        except InputError as error:  # the structure is such that the model refuses it
            step, complaint = integrator.nsteps + 1, str(error)
        if complaint:
            time_ps = step * integrator.dt / (1000 * units.fs)
            raise Unstable(f"MD stopped at step {step} ({time_ps:.4g} ps): {complaint}; {kept}; {ADVICE}")
        yield step, potential, kinetic, kelvin


def _start(
    atoms: Atoms, path: Path | None, ensemble: Ensemble, seed: int, seen: Sequence[str]
) -> tuple[Atoms, int, int]:
    """The structure to begin with, with momenta, its step, and what to keep of the trajectory.

    `seen` are the keys of `Atoms.info` that the model sees.
    """
    last = last_frame(path) if path is not None else None
    if last is not None:
        found = last.atoms
        if not np.array_equal(found.numbers, atoms.numbers):
            raise InputError(
                f"{path} is of {found.get_chemical_formula()}, not of this structure "
                f"({atoms.get_chemical_formula()}); {OTHERWISE}"
            )
        values = {key: [np.asarray(x.info.get(key)) for x in (found, atoms)] for key in seen}
        others = [key for key, (one, other) in values.items() if not np.array_equal(one, other)]
        others += [] if np.array_equal(found.pbc, atoms.pbc) else ["pbc"]
        if others:
            raise InputError(f"{path} has another {others[0]} than the structure given; {OTHERWISE}")
        if path is not None and not any(_same_place(atoms, x) for x in (found, first_frame(path))):
            logger.warning("the structure given is neither the first nor the last of %s, which goes on", path)
        step, before = int(found.info.pop(STEP)), found.info.pop(TIMESTEP, None)
        if before is not None and not np.isclose(before, ensemble.timestep_fs):
            raise InputError(
                f"{path} has time steps of {before:g} fs: continue with timestep_fs={before:g} (--timestep); "
                f"{OTHERWISE}"
            )
        if found.constraints and _words(found) != _words(atoms):
            logger.warning("the constraints are those of the structure given now, and not those of %s", path)
        found.set_constraint(atoms.copy().constraints)
        logger.info("continuing %s from step %d", path, step)
        found.calc = None
        return found, step, last.keep if step else 0  # step 0 is written again
    fresh = atoms.copy()
    for key in (STEP, TIMESTEP):
        fresh.info.pop(key, None)
    if fresh.has("momenta"):
        kelvin, wanted = fresh.get_temperature(), ensemble.temperature_K
        unlike = not 0.5 * wanted <= kelvin <= 2 * wanted
        words = "velocities are the structure's own, of %.0f K, and are not drawn at %g K"
        logger.log(logging.WARNING if unlike else logging.INFO, words, kelvin, wanted)
    else:
        start_velocities(fresh, ensemble.temperature_K, np.random.default_rng(seed))
    return fresh, 0, 0


def _same_place(atoms: Atoms, other: Atoms | None) -> bool:
    return other is not None and all(
        x.shape == y.shape and np.allclose(x, y, atol=1e-4)
        for x, y in ((atoms.positions, other.positions), (atoms.cell.array, other.cell.array))
    )


def _words(atoms: Atoms) -> str:
    """What the constraints are."""
    fixed, others = set[int](), list[str]()
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed |= {int(k) for k in constraint.index}
        else:
            others.append(
                str(constraint.todict() if hasattr(constraint, "todict") else type(constraint).__name__)
            )
    return f"{sorted(fixed)} {sorted(others)}"


def _number_of_steps(steps: int | None, time_ps: float | None, timestep_fs: float) -> int:
    if time_ps is not None and not np.isfinite(time_ps):
        raise InputError(f"time_ps must be a length of time, not {time_ps}")
    if timestep_fs <= 0 or not np.isfinite(timestep_fs):
        raise InputError(f"timestep_fs must be positive, not {timestep_fs}")
    if (steps is None) == (time_ps is None):
        raise InputError("give the length of the simulation as steps or as time_ps, one of them")
    name, length = ("steps", steps) if time_ps is None else ("time_ps", time_ps)
    if length is not None and length < 0:
        raise InputError(f"{name} must not be negative: {length}")
    return round(1000 * time_ps / timestep_fs) if time_ps is not None else steps or 0
