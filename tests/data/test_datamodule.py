"""The DataModule: what it finds in data, what it refuses, and that Lightning continues it in mid-epoch."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from frames_for_tests import LABELS, assert_same, molecules, numbers_in, with_labels
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.loader import GraphLoader
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.graph import Graph

SET = {"batch_size": 4}


def configured(**settings: Any) -> DataModuleConfig:
    defaults = {"train": SET, "validation": SET, "test": SET, "predict": SET, "cut_off": 4.0}
    return validate(DataModuleConfig, defaults | settings)


def module(frames: Any, settings: dict[str, Any] | None = None, **given: Any) -> DataModule:
    return DataModule(configured(**(settings or {})), frames, **given)


def names(data: DataModule) -> list[tuple[str, str]]:
    return [(label.name, label.key) for label in data.labels]


def renamed(frames: list[Atoms], energy: str, forces: str) -> list[Atoms]:
    """The labels moved from the calculator into info and arrays, under other names."""
    moved = []
    for atoms in frames:
        copy = atoms.copy()
        copy.info[energy] = atoms.calc.results["energy"]
        copy.arrays[forces] = atoms.calc.results["forces"]
        moved.append(copy)
    return moved


# --- labels


def test_labels_are_found_without_being_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "physicsml_ase")
    assert names(module(molecules(12))) == [("energy", "energy"), ("forces", "forces")]
    assert "labels found and learned: energy, forces" in caplog.text


@pytest.mark.parametrize(
    "slots",
    [
        {},
        {"y_graph_scalars": ["energy"], "y_node_vector": "forces"},
        {"y_graph_scalars": ["REF_energy"], "y_graph_vector": "REF_forces"},
    ],
)
def test_labels_under_the_user_s_keys(slots: dict[str, Any]) -> None:
    frames = renamed(molecules(12), "REF_energy", "REF_forces")
    keys = {"energy": "REF_energy", "forces": "REF_forces"}
    data = module(frames, {"label_keys": keys, "validation_split": 0} | slots)
    assert dict(names(data)) == keys
    assert data.labels[1][1:3] == ("atom", (3,))
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch.targets) == ["energy", "forces"]
    assert not batch.targets["forces"].isnan().any()


def test_unfound_labels_list_what_was_found_and_how_to_name_it() -> None:
    frames = renamed(molecules(12), "REF_energy", "REF_forces")
    with pytest.raises(InputError, match=r"REF_energy.*REF_forces.*label_keys=\{energy: REF_energy"):
        _ = module(frames).labels
    with pytest.raises(InputError, match=r"no dipole in .* found .*energy"):
        _ = module(molecules(12), {"y_graph_vector": "dipole"}).labels
    for atoms in frames:
        atoms.info["REF_stress"] = np.zeros(6)
    with pytest.raises(InputError, match=r"\{energy: REF_energy, forces: REF_forces, stress: REF_stress\}'"):
        _ = module(frames).labels


def test_one_label_of_another_name(caplog: pytest.LogCaptureFixture) -> None:
    frames = molecules(6)
    for k, atoms in enumerate(frames):
        atoms.arrays["DFT_forces"] = atoms.calc.results.pop("forces")
        if k:  # not of the first that has other names
            atoms.info["REF_stress"] = np.zeros(6)
    assert names(module(frames)) == [("energy", "energy")]
    assert "structure 0 has other keys (forces: DFT_forces), which are not used" in caplog.text
    assert "structure 1 has other keys (stress: REF_stress), which are not used" in caplog.text
    assert "the training data have no forces but DFT_forces: only energies" in caplog.text
    assert "--fix" not in caplog.text
    mixed = [*molecules(3), *renamed(molecules(3), "REF_energy", "REF_forces")]
    assert names(module(mixed)) == [("energy", "energy"), ("forces", "forces")]
    assert "(energy: REF_energy, forces: REF_forces), which are not used, as others have" in caplog.text
    assert "'physicsml-ase check FILE --fix OUT.xyz' writes all under ours" in caplog.text


@pytest.mark.parametrize(
    ("energy", "forces", "slots", "said"),
    [
        (
            "REF_energy",
            "REF_forces",
            {"y_graph_scalars": ["REF_energy"], "y_node_vector": "REF_forces"},
            "y_graph_scalars: REF_energy looks like the total energy, y_node_vector: REF_forces looks like the "
            "forces; say so with label_keys={energy: REF_energy, forces: REF_forces} and "
            "y_graph_scalars: [energy], y_node_vector: forces, or",
        ),
        (
            "dft_energy",
            "forces",
            {"y_graph_scalars": ["dft_energy"], "y_graph_vector": "forces"},
            "label_keys={energy: dft_energy} and y_graph_scalars: [energy], or",
        ),
        ("U0", "forces", {"y_graph_scalars": ["U0"]}, "label_keys={energy: U0}"),
        ("E", "F", {"y_graph_scalars": ["E"], "y_graph_vector": "F"}, "label_keys={energy: E, forces: F}"),
        (
            "Energy",
            "f",
            {"y_graph_scalars": ["Energy"]},
            "or that it is another quantity with label_keys={Energy: E",
        ),
    ],
)
def test_a_label_that_looks_like_energy_or_forces_must_be_said_to_be(
    energy: str, forces: str, slots: dict[str, Any], said: str
) -> None:
    frames = renamed(molecules(12), energy, forces)
    with pytest.raises(InputError) as raised:
        _ = module(frames, slots).labels
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_matrix_that_looks_like_stress_must_be_said_to_be() -> None:
    frames = molecules(12)
    for atoms in frames:
        atoms.info["dft_stress"] = np.eye(3)
    slots = {"y_graph_scalars": ["energy"], "y_graph_tensor": "dft_stress"}
    with pytest.raises(InputError, match=r"label_keys=\{stress: dft_stress\} and y_graph_tensor: stress"):
        _ = module(frames, slots).labels


@pytest.mark.parametrize(("skew", "told"), [(0.5, True), (0.005, False)])
def test_matrices_that_are_not_symmetric_are_told(
    skew: float, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    frames = molecules(10)
    for k, atoms in enumerate(frames):
        atoms.info["alpha"] = np.eye(3) + (k == 9) * skew * np.eye(3, k=1)
    assert names(module(frames, {"y_graph_tensor": "alpha"})) == [("alpha", "alpha")]
    line = f"structure 9: alpha is not symmetric (by {skew / 2:.3g} of 1): only its symmetric part can be learned"
    assert (line in caplog.text) is told


@pytest.mark.parametrize(
    ("slots", "learned"),
    [
        ({"y_graph_scalars": ["ads_energy"], "label_keys": {"ads_energy": "ads_energy"}}, ["ads_energy"]),
        ({"y_graph_scalars": ["energy", "ads_energy"]}, ["energy", "ads_energy"]),
        ({"y_graph_scalars": ["ads_energy", "rel_energy"]}, ["ads_energy", "rel_energy"]),
        ({"y_graph_scalars": ["lumo_energy"]}, ["lumo_energy"]),
        ({"y_graph_scalars": ["E"], "without_forces": True}, ["E"]),
    ],
)
def test_other_quantities_are_learned_and_said_how(
    slots: dict[str, Any], learned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "physicsml_ase")
    frames = molecules(12)
    without_forces = slots.get("without_forces", False)
    for atoms in frames:
        atoms.info |= {"ads_energy": 1.0, "rel_energy": 2.0, "lumo_energy": 3.0, "E": 4.0}
        if without_forces:
            del atoms.calc.results["forces"]
    given = {key: value for key, value in slots.items() if key != "without_forces"}
    assert [name for name, _ in names(module(frames, given))] == learned
    assert f"label {learned[-1]}: learned as the mean over atoms" in caplog.text
    assert f"heads.{learned[-1]}.pool=sum" in caplog.text


def test_a_label_in_the_wrong_slot_is_told_the_right_one() -> None:
    with pytest.raises(InputError, match=r"y_graph_scalars: forces belongs in y_node_vector"):
        _ = module(molecules(12), {"y_graph_scalars": ["energy", "forces"]}).labels


def test_an_unknown_vector_of_every_atom_is_seen_to_be_one() -> None:
    frames = molecules(12)
    for atoms in frames:
        atoms.arrays["field"] = np.ones((len(atoms), 3))
        atoms.info["axis"] = np.ones(3)
    assert module(frames, {"y_graph_vector": "field"}).labels == (Label("field", "atom", (3,), "field"),)
    assert module(frames, {"y_graph_vector": "axis"}).labels == (Label("axis", "structure", (3,), "axis"),)
    alone = Atoms("H")
    alone.arrays["field"], alone.info["axis"] = np.ones((1, 3)), np.ones(3)
    for given in ([alone, *frames], [*frames, alone]):
        assert [x.level for x in module(given, {"y_graph_vector": "field"}).labels] == ["atom"]
        assert [x.level for x in module(given, {"y_graph_vector": "axis"}).labels] == ["structure"]


def test_virials_and_unknown_names_are_not_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    frames = molecules(12)
    for atoms in frames:
        atoms.info["dft_virial"] = np.eye(3)
    _ = module(frames).labels
    assert "dft_virial, which is not used: write stress = -virial / volume" in caplog.text
    with pytest.raises(InputError, match="label_keys: 'force' is no label; did you mean 'forces'"):
        _ = module(frames, {"label_keys": {"force": "forces"}}).labels


def test_batches_to_overfit_are_the_same_in_every_epoch() -> None:
    data = module(molecules(12), {"train": {"batch_size": 3}})
    for overfit, same in ((0, False), (2, True)):
        data.trainer = SimpleNamespace(overfit_batches=overfit)
        loader = data.train_dataloader()
        first = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            first.append(next(iter(loader)).positions)
        alike = first[0].shape == first[1].shape and bool((first[0] == first[1]).all())
        assert alike == same


def test_a_label_of_few_frames_is_looked_for_in_all_of_them() -> None:
    frames = molecules(300)
    frames[123].info["gap"] = 1.0
    assert ("gap", "gap") in names(module(frames, {"y_graph_scalars": ["energy", "gap"]}))


def test_a_default_label_of_few_frames_is_found_as_well(caplog: pytest.LogCaptureFixture) -> None:
    frames = molecules(300)
    for atoms in frames[:123] + frames[124:]:
        del atoms.calc.results["forces"]
    assert names(module(frames)) == [("energy", "energy"), ("forces", "forces")]
    assert "have no forces" not in caplog.text


def test_a_search_that_did_not_see_every_frame_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "physicsml_ase")
    monkeypatch.setattr("physicsml_ase.data.labels.SEARCHED", 100)
    assert len(names(module(molecules(300)))) == 2
    assert "other labels were looked for in 100 frames of each source only" in caplog.text


def test_the_same_label_twice_and_not_alike(caplog: pytest.LogCaptureFixture) -> None:
    frames = molecules(6)
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.calc.results["energy"]
        atoms.arrays["REF_forces"] = atoms.calc.results["forces"]
    module(frames).resolve()
    assert "other values" not in caplog.text
    frames[4].info["REF_energy"] += 0.5
    assert names(module(frames)) == [("energy", "energy"), ("forces", "forces")]
    words = (
        "structure 4 has other values in energy and REF_energy: the first of each is learned; label_keys={"
    )
    assert words in caplog.text


def test_free_energies_are_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    frames = [with_labels(a, forces=a.calc.results["forces"], free_energy=-1.0) for a in molecules(6)]
    module(frames).resolve()
    assert "no energies are learned" in caplog.text
    assert "label_keys={energy: free_energy} learns those" in caplog.text
    assert "energy" in [name for name, _ in names(module(frames, {"label_keys": {"energy": "free_energy"}}))]


def test_forces_alone_are_learned_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    frames = molecules(12)
    for atoms in frames:
        del atoms.calc.results["energy"]
    assert names(module(frames)) == [("forces", "forces")]
    assert "up to an unknown offset" in caplog.text


# --- sets


def test_validation_is_split_off_and_the_record_says_how() -> None:
    data = module(molecules(40), {"test_split": 5})
    summary = data.summary
    assert {k: v["used"] for k, v in summary["sources"].items()} == {"train": 31, "validation": 4, "test": 5}
    sides = summary["split"][""]
    assert sorted(sides["train"] + sides["validation"] + sides["test"]) == list(range(40))
    assert summary["labels"]["train"] == {"energy": 31, "forces": 31}
    assert data.has_validation
    assert data.has_test
    assert module(molecules(40), {"test_split": 5}).summary == summary
    assert module(molecules(40), {"test_split": 5}, seed=1).summary["split"] != summary["split"]


def test_groups_stay_together() -> None:
    frames = molecules(40)
    for k, atoms in enumerate(frames):
        atoms.info["config_type"] = f"run {k // 5}"
    sides = module(frames, {"split_by": "config_type"}).summary["split"][""]
    assert len({k // 5 for k in sides["train"]} & {k // 5 for k in sides["validation"]}) == 0


@pytest.mark.parametrize("pbc", [False, True])
def test_rare_elements_and_isolated_atoms_stay_in_training(pbc: bool) -> None:
    alone = Atoms("O", cell=[12.0] * 3, pbc=pbc)  # in a box, as a code of plane waves has it
    frames = molecules(12) + [with_labels(alone, energy=-1.0) for _ in range(12)]
    frames.append(with_labels(Atoms("HF", [[0, 0, 0], [0, 0, 1]]), energy=-2.0))
    for seed in range(5):
        data = module(frames, {"validation_split": 0.5}, seed=seed)
        validation = data.summary["split"][""]["validation"]
        assert set(validation) <= set(range(12))
        assert 9 in data.domain.elements


def test_one_frame_trains_without_validation(caplog: pytest.LogCaptureFixture) -> None:
    data = module(molecules(1))
    assert not data.has_validation
    assert data.val_dataloader() == []
    assert len(list(data.train_dataloader())) == 1
    assert "no validation" in caplog.text


def test_partly_labelled_frames_are_all_used_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    frames = molecules(24)
    for atoms in frames[1::3]:
        del atoms.calc.results["energy"]
    caplog.set_level(logging.INFO, "physicsml_ase")
    data = module(frames, validation=molecules(4))
    assert data.summary["labels"]["train"] == {"energy": 16, "forces": 24}
    assert "train: energy in 16 of 24 structures" in caplog.text


def test_unlabelled_frames_split_off_do_not_stop_the_run() -> None:
    frames = molecules(10)
    frames[5:] = [atoms.copy() for atoms in molecules(40)[:25]]
    for seed in range(10):
        assert module(frames, {"validation_split": 1}, seed=seed).summary["sources"]["train"]["used"] >= 4


def test_unknown_elements_are_refused_in_every_other_set() -> None:
    xenon = [with_labels(Atoms("H2"), energy=0.0), with_labels(Atoms("H3Xe", np.eye(4, 3) * 2), energy=0.0)]
    message = r"structure 1: element Xe \(atom 3\) is not in the model \(H, C, N, O\)"
    xenon[0].positions[1] = [0, 0, 1.0]
    for name in ("validation", "test"):
        with pytest.raises(InputError, match=message):
            module(molecules(10), **{name: xenon}).resolve()
    trained = module(molecules(10))
    predict = DataModule(configured(), predict=xenon, domain=trained.domain, labels=trained.labels)
    with pytest.raises(InputError, match=message):
        list(predict.predict_dataloader())
    more = DataModule(configured(), xenon, domain=trained.domain, labels=trained.labels)
    with pytest.raises(InputError, match=message):
        more.resolve()


@pytest.mark.parametrize("number", [0, 119, 300])
def test_atoms_of_no_element_are_refused(number: int) -> None:
    frames = molecules(10)
    frames[7].numbers[2] = number
    message = rf"structure 7: atomic number {number} \(atom 2\) is of no element"
    with pytest.raises(InputError, match=message + (r"; remove ghost atoms \(X\)$" if number == 0 else "$")):
        module(frames).resolve()
    with pytest.raises(InputError, match="is of no element"):
        module(molecules(10), validation=frames).resolve()


def test_the_number_of_elements_must_not_contradict_the_data() -> None:
    assert module(molecules(10), {"num_elements": 4}).domain.elements == (1, 6, 7, 8)
    with pytest.raises(InputError, match=r"num_elements: 5.*have 4 elements"):
        module(molecules(10), {"num_elements": 5}).resolve()


def test_a_model_s_domain_and_labels_are_used_as_they_are() -> None:
    domain = module(molecules(10), {"cut_off": 3.0, "self_interaction": True}).domain
    others = renamed(molecules(6), "REF_energy", "REF_forces")
    keys = {"energy": "REF_energy", "forces": "REF_forces"}
    for data in (
        DataModule(configured(cut_off=9.0), test=molecules(6), domain=domain, labels=LABELS[:2]),
        DataModule(configured(label_keys=keys), test=others, domain=domain, labels=LABELS[:2]),
        DataModule(
            configured(),
            test=molecules(6),
            domain=domain,
            labels=tuple(label._replace(key=keys[label.name]) for label in LABELS[:2]),
        ),
    ):
        assert data.domain is domain
        batch = next(iter(data.test_dataloader()))
        i, j = batch.edge_index
        assert int((i == j).sum()) == len(batch.positions)
        assert not batch.targets["energy"].isnan().any()


def test_predictions_come_in_order_and_need_no_labels() -> None:
    trained = module(molecules(10))
    bare = [atoms.copy() for atoms in molecules(7)]
    for settings in ({}, {"predict": {"batch_size": 3, "max_atoms": 9}}, {"pre_batch": "in_memory"}):
        data = DataModule(configured(**settings), predict=bare, domain=trained.domain, labels=trained.labels)
        batches = list(data.predict_dataloader())
        assert torch.cat([b.num_atoms for b in batches]).tolist() == [len(atoms) for atoms in bare]
        assert batches[0].targets == {}


@pytest.mark.parametrize("pre_batch", [None, "in_memory", "on_disk"])
def test_every_kind_of_store_gives_the_same_validation_batches(pre_batch: str | None, tmp_path: Path) -> None:
    settings = {"pre_batch": pre_batch, "cache_dir": str(tmp_path)}
    data = module(molecules(40), settings)
    expected = module(molecules(40))
    for a, b in zip(data.val_dataloader(), expected.val_dataloader(), strict=True):
        assert_same(a, b)
    assert data.domain.atomic_energies == pytest.approx(expected.domain.atomic_energies)
    assert data.domain.energy_scale == pytest.approx(expected.domain.energy_scale)
    seen = sorted(n for batch in data.train_dataloader() for n in numbers_in(batch))
    assert seen == sorted(expected.summary["split"][""]["train"])


def test_frames_with_large_forces_can_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    frames = molecules(20)
    frames[5].calc.results["forces"][0] = [0, 0, 1e6]
    assert "structure 5: 1e+06" in _log_of(module(frames, validation=molecules(2)), caplog)
    text = _log_of(module(frames, {"max_force": 50.0}, validation=molecules(2)), caplog)
    assert "1 of 20 structures with a force above max_force=50 eV/Å: structure 5" in text
    assert "extreme" not in text
    energies_only = {"max_force": 50.0, "y_graph_scalars": ["energy"]}
    text = _log_of(module(frames, energies_only, validation=molecules(2)), caplog)
    assert "1 of 20 structures with a force above max_force=50 eV/Å: structure 5" in text
    named = energies_only | {"label_keys": {"energy": "E", "forces": "F"}}
    text = _log_of(module(renamed(frames, "E", "F"), named), caplog)
    assert "with a force above max_force=50 eV/Å: structure 5" in text


def _log_of(data: DataModule, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    data.resolve()
    return caplog.text


def test_a_config_names_its_data(tmp_path: Path) -> None:
    write(tmp_path / "a.xyz", molecules(12))
    data = DataModule(configured(train_data=str(tmp_path / "a.xyz@:10"), validation_split=2))
    assert data.summary["sources"]["train"]["used"] == 8
    with pytest.raises(InputError, match=r"datamodule\.train_data"):
        DataModule(configured()).resolve()


def test_a_few_structures_to_keep_with_the_model() -> None:
    kept = module(molecules(40)).stored_frames(3)
    assert [len(graph.num_atoms) for graph in kept] == [1, 1, 1]


# --- several sources


def test_named_sources_have_their_own_batch_sizes() -> None:
    sources = {"small": molecules(12), "large": molecules(30)}
    settings = {"train": {"batch_size": {"small": 2, "large": 5}}, "validation_split": 0.2}
    data = module(sources, settings)
    loader = data.train_dataloader()
    assert isinstance(loader, CombinedLoader)
    steps = [batch for batch, _, _ in loader]
    assert len(steps) == 5
    assert {(len(b["small"].num_atoms), len(b["large"].num_atoms)) for b in steps} == {(2, 5)}
    assert len(list(data.val_dataloader())) == 1 + 2
    with pytest.raises(InputError, match="no size for the source 'large'"):
        module(sources, {"train": {"batch_size": {"small": 2}}}).train_dataloader()
    with pytest.raises(InputError, match="'larg' is no source; did you mean 'large'"):
        module(sources, {"train": {"batch_size": {"small": 2, "large": 5, "larg": 3}}}).train_dataloader()


# --- with Lightning


class Recorder(pl.LightningModule):
    """Remembers what it was given, and stops or not."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_after, self.steps = stop_after, list[Any]()

    def training_step(self, batch: Graph | dict[str, Graph], batch_idx: int) -> torch.Tensor:
        parts = batch if isinstance(batch, dict) else {"": batch}
        self.steps.append((self.current_epoch, batch_idx, {k: numbers_in(g) for k, g in parts.items()}))
        return self.weight**2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def validation_step(self, batch: Graph, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def on_train_batch_end(self, *_: Any) -> None:
        if len(self.steps) == self.stop_after:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "stopped.ckpt")
            raise KeyError("killed")


