"""From plain data to a config and back: all errors at once, and a round trip that loses nothing."""

from collections.abc import Mapping
from typing import TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from physicsml_ase.config.declare import paths, said
from physicsml_ase.conventions import InputError

T = TypeVar("T")


@overload
def validate(cls: type[T], data: Mapping[str, object], where: str = ...) -> T: ...
@overload
def validate(cls: object, data: Mapping[str, object], where: str = ...) -> object: ...
def validate(cls: object, data: Mapping[str, object], where: str = "config") -> object:
    """The config that `data` describes; an InputError lists everything that is wrong with it.

    `where` is what the data came from, for the message: a file's name or a section's.
    """
    try:
        return TypeAdapter(cls).validate_python(data)  # type: ignore[arg-type]
    except ValidationError as error:
        found = [_line(path, said(e)) for path, e in paths(error.errors(include_url=False), data)]
    if len(found) == 1:
        raise InputError(f"{where}: {found[0]}")
    raise InputError("\n".join([f"{len(found)} errors in {where}:", *(f"  {line}" for line in found)]))


def to_plain(instance: object) -> dict[str, object]:
    """A config as plain data (str, number, bool, None, list, dict), which validates to an equal config.

    Objects that only Python can hold (a callback built by hand) become their class's name in angle brackets.
    """
    return TypeAdapter(type(instance)).dump_python(instance, mode="json", fallback=_placeholder)


def json_schema(cls: object) -> dict[str, object]:
    """JSON schema of a config, with which an editor completes and checks config files."""
    return TypeAdapter(cls).json_schema()  # type: ignore[arg-type]


def _line(path: tuple[int | str, ...], text: str) -> str:
    return f"{'.'.join(map(str, path))}: {text}" if path else text


def _placeholder(value: object) -> str:
    return f"<{type(value).__module__}.{type(value).__qualname__}>"
