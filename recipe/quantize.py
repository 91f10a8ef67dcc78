"""Define options of quantization: formats of weights and inputs, and how scales are found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from ..numerics.scheme import BLOCK_BITS, BLOCKS, CacheType, Rounding, Smoothing
from .base import COUNT, Options, require_not_empty
from .descriptions import Groups, Range, require_in_range, says

MAX_MEMORY = 2 * 2**30  # bytes of Hessians at a time
FLOAT_BITS = 32
USUAL_BITS = 8
MACHINE_SUFFIX = ".json"  # of a file that describes a machine; other targets are names
BITS = Range(2, 8, besides=(FLOAT_BITS,))
QuantizeMethod = Literal[
    "per_tensor", "log_quantization", "per_channel", "per_channel_log", "blockwise", "fp8"
]
LOG_METHODS = ("log_quantization", "per_channel_log")
# Weight-only methods: their inputs stay in high precision without saying so.
WEIGHT_ONLY = ("per_tensor", "blockwise", *LOG_METHODS)


class QuantizeOptions(Options, frozen=True, kw_only=True):
    """Say which formats the sites of a model get, and how their scales are found."""

    GROUPS: ClassVar[Groups] = {
        "Formats": (
            "encoder_bits",
            "decoder_bits",
            "weight_bits",
            "quantize_method",
            "activation_bits",
            "block_size",
            "adaln_bits",
            "integer_exponents",
        ),
        "Scales and ranges": ("smoothing", "shift", "token_wise", "clip_power", "per_tensor"),
        "Rounding of weights": ("tap_sums", "data_aware", "rounding", "bias_correction"),
        "Attention": ("attention_inputs", "attention", "attention_bits", "kv_cache"),
        "Sites": ("exclude", "include", "float_inputs", "plan"),
        "Target": ("plan_for", "plan_batch", "narrow"),
    }

    encoder_bits: Annotated[
        int, says("Bits of a tokenizer's encoder weights; 32 for high precision.", BITS)
    ] = 8
    decoder_bits: Annotated[
        int | None,
        says(
            "Bits of a tokenizer's decoder weights; 32 for high precision. Of a generator's image "
            "decoder, whose inputs then have 8 bits, or stay float beside activation_bits = 32. "
            "Without it, 8, and 32 for a generator's.",
            BITS,
        ),
    ] = None
    weight_bits: Annotated[
        int | None,
        says(
            "Bits of the weights of every graph, over the two above; of a generator those of the "
            "transformer. Without it, 8.",
            BITS,
        ),
    ] = None
    quantize_method: Annotated[QuantizeMethod, says("Format of the weights.")] = "per_channel"
    activation_bits: Annotated[
        int,
        says(
            "Bits of the inputs; 32 for weight-only, which weight-only methods imply.",
            BITS,
        ),
    ] = 8
    smoothing: Annotated[
        Smoothing,
        says(
            "SmoothQuant exponent, 0 for none. search: the scaling, or none, with the least "
            "error on samples that it was not fitted to. gps: gain-projected scales of a "
            "generator; in other models a candidate of the search, at linears and attention "
            "projections. A generator's search runs the samples about three times as often.",
            Range(0, 1),
        ),
    ] = "search"
    shift: Annotated[
        bool,
        says("Shift one-sided ranges exactly, or each channel's where that gains a decibel."),
    ] = True
    token_wise: Annotated[
        bool,
        says(
            "Give a generator's inputs a static scale per token, and those of custom graphs "
            "with sequences of one length where that gains 3 dB."
        ),
    ] = True
    clip_power: Annotated[
        Literal[0, 2, 4] | None,
        says(
            "Clips minimise the sum of absolute errors to this power; 0: no clips, no pass to "
            "compare any. Without it, 4, and 2 for a generator."
        ),
    ] = None
    attention_inputs: Annotated[
        bool, says("Also round the inputs of the projections of a convolutional attention.")
    ] = False
    tap_sums: Annotated[
        bool,
        says(
            "Round the elements of a kernel so that their sum stays (per_channel, 4 bits and up)."
        ),
    ] = True
    data_aware: Annotated[
        bool,
        says(
            "Weight the search of per-channel weight scales by the energy of the inputs: better "
            "at 2 and 3 bits on a logarithmic grid, worse at 4."
        ),
    ] = False
    rounding: Annotated[
        Rounding,
        says(
            "How weights are rounded; gptq: their errors compensate each other on the "
            "calibration data."
        ),
    ] = "nearest"
    bias_correction: Annotated[
        bool, says("Keep the mean outputs that the unquantized model has on the calibration data.")
    ] = False
    block_size: Annotated[
        Literal[32, 64, 128], says("Input channels per scale of blockwise weights.")
    ] = 64
    adaln_bits: Annotated[
        int | None,
        says(
            "Weight bits of the linears that make a generator's modulation, whose inputs then"
            " stay in high precision. Without it, as all others.",
            BITS,
        ),
    ] = None
    integer_exponents: Annotated[
        bool, says("Make logarithmic weights powers of two, of 2 to 5 bits, beside FP8 inputs.")
    ] = False
    attention: Annotated[
        Literal["float", "fp8", "int8"],
        says("Format of a generator's queries, keys, values and softmax."),
    ] = "float"
    attention_bits: Annotated[
        int | None,
        says("Bits of these beside int8, in an INT8 kernel. Without it, 8.", Range(2, 8)),
    ] = None
    kv_cache: Annotated[
        CacheType | None,
        says(
            "Type in which a generator keeps keys and values between steps; int8 and fp8 with "
            "static scales from calibration. Without it, that of the export."
        ),
    ] = None
    per_tensor: Annotated[
        tuple[str, ...],
        says("Give sites that match this pattern one scale, although token_wise is set."),
    ] = ()
    exclude: Annotated[
        tuple[str, ...],
        says(
            "Leave sites that match this pattern in high precision. The scales of all others are "
            "searched again; a plan keeps its own."
        ),
    ] = ()
    include: Annotated[
        tuple[str, ...],
        says("Also quantize sites that match this pattern and are left out by default."),
    ] = ()

    float_inputs: Annotated[
        tuple[str, ...],
        says("Quantize the weights alone of sites that match this pattern."),
    ] = ()
    plan: Annotated[
        str | None,
        says(
            "A plan.json that `quantize`, `search` or `diagnose` wrote, or an edited one: it says "
            "the formats of all sites, in place of the options that choose them."
        ),
    ] = None
    plan_for: Annotated[
        str | None,
        says(
            "Plan for this GPU, or the machine in a file of `probe`: linears whose time is their "
            "weight's bytes get weight-only formats, and none that gains nothing is rounded."
        ),
    ] = None
    plan_batch: Annotated[int, says("Images at a time on that target.", COUNT)] = 1
    narrow: Annotated[
        Literal["int8", "int4"],
        says("Type of the weights of such linears; int4 in blocks costs more accuracy."),
    ] = "int8"

    def __post_init__(self) -> None:
        require_in_range(self)
        self.check_formats()
        require_not_empty(self, "plan", "plan_for")
        if self.plan_for is not None and self.activation_bits == FLOAT_BITS:
            raise ValueError("plan_for chooses which inputs are quantized: none are")

    def recorded(self) -> dict[str, Any]:
        """Return what a manifest holds of the options: not where a plan lies, which is an input."""
        return {k: v for k, v in msgspec.to_builtins(self).items() if k != "plan"}

    def check_formats(self) -> None:
        """Raise ValueError for a method, bits and options that do not go together."""
        if self.block_size not in BLOCKS:
            raise ValueError(f"block_size must be one of {BLOCKS}, got {self.block_size}")
        log = self.quantize_method in LOG_METHODS
        if self.integer_exponents and not log:
            raise ValueError(f"integer_exponents goes with {' or '.join(LOG_METHODS)}")
        if self.integer_exponents and self.activation_bits not in (8, FLOAT_BITS):
            raise ValueError(f"beside integer exponents inputs are FP8 (8) or float ({FLOAT_BITS})")
        if self.attention_bits is not None and self.attention != "int8":
            raise ValueError('attention_bits goes with attention = "int8"')
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


def machine_file(plan_for: str | None) -> Path | None:
    """Return the file that describes a machine to plan for; None for a name of a GPU, or none."""
    return Path(plan_for) if plan_for and plan_for.endswith(MACHINE_SUFFIX) else None


def with_implied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return quantize options as written, with the activation bits that their method implies."""
    implied = values.get("quantize_method") in WEIGHT_ONLY and not values.get("integer_exponents")
    unsaid = values.get("activation_bits") is None
    return {**values, "activation_bits": FLOAT_BITS} if implied and unsaid else dict(values)
