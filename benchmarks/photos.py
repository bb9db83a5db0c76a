"""Crops of photographs for the tokenizers' benchmark, from packages that contain photographs; split by photograph.

    pip install --no-deps --target /tmp/packages scikit-image scikit-learn      # 7 photographs
    for p in lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds plasma-workspace-wallpapers; do
        apt-get download $p && dpkg-deb -x ${p}_*.deb /tmp/wallpapers           # 32 more, on Debian and Ubuntu
    done
    PYTHONPATH=/tmp/packages python benchmarks/photos.py /tmp/photos/photos64.npz --wallpapers /tmp/wallpapers

The file has ``images`` (n, 64, 64, 3) for training and ``labels`` (n,), the photograph of each crop;
``holdout_images`` and ``holdout_labels`` from other photographs; and ``sources`` and ``holdout_sources``, the origin
and licence of each photograph. The wallpapers are never committed: most are under the GPL, the LGPL or CC BY-SA.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskgen.images import grid, save


@dataclass(frozen=True)
class Photo:
    """file: the end of its path. holdout: kept out of training."""

    file: str
    package: str
    licence: str
    holdout: bool = False


SKIMAGE, SKLEARN = "scikit-image", "scikit-learn"
LOMIRI16, LOMIRI20, MATE = "lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds"
PLASMA = "plasma-workspace-wallpapers"
PHOTOS = [
    Photo("data/astronaut.png", SKIMAGE, "public domain, NASA"),
    Photo("data/chelsea.png", SKIMAGE, "CC0, Stefan van der Walt"),
    Photo("data/coffee.png", SKIMAGE, "CC0, Rachel Michetti", holdout=True),
    Photo("data/motorcycle_left.png", SKIMAGE, "Middlebury stereo 2014, D. Scharstein et al."),
    Photo("data/rocket.jpg", SKIMAGE, "public domain, SpaceX"),
    Photo("images/china.jpg", SKLEARN, "CC BY 2.0, danielbuechele", holdout=True),
    Photo("images/flower.jpg", SKLEARN, "CC BY 2.0, vultilion"),
    Photo("Bridge_by_Sander_Klootwijk.jpg", LOMIRI16, "CC BY-SA 4.0, Sander Klootwijk"),
    Photo("Dragonfly_by_Bolly.jpg", LOMIRI16, "CC BY-SA 4.0, Bolly"),
    Photo("Image_0B_by_freespace.jpg", LOMIRI16, "CC BY 4.0, Trevor Freespace"),
    Photo("Image_1A_by_freespace.jpg", LOMIRI16, "CC BY 4.0, Trevor Freespace"),
    Photo("Wine_by_Jakkub_Mede.jpg", LOMIRI16, "CC BY 4.0, Jakub Mede"),
    Photo("aitzgorri_by_Aitzol_Berasategi.jpg", LOMIRI16, "CC BY 4.0, Aitzol Berasategi"),
    Photo("friends_by_Aitzol_Berasategi.jpg", LOMIRI16, "CC BY 4.0, Aitzol Berasategi"),
    Photo("life_by_Aitzol_Berasategi.jpg", LOMIRI16, "CC BY 4.0, Aitzol Berasategi"),
    Photo("picosdeeuropa_by_Aitzol_Berasategi.jpg", LOMIRI16, "CC BY 4.0, Aitzol Berasategi", holdout=True),
    Photo("seeding_by_Clements_Engelhardt.jpg", LOMIRI16, "CC0, Clemens Engelhardt"),
    Photo("sunset_by_Aitzol_Berasategi.jpg", LOMIRI16, "CC BY 4.0, Aitzol Berasategi"),
    Photo("Kleiber_by_Lukas_Baubkus.jpg", LOMIRI20, "CC BY-SA 3.0, Lukas Baubkus", holdout=True),
    Photo("nature/Aqua.jpg", MATE, "GPL-2+, Charles Barbin"),
    Photo("nature/Blinds.jpg", MATE, "GPL-2+, Lennart Poettering"),
    Photo("nature/Dune.jpg", MATE, "GPL-2+, Marco Cogoni"),
    Photo("nature/FreshFlower.jpg", MATE, "GPL-2+, Jens Ansorg"),
    Photo("nature/Garden.jpg", MATE, "GPL-2+, Charles Barbin"),
    Photo("nature/GreenMeadow.jpg", MATE, "GPL-2+, Timothy Schellhase"),
    Photo("nature/LadyBird.jpg", MATE, "GPL-2+, Charles Barbin", holdout=True),
    Photo("nature/RainDrops.jpg", MATE, "GPL-2+, blackcombwhistler07"),
    Photo("nature/Storm.jpg", MATE, "GPL-2+, Sergey Nazarov"),
    Photo("nature/TwoWings.jpg", MATE, "GPL-2+, Charles Barbin"),
    Photo("nature/YellowFlower.jpg", MATE, "GPL-2+, Charles Barbin"),
    Photo("BytheWater/contents/images/2560x1600.jpg", PLASMA, "LGPL-3, Maciej Wiklo"),
    Photo("ColdRipple/contents/images/2560x1600.jpg", PLASMA, "LGPL-3, Risto Saukonpää"),
    Photo("ColorfulCups/contents/images/2560x1600.jpg", PLASMA, "LGPL-3, Dmitri Popov"),
    Photo("EveningGlow/contents/images/2560x1600.jpg", PLASMA, "LGPL-3, Ian Hex", holdout=True),
    Photo("FallenLeaf/contents/images/2560x1600.jpg", PLASMA, "LGPL-3, Martin Klapetek"),
    Photo("Grey/contents/images/2560x1600.jpg", PLASMA, "LGPL-3, Sigi Sagi"),
    Photo("Kite/contents/images/2560x1600.jpg", PLASMA, "LGPL-3, Risto Saukonpää"),
    Photo("OneStandsOut/contents/images/2560x1600.jpg", PLASMA, "LGPL-3, Risto Saukonpää"),
    Photo("Path/contents/images/2560x1600.jpg", PLASMA, "LGPL-3, Risto Saukonpää", holdout=True),
]
SMALLEST = 96  # side of a crop in pixels of the photograph: less would show its JPEG blocks
MOST_DRAWS = 40  # for each crop wanted, before a photograph is called too plain


def folders(wallpapers: Path | None) -> list[Path]:
    """Where to look: the two Python packages' images (found, not imported), and the wallpapers."""
    found = [wallpapers] if wallpapers else []
    for module, inner in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = importlib.util.find_spec(module)
        found += [Path(place) / inner for place in (spec.submodule_search_locations or [] if spec else [])]
    return found


