"""Stage 1 for VAR: a transformer and its VQVAE -> all graphs of the generator."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import encode_json
from ..sites import SiteMap
from .export_job import ExportJob, guided_labels, read_halves, require_pair

if TYPE_CHECKING:
    from ..export.generators.var import VarTransformer
    from ..export.generators.var_config import VarConfig
    from ..export.tokenizers.var_vqvae import VarVqvae

DEFAULTS = {"cfg": 1.5, "top_k": 900, "top_p": 0.96}  # of the published evaluation


def export_var(job: ExportJob, folder: Path) -> dict[str, Any]:
    """Write the generator's graphs, sites.json and generator.json; returns the results."""
    import torch

    from ..export.var_export import export_var as export_transformer
    from ..export.var_parity import check_var_parity, compute_references
    from ..export.var_tokenizer_export import export_var_tokenizer
    from ..export.var_tokenizer_parity import (
        check_tokenizer_parity,
        compute_tokenizer_references,
    )
    from ..export.weight_file import WeightFile

    job.progress("reading the checkpoint", 0)
    model, vae = load_models(job)
    job.progress("exporting", 1)
    properties = {"arvg_trt.model": job.entry.name, "arvg_trt.family": "var"}
    with WeightFile(folder) as weights:
        sites = export_var_tokenizer(vae, weights, properties, model.word_embed)
        sites += export_transformer(model, weights, properties)
    (folder / "sites.json").write_bytes(encode_json(SiteMap(sites=sites)))
    (folder / "generator.json").write_bytes(encode_json(describe(model.config, vae)))
    job.progress("comparing with PyTorch", 2)
    pictures = job.pictures(vae.config.image_size)
    tokenizer = compute_tokenizer_references(vae, model.word_embed, pictures)
    shown = torch.from_numpy(tokenizer.features[:1]).repeat(2, 1, 1)
    transformer = compute_references(model, guided_labels(model.config.num_classes), shown)
    parameters = {
        "transformer": sum(p.numel() for p in model.parameters()),
        "vqvae": sum(p.numel() for p in vae.parameters()),
    }
    del model, vae
    gc.collect()
    tokens, differences = check_tokenizer_parity(folder, tokenizer)
    differences += check_var_parity(folder, transformer)
    job.progress("comparing with PyTorch", 3)
    return job.results(parameters, tokens, differences)


def load_models(job: ExportJob) -> tuple[VarTransformer, VarVqvae]:
    """Both halves of the checkpoint, of one size and one codebook.

    Raises:
        ExportError: a half is missing, or they do not belong together.
    """
    from ..export.generators.var_checkpoint import INFINITE, load_var
    from ..export.generators.var_config import read_config_json
    from ..export.tokenizers.var_vqvae import load_var_vqvae
    from ..export.zoo import VAR_VAE, check_config

    transformer, tokenizer = read_halves(job, f"{VAR_VAE}.pth", INFINITE)
    told = read_config_json(job.paths[0].parent)
    model = load_var(transformer, job.spec, told)
    check_config(job.entry, model.config, job.spec)
    vae = load_var_vqvae(tokenizer, job.spec, model.config.patch_nums)
    require_pair(job, model.config, vae.config, ("vocab_size", "latent_channels"))
    return model, vae


def describe(config: VarConfig, vae: VarVqvae) -> dict[str, Any]:
    """What the runtime needs to know of the generator."""
    defaults = DEFAULTS | {"top_k": min(DEFAULTS["top_k"], config.vocab_size)}
    return {
        "schema": "arvg-trt/generator/v1",
        "family": "var",
        "patch_nums": list(config.patch_nums),
        "num_classes": config.num_classes,
        "vocab_size": config.vocab_size,
        "depth": config.depth,
        "width": config.width,
        "heads": config.heads,
        "head_dim": config.head_dim,
        "latent_channels": config.latent_channels,
        "latent_size": vae.config.latent_size,
        "image_size": vae.config.image_size,
        "defaults": defaults,
    }
