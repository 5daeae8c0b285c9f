"""Every slot of labels learns: heads for numbers, vectors and matrices of atoms, structures and edges."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from runs_for_tests import SMALL, frames, settings
from test_contract import SMALL as ARCHITECTURES
from test_contract import has_vectors

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends.package import not_compilable
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import InputError
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.graph import edge_vectors
from physicsml_ase.recipe import merge
from physicsml_ase.train.run import Data, Result, start
from physicsml_ase.train.settings import RunConfig


def labelled() -> list[Atoms]:
    """Molecules with a label for every slot that a small model can learn from their shape."""
    result = []
    for atoms in frames(20):
        difference = atoms.get_all_distances(vector=True)  # (N, N, 3)
        distance = np.linalg.norm(difference, axis=-1)
        near = np.exp(-(distance**2))
        atoms.arrays["q"] = near.sum(1)
        atoms.arrays["push"] = -(near[:, :, None] * difference).sum(1)
        atoms.info["mu"] = atoms.arrays["q"] @ (atoms.positions - atoms.positions.mean(0))
        atoms.info["gap"] = near.mean()
        atoms.info["tensor"] = np.einsum("ij,ijx,ijy->xy", near, difference, difference)
        atoms.info["bond"] = near
        atoms.info["pull"] = near[:, :, None] * difference
        result.append(atoms)
    return result


SLOTS: dict[str, dict[str, Any]] = {
    "q": {"datamodule": {"y_node_scalars": ["q"]}},
    "push": {"datamodule": {"y_node_vector": "push"}},
    "mu": {"datamodule": {"y_graph_vector": "mu"}},
    "dipole": {"datamodule": {"y_graph_vector": "dipole", "label_keys": {"dipole": "mu"}}},
    "charges": {"datamodule": {"y_node_scalars": ["charges"], "label_keys": {"charges": "q"}}},
    "magmoms": {"datamodule": {"y_node_scalars": ["magmoms"], "label_keys": {"magmoms": "q"}}},
    "gap": {"datamodule": {"y_graph_scalars": ["gap"]}},
    "tensor": {"datamodule": {"y_graph_tensor": "tensor"}},
    "bond": {"datamodule": {"y_edge_scalars": ["bond"]}},
    "pull": {"datamodule": {"y_edge_vector": "pull"}},
    "energy": {"datamodule": {"y_graph_scalars": ["energy"]}},
    "forces": {"datamodule": {"y_node_vector": "forces"}},
    "direct forces": {"datamodule": {"y_graph_vector": "forces"}, "heads": {"forces": {"direct": True}}},
}


DIRECTED = ("push", "mu", "dipole", "tensor", "direct forces")
"""Slots that need vectors of the atoms."""


def losses_of(run: Result, name: str) -> list[float]:
    """Of each epoch, as written."""
    with open(run.folder.metrics, newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row[key := f"train/{name}/loss"]]


def of_architecture(name: str, *overrides: dict[str, Any]) -> RunConfig:
    """The config of a small run of an architecture."""
    data: dict[str, Any] = {k: v for k, v in SMALL.items() if k != "model"}
    data |= {"model": {"name": name} | ARCHITECTURES.get(name, {})}
    for override in ({"trainer": {"max_epochs": 8}, "datamodule": {"validation_split": 4}}, *overrides):
        data = merge(data, override)
    return validate(RunConfig, data)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_architecture_learns_all_slots_at_once(tmp_path: Path, name: str) -> None:
    slots: dict[str, Any] = {"y_graph_scalars": ["energy", "gap"], "y_node_scalars": ["q"]}
    slots |= {"y_edge_scalars": ["bond"], "y_edge_vector": "pull"}
    if has_vectors(name):
        slots |= {"y_node_vector": "push", "y_graph_vector": "mu", "y_graph_tensor": "tensor"}
    result = start(of_architecture(name, {"datamodule": slots}), Data(labelled()), tmp_path / "run")
    labels = ["energy", "gap", "q", "bond", "pull"] + (["push", "mu", "tensor"] if has_vectors(name) else [])
    losses = np.array([losses_of(result, label) for label in labels])  # (labels, epochs)
    assert losses.shape == (len(labels), 8)
    # together: one that begins low may wait for the others
    assert losses[:, -1].sum() < 0.9 * losses[:, 0].sum()
    assert (losses[:, -1] < 2 * losses[:, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_architecture_learns_every_slot(tmp_path: Path, name: str, slot: str) -> None:
    config = of_architecture(name, SLOTS[slot], {"trainer": {"max_epochs": 24}})
    if slot in DIRECTED and not has_vectors(name):
        with pytest.raises(InputError, match="no vectors"):
            start(config, Data(labelled()), tmp_path / "run")
        return
    result = start(config, Data(labelled()), tmp_path / "run")
    losses = losses_of(result, slot.removeprefix("direct "))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "model", [{"name": "allegro"}, {"name": "egnn", "edge_updates": True}], ids=["allegro", "egnn"]
)
def test_labels_of_edges_are_read_off_their_features(tmp_path: Path, model: dict[str, Any]) -> None:
    slots = {"y_graph_scalars": ["energy"], "y_edge_scalars": ["bond"], "y_edge_vector": "pull"}
    config = of_architecture(model["name"], {"datamodule": slots, "model": model})
    result = start(config, Data(labelled()), tmp_path / "run")
    for label in ("bond", "pull"):
        losses = losses_of(result, label)
        assert losses[-1] < losses[0]
    potential, graph = result.potential, to_graph(labelled()[0], 3.0)
    features = potential.features(graph)
    assert features.edge_scalars is not None
    others = features._replace(edge_scalars=features.edge_scalars + 1.0)
    r_ij = edge_vectors(graph).to(potential.dtype)
    for head in potential.label_heads:
        assert not torch.allclose(head(graph, features, r_ij), head(graph, others, r_ij))
    assert "edges' labels" in str(not_compilable(potential))
    # heads from before they were read have fewer weights
    old = {
        name: x[:, : 2 * x.shape[0] + 1] if name.endswith("read.0.weight") else x
        for name, x in potential.state_dict().items()
    }
    potential.load_state_dict(old)
    for head in potential.label_heads:
        torch.testing.assert_close(head(graph, features, r_ij), head(graph, others, r_ij))


@pytest.mark.parametrize("name", [name for name in sorted(MODELS) if not has_vectors(name)])
@pytest.mark.parametrize("slot", DIRECTED)
def test_architectures_without_vectors_refuse_directions(tmp_path: Path, name: str, slot: str) -> None:
    with pytest.raises(InputError, match="no vectors"):
        start(of_architecture(name, SLOTS[slot]), Data(labelled()), tmp_path / "run")


@pytest.mark.parametrize("slot", SLOTS)
def test_the_loss_falls(tmp_path: Path, slot: str) -> None:
    config = merge({"trainer": {"max_epochs": 8}, "datamodule": {"validation_split": 4}}, SLOTS[slot])
    result = start(settings(config), Data(labelled()), tmp_path / "run")
    name = slot.removeprefix("direct ")
    losses = losses_of(result, name)
    assert len(losses) == 8
    assert losses[-1] < 0.95 * losses[0]
    assert name in result.potential.outputs
    assert f"{name}/rmse" in result.best["errors"]


def test_labels_together(tmp_path: Path) -> None:
    slots: dict[str, Any] = {
        "y_graph_scalars": ["energy"],
        "y_node_vector": "forces",
        "y_node_scalars": ["q"],
    }
    slots |= {"y_graph_vector": "mu", "y_edge_scalars": ["bond"]}
    result = start(settings({"datamodule": slots}), Data(labelled()), tmp_path / "run")
    assert {"energy", "forces", "q", "mu", "bond"} <= set(result.potential.outputs)
    config = validate(type(settings().datamodule), {"cut_off": 3.0})
    data = DataModule(config, test=labelled(), domain=result.potential.domain, labels=result.potential.labels)
    assert set(next(iter(data.test_dataloader())).targets) == {"energy", "forces", "q", "mu", "bond"}
