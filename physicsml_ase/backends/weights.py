"""A Gaunt-ACE model as the kernel in C++ reads it: `memory.h` has the same structures. M = (lmax + 1)^2."""

import ctypes
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from physicsml_ase.models.gaunt_ace import GauntACE, Layer
from physicsml_ase.nn.sphere import harmonics, quadrature

Floats = NDArray[np.float64]
POINTER = ctypes.c_void_p
MOST_THREADS = 1024
"""For so many threads the kernel has places."""
ZEROS = (0, 1, 2, 4, 3, 5, 6)
"""Kinds of orbits of the grid's points, by bits of the coordinates that are zero, in the kernel's order."""


def address(array: NDArray[Any]) -> int:
    """Where the numbers of an array lie."""
    if not array.flags.c_contiguous:
        raise ValueError("the kernel takes contiguous arrays")
    return array.ctypes.data


class _Grid(ctypes.Structure):
    _fields_ = [("inward", POINTER), ("outward", POINTER), ("orbits", ctypes.c_int64 * 7)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *(
            (name, POINTER)
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
        *((name, POINTER) for name in ("channels", "density_gate")),
        *((name, ctypes.c_float) for name in ("cutoff", "stretch")),
        ("layers", _Layer * layers),
    ]
    return type("_Model", (ctypes.Structure,), {"_fields_": fields})


def _layers(model: GauntACE) -> list[Layer]:
    return [layer for layer in model.layers if isinstance(layer, Layer)]


def compiled_sizes(model: GauntACE) -> dict[str, int]:
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


def kernel_weights(model: GauntACE, keep: list[NDArray[np.float32]]) -> ctypes.Structure:
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

    sizes = compiled_sizes(model)
    degrees, channels, nu = sizes["MAX_ELL"] + 1, sizes["CHANNELS"], sizes["CORRELATION"]
    layers = []
    for layer in _layers(model):
        product, readout = layer.product, layer.readout
        inward, outward, orbits = _grid(degrees - 1, nu, product.L)
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
