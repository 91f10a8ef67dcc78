"""Tiny real models, exported and quantized once, and single convolutions with float64 answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.calibrate.observers.run import collect_ranges
from arvg_trt.calibrate.statistics import Statistics, save_statistics
from arvg_trt.cli import cli
from arvg_trt.families.cosmos.config import CosmosConfig
from arvg_trt.families.cosmos.model import CosmosTokenizer
from arvg_trt.families.cosmos.write import export_tokenizer
from arvg_trt.graph.sites import ActivationFormat, Plan, Site, SiteMap, WeightFormat
from arvg_trt.numerics.weight import QuantizedWeight, quantize_weight
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.qdq.nodes import SiteWeights
from arvg_trt.quantize.run import SiteResult, quantize_graphs
from arvg_trt.recipe.options import QuantizeOptions
from arvg_trt.runtime.images import save_image
from arvg_trt.samples.images import open_source, random_crops

from .families.custom.models import export_autoencoder, export_transformer, handmade_transformer
from .families.gsq.models import EXPORTED, TinyGsq, random_gsq
from .families.gsq.models import write_checkpoint as write_gsq
from .families.mar.models import TOLD, TinyMar, random_kl_vae, random_mar
from .families.mar.models import write_checkpoint as write_mar_checkpoint
from .families.par.models import TinyPar, official_tokenizer, random_llamagen, random_par
from .families.par.models import write_checkpoint as write_par
from .families.rar.models import TinyRar, random_maskgit, random_rar, write_checkpoint
from .shared import made_once

Floats = NDArray[np.float32]

TINY_DI = CosmosConfig(channels=32, channels_mult=(2,), num_res_blocks=1, z_channels=32)
TINY_CI = replace(TINY_DI, z_channels=16, latent_channels=16, levels=())


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For loops of small operations: threads cost them more than they save, beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    folder, sites = made_once(factory, name, lambda f: export_tokenizer(model, f, "tiny"))
    return TinyExport(model, folder, SiteMap(sites=sites))


@pytest.fixture(scope="session")
def tiny_di(tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    return export(TINY_DI, "tiny_di", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_ci(tmp_path_factory: pytest.TempPathFactory) -> TinyExport:
    return export(TINY_CI, "tiny_ci", tmp_path_factory)


def run_cli(*args: str) -> None:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def tiny_rar(tmp_path_factory: pytest.TempPathFactory) -> TinyRar:
    """A checkpoint with the published files' names and layout, through `arvg-trt export`."""
    transformer, tokenizer = random_rar(), random_maskgit()

    def make(root: Path) -> None:
        parts = (dict(model.state_dict()) for model in (transformer, tokenizer))
        checkpoint = write_checkpoint(root / "checkpoint", *parts)
        args = ("export", "rar", str(root / "ws"), "--checkpoint", str(checkpoint))
        run_cli(*args, "--images", "skimage:astronaut,coffee")

    root, _ = made_once(tmp_path_factory, "tiny_rar", make)
    return TinyRar(transformer, tokenizer, root / "ws")


@pytest.fixture(scope="session")
def tiny_gsq(tmp_path_factory: pytest.TempPathFactory) -> TinyGsq:
    """The official file's form, through `arvg-trt export`."""
    model = random_gsq(EXPORTED)

    def make(root: Path) -> None:
        write_gsq(model, root / "checkpoint")
        (root / "checkpoint" / "config.yaml").write_text("quantizer_config: {use_l2_norm: true}")
        args = ("export", "gsq", str(root / "ws"), "--checkpoint", str(root / "checkpoint"))
        run_cli(*args, "--images", "skimage:astronaut")

    root, _ = made_once(tmp_path_factory, "tiny_gsq", make)
    return TinyGsq(model, root / "ws")


@pytest.fixture(scope="session")
def tiny_mar(tmp_path_factory: pytest.TempPathFactory) -> TinyMar:
    """A checkpoint with the published files' names and wrappers, through `arvg-trt export`."""
    transformer, autoencoder = random_mar(), random_kl_vae()

    def make(root: Path) -> None:
        parts = (dict(model.state_dict()) for model in (transformer, autoencoder))
        checkpoint = write_mar_checkpoint(root / "checkpoint", *parts, told=TOLD)
        run_cli("export", "mar", str(root / "ws"), "--checkpoint", str(checkpoint))

    root, _ = made_once(tmp_path_factory, "tiny_mar", make)
    return TinyMar(transformer, autoencoder, root / "ws")


