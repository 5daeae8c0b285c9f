"""Gaunt-ACE on a CPU by a kernel in C++ (`gaunt_ace.cpp`): forward and reverse pass of one structure at once.

    list_ = SkinList(neighbors, elements)           # at each rebuild of a list with a skin
    edges = list_.within(positions, cell, cutoff)   # at each step
    out = Kernel(model)(elements, edges)            # energies, forces, virial in units of the energy scale

N atoms, E edges.
"""

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from physicsml_ase.backends.build import BuildError, build
from physicsml_ase.models.gaunt_ace import GauntACE, Layer
from physicsml_ase.neighbors import Neighbors
from physicsml_ase.nn.sphere import harmonics, quadrature

Floats = NDArray[np.float64]
MOST_THREADS = 1024
ZEROS = (0, 1, 2, 4, 3, 5, 6)
"""Kinds of orbits of the grid's points, by bits of the coordinates that are zero, in the kernel's order."""
_P = ctypes.c_void_p


class Edges(NamedTuple):
    """Edges within the cut-off, sorted by centre."""

    start: NDArray[np.int64]  # (N + 1,), atom i's are start[i] to start[i + 1]
    neighbor: NDArray[np.int32]  # (E,)
    r_ij: NDArray[np.float32]  # (E, 3) [Å]
    shortest: float = 0.0
    """Shortest distance between two atoms or images [Å]; infinite where there are no edges."""
    near: int = 0
    """How many edges are shorter than what `SkinList` was told of their elements."""


class Output(NamedTuple):
    """What the kernel computes, in units of the energy scale."""

    energies: NDArray[np.float32]  # (N,)
    forces: Floats  # (N, 3) [1/Å]
    virial: Floats  # (3, 3), sum over edges of r_ij (x) dE/dr_ij


