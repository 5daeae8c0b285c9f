"""The compiled training step against the plain one."""

from collections.abc import Callable

import pytest
import torch
from conftest import structures
from test_contract import make
from torch._dynamo.backends.debugging import aot_eager

import physicsml_ase.models  # noqa: F401
from physicsml_ase.atoms import to_graph
from physicsml_ase.config import MODELS, validate
from physicsml_ase.conventions import PROPERTIES, Label
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, collate
from physicsml_ase.models.painn import PaiNNConfig
from physicsml_ase.potential import Potential
from physicsml_ase.train.compiled import CompiledPotential

KINDS = ("molecule", "crystal", "slab", "triclinic", "wire", "tiny")


def batch(*kinds: str) -> Graph:
    return collate([to_graph(structures()[kind], 4.0) for kind in kinds])


def small() -> Potential:
    torch.manual_seed(0)
    labels = tuple(
        Label(n, PROPERTIES[n].level, PROPERTIES[n].shape, n)
        for n in ("energy", "forces", "charges", "dipole")
    )
    domain = Domain(cutoff=4.0, elements=(1, 6, 8, 29, 79), avg_num_neighbors=12.0, energy_scale=1.3)
    return Potential(PaiNNConfig(channels=8, layers=1, num_radial=4), domain, labels).double().train()


def gradients(potential: Potential, out: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    potential.zero_grad()
    loss = out["forces"].square().sum() + out["energy"].sum()
    for name in {"charges", "dipole"} & out.keys():
        loss = loss + out[name].square().sum()
    loss.backward()
    # of weights that nothing depends on compiled code may give zeros, and autograd nothing
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in potential.parameters()]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_same_losses_and_gradients(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    """For batches of other sizes than the one it was compiled with; the second backward flows through."""
    potential = small()
    compiled = CompiledPotential(potential, {"backend": backend})
    for kinds in (KINDS[:3], ("crystal",), KINDS[2:], ("molecule",), KINDS[:2]):
        graph = batch(*kinds)
        plain, fast = potential(graph), compiled(graph)
        assert plain.keys() == fast.keys()
        for name, value in plain.items():
            torch.testing.assert_close(fast[name], value, rtol=1e-9, atol=1e-10, equal_nan=True)
        for a, b in zip(gradients(potential, plain), gradients(potential, fast), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-9)
    assert not compiled.given_up
    assert "not compiled" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mace", "tensor_net", "nequip", "allegro"])
def test_models_that_take_rows(name: str) -> None:
    """Of whatever lengths, with padding and with atoms that have several."""
    potential = make(name).train()
    potential.wall = None  # what is within it is not computed by compiled code
    compilations = []

    def once(module: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> object:
        compilations.append(module)
        return aot_eager(module, example_inputs)

    compiled = CompiledPotential(potential, {"backend": once})
    for kinds in (KINDS[:3], ("crystal",), KINDS[2:], ("crystal", "triclinic", "slab"), ("molecule",)):
        graph = batch(*kinds)
        plain, fast = potential(graph), compiled(graph)
        for key, value in plain.items():
            torch.testing.assert_close(fast[key], value, rtol=1e-9, atol=1e-9, equal_nan=True)
        for a, b in zip(gradients(potential, plain), gradients(potential, fast), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-8)
    assert not compiled.given_up
    assert len(compilations) == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(lambda x: 1.01 * x, "is off by"), (lambda x: 2 * x - x.detach(), "gradient is off by")],
    ids=["values", "gradients"],
)
def test_wrong_code_is_not_used(
    wrong: Callable[[torch.Tensor], torch.Tensor], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A compiler that gets forces or their gradients wrong is told of, and the plain code is used."""

    def off(module: torch.nn.Module, example_inputs: object) -> object:
        return lambda *inputs: tuple(wrong(x) for x in module(*inputs))

    potential = small()
    compiled = CompiledPotential(potential, {"backend": off})
    graph = batch(*KINDS[:3])
    torch.testing.assert_close(compiled(graph)["forces"], potential(graph)["forces"], rtol=0, atol=1e-12)
    assert compiled.given_up
    assert words in caplog.text


@pytest.mark.parametrize("name", ["ani"])
def test_models_that_do_not_compile_are_trained_as_they_are(name: str) -> None:
    domain = Domain(cutoff=4.0, elements=(1, 6, 8, 29, 79))
    potential = Potential(validate(MODELS[name].config, {}), domain, ()).train()
    compiled = CompiledPotential(potential, True)
    assert compiled.given_up
    torch.testing.assert_close(compiled(batch("crystal"))["energy"], potential(batch("crystal"))["energy"])
