"""How well a tokenizer reconstructs, and how much of its codebook it uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SSIM_WINDOW = 11


def psnr(made: Float[Tensor, "n c h w"], original: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio of each picture in dB; pixels in [-1, 1] are clipped, so the peak is 2.

    A perfect copy has 106 dB, not infinity.
    """
    error = (made.float().clamp(-1, 1) - original.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def ssim(made: Float[Tensor, "n c h w"], original: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Structural similarity of each picture (Wang et al. 2004), the mean over its places and channels.

    The window is Gaussian, 11 wide, and borders are mirrored. Pixels in [-1, 1] are clipped and brought to [0, 1], with
    `data_range` 1: SSIM compares means, so it matters where zero is.

    Raises:
        ValueError: pictures smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(made.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM's window is {SSIM_WINDOW} pixels wide; pictures are {tuple(made.shape[2:])} (h, w)")
    a, b = ((x.float().clamp(-1, 1) + 1) / 2 for x in (made, original))
    return structural_similarity_index_measure(a, b, data_range=1.0, reduction="none").reshape(len(a))


def codebook_use(codes: Int[Tensor, "n"], codebook_size: int) -> dict[str, float]:
    """``use``, ``perplexity`` and ``dead`` of these codes, see :func:`use_of`."""
    return use_of(torch.bincount(codes, minlength=codebook_size))


def use_of(counts: Int[Tensor, "k"]) -> dict[str, float]:
    """Of how often each code occurs: ``use``, the share of codes that do; ``perplexity``, exp of the entropy of their
    frequencies; ``dead``, the number of codes that never occur.
    """
    p = counts.double() / counts.sum()
    entropy = -(p * p.clamp(min=1e-30).log()).sum()
    used = int((counts > 0).sum())
    return {"use": used / len(counts), "perplexity": float(entropy.exp()), "dead": float(len(counts) - used)}


def spread(dataset: Any, limit: int, batch_size: int = 64) -> Iterator[Float[Tensor, "b c h w"]]:
    """Batches of at most `limit` pictures, evenly spread over a data set, in order; those of a batch have one size."""
    count = min(len(dataset), limit)
    batch: list[Tensor] = []
    for i in range(count):
        pixels = dataset[i * len(dataset) // count]["pixels"]
        if batch and (len(batch) == batch_size or pixels.shape != batch[0].shape):
            yield torch.stack(batch)
            batch = []
        batch.append(pixels)
    if batch:
        yield torch.stack(batch)


@torch.no_grad()
def measure(tokenizer: nn.Module, dataset: Any, limit: int = 2048) -> dict[str, float]:
    """The cheap numbers: ``psnr`` (dB, mean over pictures) and what :func:`codebook_use` says, over `limit` pictures.

    Codes of several levels count alike, as if they stood side by side; continuous tokens have no codebook to use.
    """
    device, size = device_of(tokenizer), int(tokenizer.codebook_size)  # type: ignore[arg-type]
    values, counts = [], torch.zeros(size, dtype=torch.int64)
    for pixels in spread(dataset, limit):
        output = tokenizer(pixels.to(device))
        values.append(psnr(output.pixels.cpu(), pixels))
        if size:
            counts += torch.bincount(output.codes.flatten().cpu(), minlength=size)
    return {"psnr": float(torch.cat(values).mean()), **(use_of(counts) if size else {})}


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; the CPU where it has none, as patches as they are."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
