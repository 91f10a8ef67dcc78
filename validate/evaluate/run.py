"""Evaluate a generator on tens of thousands of images, or images that lie there already."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from ...calibrate.executors import Execution
from ...errors import CalibrationError, RecipeError, WorkspaceError
from ...recipe.commands import DRAWS
from ...recipe.evaluate import EvaluateOptions
from ...runtime.bundle.open import ANY, BundleAccess, located
from ...runtime.folders import graphs_folder, placed_spec, placement_of
from ...runtime.generator import choose_sampling
from ...runtime.labels import parse_labels
from ...runtime.sampling import Sampling
from ...runtime.spec import GeneratorSpec
from ...workspace.files import atomic_write, digest_files, encode_json, sha256_file
from ...workspace.stage import Reporter
from ..quality.open import FEATURES, FeatureNetwork, open_feature_network
from ..report.gates import Gate, GateResult
from .distribution import Distribution, Features, Reference, measure_distribution
from .execute import run_shards
from .gates import evaluation_gates, gate_results, require_outputs_of
from .reference import extract, is_image_set, open_images, open_reference
from .shards import EvaluationPlan, missing, open_plan, read_features
from .work import ShardTask, Workplace

RESULT = "evaluation.json"
GRAPHS = (".onnx", ".data", ".json", ".engine")


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was measured of `source`, where it lies, and what this call has made.

    ``images_per_second`` is of the images that this call made, None if all were there.
    """

    source: str
    folder: str | None
    plan: EvaluationPlan | None
    made: int
    seconds: float
    images_per_second: float | None
    features: str | None
    reference: str | None
    distribution: Distribution | None
    gates: tuple[GateResult, ...] = ()


def evaluate(
    source: Path,
    options: EvaluateOptions,
    output: Path | None,
    reporter: Reporter,
    access: BundleAccess = ANY,
) -> Evaluation:
    """Make the images of a generator that are missing in `output`, and measure all of them.

    A `source` that is a .npz or a folder of images is measured as it is. Gates are checked, and
    those that failed are in what is returned.

    Raises:
        CalibrationError: images, a network or a reference that cannot be used.
        GenerationError: labels out of range.
        RecipeError: a network of another form, or nothing to do.
        WorkspaceError: no such source; `output` was begun with other options; a folder that was
            changed.
        BundleError: graphs that do not run here.
        AccuracyError: features that are not finite.
    """
    for flag, path in (("--features", options.features), ("--reference", options.reference)):
        if path is not None and not Path(path).exists():
            raise CalibrationError("no such file", where=f"{flag} {path}", do="name another")
    if options.reference is not None and options.features is None:
        raise RecipeError(
            "a reference is compared by a network's features",
            where="--reference",
            do=f"add --features; {FEATURES}",
        )
    gates = evaluation_gates(options.gates, options.features, options.reference)
    if is_image_set(source):
        return evaluate_images(source, options, gates, reporter)
    if not source.exists():
        what = "name a workspace, a bundle, a .npz or a folder of images"
        raise WorkspaceError("no such file or folder", where=str(source), do=what)
    return evaluate_generator(source, options, gates, output, reporter, access)


def evaluate_images(
    source: Path, options: EvaluateOptions, gates: Sequence[Gate], reporter: Reporter
) -> Evaluation:
    images = open_images(source)
    if options.features is None:
        raise RecipeError("nothing is measured without a network", where="--features", do=FEATURES)
    network = open_feature_network(Path(options.features), max(images.side), options.threads)
    require_outputs_of(gates, network.widths, options.features)
    reference = reference_of(options, network, reporter)
    start = time.monotonic()
    features = extract(
        images, network, tuple(network.widths), progress(reporter, "measuring images")
    )
    found = measure_distribution(
        lambda name: iter(features[name]),
        network.widths,
        images.count,
        reference,
        images.side,
        say(reporter),
    )
    return Evaluation(
        source=str(source),
        folder=None,
        plan=None,
        made=0,
        seconds=time.monotonic() - start,
        images_per_second=None,
        features=network.title,
        reference=options.reference,
        distribution=found,
        gates=gate_results(gates, found),
    )


