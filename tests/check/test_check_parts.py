"""The pieces of a check: features and their derivatives, slopes, fingerprints, and single findings."""

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from command_line import error_of, run
from conftest import rattled, structures

from physicsml_ase.check import check
from physicsml_ase.check.basis import designs, layout
from physicsml_ase.check.energies import all_electron_energy
from physicsml_ase.check.frame import Frame, look
from physicsml_ase.check.repeats import fingerprint
from physicsml_ase.check.sample import Sample
from physicsml_ase.check.short import tell
from physicsml_ase.check.slopes import slope
from physicsml_ase.check.work import works
from physicsml_ase.conventions import VOIGT, InputError
from physicsml_ase.data.sources import open_source


def labelled(atoms: Atoms, **results: object) -> Atoms:
    """A copy with these results."""
    new = atoms.copy()
    new.calc = SinglePointCalculator(new, **results)
    return new


def seen(atoms: Atoms, index: int = 0) -> Frame:
    """The atoms as a check sees them."""
    return look(atoms, "train", index, f"frame {index}", {}, 5.0)


def emt(atoms: Atoms) -> Atoms:
    """With energy, forces and, of a crystal, stress of the effective medium theory."""
    copy = atoms.copy()
    copy.calc = EMT()
    names = ("energy", "forces", "stress") if atoms.pbc.all() else ("energy", "forces")
    return labelled(atoms, **{name: copy.calc.get_property(name, copy) for name in names})


def codes(*frames: Atoms) -> set[str]:
    """Codes of all findings."""
    return {finding.code for finding in check(list(frames)).findings}


@pytest.mark.parametrize("name", ["molecule", "triclinic", "slab", "tiny"])
def test_features_have_the_derivatives_that_they_claim(name: str) -> None:
    atoms = structures()[name]
    frame = seen(labelled(atoms, energy=0.0, forces=np.ones((len(atoms), 3))))
    columns = layout([frame], 5.0)
    (own,) = designs([frame], columns)

    def energy(changed: Atoms) -> np.ndarray:
        return designs([seen(changed)], columns)[0].energy

    h = 1e-4
    for atom, axis in ((0, 0), (1, 2)):
        ends = []
        for step in (h, -h):
            moved = atoms.copy()
            moved.positions[atom, axis] += step
            ends.append(energy(moved))
        np.testing.assert_allclose(
            own.forces.reshape(-1, 3, columns.size)[atom, axis], (ends[1] - ends[0]) / (2 * h), atol=2e-5
        )
    for k, (a, b) in enumerate(VOIGT):
        ends = []
        for step in (h, -h):
            strain = np.eye(3)
            strain[a, b] += step / 2
            strain[b, a] += step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain)
            strained.positions = atoms.positions @ strain
            ends.append(energy(strained))
        np.testing.assert_allclose(own.virial[k], (ends[0] - ends[1]) / (2 * h), atol=2e-4, rtol=1e-5)


