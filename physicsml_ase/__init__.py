"""Train machine-learned interatomic potentials on ASE data and run them in ASE."""

from typing import TYPE_CHECKING

from physicsml_ase.version import __version__

if TYPE_CHECKING:
    from physicsml_ase.api import PhysicsMLModel, load_model
    from physicsml_ase.calculator import PhysicsMLCalculator

__all__ = ["PhysicsMLCalculator", "PhysicsMLModel", "__version__", "load_model"]

_HOMES = {
    "PhysicsMLCalculator": "physicsml_ase.calculator",
    "PhysicsMLModel": "physicsml_ase.api",
    "load_model": "physicsml_ase.api",
}


def __getattr__(name: str) -> object:
    # looked up when asked for: the command line's --help needs no torch, the calculator no Lightning
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
