"""The loader: an iterable of batches that can be stopped anywhere and continued exactly there.

It is no torch `DataLoader`, so that Lightning neither wraps it nor deals its batches to the ranks; it knows
rank and world itself. With workers it uses one inside, which is kept from pass to pass.
"""

import logging
from collections.abc import Iterator
from typing import TypedDict

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from physicsml_ase.conventions import InputError
from physicsml_ase.data.batching import Plan, Rule, Share, Sizes, over_budget, plan
from physicsml_ase.data.store import Store
from physicsml_ase.data.workers import WORKER_DIED, leave_interrupts_alone, process_context, starting
from physicsml_ase.graph import Graph

log = logging.getLogger("physicsml_ase")


class LoaderState(TypedDict):
    """Where in which epoch a loader is."""

    epoch: int
    cycle: int
    position: int
    steps: int


class GraphLoader:
    """Batches of a store for this rank, in the order that `batching.plan` gives to the epoch.

    Without a `set_epoch` every pass is shuffled anew. Lightning finds `state_dict` and `load_state_dict`
    by themselves, and `set_epoch` by `sampler`.
    """

    def __init__(
        self,
        store: Store,
        rule: Rule,
        num_workers: int = 0,
        *,
        rank: int | None = None,
        world: int | None = None,
        name: str = "data",
    ) -> None:
        """`rank` and `world` None: those of torch.distributed when batches are asked for."""
        self.store, self.rule, self.num_workers, self.name = store, rule, num_workers, name
        self.sizes = Sizes(store.num_atoms, store.num_edges, store.block)
        self.epoch = self.cycle = self.position = 0
        self.once = False
        """Whether a pass that was over when the run was stopped stays over: beside longer sources, each read once."""
        self._rank, self._world = rank, world
        self._started = self._continue = False
        self._steps: dict[int, int] = {}
        self._remaining = _Remaining()
        self._workers: DataLoader[Graph | InputError] | None = None
        large = over_budget(self.sizes, rule)
        if len(large):
            log.warning(
                "%s: %d structures pass max_atoms or max_edges by themselves and go alone, "
                "the first with %d atoms and %d edges",
                *(name, len(large), store.num_atoms[large[0]], store.num_edges[large[0]]),
            )

    @property
    def place(self) -> tuple[int, int]:
        """This process's rank and the number of ranks."""
        known = dist.is_available() and dist.is_initialized()
        rank = self._rank if self._rank is not None else dist.get_rank() if known else 0
        world = self._world if self._world is not None else dist.get_world_size() if known else 1
        return rank, world

    @property
    def sampler(self) -> "GraphLoader":
        """Where Lightning looks for `set_epoch`."""
        return self

    @property
    def batch_sampler(self) -> None:
        """Lightning asks for it wherever there is a sampler."""
        return None

    def __len__(self) -> int:
        """Batches of this rank in an epoch; the same on every rank."""
        _, world = self.place
        if world not in self._steps:
            self._steps[world] = plan(self.sizes, self.rule, 0, 0, 0, world).steps
        return self._steps[world]

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass, which begins at its beginning unless it was continued in its middle."""
        if epoch != self.epoch:
            self.epoch, self.cycle, self.position = epoch, 0, 0
            self._started = self._continue = False

    def plan(self) -> Plan:
        """The batches of the current pass for this rank."""
        return plan(self.sizes, self.rule, self.epoch, self.cycle, *self.place)

    def __iter__(self) -> Iterator[Graph]:
        # a generator, so that nothing happens before the first batch is asked for: Lightning calls iter()
        # to see whether it can, and again before it has set the epoch
        if self._continue and (self.once or self.position < len(self)):
            self._continue = False
        else:
            self.cycle += self._started
            self.position = 0
        self._started = True
        self._remaining.plan, self._remaining.position = self.plan(), self.position
        for graph in self._read():
            self.position += 1
            yield graph

    def state_dict(self) -> LoaderState:
        """The place of the last batch that was handed over, whatever workers have read ahead."""
        return {"epoch": self.epoch, "cycle": self.cycle, "position": self.position, "steps": len(self)}

    def load_state_dict(self, state_dict: LoaderState) -> None:
        """Continue after the batch at which the state was taken."""
        if state_dict["steps"] != len(self):
            log.warning(
                "%s: the run had %d batches an epoch and now has %d (other data, batch size or number of devices): "
                "the interrupted epoch does not continue with exactly the structures that were left",
                *(self.name, state_dict["steps"], len(self)),
            )
        self.epoch, self.cycle = state_dict["epoch"], state_dict["cycle"]
        self.position = min(state_dict["position"], len(self))
        self._started = self._continue = True

    def close(self) -> None:
        """End the worker processes."""
        self._workers = None

    def _read(self) -> Iterator[Graph]:
        if not self.num_workers:
            graphs: Iterator[Graph] = (read_share(self.store, share) for share in self._remaining)
        else:
            graphs = self._read_by_workers()
        pin = torch.cuda.is_available()  # an asynchronous copy to the GPU needs it
        return (graph.pin_memory() for graph in graphs) if pin else graphs

    def _read_by_workers(self) -> Iterator[Graph]:
        if self._workers is None:
            self._workers = DataLoader(
                _Shares(self.store),
                batch_size=None,
                sampler=self._remaining,
                num_workers=self.num_workers,
                collate_fn=_as_it_is,
                multiprocessing_context=process_context(),
                worker_init_fn=leave_interrupts_alone,
                persistent_workers=True,
                generator=torch.Generator(),  # its own, or it would draw from the run's random numbers
            )
        try:
            with starting():
                graphs = iter(self._workers)
            for graph in graphs:
                if isinstance(graph, InputError):
                    raise graph
                yield graph
        except (RuntimeError, ConnectionError, EOFError) as error:  # the last two where it died while it sent
            if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
                raise
            raise InputError(WORKER_DIED) from error


def read_share(store: Store, share: Share) -> Graph:
    """A rank's batch; a blank one has no labels, so that it counts for nothing."""
    graph = store.read(share.indices)
    if not share.blank:
        return graph
    return graph._replace(targets={k: torch.full_like(t, torch.nan) for k, t in graph.targets.items()})


class _Remaining:
    """The batches of a plan from a position on; the same object for every pass, since torch keeps its sampler."""

    plan: Plan
    position = 0

    def __iter__(self) -> Iterator[Share]:
        plan = self.plan
        return (plan.share(k) for k in range(self.position, plan.steps))


class _Shares(Dataset[Graph | InputError]):
    """A store as torch's workers want it, with the batches themselves as indices."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getitem__(self, share: Share) -> Graph | InputError:
        try:
            return read_share(self.store, share)
        except InputError as error:  # torch would bury its one line in a traceback
            return error


def _as_it_is(item: object) -> object:
    return item
