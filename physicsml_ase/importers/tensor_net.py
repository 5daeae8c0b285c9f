"""TensorNet of torchmd-net: its checkpoint's hyperparameters and weights, by name.

The pairs of torchmd-net point from neighbour to centre, ours from centre to neighbour, so that antisymmetric parts
have the other sign; its readout has F / 2 hidden units, ours F, of which half stay without weight.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.importers.learned import LEARNED
from physicsml_ase.models.tensor_net import TensorNetConfig
from physicsml_ase.nn.features import NUM_ELEMENTS
from physicsml_ase.potential import Potential

REQUIRED: dict[str, tuple[object, ...]] = {
    "model": ("tensornet",),
    "activation": ("silu",),
    "cutoff_lower": (0, None),
    "output_model": ("Scalar",),
    "output_mlp_num_layers": (0, None),
    "reduce_op": ("sum", "add", None),
    "rbf_type": ("expnorm", "gauss"),
}
"""What can be imported, where the hyperparameter is there."""
BASIS = {"expnorm": ("means", "betas"), "gauss": ("offset", "coeff")}


def import_torchmdnet(path: Path, elements: tuple[int, ...], energy_unit: float = 1.0) -> Potential:
    """The potential in a checkpoint of torchmd-net; `energy_unit` is its unit [eV], its lengths are Å.

    A checkpoint does not say which elements it was trained on: `elements` are the atomic numbers to be used.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return from_torchmdnet(content["hyper_parameters"], content["state_dict"], elements, energy_unit)
    except (KeyError, TypeError, OSError, RuntimeError, EOFError, ImportError) as error:
        raise InputError(f"{path} is no checkpoint of a TensorNet of torchmd-net: {error}") from None
    except Exception as error:  # pickle's errors have no common type
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} can not be read without running code in it: {type(error).__name__}"
        ) from None


def from_torchmdnet(
    args: Mapping[str, Any], state: Mapping[str, Tensor], elements: tuple[int, ...], energy_unit: float = 1.0
) -> Potential:
    """The potential with these hyperparameters and weights."""
    for name, allowed in REQUIRED.items():
        if args.get(name, allowed[0]) not in allowed:
            raise InputError(f"torchmd-net: {name} = {args[name]!r} can not be imported, only {allowed[0]!r}")
    state = {name.removeprefix("model."): value for name, value in state.items()}
    if "check_errors" in args:  # before the layout of its matrices was changed
        state = dict(_in_new_order(state))
    if float(state.get("mean", torch.zeros(()))) != 0:
        raise InputError("torchmd-net: a mean of all structures' energies can not be imported, only a scale")
    config = validate(
        TensorNetConfig,
        {
            "hidden_channels": args["embedding_dimension"],
            "num_layers": args["num_layers"],
            "num_radial": args["num_rbf"],
            "radial_basis": args["rbf_type"],
            "trainable_radial": bool(args["trainable_rbf"]),
            "equivariance_group": args["equivariance_invariance_group"],
            "cutoff_function": "cosine",
        },
    )
    domain = Domain(
        cutoff=float(args["cutoff_upper"]),
        elements=tuple(sorted(elements)),
        energy_scale=float(state.get("std", torch.ones(()))) * energy_unit,
        atomic_energies=_atomic_energies(args, state, elements, energy_unit),
    )
    potential = Potential(config, domain, LEARNED).to(state["representation_model.linear.weight"].dtype)
    missing = potential.load_state_dict(dict(_renamed(config, state)), strict=False)
    left_out = [name for name in missing.missing_keys if "wall" not in name]
    if left_out or missing.unexpected_keys:
        raise InputError(f"torchmd-net: weights without counterpart: {left_out + missing.unexpected_keys}")
    return potential


def _atomic_energies(
    args: Mapping[str, Any], state: Mapping[str, Tensor], elements: tuple[int, ...], energy_unit: float
) -> dict[int, float]:
    """Of the prior `Atomref`, the only one that has a counterpart."""
    prior = args.get("prior_model")
    if not prior:
        return {}
    table = state.get("prior_model.0.atomref.weight")
    if table is None or any(name.startswith("prior_model.1.") for name in state):
        raise InputError(f"torchmd-net: prior {prior!r} can not be imported, only Atomref")
    high = [chemical_symbols[z] for z in elements if z >= table.shape[0]]
    if high:
        raise InputError(f"torchmd-net: no reference energy of {', '.join(high)}")
    return {z: float(table[z, 0]) * energy_unit for z in elements}


def _renamed(config: TensorNetConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and what they have."""
    basis = BASIS.get(config.radial_basis, ())
    for name in basis:
        yield f"model.radial.{name}", state[f"representation_model.distance_expansion.{name}"]
    theirs, ours = "representation_model.tensor_embedding.", "model.embedding."
    elements = state[theirs + "emb.weight"]
    table = elements.new_zeros(NUM_ELEMENTS, elements.shape[1])
    rows = min(NUM_ELEMENTS, elements.shape[0])
    table[:rows] = elements[:rows]
    yield ours + "embed.elements.weight", table
    for kind in ("weight", "bias"):
        yield f"{ours}pair.{kind}", state[f"{theirs}emb2.{kind}"]
        yield f"{ours}norm.{kind}", state[f"{theirs}init_norm.{kind}"]
        one, antisymmetric, symmetric = (state[f"{theirs}distance_proj{k}.{kind}"] for k in (1, 2, 3))
        yield f"{ours}distance.{kind}", torch.cat([one, -antisymmetric, symmetric])
        for k in range(2):
            yield f"{ours}scalars.{k}.{kind}", state[f"{theirs}linears_scalar.{k}.{kind}"]
        for layer in range(config.num_layers):
            for k in range(3):
                name = f"layers.{layer}.%s.{k}.{kind}"
                yield "model." + name % "scalars", state["representation_model." + name % "linears_scalar"]
        yield f"model.norm.{kind}", state[f"representation_model.out_norm.{kind}"]
        yield f"model.out.{kind}", state[f"representation_model.linear.{kind}"]
    for part in range(3):
        yield f"{ours}mix.{part}.weight", state[f"{theirs}linears_tensor.{part}.weight"]
        for layer in range(config.num_layers):
            name = f"layers.{layer}.%s.%d.weight"
            for ours_name, first in (("before", 0), ("after", 3)):
                weight = state["representation_model." + name % ("linears_tensor", first + part)]
                yield "model." + name % (ours_name, part), weight
    yield from _readout(config.hidden_channels, state)


def _readout(f: int, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """F / 2 hidden units and the rest without weight."""
    name = "output_model.output_network.layers."
    if name + "0.weight" not in state:
        name = "output_model.output_network."
    weight = state[name + "0.weight"]
    wide, bias, out = weight.new_zeros(f, f), weight.new_zeros(f), weight.new_zeros(1, f)
    width = weight.shape[0]
    wide[:width], bias[:width], out[:, :width] = weight, state[name + "0.bias"], state[name + "2.weight"]
    yield "energy_head.0.weight", wide
    yield "energy_head.0.bias", bias
    yield "energy_head.2.weight", out
    yield "energy_head.2.bias", state[name + "2.bias"]


def _in_new_order(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Factors of the three parts one after the other, where they took turns."""
    for name, value in state.items():
        last = "tensor_embedding.linears_scalar.1." in name or (
            ".layers." in name and ".linears_scalar.2." in name
        )
        yield name, value.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1) if last else value
