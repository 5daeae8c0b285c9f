"""The verbs as a user tries them, right and wrong: what is said, where it goes, and the exit status."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import pytest
import yaml
from command_line import TINY, error_of, random_model, run

from physicsml_ase import __version__
from physicsml_ase.conventions import InputError
from physicsml_ase.recipe import with_length, with_recipe

ALLOY = Path(__file__).parents[1] / "examples" / "data" / "alloy_train.xyz"
FEW = f"{ALLOY}@:10"
PROGRAM = (sys.executable, "-m", "physicsml_ase.cli")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model") / "model.ckpt", "Cu Au")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = run(
        "train", "--train", FEW, "--test", f"{ALLOY}@10:12", "-o", folder, *TINY, "trainer.max_epochs=1"
    )
    assert result.exit_code == 0, result.stderr
    return folder


# --- the program


def test_help_and_version() -> None:
    assert run("--version").stdout == f"physicsml-ase {__version__}\n"
    words = run("--help").stdout
    for verb in ("train", "resume", "evaluate", "predict", "md", "relax", "info", "describe"):
        assert f"\n  {verb} " in words
        assert run(verb, "-h").exit_code == 0
    assert "[fs]" in run("md", "--help").stdout
    assert len(run("train", "--help").stdout.splitlines()) < 30


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from physicsml_ase.cli.app import app\n"
        "try: app(['train', '--help'])\n"
        "except SystemExit: print('HEAVY', *{'torch', 'lightning', 'h5py', 'ase'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train", "--tran", "x"], "--train"),
        (["md", "model.ckpt"], "Missing argument 'STRUCTURE'"),
        (["predict", "model.ckpt", "a.xyz"], "Missing option '-o'"),
        (["md", "model.ckpt", "a.xyz", "--time-ps", "long"], "Invalid value for '--time-ps'"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (InputError("a.xyz frame 3: no"), 2, "error: a.xyz frame 3: no"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (PermissionError(13, "Permission denied", "/run"), 2, "error: /run: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 2, "error: the GPU's memory is full"),
    ],
)
def test_what_is_the_users_has_no_traceback(
    error: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("physicsml_ase.checkpoint.describe_checkpoint", raiser(error))
    result = run("info", "model.ckpt")
    assert result.exit_code == status
    assert result.stderr.splitlines()[-1].startswith(words)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "name", "limit"),
    [
        (("predict", "model.ckpt", FEW, "-o", "out.xyz"), "out.xyz", 2000),
        (("evaluate", "model.ckpt", FEW, "-o", "out"), "out/metrics.json", 100),
        (("check", FEW, "--fix", "out.xyz"), "out.xyz", 2000),
        (("md", "model.ckpt", FEW, "-o", "out.traj"), "out.traj", 3000),
        (("md", "model.ckpt", FEW, "-o", "out.xyz"), "out.xyz", 3000),
        (("md", "model.ckpt", FEW, "--log", "out.txt", "--every", "1"), "out.txt", 300),
    ],
)
def test_a_full_disk_names_the_file(arguments: tuple[str, ...], name: str, limit: int, ckpt: Path) -> None:
    """As does a limit of the system's on the size of files."""
    shutil.copy(ckpt, "model.ckpt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        result = run(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"error: {name}: File too large"
    assert not list(Path().rglob(".*"))


@pytest.mark.parametrize("error", [RuntimeError("shapes"), KeyError("x"), OSError("of no number")])
def test_a_mistake_in_the_program_keeps_its_traceback(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("physicsml_ase.checkpoint.describe_checkpoint", raiser(error))
    with pytest.raises(type(error)):
        run("info", "model.ckpt")


def raiser(error: BaseException) -> object:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_output_into_a_closed_pipe() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(PROGRAM)} describe | head -1"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("model: ")
    assert done.stderr == ""


# --- train and resume


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no training data: give --train FILE"),
        (["--train", "nosuch.xyz"], "nosuch.xyz: no such file"),
        (["--train", FEW, "model.chanels=3"], "model.chanels: unknown key; did you mean 'channels'"),
        (["--train", FEW, "model.name=pain"], "unknown model 'pain'; did you mean 'painn'"),
        (["--train", FEW, "optimizer.name=Adm"], "did you mean 'Adam'"),
        (["--train", FEW, "--time", "soon"], "'soon': not a duration; write 90s, 10m"),
        (["--train", FEW, "trainer=5"], "trainer: 5: must be a section"),
        (["--train", FEW, "=3"], "an override is key.sub=value"),
        (["--train", FEW, "trainer.max_epochs="], "no value"),
        (["--train", FEW, "trainer.max_epochs", "3"], "trainer.max_epochs: is neither a config file"),
        (["--train", "a.xyz", "b.xyz"], "b.xyz: is neither a config file .* --train a.xyz --train b.xyz"),
        (["nosuch.yaml", "--train", FEW], "nosuch.yaml: cannot read the config"),
        (["a.yaml", "b.json", "--train", FEW], "one config file at most, not a.yaml, b.json"),
        (
            ["--train", FEW, "datamodule.y_graph_scalars=[enthalpy]"],
            "no enthalpy in .*; found calculator: .*energy",
        ),
        (["--train", FEW, "-o", "/proc/run"], "/proc/run: can not be written to"),
        (["--train", FEW, "trainer.accelerator=tpu"], "error: trainer: "),
    ],
)
def test_training_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    message = error_of(run("train", *arguments, *TINY[:3]))
    assert re.search(words, message), message
    assert not list(tmp_path.rglob("*.ckpt*"))


