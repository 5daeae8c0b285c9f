"""Labels that nothing can be learned from: the training remembers them, and validation gets worse."""

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from runs_for_tests import frames, settings

from physicsml_ase.checkpoint import load_potential, read_checkpoint
from physicsml_ase.config import to_plain
from physicsml_ase.conventions import InputError
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.store import MemoryStore
from physicsml_ase.graph import Graph
from physicsml_ase.recipe import merge
from physicsml_ase.train import committee, fit
from physicsml_ase.train import plan as plan_module
from physicsml_ase.train.copies import COPIES, MOST_COPIES, as_stiff, copies_for, teach
from physicsml_ase.train.folder import RunFolder
from physicsml_ase.train.given import Data
from physicsml_ase.train.named import NamedConfig
from physicsml_ase.train.plan import FEWEST, MOST, Member, Plan, good, kinds_of, planned
from physicsml_ase.train.run import Result, resume, start
from physicsml_ase.train.settings import RunConfig

CONFIG: dict[str, Any] = {
    "on_overfitting": "distil",
    "model": {"channels": 16},
    "datamodule": {"train": {"batch_size": 8}, "validation_split": 16},
    "trainer": {"max_epochs": 150},
    "optimizer": {"name": "MuonAdam", "config": {"lr": 2e-2}},
}


def noise(seed: int, count: int = 16) -> list[Atoms]:
    """Molecules with EMT's energies, and its forces with noise."""
    rng, result = np.random.default_rng(100 + seed), []
    for atoms in frames(count, seed):
        forces = atoms.get_forces() + 1.0 * rng.normal(size=atoms.positions.shape)
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=forces)
        result.append(atoms)
    return result


DATA = Data(noise(0, 32), None, noise(2))
"""Split by the run's seed."""


def run(folder: Path, *overrides: dict[str, Any]) -> Result:
    config = CONFIG
    for override in overrides:
        config = merge(config, override)
    return start(settings(config), DATA, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "FEW_STEPS", 1)
        log = logging.getLogger("physicsml_ase")
        before = log.level
        log.setLevel(logging.INFO)  # which forgets what was not told before
        try:
            return run(tmp_path_factory.mktemp("whole") / "run")
        finally:
            log.setLevel(before)


def test_a_committee_and_its_student_follow(whole: Result) -> None:
    record, root = whole.folder.read_record(), whole.folder.root
    plan = Plan(*record["plan"])
    assert record["status"] == "finished"
    models = sorted(root.glob("member-*/model.ckpt"))
    assert FEWEST <= len(models) <= MOST + 3
    potentials = [load_potential(path) for path in models]
    weights = [torch.cat([p.flatten() for p in potential.parameters()]) for potential in potentials]
    assert all(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(weights, weights[1:]))
    kinds = [model for model, _ in kinds_of(whole.potential.config)]
    assert {str(potential.config) for potential in potentials} <= {str(kind) for kind in kinds}
    assert len({str(potential.config) for potential in potentials}) >= FEWEST
    assert plan.shortest <= plan.longest < plan.committee <= plan.student + 1
    assert not (root / "student/taught.pt").exists()
    student = RunFolder(root / "student").read_record()
    assert whole.best["score"] == min(record["alone"]["best"]["score"], student["best"]["score"])
    assert whole.best == record["best"]
    assert set(whole.test_errors) >= {"energy/rmse", "forces/rmse"}
    told = (root / "train.log").read_text()
    assert "validation of forces is worse than at step" in told
    assert told.count("committee: member") == len(models)
    assert "steps, channels=32, message_ell=2" in told
    assert told.count("labels found and learned") == told.count("best validation RMSE") == 1


def test_without_overfitting_nothing_follows(tmp_path: Path) -> None:
    config = merge(CONFIG, {"trainer": {"max_epochs": 5}})
    result = start(settings(config), Data(frames(12), frames(12, 1)), tmp_path / "run")
    assert "plan" not in result.folder.read_record()
    assert not list(tmp_path.glob("run/member-*"))


def test_asked_to_go_on(tmp_path: Path) -> None:
    result = run(tmp_path / "run", {"on_overfitting": "go_on", "trainer": {"max_epochs": 100}})
    assert "plan" not in result.folder.read_record()


COSTS = [1.0, 2.1, 1.2, 1.5, 1.2]


