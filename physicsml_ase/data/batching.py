"""Which structures make each batch: a pure function of sizes, seed, epoch, pass, rank and world.

A step is one batch on every rank. Without a budget a step's structures are one run of the shuffled order,
dealt to the ranks in turn, so that two ranks with b structures see the steps of one rank with 2b. With a
budget the ranks take whole batches in turn. The number of steps is the same on all ranks and in all epochs:
where a budget makes it vary, an epoch leaves a few batches out or repeats some.

Of a store on disk, whose structures were written in random order, an epoch reads a few randomly chosen
contiguous blocks at a time and draws batches within such a window, so that every block is read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

WINDOW = 8
"""Blocks that batches are drawn from at a time."""
COMPOSE, ARRANGE = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Rule:
    """How batches are made of a set."""

    batch_size: int
    max_atoms: int | None = None
    max_edges: int | None = None
    shuffle: bool = False
    drop_last: bool = False
    redraw_interval: int = 1
    seed: int = 0

    @property
    def has_budget(self) -> bool:
        return self.max_atoms is not None or self.max_edges is not None


class Sizes(NamedTuple):
    """What batching needs to know of a store."""

    num_atoms: Ints  # (S,)
    num_edges: Ints  # (S,)
    block: int


class Share(NamedTuple):
    """What one rank does in a step: a batch, or a `blank` one that only keeps it in step with the others."""

    indices: Ints
    blank: bool = False


class Plan(NamedTuple):
    """The batches of one rank in an epoch, in order; step k is order[starts[k] : stops[k] : stride]."""

    order: Ints  # (S,)
    starts: Ints  # (K,)
    stops: Ints  # (K,)
    stride: int

    @property
    def steps(self) -> int:
        """Number of batches."""
        return len(self.starts)

    def share(self, k: int) -> Share:
        """Batch k."""
        indices = self.order[self.starts[k] : self.stops[k] : self.stride]
        return Share(indices) if len(indices) else Share(self.order[:1], blank=True)

    def choose(self, steps: Ints) -> "Plan":
        """Other batches of the same, in another order."""
        return self._replace(starts=self.starts[steps], stops=self.stops[steps])


def plan(sizes: Sizes, rule: Rule, epoch: int = 0, cycle: int = 0, rank: int = 0, world: int = 1) -> Plan:
    """The batches of one rank in an epoch; `cycle` counts the passes within the epoch."""
    drawn = _draw(sizes, rule, epoch // rule.redraw_interval, cycle, rank, world)
    if not rule.shuffle:
        return drawn
    if rule.has_budget and (epoch >= rule.redraw_interval or cycle):
        count = _draw(sizes, rule, 0, 0, rank, world).steps
        drawn = drawn.choose(np.resize(np.arange(drawn.steps), count))
    window = (
        max(1, WINDOW * sizes.block * drawn.steps // len(sizes.num_atoms)) if sizes.block > 1 else drawn.steps
    )
    return drawn.choose(shuffled(drawn.steps, 1, window, (rule.seed, ARRANGE, epoch, cycle)))


def shuffled(size: int, block: int, window: int, seed: Sequence[int]) -> Ints:
    """The numbers below `size`, (size,), shuffled within groups of `window` blocks; blocks or groups are too.

    Blocks of one are taken in their order, and then it is the groups that are shuffled.
    """
    bits = np.random.PCG64(seed)  # whose raw output is the same for ever; NumPy's shuffles may change
    blocks = np.arange(-(-size // block))
    if block > 1:
        blocks = blocks[_permutation(len(blocks), bits)]
    groups = [blocks[k : k + window] for k in range(0, len(blocks), window)]
    if block == 1:
        groups = [groups[k] for k in _permutation(len(groups), bits).tolist()]
    members = [(group[:, None] * block + np.arange(block)).ravel() for group in groups]
    members = [m[m < size] for m in members]
    return np.concatenate([m[_permutation(len(m), bits)] for m in members])


def _permutation(size: int, bits: np.random.PCG64) -> Ints:
    return np.argsort(bits.random_raw(size), kind="stable")


def cut(order: Ints, sizes: Sizes, rule: Rule) -> Ints:
    """Ends of consecutive runs of `order`, each closed before it would pass a bound; one too large goes alone."""
    ends = []
    bounds = [(sizes.num_atoms, rule.max_atoms), (sizes.num_edges, rule.max_edges)]
    sums = [(np.cumsum(size[order]), bound) for size, bound in bounds if bound is not None]
    start = 0
    while start < len(order):
        end = min(start + rule.batch_size, len(order))
        for total, bound in sums:
            before = total[start - 1] if start else 0
            end = min(end, int(np.searchsorted(total, before + bound, side="right")))
        start = max(end, start + 1)
        ends.append(start)
    return np.array(ends)


def over_budget(sizes: Sizes, rule: Rule) -> Ints:
    """Structures that pass a bound by themselves."""
    too_many = np.zeros(len(sizes.num_atoms), dtype=bool)
    if rule.max_atoms is not None:
        too_many |= sizes.num_atoms > rule.max_atoms
    if rule.max_edges is not None:
        too_many |= sizes.num_edges > rule.max_edges
    return np.flatnonzero(too_many)


def _draw(sizes: Sizes, rule: Rule, draw: int, cycle: int, rank: int, world: int) -> Plan:
    """The batches of one rank, as composed in this draw; never none."""
    size = len(sizes.num_atoms)
    order = np.arange(size)
    if rule.shuffle:
        window = WINDOW if sizes.block > 1 else size
        order = shuffled(size, sizes.block, window, (rule.seed, COMPOSE, draw, cycle))
    if not rule.has_budget:
        together = rule.batch_size * world
        starts = np.arange(0, size, together)
        if rule.drop_last and size >= together:
            starts = starts[: size // together]
        return Plan(order, starts + rank, np.minimum(starts + together, size), world)
    stops = cut(order, sizes, rule)
    starts = np.concatenate([[0], stops[:-1]])
    if rule.drop_last and len(stops) > world:
        whole = (len(stops) - 1) // world * world  # the last batch was closed by the end of the data
        starts, stops = starts[:whole], stops[:whole]
    lacking = -len(starts) % world
    starts, stops = (np.concatenate([ends, np.zeros(lacking, dtype=np.int64)]) for ends in (starts, stops))
    return Plan(order, starts[rank::world], stops[rank::world], 1)
