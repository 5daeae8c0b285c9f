"""The Python API: a model from a config or a checkpoint, which trains, predicts, evaluates and goes to ASE."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import Atoms

from physicsml_ase.checkpoint import load_potential, read_checkpoint, save_potential
from physicsml_ase.config import load, to_plain, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.potential import Potential
from physicsml_ase.recipe import merge, with_length

if TYPE_CHECKING:
    import numpy as np

    from physicsml_ase.calculator import PhysicsMLCalculator
    from physicsml_ase.evaluate import Evaluation
    from physicsml_ase.train.settings import RunConfig

DEFAULT_ROOT = "training"  # the Trainer config's default: such runs are numbered and never collide


class PhysicsMLModel:
    """A potential and the config of its training."""

    def __init__(self, config: Mapping[str, Any], potential: Potential | None = None) -> None:
        self._config, self._potential = dict(config), potential
        self.about: dict[str, Any] = {}
        """What the checkpoint tells of the training, where the model was loaded from one."""

    @property
    def potential(self) -> Potential:
        """The trained potential. Raises `InputError` before training."""
        if self._potential is None:
            raise InputError("the model is not trained yet: call .train(...), or load a checkpoint")
        return self._potential

    @property
    def config(self) -> "RunConfig":
        """The validated config."""
        return self._validated(self._config)

    def train(
        self,
        train_data: Any = None,
        validation_data: Any = None,
        test_data: Any = None,
        *,
        ckpt_path: str | Path | None = None,
        **overrides: Any,
    ) -> "PhysicsMLModel":
        """Train on anything ASE reads (paths, lists of Atoms, dicts of named sources), and return the model
        with its best weights.

        Without `validation_data`, part of the training data is split off. `ckpt_path` continues a run from
        its training checkpoint. `overrides` are sections of the config: `trainer={"max_epochs": 10}`.
        A model that is already trained learns on from its weights.
        """
        from physicsml_ase.train.folder import free_folder
        from physicsml_ase.train.run import Data, start

        config = self._validated(with_length(merge(self._config, overrides)))
        given = Data(train_data, validation_data, test_data)
        data = Data(*(a if a is not None else b for a, b in zip(given, _named_data(config))))
        if data.train is None:
            raise InputError("no training data: give train_data, or datamodule.train_data in the config")
        root = Path(config.trainer.default_root_dir or DEFAULT_ROOT)
        if str(root) == DEFAULT_ROOT or ckpt_path is not None:
            root = free_folder(root)
        result = start(config, data, root, potential=self._potential, ckpt_path=ckpt_path)
        self._potential, self.folder = result.potential, result.folder.root
        if result.interrupted:
            raise KeyboardInterrupt
        return self

    def predict(self, data: Any) -> "list[dict[str, np.ndarray | float]]":
        """Everything the model predicts, one dict of ASE's properties for each structure of `data`."""
        frames = [data] if isinstance(data, Atoms) else data
        if not _are_atoms(frames):
            from physicsml_ase.data.sources import open_source

            source = open_source(frames)
            frames = [source[k] for k in range(len(source))]
        return self.to_ase().predict(frames)

    def evaluate(self, data: Any, directory: str | Path | None = None) -> "Evaluation":
        """Errors against the labels in `data`; tables, predictions and plots go to `directory`, if given."""
        from physicsml_ase.data.sources import open_source
        from physicsml_ase.evaluate import evaluate

        evaluation = evaluate(self.potential, open_source(data))
        if directory is not None:
            evaluation.write(directory)
        return evaluation

    def save(self, path: str | Path) -> None:
        """Write a deployable checkpoint."""
        save_potential(self.potential, path, about={"config": to_plain(self.config)} | self.about)

    def to_ase(self, **settings: Any) -> "PhysicsMLCalculator":
        """An ASE calculator with these weights; `settings` are those of `PhysicsMLCalculator`."""
        from physicsml_ase.calculator import PhysicsMLCalculator

        return PhysicsMLCalculator(self.potential, **settings)

    def _validated(self, config: Mapping[str, Any]) -> "RunConfig":
        from physicsml_ase.train.settings import RunConfig

        return validate(RunConfig, dict(config))


def load_model(
    config: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> PhysicsMLModel:
    """A model from a config (YAML, JSON, TOML or a dict; None: the defaults) or from a checkpoint (.ckpt).

    Raises `InputError` that lists everything wrong with the config.
    """
    if isinstance(config, str | Path) and Path(config).suffix == ".ckpt":
        contents = read_checkpoint(config)
        about = contents["about"]
        potential = load_potential(config)
        model = PhysicsMLModel(about.get("config", {"model": contents["model"]}), potential)
        model.about = about
        return model
    model = PhysicsMLModel(load(config, overrides))
    _ = model.config  # every error now, not at training
    return model


def _named_data(config: "RunConfig") -> tuple[Any, Any, Any]:
    section = config.datamodule
    return section.train_data, section.validation_data, section.test_data


def _are_atoms(frames: Any) -> bool:
    return isinstance(frames, list | tuple) and all(isinstance(frame, Atoms) for frame in frames)
