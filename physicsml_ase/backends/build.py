"""Shared libraries compiled on the machine where they run, once, and kept in the user's cache folder."""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger("physicsml_ase")

ALWAYS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
"""Nothing that would let the compiler think that there is no NaN."""
WANTED = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
"""More flags, in the order in which they are tried."""
SECONDS = 300
"""A compiler that takes longer hangs."""


class BuildError(RuntimeError):
    """There is no compiler, or it failed; the message is one line."""


def compiler() -> str | None:
    """The C++ compiler that would be used, or None."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@functools.cache
def build(source: str, macros: tuple[tuple[str, int], ...] = ()) -> ctypes.CDLL:
    """The library of a source file of this folder, compiled with these macros where that has not been done.

    One that is there already needs no compiler; one that can not be loaded is compiled anew.
    """
    code = Path(__file__).with_name(source)
    defines = [f"-D{name}={value}" for name, value in macros]
    texts = [file.read_text(encoding="utf-8") for file in (code, *sorted(code.parent.glob("*.h")))]
    told = (*texts, *defines, *ALWAYS, os.environ.get("CXX", ""), _machine())
    name = f"{code.stem}-{hashlib.sha256(chr(0).join(told).encode()).hexdigest()[:20]}.so"
    for folder in cache_folders():
        if os.path.exists(folder / name):  # of Path's, one that may not be looked at is an error
            try:
                return ctypes.CDLL(str(folder / name))
            except OSError as error:
                log.warning("%s can not be loaded (%s): it is compiled anew", folder / name, error)
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
    command = compiler()
    if command is None:
        raise BuildError("there is no C++ compiler: install g++ or clang++, or set CXX")
    kept = _folder_to_write() / name
    _compile(command, code, defines, kept)
    try:
        return ctypes.CDLL(str(kept))
    except OSError as error:
        raise BuildError(f"{kept} can not be loaded ({error})") from None


def cache_folders() -> list[Path]:
    """Where libraries are kept: in the user's cache or, where that can not be written, among the temporary files."""
    folders = []
    with contextlib.suppress(RuntimeError):  # a user without a home
        folders.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"))
    own = _among_temporary_files()
    with contextlib.suppress(OSError):  # where it is not there
        if _is_only_mine(own):
            folders.append(own)
    return [folder / "physicsml_ase" for folder in folders]


def _among_temporary_files() -> Path:
    return Path(tempfile.gettempdir()) / f"physicsml_ase-{os.getuid()}"


def _folder_to_write() -> Path:
    """The first of the cache's folders that can be written."""
    why = "no place for temporary files"
    for make_own in (False, True):  # which is there where it was needed alone
        if make_own:
            with contextlib.suppress(OSError):
                _among_temporary_files().mkdir(mode=0o700)
        for folder in cache_folders():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    return folder
            except OSError as error:
                why = str(error)
    raise BuildError(f"there is no folder to keep compiled code in ({why}): set XDG_CACHE_HOME to one")


def _is_only_mine(folder: Path) -> bool:
    """Whether nobody else may put a library there."""
    about = folder.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o022


@functools.cache
def tell_once(reason: str) -> None:
    """Say that there is no kernel, and why."""
    log.warning("no C++ kernel, and plain PyTorch takes several times as long: %s", reason)


def _compile(command: str, code: Path, defines: list[str], to: Path) -> None:
    """Compile beside the library's place and rename: whoever else looks finds all of it or nothing."""
    log.info("compiling the C++ kernel %s for this machine, once", code.stem)
    try:
        with tempfile.TemporaryDirectory(dir=to.parent, prefix="build-") as folder:
            made, said = Path(folder) / to.name, ""
            for flags in WANTED:
                line = [command, *ALWAYS, *flags, *defines, str(code), "-o", str(made)]
                done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, check=False)
                if done.returncode == 0:
                    with made.open("rb") as file:
                        os.fsync(file.fileno())
                    os.replace(made, to)
                    return
                said = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr.strip()[:200])
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command} took longer than {SECONDS} s") from None
    except OSError as error:
        raise BuildError(f"{code.name} can not be compiled ({error})") from None
    raise BuildError(f"{command} can not compile {code.name} ({said})")


@functools.cache
def _machine() -> str:
    """What `-march=native` depends on: a home folder may be shared by unlike machines."""
    wanted = ("model name", "flags", "Features", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = sorted({line for line in lines if line.startswith(wanted)})
    except OSError:
        about = [platform.processor()]
    return "\n".join([platform.system(), platform.machine(), *about])
