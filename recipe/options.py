"""What a recipe says, as frozen structs.

Unknown keys are errors, and so are values that do not go together, before any work starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from ..errors import RecipeError
from ..numerics.scheme import BLOCK_BITS, BLOCKS, Rounding, Smoothing

FLOAT_BITS = 32
LONGEST_NAME = 100  # files and temporary folders add to it, and a name ends at 255 bytes
MAX_MEMORY = 2 * 2**30  # bytes of second moments at a time

QuantizeMethod = Literal[
    "per_tensor", "log_quantization", "per_channel", "per_channel_log", "blockwise", "fp8"
]
LOG_METHODS = ("log_quantization", "per_channel_log")
# Beyond these a number is a slip: what it asks for does not fit into a machine.
MOST_SAMPLES, MOST_SIZE, MOST_THREADS, MOST_SEED = 10**7, 8192, 4096, 2**63 - 1
# Weight-only methods: their inputs stay in high precision without saying so.
WEIGHT_ONLY = ("per_tensor", "blockwise", *LOG_METHODS)
Backend = Literal["onnxruntime", "tensorrt_rtx", "tensorrt"]

OptionsT = TypeVar("OptionsT", bound="Options")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all option tables."""


def require_at_least(options: Options, **least: int) -> None:
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise ValueError(f"{name} must be at least {bound}, got {getattr(options, name)}")


def require_at_most(options: Options, **most: int) -> None:
    for name, bound in most.items():
        value = getattr(options, name)
        if value is not None and value > bound:
            raise ValueError(f"{name} must be at most {bound:,}, got {value:.4g}")


