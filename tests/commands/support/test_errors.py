"""The command line's outermost edge: one line, one object, one exit code, whatever goes wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt import cli as command_line
from arvg_trt.cli import cli, main
from arvg_trt.commands.support.errors import explain, os_error_line
from arvg_trt.errors import EXIT_CODES, ArvgError, OutOfMemory, bounded, nearest
from arvg_trt.extras import CPU_TORCH, EXTRAS, extra_of, missing_packages

from ...command_line import (
    MODEL,
    Finished,
    arvg,
    assert_refused,
    commands,
    digests,
    start,
    wait_for,
)

DOCS = Path(command_line.__file__).parent / "docs" / "recipes.md"


def run_main(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """The exit code of the command as the shell sees it; what it prints is captured by pytest."""
    monkeypatch.setattr(sys, "argv", ["arvg-trt", *(str(a) for a in args)])
    with pytest.raises(SystemExit) as caught:
        main()
    code = caught.value.code
    return code if isinstance(code, int) else int(bool(code))


def test_exit_codes_of_the_docs_are_those_of_the_errors() -> None:
    section = DOCS.read_text().split("## Exit codes")[1]
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", section, re.MULTILINE)
    assert {int(code): text for code, text in rows} == EXIT_CODES


def test_every_kind_of_error_has_a_code_of_its_own() -> None:
    kinds: list[type[ArvgError]] = [ArvgError, *ArvgError.__subclasses__()]
    # One without its own says which package is not installed, as the base does.
    codes = [kind.exit_code for kind in kinds if "exit_code" in vars(kind)]
    assert len({*codes}) == len(codes)
    assert {*codes} <= EXIT_CODES.keys()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw, in the work of a command."""

    def fail() -> None:
        raise KeyError("surprise\nin two lines")

    monkeypatch.setattr("arvg_trt.explain.doctor.doctor_rows", fail)


def test_unforeseen_error_ends_as_one_line_with_70(
    broken: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "doctor") == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: internal error: KeyError: ") and err.count("\n") == 1
    assert "run with --debug" in err


@pytest.mark.parametrize("args", [("--debug", "doctor"), ("doctor", "--debug")])
def test_debug_shows_where_an_error_was_raised(
    args: tuple[str, ...],
    broken: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(monkeypatch, *args) == 70
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "in fail" in err
    assert "error: internal error" in err.splitlines()[-1]


def test_unforeseen_error_is_an_object_too(
    broken: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "doctor", "--json") == 70
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["exit_code"]) == ("KeyError", 70)


