"""Config files and command-line overrides as one plain dict; nothing is checked against a config here."""

import copy
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from physicsml_ase.config.wording import short
from physicsml_ase.conventions import InputError


def load(
    source: str | Path | Mapping[str, object] | None, overrides: Sequence[str] = ()
) -> dict[str, object]:
    """A YAML, JSON or TOML file, or a dict, with `key.sub=value` overrides applied in order."""
    if source is None:
        data: dict[str, object] = {}
    elif isinstance(source, Mapping):
        data = copy.deepcopy(dict(source))
    else:
        data = _read(Path(source))
    for text in overrides:
        keys, value = _parse_override(text)
        _apply(data, keys, value, text)
    return data


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars (1e-3 is a float; 12:30:00 and 2024-01-01 are text) and no duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        """A mapping as it is written, refusing a key that was given before."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return node

    def number(self, node: yaml.ScalarNode) -> int:
        """Decimal, 0x or 0o."""
        text = self.construct_scalar(node)
        return int(text, 0 if text.lstrip("+-")[:2] in ("0x", "0o") else 10)


# "No" is nobelium, "N" nitrogen and "Y" yttrium, not truth values.
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE|yes|Yes|no|on|On|off|Off", "tTfFyYnoO"),
    ("int", r"[-+]?[0-9][0-9_]*|[-+]?0x[0-9a-fA-F]+|[-+]?0o[0-7]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.?[0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.number)


def _read(path: Path) -> dict[str, object]:
    if path.suffix.lower() not in (".yaml", ".yml", ".json", ".toml"):
        raise InputError(f"{path}: a config file must end in .yaml, .yml, .json or .toml")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the config: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file (UTF-8)") from None
    try:
        data = _parse(path.suffix.lower(), text)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, InputError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    if data is None:  # an empty file: every default
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: must hold keys and values, not {short(data)}")
    return data


def _parse(suffix: str, text: str) -> object:
    if suffix == ".toml":
        return tomllib.loads(text)
    if suffix == ".json":
        return json.loads(text, object_pairs_hook=_unique)
    return yaml.load(text, _Loader)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(f"duplicate key {next(k for k in keys if keys.count(k) > 1)!r}")
    return data


def _parse_override(text: str) -> tuple[list[str], object]:
    key, sign, value = text.partition("=")
    keys = key.strip().split(".")
    if not sign or not all(re.fullmatch(r"[^\s.]+", k) for k in keys):
        raise InputError(f"{text!r}: an override is key.sub=value, such as trainer.max_epochs=3")
    if not value.strip():
        raise InputError(f"{text!r}: no value; write {key.strip()}=null for none")
    try:
        return keys, yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        if value.lstrip()[0] in "[{\"'":
            problem = getattr(error, "problem", None) or "not a valid value"
            raise InputError(f"{text!r}: cannot read the value: {problem}") from None
        return keys, value.strip()  # such as *.xyz, which YAML takes for an alias


def _apply(data: dict[str, object], keys: list[str], value: object, text: str) -> None:
    """Set one value deep in `data`, which is this function's to change."""
    section: object = data
    for depth, key in enumerate(keys):
        at = ".".join(keys[:depth])
        if isinstance(section, list):
            if not key.isdigit() or int(key) > len(section):
                raise InputError(f"{text!r}: {at} is a list of {len(section)}; its items are 0, 1, ...")
            if int(key) == len(section):
                section.append(None)
            items: dict[str, object] | list[object] = section
            index: str | int = int(key)
        elif isinstance(section, dict):
            section.setdefault(key, None)
            items, index = section, key
        else:
            raise InputError(f"{text!r}: {at} is {short(section)}, not a section")
        if depth == len(keys) - 1:
            items[index] = _merged(items[index], value)  # type: ignore[index]
        elif items[index] is None:  # type: ignore[index]
            items[index] = {}  # type: ignore[index]
        section = items[index]  # type: ignore[index]


def _merged(old: object, new: object) -> object:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
