"""How well a tokenizer reconstructs, and how much of its codebook it uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SSIM_WINDOW = 11


def psnr(made: Float[Tensor, "n c *t h w"], original: Float[Tensor, "n c *t h w"]) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio of each image or video in dB; pixels in [-1, 1] are clipped, so the peak is 2.

    A perfect copy has 106 dB, not infinity.
    """
    error = (made.float().clamp(-1, 1) - original.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def ssim(made: Float[Tensor, "n c h w"], original: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Structural similarity of each image (Wang et al. 2004), the mean over its places and channels.

    The window is Gaussian, 11 wide, and borders are mirrored. Pixels in [-1, 1] are clipped and brought to [0, 1], with
    `data_range` 1: SSIM compares means, so it matters where zero is.

    Raises:
        ValueError: images smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(made.shape[2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM's window is {SSIM_WINDOW} pixels wide; images are {tuple(made.shape[2:])} (h, w)")
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


def spread_items(dataset: Any, limit: int, batch_size: int = 64) -> Iterator[dict[str, Tensor]]:
    """Batches of at most `limit` items, evenly spread over a data set, in order: ``pixels``, and ``text`` where there
    are text features; the images of a batch have one size.
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
    """The batch's text features for a decoder that reads them, else None."""
    return batch.get("text") if tokenizer.reads_text else None


@torch.no_grad()
def measure(tokenizer: nn.Module, dataset: Any, limit: int = 2048) -> dict[str, float]:
    """The cheap numbers: ``psnr`` (dB, mean over images) and what :func:`codebook_use` says, over `limit` images.

    Codes of several levels count alike, as if they stood side by side; continuous tokens have no codebook to use.
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
    """Where a module's weights are; the CPU where it has none, as patches as they are."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
