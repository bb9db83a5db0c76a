"""The tokenizer: encoder, quantizer and decoder composed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskgen.parts import Part, build
from maskgen.tokenizer.coders import DECODERS, ENCODERS
from maskgen.tokenizer.quantizers import QUANTIZERS

ENCODER = Part(ENCODERS, given=("latent_dim",), default="conv")
DECODER = Part(DECODERS, given=("latent_dim",), default="conv")
QUANTIZER = Part(QUANTIZERS, default="vq")


@dataclass
class TokenizerOutput:
    """pixels: float (b, c, H, W), the reconstruction; codes: int64 (b, h, w); loss: scalar, the quantizer's."""

    pixels: Tensor
    codes: Tensor
    loss: Tensor


class Tokenizer(ModelMixin, ConfigMixin):
    """Pixels in [-1, 1] <-> codes in [0, codebook_size).

    Args:
        encoder, quantizer, decoder: parts as mappings (see :mod:`maskgen.parts`); stored in ``config.json``.
    """

    config_name = "config.json"
    _keep_in_fp32_modules = ["quantizer"]  # noqa: RUF012 (bfloat16 distances pick wrong codes)

    @register_to_config
    def __init__(
        self,
        encoder: Annotated[Any, ENCODER] = {},  # noqa: B006
        quantizer: Annotated[Any, QUANTIZER] = {},  # noqa: B006
        decoder: Annotated[Any, DECODER] = {},  # noqa: B006
    ):
        super().__init__()
        self.quantizer = build(QUANTIZER, quantizer)
        self.encoder = build(ENCODER, encoder, latent_dim=self.quantizer.dim)
        self.decoder = build(DECODER, decoder, latent_dim=self.quantizer.dim)

    def __getattr__(self, name: str) -> Any:
        """Sub-modules before config entries of the same name (ModelMixin's own order is the other way round)."""
        return nn.Module.__getattr__(self, name)

    @property
    def codebook_size(self) -> int:
        return self.quantizer.codebook_size

    @property
    def channels(self) -> int:
        return self.encoder.channels

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The token grid (h, w) of a picture of `size` (H, W).

        Raises:
            ValueError: a side is not a positive multiple of the downsampling factor.
        """
        f = self.encoder.downsampling
        if any(s <= 0 or s % f for s in size):
            near = tuple(max(f, round(s / f) * f) for s in size)
            raise ValueError(
                f"picture size {tuple(size)} (h, w): each side must be a multiple of {f}; resize to {near}"
            )
        return size[0] // f, size[1] // f

    def encode(self, pixels: Float[Tensor, "b c H W"]) -> Int[Tensor, "b h w"]:
        """Pixels in [-1, 1] to codes.

        Raises:
            ValueError: wrong number of channels, a size that the tokenizer cannot take, values not finite.
        """
        self._check(pixels)
        if not pixels.isfinite().all():
            raise ValueError("pixels hold NaN or infinity; give finite values in [-1, 1]")
        return self.quantizer(self.encoder(pixels)).codes

    def embed(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """Code vectors of codes, as the decoder takes them."""
        return self.quantizer.embed(codes)

    def decode(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b c H W"]:
        """Codes to pixels, about [-1, 1] (not clipped).

        Raises:
            ValueError: a code is outside the codebook.
        """
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.codebook_size):
            low, high = int(codes.min()), int(codes.max())
            raise ValueError(f"codes run from {low} to {high}; this codebook has 0 to {self.codebook_size - 1}")
        return self.decoder(self.embed(codes).to(self.decoder.output.weight.dtype))

    def forward(self, pixels: Float[Tensor, "b c H W"]) -> TokenizerOutput:
        """Reconstruct pixels, with gradients.

        Raises:
            ValueError: wrong number of channels, or a size that the tokenizer cannot take.
        """
        self._check(pixels)
        quantized = self.quantizer(self.encoder(pixels))
        return TokenizerOutput(self.decoder(quantized.latents), quantized.codes, quantized.loss)

    def _check(self, pixels: Tensor) -> None:
        if pixels.shape[1] != self.channels:
            raise ValueError(f"pixels have {pixels.shape[1]} channels; this tokenizer takes {self.channels}")
        self.grid((pixels.shape[2], pixels.shape[3]))
