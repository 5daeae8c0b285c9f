"""Errors on the test file after so many CPU seconds of one core, everything included.

    VENVS=~/venvs taskset -c 1 python benchmarks/training.py run --source DATA --work WORK --peers mace:64x0e
    python benchmarks/training.py table
    python benchmarks/training.py plot

`run` trains each peer on each set, one after another, and appends a row to `results/training.csv` after each;
`ours` (optionally `ours:LABEL`) is this package, through its command line. See README.md beside this file.
"""

import argparse
import csv
import datetime
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from matplotlib.axes import Axes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
from data import SETS, prepare  # noqa: E402

RESULTS = Path(os.environ.get("RESULTS", HERE / "results"))
ROWS, CURVES = RESULTS / "training.csv", RESULTS / "curves.csv"
COLUMNS = [
    "set", "peer", "config", "budget_s", "batch", "cpu_s", "wall_s", "energy_rmse_mev_atom",
    "force_rmse_mev_A", "epochs", "steps", "structures_per_cpu_s", "start_cpu_s", "peak_rss_mb", "date", "note",
]  # fmt: skip
FRAMES = {"acac": 450, "Si": 193, "MAPbI3": 527, "TiO2": 810, "Mo": 175}  # to train on
BATCH = {"acac": 5, "TiO2": 5, "Si": 2, "MAPbI3": 2, "Mo": 2}  # about a hundred atoms
COLOURS = {"ours": "#c1272d", "nequip": "#0072b2", "graphpes": "#009e73", "mace": "#555555"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("verb", choices=["run", "table", "plot"])
    parser.add_argument("--source", type=Path, help="folder of the data sets")
    parser.add_argument("--work", type=Path, help="folder for splits and runs")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--peers", default="nequip:l1_3x32,graphpes:PaiNN,mace:64x0e,mace:32x0e+32x1o")
    parser.add_argument("--seconds", type=int, default=240)
    parser.add_argument("--batch", type=int, help="structures a step, for the peers")
    parser.add_argument("--until", help="HH:MM (UTC): start nothing after it")
    parser.add_argument("--tag", default="", help="tells runs of the same peer apart")
    parser.add_argument("--note", default="")
    parser.add_argument("ours", nargs="*", help="overrides for our command line, key=value")
    given = parser.parse_intermixed_args()
    if given.verb == "table":
        return print(table())
    if given.verb == "plot":
        return plot()
    for name in given.sets.split(","):
        data = prepare(given.source, given.work / "data", name)
        for peer in given.peers.split(","):
            if given.until and datetime.datetime.now(datetime.UTC).strftime("%H:%M") >= given.until:
                return print(f"{given.until} is past: stopped before {peer} on {name}")
            one(name, data, peer, given)


def one(name: str, data: Path, peer: str, given: argparse.Namespace) -> None:
    """Train, evaluate, append a row."""
    kind, _, config = peer.partition(":")
    run = given.work / "runs" / f"{name}-{kind}-{config or 'default'}-{given.seconds}{given.tag}"
    if run.exists():
        return print(f"{run} is there: left alone")
    run.parent.mkdir(parents=True, exist_ok=True)
    batch = given.batch or BATCH[name]
    ours = kind == "ours"
    print(f"{name} {peer} ...", flush=True)
    if ours:
        train = [python(kind).parent / "physicsml-ase", "train", "-o", run, "--time", f"{given.seconds}s"]
        train += ["--train", data / "train.xyz", "--validation", data / "validation.xyz", *given.ours]
    else:
        train = [python(kind), HERE / "peers" / f"{kind}_peer.py", "train", "--config", config]
        train += ["--data", data, "--run", run, "--seconds", str(given.seconds), "--batch", str(batch)]
    spent = measure(train, run.with_suffix(".log"), given.seconds * 5 / 3 + 60)
    evaluate = [python(kind), HERE / "peers" / f"{kind}_peer.py", "evaluate", "--data", data, "--run", run]
    out = subprocess.run(list(map(str, evaluate)), capture_output=True, text=True, env=one_thread())
    if out.returncode:
        return print(f"{name} {peer}: failed, see {run.with_suffix('.log')}\n{out.stderr[-1500:]}")
    errors = json.loads(out.stdout.strip().splitlines()[-1])
    progress = our_progress(run) if ours else json.loads((run / "progress.json").read_text())
    curve = progress.pop("curve", [])
    row = {
        "set": name, "peer": kind, "config": (config or "default") + given.tag, "budget_s": given.seconds,
        "batch": "" if ours else batch, **spent, **progress,
        "energy_rmse_mev_atom": round(errors["energy_rmse"], 3), "force_rmse_mev_A": round(errors["force_rmse"], 2),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"), "note": given.note,
    }  # fmt: skip
    append(ROWS, COLUMNS, [row])
    label = {k: row[k] for k in ("set", "peer", "config", "budget_s")}
    points = [{**label, "cpu_s": c, "validation_force_rmse_mev_A": f} for c, f in curve]
    append(CURVES, [*label, "cpu_s", "validation_force_rmse_mev_A"], points)
    print(*(f"{k}={v}" for k, v in row.items() if v != ""), flush=True)


def our_progress(run: Path) -> dict[str, object]:
    """Epochs, steps and validation errors of one of our runs, from its log (whose seconds are wall time)."""
    found = re.findall(
        r"^ *([\d.]+) s +epoch (\d+) +step (\d+) .*forces ([\d.]+) meV",
        run.with_suffix(".log").read_text(),
        re.M,
    )
    curve = [(float(seconds), float(force)) for seconds, _, _, force in found]
    with (run / "metrics.csv").open() as stream:
        last = list(csv.DictReader(stream))[-1]
    return {"epochs": int(last["epoch"]) + 1, "steps": int(last["step"]) + 1, "curve": curve}


def measure(command: list[str | Path], log: Path, limit: float) -> dict[str, float]:
    """CPU and wall seconds and peak memory of a process and the processes that it waited for."""
    began = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["timeout", str(limit), *map(str, command)], stdout=stream, stderr=stream, env=one_thread()
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        print(f"ended with status {os.waitstatus_to_exitcode(status)}: {log}", flush=True)
    return {
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_s": round(time.perf_counter() - began, 1),
        "peak_rss_mb": round(usage.ru_maxrss / 1024),
    }


def python(kind: str) -> Path:
    """The interpreter of a peer, from VENVS; ours is the one that runs this."""
    return Path(sys.executable) if kind == "ours" else Path(os.environ["VENVS"]) / kind / "bin" / "python"


def one_thread() -> dict[str, str]:
    """The environment of every process that is measured."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "WANDB_MODE": "disabled"}


def append(path: Path, columns: list[str], rows: list[dict[str, object]]) -> None:
    """To a CSV file, which gets its head if it is new."""
    new = not path.exists()
    path.parent.mkdir(exist_ok=True)
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open() as stream:
        return list(csv.DictReader(stream))


def table() -> str:
    """The rows as Markdown, and each of ours against the best peer of its set and budget."""
    head = [
        "set",
        "model",
        "budget s",
        "CPU s",
        "energy meV/atom",
        "forces meV/Å",
        "structures/CPU s",
        "all in",
        "MB",
    ]
    lines = ["| " + " | ".join([*head, "of the best peer"]) + " |", "|---" * (len(head) + 1) + "|"]
    order = list(SETS)
    rows = sorted(read_rows(ROWS), key=lambda x: (int(x["budget_s"]), order.index(x["set"]), x["peer"]))
    for row in rows:
        force = float(row["force_rmse_mev_A"])
        cell = [x for x in rows if (x["set"], x["budget_s"]) == (row["set"], row["budget_s"])]
        best = min((float(x["force_rmse_mev_A"]) for x in cell if x["peer"] != "ours"), default=None)
        ratio = f"{force / best:.2f}" if best else ""
        spent = float(row["cpu_s"])
        everything = f"{float(row['epochs']) * FRAMES[row['set']] / spent:.1f}" if row["epochs"] else ""
        lines.append(
            f"| {row['set']} | {row['peer']} {row['config']} | {row['budget_s']} | {spent:.0f} "
            f"| {float(row['energy_rmse_mev_atom']):.2f} | {force:.1f} | {row['structures_per_cpu_s']} "
            f"| {everything} | {row['peak_rss_mb']} | {ratio} |"
        )
    return "\n".join(lines)


def plain_ticks(axis: Axes) -> None:
    """Numbers, not powers, along the error; only decades along the other."""
    axis.xaxis.set_minor_formatter("")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="both", labelsize=7)


def first_parts(curves: list[dict[str, str]]) -> list[list[tuple[float, float]]]:
    """For each budget the curve of one run, as far as its first training: time begins anew with what follows."""
    parts = []
    for budget in sorted({int(x["budget_s"]) for x in curves}):
        line: list[tuple[float, float]] = []
        for x in (x for x in curves if int(x["budget_s"]) == budget):
            seconds = float(x["cpu_s"])
            if line and seconds < line[-1][0]:
                break
            line.append((seconds, float(x["validation_force_rmse_mev_A"])))
        parts.append(line)
    return parts


def plot() -> None:
    """results/training.png: validation curves (lines) and test errors (points) against CPU seconds."""
    import matplotlib.pyplot as plt

    rows, curves = read_rows(ROWS), read_rows(CURVES) if CURVES.exists() else []
    names = [name for name in SETS if any(row["set"] == name for row in rows)]
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        labels = sorted({(x["peer"], x["config"]) for x in rows if x["set"] == name})
        for peer, config in labels:
            mine = lambda x: (x["set"], x["peer"], x["config"]) == (name, peer, config)  # noqa: B023, E731
            style = "--" if "x1o" in config else "-"
            for line in first_parts([x for x in curves if mine(x)]):
                axis.plot(*zip(*line, strict=True), style, color=COLOURS[peer], lw=1)
            points = sorted((float(x["cpu_s"]), float(x["force_rmse_mev_A"])) for x in rows if mine(x))
            marker = "s" if "x1o" in config else "o"
            axis.plot(*zip(*points, strict=True), marker, color=COLOURS[peer], ms=6, label=f"{peer} {config}")
        axis.set(title=name, xscale="log", yscale="log", xlabel="CPU seconds (one core)", xlim=(5, None))
        plain_ticks(axis)
        axis.legend(fontsize=6)
    axes[0][0].set_ylabel("force RMSE, meV/Å\n(points: test, lines: validation)")
    figure.tight_layout()
    figure.savefig(RESULTS / "training.png", dpi=130)


if __name__ == "__main__":
    main()
