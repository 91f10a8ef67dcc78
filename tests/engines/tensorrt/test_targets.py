from __future__ import annotations

import pytest

from arvg_trt.engines.tensorrt.targets import check_formats, group_targets, resolve_target
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
        BuildError, match=f"TensorRT for RTX has no sm{capability}.*tensorrt backend"
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


def test_missing_format_is_refused_in_one_line_with_site_target_and_way_out() -> None:
    required = {"conv_in": "fp16", "decoder.mid.block_1.conv1": "fp8", "conv_out": "fp8"}
    with pytest.raises(BuildError) as caught:
        check_formats(required, rtx("sm89", "sm86"))
    assert str(caught.value) == (
        "decoder.mid.block_1.conv1 wants fp8, which sm86 lacks, and 1 more site; "
        "nearest that works: int8"
    )


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


def test_int8_convolutions_give_turing_a_plan_of_its_own() -> None:
    targets = rtx("rtx4090", "t4", "sm86")
    apart = group_targets(targets, has_int8_conv=True)
    together = group_targets(targets, has_int8_conv=False)
    assert [[target.sm for target in group] for group in apart] == [["sm75"], ["sm86", "sm89"]]
    assert [[target.sm for target in group] for group in together] == [["sm75", "sm86", "sm89"]]


def test_gpus_of_one_compute_capability_are_built_once() -> None:
    (group,) = group_targets(rtx("rtx3060", "rtx3090", "sm86"), has_int8_conv=True)
    assert [target.name for target in group] == ["rtx3060"]
