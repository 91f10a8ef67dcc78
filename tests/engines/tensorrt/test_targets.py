from __future__ import annotations

import re
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import get_args

import msgspec
import pytest

import arvg_trt
from arvg_trt.engines.tensorrt import targets as targets_module
from arvg_trt.engines.tensorrt.targets import (
    Format,
    capabilities,
    check_formats,
    group_targets,
    half_instead,
    known,
    require_local_gpu,
    resolve_target,
)
from arvg_trt.errors import BuildError


def rtx(*names: str) -> list:
    return [resolve_target(name, "tensorrt_rtx") for name in names]


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("t4", 75),
        ("rtx2080", 75),
        ("a100", 80),
        ("rtx3090", 86),
        ("A10", 86),
        ("RTX 4070 Ti Super", 89),
        ("l40", 89),
        ("rtx5090", 120),
        ("sm86", 86),
        ("8.6", 86),
        ("12.0", 120),
        ("L40S", 89),
        ("RTX A6000", 86),
        ("RTX 6000 Ada", 89),
        ("NVIDIA RTX 6000 Ada Generation", 89),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 89),
        ("Tesla T4", 75),
        ("NVIDIA A100-SXM4-80GB", 80),
        ("NVIDIA RTX PRO 6000", 120),
        ("gb10", 121),
        ("DGX Spark", 121),
    ],
)
def test_names_resolve_to_compute_capabilities(name: str, capability: int) -> None:
    assert resolve_target(name, "tensorrt_rtx").compute_capability == capability


def test_unknown_name_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(BuildError, match=r"rtx409O: unknown target .*rtx4090"):
        resolve_target("rtx409O", "tensorrt_rtx")


@pytest.mark.parametrize("name", ["sm74", "8.5", "", "sm9999"])
def test_compute_capability_that_no_gpu_has_is_refused(name: str) -> None:
    with pytest.raises(BuildError, match="unknown target"):
        resolve_target(name, "tensorrt_rtx")


@pytest.mark.parametrize(
    ("name", "capability"), [("jetson-orin", 87), ("AGX Orin", 87), ("thor", 110)]
)
def test_jetsons_are_targets_of_tensorrt_alone(name: str, capability: int) -> None:
    assert resolve_target(name, "tensorrt").compute_capability == capability
    with pytest.raises(
        BuildError, match=f"TensorRT for RTX has no sm{capability} .*bundle.*build --from FILE"
    ):
        resolve_target(name, "tensorrt_rtx")


@pytest.mark.parametrize(
    ("name", "capability"),
    [("H100", 90), ("NVIDIA H100 80GB HBM3", 90), ("h200", 90), ("B200", 100)],
)
def test_known_gpu_that_rtx_has_not_is_refused_with_what_builds_for_it(
    name: str, capability: int
) -> None:
    assert resolve_target(name, "tensorrt").compute_capability == capability
    with pytest.raises(BuildError) as caught:
        resolve_target(name, "tensorrt_rtx")
    text = str(caught.value)
    assert text.startswith(f"{name}: TensorRT for RTX has no sm{capability} (it compiles for sm75,")
    assert "tensorrt backend" in text


def test_missing_formats_are_refused_in_one_line_with_sites_targets_and_ways_out() -> None:
    required = {"conv_in": "fp16", "decoder.mid.block_1.conv1": "fp8", "conv_out": "fp8"}
    with pytest.raises(BuildError) as caught:
        check_formats(required | {"head": "int4"}, rtx("sm89", "sm86", "t4"))
    assert str(caught.value) == (
        "2 sites want fp8, which sm86 and t4 (sm75) lack (decoder.mid.block_1.conv1, conv_out); "
        "nearest that works: fp16; "
        "head wants int4, which t4 (sm75) lacks; nearest that works: int8"
    )


def test_sites_of_many_blocks_are_named_in_few_words() -> None:
    sites = [f"blocks.{k}.{part}" for k in range(24) for part in ("qkv", "proj")]
    with pytest.raises(BuildError) as caught:
        check_formats(dict.fromkeys(sites, "fp8"), rtx("sm86"))
    assert "48 sites want fp8" in str(caught.value)
    assert "(blocks.{0-23}.qkv, blocks.{0-23}.proj)" in str(caught.value)


@pytest.mark.parametrize(
    ("form", "target", "nearest"),
    [
        ("fp4", "rtx4090", "fp8"),
        ("fp4", "rtx3090", "int8"),
        ("fp8", "rtx2080", "fp16"),
        ("int4", "rtx2080", "int8"),
        ("bf16", "rtx2080", "fp16"),
        ("int8_conv", "rtx2080", "fp16"),
    ],
)
def test_nearest_format_works_on_the_target(form: str, target: str, nearest: str) -> None:
    with pytest.raises(
        BuildError, match=f"{target} \\(sm\\d+\\) lacks; nearest that works: {nearest}$"
    ):
        check_formats({"site": form}, rtx(target))


def test_formats_that_all_targets_have_pass() -> None:
    check_formats({"a": "fp8", "b": "int8_conv", "c": "bf16"}, rtx("sm89", "sm120", "sm121"))
    check_formats({"a": "fp4"}, rtx("sm120"))
    check_formats({"a": "int8_gemm", "b": "fp16"}, rtx("sm75"))


