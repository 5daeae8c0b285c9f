"""A right model passes every check, and each thing that can be wrong fails the check that is for it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from command_line import error_of, run
from conftest import rattled
from torch import Tensor

from physicsml_ase import PhysicsMLCalculator
from physicsml_ase.atoms import to_graph
from physicsml_ase.backends import build
from physicsml_ase.backends.choose import Backend
from physicsml_ase.backends.edges import SkinList
from physicsml_ase.checkpoint import save_potential
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import PROPERTIES, Label
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, edge_vectors
from physicsml_ase.models.gaunt_ace import GauntACEConfig
from physicsml_ase.neighbors import VerletList
from physicsml_ase.nn.features import segment_sum
from physicsml_ase.nn.heads import HeadConfig
from physicsml_ase.potential import Potential, forces_and_stress
from physicsml_ase.verify import Verification, verify

CUTOFF = 3.5
DOMAIN = Domain(
    cutoff=CUTOFF,
    elements=(1, 8),
    avg_num_neighbors=6.0,
    atomic_energies={1: -13.6, 8: -2040.0},
    shortest_distances={"H-O": 0.9, "H-H": 1.4},
)


def make(
    kind: type[Potential] = Potential,
    domain: Domain = DOMAIN,
    names: tuple[str, ...] = ("energy", "forces", "stress"),
    model: str = "painn",
) -> Potential:
    settings = {"painn": {"channels": 6, "layers": 1, "num_radial": 4}}.get(model, {})
    labels = tuple(Label(n, PROPERTIES[n].level, PROPERTIES[n].shape, n) for n in names)
    torch.manual_seed(0)
    config = validate(MODELS[model].config, {"name": model} | settings)
    return kind(config, domain, labels).eval().requires_grad_(False)


def saved(path: Path, potential: Potential) -> Path:
    water = rattled(molecule("H2O"), 0.05)
    ice = rattled(bulk("O", "sc", a=2.6).repeat((1, 2, 2)), 0.1)
    save_potential(potential, path, frames=[to_graph(a, CUTOFF) for a in (water, ice)])
    return path


def failed(verification: Verification) -> set[str]:
    return {check.name for check in verification.failed}


class WithPairs(Potential):
    """Adds an energy of pairs, and its derivatives, to whatever the model says."""

    def of_pairs(self, d: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, graph: Graph, derivatives: bool = True) -> dict[str, Tensor]:
        out = super().forward(graph, derivatives)
        with torch.enable_grad():
            r_ij = edge_vectors(graph).requires_grad_()
            energies = self.of_pairs(r_ij.norm(dim=1)) / 2
            (g,) = torch.autograd.grad(energies.sum(), r_ij)
        energies, i = energies.detach(), graph.edge_index[0]
        of_atoms = segment_sum(energies, i, graph.positions.shape[0])
        out["energies"] = out["energies"] + of_atoms
        out["energy"] = out["energy"] + segment_sum(of_atoms, graph.batch, graph.num_atoms.shape[0])
        if derivatives:
            more = forces_and_stress(graph, r_ij.detach(), g)
            out |= {name: out[name] + more[name] for name in more}
        return out


class Cut(WithPairs):
    """An interaction that ends at the cut-off without going to zero."""

    def of_pairs(self, d: Tensor) -> Tensor:
        return 0.3 / d


class Hole(WithPairs):
    """Attraction that grows without a bound at short distances."""

    def of_pairs(self, d: Tensor) -> Tensor:
        return -300.0 / d**2 * (1 - d / CUTOFF).clamp(min=0) ** 3


class Kinked(WithPairs):
    """A force that jumps in the middle of the range."""

    def of_pairs(self, d: Tensor) -> Tensor:
        return 0.02 * (2.1 - d).clamp(min=0)


class Changed(Potential):
    """What comes out is changed by `change`."""

    def change(self, out: dict[str, Tensor], graph: Graph) -> None:
        raise NotImplementedError

    def forward(self, graph: Graph, derivatives: bool = True) -> dict[str, Tensor]:
        out = super().forward(graph, derivatives)
        self.change(out, graph)
        return out


class WrongSign(Changed):
    def change(self, out: dict[str, Tensor], graph: Graph) -> None:
        if "forces" in out:
            out["forces"] = -out["forces"]


class WrongStress(Changed):
    def change(self, out: dict[str, Tensor], graph: Graph) -> None:
        if "stress" in out:
            out["stress"] = 1.05 * out["stress"]


class SeesOrigin(Changed):
    def change(self, out: dict[str, Tensor], graph: Graph) -> None:
        """The energy depends on which image of an atom is given."""
        x = graph.positions[:, 2].sin().mul(1e-3)
        out["energy"] = out["energy"] + segment_sum(x, graph.batch, graph.num_atoms.shape[0])


class SeesOrder(Changed):
    def change(self, out: dict[str, Tensor], graph: Graph) -> None:
        if "forces" in out:
            out["forces"] = out["forces"].roll(1, 0)


class Coarse(Changed):
    def change(self, out: dict[str, Tensor], graph: Graph) -> None:
        """Forces in float32 are rounded to a thousandth."""
        if "forces" in out and self.dtype == torch.float32:
            out["forces"] = (out["forces"] * 200).round() / 200


class NotANumber(Changed):
    def change(self, out: dict[str, Tensor], graph: Graph) -> None:
        out["energy"] = out["energy"] * torch.nan


@pytest.fixture(autouse=True, scope="module")
def _short_runs() -> Iterator[None]:
    """Of 30 steps, which are enough to see energy that is not conserved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("physicsml_ase.verify.following.NVE_STEPS", 30)
        yield


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verification]:
    path = saved(tmp_path_factory.mktemp("verify") / "model.ckpt", make())
    return path, verify(path)


