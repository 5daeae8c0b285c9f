"""Labels that are missing, not finite, of the wrong shape, under other names, or of several levels of theory."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from physicsml_ase.check.findings import Finding, Places, in_number
from physicsml_ase.check.frame import LABELS, Frame
from physicsml_ase.data.sources import available_keys, suggest_label_keys

THEORY = re.compile(
    r"functional|^xc$|^(?!.*(sampl|gener|relax|opt|fit)).*method|level_?of|theory|calculator|program|^code$|basis|^dft$|pseudo|dispersion",
    re.I,
)
"""Names under which people write how a frame was computed."""
MOST_VALUES = 20
"""A name with more values than this tells frames apart, not methods."""


class Labels:
    """Presence, finiteness and shape of energy, forces and stress."""

    def __init__(self, assumed: Mapping[str, str]) -> None:
        """`assumed` are names of the labels that the user did not give."""
        self.assumed = dict(assumed)
        self.frames: Counter[str] = Counter()
        self.lacking: dict[tuple[str, str], Places] = defaultdict(Places)
        self.unlabelled = Places()
        self.faults: dict[str, Places] = defaultdict(Places)
        self.suggested = dict(assumed)
        self.elsewhere = Places()
        self.found_elsewhere: list[str] = []

    def see(self, frame: Frame) -> None:
        """One more frame."""
        self.frames[frame.set_] += 1
        for name in frame.missing:
            self.lacking[frame.set_, name].add(frame)
        for kind, message in frame.faults:
            self.faults[kind].add(frame, message)
        if self.assumed:
            if not {"energy", "forces"} <= set(frame.missing):
                self.elsewhere.add(frame)
                self.unlabelled.add(frame)
        elif {"energy", "forces"} <= set(frame.missing):
            self.unlabelled.add(frame)
            others = suggest_label_keys(frame.atoms)
            if {"energy", "forces"} & set(others):
                self.elsewhere.add(frame)
                self.suggested = self.suggested or others
            elif not self.found_elsewhere:
                self.found_elsewhere = sorted(
                    {key for keys in available_keys(frame.atoms).values() for key in keys}
                )

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
        keys = ", ".join(f"{ours}: {theirs}" for ours, theirs in self.suggested.items())
        found += self.elsewhere.finding(
            "error" if len(self.elsewhere) == total else "warning",
            "other-keys",
            f"{{n}} without energy and forces, but with {', '.join(self.suggested.values())}",
            f"name them with 'datamodule.label_keys={{{keys}}}', here with "
            + " ".join(f"--label-key {ours}={theirs}" for ours, theirs in self.suggested.items()),
        )
        nothing = len(self.unlabelled) - len(self.elsewhere)
        if nothing and len(self.unlabelled) == total and not len(self.elsewhere):
            keys = f"found {', '.join(self.found_elsewhere)}" if self.found_elsewhere else "no labels at all"
            found += self.unlabelled.finding(
                "error",
                "no-labels",
                f"no frame has an energy or forces ({keys})",
                "there is nothing to learn from",
            )
            return found
        if nothing:
            found += self.unlabelled.finding(
                "warning", "unlabelled", "{n} without energy and forces", "training leaves them out"
            )
        for name in LABELS:
            found += self._missing(name, total)
        return found

    def _missing(self, name: str, total: int) -> list[Finding]:
        """What is said of a label that some or all frames lack."""
        places = [p for (_, label), p in self.lacking.items() if label == name]
        count = sum(map(len, places))
        if count == total:
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
