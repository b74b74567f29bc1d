"""How far a stage is: a live bar on a terminal, plain lines in a log."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column


class Bar:
    """One bar; without a terminal it stays silent and `say` prints plain lines."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def at(self, completed: float, note: str = "") -> None:
        """Move to `completed` units; a `note` replaces the one at the right."""
        self._progress.update(self._task, completed=completed)
        if note:
            self._progress.update(self._task, note=note)

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar, and keep it beside the bar while it is the latest."""
        self._progress.console.print(line, soft_wrap=True, markup=False)
        self._progress.update(self._task, note=line)


@contextmanager
def bar(title: str, total: float) -> Iterator[Bar]:
    """Show a bar of `total` units while the block runs; it vanishes afterwards."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True, expand=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(title, total=total, note=""))
