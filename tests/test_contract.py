"""The contract that every architecture keeps; a newly registered one is tested by itself.

Float64, random weights, against finite differences and exact symmetries.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from conftest import DOMAIN, alloy, rattled, structures

import physicsml_ase.models  # noqa: F401
from physicsml_ase.atoms import to_graph
from physicsml_ase.checkpoint import load_potential, replay, save_potential
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import PROPERTIES, Label
from physicsml_ase.domain import Domain
from physicsml_ase.graph import collate, split
from physicsml_ase.nn.heads import HeadConfig
from physicsml_ase.potential import Potential

CUTOFF = DOMAIN.cutoff
SMALL: dict[str, dict[str, object]] = {
    "ani": {"aev": {"num_radial": 6, "num_sections": 4}, "hidden_widths": (16, 12)},
    "egnn": {"hidden_dim": 8, "num_layers": 2, "num_radial": 6, "edge_updates": True},
    "zbl": {"trainable": True},
    "painn": {"channels": 12, "layers": 2, "num_radial": 8},
    "mace": {
        "hidden_irreps": "6x0e+6x1o",
        "max_ell": 2,
        "num_bessel": 4,
        "mlp_irreps": "4x0e",
        "radial_mlp": [8],
    },
    "gaunt_ace": {"channels": 8, "num_radial": 6, "hidden": 12},
    "tensor_net": {"hidden_channels": 8, "num_radial": 8},
    "allegro": {
        "num_scalar_features": 8,
        "num_tensor_features": 4,
        "latent_neurons": 8,
        "two_body_neurons": 8,
    },
    "nequip": {"num_layers": 3, "num_features": 6, "num_bessel": 5, "invariant_neurons": 8},
}
"""Hyperparameters that keep the tests quick; the defaults of an architecture not named here serve too."""
KINDS = list(structures())
PERIODIC = [k for k, a in structures().items() if a.cell.rank == 3 and a.pbc.any()]


def has_vectors(name: str) -> bool:
    """Whether an architecture can carry labels with directions; one that can not says so on its class."""
    return getattr(MODELS[name].module, "num_node_vectors", 1) > 0


def make(name: str, **overrides: object) -> Potential:
    domain = replace(
        DOMAIN,
        # some of the structures have shorter ones, so that the wall is there
        shortest_distances={"H-O": 1.3, "Cu-Cu": 2.7, "Cu-Au": 2.9, "C-H": 1.3},
        **overrides,
    )
    labels = tuple(
        Label(n, PROPERTIES[n].level, PROPERTIES[n].shape, n)
        for n in ("energy", "forces", "stress", "dipole", "charges")
        if n != "dipole" or has_vectors(name)
    )
    torch.manual_seed(1)
    config = validate(MODELS[name].config, {"name": name} | SMALL.get(name, {}))
    return Potential(config, domain, labels).double().eval()


@pytest.fixture(params=sorted(MODELS))
def potential(request: pytest.FixtureRequest) -> Potential:
    return make(request.param)


def predict(potential: Potential, atoms: Atoms) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in potential(to_graph(atoms, CUTOFF)).items()}


def energy(potential: Potential, atoms: Atoms) -> float:
    return potential(to_graph(atoms, CUTOFF), derivatives=False)["energy"].item()


def same(
    a: dict[str, np.ndarray],
    b: dict[str, np.ndarray],
    names: tuple[str, ...] = ("energy", "energies", "forces", "stress"),
) -> None:
    for name in names:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_forces_are_the_gradient(potential: Potential, kind: str) -> None:
    atoms, h = structures()[kind], 2e-5
    forces = predict(potential, atoms)["forces"]
    for atom in range(min(len(atoms), 3)):
        for axis in range(3):
            ends = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * h
                ends.append(energy(potential, moved))
            expected = -(ends[0] - ends[1]) / (2 * h)
            assert forces[atom, axis] == pytest.approx(expected, abs=2e-6)
    assert np.abs(forces.sum(0)).max() < 1e-9


@pytest.mark.parametrize("kind", PERIODIC)
def test_stress_is_the_strain_derivative(potential: Potential, kind: str) -> None:
    atoms, h = structures()[kind], 2e-5
    stress = predict(potential, atoms)["stress"][0]
    assert np.abs(stress).max() > 1e-6
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        ends = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * h / 2
            strain[b, a] += sign * h / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            if not atoms.pbc.all():  # the cell is no frame for the atoms of a slab
                strained.positions = atoms.positions @ strain
            ends.append(energy(potential, strained))
        assert stress[a, b] == pytest.approx((ends[0] - ends[1]) / (2 * h) / atoms.get_volume(), abs=1e-7)


@pytest.mark.parametrize("kind", ["molecule", "slab_without_c", "lone_atom"])
def test_no_stress_without_a_volume(potential: Potential, kind: str) -> None:
    out = predict(potential, structures()[kind])
    assert np.isnan(out["stress"]).all()
    assert np.isfinite(out["forces"]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proper", [True, False], ids=["rotation", "reflection"])
def test_turns_with_the_structure(potential: Potential, kind: str, proper: bool) -> None:
    atoms = structures()[kind]
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    q = q if (np.linalg.det(q) > 0) == proper else -q
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ q)
    turned.positions = atoms.positions @ q
    a, b = predict(potential, atoms), predict(potential, turned)
    a["forces"], a["stress"] = a["forces"] @ q, q.T @ a["stress"] @ q
    if "dipole" in a:
        a["dipole"] = a["dipole"] @ q
    same(a, b, tuple(a))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_depends_on_origin_or_wrapping(potential: Potential, kind: str) -> None:
    atoms = structures()[kind]
    moved = atoms.copy()
    moved.positions += [1.7, -2.3, 0.4]
    moved.wrap()
    same(predict(potential, atoms), predict(potential, moved))


def test_equivalent_cells_agree(potential: Potential) -> None:
    kinds = structures()
    triclinic, left = predict(potential, kinds["triclinic"]), predict(potential, kinds["left_handed"])
    same(triclinic, left)
    sheared = kinds["triclinic"].copy()
    sheared.set_cell(sheared.cell.array + np.outer([0, 3, -2], sheared.cell[0]))
    same(triclinic, predict(potential, sheared))
    same(
        predict(potential, kinds["slab"]), predict(potential, kinds["slab_without_c"]), ("energies", "forces")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_atoms_does_not_matter(potential: Potential, kind: str) -> None:
    atoms = structures()[kind]
    order = np.random.default_rng(1).permutation(len(atoms))
    a, b = predict(potential, atoms), predict(potential, atoms[order])
    for name in ("energies", "forces", "charges"):
        a[name] = a[name][order]
    same(a, b, tuple(a))


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_is_its_singles(potential: Potential, training: bool) -> None:
    graphs = [to_graph(atoms, CUTOFF) for atoms in structures().values()]
    potential.train(training)
    batch = potential(collate(graphs))
    singles = [potential(graph) for graph in graphs]
    for name, value in batch.items():
        joined = torch.cat([single[name] for single in singles])
        torch.testing.assert_close(value, joined, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_split_undoes_collate() -> None:
    labels = (Label("energy", "structure", (), "energy"), Label("charges", "atom", (), "charges"))
    graphs = [to_graph(atoms, CUTOFF, labels) for atoms in structures().values()]
    for before, after in zip(graphs, split(collate(graphs), {"energy": "structure", "charges": "atom"})):
        torch.testing.assert_close(before._asdict(), after._asdict(), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["crystal", "triclinic", "tiny"])
def test_a_supercell_is_its_cell(potential: Potential, kind: str) -> None:
    atoms = structures()[kind]
    a, b = predict(potential, atoms), predict(potential, atoms.repeat((2, 1, 3)))
    np.testing.assert_allclose(b["energy"], 6 * a["energy"], rtol=1e-12)
    np.testing.assert_allclose(b["stress"], a["stress"], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(b["forces"], np.tile(a["forces"], (6, 1)), atol=1e-9)


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_a_label_of_a_supercell(pool: str) -> None:
    """Pooled by sum it is n times the cell's, by mean the same, whatever the training data's mean was."""
    gap = Label("gap", "structure", (), "gap")
    cell = bulk("Fe", cubic=True)
    means = {
        "label_shifts": {"gap": 4.4},
        "label_shifts_per_atom": {"gap": 2.2},
        "label_scales": {"gap": 0.3},
    }
    domain = Domain(cutoff=3.5, elements=(26,), **means)
    settings = validate(
        MODELS["painn"].config, {"name": "painn", "channels": 6, "layers": 1, "num_radial": 4}
    )
    potential = Potential(settings, domain, (gap,), {"gap": HeadConfig(pool=pool)}).double().eval()
    one, four = (float(potential(to_graph(a, 3.5))["gap"][0]) for a in (cell, cell.repeat((2, 2, 1))))
    assert four == pytest.approx(4 * one if pool == "sum" else one, rel=1e-9)


def test_energies_of_far_atoms_add(potential: Potential) -> None:
    pair = structures()["far_apart"]
    out = predict(potential, pair)
    assert out["energy"][0] == pytest.approx(sum(energy(potential, Atoms(s)) for s in "CO"), abs=1e-10)
    assert (out["forces"] == 0).all()
    assert out["energies"].sum() == pytest.approx(out["energy"][0], abs=1e-10)


def test_smooth_at_the_cutoff(potential: Potential) -> None:
    def pair(distance: float) -> tuple[float, float]:
        out = predict(potential, Atoms("CO", [[0, 0, 0], [0, 0, distance]]))
        return out["energy"][0], out["forces"][1, 2]

    far = pair(CUTOFF + 0.1)[0]
    steps = (4e-2, 2e-2, 1e-2)
    energies, forces = zip(*(pair(CUTOFF - step) for step in steps))
    assert pair(CUTOFF - 0.3)[1] != 0
    for values, power in ((np.array(energies) - far, 3), (np.array(forces), 2)):
        # a curvature that jumps at the cut-off would halve the powers at least
        assert (np.abs(values[1:]) < np.abs(values[:-1]) / 2 ** (power - 0.5) + 1e-12).all()


def test_float32_is_close_to_float64(potential: Potential) -> None:
    single = copy.deepcopy(potential).float()
    for kind in ("molecule", "triclinic", "slab"):
        a, b = predict(potential, structures()[kind]), predict(single, structures()[kind])
        assert b["energy"].dtype == np.float64
        np.testing.assert_allclose(a["energy"], b["energy"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(a["forces"], b["forces"], rtol=1e-3, atol=1e-4)


def test_total_energies_keep_their_mev(potential: Potential) -> None:
    """Reference energies of 1e5 eV survive `.float()`, where they would be off by 0.01 eV."""
    big = {1: -123456.789012345, 29: -98765.432109876}
    heavy = Potential(potential.config, Domain(cutoff=CUTOFF, elements=(1, 29), atomic_energies=big), ())
    lone = [heavy.float().eval()(to_graph(Atoms(s), CUTOFF))["energy"].item() for s in ("H", "Cu")]
    heavy_atoms = heavy.double()(to_graph(Atoms("H"), CUTOFF))["energy"].item()
    assert lone[0] == pytest.approx(heavy_atoms, abs=1e-6)
    assert math.isclose(lone[1] - lone[0], big[29] - big[1], abs_tol=5)


def test_forces_can_be_learned(potential: Potential) -> None:
    """The double backward is right: d(loss)/d(weight) against finite differences."""
    graph = collate([to_graph(structures()[k], CUTOFF) for k in ("molecule", "triclinic")])
    potential.train()

    def loss() -> torch.Tensor:
        out = potential(graph)
        return (
            out["forces"].square().mean()
            + out["stress"][1].square().mean() * 1e3
            + out["energy"].mean() * 1e-3
        )

    loss().backward()
    checked = 0
    for parameter in potential.parameters():
        if parameter.grad is None or not parameter.grad.abs().max() > 0:
            continue
        index = tuple(int(k) for k in np.unravel_index(int(parameter.grad.abs().argmax()), parameter.shape))
        h, ends = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[index] += sign * h
            ends.append(loss().item())
            with torch.no_grad():
                parameter[index] -= sign * h
        slope = (ends[0] - ends[1]) / (2 * h)
        assert parameter.grad[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)
        checked += 1
    assert checked > 5 or checked == sum(p.requires_grad for p in potential.model.parameters())


def test_forces_under_inference_mode(potential: Potential) -> None:
    """Lightning validates in inference mode, also with batches made there."""
    expected = predict(potential, structures()["molecule"])
    plain = to_graph(structures()["molecule"], CUTOFF)
    with torch.inference_mode():
        made_there = plain.map(lambda t: t.clone())
        # a slice of a store is not one of inference mode's tensors, what was computed from it is
        for graph in (plain, made_there, made_there._replace(positions=plain.positions)):
            out = potential(graph)
            np.testing.assert_allclose(out["forces"].numpy(), expected["forces"], atol=1e-12)


def test_self_interaction_edges_are_harmless(potential: Potential) -> None:
    potential.train()
    for kind in ("molecule", "tiny", "lone_atom"):
        out = potential(to_graph(structures()[kind], CUTOFF, self_interaction=True))
        assert torch.isfinite(out["forces"]).all()
        (out["forces"].square().sum() + out["energy"].sum()).backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in potential.parameters())


def test_smooth_at_symmetric_sites(potential: Potential) -> None:
    """Force over displacement is the same however small the displacement: phonons of crystals exist."""
    crystal = bulk("Cu", cubic=True)
    crystal.numbers[:2] = 79
    constants = []
    for step in (1e-2, 1e-3, 1e-4):
        moved = crystal.copy()
        moved.positions[0, 2] += step
        constants.append(predict(potential, moved)["forces"][0, 2] / step)
    assert abs(constants[0]) > 1e-6
    np.testing.assert_allclose(constants, constants[-1], rtol=2e-2)


def test_save_and_load(potential: Potential, tmp_path) -> None:
    frames = [to_graph(structures()[k], CUTOFF) for k in ("molecule", "slab")]
    save_potential(potential, tmp_path / "model.ckpt", frames=frames, about={"note": "x"})
    loaded = load_potential(tmp_path / "model.ckpt")
    assert loaded.dtype == torch.float64
    assert loaded.domain == potential.domain
    assert loaded.labels == potential.labels
    same(predict(potential, structures()["molecule"]), predict(loaded, structures()["molecule"]))
    assert [p.name for p in tmp_path.iterdir()] == ["model.ckpt"]
    assert replay(tmp_path / "model.ckpt", loaded) < 1e-9
    next(loaded.parameters()).data.fill_(np.nan)
    assert math.isnan(replay(tmp_path / "model.ckpt", loaded))  # and not 0, the best of all


def test_graph_attributes_are_inputs(potential: Potential) -> None:
    if potential.config.name in ("lj", "zbl"):
        pytest.skip("potentials of pairs refuse attributes: see test_pair_models.py")
    told = make(
        potential.config.name,
        attrs=("temperature", "field"),
        attr_shifts=(300.0, 0.0, 0.0),
        attr_scales=(100.0, 1.0, 1.0),
    )
    atoms = rattled(alloy(bulk("Cu", cubic=True)))
    energies = []
    for temperature in (100.0, 600.0):
        atoms.info |= {"temperature": temperature, "field": [0.1, 0.2]}
        graph = to_graph(atoms, CUTOFF, attrs=("temperature", "field"))
        energies.append(told(graph)["energy"].item())
    assert energies[0] != energies[1]
