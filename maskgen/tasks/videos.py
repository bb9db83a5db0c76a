"""Videos with a hole in space and time: which tokens are hidden, and how the hole is filled before encoding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from maskgen.tasks.images import filled


def video_token_mask(
    hidden: Bool[Tensor, "b T H W"], grid: tuple[int, int, int], factor: int = 1
) -> Bool[Tensor, "b t h w"]:
    """A mask of pixels -> a mask of tokens: a token is hidden if any of its pixels is.

    Args:
        hidden: True = hidden.
        grid: the grid (t, h, w) of the tokens.
        factor: the number of frames of each token after the first, which stands for the first frame alone (causal
            tokenizers).
    """
    first = hidden[:, :1].expand(-1, factor - 1, -1, -1)
    return F.adaptive_max_pool3d(torch.cat([first, hidden], 1).float(), grid) > 0


def held(pixels: Float[Tensor, "b c T H W"], hidden: Bool[Tensor, "b T H W"]) -> Float[Tensor, "b c T H W"]:
    """The video with its holes filled. Nothing of the hidden pixels is left in it.

    A hole in a frame takes the colours around it (:func:`maskgen.tasks.images.filled`). A frame that is hidden entirely
    becomes the nearest frame that is not, the earlier one of two; without such a frame it is grey.
    """
    b, t = hidden.shape[:2]
    frames = filled(pixels.transpose(1, 2).flatten(0, 1), hidden.flatten(0, 1)).unflatten(0, (b, t))
    blind = hidden.flatten(2).all(-1)
    apart = (torch.arange(t)[:, None] - torch.arange(t)).abs().to(hidden.device)
    nearest = apart.expand(b, -1, -1).masked_fill(blind[:, None], t).argmin(-1)
    return frames[torch.arange(b, device=hidden.device)[:, None], nearest].transpose(1, 2)
