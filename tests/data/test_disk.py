"""The cache of graphs: equal to memory, built once, whole or not there, whoever is killed meanwhile."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from frames_for_tests import LABELS, RECIPE, assert_same, every_kind, molecules, numbers_in, source_of

from physicsml_ase.conventions import InputError
from physicsml_ase.data import disk
from physicsml_ase.data.cache import cached_store
from physicsml_ase.data.disk import DiskStore, write
from physicsml_ase.data.flat import Flat
from physicsml_ase.data.frames import Recipe, chunks
from physicsml_ase.data.store import MemoryStore

HERE = Path(__file__).parent


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "MAX_BLOCK", 4)
    monkeypatch.setattr(disk, "CACHED_BLOCKS", 2)


@pytest.mark.usefixtures("small_blocks")
def test_batches_are_those_of_memory(tmp_path: Path) -> None:
    source = source_of(every_kind() + molecules(30))
    memory = MemoryStore(chunks(source, RECIPE))
    store = cached_store(source, RECIPE, tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(20):
        indices = rng.integers(0, len(source), rng.integers(1, 9))
        assert_same(store.read(indices), memory.read(indices))
    assert len(store._blocks) == 2
    assert sum(len(part) for part in store.parts()) == len(source)


def test_a_shuffled_file_holds_the_same_in_random_order(tmp_path: Path) -> None:
    source = source_of(molecules(50))
    store = cached_store(source, RECIPE, tmp_path, shuffle=True)
    assert sorted(store.frames) == list(range(50)) != list(store.frames)
    assert numbers_in(store.read(np.arange(50))) == list(store.frames)


def test_the_next_run_uses_the_file_again_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "physicsml_ase")
    source = source_of(molecules(10))
    first = cached_store(source, RECIPE, tmp_path)
    assert "written to" in caplog.text
    before = first.path.stat().st_mtime_ns
    again = cached_store(source_of(molecules(10)), RECIPE, tmp_path)
    assert again.path == first.path
    assert again.path.stat().st_mtime_ns == before
    assert f"taken from {first.path} (" in caplog.text


def test_what_is_left_out_is_said_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = molecules(6)
    frames[2].calc = frames[5].calc = None
    for words in ("without any of the labels", "that can not be learned from"):
        caplog.clear()
        assert len(cached_store(source_of(frames), replace(RECIPE, labelled_only=True), tmp_path)) == 4
        assert f"left out 2 of 6 structures {words}" in caplog.text
        assert "structure 2, structure 5" in caplog.text


def test_other_content_or_settings_make_another_file(tmp_path: Path) -> None:
    frames = molecules(6)
    other = molecules(6)
    other[3].positions[0, 0] += 1e-9
    stores = [
        cached_store(source_of(frames), RECIPE, tmp_path),
        cached_store(source_of(other), RECIPE, tmp_path),
        cached_store(source_of(frames), RECIPE, tmp_path, shuffle=True),
        cached_store(source_of(frames), Recipe(cutoff=4.5, labels=LABELS), tmp_path),
        cached_store(source_of(frames), Recipe(cutoff=4.0, labels=LABELS[:1]), tmp_path),
        cached_store(source_of(frames).subset([1, 0, 2]), RECIPE, tmp_path),
    ]
    assert len({store.path for store in stores}) == len(stores)


def test_a_model_that_knows_the_elements_uses_the_file_again(tmp_path: Path) -> None:
    source = source_of(molecules(30))
    first = cached_store(source, RECIPE, tmp_path, shuffle=True)
    again = cached_store(source, replace(RECIPE, elements=(1, 6, 7, 8, 9)), tmp_path, shuffle=True)
    assert again.path == first.path
    with pytest.raises(
        InputError, match=r"structure \d*[49]: element N \(atom 0\) is not in the model \(H, C, O\)"
    ):
        cached_store(source, replace(RECIPE, elements=(1, 6, 8)), tmp_path, shuffle=True)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _garble(path: Path) -> None:
    path.write_bytes(b"not HDF5" * 1000)


def _lie_about_sizes(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["structure/num_atoms"][2] += 1


def _shorten(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["atom/positions"].resize(3, axis=0)


def _other_format(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 0


@pytest.mark.parametrize("damage", [_cut, _garble, _lie_about_sizes, _shorten, _other_format])
def test_a_damaged_file_is_built_again(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = source_of(molecules(40))
    path = cached_store(source, RECIPE, tmp_path).path
    damage(path)
    store = cached_store(source, RECIPE, tmp_path)
    assert "damaged" in caplog.text
    assert_same(store.read(np.arange(40)), MemoryStore(chunks(source, RECIPE)).read(np.arange(40)))


def test_damaged_content_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    path = cached_store(source_of(molecules(40)), RECIPE, tmp_path).path
    with h5py.File(path) as file:
        place = file["atom/positions"].id.get_chunk_info(0)
    whole = bytearray(path.read_bytes())
    whole[place.byte_offset + 100] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InputError, match="damaged; delete it"):
        DiskStore(path).read(np.arange(3))


BUILD = """
import sys, time, logging
sys.path[:0] = [{here!r}, {tests!r}]
from pathlib import Path
from frames_for_tests import molecules, source_of, RECIPE
from physicsml_ase.data import cache
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
made = cache.chunks
def slow(*args, **kwargs):
    print("building", flush=True)
    for part in made(*args, **kwargs):
        yield part
        time.sleep({pause})
