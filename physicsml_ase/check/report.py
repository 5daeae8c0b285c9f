"""What a check found: as objects, as plain data, as text for people."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from physicsml_ase.check.cost import in_time
from physicsml_ase.check.findings import GRADES, Finding, in_number

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
LISTED = 12
"""Pairs of elements that the table names, those with the most pairs first."""


@dataclass(frozen=True)
class Report:
    """Findings, the worst first, and what the data cover."""

    sets: dict[str, tuple[str, int]]
    """Name and number of frames of each set."""
    findings: tuple[Finding, ...]
    coverage: dict[str, Any]
    cost: dict[str, float]
    slopes: dict[str, float]
    """What the units were judged by."""
    seconds: float
    keys: dict[str, str]
    """Names under which labels were found, {ours: theirs}."""
    seen: int
    """Frames that were read; fewer than there are in the short form."""

    @property
    def errors(self) -> list[Finding]:
        """Findings that are certain and ruin a training."""
        return [f for f in self.findings if f.grade == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """Findings that are likely mistakes."""
        return [f for f in self.findings if f.grade == "warning"]

    def plain(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "sets": {set_: {"source": name, "frames": count} for set_, (name, count) in self.sets.items()},
            "findings": [
                {
                    "grade": f.grade,
                    "code": f.code,
                    "message": f.message,
                    "advice": f.advice,
                    "frames": _by_set(f),
                    "where": list(f.where),
                    "evidence": f.evidence,
                }
                for f in self.findings
            ],
            "coverage": self.coverage,
            "cost": self.cost,
            "slopes": self.slopes,
            "label_keys": self.keys,
            "seconds": round(self.seconds, 3),
            "frames_read": self.seen,
        }

    def text(self, width: int = 100, color: bool = False) -> str:
        """All of it for a terminal."""
        stream = io.StringIO()
        console = Console(file=stream, width=width, force_terminal=color, no_color=not color, highlight=False)
        for set_, (name, count) in self.sets.items():
            console.print(f"{set_}: {in_number(count)} of {name}", markup=False)
        self._print_coverage(console)
        if self.findings:
            console.print(_findings_table(self.findings, self._short_place))
        counts = [(grade, sum(f.grade == grade for f in self.findings)) for grade in GRADES]
        told = ", ".join(f"{n} {grade}{'s' if n != 1 else ''}" for grade, n in counts if n)
        console.print(f"{told or 'nothing found'}; {in_number(self.seen)} read in {in_time(self.seconds)}")
        return stream.getvalue() if color else _bare(stream.getvalue())

    def _short_place(self, where: str) -> str:
        """The place without the names of files that were said before."""
        for set_, (name, _) in self.sets.items():
            where = where.replace(f"{name} ", f"{set_} " if len(self.sets) > 1 else "")
        return where

    def _print_coverage(self, console: Console) -> None:
        c = self.coverage
        near = c["neighbors"]
        for set_, elements in c["elements"].items():
            console.print(f"{set_} atoms: " + ", ".join(f"{symbol} {n}" for symbol, n in elements.items()))
        console.print(
            f"neighbours within {near['cutoff']:g} Å: {near['mean']:.3g} on average, "
            f"{near['least']} to {near['most']}"
        )
        pairs = sorted(c["pairs"].items(), key=lambda item: -item[1]["count"])
        if pairs:
            named = ", ".join(f"{pair} {of['shortest']:.2f}" for pair, of in pairs[:LISTED])
            more = f" and {len(pairs) - LISTED} more pairs" if len(pairs) > LISTED else ""
            console.print(f"shortest distances [Å]: {named}{more}")
        if c["isolated_atoms"]:
            console.print(
                "isolated atoms: " + ", ".join(f"{s} ({n})" for s, n in c["isolated_atoms"].items())
            )
        epoch = in_time(self.cost["seconds_per_epoch"])
        console.print(
            f"training: about {epoch} an epoch, {in_time(self.cost['seconds'])} for {self.cost['epochs']:.0f} epochs "
            "of the default model on one CPU core (an estimate)"
        )


def _findings_table(findings: tuple[Finding, ...], short: Callable[[str], str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("grade", no_wrap=True)
    table.add_column("what and where", ratio=3)
    table.add_column("what to do", ratio=2)
    for f in findings:
        named = "; ".join(map(short, f.where)) + (
            f"; and {len(f.frames) - len(f.where)} more" * (len(f.frames) > len(f.where))
        )
        what = f"{f.message} [{f.code}]" + (f"\n{named}" if named else "")
        table.add_row(f"[{STYLES[f.grade]}]{f.grade}[/]", _plain(what), _plain(f.advice))
    return table


def _by_set(finding: Finding) -> dict[str, list[int]]:
    frames: dict[str, list[int]] = {}
    for set_, index in finding.frames:
        frames.setdefault(set_, []).append(index)
    return {set_: sorted(of) for set_, of in frames.items()}


def _plain(text: str) -> str:
    """Brackets are not markup."""
    return text.replace("[", r"\[")


def _bare(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
