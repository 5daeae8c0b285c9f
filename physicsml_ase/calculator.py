"""The ASE calculator: a trained potential behind `atoms.calc`.

Everything that the model knows is computed at once and kept until the atoms change. N atoms, E edges.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.outputs import Properties, all_outputs
from numpy.typing import NDArray

from physicsml_ase.atoms import EDGES_PER_BATCH, graph_attrs, to_graph
from physicsml_ase.backends.choose import check_name, choose
from physicsml_ase.backends.compiled import volume
from physicsml_ase.backends.moving import MovingGraph, equal
from physicsml_ase.backends.package import Package, is_package, package_potential, read_package
from physicsml_ase.checkpoint import DTYPES, load_potential, read_checkpoint, stored_frames
from physicsml_ase.conventions import PROPERTIES, InputError, Level, matrix_to_voigt
from physicsml_ase.graph import Graph, collate, split
from physicsml_ase.nn.heads import DERIVED
from physicsml_ase.potential import Potential

Results = dict[str, float | NDArray[np.float64]]


class PhysicsMLCalculator(Calculator):
    """Energy, forces, stress and every other label that a model was trained on.

    `ckpt` is the path of a checkpoint or of a package that `physicsml-ase export` made, or a loaded
    `Potential`; `device` "auto" a GPU where there is one, `dtype` "float32" or "float64" (None: the
    checkpoint's), and `skin` [Å] how much longer than the cut-off the kept neighbour list is: it changes the
    speed of MD, and never a result. Not for several threads at once, but for `predict`; calculators made from
    one `Potential` share its weights.

    `backend` says how the model is computed: "eager" is plain PyTorch, "compile" torch.compile (half a minute
    at the start), "aoti" an exported package (a checkpoint is compiled once and kept under ~/.cache), "kernel"
    our own code for CPUs, "auto" the fastest of these that needs no wait. Each is compared with eager on the
    structures stored in the checkpoint, or the first one calculated, and not used where it differs by more
    than rounding. `threads` is for the kernel; torch's own number of threads is never changed here.
    """

    name = "physicsml_ase"

    def __init__(
        self,
        ckpt: str | Path | Potential,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        skin: float = 1.0,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if not skin >= 0:
            raise InputError(f"skin is {skin}: give a distance in Å, 0 or more")
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}: give 1 or more")
        check_name(backend)
        package = None
        if not isinstance(ckpt, Potential) and is_package(ckpt):
            package = read_package(ckpt)
        self._wanted_device = package.device if package is not None and device == "auto" else device
        self.device = choose_device(self._wanted_device)
        if package is None:
            self.potential = _loaded(ckpt, self.device, _dtype(dtype))
        else:
            self.potential = package_potential(package, self.device, _dtype(dtype))
        self.domain = self.potential.domain
        self.skin = skin
        self._backend, self._threads = backend, threads
        self._package_path = None if package is None else package.path
        self._engine = choose(backend, self.potential, _frames(ckpt, package), package, threads)
        self._known = np.zeros(len(chemical_symbols) + 1, bool)
        self._known[list(self.domain.elements)] = True
        self._attrs = np.zeros((1, 0))  # of the last calculation
        self.implemented_properties = [*self.potential.outputs]
        if "energy" in self.potential.outputs and "free_energy" not in self.potential.outputs:
            self.implemented_properties.append("free_energy")
        self._levels: dict[str, Level] = {name: PROPERTIES[name].level for name in DERIVED}
        self._levels |= {x.name: x.level for x in self.potential.labels} | {"graph_attrs": "structure"}
        self._start_anew()

    @property
    def backend(self) -> str:
        """The backend in use: "eager", "compile", "aoti" or "kernel"."""
        return self._engine.name

    def _start_anew(self) -> None:
        """Forget what is only kept for speed."""
        self._moving = MovingGraph(self.domain, self.skin, self.device)
        self._copy: Atoms | None = None  # ours, to be written over

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
        self.atoms, self.results = None, {}
        graph = self._next_graph(atoms)
        results = self._results(graph._replace(targets=self._engine(graph)))
        self.atoms, self.results = self._copied(atoms), results

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; exact, ten times as fast as ASE's, and sees `Atoms.info`."""
        old = self.atoms
        if old is None:
            return list(all_changes)
        arrays = ("positions", "numbers")
        changes = [name for name in arrays if not equal(atoms.arrays[name], old.arrays[name])]
        if not equal(atoms.cell.array, old.cell.array):
            changes.append("cell")
        if not equal(atoms.pbc, old.pbc):
            changes.append("pbc")
        if self.domain.attrs and not np.array_equal(self._graph_attrs(atoms), self._attrs):
            changes.append("info")
        return changes

    def export_properties(self) -> Properties:
        """The results that ASE has a name for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def predict(self, structures: Iterable[Atoms], batch_size: int | None = None) -> list[Results]:
        """The `results` of each structure, computed in batches of `batch_size` structures.

        Without a batch size, batches are as large as serves speed. Changes nothing that the calculator keeps.
        """
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give 1 or more")
        results: list[Results] = []
        for graphs in _batches(self._graphs(structures), batch_size, EDGES_PER_BATCH[self.device.type]):
            batch = collate(graphs)
            out = self._engine(batch.to(self.device))
            batch = batch._replace(targets={name: value.cpu() for name, value in out.items()})
            for part in split(batch, self._levels):
                results.append(self._results(part, f"structure {len(results)}: "))
        return results

    def _graphs(self, structures: Iterable[Atoms]) -> Iterator[Graph]:
        domain = self.domain
        for k, atoms in enumerate(structures):
            self._refuse_unknown(atoms.numbers, f"structure {k}: ")
            yield to_graph(
                atoms,
                domain.cutoff,
                attrs=domain.attrs,
                self_interaction=domain.self_interaction,
                pbc=domain.pbc,
                cell=domain.cell,
                num_attrs=len(domain.attr_shifts),
                where=f"structure {k}",
            )

    def _next_graph(self, atoms: Atoms) -> Graph:
        if not len(atoms):
            raise InputError("the structure has no atoms")
        inputs = {}
        if self.domain.attrs:
            self._attrs = self._graph_attrs(atoms)
            inputs["graph_attrs"] = torch.from_numpy(self._attrs).to(self.device)
        if not self._moving.same_elements(atoms.numbers):
            self._refuse_unknown(atoms.numbers)
        return self._moving.next(atoms, inputs, self._engine.whole_lists)

    def _copied(self, atoms: Atoms) -> Atoms:
        """A copy of the structure; into the last copy where only positions and cell can be others."""
        old = self._copy
        if (
            old is None
            or self.domain.attrs  # which are in `info`
            or not equal(old.arrays["numbers"], atoms.arrays["numbers"])
        ):
            self._copy = atoms.copy()
            return self._copy
        old.arrays["positions"][:] = atoms.arrays["positions"]
        old.cell.array[:] = atoms.cell.array
        old.pbc[:] = atoms.pbc
        return old

    def _graph_attrs(self, atoms: Atoms) -> NDArray[np.float64]:
        return graph_attrs(atoms, self.domain.attrs, len(self.domain.attr_shifts))

    def _refuse_unknown(self, numbers: NDArray[np.int64], where: str = "") -> None:
        known = self._known.take(numbers, mode="clip")  # a table: np.isin takes a tenth of a millisecond
        if not known.all():
            atom = int(known.argmin())
            symbols = ", ".join(sorted(chemical_symbols[z] for z in self.domain.elements))
            raise InputError(
                f"{where}element {chemical_symbols[numbers[atom]]} (atom {atom}) is not in the model "
                f"({symbols}); train with structures that contain it"
            )

    def _results(self, graph: Graph, where: str = "") -> Results:
        """ASE's units, shapes and order, from a graph of one structure with its outputs as targets."""
        results: Results = {}
        for name, tensor in graph.targets.items():
            value = tensor.to("cpu", torch.float64).numpy()
            level = self._levels[name]
            if level == "structure":
                value = value[0]
            if name == "stress":
                if volume(graph.cell[0]) <= 1e-9:
                    continue  # ASE raises its PropertyNotImplementedError for what is not in the results
                value = matrix_to_voigt(value)
            if not np.isfinite(value).all():
                atom = int(np.argwhere(~np.isfinite(value))[0, 0]) if level == "atom" else None
                raise InputError(
                    f"{where}{name}{'' if atom is None else f' of atom {atom}'} came out as not finite: the "
                    "structure is far from anything the model knows, or its weights are damaged"
                )
            if level == "edge":
                results |= _pair_matrix(graph, name, value)
            else:
                results[name] = value if value.shape else float(value)
        if "energy" in results:
            results.setdefault("free_energy", results["energy"])  # a model may have one of its own
        return results

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        for name in ("_moving", "_engine", "_copy"):
            del state[name]
        if self.atoms is not None:
            state["atoms"] = self.atoms.copy()  # the next calculation writes over this one
        if self.device.type != "cpu":  # so that it can be loaded where there is no such device
            state["potential"] = copy.deepcopy(self.potential).cpu()
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.device = choose_device(self._wanted_device)
        self.potential.to(self.device)
        backend, package = self._backend, None
        if self._package_path is not None:
            try:
                package = read_package(self._package_path)
            except InputError:  # it has been removed since
                backend = "auto"
        self._engine = choose(backend, self.potential, (), package, self._threads)
        self._start_anew()


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


def _loaded(ckpt: str | Path | Potential, device: torch.device, dtype: torch.dtype | None) -> Potential:
    """A potential ready for inference. One that somebody trains is copied, and another one shared."""
    if not isinstance(ckpt, Potential):
        return load_potential(ckpt, device, dtype)
    dtype = dtype or ckpt.dtype
    weights = list(ckpt.parameters())
    if ckpt.training or any(w.requires_grad or w.dtype != dtype or w.device != device for w in weights):
        ckpt = copy.deepcopy(ckpt).to(device=device, dtype=dtype).requires_grad_(False).eval()
    return ckpt


def _frames(ckpt: str | Path | Potential, package: Package | None) -> Iterator[Graph]:
    """The structures that come with a model, read when they are asked for."""
    if package is not None:
        yield from stored_frames(package.contents)
    elif not isinstance(ckpt, Potential):
        yield from stored_frames(read_checkpoint(ckpt))


def _batches(graphs: Iterator[Graph], batch_size: int | None, max_edges: int) -> Iterator[list[Graph]]:
    batch, edges = list[Graph](), 0
    for graph in graphs:
        size = len(graph.reverse)
        full = len(batch) == batch_size if batch_size else edges + size > max_edges
        if batch and full:
            yield batch
            batch, edges = [], 0
        batch.append(graph)
        edges += size
    if batch:
        yield batch


def _pair_matrix(graph: Graph, name: str, value: NDArray[np.float64]) -> Results:
    """A label of the edges (E, ...) as it is given to train on, (N, N, ...), NaN where there is no edge.

    Nothing where a pair of atoms has several edges, to several periodic images.
    """
    i, j = graph.edge_index.cpu().numpy()
    n = len(graph.positions)
    if len(np.unique(i * n + j)) < len(i):
        return {}
    matrix = np.full((n, n, *value.shape[1:]), np.nan)
    matrix[i, j] = value
    return {name: matrix}
