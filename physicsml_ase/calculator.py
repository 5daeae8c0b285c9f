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

from physicsml_ase.atoms import EDGES_PER_BATCH, build_graph, graph_attrs, to_graph
from physicsml_ase.checkpoint import DTYPES, load_potential
from physicsml_ase.conventions import PROPERTIES, InputError, Level, matrix_to_voigt
from physicsml_ase.graph import Graph, collate, split
from physicsml_ase.neighbors import VerletList
from physicsml_ase.nn.heads import DERIVED
from physicsml_ase.potential import Potential

Results = dict[str, float | NDArray[np.float64]]


class PhysicsMLCalculator(Calculator):
    """Energy, forces, stress and every other label that a model was trained on.

    `ckpt` is a checkpoint's path or a loaded `Potential`, `device` "auto" a GPU where there is one, `dtype`
    "float32" or "float64" (None: the checkpoint's), and `skin` [Å] how much longer than the cut-off the kept
    neighbour list is: it changes the speed of MD, and never a result. Not for several threads at once, but for
    `predict`; calculators made from one `Potential` share its weights.
    """

    name = "physicsml_ase"

    def __init__(
        self,
        ckpt: str | Path | Potential,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        skin: float = 1.0,
    ) -> None:
        super().__init__()
        if not skin >= 0:
            raise InputError(f"skin is {skin}: give a distance in Å, 0 or more")
        self._wanted_device = device
        self.device = choose_device(device)
        self.potential = _loaded(ckpt, self.device, _dtype(dtype))
        self.domain = self.potential.domain
        self.skin = skin
        self._known = np.zeros(len(chemical_symbols) + 1, bool)
        self._known[list(self.domain.elements)] = True
        self._attrs = np.zeros((1, 0))  # of the last calculation
        self.implemented_properties = [*self.potential.outputs]
        if "energy" in self.potential.outputs and "free_energy" not in self.potential.outputs:
            self.implemented_properties.append("free_energy")
        self._levels: dict[str, Level] = {name: PROPERTIES[name].level for name in DERIVED}
        self._levels |= {x.name: x.level for x in self.potential.labels} | {"graph_attrs": "structure"}
        self._verlet = VerletList(self.domain.cutoff, skin, self.domain.self_interaction)

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
        results = self._results(graph._replace(targets=self.potential(graph)))
        self.atoms, self.results = atoms.copy(), results

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; exact, ten times as fast as ASE's, and sees `Atoms.info`."""
        old = self.atoms
        if old is None:
            return list(all_changes)
        arrays = ("positions", "numbers")
        changes = [name for name in arrays if not np.array_equal(atoms.arrays[name], old.arrays[name])]
        if not np.array_equal(atoms.cell.array, old.cell.array):
            changes.append("cell")
        if not np.array_equal(atoms.pbc, old.pbc):
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
            out = self.potential(batch.to(self.device))
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
        """The graph of a structure that is most likely the last one, moved a little."""
        domain = self.domain
        if not len(atoms):
            raise InputError("the structure has no atoms")
        self._refuse_unknown(atoms.numbers)
        cell = atoms.cell.array if domain.cell is None else np.array(domain.cell)
        pbc = atoms.pbc if domain.pbc is None else np.array(domain.pbc)
        inputs = {}
        if domain.attrs:
            self._attrs = self._graph_attrs(atoms)
            inputs["graph_attrs"] = torch.from_numpy(self._attrs)
        neighbors = self._verlet.update(atoms.positions, cell, pbc)
        return build_graph(atoms.numbers, atoms.positions, cell, pbc, neighbors, inputs, {}).to(self.device)

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
                if graph.cell[0].det().abs() <= 1e-9:
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
        del state["_verlet"]
        if self.device.type != "cpu":  # so that it can be loaded where there is no such device
            state["potential"] = copy.deepcopy(self.potential).cpu()
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._verlet = VerletList(self.domain.cutoff, self.skin, self.domain.self_interaction)
        self.device = choose_device(self._wanted_device)
        self.potential.to(self.device)


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
