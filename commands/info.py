"""Define commands that only show: models, GPUs, artifacts, the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from ..engines.analysis import GraphAnalysis, analyze_files
from ..engines.tensorrt.targets import Capability, TargetRow, target_rows
from ..engines.verdicts import TARGETS
from ..errors import ExportError
from ..graph.sites import NodeVerdict, Verdict
from ..runtime.sessions.placement import rtx_takes
from .support import completion
from .support.console import print_json
from .support.groups import command
from .support.options import PathArgument, json_option

if TYPE_CHECKING:
    from ..explain.models import ModelRow


@command()
@json_option
def models(as_json: bool) -> None:
    """List the models that are known by name.

    Columns: name, parameters, where the weights are, the bytes to fetch and the licence. `--json`
    has each file with its repository, bytes, sha256 and licence, and whether it takes a login, as
    far as public documents tell.

    \b
    Example: arvg-trt models
    """
    from ..explain.models import model_rows

    rows = model_rows()
    if as_json:
        print_json({"models": rows})
        return
    width = max(len(row.name) for row in rows)
    click.echo(f"{'model':<{width}} {'parameters':>13}  weights: files, bytes to fetch, licence")
    for row in rows:
        click.echo(f"{row.name:<{width}} {row.parameters:>13,}  {row.checkpoint}: {fetched(row)}")


def fetched(row: ModelRow) -> str:
    """Return the files of a model, and of a published one its bytes and terms."""
    if not row.published:
        return " ".join(row.files[0])
    names = " ".join(file.name for file in row.published)
    size = "size unknown" if row.download_bytes is None else f"{row.download_bytes / 1e9:.2f} GB"
    licenses = dict.fromkeys(file.license or "licence unknown" for file in row.published)
    login = ["login needed"] if any(file.login for file in row.published) else []
    return ", ".join([names, size, " and ".join(licenses), *login])


@command()
@click.argument("name", required=False, shell_complete=completion.targets)
@json_option
def targets(name: str | None, as_json: bool) -> None:
    """List the GPUs to build for, or describe one.

    Of the GPU called NAME memory, bandwidth and peaks are shown, with their sources.

    \b
    Example: arvg-trt targets rtx4090
    """
    rows = target_rows(name)
    if as_json:
        print_json({"targets": rows})
        return
    click.echo(targets_text(rows) if name is None else target_text(rows[0]))


def targets_text(rows: Sequence[TargetRow]) -> str:
    """Return a table: names, capability, formats and what takes each entry."""
    cells = [
        [
            " ".join(row.gpu.names if row.gpu else ()),
            f"sm{row.capability.number}",
            " ".join(format_names(row.capability)),
            ", ".join(
                f"{name}{'*' if only_compiled(row.capability, name) else ''}"
                for name in row.backends
            ),
        ]
        for row in rows
    ]
    table = aligned([["names", "target", "formats", "built by"], *cells])
    return "\n".join([*table, f"  * {ONLY_COMPILED}"])


def target_text(row: TargetRow) -> str:
    """Return all that is known of a GPU, a line each, with the sources and their day."""
    gpu, capability = row.gpu, row.capability
    serves = (
        f"{k}: {only_compiled(capability, k) or ('yes' if able else 'no')}"
        for k, able in capability.serves.items()
    )
    lines = {
        "compute capability": f"sm{capability.number}, {capability.architecture}",
        "formats": ", ".join(format_names(capability)),
        "taken by": ", ".join(serves),
    }
    if gpu is not None:
        figures = {
            "memory": (gpu.memory_gb, "GB"),
            "bandwidth": (gpu.bandwidth_gb_s, "GB/s"),
            "FP32": (gpu.fp32, "TFLOPS"),
            "dense FP16": (gpu.fp16, "TFLOPS"),
            "dense INT8": (gpu.int8, "TOPS"),
            "dense FP8": (gpu.fp8, "TFLOPS"),
            "dense FP4": (gpu.fp4, "TFLOPS"),
        }
        lines = {"gpu": gpu.title, "names": ", ".join(gpu.names), **lines}
        lines |= {k: f"{value:g} {unit}" for k, (value, unit) in figures.items() if value}
    read = [
        f"{source} ({each.date})" for each in (gpu, capability) if each for source in each.sources
    ]
    text = [f"{key}: {value}" for key, value in lines.items()]
    return "\n".join([*text, "sources:", *(f"  {source}" for source in dict.fromkeys(read))])


MOST_ROWS = 12  # of nodes alike
NOT_BUILDABLE = "not buildable"
ONLY_COMPILED = "compiles; no provider of ONNX Runtime opens it"


def only_compiled(capability: Capability, name: str) -> str:
    """Return that what `name` compiles for GPUs of a capability is opened by nothing; else ""."""
    compiles = name == "tensorrt_rtx" and capability.serves[name]
    if not compiles or rtx_takes(capability.number):
        return ""
    return ONLY_COMPILED


def format_names(capability: Capability) -> list[str]:
    """Return the formats as people write them; INT8 without remark is of all products."""
    named = dict.fromkeys(("int8_gemm", "int8_conv", "int8_weights"), "int8")
    formats = [named.get(form, form) for form in capability.formats]
    if "int8_conv" not in capability.formats:
        formats = ["int8 (W8A8 linears)" if form == "int8" else form for form in formats]
    return list(dict.fromkeys(formats))


@command()
@click.argument("path", type=PathArgument())
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Describe a workspace, a folder of it, a bundle or a graph.

    \b
    Example: arvg-trt inspect out/demo
    """
    from ..explain.inspect import inspect_path, inspected_lines

    found = inspect_path(path)
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(inspected_lines(found)))


