"""Generate images from class labels with a generator's graphs, without torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import GenerationError, OutOfMemory
from .bundle.open import Place, access_by, located
from .families import read_family
from .folders import OpenPlaced, opener, placed_spec, read_spec, verified_spec
from .images import Uint8Image, from_model
from .labels import check_labels
from .loop import Latents, Loop, OpenSession
from .sampling import Sampling, Tokens, image_streams
from .sessions.open import fast_session, mapped_session
from .sessions.session import Session, fallbacks
from .spec import TEACHER_FORCED as TEACHER_FORCED
from .spec import GeneratorSpec

BATCH_SIZE = 4
# Graphs of an export that no loop opens: the teacher-forced graph, and the encoder of images.
OTHER_GRAPHS = (TEACHER_FORCED, "encoder", "lookup")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Generated:
    """Hold uint8 images [N, H, W, 3] and their tokens, int32 [N, L], one row a label.

    Where tokens are continuous, they are latents, float32 [N, c, h, w].
    """

    labels: NDArray[np.int64]
    images: Uint8Image
    tokens: NDArray[np.int32] | Latents


class Generator:
    """Generate images with a model's graphs, which are opened once.

    An image depends on the seed, its number in the call, its label and the sampling: how the call
    is cut into batches changes no more than the backend's rounding.
    """

    def __init__(self, loop: Loop, spec: GeneratorSpec, fallbacks: tuple[str, ...] = ()) -> None:
        """Take a loop; `fallbacks` say what of its graphs runs on the CPU instead of the GPU."""
        self._loop = loop
        self.spec = spec
        self.fallbacks = fallbacks

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        session: OpenSession | None = None,
        device: str = "auto",
        allow_fallback: bool = False,
        threads: int = 0,
        verify: bool = True,
        require_keys: Place | Sequence[Place] = (),
    ) -> Generator:
        """Open a workspace, a bundle, or a folder with `generator.json` and the graphs beside it.

        Without a `session` they run on the `device`, cpu, cuda:0 or auto (a GPU where one can be
        used); on the CPU graphs of fixed shapes are opened with the weights that they share in
        memory once, others for speed. Without `verify` the files are taken as they lie there.
        A bundle must be signed by one of `require_keys`, files of public keys.

        Raises:
            WorkspaceError: no generator was exported there, its description cannot be read, or
                the folder is not what its stage wrote.
            BundleError: a graph is missing or does not load; no such device; engines that do not
                run here; or, unless `allow_fallback`, a part of a graph that would run on the CPU
                instead of the GPU.
            IntegrityError: the bundle is damaged, changed, or not signed as this device requires.
            OutOfMemory: the weights do not fit.
        """
        place = located(Path(path), device, access_by(require_keys), wants="generator")
        if not verify:
            folder, spec = read_spec(place)
        elif session is not None:
            folder, spec = verified_spec(place)
        else:
            folder, spec = placed_spec(place, device)
        session = session or opener(
            folder,
            default_session(spec),
            device,
            allow_fallback=allow_fallback,
            static=spec.static_batch is not None,
        )
        opened: list[Session] = []

        def keeping(path: Path, threads: int) -> Session:
            opened.append(session(path, threads))
            return opened[-1]

        loop = read_family(folder).open_loop(folder, spec, keeping, threads)
        return cls(loop, spec, fallbacks(opened))

    def generate(
        self,
        labels: Sequence[int] | NDArray[np.integer],
        *,
        seed: int = 0,
        cfg: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        cfg_power: float | None = None,
        iterations: int | None = None,
        diffusion_steps: int | None = None,
        greedy: bool = False,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
    ) -> Generated:
        """Generate one image per label, 0 to num_classes - 1.

        `cfg` >= 0, `top_k` (0: all), `top_p` in (0, 1], `temperature` > 0, (RAR, MAR) `cfg_power`
        >= 0 and (MAR, which has no top-k and top-p) `iterations` and `diffusion_steps` are the
        model's own where not given; `greedy` takes the arg-max, of a MAR diffusions without added
        noise. `progress` is called with the steps done and their total.

        Raises:
            GenerationError: a label or option out of its range, logits that are not finite.
            OutOfMemory: a batch does not fit.
        """
        sampling = choose_sampling(
            self.spec,
            greedy,
            cfg=cfg,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            cfg_power=cfg_power,
            iterations=iterations,
            diffusion_steps=diffusion_steps,
        )
        parts = list(
            self.batches(
                labels, seed=seed, sampling=sampling, batch_size=batch_size, progress=progress
            )
        )
        return Generated(
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.tokens for part in parts]),
        )

    def batches(
        self,
        labels: Sequence[int] | NDArray[np.integer],
        *,
        seed: int,
        sampling: Sampling,
        batch_size: int = BATCH_SIZE,
        first: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[Generated]:
        """Generate a batch of images at a time, for more images than fit in memory.

        `first` is the number of the first image, where the labels are a part of a longer list.
        Graphs of a fixed batch take no more than that at once. Everything is checked before this
        returns; errors are those of `generate`.
        """
        checked = check_labels(self.spec, labels)
        sampling.check(self.spec.vocab_size, self.spec.length)
        for name, value, least in (
            ("seed", seed, 0),
            ("batch_size", batch_size, 1),
            ("first", first, 0),
        ):
            if operator.index(value) < least:
                raise GenerationError(f"{name} is {value}, not {least} or more", where="sampling")
        most = min(batch_size, self.spec.static_batch or batch_size)
        return self._run(checked, seed, sampling, most, first, progress)

    def _run(
        self,
        labels: NDArray[np.int64],
        seed: int,
        sampling: Sampling,
        batch_size: int,
        first: int,
        progress: Progress | None,
    ) -> Iterator[Generated]:
        starts = range(0, len(labels), batch_size)
        total, done = len(starts) * (sampling.iterations or self.spec.steps), 0

        def tick() -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done, total)

        for start in starts:
            part = labels[start : start + batch_size]
            streams = image_streams(seed, first + start, len(part))
            try:
                images, tokens = self._loop.run(part, streams, sampling, tick)
            except MemoryError as error:
                raise OutOfMemory(
                    f"out of memory with {len(part)} images at once", do="use a smaller batch"
                ) from error
            pictures = np.stack([from_model(image[None]) for image in images])
            yield Generated(part, pictures, stored(tokens))


def stored(tokens: Tokens | Latents) -> NDArray[np.int32] | Latents:
    """Return tokens as int32, as files store them, and latents unchanged."""
    return tokens.astype(np.int32) if np.issubdtype(tokens.dtype, np.integer) else tokens  # type: ignore[return-value]


def default_session(spec: GeneratorSpec) -> OpenPlaced:
    """Return how a generator's graphs are opened by default."""
    return fast_session if spec.static_batch is None else mapped_session


def choose_sampling(spec: GeneratorSpec, greedy: bool = False, **changes: float | None) -> Sampling:
    """Return the model's own sampling, with the given `changes` by names of `Sampling`.

    Raises:
        GenerationError: a value out of its range, or one that the family has no use for.
    """
    changed = {name: value for name, value in changes.items() if value is not None}
    own = {name: getattr(spec.defaults, name) for name in spec.defaults.__struct_fields__}
    unused = set() if spec.vocab_size else {"top_k", "top_p"}
    taken = {name for name, value in own.items() if value is not None} - unused
    if foreign := changed.keys() - taken:
        named = ", ".join(sorted(foreign))
        do = f"leave it out; it takes {', '.join(sorted(taken))}"
        raise GenerationError(f"{named} is not this family's", do=do)
    chosen = Sampling(**own | changed, greedy=greedy)
    chosen.check(spec.vocab_size, spec.length)
    return chosen