def test_unforeseen_error_in_a_stage_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> None:
        raise TypeError("surprise")

    monkeypatch.setattr("arvg_trt.families.cosmos.checkpoint.load_cosmos", fail)
    assert run_main(monkeypatch, "export", MODEL, tmp_path / "ws") == 70
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("args", "code", "kind"),
    [
        (("export", "foo", "ws"), 4, "ExportError"),
        (("quantize", "typo"), 9, "WorkspaceError"),
        (("run", "no-such-recipe"), 3, "RecipeError"),
        (("generate", "ws", "--labels", "1"), 10, "GenerationError"),
        (("compare", "a.json", "b.json"), 9, "WorkspaceError"),
        (("inspect", "nothing"), 9, "WorkspaceError"),
        (("encode", "nothing", "a.png", "-o", "t.npz"), 9, "WorkspaceError"),
        (("decode", "nothing", "t.npz", "-o", "out"), 9, "WorkspaceError"),
        (("build", "ws", "--no-such-option"), 2, "NoSuchOption"),
        (("calibrate", ""), 2, "BadParameter"),
    ],
)
def test_json_prints_its_object_when_a_command_fails(
    args: tuple[str, ...],
    code: int,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    plain, outcome = arvg(*args), arvg(*args, "--json")
    error = json.loads(outcome.out)["error"]
    assert (error["kind"], error["exit_code"], outcome.code, plain.code) == (kind, code, code, code)
    assert error["message"] in outcome.err
    assert plain.out == "" and plain.err == outcome.err


def test_json_of_a_failed_gate_has_the_stage_and_its_figures(
    workspace: Path, finished: Finished
) -> None:
    options = ("--images", finished.validation, "--size", 64, "--rounds", 0)
    outcome = arvg("validate", workspace, *options, "--gate", "compression>=1000", "--json")
    assert outcome.code == 8
    found = json.loads(outcome.out)
    assert found["error"]["exit_code"] == 8 and "compression>=1000" in found["error"]["message"]
    (stage,) = found["stages"]
    assert stage["manifest"]["results"]["metrics"]["psnr_drop"] < 1
    text = arvg("validate", workspace, *options, "--gate", "compression>=1000")
    assert text.code == 8 and "PSNR drop" in text.out


def test_json_of_a_run_that_fails_has_the_stages_that_ended(
    workspace: Path, finished: Finished, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(finished.recipe.read_text().replace("compression>=3", "compression>=1000"))
    outcome = arvg("run", recipe, "--workspace", workspace, "--json")
    assert outcome.code == 8
    found = json.loads(outcome.out)
    assert [s["manifest"]["stage"] for s in found["stages"]] == [
        *("export", "calibrate", "quantize", "build", "validate")
    ]
    assert found["error"]["kind"] == "AccuracyError"


def test_validate_prints_its_figures_and_the_report(workspace: Path, finished: Finished) -> None:
    options = ("--images", finished.validation, "--size", 64, "--rounds", 0)
    lines = arvg("validate", workspace, *options).out.splitlines()
    assert lines[0].startswith("validate: ")
    assert "PSNR drop" in lines[1] and "smaller" in lines[1]
    assert Path(lines[-1]).is_file()


def test_unknown_model_names_the_three_nearest() -> None:
    outcome = arvg("export", "foo", "ws")
    assert_refused(outcome, 4, "nearest: ")
    assert outcome.err.split("nearest: ")[1].split(";")[0].count(",") == 2


@pytest.mark.parametrize("name", ["x", "", "cosmos", "zzzzzzzz" * 50])
def test_nearest_names_are_three_whatever_is_asked(name: str) -> None:
    assert nearest(name, ["alpha", "beta", "gamma", "cosmos-mini"]).count(",") == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 7 TiB"), "out of memory: Unable to allocate 7 TiB"),
        (MemoryError(), "out of memory (ask for less"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "Cannot allocate memory"),
    ],
)
def test_memory_that_is_not_there_has_a_code_of_its_own(error: Exception, words: str) -> None:
    known = explain(error, "")
    assert known is not None
    assert known[0] == OutOfMemory.exit_code and words in known[1]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENAMETOOLONG, True),
        (errno.ELOOP, True),
        (errno.ENOENT, True),
        (errno.EROFS, True),
        (errno.EPIPE, False),
    ],
)
def test_paths_that_cannot_be_used_are_named(number: int, told: bool) -> None:
    path = "a/b" if told else None
    text = os_error_line(OSError(number, os.strerror(number), path))
    assert (text is not None and text.startswith(f"a/b: {os.strerror(number)} (")) is told


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere", "nowhere: is a link to gone, where nothing is (name another folder"),
        ("nowhere/ws", "nowhere: is a link to gone, where nothing is (name another folder"),
        ("circle", "circle: is a link to circle, where nothing is (name another folder"),
        ("file", "file: is not a folder (name another folder as workspace)"),
        ("file/ws", "file: is not a folder (name another folder as workspace)"),
    ],
)
def test_what_is_in_the_way_of_a_workspace_is_named(
    place: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("nowhere").symlink_to("gone")
    Path("circle").symlink_to("circle")
    assert_refused(arvg("export", MODEL, place), 9, words)
    assert_refused(arvg("run", "cosmos-mini-int8", "--workspace", place, "--dry-run"), 9, words)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "nowhere", "circle"}


