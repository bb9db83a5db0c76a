"""The masked-image-modeling core: hide some tokens, predict them from the rest.

In the order data meets it: ratios (how much), samplers (which), plan (the result), corruption (what stands there
instead), targets (what is to be predicted), objective (the loss); :mod:`maskgen.mim.core` joins them.
"""