def find(photo: Photo, places: list[Path]) -> Path | None:
    """The photograph's file, wherever in `places` it lies."""
    name = Path(photo.file).name
    files = (file for place in places for file in sorted(place.rglob(name)))
    return next((file for file in files if file.as_posix().endswith("/" + photo.file)), None)


def plain(crop: np.ndarray) -> bool:
    """Nothing to see: almost one grey, or too blurred to have edges."""
    grey = crop.astype(np.float32).mean(axis=2)
    steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return bool(grey.std() < 12 or steps < 5)


def crops(file: Path, count: int, side: int, seed: list[int]) -> np.ndarray:
    """Up to `count` square crops of random place and scale, reduced to `side` with antialiasing; plain ones skipped."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    random, found = np.random.default_rng(seed), []
    shorter = min(image.size)
    least = min(shorter, max(SMALLEST, shorter / 5))
    for _ in range(MOST_DRAWS * count):
        if len(found) == count:
            break
        edge = math.exp(random.uniform(math.log(least), math.log(shorter)))
        left, top = random.uniform(0, image.width - edge), random.uniform(0, image.height - edge)
        box = (left, top, left + edge, top + edge)
        crop = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
        if not plain(crop):
            found.append(crop)
    return np.array(found, np.uint8).reshape(-1, side, side, 3)


def collect(photos: list[tuple[Photo, Path]], count: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """About `count` crops, as many from each photograph, in a mixed order; and the photograph's number for each."""
    each = -(-count // len(photos))
    parts = [crops(file, each, side, [seed, *photo.file.encode()]) for photo, file in photos]
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.random.default_rng(seed).permutation(len(labels))[:count]
    return np.concatenate(parts)[order], labels[order]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, help="the .npz to write; a sheet of crops is written next to it")
    add("--wallpapers", type=Path, help="folder of the unpacked wallpaper packages")
    add("--train", type=int, default=5000, help="crops to train on (default: 5000)")
    add("--holdout", type=int, default=500, help="crops of other photographs (default: 500)")
    add("--side", type=int, default=64, help="of a crop (default: 64)")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    places = folders(options.wallpapers)
    found = [(photo, file) for photo in PHOTOS if (file := find(photo, places))]
    for photo in PHOTOS:
        mark = "missing" if photo not in [p for p, _ in found] else "holdout" if photo.holdout else "train"
        print(f"{mark:8} {photo.package:28} {photo.file:45} {photo.licence}")
    train, held = ([pair for pair in found if pair[0].holdout == side] for side in (False, True))
    if not train or not held:
        parser.error("too few photographs: see the top of this file for the packages that have them")
    images, labels = collect(train, options.train, options.side, options.seed)
    held_images, held_labels = collect(held, options.holdout, options.side, options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        options.out,
        images=images,
        labels=labels,
        holdout_images=held_images,
        holdout_labels=held_labels,
        sources=np.array([f"{p.package}: {p.file} ({p.licence})" for p, _ in train]),
        holdout_sources=np.array([f"{p.package}: {p.file} ({p.licence})" for p, _ in held]),
    )
    shown = torch.from_numpy(np.concatenate([images[:112], held_images[:48]])).permute(0, 3, 1, 2) / 127.5 - 1
    sheet = save(grid(shown, 16), options.out.with_suffix(".png"))
    print(f"{len(images)} crops of {len(train)} photographs, {len(held_images)} of {len(held)} others held out")
    print(f"{options.out} and, the last three rows held out, {sheet}")


if __name__ == "__main__":
    main(sys.argv[1:])
