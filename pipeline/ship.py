"""`verify`, `unpack`, `keygen`, and what `build` and `validate` do with a bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import msgspec

from ..errors import BuildError, IntegrityError, WorkspaceError
from ..extras import installed_builders
from ..runtime.bundle.cache import holds, unpack_cached
from ..runtime.bundle.choose import ChainStep, choose, usable_builder
from ..runtime.bundle.keys import generate_key, private_pem, public_pem
from ..runtime.bundle.layout import BundleFile
from ..runtime.bundle.packed_groups import expanded_list, read_indexes
from ..runtime.bundle.reader import Bundle
from ..runtime.bundle.sizes import builders, image_sizes
from ..runtime.bundle.trust import refuse_unsigned, require_trust
from ..runtime.bundle.unpack import extract_new
from ..runtime.devices import Device, Gpu, this_device
from ..runtime.packed.expand import megabytes as expanding
from ..runtime.packed.layout import is_packed
from ..runtime.packed.open import expand_new, require_no_folder
from ..runtime.trt_compat import Backend, require_kit
from ..workspace.files import atomic_write, named
from ..workspace.stage import Reporter, StageResult, in_stage
from ..workspace.workspace import Workspace
from .bundle import megabytes, password


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """Say what a bundle is, who signed it and what of it runs here, ``chosen`` first of all."""

    bundle: Path
    digest: str
    name: str
    model: str
    signatures: tuple[str, ...]
    signed_by: tuple[str, ...]
    chain: tuple[ChainStep, ...]
    chosen: str | None
    image_sizes: dict[str, int] = {}  # of engines of a tokenizer that take one size, by group
    builders: dict[str, str] = {}  # with the version, by group


def build_bundled(
    path: Path,
    keys: Sequence[Path],
    output: Path | None,
    backend: str | None,
    targets: tuple[str, ...],
    allow_unproved: bool,
    reporter: Reporter,
) -> list[StageResult]:
    """Build engines from a bundle's kit, in a new workspace or in the cache for this machine's GPU.

    Without a name the back end is the one whose engines run here.

    Raises:
        ArvgError: a package that building needs is not installed.
        IntegrityError: the bundle is damaged, changed, or not signed as required.
        BuildError: there is no kit, no builder or no such target, or a graph does not compile.
        WorkspaceError: the workspace has a model of its own, or another process works in it.
    """
    require_kit(backend)
    from ..engines.bundle.build_here import build_cached, build_kit

    device = this_device()
    gpu = next(iter(device.gpus), None)
    kind = builder_of(path, backend, device, gpu)
    with Bundle(path) as bundle:
        require_trust(bundle, keys)
        group = bundle.facts.group("kit")
        if group is None:
            raise BuildError("has no kit to build from", where=str(path), do="pack it with one")
        require_place(output, targets, device, gpu)
        kit = unpack_cached(bundle, group, expanding(reporter)) / group.folder
        name = bundle.facts.quantization
    if output is None:
        assert gpu is not None  # as was required
        return build_cached(kit, kind, targets, gpu, reporter, allow_unproved=allow_unproved)
    with Workspace(output) as workspace:
        if (output / "export").exists():
            what = "is a workspace with a model of its own"
            raise WorkspaceError(what, where=str(output), do="name a new folder")
        return build_kit(
            kit,
            kind,
            targets or ((gpu.sm,) if gpu else ()),
            workspace.folder("engines", name),
            in_stage(reporter, "build"),
            gpu="" if gpu is None else gpu.name,
            allow_unproved=allow_unproved,
        )


def builder_of(path: Path, backend: str | None, device: Device, gpu: Gpu | None) -> Backend:
    """Return the back end that builds a kit: the one named, the one whose engines run here, or any.

    Raises:
        BuildError: it is none that devices build with.
    """
    builders = installed_builders()
    first = next(iter(builders), "tensorrt")
    kind = backend or usable_builder(device, gpu, builders) or first
    if kind not in get_args(Backend):
        what, do = "is built on a device by TensorRT", "give --backend tensorrt or tensorrt_rtx"
        raise BuildError(what, where=str(path), do=do)
    return cast(Backend, kind)


def require_place(
    output: Path | None, targets: Sequence[str], device: Device, gpu: Gpu | None
) -> None:
    """Raise BuildError where nothing says for which GPU engines are, or where they are to lie."""
    if gpu is not None:
        return
    if not targets:
        what = f"no --target is given, and here is no GPU to build for: {device.driver_problem}"
        place = "" if output else "name a new folder before --from, and "
        do = f"{place}give --backend tensorrt_rtx --target NAME, as `arvg-trt targets` lists them"
        raise BuildError(what, do=f"{do}; a device with a GPU needs neither and finds its own")
    if output is None:
        what = f"WORKSPACE is missing, and here is no GPU to build for: {device.driver_problem}"
        raise BuildError(what, do="name a new folder before --from")


def verify_file(path: Path, keys: Sequence[Path], reporter: Reporter) -> VerifyResult:
    """Check a bundle, byte by byte and by the keys that are required, before anything is opened.

    Raises:
        IntegrityError: it is damaged, changed, or not signed as required.
    """
    device = this_device()
    gpu = next(iter(device.gpus), None)
    with Bundle(path) as bundle:
        signed_by = require_trust(bundle, keys)
        bundle.verify(megabytes(in_stage(reporter, "verify"), "reading the bundle"))
        choice = choose(bundle.facts, device, gpu, installed_builders())
        chosen = choice.chosen
        return VerifyResult(
            bundle=path,
            digest=bundle.digest,
            name=bundle.facts.name,
            model=bundle.facts.model,
            signatures=tuple(signature.hint for signature in bundle.signatures),
            signed_by=signed_by,
            chain=choice.steps,
            chosen=None if chosen is None else chosen.group,
            image_sizes=image_sizes(bundle),
            builders=builders(bundle.facts),
        )


def unpack_file(
    path: Path,
    output: Path,
    group: str | None,
    keys: Sequence[Path],
    signature: Path | None = None,
    *,
    packed: bool = False,
    reporter: Reporter | None = None,
) -> tuple[BundleFile, ...]:
    """Unpack a bundle, the files of one target group, or a packed folder; return the files.

    Packed weights are expanded, unless they are to stay `packed`. The first signature goes to the
    file `signature`, where that is given.

    Raises:
        IntegrityError: it is damaged, changed, or not signed as required.
        WorkspaceError: the folder is there already, there is no such group, the disk has no room,
            or the signature would be of other files.
    """
    if os.path.lexists(output):
        raise WorkspaceError("is there already", where=str(output), do="name a new folder")
    if is_packed(path):
        if group is not None or signature is not None:
            do = "leave --group and --signature out"
            raise WorkspaceError("is a packed folder, not a bundle", where=str(path), do=do)
        refuse_unsigned(path, keys)
        return expand_new(path, output, reporter)
    require_no_folder(path)
    with Bundle(path) as bundle:
        require_trust(bundle, keys)
        if signature is not None and not bundle.signatures:
            raise IntegrityError("is not signed", where=str(path), do="leave --signature out")
        files = (bundle.facts_file, *group_files(bundle, group))
        groups = [each for each in bundle.facts.groups if group in (None, each.name)]
        indexes = {} if packed else read_indexes(bundle, files)
        if indexes and signature is not None:
            what, do = "signs the packed weights, and not what they expand to", "give --packed too"
            raise WorkspaceError(what, where="--signature", do=do)
        extract_new(bundle, groups, files, indexes, output, expanding(reporter))
        if signature is not None:
            atomic_write(signature, msgspec.json.encode(bundle.signatures[0].bundle))
        return expanded_list(bundle, files, indexes)


def bundled_workspace(
    path: Path, name: str | None, keys: Sequence[Path], reporter: Reporter | None = None
) -> tuple[Path, str]:
    """Return a workspace beside a bundle that holds its files, and the name of its quantization.

    The folder has the bundle's name without its suffix; it is made once.

    Raises:
        IntegrityError: the bundle is damaged, changed, or not signed as required.
        WorkspaceError: it has no FP32 graphs to compare with, or the folder is of something else.
    """
    folder = path.with_suffix("")
    with Bundle(path) as bundle:
        require_trust(bundle, keys)
        held = bundle.facts
        if held.group("reference") is None:
            what = "has no FP32 graphs to compare with"
            raise WorkspaceError(what, where=str(path), do="pack it with `bundle --with-reference`")
        if name not in (None, held.quantization):
            raise WorkspaceError(f"holds {held.quantization}, not {name}", where=str(path))
        files = (bundle.facts_file, *held.files)
        indexes = read_indexes(bundle, files)
        if not os.path.lexists(folder):
            extract_new(bundle, held.groups, files, indexes, folder, expanding(reporter))
        elif not holds(folder, expanded_list(bundle, files, indexes)):
            what = "is there already, and not what this bundle unpacks to"
            raise WorkspaceError(what, where=str(folder), do="rename the bundle, or the folder")
    return folder, held.quantization


def group_files(bundle: Bundle, group: str | None) -> tuple[BundleFile, ...]:
    """Return the files of a target group with the documents; those of all without a name."""
    if group is None:
        return bundle.facts.files
    named = {each.name: each for each in bundle.facts.groups}
    if group not in named:
        what, do = f"has no target group {group!r}", f"it has {', '.join(named)}"
        raise WorkspaceError(what, where=str(bundle.path), do=do)
    return (*bundle.facts.documents, *named[group].files)


def make_keys(output: Path) -> tuple[Path, Path]:
    """Write a new pair of keys, NAME.key for the signer and NAME.pub for devices.

    Raises:
        WorkspaceError: one is there already; a key is never written over.
    """
    name = output.name.removesuffix(".key").removesuffix(".pub")
    if name in ("", ".."):
        what, do = "is no name of a key", "give a NAME, for NAME.key and NAME.pub"
        raise WorkspaceError(what, where=str(output), do=do)
    private, public = output.with_name(f"{name}.key"), output.with_name(f"{name}.pub")
    for path in (private, public):
        if path.exists():
            raise WorkspaceError("is there already", where=str(path), do="name other files")
    key = generate_key()
    private.parent.mkdir(parents=True, exist_ok=True)
    data = private_pem(key, password())
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        atomic_write(public, public_pem(key.public_key()))
    except OSError as error:  # the disk is full: half a pair is none
        private.unlink(missing_ok=True)
        raise named(error, private) from error
    return private, public
