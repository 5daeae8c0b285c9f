"""A report stands by itself, tells what is missing, and lets nothing in that comes from the data."""

import json
import logging
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from command_line import error_of, run
from conftest import rattled

from physicsml_ase.config import validate
from physicsml_ase.plots.errors import draw_distribution, draw_groups
from physicsml_ase.plots.structure import draw_structure
from physicsml_ase.plots.style import literal, new_figure, save
from physicsml_ase.report import write_report
from physicsml_ase.report.write import _refuse_others_file
from physicsml_ase.train.run import Data, start
from physicsml_ase.train.settings import RunConfig

EVIL = '<script>alert("x")</script> $\\frac{ & _'
NAMESPACES = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
VOID = {"meta", "br", "image", "use", "path", "rect", "line", "stop"}


SMALL = {
    "model": {"channels": 6, "num_radial": 4},
    "datamodule": {"train": {"batch_size": 4}, "cut_off": 3.0, "pre_batch": "in_memory"},
    "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "enable_progress_bar": False},
}


def frames(count: int, seed: int) -> list[Atoms]:
    """Molecules with EMT's energies and forces, of two kinds."""
    found = []
    for k in range(count):
        atoms = rattled(molecule(("H2O", "H2O2")[k % 2]), 0.05, seed + k)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["config_type"] = (EVIL, "warm")[k // 2 % 2]
        found.append(atoms)
    return found


class Balanced(HTMLParser):
    """Every element that begins ends, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for name, count, seed in (("train", 16, 0), ("test", 5, 1)):
        write(folder / f"{name}.xyz", frames(count, seed), format="extxyz")
    log = logging.getLogger("physicsml_ase")
    level = log.level
    log.setLevel(logging.INFO)
    try:
        data = Data(str(folder / "train.xyz"), None, str(folder / "test.xyz"))
        start(validate(RunConfig, SMALL), data, folder / "run")
    finally:
        log.setLevel(level)
    return folder / "run"


def test_the_log_is_kept(finished: Path) -> None:
    lines = (finished / "train.log").read_text().splitlines()
    assert any("INFO elements H, O" in line for line in lines)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+ ", line) for line in lines)
    record = json.loads((finished / "run.json").read_text())
    assert record["created"] <= record["changed"]


def test_a_report_takes_nothing_elses_place(finished: Path, tmp_path: Path) -> None:
    """A model, the run's own files and folders stay; an older report does not."""
    run_ = shutil.copytree(finished, tmp_path / "run")
    before = {path: path.read_bytes() for path in run_.rglob("*") if path.is_file()}
    for name in ("model.ckpt", "run.json", "config.yaml"):
        assert "is no report; give another name (-o)" in error_of(run("report", run_, "-o", run_ / name))
    assert "give the report a file's name" in error_of(run("report", run_, "-o", run_))
    assert before == {path: path.read_bytes() for path in run_.rglob("*") if path.is_file()}
    (tmp_path / "old.html").write_text("<!DOCTYPE html>\n")
    _refuse_others_file(tmp_path / "old.html")


def test_a_report_stands_by_itself(finished: Path, tmp_path: Path) -> None:
    result = run("report", finished, "-o", tmp_path / "a.html", "--figures", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "a.html").read_text()
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    assert not parser.seen & {"script", "link", "iframe", "object", "img"}
    for namespace in NAMESPACES:
        text = text.replace(namespace, "")
    assert "http:" not in text
    assert "https:" not in text
    assert "default-src 'none'" in text
    assert "width=device-width" in text
    assert "prefers-color-scheme: dark" in text
    assert "var(--ink)" in text
    for title in (
        "Data",
        "Learning",
        "Errors on the test set",
        "Worst structures",
        "Checks",
        "Timings",
        "Config",
    ):
        assert f"<h2>{title}" in text, title
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert "forces RMSE, test" in text
    assert "of the run" in text  # versions
    assert "batch_size: 4" in text  # the config
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    for name in (
        "learning-0",
        "parity-forces",
        "errors-energy",
        "forces-by-element",
        "worst-1",
        "nve",
        "dimer-H-O",
    ):
        assert {f"{name}.png", f"{name}.svg"} <= names
    assert "var(" not in (tmp_path / "figures/nve.svg").read_text()


def test_what_is_missing_is_said(finished: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(finished, broken)
    for name in ("model.ckpt", "metrics.csv", "train.log", "checkpoints/last.ckpt"):
        (broken / name).unlink(missing_ok=True)
    record = json.loads((broken / "run.json").read_text())
    record |= {
        "status": "interrupted",
        "data": {"train": str(tmp_path / "gone.xyz"), "validation": None, "test": None},
    }
    (broken / "run.json").write_text(json.dumps(record))
    text = write_report(broken).read_text()
    for words in (
        "it was interrupted",
        "no model yet",
        "no metrics yet",
        "no train.log",
        "can not be opened any more",
    ):
        assert words in text, words
    assert "<h2>Data" in text
    assert (broken / "report.html").exists()


def test_without_a_test_set_validation_is_shown(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("physicsml_ase.report.write._checked", lambda run: None)  # which takes a second
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    record = json.loads((copy / "run.json").read_text())
    record["data"]["test"] = None
    record["summary"]["sources"]["validation"]["hash"] = "other"
    (copy / "run.json").write_text(json.dumps(record))
    with (copy / "train.log").open("a") as log:
        log.write("2030-01-01 00:00:00 WARNING a <b>warning</b>\n" * 2)
    text = write_report(copy, structures=1).read_text()
    assert '<td class="n">2</td><td class="w">a &lt;b&gt;warning&lt;/b&gt;</td>' in text
    assert "There is no test set" in text
    assert "Errors on the validation set" in text
    assert "The validation data changed" in text
    assert "Checks of the model" not in text


def test_refused_in_one_line(tmp_path: Path) -> None:
    assert "not a run" in error_of(run("report", tmp_path))


@pytest.mark.parametrize(
    "atoms",
    [Atoms("H"), molecule("CO"), molecule("C2H6"), bulk("Cu", cubic=True), bulk("Si").repeat((6, 6, 7))],
    ids=len,
)
def test_structures_are_drawn(atoms: Atoms, tmp_path: Path) -> None:
    figure = new_figure(2, 2)
    axes = figure.add_subplot()
    draw_structure(axes, atoms, marked=len(atoms) - 1)
    balls = axes.collections[-2].get_offsets()
    assert len(balls) == min(len(atoms), 400)
    low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
    assert ((balls > low) & (balls < high)).all()
    save(figure, tmp_path / "a.png")


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    names = ("$\\bad{", "a$b$c", "_hidden", "new\nline\0", "", "x" * 99)
    figure = new_figure(4, 4)
    draw_groups(figure.add_subplot(2, 1, 1), {name: np.array([0.1, 0.2]) for name in names}, "title", "eV")
    draw_distribution(figure.add_subplot(2, 1, 2), np.zeros(3), "nothing wrong", "eV")
    save(figure, tmp_path / "a.png")
    assert [len(literal(name)) <= 20 for name in names]
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "newline (2)" in shown
