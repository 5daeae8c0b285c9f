"""Errors of every structure and atom of an evaluation, for distributions and the worst of them."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from physicsml_ase.evaluate import Evaluation
from physicsml_ase.plots.style import Array


@dataclass(frozen=True)
class FrameErrors:
    """A structure and its errors."""

    atoms: Atoms
    where: str
    group: str
    energy: float  # predicted less reference, by atom [eV/atom]; NaN without a label
    force: float  # largest of any atom [eV/Å]; NaN without labels
    atom: int | None  # where that is


@dataclass
class Errors:
    """Errors of a set, by what they are of."""

    by_quantity: dict[str, Array] = field(default_factory=dict)
    """Predicted less reference, (K,), in the quantity's unit; energies by atom."""
    energy_by_group: dict[str, Array] = field(default_factory=dict)
    force_by_group: dict[str, Array] = field(default_factory=dict)
    """Lengths of the error vectors [eV/Å]."""
    force_by_element: dict[str, Array] = field(default_factory=dict)
    force_size: Array = field(default_factory=lambda: np.zeros(0))
    """Lengths of the reference forces [eV/Å]."""
    force_error: Array = field(default_factory=lambda: np.zeros(0))
    worst: list[FrameErrors] = field(default_factory=list)


def errors_of(evaluation: Evaluation, group_key: str = "config_type", num_worst: int = 6) -> Errors:
    """Every error of an evaluation; energies of structures come first among the worst where there are no forces."""
    values: dict[str, list[Array]] = defaultdict(list)
    groups: dict[str, dict[str, list[Array]]] = {"energy": defaultdict(list), "forces": defaultdict(list)}
    elements: dict[str, list[Array]] = defaultdict(list)
    sizes, lengths = list[Array](), list[Array]()
    frames = list[FrameErrors]()
    for k, atoms in enumerate(evaluation.frames()):
        found = atoms.calc.results
        group = str(atoms.info.get(group_key, "")) or "none"
        energy, force, atom = np.nan, np.nan, None
        if "ref_energy" in atoms.info and "energy" in found:
            energy = (found["energy"] - float(atoms.info["ref_energy"])) / len(atoms)
            values["energy"].append(np.array([energy]))
            groups["energy"][group].append(np.array([energy]))
        if "ref_forces" in atoms.arrays and "forces" in found:
            reference = atoms.arrays["ref_forces"]
            error = found["forces"] - reference
            length = np.linalg.norm(error, axis=1)
            values["forces"].append(error.ravel())
            groups["forces"][group].append(length)
            sizes.append(np.linalg.norm(reference, axis=1))
            lengths.append(length)
            for symbol in sorted(set(atoms.symbols)):
                elements[symbol].append(length[np.array(atoms.symbols) == symbol])
            atom = int(length.argmax())
            force = float(length[atom])
        kept = (key for key in (*atoms.info, *atoms.arrays) if key.startswith("ref_"))
        for name in sorted({key.removeprefix("ref_") for key in kept} - {"energy", "forces"}):
            _other(name, atoms, values)
        frames.append(FrameErrors(atoms, evaluation.source.where(k), group, energy, force, atom))
        if len(frames) > 200:
            frames = _worst(frames, num_worst)
    return Errors(
        by_quantity={name: np.concatenate(parts) for name, parts in values.items()},
        energy_by_group={name: np.concatenate(parts) for name, parts in groups["energy"].items()},
        force_by_group={name: np.concatenate(parts) for name, parts in groups["forces"].items()},
        force_by_element={name: np.concatenate(parts) for name, parts in elements.items()},
        force_size=np.concatenate(sizes) if sizes else np.zeros(0),
        force_error=np.concatenate(lengths) if lengths else np.zeros(0),
        worst=_worst(frames, num_worst),
    )


def _other(name: str, atoms: Atoms, values: dict[str, list[Array]]) -> None:
    reference = atoms.info.get(f"ref_{name}", atoms.arrays.get(f"ref_{name}"))
    predicted = atoms.calc.results.get(name, atoms.info.get(name, atoms.arrays.get(name)))
    if reference is None or predicted is None:
        return
    predicted, reference = np.asarray(predicted), np.asarray(reference)
    if name == "stress" and reference.shape == (3, 3):
        predicted = predicted[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
    if predicted.shape == reference.shape:
        values[name].append(np.ravel(predicted - reference))


def _worst(frames: list[FrameErrors], number: int) -> list[FrameErrors]:
    """Those with the largest errors of forces, and of energies, the former first; half and half."""
    by_force = sorted((f for f in frames if np.isfinite(f.force)), key=lambda f: -f.force)
    by_energy = sorted((f for f in frames if np.isfinite(f.energy)), key=lambda f: -abs(f.energy))
    chosen = by_force[: number if not by_energy else number - number // 3]
    known = {id(f) for f in chosen}
    chosen += [f for f in by_energy if id(f) not in known][: number - len(chosen)]
    return chosen
