"""ANI equals torchani's, also with published weights; its parts are what the paper says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.units import Hartree
from conftest import structures
from references_for_tests import FOLDER, Reference, assert_equal, made_by_peer, read_reference

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends.compiled import OnRows
from physicsml_ase.backends.graphed import plain_function
from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.domain import Domain
from physicsml_ase.importers.ani import from_torchani, import_torchani
from physicsml_ase.models.ani import ANI, PRESETS, ANIConfig
from physicsml_ase.nn.aev import AEV, AEVConfig, triplets
from physicsml_ase.potential import Potential


def with_weights(reference: Reference) -> dict[str, torch.Tensor]:
    """Its state with the weights that its file does not hold."""
    made, shapes = {}, reference.meta["shapes"]
    for name, shape in shapes.items():
        random, bound = np.random.default_rng(sorted(shapes).index(name)), shape[-1] ** -0.5
        made[name] = torch.from_numpy(random.uniform(-bound, bound, shape))
    return reference.state | made


@pytest.mark.parametrize("which", ["ani1x", "ani2x"])
def test_equals_torchani(which: str) -> None:
    reference = read_reference(FOLDER / f"{which}.npz")
    potential = from_torchani(with_weights(reference))
    assert potential.config.which_ani == which
    assert_equal(potential, reference, Hartree)


@pytest.mark.peer
@pytest.mark.parametrize("settings", [("ani1x",), ("ani2x", "3")])
def test_equals_torchani_now(tmp_path: Path, settings: tuple[str, ...]) -> None:
    reference = made_by_peer("torchani", "make_ani.py", tmp_path / "x.npz", *settings)
    assert_equal(from_torchani(with_weights(reference), reference.meta["member"]), reference, Hartree)


@pytest.mark.peer
def test_equals_the_published_model(tmp_path: Path) -> None:
    """Of torchani 2.2.4, whose environment is `torchani22`."""
    reference = made_by_peer("torchani22", "make_ani.py", tmp_path / "x.npz", "published-ani1x")
    assert_equal(from_torchani(reference.state), reference, Hartree)


def test_imports_a_member_of_an_ensemble(tmp_path: Path) -> None:
    reference = read_reference(FOLDER / "ani1x.npz")
    state = with_weights(reference)
    older = {}
    for name, value in state.items():
        if "atomics" in name:
            *_, symbol, layer, kind = name.replace("layers.", "").split(".")
            place = 6 if layer == "final_layer" else 2 * int(layer)
            older[f"neural_networks.0.{symbol}.{place}.{kind}"] = 0 * value
            older[f"neural_networks.1.{symbol}.{place}.{kind}"] = value
        elif "aev_computer" in name and "triu" not in name:
            ours = dict(eta="Eta", shifts="Shf", zeta="Zeta", sections="ShfZ")[name.split(".")[-1]]
            last = "" if ours in ("Zeta", "ShfZ") else ("R" if "radial" in name else "A")
            older[f"aev_computer.{ours}{last}"] = value[None, None]
        else:
            older[name] = value
    torch.save(older, tmp_path / "ani.pt")
    assert_equal(import_torchani(tmp_path / "ani.pt", 1), reference, Hartree)
    with pytest.raises(InputError, match="no member 2"):
        import_torchani(tmp_path / "ani.pt", 2)


def test_what_can_not_be_imported(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="can not be read"):
        import_torchani(tmp_path / "x.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "y.pt")
    with pytest.raises(InputError, match="no state dict"):
        import_torchani(tmp_path / "y.pt")
    state = with_weights(read_reference(FOLDER / "ani1x.npz"))
    with pytest.raises(InputError, match="elements H C N can not be imported"):
        from_torchani({name: value for name, value in state.items() if ".O." not in name})
    narrow = state | {name: value[:3] for name, value in state.items() if "O.layers.0" in name}
    with pytest.raises(InputError, match="other than ani1x"):
        from_torchani(narrow)


@pytest.mark.parametrize(
    ("config", "domain", "message"),
    [
        ({"which_ani": "ani1x"}, {"elements": (1, 14, 29)}, "H, C, N, O, not Si, Cu"),
        ({"which_ani": "ani2x"}, {"cutoff": 5.0}, r"5\.1 Å, not 5"),
        ({"which_ani": "ani2x", "aev": {}}, {}, "leave out aev"),
    ],
)
def test_settings_that_contradict(config: dict[str, object], domain: dict[str, object], message: str) -> None:
    given = Domain(**({"cutoff": 5.2, "elements": (1, 6)} | domain))
    with pytest.raises(InputError, match=message):
        Potential(validate(ANIConfig, config), given, ())


def test_labels_with_directions_are_refused() -> None:
    domain = Domain(cutoff=5.2, elements=(1, 6))
    with pytest.raises(InputError, match="no vectors"):
        Potential(ANIConfig(), domain, (Label("mu", "structure", (3,), "mu"),))


def test_terms_are_those_of_the_paper() -> None:
    """One centre with two neighbours of its element, by the paper's equations."""
    aev = AEV(AEVConfig(zeta=8.0), 1, 5.2, "cosine").double()
    r = torch.tensor([[1.1, 0.0, 0.2], [-0.3, 1.4, 0.1]], dtype=torch.float64)
    d = r.norm(dim=1, keepdim=True)
    zero = torch.zeros(2, dtype=torch.int64)
    found = aev(zero, zero[:1], zero, r, d)[0].numpy()
    d, fc = d[:, 0].numpy(), lambda d, end: 0.5 * np.cos(np.pi * d / end) + 0.5
    shifts = 0.9 + (5.2 - 0.9) / 16 * np.arange(16)
    radial = 0.25 * (np.exp(-16 * (d[:, None] - shifts) ** 2) * fc(d, 5.2)[:, None]).sum(0)
    angle = np.arccos(0.95 * (r[0] @ r[1]).item() / d.prod())
    far, turned = 0.9 + 2.6 / 4 * np.arange(4), np.pi / 16 + np.pi / 8 * np.arange(8)
    round_ = 2 ** (1 - 8) * (1 + np.cos(angle - turned)) ** 8
    angular = round_[None] * np.exp(-8 * (d.mean() - far) ** 2)[:, None] * fc(d, 3.5).prod()
    np.testing.assert_allclose(found[:16], radial, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[16:], angular.ravel(), rtol=1e-5, atol=1e-8)


