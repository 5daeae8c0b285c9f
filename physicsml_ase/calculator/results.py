"""From a graph with its outputs to ASE's results: units, shapes and order."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from physicsml_ase.backends.compiled import NO_VOLUME, volume
from physicsml_ase.backends.native import Step
from physicsml_ase.conventions import VOIGT, InputError, Level, matrix_to_voigt
from physicsml_ase.graph import Graph

Value = float | NDArray[np.float64]
Results = dict[str, Value]
VOIGT_PLACES = [3 * row + column for row, column in VOIGT]


class LateResults(dict[str, Value]):
    """Results of which some are computed when they are asked for, `late` by name."""

    def __init__(self, values: Mapping[str, Value], late: Mapping[str, Callable[[], Value]]) -> None:
        super().__init__(values)
        self._late, self._computed = dict(late), frozenset(values)

    @property
    def is_whole(self) -> bool:
        """Whether nobody has taken from it what was computed at once."""
        return self._computed <= self.keys()

    def __missing__(self, name: str) -> Value:
        if name not in self._late:
            raise KeyError(name)
        self[name] = value = self._late.pop(name)()
        return value

    def __reduce__(self) -> tuple[type[dict[str, Value]], tuple[dict[str, Value]]]:
        return dict, (dict(self),)  # a copy knows what is known now


def of_step(step: Step) -> Results | None:
    """ASE's results of what the kernel computed alone; None where there is more to say of them."""
    energy, energies, forces, stress = step
    if not math.isfinite(energy) or not math.isfinite(float(forces.sum())):
        return None
    results: Results = {"forces": forces, "energy": energy, "energies": energies, "free_energy": energy}
    if stress is not None:
        results["stress"] = stress.reshape(9).take(VOIGT_PLACES)
    return results


def to_results(graph: Graph, levels: Mapping[str, Level], where: str = "") -> Results:
    """ASE's units, shapes and order, from a graph of one structure with its outputs as targets."""
    results: Results = {}
    for name, tensor in graph.targets.items():
        there = tensor.is_cpu and tensor.dtype is torch.float64
        value = (tensor if there else tensor.to("cpu", torch.float64)).numpy()
        level = levels[name]
        if level == "structure":
            value = value[0]
        if name in ("stress", "stress_std"):
            if volume(graph.cell[0]) <= NO_VOLUME:
                continue  # ASE raises its PropertyNotImplementedError for what is not in the results
            value = matrix_to_voigt(value)
        # a sum, as one pass over small arrays is what this costs; infinite ones may cancel or overflow
        if not math.isfinite(value.sum()) and not np.isfinite(value).all():
            atom = int(np.argwhere(~np.isfinite(value))[0, 0]) if level == "atom" else None
            raise InputError(
                f"{where}{name}{'' if atom is None else f' of atom {atom}'} came out as not finite: the "
                "structure is far from anything the model knows, or its weights are damaged"
            )
        if level == "edge":
            results |= _pair_matrix(graph, name, value)
        else:
            results[name] = value if value.shape else float(value)
    if "energy" in results:
        results.setdefault("free_energy", results["energy"])  # a model may have one of its own
    return results


def _pair_matrix(graph: Graph, name: str, value: NDArray[np.float64]) -> Results:
    """A label of the edges (E, ...) as it is given to train on, (N, N, ...), NaN where there is no edge.

    Nothing where a pair of atoms has several edges, to several periodic images.
    """
    i, j = graph.edge_index.cpu().numpy()
    n = len(graph.positions)
    if len(np.unique(i * n + j)) < len(i):
        return {}
    matrix = np.full((n, n, *value.shape[1:]), np.nan)
    matrix[i, j] = value
    return {name: matrix}
