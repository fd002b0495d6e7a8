"""Display of progress: a bar on a terminal, or else a line from time to time."""

import time
from datetime import timedelta
from types import TracebackType
from typing import Any

from deformdetr.engine._errors import require_train_extra

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Show the progress of a task, and of short tasks within it.

    Args:
        description: Description of the task.
        total: Number of steps.
        done: Number of steps done in an earlier run.
        log_every: Steps per line if there is no terminal. There is at most one line every ten seconds.
        console: A console of rich, by default for standard output.
        is_silent: Whether to show nothing.

    Raises:
        ModuleNotFoundError: If rich is not installed.

    Examples:
        >>> from deformdetr.engine import ProgressDisplay
        >>> with ProgressDisplay("counting", 3) as display:
        ...     for number in range(3):
        ...         display.update(number + 1)
        ...     display.say("counted to three")
        counted to three
    """

    def __init__(
        self,
        description: str,
        total: int,
        *,
        done: int = 0,
        log_every: int = 50,
        console: Any = None,
        is_silent: bool = False,
    ) -> None:
        require_train_extra()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console: Any = Console(quiet=is_silent) if console is None else console
        self._has_bar = self._console.is_terminal and not is_silent
        self._progress: Any = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._has_bar,
            expand=True,
            speed_estimate_period=120,
        )
        self._main = self._progress.add_task(description, total=total, completed=done, status="")
        self._description = description
        self._total = total
        self._first = done
        self._log_every = log_every
        self._started = time.monotonic()
        self._last_line = self._started

    def __enter__(self) -> "ProgressDisplay":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, done: int, *, total: int | None = None, description: str | None = None, status: str = "") -> None:
        """Show the number of steps done, and a status."""
        self._total = self._total if total is None else total
        self._description = self._description if description is None else description
        self._progress.update(
            self._main, completed=done, total=self._total, description=self._description, status=status
        )
        now = time.monotonic()
        is_due = done % self._log_every == 0 and now - self._last_line >= _SECONDS_BETWEEN_LINES
        if is_due and not self._has_bar:
            self._last_line = now
            left = (now - self._started) / max(1, done - self._first) * (self._total - done)
            self.say(f"{self._description}  {done}/{self._total}  {status}  left: {timedelta(seconds=round(left))}")

    def within(self, description: str, done: int, total: int) -> None:
        """Show a short task in place of the description. It writes no lines."""
        shown = f"{description} {done}/{total}" if done < total else self._description
        self._progress.update(self._main, description=shown)

    def say(self, line: str) -> None:
        """Write a line above the progress bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
