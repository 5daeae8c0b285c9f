"""What a frame was computed with and its geometry does not tell: charge, spin, an outer field."""

from collections import Counter, defaultdict
from collections.abc import Collection

import numpy as np

from physicsml_ase.check.findings import Finding, in_number
from physicsml_ase.check.frame import Frame

STATES = (
    "charge",
    "total_charge",
    "spin",
    "total_spin",
    "multiplicity",
    "mult",
    "uhf",
    "electric_field",
    "field",
    "head",
)
"""Keys of `Atoms.info` that make frames of one geometry different calculations."""
NAMED = 5


def state_of(frame: Frame) -> dict[str, str]:
    """Those that the frame has, as text."""
    info = frame.atoms.info
    pairs = info.get("key_value_pairs")
    info = {**pairs, **info} if isinstance(pairs, dict) else info
    return {key: _in_words(info[key]) for key in STATES if key in info}


def _in_words(value: object) -> str:
    """The same for 1 and 1.0."""
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf":
        return str(value)
    return " ".join(f"{x:g}" for x in numbers.ravel().tolist())


class States:
    """Charges, spins and fields that differ from frame to frame."""

    def __init__(self, known: Collection[str] = ()) -> None:
        """`known` are those that the model takes as inputs."""
        self.known = frozenset(known)
        self.values: dict[str, Counter[str]] = defaultdict(Counter)

    def see(self, frame: Frame) -> None:
        """One more frame."""
        for key, value in state_of(frame).items():
            if key not in self.known:
                self.values[key][value] += 1

    def findings(self) -> list[Finding]:
        """What was found."""
        found = []
        for key, values in self.values.items():
            if len(values) < 2:
                continue
            named = ", ".join(f"{value} ({in_number(n)})" for value, n in values.most_common(NAMED))
            more = f" and {len(values) - NAMED} more values" if len(values) > NAMED else ""
            found.append(
                Finding(
                    "warning",
                    "unknown-state",
                    f"frames differ in {key}: {named}{more}",
                    "geometries alone do not tell these energies apart: name it as an input with "
                    f"datamodule.graph_attrs_cols=[{key}], or train on one of them",
                )
            )
        return found
