"""Allegro of nequip-allegro: what `dump_nequip.py` wrote of its checkpoint or package, by name."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from physicsml_ase.config import validate
from physicsml_ase.importers.learned import LEARNED
from physicsml_ase.importers.nequip_parts import (
    basis_settings,
    by_number,
    load,
    make_domain,
    matrices,
    refuse,
    shared,
)
from physicsml_ase.models.allegro import AllegroConfig
from physicsml_ase.nn.couplings import parse_irreps
from physicsml_ase.nn.strictly_local import harmonics, products
from physicsml_ase.potential import Potential


def from_allegro(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> Potential:
    """The potential with these hyperparameters and weights."""
    layers = meta["layers"]
    lmax = parse_irreps(meta["harmonics"])[-1].ir.l
    irreps = [tuple(ir for _, ir in parse_irreps(layer["out"])) for layer in layers]
    settings = {
        "num_layers": len(layers),
        "max_ell": lmax,
        "parity": any(ir not in harmonics(lmax) for out in irreps for ir in out),
        "num_scalar_features": meta["scalar_features"],
        "num_tensor_features": meta["tensor_features"],
        "embedding_features": state["basis.0"].shape[1],
        **basis_settings(meta, state),
        **network("two_body", meta["two_body"], state["two_body.0"]),
        **network("latent", layers[0]["latent"], state["layer0.latent.0"]),
        **network("readout", meta["readout"], state["readout.0"]),
        "path_channel_coupling": state["layer0.paths"].ndim == 2,
    }
    config = validate(AllegroConfig, settings)
    expected = [step.outputs for step in products(len(layers), lmax, config.parity)]
    refuse(meta, {"irreps of layers": irreps == expected})
    potential = Potential(config, make_domain(meta, state), LEARNED).to(state["readout.0"].dtype)
    load(potential, dict(_renamed(config, meta, state)))
    return potential


def network(name: str, kinds: list[str], first: Tensor) -> dict[str, int]:
    """Hidden layers of a network, and their width."""
    return {f"{name}_layers": len(kinds)} | ({f"{name}_neurons": first.shape[1]} if kinds else {})


def _renamed(
    config: AllegroConfig, meta: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Our names and what they have."""
    f, channels = config.num_scalar_features, config.num_tensor_features

    def by_degree(weight: Tensor) -> Tensor:  # from columns (U, L) to (L, U)
        return weight.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)

    def then_by_degree(weight: Tensor) -> Tensor:
        return torch.cat([weight[:, :f], by_degree(weight[:, f:])], dim=1)

    yield from shared(meta, state)
    yield "model.centre.elements.weight", by_number(meta, state["center"])
    yield "model.neighbor.elements.weight", by_number(meta, state["neighbor"])
    yield from matrices("model.spread", "basis", state)
    yield from matrices("model.two_body", "two_body", state)
    first = [then_by_degree(state["first.0"]), by_degree(state["tensors.0"])]
    yield "model.first.0.weight", torch.cat(first, dim=1).T
    for k in range(config.num_layers):
        yield (
            f"model.surroundings.{k}.paths",
            state[f"layer{k}.paths"].view(-1, state[f"layer{k}.paths"].shape[-1]),
        )
        for name, weight in matrices(f"model.latents.{k}", f"layer{k}.latent", state):
            is_last = name == f"model.latents.{k}.{2 * config.latent_layers}.weight"
            yield name, then_by_degree(weight.T).T if is_last else weight
