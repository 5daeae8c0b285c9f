"""The `datamodule` section of a config: data, labels, neighbour lists and batches."""

from typing import Annotated, Literal

from pydantic import Field

from physicsml_ase.config import config

Positive = Annotated[int, Field(gt=0)]
Part = Annotated[float, Field(ge=0)]
Spec = str | list[str] | dict[str, str | list[str]]
"""A file, a glob, a file with a selection after '@', a list of them, or named sources."""


@config
class PredictBatches:
    """Batches of a set."""

    batch_size: Positive | dict[str, Positive] = 1
    """Structures in a batch; for several named sources also by name."""
    max_atoms: Positive | None = None
    """A batch is closed before it has more atoms than this, whatever `batch_size`."""
    max_edges: Positive | None = None
    """A batch is closed before it has more edges (twice the pairs within the cut-off) than this."""


@config
class EvaluationBatches(PredictBatches):
    """Batches of the validation or test set."""

    drop_last: bool = False
    """Leave out structures that do not fill a last batch."""
    mode: Literal["max_size_cycle", "max_size", "min_size", "sequential"] = "sequential"
    """How several named sources go together: one after the other, or one batch of each at a time."""


@config
class TrainBatches(PredictBatches):
    """Batches of the train set."""

    drop_last: bool = True
    """Leave out structures that do not fill a last batch; others in every epoch."""
    mode: Literal["max_size_cycle", "max_size", "min_size"] = "max_size_cycle"
    """How several named sources go together, one batch of each in a step: until the longest is done while the
    others begin again, until it is done without the others, or until the shortest is done."""
    redraw_interval: Positive = 1
    """Epochs after which structures are put together into other batches; their order changes every epoch."""


@config
class DataModuleConfig:
    """Data, labels, neighbour lists and batches."""

    train: TrainBatches = TrainBatches()
    """Batches of the train set."""
    validation: EvaluationBatches = EvaluationBatches()
    """Batches of the validation set."""
    test: EvaluationBatches = EvaluationBatches()
    """Batches of the test set."""
    predict: PredictBatches = PredictBatches()
    """Batches for prediction."""
    train_data: Spec | None = None
    """Training data, where they are not given otherwise: 'train.xyz', 'data.db@natoms<50', 'runs/*.xyz', a list
    of such, or several sources under names."""
    validation_data: Spec | None = None
    """Validation data. None: split off the training data, see `validation_split`."""
    test_data: Spec | None = None
    """Test data. None: split off the training data where `test_split` is given, else there are none."""
    validation_split: Part = 0.1
    """Without validation data: fraction of the training data to validate on, or from 1 on their number."""
    test_split: Part = 0.0
    """Without test data: fraction of the training data to test on, or from 1 on their number."""
    split_by: str | None = None
    """Key of Atoms.info, such as config_type: structures of one group go to the same side of the split."""
    num_workers: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Processes that read data ahead, and that build graphs before training; "all": one for every core that
    this process may use."""
    num_elements: Annotated[int, Field(ge=0)] = 0
    """Number of chemical elements. 0: taken from the training data; a number that contradicts them is an error."""
    label_keys: dict[str, str] = Field(default_factory=dict)
    """Your names of the labels: {"energy": "REF_energy", "forces": "REF_forces"}."""
    graph_attrs_cols: list[str] | None = None
    """Keys of Atoms.info, numbers or lists of numbers, that are inputs of the model: `graph_attrs`."""
    y_node_scalars: list[str] | None = None
    """Labels that are one number per atom (charges, magmoms)."""
    y_node_vector: str | None = None
    """The label that is a vector per atom (forces)."""
    y_edge_scalars: list[str] | None = None
    """Labels that are one number per edge, kept as a matrix over pairs of atoms."""
    y_edge_vector: str | None = None
    """The label that is a vector per edge, kept as an array (atoms, atoms, 3)."""
    y_graph_scalars: list[str] | None = None
    """Labels that are one number per structure (energy). With no label named at all: energy, forces and stress,
    each if the training data have it."""
    y_graph_vector: str | None = None
    """The label that is a vector per structure (dipole); also forces, with one vector per atom."""
    y_graph_tensor: str | None = None
    """The label that is a symmetric 3x3 matrix per structure (stress)."""
    cut_off: Annotated[float, Field(gt=0)] = 5.0
    """Neighbour cut-off [Å]."""
    pbc: tuple[bool, bool, bool] | None = None
    """Periodic directions. None: each structure's own."""
    cell: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]] | None = (
        None
    )
    """Cell [Å], rows are lattice vectors. None: each structure's own."""
    self_interaction: bool = False
    """Also connect an atom to itself, by an edge of zero length. Periodic images are always neighbours."""
    non_finite_labels: Literal["error", "missing"] = "error"
    """What a label that is NaN or infinite is: an error, or a missing label."""
    max_force: Annotated[float, Field(gt=0)] | None = None
    """Leave out training and validation structures with a larger force [eV/Å]."""
    pre_batch: Literal["in_memory", "on_disk"] | None = None
    """Build the graphs once, before training: in memory (up to about a million structures), or in a file on disk
    that later runs use again. None: build them anew for every batch. A file is shuffled within windows of a few
    blocks that are read at once, so the training batches of on_disk are others than those of the other two."""
    cache_dir: str | None = None
    """Folder of the files of pre_batch=on_disk. None: the user's cache folder."""
