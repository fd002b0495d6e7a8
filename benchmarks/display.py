"""What a person sees while a run goes on."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cases import Task
from benchmarks.results import Row
from benchmarks.tables import milliseconds


class Display:
    """A progress bar on a terminal, and lines that stay with what came out."""

    def __init__(self, chosen: Sequence[Task], console: Console | None = None) -> None:
        self._console = Console() if console is None else console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar = self._progress.add_task("", total=len(chosen), status="")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, task: Task) -> None:
        """Show which task is on."""
        self._progress.update(self._bar, description=str(task), status="")

    def report(self, status: str) -> None:
        """Show what of the task is on."""
        self._progress.update(self._bar, status=status)

    def finish(self, task: Task, rows: Sequence[Row]) -> None:
        """Write what came out."""
        self._progress.advance(self._bar)
        self._say(str(task))
        for row in rows:
            if row.time is None:
                self._say(f"  {row.provider:<22} {row.status}: {row.reason}")
                continue
            quartiles = f"{milliseconds(row.time.lower_quartile)} to {milliseconds(row.time.upper_quartile)}"
            factor = f", {row.speedup.median:.2f} times as fast" if row.speedup and row.provider != row.baseline else ""
            self._say(f"  {row.provider:<22} {milliseconds(row.time.median)} ms ({quartiles}){factor}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
