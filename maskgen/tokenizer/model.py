"""The tokenizer: an encoder, a quantizer and a decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Shaped
from safetensors import safe_open
from torch import Tensor, nn

from maskgen.registry import build, plain
from maskgen.tokenizer.coders import DECODER, ENCODER
from maskgen.tokenizer.numbered import has_old_options, is_numbered, named, numbered, numbered_state, upgraded
from maskgen.tokenizer.quantizers import QUANTIZER, Quantized
from maskgen.upgrade import load_saved, rename_on_load

PARTS = {"encoder": ENCODER, "quantizer": QUANTIZER, "decoder": DECODER}


@dataclass
class TokenizerOutput:
    """The output of a tokenizer's forward pass.

    pixels: float (b, c, H, W) or (b, c, t, H, W), the reconstruction; from a tokenizer of features, float (b, D, h, w).
    codes: as :meth:`Tokenizer.encode` gives them.
    loss: scalar, the loss of the quantizer.
    terms: the terms of that loss by name, unweighted, for the metrics.
    """

    pixels: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Tokenizer(ModelMixin, ConfigMixin):
    """Pixels in [-1, 1] <-> codes in [0, codebook_size).

    Codes are int64 (b, *grid), where the grid is (h, w), or (n,) for 1-D tokens. A quantizer with several codes per
    position gives (b, *grid, codes_per_position). Without a quantizer tokens are float (b, *grid, d) and
    `codebook_size` is 0.

    Videos are pixels (b, c, t, H, W) with a grid (t, ...). A tokenizer of images encodes them frame by frame. A
    tokenizer of videos (``causal``) shortens the time and encodes an image, with the grid (h, w), as a video of one
    frame.

    Args:
        encoder, quantizer, decoder: the parts, as names or mappings (see :mod:`maskgen.registry`); ``config.json``
            stores them nested.
        target: what the decoder reconstructs: ``pixels``, or a teacher's ``features`` (VQ-KD).

    Raises:
        ValueError: the parts do not fit together.
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
        self.register_to_config(encoder=plain(encoder), quantizer=plain(quantizer), decoder=plain(decoder))
        self.quantizer = build(QUANTIZER, quantizer)
        self.encoder = build(ENCODER, encoder, latent_dim=getattr(self.quantizer, "latent_dim", self.quantizer.dim))
        self.decoder = build(DECODER, decoder, latent_dim=self.quantizer.dim)
        self.by_frame = not getattr(self.encoder, "takes_videos", False)
        if self.by_frame == getattr(self.decoder, "takes_videos", False):
            raise ValueError("one of encoder and decoder takes videos and the other images; give both the same type")
        rename_on_load(self, lambda state: named(self, state) if is_numbered(state) else state)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Tokenizer:
        """Load a saved tokenizer, also one that an earlier version saved.

        Args:
            pretrained_model_name_or_path: a folder or a Hub name.
            options: the options of ``ModelMixin.from_pretrained``; in every ``torch_dtype`` the quantizer stays in
                float32.
        """
        folder = Path(pretrained_model_name_or_path, options.get("subfolder") or "")

        def is_old(config: dict[str, Any]) -> bool:
            if has_old_options(config, PARTS):
                return True
            weights = folder / "diffusion_pytorch_model.safetensors"
            if not weights.is_file():
                return False
            with safe_open(weights, "pt") as file:
                return is_numbered(file.keys())

        return load_saved(
            cls, super().from_pretrained, pretrained_model_name_or_path, is_old, lambda c: upgraded(c, PARTS), **options
        )

    def earlier_names(self) -> dict[str, list[str]]:
        """The names of the weights in earlier versions, see :func:`maskgen.tokenizer.numbered.numbered`."""
        return numbered(self)

    def fingerprint_state(self) -> dict[str, Tensor]:
        """The state that :func:`maskgen.pipelines.store.fingerprint` hashes: its names never change, so that token
        caches keep knowing their tokenizer."""
        return numbered_state(self)

    def __getattr__(self, name: str) -> Any:
        """Give sub-modules precedence over config entries of the same name, unlike ModelMixin."""
        return nn.Module.__getattr__(self, name)

    @property
    def codebook_size(self) -> int:
        """Number of codes; 0 where tokens are continuous."""
        return self.quantizer.codebook_size

    @property
    def codes_per_position(self) -> int:
        """Number of codes at each position of the grid."""
        return self.quantizer.codes_per_position

    @property
    def channels(self) -> int:
        """Channels of the pixels."""
        return self.encoder.channels

    @property
    def reads_text(self) -> bool:
        """Whether the decoder needs text features."""
        return getattr(self.decoder, "text", None) is not None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of encoder and decoder, float32 if they have no weights; the quantizer is always in float32."""
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
        """The token grid of an image of `size` (H, W), or of a video of `size` (T, H, W).

        Raises:
            ValueError: the encoder cannot take the size.
        """
        if self.by_frame:
            return (*size[:-2], *self.encoder.grid(size[-2:]))
        return self.encoder.grid(size)

    def size(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The size (H, W) of the image, or (T, H, W) of the video, with this token grid."""
        if not self.by_frame:
            return self.encoder.size(grid)
        frames, image = grid[: -self.axes], grid[-self.axes :]
        if self.axes == 1:
            return (*frames, *self.encoder.size)
        return (*frames, *(n * self.encoder.downsampling for n in image))

    @property
    def temporal_downsampling(self) -> int:
        """Frames per token after the first frame; 1 where each frame is encoded on its own."""
        return getattr(self.encoder, "temporal_downsampling", 1)

    @property
    def axes(self) -> int:
        """Number of axes of an image's token grid: 2, or 1 for 1-D tokens."""
        return 1 if getattr(self.encoder, "tokens", 0) else 2

    def encode(self, pixels: Float[Tensor, "b c *t H W"]) -> Shaped[Tensor, "b *grid"]:
        """Encode pixels in [-1, 1] to codes.

        Raises:
            ValueError: the number of channels is wrong, the tokenizer cannot take the size, or a value is not finite.
        """
        self._check(pixels)
        if not pixels.isfinite().all():
            raise ValueError("pixels hold NaN or infinity; give finite values in [-1, 1]")
        return self.quantize(self._encoded(pixels)).codes

    def quantize(self, latents: Float[Tensor, "b d *grid"]) -> Quantized:
        """Quantize the encoder's latents, in float32 also under autocast."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantizer(latents.float())

    def embed(self, codes: Shaped[Tensor, "b *grid"]) -> Float[Tensor, "b d *grid2"]:
        """The code vectors of codes, as the decoder takes them.

        Raises:
            ValueError: a code is outside the codebook, or the number of codes per position is wrong.
        """
        self._check_codes(codes)
        return self.quantizer.embed(codes)

    def decode(
        self, codes: Shaped[Tensor, "b *grid"], text: Float[Tensor, "b n e"] | None = None
    ) -> Float[Tensor, "b c *t H W"]:
        """Decode codes to pixels, about in [-1, 1] (not clipped).

        Args:
            text: features for a decoder that reads text (TA-TiTok).

        Raises:
            ValueError: a code is outside the codebook, the number of codes per position is wrong, or the decoder
                cannot take `text`.
        """
        return self._decoded(self.embed(codes).to(self.dtype), text)

    def forward(
        self, pixels: Float[Tensor, "b c *t H W"], text: Float[Tensor, "b n e"] | None = None
    ) -> TokenizerOutput:
        """Reconstruct pixels, with gradients.

        Raises:
            ValueError: the number of channels is wrong, or the tokenizer cannot take the size.
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
        if self.codes_per_position > 1 and codes.shape[-1] != self.codes_per_position:
            raise ValueError(
                f"this tokenizer has {self.codes_per_position} codes per position, on a last axis; got codes of shape "
                f"{tuple(codes.shape)}"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.codebook_size):
            low, high = int(codes.min()), int(codes.max())
            raise ValueError(f"codes run from {low} to {high}; this codebook has 0 to {self.codebook_size - 1}")
