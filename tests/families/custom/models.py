"""Models that a user might bring: a transformer as torch exports it and one made by hand, and a
convolutional autoencoder. All tiny, with weights from seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from arvg_trt.export.tracing import exporter
from arvg_trt.export.weight_file import WeightFile
from arvg_trt.families.custom.canonical import read_custom_graph
from arvg_trt.families.custom.parity import HALF_TOLERANCE, check_custom_graph
from arvg_trt.families.custom.sites import find_custom_sites
from arvg_trt.graph.sites import Site

WIDTH, HEADS, HIDDEN, TOKENS, CLASSES = 32, 2, 64, 6, 10


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.softmax(q @ k.transpose(-1, -2) * (c // HEADS) ** -0.5, dim=-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """float [N, T, WIDTH] -> logits [N, T, CLASSES]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Encoder(nn.Module):
    """image [N, 3, H, W] -> latent [N, 4, H/2, W/2]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(16)
        self.squeeze = nn.Conv2d(16, 16, 1)
        self.norm2 = nn.GroupNorm(4, 16)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.conv_out = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.squeeze(self.norm1(self.conv_in(image)))
        x = self.down(nn.functional.silu(self.norm2(x)))
        return self.conv_out(torch.relu(x))


class Decoder(nn.Module):
    """latent -> image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.mix = nn.Conv2d(16, 16, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.conv_out = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mix(torch.relu(self.depthwise(self.conv_in(latent))))
        x = self.up(nn.functional.silu(self.norm(x)))
        return self.conv_out(torch.relu(self.conv(x)))


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """Random weights, and norms that scale and shift every channel differently."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if not value.is_floating_point():
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            drawn /= float(value[0].numel()) ** 0.5
        elif name.endswith(("weight", "running_var")):
            drawn = torch.exp(0.7 * drawn)
        value.data.copy_(drawn)
    return module.eval()


def export(
    module: nn.Module,
    example: Tensor,
    dynamic: dict[int, object],
    path: Path,
    names: tuple[str, str],
    opset: int = 21,
) -> Path:
    with exporter():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    program.save(path, external_data=path.stem == "transformer")
    return path


def export_transformer(folder: Path) -> Path:
    """`transformer.onnx` with external weights, [N, T, WIDTH] of any N and T."""
    module = seeded(Transformer(), 1)
    dynamic = {0: Dim("batch"), 1: Dim("tokens")}
    example = torch.zeros(2, TOKENS, WIDTH)
    return export(module, example, dynamic, folder / "transformer.onnx", ("x", "logits"))


def export_autoencoder(folder: Path) -> tuple[Path, Path]:
    """`encoder.onnx` at opset 21 and `decoder.onnx` at 18; `latent` goes from one to the other."""
    batch, h, w = Dim("batch"), Dim("h"), Dim("w")
    encoder = export(
        seeded(Encoder(), 2),
        torch.zeros(2, 3, 8, 12),
        {0: batch, 2: 2 * h, 3: 2 * w},
        folder / "encoder.onnx",
        ("image", "latent"),
    )
    decoder = export(
        seeded(Decoder(), 3),
        torch.zeros(2, 4, 4, 6),
        {0: batch, 2: h, 3: w},
        folder / "decoder.onnx",
        ("latent", "picture"),
        opset=18,
    )
    return encoder, decoder


Node = tuple[str, list[str], str, dict[str, object]]


def small_graph(
    path: Path,
    nodes: list[Node],
    constants: dict[str, np.ndarray],
    *,
    x: tuple[object, ...] = ("n", TOKENS, WIDTH),
    opset: int = 21,
    names: dict[str, str] | None = None,
) -> Path:
    """A file of (operator, inputs, output, attributes); `x` float goes in, `y` comes out.

    `names` gives nodes names by their output; the others have none.
    """
    made = [
        helper.make_node(op, inputs, [output], name=(names or {}).get(output, ""), **attributes)
        for op, inputs, output, attributes in nodes
    ]
    graph = helper.make_graph(
        made,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(seed: int, *shape: int) -> np.ndarray:
    return np.exp(0.5 * random(seed, *shape))


def handmade_transformer(path: Path, opset: int = 17) -> Path:
    """One block without metadata: RMSNorm by Mul, LayerNormalization, Gemm, a gate, unnamed nodes.

    tokens [N, T] int64 -> logits [N, T, CLASSES].
    """
    rng = np.random.default_rng(4)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)

    def around_one(*shape: int) -> np.ndarray:
        return np.exp(0.7 * rng.standard_normal(shape)).astype(np.float32)

    head_dim = WIDTH // HEADS
    held = {
        "table": normal(CLASSES, WIDTH) * 3,
        "rms.weight": around_one(WIDTH),
        "wq": normal(WIDTH, WIDTH),
        "wk": normal(WIDTH, WIDTH),
        "wv": normal(WIDTH, WIDTH),
        "attn.proj.weight": normal(WIDTH, WIDTH),
        "attn.proj.bias": normal(WIDTH),
        "ln_scale": around_one(WIDTH),
        "ln_bias": normal(WIDTH),
        "up": normal(WIDTH, HIDDEN),
        "gate": normal(WIDTH, HIDDEN),
        "down": normal(HIDDEN, WIDTH),
        "head": np.ascontiguousarray(normal(WIDTH, CLASSES).T),
        "head_bias": normal(CLASSES),
        "two": np.float32(2),
        "epsilon": np.float32(1e-6),
        "split": np.array([0, 0, HEADS, head_dim]),
        "join": np.array([0, 0, WIDTH]),
        "flat": np.array([-1, WIDTH]),
        "root": np.float32(head_dim**-0.5),
    }
    nodes: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, output: str, name: str = "", **attributes: object) -> str:
        nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    add("Gather", "table", "tokens", output="x")
    add("Pow", "x", "two", output="square")
    add("ReduceMean", "square", output="mean", axes=[-1])
    add("Add", "mean", "epsilon", output="mean_e")
    add("Sqrt", "mean_e", output="rms")
    add("Div", "x", "rms", output="unit")
    add("Mul", "unit", "rms.weight", output="normed")
    for letter, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        name = f"/layer/attn/{letter}/MatMul"
        add("MatMul", "normed", f"w{letter}", output=f"{name}_output_0", name=name)
        add("Reshape", f"{name}_output_0", "split", output=f"{letter}4")
        add("Transpose", f"{letter}4", output=letter, perm=perm)
    add("MatMul", "q", "k", output="raw")
    add("Mul", "raw", "root", output="scaled")
    add("Softmax", "scaled", output="p", axis=-1)
    add("MatMul", "p", "v", output="o4")
    add("Transpose", "o4", output="o3", perm=[0, 2, 1, 3])
    add("Reshape", "o3", "join", output="o")
    add("MatMul", "o", "attn.proj.weight", output="o_w")
    add("Add", "attn.proj.bias", "o_w", output="o_b")
    add("Add", "x", "o_b", output="x1")
    add("LayerNormalization", "x1", "ln_scale", "ln_bias", output="n1", axis=-1, epsilon=1e-5)
    add("MatMul", "n1", "up", output="u", name="mlp_up")
    add("MatMul", "n1", "gate", output="g", name="mlp_gate")
    add("Sigmoid", "g", output="g_s")
    add("Mul", "g", "g_s", output="silu")
    add("Mul", "silu", "u", output="h")
    add("MatMul", "h", "down", output="d", name="mlp_down")
    add("Add", "x1", "d", output="x2")
    add("Reshape", "x2", "flat", output="rows")
    add("Gemm", "rows", "head", "head_bias", output="logit_rows", name="classifier", transB=1)
    add("Shape", "tokens", output="lead")
    held["last"] = np.array([CLASSES])
    add("Concat", "lead", "last", output="full", axis=0)
    add("Reshape", "logit_rows", "full", output="logits")
    graph = helper.make_graph(
        nodes,
        "handmade",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "t", CLASSES])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def exported(path: Path) -> tuple[ir.Model, dict[str, Site]]:
    """The canonical graph, compared with the file, and its sites."""
    model = read_custom_graph(path)
    sites = {site.name: site for site in find_custom_sites(model.graph, path.stem)}
    folder = path.parent / f"{path.stem}_out"
    folder.mkdir(exist_ok=True)
    with WeightFile(folder) as weights:
        weights.save(model, path.stem, {})
    onnx.checker.check_model(folder / f"{path.stem}.onnx")
    found = check_custom_graph(path, folder / f"{path.stem}.onnx", model)
    if found.tolerance != HALF_TOLERANCE:
        assert max(found.max_difference.values()) < 1e-5
    return model, sites