@pytest.mark.parametrize("costs", [[1.0], COSTS])
@pytest.mark.parametrize("run", [(1000, 2000, 0.2), (1000, 3000, 0.5), (3000, 4500, 0.25)])
@pytest.mark.parametrize("labelling", [0.0, 0.1])
def test_plans(run: tuple[int, int, float], costs: list[float], labelling: float) -> None:
    """What is spent is what is left."""
    best, step, progress = run
    plan = planned(best, step, progress, labelling, costs)
    assert plan is not None
    left = step / progress * (1 - progress) * (1 - labelling)
    assert plan.total == pytest.approx(left, abs=2)
    assert plan.student >= 0.45 * left
    assert best / 8 <= plan.shortest <= plan.longest <= best
    members = complete(plan, costs, lambda steps, kind: 1.0 + 0.01 * kind)
    assert 0.7 * plan.committee <= plan.spent(members, costs) <= plan.committee or len(members) >= MOST
    assert FEWEST <= len(members) <= MOST + 3


def complete(plan: Plan, costs: list[float], score: Callable[[int, int], float]) -> list[Member]:
    members: list[Member] = []
    while (member := plan.next_member(members, costs)) is not None:
        members.append(member._replace(score=score(member.steps, member.kind)))
    return members


def test_too_little_is_left() -> None:
    """Or the best validation came too late: the run goes on."""
    assert planned(1000, 2000, 0.2, 0.5) is None
    assert planned(9000, 9500, 0.95) is None
    assert planned(1, 5, 0.9) is None
    assert planned(1000, 2000, 0.3, epoch=500) is None  # members of two epochs
    assert planned(1000, 2000, 0.3, epoch=1) is not None
    assert planned(68_000, 79_000, 0.445, 0.02, COSTS, 263) is not None  # in half an hour of MAPbI3


@pytest.mark.parametrize(
    ("best", "tried"), [(1000, [1000, 2000]), (2000, [1000, 2000, 4000]), (20_000, [1000, 2000, 4000, 8000])]
)
def test_where_there_is_time_lengths_are_tried(best: int, tried: list[int]) -> None:
    plan = planned(8000, 10_000, 0.08, 0.0, COSTS)
    assert plan is not None
    assert (plan.shortest, plan.longest) == (1000, 8000)
    members = complete(plan, COSTS, lambda steps, kind: abs(math.log(steps / best)) + 1)
    climb = len(tried)
    assert [m.steps for m in members[:climb]] == tried
    assert {m.kind for m in members[:climb]} == {0}
    assert {m.steps for m in members[climb:]} == {min(best, 8000)}
    assert [m.kind for m in members[climb:]] == [1, 2, 3, 4, 0][: len(members) - climb]
    assert len(members) == climb + 5 or plan.spent(members, COSTS) > 0.6 * plan.committee


def test_who_teaches() -> None:
    assert good([2.0, 1.0, 1.19, 1.3, math.inf]) == [1, 2]
    assert good([2.0, 1.0, math.inf, 1.3]) == [1, 3]  # one that is much better than all others
    assert good([math.inf, 1.0]) == good([math.inf]) == good([]) == []


@pytest.mark.parametrize("costs", [[1.0], COSTS])
def test_lengths_are_tried_once_each(costs: list[float]) -> None:
    """Whatever the noise on scores: no length is climbed to twice, and the committee keeps to its steps."""
    plan = planned(8000, 10_000, 0.08, 0.0, costs)
    assert plan is not None
    for seed in range(50):
        rng = np.random.default_rng(seed)
        members = complete(plan, costs, lambda steps, kind, rng=rng: 1 + 0.03 * rng.normal())
        lengths = [m.steps for m in members]
        climb = lengths[: len(set(lengths))]
        assert climb == sorted(set(lengths))
        assert set(lengths[len(climb) :]) <= {min(members[: len(climb)], key=lambda m: m.score).steps}
        assert plan.spent(members, costs) <= plan.committee
        assert len(members) < MOST + len(climb)


def test_more_copies_where_there_is_time() -> None:
    assert copies_for(10, 1000) == copies_for(100, 1000) == COPIES
    assert copies_for(300, 1000) == 14
    assert copies_for(1e9, 1000) == MOST_COPIES
    assert copies_for(1e9, 2_000_000) == 10
    assert copies_for(1e9, 10**9) == COPIES


def test_a_committee_of_failures_comes_to_an_end() -> None:
    failed = complete(Plan(10, 10, 100, 100), COSTS, lambda steps, kind: math.inf)
    assert FEWEST <= len(failed) <= MOST


