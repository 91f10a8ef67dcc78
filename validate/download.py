"""Say what a device downloads of a quantization, and in which form, as reports have it."""

from __future__ import annotations

from typing import Literal

import msgspec

from .formats import size

RUNS_NOTE = (
    "What runs: the graphs that a session opens, with the weights they read. TensorRT engines are "
    "listed with the engines. "
)
PACKED_NOTE = (
    "A packed download is what `bundle --packed` ships of an engine, with all graphs of its "
    "folder: it expands once, to the same bytes, where it is opened. "
)
WEIGHTS_NOTE = (
    "weights.safetensors has the quantized weights in their own bits, with their scales and what "
    "stays in high precision"
)
SIZE_NOTE = (
    f"{RUNS_NOTE}{PACKED_NOTE}{WEIGHTS_NOTE}. Constants that arithmetic replaces, such as an FSQ "
    "table, do not count among the weights."
)
GENERATOR_SIZE_NOTE = (
    f"{RUNS_NOTE}Those that make images count, with the image decoder. "
    f"{PACKED_NOTE}{WEIGHTS_NOTE}, beside the FP32 weights of the quantized graphs."
)
# Parts of a packed download, in the order of tables.
PARTS = {
    "few_bits": "weights in few bits",
    "high_precision": "what stays in high precision",
    "graphs": "graphs",
    "index": "index and settings",
    "engines": "engines",
}


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """Count what a device gets of a candidate, by parts, and what that takes once it is expanded.

    ``packed`` graphs expand on the device; plans of TensorRT are what they are. The manifest and
    the documents of a bundle are not counted.
    """

    candidate: str
    form: Literal["packed", "engine"]
    parts: dict[str, int]
    expanded_bytes: int

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def title(self) -> str:
        """Return what this is called in figures and tables."""
        return "Packed download" if self.form == "packed" else "Download"

    @property
    def line(self) -> str:
        """Return what a terminal calls it."""
        if self.form == "engine":
            return "engine files"
        if self.candidate == "engine":
            return "packed download (`bundle --packed`)"
        return "packed Q/DQ graphs (no engine was run; `bundle --packed` ships the engine's)"


def largest_part(download: Download) -> str:
    """Return which part takes most of a download, so that a ratio does not hide it."""
    part, count = max(download.parts.items(), key=lambda each: each[1])
    return f"{PARTS.get(part, part)} {size(count)} of it"
