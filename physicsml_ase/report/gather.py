"""What a run's folder tells, and the model and data that it leads to; what is not there is said, not raised."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from physicsml_ase.checkpoint import load_potential
from physicsml_ase.config import validate
from physicsml_ase.conventions import InputError
from physicsml_ase.data.sets import SETS, open_sets
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.data.sources import Source
from physicsml_ase.data.sources.source import concat
from physicsml_ase.potential import Potential
from physicsml_ase.train.folder import RunFolder, student_folder

LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (\w+) (.*)")
STATES = {
    "finished": "finished",
    "started": "stopped before its training began",
    "running": "killed, or still running",
    "interrupted": "interrupted",
    "failed": "ended by an error, which its log has",
}


@dataclass
class Run:
    """A run, as far as it came."""

    root: Path
    record: dict[str, Any]
    config: dict[str, Any]
    metrics: Path | None
    log: list[tuple[str, str, str]]
    """Time, level and text of each line of its log."""
    model: Path | None = None
    potential: Potential | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    """The sets that can be opened now."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know of what is missing."""

    @property
    def status(self) -> str:
        """How the run ended, in words."""
        status = str(self.record.get("status", "unknown"))
        return STATES.get(status, status)

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end."""
        return self.record.get("status") == "finished"


def read_run(root: Path) -> Run:
    """The run in a folder. Raises `InputError` where there is none."""
    folder = RunFolder(root)
    record = folder.read_record()
    stages = sorted(root.glob("stage-*/run.json"))
    last = RunFolder(stages[-1].parent) if stages else folder
    taught = "alone" in record and record["alone"]["best"] != record["best"]
    if taught:
        last = student_folder(root)
    if stages:  # the last stage knows its data and errors, the whole run how it ended
        record = last.read_record() | record
    run = Run(
        root=root,
        record=record,
        config=folder.read_config() if folder.config.exists() else {},
        metrics=last.metrics if last.metrics.exists() else None,
        log=_log(folder.log),
    )
    if not run.is_finished:
        run.notes.append(f"The run did not come to its end: it was {run.status}.")
    if run.metrics is None:
        run.notes.append("There are no metrics yet, so there are no learning curves.")
    elif len(stages) > 1:
        run.notes.append(f"The run has {len(stages)} stages; the learning curves are the last one's.")
    if taught:
        run.notes.append(
            "The model is the student of a committee, and the learning curves are the student's."
        )
    if not run.log:
        run.notes.append("There is no train.log in the folder, so warnings of the run are not known.")
    _open_model(run, folder, last)
    _open_data(run)
    return run


def _log(path: Path) -> list[tuple[str, str, str]]:
    if not path.is_file():
        return []
    found = (LINE.match(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [(m[1], m[2], m[3]) for m in found if m]


def _open_model(run: Run, folder: RunFolder, last: RunFolder) -> None:
    candidates = [path for path in (folder.model, last.model, last.last) if path.is_file()]
    if not candidates:
        run.notes.append("There is no model yet, so there are no errors and no checks.")
        return
    try:
        run.potential, run.model = load_potential(candidates[0]), candidates[0]
    except InputError as error:
        run.notes.append(f"The model can not be opened: {error}.")
        return
    if run.model == last.last:
        run.notes.append(
            "The errors and checks are those of the last training checkpoint: there is no model.ckpt."
        )


def _open_data(run: Run) -> None:
    """The sets as they were split; the record tells whether they are the same still."""
    named = run.record.get("data")
    if not named:
        run.notes.append("The data were objects in memory, so that errors can not be computed again.")
        return
    try:
        settings = validate(DataModuleConfig, run.config.get("datamodule", {}))
        specs = {name: named.get(name) for name in SETS}
        sets = open_sets(specs, settings, int(run.config.get("seed", 0)))
    except (InputError, OSError) as error:
        run.notes.append(f"The data can not be opened any more: {error}.")
        return
    known = (run.record.get("summary") or {}).get("sources", {})
    for name, of in sets.sources.items():
        for part, source in of.items():
            then = known.get(f"{name}/{part}".rstrip("/"), {}).get("hash")
            if then and then != source.content_hash():
                run.notes.append(
                    f"The {name} data changed since the run: what is computed from them is of other data."
                )
        if of:
            run.sources[name] = concat(list(of.values()))
