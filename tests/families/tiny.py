"""Tiny models of random weights, exported and quantized once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.statistics import Statistics, save_statistics
from arvg_trt.cli import cli
from arvg_trt.families.cosmos.config import CosmosConfig
from arvg_trt.families.cosmos.model import CosmosTokenizer
from arvg_trt.families.cosmos.write import export_tokenizer
from arvg_trt.graph.sites import SiteMap
from arvg_trt.numerics.scheme import Plan
from arvg_trt.quantize.facts import SiteRow
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.run import quantize_model
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.runtime.images import save_image
from arvg_trt.samples.crops import random_crops
from arvg_trt.samples.images import open_source

from ..one_process import exporting_here
from ..shared import AFTER_EXPORT, made_once
from .custom.models import export_autoencoder, export_transformer, handmade_transformer
from .gsq.models import EXPORTED, TinyGsq, random_gsq
from .gsq.models import write_checkpoint as write_gsq
from .llamagen.models import TinyLlamagen, random_llamagen
from .llamagen.models import write_checkpoint as write_llamagen
from .mar.models import CONFIG_JSON, TinyMar, random_kl_vae, random_mar
from .mar.models import write_checkpoint as write_mar
from .par.models import TinyPar, official_tokenizer, random_par
from .par.models import random_llamagen as random_llamagen_vq
from .par.models import write_checkpoint as write_par
from .rar.models import TinyRar, random_maskgit, random_rar
from .rar.models import write_checkpoint as write_rar
from .shared.models import TinyExported, state_of

TINY_DI = CosmosConfig(channels=32, channels_mult=(2,), num_res_blocks=1, z_channels=32)


TINY_CI = replace(TINY_DI, z_channels=16, latent_channels=16, levels=())


PHOTOGRAPHS = ("--images", "skimage:astronaut,coffee")


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True)
class TinyExport:
    """A random-weight tokenizer of published layout, and its exported graphs."""

    model: CosmosTokenizer
    folder: Path
    sites: SiteMap


def make_model(config: CosmosConfig, seed: int = 0) -> CosmosTokenizer:
    """Random weights with norms that are not the identity, and tokens that vary."""
    torch.manual_seed(seed)
    model = CosmosTokenizer(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if ".norm" in name and "mid.block_1" not in name:  # those stay 1 and 0, and are shared
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.quant_conv.weight.mul_(4)
    return model


def export(config: CosmosConfig, name: str, factory: pytest.TempPathFactory) -> TinyExport:
    model = make_model(config)
    folder, sites = made_once(
        factory, name, lambda f: export_tokenizer(model, f, "tiny"), unused=AFTER_EXPORT
    )
    return TinyExport(model, folder, SiteMap(sites=sites))


@pytest.fixture(scope="session")
def tiny_di(tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    return export(TINY_DI, "tiny_di", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_ci(tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    return export(TINY_CI, "tiny_ci", tmp_path_factory)


def run_cli(*args: str) -> None:
    with exporting_here():
        result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output


def export_generator(
    factory: pytest.TempPathFactory,
    family: str,
    models: tuple[nn.Module, nn.Module],
    write: Callable[[Path], Path],
    *options: str,
) -> TinyExported[Any, Any]:
    """Export the checkpoint that `write` makes, of these models, through `arvg-trt export`."""

    def make(root: Path) -> None:
        checkpoint = write(root / "checkpoint")
        run_cli("export", family, str(root / "ws"), "--checkpoint", str(checkpoint), *options)

    root, _ = made_once(factory, f"tiny_{family}", make, unused=AFTER_EXPORT)
    return TinyExported(*models, root / "ws")


@pytest.fixture(scope="session")
def tiny_rar(tmp_path_factory: pytest.TempPathFactory) -> TinyRar:
    """A checkpoint with the published files' names and layout."""
    models = random_rar(), random_maskgit()
    parts = state_of(models[0]), state_of(models[1])
    return export_generator(
        tmp_path_factory, "rar", models, lambda folder: write_rar(folder, *parts), *PHOTOGRAPHS
    )


@pytest.fixture(scope="session")
def tiny_par(tmp_path_factory: pytest.TempPathFactory) -> TinyPar:
    """Give a tiny PAR like `tiny_rar`, with a config.json that tells its heads and tokens."""
    models = random_par(), random_llamagen_vq()
    parts = state_of(models[0]), official_tokenizer(state_of(models[1]))
    return export_generator(
        tmp_path_factory, "par", models, lambda folder: write_par(folder, *parts), *PHOTOGRAPHS
    )


