"""Differences of energies whose second derivative jumps, and those of wrong forces."""

import pytest

from physicsml_ase.verify.derivatives import LIMIT, _least


def test_a_smaller_step_settles_what_is_no_mistake() -> None:
    assert _least(lambda step: 0.05 * step) <= LIMIT  # of the first order in the step
    assert _least(lambda step: 0.02 + 0.05 * step) == pytest.approx(0.02, rel=0.01)
    assert _least(lambda step: 1e-12 / step) == pytest.approx(1e-9)  # the first is taken where it will do
    assert _least(lambda step: float("nan")) != _least(lambda step: float("nan"))
