"""Define a workspace for Python programs: each stage of the command line is a method."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .recipe.base import with_changes
from .recipe.build import BuildOptions
from .recipe.calibrate import CalibrateOptions
from .recipe.commands import SearchOptions
from .recipe.quantize import MAX_MEMORY, QuantizeOptions, with_implied
from .recipe.recipe import Recipe
from .recipe.validate import ValidateOptions
from .workspace.stage import Reporter, SilentReporter, StageResult
from .workspace.workspace import Workspace as LockedWorkspace

if TYPE_CHECKING:
    from .pipeline.bundle import BundleResult
    from .pipeline.ship import VerifyResult
    from .validate.compare.compare import Comparison
    from .validate.report.schema import Report

Place = str | PathLike[str]


class Workspace:
    """Hold stage outputs in a folder; every stage is skipped while its output is up to date.

    Options are those of the commands and recipes, by keyword, over the `options` that are given.
    Each method locks the folder while it runs. An error that a user can act on is an
    `arvg_trt.errors.ArvgError`.
    """

    def __init__(self, path: Place, reporter: Reporter | None = None) -> None:
        """Name a folder; `reporter` gets progress and messages, without one there are none."""
        self.path = Path(path)
        self.reporter = SilentReporter() if reporter is None else reporter

    def __repr__(self) -> str:
        return f"Workspace({str(self.path)!r})"

    def export(
        self,
        model: str,
        checkpoint: Place | None = None,
        *,
        graphs: Sequence[Place] = (),
        title: str | None = None,
        images: str = "skimage",
        static_batch: int | None = None,
        kv_type: Literal["float32", "float16"] = "float32",
        weights: Literal["ema", "model"] | None = None,
        force: bool = False,
    ) -> StageResult:
        """Export a model that `arvg-trt models` lists, or with `model="onnx"` your own `graphs`.

        `title` is what the latter are called in reports and bundles; by default as their files.
        `force` replaces the export of another model that later stages were made from.
        """
        from .export.shape import ExportShape
        from .pipeline.export import export_any

        form = ExportShape(static_batch, kv_type)
        found = None if checkpoint is None else fspath(checkpoint)
        files = [Path(graph) for graph in graphs]
        with LockedWorkspace(self.path) as opened:
            return export_any(
                opened,
                model,
                found,
                images,
                files,
                self.reporter,
                form,
                weights,
                title,
                force=force,
            )

    def calibrate(self, options: CalibrateOptions | None = None, **changes: Any) -> StageResult:
        """Collect statistics of the exported graphs."""
        from .pipeline.calibrate import calibrate_stage

        chosen = with_changes(options or CalibrateOptions(), **changes)
        with LockedWorkspace(self.path) as opened:
            return calibrate_stage(opened, chosen, self.reporter)

    def quantize(
        self,
        name: str = "int8",
        options: QuantizeOptions | None = None,
        *,
        plan: Place | None = None,
        max_memory: int = MAX_MEMORY,
        **changes: Any,
    ) -> StageResult:
        """Write the Q/DQ graphs of a quantization called `name`; `plan` is an edited plan.json."""
        from .pipeline.quantize import quantize_stage

        file = None if plan is None else fspath(plan)
        chosen = with_changes(options or QuantizeOptions(), plan=file, **with_implied(changes))
        with LockedWorkspace(self.path) as opened:
            return quantize_stage(opened, name, chosen, self.reporter, max_memory)

    def search(
        self,
        name: str = "search",
        options: QuantizeOptions | None = None,
        *,
        activation_bits: int | None = None,
        exclude: Sequence[str] | None = None,
        **changes: Any,
    ) -> StageResult:
        """Find the plan of least loss within `budgets=["avg_bits<=5"]`."""
        from .pipeline.search import search_stage

        left = None if exclude is None else list(exclude)
        search_options = with_changes(
            options or QuantizeOptions(), activation_bits=activation_bits, exclude=left
        )
        wanted = with_changes(SearchOptions(), **changes)
        with LockedWorkspace(self.path) as opened:
            return search_stage(opened, name, search_options, wanted, self.reporter)

    def build(
        self, name: str = "int8", options: BuildOptions | None = None, **changes: Any
    ) -> list[StageResult]:
        """Build the engines of a back end; return a result per folder of engines."""
        from .pipeline.build import build_stage

        chosen = with_changes(options or BuildOptions(), **changes)
        with LockedWorkspace(self.path) as opened:
            return list(build_stage(opened, name, chosen, self.reporter))

    def validate(
        self, name: str = "int8", options: ValidateOptions | None = None, **changes: Any
    ) -> Report:
        """Compare a quantization with FP32; return the report, which is in the folder too.

        Raises:
            AccuracyError: a gate fails; the report is written all the same.
            InconclusiveError: none fails, and the samples do not decide one.
        """
        from .pipeline.validate import validate_stage

        chosen = with_changes(options or ValidateOptions(), **changes)
        with LockedWorkspace(self.path) as opened:
            validate_stage(opened, name, chosen, self.reporter)
        return self.report(name)

    def bundle(
        self,
        output: Place,
        name: str = "int8",
        *,
        key: Place | None = None,
        licenses: Sequence[Place] = (),
        kit: bool = True,
        reference: bool = False,
        packed: bool = False,
    ) -> BundleResult:
        """Pack the engines of a quantization into one file, signed by a private key's file.

        The weights of `packed` graphs take their own few bits in it, and are expanded on a device.
        """
        from .pipeline.bundle import bundle_workspace

        signer = None if key is None else Path(key)
        terms = [Path(license) for license in licenses]
        with LockedWorkspace(self.path) as opened:
            return bundle_workspace(
                opened,
                name,
                Path(output),
                self.reporter,
                key=signer,
                licenses=terms,
                kit=kit,
                reference=reference,
                packed=packed,
            )

    def report(self, name: str = "int8") -> Report:
        """Read the report of a validated quantization."""
        return load_report(self.path / "validate" / name)


def run_recipe(
    recipe: Recipe | Place, reporter: Reporter | None = None, max_memory: int = MAX_MEMORY
) -> Report:
    """Run every stage of a recipe, a TOML file or a preset's name; return the report."""
    from .pipeline.run import run_recipe as run_stages
    from .recipe.file import load_recipe
    from .recipe.paths import require_paths

    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if not isinstance(recipe, Recipe):
        require_paths(chosen, recipe)
    run_stages(chosen, SilentReporter() if reporter is None else reporter, max_memory)
    return Workspace(chosen.workspace).report(chosen.name)


def verify_bundle(
    path: Place, require_keys: Place | Sequence[Place] = (), reporter: Reporter | None = None
) -> VerifyResult:
    """Check every byte of a bundle and the keys that are required; say what of it opens here.

    Raises:
        IntegrityError: it is damaged, changed, or not signed as required.
    """
    from .pipeline.ship import verify_file
    from .runtime.bundle.open import access_by

    keys = access_by(require_keys).keys
    return verify_file(Path(path), keys, SilentReporter() if reporter is None else reporter)


def load_report(path: Place) -> Report:
    """Read a report.json, or the one in a folder."""
    from .validate.report.files import load_report as read

    return read(Path(path))


def compare_reports(*reports: Place | Report, allow_different: bool = False) -> Comparison:
    """Compare reports with the first one; `regressed` of the result says whether any is worse."""
    from .validate.compare.compare import compare

    named = [
        (fspath(report), load_report(report))
        if isinstance(report, (str, PathLike))
        else (f"{report.model} {report.name} ({k})", report)
        for k, report in enumerate(reports)
    ]
    return compare(named, allow_different=allow_different)
