"""List the GSQ tokenizers that are known by name."""

from __future__ import annotations

from ..base import HubFile, Variant
from .config import PUBLISHED, GsqConfig

FILES = (("checkpoint.pt",), ("model.safetensors",))
HUB = "HelmholtzAI-FZJ/GSQ"

SIZES = tuple(
    Variant(
        f"gsq-{name.lower().replace('_', '-')}",
        "gsq",
        parameters,
        config,
        FILES,
        f"{HUB}-{name}",
        # Their pages name no licence; the configuration lies beside the weights.
        published=(
            HubFile(f"{HUB}-{name}", "checkpoint.pt"),
            HubFile(f"{HUB}-{name}", "config.yaml"),
        ),
    )
    for name, (config, parameters) in PUBLISHED.items()
)
MINI = Variant(
    "gsq-mini",
    "gsq",
    1_821_715,
    GsqConfig(32, (1, 1, 2, 3), num_res_blocks=1, latent_channels=16, groups=4, vocab_size=512),
    (("model.safetensors",),),
)
VARIANTS = (*SIZES, MINI)
UNSIZED = Variant("gsq", "gsq", 0, None, FILES)
