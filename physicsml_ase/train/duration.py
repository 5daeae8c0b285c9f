"""Lengths of time as people write them: 90s, 10m, 1h30m, 00:12:00:00."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator

from physicsml_ase.conventions import InputError

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_FORMS = "90s, 10m, 1h30m, a number of seconds, or Lightning's DD:HH:MM:SS"


def parse_duration(text: str | float) -> float:
    """Seconds of a duration: "90s", "10m", "1h30m", "1.5h", "2d", "600" (seconds), "00:12:00:00" (D:H:M:S)."""
    seconds = _seconds(str(text).strip().lower())
    if seconds is None or not 0 < seconds < float("inf"):
        raise InputError(f"{str(text)!r} is not a duration; write {_FORMS}")
    return seconds


def _seconds(text: str) -> float | None:
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


def duration(value: str | float | Mapping[str, float] | timedelta) -> timedelta:
    """A duration in any of Lightning's forms (text, the arguments of timedelta, a timedelta) or of ours."""
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, Mapping):
        return timedelta(seconds=parse_duration(value))
    try:
        return timedelta(**value)
    except TypeError:
        units = "weeks, days, hours, minutes, seconds"
        raise InputError(f"{dict(value)!r} is not a duration; a dict may have the keys {units}") from None


def _checked(value: object) -> object:
    if isinstance(value, timedelta):  # plain data, so that a config can be saved
        return f"{value.total_seconds()}s"
    if isinstance(value, str):
        duration(value)
    if isinstance(value, Mapping) and all(isinstance(n, int | float) for n in value.values()):
        duration(value)
    return value


Duration = Annotated[str | dict[str, float], BeforeValidator(_checked)]
"""A duration in a config: "10m", "1h30m", "DD:HH:MM:SS", or {minutes: 10}."""
