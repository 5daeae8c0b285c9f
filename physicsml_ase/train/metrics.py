"""The errors that people read: MAE and RMSE of each label, in the units of papers, missing labels masked."""

import warnings

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric

from physicsml_ase.conventions import Label
from physicsml_ase.graph import Graph

MILLI = {"energy": "meV/atom", "forces": "meV/Å", "stress": "meV/Å³"}
"""Labels whose errors are logged in thousandths of their unit; energies per atom."""


class Errors(nn.Module):
    """Running MAE and RMSE of every label over an epoch and all ranks."""

    def __init__(self, labels: tuple[Label, ...]) -> None:
        super().__init__()
        self.names = [label.name for label in labels]
        self.metrics: dict[str, dict[str, Metric]] = {
            name: {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)} for name in self.names
        }
        # as modules they move with the device
        self.parts = nn.ModuleList(
            m.set_dtype(torch.float64) for of in self.metrics.values() for m in of.values()
        )

    def update(self, predictions: dict[str, Tensor], graph: Graph) -> None:
        """Count a batch in."""
        for name in self.names:
            prediction, target = predictions[name].double(), graph.targets[name]
            if name == "energy":
                prediction, target = prediction / graph.num_atoms, target / graph.num_atoms
            present = torch.isfinite(target)
            if present.any():
                error = (prediction - target)[present]
                zero = torch.zeros_like(error)
                for metric in self.metrics[name].values():
                    metric.update(error, zero)

    def compute(self) -> dict[str, float]:
        """{"energy/mae": meV/atom, "forces/rmse": meV/Å, ...} over what was counted; labels seen nowhere
        are left out. Every rank must call it."""
        out = {}
        for name in self.names:
            factor = 1e3 if name in MILLI else 1.0
            for kind, metric in self.metrics[name].items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a rank may have seen none: that is a NaN here
                    value = float(metric.compute())
                if value == value:
                    out[f"{name}/{kind}"] = factor * value
        return out

    def reset(self) -> None:
        """Forget everything, for the next epoch."""
        for of in self.metrics.values():
            for metric in of.values():
                metric.reset()


def in_words(errors: dict[str, float]) -> str:
    """RMSEs in one line, such as "energy 3.1 meV/atom, forces 45 meV/Å"."""
    parts = []
    for key, value in errors.items():
        name, kind = key.rsplit("/", 1)
        if kind == "rmse":
            parts.append(f"{name} {value:.4g} {MILLI.get(name, '')}".rstrip())
    return ", ".join(parts)
