"""Reports are compared in pairs only where their inputs, networks and settings are the same."""

from __future__ import annotations

import msgspec
import pytest

from arvg_trt.errors import BundleError
from arvg_trt.validate.compare.compare import compare
from arvg_trt.validate.compare.like import cautions, other_network, same_inputs
from arvg_trt.validate.report.schema import Report

from ..conftest import MakeReport
from ..intervals.test_figures import with_outputs


@pytest.fixture
def generated(make_report: MakeReport) -> Report:
    """A report with the logits of a generator, and no pictures of a tokenizer."""
    return with_outputs(msgspec.structs.replace(make_report().report, accuracy={}))


def test_what_another_network_measured_is_not_compared(make_report: MakeReport) -> None:
    base = msgspec.structs.replace(make_report().report, networks={"lpips": "a", "features": "f"})
    other = msgspec.structs.replace(base, networks={"lpips": "b", "features": "f"})
    assert other_network("lpips_vs_fp32", base, other) == "lpips"
    assert other_network("rfid", base, other) is None
    assert other_network("psnr", base, other) is None
    old = msgspec.structs.replace(base, networks={})  # as reports of older versions
    assert other_network("lpips", base, old) is None


def test_logits_of_other_images_of_fp32_are_no_pairs(generated: Report) -> None:
    same = with_outputs(generated)
    assert same_inputs(generated, same) and not cautions(generated, "new", same)
    other = with_outputs(generated, seed=1)
    assert not same_inputs(generated, other)
    (said,) = cautions(generated, "new", other)
    assert said.startswith("new: FP32 generated other images there")
    assert any(
        "without pairs" in text for text in compare([("a", generated), ("b", other)]).warnings
    )


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"validation": ("x.png", "y.png", "z.png")}, "other validation images (3 new, 3 missing)"),
        ({"pictures": ("1/0",)}, "images of other classes or seeds"),
        ({"sampling": {"cfg": 4.0}}, "other sampling of the images"),
    ],
)
def test_other_inputs_are_refused_by_name(
    make_report: MakeReport, changed: dict[str, object], why: str
) -> None:
    base = make_report().report
    data = msgspec.structs.replace(base.data, **changed)
    other = msgspec.structs.replace(base, data=data)
    with pytest.raises(BundleError) as caught:
        compare([("a", base), ("b", other)])
    assert why in caught.value.what
    found = compare([("a", base), ("b", other)], allow_different=True)
    assert any(why in text for text in found.warnings)


def test_what_has_to_be_the_same_is_named_by_the_options_of_the_kind(
    make_report: MakeReport, generated: Report
) -> None:
    def advice(base: Report, **changed: object) -> str | None:
        other = msgspec.structs.replace(base, **changed)
        with pytest.raises(BundleError) as caught:
            compare([("a", base), ("b", other)])
        return caught.value.do

    base = make_report().report
    names = msgspec.structs.replace(base.data, validation=("x.png", "y.png", "z.png"))
    said = advice(generated, data=names)
    assert said is not None and "--samples, --seed and --labels" in said and "sweep" in said
    assert "--images and --size" in str(advice(base, data=names))
    own = msgspec.structs.replace(generated, generation={})
    assert "--feeds" in str(advice(own, data=names))
    assert "name reports of one model, or" in str(advice(base, model="another"))


def test_images_in_another_order_are_refused(make_report: MakeReport) -> None:
    base = make_report().report
    turned = msgspec.structs.replace(base.data, validation=base.data.validation[::-1])
    other = msgspec.structs.replace(base, data=turned)
    with pytest.raises(BundleError, match="validation images in another order"):
        compare([("a", base), ("b", other)])
