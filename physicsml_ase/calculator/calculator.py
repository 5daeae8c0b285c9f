"""The ASE calculator: a trained potential, or a committee of them, behind `atoms.calc`.

Everything that the model knows is computed at once and kept until the atoms change. N atoms, E edges.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.outputs import Properties, all_outputs
from torch import Tensor

from physicsml_ase.atoms import EDGES_PER_BATCH
from physicsml_ase.backends.choose import Engine, check_name
from physicsml_ase.backends.package import is_package
from physicsml_ase.calculator.batches import batches, passed_on
from physicsml_ase.calculator.committee import Committee
from physicsml_ase.calculator.guard import Guard
from physicsml_ase.calculator.inputs import Inputs
from physicsml_ase.calculator.models import Ckpt, choose_device, load_members, uncertainties_of
from physicsml_ase.calculator.results import LateResults, Results, Value, of_step, to_results
from physicsml_ase.conventions import PROPERTIES, InputError, Level
from physicsml_ase.graph import Graph, collate, split
from physicsml_ase.nn.heads import DERIVED
from physicsml_ase.potential import Potential
from physicsml_ase.trust import energy_uncertainty, forces_uncertainty
from physicsml_ase.trust.committee import STD

if TYPE_CHECKING:
    from physicsml_ase.verify import Verification

UNCERTAINTIES: dict[str, tuple[Callable[[Potential, Graph], Tensor], Level]] = {
    "energy_uncertainty": (energy_uncertainty, "structure"),
    "forces_uncertainty": (forces_uncertainty, "atom"),
}


class PhysicsMLCalculator(Calculator):
    """Energy, forces, stress and every other label that a model was trained on.

    `ckpt` is the path of a checkpoint or of a package that `physicsml-ase export` made, or a loaded
    `Potential`; or a list of these, a committee: results are then means, and `energy_std`, `forces_std`, ... the
    members' standard deviations. `device` "auto" is a GPU where there is one, `dtype` "float32" or "float64"
    (None: the checkpoint's), and `skin` [Å] how much longer than the cut-off the kept neighbour list is: it
    changes the speed of MD, and never a result. For one thread at a time; calculators made from one `Potential` share
    its weights.

    `backend` says how the model is computed: "eager" is plain PyTorch, "compile" torch.compile (a minute or
    more at the start), "aoti" an exported package (a checkpoint is compiled once and kept under ~/.cache), "kernel"
    our own code for CPUs, "cuda_graph" a step that a GPU replays, "auto" the fastest of these that needs no
    wait. Each is compared with eager on the structures stored in the checkpoint, or the first one calculated,
    and not used where it differs by more than rounding. `threads` is for the kernel; torch's own number of
    threads is never changed here.

    `on_extrapolation` says what to do with structures that are unlike the training data: "warn" once of each kind,
    "raise" `ExtrapolationError`, "record" them in the ASE database `record` as well, or "ignore" them. In MD all is
    checked every `extrapolation_interval` steps, the atoms' energies at every fourth.
    `results["extrapolation"]` is how far each atom is from the training data, 1 at the rim of what was seen. With
    `uncertainty`, results have the last layer's `energy_uncertainty`, and `forces_uncertainty` when it is asked
    for: one standard deviation.
    """

    name = "physicsml_ase"
    _state: Atoms | None
    """A copy of what was calculated last, written over by the next calculation; `_given` are the caller's atoms."""
    _given: Atoms | None
    _shown: Atoms | None

    def __init__(
        self,
        ckpt: Ckpt | Sequence[Ckpt],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        skin: float = 1.0,
        backend: str = "auto",
        threads: int | None = None,
        on_extrapolation: str = "warn",
        record: str | Path = "extrapolation.db",
        extrapolation_interval: int | None = None,
        uncertainty: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= skin < math.inf:
            raise InputError(f"skin is {skin}: give a distance in Å, 0 or more")
        if threads is not None and (threads < 1 or threads != int(threads)):
            raise InputError(f"threads is {threads}: give a whole number, 1 or more")
        check_name(backend)
        self._members, self._wanted_device = load_members(ckpt, device, dtype)
        self.device = choose_device(self._wanted_device)
        self.domain = self.potential.domain
        self.skin = skin
        self._backend, self._threads = backend, threads
        self._engine = self._new_engine(stored=True)
        self._guarding = on_extrapolation, record, extrapolation_interval
        self._guard = Guard(self.potential, *self._guarding)
        self._uncertainties = uncertainties_of(self._members) if uncertainty else []
        self._at_once = [name for name in self._uncertainties if name == "energy_uncertainty"]
        self._late_names = [*(["extrapolation"] if self._guard.known.knows else []), *self._uncertainties]
        self._levels: dict[str, Level] = {name: PROPERTIES[name].level for name in DERIVED}
        self._levels |= {x.name: x.level for x in self.potential.labels} | {"graph_attrs": "structure"}
        self._levels |= {name + STD: level for name, level in self._levels.items()}
        self._levels |= {name: level for name, (_, level) in UNCERTAINTIES.items()}
        outputs = [*self.potential.outputs]
        if len(self._members) > 1:
            outputs += [
                name + STD for name in outputs if name + STD not in outputs and not name.endswith(STD)
            ]
        if "energy" in outputs and "free_energy" not in outputs:
            outputs.append("free_energy")
        self.implemented_properties = [*outputs, *self._late_names]
        self._inputs = Inputs(self.domain, skin, self.device)

    @property
    def potential(self) -> Potential:
        """The model, of a committee the first."""
        return self._members[0].potential

    @property
    def potentials(self) -> list[Potential]:
        """The models of a committee."""
        return [member.potential for member in self._members]

    @property
    def backend(self) -> str:
        """The backend in use: "eager", "compile", "aoti", "kernel" or "cuda_graph"."""
        return self._engine.name

    def _new_engine(self, stored: bool = False) -> Engine | Committee:
        engines = [member.engine(self._backend, self._threads, stored) for member in self._members]
        engine = engines[0] if len(engines) == 1 else Committee(engines)
        if self.potential.trust:
            engine.keep_features()
        return engine

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`, with everything whatever `properties` asks for: ASE asks for the rest next."""
        # not super().calculate(), which makes folders; nothing is kept of a calculation that fails
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise InputError("there are no atoms to calculate: give some, or attach the calculator to some")
        known = isinstance(self.results, LateResults) and self.results.is_whole
        if system_changes or not known:
            self.atoms, self.results = None, {}
            results = self._calculated(atoms)
            self._state, self._given, self._shown = self._inputs.copied(atoms), atoms, None
            self.results = results
        for name in {*properties, *self._at_once} & {*self._late_names}:
            self.results[name]  # computes it

    def _calculated(self, atoms: Atoms) -> LateResults:
        graph, results, energies = self._followed(atoms) or self._from_anew(atoms)
        features = self._engine.features
        self._guard.look(atoms, graph, energies, features, self._engine.close)

        def extrapolation() -> Value:
            return self._guard.known.scores(graph, energies, features).worst.cpu().numpy()

        def uncertainty(of: Callable[[Potential, Graph], Tensor], level: Level) -> Value:
            value = of(self.potential, graph).cpu().numpy()
            return float(value[0]) if level == "structure" else value

        late: dict[str, Callable[[], Value]] = {"extrapolation": extrapolation}
        for name in self._uncertainties:
            late[name] = functools.partial(uncertainty, *UNCERTAINTIES[name])
        return LateResults(results, {name: late[name] for name in self._late_names})

    def _followed(self, atoms: Atoms) -> tuple[Graph, Results, Tensor | None] | None:
        """As `_from_anew`, of the last structure moved a little, where the kernel alone will do."""
        moved = self._inputs.moving.moved(atoms) if self._engine.follows else None
        step = None if moved is None else self._engine.follow(*moved)
        results = None if step is None else of_step(step)
        if moved is None or step is None or results is None:
            return None
        return moved[0], results, torch.from_numpy(step.energies.copy())  # results are the caller's to change

    def _from_anew(self, atoms: Atoms) -> tuple[Graph, Results, Tensor | None]:
        """The graph, the results and the atoms' energies (N,), if the model has such."""
        graph = self._inputs.next(atoms, self._engine.whole_lists)
        out = self._engine(graph)
        energies = out.get("energies")
        if energies is not None and energies.is_cpu:
            energies = energies.clone()  # results are the caller's to change
        return graph, to_results(graph._replace(targets=out), self._levels), energies

    @property
    def atoms(self) -> Atoms | None:
        """The structure that the results are of, a copy, made when it is asked for."""
        if self._shown is None and self._state is not None:
            # where the model sees `info` the state has all of it
            given = None if self.domain.attrs else self._given
            alike = given is not None and len(given) == len(self._state)
            shown: Atoms = given.copy() if given is not None and alike else self._state.copy()
            for name in ("numbers", "positions"):
                shown.arrays[name][:] = self._state.arrays[name]
            shown.cell.array[:], shown.pbc[:] = self._state.cell.array, self._state.pbc
            self._shown = shown
        return self._shown

    @atoms.setter
    def atoms(self, atoms: Atoms | None) -> None:
        self._state = self._given = self._shown = atoms

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; exact, ten times as fast as ASE's, and sees `Atoms.info`."""
        return list(all_changes) if self._state is None else self._inputs.changes(self._state, atoms)

    def export_properties(self) -> Properties:
        """The results that ASE has a name for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def predict(self, structures: Atoms | Iterable[Atoms], batch_size: int | None = None) -> list[Results]:
        """The `results` of each structure, computed in batches of `batch_size` structures.

        Without a batch size, batches are as large as serves speed. Changes nothing that the calculator keeps. Of
        structures that are unlike the training data, `on_extrapolation` says what is done.
        """
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give 1 or more")
        structures = [structures] if isinstance(structures, Atoms) else structures
        results: list[Results] = []
        waiting = deque[Atoms]()  # copies: a generator may change one structure and yield it again
        graphs_of = self._inputs.graphs(passed_on(structures, waiting))
        for graphs in batches(graphs_of, batch_size, EDGES_PER_BATCH[self.device.type]):
            batch = collate(graphs)
            there = batch.to(self.device)
            out = self._engine(there)
            of_batch = [waiting.popleft() for _ in graphs]
            self._guard.look_at_all(of_batch, there, out.get("energies"), self._engine.features, len(results))
            out |= {name: UNCERTAINTIES[name][0](self.potential, there) for name in self._at_once}
            batch = batch._replace(targets={name: value.cpu() for name, value in out.items()})
            for part in split(batch, self._levels):
                results.append(to_results(part, self._levels, f"structure {len(results)}: "))
        return results

    def self_test(self, atoms: Atoms | Sequence[Atoms] = ()) -> "Verification":
        """Whether the model and this installation are right: each check with its number, tried on `atoms` and on
        the structures stored in the checkpoint. `print` shows the table, `.passed` the verdict."""
        from physicsml_ase.verify import verify

        frames = [atoms] if isinstance(atoms, Atoms) else list(atoms)
        given = self._members[0].given
        stored = Path(given) if not isinstance(given, Potential) and not is_package(given) else None
        stored = stored if stored is not None and stored.is_file() else None
        return verify(self.potential, frames, stored=stored, skin=self.skin, backend=self._backend)

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        for name in ("_inputs", "_engine", "_guard"):
            del state[name]
        state["_members"] = [member.packed() for member in self._members]
        state["results"] = dict(self.results)
        shown = self.atoms
        state["_state"] = state["_given"] = state["_shown"] = shown
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.device = choose_device(self._wanted_device)
        self._members = [member.unpacked(self.device) for member in self._members]
        self._engine, self._guard = self._new_engine(), Guard(self.potential, *self._guarding)
        self._inputs = Inputs(self.domain, self.skin, self.device)