def test_several_errors_are_told_at_once() -> None:
    Path("wrong.yaml").write_text("model: {name: pain}\ntrainer: {max_epoch: 3}\ndatamodul: {}\n")
    result = run("train", "wrong.yaml", "--train", FEW)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "error: 3 errors in wrong.yaml:"
    for words in ("unknown model 'pain'", "trainer.max_epoch: unknown key", "did you mean 'datamodule'"):
        assert words in result.stderr


def test_what_a_run_leaves(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} >= {
        "config.yaml",
        "run.json",
        "metrics.csv",
        "model.ckpt",
    }
    record = json.loads((trained / "run.json").read_text())
    assert record["status"] == "finished"
    message = error_of(run("train", "--train", FEW, "-o", trained, *TINY))
    assert "already holds a run; its model is" in message
    assert "is finished" in error_of(run("resume", trained))
    assert "not a run's folder" in error_of(run("resume", "nosuch"))


def test_a_refused_run_leaves_its_folder_free() -> None:
    error_of(run("train", "--train", "nosuch.xyz", "-o", "run", *TINY))
    assert not Path("run").exists()
    result = run("train", "--train", FEW, "-o", "run", *TINY, "trainer.max_epochs=1")
    assert result.exit_code == 0
    assert result.stdout == ""


def test_runs_without_a_name_are_numbered() -> None:
    config = {"model": {"channels": 8}, "trainer": {"max_epochs": 1, "max_steps": 1}}
    Path("my.yaml").write_text(yaml.safe_dump(config | {"datamodule": {"train_data": FEW}}))
    for folder in ("training", "training-2"):
        assert run("train", "my.yaml", *TINY).exit_code == 0
        assert Path(folder, "model.ckpt").is_file()
    resolved = yaml.safe_load(Path("training-2/config.yaml").read_text())
    assert resolved["model"]["channels"] == 8
    assert resolved["datamodule"]["train"]["batch_size"] == 1  # the recipe is for runs without a config


def test_the_first_limit_ends_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my.yaml").write_text("trainer: {max_epochs: 2}\n")
    began = time.monotonic()
    monkeypatch.setattr("physicsml_ase.cli.training.STARTED_AT", began)
    arguments = ("train", "my.yaml", "--train", FEW, *TINY)
    assert run(*arguments, "-o", "epochs", "--time", "1h").exit_code == 0
    assert len(Path("epochs/metrics.csv").read_text().splitlines()) >= 2
    began = time.monotonic()
    monkeypatch.setattr("physicsml_ase.cli.training.STARTED_AT", began)
    assert run(*arguments, "-o", "time", "--time", "4s", "trainer.max_epochs=100000").exit_code == 0
    assert 2 < time.monotonic() - began < 60
    assert json.loads(Path("epochs/run.json").read_text())["best"]["epoch"] <= 1
    assert len(Path("time/metrics.csv").read_text().splitlines()) > 6
    for folder in ("epochs", "time"):
        assert yaml.safe_load(Path(folder, "config.yaml").read_text())["trainer"]["max_epochs"] > 0
        assert Path(folder, "model.ckpt").is_file()


