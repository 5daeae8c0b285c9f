"""The data that a run was given: in memory, or by paths that a later session finds again."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from physicsml_ase.conventions import InputError
from physicsml_ase.train.settings import RunConfig


class Data(NamedTuple):
    """What a run learns from: anything that `data.sources.open_source` takes, or dicts of such."""

    train: Any = None
    validation: Any = None
    test: Any = None


def refuse_changed_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue with other data, by the summaries of the DataModule."""
    for name, source in (before.get("sources") or {}).items():
        if now["sources"].get(name, {}).get("hash") != source.get("hash"):
            raise InputError(f"the {name} data changed since the run began; a resumed run needs the same")


def with_data(config: RunConfig, data: Data) -> RunConfig:
    """The config naming these data, by absolute paths; none where they are objects in memory."""
    text = as_text(data) or Data()._asdict()
    named = {f"{name}_data": spec for name, spec in text.items()}
    return replace(config, datamodule=replace(config.datamodule, **named))


def as_text(data: Data) -> dict[str, Any] | None:
    """The data by absolute paths, or None where they are objects in memory."""

    def text(spec: Any) -> Any:
        """One source of data, or several; TypeError for what has no path."""
        if spec is None:
            return None
        if isinstance(spec, str | Path):
            name, at, selection = str(spec).partition("@")
            return str(Path(name).expanduser().absolute()) + at + selection
        if isinstance(spec, Mapping):
            return {key: text(value) for key, value in spec.items()}
        if isinstance(spec, list | tuple) and all(isinstance(s, str | Path) for s in spec):
            return [text(s) for s in spec]
        raise TypeError

    try:
        return {name: text(spec) for name, spec in data._asdict().items()}
    except TypeError:
        return None