def fit(data: DataModule, folder: Path, stop_after: int | None = None, ckpt: Path | None = None) -> list[Any]:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    recorder = Recorder(stop_after)
    try:
        trainer.fit(recorder, datamodule=data, ckpt_path=ckpt, weights_only=False)
    except KeyError:
        assert stop_after is not None
    return recorder.steps


@pytest.mark.parametrize("stop_after", [3, 5, 8, 10, 13])
@pytest.mark.parametrize("several", [False, True])
def test_a_run_continued_by_lightning_sees_the_rest_of_its_epoch(
    tmp_path: Path, stop_after: int, several: bool
) -> None:
    frames = {"a": molecules(20), "b": molecules(9, seed=1)} if several else molecules(20)
    settings = {"pre_batch": "in_memory", "validation_split": 0}

    def data() -> DataModule:
        return module(frames, settings, validation=molecules(4))

    whole = fit(data(), tmp_path)
    assert len(whole) == 15
    before = fit(data(), tmp_path, stop_after)
    after = fit(data(), tmp_path, ckpt=tmp_path / "stopped.ckpt")
    assert before + after == whole


def test_a_run_with_workers_continues_as_well(tmp_path: Path) -> None:
    settings = {"num_workers": 2, "validation_split": 0}
    whole = fit(module(molecules(20), settings), tmp_path)
    before = fit(module(molecules(20), settings), tmp_path, 7)
    after = fit(module(molecules(20), settings), tmp_path, ckpt=tmp_path / "stopped.ckpt")
    assert before + after == whole
    assert whole == fit(module(molecules(20), {"validation_split": 0}), tmp_path)


