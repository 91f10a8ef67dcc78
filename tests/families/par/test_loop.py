"""PAR's steps, as many as published."""

from __future__ import annotations

import pytest

from arvg_trt.families.par.config import PUBLISHED
from arvg_trt.families.par.spec import ParSpec
from arvg_trt.runtime.spec import Defaults


@pytest.mark.parametrize(("name", "steps"), [("xl-4x", 147), ("3b-16x", 51)])
def test_steps_are_as_many_as_published(name: str, steps: int) -> None:
    config = PUBLISHED[name]
    spec = ParSpec(
        side=config.side,
        group=config.group,
        num_classes=config.num_classes,
        vocab_size=config.vocab_size,
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
        image_size=384,
        defaults=Defaults(cfg=1.5, top_k=0, top_p=1.0),
    )
    assert spec.steps == steps
    assert spec.special.tolist() == [config.special_tokens + k for k in range(config.special)]
