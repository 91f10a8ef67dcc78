"""Load checkpoints strictly: every key has to be one of the model's, of its shape and kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...errors import ExportError

LISTED = 4
Model = TypeVar("Model", bound=nn.Module)
TOKENIZER_PREFIXES = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")


def split_parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of (transformer, tokenizer): their official names share no prefix."""
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, tensor in tensors.items():
        parts[name.startswith(TOKENIZER_PREFIXES)][name] = tensor
    return parts


def build_strictly(make: Callable[[], Model], tensors: Mapping[str, Tensor], where: str) -> Model:
    """Return a float32 model in eval mode with the tensors of a checkpoint.

    `make` is called on the meta device. float32 tensors are taken as they are: those of a mapped
    file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named).
    """
    with torch.device("meta"):
        model = make()
    load_strictly(model, tensors, where)
    return model


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give `model` the tensors themselves, not copies of them; floats become float32.

    float16 and bfloat16 convert exactly, float64 is rounded; float32 stays where it is, also in a
    mapped file. `model` may be on the meta device; it ends in eval mode, without gradients.

    Raises:
        ExportError: whatever `require_same_keys` refuses.
    """
    require_same_keys(model.state_dict(), tensors, where)
    wide = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    model.load_state_dict(wide, strict=True, assign=True)
    model.eval().requires_grad_(False)


def require_same_keys(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str
) -> None:
    """Refuse a checkpoint that is not exactly the model's.

    Raises:
        ExportError: keys that are missing, unexpected or misshapen, or that hold another kind of
            number (integers for floats, float8, complex); names the first few.
    """
    problems = [f"missing {k}" for k in expected.keys() - tensors.keys()]
    problems += [f"unexpected {k}" for k in tensors.keys() - expected.keys()]
    for key, wanted in expected.items():
        tensor = tensors.get(key)
        if tensor is None:
            continue
        if tensor.shape != wanted.shape:
            problems.append(f"{key} has shape {list(tensor.shape)}, not {list(wanted.shape)}")
        if wanted.is_floating_point() and not (tensor.is_floating_point() and tensor.itemsize > 1):
            problems.append(f"{key} holds {kind(tensor)}, not floats of 16 bits or more")
        if not wanted.is_floating_point() and tensor.dtype != wanted.dtype:
            problems.append(f"{key} holds {kind(tensor)}, not {kind(wanted)}")
    if problems:
        raise ExportError(
            listed(sorted(problems)), where=where, do="use the checkpoint of this model"
        )


def require_needed(
    tensors: Mapping[str, Tensor], needed: Mapping[str, int], what: str, where: str
) -> None:
    """Check that the keys that a configuration is read from exist, with their ranks.

    Raises:
        ExportError: it is not `what`; names the first keys that are absent or of another rank.
    """
    odd = [k for k, axes in needed.items() if k not in tensors or tensors[k].ndim != axes]
    if odd:
        raise ExportError(
            f"is not {what}: no {', '.join(odd[:LISTED])} of the right rank",
            where=where,
            do="check the model name, and that the file is complete",
        )


def require_constants(
    tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor], where: str
) -> None:
    """Check that the buffers of a checkpoint hold what the model computes with.

    Those whose values were not read are on the meta device, and pass.

    Raises:
        ExportError: a value that differs; names the key.
    """
    for name, wanted in constants.items():
        if not tensors[name].is_meta and not torch.equal(tensors[name].to(wanted.dtype), wanted):
            raise ExportError(
                f"{name} is not what this model computes with",
                where=where,
                do="no published model differs here",
            )


def count_items(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many values the first group of `pattern` has among the keys it matches."""
    return len({match.group(1) for key in tensors if (match := re.match(pattern, key))})


@contextmanager
def locating(where: str) -> Iterator[None]:
    """Add `where` to errors: a configuration does not know which file it came from."""
    try:
        yield
    except ExportError as error:
        raise ExportError(error.what, where=where, do=error.do) from error


def kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return "; ".join(problems[:LISTED]) + more
