"""Open what quantization reads of a calibrated workspace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from ..graph.sites import SiteMap, load_sites
from ..workspace.facts import kind_of, manifest_value
from ..workspace.manifest import Manifest
from ..workspace.stage import require_outputs
from ..workspace.workspace import Workspace

if TYPE_CHECKING:
    from .calibration_run import CalibrationRun
    from .observers.run import Progress

Batch = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Hold what quantization reads of a workspace."""

    export: Path
    exported: Manifest
    calibrate: Path
    calibrated: Manifest
    site_map: SiteMap

    @classmethod
    def open(cls, workspace: Workspace) -> Calibrated:
        """Open the export and the calibration of a workspace.

        Raises:
            WorkspaceError: a stage was not run, or the statistics are of another export.
        """
        export, exported = require_outputs(workspace, "export", stage="export")
        calibrate, calibrated = require_outputs(workspace, "calibrate", stage="calibrate")
        return cls(export, exported, calibrate, calibrated, load_sites(export))

    @property
    def generates(self) -> bool:
        return kind_of(self.exported) == "generator"

    @property
    def planned(self) -> SiteMap:
        """Return the sites that a plan has; other graphs of a generator share theirs."""
        return self.site_map.calibrated

    @property
    def batch_size(self) -> int:
        """Return the number of samples in flight, as calibration had them."""
        return manifest_value(self.calibrated, "options", "batch_size", Batch)

    @property
    def samples(self) -> Path:
        return self.calibrate / "samples"

    @property
    def digests(self) -> dict[str, str]:
        return self.exported.as_inputs() | self.calibrated.as_inputs()

    def run(self, progress: Progress, export: Path | None = None) -> CalibrationRun:
        """Return a run of the calibrated graphs in `export` (None: the FP32 ones)."""
        from .calibration_run import CalibrationRun

        folder = self.export if export is None else export
        return CalibrationRun(folder, self.samples, self.planned.graphs, self.batch_size, progress)
