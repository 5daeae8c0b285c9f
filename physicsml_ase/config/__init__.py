"""Configs: frozen dataclasses, declared once; read from files, checked with all errors at once, described.

    @config
    class PaiNNConfig:
        "PaiNN's hyperparameters."
        name: Literal["painn"] = "painn"
        "Which architecture."
        channels: Annotated[int, Field(ge=1)] = 128
        "Features per atom."

The field's attribute docstring is its help everywhere: `describe`, the JSON schema, the documentation.
"""

from physicsml_ase.config.check import json_schema, to_plain, validate
from physicsml_ase.config.declare import config, fields
from physicsml_ase.config.describe import Row, describe
from physicsml_ase.config.files import load
from physicsml_ase.config.registry import (
    MODELS,
    Architecture,
    ModelConfig,
    model_config_type,
    register_model,
)
from physicsml_ase.config.wording import did_you_mean, readable

__all__ = [
    "MODELS",
    "Architecture",
    "ModelConfig",
    "Row",
    "config",
    "describe",
    "did_you_mean",
    "fields",
    "json_schema",
    "load",
    "model_config_type",
    "readable",
    "register_model",
    "to_plain",
    "validate",
]
