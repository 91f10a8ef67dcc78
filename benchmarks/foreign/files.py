"""List ONNX files of other people, with the samples that each is fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...runtime.images import center_crop
from ...samples.images import open_source

Sample = dict[str, NDArray[Any]]
IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))
WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "42", "lazy", "dogs", "while", "INT8"),
    *("engines", "hum", "softly", "at", "7", "o'clock"),
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """Name a file of a wheel, and make its sample `k`, given a folder of photographs."""

    wheel: str
    member: str
    sample: Callable[[Path, int], Sample]
    data: str


def photograph(images: Path, k: int, size: int) -> NDArray[np.float64]:
    """Return the middle of the k-th image, [3, size, size] in [0, 1]."""
    source = open_source(str(images))
    picture = center_crop(source.load(k % len(source.files)), size)
    pixels: NDArray[np.float64] = np.asarray(picture, np.float64)
    channels: NDArray[np.float64] = pixels.transpose(2, 0, 1) / 255
    return channels


def text_line(k: int, height: int, width: int) -> NDArray[np.float64]:
    """Return words in one grey on another, turned a little and noisy, [height, width]."""
    rng = np.random.default_rng(k)
    back, ink = (int(v) for v in (rng.integers(170, 256), rng.integers(0, 90)))
    if rng.random() < 0.3:
        back, ink = ink, back
    image = Image.new("L", (width, height), back)
    words = " ".join(rng.choice(WORDS, 1 + width // 100))
    font = ImageFont.load_default(size=int(height * rng.uniform(0.5, 0.75)))
    ImageDraw.Draw(image).text((4, int(height * 0.12)), words, fill=ink, font=font)
    turned = image.rotate(float(rng.uniform(-2, 2)), fillcolor=back)
    noisy = np.asarray(turned, np.float64) + rng.normal(0, 4, (height, width))
    return np.clip(noisy, 0, 255) / 255


def light(images: Path, k: int, name: str) -> Sample:
    mean, deviation = (v[:, None, None] for v in IMAGENET)
    return {name: ((photograph(images, k, 224) - mean) / deviation)[None].astype(np.float32)}


def page(images: Path, k: int) -> Sample:
    """Return a photograph with three lines of text over it, 320x320, as the detector takes it."""
    picture = photograph(images, k, 320)
    for row in range(3):
        top = 20 + 100 * row
        picture[:, top : top + 40, 20:300] = text_line(10 * k + row, 40, 280)
    mean, deviation = (v[:, None, None] for v in IMAGENET)
    return {"x": ((picture - mean) / deviation)[None].astype(np.float32)}


def line(_: Path, k: int, height: int, width: int) -> Sample:
    grey = (text_line(k, height, width) - 0.5) / 0.5
    return {"x": np.repeat(grey[None, None], 3, axis=1).astype(np.float32)}


def captcha(_: Path, k: int) -> Sample:
    return {"input1": ((text_line(k, 64, 160) - 0.5) / 0.5)[None, None].astype(np.float32)}


def notes(_: Path, k: int) -> Sample:
    """Return two seconds at 22,050 Hz of two to four decaying notes with overtones and noise."""
    rng = np.random.default_rng(k)
    t = np.arange(43844) / 22050
    wave = rng.normal(0, 0.003, t.shape)
    for _note in range(int(rng.integers(2, 5))):
        pitch, start = 110 * 2 ** (rng.integers(0, 37) / 12), rng.uniform(0, 1.5)
        envelope = np.where(t > start, np.exp(-3 * np.maximum(t - start, 0)), 0)
        for overtone in range(1, 7):
            wave += envelope * np.sin(2 * np.pi * pitch * overtone * t) / overtone / 6
    return {"serving_default_input_2:0": wave[None, :, None].astype(np.float32)}


def speech(_: Path, k: int) -> Sample:
    """Return 32 ms at 16 kHz of a voiced or an unvoiced sound."""
    rng = np.random.default_rng(k)
    t = np.arange(576) / 16000
    voiced = sum(np.sin(2 * np.pi * f * t) / n for n, f in enumerate((120, 240, 480, 960), 1))
    wave = 0.2 * voiced if k % 2 else rng.normal(0, 0.05, t.shape)
    return {
        "input": np.asarray(wave, np.float32)[None],
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000),
    }


OCR, DDDD, ONNX = "rapidocr-onnxruntime==1.4.4", "ddddocr==1.6.1", "onnx==1.23.2"
LIGHT_INPUT = {"resnet50": "gpu_0/data_0", "vgg19": "data_0", "densenet121": "data_0"}
LIGHT_INPUT["shufflenet"] = "gpu_0/data_0"
PHOTOGRAPHS, LINES = "photographs", "rendered lines of text"
MODELS: dict[str, Foreign] = {
    "ch_PP-OCRv4_det_infer": Foreign(
        OCR, "ch_PP-OCRv4_det_infer.onnx", page, "text on photographs"
    ),
    "ch_PP-OCRv4_rec_infer": Foreign(
        OCR, "ch_PP-OCRv4_rec_infer.onnx", lambda i, k: line(i, k, 48, 320), LINES
    ),
    "ch_ppocr_mobile_v2.0_cls_infer": Foreign(
        OCR, "ch_ppocr_mobile_v2.0_cls_infer.onnx", lambda i, k: line(i, k, 48, 192), LINES
    ),
    "silero_vad": Foreign("silero-vad==6.2.3", "data/silero_vad.onnx", speech, "synthetic sounds"),
    "nmp": Foreign("basic-pitch==0.4.0", "icassp_2022/nmp.onnx", notes, "synthetic notes"),
    "common": Foreign(DDDD, "ddddocr/common.onnx", captcha, LINES),
    "common_old": Foreign(DDDD, "ddddocr/common_old.onnx", captcha, LINES),
}


def light_model(name: str, held: str) -> Foreign:
    """Return a network of the onnx wheel whose weights are all one number."""
    return Foreign(ONNX, f"light_{name}.onnx", lambda i, k: light(i, k, held), PHOTOGRAPHS)


MODELS |= {f"light_{name}": light_model(name, held) for name, held in LIGHT_INPUT.items()}
