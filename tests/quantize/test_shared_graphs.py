"""A tiny generator from plan and statistics to Q/DQ graphs that share weights and grids."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.observers.run import Progress
from arvg_trt.calibrate.statistics import POSITION, Statistics
from arvg_trt.errors import CalibrationError, RecipeError
from arvg_trt.graph.sites import SiteMap
from arvg_trt.numerics.packing import load_packed_weights
from arvg_trt.numerics.scheme import ActivationFormat, Plan, WeightFormat
from arvg_trt.quantize.facts import SiteRow
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.run import quantize_model
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.samples.files import load_sample, sample_files, save_sample

from ..families.generators import Generators, TinyGenerator, full_logits, stepped_logits
from ..families.tiny import silent


def statistics_of(source: TinyGenerator) -> Statistics:
    return CalibrationRun(
        source.folder, source.samples, (source.full_sites[0].graph,), 5, silent
    ).input_ranges(source.full_sites)


def quantize(  # type: ignore[no-untyped-def]
    source: TinyGenerator,
    folder: Path,
    plan: Plan | None = None,
    statistics: Statistics | None = None,
    progress: Progress = silent,
    **options,
):
    folder.mkdir()
    chosen = QuantizeOptions(**options)
    planned = SiteMap(sites=source.full_sites)
    entries = check_plan(plan or make_plan(planned, chosen), planned)
    return quantize_model(
        CalibrationRun(source.folder, source.samples, source.site_map.graphs, 5, progress),
        folder,
        source.site_map,
        entries,
        statistics or statistics_of(source),
        chosen,
        shared=True,
    )


def sqnr(found: np.ndarray, wanted: np.ndarray) -> float:
    wide = wanted.astype(np.float64)
    noise = max(float(np.square(found - wide).sum()), 1e-30)
    return float(10 * np.log10(np.square(wide).sum() / noise))


@dataclass(frozen=True)
class Quantized:
    folder: Path
    plan: Plan
    results: list[SiteRow]


@pytest.fixture(scope="module")
def by_gps(generators: Generators, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    folder = tmp_path_factory.mktemp("gps") / "q"
    return Quantized(folder, *quantize(generators("var"), folder, smoothing="gps"))


@pytest.mark.parametrize("smoothing", ["gps", "search", 0.5, 0.0])
def test_steps_over_the_cache_compute_what_the_full_graph_does(
    tiny_var: TinyGenerator,
    tmp_path: Path,
    smoothing: float | str,
    request: pytest.FixtureRequest,
) -> None:
    """Both were quantized alike: scales and shifts gathered by position, weights by name."""
    if smoothing == "gps":
        made = request.getfixturevalue("by_gps")
    else:
        folder = tmp_path / "q"
        made = Quantized(folder, *quantize(tiny_var, folder, smoothing=smoothing))
    plan, results = made.plan, made.results
    full = full_logits(tiny_var, made.folder)
    # Where float32 sums differ, a value at a tie may round the other way: few do.
    assert sqnr(stepped_logits(tiny_var, made.folder), full) > 60
    assert 25 < sqnr(full, full_logits(tiny_var, tiny_var.folder)) < 60
    quantized = {r.name for r in results if r.weight_sqnr_db is not None}
    assert quantized == {s.name for s in tiny_var.full_sites if not s.excluded and s.weight}
    tokens = {e.name for e in plan.sites if e.activation and "blocks" in e.name}
    assert len(tokens) >= 8


def test_rar_goes_the_same_way_by_its_site_map_alone(
    tiny_rar_graphs: TinyGenerator, tmp_path: Path
) -> None:
    rar = tiny_rar_graphs
    quantize(rar, tmp_path / "q", smoothing="gps")
    full = full_logits(rar, tmp_path / "q")
    assert sqnr(stepped_logits(rar, tmp_path / "q"), full) > 60
    assert sqnr(full, full_logits(rar, rar.folder)) > 25


def test_a_plan_may_scale_by_the_weights_alone(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    """SmoothQuant's exponent 0, which options mean no scaling by."""
    plan = make_plan(SiteMap(sites=tiny_var.full_sites), QuantizeOptions(smoothing=0.5))
    edited = [msgspec.structs.replace(e, smoothing=e.smoothing and 0.0) for e in plan.sites]
    quantize(tiny_var, tmp_path / "q", Plan(sites=tuple(edited)))
    found = full_logits(tiny_var, tmp_path / "q")
    assert 25 < sqnr(found, full_logits(tiny_var, tiny_var.folder)) < 60


