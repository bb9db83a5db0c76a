"""Files to pixels: map-style datasets by name.

``dataset[i]`` is ``{"pixels": float32 (c, h, w) in [-1, 1], "label": int}``; every dataset has ``labels`` (int64 (n,)),
``class_names``, ``names`` (one a picture), ``channels`` and ``size`` (h, w).
"""

from maskgen.data.emoji import Emoji

DATASETS = {"emoji": Emoji}
