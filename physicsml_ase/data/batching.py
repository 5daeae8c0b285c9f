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


def plan(
    sizes: Sizes, rule: Rule, epoch: int = 0, cycle: int = 0, rank: int = 0, world: int = 1
) -> list[Share]:
    """The batches of one rank in an epoch, in order; `cycle` counts the passes within the epoch."""
    shares = _draw(sizes, rule, epoch // rule.redraw_interval, cycle, rank, world)
    if rule.shuffle and rule.has_budget and (epoch >= rule.redraw_interval or cycle):
        count = len(_draw(sizes, rule, 0, 0, rank, world))
        shares = (shares * -(-count // len(shares)))[:count]
    if not rule.shuffle:
        return shares
    per_window = max(1, WINDOW * sizes.block * len(shares) // len(sizes.num_atoms))
    group = per_window if sizes.block > 1 else len(shares)
    order = shuffled(len(shares), 1, group, (rule.seed, ARRANGE, epoch, cycle))
    return [shares[k] for k in order.tolist()]


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


def cut(order: Ints, sizes: Sizes, rule: Rule) -> list[Ints]:
    """Consecutive runs of `order`, each closed before it would pass a bound; one too large goes alone."""
    ends = []
    bounds = [(sizes.num_atoms, rule.max_atoms), (sizes.num_edges, rule.max_edges)]
    sums = [(np.cumsum(size[order]), bound) for size, bound in bounds if bound is not None]
    start = 0
    while start < len(order):
        end = start + rule.batch_size
        for total, bound in sums:
            before = total[start - 1] if start else 0
            end = min(end, int(np.searchsorted(total, before + bound, side="right")))
        start = max(end, start + 1)
        ends.append(start)
    return np.split(order, ends[:-1])


def over_budget(sizes: Sizes, rule: Rule) -> Ints:
    """Structures that pass a bound by themselves."""
    too_many = np.zeros(len(sizes.num_atoms), dtype=bool)
    if rule.max_atoms is not None:
        too_many |= sizes.num_atoms > rule.max_atoms
    if rule.max_edges is not None:
        too_many |= sizes.num_edges > rule.max_edges
    return np.flatnonzero(too_many)


def _draw(sizes: Sizes, rule: Rule, draw: int, cycle: int, rank: int, world: int) -> list[Share]:
    """The batches of one rank, as composed in this draw; never none."""
    size = len(sizes.num_atoms)
    order = np.arange(size)
    if rule.shuffle:
        window = WINDOW if sizes.block > 1 else size
        order = shuffled(size, sizes.block, window, (rule.seed, COMPOSE, draw, cycle))
    if rule.has_budget:
        batches = cut(order, sizes, rule)
        if rule.drop_last and len(batches) > world:
            batches = batches[: (len(batches) - 1) // world * world]
        parts = batches[rank::world]
        steps = -(-len(batches) // world)
    else:
        together = rule.batch_size * world
        if rule.drop_last and size >= together:
            order = order[: size // together * together]
        parts = [order[k : k + together][rank::world] for k in range(0, len(order), together)]
        steps = len(parts)
    parts += [order[:0]] * (steps - len(parts))
    return [Share(part) if len(part) else Share(order[:1], blank=True) for part in parts]
