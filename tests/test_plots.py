"""Figures draw what they are given, whatever is missing, and leave matplotlib's global state alone."""

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from test_contract import make

from physicsml_ase.evaluate import Evaluation, evaluate
from physicsml_ase.plots import demo_figure, learning_curves_figure, parity_figure, read_curves, save
from physicsml_ase.simulate import md, relax

METRICS = """epoch,lr-Adam,step,train/energy/loss,train/total/loss,\
val/energy/mae,val/energy/rmse,val/forces/rmse,val/total/loss
,0.001,4,,,,,,
0,,9,,,12.0,20.0,300.0,0.5
0,,9,0.2,0.9,,,,
1,,19,,,7.0,10.0,150.0,nan
1,,19,0.1,0.4,,,,
"""


@pytest.fixture
def evaluation() -> Evaluation:
    rng = np.random.default_rng(0)
    frames = []
    for k in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=k)
        atoms.info["config_type"] = ("bulk", "a rather long name of a group")[k % 2]
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(4, 3)), "stress": rng.normal(size=6)}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    return evaluate(make("painn"), frames)


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    return path


def test_parity_has_a_panel_for_each_property(evaluation: Evaluation, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    figure = parity_figure(evaluation)
    assert [axes.get_title() for axes in figure.axes] == ["energy per atom", "forces", "stress"]
    energy, forces, _ = figure.axes
    assert "RMSE" in energy.texts[0].get_text()
    assert "meV/atom" in energy.texts[0].get_text()
    assert "[eV/Å]" in forces.get_xlabel()
    assert len(energy.get_legend().get_texts()) == 2
    shown = forces.lines[1].get_xydata()
    reference, prediction, _ = evaluation.quantities["forces"].sample.pairs()
    np.testing.assert_array_equal(shown, np.stack([reference, prediction], axis=1))
    save(figure, tmp_path / "new" / "parity.png")
    assert (tmp_path / "new" / "parity.png").read_bytes()[1:4] == b"PNG"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["parity.png"]
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_many_points_are_a_density(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True).repeat(7)
    atoms.calc = SinglePointCalculator(
        atoms, energy=0.0, forces=np.random.default_rng(0).normal(size=(1372, 3))
    )
    figure = parity_figure(evaluate(make("painn"), [atoms]))
    _, forces = figure.axes
    assert len(forces.collections) == 1
    assert forces.collections[0].get_array().sum() == 4116
    save(figure, tmp_path / "x.png")


def test_nothing_to_compare_is_an_empty_figure(tmp_path: Path) -> None:
    atoms = molecule("CO")
    atoms.info["energy"] = 0.0
    evaluation = replace(evaluate(make("painn"), [atoms]), quantities={})
    figure = parity_figure(evaluation)
    assert not figure.axes
    save(figure, tmp_path / "x.png")


def test_learning_curves(metrics: Path, tmp_path: Path) -> None:
    curves = read_curves(metrics)
    assert [c.tolist() for c in curves["val/energy/rmse"]] == [[1, 2], [20, 10]]
    assert [c.tolist() for c in curves["train/total/loss"]] == [[1, 2], [0.9, 0.4]]
    figure = learning_curves_figure(metrics)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "validation, energy", "validation, forces"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "error [meV/atom]", "error [meV/Å]"]
    assert all(axes.get_yscale() == "log" for axes in figure.axes)
    loss = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert loss == {"train": [0.9, 0.4], "validation": [0.5]}
    save(figure, tmp_path / "x.png")


def test_a_run_that_was_stopped_at_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/total/loss\n")
    save(learning_curves_figure(tmp_path / "metrics.csv"), tmp_path / "x.png")


def test_the_page_of_the_demo(evaluation: Evaluation, metrics: Path, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    md(EMT(), atoms, steps=20, log=tmp_path / "md.log", every=2)
    relax(EMT(), atoms, log=tmp_path / "relax.log")
    figure = demo_figure(evaluation, metrics, tmp_path / "md.log", tmp_path / "relax.log", title="Copper")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[-4:] == ["molecular dynamics", "", "geometry optimisation", ""]
    assert len(titles) == 10
    save(figure, tmp_path / "demo.png")
    assert len(demo_figure(metrics_csv=metrics).axes) == 3
    save(demo_figure(), tmp_path / "nothing.png")
