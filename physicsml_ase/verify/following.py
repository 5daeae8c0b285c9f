"""What a simulation meets: a neighbour list that is kept while atoms move, and energy that is conserved."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from physicsml_ase.calculator import PhysicsMLCalculator
from physicsml_ase.conventions import voigt_to_matrix
from physicsml_ase.simulate.ensemble import start_velocities
from physicsml_ase.verify.compare import apart, worst
from physicsml_ase.verify.result import Check, Trace, at_most
from physicsml_ase.verify.subject import Results, Structure, Subject, in_words, with_info

COMPARED = ("energy", "forces", "stress")
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-7}
"""Of the largest value. An edge that a list lacks is more, but for those just within the cut-off."""
SKIN = 0.4  # Å
"""The skin that is tried, or the calculator's where that is smaller: atoms leave it by moves that are not wild."""
NVE_STEPS, NVE_KELVIN = 120, 300.0
NVE_LIMIT = 0.01
"""Departure of the total energy, as a part of the largest kinetic energy; 1e-5 to 1e-3 are usual at this step."""


def check_skin(subject: Subject, structures: Sequence[Structure], skin: float) -> Check:
    """The calculator with its kept lists along trajectories, against the potential on fresh lists."""
    largest, _ = follow(subject, structures, skin, "eager")
    what = (
        "calculator with kept neighbour lists along trajectories, against fresh lists, part of the largest; "
        f"{in_words(structures)}, {_dtype(subject)}"
    )
    return at_most("skin", largest, ROUNDING[subject.potential.dtype], what)


def check_backend(subject: Subject, structures: Sequence[Structure], skin: float, backend: str) -> Check:
    """The calculator on a backend along trajectories, against eager on fresh lists."""
    largest, used = follow(subject, structures, skin, backend)
    what = f"backend {backend} against eager, along trajectories; {in_words(structures)}, {_dtype(subject)}"
    if used != backend:
        what = (
            f"backend {backend} computes something else than eager, and is not used; {in_words(structures)}"
        )
    return at_most(backend, largest if used == backend else np.inf, ROUNDING[subject.potential.dtype], what)


def follow(subject: Subject, structures: Sequence[Structure], skin: float, backend: str) -> tuple[float, str]:
    """Largest deviation of a calculator along a path of each structure, and the backend that it used."""
    deviations, used, skin = list[float](), backend, min(skin, SKIN)
    for number, structure in enumerate(structures):
        # one calculator for a trajectory, as in MD
        calculator = _calculator(subject, skin, backend)
        bends = structure.atoms.pbc.all() and subject.domain.cell is None
        path = _path(structure, 0.75 * skin, bends, np.random.default_rng(number))
        for place, right in zip(path, subject.results(path)):
            found = results_of(calculator, place, subject)
            names = tuple(name for name in COMPARED if name in found)
            deviations.append(apart(subject.domain, right, found, place.atoms.cell.volume, names))
        used = used if calculator.backend == used else calculator.backend
    return worst(deviations), used


def results_of(calculator: PhysicsMLCalculator, structure: Structure, subject: Subject) -> Results:
    """What a calculator gives, as the potential gives it."""
    atoms = with_info(structure, subject.domain)
    calculator.calculate(atoms)
    out = {name: np.asarray(calculator.results[name]) for name in COMPARED if name in calculator.results}
    if "energy" in out and "energies" in calculator.results:
        references = subject.potential.references(torch.from_numpy(atoms.numbers).to(subject.device))
        out["energy"] = out["energy"] - float(references.sum())
    if "stress" in out:
        out["stress"] = voigt_to_matrix(out["stress"])
    return out


def _path(structure: Structure, distance: float, bends: bool, rng: np.random.Generator) -> list[Structure]:
    """Places on the way of a structure: atoms leave the skin, and the cell is sheared at every other place, as in MD
    with and without a barostat; then those of an element change places, so that lists are wrong."""
    atoms = structure.atoms
    towards = rng.normal(size=(len(atoms), 3))
    towards *= distance / np.linalg.norm(towards, axis=1, keepdims=True)
    shear = np.eye(3)
    shear[0, 1] = 0.08 if bends else 0.0
    path = []
    for k in range(1, 9):
        x, cell = atoms.positions + min(k, 5) / 5 * towards, atoms.cell.array
        if k > 5:  # nobody comes closer by that
            x = x[_others(atoms.numbers)]
        bent = np.linalg.matrix_power(shear, (k + 1) // 2)
        path.append(structure.changed(x @ bent, cell @ bent))
    return path


def _others(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Atoms (N,) in an order in which each stands for one of its element, and few for themselves."""
    rng, order = np.random.default_rng(0), np.arange(len(numbers))
    for number in np.unique(numbers):
        alike = np.flatnonzero(numbers == number)
        order[alike] = rng.permutation(alike)
    return order


def _calculator(subject: Subject, skin: float, backend: str) -> PhysicsMLCalculator:
    """A calculator with nothing to say of structures that are unlike the training data: these are to be."""
    return PhysicsMLCalculator(
        subject.potential, subject.device, skin=skin, backend=backend, on_extrapolation="ignore"
    )


def _dtype(subject: Subject) -> str:
    return str(subject.potential.dtype).removeprefix("torch.")


def check_nve(subject: Subject, structure: Structure, skin: float, backend: str) -> tuple[Check, Trace]:
    """A short run at constant energy, and its trace."""
    calculator = _calculator(subject, skin, backend)
    atoms = with_info(structure, subject.domain)
    lightest = float(atoms.get_masses().min())
    step_fs = min(0.25 * lightest**0.5, 1.0)  # a quarter for hydrogen, which has periods of 10 fs
    start_velocities(atoms, NVE_KELVIN, np.random.default_rng(0))
    atoms.calc = calculator
    atoms.get_potential_energy()  # which makes lists and checks the backend
    total, kinetic, began = [], [], time.perf_counter()
    integrator = VelocityVerlet(atoms, step_fs * units.fs)
    for _ in integrator.irun(NVE_STEPS):
        kinetic.append(atoms.get_kinetic_energy())
        total.append(atoms.get_potential_energy() + kinetic[-1])
    seconds = time.perf_counter() - began
    times = np.arange(len(total)) * step_fs / 1000
    departure = np.abs(np.array(total) - total[0])
    drift = 1000 * float(np.polyfit(times, np.array(total) - total[0], 1)[0]) / len(atoms)
    part = float(departure.max() / max(kinetic)) if np.isfinite(total).all() else np.nan
    what = (
        f"total energy over {NVE_STEPS} steps of {step_fs:.2g} fs from {NVE_KELVIN:.0f} K, departure as part of the "
        f"kinetic energy ({calculator.backend}); drift {drift:+.2g} meV/atom/ps; {in_words([structure])}"
    )
    trace = Trace(times, np.array(total), np.array(kinetic), len(atoms), seconds, calculator.backend)
    return at_most("NVE", part, NVE_LIMIT, what), trace
