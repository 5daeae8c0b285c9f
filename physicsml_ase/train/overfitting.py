"""What a run does when its data have no more to tell: a committee of short trainings, and a student of theirs.

With few frames, validation soon gets worse while the training loss goes on falling. The mean of several models is
better than each of them, and one model can learn that mean, from structures that need no calculation: the training's
own, with their atoms moved a little. It costs what any model costs. Hinton et al., arXiv:1503.02531; measured in
docs/gaunt_ace.md.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import cycle, islice
from statistics import median
from typing import Any, NamedTuple, Self

import lightning.pytorch as pl

from physicsml_ase.config import ModelConfig
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.store import MemoryStore
from physicsml_ase.potential import Potential
from physicsml_ase.train.copies import COPIES
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
FEWEST, MOST = 3, 6
"""Members of a committee, of the length that was found to be best."""
FEWEST_TEACHERS = 2
"""One alone has no mean."""
GOOD = 1.2
"""Teachers are the members, and the training that overfitted, whose validation is at most so many times the best."""
SHORT, SHORTEST = 0.4, 0.25
"""Steps of a member, as a share of those that led to the best validation: with its own schedule it needs fewer. More
where there is time, the first share where there are as many members as are wanted, or else the second at least."""
CLIMB, CLIMB_SHARE = 8, 0.25
"""Where members of an eighth, a quarter and a half of those steps would together take at most this share of the
committee's, they are tried in turn for as long as that is better: what was best at a high rate says little of how
long a schedule should be."""
FEW_STEPS, FEW_EPOCHS = 100, 10
"""Trainings of fewer steps or epochs than this teach nobody."""
MEMBERS_SHARE = 0.5
"""Of what is left, what the committee may take."""
MOST_EDGES = 5_000_000
"""Training sets of more edges are not few frames, and their copies would take much memory."""
MOST_LABELLING = 0.3
"""Of what is left of a run, what labels may take."""


class Member(NamedTuple):
    """One training of a committee."""

    steps: int
    kind: int
    """Which of the models that are related to the run's own."""
    score: float = math.inf
    """Its best validation; inf where it came to no end."""


class Plan(NamedTuple):
    """What follows a training that overfitted; all in steps of its own model."""

    shortest: int
    """Steps of the first member."""
    longest: int
    """Steps of any member."""
    committee: int
    """Of all members together."""
    student: int

    def next_member(self, members: Sequence[Member], costs: Sequence[float]) -> Member | None:
        """Who follows these members; None once the committee is complete.

        `costs` are those of a step of each kind, of which the first is the run's own.
        """
        if not members:
            return Member(self.shortest, 0)
        lengths = [m.steps for m in members]
        best = min((m for m in members if m.kind == 0), key=lambda m: m.score)
        longer = Member(2 * best.steps, 0)
        climbs = lengths == sorted(set(lengths)) and best is members[-1] and best.score < math.inf
        if (
            climbs
            and longer.steps <= self.longest
            and self.spent([*members, longer], costs) <= self.committee
        ):
            return longer
        alike = lengths.count(best.steps)
        after = Member(best.steps, alike % len(costs))
        if alike == MOST or self.spent([*members, after], costs) > self.committee:
            return None
        return after

    @property
    def total(self) -> int:
        """Steps of committee and student."""
        return self.committee + self.student

    def spent(self, members: Sequence[Member], costs: Sequence[float]) -> int:
        """Steps that are done."""
        return sum(int(m.steps * costs[m.kind]) for m in members)


class TimeLeft(NamedTuple):
    """What a limit in time leaves for the committee and the student."""

    end: float | None
    """On time.monotonic's clock; None without a limit."""

    @classmethod
    def of(cls, seconds: float | None, share: float) -> Self:
        """This share of the seconds, from now on."""
        return cls(None if seconds is None else time.monotonic() + seconds * share)

    def share(self, share: float) -> float | None:
        """This share of what is left [s]."""
        return None if self.end is None else max(self.end - time.monotonic(), 1.0) * share


