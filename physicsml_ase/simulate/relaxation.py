"""Geometry optimisation of atoms, and of the cell where asked for."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ase.optimize
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.optimize.optimize import Optimizer

from physicsml_ase.conventions import VOIGT, InputError, raised_in
from physicsml_ase.simulate.frames import check_gives_forces, frame, without_labels
from physicsml_ase.simulate.guard import Guard, Unstable
from physicsml_ase.simulate.meter import meter
from physicsml_ase.simulate.outputs import open_outputs, trajectory_path

OPTIMIZERS = ("FIRE", "FIRE2", "BFGS", "LBFGS", "BFGSLineSearch", "LBFGSLineSearch", "MDMin", "GPMin")
Cell = bool | Literal["all", "volume", "shape"] | Sequence[bool]
"""What of the cell moves: all of it, its volume only, its shape only, or chosen Voigt components."""


@dataclass(frozen=True)
class RelaxResult:
    """What a relaxation reached."""

    atoms: Atoms
    """The final structure."""
    converged: bool
    steps: int
    energy: float
    """eV"""
    energy_change: float
    """eV"""
    fmax: float
    """Largest force on an atom [eV/Å]."""
    stress_GPa: float | None
    """Largest component of the stress left on the cell; None where the cell did not move."""
    wall_s: float
    gave_up: str | None = None
    """Why the optimizer went no further by itself, where it did not."""

    def in_words(self) -> str:
        """One line for people."""
        parts = [
            f"{'converged' if self.converged else 'NOT converged'} after {self.steps} steps "
            f"in {self.wall_s:.1f} s" + (f" ({self.gave_up})" if self.gave_up else ""),
            f"largest force {self.fmax:.4g} eV/Å",
            f"energy {self.energy:.6f} eV ({self.energy_change:+.6f} eV)",
        ]
        if self.stress_GPa is not None:
            parts.insert(2, f"largest stress left {self.stress_GPa:.3g} GPa")
        return "; ".join(parts)


def relax(
    calculator: BaseCalculator,
    atoms: Atoms,
    *,
    fmax: float = 0.01,
    steps: int = 500,
    optimizer: str = "FIRE",
    cell: Cell = False,
    pressure_GPa: float = 0.0,
    trajectory: str | Path | None = None,
    log: str | Path | None = None,
) -> RelaxResult:
    """Move a copy of `atoms` until no force is larger than `fmax` [eV/Å], within `steps`.

    With `cell`, the cell moves too, against `pressure_GPa`, until its virial per atom is below `fmax` [eV].
    Momenta are dropped. Every step goes to `trajectory` (overwritten) and to `log`. A result that has not converged
    says so. Raises `Unstable` when energies or forces are not finite or the atoms fly apart.
    """
    if not fmax > 0 or steps < 0:
        raise InputError(f"fmax must be positive and steps not negative: {fmax}, {steps}")
    if isinstance(cell, np.bool_ | np.ndarray):
        cell = cell.tolist()
    make_optimizer = _optimizer(optimizer)
    path = trajectory_path(trajectory)
    started = time.perf_counter()
    atoms = without_labels(atoms, calculator)
    atoms.arrays.pop("momenta", None)  # what is relaxed is at rest
    atoms.calc = calculator
    check_gives_forces(atoms, calculator)
    moves = _moving_components(cell, atoms, pressure_GPa)
    first_energy, guard = atoms.get_potential_energy(), Guard(atoms)
    complaint = guard.complaint(atoms, first_energy)
    if complaint:
        raise Unstable(f"relaxation can not begin: {complaint}")
    target = atoms if moves is None else _filter(atoms, cell, moves, pressure_GPa)
    method = make_optimizer(target, logfile=None)
    kept = "nothing was kept" if path is None else f"the steps before are in {path}"
    columns = {"step": "d", "energy[eV]": ".6f", "fmax[eV/Å]": ".6f"}
    columns |= {} if moves is None else {"stress[GPa]": ".4f", "volume[Å^3]": ".3f"}
    place, energy, force, left = (
        (atoms.positions.copy(), atoms.cell.array.copy()),
        first_energy,
        math.inf,
        None,
    )
    with (
        open_outputs(path, log, columns) as (frames, lines),
        meter("relaxing", 0, steps, len(atoms)) as show,
    ):
        for converged, gave_up in _guarded(method, fmax, steps, guard, atoms, kept):  # noqa: B007  told at last
            if gave_up is not None:  # back to what was looked at last
                atoms.positions[:], atoms.cell.array[:] = place
                break
            place = atoms.positions.copy(), atoms.cell.array.copy()
            energy, force = atoms.get_potential_energy(), _largest_force(atoms)
            left = None if moves is None else _stress_left(atoms, cell, moves, pressure_GPa)
            show(method.nsteps, f"fmax {force:.3g} eV/Å  {energy:.4f} eV")
            if frames is not None:
                frames.write(frame(atoms, method.nsteps))
            if lines is not None:
                lines.write(
                    method.nsteps, energy, force, *([] if left is None else [left, atoms.get_volume()])
                )
    return RelaxResult(
        atoms=atoms,
        converged=converged,
        steps=method.nsteps,
        energy=float(energy),
        energy_change=float(energy - first_energy),
        fmax=force,
        stress_GPa=left,
        wall_s=time.perf_counter() - started,
        gave_up=gave_up,
    )


def _optimizer(name: str) -> Callable[..., Optimizer]:
    """ASE's optimizer of that name, in any case of letters."""
    names = {known.lower(): known for known in OPTIMIZERS}
    if name.lower() not in names:
        raise InputError(f"optimizer {name!r} is not known: use {', '.join(OPTIMIZERS)}")
    found: Callable[..., Optimizer] = getattr(ase.optimize, names[name.lower()])
    return found


