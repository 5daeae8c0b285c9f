"""Shared libraries compiled on the machine where they run, once, and kept in the user's cache folder."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
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
    """The library of a source file of this folder, compiled with these macros where that has not been done."""
    command = compiler()
    if command is None:
        raise BuildError("there is no C++ compiler: install g++ or clang++, or set CXX")
    code = Path(__file__).with_name(source)
    defines = [f"-D{name}={value}" for name, value in macros]
    texts = [file.read_text(encoding="utf-8") for file in (code, *sorted(code.parent.glob("*.h")))]
    told = (*texts, *defines, *ALWAYS, command, _version(command), _machine())
    key = hashlib.sha256("\0".join(told).encode()).hexdigest()
    kept = cache_folder() / f"{code.stem}-{key[:20]}.so"
    if not kept.exists():
        _compile(command, code, defines, kept)
    try:
        return ctypes.CDLL(str(kept))
    except OSError as error:
        raise BuildError(f"{kept} can not be loaded ({error})") from None


def cache_folder() -> Path:
    """Where libraries are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "physicsml_ase"


def _compile(command: str, code: Path, defines: list[str], to: Path) -> None:
    """Compile beside the library's place and rename: whoever else looks finds all of it or nothing."""
    log.info("compiling the C++ kernel %s for this machine, once", code.stem)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent, prefix="build-") as folder:
            made, said = Path(folder) / to.name, ""
            for flags in WANTED:
                line = [command, *ALWAYS, *flags, *defines, str(code), "-o", str(made)]
                done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, check=False)
                if done.returncode == 0:
                    os.replace(made, to)
                    return
                said = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr.strip()[:200])
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command} took longer than {SECONDS} s") from None
    except OSError as error:
        raise BuildError(f"{code.name} can not be compiled ({error})") from None
    raise BuildError(f"{command} can not compile {code.name} ({said})")


@functools.cache
def _version(command: str) -> str:
    done = subprocess.run(
        [command, "--version"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return done.stdout


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
