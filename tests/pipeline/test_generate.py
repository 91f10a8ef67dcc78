"""`generate` as users run it, on a toy model with graphs made by hand."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from arvg_trt.errors import GenerationError
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.labels import parse_labels
from arvg_trt.workspace.manifest import Manifest, write_manifest

from ..command_line import Outcome, arvg, assert_refused, digests, leftovers, start, wait_for
from ..families.var.toy_var import CHANNELS, IMAGE, LENGTH, SIDES, SIZE, ToyVar, ints, save


def workspace_of(toy: ToyVar, root: Path) -> Path:
    """A workspace with the toy as its export."""
    return with_manifest(toy.save(root / "export")).parent


def with_manifest(export: Path) -> Path:
    """The folder, its files as they are now."""
    write_manifest(export, Manifest(stage="export", inputs={}, options={}, versions={}), {})
    return export


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace."""
    root = tmp_path_factory.mktemp("toy") / "ws"
    return workspace_of(ToyVar(), root)


def generate(toy: Path, *args: object) -> Outcome:
    return arvg("generate", toy, *args)


def test_pictures_grid_and_arrays_are_those_of_the_generator(toy: Path, tmp_path: Path) -> None:
    out, npz, tokens = tmp_path / "out", tmp_path / "a" / "images.npz", tmp_path / "tokens.npz"
    places = ("-o", out, "--npz", npz, "--tokens", tokens)
    outcome = generate(toy, "--labels", "2,0", "--labels", "4", "--count", 2, "--seed", 3, *places)
    assert outcome.code == 0 and outcome.err == ""
    assert outcome.out.splitlines()[0].startswith("6 images, ")
    assert outcome.out.splitlines()[1:] == [str(out), str(npz), str(tokens)]
    wanted = Generator.open(toy).generate([2, 2, 0, 0, 4, 4], seed=3)
    names = [f"{k:05d}_{label}.png" for k, label in enumerate(wanted.labels)]
    assert sorted(p.name for p in out.iterdir()) == [*names, "grid.png"]
    for name, image in zip(names, wanted.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(out / name)), image)
    with np.load(npz, allow_pickle=False) as file:
        assert file.files == ["arr_0"] and file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], wanted.images)
    with np.load(tokens, allow_pickle=False) as file:
        assert np.array_equal(file["tokens"], wanted.tokens)
    assert leftovers(tmp_path) == []


def test_pictures_that_are_there_are_replaced_by_force_alone(toy: Path, tmp_path: Path) -> None:
    first = ("--labels", "2", "-o", tmp_path / "out")
    assert generate(toy, *first).code == 0
    before = digests(tmp_path / "out")
    outcome = generate(toy, *first, "--seed", 1)
    cure = "is there already (name another file or folder, or replace it with --force)"
    assert_refused(outcome, 9, f"00000_2.png: {cure}")
    outcome = generate(toy, "--labels", "3", "-o", tmp_path / "out")  # their grids are one file
    assert_refused(outcome, 9, f"grid.png: {cure}")
    assert digests(tmp_path / "out") == before
    assert generate(toy, *first, "--seed", 1, "--force").code == 0
    assert digests(tmp_path / "out").keys() == before.keys()
    assert digests(tmp_path / "out") != before


@pytest.mark.parametrize("option", ["--npz", "--tokens"])
def test_arrays_that_are_there_are_replaced_by_force_alone(
    option: str, toy: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x.npz"
    file.write_bytes(b"work of days")
    assert_refused(generate(toy, "--labels", "2", option, file), 9, "x.npz: is there already")
    assert file.read_bytes() == b"work of days"
    assert generate(toy, "--labels", "2", option, file, "--force").code == 0
    assert file.read_bytes() != b"work of days"


def test_grid_has_the_pictures_row_by_row(toy: Path, tmp_path: Path) -> None:
    generate(toy, "--labels", "0-4", "-o", tmp_path)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * IMAGE + 2, 3 * IMAGE + 4, 3)
    fourth = np.asarray(Image.open(tmp_path / "00003_3.png"))
    assert np.array_equal(grid[IMAGE + 2 :, :IMAGE], fourth)
    assert (grid[IMAGE : IMAGE + 2] == 255).all() and (grid[:, IMAGE : IMAGE + 2] == 255).all()
    assert (grid[IMAGE + 2 :, 2 * (IMAGE + 2) :] == 255).all()


