"""What users copy works: configs and scripts run, documented commands parse, links lead somewhere."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from physicsml_ase import load_model
from physicsml_ase.cli.app import app
from physicsml_ase.cli.training import CONFIG_SUFFIXES
from physicsml_ase.config import load, validate
from physicsml_ase.recipe import with_recipe
from physicsml_ase.train.settings import RunConfig

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = ["trainer.max_time=null", "trainer.max_epochs=1", "trainer.limit_train_batches=3", "model.channels=8"]


def run(*command: str, timeout: float = 240) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "") for line in block.splitlines()]
    comments = [line.lstrip("# ") for config in CONFIGS for line in config.read_text("utf-8").splitlines()]
    return sorted({line for line in lines + comments if line.startswith("physicsml-ase ")})


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    # a length in epochs, so that the potential is the same however busy the machine is
    lengths = ["--time", "5m", "--time-ps", "0.02", "trainer.max_epochs=3", "model.channels=24"]
    said = run("examples/demo.py", "--output", str(out), *lengths)
    assert "L1_0 CuAu" in said
    return out


def test_demo(demo: Path) -> None:
    assert (demo / "demo.png").stat().st_size > 50_000
    for name in ("train/model.ckpt", "evaluation/metrics.json", "md.traj", "md.log", "relax.log"):
        assert (demo / name).is_file(), name


def test_md_with_ase(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    script = runpy.run_path("examples/md_with_ase.py")
    script["main"](str(demo / "train" / "model.ckpt"), steps=20, out=tmp_path / "md.traj")
    assert (tmp_path / "md.traj").is_file()


def test_train_in_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "examples" / "train_in_python.py"))
    script["main"]("3s", tmp_path / "run")
    assert (tmp_path / "run" / "mine.ckpt").is_file()
    assert "[(6, 3), (3, 3)]" in capsys.readouterr().out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_train(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    model = load_model(path, [*SMALL, f"trainer.default_root_dir={tmp_path / 'run'}"]).train()
    assert (tmp_path / "run" / "model.ckpt").is_file()
    assert {label.name for label in model.potential.labels} == set(yaml.safe_load(path.read_text())["loss"])


@pytest.mark.parametrize("line", commands())
def test_documented_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    verb, *arguments = shlex.split(line, comments=True)[1:]
    arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
    group = typer.main.get_command(app)
    with group.make_context("physicsml-ase", [verb]) as context:
        chosen = group.get_command(context, verb)
        assert chosen is not None, f"no verb {verb}"
        given = chosen.make_context(verb, arguments, parent=context).params
    if verb == "train":
        words = given["arguments"] or []
        files = [word for word in words if word.endswith(CONFIG_SUFFIXES)]
        validate(RunConfig, load(files[0] if files else None, [word for word in words if word not in files]))


def test_there_are_commands() -> None:
    verbs = {line.split()[1] for line in commands()}
    assert verbs >= {"train", "resume", "evaluate", "predict", "md", "relax", "info", "describe"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_in_pages_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_training_in_python_is_shown_as_the_command_line_trains() -> None:
    (block,) = (b for b in blocks(ROOT / "README.md", "python") if "load_model" in b)
    names: dict[str, Any] = {}
    exec(block[: block.index("model.train(")], names)
    trainer = {"max_time": "5m", "default_root_dir": "run"}
    assert names["model"].config == validate(RunConfig, with_recipe({"trainer": trainer}))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "data" / "README.md"], ids=lambda p: p.name)
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        if target.startswith("http"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {link}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name}: {link}"


def test_make_targets_in_pages_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in re.findall(r"\bmake ([a-z]+)`", page.read_text("utf-8"))}
    assert named
    assert named <= targets


def test_reference_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
    assert script["PAGE"].read_text("utf-8") == script["reference"](), "run `make reference`"


def test_the_architecture_in_the_docs_keeps_the_contract(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "new_architecture.md", "python")
    (tmp_path / "filter_net.py").write_text(code)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import filter_net, pytest; "
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'filter_net', 'tests/test_contract.py']))"
    )
    assert "[100%]" in run("-c", program)
