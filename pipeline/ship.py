"""`bundle`, `sign`, `verify`, `unpack`, `keygen`: engines in one signed file, and its checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..errors import IntegrityError, WorkspaceError
from ..families.variants import MODELS
from ..packages import installed_builders
from ..runtime.bundle.cache import require_room
from ..runtime.bundle.choose import ChainStep, choose
from ..runtime.bundle.layout import BundleFile, folded, path_problem
from ..runtime.bundle.reader import Bundle
from ..runtime.bundle.signature import (
    generate_key,
    key_hint,
    private_pem,
    public_pem,
    read_private_key,
)
from ..runtime.bundle.trust import require_trust
from ..runtime.devices import this_device
from ..validate.facts import ValidationFacts, summary
from ..workspace.facts import facts, model_name
from ..workspace.files import atomic_folder, atomic_write, encode_json, named
from ..workspace.manifest import MANIFEST
from ..workspace.stage import Reporter, tool_version
from ..workspace.verify import verify
from ..workspace.workspace import RECIPE_FILE, Workspace

if TYPE_CHECKING:
    from ..engines.bundle.contents import GroupSources

PASSWORD_VARIABLE = "ARVG_TRT_KEY_PASSWORD"
MOST_PASSWORD = 1023  # bytes that OpenSSL takes
REPORT_FILES = ("report.json", "report.md", "report.html")


class BundleResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and by which key it is signed ("" for none)."""

    written: Path
    digest: str
    bytes: int
    groups: tuple[str, ...]
    signed_by: str


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle is, who signed it, and what of it runs here; ``chosen`` is what opens first."""

    bundle: Path
    digest: str
    name: str
    model: str
    signatures: tuple[str, ...]
    signed_by: tuple[str, ...]
    chain: tuple[ChainStep, ...]
    chosen: str | None


def bundle_workspace(
    workspace: Workspace,
    name: str,
    output: Path,
    reporter: Reporter,
    *,
    key: Path | None = None,
    licenses: Sequence[Path] = (),
    reference: bool = False,
) -> BundleResult:
    """Write the engines of a quantization as one bundle, signed where there is a key.

    Raises:
        WorkspaceError: there are no engines, or a stage's folder is not what it wrote.
        IntegrityError: the key cannot be read.
    """
    from ..engines.bundle.contents import collect, engine_groups, reference_group
    from ..engines.bundle.write import write_bundle

    signer = None if key is None else read_private_key(key, password())
    groups = list(engine_groups(workspace, name))
    if reference:
        groups.append(reference_group(workspace, name))
    documents = bundle_documents(workspace, name, groups, licenses, reporter)
    contents = collect(workspace, name, documents, groups)
    digest = write_bundle(output, contents, signer, megabytes(reporter, "writing the bundle"))
    return BundleResult(
        written=output,
        digest=digest,
        bytes=output.stat().st_size,
        groups=tuple(group.name for group in contents.facts.groups),
        signed_by="" if signer is None else key_hint(signer.public_key()),
    )


def bundle_documents(
    workspace: Workspace,
    name: str,
    groups: Sequence[GroupSources],
    licenses: Sequence[Path],
    reporter: Reporter,
) -> dict[str, bytes]:
    """Return the documents of a bundle by their paths.

    Raises:
        WorkspaceError: the validation is not of what lies in the workspace now.
    """
    from ..engines.bundle import documents as written

    root = workspace.root
    model = model_name(workspace.manifest("export", stage="export"))
    found: dict[str, bytes] = {}
    for path in (root / "quantize" / name / "plan.json", root / RECIPE_FILE):
        if path.is_file():
            found[path.name] = path.read_bytes()
    validated = root / "validate" / name
    metrics: dict[str, float] = {}
    if (validated / MANIFEST).is_file():
        metrics = facts(verify(validated), ValidationFacts).metrics
        found |= {file: (validated / file).read_bytes() for file in REPORT_FILES}
    else:
        reporter.warn(f"{name} was not validated: the bundle says nothing of its accuracy")
    require_names(licenses)
    terms = {f"{written.LICENSES}/{p.name}": p.read_bytes() for p in licenses}
    shipped = MODELS / model / "README.md"
    if shipped.is_file():
        terms[f"{written.LICENSES}/{model}.md"] = shipped.read_bytes()
    if not terms:
        reporter.warn("no licence of the weights is in the bundle: give --license FILE")
    records = written.stage_records(workspace, name)
    found[written.STAGES] = encode_json(records)
    figures = [summary(metrics)] if metrics else []
    card = written.model_card(model, name, groups, figures, sorted(terms))
    found[written.CARD] = card.encode()
    listed = [made.group for made in groups]
    tool = f"arvg-trt {tool_version()}"
    found[written.BILL] = written.bill_of_materials(model, name, tool, listed, records, metrics)
    return found | terms


def require_names(licenses: Sequence[Path]) -> None:
    """Raise WorkspaceError for a licence whose name no bundle takes, or that two of them have."""
    seen: dict[str, Path] = {}
    for path in licenses:
        problem = path_problem(path.name)
        if problem is None and folded(path.name) in seen:
            problem = f"has the same name as {seen[folded(path.name)]}"
        if problem is not None:
            raise WorkspaceError(problem, where=str(path), do="give the licence another name")
        seen[folded(path.name)] = path


def sign_file(path: Path, key: Path, output: Path | None, reporter: Reporter) -> BundleResult:
    """Add a signature to a bundle, in its place or in another file.

    Raises:
        IntegrityError: the bundle is damaged, or the key cannot be read.
    """
    from ..engines.bundle.write import sign_bundle

    signer = read_private_key(key, password())
    target = path if output is None else output
    with Bundle(path) as bundle:
        sign_bundle(bundle, target, signer, megabytes(reporter, "signing the bundle"))
        groups = tuple(group.name for group in bundle.facts.groups)
        digest = bundle.digest
    return BundleResult(
        written=target,
        digest=digest,
        bytes=target.stat().st_size,
        groups=groups,
        signed_by=key_hint(signer.public_key()),
    )


def verify_file(path: Path, keys: Sequence[Path], reporter: Reporter) -> VerifyResult:
    """Check a bundle, byte by byte and by the keys that are required, before anything is opened.

    Raises:
        IntegrityError: it is damaged, changed, or not signed as required.
    """
    device = this_device()
    gpu = next(iter(device.gpus), None)
    with Bundle(path) as bundle:
        signed_by = require_trust(bundle, keys)
        bundle.verify(megabytes(reporter, "verifying the bundle"))
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
        )


def unpack_file(
    path: Path, output: Path, group: str | None, keys: Sequence[Path]
) -> tuple[BundleFile, ...]:
    """Unpack a bundle, or the files of one target group, to a new folder; return the files.

    Raises:
        IntegrityError: it is damaged, changed, or not signed as required.
        WorkspaceError: the folder is there already, there is no such group, or the disk has no
            room.
    """
    if os.path.lexists(output):
        raise WorkspaceError("is there already", where=str(output), do="name a new folder")
    with Bundle(path) as bundle:
        require_trust(bundle, keys)
        files = (bundle.facts_file, *group_files(bundle, group))
        for each in bundle.facts.groups:
            if group in (None, each.name):
                bundle.require_engines(each)
        disk = next(each for each in output.absolute().parents if each.is_dir())
        require_room(disk, sum(file.bytes for file in files), "name a folder on another disk")
        with atomic_folder(output) as temporary:
            bundle.extract(files, temporary)
    return files


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
    private, public = output.with_name(f"{output.name}.key"), output.with_name(f"{output.name}.pub")
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


def password() -> bytes | None:
    """Return the password of private keys, from the environment.

    Raises:
        IntegrityError: it is longer than any key takes.
    """
    given = os.fsencode(os.environ.get(PASSWORD_VARIABLE, ""))
    if len(given) > MOST_PASSWORD:
        what, do = f"has {len(given)} bytes", f"set a password of at most {MOST_PASSWORD}"
        raise IntegrityError(what, where=PASSWORD_VARIABLE, do=do)
    return given or None


def megabytes(reporter: Reporter, task: str) -> Callable[[int, int], None]:
    """Return a progress function of bytes that reports megabytes."""

    def tell(done: int, total: int) -> None:
        reporter.progress(f"{task}, MB", done // 10**6, max(1, total // 10**6))

    return tell
