"""`bundle` and `sign`: the engines of a workspace in one file, with what is read beside them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..engines.facts import BuildFacts
from ..errors import IntegrityError, WorkspaceError
from ..extras import require_packages
from ..families.variants import shipped_folder
from ..recipe.base import with_changes
from ..recipe.build import BuildOptions
from ..recipe.file import encode_recipe, load_recipe
from ..runtime.bundle.keys import PASSWORD_VARIABLE, key_hint, read_private_key
from ..runtime.bundle.layout import folded, path_problem
from ..runtime.bundle.open import is_bundle
from ..runtime.bundle.reader import Bundle
from ..runtime.sessions.placement import unopened_text
from ..validate.facts import ValidationFacts, summary
from ..workspace.facts import Exported, facts, known_name, model_name
from ..workspace.files import encode_json
from ..workspace.manifest import MANIFEST
from ..workspace.stage import Reporter, in_stage, tool_version
from ..workspace.verify import read_manifest, verify
from ..workspace.workspace import RECIPE_FILE, Workspace
from .build import open_build

if TYPE_CHECKING:
    from ..engines.bundle.contents import GroupSources

MOST_PASSWORD = 1023  # bytes that OpenSSL takes
REPORT_FILES = ("report.json", "report.md", "report.html")


class BundleResult(msgspec.Struct, frozen=True, kw_only=True):
    """Say what was written, and the sha256 of the keys that signed it."""

    written: tuple[Path, ...]
    digest: str
    bytes: int
    groups: tuple[str, ...]
    signatures: tuple[str, ...]


def bundle_workspace(
    workspace: Workspace,
    name: str,
    output: Path,
    reporter: Reporter,
    *,
    key: Path | None = None,
    licenses: Sequence[Path] = (),
    kit: bool = True,
    reference: bool = False,
    packed: bool = False,
) -> BundleResult:
    """Write the engines of a quantization as one bundle, signed where there is a key.

    `packed` graphs have their weights in few bits, which devices expand.

    Raises:
        WorkspaceError: there are no engines, or a stage's folder is not what it wrote.
        IntegrityError: the key cannot be read.
    """
    from ..engines.bundle.contents import collect, engine_groups, pack_warnings, reference_group
    from ..engines.bundle.write import write_bundle

    reporter = in_stage(reporter, "bundle")
    signer = None if key is None else read_private_key(key, password())
    if signer is None and is_signed(output):
        reporter.warn(f"{output} is signed, and what takes its place is not: give --key")
    if kit or packed:
        require_packages("kit", but=("polygraphy",))  # it writes graphs, and builds nothing
    groups = list(engine_groups(workspace, name))
    rtx = [made.group for made in groups if made.group.kind == "tensorrt_rtx"]
    warning = unopened_text(dict.fromkeys(target for group in rtx for target in group.targets))
    if warning:
        reporter.warn(warning)
    for text in pack_warnings(groups, workspace.root, name):
        reporter.warn(text)
    with tempfile.TemporaryDirectory() as folder:
        if kit:
            kit_folder = Path(tempfile.mkdtemp(dir=folder))
            groups.append(packed_kit(workspace, name, groups, kit_folder, reporter))
        if reference:
            groups.append(reference_group(workspace, name))
        if packed:
            from ..engines.bundle.packed_groups import pack_groups

            progress = megabytes(reporter, "packing weights")
            groups = pack_groups(groups, workspace.folder("quantize", name), Path(folder), progress)
        documents = bundle_documents(workspace, name, groups, licenses, reporter)
        contents = collect(workspace, name, documents, groups, packed=packed)
        digest = write_bundle(output, contents, signer, megabytes(reporter, "writing the bundle"))
    return BundleResult(
        written=(output,),
        digest=digest,
        bytes=output.stat().st_size,
        groups=tuple(group.name for group in contents.facts.groups),
        signatures=() if signer is None else (key_hint(signer.public_key()),),
    )


def is_signed(path: Path) -> bool:
    """Return whether a file is a bundle with a signature, by whichever key."""
    with contextlib.suppress(IntegrityError):
        if is_bundle(path):
            with Bundle(path) as bundle:
                return bool(bundle.signatures)
    return False


def packed_kit(
    workspace: Workspace,
    name: str,
    groups: Sequence[GroupSources],
    folder: Path,
    reporter: Reporter,
) -> GroupSources:
    """Write a kit to a folder, for the shapes of the TensorRT engines that are packed beside it."""
    from ..engines.bundle.kit import kit_group, write_kit

    options, faster = BuildOptions(backend="tensorrt"), None
    built = [made.group.folder for made in groups if made.group.kind.startswith("tensorrt")]
    if built:
        made = read_manifest(workspace.root / built[0])
        own = {k: v for k, v in made.options.items() if k in BuildOptions.__struct_fields__}
        # What was decided for named GPUs is recorded; the targets of a manifest name none.
        options = with_changes(options, **own | {"keep_if_faster": None})
        faster = facts(made, BuildFacts).faster or None
    opened = open_build(workspace, name, options, reporter, faster)
    model = model_name(workspace.manifest("export", stage="export"))
    write_kit(opened.build, model, name, opened.risks(), folder)
    return kit_group(opened.build, folder)


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
    from ..engines.bundle import card
    from ..engines.bundle import documents as written

    root = workspace.root
    exported = workspace.manifest("export", stage="export")
    model = model_name(exported)
    found: dict[str, bytes] = {}
    plan = root / "quantize" / name / "plan.json"
    if plan.is_file():
        found[plan.name] = plan.read_bytes()
    if (root / RECIPE_FILE).is_file() and (recipe := load_recipe(root / RECIPE_FILE)).name == name:
        found["recipe.toml"] = encode_recipe(recipe).encode()
    validated = root / "validate" / name
    measured: ValidationFacts | None = None
    if (validated / MANIFEST).is_file():
        measured = facts(verify(validated), ValidationFacts)
        found |= {file: (validated / file).read_bytes() for file in REPORT_FILES}
    else:
        reporter.warn(f"{name} was not validated: the bundle says nothing of its accuracy")
    texts = license_texts(known_name(exported), licenses)
    terms = {f"{card.LICENSES}/{file}": text for file, text in texts.items()}
    if not terms:
        reporter.warn("no licence of the weights is in the bundle: give --license FILE")
    records = written.stage_records(workspace, name)
    found[written.STAGES] = encode_json(records)
    metrics = measured.metrics if measured else {}
    figures = [summary(measured)] if measured else []
    kind = Exported.open(workspace).kind
    page = card.model_card(model, name, kind, groups, figures, metrics, sorted(terms))
    found[card.CARD] = page.encode()
    listed = [made.group for made in groups]
    tool = f"arvg-trt {tool_version()}"
    bill = written.bill_of_materials(model, name, kind, tool, listed, records, metrics)
    found[written.BILL] = bill
    return found | terms


def license_texts(model: str, licenses: Sequence[Path]) -> dict[str, bytes]:
    """Return the terms of the weights by file name: those given, and those of shipped weights.

    Raises:
        WorkspaceError: a licence has a name that no bundle takes, or that another has.
    """
    shipped = shipped_folder(model)
    texts = {} if shipped is None else {f"{model}.md": (shipped / "README.md").read_bytes()}
    seen = {folded(file): f"the terms of {model}" for file in texts}
    for path in licenses:
        problem = path_problem(path.name)
        if problem is None and folded(path.name) in seen:
            problem = f"has the same name as {seen[folded(path.name)]}"
        if problem is not None:
            raise WorkspaceError(problem, where=str(path), do="give the licence another name")
        seen[folded(path.name)] = str(path)
        texts[path.name] = path.read_bytes()
    return texts


def sign_file(path: Path, key: Path, output: Path | None, reporter: Reporter) -> BundleResult:
    """Add a signature to a bundle, in its place or in another file.

    Raises:
        IntegrityError: the bundle is damaged, or the key cannot be read.
    """
    from ..engines.bundle.write import sign_bundle

    reporter = in_stage(reporter, "sign")
    signer = read_private_key(key, password())
    target = path.resolve() if output is None else output  # a link stays one
    with Bundle(path) as bundle:
        sign_bundle(bundle, target, signer, megabytes(reporter, "signing the bundle"))
    with Bundle(target) as signed:
        return BundleResult(
            written=(path if output is None else output,),
            digest=signed.digest,
            bytes=target.stat().st_size,
            groups=tuple(group.name for group in signed.facts.groups),
            signatures=tuple(signature.hint for signature in signed.signatures),
        )


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
