"""Forces that do not add up: a net force, a net torque on a molecule, zeros in place of fixed atoms' forces."""

import numpy as np
from ase.constraints import FixAtoms

from physicsml_ase.check.findings import Finding, Places
from physicsml_ase.check.frame import Frame

UNBALANCED = 0.1
"""Net force or torque, as a part of what random forces of this size would give."""
SMALLEST = 0.05
"""Of a net force that matters [eV/Å]; of a torque per Å."""

SYMMETRIC = 4
"""Atoms of a cell in which symmetry may well forbid all forces."""


class Balance:
    """Sums of forces and torques, and exact zeros."""

    def __init__(self) -> None:
        self.net, self.torque = Places(), Places()
        self.constrained, self.all_zero = Places(), Places()
        self.frames, self.largest = 0, 0

    def see(self, frame: Frame) -> None:
        """One more frame."""
        forces = frame.forces
        if forces is None or len(forces) < 2:
            return
        self.frames += 1
        zero = np.abs(forces).max(axis=1) == 0.0
        if zero.all():
            self.all_zero.add(frame)
            self.largest = max(self.largest, len(forces))
            return
        size = float(np.sqrt((forces**2).sum()))
        net = float(np.linalg.norm(forces.sum(0)))
        unbalanced = net > SMALLEST and net > UNBALANCED * size
        fixed = [k for c in frame.atoms.constraints if isinstance(c, FixAtoms) for k in c.index]
        if zero.any() and (unbalanced or (fixed and zero[fixed].all())):
            self.constrained.add(frame, f"{int(zero.sum())} of {len(forces)} atoms")
        elif unbalanced:
            self.net.add(frame, f"{net:.3g} eV/Å")
        if frame.atoms.pbc.any() or unbalanced:
            return
        x = frame.atoms.positions - frame.atoms.positions.mean(0)
        torque = float(np.linalg.norm(np.cross(x, forces).sum(0)))
        lever = float(np.sqrt((x**2).sum(1) @ (forces**2).sum(1)))
        if torque > SMALLEST * float(np.sqrt((x**2).sum(1).mean())) and torque > UNBALANCED * lever:
            self.torque.add(frame, f"{torque:.3g} eV")

    def findings(self) -> list[Finding]:
        """What was found."""
        found = self.constrained.finding(
            "warning",
            "zeroed-forces",
            "{n} with atoms whose force is exactly zero and missing in the sum, as constraints leave them",
            "store forces without constraints: atoms.get_forces(apply_constraint=False)",
        )
        every = len(self.all_zero) == self.frames
        found += self.all_zero.finding(
            "warning" if every and self.frames > 1 and self.largest > SYMMETRIC else "note",
            "all-zero-forces",
            ("all forces of all frames are zero" if every else "{n} whose forces are all exactly zero"),
            "right only where symmetry says so; missing forces must not be stored as zero",
        )
        found += self.net.finding(
            "warning",
            "net-force",
            "{n} with a net force",
            "forces of an isolated system add up to zero: failed or unconverged calculations, an outer field, or "
            "constraints",
        )
        found += self.torque.finding(
            "warning",
            "net-torque",
            "{n} with a net torque on a molecule",
            "forces in another orientation or order of atoms than the positions, or failed calculations",
        )
        return found
