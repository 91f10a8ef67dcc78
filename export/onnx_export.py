"""Tokenizer modules -> encoder.onnx and decoder.onnx, checked against PyTorch on real images."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from ..errors import ExportError
from ..runtime.sessions.onnxruntime import fast_session
from ..sites import Site
from .graph_passes import find_sites, insert_size_check, rename_nodes, sign
from .tokenizers.cosmos import CosmosTokenizer
from .tokenizers.cosmos_config import CosmosConfig

OPSET = 21
# Relative to the RMS of the reference tensor. Float32 sums in another order stay below 3e-5 and
# 2e-6 on the published configurations; a wrong kernel or constant is off by orders more.
MAX_TOLERANCE = 5e-4
MEAN_TOLERANCE = 2e-5
FIRST_OR_LAST = "first or last convolution of its half"
FIXED = "fixed Haar transform"


class EncoderGraph(nn.Module):
    """image -> (indices, latent) for DI, image -> latent for CI."""

    def __init__(self, model: CosmosTokenizer) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.quant_conv = model.quant_conv
        self.quantizer = model.quantizer

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        latent = self.quant_conv(self.encoder(image))
        return latent if self.quantizer is None else (self.quantizer.indices(latent), latent)


class DecoderGraph(nn.Module):
    """indices (DI) or latent (CI) -> image."""

    def __init__(self, model: CosmosTokenizer) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.post_quant_conv = model.post_quant_conv
        self.quantizer = model.quantizer

    def forward(self, tokens: Tensor) -> Tensor:
        codes = tokens if self.quantizer is None else self.quantizer.codes(tokens)
        return self.decoder(self.post_quant_conv(codes))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Parity:
    """ONNX Runtime against PyTorch; differences relative to the RMS of PyTorch's tensor.

    `indices_differ` counts unequal tokens, `at_boundary` those of them whose latent lies within
    float error of an FSQ decision boundary (all of them, or the export fails).
    """

    latent_max: float
    latent_mean: float
    image_max: float
    image_mean: float
    tokens: int
    indices_differ: int
    at_boundary: int


def export_tokenizer(model: CosmosTokenizer, folder: Path, name: str) -> tuple[Site, ...]:
    """Write encoder.onnx and decoder.onnx into `folder`; returns the sites of both graphs."""
    config = model.config
    stride = config.spatial_compression
    properties = {
        "arvg_trt.model": name,
        "arvg_trt.stride": str(stride),
        "arvg_trt.levels": ",".join(map(str, config.levels)),
        "arvg_trt.latent_channels": str(config.latent_channels),
        "arvg_trt.image_range": "-1,1",
    }
    image = torch.zeros(2, 3, 2 * stride, 3 * stride)
    h, w = Dim("h"), Dim("w")
    encoder = trace(
        EncoderGraph(model),
        image,
        {0: "batch", 2: stride * h, 3: stride * w},
        "image",
        ["indices", "latent"] if config.discrete else ["latent"],
    )
    insert_size_check(encoder.graph, stride)
    sites = find_sites(encoder.graph, "encoder", encoder_high_precision())
    save_graph(encoder, folder / "encoder.onnx", properties)
    del encoder

    tokens = torch.zeros(2, 2, 3, dtype=torch.int32)
    latent = torch.zeros(2, config.latent_channels, 2, 3)
    decoder = trace(
        DecoderGraph(model),
        tokens if config.discrete else latent,
        {0: "batch", 1: "h", 2: "w"} if config.discrete else {0: "batch", 2: "h", 3: "w"},
        "indices" if config.discrete else "latent",
        ["image"],
    )
    sites += find_sites(decoder.graph, "decoder", decoder_high_precision())
    save_graph(decoder, folder / "decoder.onnx", properties)
    return sites


def encoder_high_precision() -> dict[str, str]:
    return {
        "encoder.patcher": FIXED,
        "encoder.conv_in": FIRST_OR_LAST,
        "encoder.conv_out": FIRST_OR_LAST,
        "quant_conv": FIRST_OR_LAST,
    }


def decoder_high_precision() -> dict[str, str]:
    return {
        "post_quant_conv": FIRST_OR_LAST,
        "decoder.conv_in": FIRST_OR_LAST,
        "decoder.conv_out": FIRST_OR_LAST,
        "decoder.unpatcher": FIXED,
    }


def trace(
    module: nn.Module,
    example: Tensor,
    dynamic: dict[int, object],
    input_name: str,
    output_names: list[str],
) -> ir.Model:
    """torch.export -> ONNX at opset 21 (23 would make Attention, which engines refuse)."""
    with quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[input_name],
            output_names=output_names,
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert program is not None
    rename_nodes(program.model.graph)
    return program.model


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter warns about its own internals (torchvision absent, pytree renames)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def save_graph(model: ir.Model, path: Path, properties: dict[str, str]) -> None:
    """Weights go beside the graph, so that stages can share and map them."""
    sign(model, properties)
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)


def check_parity(model: CosmosTokenizer, folder: Path, images: list[NDArray[np.float32]]) -> Parity:
    """Run both graphs on real images and compare with PyTorch.

    Raises:
        ExportError: a difference above the tolerance, or a token that differs although its
            latent is not at a decision boundary.
    """
    latent_error, image_error = ErrorSum(), ErrorSum()
    tokens = differ = boundary = 0
    session = fast_session(folder / "encoder.onnx")
    references: list[Tensor] = []
    with torch.inference_mode():
        for image in images:
            latent = model.encode(torch.from_numpy(image))
            found = session.run({"image": image})
            latent_error.add(found["latent"], latent.numpy())
            if model.quantizer is None:
                references.append(latent)
                continue
            indices = model.quantizer.indices(latent)
            references.append(indices)
            unequal = indices.numpy() != found["indices"]
            near = near_boundary(model, latent, latent_error.max)
            tokens += unequal.size
            differ += int(unequal.sum())
            boundary += int((unequal & near).sum())
        del session
        gc.collect()
        session = fast_session(folder / "decoder.onnx")
        for tokens_or_latent in references:
            codes = (
                tokens_or_latent
                if model.quantizer is None
                else model.quantizer.codes(tokens_or_latent)
            )
            found = session.run({session.inputs[0]: tokens_or_latent.numpy()})
            image_error.add(found["image"], model.decode(codes).numpy())
    parity = Parity(
        latent_max=latent_error.max,
        latent_mean=latent_error.mean,
        image_max=image_error.max,
        image_mean=image_error.mean,
        tokens=tokens,
        indices_differ=differ,
        at_boundary=boundary,
    )
    require_parity(parity)
    return parity


def near_boundary(model: CosmosTokenizer, latent: Tensor, error: float) -> NDArray[np.bool_]:
    """[N, h, w]: whether any of a token's bounded latents lies within `error` of a rounding tie."""
    assert model.quantizer is not None
    bounded = model.quantizer.bound(latent.double())
    distance = ((bounded - bounded.floor()) - 0.5).abs()
    reach = 4 * max(error, 1e-6) * float(latent.square().mean().sqrt())
    near: NDArray[np.bool_] = (distance < reach).any(dim=1).numpy()
    return near


