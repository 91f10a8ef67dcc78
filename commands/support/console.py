"""Write progress and messages to stderr, results to stdout."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ...workspace.stage import STAGE_END, WORKING

LINE_SECONDS = 30.0


class ConsoleReporter:
    """Report progress on stderr: bars on a terminal, else a line every `line_seconds`.

    Times are of the stage. A task that begins again in a stage, at 0, is a further pass, which is
    numbered. `say` goes to stdout unless `quiet`, `warn` to stderr; both stand on lines of their
    own.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        self.quiet = quiet
        console = Console(stderr=True) if console is None else console
        self.on_terminal = console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self.on_terminal,
            redirect_stdout=False,  # else what a pipe is to get goes to the terminal
        )
        self.task: Any = None
        self.description = self.stage = ""
        self.passes: dict[str, int] = {}
        self.begun = 0
        self.done = self.total = 0
        self.line_seconds = line_seconds
        self.started = time.monotonic()
        self._ended = threading.Event()
        self._lines: threading.Thread | None = None

    def __enter__(self) -> ConsoleReporter:
        self.started = time.monotonic()
        self.bars.start()
        if not self.on_terminal:
            self._lines = threading.Thread(target=self._tell, name="progress lines", daemon=True)
            self._lines.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()
        self._ended.set()
        if self._lines is not None:
            self._lines.join()

    def progress(self, task: str, done: int, total: int) -> None:
        stage, _, work = task.partition(STAGE_END)
        if stage != self.stage or work == WORKING:
            self.stage, self.started, self.passes, self.begun = stage, time.monotonic(), {}, 0
        if task not in self.passes or (total and not done):
            # Of all tasks of the stage together: numbers that a reader sees only rise.
            self.begun += work != WORKING
            self.passes[task] = self.begun if task in self.passes else 0
        if self.passes[task]:
            task = f"{stage}{STAGE_END}pass {self.passes[task]}, {work}" if work else task
        self.done, self.total = done, total
        if task != self.description:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.task = self.bars.add_task(task, total=total or None)
            self.bars.tasks[-1].start_time = self.started
            self.description = task
        self.bars.update(self.task, completed=done, total=total or None)

    def say(self, line: str) -> None:
        if not self.quiet:
            with self._bars_away():
                click.echo(line)

    def warn(self, line: str) -> None:
        with self._bars_away():
            click.echo(f"warning: {line}", err=True)

    @contextlib.contextmanager
    def _bars_away(self) -> Iterator[None]:
        """Erase the bars while a message is written, and draw them again below it."""
        drawn = self.bars.live.is_started
        if drawn:
            self.bars.live.stop()
        try:
            yield
        finally:
            if drawn:
                self.bars.live.start(refresh=True)

    def _tell(self) -> None:
        """Write the progress so far every `line_seconds`, until the stage ends."""
        while not self._ended.wait(self.line_seconds):
            at = self.description or "working"
            at += f" {self.done} of {self.total}" if self.total else ""
            click.echo(f"{at}, {elapsed(time.monotonic() - self.started)}", err=True)


def elapsed(seconds: float) -> str:
    """Return seconds as people say them: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def print_json(value: Any) -> None:
    """Print one JSON object on stdout; what is not finite is null, as in the files."""
    encoded = msgspec.json.encode(value, enc_hook=str)
    click.echo(msgspec.json.format(encoded, indent=2).decode())
