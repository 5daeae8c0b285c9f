"""What a structure carries that could be a label, and what a user probably means by it."""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from numpy.typing import NDArray

from physicsml_ase.conventions import PROPERTIES

Shape = tuple[int, ...] | None
"""Shape of a number or an array of numbers; None for text and everything else."""

STEMS = {
    "energy": r"energy|toten|etot|^e$|^e_?(dft|ref|tot)$",
    "forces": r"forces?|^f$",
    "stress": r"stress",
    "dipole": r"dipole",
    "charges": r"charges?",
    "magmoms": r"magmoms?|spins?",
}
"""How people name the properties. Virials and gradients have another unit or sign, so they are not here."""

GRADIENT = re.compile(r"virial|gradient", re.I)
CONVERTED = {
    "virial": ("stress", "-virial / volume [eV/Å³]"),
    "gradient": ("forces", "-gradient [eV/Å]"),
}
"""What such a quantity can be made into, and how."""

OTHER = re.compile(
    r"free|kin|formation|per_?atom|atomi[cs]|error|std|var|weight|shift|uncert|delta|pred"
    r"|hull|dispers|cohes|binding|adsor|interact|corr|initial"
    r"|homo|lumo|fermi|excit|band_?gap|zero_?point|constant"
    r"|extern|bias|spring|strain|mask|residual|solvation|reaction|cut_?off|repuls|nuclear|(^|_)(max|min|mean|rms)(_|$)",
    re.I,
)
"""Names that contain a stem but mean something else."""


def available_keys(atoms: Atoms) -> dict[str, dict[str, Shape]]:
    """Every key that could name a label, by where it is kept; a db row has two places of its own."""
    info = dict(atoms.info)
    pairs = info.pop("key_value_pairs", None)
    data = info.pop("data", None)
    places = {
        "calculator": getattr(atoms.calc, "results", {}),
        "info": info,
        "arrays": {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")},
        "key_value_pairs": pairs if isinstance(pairs, dict) else {},
        "data": data if isinstance(data, dict) else {},
    }
    found = {place: {str(k): _shape(v) for k, v in values.items()} for place, values in places.items()}
    return {place: keys for place, keys in found.items() if keys}


def suggest_label_keys(atoms: Atoms, asked: Mapping[str, str] | None = None) -> dict[str, str]:
    """{our name: the user's key} for the known properties that are there, but not under the name `asked` for.

    That is ours where none was asked.
    """
    asked = asked or {}
    there = set[str]().union(*available_keys(atoms).values())
    return {
        name: min(keys, key=lambda key: (key != name, key.lower() != name, len(key), key))
        for name, keys in _fitting(atoms).items()
        if keys and asked.get(name, name) not in there
    }


def gradient_keys(atoms: Atoms) -> dict[str, tuple[str, str]]:
    """{our name: (key, how to make ours of it)} for the virials and gradients that are there."""
    shapes = {key: shape for of in available_keys(atoms).values() for key, shape in of.items()}
    allowed: dict[str, set[Shape]] = {"stress": {(3, 3), (6,), (9,)}, "forces": {(len(atoms), 3)}}
    return {
        name: (found[0], how)
        for word, (name, how) in CONVERTED.items()
        if (
            found := sorted(
                key
                for key, shape in shapes.items()
                if word in key.lower()
                and shape in allowed[name]
                and not OTHER.search(key)
                and "field" not in key.lower()
            )
        )
    }


def rival_keys(atoms: Atoms, asked: Mapping[str, str] | None = None) -> dict[str, str]:
    """{our name: another key} for known properties that are there under the name `asked` for and, with other
    values, another; that is ours where none was asked."""
    rivals = {}
    for name, keys in _fitting(atoms).items():
        first = (asked or {}).get(name, name)
        ours = _value(atoms, first)
        for key in keys:
            theirs = _value(atoms, key)
            if key != first and ours is not None and theirs is not None and ours.size == theirs.size:
                unlike = ~np.isclose(ours.ravel(), theirs.ravel(), rtol=1e-6, atol=1e-6, equal_nan=True)
                if unlike.any():
                    rivals[name] = key
                    break
    return rivals


def drop_labels(atoms: Atoms, names: Collection[str] = (), keep: Collection[str] = ()) -> list[str]:
    """Take from `info` and `arrays` what is a label, or seems to be one, since atoms will move; the keys in order.

    That is whatever has a name in `names`, is a property of ASE's, or looks like one by its name and shape.
    """
    seeming = {key for keys in _fitting(atoms).values() for key in keys}
    rows = (atoms.info.get("key_value_pairs"), atoms.info.get("data"))
    dropped = set[str]()
    for place in (atoms.info, atoms.arrays, *rows):
        if isinstance(place, dict):
            for key in [k for k in place if isinstance(k, str) and k not in {"numbers", "positions", *keep}]:
                if key in seeming or key in names or key in all_properties or GRADIENT.search(key):
                    del place[key]
                    dropped.add(key)
    return sorted(dropped)


def _fitting(atoms: Atoms) -> dict[str, list[str]]:
    """The keys that by name and shape could be each known property."""
    shapes = {key: shape for keys in available_keys(atoms).values() for key, shape in keys.items()}
    fitting = {}
    for name, stem in STEMS.items():
        lead = (len(atoms),) if PROPERTIES[name].level == "atom" else ()
        allowed = {lead + PROPERTIES[name].shape} | ({(6,), (9,)} if name == "stress" else set())
        fitting[name] = [
            key
            for key, shape in shapes.items()
            if key == name or (shape in allowed and re.search(stem, key, re.I) and not OTHER.search(key))
        ]
    return fitting


def _value(atoms: Atoms, key: str) -> NDArray[np.float64] | None:
    """The numbers under a key, from the first place that has it."""
    info, results = atoms.info, getattr(atoms.calc, "results", {})
    for place in (results, info, atoms.arrays, info.get("key_value_pairs"), info.get("data")):
        if isinstance(place, dict) and key in place and _shape(place[key]) is not None:
            return np.asarray(place[key], dtype=np.float64)
    return None


def describe_missing(
    atoms: Atoms,
    names: Sequence[str],
    where: str,
    option: str = "datamodule.label_keys",
    also: Sequence[str] = (),
) -> str:
    """A message for labels that a structure lacks: what it has instead, and the option that names it.

    Labels in `also` may be lacking; where they seem to be there, the option names them too.
    """
    found = [
        f"{place}: {', '.join(key for key in keys if key != 'unique_id')}"
        for place, keys in available_keys(atoms).items()
        if set(keys) - {"unique_id"}
    ]
    bare = "no labels at all: give files with the results of reference calculations"
    message = f"no {', '.join(names)} in {where}; found {'; '.join(found) or bare}"
    keys = {name: key for name, key in suggest_label_keys(atoms).items() if name in {*names, *also}}
    if not set(names) & set(keys):
        return message
    return f"{message}; name them with '{option}={{{', '.join(f'{k}: {v}' for k, v in keys.items())}}}'"


def _shape(value: object) -> Shape:
    if isinstance(value, str | bytes | bool | dict) or value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        return None
    return array.shape if array.dtype.kind in "iuf" else None
