"""`generate`: labels to PNGs, a grid, the ADM evaluator's .npz and tokens."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import msgspec

from ..errors import GenerationError
from ..recipe.commands import DRAWS, GenerateOptions
from ..runtime.bundle.open import ANY, BundleAccess, located
from ..runtime.files import Outputs, require_new, write_batches
from ..runtime.folders import placed_spec
from ..runtime.generator import Generator, choose_sampling
from ..runtime.labels import check_labels, parse_labels, require_few
from ..runtime.sampling import Sampling
from ..workspace.stage import Reporter, in_stage


class GenerateResult(msgspec.Struct, frozen=True, kw_only=True):
    """Every file that was made, and the places that the user named."""

    labels: list[int]
    seed: int
    sampling: Sampling
    seconds: float
    files: list[Path]
    written: list[Path]


def generate_files(
    path: Path,
    options: GenerateOptions,
    outputs: Outputs,
    reporter: Reporter,
    access: BundleAccess = ANY,
    *,
    replace: bool = False,
) -> GenerateResult:
    """Generate with the graphs of a workspace, a stage's folder or a bundle; write the `outputs`.

    PNGs are written as they come, each in one rename; the .npz files take their names at the end.

    Raises:
        GenerationError: labels or options out of range, nothing to write.
        WorkspaceError: the folder is not what its stage wrote, or a file is there already,
            unless they may `replace` it.
        BundleError: no such device, or engines that do not run there.
    """
    if outputs == Outputs():
        raise GenerationError("nowhere to write", do="give -o FOLDER, --npz FILE or --tokens FILE")
    reporter = in_stage(reporter, "generate")
    path = located(path, options.device, access, reporter, wants="generator")
    _, spec = placed_spec(path, options.device)
    sampling = choose_sampling(
        spec, options.greedy, **{name: getattr(options, name) for name in DRAWS}
    )
    classes = parse_labels(options.labels, spec.num_classes)
    require_few(len(classes) * options.count)
    labels = check_labels(spec, [label for label in classes for _ in range(options.count)])
    if not replace:
        require_new(outputs.paths(labels.tolist()))
    start = time.monotonic()
    generator = Generator.open(
        path,
        device=options.device,
        allow_fallback=options.allow_fallback,
        threads=options.threads,
    )
    for text in generator.fallbacks:
        reporter.warn(text)
    batches = generator.batches(
        labels,
        seed=options.seed,
        sampling=sampling,
        batch_size=options.batch_size,
        progress=partial(reporter.progress, f"steps of {len(labels)} images"),
    )
    shape = (len(labels), spec.image_size, spec.image_size, 3)
    columns = options.count if options.count > 1 else None  # a row a label
    files = write_batches(batches, shape, outputs, columns)
    return GenerateResult(
        labels=labels.tolist(),
        seed=options.seed,
        sampling=sampling,
        seconds=time.monotonic() - start,
        files=files,
        written=[p for p in (outputs.folder, outputs.npz, outputs.tokens) if p],
    )
