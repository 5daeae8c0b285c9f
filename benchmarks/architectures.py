"""Our architectures beside their originals, with the same weights: a step of MD and a step of training.

    VENVS=~/venvs python benchmarks/architectures.py run mace --acac acac/test.xyz --systems acac15,si64,si512,si4096
    python benchmarks/architectures.py table

The original writes a model with random weights in its own environment (peers/NAME_steps.py), `physicsml-ase import`
makes ours of it, and both take turns of about a second as in md.py. Kept are medians over the turns, in float32.
A further architecture is a file peers/NAME_steps.py with the functions that peers/step_worker.py names, and a line
in `PEERS`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from training import HERE, RESULTS, append, python, read_rows
from turns import Worker, columns, per_step, take_turns

FILE = RESULTS / "architectures.csv"
COLUMNS = [
    "architecture", "code", "task", "system", "atoms", "threads", "ms_per_step", "ms_fastest_turn",
    "cpu_ms_per_step", "peak_rss_mb", "times_faster", "times_faster_cpu", "foreign_cores", "turns", "steps", "date",
    "note",
]  # fmt: skip
PEERS = {"mace": "mace", "nequip": "nequip", "tensor_net": "torchmdnet", "ani": "torchani"}
"""Environments in VENVS of the originals."""
ELEMENTS = {"acac15": "1,6,8"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("architecture", nargs="?", choices=PEERS)
    parser.add_argument("--acac", type=Path, help="a file whose first frame is the molecule")
    parser.add_argument("--systems", default="acac15,si64,si512,si4096")
    parser.add_argument("--tasks", default="md,train")
    parser.add_argument("--train-up-to", type=int, default=512, help="atoms")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=1.0, help="seconds")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    if given.verb == "table":
        return print(table())
    with tempfile.TemporaryDirectory() as folder:
        for system in given.systems.split(","):
            paths = models(given.architecture, ELEMENTS.get(system, "14"), Path(folder) / system)
            for task in given.tasks.split(","):
                for threads in map(int, given.threads.split(",")):
                    append(FILE, COLUMNS, list(rows(given, paths, task, system, threads)))


def models(architecture: str, elements: str, folder: Path) -> tuple[Path, Path]:
    """The original with random weights, and ours with the same."""
    folder.mkdir()
    theirs, ours = folder / "their.model", folder / "model.ckpt"
    peer = str(python(PEERS[architecture]))
    worker = [str(HERE / "peers" / "step_worker.py"), f"{architecture}_steps", str(theirs)]
    subprocess.run([peer, *worker, "write", elements], check=True)
    command = [sys.executable, "-m", "physicsml_ase.cli", "import", architecture, str(theirs)]
    command += ["-o", str(ours), "--python", peer]
    if architecture == "tensor_net":
        from ase.data import chemical_symbols

        symbols = " ".join(chemical_symbols[int(z)] for z in elements.split(","))
        command += ["--elements", symbols]
    subprocess.run(command, check=True)
    return theirs, ours


def rows(
    given: argparse.Namespace, paths: tuple[Path, Path], task: str, system: str, threads: int
) -> Iterable[dict[str, object]]:
    """The original's row and ours."""
    modules = [(PEERS[given.architecture], f"{given.architecture}_steps"), ("ours", "ours_steps")]
    atoms = 15 if system == "acac15" else int(system.removeprefix("si").removeprefix("c"))
    if task == "train" and atoms > given.train_up_to:
        return
    workers = []
    for (environment, module), path in zip(modules, paths, strict=True):
        command = [str(python(environment)), str(HERE / "peers" / "step_worker.py"), module, str(path)]
        command += [task, system, *(["--acac", str(given.acac)] if given.acac else [])]
        workers.append(Worker(module, command, threads))
    take_turns(workers, given.rounds, given.turn)
    theirs: dict[str, float] = {}
    for (environment, _), worker in zip(modules, workers, strict=True):
        turns = worker.end()
        step, cpu = per_step(turns, "wall"), per_step(turns, "cpu")
        theirs = theirs or {"wall": step, "cpu": cpu}
        row = {
            "architecture": given.architecture,
            "code": environment,
            "task": task,
            "system": system,
            "atoms": worker.began["atoms"],
            "threads": threads,
            **columns(turns, 3),
            "times_faster": round(theirs["wall"] / step, 2),
            "times_faster_cpu": round(theirs["cpu"] / cpu, 2),
            "note": given.note,
        }
        print(*(f"{k}={v}" for k, v in row.items() if v != ""), flush=True)
        yield row


def table() -> str:
    """The newest row of each cell as Markdown."""
    newest = {
        (x["architecture"], x["task"], int(x["atoms"]), x["threads"], x["code"]): x for x in read_rows(FILE)
    }
    keys = [
        "architecture",
        "task",
        "system",
        "threads",
        "code",
        "ms_per_step",
        "cpu_ms_per_step",
        "peak_rss_mb",
    ]
    keys += ["times_faster", "times_faster_cpu"]
    lines = ["| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
    return "\n".join(lines + ["| " + " | ".join(newest[at][k] for k in keys) + " |" for at in sorted(newest)])


if __name__ == "__main__":
    main()
