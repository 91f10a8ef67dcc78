"""The bytes of a generator's caches, and of a batch of its images, are measured."""

from __future__ import annotations

from pathlib import Path

from arvg_trt.runtime.generator import Generator
from arvg_trt.validate.generation_memory import generation_memory, item_bytes

from ..quantize.kv_cache.cached import generator_with_cache

LABELS = [0, 1, 2]


def test_int8_caches_are_a_quarter_of_float_ones(tiny_rar, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    exact = generation_memory(tiny_rar.folder, LABELS, 1)
    spec = Generator.open(tiny_rar.folder, verify=False, device="cpu").spec
    tokens = spec.length + 1  # cls and the class come first, the last token is not stored
    # Two rows an image: with its class, and without one.
    wanted = 2 * 2 * spec.depth * spec.width * tokens * 4  # type: ignore[attr-defined]
    assert (exact.images, exact.cache) == (3, wanted)
    assert exact.peak is None or 0 <= exact.peak < 1 << 30
    folder = generator_with_cache(tiny_rar.folder, tmp_path / "q", "int8")
    assert generation_memory(folder, LABELS, 1).cache * 4 == wanted


def test_bytes_are_those_of_a_sessions_types() -> None:
    kinds = ("float32", "float16", "int8", "float8e4m3fn")
    assert [item_bytes(kind) for kind in kinds] == [4, 2, 1, 1]
