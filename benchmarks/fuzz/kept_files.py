"""Pair with their readers the files that the tool keeps for itself, and those beside a command.

Manifests of stages, records of builds and runs, folders of an evaluation, tolerances, machines,
keys and kits. As in `files`, a reader succeeds or raises an `ArvgError`.
"""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from ...calibrate.facts import CalibrationFacts
from ...calibrate.shards import PartOptions
from ...engines.bundle.kit import KIT_FILE, Kit, read_kit
from ...engines.facts import BuildFacts
from ...engines.roofline.machine import Machine, find_machine
from ...export.checkpoint.read import read_tensors
from ...graph.sites import SITES_FILE
from ...numerics.packing import load_packed_weights
from ...quantize.facts import QuantizationFacts
from ...quantize.search.facts import SearchFacts
from ...runtime.bundle.failures import FailedBuild, remembered
from ...runtime.bundle.keys import (
    generate_key,
    private_pem,
    public_pem,
    read_private_key,
    read_public_key,
)
from ...runtime.bundle.trust import config_keys
from ...runtime.sessions.openvino_files import RECORD, CompiledGraphs
from ...samples.files import LABELS, sample_labels
from ...samples.saved import origin_of
from ...validate.compare.compare import compare
from ...validate.compare.page import comparison_markdown
from ...validate.compare.tolerances import read_tolerances
from ...validate.evaluate.reference import open_reference
from ...validate.evaluate.shards import (
    PLAN,
    EvaluationPlan,
    feature_file,
    is_written,
    open_plan,
    read_features,
)
from ...validate.facts import ValidationFacts
from ...validate.index import make_index
from ...validate.index_page import index_page
from ...validate.quality.open import FeatureNetwork, open_feature_network, open_pair_network
from ...validate.report.files import load_report
from ...validate.report.gates import GateResult
from ...validate.report.junit import junit
from ...validate.report.page import to_html
from ...validate.report.schema import REPORT_FILE, Report, metrics
from ...workspace.facts import EngineFacts, ExportFacts, facts
from ...workspace.files import decode_json, encode_json
from ...workspace.manifest import MANIFEST, Manifest
from ...workspace.times import TIMES_FILE, Took, read_times
from ...workspace.workspace import WORKSPACE_FILE, WORKSPACE_VERSION, Workspace
from .filled import filled, fitted

Read = Callable[[Path], object]
# Its file, its bytes, what reads its folder, and the files beside it.
Kept = tuple[str, bytes, Read, tuple[tuple[str, bytes], ...]]
TOLERANCES = b"""schema = "arvg-trt/tolerances/v1"
psnr = "0.1 dB"
token_agreement = "0.5 pp"
latency_ms = "10 %"
ssim = "inform"
"""
# Results of stages, with the options that a later stage reads; both are in one manifest.
STAGES: Mapping[str, tuple[type[msgspec.Struct], ...]] = {
    "export": (ExportFacts,),
    "calibrate": (CalibrationFacts, PartOptions),
    "quantize": (QuantizationFacts,),
    "search": (SearchFacts,),
    "build": (BuildFacts, EngineFacts),
    "validate": (ValidationFacts,),
}
SIDE = 8  # of the images that a network of quality is tried on


def kept_files(sites: bytes, weights: bytes) -> dict[str, Kept]:
    """Return the kinds by name; `sites` and packed `weights` are those of the small product."""
    key = generate_key()
    network = FeatureNetwork(
        "small", {"pool": 2}, lambda images: {"pool": np.ones((len(images), 2))}
    )
    found: dict[str, Kept] = {
        f"manifest {stage}": (MANIFEST, manifest_of(stage, *kinds), facts_reader(*kinds), ())
        for stage, kinds in STAGES.items()
    }
    single: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
        "labels": (LABELS, b'{"00000.safetensors": "feeds:0"}', lambda p: sample_labels(p.parent)),
        "tolerances": ("t.toml", TOLERANCES, read_tolerances),
        "machine": ("m.json", fitted(Machine), lambda p: find_machine(str(p))),
        "failed build": ("b.json", fitted(FailedBuild, when=time.time()), read_failure),
        "packed sites": ("w.safetensors", weights, load_packed_weights),
        "trust": ("config.toml", b'require_keys = ["ci.pub"]\n', config_keys),
        "public key": ("k.pub", public_pem(key.public_key()), read_public_key),
        "private key": ("k.key", private_pem(key), read_private_key),
        "reference": ("r.npz", reference_bytes(), lambda p: open_reference(p, network, untold)),
        "feature network": ("n.onnx", network_bytes(1), lambda p: open_feature_network(p, SIDE, 1)),
        "pair network": ("n.onnx", network_bytes(2), lambda p: open_pair_network(p, "-", SIDE, 1)),
        "checkpoint pth": ("w.pth", pickled(), read_tensors),
        "checkpoint torchscript": ("w.jit", scripted(), read_tensors),
    }
    found |= {
        kind: (name, data, of_file(name, read), ()) for kind, (name, data, read) in single.items()
    }
    found |= {
        "report with all": (REPORT_FILE, whole_report(), read_report, ()),
        "workspace": (WORKSPACE_FILE, workspace_bytes(), read_workspace, ()),
        "times": (TIMES_FILE, json.dumps({"export": filled(Took)}).encode(), read_times, ()),
        "origin": (MANIFEST, manifest_of("calibrate", CalibrationFacts), origin_of, ()),
        "OpenVINO record": (RECORD, fitted(CompiledGraphs), read_compiled, ()),
        "kit": (KIT_FILE, fitted(Kit), read_kit_of, ((SITES_FILE, sites),)),
        "evaluation": (PLAN, evaluation_bytes(), read_evaluation, ()),
        "evaluation shard": ("000000.safetensors", shard_bytes(), read_shard, ()),
    }
    return found


