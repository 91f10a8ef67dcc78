"""Hold tensors of OpenVINO without copies, each for as long as somebody reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov

from .session import Array, DeviceValue


class Lease:
    """Keep a request from being run again while a value of its last run is alive."""

    __slots__ = ("_idle", "_request")

    def __init__(self, request: ov.InferRequest, idle: list[ov.InferRequest]) -> None:
        self._request, self._idle = request, idle

    def __del__(self) -> None:
        self._idle.append(self._request)


class OutputValue:
    """Hold an output of a run in the memory of its request."""

    __slots__ = ("_lease", "tensor")

    def __init__(self, tensor: ov.Tensor, lease: Lease) -> None:
        self.tensor, self._lease = tensor, lease

    def shape(self) -> Sequence[int]:
        return tuple(self.tensor.shape)

    def numpy(self) -> Array:
        """Return a view of the tensor, which keeps its request from running again."""
        view: Array = self.tensor.data
        return np.asarray(LeasedMemory(view, self._lease)) if view.size else view.copy()


class LeasedMemory:
    """Give numpy an array's memory: what is made of it keeps this object, and so the lease."""

    __slots__ = ("__array_interface__", "_kept")

    def __init__(self, array: Array, lease: Lease) -> None:
        self.__array_interface__ = array.__array_interface__
        self._kept = (array, lease)


class SharedArray:
    """Hold an array as a tensor without a copy."""

    __slots__ = ("_array", "tensor")

    def __init__(self, array: Array) -> None:
        self._array = array
        self.tensor = ov.Tensor(array, shared_memory=True)

    def shape(self) -> Sequence[int]:
        return self._array.shape

    def numpy(self) -> Array:
        return self._array


def contiguous(value: Array | DeviceValue) -> Array | DeviceValue:
    """Return a feed whose memory OpenVINO can read as it lies: an array in C order."""
    return np.asarray(value, order="C") if isinstance(value, np.ndarray) else value


def tensor_of(value: Array | DeviceValue) -> ov.Tensor:
    """Return a feed as a tensor that shares an array's memory, which the caller keeps."""
    if isinstance(value, np.ndarray):
        return ov.Tensor(value, shared_memory=True)
    assert isinstance(value, (OutputValue, SharedArray)), "a value of another back end"
    return value.tensor
