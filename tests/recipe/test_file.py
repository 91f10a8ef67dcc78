"""Recipes: every preset loads, every mistake is named before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from arvg_trt.engines.tensorrt.targets import resolve_target
from arvg_trt.errors import ExportError, RecipeError
from arvg_trt.families.variants import find_model, shipped_checkpoint
from arvg_trt.recipe.base import with_changes
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.recipe.calibrate import CalibrateOptions
from arvg_trt.recipe.file import PRESETS, load_recipe
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.recipe.recipe import Recipe
from arvg_trt.recipe.validate import ValidateOptions
from arvg_trt.samples.sources import check_kind
from arvg_trt.validate.report.gates import parse_gates
from arvg_trt.validate.report.schema import METRIC_NAMES

from ..command_line import Finished, arvg, assert_refused, digests

MINIMAL = 'schema = "arvg-trt/recipe/v1"\nmodel = "m"\nworkspace = "w"\nname = "n"\n'
PRESET_NAMES = sorted(path.stem for path in PRESETS.glob("*.toml"))


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


FAMILIES = ("var", "rar", "par", "llamagen", "mar")
GENERATOR_PRESETS = tuple(n for n in PRESET_NAMES if n.partition("-")[0] in FAMILIES)


def test_presets_are_shipped() -> None:
    assert "cosmos-mini-int8" in PRESET_NAMES


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_preset_names_only_what_exists(name: str) -> None:
    recipe = load_recipe(name)
    entry = find_model(recipe.model)
    if recipe.checkpoint is None:
        assert Path(shipped_checkpoint(entry)).is_dir()
    else:
        with pytest.raises(ExportError):
            shipped_checkpoint(entry)
    assert parse_gates(recipe.validate.gates, METRIC_NAMES) or name in GENERATOR_PRESETS
    for build in recipe.build:
        if build.backend != "onnxruntime":
            assert [resolve_target(t, build.backend) for t in build.targets]


@pytest.mark.parametrize("name", GENERATOR_PRESETS)
def test_generator_preset_names_no_source_beside_what_it_makes(name: str) -> None:
    recipe = load_recipe(name)
    family, _, recipe_name = name.partition("-")
    assert (recipe.model, recipe.name) == (f"{family}-mini", recipe_name)
    assert recipe.workspace == f"out/{recipe.model}"
    check_kind("generator", recipe.calibrate)


@pytest.mark.parametrize("name", sorted({*PRESET_NAMES} - {*GENERATOR_PRESETS}))
def test_preset_validates_on_other_images_than_it_calibrates_on(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.calibrate.images is not None and recipe.validate.images is not None
    used, held_out = (
        set(images.partition(":")[2].split(","))
        for images in (recipe.calibrate.images, recipe.validate.images)
    )
    assert used.isdisjoint(held_out)


def test_preset_is_found_with_and_without_suffix_and_folder() -> None:
    plain = load_recipe("cosmos-mini-int8")
    assert load_recipe("cosmos-mini-int8.toml") == plain
    assert load_recipe("recipes/cosmos-mini-int8.toml") == plain


def test_what_a_recipe_leaves_out_has_the_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe == Recipe(model="m", workspace="w", name="n")
    assert recipe.build == (BuildOptions(backend="onnxruntime"),)


@pytest.mark.parametrize("method", ["per_tensor", "log_quantization", "blockwise"])
def test_weight_only_method_leaves_inputs_in_high_precision_without_saying_so(
    method: str, tmp_path: Path
) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL + f"[quantize]\nquantize_method = '{method}'\n"))
    assert recipe.quantize.activation_bits == 32


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("cosmos-mini-int9", "cosmos-mini-int8"), ("cosmos_mini_log4.toml", "cosmos-mini-log4")],
)
def test_unknown_preset_names_the_nearest_first(name: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert f"no preset of that name (nearest: {nearest}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "modle = 1\n", ("modle",)),
        (MINIMAL + "[quantize]\nencoder_bit = 8\n", ("encoder_bit", "$.quantize")),
        (MINIMAL + '[[build]]\nbackend = "onnxruntime"\ntarget = []\n', ("target", "$.build[0]")),
        (MINIMAL + "[calibrate]\nsamples = 'many'\n", ("$.calibrate.samples", "int")),
        (MINIMAL + "[calibrate]\nsamples = 0\n", ("samples", "0", "$.calibrate")),
        (MINIMAL + "[calibrate]\nsynthetic = true\nimages = 'x'\n", ("synthetic", "exclude")),
        (MINIMAL + "[quantize]\nquantize_method = 'int8'\n", ("int8", "quantize_method")),
        (MINIMAL + "[quantize]\nencoder_bits = 16\n", ("encoder_bits", "16")),
        (MINIMAL + "[quantize]\nquantize_method = 'fp8'\nencoder_bits = 4\n", ("fp8", "8 bits")),
        (
            MINIMAL + "[quantize]\nquantize_method = 'fp8'\nactivation_bits = 32\n",
            ("fp8", "activation_bits"),
        ),
        (
            MINIMAL + "[quantize]\nquantize_method = 'per_tensor'\nactivation_bits = 8\n",
            ("per_tensor", "weight-only"),
        ),
        (MINIMAL + "[calibrate]\nsamples = 100000000000000000000\n", ("samples",)),
        (MINIMAL + "[calibrate]\nsize = 1000000\n", ("size", "at most 8,192")),
        (MINIMAL + "[calibrate]\nlabels = ''\n", ("labels is empty",)),
        (MINIMAL + "[validate]\nthreads = -1\n", ("threads",)),
        (MINIMAL + "[validate]\nimages = ' '\n", ("images is empty",)),
        (MINIMAL + '[validate]\nimages = "a\\u0000b"\n', ("images holds a null",)),
        (MINIMAL + 'graphs = ["a.onnx", ""]\n', ("graphs is empty",)),
        (MINIMAL.replace('name = "n"', f'name = "{"n" * 101}"'), ("101 characters",)),
        (MINIMAL + f"x = {'[' * 100_000}{']' * 100_000}\n", ("mine.toml",)),
        (MINIMAL + f"x = {'{y=' * 100_000}1{'}' * 100_000}\n", ("mine.toml",)),
        (MINIMAL + "[[build]]\nbackend = 'tensorrt_rtx'\n", ("tensorrt_rtx", "targets")),
        (MINIMAL + "[[build]]\nbackend = 'coreml'\n", ("coreml", "backend")),
        (MINIMAL + "[validate]\nrounds = -1\n", ("rounds", "-1")),
        (MINIMAL.replace('name = "n"', 'name = "../n"'), ("../n",)),
        (MINIMAL.replace('name = "n"', ""), ("name",)),
        (
            MINIMAL.replace("recipe/v1", "recipe/v2"),
            ("recipe/v2 is newer", "upgrade"),
        ),
        ("not = = toml", ("mine.toml",)),
        ("", ("model",)),
    ],
)
def test_mistake_in_a_recipe_is_named_with_the_file(
    text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    name = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    for word in (name, *words):
        assert word in str(caught.value)


def test_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RecipeError, match=r"mine\.toml"):
        load_recipe(str(path))


def test_an_onnx_file_in_place_of_a_recipe_is_told_apart(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"\x08\x0a\xff")
    words = (f"{graph}: is a graph, and no recipe", f"export onnx WORKSPACE --graph {graph}")
    assert_refused(arvg("run", graph), 3, *words)


def test_command_line_changes_a_recipe_and_none_leaves_it() -> None:
    base = QuantizeOptions(encoder_bits=4, exclude=("encoder.*",))
    changed = with_changes(base, encoder_bits=None, decoder_bits=6, exclude=None)
    assert changed == QuantizeOptions(encoder_bits=4, decoder_bits=6, exclude=("encoder.*",))


@pytest.mark.parametrize(
    ("options", "changes", "word"),
    [
        (QuantizeOptions(), {"quantize_method": "per_tensor"}, "weight-only"),
        (CalibrateOptions(images="x"), {"synthetic": True}, "exclude each other"),
        (BuildOptions(), {"targets": ["sm86"]}, "no targets"),
        (ValidateOptions(), {"size": 0}, "size"),
    ],
)
def test_changes_that_do_not_go_together_are_refused(
    options: object, changes: dict[str, object], word: str
) -> None:
    with pytest.raises(RecipeError, match=word):
        with_changes(options, **changes)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("compression>=3", "compresion>=3", 3, ("compresion", "compression")),
        ("compression>=3", "compression=3", 3, ("compression=3",)),
        ("samples = 2", "samples = two", 3, ("mine.toml",)),
        ("cosmos-mini-di8x8", "cosmos-mini", 4, ("cosmos-mini", "nearest")),
        ("/calibration", "/elsewhere", 5, ("elsewhere", "no such folder")),
        ("/validation", "/elsewhere", 5, ("elsewhere", "no such folder")),
        (
            "[validate]",
            '[[build]]\nbackend = "tensorrt_rtx"\ntargets = ["rtx6090"]\n[validate]',
            6,
            ("rtx6090", "rtx5090"),
        ),
    ],
)
def test_run_refuses_what_a_late_stage_would_before_the_first_one(
    old: str, new: str, code: int, words: tuple[str, ...], finished: Finished, tmp_path: Path
) -> None:
    recipe = write(tmp_path, finished.recipe.read_text().replace(old, new))
    before = digests(finished.root)
    outcome = arvg("run", recipe, "--workspace", tmp_path / "ws")
    assert_refused(outcome, code, *words)
    assert not (tmp_path / "ws").exists()
    assert digests(finished.root) == before


def test_run_without_images_refuses_instead_of_making_some_up(tmp_path: Path) -> None:
    text = MINIMAL.replace('"m"', '"cosmos-mini-di8x8"')
    assert_refused(
        arvg("run", write(tmp_path, text), "--workspace", tmp_path / "ws"),
        5,
        "no calibration images",
    )
    assert not (tmp_path / "ws").exists()


def test_a_misspelt_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL + "[calibrate]\nsamplez = 4\n")
    with pytest.raises(RecipeError, match="unknown field `samplez`") as caught:
        load_recipe(path)
    assert "nearest: samples" in str(caught.value.do)
    assert "arvg-trt recipes --keys" in str(caught.value.do)
