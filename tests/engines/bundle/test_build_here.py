"""Engines that a device builds from a kit: once, into the cache; what fails is passed over."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from arvg_trt.engines import groups
from arvg_trt.engines.bundle.build_here import build_cached, build_here, build_kit, build_place
from arvg_trt.engines.bundle.kit import read_kit
from arvg_trt.engines.groups import wanted_engines
from arvg_trt.engines.tensorrt import engine, preflight
from arvg_trt.engines.tensorrt.process import compile_engine
from arvg_trt.engines.tensorrt.targets import Target, resolve_target
from arvg_trt.errors import (
    ArvgError,
    BuildError,
    BundleError,
    OutOfMemory,
    WorkspaceError,
)
from arvg_trt.recipe.base import with_changes
from arvg_trt.runtime.bundle import failures
from arvg_trt.runtime.bundle.cache import DAY, MOST_DAYS, lock_of, unpack_cached
from arvg_trt.runtime.bundle.open import open_bundle
from arvg_trt.runtime.bundle.reader import Bundle
from arvg_trt.runtime.devices import Device, Gpu, this_device
from arvg_trt.runtime.folders import read_folder
from arvg_trt.runtime.sessions.placement import CUDA, TENSORRT, Problem
from arvg_trt.workspace.files import CACHE_VARIABLE
from arvg_trt.workspace.locks import locked
from arvg_trt.workspace.manifest import MANIFEST, Manifest
from arvg_trt.workspace.stage import SilentReporter
from arvg_trt.workspace.verify import read_manifest, verify

from ...command_line import arvg, assert_refused, digests

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n,64] x) => (float[n,64] y) {
  r = Relu(x)
  a = MatMul(r, w)
  y = Neg(a)
}"""
A10 = Gpu(index=0, name="NVIDIA A10", compute_capability=86, memory_bytes=24 * 10**9)
ORIN = Gpu(index=0, name="Orin", compute_capability=87, memory_bytes=8 * 10**9)
RTX = "tensorrt_rtx"
BUILDER = pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")


class Lines(SilentReporter):
    """Keep what is said and warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def warn(self, line: str) -> None:
        self.warned.append(line)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized product, and ONNX Runtime's engine of it."""
    root = tmp_path_factory.mktemp("kit")
    model = onnx.parser.parse_model(TEXT)
    for node in model.graph.node:
        node.name = f"part.{node.op_type}"
    rng = np.random.default_rng(0)
    model.graph.initializer.append(
        numpy_helper.from_array(rng.normal(size=(64, 64)).astype(np.float32), "w")
    )
    onnx.save(model, root / "g.onnx")
    np.savez(root / "feeds.npz", x=rng.normal(size=(4, 64)).astype("f4"))
    for command in (
        ("export", "onnx", root / "ws", "--graph", root / "g.onnx"),
        ("calibrate", root / "ws", "--feeds", root / "feeds.npz", "--samples", 4),
        ("quantize", root / "ws", "--include", "*"),
        ("build", root / "ws"),
    ):
        outcome = arvg(*command)
        assert outcome.code == 0, outcome
    return root / "ws"


@pytest.fixture(scope="module")
def packed(workspace: Path) -> Path:
    outcome = arvg("bundle", workspace, "-o", workspace.with_name("b.tar"))
    assert outcome.code == 0, outcome
    return workspace.with_name("b.tar")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def kit(packed: Path) -> Path:
    with Bundle(packed) as bundle:
        group = bundle.facts.group("kit")
        assert group is not None
        return unpack_cached(bundle, group) / group.folder


def machine(gpu: Gpu) -> Device:
    """This machine, as if it had a GPU whose providers open what is built here."""
    return msgspec.structs.replace(
        this_device(), gpus=(gpu,), driver_problem=None, rtx_version=BUILDER.__version__
    )


def without(*providers: str) -> Callable[[str, Gpu], Problem | None]:
    lacking = {name: Problem(f"{name} is not there", "install it") for name in providers}
    return lambda provider, gpu: lacking.get(provider)


