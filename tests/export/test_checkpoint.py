"""Reading checkpoints: every official form, and nothing that a stranger's pickle asks for."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint import read_all, read_tensors, resolve_checkpoint
from arvg_trt.export.tokenizers.cosmos import (
    FSQ,
    FSQ_LEVELS,
    CosmosConfig,
    CosmosTokenizer,
    infer_config,
    load_cosmos,
)
from arvg_trt.export.zoo import JIT_FILES, ZOO, check_config, find_model

SMALL = CosmosConfig(channels=32, channels_mult=(1, 1, 1), z_channels=48)
SMALL_CI = CosmosConfig(
    channels=32, channels_mult=(1, 1, 1), z_channels=16, latent_channels=16, levels=()
)


class Quantizer(nn.Module):
    """The buffers that the official quantizer registers as non-persistent."""

    def __init__(self) -> None:
        super().__init__()
        fsq = FSQ(FSQ_LEVELS)
        self.register_buffer("_levels", fsq.levels.flatten(), persistent=False)
        self.register_buffer("_basis", fsq.basis.flatten(), persistent=False)
        codebook = fsq.codes(torch.arange(64000, dtype=torch.int32).reshape(1, 250, 256))
        self.register_buffer(
            "implicit_codebook", codebook[0].flatten(1).T.bfloat16(), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self._levels.sum() * 0


class Half(nn.Module):
    """encoder.jit or decoder.jit in miniature: the same keys as the official archives."""

    def __init__(self, model: CosmosTokenizer, half: str) -> None:
        super().__init__()
        coder = getattr(model, half)
        patcher = coder.patcher if half == "encoder" else coder.unpatcher
        patcher.register_buffer("wavelets", torch.full((2,), 0.5**0.5), persistent=False)
        patcher.register_buffer("_arange", torch.arange(2), persistent=False)
        # Our patcher's own kernel is no buffer of the official archives.
        del patcher.weight
        setattr(self, half, coder)
        if half == "encoder":
            self.quant_conv, self.quantizer = model.quant_conv, Quantizer()
        else:
            self.post_quant_conv = model.post_quant_conv
            self.inv_quant = nn.Module()
            self.inv_quant.quantizer = Quantizer()

    def forward(self, x: Tensor) -> Tensor:
        return x


def script_halves(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Write encoder.jit and decoder.jit; returns the parameters they hold."""
    torch.manual_seed(0)
    model = CosmosTokenizer(SMALL).to(dtype)
    wanted = {k: v.clone() for k, v in model.state_dict().items()}
    for half in ("encoder", "decoder"):
        module = Half(model, half)
        torch.jit.trace(module, torch.zeros(1), check_trace=False).save(folder / f"{half}.jit")
    return wanted


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchscript_tensors_equal_the_state_dict_that_torch_loads(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    script_halves(tmp_path, dtype)
    for half in ("encoder", "decoder"):
        path = tmp_path / f"{half}.jit"
        wanted = torch.jit.load(path).state_dict()
        found = read_tensors(path)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert found[key].dtype == tensor.dtype
            assert torch.equal(found[key], tensor)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_encoder_and_decoder_archives_load_strictly_as_one_model(tmp_path: Path) -> None:
    wanted = script_halves(tmp_path, torch.bfloat16)
    paths = resolve_checkpoint(str(tmp_path), JIT_FILES)
    assert [p.name for p in paths] == ["encoder.jit", "decoder.jit"]
    model = load_cosmos(read_all(paths), "here")
    assert model.config == SMALL
    loaded = model.state_dict()
    assert all(torch.equal(loaded[k], v.float()) for k, v in wanted.items())


@pytest.mark.parametrize("config", [SMALL, SMALL_CI, *(e.config for e in ZOO)])
def test_the_configuration_is_inferred_from_the_keys(config: CosmosConfig) -> None:
    with torch.device("meta"):
        tensors = CosmosTokenizer(config).state_dict()
    assert infer_config(tensors, "here") == config


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_state_dict_files_load(tmp_path: Path, suffix: str) -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": state, "step": 3}, path)
    else:
        save_file(state, path)
    found = read_all(resolve_checkpoint(str(path), JIT_FILES))
    assert all(torch.equal(found[k], v) for k, v in state.items())


class Payload:
    """A pickle that would create a file if it were executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["pt", "jit"])
def test_a_payload_in_a_pickle_does_not_run(tmp_path: Path, kind: str) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / f"model.{kind}"
    if kind == "pt":
        torch.save({"state_dict": Payload(trap)}, path)
    else:
        script_halves(tmp_path, torch.float32)
        with zipfile.ZipFile(tmp_path / "encoder.jit") as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                body = good.read(name)
                bad.writestr(
                    name, pickle.dumps(Payload(trap)) if name.endswith("data.pkl") else body
                )
    with pytest.raises(ExportError, match="mkdir"):
        read_tensors(path)
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["jit", "pt", "safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / f"encoder.{kind}"
    state = CosmosTokenizer(SMALL).state_dict()
    if kind == "jit":
        script_halves(tmp_path, torch.float32)
    elif kind == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ExportError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.jit", "a.pt", "a.safetensors", "a.txt", "a.onnx"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("this is not a checkpoint, but it is long enough to look like one\n" * 20)
    with pytest.raises(ExportError):
        read_tensors(path)


def test_missing_and_extra_keys_are_named() -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["decoder.spurious.weight"] = state.pop("decoder.mid.attn_1.k.bias")
    with pytest.raises(ExportError) as caught:
        load_cosmos(state, "here")
    assert "missing decoder.mid.attn_1.k.bias" in str(caught.value)
    assert "unexpected decoder.spurious.weight" in str(caught.value)


def test_a_tensor_of_another_shape_is_named() -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["decoder.mid.attn_1.q.weight"] = torch.zeros(3, 3, 1, 1)
    with pytest.raises(ExportError, match=r"decoder\.mid\.attn_1\.q\.weight has shape"):
        load_cosmos(state, "here")


def test_nan_in_a_weight_is_named(tmp_path: Path) -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["encoder.mid.block_1.conv1.weight"][0, 0, 0, 0] = torch.nan
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=r"encoder\.mid\.block_1\.conv1\.weight"):
        read_all([tmp_path / "model.safetensors"])


def test_a_checkpoint_of_another_variant_is_refused() -> None:
    with pytest.raises(ExportError, match="it is a cosmos-di16x16"):
        check_config(find_model("cosmos-di8x8"), find_model("cosmos-di16x16").config, "checkpoint")


def test_a_checkpoint_of_another_family_is_refused() -> None:
    with pytest.raises(ExportError, match="is not a Cosmos image tokenizer"):
        infer_config({"quantize.embedding.weight": torch.zeros(4, 4)}, "here")


def test_attention_outside_the_middle_is_refused() -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["encoder.down.0.attn.0.q.weight"] = torch.zeros(1)
    with pytest.raises(ExportError, match=r"encoder\.down\.0\.attn"):
        infer_config(state, "here")


def test_odd_buffers_are_refused() -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["encoder.patcher.wavelets"] = torch.tensor([1.0, 1.0])
    with pytest.raises(ExportError, match="wavelets"):
        load_cosmos(state, "here")


def test_a_folder_without_a_complete_set_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "encoder.jit").write_bytes(b"x")
    with pytest.raises(ExportError, match=r"autoencoder\.jit"):
        resolve_checkpoint(str(tmp_path), JIT_FILES)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ExportError, match="cosmos-di8x8"):
        find_model("cosmos-d8x8")
