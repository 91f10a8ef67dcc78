"""A user's own ONNX models through every stage of the command line, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from arvg_trt.families.custom.export import portable
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.samples.files import GraphChain, load_sample, sample_files

from ..command_line import arvg, assert_gate_failed, assert_refused
from ..families.custom.models import CLASSES, TOKENS, WIDTH

SAMPLES = 8


@dataclass(frozen=True)
class Own:
    """Files of one model, what it is fed, and a workspace in which every stage was run."""

    graphs: tuple[Path, ...]
    calibration: Path
    validation: Path
    workspace: Path

    def graph_options(self) -> list[object]:
        return [part for graph in self.graphs for part in ("--graph", graph)]


def save(path: Path, **arrays: NDArray[np.generic]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def feeds_of(model: str, count: int, seed: int) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(seed)
    if model == "transformer":
        channels = np.exp(np.random.default_rng(9).normal(0, 1, WIDTH))
        return {"x": (rng.standard_normal((count, TOKENS, WIDTH)) * channels).astype(np.float32)}
    if model == "handmade":
        return {"tokens": rng.integers(0, CLASSES, (count, TOKENS))}
    return {"image": rng.uniform(-1, 1, (count, 3, 16, 12)).astype(np.float32)}


def make(model: str, graphs: tuple[Path, ...], root: Path) -> Own:
    own = Own(
        graphs,
        save(root / "calibration.npz", **feeds_of(model, SAMPLES, 1)),
        save(root / "validation.npz", **feeds_of(model, 3, 2)),
        root / "ws",
    )
    steps: list[list[object]] = [
        ["export", "onnx", own.workspace, *own.graph_options()],
        ["calibrate", own.workspace, "--feeds", own.calibration, "--samples", SAMPLES],
        ["quantize", own.workspace],
        ["build", own.workspace],
        ["validate", own.workspace, "--feeds", own.validation, "--rounds", 2],
    ]
    for step in steps:
        outcome = arvg(*step)
        assert outcome.code == 0, outcome.err
        assert outcome.err == ""
    return own


@pytest.fixture(scope="module")
def models(
    custom_files: dict[str, tuple[Path, ...]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Own]:
    return {
        name: make(name, graphs, tmp_path_factory.mktemp(name))
        for name, graphs in custom_files.items()
    }


@pytest.fixture
def transformer(models: dict[str, Own], tmp_path: Path) -> Path:
    """A copy of the transformer's workspace that a test may change."""
    shutil.copytree(models["transformer"].workspace, tmp_path / "ws")
    return tmp_path / "ws"


def report_of(workspace: Path, name: str = "int8") -> dict[str, object]:
    return json.loads((workspace / "validate" / name / "report.json").read_text())


MODELS = ("transformer", "handmade", "autoencoder")
# Of the whole network, tiny and with random weights; far above what one wrong fold leaves.
LEAST_DB = {"transformer": 28.0, "handmade": 22.0, "autoencoder": 30.0}


@pytest.mark.parametrize("model", MODELS)
def test_quantized_graphs_stay_near_the_users_own_files(models: dict[str, Own], model: str) -> None:
    """The oracle is the file as given, in a session of its own."""
    own = models[model]
    graphs = [path.stem for path in own.graphs]
    given: dict[str, NDArray[np.generic]] = {}
    feeds = {k: v[:1] for k, v in feeds_of(model, 1, 7).items()}
    for path in own.graphs:
        session = reference_session(path)
        made = session.run({name: {**feeds, **given}[name] for name in session.inputs})
        given |= made
    quantized = GraphChain.open(own.workspace / "quantize/int8", graphs, session=reference_session)
    engine = GraphChain.open(own.workspace / "engines/int8/onnxruntime", graphs)
    for chain in (quantized, engine):
        for key, value in chain.run(feeds).items():
            exact = given[key.partition("/")[2]].astype(np.float64)
            noise = np.square(value - exact).sum()
            assert 10 * np.log10(np.square(exact).sum() / noise) > LEAST_DB[model], key


