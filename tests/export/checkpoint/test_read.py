"""Reading checkpoints: every official form, and nothing that a stranger's pickle asks for."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.read import read_all, read_tensors
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.families.cosmos.checkpoint import load_cosmos
from arvg_trt.families.cosmos.config import FSQ_LEVELS, CosmosConfig
from arvg_trt.families.cosmos.model import FSQ, CosmosTokenizer
from arvg_trt.families.cosmos.variants import JIT_FILES
from arvg_trt.families.variants import check_config, find_model

SMALL = CosmosConfig(channels=32, channels_mult=(1, 1, 1), z_channels=48)


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


class Whole(nn.Module):
    """autoencoder.jit in miniature."""

    def __init__(self, model: CosmosTokenizer) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)

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


class Mixed(nn.Module):
    """Several types, one storage under two names, and a view into another's storage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.tied = self.weight
        self.row = nn.Parameter(self.weight.data[2])
        self.turned = nn.Parameter(self.weight.data.T)
        self.register_buffer("counts", torch.arange(5, dtype=torch.int32))
        self.register_buffer("nothing", torch.empty(0))
        self.inner = nn.Sequential(nn.Linear(2, 3).bfloat16(), nn.BatchNorm1d(3).half())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight.sum() + self.counts.sum()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_module_gives_its_types_ties_and_views(tmp_path: Path) -> None:
    path = tmp_path / "model.jit"
    torch.jit.script(Mixed()).save(path)
    wanted = torch.jit.load(path).state_dict()
    found = read_tensors(path)
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor)
    shared = {found[key].untyped_storage().data_ptr() for key in ("weight", "tied", "row")}
    assert len(shared) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_whole_archive_is_preferred_and_equals_the_halves(tmp_path: Path) -> None:
    script_halves(tmp_path, torch.bfloat16)
    halves = read_all(resolve_checkpoint(str(tmp_path), JIT_FILES))
    torch.manual_seed(0)
    model = CosmosTokenizer(SMALL).bfloat16()
    whole = Whole(model)
    torch.jit.trace(whole, torch.zeros(1), check_trace=False).save(tmp_path / "autoencoder.jit")
    paths = resolve_checkpoint(str(tmp_path), JIT_FILES)
    assert [p.name for p in paths] == ["autoencoder.jit"]
    found = read_all(paths)
    parameters = model.state_dict().keys()
    assert parameters <= found.keys()
    assert all(torch.equal(found[k], halves[k]) for k in parameters)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_encoder_and_decoder_archives_load_strictly_as_one_model(tmp_path: Path) -> None:
    wanted = script_halves(tmp_path, torch.bfloat16)
    paths = resolve_checkpoint(str(tmp_path), JIT_FILES)
    assert [p.name for p in paths] == ["encoder.jit", "decoder.jit"]
    model = load_cosmos(read_all(paths), "here")
    assert model.config == SMALL
    loaded = model.state_dict()
    assert all(torch.equal(loaded[k], v.float()) for k, v in wanted.items())


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


def save_small(path: Path) -> None:
    """One convolution in the form that the suffix names."""
    module = nn.Conv2d(3, 8, 3)
    if path.suffix == ".jit":
        torch.jit.script(module).save(path)
    elif path.suffix == ".pt":
        torch.save(module.state_dict(), path)
    else:
        save_file(module.state_dict(), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["jit", "pt", "safetensors"])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 0.5), (0, 0.99), (0.3, 1), (0.9, 1)])
def test_a_file_that_lost_a_part_is_named(
    tmp_path: Path, kind: str, first: float, last: float
) -> None:
    path = tmp_path / f"encoder.{kind}"
    save_small(path)
    whole = path.read_bytes()
    path.write_bytes(whole[int(len(whole) * first) : int(len(whole) * last)])
    with pytest.raises(ExportError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(
            b"c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.", "contain", id="cycle"
        ),
        pytest.param(b"]q\x00.", "no tensors", id="no module"),
        pytest.param(b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "builtins.eval", id="eval"),
        pytest.param(b"X\x01\x00\x00\x00aQ.", "damaged", id="storage without a type"),
    ],
)
def test_a_crafted_module_tree_is_refused(tmp_path: Path, body: bytes, says: str) -> None:
    save_small(tmp_path / "good.jit")
    path = tmp_path / "bad.jit"
    with zipfile.ZipFile(tmp_path / "good.jit") as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            is_tree = name.endswith("/data.pkl")
            bad.writestr(name, b"\x80\x02" + body if is_tree else good.read(name))
    with pytest.raises(ExportError, match=says):
        read_tensors(path)


