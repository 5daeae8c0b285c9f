"""The potentials behind a calculator: loaded, on its device, and fit to be a committee."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from physicsml_ase.backends.choose import Engine, choose
from physicsml_ase.backends.package import Package, is_package, package_potential, read_package
from physicsml_ase.checkpoint import DTYPES, load_potential, read_checkpoint, stored_frames
from physicsml_ase.conventions import InputError
from physicsml_ase.graph import Graph
from physicsml_ase.potential import Potential
from physicsml_ase.trust.committee import check_agreement

Ckpt = str | Path | Potential


class Member(NamedTuple):
    """One model of a calculator."""

    given: Ckpt
    potential: Potential
    package: Package | None = None

    def packed(self) -> "Member":
        """The same to be pickled: on the CPU, for a machine that may have no other device; without its package."""
        on_cpu = self.potential.references.table.device.type == "cpu"
        potential = self.potential if on_cpu else copy.deepcopy(self.potential).cpu()
        return self._replace(potential=potential, package=None)

    def unpacked(self, device: torch.device) -> "Member":
        """What was packed, on a device; without its package where that has been removed since."""
        package = None
        if not isinstance(self.given, Potential) and is_package(self.given):
            try:
                package = read_package(self.given)
            except InputError:
                package = None
        return self._replace(potential=self.potential.to(device), package=package)

    def engine(self, backend: str, threads: int | None, frames: bool = True) -> Engine:
        """What computes it, checked on the structures that come with it."""
        stored = _frames(self.given, self.package) if frames else ()
        if self.package is None and not isinstance(self.given, Potential) and is_package(self.given):
            backend = "auto"  # its package has been removed
        return choose(backend, self.potential, stored, self.package, threads)


def load_members(
    given: Ckpt | Sequence[Ckpt], device: str | torch.device, dtype: str | torch.dtype | None
) -> tuple[list[Member], str | torch.device]:
    """The models, and the device that they are on; "auto" is that of a package where one is given."""
    many = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not many:
        raise InputError("a committee of no models: give at least one checkpoint")
    packages = [
        read_package(one) if not isinstance(one, Potential) and is_package(one) else None for one in many
    ]
    wanted = next((p.device for p in packages if p is not None and device == "auto"), device)
    there, wanted_dtype = choose_device(wanted), _dtype(dtype)
    members = [
        Member(
            one,
            _loaded(one, there, wanted_dtype)
            if package is None
            else package_potential(package, there, wanted_dtype),
            package,
        )
        for one, package in zip(many, packages)
    ]
    names = [f"model {k}" if isinstance(x.given, Potential) else str(x.given) for k, x in enumerate(members)]
    check_agreement([x.potential for x in members], names)
    return members, wanted


def choose_device(wanted: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is a GPU where there is one, else the CPU."""
    if wanted == "auto":  # Apple's GPUs have no float64, and geometry is float64
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, dtype=torch.float64, device=wanted).device
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"device {str(wanted)!r} can not be used ({why}); try 'auto' or 'cpu'") from None


def _dtype(wanted: str | torch.dtype | None) -> torch.dtype | None:
    dtype = DTYPES.get(wanted) if isinstance(wanted, str) else wanted
    if wanted is not None and dtype not in DTYPES.values():
        raise InputError(f"dtype {str(wanted)!r} is not known: use {' or '.join(DTYPES)}")
    return dtype


def _loaded(ckpt: Ckpt, device: torch.device, dtype: torch.dtype | None) -> Potential:
    """A potential ready for inference. One that somebody trains is copied, and another one shared."""
    if not isinstance(ckpt, Potential):
        return load_potential(ckpt, device, dtype)
    dtype = dtype or ckpt.dtype
    weights = list(ckpt.parameters())
    if ckpt.training or any(w.requires_grad or w.dtype != dtype or w.device != device for w in weights):
        ckpt = copy.deepcopy(ckpt).to(device=device, dtype=dtype).requires_grad_(False).eval()
    return ckpt


def _frames(ckpt: Ckpt, package: Package | None) -> Iterator[Graph]:
    """The structures that come with a model, read when they are asked for."""
    if package is not None:
        yield from stored_frames(package.contents)
    elif not isinstance(ckpt, Potential):
        yield from stored_frames(read_checkpoint(ckpt))


def uncertainties_of(members: list[Member]) -> list[str]:
    """Names of the uncertainties that a single model tells."""
    if len(members) > 1:
        raise InputError("uncertainty: is of a single model; a committee tells energy_std and forces_std")
    known = members[0].potential.trust.get("last_layer", {})
    names = [f"{what}_uncertainty" for what in ("energy", "forces") if f"alpha_{what}" in known]
    if not names:
        raise InputError(
            "uncertainty: the model was not measured on its training data; train it again, or call "
            "physicsml_ase.trust.measure with its data"
        )
    return names
