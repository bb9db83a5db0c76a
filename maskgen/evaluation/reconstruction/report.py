"""The report on a tokenizer's reconstructions: a table of metrics and a sheet of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from maskgen.evaluation.fid.statistics import fit, frechet_distance
from maskgen.evaluation.reconstruction.measures import (
    SSIM_WINDOW,
    device_of,
    psnr,
    spread_items,
    ssim,
    text_of,
    use_of,
)
from maskgen.images import save, side_by_side, to_uint8
from maskgen.pipelines.store import fingerprint
from maskgen.tokenizer.tiling import tiled_decode, tiled_encode

SHOWN, SHOWN_PIXELS = 32, 2**22  # the largest number of images on the sheet, and of their pixels together
VGG16 = "397923af"  # first digits of the SHA-256 of torchvision's file, which its name contains
LPIPS_SIDE = 16  # VGG-16's four poolings reduce 16 pixels to one position


@dataclass
class ReconstructionReport:
    """The metrics of a tokenizer's reconstructions, and some images to show.

    Args:
        tokenizer: fingerprint of the tokenizer's weights.
        metrics: metric -> value. All are means over images but Fréchet distances and the metrics of the codebook.
        left_out: metric -> the reason why it was not computed.
        sizes: the sizes [h, w] at which images were reconstructed.
        notes: what was done to the images, and how to read the metrics.
        originals, made: the images to show, float (c, h, w) in [-1, 1].
    """

    tokenizer: str
    codebook_size: int
    levels: int
    count: int = 0
    sizes: list[list[int]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    originals: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)

    def to_json(self) -> str:
        facts = {key: value for key, value in vars(self).items() if key not in ("originals", "made")}
        return json.dumps(facts, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        """A table of metrics with their values and units, then the metrics that were left out, then the notes."""
        rows = [(name, *_shown(name, value)) for name, value in self.metrics.items()]
        rows += [(name, "-", f"left out: {why}") for name, why in self.left_out.items()]
        wide, long = (max(len(row[i]) for row in rows) for i in (0, 1))
        sizes = ", ".join(f"{h}x{w}" for h, w in self.sizes[:3]) + (", ..." if len(self.sizes) > 3 else "")
        head = f"{self.count:,} images of {sizes} (h x w), tokenizer {self.tokenizer}"
        lines = [f"{name:<{wide}}  {value:>{long}}  {unit}".rstrip() for name, value, unit in rows]
        return "\n".join([head, *lines, *(f"note: {note}" for note in self.notes)])

    def image(self) -> Image.Image:
        """Originals above reconstructions; images of different sizes are padded with white."""
        h, w = (max(image.shape[i] for image in self.originals) for i in (1, 2))
        rows = [
            torch.stack([F.pad(p, (0, w - p.shape[2], 0, h - p.shape[1]), value=1.0) for p in images])
            for images in (self.originals, self.made)
        ]
        return side_by_side(rows[0], rows[1], columns=min(len(self.originals), 8, max(1, 2048 // w)))

    def save(self, image: str | Path) -> Path:
        """Write the sheet to `image` and ``metrics.json`` to the same folder; return the path of the latter."""
        file = save(self.image(), image).with_name("metrics.json")
        file.write_text(self.to_json() + "\n", encoding="utf-8")
        return file


UNITS = {
    "psnr": "dB, mean over images",
    "ssim": "mean over images, of 1",
    "lpips": "VGG-16, mean over images",
    "use": "of the codes occur",
    "perplexity": "exp of the entropy of the codes' frequencies",
    "dead": "codes never occur",
}


def _shown(name: str, value: float) -> tuple[str, str]:
    """The value and the unit of a metric as text."""
    if name == "dead":
        return f"{value:,.0f}", UNITS[name]
    if name == "use":
        return f"{value:.1%}", UNITS[name]
    return f"{value:.2f}" if name in ("psnr", "perplexity") else f"{value:.4f}", UNITS.get(name, "")


@torch.no_grad()
def reconstruct(
    tokenizer: Any,
    dataset: Any,
    *,
    limit: int = 2048,
    batch_size: int = 64,
    tile: int = 0,
    lpips: str | None = None,
    inception: str | None = None,
    classifier: str | Path | None = None,
    progress: bool = True,
) -> ReconstructionReport:
    """Encode and decode images in one pass, and measure the reconstructions.

    Memory holds one batch of images, and the features of all images where a Fréchet distance is computed.

    Args:
        tokenizer: the tokenizer, in evaluation mode and on the device to use.
        dataset: items ``{"pixels": (c, h, w) in [-1, 1]}``. Where its ``size`` is None, images keep their own size
            and are cropped at the centre to a size that the tokenizer accepts, and a batch holds consecutive images
            of one size.
        limit: the largest number of images, evenly spread over the data set.
        tile: images with a longer side than this, in pixels, are coded in overlapping tiles of this side, so that
            memory is bounded (docs/tokenizers.md shows what the seams cost). 0 codes all images whole.
        lpips: a local file of torchvision's VGG-16 weights, or "download"; None leaves LPIPS out. With other weights
            the name of the metric contains their digest.
        inception: a local file of torch-fidelity's Inception weights, or "download", for the Fréchet distance between
            originals and reconstructions. It is called rFID only with the published weights.
        classifier: a folder of :func:`maskgen.evaluation.classifier.save_classifier`, for the Fréchet distance in the
            features of that network.

    Raises:
        ValueError: the tokenizer makes no images, or it or a network does not accept these images.
        RuntimeError, FileNotFoundError: weights cannot be downloaded or read.
    """
    if tokenizer.config.get("target", "pixels") != "pixels":
        raise ValueError(
            f"this tokenizer decodes to a teacher's {tokenizer.config['target']}, not to pixels, so its output cannot "
            "be compared with images; give a tokenizer with target: pixels"
        )
    report = ReconstructionReport(fingerprint(tokenizer), tokenizer.codebook_size, tokenizer.codes_per_position)
    scores, distances = _scores(lpips, report), _distances(inception, classifier, tokenizer, report)
    if getattr(dataset, "size", ()) is None:
        dataset = _Cropped(dataset, tokenizer, report)
    if not tokenizer.codebook_size:
        report.left_out["use, perplexity, dead"] = "the tokens are continuous, so there is no codebook"
    if tokenizer.codes_per_position > 1:
        report.notes.append(
            f"use, perplexity and dead: the codes of {tokenizer.codes_per_position} quantizers are counted together"
        )
    count = min(len(dataset), limit)
    if distances and count < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 images, got {count}; give more, or leave it out")
    device, totals = device_of(tokenizer), dict.fromkeys(scores, 0.0)
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)
    shown = {i * count // min(count, SHOWN) for i in range(min(count, SHOWN))}
    with tqdm(total=count, desc="reconstruct", unit="image", disable=not progress) as bar:
        for batch in spread_items(dataset, limit, batch_size):
            batch = {key: value.to(device) for key, value in batch.items()}
            pixels = batch["pixels"]
            codes, made = _coded(tokenizer, pixels, text_of(tokenizer, batch), tile)
            made = made.float().clamp(-1, 1)
            if tokenizer.codebook_size:
                counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
            _leave_out_small(scores, (pixels.shape[2], pixels.shape[3]), report)
            for name, score in scores.items():
                totals[name] += score(made, pixels)
            for distance in distances:
                distance.add(pixels, made)
            for i in range(len(pixels)):
                room = SHOWN_PIXELS - sum(p[0].numel() for p in report.originals)
                if report.count + i in shown and (room >= pixels[i, 0].numel() or not report.originals):
                    report.originals.append(pixels[i].cpu())
                    report.made.append(made[i].cpu())
            if (size := list(pixels.shape[2:])) not in report.sizes:
                report.sizes.append(size)
            report.count += len(pixels)
            bar.update(len(pixels))
    report.metrics |= {name: totals[name] / report.count for name in scores}
    report.metrics |= {distance.name: distance.value(report) for distance in distances}
    report.metrics |= use_of(counts) if tokenizer.codebook_size else {}
    return report


def _coded(tokenizer: Any, pixels: Tensor, text: Tensor | None, tile: int) -> tuple[Tensor, Tensor]:
    """Codes and the pixels decoded from them, in tiles where the images are larger than `tile`."""
    size = (pixels.shape[2], pixels.shape[3])
    if not tile or max(size) <= tile:
        codes = tokenizer.encode(pixels)
        return codes, tokenizer.decode(codes, text)
    codes = tiled_encode(tokenizer, pixels, tile, tile // 4)
    side = max(4, tile * codes.shape[1] // size[0])
    return codes, tiled_decode(tokenizer, codes, side, side // 4)


Score = Callable[[Tensor, Tensor], float]  # the sum over the images of a batch


def _scores(lpips: str | None, report: ReconstructionReport) -> dict[str, Score]:
    scores: dict[str, Score] = {
        "psnr": lambda made, pixels: float(psnr(made, pixels).sum()),
        "ssim": lambda made, pixels: float(ssim(made, pixels).sum()),
    }
    if lpips is None:
        report.left_out["lpips"] = "no weights of VGG-16 given (--lpips FILE, or the word download)"
        return scores
    name, network = load_lpips(lpips)
    scores[name] = lambda made, pixels: float(network.to(pixels.device)(made, pixels)) * len(pixels)
    return scores


def load_lpips(weights: str) -> tuple[str, Any]:
    """The name and the network of LPIPS, with weights from a file or from a "download".

    The name is "lpips" with torchvision's weights, and contains the digest of any others.
    """
    from maskgen.evaluation.fid.inception import sha256_of
    from maskgen.tokenizer.perceptual import Lpips

    network = Lpips(None if weights == "download" else weights)
    digest = VGG16 if weights == "download" else sha256_of(Path(weights).expanduser())[: len(VGG16)]
    return "lpips" if digest == VGG16 else f"lpips[vgg16/{digest}]", network


def _leave_out_small(scores: dict[str, Score], size: tuple[int, int], report: ReconstructionReport) -> None:
    """Remove metrics that these images are too small for: a mean over only some of the images would mislead."""
    for name in list(scores):
        side = SSIM_WINDOW if name == "ssim" else LPIPS_SIDE if name.startswith("lpips") else 1
        if min(size) < side:
            del scores[name]
            report.left_out[name] = f"needs images of at least {side}x{side}, found {size[0]}x{size[1]}"


class _Distance:
    """A Fréchet distance between originals and reconstructions in the features of one network."""

    def __init__(self, name: str, features: Callable[[Tensor], Tensor]) -> None:
        self.name, self.features = name, features
        self.sides: tuple[list[Tensor], list[Tensor]] = ([], [])

    def add(self, *images: Tensor) -> None:
        for side, batch in zip(self.sides, images):
            side.append(self.features(batch))

    def value(self, report: ReconstructionReport) -> float:
        a, b = (fit(torch.cat(side)) for side in self.sides)
        if report.count <= 10 * a.mu.size:
            report.notes.append(
                f"{self.name}: {report.count:,} images for {a.mu.size:,} features, biased upwards; compare only "
                "distances of as many images"
            )
        return frechet_distance(a, b)


def _distances(
    inception: str | None, classifier: str | Path | None, tokenizer: Any, report: ReconstructionReport
) -> list[_Distance]:
    found = []
    if inception is None:
        report.left_out["rfid"] = "no weights of Inception given (--inception FILE, or the word download)"
    else:
        from maskgen.evaluation.fid.inception import load_extractor

        network = load_extractor(weights=None if inception == "download" else inception, device=device_of(tokenizer))

        def inception_features(pixels: Tensor) -> Tensor:
            batch = torch.from_numpy(to_uint8(pixels)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
            return torch.from_numpy(network.features([batch]))

        found.append(_Distance("rfid" if network.standard else network.metric, inception_features))
    if classifier is not None:
        from maskgen.evaluation.classifier import load_classifier

        small = load_classifier(classifier).to(device_of(tokenizer))
        if small.config["channels"] != tokenizer.channels:
            raise ValueError(
                f"the classifier in {classifier} takes images with {small.config['channels']} channels and the "
                f"tokenizer makes {tokenizer.channels}; give a classifier trained on such images"
            )
        found.append(_Distance(f"frechet_distance[{small.name}]", lambda pixels: small.features(pixels).float().cpu()))
    return found


class _Cropped:
    """Images of different sizes, each cropped at the centre to the largest size that the tokenizer accepts."""

    def __init__(self, dataset: Any, tokenizer: Any, report: ReconstructionReport) -> None:
        self.dataset, self.tokenizer, self.report = dataset, tokenizer, report

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.dataset[index]["pixels"]
        size = h, w = tuple(pixels.shape[1:])
        ch, cw = largest_size(self.tokenizer, size)
        if (ch, cw) != size:
            self.report.notes.append(f"{self.dataset.names[index]}: {h}x{w} (h x w) cropped to {ch}x{cw}")
        top, left = (h - ch) // 2, (w - cw) // 2
        return {"pixels": pixels[:, top : top + ch, left : left + cw]}


def largest_size(tokenizer: Any, size: tuple[int, int]) -> tuple[int, int]:
    """The largest (h, w) within `size` that the tokenizer accepts.

    Raises:
        ValueError: the tokenizer's own error, where it accepts no size that is smaller by less than 64 pixels.
    """
    for factor in range(1, 65):  # the first crop that a tokenizer accepts is the largest
        crop = size[0] // factor * factor, size[1] // factor * factor
        try:
            tokenizer.grid(crop)
            return crop
        except ValueError:
            continue
    tokenizer.grid(size)  # raises an error with the reason
    return size
