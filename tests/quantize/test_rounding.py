"""Models whose weights were rounded with data, from plan to graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.statistics import Statistics
from arvg_trt.errors import OutOfMemory, RecipeError
from arvg_trt.graph.sites import SiteMap
from arvg_trt.numerics.packing import load_packed_weights
from arvg_trt.numerics.scheme import Plan, SitePlan
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.run import quantize_model
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.runtime.images import load_image, to_model
from arvg_trt.samples.files import sample_files

from ..families.generators import TinyGenerator, activations, full_logits, stepped_logits
from ..families.tiny import TinyExport, silent


def quantize(source: TinyGenerator, folder: Path, max_memory: int = 2**30, **options) -> Plan:  # type: ignore[no-untyped-def]
    folder.mkdir()
    chosen = QuantizeOptions(**{"smoothing": "gps", **options})
    planned = SiteMap(sites=source.full_sites)
    statistics = CalibrationRun(
        source.folder, source.samples, (source.full_sites[0].graph,), 5, silent
    ).input_ranges(source.full_sites)
    plan, _ = quantize_model(
        CalibrationRun(source.folder, source.samples, source.site_map.graphs, 5, silent),
        folder,
        source.site_map,
        check_plan(make_plan(planned, chosen), planned),
        statistics,
        chosen,
        max_memory=max_memory,
        shared=True,
    )
    return plan


def sqnr(found: np.ndarray, wanted: np.ndarray) -> float:
    wide = wanted.astype(np.float64)
    noise = max(float(np.square(found - wide).sum()), 1e-30)
    return float(10 * np.log10(np.square(wide).sum() / noise))


@pytest.mark.parametrize("weight_only", [False, True])
def test_a_generators_logits_gain_on_the_samples(
    tiny_var: TinyGenerator, tmp_path: Path, weight_only: bool
) -> None:
    bits = {"weight_bits": 3, "activation_bits": 32 if weight_only else 8}
    wanted, found = full_logits(tiny_var, tiny_var.folder), {}
    for rounding in ("nearest", "gptq"):
        plan = quantize(tiny_var, tmp_path / rounding, rounding=rounding, **bits)
        found[rounding] = sqnr(full_logits(tiny_var, tmp_path / rounding), wanted)
    assert found["gptq"] > found["nearest"] + 2
    assert {s.rounding for s in plan.sites if s.weight} == {"gptq"}


def test_steps_agree_with_the_full_graph_when_biases_are_corrected(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    quantize(tiny_var, tmp_path / "q", rounding="gptq", bias_correction=True, weight_bits=4)
    full = full_logits(tiny_var, tmp_path / "q")
    assert sqnr(stepped_logits(tiny_var, tmp_path / "q"), full) > 60


@pytest.mark.parametrize("activation_bits", [32, 4])
def test_the_first_products_mean_output_is_the_exact_one(
    tiny_var: TinyGenerator, tmp_path: Path, activation_bits: int
) -> None:
    """No other site's error reaches this one.

    Nothing is folded into its output either.
    """
    options = {"weight_bits": 3, "activation_bits": activation_bits, "smoothing": 0.0}
    site = next(s for s in tiny_var.full_sites if s.name == "blocks.0.ada_lin.1")
    held, plain = tmp_path / "q", tmp_path / "plain"
    quantize(tiny_var, held, bias_correction=True, **options)
    quantize(tiny_var, plain, **options)
    exact, corrected, biased = (
        mean_output(folder, tiny_var, site.output) for folder in (tiny_var.folder, held, plain)
    )
    shift = np.abs(corrected - exact).max()
    assert shift < 2e-6 * np.abs(exact).max() < 0.01 * np.abs(biased - exact).max()


def mean_output(folder: Path, source: TinyGenerator, tensor: str) -> np.ndarray:
    """By channel."""
    found = activations(folder / "full.onnx", source.feeds(), [tensor])[tensor]
    return found.reshape(-1, found.shape[-1]).mean(axis=0)


def test_little_memory_means_more_passes_and_the_same_weights(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    for name, memory in (("a", 2**30), ("b", 600_000)):
        quantize(tiny_var, tmp_path / name, memory, rounding="gptq", weight_bits=4)
    one, other = ((tmp_path / n / "weights.safetensors").read_bytes() for n in "ab")
    assert one == other
    with pytest.raises(OutOfMemory, match="--max-memory"):
        quantize(tiny_var, tmp_path / "c", 1000, rounding="gptq", weight_bits=4)


def test_a_tokenizer_keeps_its_mean_outputs_and_gains(
    tiny_di: TinyExport, samples: Path, statistics: Statistics, tmp_path: Path
) -> None:
    images = np.concatenate([to_model(load_image(path)) for path in sample_files(samples)])
    site = next(s for s in tiny_di.sites.of_graph("encoder") if s.weight and not s.excluded)
    outputs = {}
    for name, options in {
        "nearest": {"tap_sums": False},
        "gptq": {"rounding": "gptq"},
        "corrected": {"rounding": "gptq", "bias_correction": True},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        chosen = QuantizeOptions(
            encoder_bits=3,
            # What is rounded there changes nothing here: once, with all that there is, is enough.
            decoder_bits=3 if name == "corrected" else 32,
            **options,  # type: ignore[arg-type]
        )
        quantize_model(
            CalibrationRun(tiny_di.folder, samples, tiny_di.sites.graphs, 2, silent),
            folder,
            tiny_di.sites,
            check_plan(make_plan(tiny_di.sites, chosen), tiny_di.sites),
            statistics,
            chosen,
            shared=False,
        )
        feeds = {"image": images}
        outputs[name] = activations(folder / "encoder.onnx", feeds, [site.output])[site.output]
        codes, _ = load_packed_weights(folder / "weights.safetensors")
        assert np.abs(codes[site.name].q).max() <= 3
    exact = activations(tiny_di.folder / "encoder.onnx", {"image": images}, [site.output])
    wanted = exact[site.output]
    assert sqnr(outputs["gptq"], wanted) > sqnr(outputs["nearest"], wanted) + 2
    means = {k: np.abs((v - wanted).mean(axis=(0, 2, 3))).max() for k, v in outputs.items()}
    # The site's input comes from a convolution whose weights are rounded to float16.
    assert means["corrected"] < 0.01 * means["nearest"]


def test_a_plan_that_asks_for_what_no_rounding_gives_is_refused(tiny_di: TinyExport) -> None:
    plan = make_plan(tiny_di.sites, QuantizeOptions(quantize_method="fp8"))
    name = next(entry.name for entry in plan.sites if entry.weight)
    sites = tuple(
        SitePlan(name=s.name, weight=s.weight, rounding="gptq") if s.name == name else s
        for s in plan.sites
    )
    with pytest.raises(RecipeError, match=f"{name} wants gptq"):
        check_plan(Plan(sites=sites), tiny_di.sites)
    with pytest.raises(ValueError, match="gptq rounds to integer grids"):
        QuantizeOptions(quantize_method="fp8", rounding="gptq")
