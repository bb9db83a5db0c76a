"""Mask samplers: which tokens to hide. Most samplers score and rank the tokens and hide the lowest scores.

A sampler is called with ``(ratio, grid, scores, generator, progress)``, see :class:`Sampler`, and returns a bool mask
(b, *grid), True = hidden. `attention` and `loss` need scores; only `loss` depends on the progress of the training.
"""

from maskgen.mim.samplers.base import RandomSampler, Sampler, hidden_counts, hide_lowest
from maskgen.mim.samplers.blocks import BlockSampler, UnitSampler
from maskgen.mim.samplers.guided import AttentionSampler, LossSampler
from maskgen.mim.samplers.noise import NoiseSampler
from maskgen.mim.samplers.video import CellSampler, FrameSampler, TubeSampler

__all__ = ["SAMPLERS", "RandomSampler", "Sampler", "hidden_counts", "hide_lowest"]

SAMPLERS = {
    "random": RandomSampler,
    "block": BlockSampler,
    "units": UnitSampler,
    "tube": TubeSampler,
    "cells": CellSampler,
    "frames": FrameSampler,
    "noise": NoiseSampler,
    "attention": AttentionSampler,
    "loss": LossSampler,
}
