"""What a step of MD costs: ASE's Langevin, neighbour lists and everything else included, peers interleaved.

    VENVS=~/venvs python benchmarks/md.py run --acac acac/test.xyz --systems acac15,si64,si512,si4096 \\
        --model "nequip l1_3x32" nequip RUN_ACAC RUN_SI --model "ours kernel" ours RUN_ACAC RUN_SI kernel
    python benchmarks/md.py table
    python benchmarks/md.py plot

A model is: label, peer, its run on acac, its run on Si ("-" for none), and, for ours, a backend. For each system
and number of threads every model gets a process; the processes take turns of about a second, so that a
disturbance of the machine meets all of them. Kept are medians over the turns. See README.md beside this file.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from training import COLOURS, HERE, RESULTS, ROWS, append, plain_ticks, python, read_rows
from turns import Worker, columns, per_step, take_turns

MD = RESULTS / "md.csv"
COLUMNS = [
    "label", "peer", "backend", "system", "atoms", "threads", "ms_per_step", "ms_fastest_turn", "cpu_ms_per_step",
    "us_per_atom", "start_to_forces_s", "peak_rss_mb", "foreign_cores", "turns", "steps", "date", "note",
]  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("verb", choices=["run", "table", "plot"])
    parser.add_argument("--acac", type=Path, help="a file whose first frame is the molecule")
    parser.add_argument(
        "--model", nargs="+", action="append", default=[], metavar="LABEL PEER ACAC SI [BACKEND]"
    )
    parser.add_argument("--systems", default="acac15,si64,si512,si4096")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn", type=float, default=1.0, help="seconds")
    parser.add_argument("--note", default="")
    given = parser.parse_args()
    if given.verb == "table":
        return print(table())
    if given.verb == "plot":
        return plot()
    for threads in map(int, given.threads.split(",")):
        for system in given.systems.split(","):
            append(MD, COLUMNS, list(rows(given, system, threads)))


def start(model: list[str], system: str, threads: int, acac: Path | None) -> Worker:
    """A process that runs a model's MD."""
    label, kind, *paths = model
    backend = paths[2] if len(paths) > 2 else None
    command = [str(python(kind)), str(HERE / "peers" / "md_worker.py"), kind]
    command += [paths[0 if system == "acac15" else 1], system]
    command += ["--backend", backend] if backend else []
    command += ["--acac", str(acac)] if acac else []
    return Worker(label, command, threads, first=3, least=2)


def rows(given: argparse.Namespace, system: str, threads: int) -> Iterable[dict[str, object]]:
    """A row for each model that has something to run this system with."""
    models = [x for x in given.model if x[2 if system == "acac15" else 3] != "-"]
    workers = [start(model, system, threads, given.acac) for model in models]
    take_turns(workers, given.rounds, given.turn)
    for (label, kind, *paths), worker in zip(models, workers, strict=True):
        turns, atoms = worker.end(), worker.began["atoms"]
        row = {
            "label": label,
            "peer": kind,
            "backend": paths[2] if len(paths) > 2 else "",
            "system": system,
            "atoms": atoms,
            "threads": threads,
            "us_per_atom": round(1000 * per_step(turns, "wall") / atoms, 2),
            "start_to_forces_s": round(worker.began["first_s"], 1),
            **columns(turns, 4),
            "note": given.note,
        }
        print(
            *(f"{k}={v}" for k, v in row.items() if v != ""), f"T={turns[-1]['temperature']:.0f}K", flush=True
        )
        yield row


def latest() -> list[dict[str, str]]:
    """The newest row of each label, system and number of threads."""
    newest = {(x["label"], x["system"], int(x["threads"])): x for x in read_rows(MD)}
    return sorted(newest.values(), key=lambda x: (int(x["threads"]), int(x["atoms"]), x["peer"], x["label"]))


def table() -> str:
    """The newest rows as Markdown."""
    keys = ["threads", "system", "label", "ms_per_step", "us_per_atom", "cpu_ms_per_step", "peak_rss_mb"]
    keys.append("foreign_cores")
    lines = ["| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
    return "\n".join(lines + ["| " + " | ".join(x[k] for k in keys) + " |" for x in latest()])


def plot() -> None:
    """results/md.png: cost against N; results/pareto.png: cost against force error after 240 CPU seconds."""
    import matplotlib.pyplot as plt

    found = latest()
    markers = dict(zip(sorted({x["label"] for x in found}), "osv^D<>Px*ph", strict=False))
    threads = sorted({int(x["threads"]) for x in found})
    figure, axes = plt.subplots(1, len(threads), figsize=(5 * len(threads), 4), squeeze=False, sharey=True)
    for axis, number in zip(axes[0], threads, strict=True):
        for label, marker in markers.items():
            mine = [x for x in found if x["label"] == label and int(x["threads"]) == number]
            points = [(int(x["atoms"]), float(x["ms_per_step"])) for x in mine]
            if points:
                colour = COLOURS[mine[0]["peer"]]
                axis.plot(*zip(*points, strict=True), marker=marker, color=colour, lw=1, label=label)
        axis.set(title=f"{number} thread(s)", xscale="log", yscale="log", xlabel="atoms (15: acac, else Si)")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("ms per MD step")
    figure.tight_layout()
    figure.savefig(RESULTS / "md.png", dpi=130)

    errors = {
        (x["set"], f"{x['peer']} {x['config']}"): float(x["force_rmse_mev_A"])
        for x in read_rows(ROWS)
        if x["budget_s"] == "240"
    }
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, (data, system) in zip(axes, {"acac": "acac15", "Si": "si512"}.items(), strict=True):
        for x in found:
            known = [n for s, n in errors if s == data and x["label"].startswith(n)]
            if x["system"] == system and x["threads"] == str(threads[0]) and known:
                error = errors[data, max(known, key=len)]
                style = {"marker": markers[x["label"]], "color": COLOURS[x["peer"]], "ls": ""}
                cost = 1000 * float(x["cpu_ms_per_step"]) / int(x["atoms"])
                axis.plot([cost], [error], label=x["label"], **style)
        axis.set(title=f"{data}, {system}, {threads[0]} thread(s)", xscale="log", yscale="log")
        axis.set(xlabel="MD cost, CPU µs per atom and step", ylabel="test force RMSE after 240 CPU s, meV/Å")
        plain_ticks(axis)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / "pareto.png", dpi=130)


if __name__ == "__main__":
    main()
