"""What a potential predicts of a batch, and the way back of a loss, by `totals.cpp`: a quarter of a millisecond where
tensor by tensor takes two.

S structures, N atoms, E edges.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.backends.build import build
from physicsml_ase.backends.compiled import NO_VOLUME
from physicsml_ase.graph import Graph
from physicsml_ase.nn.features import NUM_ELEMENTS
from physicsml_ase.potential import Potential


class Totals(NamedTuple):
    """Predictions, float64."""

    energy: Tensor  # (S,) [eV]
    energies: Tensor  # (N,) [eV]
    forces: Tensor  # (N, 3) [eV/Å]
    stress: Tensor  # (S, 3, 3) [eV/Å³], NaN without a full cell


class Summed:
    """One batch of a potential on a CPU."""

    def __init__(self, graph: Graph, potential: Potential) -> None:
        i, j = graph.edge_index
        wall, dtype = potential.wall, potential.dtype
        tables = [potential.references.table] if wall is None else [potential.references.table, wall.outer]
        self._kept = [
            *(x.contiguous() for x in (i, j, graph.batch, graph.atomic_numbers)),
            *(x.double().contiguous() for x in (graph.positions, graph.edge_shift, graph.cell, *tables)),
        ]
        self._sizes = graph.num_atoms.shape[0], graph.batch.shape[0], i.shape[0]
        pointers = [*(x.data_ptr() for x in self._kept), *([None] if wall is None else [])]
        scale = potential.domain.energy_scale
        self._graph = _Graph(*self._sizes, *pointers, NUM_ELEMENTS, scale, NO_VOLUME)
        self._library = library(dtype)
        self.r_ij = torch.empty(i.shape[0], 3, dtype=dtype)
        """Pair vectors (E, 3) [Å]."""
        self.near: int = self._call("pair_vectors")
        """How many edges are within the potential's wall, which is not computed here."""

    def predict(self, e: Tensor, g: Tensor) -> Totals:
        """From a model's energies of the atoms (N,) and their sum's gradient to the pair vectors (E, 3)."""
        num_structures, n, _ = self._sizes
        shapes = (num_structures,), (n,), (n, 3), (num_structures, 3, 3)
        out = Totals(*(torch.empty(shape, dtype=torch.float64) for shape in shapes))
        self._call("predict", e, g, *out)
        return out

    def send_back(self, g: Totals) -> tuple[Tensor, Tensor]:
        """A loss's gradient to what `predict` was given, from that to the predictions."""
        g_e, g_g = self.r_ij.new_empty(self._sizes[1]), torch.empty_like(self.r_ij)
        self._call("send_back", *(x.contiguous() for x in g), g_e, g_g)
        return g_e, g_g

    def _call(self, name: str, *tensors: Tensor) -> int:
        pointers = (ctypes.c_void_p(x.data_ptr()) for x in (self.r_ij, *tensors))
        result: int = getattr(self._library, name)(ctypes.byref(self._graph), *pointers)
        return result


def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The compiled functions for models of this precision."""
    library = build("totals.cpp", (("DOUBLE", int(dtype == torch.float64)),))
    library.pair_vectors.restype = ctypes.c_int64
    library.predict.restype = library.send_back.restype = None
    return library


class _Graph(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_structures", "num_atoms", "num_edges")),
        *((name, ctypes.c_void_p) for name in ("centre", "neighbor", "structure", "number")),
        *((name, ctypes.c_void_p) for name in ("positions", "shift", "cell", "references", "outer")),
        ("num_elements", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("scale", "no_volume")),
    ]
