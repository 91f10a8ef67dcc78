"""Caches of generators: what is stored, and that loops compute what all positions at once do."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from arvg_trt.errors import BundleError
from arvg_trt.numerics.scheme import CacheType
from arvg_trt.quantize.kv_cache.apply import SCALES_FILE
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.kv_cache import KV_SCALES
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.workspace.files import encode_json

from ...families.generators import TinyGenerator, activations, full_logits, stepped_logits
from ..test_shared_graphs import sqnr
from .cached import generator_with_cache, looped_and_forced, with_cache

pytestmark = pytest.mark.usefixtures("one_thread")
# What rounding loses at least and at most, in dB of the logits of tiny random models.
LOSS: dict[CacheType, tuple[float, float]] = {"int8": (25, 65), "fp8": (18, 55)}


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_steps_of_a_var_store_it_and_compute_what_the_full_graph_does(
    tiny_var: TinyGenerator, tmp_path: Path, kind: CacheType
) -> None:
    folder = tmp_path / "q"
    with_cache(tiny_var.folder, tiny_var.samples, tiny_var.site_map, folder, kind)
    step = reference_session(folder / "step.onnx")
    caches = [
        name for name in (*step.inputs, *step.outputs) if "_key." in name or "_value." in name
    ]
    assert len(caches) == 8 and {step.types[name] for name in caches} == {kind}
    full = full_logits(tiny_var, folder)
    # A key at a tie may round the other way, where float32 sums differ.
    assert sqnr(stepped_logits(tiny_var, folder), full) > 60
    assert sqnr(full, full_logits(tiny_var, tiny_var.folder)) < 100


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("family", ["rar", "par", "llamagen"])
def test_loops_compute_what_all_positions_at_once_do(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, kind: CacheType
) -> None:
    export = request.getfixturevalue(f"tiny_{family}").folder
    folder = generator_with_cache(export, tmp_path / "q", kind)
    looped, forced, types = looped_and_forced(folder)
    assert types == {{"fp8": "float8e4m3fn"}.get(kind, kind)}
    assert sqnr(looped, forced) > 60
    exact, _, _ = looped_and_forced(export)
    # The first step sees no token that a rounding could have changed, so both sample alike there.
    low, high = LOSS[kind]
    assert low < sqnr(looped[:, :1], exact[:, :1]) < high


def test_scales_are_those_of_the_channels_that_were_seen(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    folder = tmp_path / "q"
    _, rows = with_cache(
        *(tiny_var.folder, tiny_var.samples, tiny_var.site_map, folder, "int8"),
        keys="per_channel",
        values="per_head",
    )
    held = load_file(folder / SCALES_FILE)
    model = onnx.load(tiny_var.folder / "full.onnx")
    keys, values = stored_tensors(model)
    seen = activations(tiny_var.folder / "full.onnx", tiny_var.feeds(), [*keys, *values])
    for row, key, value in zip(rows, keys, values, strict=True):
        channel, head = held[f"{row.name}.key_scale"], held[f"{row.name}.value_scale"]
        reach = np.abs(seen[key]).max(axis=(0, 2)) / 127
        # A clip takes half of what was seen at most; a channel reaches as far as usual ones may.
        assert (channel > 0.45 * reach).all() and (channel < 3 * reach).all()
        assert (head == head[:, :1]).all()
        widest = np.abs(seen[value]).max(axis=(0, 2, 3)) / 127
        assert (head[:, 0] > 0.45 * widest).all() and (head[:, 0] < 3 * widest).all()
        assert row.key_sqnr_db is not None and 30 < row.key_sqnr_db < 60


def stored_tensors(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Return the names of keys and values, in order, read off the graph by hand."""
    made = {name: node for node in model.graph.node for name in node.output}
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    makers = [(n, [made.get(name) for name in n.input]) for n in products]
    keys = [b.input[0] for _, (_, b) in makers if b is not None and b.op_type == "Transpose"]
    values = [n.input[1] for n, (a, _) in makers if a is not None and a.op_type == "Softmax"]
    return keys, values


def test_granularity_is_chosen_on_samples_that_scales_were_not_fitted_to(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    """The choice loses no more than the other one, on the same second half."""
    args = (tiny_var.folder, tiny_var.samples, tiny_var.site_map)
    _, free = with_cache(*args, tmp_path / "free", "int8")
    both = [
        with_cache(*args, tmp_path / kind, "int8", keys=kind, values=kind)[1]
        for kind in ("per_head", "per_channel")
    ]
    for row, head, channel in zip(free, *both, strict=True):
        assert row.key_sqnr_db == max(head.key_sqnr_db or 0, channel.key_sqnr_db or 0)
        assert row.value_sqnr_db == max(head.value_sqnr_db or 0, channel.value_sqnr_db or 0)
        assert row.keys == ("per_head" if row.key_sqnr_db == head.key_sqnr_db else "per_channel")


def test_scales_of_another_quantization_are_refused(tiny_rar, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = generator_with_cache(tiny_rar.folder, tmp_path / "q", "int8")
    digest = hashlib.sha256((folder / SCALES_FILE).read_bytes()).hexdigest()
    spec = Generator.open(folder, session=reference_session, verify=False).spec
    assert (spec.kv_type, spec.kv_scales) == ("int8", digest)  # type: ignore[attr-defined]
    assert reference_session(folder / "step.onnx").metadata[KV_SCALES] == digest
    other = msgspec.structs.replace(spec, kv_scales="0" * 64)  # type: ignore[type-var]
    (folder / "generator.json").write_bytes(encode_json(other))
    with pytest.raises(BundleError, match=r"other scales than generator\.json") as found:
        Generator.open(folder, session=reference_session, verify=False)
    assert found.value.where == str(folder / "step.onnx")
    shutil.copyfile(tiny_rar.folder / "generator.json", folder / "generator.json")
    with pytest.raises(BundleError, match="int8, not float32"):
        Generator.open(folder, session=reference_session, verify=False)
