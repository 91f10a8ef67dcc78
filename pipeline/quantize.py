"""Stage 3: plan, Q/DQ graphs and packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..calibrate.calibrated import Calibrated
from ..errors import RecipeError
from ..numerics.scheme import SitePlan
from ..quantize.facts import QuantizationFacts, read_plan
from ..quantize.overflow import unplanned_overflow_tensors
from ..quantize.write import changed_graphs, float_bytes, write_quantized
from ..recipe.quantize import MAX_MEMORY, QuantizeOptions, machine_file
from ..workspace.facts import FP16, kind_of
from ..workspace.files import sha256_file
from ..workspace.manifest import Manifest
from ..workspace.stage import PreparedStage, Reporter, StageResult, in_stage, package_versions
from ..workspace.workspace import Workspace

HALVES = ("encoder_bits", "decoder_bits")


def quantize_stage(
    workspace: Workspace,
    name: str,
    options: QuantizeOptions,
    reporter: Reporter,
    max_memory: int = MAX_MEMORY,
) -> StageResult:
    """Quantize by `options`, or by the plan that they name, which a person may have edited.

    Second moments, where a rounding asks for them, take at most `max_memory` bytes at a time.
    """
    return prepare_quantization(workspace, name, options, reporter, max_memory).run()


def prepare_quantization(
    workspace: Workspace,
    name: str,
    options: QuantizeOptions,
    reporter: Reporter,
    max_memory: int = MAX_MEMORY,
) -> PreparedStage:
    """Return what `quantize_stage` would do.

    Raises:
        RecipeError: options or a plan that the model does not take.
    """
    from ..engines.roofline.fit import fit_to_target
    from ..quantize.kv_cache.plan import with_caches
    from ..quantize.plan import check_plan, make_plan, with_float_decoder

    if name == FP16:
        raise RecipeError(
            f"{FP16} names the engines of the unquantized graphs", do="choose another --name"
        )
    reporter = in_stage(reporter, "quantize")
    source = Calibrated.open(workspace)
    require_halves_of_tokenizer(options, source.exported)
    plan_file = None if options.plan is None else Path(options.plan)
    if plan_file is None:
        plan = make_plan(source.planned, options, decoder=source.decoder)
        plan = fit_to_target(workspace, plan, source.planned, options)
    else:
        plan = with_float_decoder(read_plan(plan_file), source.planned, source.decoder)
    plan = with_caches(plan, source, options)
    entries = check_plan(plan, source.planned)
    if not source.generates:
        require_float_attention(options, entries)
    of_decoder = {site.name: entries[site.name] for site in source.split[1].sites}
    require_float_attention(QuantizeOptions(), of_decoder)
    wanted = Manifest(
        stage="quantize",
        inputs=source.digests | read_files(plan=plan_file, plan_for=machine_file(options.plan_for)),
        options=options.recorded(),
        versions=package_versions("onnxruntime", "onnx-ir", "numpy"),
    )

    def work(folder: Path) -> QuantizationFacts:
        written = write_quantized(
            source, entries, options, folder, reporter, max_memory, plan.caches or ()
        )
        wide, changed = written.wide, changed_graphs(source, entries)
        if source.generates:
            wide += unplanned_overflow_tensors(source, changed, reporter)
        return QuantizationFacts(
            sites=tuple(written.sites),
            packed_bytes=(folder / "weights.safetensors").stat().st_size,
            fp32_bytes=float_bytes(source.export, changed, source.generates),
            quantized=sum(r.weight_sqnr_db is not None for r in written.sites),
            fp32_tensors=tuple(wide),
            caches=tuple(written.caches) or msgspec.UNSET,
        )

    return PreparedStage(workspace.folder("quantize", name), wanted, work)


def read_files(**files: Path | None) -> dict[str, str]:
    """Return the digests of the files that are given, by what they are."""
    return {name: sha256_file(path) for name, path in files.items() if path is not None}


def require_halves_of_tokenizer(options: QuantizeOptions, exported: Manifest) -> None:
    """Raises RecipeError for bits of an encoder or decoder, which only a tokenizer has.

    A graph of one's own that is called so is none.
    """
    kind = kind_of(exported)
    of_kind = HALVES[:1] if kind == "generator" else HALVES  # its decoder has bits of its own
    given = next((n for n in of_kind if getattr(options, n) != getattr(QuantizeOptions(), n)), None)
    if given is not None and options.weight_bits is None and kind != "tokenizer":
        raise RecipeError(
            "is of an image tokenizer's half, and this is none",
            where=given,
            do="use weight_bits, or edit plan.json and give it back with --plan",
        )


def require_float_attention(options: QuantizeOptions, entries: Mapping[str, SitePlan]) -> None:
    """Raises RecipeError for formats of attention, which transformers of generators have."""
    planned = [entry.name for entry in entries.values() if entry.other is not None]
    if planned or options.attention != "float":
        raise RecipeError(
            "only a generator's attention is quantized",
            where=planned[0] if planned else "attention",
            do='leave it "float"',
        )