def test_many_frames_at_once_are_as_one_by_one() -> None:
    frames = [seen(labelled(a, energy=0.0, forces=np.ones((len(a), 3)))) for a in structures().values()]
    frames = [f for f in frames if f.pairs and len(f.pairs.i)]
    columns = layout(frames, 5.0)
    for together, frame in zip(designs(frames, columns), frames, strict=True):
        (alone,) = designs([frame], columns)
        np.testing.assert_allclose(together.energy, alone.energy, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(together.forces, alone.forces, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(together.virial, alone.virial, rtol=1e-10, atol=1e-8)


def test_the_trapezoid_rule_between_near_frames() -> None:
    """Work of EMT's forces and stresses is the difference of its energies, also across strained cells."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(6):
        atoms = rattled(bulk("Cu", cubic=True).repeat((2, 1, 1)), 0.01, seed=k)
        strain = rng.normal(0, 0.004, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        frames.append(seen(emt(atoms), k))
    work = works(frames)
    assert len(work.energy) == 15
    total = work.rule + work.stress.sum(1)
    np.testing.assert_allclose(total, work.energy, atol=0.1 * np.abs(work.energy).max())
    assert np.abs(work.rule - work.energy).max() > 0.1 * np.abs(work.energy).max()  # the stress has its part


def test_a_turned_molecule_has_done_no_work() -> None:
    atoms = emt(rattled(molecule("CH3CH2OH"), 0.05))
    turned = atoms.copy()
    turned.rotate(70, (1, 2, 3), rotate_cell=False)
    turn = np.linalg.lstsq(
        atoms.positions - atoms.positions.mean(0), turned.positions - turned.positions.mean(0), rcond=None
    )[0]
    forces = atoms.calc.results["forces"] @ turn
    work = works([seen(atoms), seen(labelled(turned, energy=atoms.calc.results["energy"], forces=forces), 1)])
    assert work.moved[0] == pytest.approx(0, abs=1e-6)
    assert work.rule[0] == pytest.approx(0, abs=1e-6)


def test_a_slope_with_outliers_and_errors_in_both() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = 1.9 * x + 0.3 * rng.normal(size=200)
    seen_x = x + 0.15 * rng.normal(size=200)
    y[:40] = 50 * rng.normal(size=40)
    found = slope(seen_x, y)
    assert found.low < 1.9 < found.high
    assert found.middle == pytest.approx(1.9, rel=0.05)
    assert slope(seen_x, -y).middle == pytest.approx(-found.middle)
    assert abs(slope(x, rng.normal(size=200)).correlation) < 0.5


def test_fingerprints() -> None:
    """The same in any orientation, order and cell; another for a small displacement or another element."""
    atoms = structures()["triclinic"]
    own = fingerprint(seen(atoms), 4.5)
    order = np.random.default_rng(0).permutation(len(atoms))
    same = atoms[order]
    same.rotate(33, (1, 1, 0), rotate_cell=True)
    same.positions += 3.0
    same.set_cell(np.array([[1, 0, 0], [2, 1, 0], [0, 0, 1]]) @ same.cell.array)
    np.testing.assert_allclose(fingerprint(seen(same), 4.5), own, atol=1e-9)
    other = atoms.copy()
    other.positions[0] += 0.05
    assert np.abs(fingerprint(seen(other), 4.5) - own).max() > 1e-4
    other = atoms.copy()
    other.numbers[0] = 47
    assert np.abs(fingerprint(seen(other), 4.5) - own).max() > 1e-3


def test_a_sample_is_bounded_and_always_the_same() -> None:
    frames = [seen(emt(rattled(molecule("H2O"), seed=k)), k) for k in range(40)]
    samples = []
    for _ in range(2):
        sample = Sample(most_frames=20, most_atoms=30)
        for frame in frames:
            sample.see(frame)
        samples.append([frame.index for frame in sample.frames])
    assert samples[0] == samples[1]
    assert len(samples[0]) == 10  # three atoms each
    assert samples[0] != list(range(10))


@pytest.mark.parametrize(("z", "hartree"), [(1, 0.5), (8, 75.07), (14, 289.4), (29, 1640.4), (47, 5200.0)])
def test_energy_of_all_electrons(z: int, hartree: float) -> None:
    """Exact for hydrogen; the others from tables of Hartree-Fock and exact energies."""
    assert all_electron_energy(z) / 27.2114 == pytest.approx(-hartree, rel=0.012)


def test_constraints_leave_a_trace() -> None:
    """Forces of fixed atoms stored as zero do not add up to zero; symmetric zeros do."""
    atoms = emt(rattled(bulk("Cu", cubic=True).repeat(2), 0.1))
    forces = atoms.calc.results["forces"].copy()
    forces[:10] = 0.0
    assert "zeroed-forces" in codes(labelled(atoms, energy=0.0, forces=forces))
    still = emt(bulk("Cu", cubic=True))
    still.calc.results["forces"][:] = 0.0
    assert "zeroed-forces" not in codes(still, atoms)
    atoms.set_constraint(FixAtoms(range(10)))
    assert "zeroed-forces" not in codes(atoms)  # constrained, but labelled with the true forces


def test_a_net_force_and_a_torque() -> None:
    atoms = emt(rattled(molecule("CH3CH2OH"), 0.05))
    forces = atoms.calc.results["forces"]
    assert not codes(atoms) & {"net-force", "net-torque"}
    assert "net-force" in codes(labelled(atoms, energy=0.0, forces=forces + 0.5))
    turned = forces @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]])
    assert "net-torque" in codes(labelled(atoms, energy=0.0, forces=turned))


def test_cells_that_mislead() -> None:
    crystal = emt(rattled(bulk("Cu", cubic=True)))
    aperiodic = crystal.copy()
    aperiodic.pbc = False
    assert "forgotten-pbc" in codes(emt(aperiodic))
    boxed = emt(molecule("H2O"))
    assert "dummy-cell" not in codes(boxed)
    boxed.set_cell(np.eye(3) * 40)
    boxed.pbc = True
    assert "dummy-cell" in codes(boxed)


def test_atoms_on_top_of_each_other() -> None:
    atoms = rattled(molecule("CH3CH2OH"))
    results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}
    atoms.positions[1] = atoms.positions[0] + [0.3, 0, 0]
    report = check([labelled(atoms, **results)])
    assert any(f.code == "overlapping-atoms" and "0.30 Å" in f.where[0] for f in report.errors)
    small = labelled(Atoms("Cu", cell=np.eye(3) * 1.2, pbc=True), energy=0.0, forces=np.zeros((1, 3)))
    assert any("through the cell's boundary" in f.where[0] for f in check([small]).findings if f.where)


def test_ghost_atoms() -> None:
    """Are refused by training, and left out by a repair."""
    ghosts = rattled(molecule("CH3CH2OH"))
    ghosts.numbers[3] = 0
    frames = [
        labelled(x, energy=0.0, forces=np.zeros((9, 3))) for x in (ghosts, rattled(molecule("CH3CH2OH")))
    ]
    frames[0].numbers[4] = 300
    report = check(frames)
    (found,) = (f for f in report.errors if f.code == "unusable-geometry")
    assert found.frames == (("train", 0),)
    assert report.plain()["coverage"]["elements"]["train"].keys() == {"H", "C", "O"}
    assert "atomic number 0 (atom 3) is of no element; remove ghost atoms (X)" in found.where[0]


def test_methods_that_the_file_tells_apart() -> None:
    frames = [emt(rattled(bulk("Cu", cubic=True), seed=k)) for k in range(4)]
    for k, atoms in enumerate(frames):
        atoms.info["functional"] = "PBE" if k < 3 else "SCAN"
        atoms.info["name"] = f"frame {k}"
    found = next(f for f in check(frames).warnings if f.code == "mixed-theory")
    assert "PBE (3 frames), SCAN (1 frame)" in found.message


def test_what_was_never_computed() -> None:
    rng, crystals = np.random.default_rng(0), []
    for _ in range(12):
        cell = bulk("Cu", cubic=True)
        cell.set_cell(cell.cell.array @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3))), scale_atoms=True)
        crystals.append(emt(rattled(cell, 0.1)))
    placeholders = {"constant-energy", "zero-stress"}
    assert not placeholders & codes(*crystals)
    flat = [labelled(a, **a.calc.results | {"energy": 0.0}) for a in crystals]
    assert placeholders & codes(*flat) == {"constant-energy"}
    half = [labelled(a, **a.calc.results | {"stress": np.zeros(6)}) for a in crystals[::2]]
    assert placeholders & codes(*crystals[1::2], *half) == {"zero-stress"}
    assert not placeholders & codes(*[crystals[0]] * 6)  # copies, as weights
    at_rest = [labelled(a, energy=-1.0, forces=np.zeros((4, 3)), stress=np.zeros(6)) for a in crystals]
    assert not placeholders & codes(*at_rest)


def test_names_of_how_structures_were_made_are_no_theory() -> None:
    some = [emt(rattled(bulk("Cu", cubic=True), 0.05 + 0.01 * k)) for k in range(6)]
    for k, atoms in enumerate(some):
        atoms.info["sampling_method"] = ("md", "rattle")[k % 2]
    assert "mixed-theory" not in codes(*some)
    for k, atoms in enumerate(some):
        atoms.info["method"] = ("PBE", "SCAN")[k % 2]
    assert "mixed-theory" in codes(*some)


def test_isolated_atoms_of_another_method() -> None:
    frames = [emt(rattled(bulk("Cu", cubic=True), seed=k)) for k in range(8)]
    alone = labelled(Atoms("Cu"), energy=-45_000.0)
    assert "isolated-atoms" in codes(*frames, alone)
    assert "isolated-atoms" not in codes(*frames, labelled(Atoms("Cu"), energy=3.5))


def test_elements_that_only_the_test_set_has() -> None:
    train = [emt(rattled(bulk("Cu", cubic=True), seed=k)) for k in range(3)]
    report = check(train, test=[emt(bulk("Au", cubic=True))])
    assert [f.code for f in report.errors] == ["unseen-elements"]
    assert report.coverage["elements"] == {"train": {"Cu": 12}, "test": {"Au": 4}}


def test_files_and_numbers(tmp_path: Path) -> None:
    """What --json says is what the Python report says; the keys of labels can be given."""
    frames = [emt(rattled(bulk("Cu", cubic=True).repeat((2, 1, 1)), seed=k)) for k in range(6)]
    for atoms in frames:
        results = atoms.calc.results
        atoms.info["E"], atoms.arrays["F"] = results["energy"], results["forces"]
        atoms.calc = None
    ase.io.write(tmp_path / "a.xyz", frames)
    plain = run("check", tmp_path / "a.xyz", "--json", "--cutoff", 4)
    assert plain.exit_code == 1
    keys = ("--label-key", "energy=E", "--label-key", "forces=F")
    named = run("check", tmp_path / "a.xyz", "--json", "--cutoff", 4, *keys)
    assert named.exit_code == 0
    report = json.loads(named.stdout)
    assert report["coverage"]["neighbors"]["cutoff"] == 4
    assert report["coverage"]["pairs"]["Cu-Cu"]["shortest"] < 2.6
    again = check(tmp_path / "a.xyz", cutoff=4.0, label_keys={"energy": "E", "forces": "F"})
    assert [f["code"] for f in report["findings"]] == [f.code for f in again.findings]
    out = tmp_path / "out.xyz"
    assert run("check", tmp_path / "a.xyz", "--fix", out, *keys).exit_code == 0
    for old, new in zip(frames, ase.io.read(out, ":"), strict=True):
        assert new.get_potential_energy() == pytest.approx(old.info["E"], abs=1e-8)
        np.testing.assert_allclose(new.get_forces(), old.arrays["F"], atol=1e-8)
        np.testing.assert_allclose(new.positions, old.positions, atol=1e-8)


def test_what_can_not_be_done(tmp_path: Path) -> None:
    data = tmp_path / "a.xyz"
    ase.io.write(data, emt(bulk("Cu", cubic=True)))
    assert "must end in .xyz" in error_of(run("check", data, "--fix", tmp_path / "b.db"))
    assert "no such file" in error_of(run("check", tmp_path / "b.xyz"))
    with pytest.raises(InputError, match="no such file"):
        check(tmp_path / "b.xyz")


def test_the_short_form(caplog: pytest.LogCaptureFixture) -> None:
    """Clean data: not a word. Forces of the wrong sign: one line, and what training says itself is left to it."""
    frames = [emt(rattled(bulk("Cu", cubic=True).repeat((2, 1, 1)), 0.1, seed=k)) for k in range(30)]
    tell({"train": {"": open_source(frames)}}, 5.0, {})
    assert not caplog.records
    wrong = [labelled(a, **(a.calc.results | {"forces": -a.calc.results["forces"]})) for a in frames]
    tell({"train": {"": open_source(wrong)}, "validation": {"": open_source(frames[:5])}}, 5.0, {})
    said = [record.getMessage() for record in caplog.records]
    assert any("wrong sign" in line for line in said)
    assert any("in the training data too" in line for line in said)
    assert all("\n" not in line for line in said)
