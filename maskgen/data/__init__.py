"""Files to pixels: map-style datasets by name (a token cache gives ``codes`` in place of ``pixels``).

``dataset[i]`` is ``{"pixels": float32 (c, h, w) in [-1, 1], "label": int}``; every dataset has ``labels`` (int64 (n,)),
``class_names``, ``names`` (one an image), ``channels`` and ``size`` (h, w). Of videos pixels are (c, t, h, w), with
``actions`` (t, a) beside them where there are any.
"""

from maskgen.data.arrays import FashionMNIST, IdxFiles, NpzArrays
from maskgen.data.emoji import Emoji
from maskgen.data.images import ImageFolder
from maskgen.data.shards import TarShards
from maskgen.data.tokens import TokenCache
from maskgen.data.videos import Videos

DATASETS = {
    "emoji": Emoji,
    "image_folder": ImageFolder,
    "tar_shards": TarShards,
    "npz": NpzArrays,
    "idx": IdxFiles,
    "fashion_mnist": FashionMNIST,
    "videos": Videos,
    "tokens": TokenCache,
}
