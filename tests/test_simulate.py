"""Dynamics and relaxations, with ASE's own calculators in the model's place where that is enough."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixBondLength
from ase.io import Trajectory, read, ulm, write
from ase.optimize import FIRE
from conftest import structures
from test_contract import make

from physicsml_ase.calculator import PhysicsMLCalculator
from physicsml_ase.conventions import InputError
from physicsml_ase.simulate import Unstable, md, relax
from physicsml_ase.simulate.frames import STEP


class Springs(Calculator):
    """Every atom on a spring at its place, or pushed away from it when `k` is negative."""

    implemented_properties = ("energy", "forces")

    def __init__(self, places: np.ndarray, k: float = 5.0, nan_after: int = 10**9) -> None:
        super().__init__()
        self.places, self.k, self.left = places, k, nan_after

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.left -= 1
        away = atoms.positions - self.places
        forces = -self.k * away
        if self.left < 0:
            forces[1, 2] = np.nan
        self.results = {"energy": self.k * (away**2).sum() / 2, "forces": forces}


class Pairs(Calculator):
    """Harmonic bonds between all pairs of atoms: conserves momentum and angular momentum."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        away = atoms.positions[None] - atoms.positions[:, None]
        length = np.linalg.norm(away, axis=-1) + np.eye(len(atoms))
        stretch = (length - 1.0) * (1 - np.eye(len(atoms)))
        forces = (10 * stretch / length)[..., None] * away
        self.results = {"energy": 5 * (stretch**2).sum() / 2, "forces": forces.sum(1)}


def crystal(repeat: int = 2) -> Atoms:
    return bulk("Cu", cubic=True).repeat(repeat)


def columns(path: Path) -> np.ndarray:
    return np.loadtxt(path, ndmin=2)


def test_nve_keeps_the_energy(tmp_path: Path) -> None:
    result = md(
        EMT(),
        crystal(),
        steps=200,
        timestep_fs=2.0,
        thermostat="nve",
        temperature_K=600,
        trajectory=tmp_path / "md.traj",
        log=tmp_path / "md.log",
        every=20,
    )
    assert abs(result.energy_drift) < 1e-4
    assert result.steps == result.total_steps == 200
    assert result.time_ps == pytest.approx(0.4)
    assert 150 < result.temperature_K < 450  # half of the heat went into the bonds
    log = columns(tmp_path / "md.log")
    assert log[:, 0].tolist() == list(range(0, 201, 20))
    assert np.ptp(log[:, 2] + log[:, 3]) / 32 < 1e-3
    frames = read(tmp_path / "md.traj", ":")
    assert len(frames) == 11
    assert frames[3].get_potential_energy() == pytest.approx(log[3, 2], abs=1e-6)
    assert frames[3].get_stress()[2] == pytest.approx(log[3, 8], rel=1e-5)
    assert "energy drift" in result.in_words()


def test_the_given_structure_is_left_alone() -> None:
    atoms = crystal()
    before = atoms.copy()
    result = md(EMT(), atoms, steps=3)
    assert atoms == before
    assert atoms.calc is None
    assert not atoms.has("momenta")
    assert result.atoms.has("momenta")
    relax(EMT(), atoms, steps=1)
    assert atoms == before


@pytest.mark.parametrize("suffix", [".traj", ".xyz"])
def test_a_continued_run_is_the_uninterrupted_one(tmp_path: Path, suffix: str, caplog) -> None:
    settings = {"thermostat": "nve", "timestep_fs": 2.0, "every": 7}
    whole = md(EMT(), crystal(), steps=50, trajectory=tmp_path / f"whole{suffix}", **settings)
    parts = {"trajectory": tmp_path / f"parts{suffix}", "log": tmp_path / "parts.log"} | settings
    md(EMT(), crystal(), steps=20, **parts)
    with caplog.at_level(logging.INFO, logger="physicsml_ase"):
        rest = md(EMT(), crystal(), steps=50, **parts)
    assert "from step 20" in caplog.text
    assert (rest.steps, rest.total_steps) == (30, 50)
    digits = 1e-12 if suffix == ".traj" else 1e-5
    np.testing.assert_allclose(rest.atoms.positions, whole.atoms.positions, atol=digits)
    steps = [0, 7, 14, 20, 21, 28, 35, 42, 49, 50]
    assert [a.info["step"] for a in read(parts["trajectory"], ":")] == steps
    assert columns(parts["log"])[:, 0].tolist() == steps
    again = md(EMT(), crystal(), steps=50, **parts)
    assert again.steps == 0
    assert len(read(parts["trajectory"], ":")) == len(steps)
    md(EMT(), crystal(), steps=7, restart=False, **parts)
    assert [a.info["step"] for a in read(parts["trajectory"], ":")] == [0, 7]


