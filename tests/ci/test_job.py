"""Recipes that a CI machine cannot run are refused when the file is written, or it says why."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from arvg_trt.ci.job import JobOptions, describe_job
from arvg_trt.ci.repository import git
from arvg_trt.workspace.stage import tool_version

from ..command_line import arvg, assert_refused
from ..families.custom.models import handmade_transformer

RECIPE = """\
schema = "arvg-trt/recipe/v1"
model = "{model}"
workspace = "{workspace}"
name = "int8"
{more}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a repository, with a folder of images."""
    (tmp_path / "repo" / "photos").mkdir(parents=True)
    (tmp_path / "repo" / "photos" / "a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "repo")
    return tmp_path / "repo"


def write(
    more: str = "", model: str = "cosmos-mini-di8x8", workspace: str = "out/ws", at: str = "r.toml"
) -> str:
    Path(at).parent.mkdir(parents=True, exist_ok=True)
    Path(at).write_text(RECIPE.format(model=model, workspace=workspace, more=more))
    return at


def refused(recipe: str, code: int, *words: str, options: tuple[str, ...] = ()) -> None:
    for platform in ("github", "gitlab"):
        assert_refused(arvg("ci", platform, recipe, *options), code, *words)


def test_data_of_the_repository_is_in_the_key_and_other_data_is_refused() -> None:
    found = describe_job(write('[validate]\nimages = "photos/"'), JobOptions())
    assert found.files == ("r.toml",) and found.folders == ("photos",)
    refused(write('[validate]\nimages = "held_out/"'), 3, "held_out/", "[validate] images")
    refused(write('[calibrate]\nimages = "../photos"'), 3, "outside of this folder")
    absolute = write('[calibrate]\nimages = "/data/photos"')
    refused(absolute, 3, "/data/photos", "outside of this folder")
    ours = describe_job(absolute, JobOptions(runners=("lab",)))
    assert ours.notes[0] == "Its runner has to have /data/photos."
    assert ours.notes[0] in arvg("ci", "gitlab", absolute, "--runner", "lab").out


def test_a_gpu_is_refused_where_the_platform_s_runners_have_none() -> None:
    built = write('[[build]]\nbackend = "tensorrt"')
    refused(built, 3, "tensorrt needs a GPU", "--runner LABEL")
    refused(built, 3, "needs a GPU", options=("--runner", "ubuntu-24.04"))
    assert "arvg-trt[export,report,tensorrt]" in arvg("ci", "github", built, "--runner", "gpu").out
    refused(write('[validate]\ndevice = "cuda:0"'), 3, "cuda:0 needs a GPU")


@pytest.mark.parametrize(
    ("more", "extras"),
    [
        ("", "export,report"),
        ('[[build]]\nbackend = "tensorrt_rtx"\ntargets = ["sm89"]', "export,report,rtx"),
        ("[validate]\nsecond_opinion = true", "export,report,kit"),
    ],
)
def test_the_extras_are_those_of_the_recipe(more: str, extras: str) -> None:
    found = describe_job(write(more), JobOptions())
    assert found.requirement == f"arvg-trt[{extras}]=={tool_version()}"


def test_a_wheel_or_an_address_is_installed_in_place_of_the_version() -> None:
    wheel = describe_job(write(), JobOptions(package="-wheels/a.whl"))
    assert wheel.requirement == "./-wheels/a.whl[export,report]"
    address = describe_job(write(), JobOptions(package="git+https://example.com/a"))
    assert address.requirement == "arvg-trt[export,report] @ git+https://example.com/a"


def test_a_checkpoint_of_the_hub_is_cached_and_said() -> None:
    found = describe_job(write('checkpoint = "nvidia/Cosmos-0.1-Tokenizer-DI8x8"'), JobOptions())
    assert found.from_hub and "Hugging Face Hub" in found.notes[0]
    refused(write(model="cosmos-di8x8"), 4, "no checkpoint given")
    refused(write(model="nothing"), 4, "no model named")


def test_a_gate_that_is_misspelt_is_refused_and_none_is_said() -> None:
    refused(write('[validate]\ngates = ["psnr_dorp<=1"]'), 3, "psnr_dorp", "psnr_drop")
    speed = describe_job(write('[validate]\ngates = ["speedup>=1.5"]'), JobOptions())
    assert speed.notes == (
        "A gate on speed varies from one shared machine to the next: speedup>=1.5.",
    )
    assert "no gates" in describe_job(write(), JobOptions()).notes[-1]


@pytest.mark.parametrize("workspace", ["/data/ws", "../ws", "a*b", "-ws", "ws ", "${HOME}", "."])
def test_a_workspace_that_no_cache_can_name_is_moved(workspace: str) -> None:
    found = describe_job(write(workspace=workspace), JobOptions())
    assert found.workspace == "out/int8"
    assert found.run_words == ("arvg-trt", "run", "--workspace", "out/int8", "r.toml")


def test_a_recipe_has_to_be_in_this_folder(folder: Path, tmp_path: Path) -> None:
    here = describe_job(str(folder / write(at="recipes/-x.toml")), JobOptions())
    assert here.recipe == "recipes/-x.toml" and here.slug == "x"
    assert describe_job(write(at="-y.toml"), JobOptions()).recipe == "./-y.toml"
    refused(str(tmp_path / "no.toml"), 3, "no such file, and no preset of that name")
    outside = write(at=str(tmp_path / "out.toml"))
    refused(outside, 3, "outside of this folder")
    refused("../out.toml", 3, "outside of this folder")


def test_git_lfs_is_checked_out_where_it_is_used() -> None:
    assert "lfs: true" not in arvg("ci", "github", write()).out
    Path(".gitattributes").write_text("*.png filter=lfs diff=lfs merge=lfs -text\n")
    assert "lfs: true" in arvg("ci", "github", write()).out


def test_what_git_ignores_is_refused_and_so_is_a_folder_below_the_root(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if git("init", "--quiet") is None:
        pytest.skip("git is not installed")
    recipe = write('[validate]\nimages = "photos/"')
    assert describe_job(recipe, JobOptions()).folders == ("photos",)
    Path(".gitignore").write_text("photos/\n")
    refused(recipe, 3, "photos", "ignored by git")
    Path("below").mkdir()
    monkeypatch.chdir(folder / "below")
    refused(write(), 3, "root of the repository", str(folder))
    assert arvg("ci", "github", "cosmos-mini-int8").code == 0  # of a preset no path leads there


def test_a_bundle_needs_engines_and_other_weights_their_licence() -> None:
    refused(write("build = []"), 3, "no engines", options=("--bundle",))
    hub = write('checkpoint = "nvidia/Cosmos-0.1-Tokenizer-DI8x8"')
    assert any("--license" in note for note in describe_job(hub, JobOptions(bundle=True)).notes)


@pytest.mark.parametrize(
    "options",
    [
        ("--branch", ""),
        ("--branch", "a b"),
        ("--branch", "a..b"),
        ("--branch", "a\nb"),
        ("--python", "2.7"),
        ("--python", "latest"),
        ("--runner", " "),
        ("--runner", "a\nb"),
        ("--package", ""),
    ],
)
def test_options_that_mean_nothing_are_refused(options: tuple[str, str]) -> None:
    refused(write(), 3, options=options)


def test_a_small_model_of_its_own_package_is_installed_with_it() -> None:
    version = tool_version()
    for platform in ("github", "gitlab"):
        text = arvg("ci", platform, "var-w8a8").out
        assert f"arvg-trt-minis=={version}" in text
        assert "arvg-trt-minis" not in arvg("ci", platform, "rar-w8a8").out


@pytest.fixture
def own() -> str:
    """A recipe of a graph in a folder, with its weights in a file beside it, as PyTorch writes."""
    Path("graphs").mkdir()
    handmade_transformer(Path("model.onnx"))
    onnx.save(
        onnx.load("model.onnx"),
        "graphs/model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    for name in ("feeds.npz", "plan.json", "machine.json"):
        Path(name).touch()
    return write(
        'graphs = ["graphs/model.onnx"]\n[calibrate]\nfeeds = "feeds.npz"\n'
        '[quantize]\nplan = "plan.json"\nplan_for = "machine.json"',
        model="onnx",
    )


def test_weights_beside_a_graph_and_a_plan_are_in_the_key(own: str) -> None:
    files = ("graphs/model.onnx", "graphs/model.onnx.data", "feeds.npz", "plan.json")
    assert describe_job(own, JobOptions()).files == ("r.toml", *files, "machine.json")
    listed = ", ".join(f"'{name}'" for name in ("r.toml", *files, "machine.json"))
    assert f"hashFiles({listed})" in arvg("ci", "github", own).out


@pytest.mark.parametrize("name", ["graphs/model.onnx.data", "plan.json"])
def test_weights_or_a_plan_that_a_job_would_not_find_are_refused(own: str, name: str) -> None:
    if git("init", "--quiet") is None:
        pytest.skip("git is not installed")
    Path(".gitignore").write_text(f"{name}\n")
    refused(own, 3, name, "ignored by git")
    Path(name).unlink()
    refused(own, 3, name, "is not in this folder", "add it to the repository")


def test_a_graph_that_git_lfs_has_not_fetched_is_told(own: str) -> None:
    Path("graphs/model.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(own, 4, "graphs/model.onnx", "is not an ONNX model", "git lfs pull")


def test_networks_of_metrics_are_data_of_a_job() -> None:
    for key in ("features", "lpips", "dists"):
        refused(write(f'[validate]\n{key} = "n.onnx"'), 3, "n.onnx", f"[validate] {key}")
