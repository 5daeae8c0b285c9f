"""What tests of the C++ kernels share."""

from collections.abc import Iterator

import numpy as np
import pytest
from ase import Atoms

from physicsml_ase.backends import build


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels of the tests, which nobody needs again, stay out of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        build.build.cache_clear()
        yield
        build.build.cache_clear()


def mixed(atoms: Atoms, elements: tuple[int, ...]) -> Atoms:
    """A copy of randomly drawn elements."""
    atoms = atoms.copy()
    atoms.numbers = np.random.default_rng(0).choice(elements, len(atoms))
    return atoms