@pytest.fixture(scope="session")
def tiny_par(tmp_path_factory: pytest.TempPathFactory) -> TinyPar:
    """As `tiny_rar`, of a PAR, with a config.json that tells its heads and tokens."""
    transformer, tokenizer = random_par(), random_llamagen()

    def make(root: Path) -> None:
        halves = (dict(transformer.state_dict()), official_tokenizer(dict(tokenizer.state_dict())))
        checkpoint = write_par(root / "checkpoint", *halves)
        args = ("export", "par", str(root / "ws"), "--checkpoint", str(checkpoint))
        run_cli(*args, "--images", "skimage:astronaut,coffee")

    root, _ = made_once(tmp_path_factory, "tiny_par", make)
    return TinyPar(transformer, tokenizer, root / "ws")


@pytest.fixture(scope="session")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ...]]:
    """ONNX files of three models that a user might bring; tests do not change them."""

    def make(root: Path) -> dict[str, tuple[Path, ...]]:
        return {
            "transformer": (export_transformer(root),),
            "handmade": (handmade_transformer(root / "handmade.onnx"),),
            "autoencoder": export_autoencoder(root),
        }

    return made_once(tmp_path_factory, "own_files", make)[1]


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five 32x32 crops of photographs, as the calibrate stage saves them."""
    folder = tmp_path_factory.mktemp("samples")
    for k, image in enumerate(random_crops(open_source("skimage:astronaut,coffee"), 5, 32, 0)):
        save_image(image, folder / f"{k:05d}.png")
    return folder


@pytest.fixture(scope="session")
def statistics(tiny_di: TinyExport, samples: Path) -> Statistics:
    return collect_ranges(tiny_di.folder, samples, tiny_di.sites, batch_size=2, progress=silent)


@dataclass(frozen=True)
class TinyQuantized:
    """Q/DQ graphs of `tiny_di` and what they were made from."""

    folder: Path
    plan: Plan
    results: list[SiteResult]
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
    final, results = quantize_graphs(
        source.folder,
        samples,
        folder,
        source.sites,
        check_plan(plan, source.sites),
        statistics,
        options,
        batch_size=4,
        progress=silent,
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


# One quantized convolution, alone in a graph.

CHANNELS, OUTPUTS, SIZE, GROUPS = 8, 6, 7, 4


@dataclass(frozen=True)
class ConvCase:
    """A float graph with one site per name in `chosen`, and what its Q/DQ graph must compute.

    The float weights are exactly those that the codes stand for (over the smoothing), so with
    activation Q/DQ taken out the rewritten graph must equal the float one.
    """

    proto: onnx.ModelProto
    sites: tuple[Site, ...]
    chosen: dict[str, SiteWeights]
    x: Floats
    expected: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def model(self) -> ir.Model:
        return ir.serde.deserialize_model(self.proto)

    def ranges(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """(low, high) per output channel of what the Q/DQ graph computes."""
        axes = (0, 2, 3)
        return {n: (e.min(axis=axes), e.max(axis=axes)) for n, e in self.expected.items()}


def float_graph(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: list[str], channels: int
) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "case",
        [info("x", TensorProto.FLOAT, ["n", channels, "h", "w"])],
        [info(name, TensorProto.FLOAT, [None] * 4) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def conv_site(name: str, source: str, weight: QuantizedWeight, **changes: object) -> Site:
    return msgspec.structs.replace(
        Site(
            name=name,
            graph="encoder",
            role="conv",
            op="Conv",
            node=name,
            weight=f"{name}.weight",
            bias=f"{name}.bias",
            input=source,
            output=f"{name}.out",
            weight_shape=weight.codes.shape,
        ),
        **changes,
    )


def on_grid(
    x: NDArray[np.float64],
    smoothing: Floats,
    activation: ActivationFormat,
    center: Floats | None = None,
) -> NDArray[np.float64]:
    """Values of the smoothed tensor on the unsigned grid: integers from shift - 2^(b-1) up.

    With a `center` [C] in smoothed units, the grid of each channel lies around it.
    """
    assert activation.scale is not None
    offset = (np.zeros(x.shape[1]) if center is None else center.astype(np.float64)).reshape(
        1, -1, 1, 1
    )
    steps = x / smoothing.astype(np.float64).reshape(1, -1, 1, 1) - offset
    steps = steps / activation.scale
    fraction = np.abs(steps - np.floor(steps) - 0.5)
    assert fraction.min() > 1e-4, "a value at a rounding tie: choose another seed"
    low = activation.shift - 2 ** (activation.bits - 1)
    points = np.clip(np.round(steps), low, low + 2**activation.bits - 1)
    return points * activation.scale + offset


def convolve(
    x: NDArray[np.float64],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    strides: list[int],
    pads: list[int],
) -> NDArray[np.float64]:
    """A float64 convolution with zero padding (top, left, bottom, right)."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    out = torch.nn.functional.conv2d(
        torch.from_numpy(padded),
        torch.from_numpy(weight.astype(np.float64)),
        torch.from_numpy(bias.astype(np.float64)),
        stride=tuple(strides),
    )
    return out.numpy()


