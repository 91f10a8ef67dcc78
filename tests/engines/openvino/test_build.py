"""Engines of OpenVINO: what computes in integers, blobs of another machine, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from arvg_trt.engines.facts import EngineRow, SiteException
from arvg_trt.engines.openvino.build import OpenedGraphs, open_graph, require_integers
from arvg_trt.engines.openvino.proof import unproved
from arvg_trt.errors import BuildError, BundleError
from arvg_trt.runtime.folders import opener, placement_of
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.images import load_image, to_model
from arvg_trt.runtime.sessions.open import fast_session, openvino_session
from arvg_trt.runtime.sessions.openvino_files import RECORD
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import Finished, arvg, assert_refused
from ...minis.minis import Quantized
from ...runtime.test_openvino import odd_graph

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def root(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer's workspace with an engine of OpenVINO."""
    copy = tmp_path_factory.mktemp("openvino") / "ws"
    shutil.copytree(finished.workspace, copy)
    outcome = arvg("build", copy, "--name", "int8", "--backend", "openvino")
    assert outcome.code == 0, outcome
    return copy


@pytest.fixture
def engine(root: Path, tmp_path: Path) -> Path:
    """A copy of the engine's folder that a test may change."""
    return Path(shutil.copytree(root / "engines" / "int8" / "openvino", tmp_path / "openvino"))


def rows_of(folder: Path) -> list[EngineRow]:
    results = json.loads((folder / MANIFEST).read_text())["results"]
    return [msgspec.convert(row, EngineRow) for row in results["engines"]]


def test_every_planned_site_computes_in_integers_and_no_graph_is_changed(root: Path) -> None:
    engine, source = root / "engines" / "int8" / "openvino", root / "quantize" / "int8"
    rows = rows_of(engine)
    assert {row.graph for row in rows} == {"encoder", "decoder"}
    for row in rows:
        assert row.int8_sites_planned == row.int8_sites_proved > 3 and not row.exceptions
        graph = f"{row.graph}.onnx"
        assert (engine / graph).read_bytes() == (source / graph).read_bytes()
        assert (engine / f"{row.graph}.blob").is_file()


def test_float_graph_has_no_site_in_integers(root: Path) -> None:
    """The proof would not hold for anything: FP32 fails it at every site."""
    path = root / "export" / "encoder.onnx"
    graphs = OpenedGraphs("f32")
    session = graphs(path, 0)
    session.run({"image": np.zeros((1, 3, 64, 64), np.float32)})
    (row,) = (r for r in rows_of(root / "engines" / "int8" / "openvino") if r.graph == "encoder")
    plan = json.loads((root / "quantize" / "int8" / "plan.json").read_text())
    nodes = [
        s["name"] for s in plan["sites"] if s["activation"] and s["name"].startswith("encoder")
    ]
    found = unproved(session.layers(), ir.load(path).graph, nodes)
    assert len(found) == row.int8_sites_planned == len(nodes)
    assert all("_f32" in each.reason for each in found)


def test_kernels_are_known_by_their_names_on_every_processor(root: Path) -> None:
    """OpenVINO writes `brgconv_avx512_amx_i8` on one, and `brgconv_avx512_I8` on another."""
    graph = ir.load(root / "export" / "encoder.onnx").graph
    name = next(str(node.name) for node in graph if node.op_type == "Conv")
    for kernel, proved in (
        *(("brgconv_avx512_amx_i8", True), ("brgconv_avx512_I8", True), ("jit_U8", True)),
        *(("brgconv_avx512_f32", False), ("jit_FP32", False), ("ref_I32", False)),
    ):
        layer = {
            "layerType": "Convolution",
            "originalLayersNames": name,
            "primitiveType": kernel,
        }
        assert bool(unproved([layer], graph, [name])) != proved, kernel


def test_engine_encodes_as_the_reference_does(root: Path, finished: Finished) -> None:
    photo = next(iter(sorted(finished.validation.glob("*.png"))))
    image = to_model(load_image(photo))[:, :, :64, :64]
    opened = ImageTokenizer.open(root / "engines" / "int8" / "openvino")
    reference = ImageTokenizer.reference(root / "quantize" / "int8")
    (tokens, latent), (wanted, wanted_latent) = opened.encode(image), reference.encode(image)
    assert opened.fallbacks == ()
    signal, noise = np.square(wanted_latent).sum(), np.square(latent - wanted_latent).sum()
    assert 10 * np.log10(signal / noise) > 25
    assert np.mean(tokens == wanted) > 0.9
    picture, wanted_picture = opened.decode(wanted), reference.decode(wanted)
    noise = np.square(picture - wanted_picture).sum()
    assert 10 * np.log10(np.square(wanted_picture).sum() / noise) > 25


