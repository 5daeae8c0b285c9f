"""Files of graphs that later runs use again: named by what is in them, written beside and renamed.

One process builds a file while others that need it wait and then read it. A process that is killed leaves
a part that the next builder removes, never half a file under the final name.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.disk import FORMAT, Damaged, DiskStore, write
from physicsml_ase.data.flat import Flat
from physicsml_ase.data.frames import Recipe, chunks, some_of
from physicsml_ase.data.sources import Source

log = logging.getLogger("physicsml_ase")


def cached_store(
    source: Source, recipe: Recipe, folder: Path, shuffle: bool = False, workers: int = 0
) -> DiskStore:
    """The graphs of a source in a file in `folder`: the file that is there, or a new one.

    With `shuffle` they lie in a random order, the same for every seed of a run. Raises `InputError` where they
    have an element that the recipe does not allow.
    """
    path = folder / f"{_key(source, recipe, shuffle)}.h5"
    store = _open(path)
    if store is not None:
        return _said_again(store, source, recipe)
    with _said_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(path):
            store = _open(path)
            if store is None:
                order = _random_order(len(source)) if shuffle else None
                _build(path, chunks(source, recipe, order, workers, what="graphs for the cache"))
                store = DiskStore(path)
                log.info("graphs of %d structures written to %s (%s)", len(store), path, _size(path))
                return store
    return _said_again(store, source, recipe)


def _said_again(store: DiskStore, source: Source, recipe: Recipe) -> DiskStore:
    """A store of another run, after what that run was told of the same structures."""
    _check_elements(store, source, recipe)
    absent = np.setdiff1d(np.arange(len(source)), store.frames[:])
    if len(absent):
        log.warning("left out %s", some_of(source, absent.tolist(), "that can not be learned from"))
    return store


def default_folder() -> Path:
    """Where files go that can be made again: the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "physicsml_ase"


def _key(source: Source, recipe: Recipe, shuffle: bool) -> str:
    """Hash of all that decides what is in the file; the elements of a model only decide whether it may be used."""
    made_by = {name: version(name) for name in ("ase", "vesin")}
    settings = dataclasses.asdict(dataclasses.replace(recipe, elements=None))
    parts = [FORMAT, made_by, source.content_hash(), settings, shuffle]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _random_order(size: int) -> NDArray[np.int64]:
    return np.argsort(np.random.PCG64(0).random_raw(size), kind="stable")


def _open(path: Path) -> DiskStore | None:
    """The store in the file if it is there and sound; a damaged file is said to be and counts as absent."""
    if not path.is_file():
        return None
    try:
        store = DiskStore(path)
    except (OSError, KeyError, ValueError, RuntimeError, Damaged):
        log.warning("%s is damaged or not from this program; it is built again", path)
        return None
    log.info(
        "graphs of %d structures taken from %s (%s), built by an earlier run", len(store), path, _size(path)
    )
    return store


def _check_elements(store: DiskStore, source: Source, recipe: Recipe) -> None:
    """A file that was built for another model may have elements which this one does not know."""
    if recipe.elements is None:
        return
    for start, numbers, ends in store.atomic_numbers():
        if not np.isin(numbers, recipe.elements).all():
            for k, of_one in enumerate(np.split(numbers, ends[:-1])):
                recipe.check_elements(of_one, source.where(int(store.frames[start + k])))


def _build(path: Path, parts: Iterable[Flat]) -> None:
    for stale in path.parent.glob(f"{path.stem}.*.part"):  # of a killed process; the lock is ours
        stale.unlink(missing_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part")
    try:
        write(part, parts)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock of the file; the system lets go of it when the process ends in whatever way."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process, which builds %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _said_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"the cache of graphs can not be written to {folder}: {error.strerror or error}; "
            "free space there, or set datamodule.cache_dir, or use pre_batch=in_memory"
        ) from None


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
