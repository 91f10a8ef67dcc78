"""The values of a generator's decoder are seen while it makes images."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.errors import CalibrationError
from arvg_trt.graph.builder import constant_array
from arvg_trt.graph.sites import SiteMap
from arvg_trt.graph.weight_file import SharedWeights
from arvg_trt.quantize.overflow import LABEL, LIMIT, collect_loop_absmax, overflow_tensors
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import fast_session, open_session
from arvg_trt.runtime.sessions.session import Session, SessionObserver
from arvg_trt.workspace.files import decode_json

from ..families.generators import activations
from ..families.rar.models import TinyRar
from ..families.tiny import silent


def site_map_of(folder: Path) -> SiteMap:
    """Return the sites, of a plan that leaves the decoder in high precision."""
    found = decode_json(folder / "sites.json", SiteMap, do="")
    graphs = tuple(graph for graph in found.graphs if graph != "decoder")
    return msgspec.structs.replace(found, graphs=graphs)


def decoder_feeds(folder: Path) -> dict[str, np.ndarray]:
    """Return what the decoder is fed for the images that are looked at."""
    fed: list[dict[str, np.ndarray]] = []

    class Recorder(SessionObserver):
        def run(self, feeds, outputs=None):  # type: ignore[no-untyped-def]
            fed.append(dict(feeds))
            return super().run(feeds, outputs)

    def opened(path: Path, threads: int) -> Session:
        decodes = path.stem == "decoder"
        return (
            Recorder(open_session(path, optimized=True)) if decodes else fast_session(path, threads)
        )

    Generator.open(folder, session=opened, verify=False).generate([LABEL])
    assert len(fed) == 1
    return fed[0]


def with_weights_times(source: Path, folder: Path, factor: float) -> Path:
    """A copy of an export, the decoder's first convolution multiplied."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.onnx", "*.data"))
    site = next(s for s in site_map_of(source).of_graph("decoder") if s.op == "Conv")
    with SharedWeights(folder) as weights:
        for path in sorted(source.glob("*.onnx")):
            model = ir.load(path)
            if path.stem == "decoder":
                value = model.graph.initializers[str(site.weight)]
                held = constant_array(value) * np.float32(factor)
                value.const_value = ir.tensor(held, name=value.name)
            weights.write(model, path.stem)
    return folder


def test_peaks_of_the_decoder_are_those_of_its_tensors_on_what_the_loop_feeds_it(
    tiny_rar: TinyRar,
) -> None:
    peaks = collect_loop_absmax(tiny_rar.folder, site_map_of(tiny_rar.folder), progress=silent)
    assert list(peaks) == ["decoder"]  # the others compute what the full graph does
    found = peaks["decoder"]
    feeds = decoder_feeds(tiny_rar.folder)
    wanted = activations(tiny_rar.folder / "decoder.onnx", feeds, list(found))
    assert len(found) > 30
    for name, value in wanted.items():
        assert np.isclose(found[name], np.abs(value).max(), rtol=1e-4, atol=1e-6), name


def test_a_decoder_that_overflows_in_half_has_its_tensors_listed(
    tiny_rar: TinyRar, tmp_path: Path
) -> None:
    folder = with_weights_times(tiny_rar.folder, tmp_path / "export", 1e5)
    site_map = site_map_of(folder)
    plain = collect_loop_absmax(tiny_rar.folder, site_map, progress=silent)
    assert overflow_tensors(tiny_rar.folder, plain) == []
    listed = overflow_tensors(folder, collect_loop_absmax(folder, site_map, progress=silent))
    first = next(s for s in site_map.of_graph("decoder") if s.op == "Conv")
    named = {tensor.tensor: tensor for tensor in listed}
    assert first.output in named and first.node in named[first.output].nodes
    assert all(t.graph == "decoder" and t.max > LIMIT for t in listed)


def test_a_decoder_that_makes_infinity_is_refused(tiny_rar: TinyRar, tmp_path: Path) -> None:
    folder = with_weights_times(tiny_rar.folder, tmp_path / "export", np.inf)
    with pytest.raises(CalibrationError, match="decoder makes NaN or infinity"):
        collect_loop_absmax(folder, site_map_of(folder), progress=silent)


def test_a_step_with_caches_is_watched_too(tiny_rar: TinyRar) -> None:
    """Where a step has a site that no plan names, as a family's own graphs may."""
    site_map = site_map_of(tiny_rar.folder)
    step = next(site for site in site_map.of_graph("step"))
    sites = (*site_map.sites, msgspec.structs.replace(step, name="step alone"))
    watched = msgspec.structs.replace(site_map, sites=sites)
    absmax = collect_loop_absmax(tiny_rar.folder, watched, progress=silent)
    assert step.output in absmax["step"] and absmax["step"][step.output] > 0