@pytest.mark.parametrize("place", ["/proc/arvg", "/sys/arvg", "n" * 300, "d/" + "n" * 300])
def test_workspace_that_cannot_be_made_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = arvg("export", MODEL, place)
    assert_refused(outcome, 9, place[:40])


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("quantize", "{ws}", "--name", "n" * 300), 3),
        (("calibrate", "{ws}", "--images", "n" * 300), 9),
        (("calibrate", "{ws}", "--images", "skimage", "--samples", 10**20), 3),
        (("calibrate", "{ws}", "--images", "skimage", "--size", 10**6), 3),
        (("calibrate", "{ws}", "--images", ""), 3),
        (("calibrate", "{ws}", "--labels", ""), 3),
        (("validate", "{ws}", "--labels", ""), 3),
        (("validate", "{ws}", "--images", "skimage", "--threads", 10**9), 3),
        (("build", "{ws}", "--image-size", 10**9), 3),
        (("export", MODEL, "{ws}", "--checkpoint", ""), 4),
        (("export", MODEL, "{ws}", "--images", ""), 5),
        (("export", "onnx", "{ws}", "--graph", "n" * 300), 9),
        (("run", "n" * 300), 9),
        (("inspect", "n" * 300), 9),
    ],
    ids=lambda value: " ".join(str(v)[:12] for v in value) if isinstance(value, tuple) else None,
)
def test_values_without_measure_are_refused(
    args: tuple[object, ...], code: int, finished: Finished
) -> None:
    before = digests(finished.workspace)
    outcome = arvg(*(str(a).replace("{ws}", str(finished.workspace)) for a in args))
    assert_refused(outcome, code)
    assert digests(finished.workspace) == before


def test_count_beyond_reason_is_a_usage_error() -> None:
    assert arvg("generate", "ws", "--labels", "1", "--count", 10**12).code == 2


def test_closed_pipe_ends_a_command_as_click_does_it() -> None:
    process = start("models")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=300) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_interrupt_while_waiting_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("arvg_trt.explain.doctor.doctor_rows", fail)
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 130
    assert json.loads(result.stdout)["error"]["exit_code"] == 130


@pytest.mark.parametrize("command", commands())
def test_every_command_takes_debug_and_json(command: str) -> None:
    options = [name for param in commands()[command].params for name in param.opts]
    assert options.count("--debug") == options.count("--json") == 1


def test_missing_packages_are_all_named_at_once(tmp_path: Path) -> None:
    names = [name for extra in ("export", "report") for name in EXTRAS[extra]]
    code = (
        f"import sys\nfor name in {names}: sys.modules[name] = None\n"
        "from arvg_trt.cli import cli\n"
        f"cli({['export', MODEL, str(tmp_path / 'ws')]})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: torch, onnx, onnx-ir, onnxscript, scikit-image, jinja2 and scipy are not installed "
        "(pip install 'arvg-trt[export,report]'; before it, for PyTorch without gigabytes of CUDA: "
        f"{CPU_TORCH})\n"
    )


def test_packages_of_extras_are_those_that_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert missing_packages(("export", "report")) == {"export": ["torch"], "report": ["jinja2"]}


def test_a_package_of_several_extras_is_advised_by_the_one_that_most_commands_need() -> None:
    assert [extra_of(name) for name in ("onnx", "polygraphy", "yaml")] == ["export", "rtx", None]


def test_internal_error_of_a_process_of_its_own_is_one_line(tmp_path: Path) -> None:
    outcome = wait_for(start("inspect", tmp_path / "none", "--debug"))
    assert outcome.code == 9
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" in outcome.err


def test_a_few_names_are_said_as_they_are_and_many_are_counted() -> None:
    assert bounded(["a", "b", "c"], "samples") == "a, b, c"
    assert bounded(["a", "b", "c", "d"], "samples") == "4 samples, the first 3: a, b, c"
    assert bounded(["a", "b"], "reasons", most=1, separator="; ") == "2 reasons, the first 1: a"


@given(st.lists(st.text("ab", min_size=1, max_size=20)), st.integers(1, 8))
def test_no_list_is_longer_than_what_it_may_name(names: list[str], most: int) -> None:
    assert len(bounded(names, "names", most)) <= 30 + most * 22
