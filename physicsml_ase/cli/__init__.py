"""The command line: thin verbs over the Python API."""

import time

STARTED_AT = time.monotonic()
"""`--time` counts from here: it includes the seconds that imports take."""


def main() -> None:
    """The entry point `physicsml-ase`."""
    from physicsml_ase.cli.app import app

    app(prog_name="physicsml-ase")
