"""Make small bundles, and forge them: change any part, and mend every digest that names it.

A forger has no key, but mends digests, sizes and check sums as a writer of bundles does. The JSON
is changed as plain objects here, not through the structs of the reader.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from ...engines.bundle.contents import Contents, bundle_file
from ...engines.bundle.write import write_bundle
from ...runtime.bundle.layout import BundleFacts, GroupKind, TargetGroup, media_type

BLOBS = "blobs/sha256/"
INDEX = "application/vnd.oci.image.index.v1+json"
PATH, TITLE = "org.cncf.model.filepath", "org.opencontainers.image.title"
UNREADABLE = (ValueError, RecursionError)  # of JSON
RTX = "1.7.0.25"
DOCUMENTS = {"README.md": b"# A model\n", "stages.json": b"[]\n"}
Change = Callable[[Any], Any]
Header = tuple[bytes, bytes]  # of a tar member, and the bytes behind it


def plan(version: str = RTX, targets: str = "sm86 sm89", size: int | None = None) -> bytes:
    """Return the least that looks like an engine of TensorRT for RTX."""
    program = f"accelerators={{{targets} }}".encode()
    said = 28 + len(program) if size is None else size
    numbers = bytes(int(part) for part in version.split("."))
    return b"vtrt" + bytes(12) + struct.pack("<Q", said) + numbers + program


def small_contents(
    *,
    name: str = "int8",
    documents: Mapping[str, bytes] = DOCUMENTS,
    engine: bytes | None = None,
    more: Iterable[tuple[TargetGroup, Mapping[str, bytes]]] = (),
) -> Contents:
    """Return the contents of a bundle with an engine for GPUs and the CPU's, of a few bytes."""
    rtx = {"engines/int8/rtx/model.engine": plan() if engine is None else engine}
    cpu = {"engines/int8/onnxruntime/model.onnx": b"an onnx graph"}
    groups = [
        (target_group("rtx", "tensorrt_rtx", rtx, version=RTX, targets=("sm86", "sm89")), rtx),
        (target_group("cpu", "onnxruntime", cpu, version="1.23.0"), cpu),
        *more,
    ]
    facts = BundleFacts(
        version=1,
        name=name,
        model="mini",
        kind="custom",
        quantization=name,
        tool="arvg-trt 0.2.0",
        groups=tuple(group for group, _ in groups),
        documents=tuple(bundle_file(path, data) for path, data in documents.items()),
    )
    sources: dict[str, Path | bytes] = {**documents}
    for _, files in groups:
        sources |= files
    return Contents(facts, sources)


def target_group(
    name: str, kind: GroupKind, files: Mapping[str, bytes], **more: Any
) -> TargetGroup:
    """Return a target group of files in one folder."""
    return TargetGroup(
        name=name,
        kind=kind,
        folder=next(iter(files)).rpartition("/")[0],
        precision="INT8",
        files=tuple(bundle_file(path, data) for path, data in files.items()),
        **more,
    )


