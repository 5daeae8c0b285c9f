"""Small models with random weights, and structures to compute with them."""

import functools

import torch
from conftest import DOMAIN, structures

import physicsml_ase.models  # noqa: F401  registers the architectures
from physicsml_ase.atoms import to_graph
from physicsml_ase.calculator import PhysicsMLCalculator
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import PROPERTIES, Label
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, collate
from physicsml_ase.potential import Potential

CUTOFF = DOMAIN.cutoff
on_cpu = functools.partial(PhysicsMLCalculator, device="cpu")
"""The calculator, of CPUs also where there is a GPU."""
ENERGY = ("energy", "forces", "stress")
SMALL = {"channels": 8, "num_radial": 4, "hidden": 6}
WALL = {"Cu-Cu": 2.9, "Au-Cu": 2.9, "Au-Au": 2.9, "C-H": 1.3, "H-H": 1.9, "C-O": 1.6}


def make(
    labels: tuple[str, ...] = ENERGY, domain: Domain = DOMAIN, name: str = "gaunt_ace", **settings: object
) -> Potential:
    """A small potential with random weights."""
    torch.manual_seed(1)
    config = validate(MODELS[name].config, {"name": name} | (SMALL if name == "gaunt_ace" else {}) | settings)
    wanted = tuple(Label(n, PROPERTIES[n].level, PROPERTIES[n].shape, n) for n in labels)
    return Potential(config, domain, wanted).eval().requires_grad_(False)


def graphs(cutoff: float = CUTOFF, attrs: tuple[str, ...] = ()) -> list[Graph]:
    """All kinds of structures, and batches of them."""
    frames = list(structures().values())
    for k, atoms in enumerate(frames):
        atoms.info["field"] = [0.1 * k, -0.2]
    singles = [to_graph(atoms, cutoff, attrs=attrs) for atoms in frames]
    return [*singles, collate(singles), collate(singles[:3])]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=tolerance, atol=tolerance, equal_nan=True)
