"""How types, values and near misses are put into words: for errors, `describe` and the docs alike."""

import difflib
import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_NAMES = {type(None): "none", object: "anything", Any: "anything"}


class Words(NamedTuple):
    """Metadata of an `Annotated` type that says itself what it is called."""

    say: Callable[[], str]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    by_lower = {n.lower(): n for n in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, else all of them."""
    names = list(known)
    found = nearest(name, names)
    return f"did you mean {found!r}?" if found else f"known: {', '.join(names) or 'none'}"


def short(value: object) -> str:
    """A value on one short line."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def named(value: object) -> str:
    """What to write for a name that stands where a section is meant."""
    return f"; write its key: name={value}" if isinstance(value, str) else ""


def written(value: object) -> str:
    """A value as one would write it in a config file."""
    if value is None or value == "":
        return "none" if value is None else '""'
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except TypeError:
        return str(value)


def is_config(annotation: object) -> bool:
    """Whether an annotation is a config class."""
    return isinstance(annotation, type) and is_dataclass(annotation)


def members(annotation: object) -> list[object]:
    """The members of a union, also of nested ones; a type that is no union is its only member."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return members(args[0])
    if origin in (Union, types.UnionType):
        return [member for arg in args for member in members(arg)]
    return [annotation]


def readable(annotation: object, metadata: Sequence[object] = ()) -> str:
    """A type in words: "float > 0", "'norm' | 'value' | none", "list of int"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        metadata = [*args[1:], *metadata]
        annotation = args[0]
    for item in metadata:
        if isinstance(item, Words):
            return item.say()
    if origin is Annotated:
        return readable(annotation, metadata)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(readable(member, metadata) for member in args))
    if origin is Literal:
        return " | ".join(short(choice) for choice in args)
    if isinstance(origin, type):
        return _readable_container(origin, args)
    if is_config(annotation):
        return "section"
    name = next((words for known, words in _NAMES.items() if annotation is known), None)
    name = name or str(getattr(annotation, "__name__", annotation))
    if annotation not in (int, float):
        return name
    limits = [
        (sign, getattr(m, key)) for m in metadata for key, sign in _COMPARISONS.items() if hasattr(m, key)
    ]
    items = [each for item in metadata for each in (item.metadata if isinstance(item, FieldInfo) else [item])]
    limits = [(sign, getattr(m, key, None)) for m in items for key, sign in _COMPARISONS.items()]
    limits = [(sign, limit) for sign, limit in limits if limit is not None]
    return f"{name} {' and '.join(f'{sign} {limit}' for sign, limit in limits)}".strip()


def _readable_container(origin: type, args: tuple[object, ...]) -> str:
    def item(annotation: object) -> str:
        words = readable(annotation)
        return f"({words})" if " | " in words else words

    if origin is tuple and args[-1:] != (Ellipsis,):
        return f"[{', '.join(item(a) for a in args)}]"
    if issubclass(origin, Mapping):
        return "dict" if args[1] in (object, Any) else f"dict of {item(args[1])}"
    if issubclass(origin, Iterable):
        return "list" if args[0] in (object, Any) else f"list of {item(args[0])}"
    return origin.__name__
