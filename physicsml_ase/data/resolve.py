"""From the config and the user's data to stores, labels and domain: what is done once, before any batch."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from physicsml_ase.atoms import graph_attrs
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.frames import NothingLeft, Recipe, chunks
from physicsml_ase.data.labels import rekey, resolve_labels
from physicsml_ase.data.outliers import Limits, find_limits, find_outliers, residual_energy
from physicsml_ase.data.references import Wanted
from physicsml_ase.data.sets import SETS, Sets, Spec, open_sets, record_sets
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.data.sources import Source
from physicsml_ase.data.statistics import resolve_domain
from physicsml_ase.data.store import LiveStore, MemoryStore, Store, Watch
from physicsml_ase.data.survey import Survey
from physicsml_ase.data.workers import worker_count
from physicsml_ase.domain import Domain

log = logging.getLogger("physicsml_ase")


class Resolved(NamedTuple):
    """What becomes known when the data are opened; stores by set and name."""

    labels: tuple[Label, ...]
    domain: Domain
    summary: dict[str, Any]
    stores: dict[str, dict[str, Store]]
    sources: dict[str, dict[str, Source]]


def resolve(
    config: DataModuleConfig,
    specs: Mapping[str, Spec | None],
    *,
    domain: Domain | None = None,
    labels: tuple[Label, ...] | None = None,
    seed: int = 0,
    reference_energies: Wanted = None,
) -> Resolved:
    """Open and split the sources, build the graphs, gather the statistics.

    `domain` and `labels` are a trained model's: then nothing about the model is taken from the data.
    """
    sets = open_sets(specs, config, seed)
    labels = _labels(config, sets, labels)
    stores: dict[str, dict[str, Store]] = {}
    summary: dict[str, Any] = {"labels": {}}
    limits: Limits | None = None
    for set_ in SETS:
        recipe = _recipe(config, () if set_ == "predict" else labels, domain)
        survey = Survey(recipe.labels, recipe.self_interaction)
        stores[set_] = _stores(config, sets, set_, recipe, survey)
        if domain is None:
            if not stores[set_]:
                raise InputError("no training data: name them with datamodule.train_data, or give train=...")
            domain, how, limits = resolve_domain(survey, recipe, reference_energies)
            summary["reference_energies"] = how
        elif stores[set_] and recipe.labels:
            residual = residual_energy(survey, domain.atomic_energies)
            limits = limits or find_limits(survey, residual)
            find_outliers(survey, residual, limits)
        if stores[set_]:
            summary["labels"][set_] = survey.present
            size = sum(map(len, stores[set_].values()))
            for name, present in survey.present.items():
                log.info("%s: %s in %d of %d structures", set_, name, present, size)
    assert domain is not None
    _check_num_elements(config, domain)
    used = {set_: {name: len(store) for name, store in of.items()} for set_, of in stores.items()}
    return Resolved(labels, domain, summary | record_sets(sets, used, seed), stores, sets.sources)


def _labels(config: DataModuleConfig, sets: Sets, given: tuple[Label, ...] | None) -> tuple[Label, ...]:
    with_labels = next((list(of.values()) for of in list(sets.sources.values())[:-1] if of), None)
    if with_labels is None:
        return ()
    return resolve_labels(config, with_labels) if given is None else rekey(given, config, with_labels[0])


def _recipe(config: DataModuleConfig, labels: tuple[Label, ...], domain: Domain | None) -> Recipe:
    """What makes graphs: as configured, or for a model that exists as it wants them."""
    if domain is None:
        return Recipe(
            cutoff=config.cut_off,
            labels=labels,
            attrs=tuple(config.graph_attrs_cols or ()),
            self_interaction=config.self_interaction,
            pbc=config.pbc,
            cell=config.cell,
            non_finite=config.non_finite_labels,
        )
    return Recipe(
        cutoff=domain.cutoff,
        labels=labels,
        attrs=domain.attrs,
        num_attrs=len(domain.attr_shifts),
        self_interaction=domain.self_interaction,
        pbc=domain.pbc,
        cell=domain.cell,
        non_finite=config.non_finite_labels,
        elements=domain.elements,
    )


def _stores(
    config: DataModuleConfig, sets: Sets, set_: str, recipe: Recipe, survey: Survey
) -> dict[str, Store]:
    """The stores of a set by name. What was split off may turn out to be of no use; what was given may not."""
    if recipe.attrs and recipe.num_attrs is None:  # the first structure says it for all, of all sources
        first = next(iter(sets.sources[set_].values()))
        width = graph_attrs(first[0], recipe.attrs, where=first.where(0)).shape[1]
        recipe = dataclasses.replace(recipe, num_attrs=width)
    if set_ in ("train", "validation") and config.max_force is not None:
        learned = next((label.key for label in recipe.labels if label.name == "forces"), None)
        key = learned or config.label_keys.get("forces", "forces")
        recipe = dataclasses.replace(recipe, max_force=config.max_force, forces_key=key)
    recipe = dataclasses.replace(recipe, labelled_only=set_ != "predict")
    stores = {}
    for name, source in sets.sources[set_].items():
        try:
            stores[name] = _store(config, set_, source, recipe, survey.watch(source))
        except NothingLeft as error:
            if set_ == "train" or name not in sets.splits:
                raise
            log.warning("no %s data: %s", set_, error)
    return stores


def _store(config: DataModuleConfig, set_: str, source: Source, recipe: Recipe, watch: Watch) -> Store:
    workers = worker_count(config.num_workers)
    if set_ == "predict" and not (config.predict.max_atoms or config.predict.max_edges):
        return LiveStore(source, recipe, None)  # read once: there is nothing to gain from a pass before
    if config.pre_batch == "on_disk":
        from physicsml_ase.data.cache import cached_store, default_folder

        folder = Path(config.cache_dir).expanduser() if config.cache_dir else default_folder()
        store = cached_store(source, recipe, folder, set_ == "train", workers)
        for part in store.parts():
            watch(part)
        return store
    parts = chunks(source, recipe, workers=workers, what=f"{set_} graphs")
    return (
        MemoryStore(parts, watch)
        if config.pre_batch == "in_memory"
        else LiveStore(source, recipe, parts, watch)
    )


def _check_num_elements(config: DataModuleConfig, domain: Domain) -> None:
    wanted, elements = config.num_elements, domain.elements
    if wanted and wanted != len(elements):
        raise InputError(
            f"datamodule.num_elements: {wanted}, but the training data have {len(elements)} elements "
            f"(atomic numbers {', '.join(map(str, elements))}); leave it out"
        )