def evaluate_generator(
    source: Path,
    options: EvaluateOptions,
    gates: Sequence[Gate],
    output: Path | None,
    reporter: Reporter,
    access: BundleAccess,
) -> Evaluation:
    graphs = located(source, options.device, access, reporter, wants="generator")
    folder, spec = placed_spec(graphs, options.device)
    if output is None:
        what = f"{options.count:,} images are made into a folder, where a stopped run goes on"
        do = "name one with -o; --count says how many images"
        raise RecipeError(what, where=str(source), do=do)
    network: FeatureNetwork | None = None
    if options.features is not None:
        network = open_feature_network(Path(options.features), spec.image_size, options.threads)
        require_outputs_of(gates, network.widths, options.features)
    plan = plan_of(folder, spec, options)
    open_plan(output, plan)
    reference = None if network is None else reference_of(options, network, reporter)
    start = time.monotonic()
    left = missing(output, plan)
    made = sum(len(plan.numbers(shard)) for shard in left)
    if made:
        reporter.say(f"images to make into {output}: {made:,}")
        make_images(graphs_folder(graphs), output, plan, left, options, reporter)
    seconds = time.monotonic() - start
    distribution: Distribution | None = None
    if network is not None:

        def parts(name: str) -> Iterator[Features]:
            return read_features(output, plan, name)

        distribution = measure_distribution(
            parts, network.widths, plan.count, reference, (spec.image_size,) * 2, say(reporter)
        )
    found = Evaluation(
        source=str(source),
        folder=str(output),
        plan=plan,
        made=made,
        seconds=seconds,
        images_per_second=made / seconds if made else None,
        features=None if network is None else network.title,
        reference=options.reference,
        distribution=distribution,
        gates=gate_results(gates, distribution),
    )
    atomic_write(output / RESULT, encode_json(found))
    return found


def plan_of(folder: Path, spec: GeneratorSpec, options: EvaluateOptions) -> EvaluationPlan:
    """Return which images are made: every class in turn, unless labels are given."""
    files = sorted(p for p in folder.iterdir() if p.suffix in GRAPHS and p.is_file())
    labels = tuple(range(spec.num_classes))
    if options.labels:
        labels = tuple(parse_labels(options.labels, spec.num_classes))
    model = sha256_of(digest_files(folder, files))
    features = None if options.features is None else sha256_file(Path(options.features))
    return EvaluationPlan(
        model=model,
        count=options.count,
        labels=labels,
        seed=options.seed,
        sampling=sampling_of(spec, options),
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        features=features,
        device=placement_of(folder, options.device).text,
        keep_images=options.keep_images,
    )


def sampling_of(spec: GeneratorSpec, options: EvaluateOptions) -> Sampling:
    return choose_sampling(spec, options.greedy, **{name: getattr(options, name) for name in DRAWS})


def sha256_of(digests: Mapping[str, str]) -> str:
    import hashlib

    return hashlib.sha256(encode_json(dict(digests))).hexdigest()


def make_images(
    graphs: Path,
    output: Path,
    plan: EvaluationPlan,
    left: list[int],
    options: EvaluateOptions,
    reporter: Reporter,
) -> None:
    """Make the shards that are left; shards of an earlier call count as done from the start."""
    execution = Execution.choose(options.executor, options.workers)
    place = Workplace(
        graphs=graphs.resolve(),
        output=output.resolve(),
        network=None if options.features is None else Path(options.features).resolve(),
        device=options.device,
        allow_fallback=options.allow_fallback,
        threads=options.threads or execution.threads,
    )
    tell = progress(reporter, "making images")
    done = plan.count - sum(len(plan.numbers(shard)) for shard in left)
    if done:
        reporter.say(f"{done:,} of {plan.count:,} images are there already")
    tell(done, plan.count)

    def finished(shard: int) -> None:
        nonlocal done
        done += len(plan.numbers(shard))
        tell(done, plan.count)

    tasks = [ShardTask(place, plan, shard) for shard in left]
    run_shards(execution, tasks, finished, reporter.warn)


def reference_of(
    options: EvaluateOptions, network: FeatureNetwork, reporter: Reporter
) -> Reference | None:
    if options.reference is None:
        return None
    tell = progress(reporter, "reading the reference")
    return open_reference(Path(options.reference), network, tell)


def progress(reporter: Reporter, task: str) -> Callable[[int, int], None]:
    return lambda done, total: reporter.progress(task, done, total)


def say(reporter: Reporter) -> Callable[[str], None]:
    return lambda step: reporter.progress(step, 0, 1)
