"""Define what the export of a model is given, whatever its family, and its common steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ...errors import ExportError
from ...export.facts import PartParameters
from ...export.shape import DYNAMIC, ExportShape
from ...graph.sites import Site, SiteMap, may_be_planned
from ...runtime.families import find_family
from ...runtime.images import FloatImage, center_crop, to_model
from ...runtime.spec import DECODER
from ...samples.images import ImageSource
from ...workspace.files import encode_json
from ...workspace.stage import Reporter

if TYPE_CHECKING:
    from torch import Tensor

    from ...export.checkpoint.wrappers import Weights
    from ...export.weight_file import WeightFile
    from ...runtime.spec import GeneratorSpec
    from ..base import Variant

PARITY_IMAGES = 2
PARITY_SIZE = 256
PARITY_MAP = 32  # most places on a side of the map: attention over it is quadratic in its places
CONFIGS = ("config.json", "config.yaml")
STEPS = 2  # of an export beside its graphs: reading, and comparing
LABEL = 207


def parity_side(stride: int) -> int:
    """Return the side of the images that a tokenizer is compared on: 256 from a stride of 8 on."""
    return min(PARITY_SIZE, PARITY_MAP * stride)


class HasConfig(Protocol):
    """Give a model's configuration and parameters, as a torch module does."""

    config: Any

    def parameters(self) -> Iterator[Tensor]: ...


Transformer = TypeVar("Transformer", bound=HasConfig)
Tokenizer = TypeVar("Tokenizer", bound=HasConfig)