def test_what_is_taught(tmp_path: Path) -> None:
    """Structures near to the training data, with the mean of the teachers, strained where they are periodic."""
    crystals = []
    for k in range(4):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=k)
        rng = np.random.default_rng(k)
        forces = rng.normal(size=(4, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=float(k), forces=forces, stress=rng.normal(size=6))
        crystals.append(atoms)
    results = [
        start(settings({"seed": k, "datamodule": {"validation_split": 1}}), Data(crystals), tmp_path / str(k))
        for k in range(2)
    ]
    teachers = [result.potential for result in results]
    data = DataModule(settings({"datamodule": {"validation_split": 1}}).datamodule, train=crystals)
    data.resolve()
    paths = [result.folder.model for result in results]
    teach(data, paths, 0, tmp_path / "taught.pt")
    again = DataModule(settings({"datamodule": {"validation_split": 1}}).datamodule, train=crystals)
    teach(again, [], 0, tmp_path / "taught.pt")  # who continues reads what was kept
    same = again.train_dataloader().store.read(np.arange(15))
    assert len(data.resolve().stores["train"][""]) == 3
    loader = data.train_dataloader()
    store = loader.store
    torch.testing.assert_close(store.read(np.arange(15)).targets, same.targets, rtol=0, atol=0)
    assert len(store) == 3 * (1 + COPIES)
    volumes = set()
    for k in range(3, len(store)):
        graph = store.read(np.array([k]))
        original = store.read(np.array([(k - 3) // COPIES]))
        assert 0 < (graph.positions - original.positions).abs().max() < 1.0
        volumes.add(round(float(torch.linalg.det(graph.cell[0])), 6))
        outputs = [teacher(graph) for teacher in teachers]
        for name in ("energy", "forces", "stress"):
            mean = (outputs[0][name] + outputs[1][name]).double() / 2
            torch.testing.assert_close(graph.targets[name], mean, rtol=1e-4, atol=1e-4)
    assert len(volumes) == 3 * COPIES


@pytest.mark.parametrize(("spread", "moved"), [(0.03, 0.03), (0.06, 0.06), (0.3, 0.08), (0.002, 0.01)])
def test_copies_move_as_the_data_do(spread: float, moved: float) -> None:
    """In springs, forces change by as much as they are when atoms move by as much as they are away from rest."""
    rng = np.random.default_rng(0)
    rest = np.array([[0.0, 0, 0], [1.5, 0, 0]])
    frames = [Atoms("CO", rest + spread * rng.normal(size=(2, 3))) for _ in range(60)]
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((2, 3)))
    data = DataModule(settings({}).datamodule, train=frames)
    (store,) = data.resolve().stores["train"].values()
    assert isinstance(store, MemoryStore)
    for stiffness in (0.1, 40.0):

        def springs(graph: Graph, stiffness: float = stiffness) -> dict[str, torch.Tensor]:
            return {"forces": -stiffness * (graph.positions - torch.from_numpy(rest))}

        found = as_stiff(store, data.domain, springs, torch.device("cpu"), rng)
        assert found == pytest.approx(moved, rel=0.25)


Fit = Callable[[RunConfig, Data, RunFolder, fit.Start], Result]


def changed(part: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first session of a part have another trainer."""
    plain: Fit = fit.fit

    def other(config: RunConfig, data: Data, folder: RunFolder, begin: fit.Start) -> Result:
        if folder.root.name == part and not folder.last.exists():
            config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **change))
        return plain(config, data, folder, begin)

    monkeypatch.setattr(committee, "fit", other)
    monkeypatch.setattr(plan_module, "FEW_STEPS", 1)


@pytest.mark.parametrize("part", ["member-2", pytest.param("student", marks=pytest.mark.slow)])
def test_a_stopped_part_is_continued(
    tmp_path: Path, whole: Result, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = NamedConfig(name="SignalBefore", config={"batch": 5, "signum": int(signal.SIGTERM)})
    changed(part, {"callbacks": [stop]}, monkeypatch)
    first = run(tmp_path / "run")
    assert first.interrupted == signal.SIGTERM
    assert first.folder.read_record()["status"] == "interrupted"
    assert load_potential(tmp_path / "run/model.ckpt")
    with pytest.raises(InputError, match="the train data changed"):
        resume(tmp_path / "run", data=DATA._replace(train=noise(3, 32)))
    config = tmp_path / "run" / part / "config.yaml"
    config.write_text(config.read_text().replace("batch: 5", "batch: 1000000"))
    again = resume(tmp_path / "run", data=DATA)
    record = again.folder.read_record()
    assert record["status"] == "finished"
    assert record["best"] == whole.folder.read_record()["best"]


@pytest.mark.slow
def test_a_limit_in_time_holds_over_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a student that was stopped goes on where it was."""
    stop = NamedConfig(name="SignalBefore", config={"batch": 5, "signum": int(signal.SIGTERM)})
    changed("student", {"callbacks": [stop]}, monkeypatch)
    limit = {"trainer": {"max_time": "20s", "max_epochs": 100_000}}
    began = time.monotonic()
    first = run(tmp_path / "run", limit)
    assert first.interrupted == signal.SIGTERM
    config = tmp_path / "run/student/config.yaml"
    config.write_text(config.read_text().replace("batch: 5", "batch: 1000000"))
    resume(tmp_path / "run", data=DATA)
    assert time.monotonic() - began < 32
    rows = (tmp_path / "run/student/metrics.csv").read_text().splitlines()
    assert len(rows) > 10


@pytest.mark.parametrize("last", [1, 2])
def test_members_that_fail_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Nobody is taught by one alone."""
    plain: Fit = fit.fit

    def failing(config: RunConfig, data: Data, folder: RunFolder, begin: fit.Start) -> Result:
        if begin.member > last:
            raise InputError("the loss became nan")
        return plain(config, data, folder, begin)

    monkeypatch.setattr(committee, "fit", failing)
    monkeypatch.setattr(plan_module, "FEW_STEPS", 1)
    result = run(tmp_path / "run")
    record = result.folder.read_record()
    assert record["status"] == "finished"
    assert (tmp_path / "run/student/model.ckpt").exists() == (last == 2)
    assert record["best"]["score"] <= record["alone"]["best"]["score"]
    assert load_potential(result.folder.model)


def test_a_member_that_no_validation_took_does_not_teach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Fit = fit.fit

    def without_a_best(config: RunConfig, data: Data, folder: RunFolder, begin: fit.Start) -> Result:
        result = plain(config, data, folder, begin)
        return result._replace(best={}) if begin.member == 1 else result

    monkeypatch.setattr(committee, "fit", without_a_best)
    monkeypatch.setattr(plan_module, "FEW_STEPS", 1)
    record = run(tmp_path / "run").folder.read_record()
    assert record["status"] == "finished"
    assert record["members"][0][2] == math.inf
    assert 1 not in record["teachers"]
    assert len(record["teachers"]) >= 2


def test_a_run_of_an_earlier_version_ends_with_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop = NamedConfig(name="SignalBefore", config={"batch": 5, "signum": int(signal.SIGTERM)})
    changed("member-1", {"callbacks": [stop]}, monkeypatch)
    first = run(tmp_path / "run")
    assert first.interrupted
    first.folder.write_record(plan=[4, 20, 100])
    again = resume(tmp_path / "run", data=DATA)
    record = again.folder.read_record()
    assert record["status"] == "finished"
    assert again.best == record["alone"]["best"]
    assert "begun by an earlier version" in caplog.text


def test_given_weights_are_trained_on(tmp_path: Path, whole: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """A committee would begin from nothing, and lose them."""
    monkeypatch.setattr(plan_module, "FEW_STEPS", 1)
    config = settings(CONFIG, {"trainer": {"max_epochs": 60}})
    tuned = start(config, DATA, tmp_path / "run", potential=whole.potential)
    assert "plan" not in tuned.folder.read_record()
    assert tuned.folder.read_record()["continues"]


def test_members_are_as_their_schedules_end(whole: Result) -> None:
    for root in whole.folder.root.glob("member-*"):
        member = RunFolder(root)
        best, rows = member.read_record()["best"], (root / "metrics.csv").read_text().splitlines()
        steps = [int(row.split(",")[rows[0].split(",").index("step")]) for row in rows[1:]]
        assert best["step"] >= max(steps)


def test_members_tell_of_their_own_models(whole: Result) -> None:
    for path in whole.folder.root.glob("member-*/model.ckpt"):
        saved = read_checkpoint(path)
        assert saved["about"]["config"]["model"] == to_plain(load_potential(path).config)


def test_what_a_student_tells_of_is_the_run(whole: Result) -> None:
    for path in (whole.folder.root / "student/model.ckpt", whole.folder.model):
        about = read_checkpoint(path)["about"]["config"]
        assert about["trainer"]["max_epochs"] == CONFIG["trainer"]["max_epochs"]
        assert about["trainer"]["max_steps"] == -1
        assert about["on_overfitting"] == "distil"
