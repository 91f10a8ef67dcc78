"""Tests of the memory rules of sessions on a device; the checking values only watch them.

The arithmetic is that of real sessions on the CPU. What a loop brings to the host, or puts into the
session's memory, is counted: on a GPU each of these is a copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.errors import BundleError
from arvg_trt.runtime.devices import this_device
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions import onnxruntime as sessions
from arvg_trt.runtime.sessions.open import fast_session
from arvg_trt.runtime.sessions.placement import CUDA, Placement
from arvg_trt.runtime.sessions.session import Array, DeviceValue, Session, SessionObserver
from arvg_trt.runtime.tokenizer import ImageTokenizer

from ..families.var.toy_var import DEPTH, SIDES, ToyVar


class CheckedValue:
    """Stand in for a value in a GPU's memory: bringing it to the host is counted."""

    def __init__(self, value: DeviceValue, name: str, copies: Counter[str]) -> None:
        self.value, self.name, self.copies = value, name, copies

    def shape(self) -> list[int]:
        return list(self.value.shape())

    def numpy(self) -> Array:
        self.copies[f"to host: {self.name}"] += 1
        return self.value.numpy()


class CheckedSession(SessionObserver):
    """Run a graph, and count what crosses between the host and the session's memory."""

    def __init__(self, session: Session, copies: Counter[str]) -> None:
        super().__init__(session)
        self._copies = copies

    def to_device(self, array: Array, kind: str | None = None) -> DeviceValue:
        self._copies["to device: by name of its own"] += 1
        return CheckedValue(super().to_device(array, kind), "put", self._copies)

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        fed: dict[str, Array | DeviceValue] = {}
        for name, value in feeds.items():
            if isinstance(value, CheckedValue):
                fed[name] = value.value
            else:
                self._copies[f"to device: {name}"] += 1
                fed[name] = value
        found = super().run_on_device(fed, host)
        self._copies.update(f"bound to host: {name}" for name in host)
        return {
            name: value if name in host else CheckedValue(value, name, self._copies)
            for name, value in found.items()
        }


def counted(copies: Counter[str]) -> Callable[[Path, int], Session]:
    return lambda path, threads: CheckedSession(fast_session(path, threads), copies)


def test_a_var_keeps_caches_condition_and_latent_on_the_device(tmp_path: Path) -> None:
    """Only logits of every step come to the host, and tokens and positions leave it."""
    folder = ToyVar().save(tmp_path / "export")
    copies: Counter[str] = Counter()
    checked = Generator.open(folder, session=counted(copies), threads=1, verify=False)
    made = checked.generate([0, 1, 2], seed=5)
    plain = Generator.open(folder, device="cpu", threads=1, verify=False)
    assert np.array_equal(made.images, plain.generate([0, 1, 2], seed=5).images)
    steps = len(SIDES)
    put = copies.pop("to device: by name of its own")
    assert put <= 3 * (2 * DEPTH + 1)  # empty caches, when opened and by batch, and f_hat
    assert copies == {
        "bound to host: logits": steps,
        "to device: position_ids": steps,
        "to device: labels": 1,
        "to device: tokens": steps,
        "to host: f_hat_next": 1,
    }


def test_a_rar_keeps_its_caches_on_the_device(tiny_rar) -> None:  # type: ignore[no-untyped-def]
    copies: Counter[str] = Counter()
    opened = Generator.open(tiny_rar.folder, session=counted(copies), threads=1, verify=False)
    opened.generate([1], seed=0)
    steps = copies["bound to host: logits"]
    assert steps == opened.spec.steps
    assert not [name for name in copies if "key" in name or "value" in name]
    assert not [name for name in copies if name.startswith("to host")]


def test_a_tokenizers_latent_goes_from_the_codebook_to_the_decoder(tiny_tokenizer) -> None:  # type: ignore[no-untyped-def]
    copies: Counter[str] = Counter()
    folder = tiny_tokenizer.folder
    checked = ImageTokenizer.open(folder, session=counted(copies), threads=1, verify=False)
    plain = ImageTokenizer.open(folder, device="cpu", threads=1, verify=False)
    side = plain.image_size or 2 * plain.stride
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
    tokens, _ = plain.encode(image)
    assert np.array_equal(checked.decode(tokens), plain.decode(tokens))
    assert copies == {"to device: indices": 1, "bound to host: image": 1}


class Binding:
    """Stand in for ONNX Runtime's binding: record what is bound where, and run nothing."""

    def __init__(self) -> None:
        self.inputs: dict[str, object] = {}
        self.outputs: dict[str, tuple[str, int]] = {}

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.inputs[name] = f"copy of {array.tolist()}"

    def bind_ortvalue_input(self, name: str, value: object) -> None:
        self.inputs[name] = value

    def bind_output(self, name: str, memory: str, index: int) -> None:
        self.outputs[name] = (memory, index)

    def get_outputs(self) -> list[str]:
        return [f"value of {name}" for name in self.outputs]


class BindingSession:
    """Stand in for an opened graph of a cached step."""

    def __init__(self) -> None:
        self.binding = Binding()

    def io_binding(self) -> Binding:
        return self.binding

    def run_with_iobinding(self, binding: Binding) -> None:
        assert binding is self.binding


def test_outputs_are_bound_to_the_gpu_but_those_for_the_host() -> None:
    """A value that is on the GPU is bound as it is; an array is copied there by the binding."""
    session = sessions.OnnxRuntimeSession.__new__(sessions.OnnxRuntimeSession)
    session.placement, session._place = Placement(CUDA, 1), ("cuda", 1)
    session.outputs = ("logits", "present_key.0")
    session._session = BindingSession()
    kept = object()
    found = session.run_on_device(
        {"position_ids": np.arange(3), "past_key.0": kept}, host=("logits",)
    )
    binding = session._session.binding
    assert binding.inputs == {"position_ids": "copy of [0, 1, 2]", "past_key.0": kept}
    assert binding.outputs == {"logits": ("cpu", 0), "present_key.0": ("cuda", 1)}
    assert [str(value) for value in found.values()] == [
        "value of logits",
        "value of present_key.0",
    ]


@pytest.mark.skipif(bool(this_device().gpus), reason="this machine has a GPU")
def test_without_the_cuda_provider_arrays_are_fed_and_values_are_refused(tmp_path: Path) -> None:
    """The plug-in for RTX alone leaves a machine so; the refusal is ONNX Runtime's own."""
    session = fast_session(ToyVar().save(tmp_path) / "decoder.onnx", 1)
    assert isinstance(session, sessions.OnnxRuntimeSession)
    (name,), (output,) = session.inputs, session.outputs
    shape = [n if isinstance(n, int) else 2 for n in session.shapes[name]]
    latent = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    wanted = session.run({name: latent})[output]
    session._place = ("cuda", 0)
    turned = np.asfortranarray(latent)  # its values lie in another order
    found = session.run_on_device({name: turned}, host=(output,))[output]
    assert np.array_equal(found.numpy(), wanted)
    with pytest.raises(BundleError) as caught:
        session.to_device(latent)
    text = str(caught.value)
    assert "\n" not in text and str(session.path) in text
    assert text.endswith("(install CUDA 13 and cuDNN 9, or use --device cpu)")
