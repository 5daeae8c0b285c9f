"""Every slot of labels learns: heads for numbers, vectors and matrices of atoms, structures and edges."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from runs_for_tests import frames, settings

from physicsml_ase.config import validate
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.recipe import merge
from physicsml_ase.train.run import Data, start


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


@pytest.mark.parametrize("slot", SLOTS)
def test_the_loss_falls(tmp_path: Path, slot: str) -> None:
    config = merge({"trainer": {"max_epochs": 8}, "datamodule": {"validation_split": 4}}, SLOTS[slot])
    result = start(settings(config), Data(labelled()), tmp_path / "run")
    name = slot.removeprefix("direct ")
    with open(result.folder.metrics, newline="") as file:
        rows = [row[f"train/{name}/loss"] for row in csv.DictReader(file)]
    losses = [float(value) for value in rows if value]
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
