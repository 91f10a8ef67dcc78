"""Calibration in shards: made apart and merged, or by an executor, they are one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.calibrate.statistics import Statistics, load_statistics, save_statistics
from arvg_trt.recipe.calibrate import CalibrateOptions
from arvg_trt.samples.sources import shard_of
from arvg_trt.workspace.manifest import MANIFEST

from ..command_line import arvg, assert_refused, digests
from ..families.custom.models import CLASSES, TOKENS
from ..families.rar.models import TinyRar

OPTIONS = ("--samples", 8, "--batch-size", 4)
STATISTICS = "statistics.safetensors"


def calibrated(source: Path, target: Path, *options: object) -> Path:
    """A workspace with the same export, calibrated by itself."""
    shutil.copytree(source / "export", target / "export")
    shutil.copyfile(source / "workspace.json", target / "workspace.json")
    outcome = arvg("calibrate", target, *options)
    assert outcome.code == 0, outcome
    return target


@pytest.fixture(scope="module")
def whole(tiny_rar: TinyRar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(tiny_rar.workspace, tmp_path_factory.mktemp("whole") / "ws", *OPTIONS)


@pytest.fixture(scope="module")
def halves(tiny_rar: TinyRar, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("halves")
    return [
        calibrated(tiny_rar.workspace, root / f"part{k}", *OPTIONS, "--shard", f"{k}/2")
        for k in (1, 2)
    ]


def samples_of(workspace: Path) -> list[bytes]:
    files = sorted((workspace / "calibrate" / "samples").iterdir())
    return [path.read_bytes() for path in files]


def assert_same(found: Statistics, wanted: Statistics) -> None:
    assert found.keys() == wanted.keys() and len(wanted) > 10
    for name, stats in wanted.items():
        assert np.array_equal(found[name].low, stats.low)
        assert np.array_equal(found[name].high, stats.high)
        assert found[name].count == stats.count
        np.testing.assert_allclose(found[name].square, stats.square, rtol=1e-12)


def statistics_of(workspace: Path) -> Statistics:
    return load_statistics(workspace / "calibrate" / STATISTICS)


def manifest_of(workspace: Path) -> dict:
    return json.loads((workspace / "calibrate" / MANIFEST).read_text())


def test_merged_shards_are_one_run(whole: Path, halves: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(halves[0], copy)
    outcome = arvg("calibrate", copy, "--merge", *halves)
    assert outcome.code == 0 and outcome.err == "", outcome
    assert samples_of(copy) == samples_of(whole)
    assert_same(statistics_of(copy), statistics_of(whole))
    results = manifest_of(copy)["results"]
    assert results["samples"] == 8
    assert results["classes"] == manifest_of(whole)["results"]["classes"] == [0, 1, 2, 3, 4]
    drawn = [manifest_of(part)["options"]["classes"] for part in (whole, *halves)]
    assert drawn[0] == drawn[1] + drawn[2] and sorted(drawn[0][:5]) == [0, 1, 2, 3, 4]
    assert [part["name"] for part in results["parts"]] == ["part1", "part2"]
    assert [part["shard"] for part in results["parts"]] == ["1/2", "2/2"]
    outcome = arvg("calibrate", copy, "--merge", *halves)
    assert "up to date" in outcome.out
    assert arvg("quantize", copy, "--name", "merged").code == 0


@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_executor_makes_what_one_process_makes(
    executor: str, whole: Path, tiny_rar: TinyRar, tmp_path: Path
) -> None:
    options = (*OPTIONS, "--executor", executor, "--workers", 2)
    made = calibrated(tiny_rar.workspace, tmp_path / "ws", *options)
    assert samples_of(made) == samples_of(whole)
    assert_same(statistics_of(made), statistics_of(whole))
    files = {name.partition("/")[0] for name in digests(made / "calibrate")}
    assert files == {"samples", "decoder-samples", STATISTICS, MANIFEST}
    assert manifest_of(made)["options"] == manifest_of(whole)["options"]


@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_executor_refuses_in_one_line_what_a_task_refuses(
    executor: str, whole: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(whole, copy)
    before = digests(copy)
    outcome = arvg("calibrate", copy, "--labels", "99", "--executor", executor, "--workers", 1)
    assert_refused(outcome, 10, "99")
    assert digests(copy) == before


def test_statistics_file_alone_merges_with_a_part_that_has_samples(
    whole: Path, halves: list[Path], tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(halves[0], copy)
    alone = tmp_path / "second.safetensors"
    shutil.copyfile(halves[1] / "calibrate" / STATISTICS, alone)
    outcome = arvg("calibrate", copy, "--merge", halves[0] / "calibrate", alone)
    assert outcome.code == 0, outcome
    assert_same(statistics_of(copy), statistics_of(whole))
    assert samples_of(copy) == samples_of(halves[0])
    outcome = arvg("calibrate", copy, "--merge", alone, alone)
    assert_refused(outcome, 5, "none of the parts has its samples")


def test_parts_of_one_seed_are_warned_of(halves: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(halves[0], copy)
    outcome = arvg("calibrate", copy, "--merge", halves[0], halves[0])
    assert outcome.code == 0
    assert outcome.err == (
        "warning: 8 samples of part1 are in another part too: give parts their own --shard or "
        "--seed\n"
    )


@pytest.fixture(scope="module")
def handmade(
    custom_files: dict[str, tuple[Path, ...]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model without images, of other sites."""
    root = tmp_path_factory.mktemp("handmade")
    assert arvg("export", "onnx", root / "ws", "--graph", *custom_files["handmade"]).code == 0
    tokens = np.random.default_rng(0).integers(0, CLASSES, (8, TOKENS))
    np.savez(root / "feeds.npz", tokens=tokens)
    outcome = arvg("calibrate", root / "ws", "--feeds", root / "feeds.npz", "--samples", 8)
    assert outcome.code == 0, outcome
    return root / "ws"


