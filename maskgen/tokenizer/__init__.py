"""Stage 1, pixels <-> tokens: encoders, quantizers, decoders, and the losses that train them."""
