"""Random augmentation of training images and clips, as functions of the pixels and a generator."""

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
        crop: smallest share of the area that a random crop keeps (aspect ratio 3:4 to 4:3, resized to the original
            size); 1 means no crop.
    """

    def __init__(self, flip: float = 0.0, crop: float = 1.0):
        if not (0 <= flip <= 1 and 0 < crop <= 1):
            raise ValueError(f"flip lies in [0, 1] and crop in (0, 1], got {flip} and {crop}")
        self.flip, self.crop = flip, crop

    def item(self, pixels: Float[Tensor, "c *t h w"], generator: Generator) -> dict[str, Tensor]:
        """``pixels``: an augmented copy of one image or clip."""
        return {"pixels": self(pixels, generator)}

    def __call__(self, pixels: Float[Tensor, "c *t h w"], generator: Generator) -> Float[Tensor, "c *t h w"]:
        """An augmented copy of one image, or of one clip whose frames are all changed alike, with the same size."""
        flip, area, aspect, y, x = torch.rand(5, generator=generator).tolist()
        if self.crop < 1:
            pixels = _crop(pixels, self.crop + (1 - self.crop) * area, (4 / 3) ** (2 * aspect - 1), y, x)
        return pixels.flip(-1) if flip < self.flip else pixels


class Views:
    """Several views of an image: crops at two scales with DINO's colour jitter, blur and solarisation (Caron et al.
    2021, arXiv:2104.14294, section 3; iBOT, arXiv:2111.07832, appendix B).

    Args:
        count: number of large views, which have the size of the image.
        scale: smallest and largest share of the area that a large view keeps.
        small: number of additional small views (iBOT 10; MAGE-C 0).
        small_size: side of the small views in pixels (iBOT 96 for images of 224).
        small_scale: smallest and largest share of the area that a small view keeps.
        flip: probability of a horizontal flip.
        colour: strength of the jitter of brightness, contrast, saturation and hue (probability 0.8). Unless it is 0,
            views also become grey (0.2), are blurred (1.0 for the first large view, 0.1 for the other large views, 0.5
            for small ones) and solarised (0.2, the other large views only).
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
                    f"a scale is the smallest and largest share of the area, in (0, 1]; got {low} and {high}"
                )
        self.count, self.scale, self.small, self.small_size = count, scale, small, small_size
        self.small_scale, self.flip, self.colour = small_scale, flip, colour

    def item(self, pixels: Float[Tensor, "c *t h w"], generator: Generator) -> dict[str, Tensor]:
        """``views`` (count, c, h, w), which do not replace the image itself, and, if `small` is above 0,
        ``small_pixels`` (small, c, small_size, small_size)."""
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

    u = torch.rand(9, generator=generator).tolist()
    unit = ((pixels + 1) / 2).clamp(0, 1)
    if u[0] < 0.8:
        factors = [1 + min(0.99, span * strength) * (2 * x - 1) for span, x in zip((0.4, 0.4, 0.2), u[1:4])]
        unit = change.adjust_contrast(change.adjust_brightness(unit, factors[0]), factors[1])
        if len(unit) == 3:
            unit = change.adjust_saturation(unit, factors[2])
            unit = change.adjust_hue(unit, min(0.5, 0.1 * strength) * (2 * u[4] - 1))
    if u[5] < 0.2 and len(unit) == 3:
        unit = change.rgb_to_grayscale(unit, 3)
    if u[6] < blur:
        size = 2 * (max(unit.shape[1:]) // 20) + 3  # SimCLR's: a tenth of the image
        unit = change.gaussian_blur(unit, [size, size], [0.1 + 1.9 * u[7]] * 2)
    if u[8] < solarise:
        unit = change.solarize(unit, 0.5)
    return unit * 2 - 1


def _crop(
    pixels: Tensor, area: float, aspect: float, y: float, x: float, size: tuple[int, int] | None = None
) -> Tensor:
    """The crop with a share `area` of the image and the relative aspect ratio `aspect` (width over height) at (y, x) in
    [0, 1), resized to `size`, or to the original size if None."""
    h, w = pixels.shape[-2:]
    ch = min(h, max(1, round(h * math.sqrt(area / aspect))))
    cw = min(w, max(1, round(w * math.sqrt(area * aspect))))
    top, left = int(y * (h - ch + 1)), int(x * (w - cw + 1))
    piece = pixels[..., top : top + ch, left : left + cw].reshape(1, -1, ch, cw)
    piece = F.interpolate(piece, size or (h, w), mode="bilinear", antialias=True, align_corners=False)
    return piece.reshape(*pixels.shape[:-2], *piece.shape[-2:])


AUGMENTATIONS = {"standard": Augmentation, "views": Views}
