"""Commands that measure generated images and videos: `evaluate`, `fid` and `evaluate-video`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskgen.cli.options import BatchSize, Classifier, Crop, Device, Few, Grey, Guidance, Lpips, Seed, Steps, Weights


def evaluate(
    samples: Annotated[
        str | None,
        typer.Argument(
            help="run, pipeline, 'bundled', folder, .npz, .zip, .tar, data set, or the .yaml file of a data set"
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Argument(help="the same kinds, or a file of statistics (ADM, clean-fid)")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="fid,is,kid,precision,recall,fid_infinity; for a tokenizer and data psnr,ssim,lpips,rfid"),
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="number of images to sample")] = 50_000,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    choice_temperature: Annotated[
        float | None, typer.Option(help="temperature of the noise on the confidence; the default is the model's")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="equal, uniform, reference (the shares of its labels) or none")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="guidance=1,2,3", help="values to compare; repeat for other settings")
    ] = None,
    crop: Crop = None,
    grey: Grey = False,
    limit: Annotated[int | None, typer.Option(help="use this many of the given images, evenly spread")] = None,
    few: Few = False,
    bootstrap: Annotated[int, typer.Option(min=0, help="number of resamples for the confidence interval of FID")] = 20,
    weights: Weights = None,
    extractor: Annotated[str, typer.Option(help="another of torch-fidelity's networks")] = "inception-v3-compat",
    classifier: Annotated[
        str | None, typer.Option(help="folder of a small classifier, which replaces Inception")
    ] = None,
    resize: Annotated[str, typer.Option(help="tensorflow, as in the papers, or clean (clean-fid)")] = "tensorflow",
    lpips: Annotated[str | None, typer.Option(help="file of VGG-16's weights; the default is a download")] = None,
    batch_size: BatchSize = 64,
    work: Annotated[Path, typer.Option(help="folder for features; a stopped command resumes from it")] = Path(
        "runs/evaluation"
    ),
    out: Annotated[Path, typer.Option(help="JSON file for the report")] = Path("evaluation.json"),
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="check whether the numbers of two reports are comparable"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Compute FID, IS, KID, precision and recall of samples, or rFID, PSNR, SSIM and LPIPS of reconstructions.

    The report lists all settings. The same command resumes a stopped run. With torchrun or accelerate launch, the
    processes share the work.
    """
    if compare is not None:
        from maskgen.evaluation.fid.report import compare as verdict

        print(verdict(*compare))
        return
    if samples is None:
        raise typer.BadParameter("give samples and a reference, or --compare A.json B.json")
    from maskgen.evaluation.command import run
    from maskgen.evaluation.fid.sampling import Sampling
    from maskgen.evaluation.fid.sources import Reading

    text = run(
        samples,
        reference,
        metrics,
        sampling=Sampling(num_samples, seed, steps, guidance, classes=classes, choice_temperature=choice_temperature),
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


def fid(
    a: Annotated[str, typer.Argument(help="folder, .npz, or a pipeline to sample from")],
    b: Annotated[str, typer.Argument(help="folder, .npz, or a pipeline to sample from")],
    weights: Weights = None,
    num_samples: Annotated[int, typer.Option(help="number of images to sample from a pipeline")] = 10_000,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    crop: Crop = None,
    few: Few = False,
    grey: Grey = False,
    work: Annotated[Path | None, typer.Option(help="folder for features; a stopped command resumes from it")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the report")] = None,
    device: Device = "auto",
) -> None:
    """Compute the Fréchet inception distance of two sets of images: `evaluate --metrics fid`, in either order."""
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


def evaluate_video(
    predicted: Annotated[str, typer.Argument(help="folder, .npz or .npy of videos; or 'blank' or 'copy-last'")],
    truth: Annotated[str, typer.Argument(help="the true videos, including the context frames")],
    sample: Annotated[
        list[str] | None, typer.Option(help="another predicted sample of every video; repeat for more")
    ] = None,
    context: Annotated[int, typer.Option(min=0, help="number of first frames that the model was given")] = 0,
    size: Annotated[int | None, typer.Option(help="resize frames to this side; by default all sizes are equal")] = None,
    lpips: Lpips = None,
    i3d: Annotated[str | None, typer.Option(help="for FVD: I3D (Kinetics-400, logits) as TorchScript")] = None,
    extractor: Annotated[
        tuple[str, str] | None, typer.Option(metavar="NAME FILE", help="another TorchScript network and its name")
    ] = None,
    classifier: Classifier = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="add a Fréchet distance of frames at 8x8 pixels")] = False,
    with_context: Annotated[
        bool, typer.Option("--with-context", help="include the context frames in the Fréchet distances")
    ] = False,
    out: Annotated[Path, typer.Option(help="JSON file for the report, with curves by frame")] = Path(
        "video_evaluation.json"
    ),
    device: Device = "auto",
) -> None:
    """Compute MSE, MAE, PSNR, SSIM and LPIPS of predicted frames (best of N) and FVD; see docs/video.md."""
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