@pytest.mark.parametrize("name", ["a.jit", "a.pt", "a.safetensors", "a.onnx"])
def test_an_onnx_model_is_refused(tmp_path: Path, name: str) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [output])
    onnx.save(onnx.helper.make_model(graph), tmp_path / name)
    with pytest.raises(ExportError, match="not a"):
        read_tensors(tmp_path / name)


def test_a_wrapper_that_leaves_a_choice_names_it(tmp_path: Path) -> None:
    state = nn.Linear(1, 1).state_dict()
    torch.save({"model": state, "state_dict": state}, tmp_path / "a.pt")
    with pytest.raises(ExportError, match="several state_dicts: state_dict, model"):
        read_tensors(tmp_path / "a.pt")


def test_a_wrapper_that_contains_itself_ends(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["state_dict"] = endless
    torch.save(endless, tmp_path / "a.pt")
    with pytest.raises(ExportError, match="no state_dict"):
        read_tensors(tmp_path / "a.pt")


def test_files_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    for name, value in (("a.pt", 1.0), ("b.pt", 2.0)):
        torch.save({"quant_conv.bias": torch.tensor([value])}, tmp_path / name)
    with pytest.raises(ExportError, match=r"quant_conv\.bias differs"):
        read_all([tmp_path / "a.pt", tmp_path / "b.pt"])


@pytest.mark.parametrize("name", ["a.jit", "a.pt", "a.safetensors", "a.txt", "a.onnx"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("this is not a checkpoint, but it is long enough to look like one\n" * 20)
    with pytest.raises(ExportError):
        read_tensors(path)


def test_nan_is_named_with_the_number_of_tensors(tmp_path: Path) -> None:
    state = CosmosTokenizer(SMALL).state_dict()
    state["encoder.mid.block_1.conv1.weight"][0, 0, 0, 0] = torch.nan
    state["quant_conv.bias"][:] = torch.inf
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=r"conv1\.weight and 1 more tensor"):
        read_all([tmp_path / "model.safetensors"])


def test_a_checkpoint_of_another_variant_is_refused() -> None:
    with pytest.raises(ExportError, match="it is a cosmos-di16x16"):
        check_config(find_model("cosmos-di8x8"), find_model("cosmos-di16x16").config, "checkpoint")


def test_a_folder_without_a_complete_set_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "encoder.jit").write_bytes(b"x")
    with pytest.raises(ExportError, match=r"autoencoder\.jit"):
        resolve_checkpoint(str(tmp_path), JIT_FILES)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ExportError, match="cosmos-di8x8"):
        find_model("cosmos-d8x8")


@pytest.mark.parametrize("spec", ["a/b..c", "a/b--c", "a/.b", "a/b.git"])
def test_an_impossible_hub_id_is_refused_before_any_request(spec: str) -> None:
    with pytest.raises(ExportError, match="neither a file nor a Hugging Face id"):
        resolve_checkpoint(spec, JIT_FILES)


def test_offline_the_halves_in_the_cache_are_found(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match="not in its cache"):
        resolve_checkpoint("someone/model", JIT_FILES)
    repo = empty_cache / "models--someone--model"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    for name in ("encoder.jit", "decoder.jit"):
        (snapshot / name).write_bytes(b"x")
    found = resolve_checkpoint("someone/model", JIT_FILES)
    assert [p.name for p in found] == ["encoder.jit", "decoder.jit"]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("repo", "says"),
    [
        ("someone/gated", "accept its licence"),
        ("someone/gone", "no such repository"),
        ("someone/other", r"expected autoencoder\.jit, or encoder\.jit with decoder\.jit"),
    ],
)
def test_what_the_hub_answers_becomes_what_to_do(repo: str, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        resolve_checkpoint(repo, JIT_FILES)


def test_an_archive_whose_names_are_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\u00e9/data.pkl", b"")
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xfe"))
    with pytest.raises(ExportError):
        read_tensors(path)