@pytest.fixture(scope="session")
def tiny_llamagen(tmp_path_factory: pytest.TempPathFactory) -> TinyLlamagen:
    """Give a tiny LlamaGen like `tiny_par`."""
    models = random_llamagen(), random_llamagen_vq()
    parts = state_of(models[0]), official_tokenizer(state_of(models[1]))
    return export_generator(
        tmp_path_factory,
        "llamagen",
        models,
        lambda folder: write_llamagen(folder, *parts),
        *PHOTOGRAPHS,
    )


@pytest.fixture(scope="session")
def tiny_mar(tmp_path_factory: pytest.TempPathFactory) -> TinyMar:
    """A checkpoint with the published files' names and wrappers."""
    models = random_mar(), random_kl_vae()
    parts = state_of(models[0]), state_of(models[1])
    return export_generator(
        tmp_path_factory, "mar", models, lambda folder: write_mar(folder, *parts, CONFIG_JSON)
    )


@pytest.fixture(scope="session")
def tiny_gsq(tmp_path_factory: pytest.TempPathFactory) -> TinyGsq:
    """The official file's form, through `arvg-trt export`."""
    model = random_gsq(EXPORTED)

    def make(root: Path) -> None:
        write_gsq(model, root / "checkpoint")
        (root / "checkpoint" / "config.yaml").write_text("quantizer_config: {use_l2_norm: true}")
        args = ("export", "gsq", str(root / "ws"), "--checkpoint", str(root / "checkpoint"))
        run_cli(*args, "--images", "skimage:astronaut")

    root, _ = made_once(tmp_path_factory, "tiny_gsq", make, unused=AFTER_EXPORT)
    return TinyGsq(model, root / "ws")


@pytest.fixture(scope="session")
def custom_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ...]]:
    """ONNX files of three models that a user might bring; tests do not change them."""

    def make(root: Path) -> dict[str, tuple[str, ...]]:
        files = {
            "transformer": (export_transformer(root),),
            "handmade": (handmade_transformer(root / "handmade.onnx"),),
            "autoencoder": export_autoencoder(root),
        }
        return {model: tuple(path.name for path in paths) for model, paths in files.items()}

    root, names = made_once(tmp_path_factory, "custom_files", make, unused=AFTER_EXPORT)
    return {model: tuple(root / name for name in files) for model, files in names.items()}


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five 32x32 crops of photographs, as the calibrate stage saves them."""
    folder = tmp_path_factory.mktemp("samples")
    for k, image in enumerate(random_crops(open_source("skimage:astronaut,coffee"), 5, 32, 0)):
        save_image(image, folder / f"{k:05d}.png")
    return folder


@pytest.fixture(scope="session")
def statistics(tiny_di: TinyExport, samples: Path) -> Statistics:
    return CalibrationRun(tiny_di.folder, samples, tiny_di.sites.graphs, 2, silent).channel_ranges(
        tiny_di.sites
    )


@dataclass(frozen=True)
class TinyQuantized:
    """Q/DQ graphs of `tiny_di` and what they were made from."""

    folder: Path
    plan: Plan
    results: list[SiteRow]
    statistics_file: Path


def quantize(
    source: TinyExport,
    samples: Path,
    statistics: Statistics,
    folder: Path,
    options: QuantizeOptions,
    plan: Plan | None = None,
) -> TinyQuantized:
    plan = make_plan(source.sites, options) if plan is None else plan
    final, results = quantize_model(
        CalibrationRun(source.folder, samples, source.sites.graphs, 4, silent),
        folder,
        source.sites,
        check_plan(plan, source.sites),
        statistics,
        options,
        shared=False,
    )
    save_statistics(statistics, folder / "statistics.safetensors")
    return TinyQuantized(folder, final, results, folder / "statistics.safetensors")


@pytest.fixture(scope="session")
def tiny_int8(
    tiny_di: TinyExport,
    samples: Path,
    statistics: Statistics,
    tmp_path_factory: pytest.TempPathFactory,
) -> TinyQuantized:
    folder = tmp_path_factory.mktemp("tiny_int8")
    options = QuantizeOptions(attention_inputs=True, smoothing=0.5)
    return quantize(tiny_di, samples, statistics, folder, options)


@pytest.fixture(scope="session")
def tiny_log4(
    tiny_di: TinyExport,
    samples: Path,
    statistics: Statistics,
    tmp_path_factory: pytest.TempPathFactory,
) -> TinyQuantized:
    folder = tmp_path_factory.mktemp("tiny_log4")
    options = QuantizeOptions(
        encoder_bits=32, decoder_bits=4, quantize_method="log_quantization", activation_bits=32
    )
    return quantize(tiny_di, samples, statistics, folder, options)
