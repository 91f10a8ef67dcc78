"""An export leaves in its manifest only the keys that its kind of model has, in order."""

from __future__ import annotations

import msgspec

from arvg_trt.export.facts import CheckpointFacts, Difference, Parity, PartParameters, TokenParity
from arvg_trt.families.cosmos.config import CosmosConfig
from arvg_trt.families.cosmos.write import tokenizer_facts as cosmos_facts
from arvg_trt.families.gsq.config import GsqConfig
from arvg_trt.families.gsq.export import tokenizer_facts as gsq_facts

STEP = Difference("step", "logits", 0.5, 0.25, 1, 3)
IMAGE = Difference("decoder", "image", 0.5, 0.25)


def json_of(value: msgspec.Struct) -> str:
    """JSON as `run_stage` makes it of results."""
    return msgspec.json.encode(msgspec.to_builtins(value)).decode()


def test_a_generator_without_tokens_has_the_parameters_of_its_parts_and_no_encoder() -> None:
    found = CheckpointFacts(
        parameters=5,
        parameters_of=PartParameters(transformer=3, tokenizer=2),
        parity=Parity(graphs=(STEP,)),
        parity_images=("a.png",),
    )
    assert json_of(found) == (
        '{"parameters":5,"parameters_of":{"transformer":3,"tokenizer":2},"parity":{"graphs":'
        '[{"graph":"step","tensor":"logits","max":0.5,"mean":0.25,"tokens":1,"past":3}]},'
        '"parity_images":["a.png"]}'
    )


def test_a_tokenizer_says_what_later_stages_need_and_how_many_tokens_differ() -> None:
    found = CheckpointFacts(
        parameters=5,
        tokenizer=gsq_facts(GsqConfig()),
        parity=Parity(encoder=TokenParity(4, 1, 1), graphs=(IMAGE,)),
        parity_images=(),
    )
    assert json_of(found) == (
        '{"parameters":5,"tokenizer":{"stride":8,"discrete":true,"levels":[],"groups":1,'
        '"latent_channels":8,"codebook_size":65536},"parity":{"encoder":{"tokens":4,"differ":1,'
        '"at_boundary":1},"graphs":[{"graph":"decoder","tensor":"image","max":0.5,"mean":0.25,'
        '"tokens":null,"past":null}]},"parity_images":[]}'
    )


def test_a_tokenizer_without_groups_names_none() -> None:
    discrete, continuous = CosmosConfig(), CosmosConfig(levels=(), latent_channels=16)
    assert json_of(cosmos_facts(discrete)) == (
        '{"stride":8,"discrete":true,"levels":[8,8,8,5,5,5],"latent_channels":6,'
        '"codebook_size":64000}'
    )
    assert json_of(cosmos_facts(continuous)) == (
        '{"stride":8,"discrete":false,"levels":[],"latent_channels":16,"codebook_size":null}'
    )
    assert cosmos_facts(discrete).codes_per_cell == 1
    assert gsq_facts(GsqConfig(groups=4)).codes_per_cell == 4
