"""Model architectures by name: one decorator registers one, and every config can then choose it."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from physicsml_ase.config.declare import explained, failure, fields
from physicsml_ase.config.wording import Words, did_you_mean, named, short

M = TypeVar("M", bound=type)


class Architecture(NamedTuple):
    """A registered model: its config class and the module that the config describes."""

    config: type
    module: type
    default: bool


MODELS: dict[str, Architecture] = {}
"""Every registered architecture by the `name` of its config."""


class NamedConfig(Protocol):
    """What every model config has."""

    @property
    def name(self) -> str:
        """Which architecture."""


def model_name(config_cls: type) -> str:
    """The architecture's name, which its config declares as `name: Literal["painn"] = "painn"`."""
    field = fields(config_cls).get("name")
    names = get_args(field.annotation) if field else ()
    if len(names) != 1:
        raise TypeError(
            f"{config_cls.__name__} needs a field `name: Literal[...] = ...` with the model's name"
        )
    return str(names[0])


def register_model(config_cls: type, *, default: bool = False) -> Callable[[M], M]:
    """Register the decorated module under the `name` of its config class.

    A model section without a `name` means the architecture registered as the default.
    """
    name = model_name(config_cls)

    def add(module: M) -> M:
        if name in MODELS:
            raise ValueError(f"model {name!r} is already registered by {MODELS[name].module.__module__}")
        MODELS[name] = Architecture(config_cls, module, default)
        return module

    return add


class _Registered:
    """Metadata of `ModelConfig`: looks the architecture up when a config is read, not when it is declared,
    so that an architecture registered later (by a user's own package) is known everywhere at once."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            _validate, serialization=core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"oneOf": [_inlined(TypeAdapter(model.config).json_schema()) for model in MODELS.values()]}


def _validate(data: object) -> object:
    if type(data) in {model.config for model in MODELS.values()}:
        return data
    if not isinstance(data, Mapping):
        words = f"{short(data)}: must be a section with the name of a model: {_names()}{named(data)}"
        raise failure([explained((), words)])
    name = data.get("name", next((name for name, model in MODELS.items() if model.default), None))
    if name is None:
        raise failure([explained(("name",), f"missing; must be {_names()}", absent=True)])
    if name not in MODELS:
        raise failure(
            [explained(("name",), f"unknown model {short(name)}; {did_you_mean(str(name), MODELS)}")]
        )
    return TypeAdapter(MODELS[name].config).validate_python(data)


def _dump(value: object, info: core_schema.SerializationInfo) -> object:
    return TypeAdapter(type(value)).dump_python(value, mode="json" if info.mode_is_json() else "python")


def _names() -> str:
    return " | ".join(repr(name) for name in MODELS)


ModelConfig = Annotated[NamedConfig, _Registered(), Words(_names)]
"""The config of any registered architecture, chosen by its `name`: the type of a `model` section."""


def model_config_type() -> object:
    """The discriminated union of all registered model configs, also of those registered later."""
    return ModelConfig


def _inlined(schema: Any, parts: Any = None) -> Any:
    """A schema with its named parts where they are used: within another schema their names are not known."""
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    parts = schema.get("$defs", parts)
    if "$ref" in schema:
        rest = {k: v for k, v in schema.items() if k != "$ref"}
        return _inlined(parts[schema["$ref"].removeprefix("#/$defs/")], parts) | rest
    return {k: _inlined(v, parts) for k, v in schema.items() if k != "$defs"}
