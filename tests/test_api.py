"""The Python API: from a config and data to a trained model, and from a checkpoint back."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms

from physicsml_ase import PhysicsMLModel, load_model
from physicsml_ase.checkpoint import read_checkpoint, replay
from physicsml_ase.conventions import InputError

ALLOY = Path(__file__).parents[1] / "examples" / "data" / "alloy_train.xyz"
TINY = {
    "model": {"channels": 8, "layers": 1, "num_radial": 4},
    "datamodule": {"train": {"batch_size": 4}, "validation": {"batch_size": 8}, "cut_off": 3.5},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1},
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where runs go by default


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return ase.io.read(ALLOY, ":10")


@pytest.fixture(scope="module")
def trained(frames: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> PhysicsMLModel:
    root = tmp_path_factory.mktemp("run") / "first"
    return load_model(TINY | {"trainer": TINY["trainer"] | {"default_root_dir": str(root)}}).train(frames)


def weights(model: PhysicsMLModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.potential.parameters()])


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".toml"])
def test_the_same_model_from_every_kind_of_config(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"config{suffix}"
    toml = "model = {channels = 8, layers = 1, num_radial = 4}\n[trainer]\nmax_epochs = 1\n"
    path.write_text({".yaml": yaml.safe_dump, ".json": json.dumps, ".toml": lambda _: toml}[suffix](TINY))
    assert load_model(path).config.model == load_model(TINY).config.model
    assert load_model(str(path), ["model.channels=16"]).config.model.channels == 16
    assert load_model().config.model.channels > 16


def test_a_wrong_config_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown key; did you mean 'channels'") as error:
        load_model({"model": {"chanels": 8}, "trainer": {"max_epochs": "many"}})
    assert "trainer.max_epochs" in str(error.value)
    for name in ("nosuch.yaml", "nosuch.ckpt"):
        with pytest.raises(InputError, match=name):
            load_model(tmp_path / name)


def test_before_training(frames: list[Atoms], tmp_path: Path) -> None:
    model = load_model(TINY)
    for use in (model.predict, model.evaluate, model.save, lambda _: model.to_ase()):
        with pytest.raises(InputError, match="not trained yet"):
            use(frames)
    with pytest.raises(InputError, match="no training data"):
        model.train()
    with pytest.raises(InputError, match="did you mean 'trainer'"):
        model.train(frames, trainr={"max_epochs": 1})
    assert not list(tmp_path.iterdir())


def test_predictions_are_the_same_by_every_road(trained: PhysicsMLModel, frames: list[Atoms]) -> None:
    together = trained.predict(frames)
    ase.io.write("some.xyz", frames)
    for others in (trained.predict("some.xyz"), [trained.predict(atoms)[0] for atoms in frames]):
        for one, other in zip(together, others):
            assert one["energy"] == pytest.approx(other["energy"], abs=1e-5)
            np.testing.assert_allclose(one["forces"], other["forces"], atol=1e-5)
    atoms = frames[0].copy()
    atoms.calc = trained.to_ase(dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(together[0]["energy"], abs=1e-4)
    assert trained.predict([]) == []


def test_evaluate(trained: PhysicsMLModel, frames: list[Atoms], tmp_path: Path) -> None:
    metrics = trained.evaluate(frames, tmp_path / "errors").metrics
    assert metrics == trained.evaluate("errors/predictions.xyz", label_keys=REFERENCES).metrics | {
        "per_config_type": metrics["per_config_type"]
    }
    assert metrics["forces_rmse"] > 0
    assert {path.name for path in Path("errors").iterdir()} >= {"metrics.json", "predictions.xyz"}
    single = trained.evaluate(frames[0]).metrics
    assert single["counts"]["structures"] == 1


REFERENCES = {name: f"ref_{name}" for name in ("energy", "forces", "stress")}


def test_save_and_load(trained: PhysicsMLModel, frames: list[Atoms]) -> None:
    trained.save("copy.ckpt")
    again = load_model("copy.ckpt")
    assert (again.config.model, again.config.datamodule) == (trained.config.model, trained.config.datamodule)
    assert again.about == trained.about == read_checkpoint("copy.ckpt")["about"]
    assert again.about["data"]["sources"]["train"]["structures"] == 9
    assert torch.equal(weights(again), weights(trained))
    assert replay("copy.ckpt", again.potential) < 1e-5
    assert read_checkpoint("copy.ckpt")["frames"]
    again.save("again.ckpt")
    assert load_model("again.ckpt").predict(frames[0])[0]["energy"] == pytest.approx(
        trained.predict(frames[0])[0]["energy"], abs=1e-5
    )


def test_runs_are_numbered_and_go_on_from_the_weights(frames: list[Atoms]) -> None:
    model = load_model(TINY).train(frames)
    first = weights(model)
    assert model.folder == Path("training")
    still = {"optimizer": {"name": "SGD", "config": {"lr": 1e-12}}, "ema": {"decay": 0.0}}
    model.train(frames, frames[:2], **still)
    assert model.folder == Path("training-2")
    assert (model.folder / "model.ckpt").is_file()
    torch.testing.assert_close(weights(model), first, rtol=0, atol=1e-6)
    assert model.about["data"]["sources"]["validation"]["structures"] == 2
    with pytest.raises(InputError, match=r"cut_off: 4\.0"):
        model.train(frames, datamodule={"cut_off": 4.0})
    chosen = {"trainer": {"default_root_dir": "mine", "max_epochs": 1}}
    assert load_model(TINY).train(frames, **chosen).folder == Path("mine")
    assert load_model(TINY).train(frames, **chosen).folder == Path("mine-2")


def test_data_by_name_and_from_the_config(frames: list[Atoms]) -> None:
    ase.io.write("a.xyz", frames[:6])
    model = load_model(TINY).train({"file": "a.xyz", "list": frames[6:]}, "a.xyz@:2", frames[:1])
    assert set(model.about["data"]["sources"]) == {"train/file", "train/list", "validation", "test"}
    assert model.about["test_errors"]
    named = {"datamodule": {"train_data": "a.xyz", "validation_data": "a.xyz@:1"}}
    assert load_model(TINY).train(**named).about["data"]["sources"]["validation"]["structures"] == 1
    with pytest.raises(InputError, match="no such file"):
        model.train("nosuch.xyz")


def test_continue_from_a_training_checkpoint(frames: list[Atoms]) -> None:
    settings = {"trainer": {"max_epochs": 2, "callbacks": [{"name": "ModelCheckpoint", "config": SAVING}]}}
    whole = load_model(TINY).train(frames, frames[:2], **settings)
    (checkpoint,) = whole.folder.rglob("epoch=0*.ckpt")
    model = load_model(TINY).train(frames, frames[:2], ckpt_path=checkpoint, trainer={"max_epochs": 2})
    assert model.folder == Path("training-2")
    torch.testing.assert_close(weights(model), weights(whole), rtol=0, atol=1e-6)
    assert load_model(checkpoint).config.datamodule.cut_off == 3.5
    with pytest.raises(InputError, match=r"model.ckpt: is no training checkpoint"):
        model.train(frames, ckpt_path=whole.folder / "model.ckpt")


SAVING = {"save_top_k": -1, "filename": "{epoch}"}
