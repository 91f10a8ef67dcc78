"""The shapes that engines of generators take, and the targets that their weights need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from arvg_trt.engines.formats import precision_text, required_formats
from arvg_trt.engines.tensorrt.profiles import generator_profiles, tokenizer_profiles
from arvg_trt.errors import BuildError
from arvg_trt.families.llamagen.spec import LlamagenSpec
from arvg_trt.families.mar.spec import MarDefaults, MarSpec
from arvg_trt.families.par.spec import ParSpec
from arvg_trt.families.rar.spec import RarDefaults, RarSpec
from arvg_trt.families.var.spec import VarSpec
from arvg_trt.numerics.scheme import ActivationFormat, Plan, SitePlan, WeightFormat
from arvg_trt.recipe.build import BuildOptions
from arvg_trt.runtime.raster_spec import RasterSpec
from arvg_trt.runtime.spec import Defaults, GeneratorSpec
from arvg_trt.workspace.facts import TokenizerFacts
from arvg_trt.workspace.files import encode_json

SIZES = {"num_classes": 10, "vocab_size": 64, "depth": 2, "width": 8, "heads": 2, "head_dim": 4}
DEFAULTS = {"cfg": 2.0, "top_k": 5, "top_p": 0.9}
VAR = VarSpec(
    patch_nums=(1, 2, 4),
    latent_channels=3,
    latent_size=4,
    image_size=32,
    defaults=Defaults(**DEFAULTS),
    **SIZES,
)
RAR = RarSpec(side=4, image_size=32, defaults=RarDefaults(cfg_power=1.0, **DEFAULTS), **SIZES)
PAR = ParSpec(side=4, image_size=32, group=4, defaults=Defaults(**DEFAULTS), **SIZES)
LLAMAGEN = LlamagenSpec(side=4, image_size=32, defaults=Defaults(**DEFAULTS), **SIZES)
MAR = MarSpec(
    side=4,
    latent_channels=3,
    num_classes=10,
    image_size=32,
    defaults=MarDefaults(cfg=2.0, iterations=8),
)
CACHE = ("rows", 2, "past", 4)


def write(
    folder: Path, spec: GeneratorSpec, graphs: dict[str, dict[str, Sequence[int | str]]]
) -> None:
    """An export folder whose graphs have these inputs, and nothing else."""
    (folder / "generator.json").write_bytes(encode_json(spec))
    for name, inputs in graphs.items():
        info = helper.make_tensor_value_info
        ends = [info(key, TensorProto.FLOAT, list(shape)) for key, shape in inputs.items()]
        nodes = [helper.make_node("Identity", [ends[0].name], ["out"])]
        out = info("out", TensorProto.FLOAT, None)
        save(helper.make_model(helper.make_graph(nodes, "g", ends, [out])), folder / f"{name}.onnx")


def test_var_grows_from_one_token_without_a_cache_to_the_last_scale(tmp_path: Path) -> None:
    graphs: dict[str, dict[str, Sequence[int | str]]] = {
        "step": {"x": ("rows", "n", 8), "position_ids": ("n",), "past_key.0": CACHE},
        "decoder": {"latent": ("batch", 3, 4, 4)},
        "full": {"labels": ("rows",)},
        "encoder": {"image": ("batch", 3, "h", "w")},
    }
    write(tmp_path, VAR, graphs)
    assert generator_profiles(tmp_path, 3) == {
        "decoder": {"latent": ((1, 3, 4, 4), (3, 3, 4, 4), (3, 3, 4, 4))},
        "step": {
            "x": ((1, 1, 8), (6, 16, 8), (6, 16, 8)),
            "position_ids": ((1,), (16,), (16,)),
            "past_key.0": ((1, 2, 0, 4), (6, 2, 5, 4), (6, 2, 5, 4)),
        },
    }


def test_rar_steps_over_one_or_two_tokens_and_modulates_some_ahead(tmp_path: Path) -> None:
    graphs: dict[str, dict[str, Sequence[int | str]]] = {
        "condition": {"labels": ("rows",), "position_ids": ("n",)},
        "step": {"tokens": ("rows", "n"), "past_key.0": CACHE},
        "decoder": {"indices": ("batch", "h", "w")},
    }
    write(tmp_path, RAR, graphs)
    found = generator_profiles(tmp_path, 1)
    assert found["condition"]["position_ids"] == ((1,), (32,), (64,))
    assert found["step"]["tokens"] == ((1, 1), (2, 1), (2, 2))
    assert found["step"]["past_key.0"] == ((1, 2, 0, 4), (2, 2, 16, 4), (2, 2, 16, 4))
    assert found["decoder"]["indices"] == ((1, 4, 4), (1, 4, 4), (1, 4, 4))


def test_par_steps_over_a_token_or_a_group(tmp_path: Path) -> None:
    write(tmp_path, PAR, {"step": {"tokens": ("rows", "n"), "past_key.0": CACHE}})
    assert generator_profiles(tmp_path, 1)["step"] == {
        "tokens": ((1, 1), (2, 4), (2, 4)),
        "past_key.0": ((1, 2, 0, 4), (2, 2, 12, 4), (2, 2, 12, 4)),
    }


def test_llamagen_takes_one_token_and_never_the_last(tmp_path: Path) -> None:
    write(tmp_path, LLAMAGEN, {"step": {"tokens": ("rows", 1), "past_key.0": CACHE}})
    assert generator_profiles(tmp_path, 1)["step"] == {
        "tokens": ((1, 1), (2, 1), (2, 1)),
        "past_key.0": ((1, 2, 0, 4), (2, 2, 15, 4), (2, 2, 15, 4)),
    }


def test_mar_begins_with_no_token_known(tmp_path: Path) -> None:
    graphs: dict[str, dict[str, Sequence[int | str]]] = {
        "pass": {"tokens": ("rows", "n", 3)},
        "denoise": {"x": ("m", 3), "time": (1,)},
    }
    write(tmp_path, MAR, graphs)
    assert generator_profiles(tmp_path, 1) == {
        "denoise": {"x": ((1, 3), (4, 3), (32, 3))},
        "pass": {"tokens": ((1, 0, 3), (2, 15, 3), (2, 15, 3))},
    }


def test_a_family_that_describes_no_steps_gets_no_others_shapes() -> None:
    class NewSpec(RasterSpec, frozen=True, kw_only=True):
        pass

    new = NewSpec(side=4, image_size=32, **SIZES)
    assert new.axis_sizes("step", 1) == {"h": (4, 4, 4), "w": (4, 4, 4)}


def test_an_axis_that_no_family_has_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, PAR, {"step": {"tokens": ("rows", "length")}})
    with pytest.raises(BuildError, match=r"step\.onnx: input tokens has the axis length, whose"):
        generator_profiles(tmp_path, 1)


def test_a_tokenizers_profiles_are_of_its_halves_alone() -> None:
    told = TokenizerFacts(stride=8, discrete=True, latent_channels=4)
    with pytest.raises(BuildError, match="lookup: is no graph of an image tokenizer"):
        tokenizer_profiles("lookup", BuildOptions(), told)


def test_graphs_of_fixed_shapes_need_no_profile(tmp_path: Path) -> None:
    write(tmp_path, VAR, {"step.0": {"x": (2, 1, 8)}})
    assert generator_profiles(tmp_path, 1) == {"step.0": {}}


INT8 = ActivationFormat(bits=8, scale=0.1)
FP8 = ActivationFormat(bits=8, grid="fp8", scale=0.1)
INT4 = WeightFormat(bits=4, granularity="per_block", block=64)


@pytest.mark.parametrize(
    ("weight", "activation", "op", "wanted", "text"),
    [
        (WeightFormat(bits=8), INT8, "MatMul", "int8_gemm", "INT8 + FP16"),
        (WeightFormat(bits=8), INT8, "Conv", "int8_conv", "INT8 + FP16"),
        (WeightFormat(bits=8, grid="fp8"), FP8, "MatMul", "fp8", "FP8 + FP16"),
        (WeightFormat(bits=4, grid="log2"), FP8, "MatMul", "fp8", "FP8 + FP16"),
        (None, FP8, "MatMul", "fp8", "FP8 + FP16"),
        (INT4, None, "MatMul", "int4", "W4 + FP16"),
        (WeightFormat(bits=8), None, "MatMul", "int8_weights", "W8 + FP16"),
        (WeightFormat(bits=8), None, "Conv", None, "W8 + FP16"),
        (WeightFormat(bits=4, grid="log"), None, "MatMul", None, "FP16"),
        (None, None, "MatMul", None, "FP16"),
    ],
)
def test_a_site_asks_of_its_target_what_its_graph_holds(
    weight: WeightFormat | None,
    activation: ActivationFormat | None,
    op: str,
    wanted: str | None,
    text: str,
) -> None:
    entry = SitePlan(name="a", weight=weight, activation=activation)
    assert required_formats(Plan(sites=(entry,)), {"a": op}).get("a") == wanted
    assert precision_text([entry], "float16") == text
    assert precision_text([entry], "bfloat16") == text.replace("FP16", "BF16")
