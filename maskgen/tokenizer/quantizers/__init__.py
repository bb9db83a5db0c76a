"""Quantizers: latents -> codes and back. All compute in float32, because bfloat16 distances pick wrong codes."""

from maskgen.registry import Part
from maskgen.tokenizer.quantizers.base import Quantized
from maskgen.tokenizer.quantizers.composed import MultichannelQuantizer, ResidualQuantizer
from maskgen.tokenizer.quantizers.continuous import Gaussian, Identity
from maskgen.tokenizer.quantizers.scalar import FiniteScalarQuantizer, LookupFreeQuantizer
from maskgen.tokenizer.quantizers.vector import VectorQuantizer

QUANTIZER = Part(
    {
        "vq": VectorQuantizer,
        "fsq": FiniteScalarQuantizer,
        "lfq": LookupFreeQuantizer,
        "residual": ResidualQuantizer,
        "multichannel": MultichannelQuantizer,
        "none": Identity,
        "gaussian": Gaussian,
    },
    default="vq",
)

__all__ = [
    "QUANTIZER",
    "FiniteScalarQuantizer",
    "Gaussian",
    "Identity",
    "LookupFreeQuantizer",
    "MultichannelQuantizer",
    "Quantized",
    "ResidualQuantizer",
    "VectorQuantizer",
]
