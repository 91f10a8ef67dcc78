"""Options under headings: help lists them by what they are about."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

EXAMPLE = re.compile(r"Example: (.+)")  # the first of a command's help
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class GroupedOption(click.Option):
    """An option that help lists under the heading `group`; without one, among all others."""

    def __init__(self, *args: Any, group: str = "", **named: Any) -> None:
        super().__init__(*args, **named)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help has a section for each group of options, in order of appearance.

    What misses an argument or an option says what that is, and shows the command's example.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            meaning = getattr(error.param, "help", None)
            found = EXAMPLE.search(self.help or "")
            example = f"For example: {found[1]}" if found else None
            text = " ".join(filter(None, (error.message, meaning, example)))
            given = (error.param_hint, error.param_type)
            raise click.MissingParameter(text, error.ctx, error.param, *given) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and row is not None:
                heading = getattr(parameter, "group", "") or "Options"
                sections.setdefault(heading, []).append(row)
        others = sections.pop("Options", [])
        for heading, rows in [*sections.items(), ("Options", others)]:
            with formatter.section(heading):
                formatter.write_dl(rows)


def command() -> Callable[[Callable[..., Any]], click.Command]:
    """Return the decorator that makes a command whose help has headings."""
    return click.command(cls=GroupedCommand)


def option(*names: str, group: str, **named: Any) -> Callable[[Decorated], Decorated]:
    """Return the decorator that adds an option to a command, under a heading of its help."""
    return click.option(*names, cls=GroupedOption, group=group, **named)


class DefaultGroup(click.Group):
    """A group one of whose commands, `default`, runs where the first argument names none."""

    def __init__(self, *args: Any, default: str, **named: Any) -> None:
        super().__init__(*args, **named)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


class SectionedGroup(click.Group):
    """List the commands of a group under headings, in the order in which they were added."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.sections: dict[str, list[str]] = {}

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add commands under a heading of the help."""
        for command in commands:
            self.add_command(command)
            self.sections.setdefault(title, []).append(str(command.name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections; the width of the names is that of the longest of all."""
        width = max(len(name) for name in self.commands)
        limit = formatter.width - 6 - width
        for title, names in self.sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"{name:<{width}}", self.commands[name].get_short_help_str(limit))
                        for name in names
                    ]
                )