def test_a_right_model_passes(right: tuple[Path, Verification]) -> None:
    _, found = right
    assert found.passed, found.text()
    names = [check.name for check in found.checks]
    for name in ("replay", "forces", "stress", "rotation", "reflection", "translation", "permutation"):
        assert name in names
    for name in (
        "wrapping",
        "supercell",
        "batch",
        "float32",
        "wall",
        "hole",
        "cut-off",
        "smooth",
        "skin",
        "NVE",
    ):
        assert name in names
    assert [curve.name for curve in found.curves] == ["H-H", "H-O", "O-O"]
    assert [curve.seen for curve in found.curves] == [True, True, False]
    text = found.text()
    assert "all passed" in text
    assert all(name in text for name in names)
    assert json.loads(json.dumps(found.plain()))["passed"] is True


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (WrongSign, {"forces", "dimer forces", "NVE"}),
        (WrongStress, {"stress"}),
        (SeesOrigin, {"wrapping", "translation", "rotation"}),
        (SeesOrder, {"forces", "permutation", "NVE"}),
        (Coarse, {"float32"}),
        (Cut, {"cut-off", "smooth"}),
        (Kinked, {"smooth"}),
        (NotANumber, {"forces", "rotation", "NVE"}),
    ],
)
def test_a_broken_model_fails(kind: type[Potential], names: set[str]) -> None:
    assert names <= failed(verify(make(kind)))


def test_a_hole_is_found() -> None:
    bare = make(
        Hole, Domain(cutoff=CUTOFF, elements=(1, 8), shortest_distances={"H-O": 0.9}, short_range="none")
    )
    found = verify(bare)
    assert {"wall", "hole"} <= failed(found)
    assert found["hole"].value > 100
    walled = verify(make(domain=Domain(cutoff=CUTOFF, elements=(1,), shortest_distances={"H-H": 0.9})))
    assert walled["wall"].passed
    assert walled["hole"].passed


def test_a_stale_list_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    update = VerletList.update

    def stale(self: VerletList, positions, cell, pbc, whole: int = 0):  # type: ignore[no-untyped-def]
        if self._positions is None or len(self._positions) != len(positions):
            return update(self, positions, cell, pbc, whole)
        return self._selected

    monkeypatch.setattr(VerletList, "update", stale)
    assert "skin" in failed(verify(make()))


