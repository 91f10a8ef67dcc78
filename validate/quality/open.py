"""Open the user's ONNX networks that measure images: features of one, or the distance of two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import AccuracyError, BundleError, CalibrationError, RecipeError
from ...recipe.validate import ValidateOptions
from ...runtime.images import to_model
from ...runtime.sessions.open import fast_session
from ...runtime.sessions.session import Session
from ...workspace.files import sha256_file

Images = NDArray[np.uint8]  # [N, H, W, 3]
POOL, SPATIAL, LOGITS = "pool", "spatial", "logits"
FEATURES = "give an ONNX graph from images [N, 3, H, W] to features [N, D], or one with an output "
FEATURES += f"called {POOL} and, if it has them, {SPATIAL} and {LOGITS}"
PAIRS = "give an ONNX graph from two inputs, images [N, 3, H, W] each, to one distance [N] a pair"


@dataclass(frozen=True, slots=True)
class FeatureNetwork:
    """Hold a network and the features that it gives, by `pool`, `spatial` and `logits`.

    `widths` are their numbers of features. A network of one output has `pool` alone.
    """

    name: str
    widths: Mapping[str, int]
    extract: Callable[[Images], dict[str, NDArray[Any]]]

    @property
    def title(self) -> str:
        return f"{self.name}, [N, {self.widths[POOL]}]"


@dataclass(frozen=True, slots=True)
class PairNetwork:
    """Hold a network that tells how far two images are from each other; 0 for the same image."""

    name: str
    distance: Callable[[Images, Images], NDArray[np.float64]]  # [N] of [N, H, W, 3] and as many


def networks_of(options: ValidateOptions) -> dict[str, str]:
    """Return the files of the networks that options name, by option."""
    named = {"features": options.features, "lpips": options.lpips, "dists": options.dists}
    return {name: path for name, path in named.items() if path is not None}


def check_networks(options: ValidateOptions) -> None:
    """Raises CalibrationError for a network that is not there."""
    for name, path in networks_of(options).items():
        if not Path(path).is_file():
            what = "feature network" if name == "features" else "network"
            do = FEATURES if name == "features" else PAIRS
            raise CalibrationError(f"no such {what}", where=f"--{name} {path}", do=do)


def network_digests(options: ValidateOptions) -> dict[str, str]:
    """Return the sha256 of each network's file, by option."""
    return {name: sha256_file(Path(path)) for name, path in networks_of(options).items()}


def open_feature_network(path: Path, image_size: int, threads: int) -> FeatureNetwork:
    """Open a graph from images [N, 3, H, W] to features.

    It is fed uint8 pixels if it takes uint8, else float32 in [-1, 1].

    Raises:
        RecipeError: it does not load, does not take images of this size, or has outputs that are
            not [N, D] or not called as features are.
    """
    where = f"--features {path}"
    session, kinds = load(path, where, FEATURES, threads)
    if len(kinds) != 1 or kinds[0] not in ("uint8", "float32"):
        raise unfit(session, where, FEATURES)
    single = len(session.outputs) == 1
    names = {POOL: session.outputs[0]} if single else {n: n for n in (POOL, SPATIAL, LOGITS)}
    names = {ours: theirs for ours, theirs in names.items() if theirs in session.outputs}
    if POOL not in names:
        raise RecipeError(
            f"has outputs {', '.join(session.outputs)}, and none of them is called {POOL}",
            where=where,
            do=FEATURES,
        )

    def extract(images: Images) -> dict[str, NDArray[Any]]:
        found = session.run({session.inputs[0]: fed(images, kinds[0])}, list(names.values()))
        return {ours: found[theirs] for ours, theirs in names.items()}

    tried = try_on(where, image_size, lambda images: extract(images))
    for name, value in tried.items():
        if value.ndim != 2 or len(value) != 2:
            what = "gives" if single else f"gives {name}"
            raise RecipeError(
                f"{what} {list(value.shape)} for 2 images, not [2, D]", where=where, do=FEATURES
            )
    widths = {name: value.shape[1] for name, value in tried.items()}
    return FeatureNetwork(path.name, widths, extract)


def open_pair_network(path: Path, flag: str, image_size: int, threads: int) -> PairNetwork:
    """Open a graph from two images [N, 3, H, W] to their distance, [N] or [N, 1, 1, 1].

    Both are fed uint8 pixels if it takes uint8, else float32 in [-1, 1]. `flag` names it to users.

    Raises:
        RecipeError: it does not load, does not take images of this size, or has other outputs.
    """
    where = f"{flag} {path}"
    session, kinds = load(path, where, PAIRS, threads)
    if len(session.outputs) != 1 or kinds not in (["uint8"] * 2, ["float32"] * 2):
        raise unfit(session, where, PAIRS)

    def distance(a: Images, b: Images) -> NDArray[np.float64]:
        feeds = dict(zip(session.inputs, (fed(v, kinds[0]) for v in (a, b)), strict=True))
        (found,) = session.run(feeds).values()
        if found.size != len(a):
            raise RecipeError(
                f"gives {list(found.shape)} for {len(a)} pairs", where=where, do=PAIRS
            )
        values = found.reshape(-1).astype(np.float64)
        if not np.isfinite(values).all():
            raise AccuracyError(
                "gives a distance that is not finite", where=where, do="look at the network"
            )
        return values

    try_on(where, image_size, lambda images: distance(images, images))
    return PairNetwork(path.name, distance)


def load(path: Path, where: str, do: str, threads: int) -> tuple[Session, list[str]]:
    try:
        session = fast_session(path, threads)
    except BundleError as error:
        raise RecipeError(error.what, where=where, do=do) from error
    return session, [session.types[name] for name in session.inputs]


def unfit(session: Session, where: str, do: str) -> RecipeError:
    kinds = ", ".join(session.types[name] for name in session.inputs)
    return RecipeError(
        f"has {len(session.inputs)} inputs ({kinds}) and {len(session.outputs)} outputs",
        where=where,
        do=do,
    )


def try_on(where: str, size: int, run: Callable[[Images], Any]) -> Any:
    """Return what a network gives of two black images of a size.

    Raises:
        RecipeError: it does not take them.
    """
    try:
        return run(np.zeros((2, size, size, 3), np.uint8))
    except BundleError as error:
        raise RecipeError(
            f"does not take images of {size}x{size}: {error.what}",
            where=where,
            do="put the resizing that it needs into the graph",
        ) from error


def fed(images: Images, kind: str) -> NDArray[Any]:
    """Return images as a network takes them: uint8 [N, 3, H, W], or float32 in [-1, 1]."""
    if kind == "float32":
        return np.concatenate([to_model(image) for image in images])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
