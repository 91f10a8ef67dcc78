"""The graphs of a MAR and its autoencoder in ONNX Runtime against the PyTorch modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from arvg_trt.errors import BundleError, ExportError
from arvg_trt.families.kl_vae.parity import compute_autoencoder_references
from arvg_trt.families.mar.parity import (
    AT,
    References,
    check_autoencoder_parity,
    check_mar_parity,
    compute_mar_references,
    known_counts,
)
from arvg_trt.graph.sites import Site
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.runtime.sessions.session import Session

from ..shared.graphs import (
    assert_a_fold_changes_the_inputs_of_its_sites_alone,
    assert_every_weight_is_stored_once,
    change,
    checked_shapes,
    copied,
    operators,
    relative,
    sites_of,
    watched,
)
from .models import SMALL, TinyMar, random_known

Floats = NDArray[np.float32]
GRAPHS = ("pass", "denoise")
LABELS = np.array([2, 0, 5])  # the last is the null class
SCALE = SMALL.latent_scale
pytestmark = pytest.mark.usefixtures("one_thread")


def session(mar: TinyMar, graph: str) -> Session:
    return reference_session(mar.folder / f"{graph}.onnx")


def sites(mar: TinyMar) -> tuple[Site, ...]:
    return sites_of(mar.folder, (*GRAPHS, "encoder", "decoder"))


@pytest.mark.parametrize("known", [0, 1, 7, SMALL.length - 1])
@pytest.mark.parametrize("rows", [1, 3])
def test_one_pass_graph_takes_any_number_of_known_tokens(
    tiny_mar: TinyMar, known: int, rows: int
) -> None:
    model, labels = tiny_mar.transformer, torch.from_numpy(LABELS[:rows])
    tokens, orders = random_known(SMALL, rows, known)
    feeds = {"labels": labels.numpy(), "tokens": tokens.numpy(), "position_ids": orders.numpy()}
    found = session(tiny_mar, "pass").run(feeds)
    z = model(labels, tokens, orders)
    assert found["z"].shape == (rows, SMALL.length - known, SMALL.width)
    assert relative(found["z"], z) < 1e-5
    assert relative(found["condition"], model.diffloss.net.cond_embed(z)) < 1e-5


@pytest.mark.parametrize("time", [0, 1, 500, 999])
@pytest.mark.parametrize("count", [1, 5])
def test_the_denoiser_graph_takes_any_number_of_tokens(
    tiny_mar: TinyMar, time: int, count: int
) -> None:
    net = tiny_mar.transformer.diffloss.net
    x, z = torch.randn(count, SMALL.latent_channels), torch.randn(count, SMALL.width)
    feeds = {"x": x.numpy(), "time": np.array([time]), "condition": net.cond_embed(z).numpy()}
    found = session(tiny_mar, "denoise").run(feeds)
    noise, spread = net(x, torch.full((count,), time), z).chunk(2, dim=1)
    assert relative(found["noise"], noise) < 1e-5
    assert relative(found["spread"], spread) < 1e-5


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 6, 10)])
def test_latents_are_the_generators_tokens(tiny_mar: TinyMar, shape: tuple[int, ...]) -> None:
    """The scale is in the weights: encoder.onnx gives what MAR is trained on, and decoder.onnx
    takes what it makes."""
    model, (count, height, width) = tiny_mar.tokenizer, shape
    image = torch.rand(count, 3, height, width) * 2 - 1
    latent = session(tiny_mar, "encoder").run({"image": image.numpy()})["latent"]
    assert relative(latent, model.encode(image) * SCALE) < 5e-5
    back = session(tiny_mar, "decoder").run({"latent": latent})["image"]
    assert relative(back, model.decode(torch.from_numpy(latent) / SCALE)) < 5e-5


def test_an_image_of_an_odd_size_is_refused(tiny_mar: TinyMar) -> None:
    with pytest.raises(BundleError, match=r"refused image \[1, 3, 7, 8\]"):
        session(tiny_mar, "encoder").run({"image": np.zeros((1, 3, 7, 8), np.float32)})


@pytest.mark.parametrize("graph", [*GRAPHS, "encoder", "decoder"])
def test_graphs_are_valid_and_name_what_they_take(tiny_mar: TinyMar, graph: str) -> None:
    c = SMALL
    wanted: dict[str, dict[str, list[object]]] = {
        "pass": {
            "labels": ["rows"],
            "tokens": ["rows", "n", c.latent_channels],
            "position_ids": ["rows", c.length],
            "z": ["rows", "16 - n", c.width],
            "condition": ["rows", "16 - n", c.head_width],
        },
        "denoise": {
            "x": ["m", c.latent_channels],
            "time": [1],
            "condition": ["m", c.head_width],
            "noise": ["m", c.latent_channels],
            "spread": ["m", c.latent_channels],
        },
        "encoder": {
            "image": ["batch", 3, "2*h", "2*w"],
            "latent": ["batch", c.latent_channels, "h", "w"],
        },
        "decoder": {
            "latent": ["batch", c.latent_channels, "h", "w"],
            "image": ["batch", 3, "2*h", "2*w"],
        },
    }
    assert checked_shapes(tiny_mar.folder / f"{graph}.onnx") == wanted[graph]


def test_what_is_constant_is_not_in_the_step(tiny_mar: TinyMar) -> None:
    """The time is a table, the condition comes from the pass."""
    nodes = onnx.load(tiny_mar.folder / "denoise.onnx", load_external_data=False).graph.node
    kinds = [n.op_type for n in nodes]
    assert not {"Cos", "Sin", "Exp"} & set(kinds)
    assert kinds.count("Gather") == 1
    assert kinds.count("Sigmoid") == 1 + SMALL.head_depth  # the condition's, and a block's own
    assert not [n.name for n in nodes if "embed" in n.name and n.op_type == "MatMul"]


def test_nothing_is_put_back_into_raster_order(tiny_mar: TinyMar) -> None:
    """Known tokens come first: no scatter, no search for the masked ones."""
    kinds = operators(tiny_mar.folder / "pass.onnx")
    assert not {"NonZero", "ScatterND", "ScatterElements", "GatherND", "Where"} & set(kinds)


def test_every_weight_is_stored_once(tiny_mar: TinyMar) -> None:
    assert_every_weight_is_stored_once(tiny_mar.folder, (*GRAPHS, "encoder", "decoder"))


def test_sites_are_every_linear_under_its_official_path(tiny_mar: TinyMar) -> None:
    modules = tiny_mar.transformer.named_modules()
    linears = {name for name, m in modules if isinstance(m, torch.nn.Linear)}
    of = {g: {s.name: s for s in sites(tiny_mar) if s.graph == g and s.weight} for g in GRAPHS}
    times = {name for name in linears if "time_embed" in name}  # in the table
    head = {name for name in linears if name.startswith("diffloss")}
    assert of["pass"].keys() == (linears - head) | {"diffloss.net.cond_embed"}
    assert of["denoise"].keys() == head - times - {"diffloss.net.cond_embed"}
    products = [s for s in sites(tiny_mar) if s.graph == "pass" and s.role.startswith("bmm")]
    assert len(products) == 2 * (SMALL.encoder_depth + SMALL.decoder_depth)
    assert all(s.excluded for s in products)


def test_the_papers_quantized_and_excluded_layers_are_read_from_the_sites(
    tiny_mar: TinyMar,
) -> None:
    """qkv, proj, fc1 and fc2 of both stacks, by position; nothing between, nothing of the head."""
    found = [s for s in sites(tiny_mar) if s.graph in GRAPHS and s.excluded is None]
    assert {s.name for s in found} == {
        f"{half}_blocks.{i}.{part}"
        for half, depth in (("encoder", SMALL.encoder_depth), ("decoder", SMALL.decoder_depth))
        for i in range(depth)
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    places = SMALL.buffer + SMALL.length
    last = {s.name for s in found if s.position_input == "unknown_places"}
    assert last == {f"decoder_blocks.2.{part}" for part in ("attn.proj", "mlp.fc1", "mlp.fc2")}
    for site in found:
        half = site.name.partition("_")[0]
        wanted = {"encoder": places, "decoder": places + SMALL.length}[half]
        if site.name in last:
            assert (site.token_axis, site.positions) == (1, SMALL.length)
        else:
            numbers = (site.token_axis, site.position_input, site.positions)
            assert numbers == (1, f"{half}_places", wanted)
    timed = [s for s in sites(tiny_mar) if s.graph == "denoise"]
    assert {(s.token_axis, s.position_input, s.positions) for s in timed} == {(0, "time_place", 20)}
    assert all((s.producer_fold is not None) == (s.role != "fc2") for s in found)


def test_the_buffer_lies_first_in_every_sequence(tiny_mar: TinyMar, tmp_path: Path) -> None:
    """Position k < buffer of a site's input is a buffer row, whatever is known."""
    blocks = [s for s in sites(tiny_mar) if s.graph == "pass" and s.token_axis == 1]
    onnx.save(
        watched(tiny_mar.folder / "pass.onnx", [s.input for s in blocks]), tmp_path / "p.onnx"
    )
    run = reference_session(tmp_path / "p.onnx").run
    known = 4
    tokens, orders = random_known(SMALL, 1, known)
    feeds = {"labels": LABELS[:1], "tokens": tokens.numpy(), "position_ids": orders.numpy()}
    found = run(feeds, [s.input for s in blocks])
    last = [s for s in blocks if s.position_input == "unknown_places"]
    assert {found[s.input].shape[1] for s in last} == {SMALL.length - known}
    blocks = [s for s in blocks if s not in last]
    lengths = {s.name.partition("_")[0]: found[s.input].shape[1] for s in blocks}
    assert lengths == {"encoder": SMALL.buffer + known, "decoder": SMALL.buffer + SMALL.length}
    other = run(feeds | {"tokens": tokens.numpy() + 1}, [blocks[0].input])[blocks[0].input]
    first = found[blocks[0].input]
    assert np.array_equal(other[:, : SMALL.buffer], first[:, : SMALL.buffer])
    assert not np.isclose(other[:, SMALL.buffer :], first[:, SMALL.buffer :]).all(axis=2).any()


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        ("pass", "encoder_blocks.0.attn.qkv"),
        ("pass", "encoder_blocks.1.attn.proj"),
        ("pass", "decoder_blocks.2.mlp.fc1"),
        ("denoise", "diffloss.net.res_blocks.1.mlp.0"),
        ("denoise", "diffloss.net.final_layer.linear"),
    ],
)
def test_a_fold_changes_the_input_of_its_site_and_nothing_else(
    tiny_mar: TinyMar, graph: str, name: str, tmp_path: Path
) -> None:
    site = next(s for s in sites(tiny_mar) if s.name == name and s.graph == graph)
    assert site.bias is not None
    tokens, orders = random_known(SMALL, 2, 5)
    feeds: dict[str, NDArray[np.generic]] = {
        "labels": LABELS[:2],
        "tokens": tokens.numpy(),
        "position_ids": orders.numpy(),
    }
    if graph == "denoise":
        rng = np.random.default_rng(0)
        condition = rng.normal(size=(3, SMALL.head_width)).astype(np.float32)
        x = rng.normal(size=(3, SMALL.latent_channels)).astype(np.float32)
        feeds = {"x": x, "time": np.array([300]), "condition": condition}
    assert site.producer_fold is not None and site.producer_fold.subtract
    assert_a_fold_changes_the_inputs_of_its_sites_alone(
        tiny_mar.folder / f"{graph}.onnx", [site], feeds, tmp_path
    )


