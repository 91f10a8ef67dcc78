"""Find what makes a build fail: the smallest part of a graph that the builder refuses."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec

from ..engines.cpu import cpu_title
from ..errors import BuildError, OutOfMemory
from ..pipeline.build import open_build
from ..recipe.base import with_changes
from ..recipe.build import BuildOptions
from ..workspace.files import atomic_write
from ..workspace.manifest import MANIFEST
from ..workspace.stage import Reporter, in_stage
from ..workspace.verify import read_manifest
from ..workspace.workspace import Workspace

if TYPE_CHECKING:
    import onnx


class BuildFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Describe the part of a graph that is left: its ``nodes`` of ``of``, and sites among them."""

    graph: str
    targets: tuple[str, ...]
    file: str
    nodes: tuple[str, ...]
    of: int
    sites: tuple[str, ...]
    error: str


def built_by_tensorrt(root: Path, name: str) -> list[BuildOptions]:
    """Return how the TensorRT engines of a quantization were built that are in a workspace."""
    made = [
        read_manifest(folder).options
        for folder in sorted((root / "engines" / name).glob("[!.]*"))
        if (folder / MANIFEST).is_file()
    ]
    # What was decided of sites for named GPUs is of those, and a manifest names none.
    fields = {*BuildOptions.__struct_fields__} - {"keep_if_faster"}
    found = (with_changes(BuildOptions(), **{k: o[k] for k in fields & o.keys()}) for o in made)
    return [options for options in found if not options.on_cpu]


def diagnose_build_failure(
    workspace: Workspace, name: str, options: BuildOptions, output: Path, reporter: Reporter
) -> BuildFailure | None:
    """Write the smallest failing part of the first graph that does not build; None if all do.

    A builder that crashes or takes all memory refuses too.

    Raises:
        BuildError: as a build does before the builder begins, or a back end for the CPU; or
            the shape of an output is not known, so that the graph cannot be tried.
    """
    from ..engines.tensorrt.process import compile_engine
    from ..engines.tensorrt.reduce import reduce_failure

    if options.on_cpu:
        raise BuildError(
            f"{cpu_title(options.backend)} has no builder", do="name --backend tensorrt_rtx"
        )
    reporter = in_stage(reporter, "diagnose")
    opened = open_build(workspace, name, options, reporter)
    build = opened.build
    for group in opened.groups():
        for number, graph in enumerate(build.profiles):
            reporter.progress("building", number, len(build.profiles))
            with TemporaryDirectory() as scratch:
                part = Path(scratch) / f"{graph}.part.onnx"

                def refusal(model: onnx.ModelProto) -> BuildError | OutOfMemory | None:
                    """Return how the builder refuses a graph, None if it builds it."""
                    part.write_bytes(model.SerializeToString())  # noqa: B023 (called in this turn)
                    try:
                        compile_engine(
                            part,  # noqa: B023
                            part.with_suffix(".engine"),  # noqa: B023
                            backend=build.backend,
                            targets=group,  # noqa: B023
                            profiles={},
                        )
                    except (BuildError, OutOfMemory) as error:
                        return error
                    return None

                copy = build.write_copy(graph, Path(scratch), opened.risks())
                found = reduce_failure(copy, build.profiles[graph], refusal)
            if found is not None:
                atomic_write(output, found.model.SerializeToString())
                sites = {site.node: site.name for site in build.site_map.of_graph(graph)}
                return BuildFailure(
                    graph=graph,
                    targets=tuple(target.sm for target in group),
                    file=str(output),
                    nodes=found.nodes,
                    of=found.of,
                    sites=tuple(sites[node] for node in found.nodes if node in sites),
                    error=found.refusal.what,
                )
    return None
