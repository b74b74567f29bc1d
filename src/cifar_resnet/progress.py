"""Progress of a stage: a live bar on a terminal, plain lines in a log file."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column


class ProgressBar:
    """One bar. Without a terminal there is no bar, and `print` writes plain lines."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, completed: float, note: str = "") -> None:
        """Move to `completed` units; `note` replaces the text beside the bar."""
        self._progress.update(self._task, completed=completed)
        if note:
            self._progress.update(self._task, note=note)

    def print(self, line: str) -> None:
        """Print a permanent line above the bar, and show it beside the bar until the next note."""
        self._progress.console.print(line, soft_wrap=True, markup=False)
        self._progress.update(self._task, note=line)


@contextmanager
def progress_bar(title: str, total: float) -> Iterator[ProgressBar]:
    """Show a bar of `total` units while the block runs."""
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
        yield ProgressBar(progress, progress.add_task(title, total=total, note=""))