def bundle_bytes(
    scratch: Path,
    contents: Contents | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """Return the bytes of a bundle, written as the tool writes it."""
    path = scratch / "made.tar"
    write_bundle(path, small_contents() if contents is None else contents, key)
    data = path.read_bytes()
    path.unlink()
    return data


def members_of(data: bytes) -> dict[str, bytes]:
    """Return the members of a tar file, as Python's `tarfile` reads them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, **more: Any) -> bytes:
    """Return the header of a tar member; long names and large sizes as GNU writes them."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode = size, kind, 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def patched(head: bytes, offset: int, data: bytes) -> bytes:
    """Return a header with other bytes at an offset, and its check sum mended."""
    changed = bytearray(head[:offset] + data + head[offset + len(data) :])
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def tar_of(members: Iterable[Header], end: int = 2) -> bytes:
    """Return a tar file of headers with their bytes, and so many blocks of zeros."""
    parts = [head + data + bytes(-len(data) % 512) for head, data in members]
    return b"".join(parts) + bytes(512 * end)


def packed(members: Mapping[str, bytes]) -> bytes:
    """Return a tar file of members by name."""
    return tar_of([(header(name, len(data)), data) for name, data in members.items()])


def forged(data: bytes, **changes: Change) -> bytes:
    """Return a bundle with parts changed, and everything above them fitted to that.

    A change is called with the decoded JSON of `facts`, `config` and `manifest` (both of the first
    group), `model`, `signature` (the manifest of one), `index`, or with the `members`; it changes
    it in place, or returns bytes to put there.
    """
    members = members_of(data)
    made: dict[str, bytes] = {}

    def changed(level: str, value: Any) -> bytes:
        done = changes[level](value) if level in changes else None
        return done if isinstance(done, bytes) else json.dumps(value).encode()

    def put(descriptor: dict[str, Any], content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        made[BLOBS + digest] = content
        descriptor |= {"digest": f"sha256:{digest}", "size": len(content)}

    def load(descriptor: dict[str, Any]) -> Any:
        return json.loads(members[BLOBS + descriptor["digest"][7:]])

    index = json.loads(members["index.json"])
    (top,) = (each for each in index["manifests"] if each["mediaType"] == INDEX)
    model = load(top)
    facts_layer = load(model["manifests"][0])["layers"][0]
    facts = changed("facts", load(facts_layer))
    put(facts_layer, facts)
    for k, descriptor in enumerate(model["manifests"]):
        manifest = load(descriptor)
        config = load(manifest["config"])
        manifest["layers"][0] = facts_layer
        with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError, *UNREADABLE):
            fit_group(json.loads(facts), k, model, descriptor, manifest, config)
        for layer in manifest["layers"][1:]:
            blob = BLOBS + layer["digest"][7:]
            made |= {blob: members[blob]} if blob in members else {}
        config["modelfs"]["diffIds"] = [layer["digest"] for layer in manifest["layers"]]
        put(manifest["config"], changed("" if k else "config", config))
        put(descriptor, changed("" if k else "manifest", manifest))
    put(top, changed("model", model))
    for each in index["manifests"]:
        if each is not top:
            manifest = load(each)
            manifest["subject"]["digest"] = top["digest"]
            for layer in (manifest["config"], *manifest["layers"]):
                blob = BLOBS + layer["digest"][7:]
                made[blob] = members[blob]
            put(each, changed("signature", manifest))
    fitted = {"oci-layout": members["oci-layout"], "index.json": changed("index", index), **made}
    done = changes["members"](fitted) if "members" in changes else None
    return packed(fitted if done is None else done)


def fit_group(facts: Any, k: int, model: Any, descriptor: Any, manifest: Any, config: Any) -> None:
    """Let the manifest of a group say what the facts do, as far as they say anything."""
    group = facts["groups"][k]
    model["annotations"] = {TITLE: facts["name"]}
    values = {
        TITLE: group["name"],
        "io.arvg-trt.kind": group["kind"],
        "io.arvg-trt.targets": " ".join(group["targets"]),
        "io.arvg-trt.precision": group["precision"],
        "io.arvg-trt.version": group["version"],
    }
    manifest["annotations"] = {key: value for key, value in values.items() if value}
    descriptor["annotations"] = manifest["annotations"]
    config["descriptor"] = {"name": facts["name"], "family": facts["model"], "title": group["name"]}
    config["config"]["format"] = "tensorrt" if group["kind"].startswith("tensorrt") else "onnx"
    layers = [
        {
            "mediaType": media_type(file["path"]),
            "digest": f"sha256:{file['sha256']}",
            "size": file["bytes"],
            "annotations": {PATH: file["path"]},
        }
        for file in (*facts["documents"], *group["files"])
    ]
    manifest["layers"][1:] = layers
