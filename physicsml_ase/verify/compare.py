"""How far two sets of results are apart, as one number without a unit."""

from collections.abc import Iterable

import numpy as np

from physicsml_ase.domain import Domain
from physicsml_ase.verify.subject import Floats, Results


def apart(
    domain: Domain, a: Results, b: Results, volume: float = 0.0, names: tuple[str, ...] | None = None
) -> float:
    """Largest difference of any result, as a part of the result's largest value.

    Values are taken for no smaller than what is typical of the training data: forces of 1e-9 eV/Å may differ by
    as much. Energies are the learned parts, the stress is compared as a virial. Infinite where one is not a
    number, or is not there.
    """
    compared = (a.keys() | b.keys()) if names is None else names
    return worst(_one(domain, name, a, b, volume) for name in compared)


def worst(values: Iterable[float]) -> float:
    """The largest, not a number where any is not one; Python's max would lose that."""
    found = list(values)
    return float(np.max(found)) if found else 0.0


def _one(domain: Domain, name: str, a: Results, b: Results, volume: float) -> float:
    if name not in a or name not in b or a[name].shape != b[name].shape:
        return np.inf
    x, y, least = a[name], b[name], domain.label_scales.get(name, 1.0)
    if name in ("energies", "forces"):
        least = domain.energy_scale
    elif name == "energy":
        least = domain.energy_scale * num_atoms(a)
    elif name == "stress":  # as a virial, of such forces times about an Å
        x, y, least = x * volume, y * volume, domain.energy_scale * num_atoms(a)
    if np.isinf(x).any() or np.isinf(y).any():
        return np.inf
    if not np.array_equal(np.isnan(x), np.isnan(y)) or (np.isnan(x).any() and name != "stress"):
        return np.inf  # without a volume there is no stress
    largest = max(_largest(x), least)
    return _largest(x - y) / largest


def num_atoms(results: Results) -> int:
    """Number of atoms of a structure, by its results; 1 where nothing tells."""
    return next((len(results[name]) for name in ("energies", "forces") if name in results), 1)


def _largest(x: Floats) -> float:
    finite = x[~np.isnan(x)]
    return float(np.abs(finite).max()) if finite.size else 0.0
