"""Every command and every Python block of the documentation runs as it stands."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from packaging.requirements import Requirement

from arvg_trt.cli import cli
from arvg_trt.engines.tensorrt.engine import foreseen_folder
from arvg_trt.recipe.file import load_recipe
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.runtime.family import Family

from ..command_line import Finished, arvg
from ..minis.minis import Mini, Quantized
from ..one_process import exporting_here
from .pages import PAGES, ROOT, Block, begins_with, blocks_of, inline_commands
from .reader import Belongings, give_graphs, give_images

# What a machine of this project's tests lacks; a block that needs one of these is parsed alone.
NEEDS = {
    *("hub", "GPU", "TensorRT", "Jetson", "registry", "Docker", "Triton", "GitHub", "GitLab"),
    *("another machine", "the whole suite", "another package", "weights"),
}
# What a fence holds. The first four are run, written or parsed; Sphinx reads the last ones.
LANGUAGES = {"bash", "python", "toml", "text", "yaml", "json", "{toctree}", "{eval-rst}"}
PROJECT = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def is_run(block: Block) -> bool:
    """Return whether a block is run, and not only looked at."""
    return block.needs is None and block.language in ("bash", "python")


@pytest.fixture(scope="session")
def belongings(
    request: pytest.FixtureRequest,
    mini_of: Callable[[str], Mini],
    quantized_of: Callable[[str], Quantized],
) -> Belongings:
    def finished() -> Finished:
        made: Finished = request.getfixturevalue("finished")
        return made

    return Belongings(finished, mini_of, quantized_of)


RUN = [page for page in PAGES if any(is_run(block) for block in blocks_of(page))]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_page_runs_from_top_to_bottom(
    page: Path,
    belongings: Belongings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, folder = tmp_path / "home", tmp_path / "reader"
    folder.mkdir()
    give_images(folder)
    give_graphs(folder)
    for place in begins_with(page):
        belongings.give(place, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    with exporting_here():
        for block in blocks_of(page):
            run(block, folder)


def check_names(code: str, place: str) -> None:
    """Check of Python that cannot run here that what it takes of installed packages is there."""
    tree = ast.parse(code, place)
    modules: dict[str, Any] = {}
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, ast.Import) else ():
            if importlib.util.find_spec(alias.name) is not None:
                modules[alias.asname or alias.name] = importlib.import_module(alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = modules.get(node.value.id)
            assert owner is None or hasattr(owner, node.attr), f"{place}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == Family.__name__:
            known = {field.name for field in dataclasses.fields(Family)}
            assert {word.arg for word in node.keywords} <= known, place


def test_names_of_python_that_cannot_run_are_checked() -> None:
    check_names("import onnxruntime as o, not_here as n\no.get_ep_devices()\nn.anything()", "x")
    for odd in ("import onnxruntime as o\no.get_no_devices()", "Family(name='x', size=3)"):
        with pytest.raises(AssertionError):
            check_names(odd, "x")
    for page in ("families.md", "engines.md"):
        (block,) = (b for b in blocks_of(ROOT / "docs" / page) if b.language == "python")
        assert block.needs is not None  # which is said above the block, and of it alone
        check_names(block.text, page)


def run(block: Block, folder: Path) -> None:
    """Run a block, or parse what cannot run here."""
    place = f"{block.page}:{block.line}"
    if block.language == "bash":
        for k, words in enumerate(block.commands):
            code = block.exit_code if k == len(block.commands) - 1 else 0
            check_command(words, code, f"{place}: {' '.join(words)}", parsed=bool(block.needs))
    elif block.language == "python" and block.needs is None:
        with warnings.catch_warnings():  # as in a user's interpreter, not errors as in pytest
            warnings.simplefilter("ignore", FutureWarning)
            exec(compile(block.text, place, "exec"), {"__name__": "__main__"})
    elif block.language == "python":
        check_names(block.text, place)
    elif block.language == "toml" and block.file:
        (folder / block.file).write_text(block.text, encoding="utf-8")
    elif block.language == "toml" and "arvg-trt/recipe/" in block.text:
        msgspec.toml.decode(block.text, type=Recipe)
    if "output" in block.notes:
        outcome = arvg(*block.notes["output"].split()[1:])
        assert outcome.code == 0, (place, outcome.err)
        assert shown(block.text) == shown(outcome.out), place


def shown(text: str) -> list[str]:
    """Lines as they are read: trailing blanks and empty lines at the ends do not count."""
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def check_command(words: list[str], code: int, place: str, *, parsed: bool) -> None:
    """Run a command of ours; of others, see that what they name exists."""
    match words:
        case ["arvg-trt", *arguments] if parsed:
            parse(arguments, place)
        case ["arvg-trt", *arguments]:
            outcome = arvg(*arguments)
            assert outcome.code == code, (place, outcome.out, outcome.err)
        case ["make", *targets]:
            for target in targets:
                assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), place
        case ["pip", "install", *packages]:
            for option, word in itertools.pairwise(["", *packages]):
                if option in ("-c", "-r"):
                    assert (ROOT / word).is_file(), place
                elif not word.startswith("-") and option != "--index-url":
                    require_known_extras(word, place)
        case ["python", "-m", module, *arguments] if module.startswith("arvg_trt."):
            require_options(module, arguments, place)
        case ["eval", completion]:
            shell = ["bash", "-c", f'eval "{completion}" && complete -p arvg-trt']
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            subprocess.run(shell, env={**os.environ, "PATH": path}, check=True)
        case _:
            assert parsed, f"{place}: neither run nor marked with what it needs"


def parse(arguments: list[str], place: str) -> None:
    """Parse a command line as Click does before the command begins."""
    try:
        with click.Context(cli, info_name="arvg-trt") as context:
            _, command, rest = cli.resolve_command(context, list(arguments))
            assert command is not None, place
            command.make_context(command.name, rest, parent=context)
    except click.UsageError as error:
        pytest.fail(f"{place}: {error.format_message()}")


def require_known_extras(package: str, place: str) -> None:
    found = Requirement(package)
    if found.name == PROJECT["name"]:
        assert found.extras <= PROJECT["optional-dependencies"].keys(), place


def require_options(module: str, arguments: list[str], place: str) -> None:
    """See that a module of ours exists, and that it, or one beside it, names each option."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, place
    folder = Path(found.origin)
    files = sorted(folder.parent.glob("*.py")) if folder.name == "__init__.py" else [folder]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        assert f'"{option}"' in source, (place, option)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_are_right(page: Path) -> None:
    """Words in capitals stand for a user's own; commands take them as any name."""
    for line in inline_commands(page):
        words = shlex.split(line)[1:]
        if len(words) == 1:  # a command is named, not called
            assert words[0] in {*cli.commands, "COMMAND", "--version"}, (page.name, line)
        elif "|" not in line and "…" not in line and words[0] != "COMMAND":
            parse(words, f"{page.name}: {line}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_says_what_it_holds(page: Path) -> None:
    for block in blocks_of(page):
        assert block.language in LANGUAGES, (block.page, block.line, block.language)
        assert block.needs is None or block.needs in NEEDS, (block.page, block.line, block.needs)


def test_fences_are_found_with_their_notes(tmp_path: Path) -> None:
    """Guards the tests above against a page whose blocks are not seen."""
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n<!-- begins with: out/demo, out/var-mini -->\n\n"
        "<!-- needs: hub -->\n```bash\narvg-trt run x \\\n    --dry-run  # see\n# alone\n```\n"
        "<!-- output: arvg-trt targets -->\n```text\none\n```\n```toml\n# a.toml\nx = 1\n```\n"
    )
    first, second, third = blocks_of(page)
    assert (first.needs, first.line, first.exit_code) == ("hub", 6, 0)
    assert first.commands == [["arvg-trt", "run", "x", "--dry-run"]]
    assert second.notes == {"output": "arvg-trt targets"} and second.text == "one\n"
    assert third.file == "a.toml"
    assert begins_with(page) == ["out/demo", "out/var-mini"]


