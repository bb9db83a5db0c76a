"""Stage 1: pixels <-> tokens. Encoders, quantizers, decoders, and the losses that train them."""
