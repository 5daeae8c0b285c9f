"""Which labels are learned: from the config's slots and what the training data have.

A slot names labels by our name or by the user's, as `label_keys` pairs them. Without any slot the labels
are energy, forces and stress, each if it is there.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from physicsml_ase.atoms import find_label
from physicsml_ase.config import did_you_mean
from physicsml_ase.conventions import PROPERTIES, InputError, Label, Level
from physicsml_ase.data.roles import refuse_unsaid_roles
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.data.sources import (
    Source,
    available_keys,
    describe_missing,
    gradient_keys,
    rival_keys,
    suggest_label_keys,
)

log = logging.getLogger("physicsml_ase")

DEFAULT = ("energy", "forces", "stress")
SAMPLE = 50
"""Frames of each source, evenly spaced, in which labels are looked for first."""
ASYMMETRIC = 1e-2
"""Largest antisymmetric component of a matrix, as a part of its largest one, that is taken for noise."""
SEARCHED = 200_000
"""Frames of each source, evenly spaced, in which a label that nobody named is looked for."""

SLOTS: dict[str, tuple[Level, tuple[int, ...]]] = {
    "y_graph_scalars": ("structure", ()),
    "y_graph_vector": ("structure", (3,)),
    "y_graph_tensor": ("structure", (3, 3)),
    "y_node_scalars": ("atom", ()),
    "y_node_vector": ("atom", (3,)),
    "y_edge_scalars": ("edge", ()),
    "y_edge_vector": ("edge", (3,)),
}


def resolve_labels(config: DataModuleConfig, sources: Sequence[Source]) -> tuple[Label, ...]:
    """The labels to learn, said aloud where they were not named.

    Raises `InputError` for a label that no frame has, with the keys that were found.
    """
    named = [label for slot in SLOTS for label in _in_slot(config, slot, sources)]
    known_names = [*PROPERTIES, *(label.name for label in named)]
    for name in config.label_keys:
        if name not in known_names:
            raise InputError(
                f"datamodule.label_keys: {name!r} is no label; {did_you_mean(name, known_names)}"
            )
    if named:
        _refuse_twice(named)
        for label in named:
            if not _occurs(label, sources):
                raise InputError(describe_missing(sources[0][0], [label.key], sources[0].name))
        forces = _known("forces", config.label_keys)
        refuse_unsaid_roles(named, config.label_keys, _occurs(forces, sources, everywhere=False))
        _tell_how_read_off(named)
    else:
        known = [_known(name, config.label_keys) for name in DEFAULT]
        seen = _seen({label.key for label in known}, sources, SEARCHED)
        for label in known:
            if label.key not in seen and label.name in config.label_keys and not _occurs(label, sources):
                raise InputError(describe_missing(sources[0][0], [label.key], sources[0].name))
        named = [label for label in known if label.key in seen or label.name in config.label_keys]
        names = [label.name for label in named]
        if not {"energy", "forces"} & set(names):
            lacking = [label.key for label in known[:2]]
            raise InputError(
                describe_missing(sources[0][0], lacking, sources[0].name, also=[x.name for x in known])
            )
        log.info("labels found and learned: %s", ", ".join(names))
        if len(names) < len(known) and max(map(len, sources)) > SEARCHED:
            log.info("other labels were looked for in %d frames of each source only", SEARCHED)
        others = _tell_of_others(known, set(names), sources)
        if "forces" not in names:
            log.warning(
                "the training data have no forces%s: only energies are learned, which needs many more structures",
                f" but {others['forces']}" if "forces" in others else "",
            )
        _tell_of_gradients(set(names), sources)
        _tell_of_rivals({label.name for label in named if label.key == label.name}, sources)
    _tell_of_asymmetry(named, sources)
    if "energy" not in [label.name for label in named] and {"forces", "stress"} & {x.name for x in named}:
        free = Label("energy", "structure", (), "free_energy")
        there = _occurs(free, sources, everywhere=False)
        hint = "; label_keys={energy: free_energy} learns those that are there" if there else ""
        log.warning(
            "no energies are learned: forces will be right, energies only up to an unknown offset%s", hint
        )
    return tuple(named)


def rekey(labels: Sequence[Label], config: DataModuleConfig, source: Source) -> tuple[Label, ...]:
    """Labels of a trained model with the keys that other data have for them: as configured, as before, or ours."""
    found = []
    for label in labels:
        keys = (config.label_keys.get(label.name), label.key, label.name)
        choices = [label._replace(key=key) for key in dict.fromkeys(keys) if key is not None]
        found.append(next((c for c in choices if _occurs(c, [source], everywhere=False)), choices[0]))
    return tuple(found)


def _known(name: str, label_keys: dict[str, str]) -> Label:
    known = PROPERTIES[name]
    return Label(name, known.level, known.shape, label_keys.get(name, name))


def _in_slot(config: DataModuleConfig, slot: str, sources: Sequence[Source]) -> list[Label]:
    value: str | list[str] | None = getattr(config, slot)
    level, shape = SLOTS[slot]
    ours = {theirs: name for name, theirs in config.label_keys.items()}
    labels = []
    for given in [value] if isinstance(value, str) else value or []:
        name = given if given in config.label_keys else ours.get(given, given)
        label = Label(name, level, shape, config.label_keys.get(name, name))
        known = PROPERTIES.get(name)
        if slot == "y_graph_vector" and _is_per_atom(label, sources):
            label = label._replace(level="atom")
        elif known is not None and (known.level, known.shape) != (level, shape):
            right = next(s for s, kind in SLOTS.items() if kind == (known.level, known.shape))
            raise InputError(f"datamodule.{slot}: {name} belongs in {right}")
        labels.append(label)
    return labels


def _is_per_atom(label: Label, sources: Sequence[Source]) -> bool:
    """Whether what `y_graph_vector` names is one vector per atom: known as such, or of that shape in the data."""
    if label.name in PROPERTIES:
        return PROPERTIES[label.name].level == "atom" and PROPERTIES[label.name].shape == (3,)
    return not _fits(label, sources) and _fits(label._replace(level="atom"), sources)


def _sample(sources: Sequence[Source], size: int = SAMPLE) -> Iterator[tuple[Source, int]]:
    """At most `size` frames of each source, evenly spaced."""
    for source in sources:
        for i in np.unique(np.linspace(0, len(source) - 1, min(size, len(source))).astype(int)).tolist():
            yield source, i


def _seen(keys: set[str], sources: Sequence[Source], size: int) -> set[str]:
    """Those of the keys that some of at most `size` frames of each source have; no more are read than that takes."""
    seen = set[str]()
    for frames in (_sample(sources), _sample(sources, size)):
        for source, i in frames:
            seen |= keys & set[str]().union(*available_keys(source[i]).values())
            if seen == keys:
                return seen
        if size <= SAMPLE:
            break
    return seen


def _occurs(label: Label, sources: Sequence[Source], everywhere: bool = True) -> bool:
    """Whether some frame has something under the label's key; all are asked before the answer is no."""
    return bool(_seen({label.key}, sources, max(map(len, sources)) if everywhere else SAMPLE))


