"""Open a bundle on this machine: check it, choose what runs here, unpack that into the cache.

Whatever takes a folder of graphs takes a bundle's file through `located`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from ...errors import ArvgError, BuildError, BundleError, IntegrityError, WorkspaceError
from ...extras import builder_release, installed_builders, require_packages
from ...workspace.facts import ModelKind
from ...workspace.stage import Reporter, SilentReporter
from ..devices import Device, this_device
from ..family import load_named
from ..packed.expand import megabytes
from ..packed.open import expanded
from ..sessions.placement import gpu_of
from ..sessions.providers import provider_problem
from .archive import BLOCK
from .cache import unpack_cached
from .choose import ChainStep, Choice, ProviderProblem, choose, refusal
from .failures import record_of, remember, remembered
from .layout import BundleFacts
from .reader import Bundle
from .trust import refuse_unsigned, require_trust

# Builds the engines of an unpacked kit for a GPU into the cache; it needs a builder's package.
BUILD_HERE = "arvg_trt.engines.bundle.build_here:build_here"

LONGEST_REASON = 300

TAR_MARK = slice(257, 262)  # where the header of a tar file says what it is
Wanted = Literal["tokenizer", "generator"]
TITLE_OF: dict[Wanted, str] = {
    "tokenizer": "image tokenizer",
    "generator": "generator of images",
}
# What takes a bundle, by the kind of its model.
TAKEN_BY: dict[ModelKind, str] = {
    "tokenizer": "`encode` and `decode` take a tokenizer's",
    "generator": "`generate` takes a generator's",
    "custom": "`arvg-trt unpack` gives its graphs, which ONNX Runtime opens",
}
Explain = Callable[[Choice], None]
Place = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class BundleAccess:
    """Say by which of some keys a bundle must be signed, and what is called with the choice."""

    keys: tuple[Path, ...] = ()
    explain: Explain | None = None


ANY = BundleAccess()


def access_by(require_keys: Place | Sequence[Place]) -> BundleAccess:
    """Return how a program's bundle is checked: by one of some keys, or by one alone."""
    if isinstance(require_keys, (str, PathLike)):
        require_keys = [require_keys]
    return BundleAccess(keys=tuple(Path(key) for key in require_keys)) if require_keys else ANY


class OpenedBundle(msgspec.Struct, frozen=True, kw_only=True):
    """Say where the graphs lie that run here, and why these; `signed_by` names the keys."""

    folder: Path
    step: ChainStep
    choice: Choice
    signed_by: tuple[str, ...]


def located(
    path: Path,
    device: str = "auto",
    access: BundleAccess = ANY,
    reporter: Reporter | None = None,
    *,
    wants: Wanted | None = None,
) -> Path:
    """Return a folder of graphs: that of a bundle's file that runs here, any other path itself.

    Packed weights are expanded, into the cache.

    Raises:
        IntegrityError: the bundle is damaged, changed, or not signed as required; or packed
            weights are damaged or of another model.
        WorkspaceError: there is no such path.
        BundleError: nothing in it runs on the device.
    """
    if not is_bundle(path):
        if access is not ANY:  # of a command: the path is the user's own
            if not path.exists():
                what, do = "no such file or folder", "name a bundle or a folder of graphs"
                raise WorkspaceError(what, where=str(path), do=do)
            refuse_unsigned(path, access.keys)
        return expanded(path, reporter)
    opened = open_bundle(
        path,
        device=device,
        require_keys=access.keys,
        reporter=reporter,
        wants=wants,
    )
    if access.explain is not None:
        access.explain(opened.choice)
    if reporter is not None and opened.step.step == "compatible engine":
        reporter.warn(f"{opened.step.group}: {opened.step.reason}")
    return opened.folder


def is_bundle(path: Path) -> bool:
    """Return whether a path is that of a tar file, as bundles are."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(BLOCK)[TAR_MARK] == b"ustar"


def open_bundle(
    path: Path,
    *,
    device: str = "auto",
    require_keys: Sequence[Path] = (),
    machine: Device | None = None,
    reporter: Reporter | None = None,
    wants: Wanted | None = None,
    problem_of: ProviderProblem = provider_problem,
) -> OpenedBundle:
    """Choose what of a bundle runs on a device, and unpack it into the cache.

    Where an engine cannot be built here, the next step is taken, and the choice says why; it is not
    tried again for some days. Where it
    is to be of a kind that one `wants`, another kind of model is refused.

    Raises:
        IntegrityError: it is damaged, changed, or not signed as required.
        BundleError: nothing in it runs on the device, no such device is there, or it holds another
            kind of model.
    """
    machine = machine or this_device()
    reporter = reporter or SilentReporter()
    index = gpu_of(device, machine)
    gpu = None if index is None else machine.gpus[index]
    with Bundle(path) as bundle:
        signed_by = require_trust(bundle, require_keys)
        if wants is not None:
            require_kind(bundle.facts, wants, path)
        asked_cpu = device.lower() == "cpu"  # which is the reason then, and no driver is missed
        seen = replace(machine, driver_problem="--device cpu was given") if asked_cpu else machine
        choice = choose(bundle.facts, seen, gpu, installed_builders(), problem_of)
        asked_gpu = device.lower() not in ("auto", "cpu")
        while True:
            step = choice.chosen
            if step is None or (asked_gpu and step.step == "CPU"):
                do = "`arvg-trt verify` lists what it holds; --device cpu takes its CPU engine"
                raise BundleError(refusal(bundle.facts, choice), where=str(path), do=do)
            group = next(each for each in bundle.facts.groups if each.name == step.group)
            folder = unpack_cached(bundle, group, megabytes(reporter)) / group.folder
            if step.step != "build here":
                break
            assert gpu is not None and choice.builder is not None  # else the step is closed
            release = builder_release(choice.builder)
            record = record_of(folder, choice.builder, release, machine, gpu)
            failed = remembered(record)
            if failed is not None:
                reporter.warn(f"{group.name}: {failed.text}")
                choice = choice.without(step, failed.text)
                continue
            try:
                require_packages("kit")
                folder = load_named(BUILD_HERE, f"the kit {group.name}")(
                    folder, gpu, choice.builder, reporter
                )
                break
            except IntegrityError:
                raise
            except (ArvgError, OSError, ImportError) as error:
                reason = f"it was not built: {' '.join(str(error).split())[:LONGEST_REASON]}"
                if isinstance(error, BuildError):  # and not memory, a disk or a package
                    remember(record, " ".join(str(error).split())[:LONGEST_REASON])
                reporter.warn(f"{group.name}: {reason}")
                choice = choice.without(step, reason)
    return OpenedBundle(folder=folder, step=step, choice=choice, signed_by=signed_by)


def require_kind(facts: BundleFacts, wants: Wanted, path: Path) -> None:
    """Raise BundleError for a bundle of another kind of model; say what takes it."""
    if facts.kind != wants:
        what = f"holds {facts.model}, which is no {TITLE_OF[wants]}"
        raise BundleError(what, where=str(path), do=TAKEN_BY[facts.kind])
