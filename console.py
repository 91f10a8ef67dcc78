"""Progress and messages on stderr, results on stdout."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class ConsoleReporter:
    """Progress bars on stderr when it is a terminal; `say` goes to stdout unless `quiet`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: Any = None
        self.description = ""

    def __enter__(self) -> ConsoleReporter:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def progress(self, task: str, done: int, total: int) -> None:
        if task != self.description:
            if self.task is not None:
                self.bars.remove_task(self.task)
            self.task = self.bars.add_task(task, total=total)
            self.description = task
        self.bars.update(self.task, completed=done, total=total)

    def say(self, line: str) -> None:
        if not self.quiet:
            click.echo(line)

    def warn(self, line: str) -> None:
        click.echo(f"warning: {line}", err=True)


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(msgspec.to_builtins(value, enc_hook=str), indent=2, allow_nan=False))
