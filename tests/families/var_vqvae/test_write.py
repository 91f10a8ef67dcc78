"""The graphs of VAR's tokenizer in ONNX Runtime against PyTorch, and their sites."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from arvg_trt.errors import BundleError
from arvg_trt.families.var_vqvae.graphs import VarUpdateGraph
from arvg_trt.graph.weight_file import WEIGHTS
from arvg_trt.runtime.sessions.open import fast_session, reference_session

from .models import TINY, TinyTokenizer, random_images, random_latent, random_vqvae

SCALES = range(5)
GRAPHS = ("encoder", "decoder", "lookup", *(f"update.{k}" for k in SCALES))


def close(found: np.ndarray, wanted: torch.Tensor) -> None:
    assert found.shape == tuple(wanted.shape)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * float(wanted.std()))


@pytest.mark.parametrize("session", [reference_session, fast_session])
@pytest.mark.parametrize("count", [1, 3])
def test_encoder_lookup_and_decoder_compute_what_pytorch_computes(
    tiny_tokenizer: TinyTokenizer, session, count: int
) -> None:
    model, image = tiny_tokenizer.model, random_images(TINY, count)
    latent = model.encode(image)
    codes = model.quantize.encode(latent)
    found = session(tiny_tokenizer.folder / "encoder.onnx").run({"image": image.numpy()})
    assert list(found) == ["indices", "latent"]
    close(found["latent"], latent)
    assert found["indices"].dtype == np.int32
    assert np.array_equal(found["indices"], codes.numpy())
    assert len(np.unique(found["indices"])) > 15
    total, features = model.quantize.decode_with_features(codes)
    looked_up = session(tiny_tokenizer.folder / "lookup.onnx").run({"indices": found["indices"]})
    close(looked_up["latent"], total)
    close(looked_up["features"], features)
    picture = session(tiny_tokenizer.folder / "decoder.onnx").run({"latent": total.numpy()})[
        "image"
    ]
    close(picture, model.decode(total))


@pytest.mark.parametrize("session", [reference_session, fast_session])
@pytest.mark.parametrize("count", [1, 3])
def test_updates_add_up_to_the_lookup_and_give_the_next_input(
    tiny_tokenizer: TinyTokenizer, session, count: int
) -> None:
    quantizer = tiny_tokenizer.model.quantize
    codes = quantizer.encode(random_latent(TINY, count))
    total, features = quantizer.decode_with_features(codes)
    shown = iter(tiny_tokenizer.word_embed(features).split(TINY.lengths[1:], dim=1))
    f_hat = np.zeros((count, *total.shape[1:]), np.float32)
    for scale, tokens in enumerate(quantizer.split(codes)):
        opened = session(tiny_tokenizer.folder / f"update.{scale}.onnx")
        before = f_hat.copy()
        found = opened.run({"tokens": tokens.numpy(), "f_hat": f_hat})
        assert np.array_equal(f_hat, before)
        f_hat = found["f_hat_next"]
        if scale < quantizer.last:
            close(found["x"], next(shown))
        else:
            assert list(found) == ["f_hat_next"]
    close(f_hat, total)


def test_an_update_leaves_its_f_hat_as_it_is() -> None:
    quantizer = random_vqvae(TINY).quantize
    tokens = quantizer.split(quantizer.encode(random_latent(TINY)))[0]
    f_hat = torch.zeros(2, *TINY.latent_shape)
    following, _ = VarUpdateGraph(quantizer, 0, nn.Linear(TINY.latent_channels, 24))(tokens, f_hat)
    assert f_hat.abs().max() == 0 < following.abs().max()


@pytest.mark.parametrize("size", [6, 11, 13, 24])
def test_images_of_another_size_are_refused(tiny_tokenizer: TinyTokenizer, size: int) -> None:
    opened = fast_session(tiny_tokenizer.folder / "encoder.onnx")
    assert TINY.image_size == 12
    with pytest.raises(BundleError, match="refused image"):
        opened.run({"image": np.zeros((1, 3, size, size), np.float32)})


@pytest.mark.parametrize("length", [1, 74, 76])
def test_codes_of_other_scales_are_refused(tiny_tokenizer: TinyTokenizer, length: int) -> None:
    opened = fast_session(tiny_tokenizer.folder / "lookup.onnx")
    assert sum(TINY.lengths) == 75
    with pytest.raises(BundleError, match="refused indices"):
        opened.run({"indices": np.zeros((1, length), np.int32)})


@pytest.mark.parametrize("code", [40, 1000])
def test_a_code_beyond_the_codebook_is_refused(tiny_tokenizer: TinyTokenizer, code: int) -> None:
    with pytest.raises(BundleError, match="refused"):
        fast_session(tiny_tokenizer.folder / "lookup.onnx").run(
            {"indices": np.full((1, 75), code, np.int32)}
        )


@pytest.mark.parametrize("graph", GRAPHS)
def test_graph_is_valid_opset_21_with_unique_names_and_shared_weights(
    tiny_tokenizer: TinyTokenizer, graph: str
) -> None:
    path = tiny_tokenizer.folder / f"{graph}.onnx"
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", 21)]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert b".py" not in path.read_bytes()
    places = {
        e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"
    }
    assert places <= {WEIGHTS}
    assert [p.name for p in tiny_tokenizer.folder.glob("*.data")] == [WEIGHTS]


@pytest.mark.parametrize("graph", GRAPHS)
def test_no_graph_resizes_or_pools(tiny_tokenizer: TinyTokenizer, graph: str) -> None:
    model = onnx.load(tiny_tokenizer.folder / f"{graph}.onnx", load_external_data=False)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"AveragePool", "GlobalAveragePool", "Loop", "If"}
    resizes = [n for n in model.graph.node if n.op_type == "Resize"]
    modes = {a.s for n in resizes for a in n.attribute if a.name == "mode"}
    assert modes == ({b"nearest"} if graph == "decoder" else set())


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_product_is_a_site_of_its_own_name(tiny_tokenizer: TinyTokenizer, graph: str) -> None:
    model = onnx.load(tiny_tokenizer.folder / f"{graph}.onnx", load_external_data=False)
    products = [n.name for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    sites = [s for s in tiny_tokenizer.sites if s.graph == graph]
    assert len({s.name for s in sites}) == len(sites)
    # Scales share phi and the codebook: the second node of a module has its name and a number.
    unlisted = set(products) - {s.node for s in sites}
    shared = ("quantize.nearest", "quantize.quant_resi.qresi_ls.")
    assert all(name.startswith(shared) and re.search(r"_\d+$", name) for name in unlisted)
    assert {s.node for s in sites} <= set(products)
    modules = {
        **dict(tiny_tokenizer.model.named_modules()),
        "word_embed": tiny_tokenizer.word_embed,
        "quantize.nearest": None,
    }
    assert {s.name for s in sites if s.weight is not None} <= modules.keys()


def test_the_sites_of_the_method_are_the_convolutions_between_the_ends(
    tiny_tokenizer: TinyTokenizer,
) -> None:
    chosen = {s.name for s in tiny_tokenizer.sites if s.excluded is None}
    convolutions = {
        name for name, m in tiny_tokenizer.model.named_modules() if isinstance(m, nn.Conv2d)
    }
    ends = {"encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"}
    ends |= {"quant_conv", "post_quant_conv"}
    phis = {f"quantize.quant_resi.qresi_ls.{k}" for k in range(4)}
    assert chosen == convolutions - ends - phis
    assert all(s.excluded for s in tiny_tokenizer.sites if s.graph.startswith(("lookup", "update")))


def test_norms_in_front_of_convolutions_take_their_channel_scales(
    tiny_tokenizer: TinyTokenizer,
) -> None:
    folds = {s.name: s.fold for s in tiny_tokenizer.sites}
    assert folds["encoder.mid.attn_1.qkv"] is not None
    assert folds["encoder.mid.block_1.conv1"] is None  # SiLU lies between
