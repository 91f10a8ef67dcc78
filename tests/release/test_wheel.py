"""The wheels, built and installed: what they hold, their size, and that they suffice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from arvg_trt.families.variants import IN_MINIS, MODELS
from arvg_trt.release.distributions import MOST_WHEEL_BYTES, ROOT, build, project_version

from ..command_line import RECIPE, Outcome, assert_refused, pictures
from ..test_rooms import BESIDE, modules

VERSION = project_version(ROOT)
QUICK = "[quantize]\nsmoothing = 0\nclip_power = 0\ntap_sums = false\n"  # no search of scales
SHIPPED = {"cosmos-mini-di8x8", "rar-mini"}
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git clone")


@dataclass(frozen=True)
class Installed:
    """A folder that wheels were installed to, as `site-packages` is."""

    site: Path

    def run(self, folder: Path, *words: object) -> Outcome:
        """Run the installed command in a folder, away from the clone."""
        environment = os.environ | {"PYTHONPATH": str(self.site)}
        command = [sys.executable, str(self.site / "bin" / "arvg-trt"), *map(str, words)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        return Outcome(done.returncode, done.stdout, done.stderr)


def install(site: Path, wheels: Sequence[Path]) -> Installed:
    words = ("install", "--quiet", "--no-deps", "--no-index", "--target", site, *wheels)
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)
    return Installed(site)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both wheels and the sdist of the tree as it lies here."""
    folder = tmp_path_factory.mktemp("dist")
    assert [path.name for path in build(ROOT, folder)] == [
        f"arvg_trt-{VERSION}-py3-none-any.whl",
        f"arvg_trt-{VERSION}.tar.gz",
        f"arvg_trt_minis-{VERSION}-py3-none-any.whl",
    ]
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return dist / f"arvg_trt-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def minis(dist: Path) -> Path:
    return dist / f"arvg_trt_minis-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return install(tmp_path_factory.mktemp("alone"), [wheel])


def names_in(wheel: Path, below: str) -> set[str]:
    """Files of a wheel below a folder, relative to it."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{below}/")]
    return {name.removeprefix(f"{below}/") for name in names}


def test_the_wheel_is_below_12_mb_and_holds_every_module_and_file_of_its_packages(
    wheel: Path,
) -> None:
    assert wheel.stat().st_size <= MOST_WHEEL_BYTES == 12_000_000
    held = names_in(wheel, "arvg_trt")
    packages = {path.parent for path in modules()}
    wanted = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).iterdir()
        if path.suffix in (".py", ".typed")
    }
    data = [
        *ROOT.glob("recipe/presets/*.toml"),
        ROOT / "engines/tensorrt/targets.toml",
        ROOT / "explain/run_costs.json",
    ]
    data += [*ROOT.glob("validate/report/templates/*"), *ROOT.glob("ci/templates/*")]
    data += (path for name in SHIPPED for path in (ROOT / "models" / name).iterdir())
    assert held == wanted | {str(path.relative_to(ROOT)) for path in data}
    assert not {name.partition("/")[0] for name in held} & {*BESIDE, "docs"}


def test_a_model_is_in_one_of_the_wheels(wheel: Path, minis: Path) -> None:
    every = {path.name for path in (ROOT / "models").iterdir()}
    assert {name.partition("/")[0] for name in names_in(wheel, "arvg_trt/models")} == SHIPPED
    below = names_in(minis, "arvg_trt_minis/models")
    assert {name.partition("/")[0] for name in below} == set(IN_MINIS) == every - SHIPPED
    assert below == {
        str(path.relative_to(MODELS)) for name in IN_MINIS for path in (MODELS / name).iterdir()
    }
    assert names_in(minis, "arvg_trt_minis") - {f"models/{name}" for name in below} == {
        "__init__.py"
    }


def test_the_wheel_runs_every_stage_of_the_tokenizer_that_it_ships(
    alone: Installed, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    images = {"calibration": "calibration", "validation": "validation"}
    for name in images:
        pictures(tmp_path / name, 2, 64)
    recipe.write_text(RECIPE.format(workspace="ws", **images) + QUICK)
    outcome = alone.run(tmp_path, "run", "recipe.toml")
    assert outcome.code == 0, outcome
    assert outcome.out.rstrip().endswith("ws/validate/int8/report.html")
    manifest = json.loads((tmp_path / "ws/export/manifest.json").read_text())
    assert manifest["versions"]["arvg-trt"] == VERSION
    outcome = alone.run(tmp_path, "bundle", "ws", "--name", "int8", "-o", "made.tar")
    assert outcome.code == 0, outcome
    assert "no licence" not in outcome.err
    outcome = alone.run(tmp_path, "verify", "made.tar")
    assert outcome.code == 0, outcome
    index = json.loads(alone.run(tmp_path, "index", ".", "--json").out)
    assert [each["page"] for each in index["reports"]] == ["ws/validate/int8/report.html"]
    (bundle,) = index["bundles"]
    assert (bundle["file"], bundle["groups"][0], bundle["signatures"]) == ("made.tar", "cpu", [])
    assert (
        bundle["digest"]
        == json.loads(alone.run(tmp_path, "inspect", "made.tar", "--json").out)["digest"]
    )
    assert alone.run(tmp_path, "index", ".").out.endswith("index.html\n")


@pytest.mark.parametrize("preset", ["cosmos-mini-int8", "cosmos-mini-log4", "rar-w8a8"])
def test_presets_of_what_the_wheel_ships_would_run(
    alone: Installed, tmp_path: Path, preset: str
) -> None:
    outcome = alone.run(tmp_path, "run", preset, "--dry-run")
    assert outcome.code == 0, outcome
    assert "fetches" not in outcome.out


@pytest.mark.parametrize("words", [("run", "var-w8a8", "--dry-run"), ("run", "mar-w8a8")])
def test_a_preset_of_a_mini_that_is_not_installed_says_what_to_install(
    alone: Installed, tmp_path: Path, words: Sequence[str]
) -> None:
    outcome = alone.run(tmp_path, *words)
    model = f"{words[1].partition('-')[0]}-mini"
    assert_refused(
        outcome, 4, f"the weights of {model} are not installed (pip install arvg-trt-minis, or"
    )
    assert not list(tmp_path.rglob("export"))


def test_models_says_which_minis_are_missing_and_finds_them_once_they_are_installed(
    alone: Installed, wheel: Path, minis: Path, tmp_path: Path
) -> None:
    """A list needs no weights; with the second wheel every preset of a mini runs."""

    def checkpoints(installed: Installed) -> dict[str, str]:
        rows = json.loads(installed.run(tmp_path, "models", "--json").out)["models"]
        return {row["name"]: row["checkpoint"] for row in rows}

    missing = checkpoints(alone)
    assert {missing[name] for name in IN_MINIS} == {"pip install arvg-trt-minis"}
    assert {missing[name] for name in SHIPPED} == {"shipped"}
    both = install(tmp_path / "both", [wheel, minis])
    found = checkpoints(both)
    assert {found[name] for name in (*IN_MINIS, *SHIPPED)} == {"shipped"}
    for preset in ("var-w8a8", "mar-w8a8"):
        assert both.run(tmp_path, "run", preset, "--dry-run").code == 0