@pytest.mark.parametrize("model", MODELS)
def test_every_able_site_is_quantized_and_runs_in_integers(
    models: dict[str, Own], model: str
) -> None:
    own = models[model]
    sites = json.loads((own.workspace / "export/sites.json").read_text())["sites"]
    able = {s["name"] for s in sites if s["excluded"] is None}
    plan = json.loads((own.workspace / "quantize/int8/plan.json").read_text())["sites"]
    assert {e["name"] for e in plan if e["activation"]} == able != set()
    engines = report_of(own.workspace)["engines"]
    assert sum(row["int8_sites_proved"] for row in engines) == len(able)  # type: ignore


def test_scales_and_shifts_go_into_producers_where_there_are_some(models: dict[str, Own]) -> None:
    """Only a site without a fold gets a Mul, and only one without a bias in front a Sub."""
    for model, own in models.items():
        sites = json.loads((own.workspace / "export/sites.json").read_text())["sites"]
        folder = own.workspace / "quantize/int8"
        inserted = {
            node.name
            for path in own.graphs
            for node in onnx.load(folder / path.name, load_external_data=False).graph.node
        }
        folded = [s for s in sites if s["op"] == "MatMul" and (s["fold"] or s["producer_fold"])]
        assert model == "autoencoder" or len(folded) >= 5
        for site in folded:
            assert f"{site['name']}/Mul" not in inserted
            if site["fold"] or site["producer_fold"]["subtract"]:
                assert f"{site['name']}/Sub" not in inserted
    bare = next(s for s in sites if s["name"] == "down")
    assert bare["fold"] is None and "down/Mul" in inserted


def test_report_index_and_bundle_are_called_as_the_files(
    models: dict[str, Own], tmp_path: Path
) -> None:
    for own in models.values():
        name = "-".join(path.stem for path in own.graphs)
        assert report_of(own.workspace)["model"] == name
        page = (own.workspace / "validate/int8/report.md").read_text()
        assert page.startswith(f"# {name}, int8\n")
        bundle, index = tmp_path / f"{name}.tar", tmp_path / "index.html"
        packed = arvg("bundle", own.workspace, "--no-kit", "-o", bundle)
        assert packed.code == 0, packed.err
        assert f": {name}, int8;" in arvg("verify", bundle).out
        assert arvg("index", own.workspace, bundle, "-o", index).code == 0
        assert index.read_text().count(f"{name}, int8") >= 2


def test_a_warning_of_many_samples_names_the_first_ones(
    models: dict[str, Own], transformer: Path
) -> None:
    own = models["transformer"]
    again = arvg("validate", transformer, "--feeds", own.calibration, "--rounds", 0)
    assert again.code == 0
    first = ", ".join(f"calibration:{k}" for k in range(3))
    assert f"calibration samples: {SAMPLES} samples, the first 3: {first}\n" in again.err


def test_held_out_arrays_of_another_scale_are_warned_of(
    models: dict[str, Own], transformer: Path, tmp_path: Path
) -> None:
    own = models["transformer"]
    (x,) = np.load(own.validation).values()
    scaled = save(tmp_path / "scaled.npz", x=x / 255)
    outcome = arvg("validate", transformer, "--feeds", scaled, "--rounds", 0)
    assert outcome.code == 0
    assert (
        "warning: x reaches " in outcome.err and "is one of them scaled otherwise?" in outcome.err
    )
    again = arvg("validate", transformer, "--feeds", own.validation, "--rounds", 0)
    assert (again.code, again.err) == (0, "")


def test_a_title_names_own_graphs_and_brings_no_licence_of_a_shipped_model(
    models: dict[str, Own], tmp_path: Path
) -> None:
    own, ws = models["handmade"], tmp_path / "ws"
    shutil.copytree(own.workspace, ws)
    titled = ("export", "onnx", ws, *own.graph_options(), "--title")
    assert_refused(arvg(*titled, "my model"), 4, "title", "letters, digits", "another title")
    assert arvg(*titled, "var-mini").code == 0
    for step in (["quantize"], ["build"], ["validate", "--feeds", own.validation, "--rounds", 0]):
        assert arvg(step[0], ws, *step[1:]).code == 0
    assert report_of(ws)["model"] == "var-mini"
    packed = arvg("bundle", ws, "--no-kit", "-o", tmp_path / "own.tar")
    assert "no licence of the weights is in the bundle" in packed.err
    known = ("export", "cosmos-mini-di8x8", tmp_path / "other", "--title", "mine")
    assert_refused(arvg(*known), 4, "title", "graphs of your own")


