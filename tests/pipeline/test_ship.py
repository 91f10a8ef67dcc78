"""`bundle`, `keygen`, `sign`, `verify`, `unpack`, and the commands that take a bundle."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import venv
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from packaging.requirements import Requirement

import arvg_trt
from arvg_trt import verify_bundle
from arvg_trt.benchmarks.fuzz.bundles import small_contents
from arvg_trt.engines.bundle.contents import GroupSources, overlap_warnings, report_warning
from arvg_trt.engines.bundle.write import write_bundle
from arvg_trt.errors import BundleError, IntegrityError
from arvg_trt.extras import builder_release
from arvg_trt.recipe.file import load_recipe
from arvg_trt.runtime.bundle.layout import BundleFile, TargetGroup
from arvg_trt.runtime.bundle.reader import Bundle
from arvg_trt.runtime.bundle.trust import KEYS_VARIABLE
from arvg_trt.runtime.devices import this_device
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.validate.report.files import load_report
from arvg_trt.workspace.files import CACHE_VARIABLE

from ..command_line import Finished, arvg, assert_refused, digests
from ..minis.minis import Quantized

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
# ModelPack 0.0.7, schema/config-schema.json: what it requires, and the keys that it allows.
MODEL_CONFIG = {
    "type": "object",
    "additionalProperties": False,
    "required": ["descriptor", "config", "modelfs"],
    "properties": {
        "descriptor": {
            "type": "object",
            "additionalProperties": False,
            "properties": {key: {"type": "string"} for key in ("name", "family", "title")},
        },
        "config": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                key: {"type": "string"} for key in ("format", "precision", "quantization")
            },
        },
        "modelfs": {
            "type": "object",
            "additionalProperties": False,
            "required": ["type", "diffIds"],
            "properties": {
                "type": {"enum": ["layers"]},
                "diffIds": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            },
        },
    },
}


class Shipped:
    """Hold a workspace with engines for the CPU and for RTX, its keys and its signed bundle."""

    def __init__(self, root: Path, finished: Finished) -> None:
        self.workspace = root / "ws"
        shutil.copytree(finished.workspace, self.workspace)
        options = ("--backend", "tensorrt_rtx", "--target", "sm86", "--target", "sm120")
        outcome = arvg("build", self.workspace, *options, "--image-size", 64)
        assert outcome.code == 0, outcome
        outcome = arvg("keygen", root / "ci")
        assert outcome.code == 0, outcome
        self.key, self.public = root / "ci.key", root / "ci.pub"
        self.file = root / "signed.tar"
        self.pack(self.file, "--key", self.key, "--with-reference")
        self.photo = finished.validation / "astronaut.png"

    def pack(self, output: Path, *options: object) -> None:
        outcome = arvg("bundle", self.workspace, "--name", "int8", "-o", output, *options)
        assert outcome.code == 0, outcome


@pytest.fixture(scope="module")
def shipped(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return Shipped(tmp_path_factory.mktemp("ship"), finished)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    return tmp_path / "cache"


def test_keys_are_secret_and_never_written_over(tmp_path: Path) -> None:
    assert arvg("keygen", tmp_path / "a").code == 0
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    before = digests(tmp_path)
    assert_refused(arvg("keygen", tmp_path / "a"), 9, "a.key: is there already")
    assert digests(tmp_path) == before


def test_a_password_closes_the_private_key(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVG_TRT_KEY_PASSWORD", "open sesame")
    assert arvg("keygen", tmp_path / "a").code == 0
    assert b"ENCRYPTED" in (tmp_path / "a.key").read_bytes()
    shipped.pack(tmp_path / "b.tar", "--key", tmp_path / "a.key")
    monkeypatch.setenv("ARVG_TRT_KEY_PASSWORD", "wrong")
    outcome = arvg("sign", tmp_path / "b.tar", "--key", tmp_path / "a.key")
    assert_refused(outcome, 12, "a.key: is not opened by the password in ARVG_TRT_KEY_PASSWORD")
    monkeypatch.delenv("ARVG_TRT_KEY_PASSWORD")
    outcome = arvg("sign", tmp_path / "b.tar", "--key", tmp_path / "a.key")
    assert_refused(outcome, 12, "a.key: is closed by a password")


def test_the_same_engines_and_key_give_the_same_bytes(shipped: Shipped, tmp_path: Path) -> None:
    shipped.pack(tmp_path / "again.tar", "--key", shipped.key, "--with-reference")
    assert (tmp_path / "again.tar").read_bytes() == shipped.file.read_bytes()


def test_a_bundle_without_an_engine_for_a_cpu_says_what_adds_one(
    shipped: Shipped, tmp_path: Path
) -> None:
    workspace, words = tmp_path / "ws", ("--name", "int8", "-o", tmp_path / "b.tar")
    shutil.copytree(shipped.workspace, workspace)
    said = f"`arvg-trt build {workspace} --name int8 --backend cpu` adds one"
    assert said not in arvg("bundle", workspace, *words).err
    shutil.rmtree(workspace / "engines/int8/onnxruntime")
    outcome = arvg("bundle", workspace, *words)
    assert outcome.code == 0 and outcome.err.count("opens on a CPU") == 1, outcome
    assert said in outcome.err
    outcome = arvg("bundle", workspace, *words, "--no-kit", "--json")
    assert said in outcome.err and json.loads(outcome.out)["groups"] == ["rtx-sm86-sm120"]


def test_verify_says_what_opens_here_and_by_whom_it_is_signed(shipped: Shipped) -> None:
    outcome = arvg("verify", shipped.file, "--require-key", shipped.public)
    assert outcome.code == 0, outcome
    assert f"signed by {shipped.public}" in outcome.out
    assert "cpu: CPU, opens here" in outcome.out
    assert "rtx-sm86-sm120: exact engine, does not open here: " in outcome.out
    kit = (
        f"kit: a device with an NVIDIA GPU .* by `arvg-trt build --from {shipped.file}`; not here: "
    )
    assert re.search(f"^{kit}no NVIDIA driver", outcome.out, re.MULTILINE)
    found = json.loads(arvg("verify", shipped.file, "--json").out)
    assert found["chosen"] == "cpu"
    assert found["signed_by"] == [] and len(found["signatures"]) == 1
    assert [step["opens"] for step in found["chain"]] == [False, False, False, True]


def test_another_key_an_unsigned_bundle_and_a_missing_key_are_refused(
    shipped: Shipped, tmp_path: Path
) -> None:
    arvg("keygen", tmp_path / "other")
    outcome = arvg("verify", shipped.file, "--require-key", tmp_path / "other.pub")
    assert_refused(outcome, 12, "is signed by another key")
    shipped.pack(tmp_path / "unsigned.tar")
    outcome = arvg("verify", tmp_path / "unsigned.tar", "--require-key", shipped.public)
    assert_refused(outcome, 12, "is not signed, and a signature by ")
    outcome = arvg("verify", shipped.file, "--require-key", tmp_path / "none.pub")
    assert_refused(outcome, 12, "none.pub: the required key cannot be read")


@pytest.mark.parametrize("place", ["environment", "configuration"])
def test_a_device_requires_its_key_of_all_commands(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    arvg("keygen", tmp_path / "device")
    if place == "environment":
        monkeypatch.setenv(KEYS_VARIABLE, str(tmp_path / "device.pub"))
    else:
        config = tmp_path / "config" / "arvg-trt" / "config.toml"
        config.parent.mkdir(parents=True)
        config.write_text('require_keys = ["../../device.pub"]\n')
    for args in (
        ("verify", shipped.file),
        ("encode", shipped.file, shipped.photo, "-o", tmp_path / "t.npz"),
        ("decode", shipped.file, tmp_path / "t.npz", "-o", tmp_path / "images"),
        ("unpack", shipped.file, "-o", tmp_path / "u"),
        ("validate", shipped.file),
    ):
        assert_refused(arvg(*args), 12, "is signed by another key")
    assert_refused(
        arvg("verify", shipped.file, "--require-key", shipped.public), 12, "by another key"
    )
    signed = tmp_path / "twice.tar"
    outcome = arvg("sign", shipped.file, "--key", tmp_path / "device.key", "-o", signed, "--json")
    assert len(json.loads(outcome.out)["signatures"]) == 2
    folder = shipped.workspace / "engines" / "int8" / "onnxruntime"
    outcome = arvg("encode", folder, shipped.photo, "-o", tmp_path / "t.npz")
    assert_refused(outcome, 12, "is no bundle, and a signature by ")
    assert arvg("verify", signed, "--require-key", shipped.public).code == 0


def test_signing_again_changes_nothing_but_the_signature(shipped: Shipped, tmp_path: Path) -> None:
    shipped.pack(tmp_path / "a.tar", "--with-reference")
    assert arvg("sign", tmp_path / "a.tar", "--key", shipped.key).code == 0
    assert (tmp_path / "a.tar").read_bytes() == shipped.file.read_bytes()
    assert arvg("sign", tmp_path / "a.tar", "--key", shipped.key).code == 0
    assert (tmp_path / "a.tar").read_bytes() == shipped.file.read_bytes()


def test_an_unsigned_bundle_in_place_of_a_signed_one_is_warned_of(
    shipped: Shipped, tmp_path: Path
) -> None:
    shutil.copy(shipped.file, tmp_path / "b.tar")
    outcome = arvg("bundle", shipped.workspace, "-o", tmp_path / "b.tar")
    assert outcome.code == 0 and "b.tar is signed, and what takes its place is not" in outcome.err
    outcome = arvg("bundle", shipped.workspace, "-o", tmp_path / "b.tar")
    assert outcome.code == 0 and "takes its place" not in outcome.err


def test_what_is_unpacked_is_what_the_workspace_has(shipped: Shipped, tmp_path: Path) -> None:
    outcome = arvg("unpack", shipped.file, "-o", tmp_path / "all")
    assert outcome.code == 0, outcome
    wanted, found = digests(shipped.workspace), digests(tmp_path / "all")
    shared = found.keys() & wanted.keys()
    assert all(found[path] == wanted[path] for path in shared)
    assert {path for path in wanted if path.startswith("engines/int8/")} <= shared
    with Bundle(shipped.file) as bundle:
        assert bundle.digests() == found
    assert_refused(arvg("unpack", shipped.file, "-o", tmp_path / "all"), 9, "is there already")
    outcome = arvg("unpack", shipped.file, "-o", tmp_path / "cpu", "--group", "cpu")
    assert outcome.code == 0, outcome
    assert {p.name for p in (tmp_path / "cpu" / "engines" / "int8").iterdir()} == {"onnxruntime"}
    outcome = arvg("unpack", shipped.file, "-o", tmp_path / "x", "--group", "gpu")
    assert_refused(outcome, 9, "has no target group 'gpu'", "cpu, rtx-sm86-sm120, kit, reference")


def test_model_signing_verifies_what_is_unpacked(shipped: Shipped, tmp_path: Path) -> None:
    from model_signing import verifying

    places = ("-o", tmp_path / "files", "--signature", tmp_path / "model.sig")
    outcome = arvg("unpack", shipped.file, *places)
    assert outcome.code == 0, outcome
    config = verifying.Config().use_elliptic_key_verifier(public_key=shipped.public)
    config.verify(tmp_path / "files", tmp_path / "model.sig")
    (tmp_path / "files" / "README.md").write_text("another\n")
    with pytest.raises(ValueError, match="Signature mismatch"):
        config.verify(tmp_path / "files", tmp_path / "model.sig")


@pytest.fixture(scope="module")
def packed(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with packed weights."""
    path = tmp_path_factory.mktemp("packed") / "packed.tar"
    shipped.pack(path, "--key", shipped.key, "--with-reference", "--packed")
    return path