def test_without_validation_data_lightning_does_not_look_for_any(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    fit(module(molecules(20), {"validation_split": 0}), tmp_path)
    assert not [str(w.message) for w in recwarn if "zero" in str(w.message)]


def test_all_workers_are_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    loader = module(molecules(8), {"num_workers": "all"}).train_dataloader()
    assert isinstance(loader, GraphLoader)
    assert loader.num_workers == 3


# --- real data


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("one_frame_energy_in_hartree", None),
        ("slab_TTF_and_molecules", None),
        ("slab_TTF_only", None),
        ("single_atom_in_train", None),
        ("two_atoms_far_apart", None),
        ("duplicate_frames", None),
        ("zero_forces", None),
        ("missing_forces", None),
        ("energy_only", None),
        ("forces_only", None),
        ("tiny_cell", None),
        ("equivalent_cells", None),
        ("single_atom", "nothing to learn"),
        ("unknown_element", "found no labels at all"),
        ("keys_NEP", "label_keys={energy: Energy, forces: force}"),
        ("nan_forces", "frame 7: forces of atom 3"),
        ("duplicate_atoms", "frame 2: atoms 4 and 5"),
    ],
)
def test_unusual_files(name: str, error: str | None, shared: Path) -> None:
    data = DataModule(configured(), shared / "data" / "bad" / f"{name}.xyz")
    if error is None:
        assert all(torch.isfinite(b.positions).all() for b in data.train_dataloader())
        assert np.isfinite(data.domain.energy_scale)
    else:
        with pytest.raises(InputError) as raised:
            data.resolve()
        assert error in str(raised.value)
        assert "\n" not in str(raised.value)
