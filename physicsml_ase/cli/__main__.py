"""`python -m physicsml_ase.cli`."""

from physicsml_ase.cli import main

main()