@pytest.mark.parametrize("model", MODELS)
def test_report_shows_every_output_and_no_pictures(models: dict[str, Own], model: str) -> None:
    own = models[model]
    report = report_of(own.workspace)
    assert report["accuracy"] == {}
    names = {row["output"] for row in report["outputs"]["engine"]}  # type: ignore
    exported = json.loads((own.workspace / "export/manifest.json").read_text())["results"]
    assert names == {f"{g['name']}/{o['name']}" for g in exported["graphs"] for o in g["outputs"]}
    folder = own.workspace / "validate/int8"
    assert {p.name for p in folder.iterdir()} == {
        *("report.json", "report.md", "report.html", "junit.xml", "manifest.json")
    }
    text = (folder / "report.md").read_text()
    assert "PSNR" not in text and "Outputs against FP32" in text
    assert (
        report["latency"]["total"]["shape"]
        == [  # type: ignore
            1,
            *next(iter(feeds_of(model, 1, 0).values())).shape[1:],
        ]
    )


def test_export_records_how_near_it_is_to_the_file(models: dict[str, Own]) -> None:
    results = json.loads((models["handmade"].workspace / "export/manifest.json").read_text())
    parity = results["results"]["parity"]
    assert (
        parity["graphs"][0]["max_difference"]["logits"] <= parity["graphs"][0]["tolerance"] == 1e-4
    )
    assert results["results"]["parameters"] > 10_000


def test_graphs_share_one_file_of_weights(models: dict[str, Own]) -> None:
    export = models["autoencoder"].workspace / "export"
    assert {p.name for p in export.glob("*.data")} == {"model.onnx.data"}
    sizes = report_of(models["autoencoder"].workspace)["sizes"]
    assert "weights of all graphs" in sizes["fp32_graph_bytes"]  # type: ignore
    assert sizes["packed_compression"] > 2 and sizes["compression"] > 1  # type: ignore


def test_samples_are_saved_with_digests_and_the_second_run_skips(models: dict[str, Own]) -> None:
    own = models["handmade"]
    files = sample_files(own.workspace / "calibrate/samples")
    stored = [load_sample(path)["tokens"] for path in files]
    assert np.array_equal(np.concatenate(stored), np.load(own.calibration)["tokens"])
    manifest = json.loads((own.workspace / "calibrate/manifest.json").read_text())
    assert "data/calibration.npz" in manifest["inputs"]
    assert {f"samples/{p.name}" for p in files} <= set(manifest["outputs"])
    again = arvg("calibrate", own.workspace, "--feeds", own.calibration, "--samples", SAMPLES)
    assert "up to date" in again.out


def test_gates_read_the_worst_output(models: dict[str, Own], tmp_path: Path) -> None:
    own = models["transformer"]
    gates = ("--gate", "output_sqnr_db>=20", "--gate", "output_cosine>=0.99")
    options = ("--feeds", own.validation, "--rounds", 0)
    assert arvg("validate", own.workspace, *options, *gates).code == 0
    failed = arvg("validate", own.workspace, *options, "--gate", "output_sqnr_db>=90")
    assert_gate_failed(failed, "gate output_sqnr_db>=90 failed (output_sqnr_db is ")
    assert 'failures="1"' in (own.workspace / "validate/int8/junit.xml").read_text()


def test_two_reports_compare(models: dict[str, Own], transformer: Path, tmp_path: Path) -> None:
    own = models["transformer"]
    feeds = ("--feeds", own.validation, "--rounds", 0)
    assert arvg("quantize", transformer, "--name", "w4", "--weight-bits", 4).code == 0
    assert arvg("validate", transformer, "--name", "w4", *feeds).code == 0
    assert arvg("validate", transformer, *feeds).code == 0
    outcome = arvg("compare", transformer / "validate/int8", transformer / "validate/w4")
    assert outcome.code == 8
    assert "SQNR of the worst output" in outcome.out and "worse" in outcome.out


