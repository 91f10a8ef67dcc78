"""Model repositories as Triton reads them: parsed by its own messages, run as its back end does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from arvg_trt.benchmarks.fuzz.bundles import plan
from arvg_trt.engines.bundle.contents import GroupSources, engine_groups
from arvg_trt.engines.bundle.triton import (
    describe_repository,
    served_groups,
    write_repository,
)
from arvg_trt.engines.bundle.triton_readme import left_out_text
from arvg_trt.errors import WorkspaceError
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.runtime.bundle.layout import TargetGroup
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.samples.files import GraphChain
from arvg_trt.workspace.files import sha256_file
from arvg_trt.workspace.manifest import MANIFEST, Manifest
from arvg_trt.workspace.stage import run_stage
from arvg_trt.workspace.verify import read_manifest
from arvg_trt.workspace.workspace import Workspace

from ...command_line import MODEL, Finished, Outcome, arvg, assert_refused
from ...families.custom.models import CLASSES, TOKENS, WIDTH
from ...minis.minis import Quantized
from .triton_server import (
    infer,
    load_repository,
    messages,
    open_model,
)

FEEDS: dict[str, Callable[[np.random.Generator, int], dict[str, np.ndarray]]] = {
    "transformer": lambda rng, n: {"x": rng.normal(size=(n, TOKENS, WIDTH)).astype(np.float32)},
    "handmade": lambda rng, n: {"tokens": rng.integers(0, CLASSES, (n, TOKENS))},
    "autoencoder": lambda rng, n: {"image": rng.uniform(-1, 1, (n, 3, 16, 12)).astype(np.float32)},
}


@pytest.fixture(scope="module")
def custom(
    custom_files: dict[str, tuple[Path, ...]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Workspaces of a user's models, with an engine for the CPU."""
    made = {}
    for name, files in custom_files.items():
        root = tmp_path_factory.mktemp(name)
        np.savez(root / "feeds.npz", **FEEDS[name](np.random.default_rng(1), 4))
        graphs = [part for file in files for part in ("--graph", file)]
        for step in (
            ["export", "onnx", root / "ws", *graphs],
            ["calibrate", root / "ws", "--feeds", root / "feeds.npz", "--samples", 4],
            ["quantize", root / "ws"],
            ["build", root / "ws"],
        ):
            outcome = arvg(*step)
            assert outcome.code == 0, outcome.err
        made[name] = root / "ws"
    return made


def triton(workspace: Path, output: Path, *options: object) -> Outcome:
    return arvg("bundle", workspace, "--layout", "triton", "-o", output, *options)


def written(workspace: Path, output: Path, *options: object) -> dict[str, Any]:
    outcome = triton(workspace, output, *options)
    assert outcome.code == 0, outcome.err
    return load_repository(output)


def sqnr_db(exact: np.ndarray, value: np.ndarray) -> float:
    noise = np.square(value.astype(np.float64) - exact).sum()
    return float(10 * np.log10(np.square(exact.astype(np.float64)).sum() / max(noise, 1e-30)))


def tensorrt_group(workspace: Path, name: str, **changes: object) -> Path:
    """A folder as `build --backend tensorrt` leaves it, but for the plan's bytes.

    Nothing reads those on the way into a repository, and only a GPU makes real ones.
    """
    with Workspace(workspace) as opened:
        quantized = read_manifest(opened.folder("quantize", name))
        read = [quantized, read_manifest(opened.folder("export"))]
        options = msgspec.to_builtins(BuildOptions(backend="tensorrt", **changes))
        wanted = Manifest(
            stage="build",
            inputs={k: v for manifest in read for k, v in manifest.as_inputs().items()},
            options=options | {"name": name, "targets": ["sm89"]},
            versions={"tensorrt": "11.4.0"},
        )

        class Built(msgspec.Struct):
            engines: tuple[()] = ()

        def work(folder: Path) -> Built:
            for path in opened.folder("quantize", name).glob("*.onnx*"):
                shutil.copy(path, folder)
            for path in sorted(folder.glob("*.onnx")):
                path.with_suffix(".engine").write_bytes(b"ftrt" + path.stem.encode())
            return Built()

        return run_stage(opened.folder("engines", name, "tensorrt-sm89"), wanted, work).folder


