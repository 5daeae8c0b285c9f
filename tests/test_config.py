"""Configs: strict, explained, loaded, overridden, described and stored."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from physicsml_ase.config import (
    MODELS,
    ModelConfig,
    config,
    describe,
    json_schema,
    load,
    readable,
    register_model,
    to_plain,
    validate,
)
from physicsml_ase.conventions import InputError


@config
class Small:
    """A small model."""

    name: Literal["small"] = "small"
    """Which architecture."""
    channels: int = Field(128, ge=1)
    """Features per atom."""
    cutoff: float = Field(5.0, gt=0, le=20)
    """Cut-off
    [Å]."""


@config
class Derived(Small):
    """A small model with more."""

    cutoff: float = Field(6.0, gt=0)
    """Another cut-off."""
    plain: int = 1
    """A plain default."""
    required: int
    """No default."""


@config
class DerivedTwice(Derived):
    """A small model with more and more."""

    last: int = 0
    """The last."""


@config
class Large:
    """A large model."""

    name: Literal["large"] = "large"
    """Which architecture."""
    l_max: int = Field(2, ge=0)
    """Highest degree."""


@config
class Named:
    """A class by name."""

    name: str
    """Its name."""
    config: dict[str, object] = Field(default_factory=dict)
    """Its arguments."""


@config
class Training:
    """How to train."""

    max_epochs: int = Field(1, ge=-1)
    """Epochs."""
    clip: Literal["norm", "value"] | None = None
    """How gradients are clipped."""
    callbacks: list[Named] | dict[str, Named] | None = None
    """Callbacks."""
    strategy: str | Named = "auto"
    """Strategy."""
    pbc: tuple[bool, bool, bool] | None = None
    """Periodic directions."""
    energies: dict[int, float] = Field(default_factory=dict)
    """Reference energies."""


@config
class Run:
    """Everything."""

    model: ModelConfig = Field(default_factory=Small)
    """The architecture."""
    trainer: Training = Field(default_factory=Training)
    """The training."""
    seed: int = 0
    """Random seed."""


@pytest.fixture(autouse=True)
def models() -> Iterator[None]:
    before = dict(MODELS)
    MODELS.clear()
    register_model(Small, default=True)(type("SmallModel", (), {}))
    register_model(Large)(type("LargeModel", (), {}))
    yield
    MODELS.clear()
    MODELS.update(before)


def refused(data: dict[str, object], cls: object = Run) -> list[str]:
    with pytest.raises(InputError) as error:
        validate(cls, data, "run.yaml")
    return str(error.value).splitlines()


def test_defaults() -> None:
    assert validate(Run, {}) == Run()


def test_configs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        Small().channels = 3  # type: ignore[misc]
    with pytest.raises(ValueError):
        Small("small")  # type: ignore[misc]


def test_direct_construction_explains_itself() -> None:
    with pytest.raises(ValueError, match="unknown key; did you mean 'channels'"):
        Small(chanels=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sead": 3}, "sead: unknown key; did you mean 'seed'?"),
        ({"foo": 3}, "foo: unknown key; known: model, trainer, seed"),
        ({"seed": {"a": 1}}, "seed: {'a': 1}: must be int"),
        ({"model": {"chanels": 3}}, "model.chanels: unknown key; did you mean 'channels'?"),
        ({"model": {"name": "smal"}}, "model.name: unknown model 'smal'; did you mean 'small'?"),
        ({"model": {"name": "large", "channels": 3}}, "model.channels: unknown key; known: name, l_max"),
        ({"model": 3}, "model: 3: must be a section with the name of a model: 'small' | 'large'"),
        (
            {"model": "large"},
            "model: 'large': must be a section with the name of a model: 'small' | 'large'; "
            "write its key: name=large",
        ),
        ({"model": {"cutoff": -1}}, "model.cutoff: -1: must be float > 0 and <= 20"),
        ({"model": {"cutoff": float("nan")}}, "model.cutoff: nan: must be a finite number"),
        ({"trainer": {"max_epochs": -3}}, "trainer.max_epochs: -3: must be int >= -1"),
        ({"trainer": {"max_epochs": True}}, "trainer.max_epochs: true: must be int >= -1"),
        ({"trainer": {"max_epochs": None}}, "trainer.max_epochs: none: must be int >= -1"),
        (
            {"trainer": {"clip": "nrom"}},
            "trainer.clip: 'nrom': must be 'norm' | 'value' | none; did you mean 'norm'?",
        ),
        ({"trainer": {"callbacks": 3}},
         "trainer.callbacks: 3: must be list of section | dict of section | none"),
        (
            {"trainer": {"callbacks": [{"name": "a", "confg": {}}]}},
            "trainer.callbacks.0.confg: unknown key; did you mean 'config'?",
        ),
        ({"trainer": {"callbacks": {"a": {"config": {}}}}}, "trainer.callbacks.a.name: missing; must be str"),
        ({"trainer": {"strategy": {"name": "a", "x": 1}}},
         "trainer.strategy.x: unknown key; known: name, config"),
        ({"trainer": {"strategy": 4}}, "trainer.strategy: 4: must be str | section"),
        ({"trainer": {"pbc": [True]}}, "trainer.pbc: [True]: must be [bool, bool, bool] | none"),
        ({"trainer": 3}, "trainer: 3: must be a section with some of the keys max_epochs, clip, callbacks, "
         "strategy, pbc, energies"),
    ],
)  # fmt: skip
def test_one_error_is_one_line(data: dict[str, object], message: str) -> None:
    assert refused(data) == [f"run.yaml: {message}"]


def test_all_errors_at_once() -> None:
    lines = refused(
        {
            "model": {"name": "large", "l_max": -1, "lmax": 2},
            "trainer": {
                "max_epochs": -3,
                "clip": 1,
                "callbacks": [{"nam": "a"}],
                "energies": {1: "x", "H": 1},
            },
            "seeds": 1,
        }
    )
    assert lines[0] == "9 errors in run.yaml:"
    assert {line.split(":")[0].strip() for line in lines[1:]} == {
        "model.l_max", "model.lmax", "trainer.max_epochs", "trainer.clip", "trainer.callbacks.0.nam",
        "trainer.callbacks.0.name", "trainer.energies.1", "trainer.energies.H", "seeds",
    }  # fmt: skip


def test_errors_in_several_items_of_unions() -> None:
    lines = refused({"a": {"x": 1}, "b": "no", "c": 3}, dict[str, int | Small])
    assert {line.split(":")[0].strip() for line in lines[1:]} == {"a.x", "b"}


def test_models_are_found_when_the_config_is_read() -> None:
    @config
    class Later:
        name: Literal["later"] = "later"

    assert "unknown model 'later'" in refused({"model": {"name": "later"}})[0]
    register_model(Later)(type("LaterModel", (), {}))
    assert validate(Run, {"model": {"name": "later"}}).model == Later()
    assert validate(Run, {"model": Later()}).model == Later()


def test_the_default_model_needs_no_name() -> None:
    assert validate(Run, {"model": {"channels": 3}}).model == Small(channels=3)


def test_duplicate_and_nameless_models_are_refused() -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_model(Small)(type("Other", (), {}))
    with pytest.raises(TypeError, match="Literal"):
        register_model(Training)


WORDS = st.text("aZ0 _.:-{é", min_size=1)


@settings(max_examples=50, deadline=None)
@given(
    channels=st.integers(1, 10**6),
    cutoff=st.floats(0, 20, exclude_min=True),
    epochs=st.integers(-1, 100),
    clip=st.sampled_from(["norm", "value", None]),
    names=st.none() | st.lists(WORDS) | st.dictionaries(WORDS, WORDS, min_size=1),
    energies=st.dictionaries(st.integers(1, 118), st.floats(allow_nan=False, allow_infinity=False)),
    pbc=st.none() | st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_round_trip_through_json_and_yaml(channels, cutoff, epochs, clip, names, energies, pbc) -> None:
    callbacks = names
    if isinstance(names, list):
        callbacks = [Named(name=name, config={"patience": [1, 2.5, None, "x"]}) for name in names]
    elif names is not None:
        callbacks = {key: Named(name=name) for key, name in names.items()}
    training = Training(max_epochs=epochs, clip=clip, callbacks=callbacks, energies=energies, pbc=pbc)
    run = Run(model=Small(channels=channels, cutoff=cutoff), trainer=training)
    plain = to_plain(run)
    assert validate(Run, plain) == run
    assert validate(Run, json.loads(json.dumps(plain))) == run
    assert validate(Run, load({}, [f"trainer={json.dumps(plain['trainer'])}"])).trainer == training


def test_objects_of_python_become_their_class_in_plain_data() -> None:
    assert to_plain(Named(name="a", config={"f": object()}))["config"] == {"f": "<builtins.object>"}


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("yaml", "model:\n  name: small\n  cutoff: 1e-3\nseed: 1_000\n"),
        ("yml", "{model: {name: small, cutoff: .1e-2}, seed: 1000}"),
        ("json", '{"model": {"name": "small", "cutoff": 1e-3}, "seed": 1000}'),
        ("toml", 'seed = 1_000\n[model]\nname = "small"\ncutoff = 1e-3\n'),
    ],
)
def test_load_files(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"run.{suffix}"
    path.write_text(text)
    assert load(path) == load(str(path)) == {"model": {"name": "small", "cutoff": 1e-3}, "seed": 1000}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-.5", -0.5), ("5.", 5.0), ("1.e5", 1e5), ("3", 3), ("-3", -3), 
        ("010", 10),
        ("0x10", 16), ("1_000", 1000), ("true", True), ("off", False), ("No", "No"), ("null", None), 
        ("~", None),
        ("01:00:00:00", "01:00:00:00"), ("1:30:00", "1:30:00"), ("2024-01-01", "2024-01-01"), ("10m", "10m"),
        ("'3'", "3"), ("[1, a]", [1, "a"]), ("{a: {b: 1}}", {"a": {"b": 1}}), ("*.xyz", "*.xyz"),
        ("data/*.xyz@:10", "data/*.xyz@:10"), ("@x", "@x"), ("a=b", "a=b"), ("e", "e"),
        (".", "."), ("- 1", [1]),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    loaded = load(None, [f"x={text}"])["x"]
    assert (loaded, type(loaded)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: 1\nb: 2\na: 3\n", "a.yaml, line 3: not valid YAML: duplicate key 'a'"),
        ("a.yaml", "a: {b: 1, b: 2}\n", "a.yaml, line 1: not valid YAML: duplicate key 'b'"),
        ("a.yaml", "a: [1\nb: 2\n", "a.yaml, line 2: not valid YAML"),
        ("a.yaml", "a: !!python/name:os.system x\n", "a.yaml, line 1: not valid YAML"),
        ("a.yaml", "a: \0", "a.yaml: "),
        ("a.yaml", "- 1\n", "a.yaml: must hold keys and values"),
        ("a.yaml", "? [1, 2]\n: 3\n", "a.yaml, line 1: not valid YAML"),
        ("a.json", '{"a": 1,\n "b" 2}', "a.json, line 2: not valid JSON"),
        ("a.json", '{"a": 1, "a": 2}', "a.json: duplicate key 'a'"),
        ("a.json", "[1]", "a.json: must hold keys and values"),
        ("a.toml", "a = 1\nb = \n", "a.toml: .*line 2"),
        ("a.toml", "a = 1\na = 2\n", "a.toml: .*line 2"),
        ("a.txt", "a: 1", "a.txt: a config file must end in .yaml"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "dir.yaml").mkdir()
    with pytest.raises(InputError, match="directory"):
        load(tmp_path / "dir.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load(tmp_path / "bytes.yaml")
    (tmp_path / "empty.yaml").write_text("# all defaults\n")
    assert load(tmp_path / "empty.yaml") == {}


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  x: 3\n")
    assert load(tmp_path / "a.yaml")["b"] == {"x": 3, "y": 2}


def test_overrides_merge_deeply_and_leave_the_source_alone() -> None:
    source: dict[str, object] = {"a": {"b": 1, "c": {"d": 2}}, "l": [{"x": {"y": 1}}], "n": None}
    before = json.dumps(source)
    changes = [
        "a={c: {e: 3}}",
        "a.b=4",
        "l.0.x.y=2",
        "l.0.x.z=3",
        "l.1.name=new",
        "n.m=1",
        "p.q.r=1",
        " s =1",
    ]
    assert load(source, changes) == {
        "a": {"b": 4, "c": {"d": 2, "e": 3}},
        "l": [{"x": {"y": 2, "z": 3}}, {"name": "new"}],
        "n": {"m": 1},
        "p": {"q": {"r": 1}},
        "s": 1,
    }
    assert json.dumps(source) == before


@pytest.mark.parametrize(
    "text", ["a", "=1", "a.=1", ".a=1", "a..b=1", "a b=1", "a=", "a= ", "a=[1", 'a="x', "a={b"]
)
def test_bad_overrides(text: str) -> None:
    with pytest.raises(InputError, match=r"override is key.sub=value|no value|cannot read the value"):
        load({}, [text])


def test_overrides_that_do_not_fit_the_source() -> None:
    with pytest.raises(InputError, match="a is 1, not a section"):
        load({"a": 1}, ["a.b=2"])
    with pytest.raises(InputError, match="a is a list of 1"):
        load({"a": [1]}, ["a.5=2"])
    with pytest.raises(InputError, match="a is a list of 1"):
        load({"a": [1]}, ["a.x=2"])


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.from_regex("[a-z]+", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS,
    lambda x: st.lists(x, min_size=1) | st.dictionaries(KEYS, x, min_size=1),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_any_value_survives_an_override(value: object) -> None:
    assert load({}, [f"x.y={json.dumps(value)}"]) == {"x": {"y": value}}
    assert load({}, [f"x.y={yaml.safe_dump(value, default_flow_style=True).removesuffix('...')}"])["x"] == {
        "y": value
    }


def test_describe_lists_every_field() -> None:
    rows = describe(Run)
    assert [row.path for row in rows if row.path.startswith("trainer")] == [
        "trainer", "trainer.max_epochs", "trainer.clip", "trainer.callbacks", "trainer.callbacks.<n>.name",
        "trainer.callbacks.<n>.config", "trainer.callbacks.<name>.name", "trainer.callbacks.<name>.config",
        "trainer.strategy", "trainer.strategy.name", "trainer.strategy.config", "trainer.pbc",
        "trainer.energies",
    ]  # fmt: skip
    assert all(row.meaning for row in rows)
    assert describe(Run, "trainer.clip") == [
        ("trainer.clip", "'norm' | 'value' | none", "none", "How gradients are clipped.")
    ]
    assert describe(Run, "trainer.callbacks.0.name")[0].default == "required"
    assert describe(Run, "trainer")[0].type == "section"


def test_describe_models() -> None:
    both = describe(Run, "model")
    assert both[0] == ("model", "'small' | 'large'", "", "The architecture.")
    assert [row.path for row in both[1:]] == [
        "model.name", "model.channels", "model.cutoff", "model.name", "model.l_max"
    ]  # fmt: skip
    assert describe(Run, "model.small")[2] == ("model.cutoff", "float > 0 and <= 20", "5.0", "Cut-off [Å].")
    assert [row.path for row in describe(Run, "model.large")] == ["model.name", "model.l_max"]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (Literal["a", 1] | None, "'a' | 1 | none"),
        (Annotated[float, Field(gt=0)] | None, "float > 0 | none"),
        (list[int | str], "list of (int | str)"),
        (tuple[int, ...], "list of int"),
        (tuple[tuple[float, float], bool], "[[float, float], bool]"),
        (dict[str, object] | bool, "dict | bool"),
        (dict[str, Any], "dict"),
        (Any, "anything"),
        (list[Small], "list of section"),
    ],
)
def test_types_in_words(annotation: object, words: str) -> None:
    assert readable(annotation) == words


def test_inherited_keys_keep_their_meaning() -> None:
    expected = {
        "name": "Which architecture.",
        "channels": "Features per atom.",
        "cutoff": "Another cut-off.",
        "plain": "A plain default.",
        "required": "No default.",
        "last": "The last.",
    }
    assert {row.path: row.meaning for row in describe(DerivedTwice)} == expected
    properties = json_schema(DerivedTwice)["properties"]
    assert {name: of["description"] for name, of in properties.items()} == expected
    assert [row.meaning for row in describe(Small)][2] == "Cut-off [Å]."
    assert validate(DerivedTwice, {"required": 3}) == DerivedTwice(required=3)


def test_describe_unknown_section() -> None:
    with pytest.raises(InputError, match="no section or key 'trainr'; did you mean 'trainer'"):
        describe(Run, "trainr")


def test_json_schema_carries_the_docstrings() -> None:
    schema = json_schema(Run)
    properties = schema["properties"]
    assert properties["seed"]["description"] == "Random seed."
    assert [model["properties"]["name"]["const"] for model in properties["model"]["oneOf"]] == [
        "small",
        "large",
    ]
    assert json.dumps(schema)


def test_import_is_light() -> None:
    code = "import physicsml_ase.config, sys; print({'torch', 'lightning', 'ase'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
