"""The Python API: a model from a config or a checkpoint, which trains, predicts, evaluates and goes to ASE."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import Atoms

from physicsml_ase.checkpoint import load_potential, read_checkpoint, save_potential, stored_frames
from physicsml_ase.config import load, to_plain, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential
from physicsml_ase.recipe import merge, with_length

if TYPE_CHECKING:
    import numpy as np
    import torch

    from physicsml_ase.calculator import PhysicsMLCalculator
    from physicsml_ase.data.sets import Spec
    from physicsml_ase.data.sources import SourceSpec
    from physicsml_ase.evaluate import Evaluation
    from physicsml_ase.train.settings import RunConfig


class PhysicsMLModel:
    """A potential and the config of its training."""

    def __init__(self, config: Mapping[str, Any], potential: Potential | None = None) -> None:
        self._config, self._potential = dict(config), potential
        self._frames: list[Graph] = []
        self.about: dict[str, Any] = {}
        """What a checkpoint tells of the training: the resolved config, the data, the errors."""
        self.folder: Path | None = None
        """Folder of the last training run."""

    @property
    def potential(self) -> Potential:
        """The trained potential. Raises `InputError` before training."""
        if self._potential is None:
            raise InputError("the model is not trained yet: call .train(...), or load a checkpoint")
        return self._potential

    @property
    def config(self) -> "RunConfig":
        """The validated config."""
        return _validated(self._config)

    def train(
        self,
        train_data: "Spec | None" = None,
        validation_data: "Spec | None" = None,
        test_data: "Spec | None" = None,
        *,
        ckpt_path: str | Path | None = None,
        **overrides: Any,
    ) -> "PhysicsMLModel":
        """Train on anything ASE reads (paths, lists of Atoms, dicts of named sources), and return the model
        with its best weights.

        Without `validation_data`, part of the training data is split off. `ckpt_path` continues a run from
        its training checkpoint. `overrides` are sections of the config: `trainer={"max_epochs": 10}`.
        A model that is already trained learns on from its weights. Each run has a folder of its own,
        `trainer.default_root_dir`, or that name with a number where it holds a run.
        """
        from physicsml_ase.train.folder import free_folder
        from physicsml_ase.train.run import Data, start

        config = _validated(with_length(merge(self._config, overrides)))
        named = config.datamodule
        data = Data(
            named.train_data if train_data is None else train_data,
            named.validation_data if validation_data is None else validation_data,
            named.test_data if test_data is None else test_data,
        )
        if data.train is None:
            raise InputError("no training data: give train_data, or datamodule.train_data in the config")
        root = free_folder(Path(config.trainer.default_root_dir or "training"))
        result = start(config, data, root, potential=self._potential, ckpt_path=ckpt_path)
        self._potential, self.folder = result.potential, result.folder.root
        if not result.interrupted:  # what goes on from a training checkpoint needs it still
            self._config = _of_trained(self._config)
        if result.folder.model.exists():  # only the first of several processes writes it
            self._remember(read_checkpoint(result.folder.model))
        if result.interrupted:
            raise KeyboardInterrupt
        return self

    def predict(self, data: "SourceSpec | Atoms") -> "list[dict[str, np.ndarray | float]]":
        """Everything the model predicts, one dict of ASE's properties for each structure of `data`."""
        if isinstance(data, Atoms):
            data = [data]
        if not (isinstance(data, list | tuple) and all(isinstance(item, Atoms) for item in data)):
            from physicsml_ase.data.sources import open_source

            data = open_source(data)
        return self.to_ase().predict(data)

    def evaluate(
        self,
        data: "SourceSpec | Atoms",
        directory: str | Path | None = None,
        *,
        label_keys: Mapping[str, str] | None = None,
        device: "str | torch.device" = "auto",
    ) -> "Evaluation":
        """Errors against the labels in `data`, which `label_keys` ({"energy": "REF_energy"}) finds under
        other names; tables, predictions and plots go to `directory`, if given."""
        from physicsml_ase.evaluate import evaluate

        source = [data] if isinstance(data, Atoms) else data
        evaluation = evaluate(self.to_ase(device=device).potential, source, label_keys=label_keys)
        if directory is not None:
            evaluation.write(directory)
        return evaluation

    def save(self, path: str | Path) -> None:
        """Write a deployable checkpoint."""
        about = {"config": to_plain(self.config)} | self.about
        save_potential(self.potential, path, frames=self._frames, about=about)

    def to_ase(self, **settings: Any) -> "PhysicsMLCalculator":
        """An ASE calculator with these weights; `settings` are those of `PhysicsMLCalculator`."""
        from physicsml_ase.calculator import PhysicsMLCalculator

        return PhysicsMLCalculator(self.potential, **settings)

    def _remember(self, contents: Mapping[str, Any]) -> None:
        self.about, self._frames = contents["about"], stored_frames(contents)


def load_model(
    config: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> PhysicsMLModel:
    """A model from a config (YAML, JSON, TOML or a dict; None: the defaults) or from a checkpoint (.ckpt).

    `overrides` are changes as on the command line, "trainer.max_epochs=3". Raises `InputError` that lists
    everything wrong with the config.
    """
    if isinstance(config, str | Path) and Path(config).suffix == ".ckpt":
        contents = read_checkpoint(config)
        given = contents["about"].get("config") or {"model": contents["model"]}
        if contents["about"].get("finished", True):
            given = _of_trained(given)
        model = PhysicsMLModel(load(given, overrides), load_potential(config))
        model._remember(contents)
    else:
        model = PhysicsMLModel(load(config, overrides))
    _ = model.config  # every error now, not at training
    return model


def _of_trained(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the weights that its training began with: the next one begins with its own."""
    return {key: value for key, value in config.items() if key != "transfer_learning"}


def _validated(config: Mapping[str, Any]) -> "RunConfig":
    from physicsml_ase.train.settings import RunConfig

    return validate(RunConfig, config)