def test_a_tokenizer_encodes_and_decodes_as_its_engine_does(
    workspace: Path, tmp_path: Path
) -> None:
    models = written(workspace, tmp_path / "repo")
    prefix = f"{MODEL}-int8-cpu"
    assert set(models) == {
        f"{prefix}-{part}" for part in ("encoder", "decoder", "encode", "decode")
    }
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 40)).astype(np.float32)
    encoded = infer(tmp_path / "repo", models, f"{prefix}-encode", {"image": image})
    decoded = infer(tmp_path / "repo", models, f"{prefix}-decode", {"indices": encoded["indices"]})
    engine = workspace / "engines" / "int8" / "onnxruntime"
    wanted = reference_session(engine / "encoder.onnx").run({"image": image})
    assert np.mean(encoded["indices"] == wanted["indices"]) > 0.95
    assert sqnr_db(wanted["latent"], encoded["latent"]) > 30
    exact = reference_session(engine / "decoder.onnx").run({"indices": encoded["indices"]})
    assert sqnr_db(exact["image"], decoded["image"]) > 30


def test_external_weights_lie_in_the_folder_that_the_server_opens(
    workspace: Path, tmp_path: Path
) -> None:
    written(workspace, tmp_path / "repo")
    shutil.rmtree(workspace)  # nothing refers to it
    models = load_repository(tmp_path / "repo")
    version = tmp_path / "repo" / f"{MODEL}-int8-cpu-encoder" / "1" / "model.onnx"
    assert {path.name for path in version.iterdir()} == {"model.onnx", "encoder.onnx.data"}
    opened = open_model(tmp_path / "repo", models[f"{MODEL}-int8-cpu-encoder"])
    assert [end.name for end in opened.get_inputs()] == ["image"]