def make_conv_case(
    *,
    kernel: int = 3,
    stride: int = 1,
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    bits: int = 8,
    shift: int = 0,
    centered: bool = False,
    smoothed: bool = True,
    resize: bool = False,
    weight_format: WeightFormat | None = None,
    weight_only: bool = False,
) -> ConvCase:
    rng = np.random.default_rng(3)
    scale = float(np.float32(0.037 * 2 ** (8 - bits)))
    activation = ActivationFormat(bits=bits, scale=scale, shift=shift, centered=centered)
    center = rng.normal(0, 60 * scale, CHANNELS).astype(np.float32) if centered else None
    smoothing = np.ones(CHANNELS, np.float32)
    if smoothed and not weight_only:
        smoothing = np.exp(rng.normal(0, 0.7, CHANNELS)).astype(np.float32)
    weight = rng.normal(0, 0.2, (OUTPUTS, CHANNELS, kernel, kernel)).astype(np.float32)
    quantized = quantize_weight(weight, weight_format or WeightFormat(bits=8))
    bias = rng.normal(0, 1, OUTPUTS).astype(np.float32)
    # Steps a little beyond both ends of the grid, and never close to a rounding tie.
    low = shift - 2 ** (bits - 1)
    size = (2, CHANNELS, SIZE, SIZE)
    steps = rng.integers(low - 9, low + 2**bits + 9, size) + rng.uniform(-0.4, 0.4, size)
    offset = 0 if center is None else center.reshape(1, -1, 1, 1)
    x = ((steps * scale + offset) * smoothing.reshape(1, -1, 1, 1)).astype(np.float32)

    nodes, source = [], "x"
    constants = {
        "c.weight": quantized.dequantize() / smoothing.reshape(1, -1, 1, 1),
        "c.bias": bias,
    }
    if resize:
        constants["sizes"] = np.array([1, 1, 2, 2], np.float32)
        nodes.append(
            helper.make_node(
                "Resize",
                ["x", "", "sizes"],
                ["large"],
                name="resize",
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        )
        source = "large"
    strides = [stride, stride]
    nodes.append(
        helper.make_node(
            "Conv",
            [source, "c.weight", "c.bias"],
            ["c.out"],
            name="c",
            pads=list(pads),
            strides=strides,
            kernel_shape=[kernel, kernel],
        )
    )
    chosen = SiteWeights(
        quantized,
        activation=None if weight_only else activation,
        smoothing=smoothing if smoothed and not weight_only else None,
        center=center,
    )
    wide = x.astype(np.float64)
    if resize:
        wide = wide.repeat(2, axis=2).repeat(2, axis=3)
    if center is not None:
        # Zeros are padded before the rounding: they too land on the grid around the centre.
        wide = np.pad(wide, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
        pads_left = [0] * 4
    else:
        pads_left = list(pads)
    grid = wide if weight_only else on_grid(wide, smoothing, activation, center)
    return ConvCase(
        float_graph(nodes, constants, ["c.out"], CHANNELS),
        (conv_site("c", source, quantized),),
        {"c": chosen},
        x,
        {"c": convolve(grid, quantized.dequantize(), bias, strides, pads_left)},
    )


def make_folded_case(*, shift: int = 20, centered: bool = False) -> ConvCase:
    """A GroupNorm that feeds q, k and v; another norm shares its affine initializers."""
    rng = np.random.default_rng(6)
    x = rng.normal(1, 2, (2, CHANNELS, 3, 5)).astype(np.float32)
    gamma = rng.normal(1, 0.3, CHANNELS).astype(np.float32)
    beta = rng.normal(0.5, 0.3, CHANNELS).astype(np.float32)
    smoothing = np.exp(rng.normal(0, 0.5, CHANNELS)).astype(np.float32)
    scale = float(np.float32(0.031))
    activation = ActivationFormat(bits=8, scale=scale, shift=shift, centered=centered)
    center = rng.normal(0, 1, CHANNELS).astype(np.float32) if centered else None
    groups = x.astype(np.float64).reshape(2, GROUPS, -1)
    centred = groups - groups.mean(axis=2, keepdims=True)
    normed = centred / np.sqrt(groups.var(axis=2, keepdims=True) + 1e-6)
    affine = [v.astype(np.float64).reshape(1, -1, 1, 1) for v in (gamma, beta)]
    grid = on_grid(normed.reshape(x.shape) * affine[0] + affine[1], smoothing, activation, center)

    constants: dict[str, np.ndarray] = {"gamma": gamma, "beta": beta}
    nodes = [
        helper.make_node(
            "GroupNormalization",
            ["x", "gamma", "beta"],
            [out],
            name=f"{out}.node",
            num_groups=GROUPS,
            epsilon=1e-6,
        )
        for out in ("normed", "other")
    ]
    sites, chosen, expected = [], {}, {}
    for name in "qkv":
        weight = rng.normal(0, 0.3, (OUTPUTS, CHANNELS, 1, 1)).astype(np.float32)
        quantized = quantize_weight(weight, WeightFormat(bits=8))
        bias = rng.normal(0, 1, OUTPUTS).astype(np.float32)
        constants[f"{name}.weight"] = quantized.dequantize() / smoothing.reshape(1, -1, 1, 1)
        constants[f"{name}.bias"] = bias
        inputs = ["normed", f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.out"], name=name))
        others = tuple(n for n in "qkv" if n != name)
        sites.append(
            conv_site(name, "normed", quantized, shares_input_with=others, fold=("gamma", "beta"))
        )
        chosen[name] = SiteWeights(
            quantized, activation=activation, smoothing=smoothing, center=center
        )
        expected[name] = convolve(grid, quantized.dequantize(), bias, [1, 1], [0] * 4)
    outputs = ["q.out", "k.out", "v.out", "other"]
    graph = float_graph(nodes, constants, outputs, CHANNELS)
    return ConvCase(graph, tuple(sites), chosen, x, expected)


POINT = {"kernel": 1, "pads": (0, 0, 0, 0)}
INTEGER_CASES: dict[str, Callable[[], ConvCase]] = {
    "3x3 symmetric, no smoothing": partial(make_conv_case, smoothed=False),
    "3x3 smoothed": partial(make_conv_case),
    "3x3 shifted": partial(make_conv_case, shift=117),
    "3x3 shifted down, per-tensor weight": partial(
        make_conv_case,
        shift=-90,
        smoothed=False,
        weight_format=WeightFormat(bits=8, granularity="per_tensor"),
    ),
    "stride 2, padded right and below": partial(
        make_conv_case, stride=2, pads=(0, 0, 1, 1), shift=60
    ),
    "1x1": partial(make_conv_case, **POINT),
    "1x1 shifted": partial(make_conv_case, **POINT, shift=100),
    "1x1 stride 2": partial(make_conv_case, **POINT, stride=2, shift=5),
    "6 bits, shifted": partial(
        make_conv_case, bits=6, shift=25, weight_format=WeightFormat(bits=6)
    ),
    "4 bits, symmetric": partial(make_conv_case, bits=4, weight_format=WeightFormat(bits=4)),
    "behind a nearest resize": partial(make_conv_case, resize=True, shift=50),
    "folded norm, shifted": partial(make_folded_case, shift=20),
    "folded norm": partial(make_folded_case, shift=0),
    "folded norm, centered": partial(make_folded_case, shift=0, centered=True),
    "3x3 centered": partial(make_conv_case, centered=True),
    "3x3 centered, no smoothing": partial(make_conv_case, centered=True, smoothed=False),
    "1x1 centered": partial(make_conv_case, **POINT, centered=True),
    "4 bits, centered, stride 2": partial(
        make_conv_case,
        centered=True,
        bits=4,
        stride=2,
        pads=(0, 0, 1, 1),
        weight_format=WeightFormat(bits=4),
    ),
    "behind a nearest resize, centered": partial(make_conv_case, resize=True, centered=True),
}
WEIGHT_ONLY_CASES: dict[str, Callable[[], ConvCase]] = {
    f"weight-only {grid} {granularity}": partial(
        make_conv_case,
        weight_only=True,
        weight_format=WeightFormat(bits=4, grid=grid, granularity=granularity),
    )
    for grid in ("uniform", "log")
    for granularity in ("per_channel", "per_tensor")
}


@pytest.fixture(params=INTEGER_CASES)
def integer_case(request: pytest.FixtureRequest) -> ConvCase:
    """A site with quantized input and weight."""
    return INTEGER_CASES[request.param]()


@pytest.fixture(params=INTEGER_CASES | WEIGHT_ONLY_CASES)
def conv_case(request: pytest.FixtureRequest) -> ConvCase:
    """A site of any form."""
    return (INTEGER_CASES | WEIGHT_ONLY_CASES)[request.param]()
