"""ANI of torchani: one network ensemble's member, from a state dict of torchani 2 or of the older versions.

A state dict has neither cut-offs nor the kind of cut-off, so that only the shapes of the published models, ANI-1x,
ANI-1ccx and ANI-2x, are taken, with their cut-offs. Of an ensemble each member becomes a potential of its own.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from ase.data import atomic_numbers
from ase.units import Hartree
from torch import Tensor

from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.importers.learned import LEARNED
from physicsml_ase.models.ani import PRESETS, ANIConfig, Preset
from physicsml_ase.potential import Potential

WEIGHT = re.compile(
    r"(?:potentials\.nnp\.)?neural_networks\.(?:members\.)?(?:(?P<member>\d+)\.)?(?:atomics\.)?(?P<symbol>[A-Z][a-z]?)"
    r"\.(?:layers\.)?(?P<layer>\d+|final_layer)\.(?P<kind>weight|bias)"
)
CONSTANTS = {
    "radial_eta": ("radial.eta", "EtaR"),
    "radial_shifts": ("radial.shifts", "ShfR"),
    "angular_eta": ("angular.eta", "EtaA"),
    "angular_shifts": ("angular.shifts", "ShfA"),
    "zeta": ("angular.zeta", "Zeta"),
    "sections": ("angular.sections", "ShfZ"),
}
"""Our name, torchani 2's and the older ones'."""


def import_torchani(path: Path, member: int = 0) -> Potential:
    """The potential in a file that `torch.save(model.state_dict(), path)` made of a model of torchani."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's errors have no common type
        raise InputError(
            f"{path} can not be read without running code in it, save the model's state_dict():"
            f" {type(error).__name__}"
        ) from None
    if not isinstance(state, Mapping) or not any(WEIGHT.fullmatch(str(name)) for name in state):
        raise InputError(f"{path} is no state dict of a model of torchani")
    return from_torchani(state, member)


def from_torchani(state: Mapping[str, Tensor], member: int = 0) -> Potential:
    """The potential with these weights; energies are in Hartree there."""
    members: dict[int, dict[str, dict[str, Tensor]]] = {}
    for name, value in state.items():
        match = WEIGHT.fullmatch(name)
        if match is not None:
            network = members.setdefault(int(match["member"] or 0), {}).setdefault(match["symbol"], {})
            network[f"{match['layer']}.{match['kind']}"] = value
    if member not in members:
        raise InputError(f"torchani: there is no member {member} among {sorted(members)}")
    networks = members[member]
    preset = _preset(networks)
    first = next(iter(networks.values()))
    numbers = {symbol: atomic_numbers[symbol] for symbol in networks}
    energies = state.get("energy_shifter.self_energies", torch.zeros(len(networks)))
    domain = Domain(
        cutoff=PRESETS[preset].cutoff,
        elements=tuple(sorted(numbers.values())),
        energy_scale=Hartree,
        atomic_energies={numbers[s]: float(e) * Hartree for s, e in zip(networks, energies)},
    )
    config = validate(ANIConfig, {"which_ani": preset, "cutoff_function": "cosine"})
    potential = Potential(config, domain, LEARNED).to(next(iter(first.values())).dtype)
    try:
        potential.load_state_dict(dict(_renamed(state, networks)))
    except RuntimeError as error:
        raise InputError(f"torchani: other than {preset}: {' '.join(str(error).split())[:300]}") from None
    return potential


def _preset(networks: Mapping[str, Mapping[str, Tensor]]) -> Preset:
    """The published model that has these elements, in this order."""
    for name in ("ani1x", "ani2x"):
        if list(PRESETS[name].widths) == list(networks):
            return name
    known = " or ".join(" ".join(PRESETS[name].widths) for name in ("ani1x", "ani2x"))
    raise InputError(f"torchani: elements {' '.join(networks)} can not be imported, only {known}")


def _renamed(
    state: Mapping[str, Tensor], networks: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Our names and what they have."""
    for ours, theirs in CONSTANTS.items():
        for name, value in state.items():
            if name.endswith(tuple(f"aev_computer.{x}" for x in theirs)):
                yield f"model.aev.{ours}", value.flatten()
    for symbol, network in networks.items():
        weights = [name for name in network if name.endswith("weight")]
        ordered = sorted(weights, key=lambda name: (not name[0].isdigit(), name))  # final_layer last
        for k, name in enumerate(ordered):
            layer = "final" if k == len(ordered) - 1 else f"hidden.{k}"
            for kind in ("weight", "bias"):
                value = network[name.replace("weight", kind)]
                yield f"model.networks.{symbol}.{layer}.{kind}", value
