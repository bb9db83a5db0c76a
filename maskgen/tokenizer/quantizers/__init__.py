"""Quantizers: latents -> codes and back. All work in float32: bfloat16 distances pick wrong codes."""

from maskgen.tokenizer.quantizers.base import Quantized
from maskgen.tokenizer.quantizers.composed import MultichannelQuantizer, ResidualQuantizer
from maskgen.tokenizer.quantizers.continuous import Gaussian, Identity
from maskgen.tokenizer.quantizers.scalar import FiniteScalarQuantizer, LookupFreeQuantizer
from maskgen.tokenizer.quantizers.vector import VectorQuantizer

QUANTIZERS = {
    "vq": VectorQuantizer,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "residual": ResidualQuantizer,
    "multichannel": MultichannelQuantizer,
    "none": Identity,
    "gaussian": Gaussian,
}

__all__ = [
    "QUANTIZERS",
    "FiniteScalarQuantizer",
    "Gaussian",
    "Identity",
    "LookupFreeQuantizer",
    "MultichannelQuantizer",
    "Quantized",
    "ResidualQuantizer",
    "VectorQuantizer",
]
