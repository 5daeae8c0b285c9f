"""What follows a training that overfitted: how many models of which kinds, for how long, and how long their student.

Members of a committee are unlike, as such models err less alike. Where there is time the first of them find out how
long a schedule should be. Measured in docs/gaunt_ace.md ("Few frames").
"""

import math
import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import NamedTuple, Self

from physicsml_ase.config import ModelConfig

FEWEST, MOST = 3, 6
"""Members of a committee, of the length that was found to be best."""
FEWEST_TEACHERS = 2
"""One alone has no mean."""
GOOD = 1.2
"""Teachers are members whose validation is at most so many times the best one's."""
SHORT, SHORTEST = 0.4, 0.15
"""Steps of a member, as a share of those that led to the best validation: with its own schedule it needs fewer. More
where there is time, the first share where there are as many members as are wanted, or else the second at least."""
CLIMB, CLIMB_SHARE = 8, 0.25
"""Where members of an eighth, a quarter and a half of those steps would together take at most this share of the
committee's, they are tried in turn for as long as that is better: what was best at a high rate says little of how
long a schedule should be."""
FEW_STEPS, FEW_EPOCHS, ENOUGH_EPOCHS = 100, 10, 20
"""Trainings of fewer steps or epochs than the first two teach nobody; more members than are wanted at least must not
have fewer epochs than the last."""
MEMBERS_SHARE = 0.5
"""Of what is left, what the committee may take."""
MOST_LABELLING = 0.3
"""Of what is left of a run, what labels may take."""


class Member(NamedTuple):
    """One training of a committee."""

    steps: int
    kind: int
    """Which of the models that are related to the run's own."""
    score: float = math.inf
    """Its last validation; inf where it came to no end."""


class Plan(NamedTuple):
    """What follows a training that overfitted; all in steps of its own model."""

    shortest: int
    """Steps of the first member."""
    longest: int
    """Steps of any member."""
    committee: int
    """Of all members together."""
    student: int
    """Of the student at least; without a limit in time, all that the members left."""

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
    """Places of the models that are good enough to teach, by their validations; the best two at least."""
    known = sorted(score for score in scores if score < math.inf)
    if len(known) < FEWEST_TEACHERS:
        return []
    most = max(GOOD * known[0], known[FEWEST_TEACHERS - 1])
    return [k for k, score in enumerate(scores) if score <= most]


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
    shortest, longest = max(best // CLIMB, few), max(best, ENOUGH_EPOCHS * epoch, few)
    if shortest * (CLIMB - 1) > CLIMB_SHARE * theirs:
        enough = max(SHORT * best, ENOUGH_EPOCHS * epoch, few)
        together = [sum(islice(cycle(costs), members)) for members in range(FEWEST, MOST + 1)]
        fitting = [cost for cost in together if enough * cost <= theirs]
        longest = shortest = min(int(theirs / max(fitting, default=together[0])), longest)
        if shortest < max(SHORTEST * best, few):
            return None
    return Plan(shortest, longest, int(theirs), int(left - theirs))


def kinds_of(model: ModelConfig) -> list[tuple[ModelConfig, float]]:
    """What models a committee is made of, the run's own first, and what a step of each costs in steps of that."""
    relatives = getattr(model, "relatives", None)
    return [(model, 1.0), *(relatives() if relatives else [])]
