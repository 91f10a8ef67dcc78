"""Tiny generators whose caches alone are quantized, and the logits that their loops compute."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.graph.sites import SiteMap, load_sites
from arvg_trt.numerics.scheme import CachePlan, CacheType
from arvg_trt.quantize.facts import CacheRow
from arvg_trt.quantize.kv_cache.apply import quantize_caches, write_spec
from arvg_trt.quantize.kv_cache.plan import attention_names
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.runtime.sessions.session import Array, DeviceValue, Session, SessionObserver
from arvg_trt.samples.files import save_sample
from arvg_trt.samples.forcing import forced_rows, teacher_forcing
from arvg_trt.samples.generated import null_class

from ...families.tiny import silent

LABELS = [1, 3]


def plans(site_map: SiteMap, kind: CacheType, **changes: str) -> list[CachePlan]:
    made = [CachePlan(name=name, type=kind) for name in attention_names(site_map)]
    return [msgspec.structs.replace(plan, **changes) for plan in made]


def with_cache(
    source: Path, samples: Path, site_map: SiteMap, folder: Path, kind: CacheType, **changes: str
) -> tuple[tuple[CachePlan, ...], tuple[CacheRow, ...]]:
    """Copy float graphs, and quantize nothing but their caches."""
    shutil.copytree(source, folder)
    run = CalibrationRun(folder, samples, ("full",), 2, silent)
    return quantize_caches(run, site_map, plans(site_map, kind, **changes))


class LogitsRecorder(SessionObserver):
    """Keep the logits of every step, and the types of what it gives."""

    def __init__(self, session: Session, logits: list[Array], types: set[str]) -> None:
        super().__init__(session)
        self._logits, self._types = logits, types

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        found = super().run_on_device(feeds, host)
        if "logits" in found:
            self._logits.append(found["logits"].numpy().copy())
            self._types.update(self.types[name] for name in found if name.startswith("present_"))
        return found


def generator_with_cache(export: Path, folder: Path, kind: CacheType) -> Path:
    """Write a whole generator folder with its caches alone quantized, on tokens of its own."""
    made = Generator.open(export, session=reference_session, verify=False).generate(
        [0, 2, 4], seed=5
    )
    samples = folder.parent / "samples"
    samples.mkdir()
    spec = Generator.open(export, session=reference_session, verify=False).spec
    forced = teacher_forcing(export)(made.tokens)
    for k, row in enumerate(forced_rows(forced, made.labels.tolist(), null_class(spec))):
        save_sample(row, samples, k)
    site_map = load_sites(export)
    shutil.copytree(export, folder)
    (folder / "manifest.json").unlink()
    run = CalibrationRun(folder, samples, ("full",), 2, silent)
    entries = plans(site_map, kind)
    quantize_caches(run, site_map, entries)
    write_spec(export, folder, entries)
    return folder


def looped_and_forced(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], set[str]]:
    """Return logits [rows, L, V] of a loop, those of all its tokens at once, and cache types."""
    logits: list[Array] = []
    types: set[str] = set()

    def opened(path: Path, threads: int) -> Session:
        return LogitsRecorder(reference_session(path, threads), logits, types)

    generator = Generator.open(folder, session=opened, verify=False)
    made = generator.generate(LABELS, seed=3, batch_size=len(LABELS))
    spec = generator.spec
    rows = [*forced_rows(teacher_forcing(folder)(made.tokens), LABELS, null_class(spec))]
    full = reference_session(folder / "full.onnx")
    forced = np.concatenate([full.run(row, ["logits"])["logits"] for row in rows])
    looped = np.concatenate(logits, axis=1).astype(np.float32)[:, -forced.shape[1] :]
    # Rows of a loop are the conditional ones, then the null ones; here they come in pairs.
    return looped, np.concatenate([forced[::2], forced[1::2]]), types
