"""Which tokens are hidden: from an image's mask, from a box, or a share of them at random. True = hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Generator, Tensor

from maskgen.tokenizer.model import Tokenizer


def token_mask(hidden: Bool[Tensor, "b H W"], grid: tuple[int, int], dilation: int = 0) -> Bool[Tensor, "b h w"]:
    """The one rule from a mask of pixels to a mask of tokens: a token is hidden if any of its pixels is.

    The mask may have any resolution: token (i, j) covers the rows from floor(i H / h) to ceil((i + 1) H / h) and the
    columns likewise.

    Args:
        hidden: True = to be drawn anew.
        grid: (h, w) of the tokens.
        dilation: also hide the tokens at most so far, diagonals included, from a hidden one.

    Raises:
        ValueError: a negative dilation.
    """
    if dilation < 0:
        raise ValueError(f"dilation is {dilation}; give the tokens by which the hidden region grows, from 0")
    covered = F.adaptive_max_pool2d(hidden[:, None].float(), grid)
    return F.max_pool2d(covered, 2 * dilation + 1, stride=1, padding=dilation)[:, 0] > 0


def receptive_radius(tokenizer: Tokenizer, size: tuple[int, int], share: float = 2 / 3) -> int:
    """How many tokens around a token see its pixels: the smallest radius within which `share` of the encoder's
    response to them lies.

    It is measured: the gradient of the middle token's latent by random pixels, its magnitude summed token by token. All
    of it would be the whole image wherever there is a global norm or attention.

    Args:
        size: (H, W) of the image.
        share: in (0, 1].
    """
    grid = tokenizer.grid(size)
    if len(grid) != 2:
        raise ValueError("1-D tokens have no place in the image, and no receptive field around it")
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
    """True inside `box` (left, top, right, bottom; right and bottom outside, as PIL's).

    Raises:
        ValueError: not four numbers, an empty box, or one that is not inside the image.
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
    """`count` masks that hide ceil(share * tokens) tokens, drawn at random.

    Those of a smaller share are among those of a larger one with the same generator's state.

    Raises:
        ValueError: a share outside [0, 1]; as many generators as masks are needed, or one.
    """
    rank = ranks(count, math.prod(grid), generator)
    return (rank < math.ceil(round(check_share(share) * rank.shape[1], 6))).view(count, *grid)


def ranks(count: int, tokens: int, generator: Generator | list[Generator] | None) -> Tensor:
    """A random order of the tokens, int64 (count, tokens), each row from its own generator where a list is given."""
    if isinstance(generator, list):
        if len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} images; give one, or one an image")
        noise = [torch.rand(tokens, generator=g, device=g.device).cpu() for g in generator]
        return torch.stack(noise).argsort(1).argsort(1)
    where = "cpu" if generator is None else generator.device
    return torch.rand(count, tokens, generator=generator, device=where).cpu().argsort(1).argsort(1)


def check_share(share: float, what: str = "strength") -> float:
    """`share`, if it is in [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"{what} {share} must lie between 0 (nothing is drawn anew) and 1 (everything is)")
    return share
