"""Exported graphs against PyTorch on photographs, and the site map against the graphs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

from arvg_trt.errors import BundleError, ExportError
from arvg_trt.export.facts import Difference, TokenParity
from arvg_trt.export.parity import require, require_tokens
from arvg_trt.export.passes.naming import InsertSizeCheckPass
from arvg_trt.families.cosmos.parity import compute_cosmos_references
from arvg_trt.families.cosmos.write import export_tokenizer
from arvg_trt.families.shared.vq_parity import check_vq_parity
from arvg_trt.graph.sites import SiteMap
from arvg_trt.runtime.images import to_model
from arvg_trt.runtime.sessions.open import fast_session, reference_session
from arvg_trt.samples.crops import random_crops
from arvg_trt.samples.images import open_source
from arvg_trt.workspace.files import encode_json

from ...graph.builders import float_graph
from ..tiny import TINY_DI, TinyExport, make_model


@pytest.fixture(params=["tiny_di", "tiny_ci"])
def exported(request: pytest.FixtureRequest) -> TinyExport:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def photographs(count: int = 2, height: int = 48, width: int = 64) -> np.ndarray:
    crops = list(random_crops(open_source("skimage:astronaut,coffee"), count, 64, 1))
    return np.concatenate([to_model(crop[:height, :width]) for crop in crops])


@pytest.mark.parametrize("session", [reference_session, fast_session])
def test_onnx_runtime_computes_what_pytorch_computes(exported: TinyExport, session) -> None:
    model, image = exported.model, photographs()
    latent = model.encode(torch.from_numpy(image))
    found = session(exported.folder / "encoder.onnx").run({"image": image})
    np.testing.assert_allclose(
        found["latent"], latent.numpy(), atol=2e-5 * float(latent.std()) * 10
    )
    if model.quantizer is None:
        assert list(found) == ["latent"]
        feed, codes = {"latent": latent.numpy()}, latent
    else:
        indices = model.quantizer.indices(latent)
        assert found["indices"].dtype == np.int32
        assert np.array_equal(found["indices"], indices.numpy())
        assert len(np.unique(found["indices"])) > 20
        feed, codes = {"indices": indices.numpy()}, model.quantizer.codes(indices)
    wanted = model.decode(codes).numpy()
    picture = session(exported.folder / "decoder.onnx").run(feed)["image"]
    assert picture.shape == image.shape
    np.testing.assert_allclose(picture, wanted, atol=2e-4 * wanted.std())


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 16, 16), (3, 8, 40), (2, 72, 16)])
def test_batch_and_size_are_free(exported: TinyExport, batch: int, height: int, width: int) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)
    found = fast_session(exported.folder / "encoder.onnx").run({"image": image})
    wanted = exported.model.encode(torch.from_numpy(image)).numpy()
    assert found["latent"].shape == (batch, wanted.shape[1], height // 8, width // 8)
    np.testing.assert_allclose(found["latent"], wanted, atol=3e-4 * wanted.std())
    feed = {"indices": found["indices"]} if "indices" in found else {"latent": found["latent"]}
    picture = fast_session(exported.folder / "decoder.onnx").run(feed)["image"]
    assert picture.shape == image.shape


def compare(exported: TinyExport, folder: Path, count: int = 2) -> tuple:
    references = compute_cosmos_references(exported.model, list(photographs(count)[:, None]))
    return check_vq_parity(folder, references)


def test_check_of_the_export_passes_and_counts_every_token(exported: TinyExport) -> None:
    tokens, differences = compare(exported, exported.folder)
    assert tokens.tokens == (2 * 6 * 8 if exported.model.quantizer else 0)
    assert tokens.differ <= tokens.at_boundary
    assert [(d.graph, d.tensor) for d in differences] == [
        ("encoder", "latent"),
        ("decoder", "image"),
    ]
    assert all(0 < d.mean < d.max < 1e-3 for d in differences)


@pytest.mark.parametrize(
    ("height", "width"), [(12, 16), (16, 12), (4, 4), (4, 16), (7, 8), (17, 16)]
)
@pytest.mark.parametrize("session", [reference_session, fast_session])
def test_size_off_the_stride_is_refused(
    exported: TinyExport, height: int, width: int, session
) -> None:
    opened = session(exported.folder / "encoder.onnx")
    with pytest.raises(BundleError, match="refused image"):
        opened.run({"image": np.zeros((1, 3, height, width), np.float32)})


@pytest.mark.parametrize("session", [reference_session, fast_session])
def test_stride_of_sixteen_refuses_multiples_of_eight(tmp_path: Path, session) -> None:
    convolution = onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=[16, 16], name="c")
    weight = np.ones((1, 3, 16, 16), np.float32)
    model = ir.serde.deserialize_model(float_graph([convolution], {"w": weight}, ["y"], 3))
    InsertSizeCheckPass(16)(model)
    ir.save(model, tmp_path / "s.onnx")
    opened = session(tmp_path / "s.onnx")
    for height, width in ((16, 16), (32, 48)):
        found = opened.run({"x": np.ones((2, 3, height, width), np.float32)})["y"]
        assert found.shape == (2, 1, height // 16, width // 16) and (found == 768).all()
    for height, width in ((8, 16), (16, 24), (24, 40)):
        with pytest.raises(BundleError, match="refused x"):
            opened.run({"x": np.ones((1, 3, height, width), np.float32)})


def test_graph_says_what_model_it_is(exported: TinyExport) -> None:
    discrete = exported.model.quantizer is not None
    for name in ("encoder", "decoder"):
        metadata = fast_session(exported.folder / f"{name}.onnx").metadata
        assert dict(metadata) == {
            "arvg_trt.model": "tiny",
            "arvg_trt.stride": "8",
            "arvg_trt.levels": "8,8,8,5,5,5" if discrete else "",
            "arvg_trt.latent_channels": "6" if discrete else "16",
            "arvg_trt.image_range": "-1,1",
        }


def load(exported: TinyExport, graph: str) -> onnx.ModelProto:
    return onnx.load(exported.folder / f"{graph}.onnx")


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_graph_is_valid_opset_21_without_paths_or_foreign_names(
    exported: TinyExport, graph: str
) -> None:
    path = exported.folder / f"{graph}.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = load(exported, graph)
    assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", 21)]
    assert b".py" not in path.read_bytes()
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_every_product_is_a_site_in_graph_order(exported: TinyExport, graph: str) -> None:
    model = load(exported, graph)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    products = [
        n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")
    ]
    sites = exported.sites.of_graph(graph)
    assert [s.node for s in sites] == [n.name for n in products]
    modules = dict(exported.model.named_modules())
    for site, node in zip(sites, products, strict=True):
        assert (site.op, site.input, site.output) == (node.op_type, node.input[0], node.output[0])
        if site.weight is None:
            assert node.op_type == "MatMul" and node.input[1] not in shapes
            continue
        assert site.name == node.name and site.name in modules
        assert site.weight == node.input[1] and site.weight_shape == shapes[site.weight]
        assert site.bias == (node.input[2] if len(node.input) > 2 else None)
        assert site.weight_shape == tuple(modules[site.name].weight.shape)


def test_every_layer_of_the_model_is_a_site(exported: TinyExport) -> None:
    layers = {n for n, m in exported.model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    found = [s.name for s in exported.sites.sites]
    assert len(found) == len(set(found))
    assert layers | {"encoder.patcher", "decoder.unpatcher"} == {
        s.name for s in exported.sites.sites if s.weight is not None
    }


def test_first_and_last_convolutions_are_left_out_with_a_reason(exported: TinyExport) -> None:
    reasons = {s.name: s.excluded for s in exported.sites.sites if s.excluded}
    ends = [f"{half}.conv_{end}" for half in ("encoder", "decoder") for end in ("in", "out")]
    for name in (*ends, "quant_conv", "post_quant_conv"):
        assert "first or last" in str(reasons.pop(name))
    for name in ("encoder.patcher", "decoder.unpatcher"):
        assert "Haar" in str(reasons.pop(name))
    assert {name.rpartition(".")[2] for name in reasons} == {"bmm_qk", "bmm_pv"}


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_query_key_and_value_share_an_input_that_folds_into_their_norm(
    exported: TinyExport, half: str
) -> None:
    sites = {s.name: s for s in exported.sites.sites}
    prefix = f"{half}.mid.attn_1"
    projections = [sites[f"{prefix}.{k}"] for k in "qkv"]
    constants = {t.name: t for t in load(exported, half).graph.initializer}
    norm = exported.model.get_submodule(f"{prefix}.norm")
    for site in projections:
        others = {s.name for s in projections} - {site.name}
        assert set(site.shares_input_with) == others and site.input == projections[0].input
        assert site.role == site.name[-1]
        assert site.fold is not None
        for name, parameter in zip(site.fold, (norm.weight, norm.bias), strict=True):
            assert np.array_equal(numpy_helper.to_array(constants[name]), parameter.numpy())
    alone = [s for s in sites.values() if s not in projections and s.graph == half]
    assert not any(s.fold for s in alone)
    assert sites[f"{prefix}.proj_out"].role == "proj"
    assert sites[f"{prefix}.bmm_qk"].output != sites[f"{prefix}.bmm_pv"].output


def test_site_map_survives_its_file(tiny_di: TinyExport) -> None:
    again = msgspec.json.decode(encode_json(tiny_di.sites), type=SiteMap)
    assert again == tiny_di.sites


def test_exporting_twice_gives_the_same_bytes(tiny_di: TinyExport, tmp_path: Path) -> None:
    sites = export_tokenizer(make_model(TINY_DI), tmp_path, "tiny")
    assert sites == tiny_di.sites.sites
    names = sorted(path.name for path in tiny_di.folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 4
    for name in names:
        assert (tmp_path / name).read_bytes() == (tiny_di.folder / name).read_bytes(), name


@pytest.mark.parametrize("layer", ["encoder.mid.block_1.conv1", "decoder.mid.attn_1.proj_out"])
def test_graph_whose_weights_are_not_the_models_fails_the_check(
    exported: TinyExport, tmp_path: Path, layer: str
) -> None:
    graph = layer.partition(".")[0]
    for name in ("encoder", "decoder"):
        model = load(exported, name)
        for tensor in model.graph.initializer:
            if tensor.name == f"{layer}.weight":
                weight = 1.05 * numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        onnx.save(model, tmp_path / f"{name}.onnx")
    with pytest.raises(ExportError, match="differs from PyTorch") as caught:
        compare(exported, tmp_path, 1)
    assert caught.value.where == f"{graph}.onnx"


def test_token_may_differ_at_a_boundary_alone(tiny_di: TinyExport) -> None:
    references = compute_cosmos_references(tiny_di.model, list(photographs()[:, None]))
    found = references.indices.astype(np.int32) + 1
    assert not references.may_differ(found, 0.0).all()
    assert references.may_differ(found, 10.0).all()
    moved = 0.1
    near = (references.distances < 4 * moved * np.sqrt(np.mean(references.latent**2))).any(axis=1)
    assert np.array_equal(references.may_differ(found, moved), near)


def test_token_that_differs_at_a_boundary_is_accepted() -> None:
    require_tokens(TokenParity(tokens=100, differ=2, at_boundary=2))
    with pytest.raises(ExportError, match=r"encoder.onnx: 3 of 100 tokens differ"):
        require_tokens(TokenParity(tokens=100, differ=5, at_boundary=2))


@pytest.mark.parametrize(("worst", "mean"), [(0.1, 1e-6), (1e-5, 0.1), (1e-5, float("nan"))])
def test_difference_from_pytorch_is_refused(worst: float, mean: float) -> None:
    require(Difference("decoder", "image", 1e-5, 1e-6))
    with pytest.raises(ExportError, match=r"decoder.onnx: image of ONNX Runtime differs"):
        require(Difference("decoder", "image", worst, mean))