def test_weight_bits_are_those_of_every_graph(transformer: Path) -> None:
    assert arvg("quantize", transformer, "--name", "w5", "--weight-bits", 5).code == 0
    plan = json.loads((transformer / "quantize/w5/plan.json").read_text())["sites"]
    assert {e["weight"]["bits"] for e in plan if e["weight"]} == {5}


def test_a_recipe_runs_all_stages_of_own_graphs(models: dict[str, Own], tmp_path: Path) -> None:
    own = models["handmade"]
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f"""
        schema = "arvg-trt/recipe/v1"
        model = "onnx"
        graphs = ["{own.graphs[0]}"]
        workspace = "{tmp_path / "ws"}"
        name = "int8"
        [calibrate]
        feeds = "{own.calibration}"
        samples = {SAMPLES}
        [validate]
        feeds = "{own.validation}"
        rounds = 0
        """
    )
    outcome = arvg("run", recipe)
    assert outcome.code == 0, outcome.err
    assert "SQNR " in outcome.out.splitlines()[-3]


def test_images_feed_the_one_image_input(models: dict[str, Own], tmp_path: Path) -> None:
    own = models["autoencoder"]
    for folder, seed in (("calibration", 0), ("held_out", 1)):
        (tmp_path / folder).mkdir()
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / folder / f"{folder}.png")
    shutil.copytree(own.workspace, tmp_path / "ws")
    options = ("--images", tmp_path / "calibration", "--samples", 3, "--size", 16)
    assert arvg("calibrate", tmp_path / "ws", *options).code == 0
    first = load_sample(sample_files(tmp_path / "ws/calibrate/samples")[0])["image"]
    assert first.shape == (1, 3, 16, 16) and -1 <= first.min() < -0.5 < 0.5 < first.max() <= 1
    assert arvg("quantize", tmp_path / "ws").code == 0
    held_out = ("--images", tmp_path / "held_out", "--size", 16, "--rounds", 0)
    shutil.rmtree(tmp_path / "ws/engines")
    outcome = arvg("validate", tmp_path / "ws", *held_out)
    assert outcome.code == 0, outcome.err
    assert report_of(tmp_path / "ws")["data"]["validation"] == ["held_out.png"]  # type: ignore


def test_noise_has_to_be_asked_for_and_marks_the_report(
    models: dict[str, Own], transformer: Path
) -> None:
    assert_refused(arvg("calibrate", transformer), 5, "nothing feeds transformer/x", "--feeds")
    assert arvg("calibrate", transformer, "--synthetic", "--samples", 2).code == 0
    assert arvg("quantize", transformer).code == 0
    feeds = ("--feeds", models["transformer"].validation, "--rounds", 0)
    assert_refused(arvg("validate", transformer, *feeds), 9, "made from another")
    assert arvg("validate", transformer, *feeds, "--skip-engine").code == 0
    page = (transformer / "validate/int8/report.md").read_text()
    assert "Calibrated on synthetic noise, not on samples." in page


def test_validating_on_calibration_samples_warns(models: dict[str, Own], transformer: Path) -> None:
    outcome = arvg(
        *("validate", transformer, "--rounds", 0),
        *("--feeds", models["transformer"].calibration),
    )
    assert outcome.code == 0
    assert "samples: 8 samples, the first 3: calibration:0, calibration:1" in outcome.err


