"""Labels that are missing, not finite, of the wrong shape, under other names, of two kinds of energy, or of several
levels of theory."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from physicsml_ase.atoms import find_label
from physicsml_ase.check.findings import Finding, Places, in_number
from physicsml_ase.check.frame import LABELS, Frame
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.sources import available_keys, gradient_keys, suggest_label_keys

THEORY = re.compile(
    r"functional|^xc$|^(?!.*(sampl|gener|relax|opt|fit)).*method|level_?of|theory|calculator|program|^code$|basis|^dft$|pseudo|dispersion",
    re.I,
)
"""Names under which people write how a frame was computed."""
FREE = Label("free_energy", "structure", (), "free_energy")
APART = 1e-4
"""Difference between energy and free energy [eV/atom] from which on it is said."""
MOST_VALUES = 20
"""A name with more values than this tells frames apart, not methods."""


class Labels:
    """Presence, finiteness and shape of energy, forces and stress."""

    def __init__(self, keys: Mapping[str, str], assumed: Mapping[str, str]) -> None:
        """`keys` are names that labels have been looked for under; those `assumed` of them the user did not give."""
        self.keys, self.assumed = dict(keys), dict(assumed)
        self.frames: Counter[str] = Counter()
        self.lacking: dict[tuple[str, str], Places] = defaultdict(Places)
        self.unlabelled = Places()
        self.learned = 0
        """Frames with an energy or forces under the names given, or ours."""
        self.faults: dict[str, Places] = defaultdict(Places)
        self.elsewhere: dict[tuple[tuple[str, str], ...], Places] = defaultdict(Places)
        """By pairs of our name and the one that it is under."""
        self.used: dict[str, set[str]] = defaultdict(set)
        """Names that each label has been found under."""
        self.found_elsewhere: list[str] = []
        self.to_convert: dict[tuple[str, str, str], Places] = defaultdict(Places)

    def see(self, frame: Frame) -> None:
        """One more frame."""
        self.frames[frame.set_] += 1
        for name in frame.missing:
            self.lacking[frame.set_, name].add(frame)
        for kind, message in frame.faults:
            self.faults[kind].add(frame, message)
        names = self._names(frame)
        for name, key in names.items():
            self.used[name].add(key)
        others = {name: key for name, key in names.items() if key != self._asked(name)}
        if others:
            self.elsewhere[tuple(others.items())].add(frame)
        if {"energy", "forces"} & (set(names) - set(others)):
            self.learned += 1
        elif not {"energy", "forces"} & set(others):
            self.unlabelled.add(frame)
            if not self.found_elsewhere:
                self.found_elsewhere = sorted(
                    {key for keys in available_keys(frame.atoms).values() for key in keys}
                )
        for name, (key, how) in gradient_keys(frame.atoms).items() if frame.missing else ():
            if name in _possible(frame) and name not in names:
                self.to_convert[name, key, how].add(frame)

    def _asked(self, name: str) -> str:
        """The name of a label that training would look for."""
        return name if name in self.assumed else self.keys.get(name, name)

    def _names(self, frame: Frame) -> dict[str, str]:
        """Which name each label of the frame is under."""
        names = suggest_label_keys(frame.atoms, self.keys) if frame.missing else {}
        names |= {name: self.keys.get(name, name) for name in LABELS if name not in frame.missing}
        return {name: names[name] for name in _possible(frame) if name in names}

    def findings(self) -> list[Finding]:
        """What was found."""
        total = sum(self.frames.values())
        found = self.faults["not-finite"].finding(
            "error",
            "not-finite",
            "{n} with a label that is NaN or infinite",
            "remove them, or count such values as missing with datamodule.non_finite_labels=missing",
        )
        found += self.faults["wrong-shape"].finding(
            "error", "wrong-shape", "{n} with a label of the wrong shape", "correct or remove the label"
        )
        for pairs, places in self.elsewhere.items():
            found += self._elsewhere(dict(pairs), places)
        if len(self.unlabelled) == total:
            keys = f"found {', '.join(self.found_elsewhere)}" if self.found_elsewhere else "no labels at all"
            found += self.unlabelled.finding(
                "error",
                "no-labels",
                f"no frame has an energy or forces ({keys})",
                "there is nothing to learn from",
            )
            return found
        found += self.unlabelled.finding(
            "warning", "unlabelled", "{n} without energy and forces", "training leaves them out"
        )
        for (name, key, how), places in self.to_convert.items():
            found += places.finding(
                "note",
                "to-convert",
                f"{{n}} without {name}, but with {key}, which is another quantity",
                f"to learn from it, write {name} = {how}",
            )
        for name in LABELS:
            found += self._missing(name, total)
        return found

    def _elsewhere(self, others: Mapping[str, str], places: Places) -> list[Finding]:
        """What is said of frames that have these labels, {ours: theirs}, under other names than those asked for."""
        given = {name: key for name, key in self.keys.items() if name not in self.assumed}
        named = given | dict(others)
        keys = ", ".join(f"{ours}: {key}" for ours, key in named.items())
        return places.finding(
            "warning" if self.learned else "error",
            "other-keys",
            f"{{n}} without {' and '.join(map(self._asked, others))}, but with {' and '.join(others.values())}",
            "if they are of one method, 'physicsml-ase check FILE --fix OUT.xyz' writes all under our names"
            if any(len(self.used[name]) > 1 for name in others)
            else f"name them with 'datamodule.label_keys={{{keys}}}', here with "
            + " ".join(f"--label-key {ours}={key}" for ours, key in named.items()),
        )

    def _missing(self, name: str, total: int) -> list[Finding]:
        """What is said of a label that some or all frames lack."""
        places = [p for (_, label), p in self.lacking.items() if label == name]
        count = sum(map(len, places))
        if count == total:
            if self.used[name]:  # under another name, as is said
                return []
            advice = {
                "energy": "forces alone leave the energy's offset unknown",
                "forces": "energies alone need many more structures",
            }
            return (
                [Finding("warning", f"no-{name}", f"no frame has {name}", advice[name])]
                if name in advice
                else []
            )
        found = []
        for (set_, label), p in self.lacking.items():
            if label == name and len(p):
                of = f"{in_number(len(p))} of {self.frames[set_]} ({set_})"
                found += p.finding(
                    "note",
                    f"missing-{name}",
                    f"{of} without {name}",
                    "learned from what they have; nothing is zero",
                )
        return found


class FreeEnergy:
    """Energies beside which there is a free energy that is another: that of smeared occupations."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys` are names that labels have been looked for under."""
        self.key = keys.get("energy", "energy")
        self.places = Places()
        self.apart: list[float] = []

    def see(self, frame: Frame) -> None:
        """One more frame."""
        if self.key == FREE.key or not np.isfinite(frame.energy):
            return
        try:
            free = find_label(frame.atoms, FREE, non_finite="missing")
        except InputError:
            return
        apart = np.nan if free is None else abs(float(free) - frame.energy) / len(frame.atoms)
        if apart > APART:
            self.places.add(frame, f"{apart:.2g} eV/atom")
            self.apart.append(apart)

    def findings(self) -> list[Finding]:
        """What was found."""
        typical = float(np.median(self.apart)) if self.apart else 0.0
        return self.places.finding(
            "note",
            "free-energy",
            f"{{n}} with a {FREE.key} that differs from {self.key}, typically by {typical:.2g} eV/atom",
            "forces of smeared occupations (VASP, ...) are the gradient of the free energy: to learn energies that "
            f"go with them, 'datamodule.label_keys={{energy: {FREE.key}}}'",
            difference=typical,
        )


