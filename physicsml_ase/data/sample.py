"""A sample of a set's structures, spread evenly over it, in batches of a size that any machine can hold."""

from collections.abc import Iterator, Mapping

import numpy as np

from physicsml_ase.data.store import Store
from physicsml_ase.graph import Graph

BATCH_ATOMS, BATCH_EDGES = 500, 15_000
"""A batch closes at so many atoms or edges; a larger structure goes alone."""


def sample(stores: Mapping[str, Store], most_atoms: int) -> Iterator[Graph]:
    """About `most_atoms` atoms of a set, one structure of each source at least; the same ones every time."""
    whole = sum(int(store.num_atoms.sum()) for store in stores.values())
    part = min(1.0, most_atoms / max(whole, 1))
    for store in stores.values():
        wanted = max(1, int(part * len(store)))
        places = np.unique(np.linspace(0, len(store) - 1, wanted).astype(np.int64))
        atoms, edges = store.num_atoms[places].cumsum(), store.num_edges[places].cumsum()
        batch = np.maximum(atoms // BATCH_ATOMS, edges // BATCH_EDGES)
        for some in np.split(places, np.flatnonzero(np.diff(batch)) + 1):
            yield store.read(some)
