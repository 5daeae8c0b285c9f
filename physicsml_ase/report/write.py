"""`write_report`: a run's folder in, one HTML file out."""

import logging
import os
import time
from pathlib import Path

import numpy as np

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources import Source
from physicsml_ase.data.sources.files import naming
from physicsml_ase.evaluate import Evaluation, evaluate
from physicsml_ase.report import figures, sections
from physicsml_ase.report.frames import Errors, errors_of
from physicsml_ase.report.gather import Run, read_run
from physicsml_ase.report.labels import contents_of
from physicsml_ase.report.page import Html, heading, notes, page, paragraph, pictures, section, text
from physicsml_ase.report.svg import Picture, write_picture
from physicsml_ase.train.folder import versions
from physicsml_ase.verify import Verification, verify

log = logging.getLogger("physicsml_ase")
DOCTYPE = b"<!doctype html>"
STRUCTURES = 500
"""Structures whose errors are computed, evenly spread over the set."""


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    *,
    figures_folder: str | Path | None = None,
    structures: int = STRUCTURES,
) -> Path:
    """Write the report of the run in a folder; returns where it is, RUN/report.html without `output`.

    Errors are computed anew, of the test set or, without one, of the validation set, at most of so many
    `structures`. The figures go to `figures_folder` as PNG and SVG, if given. A run that was interrupted, or whose
    data are gone, has a report that says so.
    """
    root = Path(run)
    path = Path(output) if output is not None else root / "report.html"
    if structures < 1:
        raise InputError(f"structures must be at least 1, not {structures}")
    _refuse_others_file(path)
    found = read_run(root)
    which, evaluation, seconds = _evaluated(found, structures)
    errors = errors_of(evaluation) if evaluation is not None else None
    checks = _checked(found)
    drawn: list[Picture] = []
    body = _body(found, which, evaluation, errors, checks, seconds, drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            beside.write_text(page(f"Report of {root.name}", body), encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    if figures_folder is not None:
        folder = Path(figures_folder)
        folder.mkdir(parents=True, exist_ok=True)
        for picture in drawn:
            write_picture(picture, folder)
    return path


def _refuse_others_file(path: Path) -> None:
    """Raise `InputError` where a model, data or anything else but an HTML file would be written over."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the report a file's name (-o)")
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if not file.read(len(DOCTYPE)).lower() == DOCTYPE:
                raise InputError(f"{path}: is there already, and is no report; give another name (-o)")


def _evaluated(run: Run, structures: int) -> tuple[str, Evaluation | None, float]:
    """The set, the errors on some of it, and how long they took."""
    which = next((name for name in ("test", "validation", "train") if name in run.sources), "")
    if run.potential is None or not which:
        return which, None, 0.0
    if which != "test":
        of = {
            "validation": "the validation set, which chose the best model",
            "train": "the training set itself",
        }
        run.notes.append(f"There is no test set: the errors are those of {of[which]}, and may flatter.")
    source: Source = run.sources[which]
    if len(source) > structures:
        chosen = np.unique(np.linspace(0, len(source) - 1, structures).round().astype(int))
        run.notes.append(
            f"Errors are those of {len(chosen)} of the {len(source)} structures of the {which} set."
        )
        source = source.subset(chosen)
    began = time.perf_counter()
    try:
        evaluation = evaluate(run.potential, source)
    except InputError as error:
        run.notes.append(f"Errors on the {which} set could not be computed: {error}.")
        return which, None, 0.0
    run.notes += evaluation.notes
    return which, evaluation, time.perf_counter() - began


def _checked(run: Run) -> Verification | None:
    if run.potential is None:
        return None
    try:
        return verify(run.potential, stored=run.model)
    except InputError as error:
        run.notes.append(f"The model could not be checked: {error}.")
        return None


def _body(
    run: Run,
    which: str,
    evaluation: Evaluation | None,
    errors: Errors | None,
    checks: Verification | None,
    seconds: float,
    drawn: list[Picture],
) -> list[str]:
    """The page's parts; the figures on it are put into `drawn`."""

    def shown(found: list[Picture]) -> Html:
        drawn.extend(found)
        return pictures(found)

    domain = run.potential.domain if run.potential is not None else None
    labels = run.potential.labels if run.potential is not None else ()
    contents = {name: contents_of(source, labels, domain) for name, source in run.sources.items() if domain}
    body: list[Html] = [sections.data(run, contents, domain)]
    body.append(section("learning", "Learning", shown(figures.learning(run.metrics)) if run.metrics else ""))
    if evaluation is not None and errors is not None and errors.by_quantity:
        body.append(
            section(
                "errors",
                f"Errors on the {which} set",
                *sections.error_tables(evaluation),
                shown(figures.parity(evaluation)),
                heading("Distributions"),
                shown([*figures.distributions(errors), *figures.groups(errors)]),
            )
        )
        body.append(section("worst", "Worst structures", shown(figures.worst(errors))))
    if checks is not None:
        body.append(
            section(
                "checks",
                "Checks of the model",
                *sections.checks_table(checks),
                heading("Pairs of atoms, and energy in a short run"),
                paragraph("To the left of the dotted line the training data had nothing."),
                shown([*figures.conservation(checks), *figures.dimers(checks)]),
            )
        )
    counted = sum(evaluation.structures_of.values()) if evaluation is not None else 0
    body.append(sections.timings(run, (counted, seconds) if counted else None, checks))
    body.append(sections.warnings(run))
    body.append(sections.config_and_versions(run, versions()))
    return [*_head(run, which, evaluation), *(part for part in body if part)]


def _head(run: Run, which: str, evaluation: Evaluation | None) -> list[Html]:
    about = f"Written by physicsml_ase {versions()['physicsml_ase']} from {run.root.absolute()}"
    return [
        Html(f"<h1>{text(run.root.absolute().name)}</h1>"),
        paragraph(about),
        sections.key_numbers(run, evaluation, which),
        notes(run.notes),
    ]
