"""Every field of a config with its path, type, default and meaning, from its one declaration."""

from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple, get_args, get_origin

from pydantic_core import PydanticUndefined

from physicsml_ase.config.declare import fields
from physicsml_ase.config.registry import MODELS, ModelConfig
from physicsml_ase.config.wording import Words, did_you_mean, is_config, nearest, readable, written
from physicsml_ase.conventions import InputError


class Row(NamedTuple):
    """One key of a config; for the key of a section, the type is "section"."""

    path: str
    type: str
    default: str
    meaning: str


def describe(cls: object, section: str | None = None) -> list[Row]:
    """The keys of a config, or of one section of it, in the order of their declaration.

    The model section lists every registered architecture, each beginning with its `model.name`;
    `model.painn` is one of them alone.
    """
    rows = list(_rows(cls, ""))
    if section is None:
        return [row for _, row in rows]
    found = [row for path, row in rows if _within(path, section.split("."))]
    if not found:
        known = dict.fromkeys(path for path, _ in rows if "<" not in path)
        sections = [path for path in known if "." not in path]
        advice = did_you_mean(section, known if nearest(section, list(known)) else sections)
        raise InputError(f"no section or key {section!r}; {advice}")
    return found


def _within(path: str, section: list[str]) -> bool:
    parts = path.split(".")
    return len(parts) >= len(section) and all(p == s or p.startswith("<") for p, s in zip(parts, section))


def _rows(annotation: object, path: str) -> Iterator[tuple[str, Row]]:
    """(path to look up, row) of everything below an annotation; the two differ for the models alone."""
    if annotation == ModelConfig:
        for name, model in MODELS.items():
            for looked_up, row in _rows(model.config, path):
                yield looked_up.replace(path, f"{path}{name}.", 1) if path else f"{name}.{looked_up}", row
    elif is_config(annotation):
        for name, field in fields(annotation).items():  # type: ignore[arg-type]
            full = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            nested = list(_rows(full, f"{path}{name}."))
            default = field.get_default(call_default_factory=False)
            if field.default_factory is not None and not nested:
                default = field.get_default(call_default_factory=True, validated_data={})
            shown = "required" if default is PydanticUndefined else written(default)
            if (nested and field.default_factory is not None) or is_config(type(default)):
                shown = ""
            kind = "section" if is_config(field.annotation) else readable(full)
            yield (
                f"{path}{name}",
                Row(f"{path}{name}", kind, shown, " ".join((field.description or "").split())),
            )
            yield from nested
    else:
        yield from _below(annotation, path)


def _below(annotation: object, path: str) -> Iterator[tuple[str, Row]]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if not any(isinstance(item, Words) for item in args):  # else it has been said in words
            yield from _rows(args[0], path)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from _rows(args[1], f"{path}<name>.")
    elif origin in (list, tuple):
        yield from _rows(args[0], f"{path}<n>.")
    else:  # a union has at most one member with keys of its own, or several with the same ones
        seen: set[str] = set()
        for member in args:
            for looked_up, row in _rows(member, path):
                if looked_up not in seen:
                    yield looked_up, row
                seen.add(looked_up)
