"""MACE equals mace-torch's, its contraction is what its tensors say, and its configs are checked."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from references_for_tests import FOLDER, assert_equal, made_by_peer, read_reference

from physicsml_ase.atoms import to_graph
from physicsml_ase.checkpoint import build_potential, describe_potential
from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.importers.mace import from_mace
from physicsml_ase.models.mace import MACEConfig
from physicsml_ase.nn.blocks import by_element
from physicsml_ase.nn.contraction import SymmetricContraction
from physicsml_ase.nn.polynomials import monomials, symmetric_basis
from physicsml_ase.potential import Potential

REFERENCE = FOLDER / "mace.npz"


def test_equals_mace_torch() -> None:
    reference = read_reference(REFERENCE)
    assert_equal(from_mace(reference.meta["config"], reference.state), reference, rtol=1e-10)


@pytest.mark.peer
@pytest.mark.parametrize(
    "settings",
    [
        ("hidden=32x0e+32x1o", "ell=3", "radial=64,64,64", "mlp=16x0e"),
        ("hidden=8x0e+8x1o+8x2e", "first=RealAgnosticResidualInteractionBlock", "zbl=1", "ell=3"),
        ("hidden=8x0e", "layers=3", "correlation=2", "heads=one,two,three"),
        ("layers=1", "zbl=1", "correlation=1"),
        (
            "first=RealAgnosticDensityInteractionBlock",
            "other=RealAgnosticDensityResidualInteractionBlock",
            "heads=a,b",
            "transform=Agnesi",
        ),
        ("other=RealAgnosticInteractionBlock", "ell=1"),
        ("correlation=4", "ell=1"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_equals_mace_torch_now(tmp_path: Path, settings: tuple[str, ...]) -> None:
    reference = made_by_peer("mace", "make_mace.py", tmp_path / "x.npz", *settings)
    heads = reference.meta["config"]["heads"]
    head = heads[-1] if len(heads) > 1 else None
    assert_equal(from_mace(reference.meta["config"], reference.state, head), reference, rtol=1e-10)


def test_a_head_must_be_chosen() -> None:
    reference = read_reference(REFERENCE)
    config = reference.meta["config"] | {"heads": ["pbe", "r2scan"]}
    with pytest.raises(InputError, match="several heads: choose one of pbe, r2scan"):
        from_mace(config, reference.state)
    with pytest.raises(InputError, match="no head 'scan': it has pbe, r2scan"):
        from_mace(config, reference.state, "scan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance_transform": "SoftTransform"}, "distance_transform SoftTransform"),
        ({"radial_type": "GaussianBasis"}, "radial_type GaussianBasis"),
        ({"correlation": [None, None]}, "mace_cueq_to_e3nn"),
        ({"hidden_irreps": ["4x0e+4x1e", "4x0e"]}, "natural parity"),
    ],
)
def test_what_can_not_be_imported(change: dict[str, object], message: str) -> None:
    reference = read_reference(REFERENCE)
    with pytest.raises(InputError, match=message):
        from_mace(reference.meta["config"] | change, reference.state)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_contraction_is_what_its_tensors_say(order: int) -> None:
    lmax, L, c = 1, 2, 2
    contraction = SymmetricContraction(lmax, L, order, c, num_elements=3).double()
    a = torch.randn(4, 2 * c, 5, dtype=torch.float64)  # of elements 2 and 0
    out = contraction(a, contraction.tensors(torch.tensor([2, 0])))
    expected = torch.zeros_like(out)
    for nu in range(1, order + 1):
        for degree in range(L + 1):
            basis = torch.from_numpy(symmetric_basis(lmax, nu, degree))
            if not len(basis):
                continue
            powers = torch.stack([a[list(term)].prod(0) for term in monomials(4, nu)])
            weight = contraction.weights[f"{nu}_{degree}"][[2, 0]].flatten(0, 1)
            rows = slice(degree**2, (degree + 1) ** 2)
            expected[rows] += torch.einsum("kmp,pzn,zk->mzn", basis, powers, weight)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_contraction_is_differentiable_twice() -> None:
    contraction = SymmetricContraction(1, 1, 3, 1, num_elements=1).double()
    a = torch.randn(4, 1, 2, dtype=torch.float64, requires_grad=True)
    made = contraction.tensors()
    tensors = [t.detach().requires_grad_() for t in made if t is not None]

    def function(a: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        rest = iter(given)
        return contraction(a, [None if t is None else next(rest) for t in made])

    assert torch.autograd.gradcheck(function, (a, *tensors))
    assert torch.autograd.gradgradcheck(function, (a, *tensors))


def test_basis_is_orthonormal_and_symmetric_functions_only() -> None:
    counts = np.array([len(set(permutations(term))) for term in monomials(16, 3)])
    for degree, num in ((0, 8), (1, 12), (2, 14)):
        basis = symmetric_basis(3, 3, degree)
        tensors = (basis / np.sqrt(counts)).reshape(len(basis), -1)
        gram = tensors @ tensors.T
        np.testing.assert_allclose(gram, (2 * degree + 1) / 6 * np.eye(num), atol=1e-12)


@pytest.mark.parametrize("place", [[0, 2, 0, 0, 2, 1], [1] * 9 + [0], [2, 2]])
def test_blocks_hold_every_atom_once(place: list[int]) -> None:
    """Padded where elements are about as frequent, one block each where one is rare."""
    blocks = by_element(torch.tensor(place), 3)
    elements, atoms = [], []
    for block in blocks.blocks:
        index = torch.arange(len(place)) if block.atoms is None else block.atoms
        elements.append(block.elements.repeat_interleave(len(index) // len(block.elements)))
        atoms.append(index)
    held, of = torch.cat(atoms), torch.cat(elements)
    back = torch.arange(len(place)) if blocks.back is None else blocks.back
    assert held[back].tolist() == list(range(len(place)))
    assert of[back].tolist() == place


def test_rare_and_frequent_elements_give_the_same() -> None:
    """An atom's energy does not depend on how its neighbours' elements are grouped."""
    torch.manual_seed(0)
    config = validate(MACEConfig, {"name": "mace", "hidden_irreps": "4x0e+4x1o", "max_ell": 2})
    domain = Domain(cutoff=3.0, elements=(1, 6, 8, 14))
    potential = Potential(config, domain, ()).double().eval()
    small = molecule("CH3CH2OH")
    large = bulk("Si", cubic=True).repeat(2)
    large.positions += 50.0
    large.pbc = False
    both = small + large
    alone = potential(to_graph(small, 3.0))
    found = potential(to_graph(both, 3.0))
    torch.testing.assert_close(found["energies"][: len(small)], alone["energies"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found["forces"][: len(small)], alone["forces"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_irreps": "8x0e+4x1o"}, "as many channels"),
        ({"hidden_irreps": "8x0e+8x1e"}, "natural parity"),
        ({"hidden_irreps": "8x0"}, "is not like 32x0e"),
        ({"mlp_irreps": "4x1o"}, "must be scalars"),
    ],
)
def test_wrong_irreps(change: dict[str, str], message: str) -> None:
    config = validate(MACEConfig, {"name": "mace"} | change)
    with pytest.raises(InputError, match=message):
        Potential(config, Domain(cutoff=3.0, elements=(1,)), ())


@pytest.mark.parametrize("crowded", [False, True])
def test_pieces_give_the_whole(monkeypatch: pytest.MonkeyPatch, crowded: bool) -> None:
    """Computed a few atoms at a time, also where atoms with many neighbours have several rows."""
    torch.manual_seed(0)
    config = validate(MACEConfig, {"name": "mace", "hidden_irreps": "4x0e+4x1o", "max_ell": 2})
    potential = Potential(config, Domain(cutoff=3.5, elements=(1, 8, 14)), ()).double().eval()
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.numbers[::5] = 8
    atoms.rattle(0.1, seed=0)
    if crowded:
        atoms.pbc = False
        atoms.cell = None
        atoms = atoms[:40]
    graph = to_graph(atoms, 3.5)
    whole = potential(graph)
    monkeypatch.setattr("physicsml_ase.models.mace.PIECE", 50)
    parts = potential(graph)
    for name in ("energies", "forces", "stress"):
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-12, equal_nan=True)


def test_weights_are_kept_for_few_sets_of_elements() -> None:
    """Screening many compositions must not fill the memory."""
    config = validate(MACEConfig, {"name": "mace", "hidden_irreps": "4x0e+4x1o", "max_ell": 2})
    domain = Domain(cutoff=3.5, elements=tuple(range(1, 21)))
    potential = Potential(config, domain, ()).eval().requires_grad_(False)
    dimer = [to_graph(Atoms([1, z], [[0, 0, 0], [0, 0, 1.2]]), 3.5) for z in range(2, 21)]
    first = [potential(graph)["energy"].item() for graph in dimer]
    again = [potential(graph)["energy"].item() for graph in dimer]
    assert first == again
    blocks = [m for m in potential.modules() if hasattr(m, "_kept")]
    assert blocks
    assert all(len(block._kept[1]) <= 10 for block in blocks)


@pytest.mark.parametrize("energy_scale", [1.0, 0.1])
def test_repulsion_is_in_electronvolts(energy_scale: float) -> None:
    torch.manual_seed(0)
    settings = {"name": "mace", "hidden_irreps": "4x0e", "max_ell": 1, "pair_repulsion": True}
    domain = Domain(cutoff=3.5, elements=(8,), energy_scale=energy_scale, short_range="none")
    pair = to_graph(Atoms("O2", [[0, 0, 0], [0, 0, 0.4]]), 3.5)
    energies = []
    for repels in (True, False):
        potential = Potential(validate(MACEConfig, settings | {"pair_repulsion": repels}), domain, ())
        for weight in potential.parameters():
            weight.data.zero_()
        energies.append(potential.double().eval()(pair)["energy"].item())
    assert energies[0] - energies[1] == pytest.approx(72.6, abs=0.1)


def test_repulsion_of_checkpoints_from_before_its_scale_had_a_name() -> None:
    config = validate(
        MACEConfig, {"name": "mace", "hidden_irreps": "4x0e", "max_ell": 1, "pair_repulsion": True}
    )
    described = describe_potential(Potential(config, Domain(cutoff=3.5, elements=(8,), energy_scale=0.1), ()))
    assert build_potential(described).model.repulsion_scale == pytest.approx(10)
    del described["model"]["repulsion_scale"]
    assert build_potential(described).model.repulsion_scale == 1


def test_kept_weights_follow_the_weights() -> None:
    """What is computed once of the weights of a model that is not trained is computed anew when they change."""
    torch.manual_seed(0)
    config = validate(MACEConfig, {"name": "mace", "hidden_irreps": "4x0e+4x1o", "max_ell": 2})
    domain = Domain(cutoff=3.5, elements=(1, 6, 8))
    potential = Potential(config, domain, ()).double().eval().requires_grad_(False)
    graph = to_graph(molecule("CH3CH2OH"), 3.5)
    before = potential(graph)["energy"].item()
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1.1)
    after = potential(graph)["energy"].item()
    assert before != after
    fresh = Potential(config, domain, ()).double()
    fresh.load_state_dict(potential.state_dict())
    assert fresh.eval()(graph)["energy"].item() == pytest.approx(after, abs=1e-12)
    single = potential.float()(graph)["energy"].item()
    assert single == pytest.approx(after, abs=1e-4)
