"""Packages: one file that runs without a compiler, where it fits, and says in one line where it does not."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write
from command_line import error_of, run
from conftest import structures
from models_for_tests import CUTOFF, DOMAIN, ENERGY, WALL, make, on_cpu

from physicsml_ase.atoms import to_graph
from physicsml_ase.backends import package as packages
from physicsml_ase.backends.native import not_native
from physicsml_ase.backends.package import export_package, package_potential, read_package, unfit
from physicsml_ase.checkpoint import read_checkpoint, save_potential
from physicsml_ase.conventions import InputError
from physicsml_ase.models.painn import PaiNN

KINDS = ("crystal", "molecule", "slab", "triclinic", "tiny", "lone_atom", "far_apart")


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    """A checkpoint that stores a few structures."""
    frames = [to_graph(structures()[kind], CUTOFF) for kind in ("crystal", "molecule")]
    save_potential(make(), tmp_path / "model.ckpt", frames=frames)
    return tmp_path / "model.ckpt"


def without_code(ckpt: Path, **changes: object) -> Path:
    """A package that lacks its compiled code, made for another machine where `changes` say so."""
    about = packages._about(make()) | changes
    path = ckpt.with_suffix(".pt2")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(ckpt, "model/extra/model.ckpt")
        archive.writestr("model/extra/package.json", json.dumps(about))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch": "1.2.3"}, "compiled for torch 1.2.3, and this is"),
        ({"system": "beos"}, "compiled for system beos"),
        ({"machine": "vax"}, "compiled for processor vax"),
        ({"capability": "AVX9000"}, "compiled for processors with AVX9000, and this one has"),
        ({"device": "cuda", "gpu": [9, 0]}, "compiled for device cuda, and here it is cpu"),
        ({}, "its compiled code can not be loaded"),
    ],
)
def test_what_does_not_fit(
    ckpt: Path, changes: dict[str, object], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Is said, and the model is computed in another way; asked for by name, it is an error."""
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    path = without_code(ckpt, **changes)
    calc = on_cpu(path)
    assert calc.backend == "eager"
    assert words in caplog.text
    plain = on_cpu(ckpt, backend="eager")
    for atoms in (structures()["crystal"], structures()["slab"]):
        calc.calculate(atoms)
        plain.calculate(atoms)
        assert calc.results["energy"] == plain.results["energy"]
    with pytest.raises(InputError, match=words) as error:
        on_cpu(path, backend="aoti")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_the_kernel_comes_before_a_package(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As it is several times as fast, where it can be had."""
    potential = make(channels=16)
    if not_native(potential) is not None:
        pytest.skip("no compiler")
    save_potential(potential, tmp_path / "model.ckpt")
    assert on_cpu(without_code(tmp_path / "model.ckpt")).backend == "kernel"
    assert "compiled code" not in caplog.text


def test_verbs_that_take_checkpoints_alone_say_so(ckpt: Path) -> None:
    path = without_code(ckpt)
    write(ckpt.with_name("data.xyz"), structures()["crystal"])
    for verb, *more in (
        ("verify",),
        ("evaluate", "data.xyz"),
        ("predict", "data.xyz", "-o", "out.xyz"),
        ("export",),
    ):
        message = error_of(run(verb, path, *(ckpt.with_name(x) if "." in x else x for x in more)))
        assert "model.pt2: is an exported package, for md, relax and the calculator; give the" in message
    assert not ckpt.with_name("out.xyz").exists()


def test_info(ckpt: Path) -> None:
    """Of a package is that of its checkpoint, and what its code was compiled for."""
    words = run("info", without_code(ckpt)).stdout
    assert words.startswith(run("info", ckpt).stdout)
    assert "runs here           yes" in words
    assert "compiled for        torch 1.2.3" in (
        words := run("info", without_code(ckpt, torch="1.2.3")).stdout
    )
    assert "runs here           not as compiled: it was compiled for torch 1.2.3, and this is" in words


def test_more_capable_processors_fit(ckpt: Path) -> None:
    package = read_package(without_code(ckpt, capability="DEFAULT"))
    assert unfit(package, package_potential(package, torch.device("cpu"), None)) is None


def test_another_number_type(ckpt: Path) -> None:
    path = without_code(ckpt)
    with pytest.raises(InputError, match="compiled for dtype float32, and here it is float64"):
        on_cpu(path, dtype="float64", backend="aoti")
    assert on_cpu(path, dtype="float64").potential.dtype == torch.float64


def test_files_that_are_no_packages(tmp_path: Path, ckpt: Path) -> None:
    (tmp_path / "text.pt2").write_text("hello")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("other/data/model.json", "{}")
    os.link(ckpt, tmp_path / "renamed.pt2")
    whole = without_code(ckpt).read_bytes()
    (tmp_path / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    for name in ("text", "other", "renamed", "cut", "none"):
        path = tmp_path / f"{name}.pt2"
        with pytest.raises(InputError, match=r"no such package|is not a package") as error:
            on_cpu(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="newer than this one"):
        on_cpu(without_code(ckpt, format_version=99, version="9.0"))


def test_what_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_potential(make(name="painn"), tmp_path / "painn.ckpt")
    monkeypatch.setattr(PaiNN, "takes_slots", False)  # as architectures of others may be
    error = error_of(run("export", tmp_path / "painn.ckpt", "-o", tmp_path / "out.pt2"))
    assert "painn has no compiled step" in error
    save_potential(make(), tmp_path / "model.ckpt")
    assert "ends in .pt2" in error_of(run("export", tmp_path / "model.ckpt", "-o", tmp_path / "out.ckpt"))
    assert "no such checkpoint" in error_of(run("export", tmp_path / "none.ckpt"))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["model.ckpt", "painn.ckpt"]


IN_ANOTHER_PROCESS = """
import json, sys, numpy as np
from ase.io import read
from physicsml_ase import PhysicsMLCalculator
calc = PhysicsMLCalculator(sys.argv[1])
results = []
for atoms in read(sys.argv[2], ":"):
    calc.calculate(atoms)
    results.append({name: np.asarray(value).tolist() for name, value in calc.results.items()})
heavy = [name for name in ("lightning", "torch._dynamo", "torch._inductor") if name in sys.modules]
print(json.dumps([calc.backend, heavy, results]))
"""


@pytest.mark.slow
def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every label, in a process that finds no compiler, as eager computes them."""
    from dataclasses import replace

    from ase.io import write

    monkeypatch.chdir(tmp_path)
    potential = make((*ENERGY, "dipole", "charges"), replace(DOMAIN, shortest_distances=WALL))
    save_potential(potential, "model.ckpt", frames=[to_graph(structures()["crystal"], CUTOFF)])
    done = run("export", "model.ckpt", "-o", "folder/model.pt2")
    assert done.exit_code == 0, done.stderr
    assert "written to folder/model.pt2, for torch" in done.stdout
    assert [x.name for x in Path("folder").iterdir()] == ["model.pt2"]
    frames = [structures()[kind] for kind in KINDS]
    write("frames.xyz", frames)
    (tmp_path / "empty").mkdir()
    nothing = {"PATH": str(tmp_path / "empty"), "HOME": str(tmp_path / "empty"), "CXX": "none"}
    told = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, "folder/model.pt2", "frames.xyz"],
        env={**{k: v for k, v in os.environ.items() if k == "OMP_NUM_THREADS"}, **nothing},
        capture_output=True,
        text=True,
        check=True,
    )
    backend, heavy, results = json.loads(told.stdout)
    assert backend == "aoti"
    assert heavy == []
    plain = on_cpu("model.ckpt", backend="eager")
    for atoms, found in zip(frames, results, strict=True):
        plain.calculate(atoms)
        assert found.keys() == plain.results.keys()
        for name, value in plain.results.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["compile", "aoti"])
