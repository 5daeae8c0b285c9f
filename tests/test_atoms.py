"""What of an Atoms becomes inputs and labels, and what is refused."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from physicsml_ase.atoms import find_label, graph_attrs
from physicsml_ase.conventions import PROPERTIES, InputError, Label
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.settings import DataModuleConfig


def frames_with(*fields: list[float]) -> list[Atoms]:
    """Molecules with energies and an attribute `field`."""
    frames = []
    for k, field in enumerate(fields):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.info |= {"field": field}
        atoms.calc = SinglePointCalculator(atoms, energy=-14.0 - 0.1 * k, forces=np.zeros((3, 3)))
        frames.append(atoms)
    return frames


def test_attributes_of_another_length_are_refused() -> None:
    (atoms,) = frames_with([1.0])
    assert graph_attrs(atoms, ["field"]).tolist() == [[1.0]]
    with pytest.raises(
        InputError, match=r"frame 7: .*\(field\) are 3 numbers in the training data, but 1 here"
    ):
        graph_attrs(atoms, ["field"], 3, "frame 7")
    atoms.info["field"] = "strong"
    with pytest.raises(InputError, match="field is not made of numbers: 'strong'"):
        graph_attrs(atoms, ["field"])


def test_attributes_are_never_results() -> None:
    """A charge that a calculator found is no input: `Atoms.info` says what is."""
    (atoms,) = frames_with([1.0])
    atoms.info["energy"] = 5.0
    assert graph_attrs(atoms, ["energy"]).tolist() == [[5.0]]
    del atoms.info["energy"]
    with pytest.raises(InputError, match=r"no 'energy' in Atoms\.info"):
        graph_attrs(atoms, ["energy"])
    atoms.info["key_value_pairs"] = {"energy": 2.0}  # as an ASE db row
    assert graph_attrs(atoms, ["energy"]).tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("forces", (9, 3)),
        ("forces", (27,)),
        ("forces", (1, 9, 3)),
        ("stress", (9,)),
        ("charges", (9, 1)),
        ("energy", (1, 1)),
    ],
)
def test_labels_take_their_shape(name: str, given: tuple[int, ...]) -> None:
    values = np.arange(float(np.prod(given)))
    label = Label(name, PROPERTIES[name].level, PROPERTIES[name].shape, "ref")
    atoms = molecule("CH3CH2OH")
    atoms.info["ref"] = values.reshape(given)
    found = find_label(atoms, label)
    assert found is not None
    assert found.shape == ((9,) if label.level == "atom" else ()) + label.shape
    np.testing.assert_array_equal(found.ravel(), values)


@pytest.mark.parametrize(
    ("name", "given"), [("forces", (3, 9)), ("forces", (9, 2)), ("charges", (3, 3)), ("stress", (3, 1, 2))]
)
def test_labels_of_another_shape_are_refused(name: str, given: tuple[int, ...]) -> None:
    label = Label(name, PROPERTIES[name].level, PROPERTIES[name].shape, "ref")
    atoms = molecule("CH3CH2OH")
    atoms.info["ref"] = np.zeros(given)
    with pytest.raises(InputError, match=r"frame 3: ref has shape \(.*\), expected \("):
        find_label(atoms, label, "frame 3")


@pytest.mark.parametrize("odd", ["train", "second source", "validation"])
def test_every_structure_of_a_training_has_attributes_of_one_length(odd: str) -> None:
    train = frames_with(*[[0.1 * k, 0.0, 1.0] for k in range(6)])
    validation, second = frames_with([0.0, 1.0, 1.0], [1.0, 0.0, 0.5]), frames_with([0.0, 0.5, 1.0])
    {"train": train, "second source": second, "validation": validation}[odd][-1].info["field"] = [1.0]
    config = DataModuleConfig(graph_attrs_cols=["field"], cut_off=3.0)
    with pytest.raises(InputError, match=r"structure \d.*are 3 numbers in the training data, but 1 here"):
        DataModule(config, {"a": train, "b": second}, {"a": validation}).resolve()
