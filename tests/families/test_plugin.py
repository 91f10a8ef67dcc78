"""A family of another package, found by its entry point, through every stage; and broken ones."""

from __future__ import annotations

import json
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from arvg_trt.errors import ArvgError, WorkspaceError
from arvg_trt.families.par.spec import ParSpec
from arvg_trt.families.variants import all_families, find_model
from arvg_trt.runtime.families import BUILT_IN, GROUP, find_family
from arvg_trt.runtime.folders import read_spec
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import fast_session
from arvg_trt.runtime.spec import Defaults
from arvg_trt.workspace.files import encode_json

from ..command_line import arvg, assert_refused
from .par.models import TOKENIZER, random_llamagen

TOY = Path(__file__).parent / "toy" / "arvg_toy"
CLASSES, LENGTH = 3, 16


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages that this process and those it starts import from."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(folder), *sys.path]))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def install(site: Path, package: str, points: str, source: str | None = None) -> None:
    """Leave what pip leaves: the package, its metadata and its entry points."""
    if source is not None:
        (site / f"{package}.py").write_text(source)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")


def install_toy(site: Path) -> None:
    shutil.copytree(TOY, site / "arvg_toy", ignore=shutil.ignore_patterns("__pycache__"))
    install(site, "arvg_toy", "toy = arvg_toy:FAMILY")


def write_checkpoint(folder: Path) -> Path:
    """The transformer's and the tokenizer's file, with weights in which every part shows."""
    # Installed by `install_toy`, after this module is loaded.
    from arvg_toy.model import (  # type: ignore[import-not-found]
        ToyConfig,
        ToyTransformer,
    )

    vocab = TOKENIZER.vocab_size
    model = ToyTransformer(ToyConfig(1, 32, LENGTH, CLASSES, vocab, hidden=48))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensors[name] = 1 + 0.3 * noise if "norm" in name else noise / tensor.shape[-1] ** 0.5
    folder.mkdir()
    torch.save(tensors, folder / "toy.pt")
    torch.save(dict(random_llamagen().state_dict()), folder / "vq.pt")
    return folder


def test_a_family_of_another_package_goes_through_every_stage(site: Path, tmp_path: Path) -> None:
    install_toy(site)
    root, checkpoint = tmp_path / "ws", write_checkpoint(tmp_path / "checkpoint")
    source = ("--checkpoint", checkpoint, "--images", "skimage:astronaut,coffee")
    done = arvg("export", "toy", root, *source)
    assert done.code == 0, done
    spec = json.loads((root / "export" / "generator.json").read_text())
    assert (spec["family"], spec["side"], spec["vocab_size"]) == ("toy", 4, 48)
    for stage in (
        ("calibrate", root, "--samples", 6, "--batch-size", 4),
        ("quantize", root, "--name", "w8a8"),
        ("validate", root, "--name", "w8a8", "--samples", 3, "--rounds", 0),
    ):
        done = arvg(*stage)
        assert done.code == 0, done
    report = json.loads((root / "validate" / "w8a8" / "report.json").read_text())
    logits = report["generation"]["qdq"]["logits"]
    assert 0 < logits["kl"] < 0.1 and logits["top1"] > 0.9
    assert report["sites"]
    tokens = tmp_path / "tokens.npz"
    quantized = root / "quantize" / "w8a8"
    outcome = arvg("generate", quantized, "--labels", "0-2", "--greedy", "--tokens", tokens)
    assert outcome.code == 0, outcome
    found = np.load(tokens)["tokens"]
    wanted = Generator.open(root).generate(range(CLASSES), greedy=True).tokens
    assert found.shape == wanted.shape == (CLASSES, LENGTH)
    assert np.mean(found == wanted) > 0.5 and len(np.unique(wanted)) > 4


def test_models_of_another_package_are_known_by_name(site: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"no family named 'toy' \(nearest: "):
        find_family("toy")
    install_toy(site)
    assert find_family("toy").name == find_model("toy").family == "toy"
    assert [family.name for family in all_families()] == [*BUILT_IN, "toy"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("parr", r"generator\.json: no family named 'parr' \(nearest: par, "),
        ("cosmos", r"generator\.json: cosmos is no family of generators"),
    ],
)
def test_generator_json_of_another_family_is_refused(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "generator.json").write_text(json.dumps({"family": name}))
    with pytest.raises(WorkspaceError, match=words):
        read_spec(tmp_path)


