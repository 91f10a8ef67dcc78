"""Encode and decode images with a tokenizer's graphs, torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from .images import FloatImage, Uint8Image, crop_back, from_model, pad_to_multiple, to_model
from .sessions.onnxruntime import OnnxRuntimeSession, fast_session, reference_session

Tokens = NDArray[np.int32]
Latent = NDArray[np.float32]


class ImageTokenizer:
    """A pair of sessions: image -> tokens (or latent) -> image.

    Model images are float32 [N, 3, H, W] in [-1, 1], H and W multiples of `stride`.
    """

    def __init__(self, encoder: OnnxRuntimeSession, decoder: OnnxRuntimeSession) -> None:
        self._encoder = encoder
        self._decoder = decoder
        properties = encoder.metadata
        if "arvg_trt.stride" not in properties:
            raise BundleError(
                "the encoder graph says no stride", do="export it with `arvg-trt export`"
            )
        self.stride = int(properties["arvg_trt.stride"])
        # Of FSQ the levels of each channel, of a codebook its size, of neither a latent.
        levels = [int(v) for v in properties.get("arvg_trt.levels", "").split(",") if v]
        size = int(properties.get("arvg_trt.codebook_size", 0)) or math.prod(levels or [0])
        self.codebook_size: int | None = size or None
        # Codes of a position; positions that the decoder takes the variance of.
        self.groups = int(properties.get("arvg_trt.groups", 1))
        self.least_positions = int(properties.get("arvg_trt.least_positions", 1))

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        session: Callable[[Path, int], OnnxRuntimeSession] = fast_session,
        threads: int = 0,
    ) -> ImageTokenizer:
        """Open `encoder.onnx` and `decoder.onnx` of a folder: an export, a Q/DQ pair, an engine.

        Raises:
            BundleError: a graph is missing or does not load.
        """
        for name in ("encoder.onnx", "decoder.onnx"):
            if not (folder / name).is_file():
                raise BundleError(
                    f"{name} is missing", where=str(folder), do="name an export or engine folder"
                )
        return cls(
            session(folder / "encoder.onnx", threads), session(folder / "decoder.onnx", threads)
        )

    @classmethod
    def reference(cls, folder: Path, threads: int = 0) -> ImageTokenizer:
        """The same in sessions without rewrites: what figures of accuracy are made with."""
        return cls.open(folder, session=reference_session, threads=threads)

    @property
    def discrete(self) -> bool:
        return self.codebook_size is not None

    def encode(self, image: FloatImage) -> tuple[Tokens | None, Latent]:
        """Model images -> (tokens int32 [N, h, w] or None, latent float32 [N, C, h, w])."""
        outputs = self._encoder.run({"image": image})
        return outputs.get("indices"), outputs["latent"]  # type: ignore[return-value]

    def decode(self, tokens: Tokens | Latent) -> FloatImage:
        """Tokens (or the latent of a continuous tokenizer) -> model images, not clamped."""
        return self._decoder.run({self._decoder.inputs[0]: tokens})["image"]  # type: ignore[return-value]

    def round_trip(self, image: Uint8Image) -> Uint8Image:
        """uint8 [H, W, 3] of any size -> its reconstruction; pads to the stride and crops back."""
        padded, offset = pad_to_multiple(image, self.stride)
        tokens, latent = self.encode(to_model(padded))
        back = from_model(self.decode(latent if tokens is None else tokens))
        return crop_back(back, offset, image.shape[:2])

    def check_tokens(self, tokens: NDArray[np.generic]) -> Tokens:
        """Tokens read from a file as int32 [N, h, w], or of several groups [N, h, w, groups].

        Raises:
            BundleError: wrong rank or type, or a token outside the codebook.
        """
        last = (self.groups,) if self.groups > 1 else ()
        if tokens.shape[3:] != last or tokens.ndim < 3 or tokens.dtype.kind not in "iu":
            shape = ", ".join(map(str, ("N", "h", "w", *last)))
            raise BundleError(
                f"tokens of shape {tokens.shape} and type {tokens.dtype}",
                do=f"give integers [{shape}]",
            )
        size = self.codebook_size
        if size is not None and tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
            raise BundleError(
                f"tokens from {tokens.min()} to {tokens.max()}, outside 0..{size - 1}",
                do="these are tokens of another model",
            )
        return tokens.astype(np.int32)
