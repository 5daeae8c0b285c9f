"""The `config` decorator: a frozen, keyword-only dataclass that explains what is wrong with its input.

Every config class explains the errors of its own section, where the keys and types are known, however deep
in lists, dicts and unions that section lies. pydantic then only has to prefix the locations.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeVar, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, ErrorDetails, InitErrorDetails, PydanticCustomError

from physicsml_ase.config.wording import did_you_mean, members, nearest, readable, short

T = TypeVar("T")
Location = tuple[int | str, ...]

_STRICT = ConfigDict(
    extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
)
_EXPLAINED, _MISSING = "explained", "explained_missing"  # pydantic's types of the errors in our own words


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def config(cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only dataclass that refuses unknown keys and bad values, and says which."""
    cls._explained = model_validator(mode="wrap")(classmethod(_explained))  # type: ignore[attr-defined, arg-type]
    return dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)  # type: ignore[return-value]


def fields(cls: type) -> dict[str, FieldInfo]:
    """The declared fields of a config class."""
    return cls.__pydantic_fields__  # type: ignore[attr-defined]


def explained(loc: Location, text: str, *, absent: bool = False) -> InitErrorDetails:
    """One error in our own words, for `failure`; `absent` if the key at its place was not given."""
    kind = _MISSING if absent else _EXPLAINED
    return {"type": PydanticCustomError(kind, "{text}", {"text": text}), "loc": loc, "input": None}


def failure(lines: list[InitErrorDetails]) -> ValidationError:
    """What a validator raises to report `lines`; pydantic prefixes their locations with its own."""
    return ValidationError.from_exception_data("config", lines)


def within(prefix: Location, error: ValidationError, value: object) -> ValidationError:
    """The error of a value that a validator checked by itself, at the value's own place."""
    found = paths(error.errors(include_url=False), value)
    return failure([explained((*prefix, *path), reason(details)) for path, details in found])


def reason(error: ErrorDetails) -> str:
    """What pydantic, or we, say about one error."""
    return error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def paths(errors: Sequence[ErrorDetails], value: object) -> list[tuple[Location, ErrorDetails]]:
    """The errors of one value with their places in it; of a union, those of the member that came nearest."""
    unions: dict[Location | None, dict[int | str, list[tuple[Location, ErrorDetails]]]] = {}
    for error in errors:
        path, union, member = _split(error, value)
        unions.setdefault(union, {}).setdefault(member, []).append((path, error))
    chosen: list[tuple[Location, ErrorDetails]] = []
    for branches in unions.values():
        meant = max(branches.values(), key=_nearness)
        chosen += meant
    return chosen


def _nearness(found: list[tuple[Location, ErrorDetails]]) -> tuple[int, int]:
    """A member of a union is the one meant when its errors lie deep in the value, and are few."""
    return max(len(path) for path, _ in found), -len(found)


def _explained(cls: type, data: object, handler: ModelWrapValidatorHandler[object]) -> object:
    given = data.kwargs or {} if isinstance(data, ArgsKwargs) else data
    lines = list(_truth_for_number(cls, given)) if isinstance(given, Mapping) else []
    try:
        valid = handler(data)
    except ValidationError as error:
        lines += _explain(cls, given, error)
    if lines:
        raise failure(lines) from None
    return valid


def _truth_for_number(cls: type, given: Mapping[str, object]) -> Iterator[InitErrorDetails]:
    """Refuse what pydantic would convert: true is no number (`max_epochs: yes`)."""
    for name, field in fields(cls).items():
        if isinstance(given.get(name), bool) and set(members(field.annotation)) <= {int, float, type(None)}:
            yield explained((name,), f"{short(given[name])}: must be {_allowed(field)}")


def _explain(cls: type, given: object, error: ValidationError) -> Iterator[InitErrorDetails]:
    known = fields(cls)
    if not isinstance(given, Mapping):
        yield explained((), f"{short(given)}: must be a section with some of the keys {', '.join(known)}")
        return
    by_field: dict[Location, list[ErrorDetails]] = defaultdict(list)
    for details in error.errors(include_url=False):
        by_field[details["loc"][:1]].append({**details, "loc": details["loc"][1:]})
    for loc, errors in by_field.items():
        if not loc:  # a check of the section as a whole
            yield from (explained((), reason(details)) for details in errors)
        elif loc[0] not in known:
            yield explained(loc, f"unknown key; {did_you_mean(str(loc[0]), known)}")
        elif errors[0]["type"] == "missing" and not errors[0]["loc"]:
            yield explained(loc, f"missing; must be {_allowed(known[str(loc[0])])}", absent=True)
        else:
            yield from _explain_value(loc, given.get(loc[0]), known[str(loc[0])], errors)


def _explain_value(
    loc: Location, value: object, field: FieldInfo, errors: list[ErrorDetails]
) -> Iterator[InitErrorDetails]:
    by_path: dict[Location, list[ErrorDetails]] = defaultdict(list)
    for path, details in paths(errors, value):
        by_path[path if details["type"] != "missing" else ()].append(details)
    for path, found in by_path.items():
        at = (*loc, *path)
        if all(details["type"] in (_EXPLAINED, _MISSING) for details in found):
            yield from (explained(at, reason(d), absent=d["type"] == _MISSING) for d in found)
        elif path or (len(found) == 1 and found[0]["type"] in ("value_error", "finite_number")):
            key = "key " if found[0]["loc"][-1:] == ("[key]",) else ""
            given = short(found[0]["input"])
            # several where the value is a union's
            reasons = " or ".join(reason(d).removeprefix(f"{given}: must be ") for d in found)
            yield explained(at, f"{key}{given}: {reasons.replace(' or must be', ' or')}")
        else:
            meant = nearest(value, _choices(field)) if isinstance(value, str) else None
            hint = f"; did you mean {meant!r}?" if meant else ""
            yield explained(loc, f"{short(value)}: must be {_allowed(field)}{hint}")


def _split(error: ErrorDetails, value: object) -> tuple[Location, Location | None, int | str]:
    """Where an error is within `value`, the outermost union on the way there, and which member of it.

    pydantic mixes the names of union members and the mark "[key]" into its locations.
    """
    path: list[int | str] = []
    union: Location | None = None
    member: int | str = ""
    for n, part in enumerate(error["loc"]):
        last = n == len(error["loc"]) - 1
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Mapping) and str(part).lstrip("-").isdigit() and int(part) in value:
            value = value[int(part)]
        elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(part, int):
            value = value[part] if part < len(value) else None
        elif not (last and error["type"] == _MISSING):
            if union is None and part != "[key]":
                union, member = tuple(path), part
            continue
        path.append(part)
    return tuple(path), union, member


def _allowed(field: FieldInfo) -> str:
    return readable(field.annotation, field.metadata)


def _choices(field: FieldInfo) -> list[str]:
    choices = [c for m in members(field.annotation) if get_origin(m) is Literal for c in get_args(m)]
    return [choice for choice in choices if isinstance(choice, str)]
