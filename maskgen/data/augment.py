"""Random changes of training images and clips, each a function of the image and a generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor


class Augmentation:
    """Horizontal flip and random-resized crop.

    Args:
        flip: probability of a horizontal flip.
        crop: least share of the area that a random crop (aspect 3:4 to 4:3, resized back) keeps; 1 is no crop.
    """

    def __init__(self, flip: float = 0.0, crop: float = 1.0):
        if not (0 <= flip <= 1 and 0 < crop <= 1):
            raise ValueError(f"flip lies in [0, 1] and crop in (0, 1], got {flip} and {crop}")
        self.flip, self.crop = flip, crop

    def item(self, pixels: Float[Tensor, "c *t h w"], generator: Generator) -> dict[str, Tensor]:
        """``pixels``: a changed copy of one image or clip."""
        return {"pixels": self(pixels, generator)}

    def __call__(self, pixels: Float[Tensor, "c *t h w"], generator: Generator) -> Float[Tensor, "c *t h w"]:
        """A changed copy of one image, or of one clip with all its frames changed alike, of its own size."""
        flip, area, aspect, y, x = torch.rand(5, generator=generator).tolist()
        if self.crop < 1:
            pixels = _crop(pixels, self.crop + (1 - self.crop) * area, (4 / 3) ** (2 * aspect - 1), y, x)
        return pixels.flip(-1) if flip < self.flip else pixels


class Views:
    """Several views of an image: crops of two scales, with colours changed, blurred and solarised as DINO does
    (Caron et al. 2021, arXiv:2104.14294, section 3; iBOT, arXiv:2111.07832, appendix B).

    Args:
        count: large views, of the image's own size.
        scale: least and greatest share of the area that a large view keeps.
        small: further, smaller views (iBOT 10; 0 in MAGE-C).
        small_size: their side in pixels (96 of 224 in iBOT).
        small_scale: least and greatest share of the area in them.
        flip: probability of a horizontal flip.
        colour: strength of the changes of brightness, contrast, saturation and hue (with probability 0.8), of grey
            (0.2), blur (1.0, 0.1 and 0.5 for the first, the other large, and small views) and solarisation (0.2, the
            other large views); 0 changes no colours.
    """

    def __init__(
        self,
        count: int = 2,
        scale: tuple[float, float] = (0.25, 1.0),
        small: int = 0,
        small_size: int = 96,
        small_scale: tuple[float, float] = (0.05, 0.25),
        flip: float = 0.5,
        colour: float = 1.0,
    ):
        if count < 1 or small < 0 or small_size < 1 or not 0 <= flip <= 1 or colour < 0:
            raise ValueError(
                f"count >= 1, small >= 0, flip in [0, 1], colour >= 0; got {count}, {small}, {flip}, {colour}"
            )
        for low, high in (scale, small_scale):
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"a scale is the least and greatest share of the area, in (0, 1]; got {low} and {high}"
                )
        self.count, self.scale, self.small, self.small_size = count, scale, small, small_size
        self.small_scale, self.flip, self.colour = small_scale, flip, colour

    def item(self, pixels: Float[Tensor, "c *t h w"], generator: Generator) -> dict[str, Tensor]:
        """``views`` (count, c, h, w), which stand beside the image itself, and where there are any ``small_pixels``
        (small, c, small_size, small_size)."""
        if pixels.ndim != 3:
            raise ValueError(
                f"views are of images (c, h, w), got {tuple(pixels.shape)}; for clips set augment.type=standard"
            )
        size = (pixels.shape[1], pixels.shape[2])
        blurs = [(1.0, 0.0)] + [(0.1, 0.2)] * (self.count - 1)
        views = [self._view(pixels, self.scale, size, blur, solar, generator) for blur, solar in blurs]
        found = {"views": torch.stack(views)}
        if self.small:
            small = (self.small_size, self.small_size)
            views = [self._view(pixels, self.small_scale, small, 0.5, 0.0, generator) for _ in range(self.small)]
            found["small_pixels"] = torch.stack(views)
        return found

    def _view(
        self,
        pixels: Tensor,
        scale: tuple[float, float],
        size: tuple[int, int],
        blur: float,
        solarise: float,
        generator: Generator,
    ) -> Float[Tensor, "c h w"]:
        flip, area, aspect, y, x = torch.rand(5, generator=generator).tolist()
        low, high = scale
        view = _crop(pixels, low + (high - low) * area, (4 / 3) ** (2 * aspect - 1), y, x, size)
        view = view.flip(-1) if flip < self.flip else view
        return _recoloured(view, self.colour, blur, solarise, generator) if self.colour else view


def _recoloured(pixels: Tensor, strength: float, blur: float, solarise: float, generator: Generator) -> Tensor:
    """DINO's colour jitter (0.4, 0.4, 0.2, 0.1 times `strength`), grey, Gaussian blur and solarisation."""
    from torchvision.transforms.v2 import functional as change

    draws = torch.rand(9, generator=generator).tolist()
    unit = ((pixels + 1) / 2).clamp(0, 1)
    if draws[0] < 0.8:
        factors = [1 + min(0.99, span * strength) * (2 * u - 1) for span, u in zip((0.4, 0.4, 0.2), draws[1:4])]
        unit = change.adjust_contrast(change.adjust_brightness(unit, factors[0]), factors[1])
        if len(unit) == 3:
            unit = change.adjust_saturation(unit, factors[2])
            unit = change.adjust_hue(unit, min(0.5, 0.1 * strength) * (2 * draws[4] - 1))
    if draws[5] < 0.2 and len(unit) == 3:
        unit = change.rgb_to_grayscale(unit, 3)
    if draws[6] < blur:
        size = 2 * (max(unit.shape[1:]) // 20) + 3  # SimCLR's: a tenth of the image
        unit = change.gaussian_blur(unit, [size, size], [0.1 + 1.9 * draws[7]] * 2)
    if draws[8] < solarise:
        unit = change.solarize(unit, 0.5)
    return unit * 2 - 1


def _crop(
    pixels: Tensor, area: float, aspect: float, y: float, x: float, size: tuple[int, int] | None = None
) -> Tensor:
    """The crop of `area` (share) and `aspect` (relative width over height) at (y, x) in [0, 1), resized to `size`, back
    where None."""
    h, w = pixels.shape[-2:]
    ch = min(h, max(1, round(h * math.sqrt(area / aspect))))
    cw = min(w, max(1, round(w * math.sqrt(area * aspect))))
    top, left = int(y * (h - ch + 1)), int(x * (w - cw + 1))
    piece = pixels[..., top : top + ch, left : left + cw].reshape(1, -1, ch, cw)
    piece = F.interpolate(piece, size or (h, w), mode="bilinear", antialias=True, align_corners=False)
    return piece.reshape(*pixels.shape[:-2], *piece.shape[-2:])


AUGMENTATIONS = {"standard": Augmentation, "views": Views}