def test_fewer_bits_lose_more_and_pack_smaller(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    sizes, losses = [], []
    for bits in (8, 6, 4):
        folder = tmp_path / str(bits)
        quantize(tiny_var, folder, smoothing="gps", weight_bits=bits, activation_bits=bits)
        codes, _ = load_packed_weights(folder / "weights.safetensors")
        assert max(np.abs(c.q).max() for c in codes.values()) == 2 ** (bits - 1) - 1
        sizes.append((folder / "weights.safetensors").stat().st_size)
        losses.append(-sqnr(full_logits(tiny_var, folder), full_logits(tiny_var, tiny_var.folder)))
    assert sizes == sorted(sizes, reverse=True) and losses == sorted(losses)


def test_weights_lie_once_and_tables_beside_them(
    tiny_var: TinyGenerator, by_gps: Quantized
) -> None:
    folder = by_gps.folder
    assert {p.name for p in folder.iterdir()} == {
        *(p.name for p in tiny_var.folder.glob("*.onnx")),
        "model.onnx.data",
        "weights.safetensors",
    }
    assert (folder / "model.onnx.data").stat().st_size < 0.6 * (
        tiny_var.folder / "model.onnx.data"
    ).stat().st_size
    kept = load_file(folder / "weights.safetensors")
    scale = kept["blocks.0.ffn.fc2.token_scale"]
    assert scale.shape == (tiny_var.bounds[-1],) and (scale > 0).all()


def test_the_same_inputs_give_the_same_bytes(
    tiny_var: TinyGenerator, by_gps: Quantized, tmp_path: Path
) -> None:
    quantize(tiny_var, tmp_path / "b", smoothing="gps")
    paths = list(by_gps.folder.iterdir())
    assert len(paths) >= 5
    for path in paths:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_sites_of_one_input_must_agree(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    plan = make_plan(SiteMap(sites=tiny_var.full_sites), QuantizeOptions())
    odd = ActivationFormat(bits=4)
    sites = tuple(
        msgspec.structs.replace(s, activation=odd) if s.name == "blocks.1.ada_lin.1" else s
        for s in plan.sites
    )
    with pytest.raises(RecipeError, match=r"blocks\.0\.ada_lin\.1 and blocks\.1\.ada_lin\.1 read"):
        quantize(tiny_var, tmp_path / "q", Plan(sites=sites))


def test_scales_of_tokenizers_are_refused(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    plan = make_plan(SiteMap(sites=tiny_var.full_sites), QuantizeOptions())
    sites = tuple(msgspec.structs.replace(s, smoothing="predicted") for s in plan.sites)
    with pytest.raises(RecipeError, match="which a generator lacks"):
        quantize(tiny_var, tmp_path / "q", Plan(sites=sites))


def test_a_scale_and_a_shift_of_the_plan_are_kept(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    plan = make_plan(SiteMap(sites=tiny_var.full_sites), QuantizeOptions(token_wise=False))
    own = ActivationFormat(bits=8, scale=0.125, shift=7)
    sites = tuple(
        msgspec.structs.replace(s, activation=own) if s.name == "head" else s for s in plan.sites
    )
    final, _ = quantize(tiny_var, tmp_path / "q", Plan(sites=sites))
    assert next(s for s in final.sites if s.name == "head").activation == own
    assert all(s.activation.scale for s in final.sites if s.activation)


@pytest.mark.parametrize("change", ["position on an input without", "blocks"])
def test_impossible_formats_are_refused_by_site(
    tiny_var: TinyGenerator, tmp_path: Path, change: str
) -> None:
    plan = make_plan(SiteMap(sites=tiny_var.full_sites), QuantizeOptions())
    name = "blocks.0.ada_lin.1" if change != "blocks" else "head"
    sites = []
    for entry in plan.sites:
        if entry.name == name and change == "blocks":
            weight = WeightFormat(bits=4, granularity="per_block", block=32)
            entry = msgspec.structs.replace(entry, weight=weight)
        elif entry.name == name:
            activation = ActivationFormat(bits=8, granularity="per_position")
            entry = msgspec.structs.replace(entry, activation=activation)
        sites.append(entry)
    with pytest.raises(RecipeError, match=name.replace(".", r"\.")):
        quantize(tiny_var, tmp_path / "q", Plan(sites=tuple(sites)))


def test_statistics_that_lack_a_site_or_its_channels_are_refused(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    found = statistics_of(tiny_var)
    lacking = {k: v for k, v in found.items() if k != f"head{POSITION}"}
    with pytest.raises(CalibrationError, match="no statistics for head"):
        quantize(tiny_var, tmp_path / "a", statistics=lacking)
    other = found | {"head": found["blocks.0.ffn.fc2"]}
    with pytest.raises(CalibrationError, match="head has 32 input channels"):
        quantize(tiny_var, tmp_path / "b", statistics=other)


def test_nan_in_one_sample_names_it(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(tiny_var.samples, folder)
    sample = dict(load_sample(sample_files(folder)[3]))
    sample["features"] = np.full_like(sample["features"], np.nan)
    save_sample(sample, folder, 3)
    with pytest.raises(CalibrationError, match="full makes NaN or infinity at") as caught:
        CalibrationRun(
            tiny_var.folder, folder, (tiny_var.full_sites[0].graph,), 2, silent
        ).input_ranges(tiny_var.full_sites)
    assert caught.value.where == "00003.safetensors"
