"""What a model is told about its data: resolved once, before training, and saved with the weights."""

from typing import Annotated, Literal

from pydantic import Field

from physicsml_ase.config import config


@config
class Domain:
    """The elements, distances, energies and scales of the training data."""

    cutoff: Annotated[float, Field(gt=0)]
    """Neighbour cut-off [Å]."""
    elements: tuple[int, ...]
    """Atomic numbers in the training data, ascending. A calculator refuses others."""
    avg_num_neighbors: Annotated[float, Field(gt=0)] = 1.0
    """Mean number of neighbours within the cut-off, over the atoms of the training data."""
    atomic_energies: dict[int, float] = Field(default_factory=dict)
    """Reference energy of each element [eV], added to every atom's learned energy."""
    energy_scale: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the learned energy of an atom [eV]: the RMS force component times 1 Å, or the spread of
    the energy per atom where there are no forces."""
    label_shifts: dict[str, float] = Field(default_factory=dict)
    """Mean of each scalar label that a head learns, in the label's unit."""
    label_shifts_per_atom: dict[str, float] = Field(default_factory=dict)
    """Mean of each scalar label of structures divided by their atoms: where sums over atoms start."""
    label_scales: dict[str, float] = Field(default_factory=dict)
    """RMS of each label that a head learns, in the label's unit."""
    energy_shift: float = 0.0
    """Mean energy of an atom beyond its reference energy [eV], at which learning starts."""
    shortest_distances: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Shortest distance within the cut-off of each pair of elements in the training data [Å], as {"H-O": 0.93}."""
    neighbor_counts: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Fewest and most neighbours within the cut-off of each element's atoms in the training data, {"H": [3, 17]}."""
    short_range: Literal["zbl", "none"] = "zbl"
    """Repulsion that begins at nine tenths of the shortest distances: ZBL and a spring, or none."""
    walls: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Where the repulsion of a pair begins [Å] and how stiff its spring is [eV], settled after training."""
    attrs: tuple[str, ...] = ()
    """Keys of `Atoms.info` that are inputs of the model, concatenated as `graph_attrs`."""
    attr_shifts: tuple[float, ...] = ()
    """Mean of each number in `graph_attrs`."""
    attr_scales: tuple[float, ...] = ()
    """Standard deviation of each number in `graph_attrs`."""
    self_interaction: bool = False
    """An atom is also its own neighbour, by an edge of zero length."""
    pbc: tuple[bool, bool, bool] | None = None
    """Periodic directions that override each structure's own."""
    cell: tuple[tuple[float, float, float], ...] | None = None
    """Cell that overrides each structure's own [Å], rows are lattice vectors."""
