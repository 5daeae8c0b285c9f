"""Training on a GPU: skipped where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs_for_tests import checkpoint, differences, frames, settings, write_frames
from test_contract import SMALL

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.config import MODELS, to_plain, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.train.run import Data, Result, resume, start
from physicsml_ase.train.settings import RunConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LEARNING = [name for name in sorted(MODELS) if name not in ("lj", "zbl")]


def config(name: str = "gaunt_ace", accelerator: str = "gpu", **sections: Any) -> RunConfig:
    """The config of a short run."""
    data = settings({"trainer": {"accelerator": accelerator, "max_epochs": 4}}, sections)
    return validate(RunConfig, to_plain(data) | {"model": {"name": name, **SMALL.get(name, {})}})


def run(root: Path, *args: Any, **sections: Any) -> Result:
    return start(config(*args, **sections), Data(frames(24), frames(8, 1)), root)


@pytest.mark.parametrize("name", LEARNING)
def test_every_architecture_learns_as_on_a_cpu(name: str, tmp_path: Path) -> None:
    """In float64 the same steps; the model that is left serves a machine without a GPU."""
    double = {"precision": 64}
    on_gpu = run(tmp_path / "gpu", name, trainer=double)
    on_cpu = run(tmp_path / "cpu", name, "cpu", trainer=double)
    assert on_gpu.best["score"] == pytest.approx(on_cpu.best["score"], rel=1e-6)
    results = []
    for result, device in ((on_gpu, "cpu"), (on_gpu, "cuda"), (on_cpu, "cpu")):
        atoms = frames(1, 5)[0]
        atoms.calc = PhysicsMLCalculator(result.folder.model, device=device)
        results.append(atoms.get_forces())
        assert np.isfinite(atoms.calc.results["extrapolation"]).all()
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)
    np.testing.assert_allclose(results[0], results[2], atol=1e-4)


@pytest.mark.parametrize("precision", [32, "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("pre_batch", [None, "in_memory", "on_disk"])
def test_data_and_precisions(pre_batch: str | None, precision: str | int, tmp_path: Path) -> None:
    data: dict[str, Any] = {"pre_batch": pre_batch, "num_workers": 2}
    if pre_batch == "on_disk":
        data["cache_dir"] = str(tmp_path / "cache")
    first, last = (
        run(tmp_path / str(epochs), trainer={"precision": precision, "max_epochs": epochs}, datamodule=data)
        for epochs in (1, 12)
    )
    assert last.best["score"] < first.best["score"]


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    """The state of optimizer, average and random numbers comes back to the GPU."""
    write_frames(tmp_path / "frames.xyz")
    whole = start(config(), Data(str(tmp_path / "frames.xyz")), tmp_path / "a")
    stop = [{"name": "SignalBefore", "config": {"batch": 8, "signum": 15}}]
    broken = config(trainer={"callbacks": stop})
    stopped = start(broken, Data(str(tmp_path / "frames.xyz")), tmp_path / "b")
    assert stopped.interrupted
    ended = resume(tmp_path / "b")
    assert ended.best["score"] == pytest.approx(whole.best["score"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaunt_ace", "painn", "nequip", "mace", "tensor_net"])
def test_compiled(name: str, tmp_path: Path) -> None:
    plain, compiled = (
        run(tmp_path / str(k), name, trainer={"precision": 64}, compile=k) for k in (False, True)
    )
    assert compiled.best["score"] == pytest.approx(plain.best["score"], rel=1e-6)


def test_the_kernel_is_for_cpus(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the kernel is for CPUs"):
        run(tmp_path / "run", compile="kernel")
    assert run(tmp_path / "auto", compile="auto").folder.model.exists()


def test_the_same_seed_is_the_same_run(tmp_path: Path) -> None:
    a, b = (run(tmp_path / k, trainer={"deterministic": True}) for k in "ab")
    kept = [checkpoint(result.folder.model)["state_dict"] for result in (a, b)]
    assert list(differences(*kept)) == []
