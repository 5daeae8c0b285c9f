"""Real sets: nothing is called an error, and a warning is only what is true of them."""

from pathlib import Path

import pytest

from physicsml_ase.check import check

QUICK = [("PbTe/train.xyz", "PbTe/test.xyz"), ("oxides/train.xyz", None)]
SLOW = [
    ("acac/train_300K.xyz", "acac/test_MD_300K.xyz"),
    ("mlearn/Si/train.xyz", "mlearn/Si/test.xyz"),
    ("mlearn/Mo/train.xyz", "mlearn/Mo/test.xyz"),
    ("TiO2/train.xyz", "TiO2/test.xyz"),
    ("TiO2/isolated_atoms.xyz", None),
    ("MAPbI3/train.xyz", "MAPbI3/test.xyz"),
    ("oxides/oxides_train.db", None),
]
TRUE = {
    "mlearn/Si/train.xyz": {"duplicates", "leakage"},
    "TiO2/train.xyz": {"leakage"},
}
"""Repeated and leaked frames that are really there."""


@pytest.mark.parametrize(
    ("train", "test"), [*QUICK, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)]
)
def test_no_wolf_is_cried(shared: Path, train: str, test: str | None) -> None:
    report = check(shared / "data" / train, test=shared / "data" / test if test else None)
    if "isolated" in train:
        assert [f.code for f in report.errors] == ["only-isolated-atoms"]
        return
    assert not report.errors
    assert {f.code for f in report.warnings} == TRUE.get(train, set())


@pytest.mark.slow
def test_leaked_frames_of_silicon(shared: Path) -> None:
    """Three test frames are training frames, strained another way about."""
    data = shared / "data" / "mlearn" / "Si"
    report = check(data / "train.xyz", test=data / "test.xyz")
    leaked = next(f for f in report.findings if f.code == "leakage")
    assert set(leaked.frames) == {("test", 22), ("test", 23), ("test", 24)}
