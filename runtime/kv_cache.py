"""Keep keys and values of the tokens so far in the memory of the session that makes them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, GenerationError
from ..workspace.verify import GENERATOR_FILE
from .sessions.session import DeviceValue, Session
from .spec import KvType

PAST = re.compile(r"past_(key|value)\.(\d+)")
CACHE = re.compile(r"(past|present)_(key|value)\.(\d+)")
PRESENT = "present_"
KV_SCALES = "arvg_trt.kv_scales"  # key of a step graph's metadata: the sha256 of its scales
SESSION_TYPES: dict[KvType, str] = {"fp8": "float8e4m3fn"}  # of those that numpy names otherwise

AGAIN = "quantize the model again: its graphs are of several quantizations"


class KvCache:
    """Hold the `past_key.i` and `past_value.i` of a step graph, [rows, heads, P, head_dim] each.

    A step's `present_*` outputs become the next step's `past_*` inputs as they are: the values
    never leave the session's memory.
    """

    def __init__(self, values: Mapping[str, DeviceValue], rows: int, length: int) -> None:
        self._values = dict(values)
        self.rows = rows
        self.length = length

    @classmethod
    def empty(
        cls, session: Session, shape: tuple[int, int, int, int], kind: KvType = "float32"
    ) -> KvCache:
        """Return the cache before the first step, P = 0.

        A first step of fixed shapes has no such inputs. `shape` is [rows, heads, 0, head_dim].
        """
        names = past_names(session.inputs)
        if kind in SESSION_TYPES:
            nothing: NDArray[np.generic] = np.zeros(shape, np.uint8)
            values = {name: session.to_device(nothing, SESSION_TYPES[kind]) for name in names}
        else:
            nothing = np.zeros(shape, kind)
            values = {name: session.to_device(nothing) for name in names}
        return cls(values, shape[0], 0)

    def feeds(self, rows: int) -> Mapping[str, DeviceValue]:
        """Return the inputs of a step of `rows` rows.

        Raises:
            GenerationError: the cache is of another batch.
        """
        if rows != self.rows:
            raise GenerationError(
                f"the KV cache holds {self.rows} rows after {self.length} tokens, the step has "
                f"{rows}",
                do="start every batch with an empty cache",
            )
        return self._values

    def after(self, outputs: Mapping[str, DeviceValue], tokens: int) -> KvCache:
        """Return the cache after a step of `tokens` tokens that gave `outputs`."""
        # Without a pattern: this runs for every cache of every step.
        values = {past_name(name): v for name, v in outputs.items() if name.startswith(PRESENT)}
        return KvCache(values, self.rows, self.length + tokens)


def past_names(inputs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in inputs if PAST.fullmatch(name))


def past_name(present: str) -> str:
    return "past_" + present.removeprefix(PRESENT)


def require_caches(
    session: Session,
    depth: int,
    kind: KvType = "float32",
    *,
    first: bool = False,
    scales: str | None = None,
) -> None:
    """Raise BundleError unless each of `depth` blocks has a key and a value cache.

    Caches are of type `kind`, and stored with the `scales` of this sha256. A graph that only is the
    `first` step takes none.
    """
    blocks = [f"{kind}.{i}" for kind in ("key", "value") for i in range(depth)]
    wanted = set() if first else {f"past_{name}" for name in blocks}
    absent = [
        *sorted(wanted - set(session.inputs)),
        *sorted({f"present_{name}" for name in blocks} - set(session.outputs)),
    ]
    if absent or len(past_names(session.inputs)) != len(wanted):
        named = f"lacks {', '.join(absent[:4])}" if absent else f"has caches beyond {depth} blocks"
        raise BundleError(named, where=str(session.path), do="export the model again")
    names = [name for name in (*session.inputs, *session.outputs) if CACHE.fullmatch(name)]
    wanted_type = SESSION_TYPES.get(kind, kind)
    odd = [name for name in names if session.types[name] != wanted_type]
    if odd:
        raise BundleError(
            f"{odd[0]} is {session.types[odd[0]]}, not {wanted_type}",
            where=str(session.path),
            do="export the model again" if scales is None else AGAIN,
        )
    if session.metadata.get(KV_SCALES) != scales:
        raise BundleError(
            f"stores keys and values with other scales than {GENERATOR_FILE} beside it says",
            where=str(session.path),
            do=AGAIN,
        )
