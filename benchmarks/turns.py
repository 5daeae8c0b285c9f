"""Processes that do steps when told to, in turns, so that a disturbance of the machine meets all of them."""

import datetime
import json
import os
import subprocess
from collections.abc import Sequence
from statistics import median

Turn = dict[str, float]
"""What a worker tells of a turn: "wall", "cpu" [s], "rss_mb", "foreign" [cores]; and "steps", how many it did."""


class Worker:
    """A process that reads numbers of steps and tells what they took."""

    def __init__(
        self, label: str, command: Sequence[str], threads: int, *, first: int = 1, least: int = 1
    ) -> None:
        """`first` are the steps of the first turn, `least` those of any other at the least."""
        self.label, self.least = label, least
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.turns: list[Turn] = []
        self.steps = first
        self.began = self._answer()

    def turn(self, seconds: float) -> None:
        """Run for about so long; the first turn warms up, and finds out how many steps that is."""
        self.process.stdin.write(f"{self.steps}\n")
        self.process.stdin.flush()
        out = self._answer()
        self.turns.append({**out, "steps": self.steps})
        self.steps = max(self.least, min(400, round(seconds * self.steps / out["wall"])))

    def end(self) -> list[Turn]:
        """Close its input and wait; the turns, without the first."""
        self.process.stdin.close()
        self.process.wait()
        return self.turns[1:]

    def _answer(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label} ended early: see its message above")
        return json.loads(line)


def take_turns(workers: Sequence[Worker], rounds: int, seconds: float) -> None:
    """So many turns each, one after the other, and one before that does not count."""
    for _ in range(rounds + 1):
        for worker in workers:
            worker.turn(seconds)


def per_step(turns: Sequence[Turn], key: str) -> float:
    """Median over the turns [ms]."""
    return median(1000 * x[key] / x["steps"] for x in turns)


def columns(turns: Sequence[Turn], digits: int) -> dict[str, object]:
    """What every table has of a worker's turns."""
    return {
        "ms_per_step": round(per_step(turns, "wall"), digits),
        "ms_fastest_turn": round(min(1000 * x["wall"] / x["steps"] for x in turns), digits),
        "cpu_ms_per_step": round(per_step(turns, "cpu"), digits),
        "peak_rss_mb": round(turns[-1]["rss_mb"]),
        "foreign_cores": round(median(x["foreign"] for x in turns), 2),
        "turns": len(turns),
        "steps": sum(x["steps"] for x in turns),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
    }