def opened(packed: Path, gpu: Gpu, device: str, lacking: Sequence[str] = ()) -> tuple:
    lines = Lines()
    made = open_bundle(
        packed,
        device=device,
        machine=machine(gpu),
        reporter=lines,
        problem_of=without(TENSORRT, *lacking),
    )
    return made, lines


def test_a_kit_is_a_folder_of_graphs_with_a_manifest_and_no_build(kit: Path) -> None:
    assert verify(kit).stage == "bundle"
    assert {p.name for p in kit.iterdir()} == {*verify(kit).outputs, MANIFEST}
    assert not read_folder(kit).holds_engines
    (kit / "g.onnx").write_bytes(b"")
    with pytest.raises(WorkspaceError, match="was changed"):
        verify(kit)


def test_the_engine_is_built_once_into_the_cache(packed: Path) -> None:
    first, lines = opened(packed, A10, "auto")
    assert first.step.step == "build here" and (first.folder / "g_ctx.onnx").is_file()
    assert first.step.reason.startswith(f"TensorRT for RTX {BUILDER.__version__} builds it")
    assert lines.said and not lines.warned
    again, lines = opened(packed, A10, "auto")
    assert again.folder == first.folder and not lines.said


@pytest.mark.parametrize(
    ("device", "lacking", "step"),
    [("auto", (), "CUDA"), ("cuda:0", (), "CUDA"), ("auto", (CUDA,), "CPU")],
)
def test_a_build_that_fails_is_recorded_and_the_next_step_is_taken(
    packed: Path, device: str, lacking: Sequence[str], step: str
) -> None:
    """TensorRT for RTX has no sm87."""
    made, lines = opened(packed, ORIN, device, lacking)
    assert made.step.step == step
    failed = next(each for each in made.choice.steps if each.step == "build here")
    assert not failed.opens and "it was not built" in failed.reason and "no sm87" in failed.reason
    assert lines.warned == [f"kit: {failed.reason}"]


