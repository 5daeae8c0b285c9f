"""One file `model.pt2`: a checkpoint, and its step compiled ahead of time by AOTInductor.

It loads without a compiler. The archive holds, beside AOTInductor's files, extra/model.ckpt, plain data as every
checkpoint of ours, which serves whatever the compiled step does not, and extra/package.json, what the code was
compiled for. Nothing in it is unpickled; but it holds machine code, so open only what you trust.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from physicsml_ase.backends.compiled import Function, exported, in_a_line
from physicsml_ase.checkpoint import (
    build_potential,
    describe_checkpoint,
    describe_potential,
    load_potential,
    read_checkpoint,
    stored_trust,
    write_atomically,
)
from physicsml_ase.conventions import InputError
from physicsml_ase.potential import Potential
from physicsml_ase.version import __version__

log = logging.getLogger("physicsml_ase")

FORMAT_VERSION = 1
CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
"""What x86 processors can do, each more than those before."""


class Package(NamedTuple):
    """A package's file, and what it was compiled for."""

    path: Path
    about: dict[str, Any]
    contents: dict[str, Any]  # of its checkpoint

    @property
    def device(self) -> str:
        """Kind of device for which the step was compiled; "auto" where there is none of that kind."""
        wanted = self.about["device"]
        return wanted if wanted != "cuda" or torch.cuda.is_available() else "auto"

    @property
    def dtype(self) -> torch.dtype:
        """Number type in which the compiled step computes."""
        return getattr(torch, self.about["dtype"])


def export_checkpoint(
    ckpt: str | Path, path: str | Path, device: str | torch.device = "cpu", dtype: str | None = None
) -> Package:
    """Compile a checkpoint's model for `device`, in `dtype` (None: the checkpoint's), into a package."""
    contents = read_checkpoint(ckpt)
    export_package(load_potential(ckpt, device, dtype), Path(path), contents)
    return read_package(path)


def export_package(potential: Potential, path: Path, contents: Mapping[str, Any]) -> None:
    """Compile a potential's step, a minute or more, and write it with its checkpoint, complete or not at all.

    `contents` are those of the checkpoint. The code is for this kind of device, processor and torch.
    """
    if path.suffix != ".pt2":
        raise InputError(f"{path}: the name of a package ends in .pt2")
    if (reason := not_compilable(potential)) is not None:
        raise InputError(reason)
    from torch._inductor import aoti_compile_and_package

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        beside, ckpt = Path(folder) / path.name, Path(folder) / "model.ckpt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own deprecations
            try:
                aoti_compile_and_package(
                    exported(potential), package_path=str(beside), inductor_configs=_settings()
                )
            except torch._dynamo.exc.BackendCompilerFailed as error:
                raise InputError(
                    f"{path}: could not be compiled ({in_a_line(error)}); is there a C++ compiler?"
                ) from None
        write_atomically(contents, ckpt)
        with zipfile.ZipFile(beside, "a") as archive:
            root = archive.namelist()[0].split("/")[0]
            archive.write(ckpt, f"{root}/extra/model.ckpt")
            archive.writestr(f"{root}/extra/package.json", json.dumps(_about(potential), indent=1))
        os.replace(beside, path)


def not_compilable(potential: Potential) -> str | None:
    """Why a potential's step can not be compiled, None where it can."""
    kinds = (getattr(potential.model, kind, False) for kind in ("takes_rows", "takes_slots"))
    if not (potential.explicit or any(kinds)):
        return f"{potential.config.name} has no compiled step: use backend='eager'"
    if not potential.has_energy:
        return "a model without an energy is not compiled: use backend='eager'"
    if getattr(potential.model, "num_edge_scalars", 0) and any(x.level == "edge" for x in potential.labels):
        return (
            f"edges' labels are not read off compiled steps of {potential.config.name}: use backend='eager'"
        )
    return None


def is_package(path: str | Path) -> bool:
    """Whether a name is that of a package."""
    return Path(path).suffix == ".pt2"