def test_without_a_config_the_recipe_trains_for_a_time() -> None:
    trainer = with_length(with_recipe({}))["trainer"]
    assert (trainer["max_time"], trainer["max_epochs"]) == ("15m", -1)
    assert "max_time" not in with_recipe({"trainer": {"max_steps": 3}})["trainer"]
    endless = with_length(with_recipe({"trainer": {"max_steps": -1}}))["trainer"]
    assert endless["max_time"] == "15m"  # Lightning's own number for no limit
    assert with_recipe({"optimizer": {"name": "AdamW"}})["optimizer"] == {"name": "AdamW"}
    assert with_recipe({"optimizer": {"name": "MuonAdam"}})["optimizer"]["config"] == {"lr": 0.01}
    assert with_length({"trainer": {"max_epochs": 3, "max_time": "1h"}})["trainer"]["max_epochs"] == 3
    assert with_length({"trainer": None}) == {"trainer": None}


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_resumed(signum: int, status: int, tmp_path: Path) -> None:
    command = [*PROGRAM, "train", "--train", FEW, "-o", "run", *TINY, "trainer.max_epochs=100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            wait_for(Path("run/metrics.csv"), process)
            process.send_signal(signum)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == status, said
    assert "interrupted: continue with `physicsml-ase resume run`" in said
    assert "Traceback" not in said
    assert Path("run/model.ckpt").is_file()
    assert run("info", "run/checkpoints/last.ckpt").exit_code == 0
    message = error_of(run("train", "--train", FEW, "-o", "run", *TINY))
    assert "continue it with `physicsml-ase resume run`" in message


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file has rows, or the process has ended."""
    for _ in range(600):
        if process.poll() is not None or (path.exists() and path.stat().st_size > 100):
            return
        time.sleep(0.1)


# --- evaluate and predict


def test_evaluate(ckpt: Path) -> None:
    result = run("evaluate", ckpt, FEW, "-o", "errors")
    assert result.exit_code == 0
    assert "energy per atom" in result.stdout
    assert "written to errors" in result.stdout
    assert json.loads(Path("errors/metrics.json").read_text())["forces_rmse"] > 0
    assert {path.name for path in Path("errors").iterdir()} >= {
        "metrics.txt",
        "predictions.xyz",
        "parity.png",
    }


def test_evaluate_by_other_keys(ckpt: Path) -> None:
    frames = ase.io.read(ALLOY, ":3")
    for atoms in frames:
        atoms.info["REF_energy"] = atoms.calc.results["energy"]
        atoms.calc = None
    ase.io.write("a.xyz", frames)
    nothing = error_of(run("evaluate", ckpt, "a.xyz", "-o", "errors"))
    assert "nothing to compare with: no energy, forces, stress in a.xyz frame 0; found info: " in nothing
    assert "label_keys={energy: REF_energy}' (--label-key NAME=KEY)" in nothing
    assert not Path("errors").exists()
    assert "meV/atom" in run("evaluate", ckpt, "a.xyz", "--label-key", "energy=REF_energy").stdout
    assert "NAME=KEY, such as" in error_of(run("evaluate", ckpt, "a.xyz", "--label-key", "energy"))
    assert "enthalpy is not a label" in error_of(run("evaluate", ckpt, "a.xyz", "--label-key", "enthalpy=H"))


def test_predict(ckpt: Path) -> None:
    result = run("predict", ckpt, FEW, f"{ALLOY}@10:12", "-o", "out/predictions.xyz")
    assert result.stdout == "12 structures written to out/predictions.xyz\n"
    assert len(ase.io.read("out/predictions.xyz", ":")) == 12
    assert "end in .xyz" in error_of(run("predict", ckpt, FEW, "-o", "predictions.traj"))
    assert not Path("predictions.traj").exists()


@pytest.mark.parametrize("verb", ["evaluate", "predict", "md", "relax"])
def test_what_a_model_can_not_do(verb: str, ckpt: Path, tmp_path: Path) -> None:
    more = ("-o", "out.xyz") if verb != "evaluate" else ()
    Path("xenon.xyz").write_text("2\nenergy=1.0\nXe 0 0 0\nCu 2 0 0\n")
    assert "element Xe (atom 0) is not in the model" in error_of(run(verb, ckpt, "xenon.xyz", *more))
    assert "no such file" in error_of(run(verb, ckpt, "nosuch.xyz", *more))
    assert "chooses none of" in error_of(run(verb, ckpt, f"{ALLOY}@9999", *more))
    assert "no such checkpoint" in error_of(run(verb, "nosuch.ckpt", FEW, *more))
    assert "several models at once are for md, relax, evaluate" in error_of(run("verify", f"{ckpt},{ckpt}"))
    assert "is not a checkpoint" in error_of(run(verb, ALLOY, FEW, *more))
    assert "device 'gpu9' can not be used" in error_of(run(verb, ckpt, FEW, "--device", "gpu9", *more))
    assert [path.name for path in tmp_path.iterdir()] == ["xenon.xyz"]


# --- md and relax


@pytest.mark.parametrize("thermostat", ["langevin", "nve", "nose-hoover", "bussi", "npt"])
def test_md(thermostat: str, ckpt: Path) -> None:
    arguments = ("md", ckpt, f"{ALLOY}@0", "--thermostat", thermostat, "--every", "2", "--log", "md.log")
    first = run(*arguments, "--time-ps", "0.004")
    assert first.exit_code == 0, first.stderr
    assert first.stdout.startswith("4 steps, now at 0.004 ps")
    assert "written to md.traj" in first.stdout
    second = run(*arguments, "--time-ps", "0.008")
    assert "continuing md.traj from step 4" in second.stderr
    assert len(ase.io.read("md.traj", ":")) == 5
    assert len([line for line in Path("md.log").read_text().splitlines() if "#" not in line]) == 5
    run(*arguments, "--time-ps", "0.004", "--no-restart")
    assert len(ase.io.read("md.traj", ":")) == 3


def test_md_of_no_steps_says_so(ckpt: Path) -> None:
    """A length in fs, or one shorter than a step."""
    for length in ("0", "0.0004"):
        result = run("md", ckpt, f"{ALLOY}@0", "--time-ps", length, "--no-restart")
        assert "warning: nothing moves: the length asked for is 0 steps of 1 fs" in result.stderr
        assert len(ase.io.read("md.traj", ":")) == 1


def test_md_refused(ckpt: Path) -> None:
    def message(*more: str) -> str:
        return error_of(run("md", ckpt, f"{ALLOY}@0", *more))

    assert "use langevin, nve" in message("--thermostat", "warm")
    assert "name ends in .traj" in message("-o", "md.pdb")
    assert "time_ps must not be negative: -1.0" in message("--time-ps", "-1")
    assert "use float32 or float64" in message("--dtype", "float16")
    ase.io.write("other.traj", ase.io.read(ALLOY, 1))
    assert "--no-restart" in message("-o", "other.traj")


@pytest.mark.parametrize(
    "verb", [("md", "--no-restart"), ("relax",), ("relax", "-o", "out.xyz", "--trajectory")]
)
def test_the_structures_own_file_is_spared(verb: tuple[str, ...], ckpt: Path) -> None:
    ase.io.write("own.xyz", ase.io.read(ALLOY, 0))
    before = Path("own.xyz").read_bytes()
    last = () if verb[-1] == "--trajectory" else ("-o",)
    for structure in ("own.xyz", "own.xyz@0"):
        message = error_of(run(verb[0], ckpt, structure, *verb[1:], *last, "./own.xyz"))
        assert "is a file that is read here; give another name with" in message
    assert Path("own.xyz").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("md", "own.ckpt", "own.xyz", "--log", "own.ckpt"),
        ("md", f"{ALLOY},./own.ckpt", "own.xyz", "--log", "own.ckpt"),
        ("md", "own.ckpt", "own.xyz", "--log", "own.xyz"),
        ("md", "own.ckpt", "own.xyz", "--time-ps", "0.001", "--log", "other.ckpt"),
        ("relax", "own.ckpt", "own.xyz@0", "--trajectory", "own.xyz"),
        ("evaluate", "own.ckpt", "errors/predictions.xyz", "-o", "errors"),
        ("predict", "own.ckpt", "own.xyz", "-o", "own.xyz"),
        ("import", "mace", "own.ckpt", "-o", "own.ckpt"),
        ("export", "own.pt2", "-o", "own.pt2"),
    ],
)
def test_what_a_verb_reads_is_not_written_over(arguments: tuple[str, ...], ckpt: Path) -> None:
    Path("errors").mkdir()
    for name in ("own.ckpt", "other.ckpt", "own.pt2"):
        shutil.copy(ckpt, name)
    for name in ("own.xyz", "errors/predictions.xyz"):
        ase.io.write(name, ase.io.read(ALLOY, ":2"))
    before = {path: path.read_bytes() for path in Path().rglob("*.*")}
    assert re.search("another (name|one|folder)", error_of(run(*arguments)))
    assert before == {path: path.read_bytes() for path in Path().rglob("*.*")}


def test_relax(ckpt: Path) -> None:
    result = run("relax", ckpt, f"{ALLOY}@0", "--fmax", "5", "-o", "out/POSCAR")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("converged after")
    assert len(ase.io.read("out/POSCAR")) == len(ase.io.read(ALLOY, 0))
    arguments = (
        "relax",
        ckpt,
        ALLOY,
        "--cell",
        "--fmax",
        "1e-9",
        "--steps",
        "2",
        "--trajectory",
        "steps.traj",
    )
    stopped = run(*arguments)
    assert stopped.exit_code == 1
    assert stopped.stdout.startswith("NOT converged after 2 steps")
    assert "taking the last one" in stopped.stderr
    assert "onverge" not in stopped.stderr
    assert Path("relaxed.xyz").is_file()
    assert len(ase.io.read("steps.traj", ":")) == 3


def test_relax_refused(ckpt: Path) -> None:
    def message(*more: str) -> str:
        return error_of(run("relax", ckpt, f"{ALLOY}@0", *more))

    assert "use FIRE" in message("--optimizer", "Newton")
    assert "(--cell)" in message("--pressure", "3")
    for name in ("relaxed.nosuch", "relaxed"):
        assert f"{name}: ASE writes no file format under that name" in message("-o", name)
    assert not list(Path().iterdir())
    for name in ("mine.db", "mine.json"):
        ase.io.write(name, ase.io.read(ALLOY, ":3"))
        assert f"{name}: exists, and would lose the structures in it" in message("-o", name)
        assert len(ase.io.read(name, ":")) == 3


# --- info and describe


def test_info(trained: Path, ckpt: Path) -> None:
    words = run("info", trained / "model.ckpt").stdout
    for line in ("model ", "elements ", "cut-off ", "labels ", "stored frames ", "train data ", "test RMSE "):
        assert f"\n{line}" in f"\n{words}"
    assert "replayed within" in words
    assert run("info", ckpt).exit_code == 0
    assert "name the model.ckpt in it" in error_of(run("info", trained))
    Path("cut.ckpt").write_bytes(ckpt.read_bytes()[:-200])
    assert "is not a checkpoint, or it was cut" in error_of(run("info", "cut.ckpt"))


def test_describe() -> None:
    words = run("describe").stdout
    for field in (
        "datamodule.cut_off: float > 0 = 5.0",
        "trainer.max_epochs: ",
        "model.channels: ",
        "seed: int >= 0",
    ):
        assert f"\n{field}" in f"\n{words}"
    assert len([line for line in words.splitlines() if line.startswith("datamodule.pre_batch")]) == 1
    section = run("describe", "datamodule").stdout
    assert all(line.startswith(("datamodule", "    ")) for line in section.splitlines())
    assert "model.channels" in run("describe", "model.painn").stdout
    assert "did you mean 'trainer'" in error_of(run("describe", "trainr"))
    unknown = error_of(run("describe", "nosuch"))
    assert "known: model, datamodule, trainer, loss" in unknown
    assert len(unknown) < 300


def test_schema() -> None:
    schema = json.loads(run("describe", "--schema").stdout)
    assert set(schema["properties"]) >= {"model", "datamodule", "trainer", "loss"}
    assert schema["additionalProperties"] is False
    models = schema["properties"]["model"]["oneOf"]
    assert {one["properties"]["name"]["const"] for one in models} >= {"gaunt_ace", "ani"}
    assert "$ref" not in json.dumps(models)
