"""From ASE's Atoms to a Graph, and where on an Atoms a label is found.

Labels come from where ASE users keep them: the calculator's results first (never `get_forces()`, which
constraints zero), then `info` and `arrays`, then what an ASE db row carries besides. A label that is not
there is missing, which is NaN and never zero.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from physicsml_ase.conventions import InputError, Label, voigt_to_matrix
from physicsml_ase.graph import Graph
from physicsml_ase.neighbors import Neighbors, neighbor_list

Array = NDArray[np.float64]
NonFinite = Literal["error", "missing"]

EDGES_PER_BATCH = {"cpu": 10_000, "cuda": 300_000}
"""Edges of the structures predicted at once where no batch size is given, by kind of device: what a CPU's
cache holds, what fills a GPU."""


def to_graph(
    atoms: Atoms,
    cutoff: float,
    labels: Sequence[Label] = (),
    attrs: Sequence[str] = (),
    *,
    self_interaction: bool = False,
    pbc: Sequence[bool] | None = None,
    cell: ArrayLike | None = None,
    num_attrs: int | None = None,
    non_finite: NonFinite = "error",
    where: str = "structure",
) -> Graph:
    """A structure and its labels as a batch of one.

    `pbc` and `cell` override the structure's own. `num_attrs` is how many numbers the `attrs` must be.
    `where` names the structure in messages. Raises `InputError` where positions, cell, attributes or labels
    can not be used.
    """
    box = np.array(atoms.cell.array if cell is None else cell, dtype=np.float64)
    periodic = np.array(atoms.pbc if pbc is None else pbc, dtype=bool)
    if len(atoms) == 0:
        raise InputError(f"{where}: has no atoms; remove it")
    refuse_no_element(atoms.numbers, f"{where}: ")
    try:
        neighbors = neighbor_list(atoms.positions, box, periodic, cutoff, self_interaction)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    inputs = {"graph_attrs": torch.from_numpy(graph_attrs(atoms, attrs, num_attrs, where))} if attrs else {}
    found = {label.name: find_label(atoms, label, where, non_finite) for label in labels}
    if "stress" in found and np.linalg.matrix_rank(box) < 3:
        found["stress"] = np.full((3, 3), np.nan)  # without a volume there is no stress to compare with
    targets = {
        label.name: _as_target(found[label.name], label, len(atoms), neighbors.edge_index, where)
        for label in labels
    }
    return build_graph(atoms.numbers, atoms.positions, box, periodic, neighbors, inputs, targets)


def refuse_no_element(numbers: NDArray[np.integer], where: str = "") -> None:
    """Raise `InputError` for atomic numbers, (N,), of no element, as ASE's 0 of ghost atoms."""
    known = (numbers > 0) & (numbers < len(chemical_symbols))
    if not known.all():
        atom = int(known.argmin())
        ghosts = "; remove ghost atoms (X)" if numbers[atom] == 0 else ""
        raise InputError(f"{where}atomic number {numbers[atom]} (atom {atom}) is of no element{ghosts}")


def build_graph(
    numbers: NDArray[np.int64],
    positions: Array,
    cell: Array,
    pbc: NDArray[np.bool_],
    neighbors: Neighbors,
    inputs: dict[str, Tensor],
    targets: dict[str, Tensor],
) -> Graph:
    """A batch of one from arrays and their neighbour list; copies what the caller may change."""
    n = len(numbers)
    return Graph(
        atomic_numbers=torch.from_numpy(numbers.astype(np.int64)),
        positions=torch.from_numpy(np.array(positions, dtype=np.float64)),
        batch=torch.zeros(n, dtype=torch.int64),
        num_atoms=torch.tensor([n]),
        cell=torch.from_numpy(np.array(cell, dtype=np.float64))[None],
        pbc=torch.from_numpy(np.array(pbc, dtype=bool))[None],
        edge_index=torch.from_numpy(neighbors.edge_index),
        edge_shift=torch.from_numpy(neighbors.edge_shift),
        reverse=torch.from_numpy(neighbors.reverse),
        num_edges=torch.tensor([len(neighbors.reverse)]),
        inputs=inputs,
        targets=targets,
    )