def test_grid_of_several_pictures_a_label_has_a_row_a_label(toy: Path, tmp_path: Path) -> None:
    generate(toy, "--labels", "1,3", "--count", 3, "-o", tmp_path)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * IMAGE + 2, 3 * IMAGE + 4, 3)
    fourth = np.asarray(Image.open(tmp_path / "00003_3.png"))
    assert np.array_equal(grid[IMAGE + 2 :, :IMAGE], fourth)


def test_export_folder_and_options_are_taken(toy: Path, tmp_path: Path) -> None:
    options = {"cfg": 0.5, "top_k": 10, "top_p": 0.99}
    args = [v for k, value in options.items() for v in (f"--{k.replace('_', '-')}", value)]
    path = tmp_path / "t.npz"
    generate(toy / "export", "--labels", "1,1", *args, "--tokens", path)
    wanted = Generator.open(toy).generate([1, 1], **options).tokens
    assert np.array_equal(np.load(path)["tokens"], wanted)
    generate(toy, "--labels", "1,1", "--greedy", "--tokens", path, "--force")
    greedy = Generator.open(toy).generate([1, 1], greedy=True).tokens
    assert np.array_equal(np.load(path)["tokens"], greedy)
    assert np.array_equal(greedy[0], greedy[1]) and not np.array_equal(wanted, greedy)


def test_same_command_writes_the_same_bytes_in_any_batches(toy: Path, tmp_path: Path) -> None:
    for name, size in (("a", 1), ("b", 5), ("c", 5)):
        folder = tmp_path / name
        places = ("-o", folder, "--npz", folder / "x.npz", "--tokens", folder / "t.npz")
        generate(toy, "--labels", "0-4", "--batch-size", size, *places)
    images = [{k: v for k, v in digests(tmp_path / n).items() if "npz" not in k} for n in "abc"]
    assert images[0] == images[1] == images[2] and len(images[0]) == 6
    stored = [np.load(tmp_path / n / "x.npz")["arr_0"] for n in "abc"]
    assert np.array_equal(stored[0], stored[1]) and np.array_equal(stored[1], stored[2])


def test_json_is_one_object(toy: Path, tmp_path: Path) -> None:
    outcome = generate(toy, "--labels", "3", "--json", "-o", tmp_path / "o", "--cfg", 2)
    result = json.loads(outcome.out)
    assert result["labels"] == [3] and result["seed"] == 0
    own = {"top_k": 8, "top_p": 0.9, "temperature": 1.0, "greedy": False}
    foreign = dict.fromkeys(("cfg_power", "iterations", "diffusion_steps"))
    assert result["sampling"] == {"cfg": 2.0, **own, **foreign}
    names = ("00000_3.png", "grid.png")
    assert result["files"] == [str(tmp_path / "o" / name) for name in names]
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["207,360"], [207, 360]),
        (["0-3"], [0, 1, 2, 3]),
        (["5, 5", "1-2"], [5, 5, 1, 2]),
        (["7-7"], [7]),
        (["999"], [999]),
    ],
)
def test_labels_are_numbers_and_ranges(texts: list[str], labels: list[int]) -> None:
    assert parse_labels(texts, 1000) == labels


@pytest.mark.parametrize("text", ["", "cat", "1,,2", "3-1", "-1", "1-", "1.5", "0-2-4", "²"])
def test_text_that_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(GenerationError, match="is neither a class nor a range"):
        parse_labels([text], 1000)


