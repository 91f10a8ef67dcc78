"""Tell whether two reports are of the same model, inputs, reference and machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..report.schema import Report

# The same images through the same FP32 graph give the same PSNR up to kernels of another version.
REFERENCE_TOLERANCE_DB = 0.05
# The same tokens through the same FP32 graph give the same loss up to kernels of another version.
LOSS_TOLERANCE = 1e-3

# The option of the network that measures a metric, by how the metric's name begins.
MEASURED_BY = {
    "lpips": "lpips",
    "dists": "dists",
    "rfid": "features",
    "frechet_features": "features",
}


def differences(base: Report, report: Report) -> list[str]:
    """Return why numbers of the two reports must not stand in one table."""
    messages = []
    if report.model != base.model:
        messages.append(f"model {report.model}, not {base.model}")
    if report.data.validation != base.data.validation:
        ours, theirs = set(report.data.validation), set(base.data.validation)
        noun = "validation samples" if report.outputs else "validation images"
        messages.append(
            f"other {noun} ({len(ours - theirs)} new, {len(theirs - ours)} missing)"
            if ours != theirs
            else "validation images in another order"
        )
    elif report.data.pictures != base.data.pictures:
        messages.append("images of other classes or seeds")
    elif report.data.sampling != base.data.sampling:
        messages.append("other sampling of the images")
    elif report.headline in report.accuracy and base.headline in base.accuracy:
        pairs = zip(
            report.data.validation,
            base.accuracy[base.headline].psnr_reference.each,
            report.accuracy[report.headline].psnr_reference.each,
            strict=True,
        )
        moved = [name for name, a, b in pairs if not close(a, b)]
        if moved:
            messages.append(
                f"FP32 itself reconstructs {moved[0]} differently: the images behind the names or "
                "the checkpoint are not the same"
            )
    return messages


def same_options(base: Report, reports: Sequence[Report]) -> str:
    """Return what makes reports comparable: one model, and which options of `validate`."""
    if any(report.model != base.model for report in reports):
        return "name reports of one model"
    if base.generation:
        return "validate with the same --samples, --seed and --labels, as `arvg-trt sweep` does"
    option = "--feeds" if base.outputs else "--images and --size"
    return f"validate with the same {option}, as `arvg-trt sweep` does"


def close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= REFERENCE_TOLERANCE_DB


def same_machine(base: Report, report: Report) -> bool:
    def setting(r: Report) -> object:
        total = r.latency.get("total")
        return r.cpu, total and (total.shape, total.batch, total.threads)

    return setting(base) == setting(report)


def other_network(metric: str, base: Report, report: Report) -> str | None:
    """Return the option of the network that measured a metric of one report, and not of the other.

    Reports of older versions do not name theirs.
    """
    option = next((name for start, name in MEASURED_BY.items() if metric.startswith(start)), None)
    own = [each.networks.get(option or "") for each in (base, report)]
    return option if None not in own and own[0] != own[1] else None


def cautions(base: Report, label: str, report: Report) -> list[str]:
    messages = []
    if report.headline != base.headline:
        messages.append(
            f"{label}: accuracy is of {report.headline}, the baseline's of {base.headline}"
        )
    if "total" in base.latency and "total" in report.latency and not same_machine(base, report):
        messages.append(f"{label}: measured on another CPU or setting, speeds are not judged")
    for name, each in (("the baseline", base), (label, report)):
        if each.busy and "total" in each.latency:
            messages.append(f"{name}: timed on a busy machine, {each.busy}")
    if same_names(base, report) and not same_inputs(base, report):
        messages.append(
            f"{label}: FP32 generated other images there, so that changes are judged without pairs"
        )
    return messages


def same_inputs(base: Report, report: Report) -> bool:
    """Return whether the samples of two reports are pairs: the same names, and FP32 the same.

    A generator's own images are drawn again on every machine, and one other token of FP32 makes
    them other inputs.
    """
    if not same_names(base, report):
        return False
    for name in {*base.generation} & {*report.generation}:
        pair = [r.generation[name].logits for r in (base, report)]
        losses = [found.sums.get("loss_fp32") if found else None for found in pair]
        if losses[0] and losses[1]:
            one, two = (np.asarray(loss) for loss in losses)
            if one.shape != two.shape or not np.allclose(one, two, rtol=LOSS_TOLERANCE):
                return False
    return True


def same_names(base: Report, report: Report) -> bool:
    names = [(r.data.validation, r.data.pictures) for r in (base, report)]
    return names[0] == names[1]
