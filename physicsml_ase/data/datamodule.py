"""The DataModule: from what the user names to loaders of batches, and to what a model is told about its data."""

import dataclasses
import logging
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.batching import Rule
from physicsml_ase.data.frames import Recipe, chunks, worker_count
from physicsml_ase.data.labels import rekey, resolve_labels
from physicsml_ase.data.loader import GraphLoader
from physicsml_ase.data.outliers import find_limits, find_outliers, residual_energy
from physicsml_ase.data.references import Wanted
from physicsml_ase.data.sets import SETS, Spec, open_sets, record_sets
from physicsml_ase.data.settings import DataModuleConfig, PredictBatches
from physicsml_ase.data.sources import Source
from physicsml_ase.data.statistics import resolve_domain
from physicsml_ase.data.store import LiveStore, MemoryStore, Store, Watch
from physicsml_ase.data.survey import Survey
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph

log = logging.getLogger("physicsml_ase")

Loaders = GraphLoader | CombinedLoader


class Resolved(NamedTuple):
    """What becomes known when the data are opened."""

    labels: tuple[Label, ...]
    domain: Domain
    summary: dict[str, Any]
    stores: dict[str, dict[str, Store]]


class DataModule(pl.LightningDataModule):
    """Train, validation, test and predict loaders from anything that `open_source` takes, or dicts of such.

    With `domain` and `labels`, of a trained model, the data are read for that model: nothing is resolved from
    them, and an element that the model does not know is an error.
    """

    def __init__(
        self,
        config: DataModuleConfig | None = None,
        train: Spec | None = None,
        validation: Spec | None = None,
        test: Spec | None = None,
        predict: Spec | None = None,
        *,
        domain: Domain | None = None,
        labels: tuple[Label, ...] | None = None,
        seed: int = 0,
        reference_energies: Wanted = None,
    ) -> None:
        super().__init__()
        self.config = config or DataModuleConfig()
        c = self.config
        self.specs: dict[str, Spec | None] = {
            "train": c.train_data if train is None else train,
            "validation": c.validation_data if validation is None else validation,
            "test": c.test_data if test is None else test,
            "predict": predict,
        }
        self.given_domain, self.given_labels = domain, labels
        self.seed, self.reference_energies = seed, reference_energies
        self.loaders: list[GraphLoader] = []
        self._resolved: Resolved | None = None

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels to learn."""
        return self.resolve().labels

    @property
    def domain(self) -> Domain:
        """What the model is told about its data."""
        return self.resolve().domain

    @property
    def summary(self) -> dict[str, Any]:
        """Sources, hashes, split, label counts and how the reference energies were found, as plain data."""
        return self.resolve().summary

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation set."""
        return bool(self.resolve().stores["validation"])

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return bool(self.resolve().stores["test"])

    def stored_frames(self, count: int) -> list[Graph]:
        """A few structures of the validation set, or of the training set, each as a batch of one."""
        stores = self.resolve().stores
        store = next(iter((stores["validation"] or stores["train"]).values()))
        places = np.unique(np.linspace(0, len(store) - 1, count).astype(np.int64))
        return [store.read(places[k : k + 1]) for k in range(len(places))]

    def setup(self, stage: str | None = None) -> None:
        """Lightning's hook: resolve, unless it was done before."""
        self.resolve()

    def teardown(self, stage: str | None = None) -> None:
        """Lightning's hook: end the workers."""
        for loader in self.loaders:
            loader.close()
        self.loaders.clear()

    def resolve(self) -> Resolved:
        """Open and split the sources, build the graphs, gather the statistics; once."""
        if self._resolved is None:
            self._resolved = self._resolve()
        return self._resolved

    def train_dataloader(self) -> Loaders:
        """Shuffled batches of the train set; with several sources, a dict of batches by name."""
        return self._loaders("train")

    def val_dataloader(self) -> Loaders | list[GraphLoader]:
        """Batches of the validation set."""
        return self._loaders("validation") if self.has_validation else []

    def test_dataloader(self) -> Loaders | list[GraphLoader]:
        """Batches of the test set."""
        return self._loaders("test") if self.has_test else []

    def predict_dataloader(self) -> Loaders:
        """Batches of the predict set, without labels, in the order of its structures."""
        return self._loaders("predict")

    def _resolve(self) -> Resolved:
        sets = open_sets(self.specs, self.config, self.seed)
        labels = self._labels(sets.sources)
        stores: dict[str, dict[str, Store]] = {}
        surveys: dict[str, Survey] = {}
        domain, limits, summary = self.given_domain, None, dict[str, Any]()
        for set_, of in sets.sources.items():
            recipe = self._recipe(labels, domain)
            survey = surveys[set_] = Survey(labels if set_ != "predict" else (), recipe.self_interaction)
            stores[set_] = {
                k: self._store(set_, source, recipe, survey.watch(source)) for k, source in of.items()
            }
            if domain is None:
                if not of:
                    raise InputError(
                        "no training data: name them with datamodule.train_data, or give train=..."
                    )
                domain, summary["reference_energies"], limits = resolve_domain(
                    survey, recipe, self.reference_energies
                )
            elif of and set_ != "predict":
                residual = residual_energy(survey, domain.atomic_energies)
                limits = limits or find_limits(survey, residual)
                find_outliers(survey, residual, limits)
            for name, present in survey.present.items() if of else ():
                log.info(
                    "%s: %s in %d of %d structures", set_, name, present, sum(map(len, stores[set_].values()))
                )
        assert domain is not None
        self._check_num_elements(domain)
        used = {set_: {name: len(store) for name, store in of.items()} for set_, of in stores.items()}
        summary["labels"] = {set_: survey.present for set_, survey in surveys.items() if stores[set_]}
        return Resolved(labels, domain, summary | record_sets(sets, used, self.seed), stores)

    def _labels(self, sources: dict[str, dict[str, Source]]) -> tuple[Label, ...]:
        some = next(s for name in SETS for s in sources[name].values())
        if self.given_labels is not None:
            return rekey(self.given_labels, self.config, some)
        if sources["train"]:
            return resolve_labels(self.config, list(sources["train"].values()))
        if sources["validation"] or sources["test"]:
            return resolve_labels(self.config, [some])
        return ()

    def _recipe(self, labels: tuple[Label, ...], domain: Domain | None) -> Recipe:
        """What makes graphs: as configured, or for a model that exists as it wants them."""
        c = self.config
        if domain is None:
            return Recipe(
                cutoff=c.cut_off,
                labels=labels,
                attrs=tuple(c.graph_attrs_cols or ()),
                self_interaction=c.self_interaction,
                pbc=c.pbc,
                cell=c.cell,
                non_finite=c.non_finite_labels,
            )
        return Recipe(
            cutoff=domain.cutoff,
            labels=labels,
            attrs=domain.attrs,
            self_interaction=domain.self_interaction,
            pbc=domain.pbc,
            cell=domain.cell,
            non_finite=c.non_finite_labels,
            elements=domain.elements,
        )

    def _store(self, set_: str, source: Source, recipe: Recipe, watch: Watch | None = None) -> Store:
        recipe = dataclasses.replace(
            recipe,
            labels=() if set_ == "predict" else recipe.labels,
            labelled_only=set_ != "predict",
            max_force=self.config.max_force if set_ in ("train", "validation") else None,
        )
        workers = worker_count(self.config.num_workers)
        parts = chunks(source, recipe, workers=workers, what=f"{set_} graphs")
        if self.config.pre_batch is None:
            return LiveStore(source, recipe, parts, watch)
        return MemoryStore(parts, watch)

    def _check_num_elements(self, domain: Domain) -> None:
        wanted = self.config.num_elements
        if wanted and wanted != len(domain.elements):
            raise InputError(
                f"datamodule.num_elements: {wanted}, but the training data have {len(domain.elements)} elements "
                f"(atomic numbers {', '.join(map(str, domain.elements))}); leave it out"
            )

    def _loaders(self, set_: str) -> Loaders:
        stores = self.resolve().stores[set_]
        if not stores:
            raise InputError(f"no {set_} data were given")
        batches: PredictBatches = getattr(self.config, set_)
        loaders = {name: self._loader(set_, name, store, batches) for name, store in stores.items()}
        self.loaders += loaders.values()
        if len(loaders) == 1 and "" in loaders:
            return loaders[""]
        return CombinedLoader(loaders, getattr(batches, "mode", "sequential"))

    def _loader(self, set_: str, name: str, store: Store, batches: PredictBatches) -> GraphLoader:
        size = batches.batch_size
        if not isinstance(size, int):
            if name not in size:
                raise InputError(f"datamodule.{set_}.batch_size: has no size for the source {name!r}")
            size = size[name]
        rule = Rule(
            batch_size=size,
            max_atoms=batches.max_atoms,
            max_edges=batches.max_edges,
            shuffle=set_ == "train",
            drop_last=getattr(batches, "drop_last", False),
            redraw_interval=getattr(batches, "redraw_interval", 1),
            seed=self.seed,
        )
        title = f"{set_} data {name}".strip()
        if set_ == "train" and len(store) < size:
            log.info("%s: %d structures, fewer than batch_size=%d, make one batch", title, len(store), size)
        return GraphLoader(store, rule, worker_count(self.config.num_workers), name=title)
