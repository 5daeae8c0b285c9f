"""Lengths of time as people write them: 90s, 10m, 1h30m, 00:12:00:00."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from physicsml_ase.config.wording import Words
from physicsml_ase.conventions import InputError

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_LONGEST = 1e13  # what a timedelta holds
_FORMS = "90s, 10m, 1h30m, a number of seconds, or Lightning's DD:HH:MM:SS"


def parse_duration(text: str | float) -> float:
    """Seconds of a duration: "90s", "10m", "1h30m", "1.5h", "2d", "600" (seconds), "00:12:00:00" (D:H:M:S)."""
    if (seconds := _seconds(str(text))) is None:
        raise InputError(f"{str(text)!r} is not a duration; write {_FORMS}")
    return seconds


def _seconds(text: str) -> float | None:
    seconds = _added_up(text.strip().lower())
    return seconds if seconds and 0 < seconds < _LONGEST else None


def _added_up(text: str) -> float | None:
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    if re.fullmatch(number, text):
        return float(text)
    if days := re.fullmatch(r"(\d+):(\d+):(\d+):(\d+)", text):
        return sum(int(n) * unit for n, unit in zip(days.groups(), (86400.0, 3600.0, 60.0, 1.0)))
    if not re.fullmatch(rf"(?:{number}\s*(?:d|h|min|m|s)\s*)+", text):
        return None
    parts = re.findall(rf"{number}\s*(d|h|min|m|s)", text)
    units = [_UNITS[unit] for _, unit in parts]
    if sorted(set(units), reverse=True) != units:  # 10m1h, 5m5m
        return None
    return sum(float(n) * unit for (n, _), unit in zip(parts, units))


def duration(value: object) -> timedelta:
    """A duration in any of Lightning's forms (text, the arguments of timedelta, a timedelta) or of ours."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        if (seconds := _seconds(str(value))) is None:
            raise InputError(f"not a duration; write {_FORMS}")
        return timedelta(seconds=seconds)
    try:
        return timedelta(**value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"not a duration; write {_FORMS}, or a dict such as {{minutes: 10}}") from None


def _no_number(value: object) -> object:
    if isinstance(value, int | float):
        raise InputError("not a duration")
    return value


def _plain(value: timedelta) -> str:
    return f"{value.total_seconds()}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(duration),
    PlainSerializer(_plain),
    WithJsonSchema({"type": ["string", "number", "object"]}),
    Words(lambda: "duration such as 10m, 1h30m or DD:HH:MM:SS"),
]
"""A duration in a config; a number is one of seconds."""
TextDuration = Annotated[Duration, BeforeValidator(_no_number)]
"""A duration where a number means something else."""
