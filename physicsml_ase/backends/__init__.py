"""Other ways to compute what a model computes: faster, on some machines, and never required."""
