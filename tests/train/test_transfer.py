"""Starting from trained weights: at the errors they had, module by module, in stages."""

import csv
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_for_tests import KillBefore, Killed, checkpoint, differences, frames, settings, write_frames

from physicsml_ase.checkpoint import load_potential
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.models.gaunt_ace import GauntACEConfig
from physicsml_ase.potential import Potential
from physicsml_ase.train import fit, pace
from physicsml_ase.train.run import Data, _absolute, resume, start
from physicsml_ase.train.settings import RunConfig
from physicsml_ase.train.transfer import adopt


def painn(*overrides: Mapping[str, Any]) -> RunConfig:
    """The config of a small run, of an architecture whose modules these tests know."""
    return settings({"model": {"name": "painn"}}, *overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 24 molecules."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return start(painn({"trainer": {"max_epochs": 10}}), Data(frames()), folder).folder.model


def from_(ckpt: Path, **transfer: Any) -> dict[str, Any]:
    return {"transfer_learning": {"ckpt": str(ckpt), **transfer}}


def errors_of(ckpt: Path, seed: int) -> dict[str, float]:
    from physicsml_ase import load_model

    metrics = load_model(ckpt).evaluate(frames(10, seed)).metrics
    return {name: metrics[name] for name in ("energy_per_atom_rmse", "forces_rmse")}


STILL = {"optimizer": {"name": "SGD", "config": {"lr": 1e-30}}, "ema": {"decay": 0}}


def test_fine_tuning_begins_at_the_errors_of_the_trained_model(tmp_path: Path, trained: Path) -> None:
    config = painn(STILL, from_(trained), {"trainer": {"max_epochs": 1}})
    # other molecules, whose own reference energies, scale and neighbours are others
    result = start(config, Data(frames(15, 3)[5:], frames(10, 2)), tmp_path / "run")
    before = checkpoint(trained)
    assert result.potential.domain.energy_scale == before["domain"]["energy_scale"]
    assert result.potential.domain.avg_num_neighbors == before["domain"]["avg_num_neighbors"]
    assert errors_of(result.folder.model, 2) == pytest.approx(errors_of(trained, 2), rel=1e-4)
    assert all(torch.equal(v, result.potential.state_dict()[k]) for k, v in before["state_dict"].items())


def test_other_reference_energies(tmp_path: Path, trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    shifted = frames(12, 3)
    for atoms in shifted:
        atoms.calc.results["energy"] += 100.0 * len(atoms)
    config = painn(STILL, from_(trained), {"trainer": {"max_epochs": 1}})
    kept = start(config, Data(shifted), tmp_path / "a")
    assert "of another level of theory, set reference_energies=least_squares" in caplog.text
    fitted = start(
        painn({"reference_energies": "least_squares"}, STILL, from_(trained)),
        Data(shifted),
        tmp_path / "b",
    )
    assert kept.best["errors"]["energy/rmse"] > 9e4
    assert fitted.best["errors"]["energy/rmse"] < 3e3


def test_modules_to_match(tmp_path: Path, trained: Path) -> None:
    config = painn(STILL, from_(trained, modules_to_match={"model.embed": "model.embed"}))
    result = start(config, Data(frames()), tmp_path / "run")
    before, now = checkpoint(trained)["state_dict"], result.potential.state_dict()
    same = {k for k in now if torch.equal(before[k], now[k]) and before[k].abs().sum() > 0}
    assert same
    assert all(k.startswith("model.embed") for k in same)


def test_a_stage_of_so_many_steps(tmp_path: Path, trained: Path) -> None:
    """Is not over after an epoch, where nobody has named a number of epochs."""
    stages = from_(trained, stages=[{"trainer": {"max_steps": 13}}])
    start(painn(stages, {"trainer": {"max_epochs": 1}}), Data(frames()), tmp_path / "run")
    with (tmp_path / "run/metrics.csv").open(newline="") as file:
        assert max(int(row["step"]) for row in csv.DictReader(file)) >= 12


def test_a_new_element_is_told() -> None:
    """It is why the tables of a model that has rows for its elements have other shapes."""
    one, two = (
        Potential(GauntACEConfig(channels=8), Domain(cutoff=4.0, elements=z, avg_num_neighbors=5.0), ())
        for z in ((29,), (8, 29))
    )
    with pytest.raises(InputError, match="the data have O, which the pre-trained model does not know; "):
        adopt(two, one)
    with pytest.raises(InputError, match=r"transfer_learning: [0-9]* weights do not match"):
        adopt(one, two)


def test_what_does_not_match_is_named(tmp_path: Path, trained: Path) -> None:
    def refused(*overrides: dict[str, Any]) -> str:
        with pytest.raises(InputError) as error:
            start(painn(*overrides), Data(frames()), tmp_path / "refused")
        assert "\n" not in str(error.value)
        return str(error.value)

    twelve, named = {"model": {"channels": 12}}, from_(trained, modules_to_match={"model": "model"})
    assert "shapes differ, (12" in refused(named, twelve)
    assert "of another model: give model.channels=8 too" in refused(from_(trained), twelve)
    assert "modules_to_match: 'model.embd': " in refused(
        from_(trained, modules_to_match={"model.embd": "model"})
    )
    assert "freeze_modules: 'model.messages.3'" in refused(
        from_(trained, stages=[{"freeze_modules": ["model.messages.3"]}])
    )
    assert "datamodule.cut_off: 4.0: the pre-trained model has 3.0" in refused(
        from_(trained), {"datamodule": {"cut_off": 4.0}}
    )
    assert "no such checkpoint" in refused(from_(tmp_path / "nowhere.ckpt"))
    assert "every weight is frozen" in refused(from_(trained, stages=[{"freeze_modules": [""]}]))
    wrong = refused(from_(trained, stages=[{}, {"trainer": {"max_epoch": 3}}]))
    assert "transfer_learning.stages.1.trainer" in wrong
    assert "max_epochs" in wrong


def test_weights_that_fit_a_model_to_which_they_mean_something_else(tmp_path: Path) -> None:
    deep = {"model": {"name": "gaunt_ace", "layers": 3, "channels": 4, "max_ell": 1}}
    ckpt = start(settings(deep, {"trainer": {"max_epochs": 1}}), Data(frames()), tmp_path / "a").folder.model
    for change in ({"layers": 2}, {"layers": 3, "radial_scale": 1.0}):
        with pytest.raises(InputError, match=r"another model: give model\.(layers=3|radial_scale=2\.0) too"):
            start(settings(deep, {"model": change}, from_(ckpt)), Data(frames()), tmp_path / "b")
    other = {"model": {"num_radial": 5, "element_channels": 2}}
    named = r"of another model: give model\.num_radial=4 model\.element_channels=null too"
    with pytest.raises(InputError, match=named):
        start(settings(deep, other, from_(ckpt)), Data(frames()), tmp_path / "b")
    still = (STILL, {"model": {"smoothness": 0.5}, "trainer": {"max_epochs": 1}})
    result = start(settings(deep, *still, from_(ckpt)), Data(frames()), tmp_path / "c")
    before = checkpoint(ckpt)["state_dict"]
    assert all(torch.equal(v, result.potential.state_dict()[k]) for k, v in before.items())


def test_what_was_fine_tuned_learns_on_from_its_own_weights(tmp_path: Path, trained: Path) -> None:
    from physicsml_ase import load_model

    ckpt = tmp_path / "gone.ckpt"
    shutil.copy(trained, ckpt)
    config = painn(from_(ckpt), {"trainer": {"max_epochs": 3}})
    tuned = start(config, Data(frames(15, 3)), tmp_path / "tuned").folder.model
    ckpt.unlink()
    model = load_model(tuned, ["ema.decay=0"])
    where = {"max_epochs": 1, "default_root_dir": str(tmp_path / "on")}
    for _ in range(2):  # the second time from what the first made
        model.train(frames(), optimizer=STILL["optimizer"], trainer=where)
        now, then = model.potential.state_dict(), checkpoint(tuned)["state_dict"]
        assert all(torch.allclose(now[k], v, rtol=0, atol=1e-6) for k, v in then.items())


STAGES: list[dict[str, Any]] = [
    {"freeze_modules": ["model"], "trainer": {"max_epochs": 2}},
    {
        "trainer": {"max_epochs": 3},
        "datamodule": {"train": {"batch_size": 2}},
        "optimizer": {"name": "Adam", "config": {"lr": 1e-3}},
        "scheduler": {"name": "StepLR", "config": {"step_size": 1}},
    },
]


def test_one_stage_is_a_plain_run(tmp_path: Path, trained: Path) -> None:
    result = start(painn(from_(trained, stages=STAGES[:1])), Data(frames()), tmp_path / "run")
    assert not (tmp_path / "run/stage-1").exists()
    assert result.best["step"] <= 10
    before, now = checkpoint(trained)["state_dict"], checkpoint(result.folder.model)["state_dict"]
    changed = {k.split(".")[0] for k in now if not torch.equal(before[k], now[k])}
    assert changed == {"energy_head"}


def test_stages(tmp_path: Path, trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "physicsml_ase")
    result = start(painn(from_(trained, stages=STAGES)), Data(frames()), tmp_path / "run")
    assert "stage 2 of 2" in caplog.text
    one, two = (tmp_path / "run" / f"stage-{k}" for k in (1, 2))
    before, first, last = (
        checkpoint(p)["state_dict"] for p in (trained, one / "model.ckpt", two / "model.ckpt")
    )
    assert {k.split(".")[0] for k in first if not torch.equal(before[k], first[k])} == {"energy_head"}
    assert any(not torch.equal(first[k], last[k]) for k in first if k.startswith("model"))
    deployed = load_potential(tmp_path / "run/model.ckpt").state_dict()
    assert all(torch.equal(deployed[k], last[k]) for k in last)
    assert result.folder.root == tmp_path / "run"
    assert result.folder.read_record()["status"] == "finished"
    config = (two / "config.yaml").read_text()
    assert "batch_size: 2" in config
    assert "name: Adam\n" in config


def test_paths_of_stages_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    batches = {"train": {"batch_size": 2}, "cut_off": 3.0}
    stages = [{"datamodule": {"train_data": "more.xyz", **batches}}]
    config = painn(from_(Path("a.ckpt"), stages=stages))
    made = _absolute(config.transfer_learning)
    assert made.ckpt == str(tmp_path / "a.ckpt")
    assert made.stages[0].datamodule == {"train_data": str(tmp_path / "more.xyz"), **batches}


def test_stages_are_continued_where_they_stopped(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "SAVE_EVERY_SECONDS", 0.0)
    data = Data(write_frames(tmp_path / "frames.xyz"))
    config = painn(from_(trained, stages=STAGES))
    start(config, data, tmp_path / "a")
    began, kill = KillBefore.on_train_batch_start, KillBefore(15)  # the first stage has ten batches
    for place in ("b", "c"):
        with monkeypatch.context() as patched:
            patched.setattr(
                pace.TellProgress,
                "on_train_batch_start",
                lambda self, trainer, *rest: began(kill, trainer, *rest),
            )
            if place == "c":
                kill.batch = 3
            with pytest.raises(Killed):
                start(config, data, tmp_path / place)
        assert (tmp_path / place / "stage-2").exists() is (place == "b")
        resume(tmp_path / place)
        a, b = (checkpoint(tmp_path / run / "model.ckpt") for run in ("a", place))
        assert list(differences(a["state_dict"], b["state_dict"])) == []
