"""One valid file of each kind that the tool reads back, its reader, and how its bytes are changed.

A reader does what the stages do with the file before their work begins. It succeeds or raises an
`ArvgError`: anything else is a fault.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from ..calibrate.statistics import (
    TensorStats,
    load_exported,
    merge,
    require_channels,
    save_statistics,
)
from ..errors import RecipeError
from ..export.checkpoint.config_json import read_beside
from ..export.checkpoint.read import read_tensors
from ..families.custom.canonical import read_custom_graph
from ..families.custom.parity import blamed_on_file
from ..families.custom.sites import find_custom_sites
from ..families.gsq.yaml import read_normalization
from ..graph.sites import SiteMap, load_sites
from ..numerics.packing import save_packed_weights
from ..numerics.scheme import ActivationFormat, Plan, SitePlan, WeightFormat
from ..numerics.weight import quantize_weight
from ..pipeline.info import inspect_path
from ..quantize.plan import check_plan, make_plan
from ..recipe.file import PRESETS, load_recipe
from ..recipe.quantize import QuantizeOptions
from ..runtime.files import read_codes
from ..runtime.generator import SPEC_FILE, check_labels, choose_sampling, read_spec
from ..runtime.sessions.onnxruntime import fast_session, reference_session
from ..runtime.tokenizer import ImageTokenizer
from ..samples.files import load_sample
from ..samples.images import open_source
from ..samples.inputs import GraphInput, check_arrays, check_names, check_pictures, read_arrays
from ..validate.metrics.latency import Cpu
from ..validate.metrics.outputs import OutputAccuracy
from ..validate.report.compare import compare, comparison_markdown
from ..validate.report.schema import Data, Report, load_report, metrics, sizes
from ..workspace.files import decode_json, encode_json
from ..workspace.manifest import MANIFEST, Manifest, is_up_to_date
from ..workspace.verify import verify

Reader = Callable[[Path], object]
SIDE = 8  # channels of the small product


@dataclass(frozen=True, slots=True)
class FileKind:
    """`name` in its folder, its valid bytes, what reads the folder, and files beside it."""

    name: str
    data: bytes
    read: Reader
    beside: tuple[tuple[str, bytes], ...] = ()


def product() -> onnx.ModelProto:
    """Return a graph of two linears with a norm and an activation, and a convolution behind."""
    rng = np.random.default_rng(0)
    tensors = {
        "fc1.weight": rng.normal(size=(SIDE, 2 * SIDE)),
        "fc1.bias": rng.normal(size=2 * SIDE),
        "norm.weight": rng.normal(size=2 * SIDE),
        "norm.bias": rng.normal(size=2 * SIDE),
        "fc2.weight": rng.normal(size=(2 * SIDE, SIDE)),
        "conv.weight": rng.normal(size=(4, 1, 3, 3)),
    }
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in tensors.items()]
    constants.append(numpy_helper.from_array(np.array([-1, 1, SIDE // 2, 2], np.int64), "shape"))
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "fc1.weight"], ["a"], name="fc1"),
        node("Add", ["a", "fc1.bias"], ["b"], name="bias"),
        node("LayerNormalization", ["b", "norm.weight", "norm.bias"], ["c"], name="norm", axis=-1),
        node("Relu", ["c"], ["d"], name="act"),
        node("MatMul", ["d", "fc2.weight"], ["e"], name="fc2"),
        node("Reshape", ["e", "shape"], ["f"], name="map"),
        node("Conv", ["f", "conv.weight"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, SIDE // 2, 2])],
    )
    graph = helper.make_graph(nodes, "product", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def tokenizer_graphs() -> dict[str, bytes]:
    """An encoder that says its stride and codes, and a decoder: what `decode` opens."""
    float_, int_ = TensorProto.FLOAT, TensorProto.INT32
    info = helper.make_tensor_value_info
    images = info("image", float_, ["n", 3, "h", "w"])
    codes = info("indices", int_, ["n", "h", "w"])
    latent = info("latent", float_, ["n", 3, "h", "w"])
    encoder = helper.make_graph(
        [
            helper.make_node("Identity", ["image"], ["latent"]),
            helper.make_node("ReduceSum", ["image", "axes"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sum"], ["indices"], to=int_),
        ],
        "encoder",
        [images],
        [codes, latent],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    decoder = helper.make_graph(
        [
            helper.make_node("Cast", ["indices"], ["f"], to=float_),
            helper.make_node("Unsqueeze", ["f", "axes"], ["g"]),
            helper.make_node("Concat", ["g", "g", "g"], ["image"], axis=1),
        ],
        "decoder",
        [codes],
        [images],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    found = {}
    for name, graph in (("encoder", encoder), ("decoder", decoder)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        helper.set_model_props(model, {"arvg_trt.stride": "1", "arvg_trt.codebook_size": "64"})
        found[f"{name}.onnx"] = model.SerializeToString()
    return found


def saver(save: Callable[..., None], arrays: Mapping[str, Any]) -> Callable[[Path], None]:
    """Return a function that writes arrays to a file with numpy."""
    return lambda path: save(path, **arrays)


def exported(scratch: Path) -> tuple[SiteMap, bytes]:
    """The small product as an export holds it: its sites, and its graph with the weights inside."""
    source = scratch / "product.onnx"
    source.write_bytes(product().SerializeToString())
    model = read_custom_graph(source)
    sites = find_custom_sites(model.graph, "model")
    ir.save(model, scratch / "exported.onnx")
    data = (scratch / "exported.onnx").read_bytes()
    return SiteMap(sites=tuple(sites), graphs=("model",)), data


def plan() -> Plan:
    """Return a plan that a person edited."""
    whole = ActivationFormat(bits=8, scale=0.02, shift=3)
    return Plan(
        sites=(
            SitePlan(name="fc1", weight=WeightFormat(bits=8), activation=whole, smoothing=0.5),
            SitePlan(name="fc2", weight=WeightFormat(bits=4, grid="log"), reason="by hand"),
            SitePlan(name="conv", reason="excluded by the recipe"),
        )
    )


def specs() -> dict[str, dict[str, Any]]:
    """Return the `generator.json` of each family."""
    defaults = {"cfg": 1.5, "top_k": 0, "top_p": 0.95, "temperature": 1.0}
    sizes = {"vocab_size": 64, "depth": 2, "width": 32, "heads": 2, "head_dim": 16}
    raster = {"side": 4, "num_classes": 10, "image_size": 32, "kv_type": "float32", **sizes}
    var = {"patch_nums": [1, 2], "latent_channels": 4, "latent_size": 2, **sizes}
    mar = {"side": 4, "latent_channels": 4, "num_classes": 10, "image_size": 32}
    powers = {"cfg_power": 1.0}
    return {
        "var": {**var, "num_classes": 10, "image_size": 32, "defaults": defaults},
        "rar": {**raster, "defaults": defaults | powers},
        "par": {**raster, "group": 4, "defaults": defaults},
        "llamagen": {**raster, "defaults": defaults},
        "mar": {**mar, "defaults": {"cfg": 2.0, "iterations": 4, "diffusion_steps": 10} | powers},
    }


def report_bytes() -> bytes:
    """Return a report of a custom graph."""
    accuracy = OutputAccuracy(output="y", sqnr_db=31.5, max_error=0.02, cosine=0.999)
    return encode_json(
        Report(
            model="onnx",
            name="int8",
            versions={"numpy": "2"},
            cpu=Cpu(model="a processor", flags=("avx2",)),
            data=Data(validation=("feeds:0",), calibration=("feeds:1",)),
            sizes=sizes(
                fp32_graph_bytes={"model": 4096},
                fp32_weight_bytes=4000,
                packed_weight_bytes=1000,
                fp32_running_bytes=4096,
                running_bytes={"qdq": 1500},
            ),
            accuracy={},
            outputs={"qdq": (accuracy,)},
        )
    )


def file_kinds(scratch: Path) -> dict[str, FileKind]:
    """Every kind of file, by what it is called here; valid ones are written to `scratch` once."""
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
    stats = {
        name: TensorStats(-np.ones(n), np.ones(n), np.full(n, 7.0), count)
        for name, n, count in (
            ("fc1", SIDE, 12),
            ("fc2", 2 * SIDE, np.full(2 * SIDE, 12, np.int64)),
        )
    }
    weight = rng.normal(size=(4, 8)).astype(np.float32)
    packed = {"fc1": quantize_weight(weight, WeightFormat(bits=4))}
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
            made("statistics.safetensors", lambda p: save_statistics(stats, p, export="00" * 32)),
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
            made("w.safetensors", lambda p: save_packed_weights(packed, {"b": weight}, p)),
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
    kinds["picture npy"] = FileKind("a.npy", array, lambda f: open_source(str(f)).load(0))
    return kinds


class Depth(msgspec.Struct):
    """A key that a `config.json` may have."""

    depth: int = 1


# Values that a file is not expected to have, for any key.
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 99, 2**31, 2**63, -(2**63), 10**20, 1e-300, 1e30, 0.5, 1e400),
    *("", " ", "x", "../x", "/", "\x00", "\ud7ff", "n" * 300, "-1", "1e9", "nan", "float32"),
    *([], {}, [[]], [None], [-1, 0], {"a": {}}, [1] * 50),
)
SHAPES = ("()", "(0,)", "(4, 8)", "(8, 4)", "(-1, 8)", "(1000000000000, 0)", "(4, 99999999999)")
BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x5B, 0x7B)


def mutate(data: bytes, name: str, rng: random.Random) -> bytes:
    """Return changed bytes of a file: values of JSON or of a safetensors header, or any bytes."""
    if name.endswith(".json") and rng.random() < 0.6:
        return changed_json(data, rng)
    if name.endswith(".safetensors") and rng.random() < 0.6:
        return changed_header(data, rng)
    if name.endswith(".npz") and rng.random() < 0.6:
        return changed_member(data, rng)
    if name.endswith(".onnx") and rng.random() < 0.7:
        return changed_graph(data, rng)
    return changed_bytes(data, rng)


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flipped, cut, repeated, inserted and removed bytes; one to eight changes."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 8) if rng.random() < 0.5 else 1):
        at = rng.randrange(len(found)) if found else 0
        length = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0 if found:
                found[at] ^= 1 << rng.randrange(8)
            case 1 if found:
                found[at] = rng.choice(BYTES)
            case 2:
                found[at : at + length] = b""
            case 3:
                found[at:at] = bytes(rng.choice(BYTES) for _ in range(length))
            case 4:
                found[at:at] = found[at : at + length]
            case 5:
                del found[at:]
            case _:
                found[at : at + 8] = rng.randbytes(8)
    return bytes(found)


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """One value at any depth replaced, removed, repeated, or nested without end."""
    tree = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in list(items):
            places.append((value, key))
            if isinstance(child, dict | list):
                collect(child)

    collect(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = rng.choice(places)
        if isinstance(holder, list) and not key < len(holder):
            continue
        match rng.randrange(5):
            case 0 if isinstance(holder, dict) and key in holder:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(("unknown", "", "sites", "schema"))] = rng.choice(NASTY)
            case 2 if isinstance(holder, list):
                holder.append(holder[key])
            case _:
                holder[key] = rng.choice(NASTY)
    text = json.dumps(tree)
    if rng.random() < 0.03:
        text = text.replace("null", "[" * 20_000 + "]" * 20_000, 1)
    return text.encode("utf-8", "surrogatepass")


def changed_header(data: bytes, rng: random.Random) -> bytes:
    """Change values in the JSON header of a safetensors file, with its right length."""
    length = int.from_bytes(data[:8], "little")
    header = changed_json(data[8 : 8 + length], rng)
    said = len(header) if rng.random() < 0.9 else rng.choice((0, 2**63, len(header) + 1))
    return said.to_bytes(8, "little") + header + data[8 + length :]


def changed_member(data: bytes, rng: random.Random) -> bytes:
    """Change bytes in the header of an array of a `.npz`, with right check sums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info: archive.read(info) for info in archive.infolist()}
    chosen = rng.choice(list(members))
    held = members[chosen]
    header = 10 + int.from_bytes(held[8:10], "little")
    if rng.random() < 0.5:
        shape = f"{rng.choice(SHAPES)}, }}"
        text = re.sub(rb"'shape': \\(.*?\\), }", f"'shape': {shape}".encode(), held[:header])
        text = text[:8] + (len(text) - 10).to_bytes(2, "little") + text[10:]
    else:
        text = changed_bytes(held[:header], rng)
    members[chosen] = text + held[header:]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", chosen.compress_type) as archive:
        for info, member in members.items():
            archive.writestr(zipfile.ZipInfo(info.filename), member, info.compress_type)
    return out.getvalue()