cache.chunks = slow
cache.cached_store(source_of(molecules(300)), RECIPE, Path({folder!r}))
"""


def builder(folder: Path, pause: float) -> subprocess.Popen[str]:
    code = BUILD.format(here=str(HERE), tests=str(HERE.parent), pause=pause, folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_builder_leaves_no_half_file(tmp_path: Path) -> None:
    with builder(tmp_path, pause=60) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob("*.h5"))
    store = cached_store(source_of(molecules(300)), RECIPE, tmp_path)  # is not held up by the dead one's lock
    assert len(store) == 300
    assert not list(tmp_path.glob("*.part"))


def test_two_processes_build_one_file(tmp_path: Path) -> None:
    processes = [builder(tmp_path, pause=0.4) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("building" in out for out in outputs) == 1
    assert len(list(tmp_path.glob("*.h5"))) == 1
    assert not list(tmp_path.glob("*.part"))


def _read_in_child(store: DiskStore, indices: np.ndarray, queue) -> None:
    queue.put(numbers_in(store.read(indices)))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_opens_the_file_for_itself(tmp_path: Path) -> None:
    source = source_of(molecules(40))
    store = cached_store(source, RECIPE, tmp_path)
    store.read(np.arange(8))
    parent_file = store._file.id.id
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [
        context.Process(target=_read_in_child, args=(store, np.array([k, 39 - k]), queue)) for k in range(4)
    ]
    for child in children:
        child.start()
    mine = [numbers_in(store.read(np.array([k, 20 + k]))) for k in range(20)]
    theirs = sorted(queue.get(timeout=60) for _ in children)
    for child in children:
        child.join(timeout=60)
    assert theirs == [[k, 39 - k] for k in range(4)]
    assert mine == [[k, 20 + k] for k in range(20)]
    assert store._file.id.id == parent_file


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_to_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"datamodule\.cache_dir"):
        cached_store(source_of(molecules(3)), RECIPE, tmp_path)


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can not be written to .*datamodule\.cache_dir"):
        cached_store(source_of(molecules(3)), RECIPE, tmp_path / "file")


FULL = """
import sys, resource, signal
sys.path[:0] = [{here!r}, {tests!r}]
from pathlib import Path
from frames_for_tests import molecules, source_of, RECIPE
from physicsml_ase.conventions import InputError
from physicsml_ase.data.cache import cached_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    cached_store(source_of(molecules(400)), RECIPE, Path({folder!r}))
except InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of file sizes")
@pytest.mark.parametrize("limit", [100, 20_000, 300_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    code = FULL.format(here=str(HERE), tests=str(HERE.parent), folder=str(tmp_path), limit=limit)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1
    assert "File too large; free space there, or set datamodule.cache_dir" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_a_file_is_written_part_by_part(tmp_path: Path) -> None:
    alive: list[int] = []
    parts: weakref.WeakSet[Flat] = weakref.WeakSet()

    def watched() -> Iterator[Flat]:
        for part in chunks(source_of(molecules(600)), RECIPE):
            parts.add(part)
            alive.append(len(parts))
            yield part

    write(tmp_path / "graphs.h5", watched())
    assert len(alive) == 5
    assert max(alive) <= 2
    assert len(DiskStore(tmp_path / "graphs.h5")) == 600
