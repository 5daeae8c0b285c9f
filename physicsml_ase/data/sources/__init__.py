"""Frame sources: the way from what the user names (files, globs, lists, Atoms) to ASE's Atoms."""

from physicsml_ase.data.sources.keys import (
    available_keys,
    describe_missing,
    gradient_keys,
    rival_keys,
    suggest_label_keys,
)
from physicsml_ase.data.sources.source import Source, concat
from physicsml_ase.data.sources.spec import SourceSpec, open_source, open_sources

__all__ = [
    "Source",
    "SourceSpec",
    "available_keys",
    "concat",
    "describe_missing",
    "gradient_keys",
    "open_source",
    "open_sources",
    "rival_keys",
    "suggest_label_keys",
]