def test_a_list_with_half_its_skin_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searched anew only when atoms have gone twice as far as they may."""
    bounds = VerletList._bounds

    def careless(self: VerletList, positions, cell, pbc):  # type: ignore[no-untyped-def]
        low, high, moved = bounds(self, positions, cell, pbc)
        return 1.0 - (1.0 - low) / 3, high, moved / 3

    monkeypatch.setattr(VerletList, "_bounds", careless)
    assert "skin" in failed(verify(make()))


@pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("elements", [(14,), (6, 14)])
def test_a_stale_list_of_the_kernel_fails(
    elements: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of steps that go straight from positions to results."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    domain = Domain(cutoff=4.0, elements=elements, avg_num_neighbors=15.0, short_range="none")
    potential = Potential(GauntACEConfig(channels=16), domain, ()).requires_grad_(False).eval()
    crystal = bulk("Si", cubic=True) * (2, 1, 1)
    crystal.numbers[::2] = elements[0]
    crystal.rattle(0.05, seed=0)
    assert "kernel" not in failed(verify(potential, [crystal], backend="kernel"))
    right = SkinList.follow

    def stale(self: SkinList, positions, origin, room, threads=1):  # type: ignore[no-untyped-def]
        return right(self, positions, origin, 1e9, threads)

    monkeypatch.setattr(SkinList, "follow", stale)
    assert "kernel" in failed(verify(potential, [crystal], backend="kernel"))


def test_forces_alone_are_no_failure() -> None:
    label = Label("forces", "atom", (3,), "forces")
    config = validate(MODELS["painn"].config, {"name": "painn", "channels": 6, "layers": 1, "num_radial": 4})
    potential = Potential(config, DOMAIN, (label,), {"forces": HeadConfig(direct=True)})
    found = verify(potential.eval().requires_grad_(False))
    assert found.passed, found.text()
    assert "NVE: forces are no derivative" in found.text()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_wrong_backend_fails(monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    """Whether it is found at the first structure, and not used, or goes wrong later."""
    calls = 0

    def kernel(potential: Potential, threads: int | None) -> Backend:
        def compute(graph: Graph) -> dict[str, Tensor]:
            nonlocal calls
            calls += 1
            factor = 1.001 if at_once or calls > 3 else 1.0
            return {name: factor * value for name, value in potential(graph).items()}

        return compute

    monkeypatch.setattr("physicsml_ase.verify.run.not_native", lambda potential: None)
    monkeypatch.setattr("physicsml_ase.backends.choose._kernel", kernel)
    found = verify(make(), backend="eager")
    assert failed(found) == {"kernel"}
    assert not at_once or "is not used" in found["kernel"].what


@pytest.mark.slow
def test_compiled_code_is_checked() -> None:
    found = verify(make(model="gaunt_ace"), compile=True)
    assert found.passed, found.text()
    assert {"compile", "aoti"} <= {check.name for check in found.checks}


def test_changed_weights_are_seen(right: tuple[Path, Verification], tmp_path: Path) -> None:
    contents = torch.load(right[0], weights_only=True)
    name = next(k for k, v in contents["state_dict"].items() if v.ndim == 2)
    contents["state_dict"][name] = contents["state_dict"][name] * 1.01
    torch.save(contents, tmp_path / "changed.ckpt")
    assert failed(verify(tmp_path / "changed.ckpt")) == {"replay"}


def test_other_labels_turn_too() -> None:
    """A dipole turns with the structure; a model without energies is checked for what it has."""
    found = verify(make(names=("dipole", "charges")))
    assert found.passed
    assert {"rotation", "permutation"} <= {check.name for check in found.checks}
    assert any("forces" in note for note in found.notes)


def test_inputs_and_own_edges_are_given() -> None:
    """A model with inputs of its own, with edges from atoms to themselves, and with a cell for all structures."""
    told = Domain(
        cutoff=CUTOFF,
        elements=(1, 8),
        attrs=("temperature", "field"),
        attr_shifts=(300.0, 0.0, 1.0),
        attr_scales=(100.0, 1.0, 1.0),
        self_interaction=True,
        shortest_distances={"H-O": 0.9},
    )
    found = verify(make(domain=told))
    assert found.passed, found.text()
    boxed = Domain(
        cutoff=CUTOFF,
        elements=(1, 8),
        pbc=(True, True, True),
        cell=((6.0, 0.0, 0.0), (0.5, 6.0, 0.0), (0.0, 0.0, 6.0)),
        shortest_distances={"H-O": 0.9},
    )
    found = verify(make(domain=boxed), [molecule("H2O")])
    assert found.passed, found.text()


def test_a_model_in_training_stays_as_it_is() -> None:
    potential = make().train().requires_grad_(True)
    assert verify(potential).passed
    assert potential.training
    assert all(weight.requires_grad and weight.grad is None for weight in potential.parameters())


def test_the_calculator_tests_itself(right: tuple[Path, Verification]) -> None:
    calculator = PhysicsMLCalculator(right[0], dtype="float64", skin=0.3)
    water = molecule("H2O")
    found = calculator.self_test(water)
    assert found.passed, found.text()
    assert "replay" in {check.name for check in found.checks}
    assert not calculator.results  # nothing of its own was touched
    np.testing.assert_array_equal(water.positions, molecule("H2O").positions)


def test_from_the_command_line(right: tuple[Path, Verification], tmp_path: Path) -> None:
    result = run("verify", right[0], "--json", "--plots", tmp_path)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["passed"] is True
    assert (tmp_path / "dimers.png").read_bytes()[:4] == b"\x89PNG"
    contents = torch.load(right[0], weights_only=True)
    contents["frames"][0]["results"]["forces"] *= 2
    torch.save(contents, tmp_path / "wrong.ckpt")
    molecule("H2O").write(tmp_path / "water.xyz")
    result = run("verify", tmp_path / "wrong.ckpt", tmp_path / "water.xyz")
    assert result.exit_code == 1
    assert "FAIL" in result.stdout
    assert "1 failed: replay" in result.stdout
    molecule("CH4").write(tmp_path / "methane.xyz")
    assert "element C" in error_of(run("verify", right[0], tmp_path / "methane.xyz"))
    assert "no such checkpoint" in error_of(run("verify", tmp_path / "none.ckpt"))
