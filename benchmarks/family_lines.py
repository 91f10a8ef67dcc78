"""What a family of models has of its own, in lines of code, beside what all share.

python -m arvg_trt.benchmarks.family_lines

Counted are lines with code: no blank ones, comments or docstrings. A module belongs to the family
whose name, or whose tokenizer's name, its own begins or ends with; a module that is named after
none is shared. Zoo entries, a few lines a variant, are data and count as shared.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click

from .common import markdown_table

ROOT = Path(__file__).parent.parent
# The modules that a family alone needs carry one of these words in their name.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "Cosmos": ("cosmos",),
    "GSQ": ("gsq",),
    "VAR": ("var",),
    "RAR": ("rar", "maskgit"),
    "PAR": ("par", "llamagen"),
    "MAR": ("mar", "kl", "diffusion", "trajectory"),
}
PARTS: Mapping[str, tuple[str, ...]] = {
    "module": ("export/generators", "export/tokenizers"),
    "graphs": ("export",),
    "stages": ("pipeline",),
    "schedule": ("runtime/generate", "runtime"),
}
SHARED = "shared by all"
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Lines with code: no blank ones, comments or docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            # A constant or a field is documented by a string behind it.
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def family_of(path: Path) -> str:
    """The family that a module is named after, else `SHARED`."""
    words = path.stem.split("_")
    for family, names in FAMILIES.items():
        if set(names) & set(words):
            return family
    return SHARED


def count() -> dict[str, Counter[str]]:
    """Lines by family and part."""
    found = {family: Counter[str]() for family in (*FAMILIES, SHARED)}
    for part, folders in PARTS.items():
        for folder in folders:
            for path in sorted((ROOT / folder).glob("*.py")):
                found[family_of(path)][part] += code_lines(path.read_text())
    return found


def table(found: Mapping[str, Counter[str]]) -> str:
    rows = [
        (family, *(str(parts[part]) for part in PARTS), str(parts.total()))
        for family, parts in found.items()
    ]
    return markdown_table(("lines of code", *PARTS, "all"), rows)


@click.command()
def main() -> None:
    """Print the table."""
    click.echo(table(count()))


if __name__ == "__main__":
    main()