def _fits(label: Label, sources: Sequence[Source]) -> bool:
    """Whether the first frame of the sample that has the label has it in the label's shape.

    One of a single atom counts only where there are no others.
    """
    fits = False
    for source, i in _sample(sources):
        atoms = source[i]
        try:
            found = find_label(atoms, label, non_finite="missing") is not None
        except InputError:
            found = False
            if len(atoms) > 1:
                return False
        if found and len(atoms) > 1:
            return True
        fits = fits or found  # a vector of one atom and one of the structure look alike
    return fits


def _refuse_twice(labels: Sequence[Label]) -> None:
    names = [label.name for label in labels]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"datamodule: the label {twice[0]} is named in two slots")


def _tell_how_read_off(labels: Sequence[Label]) -> None:
    """What a label that is no known property is to the model, for it is not derived from any energy."""
    for label in labels:
        if label.name in PROPERTIES:
            continue
        if label.level == "structure":
            log.info(
                "label %s: learned as the mean over atoms; if it grows with the structure, set heads.%s.pool=sum",
                label.name,
                label.name,
            )
        else:
            log.info("label %s: learned as a quantity of each %s by itself", label.name, label.level)


def _tell_of_asymmetry(labels: Sequence[Label], sources: Sequence[Source]) -> None:
    """A warning where a matrix is not symmetric, as all are that a model gives."""
    for label in (x for x in labels if x.shape == (3, 3)):
        for source, i in _sample(sources):
            try:
                matrix = find_label(source[i], label, non_finite="missing")
            except InputError:  # said with the frame's name where the graphs are made
                continue
            if matrix is None or not np.isfinite(matrix).all():
                continue
            part = np.abs(matrix - matrix.T).max() / 2
            if part > ASYMMETRIC * np.abs(matrix).max():
                log.warning(
                    "%s: %s is not symmetric (by %.3g of %.3g): only its symmetric part can be learned",
                    *(source.where(i), label.key, part, np.abs(matrix).max()),
                )
                break


def _tell_of_rivals(used: set[str], sources: Sequence[Source]) -> None:
    """A warning where what is learned is there twice, and not the same."""
    for source, i in _sample(sources):
        rivals = {name: key for name, key in rival_keys(source[i]).items() if name in used}
        if rivals:
            pairs = ", ".join(f"{name} and {key}" for name, key in rivals.items())
            keys = ", ".join(f"{name}: {key}" for name, key in rivals.items())
            log.warning(
                "%s has other values in %s: the first of each is learned; label_keys={%s} learns the second",
                source.where(i),
                pairs,
                keys,
            )
            return


def _tell_of_gradients(names: set[str], sources: Sequence[Source]) -> None:
    """A hint where virials or gradients are there and what they could be made into is not."""
    for name, (key, how) in gradient_keys(sources[0][0]).items():
        if name not in names:
            log.warning("%s has %s, which is not used: write %s = %s", sources[0].name, key, name, how)


def _tell_of_others(labels: Sequence[Label], learned: set[str], sources: Sequence[Source]) -> dict[str, str]:
    """A hint where frames keep these labels under other names than those asked for; {our name: the first other}."""
    asked = {label.name: label.key for label in labels}
    others = dict[str, str]()
    for source, i in _sample(sources):
        found = suggest_label_keys(source[i], asked).items()
        new = {name: key for name, key in found if name in asked and name not in others}
        if new:
            pairs = ", ".join(f"{ours}: {key}" for ours, key in new.items())
            log.warning(
                "%s has other keys (%s), which are not used%s",
                source.where(i),
                pairs,
                ", as others have those asked for: 'physicsml-ase check FILE --fix OUT.xyz' writes all under ours"
                if learned & set(new)
                else " unless named by label_keys",
            )
            others |= new
    return others