@pytest.mark.parametrize("text", ["1000", "990-1000", "0-999999999999"])
def test_label_beyond_the_classes_is_refused(text: str) -> None:
    with pytest.raises(GenerationError, match=f"out of range: {text} .*0 to 999"):
        parse_labels([text], 1000)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--labels", "5"), ("label out of range: 5", "0 to 4")),
        (("--labels", "x"), ("'x' is neither",)),
        (("--labels", "0", "--cfg", "-1"), ("cfg is -1.0, not 0 or more",)),
        (("--labels", "0", "--top-k", "13"), ("top_k is 13", "0 (all) to 12")),
        (("--labels", "0", "--top-p", "0"), ("top_p is 0.0",)),
        (("--labels", "0", "--top-p", "1.2"), ("top_p is 1.2",)),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    toy: Path, tmp_path: Path, args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    outcome = generate(toy, *args, "-o", tmp_path / "out", "--npz", tmp_path / "x.npz")
    assert_refused(outcome, 10, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "example"), [(1000, "0,7,207,360"), (361, "0,7,207,360"), (10, "0,7"), (1, "0")]
)
def test_without_labels_the_classes_are_said(classes: int, example: str) -> None:
    with pytest.raises(GenerationError) as caught:
        parse_labels([], classes)
    assert f"this model has {classes}: 0 to {classes - 1}" in str(caught.value)
    assert str(caught.value).endswith(f"say --labels {example})")
    assert max(parse_labels([example], classes)) < classes


def test_no_labels_are_no_usage_error(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_refused(generate(toy, "-o", out), 10, "no class is named", "--labels 0")
    assert not out.exists()


def test_nowhere_to_write_is_refused(toy: Path) -> None:
    assert_refused(generate(toy, "--labels", "0"), 10, "nowhere to write", "-o FOLDER")


@pytest.mark.parametrize("option", ["--batch-size", "--count"])
def test_less_than_one_is_a_usage_error(toy: Path, tmp_path: Path, option: str) -> None:
    assert generate(toy, "--labels", "0", option, "0", "-o", tmp_path).code == 2


def test_workspace_without_a_generator_is_refused(tmp_path: Path) -> None:
    outcome = generate(tmp_path / "ws", "--labels", "0", "-o", tmp_path / "out")
    assert_refused(outcome, 9, "ws: no such file or folder", "a bundle or a folder of graphs")
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_finite_name_the_scale_and_leave_no_array(tmp_path: Path) -> None:
    broken = ToyVar()
    broken.positions[-(SIDES[-1] ** 2)] = np.nan
    workspace_of(broken, tmp_path / "ws")
    outcome = generate(tmp_path / "ws", "--labels", "0", "--npz", tmp_path / "x" / "x.npz")
    assert_refused(outcome, 10, "step.onnx", "scale 2 (3x3 tokens) are not finite")
    assert list((tmp_path / "x").iterdir()) == []


def test_out_of_memory_is_named_and_leaves_no_array(tmp_path: Path) -> None:
    """A decoder whose image has 2^50 rows."""
    folder = ToyVar().save(tmp_path / "ws" / "export")
    nodes = [
        helper.make_node("ReduceMean", ["latent", "axes"], ["mean"]),
        helper.make_node("Expand", ["mean", "shape"], ["image"]),
    ]
    latent = {"latent": ("float", ["n", CHANNELS, SIZE, SIZE])}
    constants = {"axes": ints(2, 3), "shape": ints(1, 1, 2**50, 1)}
    save(folder / "decoder.onnx", nodes, latent, ["image"], constants)
    with_manifest(folder)
    outcome = generate(tmp_path / "ws", "--labels", "0", "--npz", tmp_path / "x" / "x.npz")
    assert_refused(outcome, 11, "decoder.onnx", "out of memory", "smaller batch")
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize("option", ["--npz", "--tokens", "-o"])
def test_full_disk_keeps_the_last_file(
    toy: Path, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    generate(toy, "--labels", "0", option, target)
    before = digests(target)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    again = ("--labels", "1", option, target, "--force")
    assert_refused(generate(toy, *again), 9, str(target), "disk full")
    assert digests(target) == before and leftovers(tmp_path) == []


def test_progress_goes_to_stderr_alone(toy: Path, tmp_path: Path) -> None:
    process = start("generate", toy, "--labels", "0", "--tokens", tmp_path / "t.npz")
    outcome = wait_for(process)
    assert outcome.code == 0 and outcome.err == ""  # no terminal, no bar
    assert len(outcome.out.splitlines()) == 2
    assert np.load(tmp_path / "t.npz")["tokens"].shape == (1, LENGTH)
