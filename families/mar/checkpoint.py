"""Load the tensors of a MAR checkpoint strictly into the transformers they belong to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import ExportError
from ...export.checkpoint.config_json import require_agreement, require_known
from ...export.checkpoint.strict import build_strictly, count_items, locating, require_needed
from .config import MarConfig, MarJson, published_heads
from .model import MarTransformer

NEEDED = {  # key: axes
    "class_emb.weight": 2,
    "z_proj.weight": 2,
    "encoder_pos_embed_learned": 3,
    "diffusion_pos_embed_learned": 3,
    "encoder_blocks.0.mlp.fc1.weight": 2,
    "decoder_blocks.0.mlp.fc1.weight": 2,
    "decoder_embed.weight": 2,
    "diffloss.net.time_embed.mlp.0.weight": 2,
}


def infer_mar_config(
    tensors: Mapping[str, Tensor], where: str, config_json: MarJson | None = None
) -> MarConfig:
    """Return the configuration that a checkpoint's keys and shapes imply.

    `config_json` is the `config.json` beside it. No shape tells the heads: they are taken from
    there, else from the published size with this depth and width. The scale of the latents and the
    norms' eps are the official code's unless given. What shapes tell must agree with `config_json`.

    Raises:
        ExportError: not a MAR, sizes that contradict each other or `config_json`, patches of
            several latents, or a size that was not published and whose heads `config_json` leaves
            open.
    """
    require_needed(tensors, NEEDED, "a MAR", where)
    said = {} if config_json is None else config_json.config_values()
    if config_json is not None and config_json.patch_size not in (None, 1):
        raise ExportError(
            f"has patch_size {config_json.patch_size}, "
            "and tokens of several latents are not supported",
            where=where,
            do="use a MAR of patch_size 1",
        )
    classes, width = tensors["class_emb.weight"].shape
    decoder_width = tensors["decoder_embed.weight"].shape[0]
    length = tensors["diffusion_pos_embed_learned"].shape[1]
    head_width, frequencies = tensors["diffloss.net.time_embed.mlp.0.weight"].shape
    depths = [count_items(tensors, rf"{half}_blocks\.(\d+)\.") for half in ("encoder", "decoder")]
    heads = []
    for half, name, depth, wide in (
        ("encoder", "heads", depths[0], width),
        ("decoder", "decoder_heads", depths[1], decoder_width),
    ):
        value = said.get(name, published_heads(depth, wide))
        size = f"{depth} {half} blocks of width {wide}"
        require_known(f"{half}_num_heads", value, size, where)
        heads.append(int(str(value)))
    with locating(where):
        config = MarConfig(
            encoder_depth=depths[0],
            decoder_depth=depths[1],
            width=width,
            heads=heads[0],
            head_depth=count_items(tensors, r"diffloss\.net\.res_blocks\.(\d+)\."),
            head_width=head_width,
            hidden=tensors["encoder_blocks.0.mlp.fc1.weight"].shape[0],
            length=length,
            buffer=tensors["encoder_pos_embed_learned"].shape[1] - length,
            latent_channels=tensors["z_proj.weight"].shape[1],
            num_classes=classes,
            frequencies=frequencies,
            decoder_width=decoder_width,
            decoder_heads=heads[1],
            decoder_hidden=tensors["decoder_blocks.0.mlp.fc1.weight"].shape[0],
            **{k: said[k] for k in ("latent_scale", "norm_eps") if k in said},  # type: ignore[arg-type]
        )
    require_agreement(config, said, where)
    return config


def load_mar(
    tensors: Mapping[str, Tensor], where: str, config_json: MarJson | None = None
) -> MarTransformer:
    """Return a float32 model in eval mode with the transformer's tensors, loaded strictly.

    float32 tensors are taken as they are: those of a mapped file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_mar_config(tensors, where, config_json)
    return build_strictly(lambda: MarTransformer(config), tensors, where)