def require_not_empty(options: Options, *names: str) -> None:
    """Raises ValueError for texts that are empty, and would mean something else unsaid, or that no
    file has as its name.
    """
    for name in names:
        value = getattr(options, name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.strip():
                raise ValueError(f"{name} is empty: give a value, or leave it out")
            if isinstance(text, str) and "\0" in text:
                raise ValueError(f"{name} holds a null character")


class CalibrateOptions(Options, frozen=True, kw_only=True):
    """`images` is a folder or `skimage:NAME,NAME`; `size` is the side of the square crops.

    `feeds` is a .npz with the arrays that a user's own graphs are fed. A generator makes `samples`
    pictures itself, of the classes `labels` (`0-9,207`) in turn, or drawn evenly of all. `shard`
    "K/N" makes part K of N of them, to be merged with the others. `samples_from` is a folder of
    saved samples to use instead, all of them.

    `value_range` is what the float pictures of `feeds` must lie in (None: within +-16).

    `dgc` chooses twice `samples` rows of those of `candidates` pictures (None: twice `samples`), by
    the distances of their first tokens: as many conditional ones as are far ("ratio"), or the far
    ones themselves (`dgc_select` "distance").
    """

    images: str | None = None
    feeds: str | None = None
    labels: str | None = None
    samples: int = 32
    batch_size: int = 1
    seed: int = 0
    size: int = 256
    synthetic: bool = False
    shard: str | None = None
    samples_from: str | None = None
    value_range: tuple[float, float] | None = None
    dgc: bool = False
    candidates: int | None = None
    dgc_select: Literal["ratio", "distance"] = "ratio"

    def __post_init__(self) -> None:
        require_at_least(self, samples=1, batch_size=1, size=1, seed=0)
        require_at_most(self, samples=MOST_SAMPLES, batch_size=MOST_SAMPLES, size=MOST_SIZE)
        require_at_most(self, seed=MOST_SEED, candidates=MOST_SAMPLES)
        require_not_empty(self, "images", "feeds", "labels", "samples_from")
        if self.samples_from is not None:
            others = [n for n in ("images", "feeds", "labels", "synthetic") if getattr(self, n)]
            if others:
                raise ValueError(f"samples_from and {others[0]} exclude each other")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} is empty")
        if self.candidates is not None and not self.dgc:
            raise ValueError("candidates are what dgc chooses from: set dgc")
        if self.dgc and self.shard is not None:
            raise ValueError(
                "dgc chooses among all candidates: make shards without it, merge them, and choose "
                "with samples_from"
            )
        if self.dgc and self.pool < self.samples:
            raise ValueError(f"{self.samples} samples of {self.pool} candidates leave no choice")
        if self.shard is not None:
            _, n = self.part
            if n > self.samples:
                raise ValueError(f"{self.samples} samples cannot be cut into {n} shards")
        if self.synthetic and (self.images is not None or self.feeds is not None):
            given = "images" if self.images is not None else "feeds"
            raise ValueError(f"synthetic noise and {given} exclude each other")

    @property
    def pool(self) -> int:
        """Pictures to make: the samples, or the candidates for them."""
        if not self.dgc:
            return self.samples
        return 2 * self.samples if self.candidates is None else self.candidates

    @property
    def part(self) -> tuple[int, int]:
        """(K, N) of the shard, counted from 1; (1, 1) is all.

        Raises:
            ValueError: it is not written as K/N with 1 <= K <= N.
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", self.shard or "1/1")
        k, n = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= k <= n:
            raise ValueError(f"shard {self.shard!r} is not K/N, part K of N from 1/N to N/N")
        return k, n


class QuantizeOptions(Options, frozen=True, kw_only=True):
    """Which formats the sites of a model get.

    Bits are 2 to 8, or 32 to leave a half (or all activations) in high precision; `weight_bits`
    are those of every graph, whatever the halves' say. `smoothing` is the SmoothQuant exponent, 0
    turns it off, "search" takes what loses least on samples that it was not fitted to, none among
    it, "gps" (generators) the gain-projected scales; `shift` allows
    exact shifts of ranges: one for the tensor, or one a channel where that gains. Clips minimise
    sum |error|^clip_power (None: ^4, a generator's ^2); 0: no clips, the ranges that were seen,
    and no pass to measure what inputs lose. With
    `token_wise` a generator's inputs have a static scale a position. `attention_inputs` rounds the
    inputs of the projections of a convolutional attention too. `tap_sums` rounds the taps of a
    kernel so that their sum stays: less error on smooth feature maps. `data_aware` weights the
    search of per-channel weight grids by the energy of the inputs. `rounding` "gptq" compensates
    the weights' errors on the calibration data, `bias_correction` keeps the outputs' means there.
    `exclude` holds patterns of site names; `include` those of sites that the method leaves out and
    that shall be quantized. `blockwise` weights have 4 bits and a scale every `block_size` input
    channels. `adaln_bits` are those of linears that make a generator's modulation, whose inputs
    then stay in high precision (None: as all others). With `integer_exponents` a logarithmic grid
    has powers of two, of 2 to 5 bits, and inputs of 8 bits are FP8. `attention` is the format of a
    generator's queries, keys, values and softmax, of `attention_bits` (None: 8) in an INT8 kernel.
    `per_tensor` holds patterns of sites whose input has one scale although `token_wise` is set.
    """

    encoder_bits: int = 8
    decoder_bits: int = 8
    weight_bits: int | None = None
    quantize_method: QuantizeMethod = "per_channel"
    activation_bits: int = 8
    smoothing: Smoothing = "search"
    shift: bool = True
    token_wise: bool = True
    clip_power: Literal[0, 2, 4] | None = None
    attention_inputs: bool = False
    tap_sums: bool = True
    data_aware: bool = False
    rounding: Rounding = "nearest"
    bias_correction: bool = False
    block_size: int = 64
    adaln_bits: int | None = None
    integer_exponents: bool = False
    attention: Literal["float", "fp8", "int8"] = "float"
    attention_bits: int | None = None
    per_tensor: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        of_weights = ("encoder_bits", "decoder_bits", "weight_bits", "adaln_bits")
        for name in (*of_weights, "activation_bits"):
            bits = getattr(self, name)
            if bits is not None and bits != FLOAT_BITS and not 2 <= bits <= 8:
                raise ValueError(f"{name} must be 2 to 8, or 32 for high precision; got {bits}")
        if not isinstance(self.smoothing, str) and not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must be between 0 and 1, got {self.smoothing}")
        self.check_formats()

    def check_formats(self) -> None:
        """Raises ValueError for a method, bits and options that do not go together."""
        if self.block_size not in BLOCKS:
            raise ValueError(f"block_size must be one of {BLOCKS}, got {self.block_size}")
        log = self.quantize_method in LOG_METHODS
        if self.integer_exponents and not log:
            raise ValueError(f"integer_exponents goes with {' or '.join(LOG_METHODS)}")
        if self.integer_exponents and self.activation_bits not in (8, FLOAT_BITS):
            raise ValueError(f"beside integer exponents inputs are FP8 (8) or float ({FLOAT_BITS})")
        if self.attention_bits is not None:
            if self.attention != "int8":
                raise ValueError('attention_bits goes with attention = "int8"')
            if not 2 <= self.attention_bits <= 8:
                raise ValueError(f"attention_bits must be 2 to 8, got {self.attention_bits}")
        if self.adaln_bits not in (None, FLOAT_BITS) and self.quantize_method != "per_channel":
            raise ValueError(f"adaln_bits goes with per_channel, not with {self.quantize_method}")
        if self.quantize_method == "blockwise" and self.weight_bits not in (BLOCK_BITS, None):
            raise ValueError(f"blockwise weights have {BLOCK_BITS} bits, not {self.weight_bits}")
        if self.quantize_method == "fp8":
            if self.rounding != "nearest":
                raise ValueError(f"{self.rounding} rounds to integer grids, not to fp8")
            given = {self.encoder_bits, self.decoder_bits, self.weight_bits, self.activation_bits}
            if given - {8, FLOAT_BITS, None}:
                raise ValueError(
                    f"fp8 has 8 bits: set encoder and decoder bits to 8 or {FLOAT_BITS}"
                )
            if self.activation_bits == FLOAT_BITS:
                raise ValueError("fp8 quantizes weights and activations: set activation_bits = 8")
        elif self.activation_bits != FLOAT_BITS and not (
            self.quantize_method == "per_channel" or self.integer_exponents
        ):
            raise ValueError(
                f"{self.quantize_method} is weight-only: set activation_bits = {FLOAT_BITS}, "
                "or use per_channel"
            )


class BuildOptions(Options, frozen=True, kw_only=True):
    """One backend; `targets` are GPU names or compute capabilities (none for onnxruntime).

    `fp16` builds the unquantized engines beside the quantized ones. What TensorRT engines do not
    quantize they compute in `half`; bfloat16 has float32's range and fewer digits than float16.
    They take square images of `image_size` in batches of 1 to `max_batch`.
    """

    backend: Backend = "onnxruntime"
    targets: tuple[str, ...] = ()
    fp16: bool = False
    half: Literal["float16", "bfloat16"] = "float16"
    image_size: int = 256
    max_batch: int = 1

    def __post_init__(self) -> None:
        require_at_least(self, image_size=1, max_batch=1)
        require_at_most(self, image_size=MOST_SIZE, max_batch=MOST_SAMPLES)
        if self.backend == "tensorrt_rtx" and not self.targets:
            raise ValueError('tensorrt_rtx compiles for named GPUs: targets = ["sm86", "sm89"]')
        if self.backend == "onnxruntime" and self.targets:
            raise ValueError("onnxruntime takes no targets")
        if self.backend == "onnxruntime" and self.half != "float16":
            raise ValueError(f"half = {self.half} is for TensorRT: onnxruntime computes in float32")


class ValidateOptions(Options, frozen=True, kw_only=True):
    """`rounds` interleaved timings after `warmup`; 0 rounds measure no latency.

    A generator makes `samples` pictures of `seed`, of the classes `labels` (`0-9,207`) in turn, or
    drawn of all, those first that calibration has not seen; so many at once as `batch_size`. It is
    given their tokens, or those of `images`, which
    `labels` then has a class for each of. `features` is an ONNX graph from pictures to features,
    for a Frechet distance. `skip_engine` leaves engines out: the Q/DQ graphs alone are measured.
    """

    images: str | None = None
    feeds: str | None = None
    labels: str | None = None
    samples: int = 32
    seed: int = 1000
    batch_size: int = 4
    features: str | None = None
    size: int = 256
    gates: tuple[str, ...] = ()
    rounds: int = 20
    warmup: int = 3
    threads: int = 0
    skip_engine: bool = False

    def __post_init__(self) -> None:
        require_at_least(
            self, size=1, rounds=0, warmup=0, threads=0, samples=1, seed=0, batch_size=1
        )
        require_at_most(self, samples=MOST_SAMPLES, batch_size=MOST_SAMPLES, size=MOST_SIZE)
        require_at_most(self, seed=MOST_SEED, rounds=MOST_SAMPLES, warmup=MOST_SAMPLES)
        require_at_most(self, threads=MOST_THREADS)
        require_not_empty(self, "images", "feeds", "labels", "features")


class Recipe(Options, frozen=True, kw_only=True):
    """Everything `arvg-trt run` needs; `graphs` are the ONNX files of the model `onnx`."""

    model: str
    workspace: str
    name: str
    checkpoint: str | None = None
    weights: Literal["ema", "model"] | None = None
    graphs: tuple[str, ...] = ()
    calibrate: CalibrateOptions = CalibrateOptions()
    quantize: QuantizeOptions = QuantizeOptions()
    build: tuple[BuildOptions, ...] = (BuildOptions(),)
    validate: ValidateOptions = ValidateOptions()
    schema: Literal["arvg-trt/recipe/v1"] = "arvg-trt/recipe/v1"

    def __post_init__(self) -> None:
        check_name(self.name)
        require_not_empty(self, "model", "workspace", "checkpoint", "graphs")


def with_implied(given: Mapping[str, Any]) -> dict[str, Any]:
    """Quantize options as they are written, with the activation bits that their method implies."""
    implied = given.get("quantize_method") in WEIGHT_ONLY and not given.get("integer_exponents")
    unsaid = given.get("activation_bits") is None
    return {**given, "activation_bits": FLOAT_BITS} if implied and unsaid else dict(given)


def check_name(name: str) -> None:
    """Raises ValueError for a name of a quantization that is no plain folder name, or reserved."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"name {name[:300]!r} is not letters, digits, '.', '_' and '-'")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"name {name[:40]}... has {len(name)} characters, at most {LONGEST_NAME}")


def with_changes(options: OptionsT, **changes: object) -> OptionsT:
    """`options` with the command line's values over it; None leaves a value as it is.

    Raises:
        RecipeError: values that do not go together.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return msgspec.convert(
            {**msgspec.to_builtins(options), **given}, type(options), strict=True
        )
    except msgspec.ValidationError as error:
        raise RecipeError(str(error)) from error
