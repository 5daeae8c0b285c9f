"""What a class takes as arguments, read from its signature: to check those that a config gives it."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Literal, NamedTuple, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from physicsml_ase.config import did_you_mean, readable
from physicsml_ase.config.wording import members, short
from physicsml_ase.train.duration import duration

Factory = Callable[..., object]
_PLAIN = (bool, int, float, str, type(None))


class Problem(NamedTuple):
    """What is wrong with one argument; `key` is None where it is missing."""

    key: str | None
    text: str


def parameters(factory: Factory) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function, their annotations as types where these can be resolved."""
    try:
        return inspect.signature(factory, eval_str=True).parameters
    except (NameError, AttributeError, TypeError):  # names that exist for type checkers only
        return inspect.signature(factory).parameters


def problems(
    factory: Factory,
    name: str,
    given: Mapping[str, object],
    *,
    reserved: tuple[str, ...] = (),
    filled: tuple[str, ...] = (),
    passed_on: Factory | None = None,
) -> Iterator[Problem]:
    """Unknown, missing and wrongly typed arguments of a class called `name`; see `Catalog`."""
    takes = {k: p for k, p in parameters(factory).items() if k not in reserved}
    takes = {k: p for k, p in takes.items() if p.kind is not p.VAR_POSITIONAL}
    known = {k: p for k, p in takes.items() if p.kind is not p.VAR_KEYWORD}
    needed = [k for k, p in known.items() if p.default is p.empty and k not in {*given, *filled}]
    is_open = len(known) < len(takes)
    if is_open and passed_on:
        known |= parameters(passed_on)
        is_open = False
    for key, value in given.items():
        if key in known:
            if not _fits(known[key], value):
                yield Problem(key, f"{short(value)}: must be {readable(known[key].annotation)}")
        elif not is_open:
            yield Problem(key, f"no argument of {name}; {did_you_mean(key, known)}")
    yield from (Problem(None, f"{name} needs {key!r}") for key in needed)


def converted(factory: Factory, given: Mapping[str, object]) -> dict[str, object]:
    """The arguments, with the durations among them (10m, DD:HH:MM:SS) as timedeltas."""
    takes = parameters(factory)
    result = dict(given)
    for key, value in given.items():
        if key in takes and isinstance(value, str) and timedelta in members(takes[key].annotation):
            result[key] = duration(value)
    return result


def _fits(parameter: inspect.Parameter, value: object) -> bool:
    """Whether a value can be meant for a parameter: only what is surely wrong is refused."""
    kinds = members(parameter.annotation)
    if value is None or value == parameter.default or timedelta in kinds or not isinstance(value, _PLAIN):
        return True
    plain = [k for k in kinds if k in _PLAIN or get_origin(k) is Literal]
    if not plain or any(isinstance(k, str) or k is object for k in kinds):
        return True  # an annotation that is not understood here
    if isinstance(value, bool):
        return bool in kinds or any(value in get_args(k) for k in plain)
    return any(_is(kind, value) for kind in plain)


def _is(kind: object, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)  # type: ignore[arg-type]
    except ValidationError:
        return False
    return True
