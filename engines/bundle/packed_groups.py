"""Pack the graphs of a bundle's target groups: their weights in few bits, expanded on a device."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from ...numerics.weight import QuantizedWeight
from ...runtime.bundle.layout import BundleFile
from ...runtime.packed.expand import Progress
from ...runtime.packed.layout import INDEX_FILE, WEIGHTS_FILE
from ...workspace.files import sha256_file
from ..packed.write import known_weights, pack_folder
from .contents import GroupSources, Source


def pack_groups(
    groups: Sequence[GroupSources], quantized: Path, place: Path, progress: Progress
) -> list[GroupSources]:
    """Return target groups with their graphs packed below `place`.

    `quantized` is the folder of the quantization, whose weights by site help to pack them.
    """
    known = known_weights(quantized)
    return [pack_group(made, known, place, progress) for made in groups]


def pack_group(
    made: GroupSources, known: Mapping[str, QuantizedWeight], place: Path, progress: Progress
) -> GroupSources:
    """Return a target group whose folders of graphs are packed, into new folders below `place`.

    `known` are the quantized weights of the model by site. Plans of TensorRT and what else lies
    beside graphs stay as they are.
    """
    files, sources = {file.path: file for file in made.group.files}, dict(made.sources)
    for folder in graph_folders(made.sources):
        output = Path(tempfile.mkdtemp(dir=place))
        index, _ = pack_folder(source_of(made, folder), output, known, progress)
        for replaced in index.files:
            path = f"{folder}/{replaced.path}"
            del files[path], sources[path]
        for name in (INDEX_FILE, WEIGHTS_FILE):
            path, source = f"{folder}/{name}", output / name
            digest, size = sha256_file(source), source.stat().st_size
            files[path] = BundleFile(path=path, sha256=digest, bytes=size)
            sources[path] = source
    group = msgspec.structs.replace(made.group, files=tuple(files.values()))
    return GroupSources(group, sources)


def graph_folders(sources: Mapping[str, Source]) -> list[str]:
    """Return the folders that graphs lie in, by their paths in a bundle."""
    graphs = [PurePosixPath(path) for path in sources if path.endswith(".onnx")]
    return sorted({path.parent.as_posix() for path in graphs})


def source_of(made: GroupSources, folder: str) -> Path:
    """Return the folder of this machine that a group's folder of graphs is packed from."""
    graph = next(p for p in made.sources if p.endswith(".onnx") and p.startswith(f"{folder}/"))
    source = made.sources[graph]
    assert isinstance(source, Path), "graphs are files"
    return source.parent
