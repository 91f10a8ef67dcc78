"""Say what the OCI manifest of a target group holds, for the writer and for the reader."""

from __future__ import annotations

from typing import Any

from .layout import (
    FACTS_FILE,
    FILE_PATH,
    MODEL,
    MODEL_CONFIG,
    BundleFacts,
    BundleFile,
    Descriptor,
    ImageManifest,
    TargetGroup,
    group_annotations,
    media_type,
)

# ModelPack's names of precisions, by the words that ours are made of.
PRECISIONS = {
    "INT8": "int8",
    "FP8": "float8_e4m3",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
}


def layer_of(file: BundleFile) -> Descriptor:
    """Return the descriptor of a file, which is a layer."""
    return Descriptor(
        mediaType=media_type(file.path),
        digest=f"sha256:{file.sha256}",
        size=file.bytes,
        annotations={FILE_PATH: file.path},
    )


def group_layers(
    facts: BundleFacts, facts_file: BundleFile, group: TargetGroup
) -> tuple[Descriptor, ...]:
    """Return the layers of a target group: `bundle.json`, the documents, its own files."""
    assert facts_file.path == FACTS_FILE
    return tuple(layer_of(file) for file in (facts_file, *facts.documents, *group.files))


def group_manifest(
    group: TargetGroup, layers: tuple[Descriptor, ...], config: Descriptor
) -> ImageManifest:
    """Return the manifest of a target group; `config` points to `group_config`."""
    return ImageManifest(
        artifactType=MODEL,
        config=Descriptor(mediaType=MODEL_CONFIG, digest=config.digest, size=config.size),
        layers=layers,
        annotations=group_annotations(group),
    )


def group_config(
    facts: BundleFacts, group: TargetGroup, layers: tuple[Descriptor, ...]
) -> dict[str, Any]:
    """Return ModelPack's description of a model, which registries show."""
    words = group.precision.replace("+", " ").replace(",", " ").split()
    precisions = dict.fromkeys(PRECISIONS[word] for word in words if word in PRECISIONS)
    config = {
        "format": "tensorrt" if group.kind.startswith("tensorrt") else "onnx",
        "precision": ",".join(precisions),
        "quantization": "" if group.kind == "reference" else facts.quantization,
    }
    return {
        "descriptor": {"name": facts.name, "family": facts.model, "title": group.name},
        "config": {key: value for key, value in config.items() if value},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }
