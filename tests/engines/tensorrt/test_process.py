"""Plans of graphs with several outputs have the same bytes on every build."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.engines.tensorrt import process as engine_process
from arvg_trt.engines.tensorrt.addresses import ADDR_NO_RANDOMIZE, TRIED
from arvg_trt.engines.tensorrt.build import BuildResult
from arvg_trt.engines.tensorrt.half_precision_files import write_half_precision
from arvg_trt.engines.tensorrt.inspect import table_order
from arvg_trt.engines.tensorrt.process import TRIES, Compiled, compile_engine
from arvg_trt.engines.tensorrt.targets import resolve_target
from arvg_trt.errors import BuildError
from arvg_trt.graph.sites import load_sites

from ...command_line import Finished

pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")

OUTPUTS = ("latent", "indices", "more")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Codes and what they were rounded from, as a tokenizer's encoder gives both."""
    info, node = helper.make_tensor_value_info, helper.make_node
    weight = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float16)
    nodes = [
        node("MatMul", ["x", "w"], ["latent"], name="linear"),
        node("Round", ["latent"], ["rounded"], name="round"),
        node("Cast", ["rounded"], ["indices"], name="cast", to=TensorProto.INT32),
        node("Sigmoid", ["latent"], ["more"], name="sigmoid"),
    ]
    kinds = (TensorProto.FLOAT16, TensorProto.INT32, TensorProto.FLOAT16)
    made = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT16, [4, 16])],
        [info(name, kind, [4, 16]) for name, kind in zip(OUTPUTS, kinds, strict=True)],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "g.onnx"
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=10), path)
    return path


def build(graph: Path, output: Path) -> BuildResult:
    target = resolve_target("sm89", "tensorrt_rtx")
    return compile_engine(graph, output, backend="tensorrt_rtx", targets=[target], profiles={})


def test_ten_builds_of_several_outputs_have_the_same_bytes(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies in the environment, and however long the folder's name is: compiled in a usual
    process, two of fourteen of these plans were others.
    """
    sites = load_sites(finished.workspace / "export").of_graph("encoder")
    source = finished.workspace / "quantize" / "int8"
    target = resolve_target("sm89", "tensorrt_rtx")
    shapes = {"image": ((1, 3, 64, 64),) * 3}
    digests = set()
    for k in range(10):
        folder = tmp_path / ("d" * (1 + 9 * k))
        folder.mkdir()
        monkeypatch.setenv(f"ARVG_TEST_{k}", "x" * 100 * k)
        if k == 5:
            monkeypatch.setenv("PYTHONUNBUFFERED", "1")
        converted = write_half_precision(source, "encoder", sites, folder, [], "float16")
        result = compile_engine(
            converted,
            folder / "encoder.engine",
            backend="tensorrt_rtx",
            targets=[target],
            profiles=shapes,
        )
        assert result.table is not None and set(result.table) == {"indices", "latent"}
        digests.add(result.sha256)
    assert len(digests) == 1


def test_an_order_that_is_not_the_graphs_is_built_again_where_addresses_are_random(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def result(*table: str) -> BuildResult:
        rest = {"bytes": 1, "sha256": "0", "seconds": 0.1, "layers": (), "targets": ()}
        return BuildResult(outputs=OUTPUTS, table=table, builder_version="1", **rest)  # type: ignore[arg-type]

    def tries(fixed: bool, *tables: tuple[str, ...]) -> tuple[int, BuildResult]:
        left = [Compiled(result=result(*table), fixed=fixed) for table in tables]
        monkeypatch.setattr(engine_process, "run_isolated", lambda *_: left.pop(0))
        found = build(tmp_path / "g.onnx", tmp_path / "g.engine")
        return len(tables) - len(left), found

    a, b, c = OUTPUTS
    assert tries(False, OUTPUTS)[0] == 1
    assert tries(True, (b, a, c))[0] == 1
    assert tries(False, (b, a, c), OUTPUTS)[1].table == OUTPUTS
    assert tries(False, (c, b, a), (b, a, c), (b, a, c), OUTPUTS)[0] == 3
    assert tries(False, *[(b, a, c), (c, b, a)] * 5)[0] == TRIES


def test_a_system_that_keeps_addresses_random_builds_all_the_same(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRIED, "1")  # as if the request had no effect
    result = build(graph, tmp_path / "g.engine")
    assert result.bytes == (tmp_path / "g.engine").stat().st_size
    assert result.status == "built, not executed"


@pytest.mark.skipif(sys.platform != "linux", reason="personalities are Linux's")
def test_the_process_has_fixed_addresses_where_the_system_allows_it() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    code = (
        "import ctypes; from arvg_trt.engines.tensorrt.addresses import fix_addresses; "
        "print(fix_addresses(), id(fix_addresses), ctypes.CDLL(None).malloc(16))"
    )
    environment = {k: v for k, v in os.environ.items() if k != TRIED}
    done = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout.split()
        for _ in range(2)
    ]
    pid = os.fork()
    if pid == 0:  # a process of no other use may ask for it
        os._exit(libc.personality(ctypes.c_ulong(ADDR_NO_RANDOMIZE)) == -1)
    allowed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [line[0] for line in done] == [str(allowed)] * 2
    assert not allowed or done[0] == done[1]


def test_errors_of_the_builder_come_through(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"not an onnx model")
    with pytest.raises(BuildError, match=r"noise\.onnx: "):
        build(tmp_path / "noise.onnx", tmp_path / "x.engine")


def test_a_plan_without_the_table_has_no_order() -> None:
    assert table_order(b"latent indices more", OUTPUTS) is None
    assert table_order(b"", ()) == ()
