"""How well a tokenizer reconstructs, and how much of its codebook it uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def psnr(made: Float[Tensor, "n c h w"], original: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio of each picture in dB; pixels in [-1, 1] are clipped, so the peak is 2."""
    error = (made.float().clamp(-1, 1) - original.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def codebook_use(codes: Int[Tensor, "n"], codebook_size: int) -> dict[str, float]:
    """``use``: share of codes that occur; ``perplexity``: exp of the entropy of their frequencies."""
    p = torch.bincount(codes, minlength=codebook_size).double() / codes.numel()
    entropy = -(p * p.clamp(min=1e-30).log()).sum()
    return {"use": float((p > 0).double().mean()), "perplexity": float(entropy.exp())}


def spread(dataset: Any, limit: int, batch_size: int = 64) -> Iterator[Float[Tensor, "b c h w"]]:
    """Batches of at most `limit` pictures, evenly spread over a data set."""
    count = min(len(dataset), limit)
    indices = [i * len(dataset) // count for i in range(count)]
    for start in range(0, count, batch_size):
        yield torch.stack([dataset[i]["pixels"] for i in indices[start : start + batch_size]])


@torch.no_grad()
def measure(tokenizer: nn.Module, dataset: Any, limit: int = 2048) -> dict[str, float]:
    """``psnr`` (dB, mean over pictures), ``use`` and ``perplexity`` of the codebook, over `limit` pictures."""
    device = next(tokenizer.parameters()).device
    values, codes = [], []
    for pixels in spread(dataset, limit):
        output = tokenizer(pixels.to(device))
        values.append(psnr(output.pixels.cpu(), pixels))
        codes.append(output.codes.flatten().cpu())
    use = codebook_use(torch.cat(codes), int(tokenizer.codebook_size))  # type: ignore[arg-type]
    return {"psnr": float(torch.cat(values).mean()), **use}