def test_a_model_on_the_cpu_batches_at_the_level_that_fuses_no_pairs(
    workspace: Path, tmp_path: Path
) -> None:
    models = written(workspace, tmp_path / "repo", "--max-batch", 5)
    encoder = models[f"{MODEL}-int8-cpu-encoder"]
    assert (encoder.platform, encoder.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert encoder.max_batch_size == 5 and encoder.HasField("dynamic_batching")
    assert [list(end.dims) for end in encoder.input] == [[3, -1, -1]]
    assert encoder.optimization.graph.level == -1
    kinds = messages().ModelInstanceGroup.Kind
    assert [(g.kind, g.count) for g in encoder.instance_group] == [(kinds.Value("KIND_CPU"), 1)]
    assert models[f"{MODEL}-int8-cpu-decode"].max_batch_size == 5


@pytest.mark.parametrize("name", FEEDS)
def test_custom_graphs_run_in_their_order(
    custom: dict[str, Path], tmp_path: Path, name: str
) -> None:
    models = written(custom[name], tmp_path / "repo")
    graphs = ["encoder", "decoder"] if name == "autoencoder" else [name]
    chained = [model for model in models if model.endswith("-chain")]
    assert len(models) == len(graphs) + len(chained) and len(chained) == (name == "autoencoder")
    feeds = FEEDS[name](np.random.default_rng(7), 3)
    engine = GraphChain.open(
        custom[name] / "engines/int8/onnxruntime", graphs, session=reference_session
    )
    wanted = {key.partition("/")[2]: value for key, value in engine.run(feeds).items()}
    served = chained[0] if chained else f"{name}-int8-cpu-{name}"
    outputs = infer(tmp_path / "repo", models, served, feeds)
    assert outputs.keys() == ({"picture"} if chained else wanted.keys())
    for key, value in outputs.items():
        assert sqnr_db(wanted[key], value) > 30
    for config in models.values():
        assert config.max_batch_size == 8


def test_weight_only_products_are_served_without_rounding_their_inputs(
    custom: dict[str, Path], tmp_path: Path
) -> None:
    """With all optimizations ONNX Runtime rounds them, and the server has no option against it."""
    workspace = custom["transformer"]
    made = arvg("quantize", workspace, "--name", "w8", "--activation-bits", 32)
    assert made.code == 0, made.err
    assert arvg("build", workspace, "--name", "w8").code == 0
    models = written(workspace, tmp_path / "repo", "--name", "w8")
    name = "transformer-w8-cpu-transformer"
    feeds = FEEDS["transformer"](np.random.default_rng(7), 3)
    path = workspace / "engines/w8/onnxruntime/transformer.onnx"
    wanted = reference_session(path).run(feeds)["logits"]
    assert sqnr_db(wanted, infer(tmp_path / "repo", models, name, feeds)["logits"]) > 100
    models[name].optimization.graph.level = 0
    assert sqnr_db(wanted, infer(tmp_path / "repo", models, name, feeds)["logits"]) < 70


def test_a_first_axis_that_samples_do_not_show_as_the_batch_is_not_joined(
    custom: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(custom["autoencoder"], tmp_path / "ws")
    shutil.rmtree(tmp_path / "ws" / "calibrate")
    models = written(tmp_path / "ws", tmp_path / "repo")
    assert {config.max_batch_size for config in models.values()} == {0}
    encoder = models["encoder-decoder-int8-cpu-encoder"]
    assert [list(end.dims) for end in encoder.input] == [[-1, 3, -1, -1]]
    open_model(tmp_path / "repo", encoder)
    feeds = FEEDS["autoencoder"](np.random.default_rng(7), 2)
    chain = "encoder-decoder-int8-cpu-chain"
    assert infer(tmp_path / "repo", models, chain, feeds)["picture"].shape[0] == 2


def test_a_generator_serves_its_graphs_and_says_that_the_loop_is_not_served(
    quantized_of: Callable[[str], Quantized], tmp_path: Path
) -> None:
    workspace = tmp_path / "ws"
    shutil.copytree(quantized_of("var").workspace, workspace)
    assert arvg("build", workspace, "--name", "w8a8").code == 0
    models = written(workspace, tmp_path / "repo", "--name", "w8a8")
    parts = {name.removeprefix("var-mini-w8a8-cpu-") for name in models}
    assert {"step", "decoder"} <= parts and not parts & {"full", "encoder", "lookup"}
    assert all(config.platform == "onnxruntime_onnx" for config in models.values())
    engine = workspace / "engines" / "w8a8" / "onnxruntime"
    rng = np.random.default_rng(0)
    for name, config in models.items():
        opened = open_model(tmp_path / "repo", config)
        source = reference_session(engine / f"{name.removeprefix('var-mini-w8a8-cpu-')}.onnx")
        feeds = {end.name: random_feed(rng, end) for end in opened.get_inputs()}
        for key, value in source.run(feeds).items():
            served_value = opened.run([key], feeds)[0]
            assert sqnr_db(value, served_value) > 30, (name, key)
    weights = [path.stat().st_size for path in (tmp_path / "repo").rglob("*.data")]
    # Few tensors are in two graphs; of the shared file each has its own part.
    assert sum(weights) < 1.1 * (engine / "model.onnx.data").stat().st_size
    readme = (tmp_path / "repo" / "README.md").read_text()
    assert "Triton does not serve it" in readme and "Generator.open" in readme


def random_feed(rng: np.random.Generator, end: Any) -> np.ndarray:
    """Values of an input: indices are small, other axes than known ones have length 2."""
    shape = [size if isinstance(size, int) else 2 for size in end.shape]
    if end.type == "tensor(int64)":
        return rng.integers(0, 2, shape)
    if end.type == "tensor(int32)":
        return rng.integers(0, 2, shape, dtype=np.int32)
    return rng.normal(size=shape).astype(np.float32)


def test_a_tensorrt_group_has_plans_for_the_gpu_and_sizes_of_its_profiles(
    workspace: Path, tmp_path: Path
) -> None:
    tensorrt_group(workspace, "int8", image_size=64, max_batch=3)
    models = written(workspace, tmp_path / "repo")
    prefix = f"{MODEL}-int8-tensorrt-sm89"
    assert len(models) == 8  # four of each group
    encoder = models[f"{prefix}-encoder"]
    assert (encoder.platform, encoder.backend) == ("tensorrt_plan", "tensorrt")
    assert encoder.max_batch_size == 3 and not encoder.HasField("optimization")
    kinds = messages().ModelInstanceGroup.Kind
    assert [group.kind for group in encoder.instance_group] == [kinds.Value("KIND_GPU")]
    assert [list(end.dims) for end in encoder.input] == [[3, 64, 64]]
    assert [list(end.dims) for end in encoder.output] == [[-1, -1], [6, -1, -1]]
    version = tmp_path / "repo" / f"{prefix}-encoder" / "1"
    assert [path.name for path in version.iterdir()] == ["model.plan"]
    assert (version / "model.plan").read_bytes() == b"ftrtencoder"
    alone = written(workspace, tmp_path / "alone", "--group", "tensorrt-sm89")
    assert set(alone) == {name for name in models if name.startswith(prefix)}


def test_two_licences_of_one_name_are_refused_before_anything_is_written(
    workspace: Path, tmp_path: Path
) -> None:
    options: list[str | Path] = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "LICENSE").write_text(folder)
        options += ["--license", tmp_path / folder / "LICENSE"]
    outcome = triton(workspace, tmp_path / "repo", *options)
    assert_refused(outcome, 9, "b/LICENSE: has the same name as")
    assert not (tmp_path / "repo").exists()


def test_plans_of_tensorrt_for_rtx_are_left_out_or_refused(workspace: Path, tmp_path: Path) -> None:
    rtx_group(workspace)
    outcome = triton(workspace, tmp_path / "repo")
    assert outcome.code == 0
    said = "not served: rtx-sm89 (Triton has no back end for TensorRT for RTX)"
    assert said in " ".join(outcome.err.split())
    assert not any("rtx" in name for name in load_repository(tmp_path / "repo"))
    assert "Not served: rtx-sm89" in (tmp_path / "repo" / "README.md").read_text()
    outcome = triton(workspace, tmp_path / "other", "--group", "rtx-sm89")
    assert_refused(outcome, 9, "rtx-sm89: Triton's tensorrt backend opens plans with TensorRT's")
    shutil.rmtree(workspace / "engines" / "int8" / "onnxruntime")
    assert_refused(triton(workspace, tmp_path / "other"), 9, "has no engines that Triton serves")
    assert not (tmp_path / "other").exists()


def test_groups_that_are_not_served_are_said_by_their_kind() -> None:
    """OpenVINO's engine is no plan of TensorRT, and Triton has a back end for it."""
    groups = [
        TargetGroup(name=name, kind=kind, folder=f"engines/int8/{name}", files=())
        for name, kind in (("openvino", "openvino"), ("rtx-sm86", "tensorrt_rtx"))
    ]
    text = left_out_text(groups)
    assert text.startswith("not served: openvino (no models are written for Triton's OpenVINO ")
    assert text.endswith("; rtx-sm86 (Triton has no back end for TensorRT for RTX)")
    made = [GroupSources(groups[0], {})]
    with pytest.raises(WorkspaceError, match="Triton's OpenVINO back end") as caught:
        served_groups(made, ["openvino"], "ws")
    assert "RTX" not in str(caught.value)


def rtx_group(workspace: Path) -> None:
    """The folder of a TensorRT group under the name and back end of TensorRT for RTX."""
    made = tensorrt_group(workspace, "int8")
    manifest = read_manifest(made)
    shutil.move(made, made.with_name("rtx-sm89"))
    outputs = dict(manifest.outputs)
    for path in made.with_name("rtx-sm89").glob("*.engine"):
        path.write_bytes(plan("1.7.1.116", "sm89"))
        outputs[path.name] = sha256_file(path)
    changed = msgspec.structs.replace(
        manifest,
        outputs=outputs,
        options=manifest.options | {"backend": "tensorrt_rtx"},
        versions={"tensorrt_rtx": "1.7.1.116"},
    )
    (made.with_name("rtx-sm89") / MANIFEST).write_bytes(msgspec.json.encode(changed))


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--group", "sm89"), 9, "has no engines 'sm89'"),
        (("--key", "ci.key"), 3, "--key is not for --layout triton"),
        (("--with-reference",), 3, "--with-reference is not for --layout triton"),
        (("--name", "int4"), 9, "has no engines"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_is_left(
    finished: Finished, tmp_path: Path, options: tuple[str, ...], code: int, text: str
) -> None:
    outcome = triton(finished.workspace, tmp_path / "repo", *options)
    assert_refused(outcome, code, text)
    assert not list(tmp_path.iterdir())


def test_options_of_the_repository_are_refused_for_a_bundle(
    finished: Finished, tmp_path: Path
) -> None:
    for option in (("--group", "cpu"), ("--max-batch", 2)):
        outcome = arvg("bundle", finished.workspace, "-o", tmp_path / "b.tar", *option)
        assert_refused(outcome, 3, f"{option[0]} is not for --layout oci")


def test_a_folder_that_is_there_is_never_written_over(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "mine").write_text("mine")
    assert_refused(triton(finished.workspace, tmp_path / "repo"), 9, "repo: is there already")
    assert [path.name for path in tmp_path.rglob("*")] == ["repo", "mine"]


def test_a_file_that_changes_meanwhile_leaves_no_repository(
    workspace: Path, tmp_path: Path
) -> None:
    with Workspace(workspace) as opened:
        groups = engine_groups(opened, "int8")
        described = describe_repository(opened, "int8", groups, (), 8)
    path = workspace / "engines" / "int8" / "onnxruntime" / "decoder.onnx.data"
    path.write_bytes(path.read_bytes()[:-1] + b"\0x")
    with pytest.raises(WorkspaceError, match="changed while it was read"):
        write_repository(tmp_path / "repo", described, {})
    assert not (tmp_path / "repo").exists()
    assert not list(tmp_path.glob(".repo*"))


def test_without_engines_the_command_to_run_is_named() -> None:
    with pytest.raises(WorkspaceError, match=r"has no engines .*run `arvg-trt build`"):
        served_groups((), (), "ws")
