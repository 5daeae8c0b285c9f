"""One pass over a source: predictions against labels."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from physicsml_ase.atoms import find_label
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.labels import rekey
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.data.sources import Source, SourceSpec, describe_missing, open_source
from physicsml_ase.evaluate.calibration import Calibration, compare_sigma
from physicsml_ase.evaluate.errors import Array, Owners, Quantity
from physicsml_ase.evaluate.frames import levels_of
from physicsml_ase.evaluate.predict import Batch, Predictor, predict_batches
from physicsml_ase.evaluate.report import Evaluation
from physicsml_ase.evaluate.spool import Spool

log = logging.getLogger("physicsml_ase")

SHIFTED = 5.0
"""A mean error of the energies this many times its spread is a shifted reference, not a bad model."""
SMALLEST_SHIFT = 0.01  # eV/atom


def evaluate(
    potential: Predictor,
    source: SourceSpec,
    *,
    batch_atoms: int | None = None,
    label_keys: Mapping[str, str] | None = None,
    group_key: str = "config_type",
    uncertainty: bool = False,
) -> Evaluation:
    """Errors of a potential against the labels of a source, which is read as a stream.

    Labels are looked for under the keys in `label_keys` ({our name: key in this data}), then under those that
    the potential was trained with, then under our names. `group_key` of `Atoms.info` names groups of
    structures that are also counted by themselves. Structures without a label are left out of that label's
    errors, and counted. `uncertainty` has the last layer's uncertainties computed and compared with the errors,
    as those of a committee, and those that a model has learned, always are. Raises `InputError`, before anything is
    computed, where no structure has a label that the model gives.
    """
    source = open_source(source)
    labels = _with_keys(potential.labels, label_keys or {}, source)
    if not _labelled(source, labels):
        raise InputError(f"nothing to compare with: {_lacking(source, labels)}")
    told = bool(potential.references.table.any())
    quantities = _quantities(labels)
    references = potential.references.table.cpu().numpy()
    structures_of = Counter[str]()
    atoms_of = np.zeros(len(chemical_symbols), dtype=np.int64)
    energy_errors: list[Array] = []
    calibrations: dict[str, Calibration] = {}
    not_finite: list[str] = []
    levels, spool = levels_of(labels), Spool()
    done = 0
    for batch in predict_batches(potential, source, labels, batch_atoms=batch_atoms, uncertainty=uncertainty):
        groups = [_group(atoms, group_key) for atoms in batch.frames]
        structures_of.update(groups)
        numbers = batch.graph.atomic_numbers.numpy()
        atoms_of += np.bincount(numbers, minlength=len(atoms_of))
        for label in labels:
            energy_errors += _count_in(quantities, label, batch, groups, references[numbers])
            compare_sigma(calibrations, label, batch)
            not_finite += _not_finite(label, batch, [source.where(done + k) for k in range(len(groups))])
        kept = {k: v for k, v in batch.results.items() if levels[k] != "edge"}
        targets = {k: v.numpy() for k, v in batch.graph.targets.items() if levels[k] != "edge"}
        spool.append(len(groups), kept, targets)
        done += len(groups)
    notes = _renamed(potential.labels, labels, label_keys or {})
    notes += _notes(labels, quantities, energy_errors, not_finite)
    for note in notes:
        log.warning("%s", note)
    if not any(quantity.structures for quantity in quantities.values()):
        raise InputError(f"nothing to compare with: {_lacking(source, labels)}")
    return Evaluation(
        source=source,
        labels=labels,
        domain=potential.domain,
        quantities=quantities,
        structures_of=dict(structures_of),
        atoms_of={chemical_symbols[z]: int(atoms_of[z]) for z in np.flatnonzero(atoms_of)},
        notes=notes,
        energies_are_relative=told,
        spool=spool,
        calibrations=calibrations,
    )


def _with_keys(labels: Sequence[Label], keys: Mapping[str, str], source: Source) -> tuple[Label, ...]:
    unknown = [name for name in keys if name not in {label.name for label in labels}]
    if unknown:
        known = ", ".join(label.name for label in labels)
        raise InputError(f"label_keys: {unknown[0]} is not a label of this model ({known})")
    return rekey(labels, DataModuleConfig(label_keys=dict(keys)), source)


def _labelled(source: Source, labels: Sequence[Label]) -> bool:
    """Whether any structure has a label; as a rule the first has."""
    return any(
        find_label(atoms, label, source.where(k), "missing") is not None
        for k, atoms in enumerate(source)
        for label in labels
    )


def _lacking(source: Source, labels: Sequence[Label]) -> str:
    """What the first structure has instead of these labels, and how to say that it is them."""
    found = describe_missing(source[0], [label.key for label in labels], source.where(0), "label_keys")
    return f"{found} (--label-key NAME=KEY)" if "label_keys=" in found else found


def _renamed(trained: Sequence[Label], labels: Sequence[Label], asked: Mapping[str, str]) -> list[str]:
    """Labels that these data have under another key than was asked for or trained with."""
    wanted = [asked.get(label.name, label.key) for label in trained]
    return [
        f"no {key} in these data: compared with {label.key}"
        for key, label in zip(wanted, labels)
        if key != label.key
    ]


def _quantities(labels: Sequence[Label]) -> dict[str, Quantity]:
    """What is compared; energies both by atom and as they are."""
    found = {}
    for label in labels:
        if label.name == "energy":
            found["energy_per_atom"] = Quantity("energy_per_atom", "structure", "eV/atom")
        found[label.name] = Quantity(label.name, label.level, label.unit)
    return found


def _count_in(
    quantities: Mapping[str, Quantity], label: Label, batch: Batch, groups: Sequence[str], e0: Array
) -> list[Array]:
    """Add a batch's values of one label; of energies, return the errors per atom too."""
    graph = batch.graph
    owner = graph.batch.numpy()
    places = {
        "structure": Owners(np.arange(len(groups)), None),
        "atom": Owners(owner, graph.atomic_numbers.numpy()),
        "edge": Owners(owner[graph.edge_index[0].numpy()], None),
    }
    reference = graph.targets[label.name].numpy()
    rows = (len(reference), int(np.prod(label.shape, dtype=int)))
    reference, prediction = reference.reshape(rows), batch.results[label.name].reshape(rows)
    if label.name != "energy":
        quantities[label.name].add(prediction, reference, places[label.level], groups)
        return []
    num_atoms = graph.num_atoms.numpy()[:, None]
    shift = np.bincount(owner, e0, minlength=len(groups)).astype(np.float64)  # (S,)
    quantities["energy"].add(prediction, reference, places["structure"], groups, shift)
    quantities["energy_per_atom"].add(
        prediction / num_atoms, reference / num_atoms, places["structure"], groups, shift / num_atoms[:, 0]
    )
    errors = ((prediction - reference) / num_atoms)[:, 0]
    return [errors[np.isfinite(errors)]]


