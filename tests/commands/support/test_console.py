"""Progress and messages: bars on a terminal, lines elsewhere, and never both in one line."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
from rich.console import Console

from arvg_trt.commands.support.console import ConsoleReporter, elapsed
from arvg_trt.workspace.stage import in_stage

from ...command_line import without_progress


def screen(text: str) -> list[str]:
    """The lines that a terminal shows of what was written to it."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d*A", part):
            row = max(0, row - int(part[2:-1] or 1))
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def test_bars_and_messages_have_lines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    console = Console(file=terminal, force_terminal=True, width=80)
    with ConsoleReporter(console=console) as reporter:
        reporter.progress("reading", 1, 3)
        reporter.bars.refresh()
        reporter.say("a result")
        reporter.progress("reading", 2, 3)
        reporter.bars.refresh()
        reporter.warn("mind this")
        reporter.bars.refresh()
    text = terminal.getvalue()
    assert text.count("reading") >= 3
    assert [line for line in screen(text) if line] == ["a result", "warning: mind this"]


def test_results_reach_a_pipe_though_stderr_is_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with ConsoleReporter(console=Console(file=err, force_terminal=True, width=80)) as reporter:
        reporter.progress("reading", 1, 3)
        reporter.say("a result")
    assert out.getvalue() == "a result\n"
    assert "a result" not in err.getvalue()


def test_long_stage_off_a_terminal_prints_where_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with ConsoleReporter(quiet=True, line_seconds=0.01) as reporter:
        reporter.progress("quantize: rounding", 3, 40)
        deadline = time.monotonic() + 30
        while err.getvalue().count("\n") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    written = err.getvalue()
    assert "quantize: rounding 3 of 40, 0 s\n" in written
    assert without_progress(f"{written}warning: odd\n") == "warning: odd\n"
    assert out.getvalue() == ""
    time.sleep(0.05)
    assert err.getvalue() == written


def test_a_line_names_the_stage_also_before_anything_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)

    def wait(text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in err.getvalue():
            assert time.monotonic() < deadline, err.getvalue()
            time.sleep(0.005)

    with ConsoleReporter(line_seconds=0.01) as reporter:
        in_stage(reporter, "export").progress("reading graphs", 3, 4)
        wait("export: reading graphs 3 of 4, 0 s\n")
        stage = in_stage(reporter, "quantize")
        wait("quantize: working, 0 s\n")
        in_stage(stage, "build").progress("engines", 1, 2)  # a stage that another begins
        wait("\nbuild: engines 1 of 2, 0 s\n")
    assert without_progress(err.getvalue()) == ""


def test_time_is_that_of_the_stage_and_passes_are_numbered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reporter = ConsoleReporter()
    reporter.started = 0.0  # the run began long before the stage
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    stage = in_stage(reporter, "quantize")
    assert reporter.started == 100.0 and reporter.bars.tasks[-1].start_time == 100.0
    monkeypatch.setattr(time, "monotonic", lambda: 123.0)
    seen = []
    for done in (0, 8, 16) * 3:
        stage.progress("samples through decoder", done, 16)
        seen.append(reporter.description)
    first = "quantize: samples through decoder"
    second, third = (f"quantize: pass {k}, samples through decoder" for k in (2, 3))
    assert seen == [first] * 3 + [second] * 3 + [third] * 3
    assert reporter.started == 100.0 and reporter.bars.tasks[-1].start_time == 100.0
    stage = in_stage(reporter, "build")
    assert reporter.started == 123.0
    monkeypatch.setattr(time, "monotonic", lambda: 150.0)
    in_stage(reporter, "build")  # another engine of the same stage
    assert reporter.started == 150.0
    stage.progress("samples through decoder", 0, 16)
    assert reporter.description == "build: samples through decoder"


def test_numbers_of_passes_only_rise_within_a_stage() -> None:
    """Each task counted its own: pass 24 of one was followed by pass 8 of another."""
    reporter = ConsoleReporter()
    stage = in_stage(reporter, "quantize")
    seen = []
    for task in ("full", "full", "decoder", "full", "decoder", "decoder"):
        for done in (0, 16):
            stage.progress(task, done, 16)
        seen.append(reporter.description.removeprefix("quantize: "))
    assert seen == [
        "full",
        "pass 2, full",
        "decoder",
        "pass 4, full",
        "pass 5, decoder",
        "pass 6, decoder",
    ]


def test_a_terminal_shows_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=terminal, force_terminal=True, width=80)
    with ConsoleReporter(console=console) as reporter:
        for stage in ("export", "calibrate"):
            in_stage(reporter, stage)
            reporter.bars.refresh()
            assert f"{stage}: working" in screen(terminal.getvalue())[-1]


def test_short_stage_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with ConsoleReporter() as reporter:
        reporter.progress("rounding", 1, 2)
    assert err.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
)
def test_elapsed_time_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text
