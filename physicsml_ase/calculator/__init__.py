"""The ASE calculator: a trained potential, or several of them, behind `atoms.calc`."""

from physicsml_ase.calculator.calculator import PhysicsMLCalculator as PhysicsMLCalculator
from physicsml_ase.calculator.models import choose_device as choose_device