def require_parity(parity: Parity) -> None:
    for graph, worst, mean in (
        ("encoder.onnx", parity.latent_max, parity.latent_mean),
        ("decoder.onnx", parity.image_max, parity.image_mean),
    ):
        if not (worst <= MAX_TOLERANCE and mean <= MEAN_TOLERANCE):
            raise ExportError(
                f"ONNX Runtime differs from PyTorch by {worst:.2e} at most and {mean:.2e} on "
                f"average (relative; allowed {MAX_TOLERANCE:.0e} and {MEAN_TOLERANCE:.0e})",
                where=graph,
                do="report it with the checkpoint's name and the output of `arvg-trt doctor`",
            )
    if parity.indices_differ > parity.at_boundary:
        raise ExportError(
            f"{parity.indices_differ - parity.at_boundary} of {parity.tokens} tokens differ from "
            "PyTorch away from any decision boundary",
            where="encoder.onnx",
            do="report it with the checkpoint's name and the output of `arvg-trt doctor`",
        )


class ErrorSum:
    """Running max and mean of |a - b| relative to the RMS of b."""

    def __init__(self) -> None:
        self.max = 0.0
        self._sum = 0.0
        self._count = 0

    def add(self, value: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
        wide = reference.astype(np.float64)
        error = np.abs(value.astype(np.float64) - wide) / np.sqrt(np.mean(np.square(wide)))
        self.max = max(self.max, float(error.max()))
        self._sum += float(error.sum())
        self._count += error.size

    @property
    def mean(self) -> float:
        return self._sum / max(1, self._count)


def describe(config: CosmosConfig) -> dict[str, object]:
    """What later stages need to know of the tokenizer, for the manifest."""
    codebook = 1
    for level in config.levels:
        codebook *= level
    return {
        "stride": config.spatial_compression,
        "discrete": config.discrete,
        "levels": list(config.levels),
        "latent_channels": config.latent_channels,
        "codebook_size": codebook if config.discrete else None,
    }