def test_a_build_that_failed_is_not_tried_again_for_some_days(
    packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def failing(kit: Path, gpu: Gpu, builder: str, reporter: SilentReporter) -> Path:
        tried.append(gpu.name)
        raise BuildError("no kernel was found")

    monkeypatch.setattr("arvg_trt.engines.bundle.build_here.build_here", failing)
    opened(packed, ORIN, "auto")
    again, lines = opened(packed, ORIN, "auto")
    assert tried == ["Orin"] and again.step.step == "CUDA"
    (warning,) = lines.warned
    assert "failed here 0 h ago (no kernel was found); `arvg-trt build --from FILE` tr" in warning
    opened(packed, A10, "auto")  # another GPU
    assert tried == ["Orin", A10.name]
    monkeypatch.setattr("arvg_trt.runtime.bundle.open.builder_release", lambda name: "9.9")
    opened(packed, ORIN, "auto")  # another builder
    assert len(tried) == 3
    records = sorted((cache / "failures").iterdir())
    assert len(records) == 3
    later = time.time() + 8 * DAY
    monkeypatch.setattr("time.time", lambda: later)
    opened(packed, ORIN, "auto")
    assert len(tried) == 4
    assert arvg("cache", "--clear").code == 0
    assert not list((cache / "failures").iterdir())


def test_a_build_that_wants_memory_or_a_package_is_tried_again(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [OutOfMemory("no room"), WorkspaceError("disk full"), OSError(28, "full")]
    tried: list[Exception] = []

    def failing(*_: object) -> Path:
        tried.append(problems[len(tried)])
        raise tried[-1]

    monkeypatch.setattr("arvg_trt.engines.bundle.build_here.build_here", failing)
    for _ in problems:
        assert opened(packed, A10, "auto")[0].step.step == "CUDA"
    assert tried == problems


def test_a_build_that_works_forgets_that_it_failed(packed: Path, kit: Path, cache: Path) -> None:
    record = failures.record_of(kit, RTX, "1", machine(A10), A10)
    failures.remember(record, "x")
    assert failures.remembered(record) is not None
    build_here(kit, A10, RTX, SilentReporter())
    assert failures.remembered(record) is None
    record.write_bytes(b"damaged")
    assert failures.remembered(record) is None


def test_a_build_that_fails_is_never_the_cpu_for_a_named_gpu(packed: Path) -> None:
    with pytest.raises(BundleError, match=r"it was not built: .*no sm87") as caught:
        opened(packed, ORIN, "cuda:0", (CUDA,))
    assert str(caught.value).isprintable()


def test_after_a_builder_that_crashes_the_next_step_is_taken(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    made, lines = opened(packed, A10, "auto")
    assert made.step.step == "CUDA" and "the builder crashed (SIGSEGV)" in lines.warned[0]


def test_packages_that_a_kit_needs_are_named_on_the_device(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    made, lines = opened(packed, A10, "auto")
    assert made.step.step == "CUDA"
    assert "onnx-ir is not installed (pip install 'arvg-trt[kit]')" in lines.warned[0]


def test_engines_that_were_allowed_unproved_are_taken_as_they_are(kit: Path) -> None:
    (built,) = build_cached(kit, RTX, (), A10, SilentReporter(), allow_unproved=True)
    before = digests(built.folder)
    assert build_here(kit, A10, RTX, SilentReporter()) == built.folder
    assert digests(built.folder) == before
    (again,) = build_cached(kit, RTX, (), A10, SilentReporter())
    assert not again.skipped and not read_manifest(again.folder).options["allow_unproved"]


def test_engines_that_nobody_opened_for_a_month_are_removed(kit: Path) -> None:
    folder = build_here(kit, A10, RTX, SilentReporter()).parent
    for days, stays in ((MOST_DAYS - 1, True), (MOST_DAYS + 1, False)):
        then = time.time() - days * DAY
        os.utime(folder, (then, then))
        other = msgspec.structs.replace(A10, name=f"GPU {days}")
        build_here(kit, other, RTX, SilentReporter())
        assert folder.exists() is stays


def test_timings_lie_beside_the_engines_and_never_in_the_kit(kit: Path, tmp_path: Path) -> None:
    _, build = read_kit(kit, "tensorrt", ("sm86",), timings=tmp_path / "engines")
    found = build.timings([resolve_target("sm86", "tensorrt")])
    assert found is not None and Path(found.path).parent == tmp_path / "engines"
    _, build = read_kit(kit, "tensorrt", ("sm86",))
    assert build.timings([resolve_target("sm86", "tensorrt")]) is None


def test_a_kits_build_gives_timings_the_folder_beside_it(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path | None] = []

    def timings(build: engine.EngineBuild, group: Sequence[Target]) -> None:
        seen.append(build.timing_cache)

    monkeypatch.setattr(engine.EngineBuild, "timings", timings)
    build_kit(kit, RTX, ("sm86",), tmp_path / "engines" / "int8", SilentReporter())
    assert seen == [tmp_path / "engines"]


def key_of(kit: Path, backend: str, gpu: str, monkeypatch: pytest.MonkeyPatch, **more) -> Manifest:
    """The manifest by which engines are known to be up to date, with a builder of version 1."""
    monkeypatch.setattr(groups, "version", lambda backend: "1")
    _, build = read_kit(kit, backend, ("sm86",))
    build = engine.EngineBuild(
        build.source,
        backend,
        with_changes(build.options, **more),
        build.plan,
        build.site_map,
        build.profiles,
    )
    return wanted_engines(build, "int8", {}, [resolve_target("sm86", backend)], gpu)


def test_the_key_of_engines_has_the_gpu_of_timings_and_not_their_file(
    kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(gpu: str, **more: object) -> str:
        return key_of(kit, "tensorrt", gpu, monkeypatch, **more).key()

    assert key("NVIDIA A10") == key("NVIDIA A10", timing_cache="off")
    assert key("NVIDIA A10") != key("NVIDIA A40")


def test_engines_for_rtx_are_the_same_whatever_gpu_is_here(kit: Path) -> None:
    (built,) = build_cached(kit, RTX, (), A10, SilentReporter())
    assert "gpu" not in built.manifest.options and "gpu" not in built.manifest.results
    assert {"polygraphy", "onnx", "onnx-ir", RTX} <= built.manifest.versions.keys()


def test_memory_is_compared_with_what_a_kit_takes_before_the_build(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
    monkeypatch.setattr(preflight, "MEMORY_FILE", tmp_path / "meminfo")
    with pytest.raises(OutOfMemory, match=r"takes about 0\.2 GB of memory"):
        build_here(kit, A10, RTX, SilentReporter())


def test_a_build_that_fails_leaves_no_new_workspace(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
    monkeypatch.setattr(preflight, "MEMORY_FILE", tmp_path / "meminfo")
    build = ("build", tmp_path / "new", "--from", packed, "--backend", RTX, "--target", "sm86")
    assert_refused(arvg(*build), 11, "of memory")
    assert not (tmp_path / "new").exists()


def test_a_builder_without_a_layer_list_is_warned_of_with_the_count(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlisted(*args: object, **more: object) -> object:
        return msgspec.structs.replace(compile_engine(*args, **more), layers=())

    monkeypatch.setattr(engine, "compile_engine", unlisted)
    lines = Lines()
    _, build = read_kit(kit, RTX, ("sm86",))
    (row,) = build.write([resolve_target("sm86", RTX)], tmp_path, (), lines)
    assert row.int8_sites_proved is None
    (warning,) = lines.warned
    assert warning.startswith("g: ") and "none of 1 planned sites is proved" in warning


def test_targets_that_no_provider_opens_are_warned_of(kit: Path, tmp_path: Path) -> None:
    _, build = read_kit(kit, RTX, ("sm80", "sm86"))
    lines = Lines()
    list(groups.prepare_groups(build, "int8", {}, tmp_path / "int8", lines))
    (warning,) = lines.warned
    assert "no provider of ONNX Runtime opens engines of TensorRT for RTX on sm80: " in warning


def test_sites_that_run_in_fp16_on_a_target_are_warned_of(kit: Path, tmp_path: Path) -> None:
    """Were its linears convolutions, sm75 would have no INT8 kernel for them."""
    _, build = read_kit(kit, RTX, ("sm75", "sm86"))
    sites = tuple(msgspec.structs.replace(site, op="Conv") for site in build.site_map.sites)
    site_map = msgspec.structs.replace(build.site_map, sites=sites)
    for changed, count in ((build, 0), (dataclasses.replace(build, site_map=site_map), 1)):
        lines = Lines()
        list(groups.prepare_groups(changed, "int8", {}, tmp_path / "int8", lines))
        found = [line for line in lines.warned if "quantized sites run in FP16" in line]
        assert len(found) == count and all(line.startswith("sm75: all ") for line in found)


def test_build_and_bundle_say_in_one_line_what_opens_nowhere(
    workspace: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    for command in (
        ("build", copy, "--backend", RTX, "--target", "sm75", "--target", "sm86"),
        ("bundle", copy, "-o", tmp_path / "b.tar"),
    ):
        outcome = arvg(*command)
        assert outcome.code == 0, outcome
        lines = [line for line in outcome.err.splitlines() if "no provider of ONNX" in line]
        assert len(lines) == 1 and " on sm75: " in lines[0]


def test_a_target_of_a_jetson_needs_its_kit_and_no_package(workspace: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    outcome = arvg("build", copy, "--backend", "tensorrt", "--target", "orin")
    assert_refused(outcome, 6, "a Jetson builds its own engine", "arvg-trt build --from FILE")
    assert "pip install" not in outcome.err


def test_a_build_from_a_bundle_makes_a_workspace_and_leaves_others_alone(
    packed: Path, workspace: Path, tmp_path: Path
) -> None:
    build = ("--from", packed, "--backend", RTX, "--target", "sm86")
    before = digests(workspace)
    assert_refused(arvg("build", workspace, *build), 9, "a model of its own", "name a new folder")
    assert digests(workspace) == before
    outcome = arvg("build", tmp_path / "new", *build)
    assert outcome.code == 0, outcome
    assert (tmp_path / "new" / "workspace.json").is_file()
    with (tmp_path / "new" / ".lock").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert_refused(arvg("build", tmp_path / "new", *build), 9, "another run is using")
    if not this_device().gpus:
        assert_refused(arvg("build", *build), 6, "WORKSPACE is missing", "name a new folder")


def test_the_cache_is_locked_while_a_kit_is_built(kit: Path) -> None:
    place = build_place(kit, RTX, A10)
    code = (
        "import sys; from pathlib import Path\n"
        "from arvg_trt.engines.bundle.build_here import build_here\n"
        "from arvg_trt.runtime.devices import Gpu\n"
        "from arvg_trt.workspace.stage import SilentReporter\n"
        f"gpu = Gpu(0, {A10.name!r}, 86, 10**9)\n"
        f"build_here(Path({str(kit)!r}), gpu, {RTX!r}, SilentReporter())\n"
    )
    with locked(lock_of(place)):
        process = subprocess.Popen([sys.executable, "-c", code])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(6)
        assert not place.exists()
    assert process.wait(120) == 0 and place.is_dir()


def test_the_cache_takes_engines_for_the_gpu_that_is_here_alone(kit: Path) -> None:
    with pytest.raises(BuildError, match=r"WORKSPACE is missing.*A10, sm86"):
        build_cached(kit, RTX, ("sm89",), A10, SilentReporter())


def test_a_hard_link_in_place_of_a_source_is_refused_in_one_line(
    workspace: Path, tmp_path: Path
) -> None:
    weights = next((workspace / "quantize" / "int8").glob("*.data"))
    os.link(weights, tmp_path / "link")
    try:
        outcome = arvg("bundle", workspace, "-o", tmp_path / "b.tar")
        assert_refused(outcome, 9, "a hard link", "put a copy in its place")
    finally:
        (tmp_path / "link").unlink()
    assert not (tmp_path / "b.tar").exists()


def test_bundle_names_the_packages_that_it_lacks(workspace: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfor name in ('torch', 'onnx', 'onnx_ir', 'polygraphy'):"
        " sys.modules[name] = None\n"
        f"from arvg_trt.cli import cli\ncli({['bundle', str(workspace), '-o', 'b.tar']})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == ArvgError.exit_code
    assert done.stderr == (
        "error: onnx and onnx-ir are not installed (pip install 'arvg-trt[kit]')\n"
    )


def test_a_kit_is_built_without_torch(packed: Path, tmp_path: Path) -> None:
    args = ["build", "ws", "--from", str(packed), "--backend", RTX, "--target", "sm86"]
    for lacking, code, said in (
        (("torch", "onnxscript"), 0, ""),
        (("torch", "onnx", "polygraphy"), 1, "onnx and polygraphy are not installed (pip install"),
    ):
        script = f"import sys\nfor name in {lacking}: sys.modules[name] = None\n"
        script += f"from arvg_trt.cli import cli\ncli({args})\n"
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_the_script_builds_in_its_own_folder_whatever_folder_one_is_in(
    kit: Path, tmp_path: Path
) -> None:
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" >> "$SEEN"\n')
    tool.chmod(0o755)
    seen = tmp_path / "seen"
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["sh", str(kit / "build.sh")],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "SEEN": str(seen)},
    )
    lines = seen.read_text().splitlines()
    assert Path(lines[0]) == kit and "--onnx=g.onnx" in lines
    assert "proves" not in (kit / "build.sh").read_text()
