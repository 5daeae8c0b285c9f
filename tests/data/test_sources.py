"""Sources: every format round-trips, lazily, in any order, in any process; damaged files are refused."""

import gzip
import json
import logging
import multiprocessing
import os
import pickle
import random
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import read, write
from hypothesis import given, settings
from hypothesis import strategies as st

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources import (
    Source,
    available_keys,
    concat,
    describe_missing,
    open_source,
    open_sources,
    suggest_label_keys,
)
from physicsml_ase.data.sources import xyz_index as xyz_index_module
from physicsml_ase.data.sources.xyz_frame import c_parser, parse_frame, same_atoms
from physicsml_ase.data.sources.xyz_index import index_frames

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the checkout")
needs_fast = pytest.mark.skipif(c_parser() is None, reason="ase-extxyz is not installed")


def make_frames(count: int) -> list[Atoms]:
    """Molecules and crystals of changing size, with energy, forces and (crystals) stress."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(count):
        atoms = molecule("CH3OH") if k % 3 else bulk("NaCl", "rocksalt", 5.6) * (1, 1, 1 + k % 2)
        atoms.rattle(0.05, seed=k)
        results = {"energy": -1.5 * k, "forces": rng.standard_normal((len(atoms), 3)).round(6)}
        if atoms.pbc.all():
            results["stress"] = rng.standard_normal(6).round(6)
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["config_type"] = "molecule" if k % 3 else "crystal"
        frames.append(atoms)
    return frames


FRAMES = make_frames(9)


def write_frames(path: Path, frames: list[Atoms]) -> Path:
    if path.suffix in (".db", ".json", ".aselmdb"):
        with connect(path) as database:
            for k, atoms in enumerate(frames):
                database.write(atoms, number=k, data={"extra": np.arange(3.0)})
    else:
        write(path, frames)
    return path


def check_equal(read_back: Atoms, atoms: Atoms, atol: float = 1e-7) -> None:
    assert (read_back.numbers == atoms.numbers).all()
    assert (read_back.pbc == atoms.pbc).all()
    np.testing.assert_allclose(read_back.positions, atoms.positions, atol=atol)
    np.testing.assert_allclose(read_back.cell.array, atoms.cell.array, atol=atol)
    assert read_back.calc is not None
    assert atoms.calc is not None
    for name, value in atoms.calc.results.items():
        np.testing.assert_allclose(read_back.calc.results[name], value, atol=atol)


FORMATS = ["a.xyz", "a.extxyz", "a.xyz.gz", "a.extxyz.xz", "a.db", "a.json", "a.traj", "a.aselmdb"]


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param.endswith(".aselmdb"):
        pytest.importorskip("ase_db_backends")
    return write_frames(tmp_path / request.param, FRAMES)


def test_formats_round_trip_in_any_order(path: Path) -> None:
    source = open_source(path)
    assert len(source) == len(FRAMES)
    for i in random.Random(0).sample(range(len(FRAMES)), len(FRAMES)):
        check_equal(source[i], FRAMES[i])
    check_equal(source[-1], FRAMES[-1])
    assert len(list(source)) == len(FRAMES)
    with pytest.raises(IndexError):
        source[len(FRAMES)]
    key = (
        "row id 4" if path.suffix in (".db", ".aselmdb") else "row 3" if path.suffix == ".json" else "frame 3"
    )
    assert source.where(3) == f"{path} {key}"
    assert source.name == str(path)


def test_sources_pickle(path: Path) -> None:
    source = open_source(path)
    check_equal(source[2], FRAMES[2])  # with a file open
    again = pickle.loads(pickle.dumps(source))
    check_equal(again[5], FRAMES[5])
    assert again.content_hash() == source.content_hash()


def _energies(source: Source, order: list[int], queue: "multiprocessing.Queue[list[float]]") -> None:
    queue.put([float(source[i].calc.results["energy"]) for i in order])


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("name", ["a.xyz", "a.db", "a.traj", "a.aselmdb"])
def test_several_processes_read_at_once(name: str, start: str, tmp_path: Path) -> None:
    if start == "spawn" and name != "a.db":
        pytest.skip("one spawn is enough: it is slow, and what is pickled is tested above")
    if name.endswith(".aselmdb"):
        pytest.importorskip("ase_db_backends")
    frames = make_frames(40)
    source = open_source(write_frames(tmp_path / name, frames))
    source[0]
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    orders = [random.Random(k).sample(range(40), 40) * 3 for k in range(2)]
    workers = [context.Process(target=_energies, args=(source, order, queue)) for order in orders]
    for worker in workers:
        worker.start()
    mine = [float(source[i].calc.results["energy"]) for i in orders[0]]  # the parent reads too
    theirs = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    wanted = [[frames[i].calc.results["energy"] for i in order] for order in orders]
    assert sorted(theirs) == sorted(wanted)
    assert mine == wanted[0]


def test_threads_read_at_once(path: Path) -> None:
    source, same = open_source(path), open_source(f"{path}@::-1")
    order = random.Random(0).choices(range(len(FRAMES)), k=200)
    with ThreadPoolExecutor(4) as pool:
        energies = list(pool.map(lambda i: source[i].calc.results["energy"], order))
        reverse = list(pool.map(lambda i: same[-1 - i].calc.results["energy"], order))
    assert energies == reverse == [FRAMES[i].calc.results["energy"] for i in order]


def test_slices(path: Path) -> None:
    energies = [atoms.calc.results["energy"] for atoms in FRAMES]
    for selection in (":4", "-3:", "::2", "2:8:3", "4", "-1", "::-1", "5:", ":-6"):
        chosen = slice(*[int(s) if s else None for s in selection.split(":")])
        if ":" not in selection:
            chosen = slice(int(selection), int(selection) + 1 or None)
        source = open_source(f"{path}@{selection}")
        assert [atoms.calc.results["energy"] for atoms in source] == energies[chosen], selection
        assert source.where(0) == open_source(path).where(range(len(FRAMES))[chosen][0])
    for selection in ("20:", ":0", "4:2"):
        with pytest.raises(InputError, match="chooses none of"):
            open_source(f"{path}@{selection}")
    for selection in ("::0", "1:2:3:4", ""):
        with pytest.raises(InputError):
            open_source(f"{path}@{selection}")


@pytest.mark.parametrize("name", ["a.db", "a.json", "a.aselmdb"])
def test_database_selections(name: str, tmp_path: Path) -> None:
    if name.endswith(".aselmdb"):
        pytest.importorskip("ase_db_backends")
    path = write_frames(tmp_path / name, FRAMES)
    sodium = [k for k, atoms in enumerate(FRAMES) if "Na" in atoms.symbols]
    source = open_source(f"{path}@Na,number<7")
    assert [atoms.info["key_value_pairs"]["number"] for atoms in source] == [k for k in sodium if k < 7]
    np.testing.assert_array_equal(source[0].info["data"]["extra"], np.arange(3.0))
    few = open_source(f"{path}@natoms>4@-2:")
    assert len(few) == 2
    assert few.content_hash() != source.content_hash()
    with pytest.raises(InputError, match="match 'natoms>500'"):
        open_source(f"{path}@natoms>500")
    with pytest.raises(InputError, match="not a selection"):
        open_source(f"{path}@natoms=few")
    with pytest.raises(InputError, match="after '@'"):
        open_source(f"{path}@:5@natoms>4")
    with pytest.raises(InputError, match="after '@' is not a slice"):
        open_source(f"{write_frames(tmp_path / 'b.xyz', FRAMES)}@natoms<20")


def test_database_rows_may_be_deleted_and_keep_their_forces(tmp_path: Path) -> None:
    atoms = FRAMES[0].copy()
    atoms.calc = SinglePointCalculator(atoms, forces=np.ones((len(atoms), 3)), energy=0.0)
    atoms.set_constraint(FixAtoms([0]))
    path = tmp_path / "a.db"
    with connect(path) as database:
        for _ in range(4):
            database.write(atoms)
        database.delete([2])
    source = open_source(path)
    assert [source.where(i) for i in range(3)] == [f"{path} row id {k}" for k in (1, 3, 4)]
    assert (source[0].calc.results["forces"] == 1).all()


def test_database_is_not_written(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.db", FRAMES)
    before = path.read_bytes()
    list(open_source(f"{path}@natoms>2"))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.db"]


def test_globs_lists_and_nested_lists(tmp_path: Path) -> None:
    for k, part in enumerate((FRAMES[:2], FRAMES[2:5], FRAMES[5:])):
        write(tmp_path / f"run{k}.xyz", part)
    everything = open_source(str(tmp_path / "run*.xyz"))
    assert [a.calc.results["energy"] for a in everything] == [a.calc.results["energy"] for a in FRAMES]
    assert everything.where(3) == f"{tmp_path / 'run1.xyz'} frame 1"
    assert len(open_source(str(tmp_path / "run*.xyz@:1"))) == 3
    nested = open_source([tmp_path / "run2.xyz", [str(tmp_path / "run0.xyz@:1"), FRAMES[4]], everything])
    assert len(nested) == 4 + 1 + 1 + 9
    check_equal(nested[5], FRAMES[4])
    check_equal(nested.subset([6, 14])[1], FRAMES[8])
    assert nested.subset([6]).where(0) == f"{tmp_path / 'run0.xyz'} frame 0"
    check_equal(pickle.loads(pickle.dumps(nested))[14], FRAMES[8])
    with pytest.raises(InputError, match="no file matches"):
        open_source(str(tmp_path / "runs*.xyz"))


def test_a_path_may_contain_marks(tmp_path: Path) -> None:
    folder = tmp_path / "me@home"
    folder.mkdir()
    write(folder / "plain.xyz", FRAMES)
    (folder / "plain.xyz").rename(folder / "run[1]@300K.xyz")
    assert len(open_source(folder / "run[1]@300K.xyz")) == 9
    assert len(open_source(f"{folder}/run[1]@300K.xyz@:2")) == 2


def test_thousands_of_files_do_not_stay_open(tmp_path: Path) -> None:
    write(tmp_path / "0.xyz", FRAMES[:1])
    for k in range(1, 300):
        (tmp_path / f"{k}.xyz").write_bytes((tmp_path / "0.xyz").read_bytes())
    source = open_source(str(tmp_path / "*.xyz"))
    assert len(list(source)) == 300
    if Path("/proc/self/fd").is_dir():
        assert len(os.listdir("/proc/self/fd")) < 150


def test_atoms_and_sources_pass_through() -> None:
    source = open_source(FRAMES)
    assert source[3] is FRAMES[3]
    assert open_source(source) is source
    assert len(open_source(FRAMES[0])) == 1
    assert concat([source]) is source
    assert source.where(3) == "structure 3"


def test_live_calculators_are_frozen() -> None:
    calc = EMT()
    first, second = bulk("Cu") * 2, bulk("Au") * 2
    first.rattle(0.1, seed=0)
    first.calc = second.calc = calc  # one calculator for both, as users do
    second.get_potential_energy()
    first.get_potential_energy()
    source = open_source([first, second])
    assert source[0].calc.results["energy"] == first.get_potential_energy()
    assert source[1].calc is None  # its results are gone: the calculator saw `first` last
    pickle.dumps(source)


def test_a_calculator_with_results_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    atoms = bulk("Cu") * 2
    atoms.calc = EMT()
    atoms.get_potential_energy()
    atoms.calc.results["node_energy"] = np.ones(8)
    assert open_source([atoms])[0].calc.results["node_energy"].sum() == 8
    assert not caplog.text


def test_atoms_that_were_moved_after_they_were_computed(caplog: pytest.LogCaptureFixture) -> None:
    def computed(**given: object) -> Atoms:
        atoms = Atoms("H2O", [[0, 0, 0], [0, 0, 0.8], [0, 0.9, 0]], **given)
        atoms.calc = SinglePointCalculator(atoms, energy=-5.0)
        return atoms

    box = {"cell": [4.0, 5.0, 6.0], "pbc": True}
    shifted, wrapped, molecule = computed(), computed(**box), computed()
    shifted.positions += 3.0
    wrapped.positions -= 1.0
    wrapped.wrap()
    molecule.center(vacuum=5.0)
    open_source([shifted, wrapped, molecule])
    assert not caplog.text
    moved, strained, other = computed(), computed(**box), computed()
    moved.positions[1, 0] += 0.1
    strained.set_cell([4.1, 5.0, 6.0])
    other.numbers[0] = 9
    for atoms in (moved, strained, other):
        caplog.clear()
        source = open_source([shifted, atoms])
        assert "the atoms of 1 of 2 structures were moved after" in caplog.text
        assert "structure 1 first" in caplog.text
        assert source[1].calc.results["energy"] == -5.0


def test_named_sources(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.xyz", FRAMES)
    sources = open_sources({"bulk": path, "molecules": FRAMES[1:3]})
    assert {name: len(source) for name, source in sources.items()} == {"bulk": 9, "molecules": 2}
    assert list(open_sources(path)) == [""]
    with pytest.raises(InputError, match=r"source bulk: .*nothing.xyz: no such file"):
        open_sources({"bulk": tmp_path / "nothing.xyz"})
    with pytest.raises(InputError, match="not several under names"):
        open_source({"bulk": path})  # type: ignore[arg-type]


def test_other_formats_are_read_by_ase(tmp_path: Path) -> None:
    write(tmp_path / "a.cif", FRAMES[0])
    write(tmp_path / "POSCAR", FRAMES[0])
    for name in ("a.cif", "POSCAR"):
        source = open_source(tmp_path / name)
        assert len(source) == 1
        assert source[0].symbols.formula.reduce()[0] == FRAMES[0].symbols.formula.reduce()[0]
        assert source.where(0) == f"{tmp_path / name} frame 0"
    (tmp_path / "notes.txt").write_text("dear diary\n")
    with pytest.raises(InputError, match=r"notes\.txt"):
        open_source(tmp_path / "notes.txt")
    write(tmp_path / "frames.dat", FRAMES, format="extxyz")  # known by its content
    assert len(open_source(tmp_path / "frames.dat")) == 9


def test_content_hash(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.xyz", FRAMES)
    copy = tmp_path / "b.xyz"
    copy.write_bytes(path.read_bytes())
    assert open_source(path).content_hash() == open_source(copy).content_hash()
    assert open_source(path).content_hash() != open_source(f"{path}@:5").content_hash()
    changed = copy.read_bytes().replace(b"energy=-1.5", b"energy=-1.6")
    copy.write_bytes(changed)
    assert open_source(path).content_hash() != open_source(copy).content_hash()
    held = [atoms.copy() for atoms in FRAMES]
    assert open_source(held).content_hash() != open_source(FRAMES).content_hash()  # copies have no labels
    assert open_source(held).content_hash() == open_source([atoms.copy() for atoms in FRAMES]).content_hash()


def test_content_hash_is_of_what_is_said_and_not_of_where_it_lies() -> None:
    class Thing:
        pass

    def hashed(**info: object) -> str:
        return open_source([Atoms("H", info=info)]).content_hash()

    things = [Thing(), Thing()]
    assert hashed(thing=things[0]) == hashed(thing=things[1])
    assert hashed(things=[things[0], {"x": 1}]) == hashed(things=[things[1], {"x": 1}])
    assert hashed(things={"ab", "cd", "ef"}) == hashed(things={"ef", "ab", "cd"})
    long = np.arange(2000.0)
    other = long.copy()
    other[1000] += 1  # where NumPy would write "..."
    assert hashed(x=[long]) != hashed(x=[other])
    assert len({hashed(x=x) for x in (1, 2, "1", [1, 2], [[1], 2], [1, [2]], (1, 2), None, Path("a"))}) == 9


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.xyz", FRAMES)
    old = open_source(path)
    check_equal(old[1], FRAMES[1])
    write(path, FRAMES[3:])
    os.utime(path, ns=(0, 0))  # a clock too coarse to tell the two apart must not matter
    check_equal(open_source(path)[0], FRAMES[3])
    with open(path, "w") as stream:
        stream.write("1\n\nH 0 0 0\n")
    with pytest.raises(InputError, match="has changed"):
        [old[i] for i in range(len(old))]


# --- xyz ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_index_does_not_depend_on_the_chunks(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_frames(tmp_path / "a.xyz", FRAMES[:4])
    text = path.read_bytes()
    starts = [0]
    for atoms in FRAMES[:4]:
        lines = text[starts[-1] :].split(b"\n")[: len(atoms) + 2]
        starts.append(starts[-1] + sum(len(line) + 1 for line in lines))
    monkeypatch.setattr(xyz_index_module, "CHUNK", chunk)
    with open(path, "rb") as stream:
        assert index_frames(stream, "a.xyz").tolist() == starts
    with open(path, "rb") as stream:
        assert index_frames(stream, "a.xyz", limit=2).tolist() == starts[:3]


def test_xyz_dialects(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.xyz", FRAMES)
    text = path.read_bytes()
    count, comment, *rows = text.split(b"\n")
    variants = {
        "no line end": text.rstrip(b"\n"),
        "Windows": text.replace(b"\n", b"\r\n"),
        "BOM": b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
        "blank lines": b"\n\n" + text + b"\n  \n\n",
        "indented counts": b"   " + text,
    }
    for name, variant in variants.items():
        path.write_bytes(variant)
        source = open_source(path)
        assert len(source) == 9, name
        for i, atoms in enumerate(source):
            check_equal(atoms, FRAMES[i])
    first = b"\n".join([count, comment, *rows[: int(count)], b""])
    path.write_bytes(first + b"\n\n" + text)  # ASE's own reader silently stops at a blank line
    assert len(open_source(path)) == 10
    path.write_text("2\nwater-ish, energy of none\nO 0 0 0 extra columns\nh 0 0 1\n1\n\nXe 1 2 3\n")
    plain = open_source(path)
    assert [a.get_chemical_formula() for a in plain] == ["HO", "Xe"]
    path.write_text("1\ncell as VEC\nH 0 0 0\nVEC1 2 0 0\nVEC2 0 3 0\nVEC3 0 0 4\n1\n\nH 0 0 0\n")
    assert open_source(path)[0].cell.lengths().tolist() == [2, 3, 4]
    path.write_bytes("1\nProperties=species:S:1:pos:R:3 author=M\xfcller\nH 0 0 0\n".encode("latin-1"))
    assert open_source(path)[0].info["author"] == "Müller"


BROKEN = {
    "2\n\nH 0 0 0\n": r"frame 0: the file ends \(line 3\) after 1 of 2 atom lines$",
    "1\n\nH 0 0 0\n2\n": r"frame 1: .* after 0 of 2 atom lines; .*@:1 reads the frames before it",
    "1\n\nH 0 0 0\nH 0 0 1\n": "line 4: expected the number of atoms of frame 1, found 'H 0 0 1'; frame 0 says 1",
    "atoms\n\nH 0 0 0\n": "line 1: expected the number of atoms of frame 0, found 'atoms'; is it an xyz file",
    "-3\n\nH 0 0 0\n": "frame 0: has -3 atoms",
    "1\n\nH 0 0 0\n0\n\n": r"frame 1: has 0 atoms \(line 4\); remove the frame",
    "99999999999999999999\n\nH 0 0 0\n": "after 1 of 99999999999999999999",
    "1\n\nQq 0 0 0\n": "frame 0, line 3: atom 0 is of an unknown element, 'Qq'",
    "2\n\nO 0 0 0\n1 0 0 1\n": "frame 0, line 4: atom 1 is given by its atomic number, 1; write the symbol, H$",
    "1\nProperties=species:S:1:pos:R:3\n8 0 0 0\n": "line 3: .* atomic number, 8; write the symbol, O$",
    "1\n\nH 0 0\n": "line 3: atom 0 has 3 columns, an element and three coordinates are expected",
    "1\nProperties=species:S:1:pos:R:3\nQq 0 0 0\n": "frame 0, line 3: atom 0 is of an unknown element, 'Qq'",
    "1\nProperties=species:S:1:pos:R:3\nH 0 0 zero\n": "line 3: pos of atom 0 is not a number: 'zero'",
    "1\nProperties=species:S:1:pos:R:3:tags:I:1\nH 0 0 0 1.5\n": "tags of atom 0 is not an integer: '1.5'",
    "1\nProperties=species:S:1:pos:R:3\nH 0 0 0 1\n": "atom 0 has 5 columns, Properties declares 4",
    "1\nProperties=species:S:1:pos:R:2\nH 0 0\n": "line 2: Properties declares pos:R:2, expected pos:R:3",
    "1\nProperties=species:S:1:pos:R\nH 0 0\n": "does not consist of",
    "1\nProperties=species:S:1:pos:X:3\nH 0 0 0\n": "the form is",
    '1\nLattice="1 0 0" Properties=species:S:1:pos:R:3\nH 0 0 0\n': "Lattice",
    "3\n\nH 0.0 0.0 0.0\nH 0.0 0.0 1.0\nH 0.0 0.0 2": "ends within the line of atom 2",
    "x" * 5000: "expected the number of atoms",
}


@pytest.mark.parametrize("text", list(BROKEN))
def test_broken_xyz_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.xyz"
    path.write_text(text)
    with pytest.raises(InputError, match=BROKEN[text]) as caught:
        list(open_source(path))
    assert "\n" not in str(caught.value)
    assert "broken.xyz" in str(caught.value)


def test_middle_of_a_file_may_be_broken(tmp_path: Path) -> None:
    """What the index can not see is refused when the frame is read, with its line."""
    path = write_frames(tmp_path / "a.xyz", FRAMES)
    lines = path.read_text().split("\n")
    lines[7] = lines[7].replace(".", "#", 1)
    path.write_text("\n".join(lines))
    source = open_source(path)
    check_equal(source[0], FRAMES[0])
    with pytest.raises(InputError, match=r"a.xyz frame 1, line 8: pos of atom 1 is not a number: '.*#"):
        source[1]


@needs_fast
@pytest.mark.parametrize("missing", [False, True])
def test_without_the_fast_reader_all_is_the_same(
    missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_frames(tmp_path / "a.xyz", FRAMES)
    if missing:
        monkeypatch.setitem(sys.modules, "ase_extxyz", None)
        c_parser.cache_clear()
        assert c_parser() is None
    for atoms, wanted in zip(open_source(path), FRAMES):
        check_equal(atoms, wanted)
    monkeypatch.undo()
    c_parser.cache_clear()


@needs_fast
@needs_shared
@pytest.mark.parametrize(
    "name", ["acac/train_300K.xyz", "MAPbI3/test.xyz", "PbTe/test.xyz", "TiO2/test.xyz", "mlearn/Si/test.xyz"]
)
def test_the_fast_reader_agrees_with_ase(name: str) -> None:
    source = open_source(SHARED / name)
    for wanted, atoms in zip(read(SHARED / name, ":"), source, strict=True):
        assert same_atoms(atoms, wanted)
        assert list(atoms.arrays) == list(wanted.arrays)
        assert list(atoms.calc.results) == list(wanted.calc.results)


FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)


@needs_fast
@settings(max_examples=200, deadline=None)
@given(
    numbers=st.lists(st.tuples(st.sampled_from(["H", "he", "Cl"]), *[FLOATS] * 7), min_size=1, max_size=5),
    style=st.sampled_from(["{!r}", "{:.8f}", "{:.17e}", "{:g}", "{:+.3G}"]),
    info=st.sampled_from(
        ["", 'pbc="T F T"', 'Lattice="1 0 0 0 2 0 0 0 3"', "energy=1 name=3x flag e_list='1 2 3'", "virial=7"]
    ),
)
def test_both_readers_agree_on_any_frame(
    numbers: list[tuple[str, *tuple[float, ...]]], style: str, info: str
) -> None:
    rows = [f"{symbol} {' '.join(style.format(x) for x in values)} tag" for symbol, *values in numbers]
    columns = "species:S:1:pos:R:3:forces:R:3:charge:R:1:label:S:1"
    block = f"{len(rows)}\n{info} Properties={columns}\n".encode() + "\n".join(rows).encode() + b"\n"

    def outcome(fast: bool) -> Atoms | str:
        try:
            return parse_frame(block, "x", lambda: 1, fast)
        except InputError as error:
            return str(error)

    plain, quick = outcome(False), outcome(True)
    if isinstance(plain, str) or isinstance(quick, str):
        assert plain == quick
    else:
        assert same_atoms(plain, quick)


# --- what is no good --------------------------------------------------------------------------------------


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    write_frames(tmp_path / "train.xyz", FRAMES)
    (tmp_path / "folder.xyz").mkdir()
    os.mkfifo(tmp_path / "pipe.xyz")
    cases = {
        "trian.xyz": "no such file; did you mean train.xyz?",
        "quite/else.xyz": "there is no folder",
        "folder.xyz": "is a directory; name its files",
        "pipe.xyz": "is not a regular file",
        "train.xyz/a.xyz": "no such file",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message.replace("?", r"\?")) as caught:
            open_source(tmp_path / name)
        assert "\n" not in str(caught.value)
    for nothing in ([], ()):
        with pytest.raises(InputError, match="no structures"):
            open_source(nothing)
    with pytest.raises(InputError, match="a source is a file"):
        open_source(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has no atoms"):
        open_source([Atoms()])[0]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.xyz", FRAMES)
    path.chmod(0)
    with pytest.raises(InputError, match="can not be opened: Permission denied"):
        open_source(path)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.97])
def test_cut_files_are_refused(name: str, part: float, tmp_path: Path) -> None:
    """Cut anywhere but between two frames, a file is not opened; no signal, no hang, one line."""
    if name.endswith(".aselmdb"):
        pytest.importorskip("ase_db_backends")
    path = write_frames(tmp_path / name, make_frames(30))
    content = path.read_bytes()
    cut = tmp_path / f"cut{''.join(Path(name).suffixes)}"
    cut.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError) as caught:
        open_source(cut)
    assert "\n" not in str(caught.value)
    assert cut.name in str(caught.value)


@pytest.mark.parametrize("suffix", [".xyz", ".db", ".json", ".traj", ".aselmdb", ".xyz.gz", ".cif", ".dat"])
@pytest.mark.parametrize("content", [b"\x00\x93\xff" * 1500, b"some text\n" * 9, b"{}\n", b"\n \n"])
def test_junk_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    if suffix == ".aselmdb":
        pytest.importorskip("ase_db_backends")
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_gzip_of_a_cut_file_is_refused(tmp_path: Path) -> None:
    text = write_frames(tmp_path / "a.xyz", FRAMES).read_bytes()
    (tmp_path / "b.xyz.gz").write_bytes(gzip.compress(text[:-200]))
    with pytest.raises(InputError, match="the file ends"):
        open_source(tmp_path / "b.xyz.gz")


def test_sqlite_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "music.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="not an ASE database: it has no table"):
        open_source(path)
    assert path.read_bytes() == before


def test_damaged_row_is_named(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.db", FRAMES)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE systems SET positions=x'0102' WHERE id=4")
    connection.close()
    source = open_source(path)
    with pytest.raises(InputError, match=r"a\.db row id 4 can not be read"):
        source[3]


def test_aselmdb_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.aselmdb").write_bytes(b"something")
    for module in ("ase_db_backends", "ase_db_backends.aselmdb"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "physicsml_ase.data.sources.lmdb_file", raising=False)
    with pytest.raises(InputError, match="needs the package ase-db-backends"):
        open_source(tmp_path / "a.aselmdb")


# --- the shared bad files: what reading alone must refuse -------------------------------------------------

REFUSED = {
    "truncated_midline.xyz": "frame 8: the file ends .* after 4 of 15 atom lines; .*@:8 reads",
    "truncated_midframe.xyz": "frame 9: the file ends .* after 4 of 15 atom lines",
    "wrong_force_length.xyz": "frame 3, line 59: ",
    "wrong_natoms.xyz": "frame 2 says 16 atoms and lists another number",
    "wrong_properties.xyz": "frame 1, line 19: Properties declares forces:R:2, expected forces:R:3",
    "empty.xyz": "no structures in .*empty.xyz",
    "blank_lines.xyz": "no structures in .*blank_lines.xyz",
    "zero_atoms.xyz": "frame 0: has 0 atoms",
    "truncated.db": "truncated.db was cut",
    "text_named.db": "not an ASE database",
    "binary_named.xyz": "not a text file",
}


@needs_shared
def test_shared_bad_files() -> None:
    names = [name for name in json.loads((SHARED / "bad" / "expected.json").read_text())]
    assert set(REFUSED) <= set(names)
    for name in names:
        path = SHARED / "bad" / name
        if name in REFUSED:
            with pytest.raises(InputError, match=REFUSED[name]) as caught:
                list(open_source(path))
            assert "\n" not in str(caught.value)
        else:
            assert len(list(open_source(path))) > 0


@needs_shared
def test_constrained_row_of_the_shared_database() -> None:
    source = open_source(SHARED / "bad" / "mixed_keys.db")
    (row,) = (atoms for atoms in source if atoms.constraints)
    forces = row.calc.results["forces"]
    assert (np.abs(forces[row.constraints[0].index]).max(axis=1) > 0).all()


# --- label-like keys ------------------------------------------------------------------------------------


def test_keys_are_listed_and_suggested(tmp_path: Path) -> None:
    atoms = molecule("CH3OH")
    atoms.info |= {"REF_energy": -1.0, "REF_energy_per_atom": -0.1, "free_energy": -1.0, "note": "energy"}
    atoms.info["dft_stress"] = np.zeros((3, 3))
    atoms.arrays["REF_forces"] = np.zeros((6, 3))
    atoms.arrays["hirshfeld_charges"] = np.zeros(6)
    assert available_keys(atoms) == {
        "info": {
            "REF_energy": (),
            "REF_energy_per_atom": (),
            "free_energy": (),
            "note": None,
            "dft_stress": (3, 3),
        },
        "arrays": {"REF_forces": (6, 3), "hirshfeld_charges": (6,)},
    }
    assert suggest_label_keys(atoms) == {
        "energy": "REF_energy",
        "forces": "REF_forces",
        "stress": "dft_stress",
        "charges": "hirshfeld_charges",
    }
    assert describe_missing(atoms, ["energy", "forces"], "train.xyz") == (
        "no energy, forces in train.xyz; found info: REF_energy, REF_energy_per_atom, free_energy, note, "
        "dft_stress; arrays: REF_forces, hirshfeld_charges; "
        "name them with 'datamodule.label_keys={energy: REF_energy, forces: REF_forces}'"
    )
    message = describe_missing(Atoms("H"), ["energy"], "a.xyz")
    assert message.startswith("no energy in a.xyz; found no labels at all: give files with")
    database = connect(tmp_path / "a.db")
    database.write(molecule("H2O"), dft_energy=-3.0, data={"dft_forces": np.zeros((3, 3))})
    row = open_source(tmp_path / "a.db")[0]
    assert suggest_label_keys(row) == {"energy": "dft_energy", "forces": "dft_forces"}
    assert "key_value_pairs: dft_energy; data: dft_forces" in describe_missing(row, ["energy"], "a.db")


@needs_shared
@pytest.mark.parametrize(
    ("name", "energy", "forces"), [("REF", "REF_energy", "REF_forces"), ("NEP", "Energy", "force")]
)
def test_keys_of_the_shared_files(name: str, energy: str, forces: str) -> None:
    atoms = open_source(SHARED / "bad" / f"keys_{name}.xyz")[0]
    assert suggest_label_keys(atoms) == {"energy": energy, "forces": forces}


def test_opening_says_nothing_where_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_frames(tmp_path / "a.xyz", FRAMES)
    with caplog.at_level(logging.INFO, "physicsml_ase"):
        list(open_source(path))
    assert not caplog.records