def find_label(
    atoms: Atoms, label: Label, where: str = "structure", non_finite: NonFinite = "error"
) -> Array | None:
    """The label's value in the shape of its level, or None where the structure has none.

    Edge labels come as a matrix over pairs of atoms, (n, n) or (n, n, 3). With `non_finite="missing"` a
    value that is NaN or infinite counts as missing; otherwise it raises `InputError`, as a wrong shape does.
    """
    value = _look_up(label.key, getattr(atoms.calc, "results", {}), *_columns(atoms))
    if value is None:
        return None
    array = _numbers(value, label.key, where)
    n = len(atoms)
    lead = {"structure": (), "atom": (n,), "edge": (n, n)}[label.level]
    wanted = lead + label.shape
    if label.shape == (3, 3) and array.shape == (6,):
        array = voigt_to_matrix(array)
    # only where the order of the numbers is not in doubt: forces (3, n) are not (n, 3)
    axes, wanted_axes = ([k for k in shape if k != 1] for shape in (array.shape, wanted))
    if array.size == np.prod(wanted, dtype=int) and (len(axes) <= 1 or axes == wanted_axes):
        array = array.reshape(wanted)
    if array.shape != wanted:
        raise InputError(f"{where}: {label.key} has shape {array.shape}, expected {wanted}")
    finite = np.isfinite(array)
    if finite.all():
        return array
    if non_finite == "missing":
        return np.where(finite, array, np.nan)
    index = tuple(int(k) for k in np.argwhere(~finite)[0])
    place = f" of atom {index[0]}" if label.level == "atom" else ""
    raise InputError(
        f"{where}: {label.key}{place} is {array[index]}; remove the frame, or count such values as missing "
        "with datamodule.non_finite_labels=missing"
    )


def graph_attrs(
    atoms: Atoms, attrs: Sequence[str], num_attrs: int | None = None, where: str = "structure"
) -> Array:
    """The numbers in `Atoms.info` under the keys `attrs`, concatenated, (1, num_attrs)."""
    values = []
    for key in attrs:
        value = _look_up(key, *_columns(atoms))
        if value is None:
            raise InputError(f"{where}: has no {key!r} in Atoms.info, which the model takes as an input")
        values.append(_numbers(value, key, where).reshape(-1))
    joined = np.concatenate(values)
    if num_attrs not in (None, len(joined)):
        raise InputError(
            f"{where}: the model's inputs ({', '.join(attrs)}) are {num_attrs} numbers in the training data, "
            f"but {len(joined)} here; give each the same length everywhere"
        )
    if not np.isfinite(joined).all():
        raise InputError(f"{where}: {', '.join(attrs)} must be finite numbers, not {joined.tolist()}")
    return joined[None]


def _columns(atoms: Atoms) -> tuple[Mapping[str, object], ...]:
    """Where a structure keeps what is not a calculator's result; a db row has two places of its own."""
    pairs, data = atoms.info.get("key_value_pairs"), atoms.info.get("data")
    of_row = (place for place in (pairs, data) if isinstance(place, dict))
    return atoms.info, atoms.arrays, *of_row


def _look_up(key: str, *places: Mapping[str, object]) -> object | None:
    return next((place[key] for place in places if place.get(key) is not None), None)


def _numbers(value: object, key: str, where: str) -> Array:
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {key} is not made of numbers: {str(value)[:40]!r}") from None


def _as_target(
    value: Array | None, label: Label, num_atoms: int, edge_index: NDArray[np.int64], where: str
) -> Tensor:
    """A label with its leading N, E or 1, NaN where it is missing."""
    i, j = edge_index
    if value is None:
        rows = {"edge": len(i), "atom": num_atoms, "structure": 1}[label.level]
        return torch.full((rows, *label.shape), torch.nan, dtype=torch.float64)
    if label.level == "edge":
        if len(np.unique(i * len(value) + j)) < len(i):
            raise InputError(
                f"{where}: {label.key} has one value for each pair of atoms, but within the cut-off a pair "
                "has several periodic images; use a larger cell or a smaller cut-off"
            )
        return torch.from_numpy(value[i, j])
    return torch.from_numpy(value) if label.level == "atom" else torch.from_numpy(value)[None]
