"""Published checkpoints: exactly their files are fetched, on they go, and digests are compared."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.resolve import is_hub_id, resolve_checkpoint
from arvg_trt.families.variants import MODELS, all_variants
from arvg_trt.runtime.family import HubFile

from ...command_line import arvg, assert_refused
from .hub import Served, unplug

REPO, OTHER = "someone/model", "another/tokenizer"
NAMES = (("model.pth", "vae.pth"), ("model.safetensors",))
BYTES = {(REPO, "model.pth"): bytes(range(256)) * 12_000, (OTHER, "vae.pth"): b"tokenizer" * 100}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


PUBLISHED = tuple(
    HubFile(repo, name, len(data), digest(data)) for (repo, name), data in BYTES.items()
)


def test_exactly_the_published_files_are_fetched(served: Served) -> None:
    served.files |= {**BYTES, (REPO, "model.safetensors"): b"x", (REPO, "optimizer.bin"): b"y"}
    heard: list[tuple[str, int, int]] = []
    found = resolve_checkpoint(
        REPO, NAMES, None, PUBLISHED, progress=lambda *said: heard.append(said)
    )
    assert [path.read_bytes() for path in found] == [*BYTES.values()]
    assert served.names == ["model.pth", "vae.pth"]
    assert ("fetching model.pth, MB", 3, 3) in heard
    again = resolve_checkpoint(REPO, NAMES, None, PUBLISHED)
    assert (again, served.names) == (found, ["model.pth", "vae.pth"])
    assert resolve_checkpoint(REPO, NAMES, None, PUBLISHED, cached=True) == found


def test_a_configuration_is_fetched_where_there_is_one(served: Served) -> None:
    files = (PUBLISHED[0], HubFile(REPO, "config.yaml"))
    served.files |= BYTES
    assert len(resolve_checkpoint(REPO, NAMES, None, files)) == 1
    served.files[REPO, "config.yaml"] = b"a: 1"
    (path,) = resolve_checkpoint(REPO, NAMES, None, files)
    assert (path.parent / "config.yaml").read_bytes() == b"a: 1"


def test_a_broken_connection_goes_on_where_it_stopped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # 10 MB, and so is what is lost
    served.files |= BYTES
    served.breaks_at = 1_000_000
    found = resolve_checkpoint(REPO, NAMES, None, PUBLISHED)
    assert found[0].read_bytes() == BYTES[REPO, "model.pth"]
    starts = [start for _, name, start in served.asked if name == "model.pth"]
    assert starts == [0, 1_000_000]


def test_a_file_that_is_not_the_published_one_is_refused(served: Served) -> None:
    served.files |= {**BYTES, (OTHER, "vae.pth"): b"changed"}
    with pytest.raises(ExportError, match=r"vae\.pth: is not the file that was published: its sha"):
        resolve_checkpoint(REPO, NAMES, None, PUBLISHED)


def test_a_published_file_that_is_gone_is_one_line(served: Served) -> None:
    served.files |= {(REPO, "model.pth"): BYTES[REPO, "model.pth"]}
    with pytest.raises(ExportError, match=r"another/tokenizer: lacks a file that it had"):
        resolve_checkpoint(REPO, NAMES, None, PUBLISHED)


def test_nothing_is_fetched_where_only_the_cache_is_asked(served: Served) -> None:
    served.files |= BYTES
    with pytest.raises(ExportError, match="not in its cache"):
        resolve_checkpoint(REPO, NAMES, None, PUBLISHED, cached=True)
    assert not served.asked


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("published", [True, False])
def test_a_gated_repository_says_where_its_licence_is(published: bool) -> None:
    files = (HubFile("someone/gated", "model.pth"),) if published else ()
    with pytest.raises(ExportError) as caught:
        resolve_checkpoint("someone/gated", NAMES, None, files)
    where = re.escape(f"{constants.ENDPOINT}/someone/gated")
    assert re.search(
        rf"is gated \(accept its licence at {where} and run `hf auth ", str(caught.value)
    )
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("published", [PUBLISHED, ()])
def test_without_a_network_there_is_one_line_at_once(
    published: tuple[HubFile, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def waited(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s before it tries again")

    monkeypatch.setattr("time.sleep", waited)
    with pytest.raises(ExportError) as caught:
        resolve_checkpoint(REPO, NAMES, None, published)
    assert "cannot be reached" in str(caught.value) and "\n" not in str(caught.value)
    assert not caplog.records


def test_what_is_in_the_cache_needs_no_network(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.files |= BYTES
    found = resolve_checkpoint(REPO, NAMES, None, PUBLISHED)
    unplug(monkeypatch)
    assert resolve_checkpoint(REPO, NAMES, None, PUBLISHED) == found


def test_a_hub_that_fails_in_the_middle_is_one_line(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client tries again by itself, and what it logs of that is not the user's."""
    served.files |= BYTES
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    always = property(lambda _: 1000, lambda *_: None)  # a read-only answer, however often
    monkeypatch.setattr(type(served), "breaks_at", always, raising=False)
    with pytest.raises(ExportError, match="could not be downloaded") as caught:
        resolve_checkpoint(REPO, NAMES, None, PUBLISHED)
    assert "\n" not in str(caught.value) and not caplog.records