def test_a_packed_bundle_is_smaller_and_unpacks_to_the_same_files(
    shipped: Shipped, packed: Path, tmp_path: Path
) -> None:
    for name, path in (("plain", shipped.file), ("packed", packed)):
        assert arvg("verify", path, "--require-key", shipped.public).code == 0
        outcome = arvg("unpack", path, "-o", tmp_path / name)
        assert outcome.code == 0, outcome
    wanted, found = digests(tmp_path / "plain"), digests(tmp_path / "packed")
    said = {"bundle.json", "README.md", "sbom.cdx.json"}  # of the files as they are packed
    assert {p for p in wanted | found if wanted.get(p) != found.get(p)} <= said
    with Bundle(shipped.file) as plain, Bundle(packed) as small:
        assert (plain.facts.version, small.facts.version) == (1, 2)
        for group in ("onnxruntime", "kit"):
            sizes = [b.facts.group(group).bytes for b in (plain, small)]  # type: ignore[union-attr, arg-type]
            assert sizes[1] < sizes[0]
        weights = {
            folder: {f.sha256 for g in small.facts.groups for f in g.files if f.path == path}
            for folder, path in (
                ("kit", "kit/weights.packed"),
                ("rtx", "engines/int8/rtx-sm86-sm120/weights.packed"),
            )
        }
        assert weights["kit"] == weights["rtx"] != set()
    # What groups share is in a bundle once: else the packed one would be the larger.
    assert packed.stat().st_size < shipped.file.stat().st_size