def test_every_triplet_once() -> None:
    graph = to_graph(bulk("C", "diamond", a=3.6).repeat(2), 2.7)
    i = graph.edge_index[0]
    first, second = triplets(i, len(graph.positions))
    assert (i[first] == i[second]).all()
    assert (first < second).all()
    n = i.bincount()
    assert len(first) == (n * (n - 1) // 2).sum() == len(set(zip(first.tolist(), second.tolist())))
    assert triplets(i[:0], 3)[0].shape == (0,)


def test_published_shapes() -> None:
    lengths = {"ani1x": 384, "ani1ccx": 384, "ani2x": 1008}
    assert lengths.keys() == PRESETS.keys()
    for name, length in lengths.items():
        published = PRESETS[name]
        assert AEV(published.aev, len(published.widths), published.cutoff, "cosine").width == length


def test_kink_at_the_cutoff_of_cosine_only() -> None:
    curvatures = {}
    for kind in ("smooth", "cosine"):
        torch.manual_seed(0)
        config = validate(ANIConfig, {"cutoff_function": kind, "aev": {"radial_eta": 1.0}})
        potential = Potential(config, Domain(cutoff=4.0, elements=(6,)), ()).double().eval()
        atoms = bulk("C", "diamond", a=3.6)[:1]
        atoms.pbc = False
        pair = atoms + atoms
        energies = []
        for step in (0.0, 1e-3):
            pair.positions[1] = pair.positions[0] + [0, 0, 4.0 - step]
            energies.append(potential(to_graph(pair, 4.0))["energy"].item())
        curvatures[kind] = abs(energies[1] - energies[0]) / 1e-6
    assert curvatures["cosine"] > 100 * curvatures["smooth"]


def test_rows_of_many_neighbors_are_left_to_triplets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which cost less there; the results are the same."""
    potential = Potential(
        validate(ANIConfig, {"name": "ani"}), Domain(cutoff=4.0, elements=(29, 79)), ()
    ).double()
    potential.eval().requires_grad_(False)
    graph, calls = to_graph(structures()["crystal"], 4.0), []

    def function(inputs: list[torch.Tensor]):
        calls.append(1)
        return plain_function(potential)(inputs)

    few = OnRows(potential, function)(graph)
    monkeypatch.setattr(ANI, "most_pairs_of_slots", 100)
    many = OnRows(potential, function)(graph)
    assert len(calls) == 1
    torch.testing.assert_close(few["forces"], many["forces"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["ani1x", "ani2x"])
def test_networks_of_unequal_widths_in_rows(which: str) -> None:
    """Filled up with zeros, they give what they give one by one; of molecules that lack some elements, too."""
    potential = from_torchani(with_weights(read_reference(FOLDER / f"{which}.npz"))).double().eval()
    potential.requires_grad_(False)
    potential.wall = None
    for name in ("CH3CONH2", "CH4", "H2O"):
        graph = to_graph(molecule(name), potential.domain.cutoff)
        expected, found = potential(graph), OnRows(potential, plain_function(potential))(graph)
        for key in ("energies", "forces"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-9)
