"""Metrics of predicted frames against the true ones, and predictors that need no model.

All metrics take clips (b, c, t, h, w), clip them to [-1, 1], and return one number per frame, (b, t).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maskgen.evaluation.reconstruction import measures as reconstruction
from maskgen.evaluation.reconstruction.measures import SSIM_WINDOW

Clips = Float[Tensor, "b c t h w"]
PerFrame = Float[Tensor, "b t"]
UNIFORM_WINDOW = 7


def squared_error(made: Clips, truth: Clips) -> PerFrame:
    """Moving MNIST's MSE: the squared error of pixels in [0, 1], SUMMED over the pixels and channels of a frame."""
    return (_unit(made) - _unit(truth)).square().sum(dim=(1, 3, 4))


def absolute_error(made: Clips, truth: Clips) -> PerFrame:
    """Moving MNIST's MAE: the absolute error of pixels in [0, 1], SUMMED over the pixels and channels of a frame."""
    return (_unit(made) - _unit(truth)).abs().sum(dim=(1, 3, 4))


def psnr(made: Clips, truth: Clips) -> PerFrame:
    """:func:`maskgen.evaluation.reconstruction.psnr` of each frame, in dB."""
    return by_frame(reconstruction.psnr, made, truth)


def ssim(made: Clips, truth: Clips) -> PerFrame:
    """:func:`maskgen.evaluation.reconstruction.ssim` of each frame, with a Gaussian window."""
    return by_frame(reconstruction.ssim, made, truth)


def ssim_uniform(made: Clips, truth: Clips, data_range: float = 1.0) -> PerFrame:
    """SSIM as scikit-image computes it by default, which the published tables of Moving MNIST use.

    Pixels are in [0, 1], the window is uniform with 7 x 7 pixels, the covariance is that of a sample (divided by 48),
    and borders are left out.

    Args:
        data_range: 1. Older tables used 2, scikit-image's guess for floats, which gives higher values.

    Raises:
        ValueError: frames are smaller than the window.
    """

    def value(a: Tensor, b: Tensor) -> Tensor:
        if min(a.shape[2:]) < UNIFORM_WINDOW:
            raise ValueError(f"this SSIM's window is {UNIFORM_WINDOW} wide; frames are {tuple(a.shape[2:])} (h, w)")
        a, b = _unit(a).double(), _unit(b).double()
        mean_a, mean_b, aa, bb, ab = (F.avg_pool2d(x, UNIFORM_WINDOW, 1) for x in (a, b, a * a, b * b, a * b))
        sample = UNIFORM_WINDOW**2 / (UNIFORM_WINDOW**2 - 1)
        var_a, var_b, cov = ((x - y) * sample for x, y in ((aa, mean_a**2), (bb, mean_b**2), (ab, mean_a * mean_b)))
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        top, bottom = (2 * mean_a * mean_b + c1) * (2 * cov + c2), (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
        return (top / bottom).flatten(1).mean(1).float()

    return by_frame(value, made, truth)


def by_frame(function: Callable[[Tensor, Tensor], Tensor], made: Clips, truth: Clips) -> PerFrame:
    """Apply a metric of images, which takes (n, c, h, w) twice and returns (n,), to each frame."""
    a, b = (x.transpose(1, 2).flatten(0, 1) for x in (made, truth))
    return function(a, b).reshape(made.shape[0], made.shape[2])


def _unit(pixels: Tensor) -> Tensor:
    return (pixels.float().clamp(-1, 1) + 1) / 2


@dataclass(frozen=True)
class Metric:
    """A metric of frames.

    Args:
        compute: the function.
        unit: its convention, for the report.
        higher: whether a higher value is better.
        side: the smallest side of a frame that it accepts, in pixels.
    """

    compute: Callable[[Clips, Clips], PerFrame]
    unit: str
    higher: bool
    side: int = 1


METRICS = {
    "mse": Metric(squared_error, "pixels in [0, 1], sum over a frame, mean over frames and clips", False),
    "mae": Metric(absolute_error, "pixels in [0, 1], sum over a frame, mean over frames and clips", False),
    "psnr": Metric(psnr, "dB, mean over frames and clips", True),
    "ssim": Metric(ssim, "data_range 1, Gaussian window of 11, sigma 1.5", True, SSIM_WINDOW),
    "ssim_uniform": Metric(ssim_uniform, "data_range 1, uniform window of 7 as scikit-image's", True, UNIFORM_WINDOW),
}


def best_of(values: Float[Tensor, "n b t"], higher: bool) -> PerFrame:
    """The values of the best of N samples of each clip, chosen by the mean of this metric over the frames."""
    means = values.mean(dim=2)
    chosen = means.argmax(dim=0) if higher else means.argmin(dim=0)
    return values[chosen, torch.arange(values.shape[1])]


def blank(context: Clips, frames: int) -> Float[Tensor, "b c {frames} h w"]:
    """Predict black."""
    b, c, _, h, w = context.shape
    return context.new_full((b, c, frames, h, w), -1.0)


def copy_last(context: Clips, frames: int) -> Float[Tensor, "b c {frames} h w"]:
    """Predict that nothing moves."""
    return context[:, :, -1:].expand(-1, -1, frames, -1, -1)


TRIVIAL = {"blank": blank, "copy-last": copy_last}