def test_formats_that_turing_runs_in_fp16_give_it_a_plan_of_its_own() -> None:
    targets = rtx("rtx4090", "t4", "sm86")
    apart = group_targets(targets, ["int8_conv"])
    together = group_targets(targets)
    assert [[target.sm for target in group] for group in apart] == [["sm75"], ["sm86", "sm89"]]
    assert [[target.sm for target in group] for group in together] == [["sm75", "sm86", "sm89"]]


def test_gpus_of_one_compute_capability_are_built_once() -> None:
    (group,) = group_targets(rtx("rtx3060", "rtx3090", "sm86"), ["int8_conv"])
    assert [target.name for target in group] == ["rtx3060"]


def test_names_are_unique_plainly_spelled_and_resolve_to_their_own_gpu() -> None:
    names = [name for gpu in known().gpu for name in gpu.names]
    assert len(names) == len(set(names)) > 50
    assert all(re.fullmatch(r"[a-z]+[a-z0-9]*", name) for name in names)
    for gpu in known().gpu:
        for name in (*gpu.names, gpu.names[0].upper()):
            assert resolve_target(name, "tensorrt").compute_capability == gpu.capability


def test_every_gpu_has_a_known_capability_sources_and_a_date_that_has_come() -> None:
    numbers = [each.number for each in known().capability]
    assert numbers == sorted(set(numbers))
    for gpu in known().gpu:
        assert gpu.capability in capabilities()
    rows: list = [*known().gpu, *known().capability]
    for row in rows:
        assert row.sources and all(row.sources)
        assert date(2026, 11, 1) <= row.date <= date.today()


def test_peaks_of_narrower_formats_are_higher_and_only_of_formats_that_the_gpu_has() -> None:
    with_peaks = 0
    for gpu in known().gpu:
        formats = capabilities()[gpu.capability].formats
        peaks = {"fp16": gpu.fp16, "int8_gemm": gpu.int8, "fp8": gpu.fp8, "fp4": gpu.fp4}
        found = {form: peak for form, peak in peaks.items() if peak is not None}
        assert set(found) <= set(formats)
        assert list(found.values()) == sorted(found.values()) or gpu.int8 == 2 * (gpu.fp8 or 0)
        if gpu.fp16 and gpu.int8:
            # GeForce cards add FP16 products up in FP32 at half speed
            assert gpu.int8 / gpu.fp16 == pytest.approx(2, rel=0.02) or gpu.int8 / gpu.fp16 == 4
        assert gpu.bandwidth_gb_s is None or 50 < gpu.bandwidth_gb_s < 20_000
        assert gpu.memory_gb is None or 2 <= gpu.memory_gb <= 400
        with_peaks += len(found) > 1
    assert with_peaks >= 6


def test_formats_only_grow_from_one_capability_to_the_next() -> None:
    assert {form for each in known().capability for form in each.formats} == set(get_args(Format))
    for older, newer in pairwise(known().capability):
        assert set(older.formats) <= set(newer.formats)


def test_builder_compiles_for_the_capabilities_that_it_serves() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    able = {int(name[2:]) for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    assert {n for n, each in capabilities().items() if each.serves["tensorrt_rtx"]} == able


def test_the_table_is_installed() -> None:
    settings = msgspec.toml.decode((Path(arvg_trt.__file__).parent / "pyproject.toml").read_bytes())
    data = settings["tool"]["setuptools"]["package-data"]
    assert "targets.toml" in data["arvg_trt.engines.tensorrt"]


@pytest.mark.parametrize("here", [None, 89])
def test_what_tensorrt_cannot_build_here_is_refused_with_the_way(
    here: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No package would help, whether it is installed or not."""
    monkeypatch.setattr(targets_module, "device_compute_capability", lambda: here)
    with pytest.raises(
        BuildError, match=r"not for orin \(sm87\) \(a Jetson builds its own.*kit|bundle"
    ):
        require_local_gpu([resolve_target("orin", "tensorrt")])
    with pytest.raises(BuildError, match=r"not for a10 \(sm86\) .*tensorrt_rtx"):
        require_local_gpu([resolve_target("a10", "tensorrt")])
    with pytest.raises(BuildError, match=r"not for h100 \(sm90\) \(build on that device\)"):
        require_local_gpu([resolve_target("h100", "tensorrt")])
    if here:
        require_local_gpu([resolve_target("rtx4090", "tensorrt")])


def test_sites_that_run_in_fp16_on_a_target_are_said() -> None:
    required: dict[str, Format] = {"a": "int8_conv", "b": "int8_weights", "c": "int8_gemm"}
    text = half_instead(required, rtx("t4"))
    assert text is not None and text.startswith("sm75: 2 of 3 quantized sites run in FP16 there")
    assert "gains no speed" not in text
    del required["c"]
    text = half_instead(required, rtx("t4", "rtx4090"))
    assert text is not None and text.startswith("sm75: all 2 quantized sites run in FP16 there")
    assert "gains no speed: `--name fp16`" in text
    assert half_instead(required, rtx("rtx4090")) is None
    assert half_instead({"c": "int8_gemm"}, rtx("t4")) is None
