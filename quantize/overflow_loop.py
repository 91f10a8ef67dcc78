"""The largest magnitudes in a generator's graphs that are not calibrated, such as its decoder.

No sample feeds them: they are seen while the model makes a picture. Convolutional decoders are what
overflows in float16 most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..calibrate.observers.absmax import keep_absmax, observe_absmax
from ..calibrate.observers.run import Outputs, Progress, require_finite
from ..graph.io import graph_bytes, load_graph
from ..graph.sites import SiteMap
from ..runtime.generator import OTHER_GRAPHS, Generator, choose_sampling, own_session, read_spec
from ..runtime.sessions.onnxruntime import SLOW_OPTIMIZERS, Array, DeviceValue, OnnxRuntimeSession
from ..samples.files import Arrays
from .overflow import Peaks

LABEL = 0
# A MAR makes latents of the same size in fewer passes than its own.
MOST_PASSES = 8


def collect_loop_peaks(export: Path, site_map: SiteMap, *, progress: Progress) -> Peaks:
    """max |x| of the float tensors that the FP32 graphs of `export` compute, by graph and tensor.

    Of those with sites that no plan names, while the model makes a picture.

    Raises:
        CalibrationError: a value that is not finite.
    """
    planned = {site.name for site in site_map.calibrated.sites}
    others = {site.graph for site in site_map.sites if site.name not in planned}
    found = {path.stem for path in export.glob("*.onnx")}
    watched = (found & others) - set(site_map.graphs) - set(OTHER_GRAPHS)
    peaks: Peaks = {graph: {} for graph in sorted(watched)}

    _, spec = read_spec(export)
    plain, passes = own_session(spec), choose_sampling(spec).iterations

    def opened(path: Path, threads: int) -> OnnxRuntimeSession:
        watching = path.stem in peaks
        return PeakSession(path, peaks[path.stem]) if watching else plain(path, threads)

    Generator.open(export, session=opened, verify=False).generate(
        [LABEL],
        iterations=passes and min(passes, MOST_PASSES),
        progress=lambda done, total: progress("ranges of other graphs", done, total),
    )
    return peaks


class PeakSession(OnnxRuntimeSession):
    """A graph that keeps in `peaks` the largest magnitude of each tensor over its runs."""

    def __init__(self, path: Path, peaks: dict[str, float]) -> None:
        model = load_graph(path)
        observe_absmax(model.graph)
        super().__init__(
            path, optimized=True, lean=True, graph=graph_bytes(model), disabled=SLOW_OPTIMIZERS
        )
        self._peaks = peaks

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        found = super().run(feeds)
        self._keep(found)
        return found

    def run_on_device(self, feeds: Mapping[str, Array | DeviceValue]) -> dict[str, DeviceValue]:
        found = super().run_on_device(feeds)
        self._keep({name: value.numpy() for name, value in found.items()})
        return found

    def _keep(self, outputs: Outputs) -> None:
        require_finite(outputs, ["a picture of its own"], self.path.stem)
        keep_absmax(self._peaks, outputs)
