"""Progress bars with rate and time left, on the terminal's error stream; silent where nobody watches."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

console = Console(stderr=True, highlight=False)
"""Where people are told things; results go to the standard output."""


def tell_skipped(skipped: Sequence[object], split: str) -> None:
    """Count the images that could not be read, and name the first."""
    if skipped:
        text = f"{len(skipped)} unreadable images of {split} were left out, the first: {skipped[0]}"
        console.print(text, markup=False, soft_wrap=True)


class Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        """Show the rate of ``task`` in its own unit."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields.get('unit', 'it')}/s", style="cyan")


class Bar(Protocol):
    """What a long piece of work calls."""

    def advance(self, count: int = 1) -> None:
        """Say that ``count`` more items are done."""

    def note(self, text: str) -> None:
        """Show ``text`` (the loss, say) behind the bar."""


class _RichBar:
    def __init__(self, progress: Progress, title: str, total: int, unit: str, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(escape(title), total=total, completed=done, unit=unit, note="")

    def advance(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=escape(text))


@contextmanager
def bar(title: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:
    """Show a progress bar while the body runs: title, bar, count, rate and time left.

    Args:
        title: what is being done.
        total: how many items there are.
        unit: what an item is called, for the rate.
        done: items that an earlier run has finished.
    """
    live = sys.stderr.isatty()
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        Rate(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4, auto_refresh=live) as progress:
        yield _RichBar(progress, title, total, unit, done)
