"""The files of a simulation: its trajectory and its log."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from physicsml_ase.conventions import InputError
from physicsml_ase.simulate.frames import Writer, check_name, open_writer
from physicsml_ase.simulate.logfile import LogFile


def trajectory_path(name: str | Path | None) -> Path | None:
    """The file of a trajectory, if there is to be one. Raises `InputError` for a name that none can have."""
    if name is None:
        return None
    check_name(Path(name))
    return Path(name)


def same_file(a: str | Path, b: str | Path) -> bool:
    """Whether two names are of one file, which need not be there."""
    return Path(a).resolve() == Path(b).resolve()


@contextmanager
def open_outputs(
    trajectory: Path | None,
    log: str | Path | None,
    columns: Mapping[str, str],
    *,
    keep: int = 0,
    continue_from: int | None = None,
) -> Iterator[tuple[Writer | None, LogFile | None]]:
    """Trajectory and log, closed in the end; None for one that is not asked for.

    `keep` is what stays of an older trajectory (`open_writer`), `continue_from` the last step that stays in an older
    log.
    """
    if trajectory is not None and log is not None and same_file(trajectory, log):
        raise InputError(f"{log}: is the name of both trajectory and log; give them different ones")
    with ExitStack() as stack:
        lines = LogFile(Path(log), columns, continue_from) if log is not None else None
        frames = open_writer(trajectory, keep) if trajectory is not None else None
        for file in (lines, frames):
            if file is not None:
                stack.callback(file.close)
        yield frames, lines