def test_tensorrt_rtx_proves_every_site_of_the_transformer(
    models: dict[str, Own], transformer: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    outcome = arvg(
        *("build", transformer, "--backend", "tensorrt_rtx", "--target", "sm89"),
        *("--max-batch", 4),
    )
    assert outcome.code == 0, outcome.err
    folder = transformer / "engines/int8/rtx-sm89"
    row = json.loads((folder / "manifest.json").read_text())["results"]["engines"][0]
    assert row["int8_sites_planned"] == row["int8_sites_proved"] == 9
    assert row["exceptions"] == []
    feeds = ("--feeds", models["transformer"].validation, "--rounds", 0)
    assert arvg("validate", transformer, *feeds).code == 0
    assert "twin" in report_of(transformer)["outputs"]  # type: ignore


def test_bad_exports_are_refused_in_one_line(models: dict[str, Own], tmp_path: Path) -> None:
    good = models["handmade"].graphs[0]
    ws = tmp_path / "ws"
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"\x00\x01 not a model" * 50)
    lost = tmp_path / "transformer.onnx"
    shutil.copy(models["transformer"].graphs[0], lost)
    assert_refused(arvg("export", "onnx", ws), 4, "no graph given", "--graph FILE")
    cases = [
        (["--graph", good, "--graph", good], f"two graphs are called {good.parent.name}_handmade"),
        (["--graph", tmp_path / "absent.onnx"], "no such file"),
        (["--graph", noise], "is not an ONNX model"),
        (["--graph", lost], "has its weights in 'transformer.onnx.data', which is missing"),
        (["--graph", good, "--checkpoint", "x"], "graphs of your own have no checkpoint"),
    ]
    for options, words in cases:
        assert_refused(arvg("export", "onnx", ws, *options), 4, words)
        assert not ws.exists()
    swapped = arvg("export", good, ws)
    assert_refused(swapped, 4, "no model named", f"arvg-trt export onnx WORKSPACE --graph {good}")
    known = arvg("export", "cosmos-mini-di8x8", ws, "--graph", good)
    assert_refused(known, 4, "exported from its checkpoint, not from graphs")


def test_files_and_folders_may_have_spaces_and_letters_of_any_language(
    models: dict[str, Own], tmp_path: Path
) -> None:
    folder = tmp_path / "Ordner mit ß, 模型"
    folder.mkdir()
    graph, ws = folder / "Modell ä (2).onnx", folder / "mein ws"
    shutil.copy(models["handmade"].graphs[0], graph)
    outcome = arvg("export", "onnx", ws, "--graph", graph)
    assert outcome.code == 0, outcome.err
    assert (ws / "export/Modell_a_2_.onnx").is_file()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("model", "model"), ("a b-c.d", "a_b-c.d"), ("Größe", "Groe"), ("模型", "graph"), ("_x", "x")],
)
def test_name_of_a_graph_is_one_that_every_system_has(name: str, wanted: str) -> None:
    assert portable(name) == wanted


def poisoned() -> NDArray[np.float32]:
    x = feeds_of("transformer", SAMPLES, 1)["x"].copy()
    x[3, 2, 1] = np.nan
    return x  # type: ignore[return-value]


BAD_FEEDS = {
    "missing": ({}, "has no array for transformer/x float32 [batch, tokens, 32]"),
    "unknown": ({"x": "good", "y": "good"}, "y is no input to feed"),
    "type": ({"x": "float64"}, "x is float64, but the input is transformer/x float32"),
    "rank": ({"x": "flat"}, "x has shape [8, 192]"),
    "width": ({"x": "narrow"}, "x has shape [8, 6, 31]"),
    "nan": ({"x": "nan"}, "x has NaN or infinity in sample 3"),
    "few": ({"x": "few"}, "holds 2 samples, 8 were asked for", "--samples 2"),
    "empty": ({"x": "empty"}, "holds no sample"),
}


@pytest.mark.parametrize("case", BAD_FEEDS)
def test_bad_feeds_are_refused_in_one_line(transformer: Path, tmp_path: Path, case: str) -> None:
    good = feeds_of("transformer", SAMPLES, 1)["x"]
    variants = {
        "good": good,
        "float64": good.astype(np.float64),
        "flat": good.reshape(SAMPLES, -1),
        "narrow": good[..., 1:],
        "nan": poisoned(),
        "few": good[:2],
        "empty": good[:0],
    }
    arrays, *words = BAD_FEEDS[case]
    path = save(tmp_path / "bad.npz", **{k: variants[v] for k, v in arrays.items()})
    options = ("--feeds", path, "--samples", SAMPLES)
    assert_refused(arvg("calibrate", transformer, *options), 5, "bad.npz", *words)


