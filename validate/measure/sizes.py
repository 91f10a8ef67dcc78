"""Count the bytes of a candidate: its graphs and the weights they read, and its packed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ...engines.packed.write import known_weights, pack_folder
from ...graph.sites import load_sites
from ...recipe.validate import ValidateOptions
from ...runtime.families import SPEC_FILE
from ...runtime.generator import OTHER_GRAPHS
from ...runtime.packed.expand import megabytes
from ...runtime.spec import DECODER
from ...samples.files import Array, save_sample
from ...workspace.facts import Exported, kind_of
from ...workspace.manifest import Manifest
from ...workspace.stage import Reporter
from ..download import Download
from ..machine.start import StartRequest, Starts, measure_starts
from ..report.schema import ENGINE, FP32, QDQ

SHARED_WEIGHTS = "model.onnx.data"


# The row of the file of weights that several graphs share.
WEIGHTS_OF_ALL = "weights of all graphs"


def graph_bytes(folder: Path, generates: bool) -> dict[str, int]:
    """Return the bytes of each graph with its weights; a shared file is its own row.

    A generator's many small graphs are one row.
    """
    sizes = {}
    if generates:
        sizes["structure of all graphs"] = sum(p.stat().st_size for p in folder.glob("*.onnx"))
        alone = folder / f"{DECODER}.onnx.data"
        if alone.is_file():
            sizes["weights of the image decoder"] = alone.stat().st_size
    shared = folder / SHARED_WEIGHTS
    for graph in () if generates else load_sites(folder).graphs:
        files = {folder / f"{graph}.onnx", folder / f"{graph}.onnx.data"} - {shared}
        sizes[graph] = sum(path.stat().st_size for path in files if path.is_file())
    return sizes | ({WEIGHTS_OF_ALL: shared.stat().st_size} if shared.is_file() else {})


def running_bytes(
    export: Path, exported: Manifest, folders: Mapping[str, Path]
) -> tuple[int, dict[str, int]]:
    """Return the bytes of FP32 and of each candidate, over the same graphs.

    For a generator these are the graphs that make images, and only the part of the shared file of
    weights that they read.
    """
    if kind_of(exported) != "generator":
        graphs = load_sites(export).graphs
        sizes = {name: bytes_of_files(folder, graphs) for name, folder in folders.items()}
        return bytes_of_files(export, graphs), sizes
    graphs = tuple(
        path.stem for path in sorted(export.glob("*.onnx")) if path.stem not in OTHER_GRAPHS
    )
    sizes = {name: bytes_that_are_read(folder, graphs) for name, folder in folders.items()}
    return bytes_that_are_read(export, graphs), sizes


def bytes_of_files(folder: Path, graphs: tuple[str, ...]) -> int:
    """Return the bytes of graphs and their files of weights; a shared file counts once."""
    if engines := engine_bytes(folder, graphs):
        return engines
    names = {SHARED_WEIGHTS} | {f"{g}.onnx{end}" for g in graphs for end in ("", ".data")}
    return sum((folder / name).stat().st_size for name in names if (folder / name).is_file())


def engine_bytes(folder: Path, graphs: tuple[str, ...]) -> int:
    """Return the bytes of the TensorRT engines of graphs; 0 where a folder has none."""
    files = [folder / f"{graph}.engine" for graph in graphs]
    return sum(path.stat().st_size for path in files if path.is_file())


def bytes_that_are_read(folder: Path, graphs: tuple[str, ...]) -> int:
    """Return the bytes of graphs and of the parts of weight files that they name.

    A part that several graphs name counts once.
    """
    import onnx

    if engines := engine_bytes(folder, graphs):
        return engines
    structure = 0
    parts: dict[tuple[str, int], int] = {}
    for graph in graphs:
        path = folder / f"{graph}.onnx"
        structure += path.stat().st_size
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                key = (place["location"], int(place.get("offset", 0)))
                parts[key] = max(parts.get(key, 0), int(place["length"]))
    return structure + sum(parts.values())


def measure_download(
    candidate: str, folder: Path, quantized: Path, progress: Callable[[int, int], None]
) -> Download:
    """Return what a device gets of a candidate's folder: plans, or its graphs packed, by packing.

    `quantized` is the folder of its Q/DQ graphs, whose weights by site help to pack them.
    """
    plans = sorted(folder.glob("*.engine"))
    if plans:
        files = [*plans, *folder.glob("*_ctx.onnx")]
        count = sum(path.stat().st_size for path in files)
        parts = {"engines": count}
        return Download(candidate=candidate, form="engine", parts=parts, expanded_bytes=count)
    spec = folder / SPEC_FILE
    beside = spec.stat().st_size if spec.is_file() else 0
    # OpenVINO's compiled graphs, which a bundle ships beside the graphs.
    compiled = [*folder.glob("*.blob"), *folder.glob("openvino.json")]
    engines = sum(path.stat().st_size for path in compiled)
    with TemporaryDirectory() as scratch:
        known = known_weights(quantized)
        index, packed = pack_folder(folder, Path(scratch), known, progress)
    return Download(
        candidate=candidate,
        form="packed",
        parts={
            "few_bits": packed.few_bits,
            "high_precision": packed.high_precision,
            "graphs": packed.graphs,
            "index": packed.index + beside,
            **({"engines": engines} if engines else {}),
        },
        expanded_bytes=index.expanded_bytes + beside + engines,
    )


def measure_shipped(
    model: Exported,
    folders: Mapping[str, Path],
    options: ValidateOptions,
    device: str,
    sample: Mapping[str, Array],
    reporter: Reporter,
) -> tuple[Download, dict[str, Starts]]:
    """Return what a device gets of the engine, or else of the Q/DQ graphs, and how these start.

    Starts are measured beside FP32's where speed is, on the device that runs the engine. Graphs of
    one's own are fed with the `sample`.
    """
    shipped = ENGINE if ENGINE in folders else QDQ
    folder = folders[shipped]
    told = megabytes(reporter, "packing weights, MB")
    download = measure_download(shipped, folder, folders[QDQ], told)
    if not (options.rounds and options.starts):
        return download, {}
    with TemporaryDirectory() as scratch:
        requests = {
            name: StartRequest(
                folder=str(place.absolute()),
                kind=model.kind,
                side=options.size,
                graphs=load_sites(model.folder).graphs if sample else (),
                sample=str(save_sample(dict(sample), Path(scratch), 0)) if sample else None,
                threads=options.threads,
                device=device if shipped == ENGINE else "cpu",
                allow_fallback=options.allow_fallback,
            )
            for name, place in ((FP32, model.folder), (shipped, folder))
        }
        return download, measure_starts(requests, reporter, options.starts)
