"""Train machine-learned interatomic potentials on ASE data and run them in ASE."""
