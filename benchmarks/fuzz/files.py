"""Pair a valid file of each kind that the tool reads back with its reader.

A reader does what the stages do with the file before their work begins. It succeeds or raises an
`ArvgError`: anything else is a fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from ...calibrate.statistics import load_exported, merge, require_channels
from ...errors import RecipeError
from ...explain.inspect import inspect_path
from ...export.checkpoint.config_json import read_beside
from ...export.checkpoint.read import read_tensors
from ...families.custom.canonical import read_custom_graph
from ...families.custom.parity import blamed_on_file
from ...families.custom.sites import find_custom_sites
from ...families.gsq.yaml import read_normalization
from ...graph.sites import load_sites
from ...numerics.scheme import Plan
from ...quantize.plan import check_plan, make_plan
from ...recipe.file import PRESETS, load_recipe
from ...recipe.quantize import QuantizeOptions
from ...runtime.families import SPEC_FILE
from ...runtime.files import read_codes
from ...runtime.folders import read_spec
from ...runtime.generator import choose_sampling
from ...runtime.labels import check_labels
from ...runtime.packed.layout import INDEX_FILE, WEIGHTS_FILE
from ...runtime.sessions.open import fast_session, reference_session
from ...runtime.tokenizer import ImageTokenizer
from ...samples.files import load_sample
from ...samples.images import open_source
from ...samples.inputs import GraphInput, check_arrays, check_names, check_pictures, read_arrays
from ...validate.compare.compare import compare
from ...validate.compare.page import comparison_markdown
from ...validate.report.files import load_report
from ...validate.report.schema import metrics
from ...workspace.files import decode_json, encode_json
from ...workspace.manifest import MANIFEST, Manifest, is_up_to_date
from ...workspace.verify import verify
from .bundle_readers import NAME as BUNDLE_NAME
from .bundle_readers import bundle_readers, packed_readers
from .examples import (
    SIDE,
    exported,
    plan,
    product,
    report_bytes,
    saver,
    specs,
    tokenizer_graphs,
    write_packed_weights,
    write_statistics,
)
from .kept_files import kept_files

Reader = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class FileKind:
    """Hold a file's `name`, its valid bytes, what reads its folder, and files beside it."""

    name: str
    data: bytes
    read: Reader
    beside: tuple[tuple[str, bytes], ...] = ()


