"""Encode and decode images with a tokenizer's graphs, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..workspace.lead import lead_from
from ..workspace.manifest import MANIFEST
from ..workspace.verify import GENERATOR_FILE
from ..workspace.verify import verify as verify_folder
from .bundle.open import Place, access_by, located
from .folders import opener, read_folder, verified
from .images import FloatImage, Uint8Image, crop_back, from_model, pad_to_multiple, to_model
from .sessions.open import fast_session, has_graph, reference_session
from .sessions.session import OpenSession, Session, fallbacks

MOST_STRIDE = 1024

Tokens = NDArray[np.int32]
Latent = NDArray[np.float32]


class ImageTokenizer:
    """Run an encoder and a decoder: image -> tokens (or latent) -> image.

    Model images are float32 [N, 3, H, W] in [-1, 1], H and W multiples of `stride`, or where there
    is an `image_size` both that. Tokens are int32 [N, h, w], of several `groups` of channels
    [N, h, w, groups], of several scales [N, length].
    """

    def __init__(
        self,
        encoder: Session,
        decoder: Session,
        lookup: Session | None = None,
        *,
        engine_size: int | None = None,
    ) -> None:
        """Take sessions; `lookup` turns tokens into the latent that the decoder takes.

        It is None where the decoder takes tokens itself. `engine_size` is the side of the images
        that engines were built for, where the graphs that they were built from take any.
        """
        self.engine_size = engine_size
        self._encoder = encoder
        self._decoder = decoder
        self._lookup = lookup
        properties = encoder.metadata
        if "arvg_trt.stride" not in properties:
            raise BundleError(
                "the encoder graph says no stride", do="export it with `arvg-trt export`"
            )
        try:
            self._read(properties, decoder.metadata)
        except ValueError as error:
            raise BundleError(
                f"the graphs describe their tokens wrongly: {error}",
                do="export them with `arvg-trt export`",
            ) from error

    def _read(self, properties: Mapping[str, str], of_decoder: Mapping[str, str]) -> None:
        """Read what the graphs say of themselves; raise ValueError for what is no number."""
        self.stride = int(properties["arvg_trt.stride"])
        self.image_size = int(properties.get("arvg_trt.image_size", 0)) or None
        # FSQ has levels for each channel, a codebook has a size, a continuous latent has neither.
        levels = [int(v) for v in properties.get("arvg_trt.levels", "").split(",") if v]
        size = int(properties.get("arvg_trt.codebook_size", 0)) or math.prod(levels or [0])
        self.codebook_size: int | None = size or None
        self.groups = int(properties.get("arvg_trt.groups", 1))
        self.length = int(properties.get("arvg_trt.tokens", 0)) or None
        # The decoder may take the variance over positions, or a fixed number of images.
        self._least_positions = int(properties.get("arvg_trt.least_positions", 0))
        self._batch = int(of_decoder.get("arvg_trt.batch", 0)) or None
        if not 1 <= self.stride <= MOST_STRIDE:
            raise ValueError(f"stride {self.stride}")

    @classmethod
    def open(
        cls,
        folder: str | PathLike[str],
        *,
        session: OpenSession | None = None,
        device: str = "auto",
        allow_fallback: bool = False,
        threads: int = 0,
        verify: bool = True,
        require_keys: Place | Sequence[Place] = (),
    ) -> ImageTokenizer:
        """Open the graphs of a workspace, a bundle or a folder: an export, a Q/DQ pair, an engine.

        They run on the `device`, cpu, cuda:0 or auto (a GPU where one can be used), or with the
        `session` that is given. Without `verify` the graphs of a folder are taken as they lie
        there. A bundle must be signed by one of `require_keys`, files of public keys.

        Raises:
            BundleError: a graph is missing or does not load, or says nonsense of its tokens; no
                such device; engines that do not run here; or, unless `allow_fallback`, a part of
                a graph that would run on the CPU instead of the GPU.
            WorkspaceError: the folder is not what its stage wrote.
            IntegrityError: the bundle is damaged, changed, or not signed as this device requires.
        """
        given = Path(folder)
        folder = located(given, device, access_by(require_keys), wants="tokenizer")
        if not has_graph(folder / "encoder.onnx") and (folder / "export").is_dir():
            folder = folder / "export"
        check = verified if session else verify_folder
        by_engines = session is None  # a session that is given runs graphs, which take any size
        if session is None:
            session = opener(folder, fast_session, device, allow_fallback=allow_fallback)
        missing = [n for n in ("encoder.onnx", "decoder.onnx") if not has_graph(folder / n)]
        # What a manifest lists and is not there is damage, and elsewhere the wrong folder.
        if verify and ((folder / MANIFEST).is_file() or not missing):
            check(folder)
        if missing:
            lead = lead_from(given, "tokenizer")
            what = (
                f"{missing[0]} is missing, the folder {lead.what}" if given.is_dir() else lead.what
            )
            raise BundleError(what, where=str(folder), do=lead.do)
        names = [n for n in ("encoder", "decoder", "lookup") if has_graph(folder / f"{n}.onnx")]
        sessions = [session(folder / f"{name}.onnx", threads) for name in names]
        return cls(*sessions, engine_size=engine_size(folder) if by_engines else None)

    @classmethod
    def reference(
        cls, folder: str | PathLike[str], threads: int = 0, *, verify: bool = True
    ) -> ImageTokenizer:
        """Open the graphs without rewrites, as figures of accuracy are made."""
        return cls.open(folder, session=reference_session, threads=threads, verify=verify)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Return what runs on the CPU and was to run on the GPU, a line for each reason."""
        every = (self._encoder, self._decoder, self._lookup)
        return fallbacks(session for session in every if session is not None)

    @property
    def discrete(self) -> bool:
        return self.codebook_size is not None

    def fit(self, image: Uint8Image) -> tuple[Uint8Image, tuple[int, int]]:
        """Return uint8 [H, W, 3] padded to the stride, and the offset for `crop_back`.

        Raises:
            BundleError: a size that the tokenizer is not made for.
        """
        height, width = image.shape[:2]
        size = self.image_size
        if size is not None and (height, width) != (size, size):
            raise BundleError(
                f"has {width}x{height} pixels, and this tokenizer takes {size}x{size} alone",
                do="crop or resize it",
            )
        padded, offset = pad_to_multiple(image, self.stride)
        self._require_taken(padded.shape[:2], image.shape[:2])
        self._require_positions(padded.shape[0] * padded.shape[1] // self.stride**2)
        return padded, offset

    def encode(self, image: FloatImage) -> tuple[Tokens | None, Latent]:
        """Return (tokens or None, latent float32 [N, C, h, w]) of model images.

        Raises:
            BundleError: a size that the tokenizer is not made for.
        """
        self._require_taken(image.shape[2:])
        outputs = self._encoder.run({"image": image})
        return outputs.get("indices"), outputs["latent"]  # type: ignore[return-value]

    def decode(self, tokens: Tokens | Latent) -> FloatImage:
        """Return model images, not clamped, of tokens or of a continuous latent.

        Raises:
            BundleError: they are of a size that the tokenizer is not made for.
        """
        self.require_decodable(tokens)
        count = max(1, len(tokens))
        name, rows = self._decoder.inputs[0], self._batch or count
        if self._lookup is not None and rows == len(tokens):
            latent = self._lookup.run_on_device({"indices": tokens})["latent"]
            made = self._decoder.run_on_device({name: latent}, host=("image",))
            return made["image"].numpy()  # type: ignore[return-value]
        if self._lookup is not None:
            tokens = self._lookup.run({"indices": tokens})["latent"]  # type: ignore[assignment]
        images = [
            self._decoder.run({name: filled(tokens[start : start + rows], rows)})["image"]
            for start in range(0, count, rows)
        ]
        return np.concatenate(images)[: len(tokens)]  # type: ignore[return-value]

    def round_trip(self, image: Uint8Image) -> Uint8Image:
        """Return the reconstruction of uint8 [H, W, 3] of any size.

        The image is padded to the stride, and its reconstruction cropped back.

        Raises:
            BundleError: a size that the tokenizer is not made for.
        """
        padded, offset = self.fit(image)
        tokens, latent = self.encode(to_model(padded))
        back = from_model(self.decode(latent if tokens is None else tokens))
        return crop_back(back, offset, image.shape[:2])

    def check_tokens(self, tokens: NDArray[np.generic]) -> Tokens:
        """Return tokens from a file as int32, in the shape of this tokenizer's.

        Raises:
            BundleError: wrong shape or type, a token outside the codebook, too few of them.
        """
        if self.length is not None:
            axes: tuple[int | str, ...] = ("N", self.length)
        else:
            axes = ("N", "h", "w", *((self.groups,) if self.groups > 1 else ()))
        fits = tokens.ndim == len(axes) and all(
            isinstance(axis, str) or axis == size
            for axis, size in zip(axes, tokens.shape, strict=True)
        )
        if not fits or tokens.dtype.kind not in "iu":
            raise BundleError(
                f"tokens of shape {tokens.shape} and type {tokens.dtype}",
                do=f"give integers [{', '.join(map(str, axes))}]",
            )
        size = self.codebook_size
        if size is not None and tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
            raise BundleError(
                f"tokens from {tokens.min()} to {tokens.max()}, outside 0..{size - 1}",
                do="these are tokens of another model",
            )
        self._require_positions(math.prod(tokens.shape[1:3]))
        return tokens.astype(np.int32)

    def require_decodable(self, tokens: Tokens | Latent) -> None:
        """Raise BundleError for tokens or a latent of images that these engines do not take."""
        if self.length is None and tokens.ndim > 2:
            cells = tokens.shape[1:3] if self.discrete else tokens.shape[2:]
            self._require_taken(tuple(cell * self.stride for cell in cells))

    def _require_taken(self, shape: tuple[int, ...], given: tuple[int, ...] | None = None) -> None:
        """Raise BundleError for a size [H, W] that engines do not take; `given`: before padding."""
        size = self.engine_size
        if size is not None and shape != (size, size):
            pixels = "x".join(str(side) for side in reversed(given or shape))
            raise BundleError(
                f"has {pixels} pixels, and these engines take images of {size}x{size} alone",
                do=f"crop or resize it to {size}x{size}, take the CPU's engine, which takes any "
                "size (--device cpu), or build engines of another --image-size",
            )

    def _require_positions(self, positions: int) -> None:
        if positions < self._least_positions:
            raise BundleError(
                f"has {positions} of the {self._least_positions} or more positions that this "
                "tokenizer takes the variance of",
                do=f"use an image of more than {self.stride}x{self.stride} pixels",
            )


def engine_size(folder: Path) -> int | None:
    """Return the side of the images that a tokenizer's engines in a folder take; None of graphs."""
    found = read_folder(folder)
    tokenizes = found.holds_engines and not (folder / GENERATOR_FILE).is_file()
    return found.built.image_size if tokenizes else None


def filled(rows: NDArray[Any], count: int) -> NDArray[Any]:
    """Return `count` rows: those given, then the first ones again."""
    return np.resize(rows, (count, *rows.shape[1:])) if len(rows) != count else rows


def check_latent(latent: NDArray[Any]) -> Latent:
    """Return a latent that was read from a file as float32 [1, C, h, w].

    Raises:
        BundleError: another shape or type, or values that are not finite.
    """
    if latent.ndim != 4 or latent.dtype.kind != "f" or not latent.size:
        raise BundleError(
            f"a latent of shape {list(latent.shape)} and type {latent.dtype}",
            do="give floats [1, C, h, w]",
        )
    if not np.isfinite(latent).all():
        raise BundleError("a latent with NaN or infinity", do="encode the images again")
    return latent.astype(np.float32)
