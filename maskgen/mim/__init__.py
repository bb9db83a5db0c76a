"""The masked-image-modeling core: hide some tokens, predict them from the rest.

The parts, in the order in which data meets them: ratios (how much to hide), samplers (which tokens), plan (the
result), corruption (what replaces hidden tokens), targets (what the network must predict), objective (the loss).
:mod:`maskgen.mim.core` joins them.
"""
