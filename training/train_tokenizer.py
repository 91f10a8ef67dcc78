"""Train a mini's tokenizer on 64x64 pictures: VAR's VQVAE, or that of another family.

    python -m arvg_trt.training.train_tokenizer rar-mini --data DIR --output models/rar-mini

DIR holds the Tiny ImageNet archive; pictures k < 450 of each class are trained on, the others
measured on. The loss is mean absolute plus mean squared error of the image, the quantizer's, and,
for all but var-mini, that of `perception`. Codes that go unused take the place of a random vector
of the batch. Weights are an exponential moving average, saved as float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .loop import Run, Schedule, step_generator, tell, write_record
from .perception import Perception, difference, train_perception
from .tiny_imagenet import archive_digest, load_images, to_signed, training_batch
from .tokenizer_minis import MINIS, Quantized, TokenizerMini

WARMUP = 1 / 12  # share of all steps
EMA_SPAN = 1 / 3.6  # span of the average, as a share of all steps
RESTART_EVERY = 50
RESTART_UNTIL = 0.7  # share of all steps; afterwards the codebook only converges
RARE = 0.03  # share of the mean use


def losses(
    mini: TokenizerMini, model: nn.Module, images: Tensor, perception: Perception | None
) -> tuple[Tensor, Tensor, Quantized]:
    """Return the loss of the pixels, that of perception, and the quantized latent.

    Convolutions are in bfloat16, the rest in float32.
    """
    with torch.autocast(images.device.type, torch.bfloat16):
        latent = mini.encode(model, images)
    quantized = mini.quantize(model, latent.float())
    with torch.autocast(images.device.type, torch.bfloat16):
        decoded = mini.decode(model, quantized.through).float()
    pixels = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
    if perception is None:
        return pixels, torch.zeros(()), quantized
    return pixels, mini.perception * difference(perception, decoded, images), quantized


def restart_codes(
    tables: Sequence[Tensor], use: Tensor, vectors: Tensor, generator: torch.Generator
) -> int:
    """Give rarely used codes a random vector in every table [V, C]; return their number."""
    rare = (use < RARE * use.mean()).nonzero().flatten()
    chosen = torch.randint(len(vectors), (len(rare),), generator=generator).to(vectors.device)
    for table in tables:
        table[rare] = vectors[chosen]
    return len(rare)


@torch.no_grad()
def held_out_psnr(
    mini: TokenizerMini, weights: dict[str, Tensor], images: Tensor, device: str
) -> float:
    """Return the mean over images of the PSNR of 8-bit reconstructions."""
    model = mini.build().to(device)
    model.load_state_dict(weights)
    model.eval()
    values = []
    for part in torch.split(images, 50):
        wanted = part.to(device)
        found = mini.round_trip(model, to_signed(wanted)).clamp(-1, 1)
        error = ((found + 1) * 127.5).round() - wanted.float()
        values.append(10 * torch.log10(255**2 / error.square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())


@click.command()
@click.argument("name", type=click.Choice(sorted(MINIS)))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--steps", default=3600, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--peak-lr", default=1.5e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    name: str,
    data: Path,
    output: Path,
    steps: int,
    batch: int,
    peak_lr: float,
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Train, resume from the state in OUTPUT if it is there, and write the weights."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    mini = MINIS[name]
    training, held_out = load_images(data)
    output.mkdir(parents=True, exist_ok=True)
    stem = Path(mini.file).stem
    perception = None
    if mini.perception:
        perception = train_perception(training, output / "perception.pt", seed).to(device)
    torch.manual_seed(seed)
    model = mini.build().to(device)
    groups = [{"params": list(model.parameters()), "weight_decay": 1e-4}]
    schedule = Schedule(steps, peak_lr, warmup=round(WARMUP * steps))
    tables = [model.get_parameter(name).data for name in (mini.codebook,) if name]
    use = torch.zeros(len(tables[0]) if tables else 0, device=device)
    path = output / f"{stem}_state.pt"
    decay = 1 - 1 / (EMA_SPAN * steps)
    run = Run(model, groups, schedule, path, ema_decay=decay, buffers={"use": use})
    if mini.codebook is not None:
        tables.append(run.average[mini.codebook])
    for step in run.steps():
        torch.manual_seed(step)  # seeds draws inside the model, the same after resuming
        images = training_batch(training, step, seed, batch, mini.most_shift)[0].to(device)
        pixels, perceived, quantized = losses(mini, model, images, perception)
        run.update(pixels + perceived + quantized.loss, step)
        if quantized.use is not None and quantized.vectors is not None:
            use += quantized.use
            if step % RESTART_EVERY == 0 and step < RESTART_UNTIL * steps:
                restart_codes(tables, use, quantized.vectors, step_generator(seed, step))
                use.zero_()
        run.log(pixels=pixels.item(), perceived=perceived.item(), codes=quantized.loss.item())
        if run.is_measured(step):
            psnr = held_out_psnr(mini, run.average, held_out.images, device)
            run.say(step + 1, f"held-out PSNR {psnr:.2f} dB")
    run.average.update(model.named_buffers())
    weights = {k: v.to("cpu", torch.float16).contiguous() for k, v in run.average.items()}
    save_file(weights, output / mini.file)
    tell(output, mini.config)
    write_record(
        output / f"{stem}_training.json",
        schedule,
        run.seconds,
        batch=batch,
        seed=seed,
        device=device,
        held_out_psnr=round(held_out_psnr(mini, run.average, held_out.images, device), 3),
        data_sha256=archive_digest(data),
    )


if __name__ == "__main__":
    main()
