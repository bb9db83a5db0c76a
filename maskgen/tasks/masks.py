"""Masks of tokens from masks of pixels, from boxes, or at random. True = hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Generator, Tensor

from maskgen.tokenizer.model import Tokenizer


def token_mask(hidden: Bool[Tensor, "b H W"], grid: tuple[int, int], dilation: int = 0) -> Bool[Tensor, "b h w"]:
    """A mask of pixels -> a mask of tokens: a token is hidden if any of its pixels is.

    The mask of pixels may have any resolution. Token (i, j) covers the rows from floor(i H / h) to ceil((i + 1) H / h),
    and the columns likewise.

    Args:
        hidden: True = hidden.
        grid: the grid (h, w) of the tokens.
        dilation: also hide the tokens within this distance of a hidden one, diagonals included.

    Raises:
        ValueError: the dilation is negative.
    """
    if dilation < 0:
        raise ValueError(f"dilation is {dilation}; give the tokens by which the hidden region grows, at least 0")
    covered = F.adaptive_max_pool2d(hidden[:, None].float(), grid)
    return F.max_pool2d(covered, 2 * dilation + 1, stride=1, padding=dilation)[:, 0] > 0


def receptive_radius(tokenizer: Tokenizer, size: tuple[int, int], share: float = 2 / 3) -> int:
    """The smallest radius in tokens within which `share` of the encoder's response to a token's pixels lies.

    It is measured: the gradient of the latent of the middle token by random pixels, whose magnitude is summed for each
    token. With share 1 it would be the whole image for any encoder with a global norm or attention.

    Args:
        size: (H, W) of the image.
        share: in (0, 1].

    Raises:
        ValueError: the tokens are a 1-D sequence.
    """
    grid = tokenizer.grid(size)
    if len(grid) != 2:
        raise ValueError("1-D tokens have no position in the image and no receptive field around it")
    noise = torch.Generator().manual_seed(0)
    like = next(tokenizer.encoder.parameters(), torch.zeros(()))
    pixels = torch.randn(4, tokenizer.channels, *size, generator=noise).clamp(-1, 1).to(like).requires_grad_()
    with torch.enable_grad():
        latents = tokenizer.encoder(pixels)
        middle = latents[:, :, grid[0] // 2, grid[1] // 2]
        weights = torch.randn(middle.shape, generator=noise).to(middle)
        (gradient,) = torch.autograd.grad((middle * weights).sum(), pixels)
    response = F.adaptive_avg_pool2d(gradient.abs().sum((0, 1))[None], grid)[0]
    rows, columns = (torch.arange(n, device=response.device) - n // 2 for n in grid)
    distance = torch.maximum(rows.abs()[:, None], columns.abs())
    within = torch.stack([response[distance <= r].sum() for r in range(int(distance.max()) + 1)])
    return int((within < share * response.sum()).sum().clamp(max=len(within) - 1))


def box_mask(size: tuple[int, int], box: Sequence[int]) -> Bool[Tensor, "H W"]:
    """True inside `box` (left, top, right, bottom), right and bottom excluded as in PIL.

    Raises:
        ValueError: the box has not four numbers, is empty, or is not inside the image.
    """
    height, width = size
    if len(box) != 4:
        raise ValueError(f"box {tuple(box)} has {len(box)} numbers; give left, top, right, bottom in pixels")
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"box {tuple(box)} (left, top, right, bottom) must lie in the image, 0 <= left < right <= {width} and "
            f"0 <= top < bottom <= {height}"
        )
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def share_mask(
    count: int, grid: Sequence[int], share: float, generator: Generator | list[Generator] | None = None
) -> Bool[Tensor, "b *grid"]:
    """`count` masks that hide ceil(share * tokens) random tokens.

    With the same state of the generator, a smaller share hides a subset of the tokens of a larger one.

    Raises:
        ValueError: the share is outside [0, 1], or the number of generators is neither 1 nor `count`.
    """
    rank = ranks(count, math.prod(grid), generator)
    return (rank < math.ceil(round(check_share(share) * rank.shape[1], 6))).view(count, *grid)


def ranks(count: int, tokens: int, generator: Generator | list[Generator] | None) -> Tensor:
    """Random ranks of the tokens, int64 (count, tokens); a list of generators has one per row."""
    if isinstance(generator, list):
        if len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} images; give one, or one per image")
        noise = [torch.rand(tokens, generator=g, device=g.device).cpu() for g in generator]
        return torch.stack(noise).argsort(1).argsort(1)
    where = "cpu" if generator is None else generator.device
    return torch.rand(count, tokens, generator=generator, device=where).cpu().argsort(1).argsort(1)


def check_share(share: float, what: str = "strength") -> float:
    """Return `share`, or raise ValueError if it is outside [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"{what} {share} must lie between 0 (nothing is generated) and 1 (everything is)")
    return share