def test_without_a_compiler(backend: str, tmp_path: Path) -> None:
    """One line says what is missing, and nothing is left behind."""
    save_potential(make(), tmp_path / "model.ckpt")
    code = (
        "import sys\nfrom ase.build import bulk\nfrom physicsml_ase import PhysicsMLCalculator\n"
        "try: PhysicsMLCalculator(sys.argv[1], backend=sys.argv[2]).calculate(bulk('Cu', cubic=True))\n"
        "except ValueError as error: print(error)"
    )
    nothing = {"PATH": "", "CXX": "none", "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.ckpt"), backend],
        env={**nothing, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is there a C++ compiler?" in told.stdout
    assert told.stdout.count("\n") == 1
    assert not list(tmp_path.rglob("*.pt2"))


@pytest.mark.slow
def test_a_checkpoint_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And found again, by weights and settings; another model is another package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled = []
    monkeypatch.setattr(
        packages, "export_package", lambda *given: compiled.append(1) or export_package(*given)
    )
    for _ in range(2):
        calc = on_cpu(make(), backend="aoti")
        assert calc.backend == "aoti"
    calc.calculate(structures()["slab"])
    plain = on_cpu(make(), backend="eager")
    plain.calculate(structures()["slab"])
    np.testing.assert_allclose(calc.results["forces"], plain.results["forces"], atol=1e-5)
    assert compiled == [1]
    assert calc.backend == "aoti"


def test_contents_are_plain_data(ckpt: Path) -> None:
    package = read_package(without_code(ckpt))
    assert package.contents.keys() == read_checkpoint(ckpt).keys()
    assert package.dtype == torch.float32


def test_code_of_another_version_is_not_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mistakes would stay when they are mended."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = []

    def written_only(potential: object, path: Path, contents: dict[str, object]) -> None:
        written.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(packages, "export_package", written_only)
    for source in ("one", "one", "another"):
        monkeypatch.setattr(packages, "source_digest", lambda source=source: source)
        with pytest.raises(KeyboardInterrupt):
            packages.cached_package(make())
    assert written[0] == written[1] != written[2]


def test_the_source_digest_is_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for text in ("one", "one", "another"):
        for name in ("backends", "models", "nn"):
            (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / "potential.py").write_text("")
        (tmp_path / "nn/part.py").write_text(text)
        monkeypatch.setattr(packages, "__file__", str(tmp_path / "backends/package.py"))
        packages.source_digest.cache_clear()
        digests.append(packages.source_digest())
    packages.source_digest.cache_clear()
    assert digests[0] == digests[1] != digests[2]