def test_shards_of_a_file_of_arrays_are_one_run(handmade: Path, tmp_path: Path) -> None:
    feeds = ("--feeds", handmade.parent / "feeds.npz", "--samples", 8)
    parts = [
        calibrated(handmade, tmp_path / str(k), *feeds, "--shard", f"{k}/3") for k in (1, 2, 3)
    ]
    copy = tmp_path / "ws"
    shutil.copytree(handmade, copy)
    assert arvg("calibrate", copy, "--merge", *parts).code == 0
    assert samples_of(copy) == samples_of(handmade)
    assert_same(statistics_of(copy), statistics_of(handmade))
    assert manifest_of(copy)["results"]["images"] == manifest_of(handmade)["results"]["images"]


def changed(folder: Path) -> Path:
    path = folder / "calibrate" / STATISTICS
    save_statistics({}, path)
    return folder


def test_what_cannot_be_merged_is_refused_by_name(
    whole: Path, halves: list[Path], handmade: Path, tmp_path: Path
) -> None:
    copy, damaged = tmp_path / "ws", tmp_path / "damaged"
    shutil.copytree(halves[0], copy)
    shutil.copytree(halves[1], damaged)
    save_statistics({}, damaged / "calibrate" / STATISTICS)
    foreign = handmade / "calibrate" / STATISTICS
    nameless = tmp_path / "nameless.safetensors"
    save_statistics(statistics_of(whole), nameless)
    (tmp_path / "empty").mkdir()
    before = digests(copy)
    for parts, words in (
        ((halves[0],), ("nothing to merge",)),
        ((halves[0], handmade), ("another export", "handmade")),
        ((halves[0], foreign), ("another export", STATISTICS)),
        ((halves[0], nameless), ("does not say which export", "nameless")),
        ((halves[0], damaged), ("was changed", STATISTICS)),
        ((halves[0], tmp_path / "empty"), ("holds no statistics", "empty")),
        ((halves[0], tmp_path / "absent"), ("holds no statistics", "absent")),
    ):
        assert_refused(arvg("calibrate", copy, "--merge", *parts), 5, *words)
    assert digests(copy) == before


def test_statistics_of_other_sites_are_refused_whatever_they_say(
    whole: Path, halves: list[Path], tmp_path: Path
) -> None:
    """A file that claims the export but has other sites: written by another version."""
    from arvg_trt.calibrate.statistics import load_exported

    statistics, export = load_exported(halves[1] / "calibrate" / STATISTICS)
    statistics.pop(next(iter(statistics)))
    odd = tmp_path / "odd.safetensors"
    save_statistics(statistics, odd, export=export)
    copy = tmp_path / "ws"
    shutil.copytree(whole, copy)
    outcome = arvg("calibrate", copy, "--merge", halves[0], odd)
    assert_refused(outcome, 5, "statistics of different models", "only in one")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--shard", "0/2"), "shard '0/2' is not K/N"),
        (("--shard", "3/2"), "shard '3/2' is not K/N"),
        (("--shard", "half"), "shard 'half' is not K/N"),
        (("--shard", "1/9", "--samples", 8), "8 samples cannot be cut into 9 shards"),
        (("--shard", "1/2", "--executor", "processes"), "--shard: a shard is one process's"),
        (("--executor", "processes", "--workers", 0), "--workers: 0 workers"),
    ],
)
def test_shard_that_is_none_is_refused(args: tuple[object, ...], words: str, whole: Path) -> None:
    assert_refused(arvg("calibrate", whole, *args), 3, words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--merge",), "takes the PARTS"),
        (("part",), "one WORKSPACE is calibrated, not also part"),
        (("--merge", "part", "--seed", 3), "--merge takes no --seed"),
        (("--workers", 2), "give --executor"),
    ],
)
def test_merging_and_collecting_do_not_mix(
    args: tuple[object, ...], words: str, whole: Path
) -> None:
    outcome = arvg("calibrate", whole, *args)
    assert outcome.code == 2 and words in outcome.err


def test_ray_that_is_not_installed_is_one_line(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    copy = tmp_path / "ws"
    shutil.copytree(whole, copy)
    outcome = arvg("calibrate", copy, "--seed", 1, "--executor", "ray")
    assert_refused(outcome, 1, "ray is not installed", "arvg-trt[distributed]")


@pytest.mark.parametrize("total", [1, 7, 8, 32, 100])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_cover_every_sample_once_and_cut_between_batches(
    total: int, batch: int, count: int
) -> None:
    if count > total:
        return
    parts = [
        shard_of(CalibrateOptions(samples=total, batch_size=batch, shard=f"{k + 1}/{count}"))
        for k in range(count)
    ]
    assert [k for part in parts for k in part] == list(range(total))
    assert all(parts)
    unit = np.lcm(4, batch)  # a generator's batch
    if total >= unit * count:
        assert all(part.start % unit == 0 for part in parts)
