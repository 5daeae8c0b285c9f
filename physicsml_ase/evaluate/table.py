"""Errors as a table of plain text, in the units that people use."""

import io
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

MILLI = {
    "energy_per_atom": "meV/atom",
    "energy": "meV",
    "energies": "meV",
    "forces": "meV/Å",
    "stress": "meV/Å³",
}
"""Quantities whose errors are shown in thousandths of their unit."""
WIDTH = 1000  # tables are as wide as what is in them, and never broken


def as_text(name: str, metrics: Mapping[str, object]) -> str:
    """The table for the terminal and `metrics.txt`."""
    units, counts = _dict(metrics["units"]), _dict(metrics["counts"])
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, highlight=False, legacy_windows=False)
    console.print(f"{counts['structures']} structures, {counts['atoms']} atoms of {name}", soft_wrap=True)
    if units:
        console.print(_overall(metrics, units, counts))
        for key, title, size in (
            ("per_config_type", "config_type", "structures"),
            ("per_element", "element", "atoms"),
        ):
            groups = {k: _dict(v) for k, v in _dict(metrics[key]).items()}
            if any(len(errors) > 1 for errors in groups.values()):
                console.print(_by_group(title, size, groups, units))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _overall(
    metrics: Mapping[str, object], units: Mapping[str, object], counts: Mapping[str, object]
) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("property")
    for column in ("RMSE", "MAE"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    for column in ("values", "structures", "missing"):
        table.add_column(column, justify="right")
    for name, unit in units.items():
        count = _dict(counts["energy" if name == "energy_per_atom" else name])
        table.add_row(
            name.replace("_", " "),
            _shown(metrics[f"{name}_rmse"], name),
            _shown(metrics[f"{name}_mae"], name),
            MILLI.get(name, str(unit)),
            *(str(count[key]) for key in ("values", "structures", "missing")),
        )
    return table


def _by_group(
    title: str, size: str, groups: Mapping[str, Mapping[str, object]], units: Mapping[str, object]
) -> Table:
    """RMSE / MAE of each group, one column for each quantity that any of them has."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(title)
    table.add_column(size, justify="right")
    names = [n for n in units if n != "energy" and any(f"{n}_rmse" in errors for errors in groups.values())]
    for name in names:
        unit = MILLI.get(name, str(units[name]))
        table.add_column(f"{name.replace('_', ' ')}\nRMSE / MAE\n{unit}", justify="right")
    for group, errors in groups.items():
        cells = [
            f"{_shown(errors[f'{n}_rmse'], n)} / {_shown(errors[f'{n}_mae'], n)}"
            if f"{n}_rmse" in errors
            else "-"
            for n in names
        ]
        table.add_row(group, str(errors[size]), *cells)
    return table


def _shown(value: object, name: str) -> str:
    assert isinstance(value, float)
    return f"{value * 1e3 if name in MILLI else value:.4g}"


def _dict(value: object) -> dict[str, object]:
    assert isinstance(value, dict)
    return value
