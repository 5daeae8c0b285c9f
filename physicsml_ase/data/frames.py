"""From a source's frames to flat chunks of graphs: what is used, what is left out and said to be.

The same pass feeds every kind of store. With workers it runs in other processes, several chunks ahead and
in order, so that memory does not grow with the number of structures.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from physicsml_ase.atoms import NonFinite, find_label, refuse_no_element, to_graph
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.flat import MAX_SHIFT, Flat, flatten
from physicsml_ase.data.progress import progress
from physicsml_ase.data.sources import Source, describe_missing
from physicsml_ase.data.workers import WORKER_DIED, process_context, starting
from physicsml_ase.graph import Graph

log = logging.getLogger("physicsml_ase")

CHUNK = 128
"""Structures that are made and written together."""
WORTH_WORKERS = 5000
"""Of fewer structures the graphs are made sooner than processes start."""
NAMED = 5
"""Frames that a warning names before it counts the rest."""


@dataclass(frozen=True)
class Recipe:
    """What makes a graph of a frame, and which frames are used."""

    cutoff: float
    labels: tuple[Label, ...] = ()
    attrs: tuple[str, ...] = ()
    num_attrs: int | None = None
    """How many numbers the attributes of a frame must be. None: any."""
    self_interaction: bool = False
    pbc: tuple[bool, bool, bool] | None = None
    cell: tuple[tuple[float, float, float], ...] | None = None
    non_finite: NonFinite = "error"
    elements: tuple[int, ...] | None = None
    """Atomic numbers that the model knows; others are an error. None: any."""
    labelled_only: bool = False
    """Leave out frames without any of the labels."""
    max_force: float | None = None
    """Leave out frames with a larger force [eV/Å]."""
    forces_key: str = "forces"
    """Where those are, learned or not."""

    def graph(self, atoms: Atoms, where: str) -> Graph:
        """The frame as a batch of one."""
        self.check_elements(atoms.numbers, where)
        return to_graph(
            atoms,
            self.cutoff,
            self.labels,
            self.attrs,
            self_interaction=self.self_interaction,
            pbc=self.pbc,
            cell=self.cell,
            num_attrs=self.num_attrs,
            non_finite=self.non_finite,
            where=where,
        )

    def check_elements(self, numbers: NDArray[np.integer], where: str) -> None:
        """Raise `InputError` where a frame has atomic numbers, (N,), that the model does not know."""
        refuse_no_element(numbers, f"{where}: ")
        if self.elements is None:
            return
        unknown = np.flatnonzero(~np.isin(numbers, self.elements))
        if len(unknown):
            symbols = ", ".join(chemical_symbols[z] for z in self.elements)
            element = chemical_symbols[numbers[unknown[0]]]
            raise InputError(
                f"{where}: element {element} (atom {unknown[0]}) is not in the model ({symbols}); "
                "leave such structures out, or train with some that contain it"
            )

    def reason_to_leave_out(self, graph: Graph, atoms: Atoms) -> str | None:
        """Why a graph is of no use for learning, None where it is."""
        if self.labelled_only and all(bool(t.isnan().all()) for t in graph.targets.values()):
            return f"without any of the labels {', '.join(graph.targets)}"
        if self.max_force is not None:
            label = Label("forces", "atom", (3,), self.forces_key)
            forces = find_label(atoms, label, non_finite="missing")
            if forces is not None and np.nan_to_num(np.linalg.norm(forces, axis=1)).max() > self.max_force:
                return f"with a force above max_force={self.max_force:g} eV/Å"
        return None


class NothingLeft(InputError):
    """No frame of a source can be used."""


class Chunk(NamedTuple):
    """Consecutive frames: those in use, and the others as (reason, frame)."""

    flat: Flat | None
    left_out: list[tuple[str, int]]


def make_chunk(source: Source, frames: NDArray[np.int64], recipe: Recipe) -> Chunk:
    """Graphs of the frames at these places in the source."""
    graphs, kept, left_out = list[Graph](), list[int](), list[tuple[str, int]]()
    for frame in frames.tolist():
        atoms = source[frame]
        graph = recipe.graph(atoms, source.where(frame))
        if len(graph.reverse) and graph.edge_shift.abs().max() > MAX_SHIFT:
            raise InputError(f"{source.where(frame)}: atoms are more than {MAX_SHIFT} cells apart; wrap them")
        reason = recipe.reason_to_leave_out(graph, atoms)
        if reason is None:
            graphs.append(graph)
            kept.append(frame)
        else:
            left_out.append((reason, frame))
    return Chunk(flatten(graphs, recipe.labels, kept) if graphs else None, left_out)


def chunks(
    source: Source,
    recipe: Recipe,
    order: NDArray[np.int64] | None = None,
    workers: int = 0,
    what: str = "graphs",
) -> Iterator[Flat]:
    """All frames of the source as chunks of graphs, in `order`; warns of those left out, by number and name.

    Raises `NothingLeft` where that is so.
    """
    order = np.arange(len(source)) if order is None else order
    pieces = [order[k : k + CHUNK] for k in range(0, len(order), CHUNK)]
    left_out: dict[str, list[int]] = {}
    used = False
    if workers and len(order) >= WORTH_WORKERS:
        made = _made_by(workers, source, pieces, recipe)
    else:
        made = (make_chunk(source, piece, recipe) for piece in pieces)
    with progress(f"{what} of {source.name}", len(order)) as advance:
        for piece, chunk in zip(pieces, made):
            advance(len(piece))
            for reason, frame in chunk.left_out:
                left_out.setdefault(reason, []).append(frame)
            if chunk.flat is not None:
                used = True
                yield chunk.flat
    for reason, frames in left_out.items():
        message = some_of(source, frames, reason)
        if not used:
            hint = describe_missing(
                source[frames[0]], [x.key for x in recipe.labels], source.where(frames[0])
            )
            raise NothingLeft(f"nothing is left of {source.name}: {message}; {hint}")
        log.warning("left out %s", message)


def some_of(source: Source, frames: Sequence[int], reason: str) -> str:
    """How many frames are so, with the first of them by name."""
    named = ", ".join(source.where(frame) for frame in sorted(frames)[:NAMED])
    more = f" and {len(frames) - NAMED} more" if len(frames) > NAMED else ""
    return f"{len(frames)} of {len(source)} structures {reason}: {named}{more}"


_given: tuple[Source, Recipe] | None = None  # in a worker: sent once, not with every chunk


def _receive(source: Source, recipe: Recipe) -> None:
    global _given
    import torch

    torch.set_num_threads(1)
    _given = source, recipe


def _make_given(piece: NDArray[np.int64]) -> Chunk:
    assert _given is not None
    return make_chunk(_given[0], piece, _given[1])


def _made_by(
    workers: int, source: Source, pieces: list[NDArray[np.int64]], recipe: Recipe
) -> Iterator[Chunk]:
    pending: deque[Future[Chunk]] = deque()
    with ProcessPoolExecutor(workers, process_context(), _receive, (source, recipe)) as pool:
        try:
            for piece in pieces:
                with starting():
                    pending.append(pool.submit(_make_given, piece))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise InputError(WORKER_DIED) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