def _group(atoms: Atoms, key: str) -> str:
    """The group that a structure belongs to, also where an ASE db row keeps it; "" for none."""
    pairs = atoms.info.get("key_value_pairs")
    found = atoms.info.get(key, pairs.get(key) if isinstance(pairs, dict) else None)
    return "" if found is None else str(found)


def _not_finite(label: Label, batch: Batch, where: Sequence[str]) -> list[str]:
    """Structures of a batch whose label is there, but NaN or infinite in places."""
    missing = np.isnan(batch.graph.targets[label.name].numpy())
    if not missing.any():
        return []
    return [
        f"{label.key} in {place}"
        for atoms, place in zip(batch.frames, where)
        if (value := find_label(atoms, label, place, "missing")) is not None and np.isnan(value).any()
    ]


def _notes(
    labels: Sequence[Label],
    quantities: Mapping[str, Quantity],
    energy_errors: Sequence[Array],
    not_finite: Sequence[str],
) -> list[str]:
    """What a reader of the errors must know."""
    notes = []
    if not_finite:
        more = f" and {len(not_finite) - 3} more" if len(not_finite) > 3 else ""
        notes.append(f"values that are not finite were left out: {', '.join(not_finite[:3])}{more}")
    nowhere = [label.key for label in labels if not quantities[label.name].structures]
    if nowhere and len(nowhere) < len(labels):
        notes.append(f"no structure has {', '.join(nowhere)}")
    for label in labels:
        q = quantities[label.name]
        if q.structures and q.missing:
            notes.append(f"{q.missing} of {q.structures + q.missing} structures have no {label.key}")
    errors = np.concatenate(energy_errors) if energy_errors else np.zeros(0)
    if len(errors) > 2:
        mean, spread = float(errors.mean()), float(errors.std())
        if abs(mean) > max(SHIFTED * spread, SMALLEST_SHIFT):
            notes.append(
                f"the energies are off by {mean:+.6g} eV/atom on average, with a spread of only {spread:.3g} "
                "eV/atom: this data has another energy reference than the model's training data"
            )
    return notes
