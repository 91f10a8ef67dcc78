"""Say in one line what a recipe does: the formats, how they are chosen, and the back ends."""

from __future__ import annotations

from .quantize import FLOAT_BITS, USUAL_BITS, QuantizeOptions
from .recipe import Recipe

HALF_BITS = 16  # what is not quantized runs in half precision where a GPU has it
BACKENDS = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "cpu": "the faster of ONNX Runtime and OpenVINO",
    "tensorrt_rtx": "TensorRT for RTX",
}
SCALINGS = {"search": "best scaling of each site", "gps": "gain-projected scales (GPS)"}
LOGARITHMIC = ("log_quantization", "per_channel_log")


def summarize(recipe: Recipe) -> str:
    """Return what a recipe quantizes to, by which method, as one line."""
    options = recipe.quantize
    if options.plan is not None:
        return ", ".join((f"formats of {options.plan}", *method_of(options)))
    parts = [formats_of(options)]
    if options.attention != "float":
        parts.append(f"attention in {options.attention.upper()}")
    if options.kv_cache is not None:
        parts.append(f"keys and values in {options.kv_cache.upper()}")
    if options.weight_bits is not None and options.decoder_bits not in (None, FLOAT_BITS):
        parts.append(f"decoder in {options.decoder_bits} bits")
    if options.exclude:
        parts.append(f"{', '.join(options.exclude)} in high precision")
    return ", ".join((*parts, *method_of(options)))


def method_of(options: QuantizeOptions) -> list[str]:
    """Return how scales are chosen and weights are rounded, where that is to be said."""
    parts = [] if options.activation_bits == FLOAT_BITS else [scaling_of(options)]
    return [*parts, *(["GPTQ"] if options.rounding == "gptq" else [])]


def formats_of(options: QuantizeOptions) -> str:
    """Return weights and inputs as the field writes them: W8A8, W4A16 in blocks of 32, FP8."""
    if options.quantize_method == "fp8":
        return "FP8"
    if options.weight_bits is not None:
        bits = [options.weight_bits]
    else:
        bits = [*dict.fromkeys((options.encoder_bits, options.decoder_bits or USUAL_BITS))]
    inputs = options.activation_bits
    text = "/".join(f"W{weight}A{HALF_BITS if inputs == FLOAT_BITS else inputs}" for weight in bits)
    if options.quantize_method == "blockwise":
        return f"{text} in blocks of {options.block_size}"
    return f"{text}, logarithmic" if options.quantize_method in LOGARITHMIC else text


def scaling_of(options: QuantizeOptions) -> str:
    """Return how channel scales are chosen."""
    if options.smoothing in SCALINGS:
        return SCALINGS[str(options.smoothing)]
    return f"SmoothQuant {options.smoothing}" if options.smoothing else "no channel scales"


def backends_of(recipe: Recipe) -> str:
    """Return the back ends that engines are built for, with their targets."""
    found = []
    for build in recipe.build:
        name = BACKENDS.get(build.backend, "TensorRT")
        found.append(f"{name} ({', '.join(build.targets)})" if build.targets else name)
    return ", ".join(found)
