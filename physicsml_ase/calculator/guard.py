"""What a calculator does about structures that are unlike the training data.

A check of everything (`Extrapolation`) is made of a structure that is not the last one moved a little, then every
`interval` calculations, and when the energy of an atom, which costs little to compare, is found out of its range.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from physicsml_ase.calculator.record import Recorder
from physicsml_ase.config import did_you_mean
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph, split
from physicsml_ase.potential import Potential
from physicsml_ase.trust.cloud import EnergyRange
from physicsml_ase.trust.extrapolation import LIMIT, Extrapolation, Scores, beyond

log = logging.getLogger("physicsml_ase")

REACTIONS = ("warn", "raise", "record", "ignore")
INTERVAL = 200
"""Calculations between whole checks. One costs as much as five steps of a molecule by the kernel."""
MOVED, MOVED_BY_KERNEL = 0.4, 1.2
"""An atom that is so far from where it was at the last whole check [Å] makes another due; three times as far with the
kernel, for which a check is dear, and which tells when atoms come too close."""
JUMP, STEP = 0.15, 0.06
"""No step of dynamics moves one atom of a molecule so far, nor all atoms on average [Å]: the structure is another."""
QUICK = 4
"""Calculations between comparisons of the atoms' energies alone, which cost a hundredth of a step."""


class ExtrapolationError(InputError):
    """A structure is unlike the training data, and the calculator was told to stop at such."""


class Guard:
    """Watches the structures of one calculator."""

    def __init__(
        self, potential: Potential, reaction: str, record: str | Path, interval: int | None = None
    ) -> None:
        if reaction not in REACTIONS:
            raise InputError(f"on_extrapolation {reaction!r}: {did_you_mean(str(reaction), REACTIONS)}")
        if interval is not None and interval < 1:
            raise InputError(f"extrapolation_interval is {interval}: give 1 or more")
        self.reaction, self.interval = reaction, interval or INTERVAL
        self.known = Extrapolation(potential)
        keys = [label.key for label in potential.labels]
        self.recorder = Recorder(record, potential.domain.attrs, keys) if reaction == "record" else None
        self._told = set[str]()
        self._since = self.interval  # calculations since the last whole check
        self._outside = False  # what it found
        self._numbers: NDArray[np.int64] | None = None
        self._range: EnergyRange | None = None
        self._graph_numbers: torch.Tensor | None = None
        self._graph_cell: torch.Tensor | None = None
        self._positions, self._cell = np.zeros((0, 3)), np.zeros((3, 3))
        self._step = np.zeros((0, 3))  # room for the last one
        self._pbc = (False, False, False)
        self._checked = np.zeros((0, 3))  # positions at the last whole check
        if not potential.trust and reaction != "ignore":
            level = logging.INFO if reaction == "warn" else logging.WARNING
            log.log(level, "the model has no measure of its training data: only distances are guarded")

    def look(
        self,
        atoms: Atoms,
        graph: Graph,
        energies: torch.Tensor | None,
        features: torch.Tensor | None,
        close: bool = False,
    ) -> Scores | None:
        """Check a structure where one is due, and react; the scores where it was. `close`: an atom is in a wall."""
        if self.reaction == "ignore":
            return None
        self._since += 1
        other = odd = False
        if graph.atomic_numbers is not self._graph_numbers:  # else it is the last graph with other positions
            self._graph_numbers = graph.atomic_numbers
            other = self._numbers is None or not np.array_equal(atoms.numbers, self._numbers)
            other = other or tuple(atoms.pbc) != self._pbc
            self._pbc = tuple(atoms.pbc)
        positions = atoms.positions
        if other:
            self._positions, self._step = positions.copy(), np.empty_like(positions)
        jumped = other or _far(positions, self._positions, self._step)
        if not other:
            self._positions[:] = positions
        if graph.cell is not self._graph_cell:
            jumped = jumped or _far(atoms.cell.array, self._cell, np.empty((3, 3)))
            self._graph_cell, self._cell = graph.cell, atoms.cell.array.copy()
        if other:
            self._numbers = atoms.numbers.copy()
            self._range = EnergyRange(self.known.cloud, self._numbers) if self.known.cloud else None
        if self._range is not None and energies is not None and not self._outside and not self._since % QUICK:
            odd = bool((self._range(energies.cpu().numpy()) > LIMIT).any())
        odd = odd or (close and not self._outside)
        due = not jumped and not self._since % QUICK
        moved = due and self._moved(MOVED if features is None else MOVED_BY_KERNEL)
        if not (jumped or odd or moved or self._since >= self.interval):
            return None
        scores, self._since = self.known.scores(graph, energies, features), 0
        self._checked = self._positions.copy()
        begins = jumped or not self._outside
        self._outside = bool((scores.worst > LIMIT).any())
        if self._outside:
            self._react(atoms, graph, scores, begins)
        return scores

    def look_at_all(
        self,
        structures: Sequence[Atoms],
        batch: Graph,
        energies: torch.Tensor | None,
        features: torch.Tensor | None,
        first: int,
    ) -> None:
        """Check every structure of a batch and react to each; the number of the first is `first`."""
        if self.reaction == "ignore" or not self.known.knows:
            return
        scores = self.known.scores(batch, energies, features)
        graphs: list[Graph] | None = None
        for k, own in beyond(scores, [len(atoms) for atoms in structures]):
            graphs = graphs or split(batch._replace(inputs={}, targets={}), {})
            self._react(structures[k], graphs[k], own, begins=True, where=f"structure {first + k}: ")

    def _moved(self, far: float) -> bool:
        moved = self._positions - self._checked
        return float(np.einsum("ij,ij->i", moved, moved).max(initial=0.0)) > far**2

    def _react(self, atoms: Atoms, graph: Graph, scores: Scores, begins: bool, where: str = "") -> None:
        kinds = [kind for kind, value in scores._asdict().items() if (value > LIMIT).any()]
        if self.reaction == "raise":
            self._since = self.interval  # the next structure is looked at
            raise ExtrapolationError(f"extrapolation: {where}{self.known.in_words(kinds[0], graph, scores)}")
        for kind in kinds:
            if kind not in self._told:
                self._told.add(kind)
                words = self.known.in_words(kind, graph, scores)
                log.warning("extrapolation: %s%s (told once)", where, words)
        if self.recorder is not None:
            self.recorder.offer(atoms, scores.worst.cpu().numpy(), kinds, begins)


def _far(now: NDArray[np.float64], before: NDArray[np.float64], room: NDArray[np.float64]) -> bool:
    """Whether a structure is not the last one after a step."""
    np.subtract(now, before, out=room)
    return float(np.vdot(room, room)) > JUMP**2 + len(now) * STEP**2
