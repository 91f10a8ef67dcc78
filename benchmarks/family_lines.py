"""Count what a family of models has of its own, in lines of code, beside what all share.

python -m arvg_trt.benchmarks.family_lines

Counted are lines with code: no blank ones, comments or docstrings. A family is its package, with
that of its tokenizer.
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
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "Cosmos": ("cosmos",),
    "GSQ": ("gsq",),
    "VAR": ("var", "var_vqvae"),
    "RAR": ("rar", "maskgit_vq"),
    "PAR": ("par", "llamagen_vq"),
    "LlamaGen": ("llamagen", "llamagen_vq"),
    "MAR": ("mar", "kl_vae"),
}
# Modules of a family's package by what they are for.
PARTS: Mapping[str, tuple[str, ...]] = {
    "module": (
        *("model", "config", "checkpoint", "blocks", "denoiser", "quantizer", "resize", "yaml"),
    ),
    "graphs": ("graphs", "write", "parity", "position_ids"),
    "stages": ("__init__", "variants", "export", "recorded_runs", "trajectory", "image_runs"),
    "schedule": ("spec", "loop", "diffusion"),
}
PART_OF = {name: part for part, names in PARTS.items() for name in names}
# Rooms shared by all families, with the column of most of their modules; exceptions come first.
SHARED_PARTS: Mapping[str, str] = {
    "families/shared/transformer.py": "module",
    "families/shared/convolution.py": "module",
    "families/shared/vq.py": "module",
    "families/shared/pyramid.py": "module",
    "families/shared/job.py": "stages",
    "families/shared/isolated_export.py": "stages",
    "families/shared/exporter.py": "stages",
    "families/shared/llama/loop.py": "schedule",
    "families/shared/llama/graphs.py": "graphs",
    "families/shared/llama/write.py": "graphs",
    "families/shared/llama": "module",
    "families/shared": "graphs",
    "families": "stages",
    "export": "graphs",
    "export/checkpoint": "module",
    "export/passes": "graphs",
    "pipeline": "stages",
    "samples": "stages",
    "runtime": "schedule",
    "runtime/sessions": "schedule",
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
    """Return the number of lines with code: no blank ones, comments or docstrings."""
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


def lines_of(folder: Path) -> dict[Path, int]:
    """Return the lines with code of each module of a folder."""
    return {path: code_lines(path.read_text()) for path in sorted(folder.glob("*.py"))}


def count() -> dict[str, Counter[str]]:
    """Return the lines by family and part.

    Raises:
        KeyError: a module of a family that no part has.
    """
    found = {family: Counter[str]() for family in (*PACKAGES, SHARED)}
    for family, packages in PACKAGES.items():
        for package in packages:
            for path, lines in lines_of(ROOT / "families" / package).items():
                found[family][PART_OF[path.stem]] += lines
    for folder in (name for name in SHARED_PARTS if not name.endswith(".py")):
        for path, lines in lines_of(ROOT / folder).items():
            own = SHARED_PARTS.get(f"{folder}/{path.name}", SHARED_PARTS[folder])
            found[SHARED][own] += lines
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
