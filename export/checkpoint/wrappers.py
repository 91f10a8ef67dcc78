"""Take a model's tensors out of what trainers and wrappers of modules put round them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from ...errors import ExportError, bounded

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "trainer")
# The parts of a trainer's snapshot, which together are the checkpoint.
PARTS = ("var_wo_ddp", "vae_local")
# Averaged weights, under the names that trainers give them beside the last ones.
AVERAGES = ("ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema")
# Prefixes that torch.compile, FSDP and checkpointing add to the names of wrapped modules.
WRAPPED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# The prefix of DistributedDataParallel and AveragedModel, only at the beginning.
LEADING = re.compile(r"(?:module\.)+")
AVERAGED_COUNT = "n_averaged"  # a buffer of AveragedModel

Weights = Literal["ema", "model"]


def other(weights: Weights) -> Weights:
    return "model" if weights == "ema" else "ema"


def unwrap(loaded: object, path: Path, weights: Weights, taken: list[str]) -> dict[str, Tensor]:
    """Return the state_dict inside the usual wrappers of trainers, each at most once.

    VAR's trainer keeps the transformer and the VQVAE beside its optimizer; both are taken.
    """
    for _ in range(len(WRAPPERS) + len(AVERAGES) + 1):
        if not isinstance(loaded, Mapping):
            break
        if loaded and all(isinstance(v, Tensor) for v in loaded.values()):
            return {str(k): v for k, v in loaded.items()}
        averaged = [key for key in AVERAGES if isinstance(loaded.get(key), Mapping)]
        parts = [loaded[key] for key in PARTS if isinstance(loaded.get(key), Mapping)]
        inner = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if averaged and (parts or inner):
            last = " and ".join(PARTS) if parts else inner[0]
            averages = f"the averaged weights, {averaged[0]}"
            took, left = (averages, last) if weights == "ema" else (last, averages)
            taken.append(f"{path.name}: takes {took}, not {left}")
        if averaged and (weights == "ema" or not (parts or inner)):
            require_one(averaged, path)
            average = loaded[averaged[0]]
            if parts:  # VAR's tokenizer is not trained with the transformer: it has no average
                average = {**loaded.get(PARTS[1], {}), **average}
            loaded = average
            continue
        if parts:
            loaded = {key: value for part in parts for key, value in part.items()}
            continue
        require_one(inner, path)
        if not inner:
            break
        loaded = loaded[inner[0]]
    expected = f"expected tensors by name, alone or under {', '.join((*WRAPPERS, *AVERAGES))}"
    raise ExportError(
        "holds no state_dict" if not taken else f"{taken[-1]}, but these are no tensors by name",
        where=str(path),
        do=expected if not taken else f"--weights {other(weights)}",
    )


def require_one(keys: Sequence[str], path: Path) -> None:
    """Raise ExportError for several state_dicts side by side."""
    if len(keys) > 1:
        raise ExportError(
            f"holds several state_dicts: {bounded(keys, 'keys', 8)}",
            where=str(path),
            do="save the one to use in a file of its own",
        )


def plain_names(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return tensors under the module's own names: without `module.`, without `_orig_mod.`.

    Raises:
        ExportError: two names become one.
    """
    wrapped = any(LEADING.match(WRAPPED.sub("", name)) for name in tensors)
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if wrapped and name == AVERAGED_COUNT:
            continue
        short = WRAPPED.sub("", name)
        leading = LEADING.match(short)
        short = short[leading.end() :] if leading else short
        if short in plain:
            raise ExportError(
                f"has {short} twice, once as {name}", where=str(path), do="save one of them"
            )
        plain[short] = tensor
    return plain