def file_kinds(scratch: Path) -> dict[str, FileKind]:
    """Return every kind of file by its name here; valid ones are written to `scratch` once."""
    scratch.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sites, graph = exported(scratch)

    def made(name: str, write: Callable[[Path], object]) -> bytes:
        write(scratch / name)
        return (scratch / name).read_bytes()

    def read_plan(folder: Path) -> object:
        entries = decode_json(folder / "plan.json", Plan, do="edit it", error=RecipeError)
        return check_plan(entries, sites)

    def read_sites(folder: Path) -> object:
        found = load_sites(folder)
        return make_plan(found.calibrated, QuantizeOptions())

    def read_statistics(folder: Path) -> object:
        found, _ = load_exported(folder / "statistics.safetensors")
        require_channels(found, sites.sites, "statistics.safetensors")
        return [stats.filled() for stats in merge([found, found]).values()]

    def read_generator(folder: Path) -> object:
        _, spec = read_spec(folder)
        return choose_sampling(spec), check_labels(spec, [0])

    def read_manifest(folder: Path) -> object:
        manifest = verify(folder)
        is_up_to_date(folder, manifest)
        return manifest.key()

    inputs = (
        GraphInput("model", "x", np.dtype(np.float32), ("n", SIDE)),
        GraphInput("model", "image", np.dtype(np.float32), ("n", 3, "h", "w")),
    )

    def read_feeds(folder: Path) -> object:
        arrays = read_arrays(folder / "feeds.npz")
        check_names(arrays, inputs, "feeds.npz")
        count = check_arrays(arrays, inputs, "feeds.npz")
        check_pictures(arrays, inputs, "feeds.npz", None)
        return count

    def read_onnx(folder: Path) -> object:
        with blamed_on_file(folder / "model.onnx"):
            return find_custom_sites(read_custom_graph(folder / "model.onnx").graph, "model")

    codec = tokenizer_graphs()

    def read_tokens(folder: Path) -> object:
        return read_codes(open_tokenizer(folder), folder / "tokens.npz")

    def open_tokenizer(folder: Path) -> ImageTokenizer:
        # `ImageTokenizer.open` does the same once it has verified the manifest.
        return ImageTokenizer(*(fast_session(folder / f"{n}.onnx") for n in ("encoder", "decoder")))

    def read_report(folder: Path) -> object:
        report = load_report(folder / "report.json")
        labelled = [("first", report), ("second", report)]
        return metrics(report), comparison_markdown(compare(labelled))

    def opened(folder: Path) -> object:
        return reference_session(folder / "model.onnx").metadata

    feeds = {"x": rng.normal(size=(4, SIDE)), "image": rng.normal(size=(4, 3, 4, 4))}
    floats = {name: value.astype(np.float32) for name, value in feeds.items()}
    tokens = {
        "tokens_0": np.arange(12, dtype=np.int32).reshape(1, 3, 4),
        "size_0": np.array([3, 4]),
    }
    weight = rng.normal(size=(4, 8)).astype(np.float32)
    pixels = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    manifest = Manifest(
        stage="export", inputs={"a": "0" * 64}, options={"model": "m"}, versions={"numpy": "2"}
    )
    preset = (PRESETS / "cosmos-mini-int8.toml").read_bytes()
    yaml = b"quantizer_config:\n  params: {use_l2_norm: true}\n"
    model = product().SerializeToString()
    kinds = {
        "plan": FileKind("plan.json", encode_json(plan()), read_plan),
        "sites": FileKind("sites.json", encode_json(sites), read_sites, (("model.onnx", graph),)),
        "statistics": FileKind(
            "statistics.safetensors",
            made("statistics.safetensors", write_statistics),
            read_statistics,
        ),
        "manifest": FileKind(MANIFEST, encode_json(manifest), read_manifest),
        "recipe": FileKind("mine.toml", preset, lambda f: load_recipe(str(f / "mine.toml"))),
        "feeds": FileKind("feeds.npz", made("feeds.npz", saver(np.savez, floats)), read_feeds),
        "feeds compressed": FileKind(
            "feeds.npz", made("c.npz", saver(np.savez_compressed, floats)), read_feeds
        ),
        "tokens": FileKind(
            "tokens.npz",
            made("t.npz", saver(np.savez_compressed, tokens)),
            read_tokens,
            tuple(codec.items()),
        ),
        "sample": FileKind(
            "00000.safetensors",
            made("s.safetensors", lambda p: save_file(floats, p)),
            lambda f: load_sample(f / "00000.safetensors"),
        ),
        "checkpoint": FileKind(
            "model.safetensors",
            made("w.safetensors", lambda p: write_packed_weights(p, weight)),
            lambda f: read_tensors(f / "model.safetensors"),
        ),
        "onnx": FileKind("model.onnx", model, read_onnx),
        "onnx inspected": FileKind("model.onnx", model, lambda f: inspect_path(f / "model.onnx")),
        "onnx opened": FileKind("model.onnx", model, opened),
        "tokenizer graph": FileKind(
            "encoder.onnx",
            codec["encoder.onnx"],
            open_tokenizer,
            (("decoder.onnx", codec["decoder.onnx"]),),
        ),
        "report": FileKind("report.json", report_bytes(), read_report),
        "config.json": FileKind("config.json", b'{"depth": 16}', lambda f: read_beside(f, Depth)),
        "config.yaml": FileKind("config.yaml", yaml, read_normalization),
    }
    kinds |= {
        f"generator {family}": FileKind(
            SPEC_FILE, json.dumps({"family": family, **said}).encode(), read_generator
        )
        for family, said in specs().items()
    }
    for suffix in ("png", "jpg", "gif", "tif", "bmp", "webp"):
        name = f"picture.{suffix}"
        kinds[f"picture {suffix}"] = FileKind(
            name, made(name, lambda p: pixels.save(p)), lambda f: open_source(str(f)).load(0)
        )
    array = made("a.npy", lambda p: np.save(p, np.asarray(pixels) / np.float32(127.5) - 1))
    kinds |= {
        called: FileKind(BUNDLE_NAME, data, read)
        for called, (data, read) in bundle_readers(scratch).items()
    }
    kinds |= {
        called: FileKind(INDEX_FILE if called == "packed index" else WEIGHTS_FILE, data, read, more)
        for called, data, read, more in packed_readers(scratch)
    }
    kinds["picture npy"] = FileKind("a.npy", array, lambda f: open_source(str(f)).load(0))
    packed = (scratch / "w.safetensors").read_bytes()
    kinds |= {
        called: FileKind(*each) for called, each in kept_files(encode_json(sites), packed).items()
    }
    return kinds


class Depth(msgspec.Struct):
    """Define a key that a `config.json` may have."""

    depth: int = 1
