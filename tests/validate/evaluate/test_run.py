"""Images in shards: the same bytes whoever makes them, and nothing lost when someone is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import load_file

from arvg_trt.calibrate.executors import Execution
from arvg_trt.errors import OutOfMemory
from arvg_trt.runtime.generator import Generator
from arvg_trt.validate.evaluate import execute
from arvg_trt.validate.evaluate.execute import run_shards
from arvg_trt.validate.evaluate.shards import (
    SHARDS,
    EvaluationPlan,
    feature_file,
    image_file,
    missing,
    open_plan,
)
from arvg_trt.validate.evaluate.work import ShardTask, Workplace
from arvg_trt.validate.metrics.frechet import frechet_distance
from arvg_trt.validate.metrics.kid import kernel_distance
from arvg_trt.workspace.files import decode_json

from ...command_line import arvg, assert_refused
from ...families.rar.models import TinyRar

COUNT, SHARD, SEED = 22, 4, 3
FILES = -(-COUNT // SHARD)


def colour_network(path: Path) -> Path:
    """Colours of an 8x8 image's quarters as `pool`, doubled as `spatial`, means as `logits`."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (uint8[N,3,H,W] x) => (float[N,12] pool, float[N,12] spatial, float[N,3] logits)
    <int64[2] axes = {2, 3}, int64[2] flat = {0, -1}, float part = {0.1}, float two = {2.0}>
    { wide = Cast<to = 1>(x)
      quarters = AveragePool<kernel_shape = [4, 4], strides = [4, 4]>(wide)
      pool = Reshape(quarters, flat) spatial = Mul(pool, two)
      mean = ReduceMean<keepdims = 0>(wide, axes) logits = Mul(mean, part) }"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_network(tmp_path_factory.mktemp("network") / "colour.onnx")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    rng = np.random.default_rng(1)
    np.savez(path, arr_0=rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    return path


def arguments(tiny: TinyRar, output: Path, network: Path, *more: object) -> tuple[object, ...]:
    sizes = ("--count", COUNT, "--shard-size", SHARD, "--seed", SEED, "--batch-size", 2)
    return ("evaluate", tiny.workspace, "-o", output, *sizes, "--features", network, *more)


@pytest.fixture(scope="module")
def made(tiny_rar: TinyRar, network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation by one worker."""
    output = tmp_path_factory.mktemp("made") / "out"
    outcome = arvg(*arguments(tiny_rar, output, network, "--workers", 1))
    assert outcome.code == 0, outcome
    return output


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


def plan_of(folder: Path) -> EvaluationPlan:
    return decode_json(folder / "plan.json", EvaluationPlan, do="")


def test_image_k_is_of_the_seed_and_k_and_lies_there_as_webdataset(
    tiny_rar: TinyRar, made: Path
) -> None:
    classes = plan_of(made).labels
    labels = [classes[k % len(classes)] for k in range(COUNT)]
    wanted = Generator.open(tiny_rar.workspace).generate(labels, seed=SEED, batch_size=2).images
    assert len(shards(made)) == 2 * FILES
    found = 0
    for shard in range(FILES):
        with tarfile.open(image_file(made, shard)) as archive:
            names = archive.getnames()
            for cls, png in zip(names[::2], names[1::2], strict=True):
                assert (cls, png) == (f"{found:09d}.cls", f"{found:09d}.png")
                assert int(archive.extractfile(cls).read()) == labels[found]
                image = np.asarray(Image.open(archive.extractfile(png)))
                assert np.array_equal(image, wanted[found])
                found += 1
        features = load_file(feature_file(made, shard))
        assert features["pool"].shape == (len(features["ids"]), 12)
    assert found == COUNT


def test_two_workers_make_the_bytes_of_one_and_the_figures_are_those_of_the_images(
    tiny_rar: TinyRar, made: Path, network: Path, reference: Path, tmp_path: Path
) -> None:
    args = arguments(tiny_rar, tmp_path / "out", network, "--reference", reference)
    outcome = arvg(*args, "--workers", 2, "--json")
    assert outcome.code == 0, outcome
    assert shards(tmp_path / "out") == shards(made)
    found = json.loads(outcome.out)
    assert found["made"] == COUNT
    images = [
        np.load(reference)["arr_0"],
        Generator.open(tiny_rar.workspace)
        .generate(
            [plan_of(made).labels[k % len(plan_of(made).labels)] for k in range(COUNT)],
            seed=SEED,
            batch_size=2,
        )
        .images,
    ]
    theirs, own = (
        v.reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(-1, 12)
        for v in images
    )
    figures = found["distribution"]
    assert figures["fid"] == pytest.approx(frechet_distance(own, theirs), rel=1e-5)
    assert figures["sfid"] == pytest.approx(4 * figures["fid"], rel=1e-5)
    assert figures["kid"]["mean"] == pytest.approx(
        kernel_distance(own.astype(np.float32), theirs.astype(np.float32)).mean, rel=1e-3
    )
    assert figures["inception_score"] >= 1 and 0 <= figures["precision"] <= 1
    assert "KID is of subsets of 22 images, not of 1,000" in figures["notes"]
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert saved["distribution"] == figures


def test_only_what_is_missing_or_damaged_is_made_again(
    tiny_rar: TinyRar, made: Path, network: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (output / "shards").mkdir(parents=True)
    for path in (made / "shards").iterdir():
        (output / "shards" / path.name).write_bytes(path.read_bytes())
    (output / "plan.json").write_bytes((made / "plan.json").read_bytes())
    image_file(output, 1).unlink()
    feature_file(output, 3).write_bytes(feature_file(output, 3).read_bytes()[:40])
    assert missing(output, plan_of(output)) == [1, 3]
    outcome = arvg(*arguments(tiny_rar, output, network, "--workers", 1))
    assert outcome.code == 0 and "14 of 22 images are there already" in outcome.out, outcome
    assert "8 images," in outcome.out
    assert shards(output) == shards(made)


def tasks_of(
    tiny: TinyRar, made: Path, network: Path, output: Path
) -> tuple[EvaluationPlan, list[ShardTask]]:
    plan = plan_of(made)
    open_plan(output, plan)
    place = Workplace(tiny.workspace / "export", output, network, "cpu", False, 1)
    return plan, [ShardTask(place, plan, shard) for shard in range(plan.shards)]


def test_a_killed_worker_loses_nothing(
    tiny_rar: TinyRar, made: Path, network: Path, tmp_path: Path
) -> None:
    plan, tasks = tasks_of(tiny_rar, made, network, tmp_path)
    done: list[int] = []
    warned: list[str] = []

    def kill_one(shard: int) -> None:
        done.append(shard)
        if len(done) == 1:
            victim = multiprocessing.active_children()[0]
            assert victim.pid is not None
            # As one that is killed in the middle of a file leaves it.
            (tmp_path / SHARDS / ".000001.safetensors.x.tmp").write_bytes(b"half")
            os.kill(victim.pid, signal.SIGKILL)

    run_shards(Execution("processes", 2, 1), tasks, kill_one, warned.append)
    assert sorted(done) == list(range(plan.shards)) and not missing(tmp_path, plan)
    assert len(warned) == 1 and "ended from outside" in warned[0]
    assert shards(tmp_path) == shards(made)


def test_workers_that_die_each_time_end_in_one_line(
    tiny_rar: TinyRar, made: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tasks = tasks_of(tiny_rar, made, network, tmp_path)
    monkeypatch.setattr(execute, "end_with_parent", os.abort)  # as the kernel ends them
    with pytest.raises(OutOfMemory, match="again and again"):
        run_shards(Execution("processes", 1, 1), tasks, lambda shard: None, lambda line: None)


def descendants(pid: int) -> list[tuple[int, str]]:
    """Processes below a process, with their command lines."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            lines[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])

    def below(child: int) -> bool:
        while child in parents:
            child = parents[child]
            if child == pid:
                return True
        return False

    return [(child, lines[child]) for child in list(parents) if child in lines and below(child)]


def test_a_killed_driver_takes_its_workers_along_and_is_gone_on_with(
    tiny_rar: TinyRar, made: Path, network: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    args = arguments(tiny_rar, output, network, "--workers", 1)
    command = [sys.executable, "-m", "arvg_trt", *map(str, args)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while driver.poll() is None and not feature_file(output, 0).exists():
        time.sleep(0.02)
    workers = [pid for pid, line in descendants(driver.pid) if "spawn_main" in line]
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert feature_file(output, 0).exists()
    outcome = arvg(*args)
    assert outcome.code == 0, outcome
    assert shards(output).items() >= shards(made).items()


def test_a_ray_actor_that_is_killed_loses_nothing(
    tiny_rar: TinyRar, made: Path, network: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    plan, tasks = tasks_of(tiny_rar, made, network, tmp_path)
    done: list[int] = []
    warned: list[str] = []

    def kill_one(shard: int) -> None:
        done.append(shard)
        if len(done) == 1:
            actors = [pid for pid, line in descendants(os.getpid()) if "ray::ShardMaker" in line]
            os.kill(actors[0], signal.SIGKILL)

    run_shards(Execution("ray", 1, 1), tasks, kill_one, warned.append)
    assert sorted(done) == list(range(plan.shards))
    assert shards(tmp_path) == shards(made)
    assert len(warned) == 1 and "is made again" in warned[0]


@pytest.mark.parametrize(
    ("code", "words", "args"),
    [
        (9, "was begun with other count, seed", ("--count", 9, "--seed", 4)),
        (9, "was begun with other sampling", ("--cfg", 3)),
        (5, "no such file", ("--reference", "absent.npz")),
        (10, "label out of range: 77", ("--labels", "77")),
        (3, "shard_size must be at least 1", ("--shard-size", 0)),
        (3, "workers must be at least 1", ("--workers", 0)),
    ],
)
def test_what_cannot_be_evaluated_is_refused_and_leaves_what_is_there(
    tiny_rar: TinyRar, made: Path, network: Path, code: int, words: str, args: tuple[object, ...]
) -> None:
    before = shards(made)
    outcome = arvg(*arguments(tiny_rar, made, network), *args)
    assert_refused(outcome, code, words)
    assert shards(made) == before


def test_a_generator_needs_a_folder_and_a_reference_a_network(
    tiny_rar: TinyRar, reference: Path, tmp_path: Path
) -> None:
    assert_refused(arvg("evaluate", tiny_rar.workspace), 3, "name one with -o")
    outcome = arvg("evaluate", tiny_rar.workspace, "-o", tmp_path / "out", "--reference", reference)
    assert_refused(outcome, 3, "add --features")
    assert not (tmp_path / "out").exists()
