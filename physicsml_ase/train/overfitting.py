"""What a run does when its data have no more to tell: a committee of short trainings, and a student of theirs.

With few frames, validation soon gets worse while the training loss goes on falling. The mean of several models is
better than each of them, and one model can learn that mean, from structures that need no calculation: the training's
own, with their atoms moved a little. It costs what any model costs. Hinton et al., arXiv:1503.02531; measured in
docs/gaunt_ace.md.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from physicsml_ase.atoms import build_graph
from physicsml_ase.backends.choose import choose
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.flat import flatten
from physicsml_ase.data.store import MemoryStore
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, edge_vectors
from physicsml_ase.neighbors import neighbor_list
from physicsml_ase.potential import Potential
from physicsml_ase.train.module import PotentialModule
from physicsml_ase.train.schedule import Budget
from physicsml_ase.train.settings import RunConfig

log = logging.getLogger("physicsml_ase")
RECENT = 5
"""Validations whose median is compared with the best."""
WORSE, LEARNED = 1.01, 0.95
"""Overfitting is a validation loss so many times the best, with a training loss so many times what it was then."""
WAIT = 0.03
"""Share of the run that must have passed since the best validation."""
FEWEST, MOST = 3, 5
"""Members of a committee."""
SHORT, SHORTEST = 0.4, 0.25
"""Steps of a member, as a share of those that led to the best validation: with its own schedule it needs fewer. More
where there is time, the first share where there are as many members as are wanted, or else the second at least."""
FEW_STEPS = 100
"""Trainings of fewer steps than this teach nobody."""
MEMBERS_SHARE = 0.5
"""Of what is left, what the committee may take."""
COPIES = 4
"""Moved structures for each one of the training data."""
MOVED, STRAINED = 0.08, 0.02
"""Standard deviations of what is added to positions, at most [Å], and to the cells' strains."""
MOST_ATOMS = 100_000
"""Training sets of more atoms do not overfit so soon that this would pay."""


class Plan(NamedTuple):
    """What follows a training that overfitted."""

    members: int
    steps: int
    """Of each member."""
    student_steps: int
    student_seconds: float | None
    """What is left to the student where the run has a limit in time and is resumed."""


class Best(NamedTuple):
    """Where a term of the loss was lowest in validation."""

    step: int
    progress: float
    validation: float
    training: float


