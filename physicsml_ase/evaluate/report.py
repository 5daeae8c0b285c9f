"""What an evaluation found: as numbers, as a table that people read, and as files."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ase import Atoms

from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.sources import Source
from physicsml_ase.data.sources.files import naming
from physicsml_ase.domain import Domain
from physicsml_ase.evaluate.calibration import Calibration
from physicsml_ase.evaluate.errors import Quantity
from physicsml_ase.evaluate.frames import per_structure, predicted_atoms, write_frames
from physicsml_ase.evaluate.spool import Spool
from physicsml_ase.evaluate.table import as_text


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Errors of a potential on a source."""

    source: Source
    labels: tuple[Label, ...]
    domain: Domain
    """What the potential was told about its data."""
    quantities: Mapping[str, Quantity]
    structures_of: Mapping[str, int]
    """Number of structures of each group, "" for those of none."""
    atoms_of: Mapping[str, int]
    """Number of atoms of each element."""
    notes: list[str]
    """What a reader of the errors must know, one line each."""
    energies_are_relative: bool
    """The energies kept for plots are relative to the model's atomic energies."""
    spool: Spool = field(repr=False)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """Uncertainties against errors, of each label that has them."""

    @property
    def metrics(self) -> dict[str, object]:
        """Errors as plain data: `energy_per_atom_rmse` [eV/atom], `forces_rmse` [eV/Å, over components],
        `stress_rmse` [eV/Å³, over the nine components of the matrix], `<label>_rmse` [its unit], the same
        with `_mae`, and `per_element`, `per_config_type`, `counts`, `units`. Labels that the data lacks are
        left out."""
        found = {name: q for name, q in self.quantities.items() if q.structures}
        flat: dict[str, object] = {}
        for quantity in found.values():
            flat |= quantity.errors()
        per_element: dict[str, dict[str, float]] = {s: {"atoms": n} for s, n in self.atoms_of.items()}
        groups = {group: n for group, n in sorted(self.structures_of.items()) if group}
        per_group: dict[str, dict[str, float]] = {group: {"structures": n} for group, n in groups.items()}
        for quantity in found.values():
            for symbol, errors in quantity.by_element().items():
                per_element[symbol] |= errors
            for group, errors in quantity.by_group().items():
                per_group[group] |= errors
        counts: dict[str, object] = {
            "structures": sum(self.structures_of.values()),
            "atoms": sum(self.atoms_of.values()),
        }
        for label in self.labels:
            q = self.quantities[label.name]
            counts[label.name] = {
                "values": int(q.total[0]),
                "structures": q.structures,
                "missing": q.missing,
            }
        if calibrations := {name: c.numbers() for name, c in self.calibrations.items() if len(c)}:
            flat["calibration"] = calibrations
        return flat | {
            "per_element": per_element,
            "per_config_type": per_group,
            "counts": counts,
            "units": {name: q.unit for name, q in found.items()},
        }

    def table(self) -> str:
        """The errors as text, in the units that people use."""
        told = "".join(f"{c.in_words()}\n" for c in self.calibrations.values() if len(c))
        return as_text(self.source.name, self.metrics) + told

    def frames(self) -> Iterator[Atoms]:
        """The structures, predictions in the calculator's place and labels as `ref_energy`, `ref_forces`, ...."""
        structures = iter(self.source)
        for count, results, reference in self.spool:
            frames = [atoms for _, atoms in zip(range(count), structures)]
            sizes = [len(atoms) for atoms in frames]
            each = (per_structure(values, self.labels, sizes) for values in (results, reference))
            for atoms, predicted, labels in zip(frames, *each):
                yield predicted_atoms(atoms, predicted, labels, self.labels, self.domain)

    def write(self, directory: str | Path) -> None:
        """Write `metrics.json`, `metrics.txt`, `predictions.xyz`, `parity.png`, and `calibration.png` where there are
        uncertainties, each complete or not at all."""
        directory = Path(directory)
        refuse_own_folder(self.source, directory)
        directory.mkdir(parents=True, exist_ok=True)
        numbers = json.dumps(self.metrics, indent=2, ensure_ascii=False, allow_nan=False)
        _write_text(directory / "metrics.json", numbers + "\n")
        notes = "".join(f"note: {note}\n" for note in self.notes)
        _write_text(directory / "metrics.txt", self.table() + notes)
        write_frames(self.frames(), directory / "predictions.xyz")
        from physicsml_ase.plots import parity_figure, save

        save(parity_figure(self), directory / "parity.png")
        if any(len(c) for c in self.calibrations.values()):
            from physicsml_ase.plots.calibration import calibration_figure

            save(calibration_figure(self.calibrations), directory / "calibration.png")


def refuse_own_folder(source: Source, directory: Path) -> None:
    """Raise `InputError` where `Evaluation.write` would write over what is evaluated."""
    if source.reads(directory / "predictions.xyz"):
        raise InputError(f"{directory / 'predictions.xyz'}: is what is evaluated; give another folder (-o)")


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