@pytest.fixture(scope="module")
def references(tiny_mar: TinyMar) -> References:
    generator = torch.Generator().manual_seed(5)
    shape = (2, SMALL.length, SMALL.latent_channels)
    tokens = torch.randn(shape, generator=generator)
    return compute_mar_references(tiny_mar.transformer, torch.from_numpy(LABELS[1:]), tokens)


def test_parity_covers_every_kind_of_pass(tiny_mar: TinyMar, references: References) -> None:
    found = check_mar_parity(tiny_mar.folder, references)
    seen = [(d.tokens, d.past) for d in found if d.graph == "pass" and d.tensor == "z"]
    assert seen == [(16, 0), (15, 1), (8, 8), (1, 15)]
    times = [d.tensor for d in found if d.graph == "denoise"]
    assert times == [f"{name} at {time}" for time in AT for name in ("noise", "spread")]
    assert all(d.mean <= d.max < 1e-4 for d in found)


@pytest.mark.parametrize(
    ("length", "counts"), [(1, (0,)), (4, (0, 1, 2, 3)), (256, (0, 1, 128, 255))]
)
def test_parity_knows_no_one_half_and_all_but_one(length: int, counts: tuple[int, ...]) -> None:
    assert known_counts(length) == counts


@pytest.mark.parametrize(
    ("graph", "initializer", "words"),
    [
        ("pass", "decoder_blocks.1.mlp.fc2.bias", "pass.onnx: z of .* at 16 tokens behind 0"),
        ("pass", "encoder_blocks.1.attn.proj.bias", "pass.onnx: z of"),
        ("pass", "diffloss.net.cond_embed.bias", "pass.onnx: condition of"),
        ("denoise", "diffloss.net.res_blocks.0.mlp.2.bias", "denoise.onnx: noise at 0 of"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(
    tiny_mar: TinyMar, references: References, tmp_path: Path, graph: str, initializer: str, words
) -> None:
    folder = copied(tiny_mar.folder, tmp_path / "export")

    def every_second(values: NDArray[np.generic]) -> NDArray[np.generic]:
        values = values.copy()
        values[::2] += np.float32(0.05)
        return values

    change(folder / f"{graph}.onnx", initializer, every_second)
    with pytest.raises(ExportError, match=words):
        check_mar_parity(folder, references)


def test_an_autoencoder_of_another_scale_is_refused(tiny_mar: TinyMar) -> None:
    images = [np.random.default_rng(0).uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)]
    wanted = compute_autoencoder_references(tiny_mar.tokenizer, images, SCALE)
    assert {d.graph for d in check_autoencoder_parity(tiny_mar.folder, wanted)} == {
        "encoder",
        "decoder",
    }
    other = replace(wanted, latent=wanted.latent * np.float32(1.01))
    with pytest.raises(ExportError, match=r"encoder\.onnx: latent"):
        check_autoencoder_parity(tiny_mar.folder, other)
    with pytest.raises(ExportError, match=r"decoder\.onnx: image"):
        check_autoencoder_parity(tiny_mar.folder, replace(wanted, decoded=wanted.decoded + 0.01))
