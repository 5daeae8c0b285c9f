"""A potential over a source, batch by batch: what is in memory is one batch, however many structures."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from physicsml_ase.atoms import EDGES_PER_BATCH
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.frames import Recipe
from physicsml_ase.data.progress import progress
from physicsml_ase.data.sources import Source, SourceSpec, open_source
from physicsml_ase.evaluate.frames import per_structure, predicted_atoms, write_frames
from physicsml_ase.evaluate.unlike import Unlike
from physicsml_ase.graph import Graph, collate
from physicsml_ase.potential import Potential
from physicsml_ase.trust import uncertainties
from physicsml_ase.trust.committee import MeanPotential

Predictor = Potential | MeanPotential
"""What predicts: one model, or the mean of several."""
Results = dict[str, NDArray[np.float64]]

EDGES_PER_ATOM = 30
"""A batch of so many atoms also closes at this many edges for each, so that dense crystals fit as well."""


class Batch(NamedTuple):
    """Consecutive structures of a source and what the potential says of them."""

    frames: list[Atoms]
    graph: Graph  # with the labels as targets
    results: Results  # (S | N | E, ...) by name


def predict(potential: Predictor, source: SourceSpec, *, batch_atoms: int | None = None) -> Iterator[Atoms]:
    """The structures of a source, with the predictions in their calculator's place; labels are not needed.

    At the end, those that are unlike the training data are warned of.
    """
    source = open_source(source)
    unlike = Unlike(potential if isinstance(potential, Potential) else potential.first, source)
    for batch in predict_batches(potential, source, (), batch_atoms=batch_atoms):
        numbers = [len(atoms) for atoms in batch.frames]
        unlike.see(batch.graph, batch.results)
        for atoms, results in zip(batch.frames, per_structure(batch.results, potential.labels, numbers)):
            yield predicted_atoms(atoms, results, {}, potential.labels, potential.domain)
    unlike.tell()


def write_predictions(
    potential: Predictor, source: SourceSpec, path: str | Path, *, batch_atoms: int | None = None
) -> int:
    """Write every structure with its predictions as extxyz, complete or not at all; returns their number."""
    if Path(path).suffix not in (".xyz", ".extxyz"):
        raise InputError(
            f"{path}: predictions are written as extxyz, so the name must end in .xyz or .extxyz"
        )
    source = open_source(source)
    if source.reads(path):
        raise InputError(f"{path}: is the file of the structures themselves; give another name (-o)")
    return write_frames(predict(potential, source, batch_atoms=batch_atoms), Path(path))


def predict_batches(
    potential: Predictor,
    source: Source,
    labels: Sequence[Label],
    *,
    batch_atoms: int | None = None,
    uncertainty: bool = False,
) -> Iterator[Batch]:
    """Batches of consecutive structures of at most `batch_atoms` atoms (a larger structure goes alone; None:
    as many as suit the device).

    With `uncertainty`, results have those of the last layer, which cost a reverse pass for each of its features.
    Raises `InputError` for elements that the model never saw, for structures that can not be used, and
    when a prediction is not finite.
    """
    device = potential.references.table.device
    if batch_atoms is None:
        batch_atoms = EDGES_PER_BATCH.get(device.type, EDGES_PER_BATCH["cuda"]) // EDGES_PER_ATOM
    if uncertainty and isinstance(potential, Potential) and "last_layer" not in potential.trust:
        raise InputError(
            "the model has no uncertainty of its last layer: train it with this version, or leave uncertainty out"
        )
    if batch_atoms < 1:
        raise InputError(f"batch_atoms must be at least 1, not {batch_atoms}")
    was_training = potential.training
    potential.eval()
    try:
        with progress(f"predictions for {source.name}", len(source)) as advance:
            for first, frames, graphs in _grouped(potential, source, labels, batch_atoms):
                graph = collate(graphs)
                there = graph.to(device)
                predicted = potential(there)
                if uncertainty and isinstance(potential, Potential):
                    predicted |= uncertainties(potential, there)
                results = {k: v.cpu().double().numpy() for k, v in predicted.items()}
                _check_finite(results, graph, source, first)
                yield Batch(frames, graph, results)
                advance(len(frames))
    finally:
        potential.train(was_training)


def _grouped(
    potential: Predictor, source: Source, labels: Sequence[Label], batch_atoms: int
) -> Iterable[tuple[int, list[Atoms], list[Graph]]]:
    """(place of the first, structures, graphs) of each batch."""
    domain = potential.domain
    recipe = Recipe(
        cutoff=domain.cutoff,
        labels=tuple(labels),
        attrs=domain.attrs,
        num_attrs=len(domain.attr_shifts),
        self_interaction=domain.self_interaction,
        pbc=domain.pbc,
        cell=domain.cell,
        non_finite="missing",
        elements=domain.elements,
    )
    frames, graphs = list[Atoms](), list[Graph]()
    atoms_left, edges_left = batch_atoms, batch_atoms * EDGES_PER_ATOM
    for k, atoms in enumerate(source):
        graph = recipe.graph(atoms, source.where(k))
        full = len(atoms) > atoms_left or len(graph.reverse) > edges_left
        if frames and full:
            yield k - len(frames), frames, graphs
            frames, graphs = [], []
            atoms_left, edges_left = batch_atoms, batch_atoms * EDGES_PER_ATOM
        frames.append(atoms)
        graphs.append(graph)
        atoms_left -= len(atoms)
        edges_left -= len(graph.reverse)
    if frames:
        yield len(source) - len(frames), frames, graphs


def _check_finite(results: Results, graph: Graph, source: Source, first: int) -> None:
    """Raise `InputError` for a prediction that is NaN or infinite; without a full cell, stress is NaN."""
    batch = graph.batch.numpy()
    of_row = {len(batch): batch, len(graph.cell): np.arange(len(graph.cell))}
    full_cell = np.linalg.matrix_rank(graph.cell.numpy()) == 3
    for name, values in results.items():
        if len(values) not in of_row:
            continue  # of edges: they show in the atoms' values
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if name in ("stress", "stress_std"):
            bad &= full_cell
        if bad.any():
            where = source.where(first + int(of_row[len(values)][np.argmax(bad)]))
            raise InputError(
                f"{where}: the model's {name} is not finite; the structure is far from what it was trained on"
            )