def of_file(name: str, read: Callable[[Path], object]) -> Read:
    return lambda folder: read(folder / name)


def untold(done: int, count: int) -> None:
    """Tell nothing of progress."""


def manifest_of(stage: str, kind: type[msgspec.Struct], *options: type[msgspec.Struct]) -> bytes:
    """Return a manifest whose results, and options if any, have every field."""
    said = {key: value for each in options for key, value in filled(each).items()}
    return encode_json(
        Manifest(stage=stage, inputs={}, options=said, versions={}, results=filled(kind))
    )


def facts_reader(kind: type[msgspec.Struct], *options: type[msgspec.Struct]) -> Read:
    def read(folder: Path) -> object:
        manifest = decode_json(folder / MANIFEST, Manifest, do="run the stage again")
        return facts(manifest, kind), [facts(manifest, each, "options") for each in options]

    return read


def whole_report() -> bytes:
    gate = filled(GateResult) | {"expression": "psnr>=1"}
    return fitted(Report, gates=[gate])


def read_report(folder: Path) -> object:
    report = load_report(folder)
    compared = compare([("first", report), ("second", report)])
    return (
        metrics(report),
        comparison_markdown(compared),
        junit(report),
        to_html(index_page(make_index([folder], folder))),
    )


def workspace_bytes() -> bytes:
    return encode_json({"schema": "arvg-trt/workspace", "version": WORKSPACE_VERSION})


def read_workspace(folder: Path) -> object:
    with Workspace(folder) as opened:
        return opened.quantizations


def read_failure(path: Path) -> object:
    found = remembered(path)
    return found and found.text


def read_compiled(folder: Path) -> object:
    from ...runtime.sessions.openvino import read_record

    return read_record(folder)


def read_kit_of(folder: Path) -> object:
    return read_kit(folder, "tensorrt", ("orin-nano",))


def evaluation_plan() -> EvaluationPlan:
    plan = filled(EvaluationPlan) | {"count": 2, "shard_size": 2, "keep_images": False}
    return msgspec.convert(plan, EvaluationPlan)


def evaluation_bytes() -> bytes:
    return encode_json(evaluation_plan())


def read_evaluation(folder: Path) -> None:
    open_plan(folder, evaluation_plan())


def shard_bytes() -> bytes:
    arrays: dict[str, Any] = {"ids": np.arange(2), "pool": np.ones((2, 4), np.float32)}
    return save(arrays, metadata={"plan": evaluation_plan().digest})


def read_shard(folder: Path) -> object:
    """Go on with an evaluation whose first shard is there, or was."""
    target = feature_file(folder, 0)
    target.parent.mkdir()
    (folder / target.name).rename(target)
    plan = evaluation_plan()
    return list(read_features(folder, plan, "pool")) if is_written(folder, plan, 0) else None


def reference_bytes() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, mu=np.zeros(2), sigma=np.eye(2), arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    return stream.getvalue()


def network_bytes(inputs: int) -> bytes:
    """Return a graph from one image to features, or from two images to their distance."""
    info, names = helper.make_tensor_value_info, [f"image{k}" for k in range(inputs)]
    axes = numpy_helper.from_array(np.array([2, 3] if inputs == 1 else [1, 2, 3]), "axes")
    head = helper.make_node("Identity" if inputs == 1 else "Sub", names, ["off"])
    end = helper.make_node("ReduceL2", ["off", "axes"], ["found"], keepdims=0)
    graph = helper.make_graph(
        [head, end],
        "network",
        [info(name, TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in names],
        [info("found", TensorProto.FLOAT, None)],
        [axes],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def pickled() -> bytes:
    stream = io.BytesIO()
    torch.save({"fc1.weight": torch.ones(4, 8), "fc1.bias": torch.zeros(4)}, stream)
    return stream.getvalue()


def scripted() -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # published checkpoints are of this kind
        torch.jit.save(torch.jit.script(torch.nn.Linear(8, 4)), stream)
    return stream.getvalue()
