"""Infer the layout of a tokenizer of this lineage from its checkpoint's shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...errors import ExportError
from ...export.checkpoint.strict import count_items, require_needed
from .convolution import NORM_GROUPS
from .vq import IMAGE_CHANNELS


@dataclass(frozen=True, slots=True)
class Layout:
    """Describe encoder and decoder: first width, widths of resolutions in it, blocks of each."""

    channels: int
    channels_mult: tuple[int, ...]
    num_res_blocks: int


def infer_layout(
    tensors: Mapping[str, Tensor],
    needed: Mapping[str, int],
    what: str,
    where: str,
    do: str,
    levels: str = "down",
    blocks: str = "block",
) -> Layout:
    """Return the layout of an encoder whose blocks are `encoder.LEVELS.i.BLOCKS.k`.

    `needed` gives the keys, with their axes, that the rest of the configuration is read from;
    `what` and `do` are for the message.

    Raises:
        ExportError: a key is missing, or widths that the norms cannot have.
    """
    count = count_items(tensors, rf"encoder\.{levels}\.(\d+)\.")
    lasts = [f"encoder.{levels}.{i}.{blocks}.0.conv2.weight" for i in range(count)]
    require_needed(tensors, {**needed, **dict.fromkeys(lasts, 4)}, what, where)
    channels, colours = tensors["encoder.conv_in.weight"].shape[:2]
    widths = [tensors[key].shape[0] for key in lasts]
    require_widths(channels, widths, colours, where, do)
    return Layout(
        channels=channels,
        channels_mult=tuple(width // channels for width in widths),
        num_res_blocks=count_items(tensors, rf"encoder\.{levels}\.0\.{blocks}\.(\d+)\."),
    )


def require_widths(channels: int, widths: Sequence[int], colours: int, where: str, do: str) -> None:
    """Raise ExportError for widths that norms cannot have, or images not in three colours."""
    if not channels or any(w % NORM_GROUPS or w % channels for w in (channels, *widths)):
        raise ExportError(
            f"has widths {[channels, *widths]}, not multiples of {NORM_GROUPS} and of the first",
            where=where,
            do=do,
        )
    if colours != IMAGE_CHANNELS:
        raise ExportError(f"takes {colours} channels, not {IMAGE_CHANNELS}", where=where, do=do)
