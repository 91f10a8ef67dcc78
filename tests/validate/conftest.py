"""A tiny real tokenizer, and reports made by measuring it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from arvg_trt.engines.facts import EngineRow, SiteException
from arvg_trt.quantize.facts import SiteRow
from arvg_trt.validate.measure.tokenizer_accuracy import ComparedImage, measure
from arvg_trt.validate.metrics.latency import Cpu, Latency, ratio
from arvg_trt.validate.report.gates import evaluate, parse_gates
from arvg_trt.validate.report.schema import (
    METRIC_NAMES,
    Data,
    LatencyRow,
    Report,
    metrics,
    sizes,
)

LEVELS = 16


@dataclass(frozen=True)
class GreyCodec:
    """4 x 4 patch means on a grid of LEVELS greys; `offset` moves the latent, `gain` the output."""

    offset: float = 0.0
    gain: float = 1.0
    continuous: bool = False

    def encode(
        self, image: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32] | None, NDArray[np.float32]]:
        _, channels, height, width = image.shape
        patches = image.reshape(1, channels, height // 4, 4, width // 4, 4)
        latent = (patches.mean(axis=(1, 3, 5))[:, None] + self.offset).astype(np.float32)
        if self.continuous:
            return None, latent
        level = np.floor((latent[:, 0] + 1) / 2 * LEVELS)
        return np.clip(level, 0, LEVELS - 1).astype(np.int32), latent

    def decode(self, code: NDArray[np.int32] | NDArray[np.float32]) -> NDArray[np.float32]:
        grey = code[:, 0] if self.continuous else (code + 0.5) / LEVELS * 2 - 1
        wide = np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)
        return (np.stack([wide] * 3, axis=1) * self.gain).astype(np.float32)


def make_images(count: int = 3) -> list[tuple[str, NDArray[np.uint8]]]:
    random = np.random.default_rng(7)
    coarse = random.integers(0, 256, (count, 6, 5, 3))
    fine = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)
    noisy = fine + random.integers(-20, 21, fine.shape)
    return [(f"set/{i}.png", image) for i, image in enumerate(noisy.clip(0, 255).astype(np.uint8))]


@dataclass(frozen=True)
class Made:
    report: Report
    pictures: list[ComparedImage]


MakeReport = Callable[..., Made]


@pytest.fixture
def make_report() -> MakeReport:
    def make(
        *,
        engine: GreyCodec | None = None,
        gates: tuple[str, ...] = (),
        engine_ms: float = 5.0,
        name: str = "w8a8",
    ) -> Made:
        images = make_images()
        accuracy, pictures = measure(
            images,
            GreyCodec(),
            {"qdq": GreyCodec(offset=0.01), "engine": engine or GreyCodec(offset=0.02)},
            codebook_size=LEVELS,
            keep_images=2,
            progress=lambda done: None,
        )
        fp32, fast = Latency.of([10.0] * 10), Latency.of([engine_ms] * 10)
        row = LatencyRow(
            fp32=fp32,
            engine=fast,
            speed=ratio(fp32, fast),
            shape=(1, 3, 24, 20),
            batch=1,
            threads=2,
        )
        report = Report(
            model="grey-mini",
            name=name,
            versions={"numpy": np.__version__},
            cpu=Cpu(model="Test CPU", flags=("avx512_vnni",)),
            data=Data(validation=tuple(n for n, _ in images), calibration=("other.png",)),
            sizes=sizes(
                fp32_graph_bytes={"encoder": 5000, "decoder": 3_000_000},
                fp32_weight_bytes=4_000_000,
                packed_weight_bytes=1_000_000,
                fp32_running_bytes=4_200_000,
                running_bytes={"qdq": 1_400_000, "engine": 1_200_000},
            ),
            accuracy=accuracy,
            latency={"total": row},
            engines=(
                EngineRow(
                    backend="tensorrt-rtx",
                    target="rtx4090",
                    precision="int8",
                    graph="decoder",
                    bytes=1_500_000,
                    build_seconds=12.5,
                    int8_sites_planned=3,
                    int8_sites_proved=2,
                    exceptions=(SiteException(site="up.0|conv", reason="no INT8 kernel"),),
                    status="built, not executed",
                ),
            ),
            sites=(
                SiteRow(
                    name="up.0|conv",
                    graph="decoder",
                    weight="int8 per channel",
                    activation="int8",
                    weight_sqnr_db=41.25,
                ),
            ),
        )
        results = evaluate(parse_gates(gates, METRIC_NAMES), metrics(report))
        return Made(
            Report(
                **{field: getattr(report, field) for field in report.__struct_fields__}
                | {"gates": tuple(results)}
            ),
            pictures,
        )

    return make
