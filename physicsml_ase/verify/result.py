"""What a verification found: one number and one limit for each thing that was tried."""

import io
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from physicsml_ase.verify.dimers import Curves, Floats


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    value: float
    """What was found; not a number where it could not be computed."""
    limit: float
    passed: bool
    what: str
    """What was compared with what, on what, and the unit of the numbers."""
    least: bool = False
    """The limit is the smallest value allowed, instead of the largest."""

    def plain(self) -> dict[str, Any]:
        """As plain data, which JSON takes."""
        value = float(self.value) if math.isfinite(self.value) else str(float(self.value))
        bound = {"limit": self.limit, "limit_is": "least" if self.least else "most"}
        return {"name": self.name, "value": value, **bound, "passed": self.passed, "what": self.what}


class Trace(NamedTuple):
    """A run at constant energy; T steps."""

    time: Floats  # (T,) [ps]
    total: Floats  # (T,) potential and kinetic energy [eV]
    kinetic: Floats  # (T,) [eV]
    num_atoms: int
    seconds: float  # of a clock
    backend: str


def at_most(name: str, value: float, limit: float, what: str) -> Check:
    """A check that a value is no larger than the limit; NaN is not."""
    return Check(name, float(value), limit, bool(value <= limit), what)


def at_least(name: str, value: float, limit: float, what: str) -> Check:
    """A check that a value is no smaller than the limit; NaN is not."""
    return Check(name, float(value), limit, bool(value >= limit), what, least=True)


@dataclass(frozen=True)
class Verification:
    """All checks of a potential."""

    model: str
    """What was checked, in words."""
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """What was not checked, and why."""
    seconds: float
    curves: tuple[Curves, ...] = field(default=(), repr=False)
    """Energies of pairs of atoms against their distance."""
    trace: Trace | None = field(default=None, repr=False)
    """The short run at constant energy."""

    @property
    def passed(self) -> bool:
        """Whether every check was passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that were not passed."""
        return tuple(check for check in self.checks if not check.passed)

    def __getitem__(self, name: str) -> Check:
        """The check of that name."""
        return next(check for check in self.checks if check.name == name)

    def plain(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "model": self.model,
            "passed": self.passed,
            "checks": [check.plain() for check in self.checks],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }

    def text(self, width: int = 110, color: bool = False) -> str:
        """All of it for a terminal."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("check", no_wrap=True)
        table.add_column("found", justify="right", no_wrap=True)
        table.add_column("limit", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("what")
        for check in self.checks:
            verdict = "[green]pass[/]" if check.passed else "[bold red]FAIL[/]"
            limit = f"{'≥' if check.least else '≤'} {_short(check.limit)}"
            table.add_row(check.name, _short(check.value), limit, verdict, escape(check.what))
        stream = io.StringIO()
        console = Console(file=stream, width=width, force_terminal=color, no_color=not color, highlight=False)
        console.print(self.model, markup=False)
        console.print(table)
        for note in self.notes:
            console.print(f"not checked: {note}", markup=False)
        bad = [check.name for check in self.failed]
        told = f"{len(bad)} failed: {', '.join(bad)}" if bad else "all passed"
        console.print(f"{len(self.checks)} checks, {told}; {self.seconds:.1f} s", markup=False)
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"

    def __str__(self) -> str:
        return self.text()


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}" if np.isfinite(value) else "not a number"
