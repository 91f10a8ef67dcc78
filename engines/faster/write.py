"""Write the Q/DQ graphs of a quantization without the rounding that a choice leaves out."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import onnx_ir as ir

from ...graph.io import read_graph
from ...graph.sites import SiteMap
from ...graph.weight_file import INLINE, WEIGHTS, SharedWeights
from ...quantize.chains import ends_of
from ...runtime.families import SPEC_FILE
from .in_float import compute_in_float


def write_decided(
    export: Path,
    source: Path,
    site_map: SiteMap,
    in_float: Mapping[str, Collection[str]],
    folder: Path,
) -> None:
    """Write the graphs of `source` to a new folder, those sites in float that `in_float` names.

    By graph. Their weights stay as they were rounded, in float32. Weights that graphs share stay in
    one file: of a site that rounds its inputs in one graph alone, both forms.

    Raises:
        BuildError: the nodes of a site are not those that `quantize` writes.
    """
    folder.mkdir()
    paths = sorted(source.glob("*.onnx"))
    if not (source / WEIGHTS).is_file():
        for path in paths:
            model = decided(export, path, site_map, in_float.get(path.stem, ()))
            data = f"{path.name}.data"
            ir.save(model, folder / path.name, external_data=data, size_threshold_bytes=INLINE)
        return
    with SharedWeights(folder) as weights:
        for path in paths:
            model = decided(export, path, site_map, in_float.get(path.stem, ()))
            weights.write(model, path.stem)
    if (source / SPEC_FILE).is_file():
        shutil.copyfile(source / SPEC_FILE, folder / SPEC_FILE)


def decided(export: Path, path: Path, site_map: SiteMap, in_float: Collection[str]) -> ir.Model:
    """Return a graph of a quantization, with the sites named in `in_float` in floats."""
    model = read_graph(path)
    sites = [site for site in site_map.of_graph(path.stem) if site.name in in_float]
    if sites:
        fp32 = read_graph(export / path.name).graph
        compute_in_float(model.graph, sites, {site.name: ends_of(fp32, site) for site in sites})
    return model
