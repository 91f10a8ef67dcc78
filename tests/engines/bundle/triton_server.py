"""Read, check and run a repository as the public sources of Triton Inference Server do.

Configurations are parsed into the messages of its own client package. The checks are those of the
server (`model_config_utils.cc`, `ensemble_utils.cc`) and of its ONNX Runtime back end
(`onnxruntime.cc`); sessions get the options that this back end sets.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf import text_format

LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
ORT_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(bool)": "TYPE_BOOL",
}

Feeds = Mapping[str, np.ndarray]


@cache
def messages() -> ModuleType:
    """The messages of `model_config.proto`, from the file alone: the package wants grpc."""
    files = metadata.files("tritonclient") or []
    path = next(file for file in files if file.name == "model_config_pb2.py").locate()
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(text: str) -> Any:
    """A ModelConfig; a field that the server does not know is an error."""
    return text_format.Parse(text, messages().ModelConfig())


def type_name(number: int) -> str:
    return messages().DataType.Name(number)


def load_repository(folder: Path) -> dict[str, Any]:
    """The configurations by model, as the server polls them: every folder at the top is a model."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            assert [p.name for p in path.iterdir() if p.is_dir()] == ["1"]
            config = parse((path / "config.pbtxt").read_text())
            assert config.name == path.name
            found[path.name] = config
    for config in found.values():
        check_config(config)
        if config.platform == "ensemble":
            check_ensemble(config, found)
    return found


def check_config(config: Any) -> None:
    for end in (*config.input, *config.output):
        assert end.name and type_name(end.data_type) != "TYPE_INVALID"
        assert len(end.dims) and all(dim >= 1 or dim == -1 for dim in end.dims)
        if end.HasField("reshape"):
            assert config.max_batch_size > 0 or len(end.reshape.shape)
            assert np.prod(end.reshape.shape) == np.prod(end.dims)
    pairs = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt", "ensemble": ""}
    assert pairs[config.platform] == config.backend
    if config.platform == "ensemble":
        assert not config.instance_group and not config.HasField("optimization")
    if config.max_batch_size <= 1:
        assert not config.HasField("dynamic_batching")


def full_dims(config: Any, end: Any) -> tuple[int, ...]:
    return (*([-1] if config.max_batch_size else []), *end.dims)


def same_with_wildcards(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) and all(x == y or -1 in (x, y) for x, y in zip(a, b, strict=True))


def check_ensemble(ensemble: Any, models: Mapping[str, Any]) -> None:
    """All tensors are made once and read, in an order, with types and shapes that agree."""
    known = {end.name: (end.data_type, full_dims(ensemble, end)) for end in ensemble.input}
    made, read = set(known), set()
    for step in ensemble.ensemble_scheduling.step:
        model = models[step.model_name]
        assert not model.max_batch_size or model.max_batch_size >= ensemble.max_batch_size
        assert step.input_map and step.output_map
        assert set(step.input_map) == {end.name for end in model.input}
        assert set(step.output_map) <= {end.name for end in model.output}
        for end in model.input:
            name = step.input_map[end.name]
            assert name in made, f"{name} is not made when it is read"
            kind, dims = known[name]
            assert kind == end.data_type and same_with_wildcards(dims, full_dims(model, end))
            read.add(name)
        for end in model.output:
            if end.name in step.output_map:
                name = step.output_map[end.name]
                assert name not in made, f"{name} is made twice"
                known[name] = (end.data_type, full_dims(model, end))
                made.add(name)
    outputs = {end.name for end in ensemble.output}
    for end in ensemble.output:
        kind, dims = known[end.name]
        assert kind == end.data_type and same_with_wildcards(dims, full_dims(ensemble, end))
    assert made == read | outputs, "a tensor that nothing reads"


def open_model(folder: Path, config: Any) -> ort.InferenceSession:
    """A session as the back end opens it, after its checks of the configuration."""
    path = folder / config.name / "1" / "model.onnx"
    if path.is_dir():
        path /= "model.onnx"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = LEVELS[config.optimization.graph.level]
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for ends, found, exact in (
        (config.input, session.get_inputs(), False),
        (config.output, session.get_outputs(), True),
    ):
        assert {end.name for end in ends} == {end.name for end in found}
        shapes = {f.name: tuple(d if isinstance(d, int) else -1 for d in f.shape) for f in found}
        types = {f.name: ORT_TYPES[f.type] for f in found}
        for end in ends:
            assert type_name(end.data_type) == types[end.name]
            dims = tuple(end.reshape.shape) if end.HasField("reshape") else tuple(end.dims)
            if not shapes[end.name]:
                assert set(dims) == {1}
                continue
            if config.max_batch_size:
                assert shapes[end.name][0] == -1
                dims = (-1, *dims)
            assert dims == shapes[end.name] or not exact, (end.name, dims, shapes[end.name])
            assert same_with_wildcards(dims, shapes[end.name])
    return session


def infer(folder: Path, models: Mapping[str, Any], name: str, feeds: Feeds) -> dict[str, Any]:
    """The outputs of a model or ensemble that is fed whole tensors."""
    config = models[name]
    if config.platform != "ensemble":
        return dict(
            zip(
                [end.name for end in config.output],
                open_model(folder, config).run([end.name for end in config.output], dict(feeds)),
                strict=True,
            )
        )
    tensors = dict(feeds)
    assert set(tensors) == {end.name for end in config.input}
    for step in config.ensemble_scheduling.step:
        fed = {key: tensors[value] for key, value in step.input_map.items()}
        outputs = infer(folder, models, step.model_name, fed)
        tensors |= {value: outputs[key] for key, value in step.output_map.items()}
    return {end.name: tensors[end.name] for end in config.output}
