"""Gaunt-ACE on a CPU by a kernel in C++ (`gaunt_ace.cpp`): forward and reverse pass of one structure at once.

    list_ = SkinList(neighbors, elements)           # at each rebuild of a list with a skin
    edges = list_.within(positions, cell, cutoff)   # at each step
    out = Kernel(model)(edges)                      # energies, forces, virial in units of the energy scale

N atoms, E edges.
"""

import ctypes
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from physicsml_ase.backends.build import BuildError, build, tell_once
from physicsml_ase.backends.edges import Edges as Edges
from physicsml_ase.backends.edges import SkinList as SkinList
from physicsml_ase.backends.weights import (
    MOST_THREADS,
    POINTER,
    Floats,
    address,
    compiled_sizes,
    kernel_weights,
)
from physicsml_ase.models.gaunt_ace import GauntACE


class Output(NamedTuple):
    """What the kernel computes, in units of the energy scale; all but the features are valid until the next call."""

    energies: NDArray[np.float32]  # (N,)
    forces: Floats  # (N, 3) [1/Å]
    virial: Floats  # (3, 3), sum over edges of r_ij (x) dE/dr_ij
    features: NDArray[np.float32] | None = None  # (N, F), what the last readout reads


def kernel_reason(model: nn.Module) -> str | None:
    """Why the kernel can not compute what this model does, in one line; None if it can. Compiles it if need be."""
    if not isinstance(model, GauntACE):
        return "there is a kernel for the architecture gaunt_ace only"
    sizes, weight = compiled_sizes(model), next(model.parameters())
    if weight.dtype != torch.float32:
        return f"the kernel computes in float32, and this model in {str(weight.dtype).removeprefix('torch.')}"
    if weight.device.type != "cpu":
        return f"the kernel is for CPUs, and the model is on {weight.device.type}"
    if model.attrs.num:
        return "the kernel does not know attributes of structures"
    if sizes["CHANNELS"] % 16:
        return f"the kernel is for multiples of 16 channels, and this model has {sizes['CHANNELS']}"
    try:
        _library(model)
        build("edges.cpp")  # which its lists need
    except BuildError as error:
        tell_once(str(error))
        return str(error)
    return None


class Kernel:
    """A trained Gaunt-ACE model on a CPU, in float32.

    Later changes of the model's weights are not seen. Not for several threads at once: the memory is kept.
    """

    def __init__(self, model: GauntACE) -> None:
        reason = kernel_reason(model)
        if reason:
            raise BuildError(reason)
        self._compute = _library(model).compute
        self._keep = list[NDArray[np.float32]]()  # what the weights point into
        self._model = kernel_weights(model, self._keep)
        self._weights = ctypes.addressof(self._model)
        self._num_features = model.num_node_scalars
        self._scratch = np.empty(0, np.uint8)
        self._at_scratch = address(self._scratch)
        self._make_room(0)

    def __call__(self, edges: Edges, threads: int = 1, features: bool = False) -> Output:
        """Energies, forces and virial of a structure, and `features` where asked for."""
        n = len(edges.elements)
        if len(self._results[0]) != n:
            self._make_room(n)
        structure = n, *edges.at, min(max(threads, 1), MOST_THREADS, n // 16 + 1)
        kept = np.empty((n, self._num_features), np.float32) if features else None
        results = *self._at_results, None if kept is None else address(kept)
        while True:
            size = self._scratch.nbytes
            needed = self._compute(self._weights, *structure, self._at_scratch, size, *results)
            if needed <= size:
                return Output(*self._results, kept)
            self._scratch = np.empty(needed + needed // 8, np.uint8)
            self._at_scratch = address(self._scratch)

    def _make_room(self, n: int) -> None:
        """For the results of n atoms."""
        self._results = np.empty(n, np.float32), np.empty((n, 3)), np.empty((3, 3))
        energies, forces, virial = self._results
        self._at_results = address(energies), address(forces), address(virial)


def _library(model: GauntACE) -> ctypes.CDLL:
    library = build("gaunt_ace.cpp", tuple(compiled_sizes(model).items()))
    size, count = ctypes.c_size_t, ctypes.c_int64
    library.compute.argtypes = [POINTER, count, *[POINTER] * 4, ctypes.c_int, POINTER, size, *[POINTER] * 4]
    library.compute.restype = size
    return library
