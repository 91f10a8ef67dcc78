"""Tiny generators: their graphs, samples of the full one, and a loop over their steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.samples.files import load_sample, sample_files, save_sample
from arvg_trt.workspace.files import decode_json

from .rar import models as rar_models
from .rar.models import TinyRar
from .var import models as var_models

VAR = var_models.THREE


RAR = rar_models.SMALL


ROWS, SAMPLES = 2, 5


@dataclass(frozen=True)
class TinyGenerator:
    """`bounds` are where the steps begin, and the end."""

    family: str
    folder: Path
    samples: Path
    site_map: SiteMap
    bounds: tuple[int, ...]

    @property
    def full_sites(self) -> tuple[Site, ...]:
        return self.site_map.of_graph("full")

    def feeds(self) -> dict[str, np.ndarray]:
        """All samples at once."""
        rows = [load_sample(path) for path in sample_files(self.samples)]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def make_rar(export: Path, folder: Path) -> TinyGenerator:
    """The transformer's graphs of an exported `SMALL`."""
    graphs = folder / "export"
    shutil.copytree(export, graphs, ignore=shutil.ignore_patterns("*coder.onnx"))
    found = decode_json(export / "sites.json", SiteMap, do="")
    sites = tuple(site for site in found.sites if (graphs / f"{site.graph}.onnx").is_file())
    return with_samples("rar", graphs, folder / "samples", sites, (0, 2, *range(3, RAR.length + 2)))


def with_samples(
    family: str, graphs: Path, samples: Path, sites: tuple[Site, ...], bounds: tuple[int, ...]
) -> TinyGenerator:
    samples.mkdir()
    rng = np.random.default_rng(7)
    for k in range(SAMPLES):
        sample: dict[str, np.ndarray] = {"labels": rng.integers(0, 6, 1)}
        if family == "rar":
            sample["tokens"] = rng.integers(0, RAR.vocab_size, (1, RAR.length - 1))
        else:
            shape = (1, VAR.length - 1, VAR.latent_channels)
            sample["features"] = rng.normal(0, 1, shape).astype(np.float32)
        save_sample(sample, samples, k)
    return TinyGenerator(family, graphs, samples, SiteMap(sites=sites, graphs=("full",)), bounds)


def full_logits(source: TinyGenerator, folder: Path) -> NDArray[np.float32]:
    return reference_session(folder / "full.onnx").run(source.feeds(), ["logits"])["logits"]


def stepped_logits(source: TinyGenerator, folder: Path) -> NDArray[np.float32]:
    """Logits of all positions from condition.onnx and step.onnx in `folder`, as the loops go."""
    feeds = source.feeds()
    labels = feeds["labels"]
    step = reference_session(folder / "step.onnx")
    condition = reference_session(folder / "condition.onnx")
    config = RAR if source.family == "rar" else VAR
    nothing = np.zeros((len(labels), config.heads, 0, config.head_dim))
    cache = {n: nothing.astype(step.types[n]) for n in step.inputs if n.startswith("past_")}
    inputs = rar_inputs(feeds) if source.family == "rar" else var_inputs(feeds, source)
    found = []
    for a, b in zip(source.bounds, source.bounds[1:], strict=False):
        ids = np.arange(a, b)
        asked = {"labels": labels}
        if "position_ids" in condition.inputs:
            asked["position_ids"] = ids
        constant = condition.run(asked)
        constant.pop("x", None)
        own = {name: value[:, a:b] for name, value in inputs.items()}
        made = step.run({**own, "position_ids": ids, **constant, **cache})
        found.append(made.pop("logits"))
        cache = {name.replace("present_", "past_"): value for name, value in made.items()}
    logits = np.concatenate(found, axis=1)
    return logits[:, 1:] if source.family == "rar" else logits


def rar_inputs(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """cls and the class, then the tokens."""
    classes = feeds["labels"] + RAR.vocab_size + 1
    cls = np.full_like(classes, RAR.vocab_size + RAR.num_classes + 2)
    return {"tokens": np.concatenate([np.stack([cls, classes], axis=1), feeds["tokens"]], axis=1)}


def var_inputs(feeds: dict[str, np.ndarray], source: TinyGenerator) -> dict[str, np.ndarray]:
    """The condition's first token, then embedded features."""
    model = onnx.load(source.folder / "full.onnx")
    held = {t.name: t for t in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(held[f"word_embed.{n}"]) for n in ("weight", "bias"))
    first = reference_session(source.folder / "condition.onnx").run({"labels": feeds["labels"]})
    return {"x": np.concatenate([first["x"], feeds["features"] @ weight + bias], axis=1)}


def activations(
    path: Path, feeds: dict[str, np.ndarray], names: list[str]
) -> dict[str, np.ndarray]:
    """Tensors inside a graph in float64, from a session without optimizations."""
    model = onnx.load(path)
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in dict.fromkeys(names)
        if name not in known
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent)
    )
    session = ort.InferenceSession(model.SerializeToString(), options)
    values = session.run(names, feeds)
    return {name: v.astype(np.float64) for name, v in zip(names, values, strict=True)}


Generators = Callable[[str], TinyGenerator]


@pytest.fixture(scope="session")
def generators(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generators:
    """By family, when a test asks for one."""

    @cache
    def make(family: str) -> TinyGenerator:
        if family == "rar":
            tiny: TinyRar = request.getfixturevalue("tiny_rar")
            return make_rar(tiny.folder, tmp_path_factory.mktemp("generator"))
        config = replace(VAR, shared_aln=family == "shared var")
        export = var_models.exported_var(tmp_path_factory, config)
        samples = tmp_path_factory.mktemp("generator") / "samples"
        return with_samples(family, export.folder, samples, export.sites, VAR.bounds)

    return make


@pytest.fixture(params=["var", "shared var", "rar"])
def generator(request: pytest.FixtureRequest, generators: Generators) -> TinyGenerator:
    return generators(request.param)


@pytest.fixture
def tiny_var(generators: Generators) -> TinyGenerator:
    return generators("var")


@pytest.fixture
def tiny_rar_graphs(generators: Generators) -> TinyGenerator:
    return generators("rar")
