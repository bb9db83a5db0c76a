"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

IMAGE_MODEL = "run, pipeline folder or Hub name; the default is the bundled emoji model"

Image = Annotated[Path, typer.Argument(help="image file")]
Model = Annotated[str | None, typer.Option(help=IMAGE_MODEL)]
VideoModel = Annotated[str, typer.Argument(help="run, pipeline folder or Hub name")]
FeatureModel = Annotated[str, typer.Argument(help="run or pipeline folder of a generator or a representation")]
TokenizerModel = Annotated[str, typer.Argument(help="run, pipeline or tokenizer folder")]

Class = Annotated[str | None, typer.Option("--class", help="name or number of the class; the default is no class")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, help="number of results; several are numbered")]
Steps = Annotated[int | None, typer.Option(help="number of decode steps; the default is the model's")]
Guidance = Annotated[
    float | None, typer.Option(help="guidance scale s in u + s (c - u), where 1 is no guidance; default: the model's")
]
Seed = Annotated[int, typer.Option(help="random seed; result i uses seed + i")]
TraceFile = Annotated[Path | None, typer.Option("--trace", help="also write a .gif that shows every decode step")]
Out = Annotated[Path, typer.Option(help="the .png file to write")]

Dilation = Annotated[str, typer.Option(help="tokens around the hole that are also hidden; 'auto' measures the encoder")]
Feather = Annotated[
    int | None, typer.Option(help="pixels over which the result fades in at the hole's edge; 0 is a hard edge")
]
Overlap = Annotated[
    int | None, typer.Option(help="tokens that neighbouring windows share; the default is half a window")
]

VideoFile = Annotated[Path, typer.Argument(help="video file, folder of frames, image, or FILE.npz:3")]
VideoOut = Annotated[Path, typer.Option(help="file to write: .mp4, .gif, or .png for a strip of frames")]
Fps = Annotated[float | None, typer.Option(help="frames per second of the result; the default is the video's")]
Stride = Annotated[int, typer.Option(min=1, help="take every n-th frame of the video")]

Data = Annotated[
    str | None,
    typer.Option(help="emoji, a folder, tar shards, an .npz, a run, or a YAML mapping; the default is the run's data"),
]
LabelledData = Annotated[str, typer.Option(help="labelled images: emoji, a folder, an .npz, or a YAML mapping")]
Size = Annotated[int | None, typer.Option(help="side of the images in pixels, for data without a fixed size")]
Layer = Annotated[int, typer.Option(help="layer that gives the features; negative numbers count from the last layer")]
Pool = Annotated[str, typer.Option(help="mean, mean_all, cls, cls_mean or token_I")]
Crop = Annotated[int | None, typer.Option(help="resize image files to this side and crop the centre")]
Few = Annotated[bool, typer.Option("--few", help="allow FID of no more images than features")]
Grey = Annotated[bool, typer.Option("--grey", help="convert grey images to RGB")]
Weights = Annotated[str | None, typer.Option(help="local file of torch-fidelity's Inception weights")]
Lpips = Annotated[str | None, typer.Option(help="file of VGG-16's weights, or 'download'")]
Classifier = Annotated[
    str | None, typer.Option(help="folder of a small classifier; adds a Fréchet distance of its features")
]
BatchSize = Annotated[int, typer.Option(min=1, help="images per batch")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; 'auto' takes a GPU if there is one")]
