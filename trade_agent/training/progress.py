"""Progress of long work on stderr: bars with rate and remaining time on a terminal, a few plain lines without one."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINES = 4  # lines of one task without a terminal


class Task:
    """One piece of long work. `advance` is called as often as one likes; what was `skip`ped takes no time."""

    def __init__(self, description: str, total: int, bar: Progress | None) -> None:
        self.description, self.total, self.bar = description, total, bar
        self.done, self.skipped = 0, 0
        self.started = time.monotonic()
        self.task_id = bar.add_task(description, total=total, note="", rate="") if bar else None

    def skip(self, count: int) -> None:
        """The first `count` were done before, by the run whose checkpoint is taken up."""
        self.done = self.skipped = count
        if self.bar is not None and self.task_id is not None:
            self.bar.reset(self.task_id, completed=count)

    def advance(self, count: int = 1, note: str = "") -> None:
        before, self.done = self.done, min(self.done + count, self.total)
        rate = (self.done - self.skipped) / max(time.monotonic() - self.started, 1e-9)
        if self.bar is not None and self.task_id is not None:
            shown = {"note": note} if note else {}
            self.bar.update(self.task_id, completed=self.done, rate=f"{rate:,.0f}/s", **shown)  # type: ignore[arg-type]
        elif self.done * PLAIN_LINES // self.total > before * PLAIN_LINES // self.total:
            remaining = (self.total - self.done) / rate
            line = f"  {self.description}: {self.done:,}/{self.total:,} ({rate:,.0f}/s, {remaining:.0f} s left) {note}"
            print(line.rstrip(), file=sys.stderr, flush=True)


class ProgressReporter:
    """Hands out tasks. `quiet` hides all of it."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(file=sys.stderr, quiet=quiet)

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        if not self.console.is_terminal or self.quiet:
            yield _Silent(description, total, None) if self.quiet else Task(description, total, None)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as bar:
            yield Task(description, total, bar)


class _Silent(Task):
    def advance(self, count: int = 1, note: str = "") -> None:
        """Say nothing."""