class StopWhereOverfitting(pl.Callback):
    """Ends the training once validation gets worse while the training loss goes on falling, if a committee and a
    student can be trained in what is left.

    What is looked at is the largest term of the validation loss: as a rule the forces', beside which energies that
    still get better count for little.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.plan: Plan | None = None
        self._recent: deque[tuple[list[float], list[float]]] = deque(
            maxlen=RECENT
        )  # validation, training by term
        self._best: list[Best] = []  # of each term

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare this validation with the best."""
        assert isinstance(pl_module, PotentialModule)
        training = pl_module.training_losses
        if trainer.sanity_checking or training is None or not pl_module.seen_labels:
            return
        loss, step = pl_module.loss, trainer.global_step
        progress = self.budget.progress(step)
        validation = [float(trainer.callback_metrics[f"val/{name}/loss"]) for name in loss.labels]
        self._recent.append((validation, training))
        now = [Best(step, progress, validation[k], self._median(1, k)) for k in range(len(loss.labels))]
        self._best = [min(pair, key=lambda b: b.validation) for pair in zip(self._best or now, now)]
        largest = max(range(len(now)), key=lambda k: loss.weights[k] * validation[k])
        if self._overfits(largest, progress):
            self.plan = planned(self._best[largest].step, step, progress, self.budget.seconds)
        if self.plan is not None:
            trainer.should_stop = True
            words = "validation of %s is worse than at step %d: more steps would not help, more frames would"
            log.info(words, loss.labels[largest], self._best[largest].step)

    def _overfits(self, term: int, progress: float) -> bool:
        best = self._best[term]
        if len(self._recent) < RECENT or progress - best.progress < WAIT or progress >= 1:
            return False
        worse = self._median(0, term) > WORSE * best.validation
        return worse and self._median(1, term) < LEARNED * best.training

    def _median(self, which: int, term: int) -> float:
        return median(recent[which][term] for recent in self._recent)

    def state_dict(self) -> dict[str, object]:
        """Plain data, for training checkpoints."""
        return {"recent": list(self._recent), "best": [tuple(best) for best in self._best]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what an earlier session has seen."""
        self._recent.extend(state_dict["recent"])
        self._best = [Best(*best) for best in state_dict["best"]]


def planned(best: int, step: int, progress: float, seconds: float | None) -> Plan | None:
    """What fits into the rest of a run that was best at step `best` and is at `step` now; None if too little does."""
    left = step / progress * (1 - progress)
    theirs = MEMBERS_SHARE * left
    members = max(min(int(theirs / (SHORT * best)), MOST), FEWEST)
    steps = min(theirs / members, best)
    if steps < max(SHORTEST * best, FEW_STEPS):
        return None
    student = left - members * steps
    time_left = None if seconds is None else seconds * (1 - progress) * student / left
    return Plan(members, int(steps), int(student), time_left)


def can_teach(config: RunConfig, potential: Potential, datamodule: DataModule, processes: int) -> bool:
    """Whether a run may go on with a committee and a student."""
    if config.on_overfitting != "distil" or not config.scheduler or config.scheduler.name != "WarmupCosine":
        return False
    resolved = datamodule.resolve()
    stores = list(resolved.stores["train"].values())
    spread = any(name.endswith("_std") for name in potential.headed)
    small = sum(int(store.num_atoms.sum()) for store in stores) <= MOST_ATOMS
    kept = all(isinstance(store, MemoryStore) for store in stores)
    return processes == 1 and kept and small and not spread and config.transfer_learning is None


def of_member(config: RunConfig, plan: Plan) -> RunConfig:
    """The config of a member of the committee."""
    trainer = replace(config.trainer, max_time=None, max_steps=plan.steps, max_epochs=-1)
    return replace(config, trainer=trainer, on_overfitting="go_on")


def of_student(config: RunConfig, plan: Plan) -> RunConfig:
    """The config of the student, which has what is left of the run's time, if that is limited."""
    trainer = replace(config.trainer, max_steps=plan.student_steps, max_epochs=-1)
    return replace(config, trainer=trainer, on_overfitting="go_on")


def teach(datamodule: DataModule, teachers: Sequence[Potential], seed: int) -> None:
    """Add to the training structures copies whose atoms and cells are moved, with the teachers' mean as labels."""
    engines = [choose("auto", teacher.eval()) for teacher in teachers]
    labels = datamodule.labels
    for name, store in datamodule.resolve().stores["train"].items():
        assert isinstance(store, MemoryStore)
        random = np.random.default_rng(seed)
        copies, frames = [], []
        for k, graph in _moved(store, datamodule.domain, random):
            if any(
                x.wall is not None and x.wall.near(graph, edge_vectors(graph)) is not None for x in teachers
            ):
                continue  # closer than any atoms of the data: nobody knows anything there
            outputs = [engine(graph) for engine in engines]
            means = {x.name: _mean([out[x.name] for out in outputs]) for x in labels}
            copies.append(graph._replace(targets=means))
            frames.append(int(store.frames[k]))
        if copies:
            datamodule.extend(name, flatten(copies, labels, frames))


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.detach().double() for value in values]).mean(0)


def _moved(store: MemoryStore, domain: Domain, random: np.random.Generator) -> Iterator[tuple[int, Graph]]:
    """Each structure, by its place, so many times."""
    for k in range(len(store)):
        graph = store.read(np.array([k]))
        numbers, pbc = graph.atomic_numbers.numpy(), graph.pbc[0].numpy()
        attrs = {name: x for name, x in graph.inputs.items() if name == "graph_attrs"}
        for _ in range(COPIES):
            positions, cell = graph.positions.numpy(), graph.cell[0].numpy()
            if pbc.all():
                strain = STRAINED * random.normal(size=(3, 3))
                deformation = np.eye(3) + (strain + strain.T) / 2
                positions, cell = positions @ deformation, cell @ deformation
            positions = positions + MOVED * random.uniform() * random.normal(size=positions.shape)
            neighbors = neighbor_list(positions, cell, pbc, domain.cutoff, domain.self_interaction)
            yield k, build_graph(numbers, positions, cell, pbc, neighbors, attrs, {})