def change_record(engine: Path, **changes: str) -> None:
    record = json.loads((engine / RECORD).read_text())
    (engine / RECORD).write_text(json.dumps(record | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "2025.1.0-1"}, "the blob is of OpenVINO 2025.1.0 for"),
        ({"processor": "Some Other CPU"}, "for Some Other CPU, and here is"),
    ],
)
def test_blob_of_another_version_or_processor_is_compiled_again_and_said(
    engine: Path, changes: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVG_TRT_CACHE", str(engine.parent / "cache"))
    feeds = {"image": np.linspace(-1, 1, 3 * 64 * 64, dtype=np.float32).reshape(1, 3, 64, 64)}
    wanted = openvino_session(engine / "encoder.onnx")
    assert wanted.fallback is None
    change_record(engine, **changes)
    again = openvino_session(engine / "encoder.onnx")
    assert again.fallback is not None and "compiled again" in again.fallback
    assert words in again.fallback
    for name, value in wanted.run(feeds).items():
        np.testing.assert_array_equal(again.run(feeds)[name], value)
    assert again.metadata == wanted.metadata and "arvg_trt.stride" in again.metadata


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "other instructions"])
def test_blob_that_openvino_does_not_take_is_compiled_again_and_said(
    engine: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVG_TRT_CACHE", str(engine.parent / "cache"))
    blob = engine / "encoder.blob"
    data = blob.read_bytes()
    changed = {
        "empty": b"",
        "cut": data[:5000],
        "noise": bytes(range(256)) * 20,
        "other instructions": data.replace(b"isa=", b"isa=X", 1)[: len(data)],
    }
    blob.write_bytes(changed[damage])
    opened = openvino_session(engine / "encoder.onnx")
    assert opened.fallback is not None and "does not take the blob" in opened.fallback
    assert opened.outputs == ("indices", "latent")


def test_damaged_record_is_refused_with_its_name(engine: Path) -> None:
    (engine / RECORD).write_text("{")
    with pytest.raises(BundleError, match=RECORD):
        openvino_session(engine / "encoder.onnx")


def test_without_openvino_the_extra_is_named(
    engine: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_spec
    lacking = "arvg_trt.extras.find_spec"
    monkeypatch.setattr(lacking, lambda n: None if n == "openvino" else found(n))
    with pytest.raises(BundleError, match=r"openvino is not installed.*arvg-trt\[openvino\]"):
        opener(engine, fast_session)
    outcome = arvg("build", root, "--name", "int8", "--backend", "openvino")
    assert_refused(outcome, outcome.code, "openvino is not installed", "arvg-trt[openvino]")


def test_engine_runs_on_the_cpu_alone(engine: Path) -> None:
    assert placement_of(engine).text == placement_of(engine, "cpu").text == "cpu, OpenVINO"
    with pytest.raises(BundleError, match="cuda:0"):
        placement_of(engine, "cuda:0")


def test_refused_graph_is_named_with_its_node(tmp_path: Path) -> None:
    onnx.save(odd_graph(), tmp_path / "odd.onnx")
    with pytest.raises(BuildError, match=r"at odd\.one \(com\.acme\.Strange\): ") as caught:
        open_graph(OpenedGraphs("f32"), tmp_path / "odd.onnx")
    assert "onnxruntime" in str(caught.value)


def test_engine_without_one_site_in_integers_is_refused() -> None:
    row = EngineRow(
        backend="openvino",
        target="cpu",
        precision="INT8",
        graph="g",
        bytes=1,
        build_seconds=1.0,
        int8_sites_planned=1,
        int8_sites_proved=0,
        exceptions=(SiteException(site="a", reason="OpenVINO computes it in jit_f32"),),
        status="executed",
    )
    with pytest.raises(BuildError, match=r"none of 1 planned sites .* jit_f32"):
        require_integers([row])
    require_integers([row, msgspec.structs.replace(row, int8_sites_proved=1)])


def test_generator_steps_compute_in_integers_and_its_constant_scales_in_floats(
    quantized_of: Callable[[str], Quantized], tmp_path: Path
) -> None:
    """A VAR's graph of all tokens has constant scales by token, which OpenVINO folds wrongly."""
    copy = Path(shutil.copytree(quantized_of("var").workspace, tmp_path / "ws"))
    outcome = arvg("build", copy, "--name", "w8a8", "--backend", "openvino")
    assert outcome.code == 0, outcome
    folder = copy / "engines" / "w8a8" / "openvino"
    rows = {row.graph: row for row in rows_of(folder)}
    assert rows["step"].int8_sites_planned == rows["step"].int8_sites_proved > 20
    assert rows["full"].int8_sites_proved == 0
    assert all("in float" in each.reason for each in rows["full"].exceptions)
    assert "full is computed in floats" in outcome.err
    assert (folder / "step.blob").is_file() and not (folder / "full.blob").is_file()
    labels = [0, 1, 2]
    made = Generator.open(folder).generate(labels, seed=1, batch_size=3)
    source = Generator.open(copy / "quantize" / "w8a8", session=fast_session)
    wanted = source.generate(labels, seed=1, batch_size=3)
    # A token that differs changes all later ones; the first scales hardly do.
    assert np.mean(made.tokens[:, :14] == wanted.tokens[:, :14]) > 0.9
