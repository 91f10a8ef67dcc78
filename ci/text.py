"""Fill a template of a CI file, with every value quoted for the place where it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from ..errors import RecipeError

TEMPLATES = Path(__file__).parent / "templates"
# Words in which no reader of YAML finds anything else: no `: `, no ` #`, nothing of a flow list.
_PLAIN = re.compile(
    r"[A-Za-z$](?:[A-Za-z0-9._/@+=$|?\"-]|:(?=[A-Za-z0-9])| (?=[A-Za-z0-9$|=\"-]))*"
)
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}  # no texts in YAML 1.1
_VALUE = re.compile(r"<<(\w+)>>")
_ONLY_IF = re.compile(r"<<(if|unless) (\w+)>>|<<end>>")


def require_printable(text: str, what: str) -> str:
    """Return a name as it is; one that an editor cannot show has no place in a CI file.

    Raises:
        RecipeError: it holds a line break, a control character or the like, or a lone surrogate.
    """
    if not text.isprintable():
        raise RecipeError(
            f"{what} {text!r} holds a character that cannot be shown", do="rename it for CI"
        )
    return text


def yaml_text(text: str) -> str:
    """Return a printable text as YAML: plain where nothing else can be read into it."""
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def shell_word(text: str) -> str:
    """Return a printable text as one word of a shell."""
    return shlex.quote(text)


def as_path(text: str) -> str:
    """Return a relative path so that nothing takes it for an option, a comment or a pattern."""
    return f"./{text}" if text.startswith(("-", "!", "#", "~")) else text


def fill(template: str, values: Mapping[str, str], chosen: Collection[str]) -> str:
    """Return a template with its `<<values>>`, which are quoted, and the parts that are `chosen`.

    Lines between `<<if NAME>>` and `<<end>>` stay where NAME is chosen, those behind
    `<<unless NAME>>` where it is not. A value of several lines is indented as its first one; a line
    that is an empty value alone is left out.
    """
    lines: list[str] = []
    keep = True
    for line in (TEMPLATES / template).read_text(encoding="utf-8").splitlines():
        if found := _ONLY_IF.fullmatch(line.strip()):
            keep = found[1] is None or (found[2] in chosen) is (found[1] == "if")
        elif keep and (alone := _VALUE.fullmatch(line.strip())):
            indent = line[: len(line) - len(line.lstrip())]
            lines += [indent + each for each in values[alone[1]].splitlines()]
        elif keep:
            lines.append(_VALUE.sub(lambda found: values[found[1]], line))
    return "\n".join(lines) + "\n"
