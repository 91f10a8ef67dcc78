"""Write a kit: what a device needs to build an engine by itself, without the workspace.

It holds the half-precision ONNX, the shapes that engines take, and the plan by which they are
proved. ONNX Runtime opens it as a folder of graphs, too: a manifest lists its files. `build.sh` has
the commands of TensorRT's own tool, for a device without Python.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ...errors import IntegrityError
from ...graph.sites import SITES_FILE, SiteMap
from ...numerics.scheme import Plan
from ...quantize.facts import OverflowTensor
from ...recipe.base import with_changes
from ...recipe.build import BuildOptions
from ...runtime.bundle.layout import BundleFile, TargetGroup, name_problem
from ...runtime.trt_compat import Backend
from ...workspace.files import atomic_write, decode_json, encode_json, sha256_file
from ...workspace.manifest import Manifest, write_manifest
from ...workspace.stage import package_versions
from ...workspace.verify import GENERATOR_FILE
from ..faster.engine_build import decided_build
from ..formats import precision_text
from ..tensorrt.engine import EngineBuild
from ..tensorrt.profiles import Profiles
from .contents import GroupSources, Source

KIT_FOLDER, KIT_FILE, PLAN_FILE, SCRIPT = "kit", "kit.json", "plan.json", "build.sh"
Shape = tuple[int, ...]


class Kit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say what the engines of a kit are: of which quantization, and for which shapes."""

    model: str
    name: str
    half: Literal["float16", "bfloat16"]
    image_size: int
    max_batch: int
    profiles: dict[str, dict[str, tuple[Shape, Shape, Shape]]]
    schema: Literal["arvg-trt/kit/v1"] = "arvg-trt/kit/v1"


def write_kit(
    build: EngineBuild, model: str, name: str, wide: Sequence[OverflowTensor], folder: Path
) -> None:
    """Write a kit's files to an empty folder; what makes or reads a tensor of `wide` stays FP32."""
    source = build.source
    with decided_build(build, folder) as decided:
        for graph in build.profiles:
            decided.write_copy(graph, folder, wide)
    build = decided
    (folder / SITES_FILE).write_bytes(encode_json(build.site_map))
    if build.plan is not None:
        (folder / PLAN_FILE).write_bytes(encode_json(build.plan))
    if (source / GENERATOR_FILE).is_file():
        shutil.copyfile(source / GENERATOR_FILE, folder / GENERATOR_FILE)
    kit = Kit(
        model=model,
        name=name,
        half=build.options.half,
        image_size=build.options.image_size,
        max_batch=build.options.max_batch,
        profiles={graph: dict(shapes) for graph, shapes in build.profiles.items()},
    )
    (folder / KIT_FILE).write_bytes(encode_json(kit))
    atomic_write(folder / SCRIPT, script(kit.profiles).encode())
    wanted = Manifest(
        stage="bundle",
        inputs={},
        options={"model": model, "name": name, "half": kit.half},
        versions=package_versions("onnx", "onnx-ir"),
    )
    write_manifest(folder, wanted, {})


def kit_group(build: EngineBuild, folder: Path) -> GroupSources:
    """Return a kit's folder as the target group of a bundle."""
    files: list[BundleFile] = []
    sources: dict[str, Source] = {}
    for path in sorted(folder.iterdir()):
        place = f"{KIT_FOLDER}/{path.name}"
        digest = sha256_file(path)
        files.append(BundleFile(path=place, sha256=digest, bytes=path.stat().st_size))
        sources[place] = path
    entries = () if build.plan is None else build.plan.sites
    group = TargetGroup(
        name=KIT_FOLDER,
        kind="kit",
        folder=KIT_FOLDER,
        precision=precision_text(entries, build.options.half),
        files=tuple(files),
    )
    return GroupSources(group, sources)


def read_kit(
    folder: Path,
    backend: Backend,
    targets: Sequence[str],
    *,
    timings: Path | None = None,
    allow_unproved: bool = False,
) -> tuple[Kit, EngineBuild]:
    """Return a kit, and how its engines are built for some targets.

    TensorRT's timings of kernels are kept in the folder `timings`: a kit's own folder stays as it
    was packed.

    Raises:
        IntegrityError: it cannot be read, or names a graph that no file beside it can have.
        RecipeError: its sizes, or the targets, are none that engines take.
    """
    do = "get the bundle again"
    kit = decode_json(folder / KIT_FILE, Kit, do=do, error=IntegrityError)
    for graph in kit.profiles:
        if name_problem(graph) is not None:  # an engine of this name is written
            what = f"{graph[:100]!r} is no name of a graph"
            raise IntegrityError(what, where=str(folder / KIT_FILE), do=do)
    plan = None
    if (folder / PLAN_FILE).is_file():
        plan = decode_json(folder / PLAN_FILE, Plan, do=do, error=IntegrityError)
    options = with_changes(
        BuildOptions(),
        backend=backend,
        targets=tuple(targets),
        half=kit.half,
        image_size=kit.image_size,
        max_batch=kit.max_batch,
        allow_unproved=allow_unproved,
    )
    profiles: dict[str, Profiles] = dict(kit.profiles)
    sites = decode_json(folder / SITES_FILE, SiteMap, do=do, error=IntegrityError)
    return kit, EngineBuild(folder, backend, options, plan, sites, profiles, timings, is_half=True)


def script(profiles: Mapping[str, Mapping[str, tuple[Shape, Shape, Shape]]]) -> str:
    """Return a shell script that builds every engine with `trtexec` of TensorRT 10 on a device."""
    lines = [
        "#!/bin/sh",
        "# Builds the engines with TensorRT's own tool, for trtexec and TensorRT's own runtime.",
        "# `arvg-trt build --from FILE` also writes the models by which ONNX Runtime opens them,",
        "# and compares each site with the plan, as far as the builder lists its layers.",
        "set -e",
        'cd "$(dirname "$0")"',
    ]
    for graph, shapes in profiles.items():
        words = ["trtexec", f"--onnx={graph}.onnx", "--stronglyTyped"]
        for k, option in enumerate(("minShapes", "optShapes", "maxShapes")):
            texts = [f"{name}:{'x'.join(map(str, s[k]))}" for name, s in shapes.items()]
            words += [f"--{option}={','.join(texts)}"] * bool(texts)
        lines.append(shlex.join([*words, f"--saveEngine={graph}.engine"]))
    return "\n".join(lines) + "\n"
