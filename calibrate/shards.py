"""Statistics and samples of several runs of one export, made into one."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..errors import CalibrationError
from ..samples.files import (
    DECODER_SAMPLES,
    SAMPLES,
    sample_files,
    sample_labels,
    save_labels,
)
from ..workspace.facts import export_digest, facts, manifest_value, require_same_export
from ..workspace.files import decode_json, sha256_file
from ..workspace.manifest import MANIFEST, Manifest
from ..workspace.stage import Reporter
from .convergence import Convergence, RangeGrowth, convergence
from .facts import CalibrationFacts, MergedFacts, PartFacts
from .statistics import STATISTICS, load_exported, merge, save_statistics


class PartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Those options of a part that the manifest of the whole repeats."""

    seed: int | msgspec.UnsetType = msgspec.UNSET
    samples: int | msgspec.UnsetType = msgspec.UNSET
    shard: str | msgspec.UnsetType | None = msgspec.UNSET
    labels: str | msgspec.UnsetType | None = msgspec.UNSET
    synthetic: bool | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Part:
    """Hold statistics and their samples; a file alone has neither samples nor a manifest.

    `files` are digests by name within the part.
    """

    name: str
    statistics: Path
    samples: tuple[Path, ...]
    files: dict[str, str]
    manifest: Manifest | None

    @property
    def facts(self) -> PartFacts:
        """Return name, number of samples and options, as the manifest of the whole has them."""
        options = facts(self.manifest, PartOptions, "options") if self.manifest else PartOptions()
        return PartFacts(
            name=self.name,
            samples_saved=sum(path.parent.name == SAMPLES for path in self.samples),
            **msgspec.structs.asdict(options),
        )


def open_parts(given: Sequence[Path], exported: Manifest, reporter: Reporter) -> list[Part]:
    """Open all parts and check that they can be merged, before anything is written.

    Raises:
        CalibrationError: parts of another export or model, one that was changed, no samples, or
            fewer than two parts.
    """
    if len(given) < 2:
        raise CalibrationError("there is nothing to merge", do="name two parts or more")
    parts = [open_part(path, exported) for path in given]
    wanted = export_digest(exported)
    loaded = []
    for part in parts:
        statistics, digest = load_exported(part.statistics)
        if digest is not None and digest != wanted:
            raise CalibrationError(
                "the statistics are of another export",
                where=str(part.statistics),
                do="merge parts of one export only",
            )
        if digest is None and part.manifest is None:
            raise CalibrationError(
                "does not say which export it is of",
                where=str(part.statistics),
                do="name the folder that `arvg-trt calibrate` wrote",
            )
        loaded.append(statistics)
    merge(loaded)  # whether they fit
    require_samples(parts)
    warn_of_repeats(parts, reporter)
    return parts


def batch_size_of(parts: Sequence[Part]) -> int:
    """Return the largest number of samples that a part had in flight."""
    return max(
        manifest_value(p.manifest, "options", "batch_size", int) for p in parts if p.manifest
    )


def merge_parts(parts: Sequence[Part], exported: Manifest, folder: Path) -> MergedFacts:
    """Write the statistics and samples of `parts` as one calibration to `folder`."""
    found = combine_parts(
        [part.statistics for part in parts],
        [list(part.samples) for part in parts],
        folder,
        export=export_digest(exported),
    )
    results = [facts(part.manifest, CalibrationFacts) for part in parts if part.manifest]
    return MergedFacts(
        classes=tuple(sorted({c for r in results for c in r.classes})),
        images=tuple(dict.fromkeys(name for r in results for name in r.images)),
        skipped=tuple(dict.fromkeys(name for r in results for name in r.skipped)),
        samples=sum(r.samples for r in results),
        synthetic=any(r.synthetic for r in results),
        parts=tuple(part.facts for part in parts),
        convergence=found,
    )


def open_part(path: Path, exported: Manifest) -> Part:
    """Open a part.

    Raises:
        CalibrationError: it is no part, is of another export, or was changed.
    """
    if path.is_file():
        return Part(path.name, path, (), {STATISTICS: sha256_file(path)}, None)
    folder = path / "calibrate" if (path / "calibrate").is_dir() else path
    if not (folder / STATISTICS).is_file():
        raise CalibrationError(
            "holds no statistics",
            where=str(path),
            do="name a workspace, its calibrate folder or a statistics file",
        )
    manifest = decode_json(folder / MANIFEST, Manifest, do="run `arvg-trt calibrate` there again")
    require_same_export(exported, manifest, str(folder))
    digests = {
        name: sha256_file(folder / name) for name in manifest.outputs if (folder / name).exists()
    }
    odd = [name for name, digest in manifest.outputs.items() if digests.get(name) != digest]
    if odd:
        raise CalibrationError(
            "is missing, or was changed after `arvg-trt calibrate` wrote it",
            where=str(folder / odd[0]),
            do="run `arvg-trt calibrate` there again",
        )
    name = folder.parent.name if folder.name == "calibrate" else folder.name
    samples = saved_files(folder)
    return Part(name, folder / STATISTICS, samples, digests, manifest)


def saved_files(folder: Path) -> tuple[Path, ...]:
    """Return the samples that a calibration saved: of the model, then of its image decoder."""
    decoded = folder / DECODER_SAMPLES
    own = sample_files(folder / SAMPLES)
    return (*own, *(sample_files(decoded) if decoded.is_dir() else ()))


def require_samples(parts: Sequence[Part]) -> None:
    """Raises CalibrationError where no part has its samples."""
    if not any(part.samples for part in parts):
        raise CalibrationError(
            "none of the parts has its samples, which `arvg-trt quantize` runs again",
            where=str(parts[0].statistics),
            do="name the folder of one at least",
        )


def warn_of_repeats(parts: Sequence[Part], reporter: Reporter) -> None:
    """Warn of samples that several parts have, which count twice."""
    digests: Counter[str] = Counter()
    for part in parts:
        own = {digest for name, digest in part.files.items() if name.startswith("samples/")}
        repeated = sum(digest in digests for digest in own)
        if repeated:
            reporter.warn(
                f"{repeated} samples of {part.name} are in another part too: give parts their own "
                "--shard or --seed"
            )
        digests.update(own)


def combine_parts(
    statistics: Sequence[Path],
    samples: Sequence[Sequence[Path]],
    folder: Path,
    *,
    export: str | None = None,
) -> Convergence:
    """Write the parts' statistics as one, and their samples one after the other, to `folder`.

    Returns how much the scales grew with the last half of the parts.

    Raises:
        CalibrationError: statistics of different models.
    """
    loaded = [load_exported(path) for path in statistics]
    (folder / SAMPLES).mkdir(exist_ok=True)
    known = {folder: sample_labels(folder) for folder in {f.parent for p in samples for f in p}}
    labels: dict[str, str] = {}
    counts = Counter[str]()
    for path in (path for part in samples for path in part):
        target = folder / path.parent.name
        target.mkdir(exist_ok=True)
        name = f"{counts[target.name]:05d}.{path.name.partition('.')[2]}"
        counts[target.name] += 1
        shutil.copyfile(path, target / name)
        if path.name in known[path.parent]:
            labels[name] = known[path.parent][path.name]
    if labels:
        save_labels(folder / SAMPLES, labels)
    merged = merge(part for part, _ in loaded)
    save_statistics(merged, folder / STATISTICS, export=export or loaded[0][1])
    growth = RangeGrowth(len(loaded))
    for part, _ in loaded:
        for name, stats in part.items():
            growth.add(name, stats)
    return convergence(growth)
