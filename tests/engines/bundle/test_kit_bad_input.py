"""Kits of hostile bundles: what they name is written beside them, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from arvg_trt.engines.bundle.kit import KIT_FILE, PLAN_FILE, read_kit
from arvg_trt.errors import ArvgError, IntegrityError
from arvg_trt.graph.sites import SITES_FILE, SiteMap

KIT = {
    "schema": "arvg-trt/kit/v1",
    "model": "mini",
    "name": "int8",
    "half": "float16",
    "image_size": 32,
    "max_batch": 2,
    "profiles": {"model": {"x": [[1, 4], [2, 4], [4, 4]]}},
}


def kit(folder: Path, **changes: Any) -> Path:
    (folder / KIT_FILE).write_bytes(msgspec.json.encode(KIT | changes))
    sites = SiteMap(sites=(), graphs=("model",))
    (folder / SITES_FILE).write_bytes(msgspec.json.encode(sites))
    return folder


def test_kit_is_read(tmp_path: Path) -> None:
    """Guards the tests below: what they are refused for is their change alone."""
    known, build = read_kit(kit(tmp_path), "tensorrt", ("sm87",))
    assert known.name == "int8" and list(build.profiles) == ["model"]


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", "..", "", ".x", "con", "a:b", "x\x00", "x\n"]
)
def test_graph_that_would_be_written_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is no name of a graph") as caught:
        read_kit(kit(tmp_path, profiles={name: {}}), "tensorrt", ("sm87",))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": -1},
        {"image_size": 2**63},
        {"max_batch": 0},
        {"max_batch": "2"},
        {"half": "float8"},
        {"profiles": {"model": {"x": [[1], [2]]}}},
        {"profiles": {"model": {"x": [["1"], [2], [4]]}}},
        {"more": 1},
        {"schema": "arvg-trt/kit/v2"},
    ],
)
def test_kit_that_no_engine_can_be_built_of_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ArvgError) as caught:
        read_kit(kit(tmp_path, **changes), "tensorrt", ("sm87",))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [KIT_FILE, SITES_FILE, PLAN_FILE])
@pytest.mark.parametrize("data", [b"", b"[" * 100_000, b"null", b"\xff"])
def test_file_of_a_kit_that_cannot_be_read_is_named(name: str, data: bytes, tmp_path: Path) -> None:
    (kit(tmp_path) / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{name}: cannot be read"):
        read_kit(tmp_path, "tensorrt", ("sm87",))
