"""Define what a session is: one graph that runs on one device, whatever library runs it.

Loops keep what one run gives the next as `DeviceValue`s in the session's own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, bounded

Array = NDArray[np.generic]
MOST_NAMES = 8
# Words by which both libraries report an index beyond a table.
OUTSIDE_SIGNS = ("out of data bounds", "out of bounds", "out of range")


class DeviceValue(Protocol):
    """Hold a tensor in a session's memory; `numpy` brings it to the host."""

    def shape(self) -> Sequence[int]: ...

    def numpy(self) -> Array: ...


class Session(Protocol):
    """Run one graph; `run` takes and returns arrays by name."""

    @property
    def path(self) -> Path:
        """Return the graph's file."""

    @property
    def device(self) -> str:
        """Return the provider that was asked for, such as `CUDAExecutionProvider`."""

    @property
    def memory(self) -> str:
        """Return where values are: `cpu` or `cuda`."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...

    @property
    def shapes(self) -> Mapping[str, Sequence[object]]:
        """Return the shapes of inputs and outputs; a dynamic size is a text or None."""

    @property
    def types(self) -> Mapping[str, str]:
        """Return the types of inputs and outputs by numpy's names."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return what the graph says of itself."""

    @property
    def fallback(self) -> str | None:
        """Return what runs on the CPU and was to run on the GPU, and why; None: nothing."""

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Return the named outputs (default: all) of feeds by input name.

        Raises:
            BundleError: feeds that the graph does not take.
            OutOfMemory: they do not fit.
        """

    def to_device(self, array: Array, kind: str | None = None) -> DeviceValue:
        """Return the array in the session's memory; on the CPU without a copy.

        With a `kind`, by ONNX's name of a type that numpy has not, an empty array of that type.
        """

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        """Run like `run` with all outputs, which stay in the session's memory.

        Those named in `host` come to the host once, as part of the run: their `numpy` is no copy.
        """


OpenSession = Callable[[Path, int], Session]


def shape_of(value: Array | DeviceValue) -> Sequence[int]:
    return value.shape if isinstance(value, np.ndarray) else value.shape()


def refusal(
    session: Session, library: str, reason: str, feeds: Mapping[str, Array | DeviceValue]
) -> BundleError:
    """Return the error for feeds that a graph did not take; it says what the graph takes."""
    given = [f"{name} {list(shape_of(value))}" for name, value in feeds.items()]
    shapes = bounded(given, "inputs", MOST_NAMES) or "no feeds"
    wanted = [name for name, value in feeds.items() if not fits(session, name, value)]
    do = "check the input's shape and type against the graph"
    if wanted:
        taken = [taken_text(session, name) for name in wanted]
        reason = f"the graph takes {bounded(taken, 'inputs', MOST_NAMES)}"
        do = "give it that shape and type"
        sides = {session.shapes[name][-1] for name in wanted if is_image(session.shapes[name])}
        if len(sides) == 1:
            do += f"; of images: --size {sides.pop()}"
    elif any(sign in reason for sign in OUTSIDE_SIGNS):
        do = "check the values: the graph looks one up that lies beyond its table"
    return BundleError(f"{library} refused {shapes}: {reason}", where=str(session.path), do=do)


def fits(session: Session, name: str, value: Array | DeviceValue) -> bool:
    """Return whether a feed has the sizes, and as an array the type, that the graph declares."""
    shape, wanted = shape_of(value), session.shapes.get(name)
    if wanted is None or name not in session.inputs:
        return True
    if len(shape) != len(wanted):
        return False
    if isinstance(value, np.ndarray) and str(value.dtype) != session.types[name]:
        return False
    pairs = zip(shape, wanted, strict=True)
    return all(own == size for own, size in pairs if isinstance(size, int))


def taken_text(session: Session, name: str) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in session.shapes[name])
    return f"{name} [{sizes}] {session.types[name]}"


def is_image(shape: Sequence[object]) -> bool:
    """Return whether a shape is that of square images of one size, [N, C, S, S]."""
    return len(shape) == 4 and isinstance(shape[-1], int) and shape[-1] == shape[-2]


def fallbacks(sessions: Iterable[Session]) -> tuple[str, ...]:
    """Return what runs on the CPU and was to run on the GPU, each reason with its graphs."""
    graphs: dict[str, list[str]] = {}
    for each in sessions:
        if each.fallback:
            graphs.setdefault(each.fallback, []).append(each.path.stem)
    return tuple(f"{names_text(names)}: {reason}" for reason, names in graphs.items())


def names_text(names: Sequence[str]) -> str:
    """Return up to three names; of more, the first and how many there are beside it."""
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more graphs"


class SessionObserver:
    """Pass everything on to another session; what watches or changes its runs is derived."""

    def __init__(self, session: Session) -> None:
        self._observed = session
        self.path = session.path
        self.device, self.memory = session.device, session.memory
        self.inputs, self.outputs = session.inputs, session.outputs
        self.shapes, self.types = session.shapes, session.types
        self.metadata, self.fallback = session.metadata, session.fallback

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return self._observed.run(feeds, outputs)

    def to_device(self, array: Array, kind: str | None = None) -> DeviceValue:
        return self._observed.to_device(array, kind)

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        return self._observed.run_on_device(feeds, host)
