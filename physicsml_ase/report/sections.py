"""The sections of a report, from what is known of its run."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import yaml
from ase.data import chemical_symbols

from physicsml_ase.domain import Domain
from physicsml_ase.evaluate import Evaluation
from physicsml_ase.evaluate.table import MILLI
from physicsml_ase.report.gather import Run
from physicsml_ase.report.labels import Contents
from physicsml_ase.report.page import (
    Html,
    facts,
    folded,
    heading,
    listing,
    paragraph,
    section,
    table,
    text,
)
from physicsml_ase.verify import Verification

LISTED = 40
"""Rows of a table before the rest is counted."""


def key_numbers(run: Run, evaluation: Evaluation | None, which: str) -> Html:
    """What is asked first."""
    found: list[tuple[str, object]] = [("the run", run.status)]
    potential = run.potential
    if potential is not None:
        weights = sum(p.numel() for p in potential.parameters())
        found.append((f"model, {weights} weights", potential.config.name))
        found.append(("cut-off", f"{potential.domain.cutoff:g} Å"))
    metrics: Mapping[str, Any] = {} if evaluation is None else evaluation.metrics
    for name in ("energy_per_atom", "forces", "stress"):
        if f"{name}_rmse" in metrics:
            words = f"{name.replace('_', ' ')} RMSE, {which}"
            found.append((words, f"{1e3 * float(metrics[f'{name}_rmse']):.3g} {MILLI[name]}"))
    return facts(found)


def data(run: Run, contents: Mapping[str, Contents], domain: Domain | None) -> Html:
    """Sets, elements, pairs and labels."""
    summary = run.record.get("summary") or {}
    sources = [
        (
            name,
            of.get("source", ""),
            of.get("structures", ""),
            of.get("used", ""),
            str(of.get("hash", ""))[:12],
        )
        for name, of in (summary.get("sources") or {}).items()
    ]
    parts: list[str] = [table(("set", "source", "structures", "used", "hash"), sources, numbers=(2, 3))]
    if summary.get("reference_energies") and domain is not None:
        energies = ", ".join(
            f"{chemical_symbols[z]} {e:.6g} eV" for z, e in sorted(domain.atomic_energies.items())
        )
        parts.append(paragraph(f"Reference energies {summary['reference_energies']}: {energies}."))
    symbols = sorted({s for of in contents.values() for s in of.atoms})
    if symbols:
        rows = [
            (name, of.structures, _span(of.sizes), *(of.atoms[s] for s in symbols))
            for name, of in contents.items()
            if of.sizes
        ]
        parts += [
            heading("Atoms"),
            table(("set", "structures", "atoms in each", *symbols), rows, numbers=range(1, 99)),
        ]
        part = [name for name, of in contents.items() if of.read < of.structures]
        if part:
            parts.append(paragraph(f"Of the {' and '.join(part)} data, {contents[part[0]].read} were read."))
    parts += _pairs(domain)
    rows = [
        (name, label, count, *_rounded(numbers), unit)
        for name, of in contents.items()
        for label, (count, unit, numbers) in of.labels.items()
        if numbers
    ]
    if rows:
        head = ("set", "label", "structures", "mean", "std. dev.", "least", "largest", "unit")
        parts += [heading("Labels"), table(head, rows, numbers=(2, 3, 4, 5, 6))]
    return section("data", "Data", *parts)


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"


def _rounded(numbers: Sequence[float]) -> list[str]:
    """Mean, deviation, least and largest; a mean that is nothing but rounding is zero."""
    size = max(abs(numbers[2]), abs(numbers[3]))
    return ["0" if abs(x) < 1e-7 * size else f"{x:.4g}" for x in numbers]


def _pairs(domain: Domain | None) -> list[str]:
    if domain is None or not domain.shortest_distances:
        return []
    pairs = sorted(domain.shortest_distances.items(), key=lambda item: item[1])
    words = ", ".join(f"{pair} {distance:.2f}" for pair, distance in pairs[:LISTED])
    more = f" and {len(pairs) - LISTED} more" if len(pairs) > LISTED else ""
    return [
        heading("Pairs"),
        paragraph(f"Shortest distances within the cut-off [Å]: {words}{more}."),
        paragraph(f"{domain.avg_num_neighbors:.1f} neighbours within {domain.cutoff:g} Å on average."),
    ]


def error_tables(evaluation: Evaluation) -> list[Html]:
    """Errors in all, by config_type and by element."""
    metrics: dict[str, Any] = evaluation.metrics
    units = metrics["units"]
    rows = [
        (
            name.replace("_", " "),
            _shown(metrics, name, "rmse"),
            _shown(metrics, name, "mae"),
            MILLI.get(name, unit),
        )
        for name, unit in units.items()
    ]
    parts = [table(("property", "RMSE", "MAE", "unit"), rows, numbers=(1, 2))]
    names = [name for name in units if name != "energy"]
    for key, title, size in (
        ("per_config_type", "config_type", "structures"),
        ("per_element", "element", "atoms"),
    ):
        groups = {group: of for group, of in metrics[key].items() if len(of) > 1}
        shown = [n for n in names if any(f"{n}_rmse" in of for of in groups.values())]
        rows = [
            (group, of[size], *(f"{_shown(of, n, 'rmse')} / {_shown(of, n, 'mae')}" for n in shown))
            for group, of in list(groups.items())[:LISTED]
        ]
        head = (title, size, *(f"{n.replace('_', ' ')} [{MILLI.get(n, units[n])}]" for n in shown))
        if rows:
            more = f", the first {LISTED} of {len(groups)}" if len(groups) > LISTED else ""
            found = table(head, rows, numbers=range(1, len(head)))
            parts.append(folded(f"RMSE / MAE by {title}{more}", found))
    return parts


def _shown(errors: Mapping[str, Any], name: str, kind: str) -> str:
    value = errors.get(f"{name}_{kind}")
    return "–" if value is None else f"{float(value) * (1e3 if name in MILLI else 1):.4g}"


def checks_table(checks: Verification) -> list[Html]:
    """What `verify` found."""
    bad = len(checks.failed)
    kind, words = (
        ("bad", f"{bad} of {len(checks.checks)} checks failed") if bad else ("good", "all checks passed")
    )
    rows = [
        (
            check.name,
            f"{check.value:.2g}" if np.isfinite(check.value) else "not a number",
            f"{'≥' if check.least else '≤'} {check.limit:.2g}",
            Html(
                f'<span class="{"good" if check.passed else "bad"}">{"pass" if check.passed else "FAIL"}</span>'
            ),
            check.what,
        )
        for check in checks.checks
    ]
    return [
        Html(f'<p class="{kind}">{text(words)}</p>'),
        table(("check", "found", "limit", "", "what"), rows, numbers=(1, 2, -1)),
        paragraph(Html("<br>".join(text(f"Not checked: {note}") for note in checks.notes)))
        if checks.notes
        else Html(""),
    ]


def timings(run: Run, evaluated: tuple[int, float] | None, checks: Verification | None) -> Html:
    """How long things took."""
    rows: list[tuple[str, str]] = []
    sessions = seconds_of(run)
    if sessions is not None:
        rows.append(("training, from its first line to its last", in_time(sessions)))
    best = run.record.get("best") or {}
    if best:
        rows.append(("best validation", f"epoch {int(best['epoch']) + 1}, step {best['step']}"))
    if evaluated is not None and evaluated[1] > 0:
        rows.append(
            ("errors of this report", f"{evaluated[0] / evaluated[1]:.3g} structures a second, eager")
        )
    if checks is not None and checks.trace is not None and checks.trace.seconds > 0:
        trace = checks.trace
        step = trace.seconds / (len(trace.time) - 1)
        words = f"{1e3 * step:.3g} ms a step of {trace.num_atoms} atoms, {1e6 * step / trace.num_atoms:.3g} µs/atom"
        rows.append((f"molecular dynamics here ({trace.backend})", words))
    return section("timings", "Timings", table(("what", "how long"), rows))


def seconds_of(run: Run) -> float | None:
    """Wall-clock seconds of a run, by its log, or by the first and last writing of its record."""
    if len(run.log) > 1:
        ends = [datetime.strptime(run.log[k][0], "%Y-%m-%d %H:%M:%S") for k in (0, -1)]
    elif "created" in run.record and "changed" in run.record:
        ends = [datetime.fromisoformat(run.record[k]) for k in ("created", "changed")]
    else:
        return None
    seconds = (ends[1] - ends[0]).total_seconds()
    return seconds if seconds > 0 else None


def in_time(seconds: float) -> str:
    """'4 min 10 s'"""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    parts = [(hours, "h"), (minutes, "min"), (whole % 60, "s")]
    return " ".join(f"{n} {unit}" for n, unit in parts if n) or "less than a second"


def warnings(run: Run) -> Html:
    """What the run warned of, each once."""
    told: dict[str, int] = {}
    for _, level, words in run.log:
        if level in ("WARNING", "ERROR", "CRITICAL"):
            told[words] = told.get(words, 0) + 1
    if not run.log:
        return Html("")
    if not told:
        return section("warnings", "Warnings", paragraph("The run warned of nothing."))
    rows = [(count, words) for words, count in told.items()]
    return section(
        "warnings", "Warnings", table(("times", "what the run said"), rows[:LISTED], numbers=(0, -1))
    )


def config_and_versions(run: Run, now: Mapping[str, str]) -> Html:
    """The resolved config, and the versions then and now."""
    written = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else ""
    then = run.record.get("versions") or {}
    names: Sequence[str] = list(dict.fromkeys([*then, *now]))
    rows = [(name, then.get(name, "–"), now.get(name, "–")) for name in names]
    log = "\n".join(" ".join(line) for line in run.log)
    return section(
        "config",
        "Config and versions",
        folded("Resolved config", listing(written)) if written else "",
        folded("Log of the run", listing(log)) if log else "",
        table(("package", "of the run", "of this report"), rows),
    )
