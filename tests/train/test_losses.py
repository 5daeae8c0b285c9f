"""Losses and metrics against numbers worked out by hand; missing labels count for nothing."""

import pytest
import torch
from ase import Atoms
from torch import Tensor

from physicsml_ase.atoms import to_graph
from physicsml_ase.conventions import PROPERTIES, InputError, Label
from physicsml_ase.graph import Graph, collate
from physicsml_ase.train.losses import Loss, LossTerm, Term, default_loss
from physicsml_ase.train.metrics import Errors, in_words

NAN = torch.nan


def batch() -> Graph:
    """Two structures with two atoms and one."""
    return collate([to_graph(Atoms("H2", [[0, 0, 0], [0, 0, 1]]), 2.0), to_graph(Atoms("He"), 2.0)])


def double(*values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("L1Loss", {}, 1.0 + 3.0),
        ("MSELoss", {}, 1.0 + 9.0),
        ("HuberLoss", {"delta": 2.0}, 0.5 + 2 * (3 - 1)),
        ("SmoothL1Loss", {"beta": 2.0}, 0.25 + 2.0),
        ("L2NormLoss", {}, 1.0 + 3.0),
    ],
)
def test_known_answers(name: str, config: dict[str, float], expected: float) -> None:
    term = Term("energy", LossTerm(name=name, config=config))
    total, count = term(double(2.0, 5.0), double(1.0, 2.0), batch())
    assert (total.item(), count.item()) == pytest.approx((expected, 2))
    assert total.dtype == torch.float64


def test_energies_are_compared_per_atom() -> None:
    term = Term("energy", LossTerm(name="L1Loss", per_atom=True))
    assert term(double(2.0, 5.0), double(0.0, 2.0), batch())[0].item() == pytest.approx(1.0 + 3.0)


def test_vectors_by_the_length_of_their_error() -> None:
    prediction = double([3.0, 0, 4], [0, 0, 0], [1, 1, 1])
    target = double([0.0, 0, 0], [0, 5, 12], [1, 1, 1])
    total, count = Term("forces", LossTerm(name="L2NormLoss"))(prediction, target, batch())
    assert (total.item(), count.item()) == pytest.approx((5 + 13 + 0, 3))
    mean = Term("forces", LossTerm(name="L1Loss"))(prediction, target, batch())[0]
    assert mean.item() == pytest.approx((7 + 17) / 3)  # a component each


def test_missing_labels_count_for_nothing_and_leave_gradients_finite() -> None:
    prediction = double([3.0, 0, 4], [NAN, 0, 0], [1, 1, 1]).requires_grad_()
    target = double([0.0, 0, 0], [NAN, NAN, NAN], [1, NAN, 1])
    for name in ("L2NormLoss", "L1Loss", "MSELoss", "HuberLoss", "SmoothL1Loss"):
        total, count = Term("forces", LossTerm(name=name, per_atom=False))(prediction, target, batch())
        assert count.item() == 1
        (gradient,) = torch.autograd.grad(total, prediction)
        assert gradient[1:].abs().sum() == 0
        assert gradient[0].norm() > 0


def test_no_label_at_all() -> None:
    loss = Loss({"energy": LossTerm(name="L2NormLoss", weight=3.0), "forces": LossTerm()})
    graph = batch()._replace(targets={"energy": double(NAN, NAN), "forces": torch.full((3, 3), NAN)})
    predictions = {"energy": double(1.0, 2.0).requires_grad_(), "forces": torch.ones(3, 3)}
    sums, counts = loss(predictions, graph)
    assert sums.tolist() == counts.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(loss.total(sums / counts.clamp_min(1)), predictions["energy"])
    assert gradient.tolist() == [0, 0]


def test_an_exact_prediction_has_a_finite_gradient() -> None:
    prediction = double([1.0, 2, 3]).requires_grad_()
    total, _ = Term("forces", LossTerm(name="L2NormLoss"))(prediction, double([1.0, 2, 3]), batch())
    assert torch.autograd.grad(total, prediction)[0].abs().max() == 0


def test_the_total_is_weighted() -> None:
    loss = Loss({"energy": LossTerm(weight=3.0), "forces": LossTerm(weight=0.5)})
    assert loss.labels == ("energy", "forces")
    assert loss.total(double(2.0, 4.0)).item() == 8.0


def test_what_is_not_known() -> None:
    with pytest.raises(InputError, match=r"loss\.energy\.name: 'HuberLos': .*HuberLoss"):
        Term("energy", LossTerm(name="HuberLos"))
    with pytest.raises(InputError, match=r"loss\.forces\.config: .*'gamma'"):
        Term("forces", LossTerm(name="HuberLoss", config={"gamma": 1.0}))


def test_the_recipe_has_a_term_for_every_label() -> None:
    terms = default_loss({"energy": "structure", "forces": "atom", "charges": "atom"})
    assert list(terms) == ["energy", "forces", "charges"]
    assert terms["energy"].per_atom
    Loss(terms)


# --- what people read


def labels(*names: str) -> tuple[Label, ...]:
    return tuple(Label(n, PROPERTIES[n].level, PROPERTIES[n].shape, n) for n in names)


def test_errors_over_batches_in_thousandths_and_per_atom() -> None:
    errors, graph = Errors(labels("energy", "forces", "charges")), batch()
    targets = {"energy": double(0.0, NAN), "forces": torch.zeros(3, 3), "charges": double(NAN, NAN, NAN)}
    one = {"energy": double(2.0, 7.0), "forces": torch.full((3, 3), 0.1), "charges": double(1.0, 1.0, 1.0)}
    errors.update(one, graph._replace(targets=targets))
    targets = targets | {"energy": double(0.0, 0.0)}
    errors.update({**one, "energy": double(0.0, 3.0)}, graph._replace(targets=targets))
    values = errors.compute()
    # errors per atom: 1, 0, 3 eV
    assert values["energy/mae"] == pytest.approx(4000 / 3)
    assert values["energy/rmse"] == pytest.approx(1000 * (10 / 3) ** 0.5)
    assert values["forces/rmse"] == pytest.approx(100)
    assert "charges/mae" not in values  # no label was seen
    assert in_words({"energy/mae": 1.0, "energy/rmse": 3.14159, "charges/rmse": 0.2}) == (
        "energy 3.142 meV/atom, charges 0.2"
    )
    errors.reset()
    assert errors.compute() == {}
