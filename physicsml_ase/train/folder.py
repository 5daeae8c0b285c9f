"""A run's folder: what is in it, how it is opened for a new run and for one that continues.

config.yaml            the resolved config
run.json               versions, data sources with their hashes, split, and how the run ended
metrics.csv            one row for each time something was logged
train.log              what was said, with the time, of all sessions
checkpoints/last.ckpt  to continue from
model.ckpt             the deployable best model
"""

import csv
import json
import logging
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from physicsml_ase.config import load
from physicsml_ase.conventions import InputError
from physicsml_ase.version import __version__

STAGE = re.compile(r"stage-\d+|member-\d+|student")
PACKAGES = ("torch", "lightning", "ase", "vesin", "h5py", "numpy", "pydantic")


class RunFolder:
    """Paths in a run's folder, and what is read from and written to it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config, self.record = self.root / "config.yaml", self.root / "run.json"
        self.metrics, self.model = self.root / "metrics.csv", self.root / "model.ckpt"
        self.log = self.root / "train.log"
        self.last = self.root / "checkpoints" / "last.ckpt"
        self._lock = self.root / ".lock"

    @property
    def is_used(self) -> bool:
        """Whether a run is or was in it; one whose config or data were refused leaves it free."""
        if self.model.exists() or self.last.exists():
            return True
        return self.record.exists() and self.read_record().get("status") != "started"

    @property
    def is_finished(self) -> bool:
        """Whether its run came to its end."""
        return self.record.exists() and self.read_record().get("status") == "finished"

    @property
    def run(self) -> Path:
        """The folder to name to users: of a stage or part, that of the whole run."""
        is_part = STAGE.fullmatch(self.root.name) and (self.root.parent / self.record.name).exists()
        return self.root.parent if is_part else self.root

    def publish(self, model: Path) -> None:
        """Make a stage's model the run's, complete or not at all."""
        beside = self.model.with_name(f".{self.model.name}.part")
        shutil.copyfile(model, beside)
        os.replace(beside, self.model)

    @contextmanager
    def new(self) -> Iterator[None]:
        """A folder that was not there is removed again if the config or the data are refused."""
        existed = self.root.exists()
        try:
            yield
        except InputError:
            if is_first_process() and not existed and self.root.is_dir() and not self.is_used:
                shutil.rmtree(self.root, ignore_errors=True)
            raise

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder as this run's own until the end. Raises `InputError` if another process trains in it."""
        if not is_first_process():
            yield
            return
        lock = FileLock(self._lock)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.root}: another process is training in it; choose another folder"
            ) from None
        except OSError as error:
            raise InputError(f"{self.root}: can not be written to: {error.strerror}") from None
        try:
            with self._log_kept():
                yield
        finally:
            self._lock.unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def _log_kept(self) -> Iterator[None]:
        handler = _LogFile(self.log, delay=True, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        own = logging.getLogger("physicsml_ase")
        handlers: list[logging.Handler] = [handler]
        level = own.level
        if not own.hasHandlers():  # nobody has said where to: as on the command line
            handlers.append(logging.StreamHandler())
            own.setLevel(logging.INFO if own.level == logging.NOTSET else own.level)
        for each in handlers:
            own.addHandler(each)
        try:
            yield
        finally:
            for each in handlers:
                own.removeHandler(each)
            own.setLevel(level)
            handler.close()

    @property
    def is_held(self) -> bool:
        """Whether a process is training in it."""
        if not self._lock.exists():
            return False
        try:
            with FileLock(self._lock, timeout=0):
                return False
        except Timeout:
            return True

    def create(self) -> None:
        """Make the folder for a new run. Raises `InputError` if it holds one, or can not be written to."""
        if self.is_used:
            advice = f"continue it with `physicsml-ase resume {self.root}`"
            if self.is_finished or not self.record.exists():
                advice = f"its model is {self.model}"
            raise InputError(f"{self.root}: already holds a run; {advice}, or choose another folder")
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"{self.root}: can not be written to: {error.strerror}") from None

    def write_config(self, config: dict[str, Any]) -> None:
        """Write the resolved config, readable and loadable."""
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        _write(self.config, f"# resolved by physicsml_ase {__version__}\n{text}")

    def write_record(self, **contents: Any) -> None:
        """Write or extend run.json; it also says when that was done first and last."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = self.read_record() if self.record.exists() else {"versions": versions(), "created": now}
        _write(self.record, json.dumps(known | contents | {"changed": now}, indent=1, default=str) + "\n")

    def read_record(self) -> dict[str, Any]:
        """The contents of run.json."""
        try:
            return json.loads(self.record.read_text())
        except (OSError, ValueError):
            raise InputError(f"{self.root}: is not a run's folder (no readable run.json in it)") from None

    def read_config(self) -> dict[str, Any]:
        """The resolved config as it was written."""
        return load(self.config)

    def csv_logger(self, keep_until_step: int | None = None) -> CSVLogger:
        """Logger into metrics.csv; a continued run keeps its rows up to the step that it continues from."""
        rows = []
        if keep_until_step is not None and self.metrics.exists():
            with open(self.metrics, newline="") as file:
                rows = [r for r in csv.DictReader(file) if int(r["step"] or 0) < keep_until_step]
            self.metrics.unlink()  # else Lightning warns that it will be
        logger = CSVLogger(self.root, name="", version="", flush_logs_every_n_steps=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a folder that is not empty: it is the run's
            writer = logger.experiment
        if rows:
            # Lightning's writer starts every session with an empty file
            writer.metrics = [{k: v for k, v in row.items() if v != ""} for row in rows]
            writer.save()
        return logger


class _LogFile(logging.FileHandler):
    """A log that a full disk does not stop a run for: the checkpoints tell of it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if it can be written."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing, where logging would print a traceback."""


def committee_folder(root: Path, number: int) -> RunFolder:
    """Where a member (1, 2, ...) of a run's committee is kept."""
    return RunFolder(root / f"member-{number}")


def student_folder(root: Path) -> RunFolder:
    """Where the committee's student is kept."""
    return RunFolder(root / "student")


def is_first_process() -> bool:
    """Whether this is the process that writes files, also before the processes know of each other."""
    return (getattr(rank_zero_only, "rank", None) or 0) == 0


def free_folder(root: Path) -> Path:
    """`root`, or the first of `root`-2, `root`-3, ... that holds no run yet."""
    number, folder, before = 1, root, root
    while RunFolder(folder).is_used or RunFolder(folder).is_held:
        number += 1
        folder, before = root.with_name(f"{root.name}-{number}"), folder
    # the other processes of a run are started when the first has made its folder
    return folder if is_first_process() else before


def versions() -> dict[str, str]:
    """Versions of everything that a result may depend on."""
    found = {"physicsml_ase": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text)
    os.replace(beside, path)
