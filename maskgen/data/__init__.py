"""Map-style data sets by name: they turn files into pixels. A token cache gives ``codes`` instead of ``pixels``.

``dataset[i]`` is ``{"pixels": float32 (c, h, w) in [-1, 1], "label": int}``. Each data set has ``labels`` (int64 (n,)),
``class_names``, ``names`` (one per image), ``channels`` and ``size`` (h, w). Videos have pixels (c, t, h, w) and, if
their files have actions, ``actions`` (t, a).
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
