"""The `config` decorator: a frozen, keyword-only dataclass that explains what is wrong with its input.

Every config class explains the errors of its own section, where the keys and types are known, however deep
in lists, dicts and unions that section lies. pydantic then only has to prefix the locations.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, ErrorDetails, InitErrorDetails, PydanticCustomError

from physicsml_ase.config.wording import did_you_mean, members, named, nearest, readable, short

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
    made = dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)
    _hand_down_docstrings(made)
    return made  # type: ignore[return-value]


def fields(cls: type) -> dict[str, FieldInfo]:
    """The declared fields of a config class."""
    return cls.__pydantic_fields__  # type: ignore[attr-defined]


def _hand_down_docstrings(cls: type) -> None:
    """Keep each field's docstring where a class that inherits it finds it: pydantic reads only those of its own."""
    for field in dataclasses.fields(cls):
        description = fields(cls)[field.name].description
        if isinstance(field.default, FieldInfo):
            field.default._attributes_set["description"] = description  # what pydantic copies
        else:
            field.metadata = MappingProxyType({**field.metadata, "description": description})


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
    lines = [explained((*prefix, *path), said(e), absent=e["type"] == _MISSING) for path, e in found]
    return failure(lines)


def reason(error: ErrorDetails) -> str:
    """What pydantic, or we, say about one error, without the value where it was pydantic."""
    return error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def said(error: ErrorDetails) -> str:
    """What is wrong, with the value."""
    return reason(error) if _is_ours(error) else f"{short(error['input'])}: {reason(error)}"


def _is_ours(error: ErrorDetails) -> bool:
    return error["type"] in (_EXPLAINED, _MISSING)


def paths(errors: Sequence[ErrorDetails], value: object) -> list[tuple[Location, ErrorDetails]]:
    """The errors of one value with their places in it; of a union, those of the member that came nearest."""
    found = _nearest_members([(_steps(error, value), error) for error in errors], 0)
    return [(tuple(step.part for step in steps if not step.is_member), error) for steps, error in found]


class _Step(NamedTuple):
    """A part of pydantic's location of an error: a key of the data, or the name of a union's member."""

    part: int | str
    is_member: bool


_Found = list[tuple[list[_Step], ErrorDetails]]


def _nearest_members(found: _Found, depth: int) -> _Found:
    """Of every union among the steps from `depth` on, only the errors of the member that was meant."""
    branches: dict[_Step | None, _Found] = defaultdict(list)
    for steps, error in found:
        branches[steps[depth] if depth < len(steps) else None].append((steps, error))
    kept: _Found = []
    members: list[_Found] = []
    for step, branch in branches.items():
        if step is None:
            kept += branch
        elif step.is_member:
            members.append(_nearest_members(branch, depth + 1))
        else:
            kept += _nearest_members(branch, depth + 1)

    def nearness(branch: _Found) -> tuple[int, int]:  # errors that lie deep in the value, and few
        return max(sum(not step.is_member for step in steps[depth:]) for steps, _ in branch), -len(branch)

    if members:
        meant = max(members, key=nearness)
        # where the value itself is wrong for all members, none was meant
        kept += meant if nearness(meant)[0] else [each for branch in members for each in branch]
    return kept


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
        meant = named(given) if "name" in known else ""
        yield explained(
            (), f"{short(given)}: must be a section with some of the keys {', '.join(known)}{meant}"
        )
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
        if all(_is_ours(details) for details in found):
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


def _steps(error: ErrorDetails, value: object) -> list[_Step]:
    """The location of an error within `value`, each part told apart by whether the data have such a key."""
    steps: list[_Step] = []
    for n, part in enumerate(error["loc"]):
        is_last = n == len(error["loc"]) - 1
        is_member = False
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Mapping) and str(part).lstrip("-").isdigit() and int(part) in value:
            value = value[int(part)]
        elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(part, int):
            value = value[part] if part < len(value) else None
        elif part == "[key]":  # pydantic's mark of an error about the key itself
            continue
        else:
            is_member = not (is_last and error["type"] == _MISSING)
        steps.append(_Step(part, is_member))
    return steps


def _allowed(field: FieldInfo) -> str:
    return readable(field.annotation, field.metadata)


def _choices(field: FieldInfo) -> list[str]:
    choices = [c for m in members(field.annotation) if get_origin(m) is Literal for c in get_args(m)]
    return [choice for choice in choices if isinstance(choice, str)]
