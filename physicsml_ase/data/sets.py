"""The sets of a run: sources by set and name, what is split off the training data, and a record of it all."""

import hashlib
import logging
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.data.sources import Source, SourceSpec, open_sources
from physicsml_ase.data.splits import Split, split_source
from physicsml_ase.neighbors import neighbor_list

log = logging.getLogger("physicsml_ase")

Spec = SourceSpec | Mapping[str, SourceSpec]
SETS = ("train", "validation", "test", "predict")
LISTED = 1000
"""Indices that a record lists one by one; of more it keeps the hash."""


class Sets(NamedTuple):
    """Sources by set and name, and how training sources were split, by name."""

    sources: dict[str, dict[str, Source]]
    splits: dict[str, Split]


def open_sets(specs: Mapping[str, Spec | None], config: DataModuleConfig, seed: int) -> Sets:
    """Open every set; split validation and test off the training data where the config says so."""
    sources = {name: {} if specs[name] is None else open_sources(specs[name]) for name in SETS}  # type: ignore[arg-type]
    if not any(sources.values()):
        raise InputError("no data: name them with datamodule.train_data, or give train=...")
    parts = (
        0.0 if sources["validation"] else config.validation_split,
        0.0 if sources["test"] else config.test_split,
    )
    splits, sides = {}, dict[Hashable, int]()
    if sources["train"] and any(parts):
        for name, source in sources["train"].items():
            amounts: dict[str, Any] = {"fraction": parts}
            if max(parts) >= 1:  # a number of structures beside a fraction: both as numbers
                amounts = {"number": [part if part >= 1 else round(part * len(source)) for part in parts]}
            split = split_source(source, **amounts, group_key=config.split_by, seed=seed, sides=sides).indices
            splits[name] = split = _keep_what_only_training_can_use(source, split, config)
            for set_, indices in split._asdict().items():
                if len(indices):
                    sources[set_][name] = source.subset(indices)
    return Sets(sources, splits)


def record_sets(sets: Sets, used: Mapping[str, Mapping[str, int]], seed: int) -> dict[str, Any]:
    """What a run's folder keeps of its data, as plain data; `used` are structures in use by set and name."""
    record: dict[str, Any] = {
        "sources": {
            f"{set_}/{name}".rstrip("/"): {
                "source": source.name,
                "hash": source.content_hash(),
                "structures": len(source),
                "used": used[set_].get(name, 0),
            }
            for set_, sources in sets.sources.items()
            for name, source in sources.items()
        }
    }
    if sets.splits:
        record["split"] = {"seed": seed} | {name: _record_split(split) for name, split in sets.splits.items()}
    return record


def _keep_what_only_training_can_use(source: Source, split: Split, config: DataModuleConfig) -> Split:
    """The split with isolated atoms, and frames with an element that no training frame has, moved to training.

    A model would refuse such an element; isolated atoms are where reference energies come from.
    """
    elsewhere = np.concatenate([split.validation, split.test])
    elements, move = dict[int, set[int]](), set[int]()
    for i in elsewhere.tolist():
        atoms = source[i]
        elements[i] = set(atoms.numbers.tolist())
        if len(atoms) == 1 and _is_isolated(atoms, config):
            move.add(i)
    unseen = set[int]().union(*elements.values())
    for i in split.train.tolist():
        unseen -= set(source[i].numbers.tolist())
        if not unseen:
            break
    move |= {i for i, present in elements.items() if present & unseen}
    if not move:
        return split
    log.info("%s: %d isolated atoms or frames with a rare element stay in training", source.name, len(move))
    if len(split.validation) and move.issuperset(split.validation.tolist()):
        log.warning("%s: no frames are left to validate on; give validation data", source.name)
    moved = np.array(sorted(move))
    return Split(
        np.sort(np.concatenate([split.train, moved])),
        np.setdiff1d(split.validation, moved),
        np.setdiff1d(split.test, moved),
    )


def _is_isolated(atoms: Atoms, config: DataModuleConfig) -> bool:
    """Whether a single atom has no image within the cut-off; one in a large box, as plane waves need it, has none."""
    cell = atoms.cell.array if config.cell is None else config.cell
    pbc = atoms.pbc if config.pbc is None else config.pbc
    try:
        return not len(neighbor_list(atoms.positions, cell, pbc, config.cut_off).edge_shift)
    except InputError:  # which is said where the frame is used
        return False


def _record_split(split: Split) -> dict[str, Any]:
    return {side: _record_indices(indices) for side, indices in split._asdict().items()}


def _record_indices(indices: NDArray[np.int64]) -> list[int] | dict[str, int | str]:
    if len(indices) <= LISTED:
        return indices.tolist()
    digest = hashlib.blake2b(indices.astype("<i8").tobytes(), digest_size=16).hexdigest()
    return {"structures": len(indices), "indices_hash": digest}
