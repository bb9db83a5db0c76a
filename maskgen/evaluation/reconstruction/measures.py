"""Metrics of reconstructed images, and of the use of a codebook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SSIM_WINDOW = 11


def psnr(made: Float[Tensor, "n c *t h w"], original: Float[Tensor, "n c *t h w"]) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio of each image or video, in dB.

    Pixels are clipped to [-1, 1], so the peak is 2. A perfect copy has 106 dB, not infinity.
    """
    error = (made.float().clamp(-1, 1) - original.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def ssim(made: Float[Tensor, "n c h w"], original: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Structural similarity of each image (Wang et al. 2004), the mean over its pixels and channels.

    The window is Gaussian and 11 pixels wide, and borders are mirrored. Pixels are clipped to [-1, 1] and mapped to
    [0, 1], and `data_range` is 1. The mapping matters because SSIM compares means.

    Raises:
        ValueError: the images are smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(made.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM's window is {SSIM_WINDOW} pixels wide; images are {tuple(made.shape[2:])} (h, w)")
    a, b = ((x.float().clamp(-1, 1) + 1) / 2 for x in (made, original))
    return structural_similarity_index_measure(a, b, data_range=1.0, reduction="none").reshape(len(a))


def codebook_use(codes: Int[Tensor, "n"], codebook_size: int) -> dict[str, float]:
    """``use``, ``perplexity`` and ``dead`` of these codes; see :func:`use_of`."""
    return use_of(torch.bincount(codes, minlength=codebook_size))


def use_of(counts: Int[Tensor, "k"]) -> dict[str, float]:
    """How a codebook is used, from the number of times that each code occurs.

    Returns:
        ``use``, the share of codes that occur; ``perplexity``, the exponential of the entropy of their frequencies;
        and ``dead``, the number of codes that never occur.
    """
    p = counts.double() / counts.sum()
    entropy = -(p * p.clamp(min=1e-30).log()).sum()
    used = int((counts > 0).sum())
    return {"use": used / len(counts), "perplexity": float(entropy.exp()), "dead": float(len(counts) - used)}


def spread_items(dataset: Any, limit: int, batch_size: int = 64) -> Iterator[dict[str, Tensor]]:
    """Batches of at most `limit` items in all, evenly spread over a data set and in its order.

    A batch has ``pixels``, and ``text`` where the data set has text features. All images of a batch have one size.
    """
    count = min(len(dataset), limit)
    batch: list[dict[str, Tensor]] = []
    for i in range(count):
        item = dataset[i * len(dataset) // count]
        if batch and (len(batch) == batch_size or item["pixels"].shape != batch[0]["pixels"].shape):
            yield _stacked(batch)
            batch = []
        batch.append({key: item[key] for key in ("pixels", "text") if key in item})
    if batch:
        yield _stacked(batch)


def _stacked(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def spread(dataset: Any, limit: int, batch_size: int = 64) -> Iterator[Float[Tensor, "b c h w"]]:
    """The images of :func:`spread_items`."""
    return (batch["pixels"] for batch in spread_items(dataset, limit, batch_size))


def text_of(tokenizer: Any, batch: dict[str, Tensor]) -> Float[Tensor, "b t e"] | None:
    """The text features of a batch where the tokenizer's decoder reads them, else None."""
    return batch.get("text") if tokenizer.reads_text else None


@torch.no_grad()
def measure(tokenizer: nn.Module, dataset: Any, limit: int = 2048) -> dict[str, float]:
    """The metrics that are cheap to compute: ``psnr`` (dB, mean over images) and those of :func:`codebook_use`.

    The codes of all quantizers of a residual tokenizer are counted together. Continuous tokens have no codebook, so
    only ``psnr`` is returned.

    Args:
        limit: number of images, evenly spread over the data set.
    """
    device, size = device_of(tokenizer), int(tokenizer.codebook_size)  # type: ignore[arg-type]
    values, counts = [], torch.zeros(size, dtype=torch.int64)
    for batch in spread_items(dataset, limit):
        batch = {key: value.to(device) for key, value in batch.items()}
        output = tokenizer(batch["pixels"], text_of(tokenizer, batch))
        values.append(psnr(output.pixels, batch["pixels"]).cpu())
        if size:
            counts += torch.bincount(output.codes.flatten().cpu(), minlength=size)
    return {"psnr": float(torch.cat(values).mean()), **(use_of(counts) if size else {})}


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's weights, or the CPU for a module without weights."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