@pytest.mark.parametrize("suffix", [".traj", ".xyz"])
@pytest.mark.parametrize("cut", [10, 700])
def test_a_half_written_last_frame_is_tolerated(tmp_path: Path, suffix: str, cut: int) -> None:
    path = tmp_path / f"md{suffix}"
    settings = {"steps": 20, "every": 5, "trajectory": path, "thermostat": "nve"}
    whole = md(EMT(), crystal(), **settings)
    path.write_bytes(path.read_bytes()[:-cut])
    rest = md(EMT(), crystal(), **settings)
    assert rest.steps == 5
    assert [a.info["step"] for a in read(path, ":")] == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(rest.atoms.positions, whole.atoms.positions, atol=1e-5)


def test_interrupted_in_the_middle_of_a_frame(tmp_path: Path, monkeypatch, caplog) -> None:
    """Ctrl-C while a frame is written: ASE's writer then closes the file with half of it as a last frame."""
    path = tmp_path / "md.traj"
    settings = {"steps": 20, "every": 5, "trajectory": path, "thermostat": "nve", "log": tmp_path / "md.log"}
    real = ulm.Writer.fill

    def fill(self, a: np.ndarray) -> None:
        real(self, a)
        fill.calls += 1
        if fill.calls == 8:
            raise KeyboardInterrupt

    fill.calls = 0
    monkeypatch.setattr(ulm.Writer, "fill", fill)
    with pytest.raises(KeyboardInterrupt):
        md(EMT(), crystal(), **settings)
    monkeypatch.undo()
    assert "stopped after step" in caplog.text
    assert STEP not in read(path).info
    md(EMT(), crystal(), **settings)
    steps = [0, 5, 10, 15, 20]
    assert [a.info[STEP] for a in read(path, ":")] == columns(tmp_path / "md.log")[:, 0].tolist() == steps


def test_what_can_not_be_continued_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "md.traj"
    md(EMT(), crystal(), steps=2, trajectory=path)
    with pytest.raises(InputError, match=r"is of Cu32, not of this structure \(Al\); .*restart=False"):
        md(EMT(), bulk("Al"), steps=4, trajectory=path)
    with Trajectory(path, "w") as other:
        other.write(crystal())
    with pytest.raises(InputError, match="not written by md"):
        md(EMT(), crystal(), steps=4, trajectory=path)
    path.write_bytes(b"rubbish")
    with pytest.raises(InputError, match="can not be read"):
        md(EMT(), crystal(), steps=4, trajectory=path)
    assert path.read_bytes() == b"rubbish"


