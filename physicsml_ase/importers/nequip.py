"""NequIP of nequip: what `dump_nequip.py` wrote of its checkpoint or package, by name."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from physicsml_ase.config import validate
from physicsml_ase.importers.allegro import from_allegro
from physicsml_ase.importers.learned import LEARNED
from physicsml_ase.importers.nequip_parts import (
    basis_settings,
    by_number,
    load,
    make_domain,
    matrices,
    read_dump,
    refuse,
    shared,
)
from physicsml_ase.models.nequip import NequIPConfig, channels, hidden
from physicsml_ase.nn.couplings import irreps_text, parse_irreps
from physicsml_ase.potential import Potential


def import_nequip(path: Path) -> Potential:
    """The potential in a file that `dump_nequip.py` wrote, of NequIP or Allegro."""
    meta, state = read_dump(path)
    return (from_allegro if meta["architecture"] == "allegro" else from_nequip)(meta, state)


def from_nequip(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> Potential:
    """The potential with these hyperparameters and weights."""
    layers = meta["layers"]
    last = parse_irreps(layers[-1]["hidden"])
    first = parse_irreps(layers[0]["hidden"])
    lmax = parse_irreps(meta["harmonics"])[-1].ir.l
    muls = {ir.l: mul for mul, ir in (first if len(layers) > 1 else last)}
    settings = {
        "num_layers": len(layers),
        "max_ell": lmax,
        "parity": len(layers) == 1 or len({ir for _, ir in first}) > len(muls),
        "num_features": tuple(muls.get(degree, last[0].mul) for degree in range(lmax + 1)),
        **basis_settings(meta, state),
        "invariant_layers": len(layers[0]["radial"]),
        "invariant_neurons": state["layer0.radial.0"].shape[1],
        "self_connection": any(layer["self_connection"] for layer in layers),
        "resnet": any(layer["resnet"] for layer in layers),
        "embedding_features": state["embedding"].shape[1],
        "readout_layers": len(meta["readout"]),
        "readout_neurons": state["readout.0"].shape[1] if meta["readout"] else None,
    }
    config = validate(NequIPConfig, settings)
    wanted = irreps_text(hidden(channels(config), config.parity))
    refuse(meta, {
        "hidden": all(irreps_text(parse_irreps(x["hidden"])) == wanted for x in layers[:-1]),
        "last layer": [term.ir for term in last] == [(0, 1)] and last[0].mul == channels(config)[0],
        "nonlinearity": {x["nonlinearity"] for x in layers} == {"Gate"},
        "self_connection": [x["self_connection"] for x in layers]
        == [False] + [config.self_connection] * (len(layers) - 1),
        "radial networks": len({tuple(x["radial"]) for x in layers}) == 1,
        "bessel_factor": math.isclose(meta["bessel_factor"], 2 * math.pi / meta["r_max"] ** 2),
    })  # fmt: skip
    domain = make_domain(meta, state)
    potential = Potential(config, domain, LEARNED).to(state["readout.0"].dtype)
    load(potential, dict(_renamed(potential, meta, state)))
    return potential


def _renamed(
    potential: Potential, meta: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Our names and what they have."""
    yield from shared(meta, state)
    yield "model.embed.elements.weight", by_number(meta, state["embedding"])
    for k, layer in enumerate(potential.model.layers):
        ours, theirs = f"model.layers.{k}", f"layer{k}"
        yield from matrices(f"{ours}.conv.radial", f"{theirs}.radial", state)
        for n, (_, _, ir) in enumerate(layer.conv.features):
            yield f"{ours}.conv.send.{n}", state[f"{theirs}.send.{ir}"]
        for n, ir in enumerate(layer.conv.targets):
            yield f"{ours}.conv.receive.{n}", state[f"{theirs}.receive.{ir}"]
        if layer.connection is not None:
            for n, ir in enumerate(layer.connection.irreps):
                yield f"{ours}.connection.weights.{n}", state[f"{theirs}.connection.{ir}"]
