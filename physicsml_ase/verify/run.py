"""All checks of a potential, in order; one that can not be computed has failed, and the others go on."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from physicsml_ase.backends.native import not_native
from physicsml_ase.backends.package import not_compilable
from physicsml_ase.checkpoint import load_potential, read_checkpoint, stored_dtype, stored_frames
from physicsml_ase.conventions import InputError
from physicsml_ase.potential import Potential
from physicsml_ase.verify.compare import apart, worst
from physicsml_ase.verify.derivatives import check_derivatives
from physicsml_ase.verify.dimers import Curves, curve_of, pairs_to_try
from physicsml_ase.verify.following import ROUNDING, check_backend, check_nve, check_skin
from physicsml_ase.verify.pairs import check_pairs
from physicsml_ase.verify.result import Check, Trace, Verification, at_most
from physicsml_ase.verify.subject import Structure, Subject, in_words, made_up, of_atoms, of_graph
from physicsml_ase.verify.symmetry import check_symmetries

log = logging.getLogger("physicsml_ase")
MOST_ATOMS = 256
"""Structures of more atoms are left out where there are smaller ones: they would cost minutes and show no more."""
MOST_STRUCTURES = 4
FLOAT32_LIMIT = 1e-4
"""Of the largest value; 1e-6 is usual."""
Found = list[Check]


def verify(
    model: Potential | str | Path,
    frames: Sequence[Atoms] = (),
    *,
    stored: str | Path | None = None,
    device: str | torch.device = "cpu",
    skin: float = 1.0,
    backend: str = "auto",
    compile: bool = False,
) -> Verification:
    """Check a potential, or the one in a checkpoint, on the structures stored with it and on some of `frames`.

    `stored` is the checkpoint of a potential that is given as such. `skin` [Å] and `backend` are the calculator's.
    `compile` also checks what torch.compile makes of it, which takes a minute.
    """
    began = time.perf_counter()
    potential = model if isinstance(model, Potential) else load_potential(model, device)
    stored = stored if isinstance(model, Potential) else model
    contents = read_checkpoint(stored) if stored is not None else None
    with _quiet():
        run = _Run(Subject(potential).potential, *_structures(potential, contents, frames))
        if contents is not None:
            run.replay(contents)
        run.physics()
        run.backends(skin, backend, compile)
    name = f"{potential.config.name}, {sum(p.numel() for p in potential.parameters())} weights"
    dtype = str(potential.dtype).removeprefix("torch.")
    words = f"{stored or 'a potential in memory'}: {name}, {dtype}; tried on {in_words(run.structures)}"
    seconds, curves = time.perf_counter() - began, tuple(run.curves)
    return Verification(words, tuple(run.checks), tuple(run.notes), seconds, curves, run.trace)


class _Run:
    """Checks and notes as they come."""

    def __init__(self, potential: Potential, real: list[Structure], made_up: list[Structure]) -> None:
        self.potential, self.real, self.structures = potential, real, real + made_up
        self.own = Subject(potential)
        self.exact = Subject(potential, torch.float64)
        self.checks: Found = []
        self.notes: list[str] = []
        self.curves: list[Curves] = []
        self.trace: Trace | None = None

    def replay(self, contents: dict[str, Any]) -> None:
        """The structures in a checkpoint against the results stored with them."""
        if not contents["frames"]:
            self.notes.append("stored results: there are none in this checkpoint")
            return

        def check() -> Found:
            """The largest deviation, as a part of the largest value."""
            deviations = []
            for graph, frame in zip(stored_frames(contents), contents["frames"]):
                (now,), (then,) = self.own.of_graph(graph), self.own.parts(graph, frame["results"])
                volume = abs(float(np.linalg.det(graph.cell[0])))
                deviations.append(apart(self.potential.domain, then, now, volume))
            what = f"results now against those stored with {len(contents['frames'])} structures, part of the largest"
            then_dtype = stored_dtype(contents["state_dict"])
            limit = max(ROUNDING[self.potential.dtype], ROUNDING[then_dtype])
            return [at_most("replay", worst(deviations), limit, what)]

        self._try("replay", check)

    def physics(self) -> None:
        """Derivatives, symmetries and dimers, in float64."""
        potential = self.potential
        if potential.has_energy and "forces" not in potential.headed:
            self._try("forces", lambda: check_derivatives(self.exact, self.structures))
        else:
            self.notes.append("forces against the energy: forces are not its derivative in this model")
        self._try("symmetries", lambda: check_symmetries(self.exact, self.structures))
        if potential.dtype == torch.float32:
            self._try("float32", self._float32)
        if not potential.has_energy or "forces" in potential.headed:
            return

        def check() -> Found:
            pairs = pairs_to_try(potential.domain)
            self.curves = [curve_of(self.exact.potential, pair) for pair in pairs]
            return check_pairs(self.exact.potential, pairs, self.curves)

        self._try("dimers", check)

    def backends(self, skin: float, backend: str, compile: bool) -> None:
        """What simulations use: kept lists, fast backends, and a short run."""
        potential = self.potential
        if "forces" not in potential.outputs:
            self.notes.append("skin, backends and NVE: the model has no forces")
            return
        self._try("skin", lambda: [check_skin(self.exact, self.structures, skin)])
        kernel, compiled = not_native(potential), not_compilable(potential)
        names = ["kernel"] if kernel is None else []
        if kernel is not None:
            self.notes.append(f"backend kernel: {kernel}")
        if compile and compiled is None:
            names += ["compile", "aoti"]
        elif backend in ("compile", "aoti") and compiled is None:
            names.append(backend)
        else:
            self.notes.append(
                f"backends compile and aoti: {compiled or 'they take a minute; ask with --compile'}"
            )
        for name in names:
            self._try(name, partial(self._backend, skin, name))
        some = [s for s in self.real or self.structures if len(s.atoms) > 1]
        if not potential.has_energy or "forces" in potential.headed:
            self.notes.append("NVE: forces are no derivative of an energy in this model, and conserve none")
        elif some:
            smallest = min(some, key=lambda s: len(s.atoms))

            def check() -> Found:
                found, self.trace = check_nve(self.own, smallest, skin, backend)
                return [found]

            self._try("NVE", check)

    def _backend(self, skin: float, name: str) -> Found:
        return [check_backend(self.own, self.structures[:2], skin, name)]

    def _float32(self) -> Found:
        exact, own = self.exact.results(self.structures), self.own.results(self.structures)
        deviations = [
            apart(self.potential.domain, a, b, structure.atoms.cell.volume)
            for structure, a, b in zip(self.structures, exact, own)
        ]
        what = f"results in float32 against float64, part of the largest; {in_words(self.structures)}"
        return [at_most("float32", worst(deviations), FLOAT32_LIMIT, what)]

    def _try(self, name: str, check: Callable[[], Found]) -> None:
        try:
            self.checks += check()
        except Exception as error:  # whatever a model does wrong is what was looked for
            why = " ".join(str(error).split()) or type(error).__name__
            log.debug("%s", name, exc_info=True)
            self.checks.append(at_most(name, np.nan, 0.0, f"could not be computed: {why[:300]}"))


def _structures(
    potential: Potential, contents: dict[str, Any] | None, frames: Sequence[Atoms]
) -> tuple[list[Structure], list[Structure]]:
    """A few structures to try things on, and made up ones, so that a crystal and a molecule are always there."""
    domain = potential.domain
    for k, atoms in enumerate(frames):
        unknown = sorted(set(atoms.symbols) - {chemical_symbols[z] for z in domain.elements})
        if unknown:
            raise InputError(f"structure {k}: element {unknown[0]} is not in the model; leave it out")
    found = [of_atoms(atoms, domain) for atoms in frames]
    found += [of_graph(graph) for graph in (stored_frames(contents) if contents else ())]
    small = [s for s in found if len(s.atoms) <= MOST_ATOMS]
    found = small or sorted(found, key=lambda s: len(s.atoms))[:1]
    if len(found) > MOST_STRUCTURES:
        places = np.linspace(0, len(found) - 1, MOST_STRUCTURES).round().astype(int)
        found = [found[k] for k in places]
    if domain.cell is None and domain.pbc is None:
        wanted = [p for p in (True, False) if not any(s.is_periodic == p for s in found)]
        return found, [made_up(domain, periodic) for periodic in wanted]
    return found, [] if found else [made_up(domain, periodic=True)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that calculators say of their backends: dozens are made here."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
