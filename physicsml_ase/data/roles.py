"""Labels that look like energy, forces or stress by name, without having been said to be them.

Under a name of its own a label is learned by itself: an energy as a mean over atoms without reference
energies, forces that are the gradient of no energy. Whoever means that says so.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from physicsml_ase.conventions import PROPERTIES, InputError, Label
from physicsml_ase.data.sources.keys import OTHER


class Role(NamedTuple):
    """A property that the energy model gives, and the names that claim to be it."""

    slot: str
    value: str
    """What to write in the slot."""
    names: re.Pattern[str]


ROLES = {
    "energy": Role("y_graph_scalars", "[energy]", re.compile("energy|toten", re.I)),
    "forces": Role("y_node_vector", "forces", re.compile("force|^f$", re.I)),
    "stress": Role("y_graph_tensor", "stress", re.compile("stress", re.I)),
}
SHORT = re.compile(r"^(e|u_?0|e_?(dft|ref|tot))$", re.I)
"""Names of many things, and of the total energy where there are forces."""


def refuse_unsaid_roles(labels: Sequence[Label], label_keys: Mapping[str, str], has_forces: bool) -> None:
    """Raise `InputError` where one label claims a role that no label has and `label_keys` does not name it.

    `has_forces`: whether the data have forces.
    """
    names = {label.name for label in labels}
    free = [x for x in labels if x.name not in PROPERTIES and x.name not in label_keys]
    has_forces = has_forces or "forces" in names or bool(_claims("forces", free, False))
    claims = {role: _claims(role, free, has_forces) for role in ROLES if role not in names}
    unsaid = {role: claimed[0].key for role, claimed in claims.items() if len(claimed) == 1}
    if unsaid:
        looks = ", ".join(
            f"{ROLES[role].slot}: {key} looks like the {'total ' * (role == 'energy')}{role}"
            for role, key in unsaid.items()
        )
        keys = ", ".join(f"{role}: {key}" for role, key in unsaid.items())
        slots = ", ".join(f"{ROLES[role].slot}: {ROLES[role].value}" for role in unsaid)
        themselves = ", ".join(f"{key}: {key}" for key in unsaid.values())
        raise InputError(
            f"datamodule.{looks}; say so with label_keys={{{keys}}} and {slots}, "
            f"or that it is another quantity with label_keys={{{themselves}}}"
        )


def _claims(role: str, labels: Sequence[Label], has_forces: bool) -> list[Label]:
    kind = PROPERTIES[role].level, PROPERTIES[role].shape
    return [
        label
        for label in labels
        if (label.level, label.shape) == kind
        and not OTHER.search(label.name)
        and (
            ROLES[role].names.search(label.name)
            or (role == "energy" and has_forces and SHORT.search(label.name))
        )
    ]
