"""A progress bar with what matters of a simulation beside it, only where somebody watches."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERVAL = 0.2  # s


@contextmanager
def meter(what: str, first: int, last: int, num_atoms: int) -> Iterator[Callable[[int, str], None]]:
    """A bar from step `first` to `last`; call what it gives with the step and a few words on the state."""
    if not sys.stderr.isatty():
        yield lambda step, state: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[state]}"),
    )
    began = shown = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=last, completed=first, rate="", state="")

        def update(step: int, state: str) -> None:
            """Show the step, and what is said of it."""
            nonlocal shown
            now = time.perf_counter()
            if now - shown < INTERVAL and step < last:
                return
            shown = now
            rate = f"{(step - first) * num_atoms / (now - began):.3g} atoms·steps/s"
            bar.update(task, completed=step, rate=rate, state=state)

        yield update