def test_a_bundle_left_packed_names_the_folder_that_opens_and_expands(
    shipped: Shipped, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    shipped.pack(tmp_path / "small.tar", "--packed")
    assert arvg("unpack", tmp_path / "small.tar", "-o", left, "--packed").code == 0
    first = left / "engines/int8/onnxruntime"
    outcome = arvg("encode", left, shipped.photo, "-o", tmp_path / "a.npz")
    assert_refused(outcome, 7, "has no graphs of its own", f"(name {first}, ")
    outcome = arvg("unpack", left, "-o", tmp_path / "new")
    said = f"{left}: is no packed folder itself, and no bundle"
    assert_refused(outcome, 9, said, f"(name {first}, ")
    assert arvg("encode", first, shipped.photo, "-o", tmp_path / "a.npz").code == 0
    assert arvg("unpack", first, "-o", tmp_path / "new").code == 0
    outcome = arvg("unpack", tmp_path / "new", "-o", tmp_path / "other")
    assert_refused(outcome, 9, "new: is a folder, not a bundle")


def test_a_packed_bundle_is_the_download_of_its_report(shipped: Shipped, packed: Path) -> None:
    report = load_report(shipped.workspace / "validate" / "int8")
    download = report.sizes.download
    assert download is not None and download.form == "packed"
    with Bundle(packed) as bundle:
        group = bundle.facts.group("onnxruntime")
        assert group is not None
        manifest = next(f for f in group.files if f.path.endswith("manifest.json"))
        assert download.bytes == group.bytes - manifest.bytes
    folder = shipped.workspace / "engines" / "int8" / "onnxruntime"
    assert download.expanded_bytes == sum(p.stat().st_size for p in folder.glob("*.onnx*"))


def test_packed_bundles_and_folders_encode_as_the_engine_does(
    shipped: Shipped, packed: Path, tmp_path: Path, own_cache: Path
) -> None:
    outcome = arvg("unpack", packed, "-o", tmp_path / "u", "--packed", "--group", "cpu")
    assert outcome.code == 0, outcome
    place = Path("engines", "int8", "onnxruntime")
    assert not list((tmp_path / "u" / place).glob("*.onnx*"))
    found = []
    for path in (shipped.workspace / place, packed, tmp_path / "u" / place):
        outcome = arvg("encode", path, shipped.photo, "-o", tmp_path / "t.npz", "--force")
        assert outcome.code == 0, outcome
        with np.load(tmp_path / "t.npz") as arrays:
            found.append(arrays["tokens_0"])
    assert all(np.array_equal(found[0], other) for other in found[1:])
    for kind in ("bundles", "packed"):
        (entry,) = (p for p in (own_cache / kind).iterdir() if p.is_dir())
        assert not list(entry.rglob("*.packed"))
    outcome = arvg("inspect", tmp_path / "u" / place)
    assert outcome.code == 0 and "weights.packed" in outcome.out
    refused = arvg("unpack", tmp_path / "u" / place, "-o", tmp_path / "x", "--group", "cpu")
    assert_refused(refused, 9, "is a packed folder, not a bundle", "leave --group")
    assert arvg("unpack", tmp_path / "u" / place, "-o", tmp_path / "whole").code == 0
    assert digests(tmp_path / "whole") == digests(shipped.workspace / place)


def test_packed_files_are_what_a_signature_is_of(
    shipped: Shipped, packed: Path, tmp_path: Path
) -> None:
    from model_signing import verifying

    places = ("-o", tmp_path / "files", "--signature", tmp_path / "model.sig")
    refused = arvg("unpack", packed, *places)
    assert_refused(refused, 9, "signs the packed weights", "give --packed too")
    assert not list(tmp_path.iterdir())
    assert arvg("unpack", packed, *places, "--packed").code == 0
    config = verifying.Config().use_elliptic_key_verifier(public_key=shipped.public)
    config.verify(tmp_path / "files", tmp_path / "model.sig")


def test_documents_say_what_it_is_in_forms_that_others_read(
    shipped: Shipped, tmp_path: Path, finished: Finished
) -> None:
    import jsonschema  # takes a second, which every worker would spend to collect tests
    from cyclonedx.validation.json import JsonStrictValidator
    from huggingface_hub import RepoCard

    with Bundle(shipped.file) as bundle:
        for descriptor in bundle.manifests:
            config = json.loads(bundle.blobs.read(descriptor.config))
            jsonschema.validate(config, MODEL_CONFIG)
        bundle.extract(bundle.facts.documents, tmp_path / "documents")
    documents = tmp_path / "documents"
    bill = (documents / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    card = (documents / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: arvg-trt\n")
    results = RepoCard(card).data.to_dict()["model-index"][0]["results"]
    measured = {each["type"]: each["value"] for each in results[0]["metrics"]}
    validated = json.loads((shipped.workspace / "validate/int8/manifest.json").read_text())
    plain = {k: v for k, v in validated["results"]["metrics"].items() if "." not in k}
    assert measured | {k: plain[k] for k in ("speedup", "latency_ms")} == plain
    assert {"psnr_drop", "compression"} <= set(measured)
    assert "| rtx-sm86-sm120 | TensorRT for RTX " in card and "PSNR drop " in card
    assert "Commands that take it: `encode`, `decode`, `validate`, `unpack`.\n" in card
    assert "Data and licence" in (documents / "licenses" / "cosmos-mini-di8x8.md").read_text()
    packed, given = load_recipe(documents / "recipe.toml"), load_recipe(finished.recipe)
    assert packed.quantize == given.quantize and packed.workspace == Path(given.workspace).name
    assert str(finished.root) not in (documents / "recipe.toml").read_text()
    stages = json.loads((documents / "stages.json").read_text())
    assert [stage["stage"] for stage in stages] == [
        *("export", "calibrate", "quantize", "build", "build", "validate")
    ]
    assert "onnxruntime" in stages[3]["versions"]
    assert load_report(documents / "report.json").name == "int8"


def test_encode_and_decode_take_a_bundle_as_the_folder_of_its_engine(
    shipped: Shipped, tmp_path: Path, own_cache: Path
) -> None:
    folder = shipped.workspace / "engines" / "int8" / "onnxruntime"
    for place, name in ((folder, "folder"), (shipped.file, "bundle")):
        tokens = tmp_path / f"{name}.npz"
        outcome = arvg("encode", place, shipped.photo, "-o", tokens)
        assert outcome.code == 0, outcome
        outcome = arvg("decode", place, tokens, "-o", tmp_path / name)
        assert outcome.code == 0, outcome
    with np.load(tmp_path / "folder.npz") as one, np.load(tmp_path / "bundle.npz") as two:
        assert one.files == two.files
        assert all(np.array_equal(one[key], two[key]) for key in one.files)
    assert digests(tmp_path / "folder") == digests(tmp_path / "bundle")
    assert [p.name for p in (own_cache / "bundles").iterdir() if p.is_dir()] == [
        next(p.name for p in (own_cache / "bundles").glob("*-cpu"))
    ]
    tokenizer = ImageTokenizer.open(shipped.file)
    assert tokenizer.stride == 8


def test_encode_and_decode_say_what_of_a_bundle_they_took(shipped: Shipped, tmp_path: Path) -> None:
    tokens = tmp_path / "t.npz"
    outcome = arvg("encode", shipped.file, shipped.photo, "-o", tokens, "--json")
    chosen = json.loads(outcome.out)["chosen"]
    assert (chosen["step"], chosen["group"], chosen["opens"]) == ("CPU", "cpu", True)
    outcome = arvg("decode", shipped.file, tokens, "-o", tmp_path / "images", "--json")
    assert json.loads(outcome.out)["chosen"] == chosen


def test_explain_prints_the_chain_of_choices(shipped: Shipped, tmp_path: Path) -> None:
    outcome = arvg("encode", shipped.file, shipped.photo, "-o", tmp_path / "t.npz", "--explain")
    assert outcome.code == 0, outcome
    assert "-> CPU" in outcome.err and " x exact engine" in outcome.err
    outcome = arvg(
        *("encode", shipped.file, shipped.photo, "-o", tmp_path / "cpu.npz", "--explain"),
        *("--device", "cpu"),
    )
    (line,) = [line for line in outcome.err.splitlines() if " x exact engine" in line]
    assert line.endswith("--device cpu was given") and "driver" not in outcome.err


def test_a_gpu_that_is_asked_for_is_never_the_cpu(shipped: Shipped, tmp_path: Path) -> None:
    args = ("encode", shipped.file, shipped.photo, "-o", tmp_path / "t.npz", "--device", "cuda:0")
    assert_refused(arvg(*args), 7, "--device cuda:0: ")


def test_a_tokenizers_bundle_generates_nothing(shipped: Shipped, tmp_path: Path) -> None:
    outcome = arvg("generate", shipped.file, "--labels", "0", "-o", tmp_path / "images")
    assert_refused(outcome, 7, "holds cosmos-mini-di8x8, which is no generator", "`encode`")


@pytest.mark.parametrize(
    ("kind", "taken_by"),
    [("generator", "`generate` takes"), ("custom", "`arvg-trt unpack` gives its graphs")],
)
def test_another_models_bundle_holds_no_tokenizer(
    kind: Literal["generator", "custom"], taken_by: str, shipped: Shipped, tmp_path: Path
) -> None:
    made = small_contents()
    facts = msgspec.structs.replace(made.facts, kind=kind, model="other")
    file = tmp_path / "other.tar"
    write_bundle(file, replace(made, facts=facts))
    said = ("holds other, which is no image tokenizer", taken_by)
    tokens = tmp_path / "t.npz"
    assert_refused(arvg("encode", file, shipped.photo, "-o", tokens), 7, *said)
    assert_refused(arvg("decode", file, tokens, "-o", tmp_path / "images"), 7, *said)
    with pytest.raises(BundleError, match=said[0]):
        ImageTokenizer.open(file)


def test_validate_from_a_bundle_equals_validate_from_its_workspace(
    shipped: Shipped, packed: Path, finished: Finished, tmp_path: Path
) -> None:
    options = ("--images", finished.validation, "--size", 64, "--rounds", 0)
    workspace, plain, small = tmp_path / "ws", tmp_path / "plain.tar", tmp_path / "small.tar"
    shutil.copytree(shipped.workspace, workspace)
    shutil.copy(shipped.file, plain)
    shutil.copy(packed, small)
    for place in (workspace, plain, small):
        outcome = arvg("validate", place, *options)
        assert outcome.code == 0, outcome
    found = {
        (root / "validate" / "int8" / "report.json").read_bytes()
        for root in (workspace, tmp_path / "plain", tmp_path / "small")
    }
    assert len(found) == 1
    again = arvg("validate", small, *options, "--json")
    assert json.loads(again.out)["stages"][0]["skipped"]


def test_the_cache_is_listed_and_cleared(shipped: Shipped, tmp_path: Path, own_cache: Path) -> None:
    assert arvg("cache").out == "nothing\n"
    assert arvg("encode", shipped.file, shipped.photo, "-o", tmp_path / "t.npz").code == 0
    (entry,) = json.loads(arvg("cache", "--json").out)["entries"]
    assert Path(entry["folder"]).parent == own_cache / "bundles" and entry["bytes"] > 10**6
    with Bundle(shipped.file) as bundle:
        facts = bundle.facts
    assert entry["bundle"] == f"{facts.model}, {facts.quantization}"
    assert f"({entry['bundle']})" in arvg("cache").out
    assert json.loads(arvg("cache", "--clear", "--days", 1, "--json").out)["removed"] == []
    lines = arvg("cache", "--clear", "--days", 1).out.splitlines()
    assert lines[0] == "nothing was removed: all was opened within 1 days, or is in use"
    assert len(lines) == 2 and entry["folder"] in lines[1]
    found = json.loads(arvg("cache", "--clear", "--json").out)
    assert found == {"removed": [entry["folder"]], "entries": []}
    again = ("encode", shipped.file, shipped.photo, "-o", tmp_path / "t.npz")
    assert arvg(*again, "--force").code == 0


def test_a_program_requires_a_key(shipped: Shipped, tmp_path: Path) -> None:
    arvg("keygen", tmp_path / "other")
    assert ImageTokenizer.open(shipped.file, require_keys=shipped.public).stride == 8
    assert verify_bundle(shipped.file, shipped.public).signed_by == (str(shipped.public),)
    with pytest.raises(IntegrityError, match="is signed by another key"):
        ImageTokenizer.open(shipped.file, require_keys=[str(tmp_path / "other.pub")])
    folder = shipped.workspace / "engines" / "int8" / "onnxruntime"
    with pytest.raises(IntegrityError, match="is no bundle, and a signature by"):
        ImageTokenizer.open(folder, require_keys=str(shipped.public))


def test_a_kit_gives_the_engines_of_its_workspace(shipped: Shipped, tmp_path: Path) -> None:
    options = ("--backend", "tensorrt_rtx", "--target", "sm86", "--target", "sm120")
    outcome = arvg("build", tmp_path / "ws", "--from", shipped.file, *options)
    assert outcome.code == 0, outcome
    place = Path("engines") / "int8" / "rtx-sm86-sm120"
    wanted, found = digests(shipped.workspace / place), digests(tmp_path / "ws" / place)
    wanted.pop("manifest.json")
    found.pop("manifest.json")
    assert found == wanted and {"encoder.engine", "encoder_ctx.onnx"} <= found.keys()
    outcome = arvg("build", tmp_path / "ws", "--from", shipped.file, *options)
    assert "up to date" in outcome.out


def test_a_kit_is_built_by_what_builds_on_devices(shipped: Shipped, tmp_path: Path) -> None:
    outcome = arvg("build", "--from", shipped.file, "--backend", "onnxruntime")
    assert_refused(outcome, 6, "is built on a device by TensorRT")
    outcome = arvg("build", tmp_path / "ws", "--from", shipped.file, "--name", "w4")
    assert outcome.code == 2 and "--from takes no --recipe and no --name" in outcome.err
    outcome = arvg("build", tmp_path / "ws", "--from", shipped.file, "--max-batch", 4)
    assert outcome.code == 2 and "--from takes no --max-batch" in outcome.err
    shipped.pack(tmp_path / "no-kit.tar", "--no-kit")
    outcome = arvg("build", tmp_path / "ws", "--from", tmp_path / "no-kit.tar")
    assert_refused(outcome, 6, "has no kit to build from")
    if not this_device().gpus:
        outcome = arvg("build", "--from", shipped.file, "--backend", "tensorrt_rtx")
        elsewhere = "--backend tensorrt_rtx --target NAME, as `arvg-trt targets` lists them"
        said = ("no --target is given, and here is no GPU", f"and give {elsewhere}")
        assert_refused(outcome, 6, *said, "name a new folder before --from")
        outcome = arvg("build", tmp_path / "orin", "--from", shipped.file)
        assert_refused(outcome, 6, f"(give {elsewhere}; a device with a GPU needs neither")
        assert not (tmp_path / "orin").exists()
    assert arvg("build").code == 2


def test_an_unpacked_kit_runs_as_a_folder_of_graphs(shipped: Shipped, tmp_path: Path) -> None:
    """The step CUDA of a bundle opens it so; this test needs no GPU."""
    assert arvg("unpack", shipped.file, "-o", tmp_path / "u", "--group", "kit").code == 0
    packed = ImageTokenizer.open(tmp_path / "u" / "kit", device="cpu")
    exported = ImageTokenizer.open(shipped.workspace, device="cpu")
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    tokens, _ = packed.encode(image)
    wanted, _ = exported.encode(image)
    assert tokens is not None and tokens.shape == wanted.shape
    back, reference = packed.decode(wanted), exported.decode(wanted)
    assert np.abs(back - reference).mean() < 0.1 * np.abs(reference).mean()


def test_inspect_says_what_the_graphs_of_engines_and_kits_are(
    shipped: Shipped, tmp_path: Path
) -> None:
    assert arvg("unpack", shipped.file, "-o", tmp_path / "u", "--group", "kit").code == 0
    engines = shipped.workspace / "engines" / "int8"
    rtx = engines / "rtx-sm86-sm120"
    quantized = "state: quantized already, as engines are built from or are"
    wrapper = "state: the model by which ONNX Runtime opens the engine beside it"
    for path, said in (
        (tmp_path / "u" / "kit" / "encoder.onnx", quantized),
        (rtx / "encoder.onnx", quantized),
        (engines / "onnxruntime" / "encoder.onnx", quantized),
        (rtx / "encoder_ctx.onnx", wrapper),
    ):
        lines = arvg("inspect", path).out.splitlines()
        assert said in lines and not any("refused" in x or "verdicts" in x for x in lines), path
    lines = arvg("inspect", shipped.workspace / "export" / "encoder.onnx").out.splitlines()
    assert "verdicts:" in lines and not any(line.startswith("state") for line in lines)


def test_verify_and_inspect_say_which_images_an_engine_takes(shipped: Shipped) -> None:
    """A tokenizer's engine for GPUs takes one size alone, here that of the fixture's build."""
    lines = arvg("verify", shipped.file).out.splitlines()
    taken = [line for line in lines if line.endswith("; takes images of 64x64")]
    assert [line.split(":")[0] for line in taken] == ["rtx-sm86-sm120"]
    inspected = arvg("inspect", shipped.file).out.splitlines()
    assert "image_sizes: rtx-sm86-sm120 64" in inspected
    # The very version decides, so both say it, whether or not the engine opens here.
    version = builder_release("tensorrt_rtx")
    assert f"TensorRT for RTX {version}" in taken[0]
    assert f"builders: rtx-sm86-sm120 TensorRT for RTX {version}" in inspected


def test_bundle_warns_of_engines_that_the_report_does_not_have(
    shipped: Shipped, tmp_path: Path
) -> None:
    outcome = arvg("bundle", shipped.workspace, "--name", "int8", "-o", tmp_path / "b.tar")
    assert outcome.code == 0
    said = "rtx-sm86-sm120 not in the report that is shipped (`arvg-trt validate` again adds it)"
    assert said in " ".join(outcome.err.split())
    assert "both serve" not in outcome.err and "built after" not in outcome.err


def test_groups_that_serve_one_target_and_new_engines_are_told() -> None:
    def group(name: str, targets: tuple[str, ...], gpu: str = "") -> GroupSources:
        kind = "tensorrt" if gpu else "tensorrt_rtx"
        file = BundleFile(path=f"engines/int8/{name}/e.engine", sha256="0" * 64, bytes=1)
        folder = f"engines/int8/{name}"
        made = TargetGroup(
            name=name, kind=kind, folder=folder, targets=targets, gpu=gpu, files=(file,)
        )
        return GroupSources(made, {})

    rtx = [group("rtx-sm86", ("sm86",)), group("rtx-sm86-sm89", ("sm86", "sm89"))]
    timed = [group("tensorrt-a", ("sm87",), "Orin"), group("tensorrt-b", ("sm87",), "Orin NX")]
    (line,) = overlap_warnings([*rtx, *timed])
    assert line.startswith("rtx-sm86 and rtx-sm86-sm89 both serve sm86: a device takes the first")
    known = {"engines/int8/rtx-sm86/e.engine": "1" * 64}
    text = report_warning(rtx, known)
    assert text is not None and "rtx-sm86-sm89 not in the report that is shipped" in text
    assert "; rtx-sm86 built after that report (" in text
    assert report_warning(rtx[:1], {"engines/int8/rtx-sm86/e.engine": "0" * 64}) is None


def test_the_script_of_a_kit_names_each_graph_and_its_shapes(
    shipped: Shipped, tmp_path: Path
) -> None:
    assert arvg("unpack", shipped.file, "-o", tmp_path / "u", "--group", "kit").code == 0
    lines = (tmp_path / "u" / "kit" / "build.sh").read_text().splitlines()
    commands = [line for line in lines if line.startswith("trtexec ")]
    assert len(commands) == 2 and "--maxShapes=image:1x3x64x64" in commands[0]
    assert all((tmp_path / "u" / "kit" / c.split()[1][7:]).is_file() for c in commands)


def test_validate_needs_the_reference_and_its_own_folder(shipped: Shipped, tmp_path: Path) -> None:
    shipped.pack(tmp_path / "alone.tar")
    assert_refused(
        arvg("validate", tmp_path / "alone.tar"), 9, "no FP32 graphs", "--with-reference"
    )
    shutil.copy(shipped.file, tmp_path / "b.tar")
    (tmp_path / "b").mkdir()
    assert_refused(arvg("validate", tmp_path / "b.tar"), 9, "not what this bundle unpacks to")
    assert_refused(arvg("validate", shipped.file, "--name", "w4"), 9, "holds int8, not w4")


@pytest.mark.parametrize("layout", ["oci", "triton"])
def test_a_folder_that_is_not_there_is_no_workspace_to_bundle(layout: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    missing = "is no workspace: there is no such folder"
    for name, what in (("dem", missing), ("pictures", "is no workspace")):
        outcome = arvg("bundle", tmp_path / name, "--layout", layout, "-o", tmp_path / "b")
        assert_refused(outcome, 9, f"{name}: {what} (name the folder that stages write to")
    assert not (tmp_path / "dem").exists() and not list((tmp_path / "pictures").iterdir())


def test_a_workspace_without_engines_is_refused(exported: Path, tmp_path: Path) -> None:
    outcome = arvg("bundle", exported, "--name", "int8", "-o", tmp_path / "b.tar")
    assert_refused(outcome, 9, "has no engines of int8", "arvg-trt build")
    assert not list(tmp_path.glob("*.tar"))


def test_an_engine_that_is_not_what_was_built_is_not_packed(
    shipped: Shipped, tmp_path: Path
) -> None:
    workspace = tmp_path / "ws"
    shutil.copytree(shipped.workspace, workspace)
    engine = workspace / "engines" / "int8" / "rtx-sm86-sm120" / "encoder.engine"
    engine.write_bytes(engine.read_bytes()[:-1])
    outcome = arvg("bundle", workspace, "--name", "int8", "-o", tmp_path / "b.tar")
    assert_refused(outcome, 9, "encoder.engine: was changed")


def edge_environment(folder: Path) -> Path:
    """Make an environment with what the package itself requires and nothing else; its python.

    The distributions are those of this environment, linked; extras are left out.
    """
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    wanted, done = ["arvg-trt"], set()
    while wanted:
        found = distribution(wanted.pop())
        if found.name in done:
            continue
        done.add(found.name)
        for file in found.files or ():
            top = file.parts[0]
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
        requirements = [Requirement(text) for text in found.requires or ()]
        wanted += [
            r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})
        ]
    if not (site / "arvg_trt").exists():
        (site / "arvg_trt").symlink_to(ROOT)
    assert "numpy" in done and "torch" not in done
    return folder / "bin" / "python"


def test_a_device_without_torch_and_onnx_verifies_encodes_and_decodes(
    shipped: Shipped, packed: Path, tmp_path: Path
) -> None:
    python = edge_environment(tmp_path / "edge")

    def run(*args: object) -> str:
        command = [str(python), *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for package in ("torch", "onnx", "onnx_ir", "jinja2", "scipy"):
        absent = f"import importlib.util as u; print(u.find_spec({package!r}))"
        assert run("-c", absent) == "None\n"
    verified = run("-m", "arvg_trt", "verify", shipped.file, "--require-key", shipped.public)
    assert "every byte is as it was packed" in verified and "cpu: CPU, opens here" in verified
    run("-m", "arvg_trt", "encode", shipped.file, shipped.photo, "-o", "tokens.npz")
    run("-m", "arvg_trt", "decode", shipped.file, "tokens.npz", "-o", "images")
    run("-m", "arvg_trt", "encode", packed, shipped.photo, "-o", "small.npz")
    assert (tmp_path / "small.npz").read_bytes() == (tmp_path / "tokens.npz").read_bytes()
    folder = shipped.workspace / "engines" / "int8" / "onnxruntime"
    outcome = arvg("encode", folder, shipped.photo, "-o", tmp_path / "here.npz")
    assert outcome.code == 0, outcome
    with np.load(tmp_path / "tokens.npz") as there, np.load(tmp_path / "here.npz") as here:
        assert np.array_equal(there["tokens_0"], here["tokens_0"])
    assert (tmp_path / "images" / "astronaut.png").is_file()


def test_a_generator_generates_the_same_images_from_its_bundle(
    quantized_of: Callable[[str], Quantized], tmp_path: Path
) -> None:
    made = quantized_of("var")
    workspace = tmp_path / "ws"
    shutil.copytree(made.workspace, workspace)
    assert arvg("build", workspace, "--name", "w8a8").code == 0
    packed, small = tmp_path / "g.tar", tmp_path / "small.tar"
    assert arvg("bundle", workspace, "--name", "w8a8", "-o", packed).code == 0
    assert arvg("bundle", workspace, "--name", "w8a8", "--packed", "-o", small).code == 0
    assert small.stat().st_size < packed.stat().st_size
    folder = workspace / "engines" / "w8a8" / "onnxruntime"
    for place, name in ((folder, "one"), (packed, "two"), (small, "three")):
        args = ("--labels", "0,1", "--seed", 3, "-o", tmp_path / name)
        outcome = arvg("generate", place, *args)
        assert outcome.code == 0, outcome
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "three")
    assert arvg("unpack", packed, "-o", tmp_path / "u", "--group", "kit").code == 0
    kit = Generator.open(tmp_path / "u" / "kit", device="cpu")
    wanted = Generator.open(folder).generate([0], seed=3).images
    assert kit.generate([0], seed=3).images.shape == wanted.shape
    assert Generator.open(packed).spec == Generator.open(folder).spec
