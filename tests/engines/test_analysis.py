from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from arvg_trt.cli import cli
from arvg_trt.commands.info import MOST_ROWS, node_lines
from arvg_trt.engines.analysis import analyze_files
from arvg_trt.engines.verdicts import TARGETS
from arvg_trt.graph.sites import NodeVerdict, SiteMap
from arvg_trt.pipeline.export import export_any
from arvg_trt.workspace.files import decode_json
from arvg_trt.workspace.stage import SilentReporter
from arvg_trt.workspace.workspace import Workspace

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
# A residual block between two convolutions, a grouped one beside it, then what no engine builds.
BLOCK = """g (float[n, 3, 8, 8] x) => (float[n, 4] y, int64[4, k] found) {
    a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w1)
    r = Relu(a)
    b = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r, w2)
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 4>(b, w3)
    d = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(c, w4)
    noise = RandomNormalLike(d)
    e = Add(d, noise)
    p = GlobalAveragePool(e)
    f = Flatten(p)
    y = MatMul(f, w5)
    found = NonZero(e)
}"""
SHAPES = {"w1": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 1, 3, 3), "w4": (4, 4, 3, 3)}


@pytest.fixture
def block(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(f"{HEADER} {BLOCK}")
    rng = np.random.default_rng(0)
    for name, shape in {**SHAPES, "w5": (4, 4)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "block.onnx")
    return tmp_path / "block.onnx"


def test_each_product_has_a_verdict_on_each_target(block: Path) -> None:
    (found,) = analyze_files([block], TARGETS)
    targets = {v.node: v.targets for v in found.verdicts}
    assert targets["w2"] == {
        "onnxruntime": "INT8",
        "sm75": "high precision",  # has no INT8 convolution
        "sm86": "INT8",
        "sm89": "INT8 or FP8",
        "sm120": "INT8 or FP8",
    }
    assert targets["w5"]["sm75"] == "high precision"  # the last product of a convolutional graph
    reasons = {v.node: v.reason for v in found.verdicts}
    assert reasons["w3"] == "a convolution in groups"


def test_what_no_engine_builds_is_named_with_its_reason(block: Path) -> None:
    (found,) = analyze_files([block], ["rtx4090"])
    (odd,) = [v for v in found.verdicts if v.op == "NonZero"]
    assert odd.targets == {"onnxruntime": "high precision", "sm89": "not buildable"}
    assert odd.reason == "TensorRT for RTX has no kernel for this operator"
    (noise,) = [v for v in found.verdicts if v.op == "RandomNormalLike"]
    assert "draws random numbers" in str(noise.reason)
    assert found.counts["sm89"] == {"INT8 or FP8": 2, "high precision": 8, "not buildable": 1}


def test_export_keeps_the_table_and_warns_of_what_stops_a_build(
    block: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warnings: list[str] = []

    class Keeping(SilentReporter):
        def warn(self, line: str) -> None:
            warnings.append(line)

    with Workspace(tmp_path / "ws") as workspace:
        export_any(workspace, "onnx", None, "", [block], Keeping())
        sites = decode_json(workspace.folder("export") / "sites.json", SiteMap, do="")
    (found,) = analyze_files([block], TARGETS)
    assert sites.nodes == found.verdicts
    assert len(warnings) == 1 and "(NonZero): TensorRT for RTX has no kernel" in warnings[0]


def test_the_command_prints_a_table_and_goes_on_behind_a_bad_file(
    block: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    outcome = CliRunner().invoke(cli, ["analyze", str(bad), str(block), "--target", "t4"])
    assert outcome.exit_code == 4
    assert f"{bad}: refused: is not an ONNX model" in outcome.stdout
    assert "not buildable   0            1" in outcome.stdout


def test_the_command_names_the_nodes_and_why_and_each_with_all(block: Path) -> None:
    short, every = (
        CliRunner().invoke(cli, ["analyze", str(block), "--target", "rtx4090", *more]).stdout
        for more in ((), ("--all",))
    )
    verdicts = analyze_files([block], ["rtx4090"])[0].verdicts
    for verdict in verdicts:
        (line,) = (ln for ln in every.splitlines() if ln.split()[:2] == [verdict.node, verdict.op])
        assert (verdict.reason or "INT8 (onnxruntime); INT8 or FP8 (sm89)") in line
    assert "INT8 (onnxruntime); INT8 or FP8 (sm89)" in short
    assert "a convolution in groups" in short or "NonZero" in short
    assert f"The other {11 - len(verdicts)} nodes are no products" in short


def test_many_kinds_of_nodes_are_cut_and_what_stops_a_build_is_not() -> None:
    kinds = [
        NodeVerdict(
            graph="g",
            node=f"n{k}",
            op=f"Op{k}",
            targets={"sm89": "not buildable" if k == 29 else "high precision"},
            reason="x",
        )
        for k in range(30)
    ]
    lines = node_lines(kinds)
    assert len(lines) == 2 + MOST_ROWS + 1 and "18 more kinds of nodes: --all" in lines[-1]
    assert any(line.split()[0] == "n29" for line in lines[2:])
    assert len(node_lines(kinds, every=True)) == 2 + 30


def test_json_has_every_node(block: Path) -> None:
    outcome = CliRunner().invoke(cli, ["analyze", str(block), "--json"])
    (graph,) = json.loads(outcome.stdout)["graphs"]
    assert outcome.exit_code == 0 and len(graph["verdicts"]) == 7


def test_an_unknown_target_is_refused(block: Path) -> None:
    outcome = CliRunner().invoke(cli, ["analyze", str(block), "--target", "rtx409O"])
    assert outcome.exit_code == 6 and "nearest names" in outcome.output