def changed_graph(data: bytes, rng: random.Random) -> bytes:
    """Change one to three fields of an ONNX model, at any depth."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        message: Any = model
        while True:
            fields = [(f, v) for f, v in message.ListFields()]
            if not fields:
                break
            field, value = rng.choice(fields)
            repeated = isinstance(value, Sequence) and not isinstance(value, str | bytes)
            if repeated and rng.random() < 0.25:
                at = rng.randrange(len(value))
                if rng.random() < 0.5:
                    del value[at]
                else:
                    value.extend([value[at]])
                break
            at = rng.randrange(len(value)) if repeated else 0
            inner = value[at] if repeated else value
            if hasattr(inner, "ListFields"):
                message = inner
                continue
            changed = other_value(inner, rng)
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                if repeated:
                    value[at] = changed
                else:
                    setattr(message, field.name, changed)
            break
    changed_model: bytes = model.SerializeToString()
    return changed_model


def other_value(value: Any, rng: random.Random) -> Any:
    """A value of the same kind that a field is not expected to have."""
    if isinstance(value, bytes):
        return rng.choice((b"", value[:-1], value + value, b"\xff\x00"))
    if isinstance(value, str):
        return rng.choice(("", "x", "fc1.weight", "a", "y", "Loop", "Conv", "com.microsoft"))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, math.nan, math.inf))
    return rng.choice((0, 1, -1, 2, 3, 7, 10, 16, 99, 2**31 - 1, 2**62, -(2**63)))