def good(scores: Sequence[float]) -> list[int]:
    """Places of the models that are good enough to teach, by their best validations; the best two at least."""
    known = sorted(score for score in scores if score < math.inf)
    if len(known) < FEWEST_TEACHERS:
        return []
    most = max(GOOD * known[0], known[FEWEST_TEACHERS - 1])
    return [k for k, score in enumerate(scores) if score <= most]


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

    def __init__(self, budget: Budget, model: ModelConfig) -> None:
        self.budget, self.model = budget, model
        self.plan: Plan | None = None
        # of each validation, the terms of its loss and of the training's
        self._recent: deque[tuple[list[float], list[float]]] = deque(maxlen=RECENT)
        self._best: list[Best] = []  # of each term
        self._validating_since = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating_since = time.monotonic()

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
        if self.plan is None and self._overfits(largest, progress) and may_stop(trainer):
            costs = [cost for _, cost in kinds_of(self.model)]
            labelling = self._labelling(trainer)
            epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            self.plan = planned(self._best[largest].step, step, progress, labelling, costs, epoch)
        if self.plan is not None and not trainer.should_stop:
            trainer.should_stop = True
            words = "validation of %s is worse than at step %d: more steps would not help, more frames would"
            log.info(words, loss.labels[largest], self._best[largest].step)

    def _labelling(self, trainer: pl.Trainer) -> float:
        """What the labels of copies will take, as a share of what is left of the run, by what validation took."""
        if self.budget.seconds is None:
            return 0.0
        stores = trainer.datamodule.resolve().stores  # type: ignore[attr-defined]
        sizes = {name: sum(int(x.num_atoms.sum()) for x in stores[name].values()) for name in stores}
        seconds = (time.monotonic() - self._validating_since) * sizes["train"] / max(sizes["validation"], 1)
        return seconds * COPIES * MOST / max(self.budget.seconds - self.budget.elapsed, 1e-3)

    def _overfits(self, term: int, progress: float) -> bool:
        best = self._best[term]
        if len(self._recent) < RECENT or progress - best.progress < WAIT or progress >= 1:
            return False
        worse = self._median(0, term) > WORSE * best.validation
        return worse and self._median(1, term) < LEARNED * best.training

    def _median(self, which: int, term: int) -> float:
        return median(recent[which][term] for recent in self._recent)

    def record(self) -> dict[str, Any]:
        """What the run's record says of what follows, with the seconds that are left."""
        if self.plan is None:
            return {}
        seconds = None if self.budget.seconds is None else self.budget.seconds - self.budget.elapsed
        return {"plan": list(self.plan), "seconds": seconds, "status": "running"}

    def state_dict(self) -> dict[str, object]:
        """Plain data, for training checkpoints."""
        return {"recent": list(self._recent), "best": [tuple(best) for best in self._best]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what an earlier session has seen."""
        self._recent.extend(state_dict["recent"])
        self._best = [Best(*best) for best in state_dict["best"]]


def may_stop(trainer: pl.Trainer) -> bool:
    """Whether the run has gone as far as its user wants at least."""
    enough = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
    return enough and trainer.global_step >= (trainer.min_steps or 0)


def planned(
    best: int,
    step: int,
    progress: float,
    labelling: float = 0.0,
    costs: Sequence[float] = (1.0,),
    epoch: int = 1,
) -> Plan | None:
    """What fits into the rest of a run that was best at step `best` and is at `step` now; None if too little does.

    `labelling` is the share of it that the labels of the student's structures take; `costs` are those of a step of
    each kind of member; `epoch` is the number of steps of one.
    """
    if labelling > MOST_LABELLING:
        return None
    left = step / progress * (1 - progress) * (1 - labelling)
    theirs = MEMBERS_SHARE * left
    few = max(FEW_STEPS, FEW_EPOCHS * epoch)
    shortest, longest = max(best // CLIMB, few), max(best, few)
    if shortest * (CLIMB - 1) > CLIMB_SHARE * theirs:
        together = [sum(islice(cycle(costs), members)) for members in range(FEWEST, MOST + 1)]
        fitting = [cost for cost in together if max(SHORT * best, few) * cost <= theirs]
        longest = shortest = min(int(theirs / max(fitting, default=together[0])), longest)
        if shortest < max(SHORTEST * best, few):
            return None
    return Plan(shortest, longest, int(theirs), int(left - theirs))


def can_teach(config: RunConfig, potential: Potential, datamodule: DataModule, processes: int) -> bool:
    """Whether a run may go on with a committee and a student."""
    if config.on_overfitting != "distil" or not config.scheduler or config.scheduler.name != "WarmupCosine":
        return False
    stores = list(datamodule.resolve().stores["train"].values())
    spread = any(name.endswith("_std") for name in potential.headed)
    kept = all(isinstance(store, MemoryStore) for store in stores)
    small = sum(int(store.num_edges.sum()) for store in stores) <= MOST_EDGES
    return processes == 1 and kept and small and not spread and config.transfer_learning is None


def kinds_of(model: ModelConfig) -> list[tuple[ModelConfig, float]]:
    """What models a committee is made of, the run's own first, and what a step of each costs in steps of that."""
    relatives = getattr(model, "relatives", None)
    return [(model, 1.0), *(relatives() if relatives else [])]


def of_part(config: RunConfig, steps: int, seconds: float | None) -> RunConfig:
    """The config of a member of the committee, or of the student; the run's callbacks and loggers are not theirs."""
    trainer = replace(
        config.trainer,
        max_time=None if seconds is None else timedelta(seconds=seconds),
        max_steps=steps,
        max_epochs=-1,
        min_epochs=None,
        min_steps=None,
        check_val_every_n_epoch=1,
        val_check_interval=None,
        callbacks=None,
        logger=None,
        devices=1,
        num_nodes=1,
    )
    return replace(config, trainer=trainer, on_overfitting="go_on")