def _guarded(
    method: Optimizer, fmax: float, steps: int, guard: Guard, atoms: Atoms, kept: str
) -> Iterator[tuple[bool, str | None]]:
    """Whether it has converged, at each step, or why the optimizer gives up at last.

    `Unstable` where energies or forces are none any more.
    """
    run = method.irun(fmax=fmax, steps=steps)
    while True:
        try:
            converged = bool(next(run))
            complaint = guard.complaint(atoms, atoms.get_potential_energy())
        except StopIteration:
            return
        except InputError as error:
            complaint = str(error)
        except RuntimeError as error:
            # by ASE itself, as where the noise of float32 leads a line search nowhere
            if not raised_in(error).startswith("ase."):
                raise
            yield False, " ".join(str(error).split())[:100]
            return
        if complaint:
            raise Unstable(f"relaxation stopped at step {method.nsteps}: {complaint}; {kept}")
        yield converged, None


def _moving_components(cell: Cell, atoms: Atoms, pressure_GPa: float) -> list[bool] | None:
    """Which Voigt components of the cell's strain move; None where the cell is fixed."""
    if cell is False:
        if pressure_GPa:
            raise InputError("a pressure acts on a cell that moves: say so with cell (--cell)")
        return None
    if atoms.cell.rank < 3 or not atoms.pbc.any():
        raise InputError("the cell can not be relaxed: the structure is not a crystal with a full cell")
    try:
        atoms.get_stress()
    except PropertyNotImplementedError:
        raise InputError("the cell can not be relaxed: the model gives no stress") from None
    # a direction that is not periodic has vacuum, which has no natural length
    across = [bool(np.abs(atoms.cell.array[~atoms.pbc][:, axis]).max(initial=0) > 1e-6) for axis in range(3)]
    free = [not (across[row] or across[column]) for row, column in VOIGT]
    if cell is True or cell == "all":
        return free
    if cell in ("volume", "shape"):
        if not all(free):
            raise InputError(
                f"cell={cell} is for crystals; this structure is not periodic in every direction"
            )
        return free
    if isinstance(cell, str) or len(cell) != 6:
        raise InputError(
            f"cell must be all, volume, shape or six truth values (xx yy zz yz xz xy), not {cell!r}"
        )
    return [bool(component) for component in cell]


def _filter(atoms: Atoms, cell: Cell, moves: list[bool], pressure_GPa: float) -> FrechetCellFilter:
    return FrechetCellFilter(
        atoms,
        mask=moves,
        hydrostatic_strain=cell == "volume",
        constant_volume=cell == "shape",
        scalar_pressure=pressure_GPa * units.GPa,
    )


def _largest_force(atoms: Atoms) -> float:
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def _stress_left(atoms: Atoms, cell: Cell, moves: list[bool], pressure_GPa: float) -> float:
    """Largest component of the stress that the moving part of the cell still feels [GPa]."""
    stress = atoms.get_stress() / units.GPa  # (6,) Voigt
    stress[:3] += pressure_GPa
    if cell == "volume":
        return float(abs(stress[:3].mean()))
    if cell == "shape":
        stress[:3] -= stress[:3].mean()
    return float(np.abs(stress[moves]).max(initial=0.0))