def _possible(frame: Frame) -> tuple[str, ...]:
    """Labels that such a frame can have: without a volume there is no stress."""
    return LABELS if np.linalg.matrix_rank(frame.atoms.cell.array) == 3 else LABELS[:2]


class Theory:
    """What the file says of how the labels were computed."""

    def __init__(self) -> None:
        self.values: dict[str, Counter[str]] = defaultdict(Counter)

    def see(self, frame: Frame) -> None:
        """One more frame."""
        info = dict(frame.atoms.info)
        info |= info.pop("key_value_pairs", None) or {}
        for key, value in info.items():
            if THEORY.search(str(key)) and isinstance(value, str | int | bool):
                self._count(str(key), str(value))
        name = getattr(frame.atoms.calc, "name", None)
        if isinstance(name, str) and name not in ("unknown", "singlepointcalculator"):
            self._count("calculator", name)

    def findings(self) -> list[Finding]:
        """What was found."""
        found = []
        for key, values in self.values.items():
            if 1 < len(values) < MOST_VALUES:
                named = ", ".join(f"{value} ({in_number(n)})" for value, n in values.most_common(5))
                found.append(
                    Finding(
                        "warning",
                        "mixed-theory",
                        f"frames differ in {key}: {named}",
                        "energies of different methods have no common zero: train on one of them, or relabel",
                    )
                )
        return found

    def _count(self, key: str, value: str) -> None:
        if len(self.values[key]) < MOST_VALUES or value in self.values[key]:
            self.values[key][value] += 1
