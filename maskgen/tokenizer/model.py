"""The tokenizer: encoder, quantizer and decoder composed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from maskgen.registry import Part, build
from maskgen.tokenizer.coders import DECODERS, ENCODERS
from maskgen.tokenizer.quantizers import QUANTIZERS, Quantized

ENCODER = Part(ENCODERS, given=("latent_dim",), default="conv")
DECODER = Part(DECODERS, given=("latent_dim",), default="conv")
QUANTIZER = Part(QUANTIZERS, default="vq")


@dataclass
class TokenizerOutput:
    """What training asks of a tokenizer.

    pixels: float (b, c, H, W) or (b, c, t, H, W), the reconstruction; of a tokenizer of features, float (b, D, h, w).
    codes: as :meth:`Tokenizer.encode` gives them.
    loss: scalar, the quantizer's; terms: its parts by name, for the metrics.
    """

    pixels: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Tokenizer(ModelMixin, ConfigMixin):
    """Pixels in [-1, 1] <-> codes in [0, codebook_size).

    Codes are int64 (b, *grid), where the grid is (h, w), or (n,) for 1-D tokens. A quantizer with several codes a place
    gives (b, *grid, levels); without a quantizer tokens are float (b, *grid, d) and `codebook_size` is 0.

    Videos are pixels (b, c, t, H, W) with a grid (t, ...). A tokenizer of images codes them frame by frame; one of
    videos (``causal``) shortens time and takes an image, of grid (h, w), as a video of one frame.

    Args:
        encoder, quantizer, decoder: parts as mappings (see :mod:`maskgen.registry`); stored in ``config.json``.
        target: what the decoder makes: ``pixels``, or a teacher's ``features`` (VQ-KD).
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["quantizer"]  # noqa: RUF012 (bfloat16 distances pick wrong codes)

    @register_to_config
    def __init__(
        self,
        encoder: Annotated[Any, ENCODER] = {},  # noqa: B006
        quantizer: Annotated[Any, QUANTIZER] = {},  # noqa: B006
        decoder: Annotated[Any, DECODER] = {},  # noqa: B006
        target: Literal["pixels", "features"] = "pixels",
    ):
        super().__init__()
        self.quantizer = build(QUANTIZER, quantizer)
        self.encoder = build(ENCODER, encoder, latent_dim=getattr(self.quantizer, "latent_dim", self.quantizer.dim))
        self.decoder = build(DECODER, decoder, latent_dim=self.quantizer.dim)
        self.by_frame = not getattr(self.encoder, "takes_videos", False)
        if self.by_frame == getattr(self.decoder, "takes_videos", False):
            raise ValueError("of encoder and decoder one takes videos and the other frames; give both the same type")

    def __getattr__(self, name: str) -> Any:
        """Sub-modules before config entries of the same name (ModelMixin's own order is the other way round)."""
        return nn.Module.__getattr__(self, name)

    @property
    def codebook_size(self) -> int:
        """Number of codes; 0 where tokens are continuous."""
        return self.quantizer.codebook_size

    @property
    def levels(self) -> int:
        """Codes a place."""
        return self.quantizer.levels

    @property
    def channels(self) -> int:
        return self.encoder.channels

    @property
    def reads_text(self) -> bool:
        """Whether the decoder needs text features."""
        return getattr(self.decoder, "text", None) is not None

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder and the decoder; the quantizer stays in float32. Without weights float32."""
        weights = [*self.encoder.parameters(), *self.decoder.parameters()]
        return weights[0].dtype if weights else torch.float32

    def to(self, *args: Any, **kwargs: Any) -> Tokenizer:
        """Move and cast as :meth:`torch.nn.Module.to`, but keep the quantizer in float32."""
        self.encoder.to(*args, **kwargs)
        self.decoder.to(*args, **kwargs)
        for tensor in (*self.quantizer.parameters(), *self.quantizer.buffers()):
            self.quantizer.to(tensor.detach().flatten()[:0].to(*args, **kwargs).device)
            break
        return self

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The token grid of an image of `size` (H, W), or of a video of (T, H, W).

        Raises:
            ValueError: a size that the encoder cannot take.
        """
        if self.by_frame:
            return (*size[:-2], *self.encoder.grid(size[-2:]))
        return self.encoder.grid(size)

    def size(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The size (H, W) of the image, or (T, H, W) of the video, that a token grid stands for."""
        if not self.by_frame:
            return self.encoder.size(grid)
        frames, place = grid[: -self.axes], grid[-self.axes :]
        if self.axes == 1:
            return (*frames, *self.encoder.size)
        return (*frames, *(n * self.encoder.downsampling for n in place))

    @property
    def temporal_downsampling(self) -> int:
        """Frames of a token behind the first; 1 where frames are coded one by one."""
        return getattr(self.encoder, "temporal_downsampling", 1)

    @property
    def axes(self) -> int:
        """Axes of an image's token grid: 2, or 1 where tokens have no place."""
        return 1 if getattr(self.encoder, "tokens", 0) else 2

    def encode(self, pixels: Float[Tensor, "b c *t H W"]) -> Shaped[Tensor, "b *grid"]:
        """Pixels in [-1, 1] to codes.

        Raises:
            ValueError: wrong number of channels, a size that the tokenizer cannot take, values not finite.
        """
        self._check(pixels)
        if not pixels.isfinite().all():
            raise ValueError("pixels hold NaN or infinity; give finite values in [-1, 1]")
        return self.quantize(self._encoded(pixels)).codes

    def quantize(self, latents: Float[Tensor, "b d *grid"]) -> Quantized:
        """What the quantizer makes of the encoder's latents, in float32 whatever autocast says."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantizer(latents.float())

    def embed(self, codes: Shaped[Tensor, "b *grid"]) -> Float[Tensor, "b d *grid2"]:
        """Code vectors of codes, as the decoder takes them.

        Raises:
            ValueError: a code is outside the codebook, or places have another number of codes.
        """
        self._check_codes(codes)
        return self.quantizer.embed(codes)

    def decode(
        self, codes: Shaped[Tensor, "b *grid"], text: Float[Tensor, "b n e"] | None = None
    ) -> Float[Tensor, "b c *t H W"]:
        """Codes to pixels, about [-1, 1] (not clipped).

        Args:
            text: features for a decoder that reads text (TA-TiTok).

        Raises:
            ValueError: a code is outside the codebook, or places have another number of codes.
        """
        return self._decoded(self.embed(codes).to(self.dtype), text)

    def forward(
        self, pixels: Float[Tensor, "b c *t H W"], text: Float[Tensor, "b n e"] | None = None
    ) -> TokenizerOutput:
        """Reconstruct pixels, with gradients.

        Raises:
            ValueError: wrong number of channels, or a size that the tokenizer cannot take.
        """
        self._check(pixels)
        quantized = self.quantize(self._encoded(pixels))
        made = self._decoded(quantized.latents.to(self.dtype), text)
        return TokenizerOutput(made, quantized.codes, quantized.loss, quantized.terms)

    def _encoded(self, pixels: Tensor) -> Float[Tensor, "b d *grid"]:
        if pixels.ndim == 4 or not self.by_frame:
            return self.encoder(pixels)
        latents = self.encoder(pixels.transpose(1, 2).flatten(0, 1))
        return latents.unflatten(0, (len(pixels), -1)).transpose(1, 2)

    def _decoded(self, latents: Tensor, text: Tensor | None) -> Float[Tensor, "b c *size"]:
        if latents.ndim == 2 + self.axes or not self.by_frame:
            return self.decoder(latents) if text is None else self.decoder(latents, text)
        frames = latents.transpose(1, 2)
        text = None if text is None else text.repeat_interleave(frames.shape[1], 0)
        made = self._decoded(frames.flatten(0, 1), text)
        return made.unflatten(0, frames.shape[:2]).transpose(1, 2)

    def _check(self, pixels: Tensor) -> None:
        if pixels.shape[1] != self.channels:
            raise ValueError(f"pixels have {pixels.shape[1]} channels; this tokenizer takes {self.channels}")
        self.grid(tuple(pixels.shape[2:]))

    def _check_codes(self, codes: Tensor) -> None:
        if self.codebook_size == 0:
            if not codes.is_floating_point() or codes.shape[-1] != self.quantizer.dim:
                raise ValueError(
                    f"this tokenizer's tokens are float (b, h, w, {self.quantizer.dim}), "
                    f"got {codes.dtype} {tuple(codes.shape)}"
                )
            return
        if self.levels > 1 and codes.shape[-1] != self.levels:
            raise ValueError(
                f"this tokenizer has {self.levels} codes a place, on a last axis; got codes of shape "
                f"{tuple(codes.shape)}"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.codebook_size):
            low, high = int(codes.min()), int(codes.max())
            raise ValueError(f"codes run from {low} to {high}; this codebook has 0 to {self.codebook_size - 1}")