def test_files_that_are_no_feeds_are_refused(transformer: Path, tmp_path: Path) -> None:
    text = tmp_path / "feeds.npz"
    assert_refused(arvg("calibrate", transformer, "--feeds", text), 5, "no such file")
    text.write_text("x = 1")
    assert_refused(arvg("calibrate", transformer, "--feeds", text), 5, "is not a .npz of arrays")
    np.save(tmp_path / "one.npy", np.zeros(3))
    one = (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert_refused(
        arvg("calibrate", transformer, "--feeds", one), 5, "holds one array without a name"
    )
    images = ("--images", "skimage:coffee")
    assert_refused(arvg("calibrate", transformer, *images), 5, "--images feeds one float32 [N, 3")
    both = ("--synthetic", "--feeds", one)
    assert_refused(arvg("calibrate", transformer, *both), 3, "exclude each other")


def test_feeds_of_an_image_tokenizer_are_refused(exported: Path, models: dict[str, Own]) -> None:
    feeds = ("--feeds", models["transformer"].calibration)
    assert_refused(arvg("calibrate", exported, *feeds), 5, "an image tokenizer takes images")


@pytest.mark.parametrize("name", ["full", "model", "encoder", "pass"])
def test_what_a_file_is_called_decides_nothing(
    models: dict[str, Own], tmp_path: Path, name: str
) -> None:
    """Graphs of generators, and files of weights, have these names."""
    known = models["handmade"]
    path = tmp_path / f"{name}.onnx"
    shutil.copy(known.graphs[0], path)
    root = tmp_path / "ws"
    steps: tuple[tuple[object, ...], ...] = (
        ("export", "onnx", root, "--graph", path),
        ("calibrate", root, "--feeds", known.calibration, "--samples", SAMPLES),
        ("quantize", root),
        ("build", root),
        ("validate", root, "--feeds", known.validation, "--rounds", 0),
    )
    for step in steps:
        outcome = arvg(*step)
        assert outcome.code == 0 and outcome.err == "", outcome
    found, wanted = (
        json.loads(
            (folder / "validate/int8/report.json")
            .read_text()
            .replace(f'"{called}"', '"NAME"')
            .replace(f"{called}/", "NAME/")
        )
        for folder, called in ((root, name), (known.workspace, "handmade"))
    )
    assert found["sites"] == wanted["sites"]
    assert found["outputs"] == wanted["outputs"]
    weights = "weights of all graphs"
    assert found["sizes"]["fp32_graph_bytes"] | {"NAME": 0} == (
        wanted["sizes"]["fp32_graph_bytes"] | {"NAME": 0}
    )
    assert found["sizes"]["fp32_graph_bytes"]["NAME"] == pytest.approx(
        wanted["sizes"]["fp32_graph_bytes"]["NAME"], abs=2000
    )
    assert found["sizes"]["fp32_graph_bytes"][weights] > 0


def test_bits_of_a_tokenizers_half_are_not_taken_for_a_file_of_that_name(
    models: dict[str, Own], tmp_path: Path
) -> None:
    root = tmp_path / "ws"
    shutil.copytree(models["autoencoder"].workspace, root)
    wanted = ("encoder_bits: is of an image tokenizer's half, and this is none", "weight_bits")
    assert_refused(arvg("quantize", root, "--encoder-bits", 4), 3, *wanted)
    both = ("--encoder-bits", 4, "--weight-bits", 4, "--name", "both")
    assert arvg("quantize", root, *both).code == 0


def test_a_graph_called_full_is_like_any_other(
    custom_files: dict[str, tuple[Path, ...]], tmp_path: Path
) -> None:
    """A generator's graph of teacher forcing has this name."""
    (source,) = custom_files["transformer"]
    feeds = save(tmp_path / "feeds.npz", **feeds_of("transformer", SAMPLES, 1))
    shutil.copyfile(f"{source}.data", tmp_path / f"{source.name}.data")
    graphs = {}
    for name in ("full", "g"):
        shutil.copyfile(source, tmp_path / f"{name}.onnx")
        workspace = tmp_path / name
        steps: list[list[object]] = [
            ["export", "onnx", workspace, "--graph", tmp_path / f"{name}.onnx"],
            ["calibrate", workspace, "--feeds", feeds, "--samples", SAMPLES],
            ["quantize", workspace, "--smoothing", "0.5"],
        ]
        for step in steps:
            outcome = arvg(*step)
            assert outcome.code == 0, outcome.err
        folder = workspace / "quantize" / "int8"
        plan, graph = (folder / "plan.json").read_text(), onnx.load(folder / f"{name}.onnx")
        graphs[name] = plan, [(n.op_type, n.name, *n.input, *n.output) for n in graph.graph.node]
    assert graphs["full"] == graphs["g"]
