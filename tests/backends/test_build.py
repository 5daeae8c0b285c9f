"""Compiled libraries: kept, found again without a compiler, and made anew where they are damaged."""

import logging
import os
from pathlib import Path

import pytest

from physicsml_ase.backends import build
from physicsml_ase.backends.build import BuildError

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a user for whom nothing was compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    build.tell_once.cache_clear()
    return tmp_path / "cache" / "physicsml_ase"


def built() -> None:
    """Compile or load the lists' library, as another process would."""
    assert build.build.__wrapped__("edges.cpp").within


def test_a_damaged_library_is_compiled_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built()
    (kept,) = folder.iterdir()
    # elsewhere, as what was loaded from one place is not read again
    damaged = tmp_path / "other" / "physicsml_ase" / kept.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    built()
    assert "can not be loaded" in caplog.text
    assert damaged.stat().st_size == kept.stat().st_size


def test_what_is_there_needs_no_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built()
    monkeypatch.setattr(build, "compiler", lambda: None)
    built()
    for kept in folder.iterdir():
        kept.unlink()
    with pytest.raises(BuildError, match="no C\\+\\+ compiler"):
        built()


def test_a_cache_that_can_not_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file, where a folder should be")
    built()
    (own,) = (tmp_path / "temporary").iterdir()
    assert own.stat().st_mode & 0o077 == 0
    assert len(list((own / "physicsml_ase").glob("*.so"))) == 1
    own.chmod(0o777)  # where others can write, they could leave their own code
    with pytest.raises(BuildError, match="set XDG_CACHE_HOME"):
        built()


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may look everywhere")
def test_a_cache_that_may_not_be_looked_at(folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(mode=0)
    built()
    assert list((tmp_path / "temporary").rglob("*.so"))


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    built()
    assert [x.name for x in (tmp_path / "temporary").iterdir()] == [f"physicsml_ase-{os.getuid()}"]


def test_why_there_is_no_kernel_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        build.tell_once("there is no C++ compiler")
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert "no C++ compiler" in told.getMessage()
