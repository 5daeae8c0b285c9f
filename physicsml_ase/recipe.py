"""What is trained when nothing else is said: the defaults behind `physicsml-ase train --train my.xyz`.

A config file keeps the meaning of its own keys, with the defaults of `describe`; the recipe is for users
who give none. Its choices are measured in `benchmarks/`.
"""

from collections.abc import Mapping
from typing import Any

DEFAULT_TIME = "15m"
"""How long the recipe trains where no length is given."""

RECIPE: dict[str, Any] = {
    "datamodule": {
        # about a hundred atoms a step: small molecules come in eights, cells of sixty atoms in twos
        "train": {"batch_size": 16, "max_atoms": 128},
        "validation": {"batch_size": 64, "max_atoms": 512},
        "test": {"batch_size": 64, "max_atoms": 512},
        "predict": {"batch_size": 64, "max_atoms": 512},
        "pre_batch": "in_memory",
    },
    "optimizer": {"name": "MuonAdam", "config": {"lr": 0.01}},
    "compile": "auto",
    "on_overfitting": "distil",
    "trainer": {"gradient_clip_val": 10.0, "gradient_clip_algorithm": "norm"},
}

BY_MODEL: dict[str, dict[str, Any]] = {
    # its weights are drawn with unit variance and scaled where they are used: Muon's steps are too small for them
    "mace": {"optimizer": {"name": "AdamW", "config": {"lr": 0.01}}},
}
"""What is other for an architecture."""

LENGTHS = ("max_epochs", "max_steps", "max_time")


def with_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, overridden by what is given."""
    model = config.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    own = BY_MODEL.get(name, {}) if isinstance(name, str) else {}
    if "name" in _section(config, "optimizer"):
        own = {}  # rates of one optimizer are not those of another
    recipe = merge(RECIPE, own)
    if _section(config, "optimizer").get("name", recipe["optimizer"]["name"]) != recipe["optimizer"]["name"]:
        recipe["optimizer"] = {}  # its rate neither
    merged = merge(recipe, config)
    if any(_limits(_trainer(merged), key) for key in LENGTHS):
        return merged
    return merge({"trainer": {"max_time": DEFAULT_TIME}}, merged)


def with_length(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with `max_epochs` unlimited where steps or time limit the run and epochs are not named."""
    trainer = _trainer(config)
    if trainer.get("max_epochs") is None and any(_limits(trainer, k) for k in LENGTHS[1:]):
        return merge(config, {"trainer": {"max_epochs": -1}})
    return dict(config)


def _limits(trainer: Mapping[str, Any], key: str) -> bool:
    """Whether a length is given; of steps -1 is none, as it is Lightning's own."""
    value = trainer.get(key)
    return value is not None and not (key == "max_steps" and value == -1)


def _trainer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _section(config, "trainer")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}  # what else it is, validation will tell


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid over it, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
