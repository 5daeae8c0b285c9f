"""The DataModule: from what the user names to loaders of batches, and to what a model is told about its data."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from numpy.typing import NDArray

from physicsml_ase.config import did_you_mean
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.batching import Rule
from physicsml_ase.data.flat import Flat
from physicsml_ase.data.loader import GraphLoader
from physicsml_ase.data.references import Wanted
from physicsml_ase.data.resolve import Resolved, resolve
from physicsml_ase.data.sets import Spec
from physicsml_ase.data.settings import DataModuleConfig, PredictBatches
from physicsml_ase.data.sources import Source
from physicsml_ase.data.store import EdgeConstants, MemoryStore, Store
from physicsml_ase.data.workers import worker_count
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, collate

log = logging.getLogger("physicsml_ase")

Loaders = GraphLoader | CombinedLoader


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
        self._open: dict[str, list[GraphLoader]] = {}
        self._resolved: Resolved | None = None
        self._extended: dict[str, Store] = {}

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
    def sources(self) -> dict[str, dict[str, Source]]:
        """What each set is made of, by set and name, after the split."""
        return self.resolve().sources

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
        graphs = [store.read(places[k : k + 1]) for k in range(len(places))]
        attrs = ("graph_attrs",)  # and not what a model computed of them
        return [g._replace(inputs={k: v for k, v in g.inputs.items() if k in attrs}) for g in graphs]

    def first_batch(self) -> Graph:
        """A batch as training will have them, of all sources."""
        stores, rules = self.resolve().stores["train"], self.config.train
        loaders = [self._loader("train", name, store, rules) for name, store in stores.items()]
        return collate([loader.store.read(loader.plan().share(0).indices) for loader in loaders])

    def extend(self, name: str, more: Sequence[Flat]) -> None:
        """Have the loader of training batches give these structures as well, beside those of a source in memory.

        Nothing else is changed: they are no part of the data that statistics and errors are of.
        """
        store = self.resolve().stores["train"][name]
        assert isinstance(store, MemoryStore)
        self._extended[name] = store.extended(more)

    def keep_constants(self, constants: EdgeConstants, most_bytes: int) -> None:
        """Keep what a model computes of edges beside those of the training and validation sets in memory.

        Sets that would need more than `most_bytes`, or that are not in memory, compute it anew for each batch.
        """
        for set_ in ("train", "validation"):
            of_set = self._read_from(set_)
            stores = [x for x in of_set.values() if isinstance(x, MemoryStore)]
            edges = sum(int(store.num_edges.sum()) for store in stores)
            # all sources of a set or none: their batches are learned from as one
            if len(stores) < len(of_set) or not edges:
                continue
            kept = 4 * constants.width * edges <= most_bytes
            log.info(
                "%s: %d edges x %d bytes of constants, %.3g MB: %s",
                *(set_, edges, 4 * constants.width, 4e-6 * constants.width * edges),
                "computed once and kept" if kept else "too much to keep, computed for each batch",
            )
            for store in stores if kept else []:
                store.keep_constants(constants)

    def setup(self, stage: str | None = None) -> None:
        """Lightning's hook: resolve, unless it was done before."""
        if stage == "fit" and self.trainer is not None and not self.has_validation:
            self.trainer.limit_val_batches = 0  # or it warns of a loader without batches
        self.resolve()

    def teardown(self, stage: str | None = None) -> None:
        """Lightning's hook: end the workers."""
        for set_ in list(self._open):
            self._close(set_)

    def resolve(self) -> Resolved:
        """Open and split the sources, build the graphs, gather the statistics; once."""
        if self._resolved is None:
            self._resolved = resolve(
                self.config,
                self.specs,
                domain=self.given_domain,
                labels=self.given_labels,
                seed=self.seed,
                reference_energies=self.reference_energies,
            )
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

    def present_frames(self, set_: str) -> list[tuple[str, NDArray[np.int64]]]:
        """Places in their source of the frames of the batch that each loader of a set handed over last."""
        loaders = [loader for loader in self._open.get(set_, []) if loader.position]
        return [(x.name, x.store.frames[x.plan().share(x.position - 1).indices]) for x in loaders]

    def _loaders(self, set_: str) -> Loaders:
        stores = self._read_from(set_)
        if not stores:
            raise InputError(f"no {set_} data were given")
        batches: PredictBatches = getattr(self.config, set_)
        if isinstance(batches.batch_size, dict) and (unknown := batches.batch_size.keys() - stores.keys()):
            name = min(unknown)
            raise InputError(
                f"datamodule.{set_}.batch_size: {name!r} is no source; {did_you_mean(name, stores)}"
            )
        loaders = {name: self._loader(set_, name, store, batches) for name, store in stores.items()}
        for x in loaders.values():
            if set_ == "train" and len(x.store) < x.rule.batch_size:
                words = "%s: %d structures, fewer than batch_size=%d, make one batch"
                log.info(words, x.name, len(x.store), x.rule.batch_size)
        self._close(set_)  # Lightning may ask again, and the workers of before would wait for ever
        self._open[set_] = list(loaders.values())
        if len(loaders) == 1 and "" in loaders:
            return loaders[""]
        mode: Any = getattr(batches, "mode", "sequential")
        for loader in loaders.values():
            loader.once = mode == "max_size"
        return CombinedLoader(loaders, mode)

    def _read_from(self, set_: str) -> dict[str, Store]:
        """What batches of a set are read from."""
        stores = self.resolve().stores[set_]
        return stores | self._extended if set_ == "train" else stores

    def _close(self, set_: str) -> None:
        for loader in self._open.pop(set_, []):
            loader.close()

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
            shuffle=set_ == "train" and not getattr(self.trainer, "overfit_batches", 0),
            drop_last=getattr(batches, "drop_last", False),
            redraw_interval=getattr(batches, "redraw_interval", 1),
            seed=self.seed,
        )
        return GraphLoader(
            store, rule, worker_count(self.config.num_workers), name=f"{set_} data {name}".strip()
        )