def test_files_and_folders_are_no_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert is_hub_id("someone/model")
    assert not any(map(is_hub_id, ("folder/x", "someone/model.pth", str(tmp_path), "model")))


def test_what_is_known_of_published_files_is_consistent() -> None:
    for entry in all_variants():
        weights = [f.name for f in entry.published if not f.name.startswith("config.")]
        assert bool(weights) == (entry.hub is not None), entry.name
        if weights:
            assert tuple(weights) in entry.files and entry.published[0].repo == entry.hub
        for file in entry.published:
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
            assert file.repo == entry.elsewhere.get(file.name, entry.hub)
            # A checkpoint holds at least two bytes a parameter of the transformer or tokenizer.
            if file is entry.published[0] and file.bytes is not None:
                assert file.bytes > 1.9 * entry.parameters, entry.name


def test_models_say_what_is_fetched_and_under_which_terms() -> None:
    rows = {row["name"]: row for row in json.loads(arvg("models", "--json").out)["models"]}
    (weights, vae) = rows["var-d16"]["published"]
    assert (vae["name"], vae["license"], vae["login"]) == ("vae_ch160v4096z32.pth", "MIT", False)
    assert vae["bytes"] == 436_075_834 and vae["sha256"].startswith("7c3ec27ae28a3f87")
    assert rows["var-d16"]["download_bytes"] == weights["bytes"] + vae["bytes"]
    assert rows["par-l-4x"]["download_bytes"] is None
    (line,) = (ln for ln in arvg("models").out.splitlines() if ln.startswith("var-d16 "))
    assert "FoundationVision/var: var_d16.pth vae_ch160v4096z32.pth, 1.68 GB, MIT" in line
    (mini,) = (ln for ln in arvg("models").out.splitlines() if ln.startswith("var-mini "))
    assert "shipped" in mini and (MODELS / "var-mini").is_dir()


def test_an_export_fetches_what_is_published_and_no_more(served: Served, tmp_path: Path) -> None:
    repo = "nvidia/Cosmos-0.1-Tokenizer-DI8x8"
    names = ("autoencoder.jit", "encoder.jit", "decoder.jit", "model.safetensors", "config.json")
    served.files |= {(repo, name): b"no archive" for name in names}
    outcome = arvg("export", "cosmos-di8x8", tmp_path / "ws", "--checkpoint", repo)
    assert_refused(outcome, 4, "autoencoder.jit: is not a complete TorchScript archive")
    assert served.names == ["autoencoder.jit"]


def test_an_export_of_other_bytes_than_were_published_is_refused(
    served: Served, tmp_path: Path
) -> None:
    repo = "FoundationVision/var"
    served.files |= {(repo, f"{name}.pth"): b"x" for name in ("var_d16", "vae_ch160v4096z32")}
    outcome = arvg("export", "var-d16", tmp_path / "ws", "--checkpoint", repo)
    assert_refused(
        outcome, 4, "var_d16.pth: is not the file that was published", "4f6151aad91c94e0"
    )
    assert served.names == ["var_d16.pth"]
    assert not (tmp_path / "ws").exists()