@pytest.mark.parametrize("suffix", [".traj", ".xyz"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_file_of_somebody_else_is_not_touched(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"mine{suffix}"
    write(path, [crystal()] * count)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # as editors do
    before = path.read_bytes()
    with pytest.raises(InputError, match="not written by md"):
        md(EMT(), crystal(), steps=2, trajectory=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".traj", ".xyz"])
def test_nothing_is_cut_before_the_run_goes_on(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"md{suffix}"
    md(EMT(), crystal(), steps=2, every=1, trajectory=path)
    path.write_bytes(path.read_bytes()[:-700])
    before = path.read_bytes()
    with pytest.raises(InputError, match="not of this structure"):
        md(EMT(), bulk("Al"), steps=4, trajectory=path)
    assert path.read_bytes() == before


def test_frames_that_others_appended_are_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "md.traj"
    md(EMT(), crystal(), steps=2, trajectory=path)
    with Trajectory(path, "a") as other:
        for _ in range(2):
            other.write(crystal())
    with pytest.raises(InputError, match="not written by md"):
        md(EMT(), crystal(), steps=4, trajectory=path)
    assert len(read(path, ":")) == 4


@pytest.mark.parametrize("thermostat", ["langevin", "bussi", "nose-hoover"])
def test_small_molecules_get_the_temperature_asked_for(thermostat: str) -> None:
    """The mean energy of three bonded atoms is kT/2 for each motion that is not held, and as much in bonds."""
    atoms = Atoms("O3", [[0, 0, 0], [1, 0, 0], [0.5, 3**0.5 / 2, 0]])
    result = md(
        Pairs(), atoms, steps=3000, temperature_K=300, thermostat=thermostat, friction_per_fs=0.05, seed=2
    )
    assert result.temperature_K == pytest.approx(300, rel=0.35)  # 900 with 3N degrees of freedom
    if thermostat != "langevin":
        assert np.abs(result.atoms.get_momenta().sum(0)).max() < 1e-8
        assert np.abs(result.atoms.get_angular_momentum()).max() < 1e-6


@pytest.mark.parametrize("thermostat", ["npt", "npt-full"])
def test_pressure_changes_the_volume(thermostat: str, tmp_path: Path) -> None:
    settings = {"steps": 100, "timestep_fs": 4.0, "temperature_K": 300, "friction_per_fs": 0.05}
    pressed = md(
        EMT(), crystal(), thermostat=thermostat, pressure_GPa=20, log=tmp_path / "npt.log", **settings
    )
    assert pressed.atoms.get_volume() < 0.95 * crystal().get_volume()
    assert len(columns(tmp_path / "npt.log")[0]) == 12
    angles = pressed.atoms.cell.angles()
    assert (np.abs(angles - 90) < 1e-6).all() == (thermostat == "npt")


def test_seeds_and_own_momenta() -> None:
    a, b, c = (md(EMT(), crystal(1), steps=5, seed=seed).atoms.positions for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-4
    moving = crystal(1)
    moving.set_momenta(np.full((4, 3), 2.0))
    drifted = md(EMT(), moving, steps=10, thermostat="nve").atoms.positions - moving.positions
    np.testing.assert_allclose(drifted, 2.0 / 63.546 * 10 * units.fs, atol=1e-6)


@pytest.mark.parametrize("thermostat", ["langevin", "bussi", "nve"])
def test_a_thermostat_s_first_push_is_not_that_of_the_velocities(thermostat: str, tmp_path: Path) -> None:
    for seed in range(4):
        log = tmp_path / f"{seed}.log"
        md(EMT(), crystal(3), steps=1, every=1, thermostat=thermostat, seed=seed, log=log)
        first, second = columns(log)[:, 4]
        assert second == pytest.approx(
            first, rel=0.1
        )  # a third more where both are drawn from the same numbers


def test_velocities_of_the_structure_are_said_to_be(caplog) -> None:
    caplog.set_level(logging.INFO, "physicsml_ase")
    hot = md(EMT(), crystal(), steps=2, temperature_K=1500, thermostat="nve").atoms
    assert "velocities" not in caplog.text
    md(EMT(), hot, steps=2, temperature_K=300, thermostat="nve")
    (told,) = [r for r in caplog.records if "velocities are the structure's own" in r.getMessage()]
    assert told.levelno == logging.WARNING
    relaxed = relax(EMT(), hot, steps=2)
    assert hot.has("momenta")
    assert not relaxed.atoms.has("momenta")


@pytest.mark.parametrize("suffix", [".traj", ".xyz"])
def test_a_continued_run_has_the_constraints_that_are_given(tmp_path: Path, suffix: str, caplog) -> None:
    atoms = crystal()
    atoms.set_constraint(FixBondLength(0, 1))
    length = atoms.get_distance(0, 1, mic=True)
    path = tmp_path / f"md{suffix}"
    for steps in (5, 10):
        result = md(EMT(), atoms, steps=steps, trajectory=path)
        assert result.atoms.get_distance(0, 1, mic=True) == pytest.approx(length, abs=1e-6)
    assert "constraints" not in caplog.text
    for order in ([3, 1], [1, 3]):
        other = crystal()
        other.set_constraint([FixAtoms(order[:1]), FixAtoms(order)])
        for steps in (3, 6):
            md(EMT(), other, steps=steps, trajectory=tmp_path / f"other{order[0]}{suffix}")
    assert "constraints" not in caplog.text
    atoms.set_constraint(FixAtoms([3]))
    before = read(path).positions[3]
    after = md(EMT(), atoms, steps=15, trajectory=path).atoms.positions[3]
    np.testing.assert_allclose(before, after, atol=1e-7)
    assert ("the constraints are those of the structure given now" in caplog.text) == (suffix == ".traj")


def test_a_continued_run_has_the_time_step_that_it_had(tmp_path: Path) -> None:
    path = tmp_path / "md.xyz"
    md(EMT(), crystal(1), steps=4, timestep_fs=2.0, trajectory=path)
    with pytest.raises(InputError, match=r"time steps of 2 fs: continue with timestep_fs=2 .*; name another"):
        md(EMT(), crystal(1), steps=8, timestep_fs=1.0, trajectory=path)
    assert md(EMT(), crystal(1), steps=8, timestep_fs=2.0, trajectory=path).time_ps == pytest.approx(0.016)


def test_constraints_hold() -> None:
    slab = fcc111("Cu", (2, 2, 3), vacuum=5.0)
    slab.set_constraint(FixAtoms([atom.index for atom in slab if atom.tag == 3]))
    result = md(EMT(), slab, steps=20)
    moved = np.linalg.norm(result.atoms.positions - slab.positions, axis=1)
    assert (moved[slab.get_tags() == 3] == 0).all()
    assert (moved[slab.get_tags() == 1] > 0).all()


def test_an_explosion_is_stopped(tmp_path: Path) -> None:
    atoms = molecule("CH4")
    path = tmp_path / "md.traj"
    with pytest.raises(Unstable, match=r"step \d+ \(.* ps\): the temperature is .*frames before are in .*md"):
        md(Springs(atoms.positions, k=-2.0), atoms, steps=2000, thermostat="nve", trajectory=path, every=1)
    frames = read(path, ":")
    assert len(frames) > 5
    assert all(np.isfinite(frame.positions).all() for frame in frames)
    with pytest.raises(Unstable, match=r"step 13 .*force on atom 1 is not finite; nothing was kept"):
        md(Springs(atoms.positions, nan_after=13), atoms, steps=50, thermostat="nve")
    with pytest.raises(Unstable, match="fly apart"):
        md(
            Springs(atoms.positions, k=0.0),
            atoms,
            steps=20000,
            temperature_K=3000,
            timestep_fs=5,
            thermostat="nve",
        )


def test_a_terminal_sees_a_bar(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    md(EMT(), crystal(1), steps=5)
    shown = capsys.readouterr().err
    assert "atoms·steps/s" in shown
    assert "5/5" in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of them"),
        ({"steps": 5, "time_ps": 1.0}, "one of them"),
        ({"steps": -1}, "negative"),
        ({"steps": 5, "timestep_fs": 0.0}, "timestep_fs must be positive"),
        ({"steps": 5, "temperature_K": -3.0}, "temperature_K must be positive"),
        ({"steps": 5, "thermostat": "berendsen"}, "use langevin, nve"),
        ({"steps": 5, "every": 0}, "every"),
        ({"steps": 5, "trajectory": "md.pdb"}, "md.pdb: a trajectory's name ends in"),
        ({"steps": 5, "thermostat": "npt"}, "periodic in all three"),
        ({"steps": 5, "pressure_GPa": 5.0}, "use thermostat npt or npt-full, not langevin"),
        ({"steps": 5, "pressure_GPa": np.nan, "thermostat": "npt"}, "pressure_GPa must be a number"),
    ],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        md(EMT(), molecule("H2O"), **settings)


def test_time_is_steps() -> None:
    assert md(EMT(), crystal(1), time_ps=0.01, timestep_fs=2.5).steps == 4


# --- relaxation


@pytest.mark.parametrize("optimizer", ["FIRE", "lbfgs", "BFGS"])
def test_a_rattled_crystal_relaxes_with_its_cell(optimizer: str, tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True, a=3.8)
    atoms.set_cell(
        atoms.cell.array @ np.array([[1.03, 0.02, 0], [0.02, 1, 0], [0, 0, 0.98]]), scale_atoms=True
    )
    atoms.rattle(0.1, seed=1)
    result = relax(
        EMT(),
        atoms,
        fmax=0.001,
        optimizer=optimizer,
        cell="all",
        trajectory=tmp_path / "relax.traj",
        log=tmp_path / "relax.log",
    )
    assert result.converged
    assert result.fmax < 0.001
    assert result.stress_GPa < 0.05
    assert result.energy_change < -0.1
    assert result.atoms.get_volume() == pytest.approx(4 * 11.565, rel=2e-3)  # EMT's copper
    log = columns(tmp_path / "relax.log")
    assert log[0, 0] == 0
    assert log[-1, 0] == result.steps == len(read(tmp_path / "relax.traj", ":")) - 1
    assert log[-1, 1] == pytest.approx(result.energy, abs=1e-6)
    assert result.in_words().startswith("converged after")


def test_parts_of_the_cell() -> None:
    atoms = bulk("Cu", cubic=True, a=3.8)
    atoms.set_cell(atoms.cell.array @ np.diag([1.03, 1.0, 1.0]), scale_atoms=True)
    volume = relax(EMT(), atoms, cell="volume").atoms.cell.lengths()
    assert volume[0] / volume[1] == pytest.approx(1.03)
    assert volume[1] < 3.7
    shape = relax(EMT(), atoms, cell="shape", fmax=0.001).atoms
    assert shape.get_volume() == pytest.approx(atoms.get_volume(), rel=1e-3)
    assert np.ptp(shape.cell.lengths()) < 0.01
    one = relax(EMT(), atoms, cell=[True, False, False, False, False, False]).atoms.cell.lengths()
    assert one[1:].tolist() == [3.8, 3.8]
    assert one[0] < 3.8
    pressed = relax(EMT(), atoms, cell=True, pressure_GPa=10.0)
    assert pressed.atoms.get_stress()[:3] / units.GPa == pytest.approx([-10] * 3, abs=0.5)
    assert pressed.stress_GPa < 0.5


def test_the_vacuum_of_a_slab_stays() -> None:
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0, a=3.7)
    height = slab.cell[2, 2]
    relaxed = relax(EMT(), slab, cell="all", fmax=0.02).atoms
    assert relaxed.cell[2, 2] == height
    assert relaxed.cell[0, 0] < slab.cell[0, 0]
    with pytest.raises(InputError, match="not periodic in every"):
        relax(EMT(), slab, cell="volume")


def test_not_converged_is_said() -> None:
    atoms = crystal(1)
    atoms.rattle(0.2, seed=1)
    result = relax(EMT(), atoms, fmax=1e-5, steps=3)
    assert not result.converged
    assert result.steps == 3
    assert "NOT converged" in result.in_words()


def test_relaxing_what_can_not_be(tmp_path: Path) -> None:
    atoms = molecule("CH4")
    with pytest.raises(Unstable, match=r"relaxation stopped at step .*are in .*x.xyz"):
        relax(Springs(0.9 * atoms.positions, k=-500.0), atoms, steps=5000, trajectory=tmp_path / "x.xyz")
    with pytest.raises(Unstable, match="not finite"):
        relax(Springs(atoms.positions - 0.1, nan_after=3), atoms, fmax=1e-8)
    with pytest.raises(InputError, match="no stress"):
        relax(Springs(crystal().positions), crystal(), cell=True)
    with pytest.raises(InputError, match="not a crystal"):
        relax(Springs(atoms.positions), atoms, cell=True)
    with pytest.raises(InputError, match="use FIRE"):
        relax(EMT(), crystal(), optimizer="SIMPLEX")
    with pytest.raises(InputError, match="cell that moves"):
        relax(EMT(), crystal(), pressure_GPa=3.0)


# --- with a model


def model(dtype: str) -> PhysicsMLCalculator:
    # the walls of these models, for the contract, reach into bonds
    return PhysicsMLCalculator(make("painn", short_range="none"), dtype=dtype, device="cpu")


@pytest.mark.parametrize("kind", ["molecule", "triclinic", "slab"])
def test_a_model_conserves_energy(kind: str) -> None:
    result = md(model("float64"), structures()[kind], steps=60, timestep_fs=0.5, thermostat="nve")
    assert abs(result.energy_drift) < 2e-4


def test_a_model_relaxes_and_continues(tmp_path: Path) -> None:
    calc, atoms = model("float64"), structures()["crystal"]
    relaxed = relax(calc, atoms, cell=True, fmax=0.02, optimizer="BFGS", steps=100)
    assert relaxed.energy_change < 0
    path = tmp_path / "md.traj"
    for steps in (4, 9):
        result = md(calc, atoms, steps=steps, trajectory=path, log=tmp_path / "md.log", every=2)
    assert result.steps == 5
    assert [frame.info["step"] for frame in read(path, ":")] == [0, 2, 4, 6, 8, 9]
    assert len(read(path).get_stress()) == 6


def test_an_element_that_the_model_never_saw(tmp_path: Path) -> None:
    for run in (md, relax):
        with pytest.raises(InputError, match="Xe"):
            run(model("float32"), Atoms("Xe"), steps=3, trajectory=tmp_path / "x.traj")
    assert not list(tmp_path.iterdir())


# --- what a run is given, and what becomes of it


def test_labels_of_a_structure_do_not_move_with_it(tmp_path: Path) -> None:
    atoms = crystal(1)
    atoms.rattle(0.1, seed=1)
    atoms.info |= {"REF_energy": -5.0, "energy": -3.0, "virial": np.eye(3), "note": "kept", "level": 3}
    atoms.info["key_value_pairs"] = {"dft_energy": 1.0, "kind": "bulk"}
    atoms.arrays["REF_forces"] = np.ones((len(atoms), 3))
    md(EMT(), atoms, steps=2, trajectory=tmp_path / "md.xyz", every=1)
    relaxed = relax(EMT(), atoms, fmax=0.5, trajectory=tmp_path / "relax.xyz").atoms
    for frame in (*read(tmp_path / "md.xyz", ":"), *read(tmp_path / "relax.xyz", ":"), relaxed):
        assert frame.info["note"] == "kept"
        assert frame.info["level"] == 3
        assert not {"REF_energy", "energy", "virial"} & frame.info.keys()
        assert "REF_forces" not in frame.arrays
    assert relaxed.info["key_value_pairs"] == {"kind": "bulk"}
    assert atoms.info["REF_energy"] == -5.0  # the caller's own are as they were
    assert atoms.info["key_value_pairs"]["dft_energy"] == 1.0


def test_another_structure_is_not_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, atoms = tmp_path / "md.xyz", crystal(1)
    md(EMT(), atoms, steps=2, trajectory=path, every=1)
    with caplog.at_level(logging.WARNING, "physicsml_ase"):
        md(EMT(), atoms, steps=3, trajectory=path, every=1)
        md(EMT(), read(path), steps=4, trajectory=path, every=1)
        assert "neither the first nor the last" not in caplog.text
        other = atoms.copy()
        other.rattle(0.3, seed=2)
        md(EMT(), other, steps=5, trajectory=path, every=1)
    assert "neither the first nor the last" in caplog.text
    other.pbc = [True, True, False]
    with pytest.raises(InputError, match="another pbc than the structure given"):
        md(EMT(), other, steps=6, trajectory=path)


def test_an_optimizer_that_gives_up_leaves_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    step, left = FIRE.step, [4]
    # as if it were ASE's: other errors are not for a result to tell
    ours: dict[str, object] = {"__name__": "ase.optimize.linesearch", "step": step, "left": left}
    exec(
        "def failing(self, *forces):\n"
        "    left[0] -= 1\n"
        "    if left[0] < 0:\n"
        "        self.atoms.positions[:] += 1.0\n"
        "        raise RuntimeError('LineSearch failed!')\n"
        "    return step(self, *forces)\n",
        ours,
    )
    monkeypatch.setattr(FIRE, "step", ours["failing"])
    atoms = crystal(1)
    atoms.rattle(0.1, seed=1)
    result = relax(EMT(), atoms, fmax=1e-6)
    assert not result.converged
    assert result.gave_up == "LineSearch failed!"
    assert "NOT converged after 4 steps" in result.in_words()
    assert "(LineSearch failed!)" in result.in_words()
    assert result.fmax == pytest.approx(np.linalg.norm(result.atoms.get_forces(), axis=1).max())
    assert result.energy == pytest.approx(result.atoms.get_potential_energy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed must be 0 or more"),
        ({"steps": None, "time_ps": float("nan")}, "time_ps must be a length of time"),
        ({"trajectory": "a.xyz", "log": "./a.xyz"}, "name of both trajectory and log"),
        ({"log": "."}, "is a folder"),
    ],
)
def test_senseless_settings(settings, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        md(EMT(), crystal(1), **({"steps": 2} | settings))
    assert not list(tmp_path.iterdir())


def test_nothing_moves_where_all_is_held() -> None:
    atoms = crystal(1)
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    with pytest.raises(InputError, match="nothing can move"):
        md(EMT(), atoms, steps=2)


def test_a_model_that_gives_no_forces(tmp_path: Path) -> None:
    class Charges(Calculator):
        implemented_properties = ("charges",)

    for run in (md, relax):
        with pytest.raises(InputError, match="no energy and forces to move atoms by, but charges"):
            run(Charges(), crystal(1), steps=2, trajectory=tmp_path / "x.traj")
    assert not list(tmp_path.iterdir())
