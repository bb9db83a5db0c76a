"""Commands that run a tokenizer: `reconstruct` and `encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskgen.cli.options import BatchSize, Classifier, Data, Device, Lpips, Size, TokenizerModel


def reconstruct(
    tokenizer: TokenizerModel,
    images: Annotated[list[str] | None, typer.Argument(help="image files; each keeps its own size")] = None,
    data: Data = None,
    size: Size = None,
    limit: Annotated[int, typer.Option(min=1, help="number of images to measure, evenly spread")] = 2048,
    batch_size: BatchSize = 64,
    tile: Annotated[int, typer.Option(min=0, help="side in pixels of the tiles for large images; 0: no tiles")] = 0,
    lpips: Lpips = None,
    inception: Annotated[str | None, typer.Option(help="for rFID: file of Inception's weights, or 'download'")] = None,
    classifier: Classifier = None,
    out: Annotated[Path, typer.Option(help="image to write; metrics.json is written to the same folder")] = Path(
        "reconstruction.png"
    ),
    device: Device = "auto",
) -> None:
    """Encode and decode images: write them side by side and report PSNR, SSIM, LPIPS, rFID and codebook usage."""
    from maskgen.data.source import open_files_or_dataset
    from maskgen.evaluation.reconstruction.report import reconstruct as compute
    from maskgen.pipelines.generate import pick_device
    from maskgen.pipelines.store import load_tokenizer

    model = load_tokenizer(tokenizer).to(pick_device(device))
    report = compute(
        model,
        open_files_or_dataset(images, data, tokenizer, size, model.channels),
        limit=limit,
        batch_size=batch_size,
        tile=tile,
        lpips=lpips,
        inception=inception,
        classifier=classifier,
    )
    print(f"{report}\n{out}, {report.save(out)}")


def encode(
    tokenizer: TokenizerModel,
    out: Annotated[Path, typer.Argument(help="folder of the token cache")],
    data: Data = None,
    size: Size = None,
    flips: Annotated[bool, typer.Option("--flips", help="also encode the mirrored images, as further rows")] = False,
    batch_size: BatchSize = 64,
    workers: Annotated[int, typer.Option(min=0, help="number of processes that read images")] = 0,
    device: Device = "auto",
) -> None:
    """Encode a data set once; train on it with `data: {type: tokens, path: OUT}`.

    The same command resumes a stopped run. With torchrun or accelerate launch, the processes share the work.
    """
    from maskgen.data.source import open_dataset
    from maskgen.pipelines.encode import encode_dataset
    from maskgen.pipelines.generate import pick_device
    from maskgen.pipelines.store import load_tokenizer

    model = load_tokenizer(tokenizer).to(pick_device(device))
    print(encode_dataset(model, open_dataset(data or tokenizer, size), out, batch_size, workers, flips))
