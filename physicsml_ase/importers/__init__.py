"""Potentials of other codes turned into ours, their weights copied by name."""