@dataclass(frozen=True, slots=True)
class ExportJob:
    """Hold the model, its checkpoint's files, images to compare on, and the reporter.

    `form` is how a generator's graphs are made. `weights` chooses where a trainer's snapshot has
    averaged ones beside the last ones; None takes what the family's official evaluation takes.
    With `shapes_only` no values of large tensors are read: what is loaded is on the meta device.
    """

    entry: Variant
    spec: str
    paths: tuple[Path, ...]
    source: ImageSource
    reporter: Reporter
    form: ExportShape = DYNAMIC
    weights: Weights | None = None
    shapes_only: bool = False

    @property
    def images(self) -> tuple[Path, ...]:
        return self.source.files[:PARITY_IMAGES]

    @property
    def image_names(self) -> tuple[str, ...]:
        return self.source.names[:PARITY_IMAGES]

    def inputs(self) -> tuple[Path, ...]:
        """Return every file that decides the outputs; those of `CONFIGS` lie beside."""
        folder = self.paths[0].parent
        beside = [path for name in CONFIGS if (path := folder / name).is_file()]
        return (*self.paths, *beside)

    def pictures(self, size: int) -> list[FloatImage]:
        """Return the images' centres, [1, 3, size, size] in [-1, 1]."""
        chosen = (self.source.load(i) for i in range(len(self.images)))
        return [to_model(center_crop(image, size)) for image in chosen]

    def read(self, infinite: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the tensors of all files, of which `infinite` may hold infinities.

        Raises:
            ExportError: whatever `read_all` refuses.
        """
        from ...export.checkpoint.read import WeightChoice, read_all

        official = find_family(self.entry.family).evaluated
        asked = self.weights is not None
        choice = WeightChoice(self.weights or official, asked, self.reporter.say)
        return read_all(self.paths, infinite, choice, shapes_only=self.shapes_only)

    def reading(self) -> None:
        """Report that the checkpoint is read, the first step."""
        self.reporter.progress("reading the checkpoint", 0, self.steps)

    def exporting(self, written: int = 0, last: str = "") -> None:
        """Report how many graphs are written, each a step, and which was the last."""
        behind = f", {last} is written" if last else ""
        # Graphs of fixed shapes are more than the usual ones.
        done = min(1 + written, self.steps - 1)
        self.reporter.progress(f"exporting graphs{behind}", done, self.steps)

    def comparing(self, what: str = "", *, done: bool = False) -> None:
        """Report that the graphs are compared, the last step, and `what` of it is done now."""
        task = "comparing with PyTorch" + (f", {what}" if what else "")
        self.reporter.progress(task, self.steps - (not done), self.steps)

    @property
    def steps(self) -> int:
        return STEPS + len(self.entry.graphs)


def refuse_static(name: str, form: ExportShape, grows: str) -> None:
    """Raise ExportError for fixed shapes, where a cache grows by `grows` a step."""
    if form.static_batch is not None:
        raise ExportError(
            f"has a cache that grows by {grows} a step: no fixed shapes",
            where=name,
            do="leave out --static-batch",
        )


def write_parts(
    job: ExportJob,
    folder: Path,
    models: tuple[HasConfig, HasConfig],
    spec: GeneratorSpec,
    export: Callable[[WeightFile, dict[str, str]], tuple[Site, ...]],
) -> PartParameters:
    """Write everything that the export of a transformer and its tokenizer leaves.

    Returns their parameters. `export` writes the graphs, with these properties, and returns their
    sites; `spec` is for the runtime, and names the graphs that have every site to be planned once.
    """
    from ...export.weight_file import WeightFile

    mark_norms(job, models[1], spec.image_size)
    properties = {"arvg_trt.model": job.entry.name, "arvg_trt.family": job.entry.family}
    job.exporting()
    with WeightFile(folder, job.exporting) as weights:
        sites = export(weights, properties)
    graphs = (*spec.calibrated_graphs, *quantizable_decoder(sites))
    (folder / "sites.json").write_bytes(encode_json(SiteMap(sites=sites, graphs=graphs)))
    (folder / "generator.json").write_bytes(encode_json(spec))
    transformer, tokenizer = (sum(p.numel() for p in model.parameters()) for model in models)
    return PartParameters(transformer=transformer, tokenizer=tokenizer)


def quantizable_decoder(sites: Sequence[Site]) -> tuple[str, ...]:
    """Return the decoder's graph if the method takes one of its sites."""
    able = (s.graph == DECODER and may_be_planned(s) and s.excluded is None for s in sites)
    return (DECODER,) if any(able) else ()


def mark_norms(job: ExportJob, tokenizer: HasConfig, size: int) -> None:
    """Mark the norms of a tokenizer that ONNX Runtime gets wrong, measured on one image."""
    import torch

    from ...export.passes.norm_drift import mark_drifting_norms

    codec: Any = tokenizer
    decode = getattr(codec, "reconstruct", codec.decode)
    picture = torch.from_numpy(job.pictures(size)[0])
    mark_drifting_norms(codec, lambda: decode(codec.encode(picture)))


def load_parts(
    job: ExportJob,
    tokenizer_file: str,
    load_transformer: Callable[[dict[str, Tensor]], Transformer],
    load_tokenizer: Callable[[dict[str, Tensor], Transformer], Tokenizer],
    shared: Sequence[str],
    infinite: Collection[str] = (),
    ignored: str | None = None,
) -> tuple[Transformer, Tokenizer]:
    """Load transformer and tokenizer of a checkpoint; they must agree in `shared`.

    Raises:
        ExportError: a half is missing, is another variant's, or they do not belong together.
    """
    from ..variants import check_config

    transformer, tokenizer = read_parts(job, tokenizer_file, infinite, ignored)
    model = load_transformer(transformer)
    check_config(job.entry, model.config, job.spec)
    found = load_tokenizer(tokenizer, model)
    require_pair(job, model.config, found.config, shared)
    return model, found


def read_parts(
    job: ExportJob, tokenizer_file: str, infinite: Collection[str] = (), ignored: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a generator's tensors: the transformer's, and the tokenizer's.

    Names that begin with `ignored` are left out.

    Raises:
        ExportError: a file that cannot be read, or one half is missing.
    """
    from ...export.checkpoint.strict import split_parts

    found = job.read(infinite)
    if ignored is not None:
        found = {name: v for name, v in found.items() if not name.startswith(ignored)}
    transformer, tokenizer = split_parts(found)
    if not tokenizer:
        raise ExportError(
            "has no tokenizer",
            where=job.spec,
            do=f"put {tokenizer_file} beside the transformer, and name the folder",
        )
    if not transformer:
        raise ExportError(
            "has a tokenizer and no transformer",
            where=job.spec,
            do=f"expected {job.entry.files[0][0]} beside it; name the folder",
        )
    return transformer, tokenizer


def require_pair(
    job: ExportJob, transformer: object, tokenizer: object, names: Sequence[str]
) -> None:
    """Raise ExportError unless two configurations have the same values of `names`."""
    differ = [
        f"{name} is {getattr(transformer, name)} in the transformer, "
        f"{getattr(tokenizer, name)} in it"
        for name in names
        if getattr(transformer, name) != getattr(tokenizer, name)
    ]
    if differ:
        raise ExportError(
            f"its tokenizer is another model's: {', '.join(differ)}",
            where=job.spec,
            do="use the tokenizer that the transformer was trained with",
        )


def guided_labels(num_classes: int, images: int = 1) -> Tensor:
    """Return a class per image, then as many null classes; int64 [2 * images].

    Guidance runs both.
    """
    import torch

    classes = [(LABEL + k) % num_classes for k in range(images)]
    return torch.tensor([*classes, *[num_classes] * images])
