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
UNSAID = {"charge": "0", "total_charge": "0", "total_spin": "0", "uhf": "0"}
"""What a frame without such a key has, where others of its composition have one."""
NAMED, MOST_VALUES = 5, 50


def state_of(frame: Frame) -> dict[str, str]:
    """Those that the frame has, as text."""
    info = frame.atoms.info
    pairs = info.get("key_value_pairs")
    info = {**pairs, **info} if isinstance(pairs, dict) else info
    return {key: _in_words(value) for key, value in info.items() if str(key).lower() in STATES}


def _in_words(value: object) -> str:
    """The same for 1 and 1.0, 0 and -1e-12."""
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf":
        return str(value)
    return " ".join(f"{round(x, 6) + 0.0:g}" for x in numbers.astype(float).ravel().tolist())


class States:
    """Charges, spins and fields that differ between frames of one composition."""

    def __init__(self, known: Collection[str] = ()) -> None:
        """`known` are those that the model takes as inputs."""
        self.known = frozenset(known)
        self.values: dict[str, dict[bytes, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        """Frames with each value, by key and composition."""
        self.frames: Counter[bytes] = Counter()

    def see(self, frame: Frame) -> None:
        """One more frame."""
        formula = np.sort(frame.atoms.numbers).tobytes()
        self.frames[formula] += 1
        for key, value in state_of(frame).items():
            values = self.values[key][formula]
            if key not in self.known and (value in values or len(values) < MOST_VALUES):
                values[value] += 1

    def findings(self) -> list[Finding]:
        """What was found."""
        return [found for key, of in self.values.items() if (found := self._of(key, of)) is not None]

    def _of(self, key: str, compositions: dict[bytes, Counter[str]]) -> Finding | None:
        """What is said of one key, by the compositions in which it differs."""
        values = Counter[str]()
        for formula, own in compositions.items():
            unsaid, lacking = UNSAID.get(key.lower()), self.frames[formula] - own.total()
            own = own + Counter({unsaid: lacking}) if unsaid is not None else own
            if len(own) > 1:
                values += own
        if not values:
            return None
        named = ", ".join(f"{value} ({in_number(n)})" for value, n in values.most_common(NAMED))
        more = f" and {len(values) - NAMED} more values" if len(values) > NAMED else ""
        advice = "train on one of them"
        if all(_is_number(value) for value in values):
            advice = f"name it as an input with datamodule.graph_attrs_cols=[{key}], or {advice}"
        return Finding(
            "warning",
            "unknown-state",
            f"frames of one composition differ in {key}: {named}{more}",
            f"geometries alone do not tell their energies apart: {advice}",
        )


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