def read_package(path: str | Path) -> Package:
    """A package's checkpoint and what it was compiled for; runs no code from it."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such package; make one with physicsml-ase export model.ckpt -o {path}")
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            about = json.loads(archive.read(names["extra/package.json"]))
            ckpt = Path(folder) / "model.ckpt"
            ckpt.write_bytes(archive.read(names["extra/model.ckpt"]))
            contents = read_checkpoint(ckpt)
    except (zipfile.BadZipFile, KeyError, ValueError):  # InputError is a ValueError
        raise InputError(
            f"{path}: is not a package of physicsml_ase, or it was cut; make one with physicsml-ase export"
        ) from None
    if about["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{path}: was written by physicsml_ase {about['version']}, which is newer than this one "
            f"({__version__}); upgrade with pip install -U physicsml-ase"
        )
    return Package(path, about, contents)


def describe_package(path: str | Path) -> dict[str, str]:
    """What a package is, in words, for people: its checkpoint, what its code is for, and whether that is here."""
    package = read_package(path)
    with tempfile.TemporaryDirectory() as folder:
        write_atomically(package.contents, Path(folder) / "model.ckpt")
        words = describe_checkpoint(Path(folder) / "model.ckpt")
    about, device = package.about, "cpu" if package.device == "auto" else package.device
    made_for = (about[what] for what in ("system", "machine", "capability", "device", "dtype"))
    words["compiled for"] = f"torch {about['torch']}, {', '.join(made_for)}"
    reason = unfit(package, package_potential(package, torch.device(device), None))
    words["runs here"] = "yes" if reason is None else f"not as compiled: {reason}"
    return words


def package_potential(package: Package, device: torch.device, dtype: torch.dtype | None) -> Potential:
    """The potential in a package, ready for inference; without a `dtype`, in that of the compiled step."""
    potential = build_potential(package.contents, str(package.path)).to(package.dtype)
    potential.load_state_dict(package.contents["state_dict"])
    potential.trust = stored_trust(package.contents)
    return potential.to(device=device, dtype=dtype).requires_grad_(False).eval()


def unfit(package: Package, potential: Potential) -> str | None:
    """Why a package's compiled step can not run here, None where it can."""
    then, now = package.about, _about(potential)
    for what in ("device", "dtype"):
        if then[what] != now[what]:
            return f"it was compiled for {what} {then[what]}, and here it is {now[what]}"
    for what, words in (("torch", "torch"), ("system", "system"), ("machine", "processor"), ("gpu", "GPU")):
        if then[what] != now[what]:
            return f"it was compiled for {words} {then[what]}, and this is {now[what]}: export it again here"
    order = {name: rank for rank, name in enumerate(CAPABILITIES)}
    needs, has = then["capability"], now["capability"]
    if needs != has and order.get(needs, len(order)) > order.get(has, -1):
        return f"it was compiled for processors with {needs}, and this one has {has}: export it again here"
    return None


def package_function(package: Package) -> Function:
    """The compiled step of a package that is fit for this machine."""
    index = torch.cuda.current_device() if package.about["device"] == "cuda" else -1
    try:
        # not torch's load_pt2, which unpickles what it finds
        loader = torch._C._aoti.AOTIModelPackageLoader(str(package.path), "model", False, 1, index)
    except (RuntimeError, TypeError) as error:
        why = str(error).strip().splitlines()[0]
        raise InputError(f"{package.path}: its compiled code can not be loaded ({why})") from None

    def function(inputs: list[Tensor]) -> Sequence[Tensor]:
        return loader.run(inputs)

    return function


def cached_package(potential: Potential) -> Package:
    """A package of a potential's step, compiled now or at an earlier time from the same source code."""
    told = [describe_potential(potential), _about(potential), source_digest()]
    digest = hashlib.sha256(json.dumps(told).encode())
    weights = {name: value.detach().cpu().contiguous() for name, value in potential.state_dict().items()}
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(value.view(torch.uint8).numpy().tobytes() if value.ndim else str(value).encode())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "physicsml_ase" / f"{digest.hexdigest()[:32]}.pt2"
    if not path.is_file():
        log.info("compiling the model, which takes a minute or more; kept as %s", path)
        contents = describe_potential(potential) | {"state_dict": weights, "frames": [], "about": {}}
        export_package(potential, path, contents)
    return read_package(path)


@functools.cache
def source_digest() -> str:
    """Of all that a compiled step is made from: code compiled by an earlier version may have its mistakes."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    folders = (root / name for name in ("backends", "models", "nn"))
    for file in sorted([root / "potential.py", *(f for folder in folders for f in folder.glob("*.py"))]):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _settings() -> dict[str, Any]:
    """Settings of the compiler: for any number of threads, and any processor of the same capability."""
    from torch._inductor import config

    settings: dict[str, Any] = {"cpp.dynamic_threads": True}
    if hasattr(config.cpp, "march"):
        settings["cpp.march"] = ""
    return settings


def _about(potential: Potential) -> dict[str, Any]:
    """What code of this potential, compiled here, is for."""
    device = potential.references.table.device
    return {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "torch": torch.__version__.partition("+")[0],
        "system": sys.platform,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
        "gpu": list(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None,
        "dtype": str(potential.dtype).removeprefix("torch."),
    }
