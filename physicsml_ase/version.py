"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("physicsml-ase")
except PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "0+unknown"