@pytest.mark.parametrize(
    "line",
    [
        "arvg-trt nothing",
        "arvg-trt calibrate ws --no-such-option",
        "arvg-trt quantize ws --encoder-bits many",
        "pip install 'arvg-trt[nothing]'",
        "python -m arvg_trt.benchmarks.nothing",
        "python -m arvg_trt.benchmarks.rounding --no-such-option",
        "make nothing",
        "rm -rf everything",
    ],
)
def test_a_command_that_has_rotted_fails(line: str) -> None:
    (words,) = Block("page.md", 1, "bash", line, {}).commands
    parsed = words[0] == "arvg-trt"
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_command(words, 0, line, parsed=parsed)


def test_most_blocks_run() -> None:
    """A page whose commands were marked one by one would prove nothing."""
    blocks = [b for page in PAGES for b in blocks_of(page) if b.language in ("bash", "python")]
    run_here = [block for block in blocks if is_run(block)]
    assert len(run_here) > 0.7 * len(blocks) > 20


def test_pages_say_what_the_bundle_of_the_first_recipe_holds() -> None:
    """Its engines for GPUs are named, as `verify` lists them, where a reader chooses one."""
    builds = load_recipe("cosmos-mini-int8").build
    assert any(build.on_cpu for build in builds)
    folders = [foreseen_folder(build) for build in builds if not build.on_cpu]
    assert folders
    for page in ("start-device.md", "edge.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert all(f"`{folder}`" in text for folder in folders), page