@command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can build and run, and what it lacks.

    \b
    Example: arvg-trt doctor
    """
    from ..explain.doctor import USES, doctor_rows

    rows = doctor_rows()
    if as_json:
        print_json({"checks": rows})
        return
    width = max(len(row.what) for row in rows)
    for use, title in USES.items():
        click.echo(title)
        for row in rows:
            if row.use == use:
                click.echo(f"  {row.state:<8} {row.what:<{width}} {row.detail}")


@command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--target",
    "targets",
    multiple=True,
    shell_complete=completion.targets,
    help=f"GPU or compute capability. Repeatable. [default: {', '.join(TARGETS)}]",
)
@click.option("--all", "every", is_flag=True, help="A line for each product, not for those alike.")
@json_option
def analyze(files: Sequence[Path], targets: Sequence[str], every: bool, as_json: bool) -> None:
    """Say what becomes of each node of ONNX FILES, and why.

    On each target a node is INT8, FP8, in high precision, or not buildable. Nothing is calibrated
    or built. A file that `export onnx` refuses has its reason, and the command then exits with 4.

    \b
    Example: arvg-trt analyze model.onnx --target rtx4090
    """
    analyses = analyze_files(files, targets or TARGETS)
    if not as_json:
        click.echo("\n\n".join(text_of(analysis, every) for analysis in analyses))
    refused = [str(analysis.file) for analysis in analyses if analysis.refused]
    if refused:
        error = ExportError(f"cannot be exported: {', '.join(refused)}")
        error.measured = {"graphs": analyses}
        raise error
    if as_json:
        print_json({"graphs": analyses})


def text_of(analysis: GraphAnalysis, every: bool = False) -> str:
    if analysis.refused is not None:
        return f"{analysis.file}: refused: {analysis.refused}"
    # Not the file's own: weights are folded, and functions inlined.
    head = f"{analysis.file}, as exported: opset {analysis.opset}, {analysis.nodes} nodes"
    lines = [head, *counts_table(analysis), *node_lines(analysis.verdicts, every)]
    rest = analysis.nodes - len(analysis.verdicts)
    if rest > 0:
        lines.append(f"The other {rest} nodes are no products: they stay in high precision.")
    return "\n".join(lines)


def counts_table(analysis: GraphAnalysis) -> list[str]:
    """Return a table with a row per verdict and a column per target."""
    verdicts = {verdict for counts in analysis.counts.values() for verdict in counts}
    rows = [["nodes", *analysis.counts]] + [
        [verdict, *(str(counts.get(verdict, 0)) for counts in analysis.counts.values())]
        for verdict in get_args(Verdict)
        if verdict in verdicts
    ]
    return aligned(rows)


def node_lines(verdicts: Sequence[NodeVerdict], every: bool = False) -> list[str]:
    """List what becomes of which nodes, and why: a line for nodes alike, those of most nodes first.

    With `every` each node has a line of its own, in the order of the graph.
    """
    alike: dict[tuple[str, str, str], list[str]] = {}
    for v in verdicts:
        alike.setdefault((v.op, verdict_text(v), v.reason or ""), []).append(v.node)
    rows = [[shortened(nodes), *key] for key, nodes in alike.items()]
    if every:
        rows = [[v.node, v.op, verdict_text(v), v.reason or ""] for v in verdicts]
    elif len(rows) > MOST_ROWS:
        # What stops a build is not left out.
        found = sorted(alike.items(), key=lambda x: (x[0][1] != NOT_BUILDABLE, -len(x[1])))
        rows = [[shortened(nodes), *key] for key, nodes in found[:MOST_ROWS]]
    if not rows:
        return []
    lines = ["", *aligned([["node", "operator", "verdict", "reason"], *rows])]
    if not every and len(alike) > MOST_ROWS:
        lines.append(f"... and {len(alike) - MOST_ROWS} more kinds of nodes: --all lists each node")
    return lines


def verdict_text(verdict: NodeVerdict) -> str:
    """Return what a node becomes: the same everywhere, or on the targets that differ."""
    if stops(verdict):
        return NOT_BUILDABLE
    by_verdict: dict[str, list[str]] = {}
    for target, each in verdict.targets.items():
        by_verdict.setdefault(each, []).append(target)
    if len(by_verdict) == 1:
        return next(iter(by_verdict))
    return "; ".join(f"{each} ({' '.join(targets)})" for each, targets in by_verdict.items())


def shortened(nodes: Sequence[str]) -> str:
    return ", ".join(nodes) if len(nodes) <= 2 else f"{nodes[0]} and {len(nodes) - 1} more"


def stops(verdict: NodeVerdict) -> bool:
    """Return whether some target cannot build the node at all."""
    return NOT_BUILDABLE in verdict.targets.values()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
