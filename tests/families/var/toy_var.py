"""A VAR in miniature, affine and made by hand: graphs after the contract, and their formulas.

The cache is real (each step sees the means of all keys and values so far), the attention is not.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray

SIDES = (1, 2, 3)
CLASSES, VOCAB, DEPTH, HEADS, HEAD_DIM = 5, 12, 2, 2, 3
WIDTH, CHANNELS, SIZE, IMAGE = HEADS * HEAD_DIM, 3, 3, 6
LENGTH = sum(side * side for side in SIDES)
DEFAULTS = {"cfg": 1.5, "top_k": 8, "top_p": 0.9}
RANKS = {"x": 3, "head_modulation": 3, "logits": 3}
KINDS = {
    "float": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
}


class ToyVar:
    """Its constants, and a float64 loop over them that shares nothing with the runtime."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def table(*shape: int) -> Array:
            return rng.normal(size=shape).astype(np.float32)

        self.class_emb = table(CLASSES + 1, WIDTH)
        self.modulation = table(CLASSES + 1, DEPTH, 6, WIDTH)
        self.head_modulation = table(CLASSES + 1, 2, WIDTH)
        self.positions = table(LENGTH, WIDTH)
        self.head = 2 * table(WIDTH, VOCAB)
        self.codebook = table(VOCAB, CHANNELS)
        self.word = [table(CHANNELS, side * side * WIDTH) for side in SIDES[1:]]

    def step(self, x: Array, first: int, rows: Array, past: list[Array]) -> tuple[Array, Array]:
        """Logits [rows, n, V] and what is cached: all x so far, one array a block."""
        gate = self.modulation[rows].astype(np.float64).mean(axis=2)  # [rows, depth, C]
        n = x.shape[1]
        for block in range(DEPTH):
            past[block] = np.concatenate([past[block], x], axis=1)
            x = x + (gate[:, block] * 3 * past[block].mean(axis=1))[:, None]
        shift = self.head_modulation[rows].astype(np.float64).sum(axis=1)[:, None]
        return (x + shift + self.positions[first : first + n]) @ self.head.astype(np.float64)

    def generate(
        self, labels: list[int], choose, cfg: float
    ) -> tuple[Array, Array]:  # images [B, 3, H, W], tokens [B, L]
        count = len(labels)
        rows = np.array([*labels, *[CLASSES] * count])
        x = self.class_emb[rows].astype(np.float64)[:, None]
        past = [np.zeros((2 * count, 0, WIDTH))] * DEPTH
        f_hat = np.zeros((count, CHANNELS, SIZE, SIZE))
        first, tokens = 0, []
        for scale, side in enumerate(SIDES):
            both = self.step(x, first, rows, past)
            t = cfg * scale / (len(SIDES) - 1)
            tokens.append(choose(scale, (1 + t) * both[:count] - t * both[count:]))
            code = self.codebook[tokens[-1]].astype(np.float64).mean(axis=1)
            f_hat = f_hat + (scale + 1) * code[:, :, None, None]
            if scale + 1 < len(SIDES):
                x = (code @ self.word[scale]).reshape(count, -1, WIDTH)
                x = np.concatenate([x, x])
            first += side * side
        return np.tile(f_hat, (1, 1, 2, 2)), np.concatenate(tokens, axis=1)

    def save(self, folder: Path, **changes: object) -> Path:
        """Write the graphs and `generator.json`; `changes` to that may ask for other steps."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save_condition(folder)
        half = changes.get("kv_type") == "float16"
        if static := changes.get("static_batch"):
            first = 0
            for scale, side in enumerate(SIDES):
                sizes = (2 * int(str(static)), side * side, first)
                self.save_step(folder, f"step.{scale}", sizes, half)
                first += side * side
        else:
            self.save_step(folder, half=half)
        for scale in range(len(SIDES)):
            self.save_update(folder, scale)
        tiled = [helper.make_node("Tile", ["latent", "repeats"], ["image"])]
        latent = {"latent": ("float", ["n", CHANNELS, SIZE, SIZE])}
        save(folder / "decoder.onnx", tiled, latent, ["image"], {"repeats": ints(1, 1, 2, 2)})
        spec = {
            "schema": "arvg-trt/generator/v1",
            "family": "var",
            "patch_nums": SIDES,
            "num_classes": CLASSES,
            "vocab_size": VOCAB,
            "depth": DEPTH,
            "width": WIDTH,
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "latent_channels": CHANNELS,
            "latent_size": SIZE,
            "image_size": IMAGE,
            "defaults": DEFAULTS,
            **changes,
        }
        (folder / "generator.json").write_text(json.dumps(spec))
        return folder

    def save_condition(self, folder: Path) -> None:
        constants = {
            "x.table": self.class_emb[:, None],
            "modulation.table": self.modulation,
            "head_modulation.table": self.head_modulation,
        }
        names = ["x", "modulation", "head_modulation"]
        nodes = [helper.make_node("Gather", [f"{n}.table", "labels"], [n]) for n in names]
        save(folder / "condition.onnx", nodes, {"labels": ("int64", ["rows"])}, names, constants)

    def save_step(
        self,
        folder: Path,
        name: str = "step",
        sizes: tuple[object, object, object] = ("rows", "n", "past"),
        half: bool = False,
    ) -> None:
        """Key = x, value = 2x; a block adds gate * (mean key + mean value).

        `sizes` of rows, tokens and cached ones may be fixed; without cached ones there are no
        inputs for them. `half` rounds keys and values to float16.
        """
        node = helper.make_node
        rows, n, cached = sizes
        kind = "float16" if half else "float"
        inputs: dict[str, tuple[str, list[object]]] = {
            "x": ("float", [rows, n, WIDTH]),
            "position_ids": ("int64", [n]),
            "modulation": ("float", [rows, DEPTH, 6, WIDTH]),
            "head_modulation": ("float", [rows, 2, WIDTH]),
        }
        outputs = ["logits"]
        constants = {
            "split": ints(0, 0, HEADS, HEAD_DIM),
            "join": ints(0, 1, WIDTH),
            "two": np.float32(2),
            "axis1": ints(1),
            "axis2": ints(2),
            "positions": self.positions,
            "head": self.head,
        }
        nodes = [node("ReduceMean", ["modulation", "axis2"], ["gates"], keepdims=0)]
        current = "x"
        for i in range(DEPTH):
            constants[f"block{i}"] = np.array(i, np.int64)
            nodes += [
                node("Reshape", [current, "split"], [f"heads{i}"]),
                node("Transpose", [f"heads{i}"], [f"key{i}"], perm=[0, 2, 1, 3]),
                node("Mul", [f"key{i}", "two"], [f"value{i}"]),
                node("Gather", ["gates", f"block{i}"], [f"gate{i}"], axis=1),
                node("Unsqueeze", [f"gate{i}", "axis1"], [f"row_gate{i}"]),
            ]
            for what in ("key", "value"):
                past, present = f"past_{what}.{i}", f"present_{what}.{i}"
                outputs.append(present)
                nodes.append(node("Cast", [f"{what}{i}"], [f"new_{what}{i}"], to=KINDS[kind]))
                parts = [f"new_{what}{i}"]
                if cached:
                    inputs[past] = (kind, [rows, HEADS, cached, HEAD_DIM])
                    parts.insert(0, past)
                nodes += [
                    node("Concat", parts, [present], axis=2),
                    node("Cast", [present], [f"all_{what}{i}"], to=TensorProto.FLOAT),
                    node(
                        "ReduceMean", [f"all_{what}{i}", "axis2"], [f"mean_{what}{i}"], keepdims=0
                    ),
                    node("Reshape", [f"mean_{what}{i}", "join"], [f"seen_{what}{i}"]),
                ]
            nodes += [
                node("Add", [f"seen_key{i}", f"seen_value{i}"], [f"seen{i}"]),
                node("Mul", [f"seen{i}", f"row_gate{i}"], [f"change{i}"]),
                node("Add", [current, f"change{i}"], [f"x{i}"]),
            ]
            current = f"x{i}"
        nodes += [
            node("ReduceSum", ["head_modulation", "axis1"], ["shift"], keepdims=1),
            node("Add", [current, "shift"], ["shifted"]),
            node("Gather", ["positions", "position_ids"], ["position"]),
            node("Add", ["shifted", "position"], ["placed"]),
            node("MatMul", ["placed", "head"], ["logits"]),
        ]
        save(folder / f"{name}.onnx", nodes, inputs, outputs, constants, kind)

    def save_update(self, folder: Path, scale: int) -> None:
        """f_hat + (scale + 1) * mean code, everywhere; x from the mean code."""
        node = helper.make_node
        inputs = {
            "tokens": ("int64", ["n", SIDES[scale] ** 2]),
            "f_hat": ("float", ["n", CHANNELS, SIZE, SIZE]),
        }
        constants = {
            "codebook": self.codebook,
            "axis1": ints(1),
            "axes": ints(2, 3),
            "weight": np.float32(scale + 1),
        }
        nodes = [
            node("Gather", ["codebook", "tokens"], ["codes"]),
            node("ReduceMean", ["codes", "axis1"], ["code"], keepdims=0),
            node("Unsqueeze", ["code", "axes"], ["spread"]),
            node("Mul", ["spread", "weight"], ["change"]),
            node("Add", ["f_hat", "change"], ["f_hat_next"]),
        ]
        outputs = ["f_hat_next"]
        if scale + 1 < len(SIDES):
            constants |= {"word": self.word[scale], "shape": ints(0, SIDES[scale + 1] ** 2, WIDTH)}
            nodes += [
                node("MatMul", ["code", "word"], ["flat"]),
                node("Reshape", ["flat", "shape"], ["x"]),
            ]
            outputs.append("x")
        save(folder / f"update.{scale}.onnx", nodes, inputs, outputs, constants)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[str, list[object]]],
    outputs: list[str],
    constants: dict[str, Array],
    cache_kind: str = "float",
) -> None:
    """Outputs are float, but for `present_*`."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        path.stem,
        [info(name, KINDS[kind], shape) for name, (kind, shape) in inputs.items()],
        [
            info(
                name,
                KINDS[cache_kind if name.startswith("present") else "float"],
                [None] * RANKS.get(name, 4),
            )
            for name in outputs
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