def kernel_reason(model: nn.Module) -> str | None:
    """Why the kernel can not compute what this model does, in one line; None if it can. Compiles it if need be."""
    if not isinstance(model, GauntACE):
        return "there is a kernel for the architecture gaunt_ace only"
    sizes, weight = _sizes(model), next(model.parameters())
    if weight.dtype != torch.float32:
        return f"the kernel computes in float32, and this model in {str(weight.dtype).removeprefix('torch.')}"
    if weight.device.type != "cpu":
        return f"the kernel is for CPUs, and the model is on {weight.device.type}"
    if model.attrs.num:
        return "the kernel does not know attributes of structures"
    if sizes["CHANNELS"] % 16:
        return f"the kernel is for multiples of 16 channels, and this model has {sizes['CHANNELS']}"
    if sizes["MAX_ELL"] > 4:
        return f"the kernel is for max_ell up to 4, and this model has {sizes['MAX_ELL']}"
    try:
        _library(model)
    except BuildError as error:
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
        self._model = _weights(model, self._keep)
        self._weights = ctypes.addressof(self._model)
        self._scratch = np.empty(0, np.uint8)

    def __call__(self, elements: NDArray[np.int32], edges: Edges, threads: int = 1) -> Output:
        """Energies, forces and virial of a structure; `elements` (N,) are places among the model's elements."""
        n = elements.shape[0]
        if elements.dtype != np.int32 or edges.start.shape != (n + 1,):
            raise ValueError("elements must be int32 (N,) and edges.start (N + 1,)")
        threads = min(max(threads, 1), MOST_THREADS, n // 16 + 1)
        structure = (n, _at(edges.start), _at(edges.neighbor), _at(elements), _at(edges.r_ij), threads)
        energies, forces, virial = np.empty(n, np.float32), np.empty((n, 3)), np.empty((3, 3))
        results = (_at(energies), _at(forces), _at(virial))
        while True:
            scratch = self._scratch
            needed = self._compute(self._weights, *structure, _at(scratch), scratch.nbytes, *results)
            if needed <= scratch.nbytes:
                break
            self._scratch = np.empty(needed + needed // 8, np.uint8)
        return Output(energies, forces, virial)


class SkinList:
    """The edges of a list with a skin, from which those within the cut-off are taken at each step.

    `elements` (N,) are places among the model's elements, `outer` (Z, Z) [Å] the distances of elements below
    which edges are counted in `Edges.near`. Not for several threads at once.
    """

    def __init__(
        self, neighbors: Neighbors, elements: NDArray[np.int32], outer: Floats | None = None
    ) -> None:
        n = elements.shape[0]
        i, j = neighbors.edge_index
        shift = neighbors.edge_shift
        if (elements != elements[:1]).any():  # neighbours of one element side by side are quicker
            order = np.lexsort((elements.take(j), i))
            i, j, shift = i.take(order), j.take(order), shift.take(order, 0)
        self.elements = np.ascontiguousarray(elements, np.int32)
        self._start = np.searchsorted(i, np.arange(n + 1)).astype(np.int64)
        self._neighbor = j.astype(np.int32)
        # there are few shifts: all within their bounds, and each edge's place among them
        low = shift.min(0, initial=0.0).astype(np.int64)
        sizes = shift.max(0, initial=0.0).astype(np.int64) - low + 1
        self._shifts = (np.indices(sizes).reshape(3, -1).T + low).astype(np.float64)
        place = (shift - low) @ np.array([sizes[1] * sizes[2], sizes[2], 1.0])
        self._place = place.astype(np.int32)
        no_shift = int(-low @ np.array([sizes[1] * sizes[2], sizes[2], 1]))
        num = int(elements.max(initial=0)) + 1
        self._outer = np.zeros((num, num)) if outer is None else np.square(outer, dtype=np.float64)
        at = (_at(self._start), _at(self._neighbor), _at(self._place), _at(self.elements))
        self._list = _List(n, *at, no_shift, len(self._outer))
        self._found = Edges(
            np.empty(n + 1, np.int64), np.empty(len(j), np.int32), np.empty((len(j), 3), np.float32)
        )
        self._near, self._shortest = ctypes.c_int64(), ctypes.c_double()
        self._at_list = ctypes.addressof(self._list)
        self._at_found = (
            *(_at(self._found.start), _at(self._found.neighbor), _at(self._found.r_ij)),
            *(ctypes.addressof(self._near), ctypes.addressof(self._shortest)),
        )
        self._within = build("edges.cpp").within
        self._within.argtypes = [*[_P] * 3, ctypes.c_double, _P, ctypes.c_int, *[_P] * 5]
        self._within.restype = ctypes.c_int64

    def within(self, positions: Floats, cell: Floats, cutoff: float, threads: int = 1) -> Edges:
        """Edges shorter than `cutoff` [Å] of atoms (N, 3) in a cell (3, 3); valid until the next call."""
        positions = np.ascontiguousarray(positions, np.float64)
        offsets = self._shifts @ cell
        found = self._found
        count = self._within(
            *(self._at_list, _at(offsets), _at(positions), cutoff, _at(self._outer)),
            min(max(threads, 1), MOST_THREADS, positions.shape[0] // 256 + 1),
            *self._at_found,
        )
        shortest = math.sqrt(self._shortest.value) if count else math.inf
        return Edges(found.start, found.neighbor[:count], found.r_ij[:count], shortest, int(self._near.value))


class _List(ctypes.Structure):
    _fields_ = [
        ("num_atoms", ctypes.c_int64),
        *((name, _P) for name in ("start", "neighbor", "shift", "element")),
        ("no_shift", ctypes.c_int64),
        ("num_elements", ctypes.c_int64),
    ]


class _Grid(ctypes.Structure):
    _fields_ = [("inward", _P), ("outward", _P), ("orbits", ctypes.c_int64 * 7)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *(
            (name, _P)
            for name in (
                *("mix_density", "mix_density_T", "mix_message", "mix_message_T", "mix_gate", "product_gate"),
                *("hidden", "hidden_T", "hidden_bias", "hidden_out", "linear", "energy_bias"),
                *("send", "send_T", "send_bias", "radial"),
            )
        ),
        ("grid", _Grid),
    ]


def _model_type(layers: int) -> type[ctypes.Structure]:
    fields = [
        *((name, _P) for name in ("channels", "density_gate")),
        *((name, ctypes.c_float) for name in ("cutoff", "stretch")),
        ("layers", _Layer * layers),
    ]
    return type("_Model", (ctypes.Structure,), {"_fields_": fields})


def _at(array: NDArray[Any]) -> int:
    """Where the numbers of an array lie."""
    if not array.flags.c_contiguous:
        raise ValueError("the kernel takes contiguous arrays")
    return array.ctypes.data


def _layers(model: GauntACE) -> list[Layer]:
    return [layer for layer in model.layers if isinstance(layer, Layer)]


def _sizes(model: GauntACE) -> dict[str, int]:
    """What is compiled into the kernel."""
    layers = _layers(model)
    layer, last = layers[0], layers[-1]
    density, channels = layer.mix_density.weight.shape[1:]
    return {
        "CHANNELS": channels,
        "RADIAL": model.geometry.num_radial,
        "DENSITY": density // model.geometry.num_radial,
        "MAX_ELL": model.geometry.sphere.lmax,
        "CORRELATION": layer.product.nu,
        "MESSAGE_ELL": max(last.message.degrees) if last.message is not None else 0,
        "LAYERS": len(layers),
        "HIDDEN": layer.readout.outward.shape[0],
    }


def _library(model: GauntACE) -> ctypes.CDLL:
    library = build("gaunt_ace.cpp", tuple(_sizes(model).items()))
    size, count = ctypes.c_size_t, ctypes.c_int64
    library.compute.argtypes = [_P, count, *[_P] * 4, ctypes.c_int, _P, size, *[_P] * 3]
    library.compute.restype = size
    return library


def _grid(lmax: int, nu: int, ell: int) -> tuple[Floats, Floats, list[int]]:
    """Harmonics at one point of each orbit of the grid of `SphereProduct`, (orbits, M), weights of all points,
    (points, (ell + 1)^2), and the number of orbits of each kind: an orbit is a point and its mirror images."""
    points, weights = quadrature(nu * lmax + ell)
    corner = np.abs(np.where(np.abs(points) < 1e-12, 0.0, points))
    zero = (corner == 0) @ np.array([1, 2, 4])
    inward, outward, orbits = list[Floats](), list[Floats](), list[int]()
    for kind in ZEROS:
        free = [axis for axis in range(3) if not kind >> axis & 1]
        # of the flips that leave other points, those of nothing and of one coordinate; antipodes count once
        flips = [(), (0,), (1,), (2,)] if kind == 0 else [(), (free[0],)] if len(free) == 2 else [()]
        of_kind = np.flatnonzero(zero == kind)
        _, some = np.unique(corner[of_kind].round(9), axis=0, return_index=True)
        orbits.append(len(some))
        for k in of_kind[some]:
            inward.append(harmonics(corner[k : k + 1], lmax) / (lmax + 1))
            for flip in flips:
                image = corner[k : k + 1].copy()
                image[:, list(flip)] *= -1
                outward.append(harmonics(image, ell) * 2 * weights[k])
    assert len(outward) == len(points)
    return np.concatenate(inward), np.concatenate(outward), orbits


def _weights(model: GauntACE, keep: list[NDArray[np.float32]]) -> ctypes.Structure:
    """The kernel's view of the model's weights; the arrays go into `keep`."""

    def at(x: Tensor | Floats, pad: tuple[int, ...] = ()) -> int:
        """Where a copy lies, with the last dimensions padded to 16 wherever `pad` says so."""
        values = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        array = np.array(values, np.float32, order="C")
        widths = [(0, -size % 16 if axis - array.ndim in pad else 0) for axis, size in enumerate(array.shape)]
        array = np.ascontiguousarray(np.pad(array, widths))
        keep.append(array)
        return array.ctypes.data

    def gate(table: Tensor | None, pad: tuple[int, ...] = ()) -> int | None:
        """Where (element, degree, F) lies, from (degree, element, F); nowhere if there is none."""
        return None if table is None else at(table.transpose(0, 1), pad)

    sizes = _sizes(model)
    degrees, channels, nu = sizes["MAX_ELL"] + 1, sizes["CHANNELS"], sizes["CORRELATION"]
    layers = []
    for layer in _layers(model):
        product, readout = layer.product, layer.readout
        inward, outward, orbits = _grid(degrees - 1, nu, math.isqrt(product.even_out + product.odd_out) - 1)
        # scalar factors go into weights, and so does the parity of what a neighbour sent
        mix = layer.mix_density.weight * model.scale
        there = {
            "mix_density": at(mix),
            "mix_density_T": at(mix.transpose(1, 2), (-1,)),
            "mix_gate": gate(layer.mix_gate.table),
            "product_gate": gate(layer.product_gate.table),
            "hidden": at(readout.inward, (-1,)),
            "hidden_T": at(readout.inward.T),
            "hidden_bias": at(readout.hidden_bias, (-1,)),
            "hidden_out": at(readout.outward, (-1,)),
            "linear": at(readout.linear),
            "energy_bias": at(readout.energy_bias),
            "grid": _Grid(at(inward), at(outward), (ctypes.c_int64 * 7)(*orbits)),
        }
        if layer.message is not None and layer.mix_message is not None:
            mix = layer.mix_message.weight * model.scale
            signs = torch.tensor([(-1.0) ** degree for degree in layer.message.degrees])
            there["mix_message"], there["mix_message_T"] = at(mix), at(mix.transpose(1, 2))
            there["radial"] = at(layer.message.radial * signs.repeat_interleave(channels))
        if layer.send is not None and layer.send_bias is not None:
            there["send"], there["send_T"] = at(layer.send.weight), at(layer.send.weight.transpose(1, 2))
            there["send_bias"] = at(layer.send_bias)
        layers.append(_Layer(**there))
    return _model_type(len(layers))(
        channels=None if model.neighbor_channels is None else at(model.neighbor_channels),
        density_gate=gate(model.density_gate.table, (-1,)),
        cutoff=model.geometry.cutoff,
        stretch=model.geometry.stretch,
        layers=(_Layer * len(layers))(*layers),
    )
