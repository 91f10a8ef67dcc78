"""With `--json` every command prints one object on stdout, whether it succeeds or fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from arvg_trt.errors import EXIT_CODES

from ..command_line import Finished, Outcome, arvg, commands
from ..docs.reader import calibrate_own, give_graphs, give_images
from ..minis.minis import Mini
from ..validate.networks_of_tests import colour_network, save_backbone

WITH_JSON = {
    name
    for name, command in commands().items()
    if any("--json" in parameter.opts for parameter in command.params)
}
Words = tuple[object, ...]


@dataclass(frozen=True)
class Things:
    """Name what commands are given: workspaces, files, and a folder that is new for each."""

    workspace: Path  # of a tokenizer, quantized as int8, with its report and its engine
    own: Path  # of the user's own graph, quantized as int8
    recipe: Path
    root: Path
    generator: Path
    bundle: Path
    new: Path

    @property
    def engine(self) -> Path:
        return self.workspace / "engines" / "int8" / "onnxruntime"

    @property
    def report(self) -> Path:
        return self.workspace / "validate" / "int8"


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    finished: Finished,
    mini_of: Callable[[str], Mini],
) -> Things:
    root = tmp_path_factory.mktemp("things")
    give_images(root)
    give_graphs(root)
    calibrate_own(root, root / "own")
    workspace = root / "ws"
    shutil.copytree(finished.workspace, workspace)
    for words in (
        ("quantize", root / "own"),
        ("build", workspace),
        ("keygen", root / "ci"),
        ("bundle", workspace, "--key", root / "ci.key", "-o", root / "demo.tar"),
        (
            "encode",
            workspace / "engines/int8/onnxruntime",
            root / "photo.jpg",
            "-o",
            root / "t.npz",
        ),
        ("baseline", "save", workspace, "-o", root / "baseline.json"),
    ):
        outcome = arvg(*words)
        assert outcome.code == 0, outcome
    return Things(
        workspace=workspace,
        own=root / "own",
        recipe=finished.recipe,
        root=root,
        generator=mini_of("rar").workspace,
        bundle=root / "demo.tar",
        new=root / "new",
    )


@pytest.fixture
def things(made: Things, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Things]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARVG_TRT_CACHE", str(tmp_path / "cache"))
    yield replace(made, new=tmp_path / "n")


SMALL = ("--images", "skimage:astronaut", "--size", 64)
SUCCESS: dict[str, Callable[[Things], list[Words]]] = {
    "analyze": lambda t: [(t.root / "model.onnx",)],
    "baseline save": lambda t: [(t.workspace, "-o", t.new)],
    "baseline update": lambda t: [(shutil.copy(t.root / "baseline.json", t.new), t.workspace)],
    "build": lambda t: [(t.workspace,)],
    "bundle": lambda t: [
        (t.workspace, "-o", t.new),
        (t.workspace, "-o", t.new.with_name("triton"), "--layout", "triton"),
    ],
    "cache": lambda t: [(), ("--clear",)],
    "calibrate": lambda t: [(copy_of(t.workspace, t.new), *SMALL, "--samples", 1)],
    "ci github": lambda t: [("cosmos-mini-int8",), ("cosmos-mini-int8", "-o", t.new)],
    "ci gitlab": lambda t: [("cosmos-mini-int8",), ("cosmos-mini-int8", "-o", t.new)],
    "compare": lambda t: [(t.report, t.report, "--html", t.new)],
    "decode": lambda t: [(t.engine, t.root / "t.npz", "-o", t.new)],
    "diagnose build-failure": lambda t: [(t.own, "--target", "sm89", "-o", t.new)],
    "diagnose sites": lambda t: [
        (t.own, "--feeds", t.root / "held_out.npz", "--samples", 2, "--raise", 1, "-o", t.new)
    ],
    "doctor": lambda t: [()],
    "encode": lambda t: [(t.engine, t.root / "photo.jpg", "-o", t.new, "--explain")],
    "evaluate": lambda t: [
        (
            t.root / "photos",
            *("--features", colour_network(t.new.with_name("colour.onnx"))),
            *("--reference", t.root / "held_out", "--workers", 1),
        )
    ],
    "export": lambda t: [("onnx", t.new, "--graph", t.root / "model.onnx")],
    "generate": lambda t: [(t.generator, "--labels", 3, "-o", t.new)],
    "index": lambda t: [(t.workspace,), (t.workspace, "-o", t.new)],
    "inspect": lambda t: [(t.workspace,), (t.bundle,), (t.root / "model.onnx",)],
    "keygen": lambda t: [(t.new,)],
    "models": lambda t: [()],
    "network": lambda t: [("lpips-alex", saved_backbone(t.new.with_suffix(".pth")), "-o", t.new)],
    "predict": lambda t: [(t.workspace, "--target", "rtx4090")],
    "probe": lambda t: [("-o", t.new, "--seconds", 1)],
    "quantize": lambda t: [(t.own, "--name", "other", "--smoothing", 0)],
    "recipes": lambda t: [
        *((), ("show", "var-w8a8"), ("write", "var-w8a8", "-o", t.new)),
        *(("--keys",), ("--schema",)),
    ],
    "recommend": lambda t: [(t.workspace, "--gate", "compression>=1")],
    "run": lambda t: [(t.recipe,), (t.recipe, "--dry-run")],
    "schema": lambda t: [("report",), ("recipe",)],
    "search": lambda t: [(t.own, "--budget", "avg_bits<=6", "--activation-bits", 32)],
    "sign": lambda t: [(t.bundle, "--key", t.root / "ci.key", "-o", t.new)],
    "sweep": lambda t: [(t.recipe, "-o", t.new)],
    "targets": lambda t: [(), ("rtx4090",)],
    "unpack": lambda t: [(t.bundle, "-o", t.new)],
    "validate": lambda t: [(t.own, "--feeds", t.root / "held_out.npz", "--rounds", 1)],
    "verify": lambda t: [(t.bundle, "--require-key", t.root / "ci.pub")],
    "why": lambda t: [("quantize", t.workspace)],
}
# What is refused: something that is not there, and a value that an option does not take.
FAILURE: dict[str, Callable[[Things], list[tuple[int, Words]]]] = {
    "analyze": lambda t: [(4, ("no.onnx",)), (6, (t.root / "model.onnx", "--target", "rtx1"))],
    "baseline save": lambda t: [(9, ("no", "-o", t.new)), (2, (t.workspace,))],
    "baseline update": lambda t: [(9, ("no.json", t.workspace)), (2, ("no.json",))],
    "build": lambda t: [(9, ("no",)), (2, (t.workspace, "--backend", "x"))],
    "bundle": lambda t: [(9, ("no", "-o", t.new)), (2, (t.workspace, "--layout", "x"))],
    "cache": lambda t: [(2, ("--days", -1))],
    "calibrate": lambda t: [(9, ("no", *SMALL)), (2, (t.workspace, "--samples", "many"))],
    "ci github": lambda t: [(3, ("no.toml",)), (3, ("cosmos-mini-int8", "--python", "2"))],
    "ci gitlab": lambda t: [(3, ("no.toml",)), (3, ("cosmos-mini-int8", "--branch", ""))],
    "compare": lambda t: [
        (9, ("no", t.report)),
        (3, (t.report, t.report, "--max-regression", "x")),
    ],
    "decode": lambda t: [(9, ("no", t.root / "t.npz", "-o", t.new)), (2, (t.engine,))],
    "diagnose build-failure": lambda t: [
        *((3, (t.own, "-o", t.new)), (2, (t.own, "--backend", "onnxruntime", "-o", t.new))),
        (9, ("no", "--target", "sm89", "-o", t.new)),
    ],
    "diagnose sites": lambda t: [(9, ("no",)), (2, (t.workspace, "--raise", "x"))],
    "doctor": lambda t: [(2, ("x",))],
    "encode": lambda t: [(9, ("no", t.root / "photo.jpg", "-o", t.new)), (2, (t.engine,))],
    "evaluate": lambda t: [(9, ("no",)), (2, (t.root / "photos", "--count", "x"))],
    "export": lambda t: [(4, ("cosmos-mini", t.new)), (2, ("rar-mini", t.new, "--kv-type", "x"))],
    "generate": lambda t: [
        (9, ("no", "--labels", 3, "-o", t.new)),
        (10, (t.generator, "--labels", 4000, "-o", t.new)),
    ],
    "index": lambda t: [(9, ("no",)), (2, ())],
    "inspect": lambda t: [(9, ("no",)), (2, ())],
    "keygen": lambda t: [(9, (t.root / "ci",)), (2, ("",))],
    "models": lambda t: [(2, ("x",))],
    "network": lambda t: [(4, ("dists", "no", "-o", t.new)), (2, ("x", "no", "-o", t.new))],
    "predict": lambda t: [(9, ("no", "--target", "rtx4090")), (6, (t.own, "--target", "rtx1"))],
    "probe": lambda t: [(2, ("-o", t.new, "--seconds", 0))],
    "quantize": lambda t: [(9, ("no",)), (3, (t.own, "--weight-bits", 99))],
    "recipes": lambda t: [(3, ("no",)), (2, ("show",))],
    "recommend": lambda t: [
        *((9, ("no", "--gate", "psnr>=1")), (3, (t.workspace, "--gate", "x"))),
        (8, (t.workspace, "--gate", "compression>=1000")),
    ],
    "run": lambda t: [(3, ("no.toml",)), (2, (t.recipe, "--max-memory", "much"))],
    "schema": lambda t: [(2, ("x",))],
    "search": lambda t: [(9, ("no", "--budget", "avg_bits<=5")), (3, (t.own, "--budget", "x"))],
    "sign": lambda t: [(9, ("no", "--key", "no")), (2, (t.bundle,))],
    "sweep": lambda t: [(3, ("no.toml",)), (3, (t.recipe, "--quality", "x"))],
    "targets": lambda t: [(6, ("rtx1",))],
    "unpack": lambda t: [(9, ("no", "-o", t.new)), (9, (t.bundle, "--group", "x", "-o", t.new))],
    "validate": lambda t: [
        *((9, ("no",)), (2, (t.own, "--rounds", "x"))),
        (8, (t.own, *feeds(t), "--rounds", 0, "--gate", "compression>=1000")),
    ],
    "verify": lambda t: [(9, ("no",)), (12, (t.bundle, "--require-key", t.root / "ci.key"))],
    "why": lambda t: [(9, ("quantize", "no")), (2, ("x", t.workspace))],
}


def feeds(things: Things) -> Words:
    return ("--feeds", things.root / "held_out.npz")


def copy_of(workspace: Path, place: Path) -> Path:
    """Copy the export of a workspace, which a command may then change."""
    shutil.copytree(workspace / "export", place / "export")
    shutil.copy(workspace / "workspace.json", place)
    return place


def saved_backbone(path: Path) -> Path:
    save_backbone(path, "alex")
    return path


def only_object(outcome: Outcome) -> dict[str, Any]:
    """Parse stdout, which is to hold one object and nothing else."""
    found = json.loads(outcome.out)
    assert isinstance(found, dict), outcome
    return found


def test_the_tables_cover_every_command_that_prints_json() -> None:
    assert set(SUCCESS) == set(FAILURE) == WITH_JSON


def test_every_command_prints_json() -> None:
    """A job of CI reads what any of them says."""
    assert set(commands()) == WITH_JSON


@pytest.mark.parametrize("command", sorted(WITH_JSON))
def test_success_is_one_object(command: str, things: Things) -> None:
    if command == "diagnose build-failure":
        pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    for words in SUCCESS[command](things):
        outcome = arvg(*command.split(), *words, "--json")
        assert outcome.code == 0, (words, outcome)
        assert "error" not in only_object(outcome)


@pytest.mark.parametrize("command", sorted(WITH_JSON))
def test_failure_is_one_object_with_the_error_and_its_exit_code(
    command: str, things: Things
) -> None:
    for code, words in [*FAILURE[command](things), (2, ("--no-such-option",))]:
        outcome = arvg(*command.split(), *words, "--json")
        assert outcome.code == code, (words, outcome)
        error = only_object(outcome)["error"]
        assert error["exit_code"] == code and code in EXIT_CODES
        assert error["message"] and "\n" not in error["message"]
        last = outcome.err.splitlines()[-1]
        assert last.lower() == f"error: {error['message']}".lower(), outcome
        assert not things.new.exists(), words


@pytest.mark.parametrize(
    "words", [("--no-such-option", "doctor"), ("no-such-command",), ("ci", "no-such-platform")]
)
def test_what_stands_before_a_command_fails_as_an_object_too(words: Words) -> None:
    outcome = arvg(*words, "--json")
    assert outcome.code == only_object(outcome)["error"]["exit_code"] == 2
