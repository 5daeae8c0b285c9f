"""From what the user names to a source.

A spec is a file ('train.xyz', 'oxides.db'), with a selection after '@' ('train.xyz@:100', 'md.traj@::10',
'oxides.db@natoms<20,Ti', 'oxides.db@Ti@-50:'), a glob ('runs/*.xyz', the selection is then taken from every
file), Atoms, a source, or a list of any of these. A dict of specs names several sources.
"""

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype, string2index

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources.database import open_database
from physicsml_ase.data.sources.files import find_file
from physicsml_ase.data.sources.memory import hold_atoms, hold_file
from physicsml_ase.data.sources.source import Source, concat
from physicsml_ase.data.sources.trajectory import open_trajectory
from physicsml_ase.data.sources.xyz import COMPRESSED, open_xyz

SourceSpec = str | os.PathLike[str] | Atoms | Source | Sequence["SourceSpec"]

XYZ = tuple(f"{end}{packed}" for end in (".xyz", ".extxyz") for packed in ("", *COMPRESSED))


def open_source(spec: SourceSpec) -> Source:
    """The structures that `spec` names, in its order; raises `InputError` where there are none."""
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, Atoms):
        return hold_atoms([spec])
    if isinstance(spec, str | os.PathLike):
        return _open_path(os.fspath(spec))
    if isinstance(spec, Mapping):
        raise InputError(f"one source expected here, not several under names ({', '.join(map(str, spec))})")
    if not isinstance(spec, Sequence):
        raise InputError(f"a source is a file, Atoms, or a list of them, not {type(spec).__name__}")
    if all(isinstance(item, Atoms) for item in spec):
        return hold_atoms([item for item in spec if isinstance(item, Atoms)])
    return concat([open_source(item) for item in spec])


def open_sources(spec: SourceSpec | Mapping[str, SourceSpec]) -> dict[str, Source]:
    """Sources by name; a spec without names is the one source named ''."""
    if not isinstance(spec, Mapping):
        return {"": open_source(spec)}
    if not spec:
        raise InputError("no structures: the dict of sources is empty")
    sources = {}
    for name, item in spec.items():
        try:
            sources[str(name)] = open_source(item)
        except InputError as error:
            raise InputError(f"source {name}: {error}") from None
    return sources


def _open_path(text: str) -> Source:
    name, selections = _split_selections(text)
    if not Path(name).expanduser().exists() and any(mark in name for mark in "*?["):
        paths = sorted(glob.glob(os.path.expanduser(name), recursive=True))
        if not paths:
            raise InputError(f"{name}: no file matches")
        return concat([_open_file(path, selections) for path in paths])
    return _open_file(name, selections)


def _split_selections(text: str) -> tuple[str, list[str]]:
    """The path and the selections after each '@'; an '@' that belongs to the path stays there."""
    name, selections = text, list[str]()
    while not Path(name).expanduser().exists() and "@" in os.path.basename(name):
        name, selection = name.rsplit("@", 1)
        selections.insert(0, selection.strip())
    return name, selections


def _open_file(name: str, selections: list[str]) -> Source:
    kind = _kind(name)
    slices = [_as_slice(selection) for selection in selections]
    query = ""
    if kind == "db" and selections and selections[0] and slices[0] is None:
        query, slices, selections = selections[0], slices[1:], selections[1:]
    if None in slices:
        wrong = selections[slices.index(None)]
        rows = ", or one selection of rows before it" if kind == "db" else ""
        raise InputError(f"{name}: {wrong!r} after '@' is not a slice such as :100{rows}")
    written = "@".join([name, *([query] if query else []), *selections])
    first = slices[0] if slices else None
    openers: dict[str, Callable[[], Source]] = {
        "db": lambda: open_database(name, query),
        "xyz": lambda: open_xyz(name, _frames_needed(first)),
        "traj": lambda: open_trajectory(name),
        "other": lambda: hold_file(name),
    }
    source = openers[kind]()
    for chosen in slices:
        picked = range(len(source))[chosen or slice(None)]
        if not picked:
            raise InputError(f"{written} chooses none of {len(source)} structures")
        source = source.subset(picked)
    return Source(written, source.frames, source.keys)


def _kind(name: str) -> str:
    endings = {"xyz": XYZ, "traj": (".traj",), "db": (".db", ".json", ".aselmdb")}
    for kind, ending in endings.items():
        if name.lower().endswith(ending):
            return kind
    file = find_file(name)
    with open(file.path, "rb") as stream:
        head = [stream.readline(10_000) for _ in range(2)]
    if head[0].strip().isdigit() and b"Properties=" in head[1]:
        return "xyz"
    try:
        guess = filetype(file.path)
    except (UnknownFileTypeError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: ase.io does not know this kind of file ({error})") from None
    return {"extxyz": "xyz", "xyz": "xyz", "traj": "traj"}.get(guess, "other")


def _as_slice(selection: str) -> slice | None:
    """A slice from ':100' or '3', None for what is neither."""
    if not selection or any(mark not in "0123456789:+- " for mark in selection):
        return None
    try:
        index = string2index(selection)
    except (TypeError, ValueError):
        return None
    if isinstance(index, int):
        return slice(index, index + 1 or None)
    return index if isinstance(index, slice) and index.step != 0 else None


def _frames_needed(chosen: slice | None) -> int | None:
    """How many frames from the start a slice can reach; None for all."""
    if chosen is None or chosen.stop is None or (chosen.step or 1) < 0:
        return None
    if chosen.stop < 0 or (chosen.start or 0) < 0:
        return None
    return max(int(chosen.stop), 1)
