"""What the models of other codes have learned."""

from physicsml_ase.conventions import PROPERTIES, Label

LEARNED = tuple(Label(n, PROPERTIES[n].level, PROPERTIES[n].shape, n) for n in ("energy", "forces", "stress"))
"""Labels of an imported model: what evaluations compare it with."""
