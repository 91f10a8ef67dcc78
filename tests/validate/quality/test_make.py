"""Networks of FID, LPIPS and DISTS against the code of torch-fidelity, lpips and DISTS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from arvg_trt.errors import ArvgError, ExportError
from arvg_trt.tests.validate.networks_of_tests import save_backbone, save_inception
from arvg_trt.tests.validate.oracles import published
from arvg_trt.validate.quality import make
from arvg_trt.validate.quality.make import installed_heads, make_network
from arvg_trt.validate.quality.open import open_feature_network, open_pair_network


def pictures(count: int, side: int, seed: int) -> np.ndarray:
    """Colours that vary smoothly, with noise, uint8 [N, H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, side // 8, side // 8, 3))
    smooth = np.kron(coarse, np.ones((1, 8, 8, 1)))
    return np.clip(smooth + rng.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def test_inception_gives_the_features_of_torch_fidelity(tmp_path: Path) -> None:
    wanted = save_inception(tmp_path / "weights.pth")
    sixth: list[torch.Tensor] = []
    wanted.Mixed_6d.branch1x1.register_forward_hook(lambda *got: sixth.append(got[2]))
    make_network("inception", tmp_path / "weights.pth", tmp_path / "net.onnx")
    network = open_feature_network(tmp_path / "net.onnx", 64, 0)
    assert network.widths == {"pool": 2048, "spatial": 2023, "logits": 1008}
    images = pictures(2, 64, 3)
    found = network.extract(images)
    pool, logits = wanted(tensor(images))
    spatial = sixth[0][:, :7].permute(0, 2, 3, 1).flatten(1)  # as TensorFlow flattens NHWC
    for name, theirs in (("pool", pool), ("logits", logits), ("spatial", spatial)):
        scale = float(theirs.abs().max())
        assert scale > 0.1
        np.testing.assert_allclose(found[name], theirs.numpy(), atol=2e-5 * scale)


def test_weights_of_another_inception_are_refused(tmp_path: Path) -> None:
    def refused(**tensors: torch.Tensor) -> str:
        torch.save(tensors, tmp_path / "weights.pth")
        with pytest.raises(ExportError) as caught:
            make_network("inception", tmp_path / "weights.pth", tmp_path / "net.onnx")
        assert not (tmp_path / "net.onnx").exists()
        return str(caught.value)

    assert "1000 classes, not 1008" in refused(**{"fc.weight": torch.zeros(1000, 2048)})
    assert "has no Conv2d_1a_3x3.conv.weight" in refused(**{"fc.weight": torch.zeros(1008, 2048)})
    with pytest.raises(ExportError, match="no such file"):
        make_network("inception", tmp_path / "absent.pth", tmp_path / "net.onnx")


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_lpips_is_that_of_its_authors(tmp_path: Path, name: str) -> None:
    library = published("lpips")
    tensors = save_backbone(tmp_path / "backbone.pth", name)
    theirs = library.LPIPS(net=name, pnet_rand=True, verbose=False)
    for key, value in tensors.items():
        index, part = key.removeprefix("features.").split(".")
        for piece in range(1, 6):
            layer = getattr(getattr(theirs.net, f"slice{piece}"), index, None)
            if layer is not None:
                getattr(layer, part).data.copy_(value)
    make_network(f"lpips-{name}", tmp_path / "backbone.pth", tmp_path / "net.onnx")
    network = open_pair_network(tmp_path / "net.onnx", "--lpips", 64, 0)
    a, b = pictures(3, 64, 4), pictures(3, 64, 5)
    b[2] = a[2]
    with torch.no_grad():
        wanted = theirs(*(tensor(v).float() / 127.5 - 1 for v in (a, b))).flatten().numpy()
    found = network.distance(a, b)
    assert found[:2].min() > 0.01 and found[2] == 0
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_dists_is_that_of_its_authors(tmp_path: Path) -> None:
    library = published("DISTS_pytorch.DISTS_pt")
    tensors = save_backbone(tmp_path / "backbone.pth", "vgg")
    theirs = library.DISTS(load_weights=False)
    for key, value in tensors.items():
        index, part = key.removeprefix("features.").split(".")
        for piece in range(1, 6):
            layer = getattr(getattr(theirs, f"stage{piece}"), index, None)
            if layer is not None:
                getattr(layer, part).data.copy_(value)
    heads = torch.load(installed_heads("dists"), weights_only=True)
    theirs.alpha.data, theirs.beta.data = heads["alpha"], heads["beta"]
    make_network("dists", tmp_path / "backbone.pth", tmp_path / "net.onnx")
    network = open_pair_network(tmp_path / "net.onnx", "--dists", 64, 0)
    a, b = pictures(3, 64, 6), pictures(3, 64, 7)
    b[2] = a[2]
    with torch.no_grad():
        wanted = theirs(*(tensor(v).float() / 255 for v in (a, b))).numpy()
    found = network.distance(a, b)
    assert found[:2].min() > 0.01 and abs(found[2]) < 1e-6
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_heads_that_are_missing_or_of_another_backbone_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_backbone(tmp_path / "backbone.pth", "alex")
    vgg = installed_heads("lpips-vgg")
    with pytest.raises(ExportError, match=r"lin1.model.1.weight is missing, or not \[1, 192"):
        make_network("lpips-alex", tmp_path / "backbone.pth", tmp_path / "net.onnx", vgg)
    with pytest.raises(ExportError, match="Inception has no heads"):
        make_network("inception", tmp_path / "backbone.pth", tmp_path / "net.onnx", vgg)
    monkeypatch.setattr(make, "find_spec", lambda name: None)
    with pytest.raises(ArvgError, match="pip install --no-deps lpips, or give --heads"):
        make_network("lpips-alex", tmp_path / "backbone.pth", tmp_path / "net.onnx")
