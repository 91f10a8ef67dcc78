"""Stage 1 for VAR: a transformer and its VQVAE -> all graphs of the generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ..artifacts import encode_json
from ..errors import ExportError
from ..export.var_form import DYNAMIC, VarForm
from ..runtime.generate.var_spec import VarDefaults, VarSpec
from ..sites import SiteMap
from .export_job import ExportJob
from .var_task import do_apart

if TYPE_CHECKING:
    from ..export.generators.var import VarTransformer
    from ..export.generators.var_config import VarConfig
    from ..export.tokenizers.var_vqvae import VarVqvae

PUBLISHED = VarDefaults(cfg=1.5, top_k=900, top_p=0.96)  # of the published evaluation


def export_var(job: ExportJob, folder: Path) -> dict[str, Any]:
    """Write the generator's graphs, sites.json and generator.json; returns the results.

    Tracing keeps what it saw until its process ends, and so would the mapped checkpoint stay.
    """
    job.progress("exporting", 0)
    parameters = do_apart("write", job, folder)
    job.progress("comparing with PyTorch", 2)
    parity = do_apart("compare", job, folder)
    job.progress("comparing with PyTorch", 3)
    return {
        "parameters": sum(parameters.values()),
        "parameters_of": parameters,
        "parity": parity,
        "parity_images": [p.name for p in job.images],
    }


def write_graphs(job: ExportJob, folder: Path) -> dict[str, int]:
    """All that the export leaves; returns the parameters of each half."""
    from ..export.var_export import export_var as export_transformer
    from ..export.var_tokenizer_export import export_var_tokenizer
    from ..export.weight_file import WeightFile

    model, vae = load_models(job)
    properties = {"arvg_trt.model": job.entry.name, "arvg_trt.family": "var"}
    with WeightFile(folder) as weights:
        sites = export_var_tokenizer(vae, weights, properties, model.word_embed, job.form)
        sites += export_transformer(model, weights, properties, job.form)
    (folder / "sites.json").write_bytes(encode_json(SiteMap(sites=sites)))
    (folder / "generator.json").write_bytes(encode_json(describe(model.config, vae, job.form)))
    return {
        "transformer": sum(p.numel() for p in model.parameters()),
        "vqvae": sum(p.numel() for p in vae.parameters()),
    }


def load_models(job: ExportJob) -> tuple[VarTransformer, VarVqvae]:
    """Both halves of the checkpoint, of one size and one codebook.

    Raises:
        ExportError: a half is missing, or they do not belong together.
    """
    from ..export.checkpoint import read_all
    from ..export.generators.var_checkpoint import INFINITE, load_var, split_parts
    from ..export.generators.var_config import read_config_json
    from ..export.tokenizers.var_vqvae import load_var_vqvae
    from ..export.zoo import VAR_VAE, check_config

    transformer, tokenizer = split_parts(read_all(job.paths, INFINITE))
    if not tokenizer:
        raise ExportError(
            "has no VQVAE",
            where=job.spec,
            do=f"put {VAR_VAE}.pth beside the transformer, and name the folder",
        )
    if not transformer:
        raise ExportError(
            "has a VQVAE and no transformer",
            where=job.spec,
            do=f"expected {job.entry.files[0][0]} beside it; name the folder",
        )
    told = read_config_json(job.paths[0].parent)
    model = load_var(transformer, job.spec, told)
    config = model.config
    check_config(job.entry, config, job.spec)
    vae = load_var_vqvae(tokenizer, job.spec, config.patch_nums)
    differ = [
        f"{name} is {getattr(config, name)} in the transformer, {getattr(vae.config, name)} in it"
        for name in ("vocab_size", "latent_channels")
        if getattr(config, name) != getattr(vae.config, name)
    ]
    if differ:
        raise ExportError(
            f"its VQVAE is another model's: {', '.join(differ)}",
            where=job.spec,
            do="use the VQVAE that the transformer was trained with",
        )
    return model, vae


def describe(config: VarConfig, vae: VarVqvae, form: VarForm = DYNAMIC) -> VarSpec:
    """What the runtime needs to know of the generator."""
    return VarSpec(
        patch_nums=config.patch_nums,
        num_classes=config.num_classes,
        vocab_size=config.vocab_size,
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
        latent_channels=config.latent_channels,
        latent_size=vae.config.latent_size,
        image_size=vae.config.image_size,
        defaults=replace(PUBLISHED, top_k=min(PUBLISHED.top_k, config.vocab_size)),
        static_batch=form.static_batch,
        kv_type=form.kv_type,
    )
