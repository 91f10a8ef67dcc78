"""Write the graphs of a toy and compare them with PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from arvg_trt.errors import ExportError
from arvg_trt.export.facts import Parity, PartParameters
from arvg_trt.export.shape import DYNAMIC, ExportShape
from arvg_trt.families.shared.isolated_export import GeneratorExporter
from arvg_trt.families.shared.job import (
    ExportJob,
    guided_labels,
    load_parts,
    write_parts,
)
from arvg_trt.runtime.spec import Defaults

from .spec import ToySpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from arvg_trt.families.llamagen_vq.model import LlamagenVq

    from .model import ToyTransformer

ROWS, TOKENS, PAST = 4, 7, 5  # sizes of the example inputs


class ToyExporter(GeneratorExporter):
    """Exports a toy and its LlamaGen VQ."""

    def check_shape(self, name: str, form: ExportShape) -> None:
        if form != DYNAMIC:
            raise ExportError("has no other form", where=name, do="leave it out")

    def write_graphs(self, job: ExportJob, folder: Path) -> PartParameters:
        from arvg_trt.families.shared.llama.write import site_rules
        from arvg_trt.families.shared.transformer_graphs import write_transformer
        from arvg_trt.families.shared.vq_export import export_vq

        model, vq = load_models(job)
        config = model.config
        spec = ToySpec(
            side=config.side,
            num_classes=config.num_classes,
            vocab_size=config.vocab_size,
            depth=config.depth,
            width=config.width,
            heads=config.heads,
            head_dim=config.head_dim,
            image_size=config.side * vq.config.stride,
            defaults=Defaults(cfg=1.0, top_k=0, top_p=1.0),
        )
        rules = site_rules(config.width)
        return write_parts(
            job,
            folder,
            (model, vq),
            spec,
            lambda weights, properties: (
                *export_vq(vq, weights, properties, side=config.side),
                *write_transformer(graphs(model), rules, weights, properties),
            ),
        )

    def compare_graphs(self, job: ExportJob, folder: Path) -> Parity:
        import torch

        from arvg_trt.export.parity import difference, require
        from arvg_trt.families.shared.vq_parity import check_vq_parity, compute_vq_references
        from arvg_trt.runtime.kv_cache import past_name
        from arvg_trt.runtime.sessions.open import mapped_session

        model, vq = load_models(job)
        config = model.config
        tokenizer = compute_vq_references(vq, job.pictures(config.side * vq.config.stride))
        tokens = np.tile(tokenizer.indices[0].reshape(-1)[:-1].astype(np.int64), (2, 1))
        labels = guided_labels(config.num_classes)
        with torch.inference_mode():
            wanted = model(labels, torch.from_numpy(tokens)).numpy()
        full = mapped_session(folder / "full.onnx").run(
            {"labels": labels.numpy(), "tokens": tokens}
        )
        sequence = np.concatenate([labels.numpy()[:, None] + config.vocab_size, tokens], axis=1)
        step, found = mapped_session(folder / "step.onnx"), []
        empty = np.zeros((2, config.heads, 0, config.head_dim), np.float32)
        cache = {
            f"past_{kind}.{i}": empty for kind in ("key", "value") for i in range(config.depth)
        }
        for k in range(config.length):
            feeds = {"tokens": sequence[:, k : k + 1], "position_ids": np.arange(k, k + 1)}
            outputs = step.run({**feeds, **cache})
            logits = outputs.pop("logits")
            found.append(difference("step", "logits", logits, wanted[:, k : k + 1], 1, k))
            cache = {past_name(name): array for name, array in outputs.items()}
        found.append(difference("full", "logits", full["logits"], wanted))
        for one in found:
            require(one)
        encoded, differences = check_vq_parity(folder, tokenizer)
        return Parity(encoder=encoded, graphs=(*differences, *found))


def load_models(job: ExportJob) -> tuple[ToyTransformer, LlamagenVq]:
    from arvg_trt.export.checkpoint.strict import build_strictly
    from arvg_trt.families.llamagen_vq.model import load_llamagen_vq

    from .model import ToyTransformer, infer

    return load_parts(
        job,
        "vq.pt",
        lambda tensors: build_strictly(lambda: ToyTransformer(infer(tensors)), tensors, job.spec),
        lambda tensors, _: load_llamagen_vq(tensors, job.spec),
        ("vocab_size",),
    )


def graphs(model: ToyTransformer) -> Iterator[tuple[str, ir.Model]]:
    import torch
    from torch.export import Dim

    from arvg_trt.export.passes.linears import NameParametersPass
    from arvg_trt.export.tracing import (
        example_caches,
        name_presents,
        past_names,
        present_names,
        trace,
    )
    from arvg_trt.families.shared.llama.write import norm_weights

    from .model import StepGraph

    config, rows, n = model.config, Dim("rows"), Dim("n")
    caches = example_caches(config.depth, (ROWS, config.heads, PAST, config.head_dim), DYNAMIC)
    shapes = [{0: rows, 2: Dim("past")}] * config.depth
    step = trace(
        StepGraph(model),
        (torch.zeros(ROWS, TOKENS, dtype=torch.int64), torch.arange(TOKENS), *caches),
        ({0: rows, 1: n}, {0: n}, shapes, shapes),
        ["tokens", "position_ids", *past_names(config.depth)],
        ["logits", *present_names(config.depth)],
    )
    name_presents(step, config.heads, config.head_dim)
    yield "step", NameParametersPass(norm_weights)(step).model
    tokens = torch.zeros(ROWS, config.length - 1, dtype=torch.int64)
    full = trace(
        model,
        (torch.zeros(ROWS, dtype=torch.int64), tokens),
        ({0: rows}, {0: rows}),
        ["labels", "tokens"],
        ["logits"],
    )
    yield "full", NameParametersPass(norm_weights)(full).model
