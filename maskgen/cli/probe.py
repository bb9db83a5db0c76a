"""Commands that look into a model: `probe`, `features` and `visualise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskgen.cli.options import BatchSize, Data, Device, FeatureModel, LabelledData, Layer, Pool, Size


def probe(
    model: FeatureModel,
    data: LabelledData,
    test: Annotated[
        str | None, typer.Option(help="test images; the default is every fifth image per class of --data")
    ] = None,
    protocol: Annotated[str, typer.Option(help="linear, sweep, knn, lowshot or finetune")] = "sweep",
    option: Annotated[
        list[str] | None, typer.Option(metavar="key=value", help="option of the protocol; repeat for more")
    ] = None,
    layer: Layer = -1,
    pool: Pool = "mean",
    size: Size = None,
    batch_size: BatchSize = 64,
    out: Annotated[Path | None, typer.Option(help="JSON file for the result")] = None,
    device: Device = "auto",
) -> None:
    """Measure a model's features with a classifier, by a published protocol."""
    from maskgen.data.source import open_dataset
    from maskgen.evaluation.probes.probing import options_of
    from maskgen.evaluation.probes.probing import probe as compute
    from maskgen.pipelines.generate import pick_device

    result = compute(
        model,
        open_dataset(data, size),
        None if test is None else open_dataset(test, size),
        protocol,
        layer=layer,
        pool=pool,
        device=pick_device(device),
        batch_size=batch_size,
        options=options_of(protocol, option or []),
    )
    print(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(result.to_json() + "\n")


def features(
    model: FeatureModel,
    out: Annotated[Path, typer.Argument(help="the .npz file to write: features, labels, names and settings")],
    data: LabelledData,
    layer: Layer = -1,
    pool: Pool = "mean",
    size: Size = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
) -> None:
    """Write a model's features of images to an .npz file."""
    from maskgen.data.source import open_dataset
    from maskgen.evaluation.probes.probing import features_of
    from maskgen.pipelines.backbone import load_backbone
    from maskgen.pipelines.generate import pick_device

    where = pick_device(device)
    backbone = load_backbone(model, layer).to(where)
    found = features_of(backbone, open_dataset(data, size), pool, batch_size=batch_size, device=where)
    print(found.save(out))


def visualise(
    run: Annotated[str, typer.Argument(help="run of a generator or of a representation")],
    images: Annotated[list[str] | None, typer.Argument(help="image files")] = None,
    data: Data = None,
    size: Size = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="number of images, evenly spread")] = 8,
    seed: Annotated[int, typer.Option(help="random seed of the masks")] = 0,
    ratio: Annotated[float | None, typer.Option(min=0, max=1, help="share to hide; the default is the run's")] = None,
    peek: Annotated[
        bool, typer.Option("--peek", help="scale predicted normalised pixels by the hidden patches' mean and contrast")
    ] = False,
    out: Annotated[Path, typer.Option(help="image to write")] = Path("visualise.png"),
    device: Device = "auto",
) -> None:
    """Show images, their masks, the model's predictions, and both pasted together."""
    from maskgen.images import save
    from maskgen.pipelines.generate import pick_device
    from maskgen.training.saved import load_learner

    saved = load_learner(run, pick_device(device))
    dataset = saved.open(images, data, size)
    print(save(saved.visualise(dataset, count, seed, ratio, peek).draw(), out))