FAMILY = """
from arvg_trt.families.base import Family, Variant
FAMILY = Family("{name}", {more})
"""
BROKEN = {
    "does not import": ("odd = arvg_odd:FAMILY", "import nothing_of_this_name", "odd = arvg_odd:"),
    "raises": ("odd = arvg_odd:FAMILY", "1 / 0", "does not import: ZeroDivisionError: division by"),
    "has nothing": ("odd = arvg_odd:FAMILY", "", "AttributeError"),
    "is no family": ("odd = arvg_odd:FAMILY", "FAMILY = 3", "is a int, no Family"),
    "another name": (
        "odd = arvg_odd:FAMILY",
        FAMILY.format(name="even", more="exporter='a:b'"),
        "gives a family named 'even'",
    ),
    "no exporter": (
        "odd = arvg_odd:FAMILY",
        FAMILY.format(name="odd", more=""),
        "has no exporter",
    ),
    "another family's model": (
        "odd = arvg_odd:FAMILY",
        FAMILY.format(
            name="odd",
            more="exporter='a:b', unsized=Variant('odd', 'even', 0, None, ())",
        ),
        "its model 'odd' is of another family",
    ),
    "no struct": (
        "odd = arvg_odd:FAMILY",
        FAMILY.format(name="odd", more="exporter='a:b', spec=int"),
        "its spec is no msgspec Struct with tag_field='family' and tag='odd'",
    ),
    "a model that is there": (
        "odd = arvg_odd:FAMILY",
        FAMILY.format(
            name="odd",
            more="exporter='a:b', variants=(Variant('var-mini', 'odd', 0, None, ()),)",
        ),
        "its model 'var-mini' is there already",
    ),
    "a built-in name": ("rar = arvg_odd:FAMILY", "", "is the name of a built-in family"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_named_in_one_line(case: str, site: Path) -> None:
    point, source, words = BROKEN[case]
    install(site, "arvg_odd", point, source)
    outcome = arvg("models")
    named = f"entry point {point} of arvg_odd: "
    assert_refused(outcome, 1, named, words)
    with pytest.raises(ArvgError, match="arvg_odd"):
        find_model("odd")
    # What needs none of it goes on.
    assert find_model("rar-mini").family == "rar"


def test_a_part_of_a_package_that_does_not_import_is_named(site: Path) -> None:
    more = "exporter='arvg_gone:A', loop='arvg_gone:B'"
    install(site, "arvg_odd", "odd = arvg_odd:FAMILY", FAMILY.format(name="odd", more=more))
    family = find_family("odd")
    with pytest.raises(ArvgError, match="family odd: arvg_gone:A: does not import: ModuleNotFound"):
        family.load_exporter()
    spec = read_spec(tiny_spec(site))[1]
    with pytest.raises(ArvgError, match="family odd: arvg_gone:B: does not import: ModuleNotFound"):
        family.open_loop(site, spec, fast_session, 1)


def tiny_spec(folder: Path) -> Path:
    """A folder with the `generator.json` of a small PAR."""
    sizes = {"num_classes": 2, "vocab_size": 8, "depth": 1, "width": 8, "heads": 2, "head_dim": 4}
    defaults = Defaults(cfg=1.0, top_k=0, top_p=1.0)
    spec = ParSpec(side=4, group=4, image_size=8, defaults=defaults, **sizes)
    (folder / "generator.json").write_bytes(encode_json(spec))
    return folder


def test_two_packages_of_one_name_are_refused(site: Path) -> None:
    source = FAMILY.format(name="odd", more="exporter='a:b'")
    for package in ("arvg_odd", "arvg_odder"):
        install(site, package, f"odd = {package}:FAMILY", source)
    with pytest.raises(ArvgError, match=r"several packages bring it: arvg_odd:.*, arvg_odder:"):
        find_family("odd")


def test_models_are_listed_without_torch_onnx_or_a_session() -> None:
    code = (
        "import sys; from arvg_trt.families.variants import all_variants; assert all_variants();"
        "print(*{'torch', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_family_is_whole(name: str) -> None:
    family = find_family(name)
    assert family.name == name and family.models
    assert family.load_exporter() is not None
    assert bool(family.loop) is (family.spec is not None) is family.generates
    if family.loop:
        assert callable(pkgutil.resolve_name(family.loop))
