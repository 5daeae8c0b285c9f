"""Imports point one way, and what must start quickly imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "physicsml_ase"
LAYERS = [
    {"conventions", "version", "recipe"},
    {"config"},
    {"graph", "neighbors", "domain"},
    {"atoms"},
    {"nn"},
    {"models"},
    {"potential"},
    {"trust"},
    {"checkpoint"},
    {"data", "backends", "importers"},
    {"check"},
    {"train", "calculator", "evaluate", "plots", "simulate"},
    {"verify"},
    {"report"},
    {"api"},
    {"cli"},
]
"""From the bottom up; a room may import from its own and lower ones, and not from its neighbours."""
ALLOWED_NEIGHBOURS = {("evaluate", "plots"), ("train", "plots"), ("calculator", "verify")}
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "physicsml_ase":
                names = [f"physicsml_ase.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("physicsml_ase.")}
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    here = room_of(path)
    if here == "__init__":
        return
    assert here in RANK, f"give {here} a place in LAYERS"
    for room in imported_rooms(path) - {here, "__version__"}:
        below = RANK[room] < RANK[here] or (here, room) in ALLOWED_NEIGHBOURS
        assert below, f"{path.name} imports {room}, which is not below {here}"


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import physicsml_ase", {"torch", "lightning", "pytorch_lightning", "h5py", "matplotlib"}),
        ("import physicsml_ase.cli", {"torch", "lightning", "h5py", "matplotlib"}),
        (
            "from physicsml_ase import PhysicsMLCalculator",
            {"lightning", "pytorch_lightning", "h5py", "matplotlib", "torchmetrics", "pandas"},
        ),
    ],
)
def test_starts_light(statement: str, forbidden: set[str]) -> None:
    code = f"import sys; {statement}; print(*{{m.split('.')[0] for m in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not forbidden & set(loaded.split())
