"""Classes that a config names: checked when the config is read, built when they are needed.

trainer:
  callbacks:
    - {name: EarlyStopping, config: {monitor: val/total/loss, patience: 20}}
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Protocol, TypeVar

from pydantic import AfterValidator, Field
from pydantic_core import InitErrorDetails

from physicsml_ase.config import config, did_you_mean
from physicsml_ase.config.declare import explained, failure
from physicsml_ase.config.wording import is_config
from physicsml_ase.conventions import InputError
from physicsml_ase.train.arguments import Factory, converted, parameters, problems

C = TypeVar("C", bound=type)
V = TypeVar("V")


class Choice(Protocol):
    """A class by its name, and its keyword arguments."""

    @property
    def name(self) -> str:
        """Name of the class."""

    @property
    def config(self) -> dict[str, object]:
        """Its keyword arguments."""


def _numbers(config: dict[str, object]) -> dict[str, object]:
    """With numbers as keys (GradientAccumulationScheduler's epochs) also where JSON made text of them."""

    def restored(value: object) -> object:
        is_numbered = isinstance(value, dict) and all(str(k).isdigit() for k in value)
        return {int(k): v for k, v in value.items()} if is_numbered else value  # type: ignore[attr-defined]

    return {key: restored(value) for key, value in config.items()}


Arguments = Annotated[dict[str, object], AfterValidator(_numbers)]
"""Keyword arguments of a class, as plain data."""


@config
class NamedConfig:
    """A class by its name, and its arguments."""

    name: str
    """Name of the class."""
    config: Arguments = Field(default_factory=dict)
    """Keyword arguments of the class."""


class Catalog:
    """The classes of one kind that a config may name.

    Of the arguments, `reserved` are the program's alone and `filled` are the program's unless the user gives
    them. `passed_on` is what takes the open keyword arguments of a class, `packages` what to install for a
    class whose package may be missing.
    """

    def __init__(
        self,
        kind: str,
        classes: Mapping[str, Factory],
        *,
        reserved: tuple[str, ...] = (),
        filled: tuple[str, ...] = (),
        passed_on: Mapping[str, Factory] | None = None,
        packages: Mapping[str, str] | None = None,
    ) -> None:
        self.kind, self.classes, self.reserved, self.filled = kind, dict(classes), reserved, filled
        self.passed_on, self.packages = dict(passed_on or {}), dict(packages or {})

    def register(self, cls: C) -> C:
        """Make a class known by its own name; a decorator."""
        if cls.__name__ in self.classes:
            raise ValueError(f"{self.kind} {cls.__name__!r} is already registered")
        self.classes[cls.__name__] = cls
        return cls

    def check(self, value: V) -> V:
        """Refuse an unknown name and unknown, missing or wrong arguments: a validator for pydantic.

        A bare name stands for the class without arguments; objects that were built already pass.
        """
        if isinstance(value, str):
            self.check(NamedConfig(name=value))
        elif is_config(type(value)) and (lines := list(self._wrong(value))):  # type: ignore[arg-type]
            raise failure(lines)
        return value

    def build(self, choice: Choice, where: str, program: Mapping[str, object] | None = None) -> object:
        """The chosen object; of the `program`'s arguments, those that the class takes and the user left out."""
        factory = self.classes.get(choice.name)
        if factory is None:
            raise InputError(f"{where}: {self._unknown(choice.name)}")
        takes = parameters(factory)
        own = {k: v for k, v in (program or {}).items() if k in takes and k not in choice.config}
        try:
            return factory(**own, **converted(factory, choice.config))
        except ImportError as error:
            package = self.packages.get(choice.name)
            how = f"pip install '{package}'" if package else " ".join(str(error).split())
            raise InputError(
                f"{where}: {choice.name} needs a package that is not installed: {how}"
            ) from error
        except Exception as error:  # whatever another package's class raises about its arguments
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{where}: {choice.name}: {reason}") from error

    def _unknown(self, name: str) -> str:
        return f"unknown {self.kind} {name!r}; {did_you_mean(name, self.classes)}"

    def _wrong(self, choice: Choice) -> Iterator[InitErrorDetails]:
        factory = self.classes.get(choice.name)
        if factory is None:
            yield explained(("name",), self._unknown(choice.name))
            return
        for key, text in problems(
            factory,
            choice.name,
            choice.config,
            reserved=self.reserved,
            filled=self.filled,
            passed_on=self.passed_on.get(choice.name),
        ):
            yield explained(("config",) if key is None else ("config", key), text, absent=key is None)
