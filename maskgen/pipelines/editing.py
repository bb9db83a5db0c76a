"""The tasks on images. Each builds a canvas of tokens and a mask; `MaskedImagePipeline.complete` completes it.

They are functions of a pipeline, and its methods too: ``pipeline.inpaint(image, mask_image, "heart")``. Every one takes
these keywords, named as in diffusers:

    class_labels: number or name of a class, one for all images or one each; None draws without a class.
    num_images_per_prompt: results of each image.
    num_inference_steps, guidance_scale: the scheduler's defaults where None.
    generator: one, or a list of one a result.
    output_type: ``pil``, ``np``, ``pt`` or ``codes``; return_dict: give a `MaskedImageOutput`, or a tuple.
    trace: told of every step, see :class:`maskgen.pipelines.trace.DecodeTrace`.

Images may be files, PIL images, arrays or tensors, one or many: :func:`maskgen.pipelines.inputs.images_of`. A
mask is True or white where tokens are hidden: :func:`maskgen.pipelines.inputs.masks_of`. docs/editing.md shows them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from maskgen.decoding.loop import Generators
from maskgen.pipelines.inputs import images_of, masks_of
from maskgen.tasks.images import Fill, filled, pasted, resized
from maskgen.tasks.masks import box_mask, check_share, ranks, receptive_radius, share_mask, token_mask

logger = logging.getLogger(__name__)
MOST_WINDOWS = 256  # trained grids that a canvas may be large
Dilation = int | Literal["auto"]


@dataclass
class Scene:
    """An image with a hole, and the tokens that stand for a part of it.

    pixels: float (1, c, H, W) in [-1, 1]; hidden: bool (1, H, W).
    canvas, mask: the tokens of the pixels at `view`, int64 (1, h, w) or what else a place holds, and bool (1, h, w).
    view: rows and columns that the tokens stand for.
    crop: rows and columns of the result.
    """

    pixels: Tensor
    hidden: Tensor
    canvas: Tensor
    mask: Tensor
    view: tuple[slice, slice]
    crop: tuple[slice, slice] = (slice(None), slice(None))


@torch.no_grad()
def inpaint(
    pipeline: Any,
    image: Any,
    mask_image: Any,
    class_labels: Any = None,
    padding_mask_crop: int | None = None,
    dilation: Dilation = 0,
    fill: Fill = "smooth",
    paste_back: bool = True,
    feather: int | None = None,
    **options: Any,
) -> Any:
    """Draw anew what the mask hides. The result has the image's own size, and its known pixels are unchanged.

    An image of another size than the model's is seen through the largest box of the model's shape that fits into it,
    placed around the hole, and resized; through a stretched whole where the hole does not fit into that box.

    Args:
        image, mask_image: of one size.
        padding_mask_crop: see the hole and so many pixels around it instead, enlarged or reduced.
        dilation: tokens around the hole that are hidden too; ``auto`` is the encoder's measured
            :func:`~maskgen.tasks.masks.receptive_radius`. Their pixels are still pasted back.
        fill: what the tokenizer sees in the hole: :func:`maskgen.tasks.images.filled`.
        paste_back: put the known pixels back; False gives what the decoder made everywhere in the box.
        feather: pixels over which the paste fades, inside the hole; a token's side where None, 0 is a hard edge.
        options: the keywords of every task.

    Raises:
        ValueError: images that cannot be read or are too large, masks that do not fit them or hide nothing.
    """
    images = images_of(image, pipeline.tokenizer.channels)
    masks = masks_of(mask_image, [(p.shape[1], p.shape[2]) for p in images])
    scenes = [_hole(pipeline, p, m, padding_mask_crop, dilation, fill) for p, m in zip(images, masks)]
    return _drawn(pipeline, scenes, class_labels, paste_back, feather, **options)


def edit(
    pipeline: Any,
    image: Any,
    class_labels: Any,
    mask_image: Any = None,
    box: Sequence[int] | None = None,
    grow: int = 1,
    **options: Any,
) -> Any:
    """Another class in a box or a mask: class-conditional editing (MaskGIT, arXiv:2202.04200, section 4.3).

    Args:
        mask_image, box: one of the two; a box is (left, top, right, bottom) in pixels, right and bottom outside.
        grow: tokens by which the region grows on every side, so that what was there leaves no rim.
        options: as :func:`inpaint` takes them.

    Raises:
        ValueError: no class, neither or both of mask and box, a box outside the image; what :func:`inpaint` raises.
    """
    if class_labels is None:
        raise ValueError("editing draws another class: give class_labels (inpaint draws without one)")
    if (mask_image is None) == (box is None):
        raise ValueError("give either mask_image or box, to say where")
    if grow < 0:
        raise ValueError(f"grow is {grow}; give the tokens by which the region grows, from 0")
    images = images_of(image, pipeline.tokenizer.channels)
    sizes = [(p.shape[1], p.shape[2]) for p in images]
    masks = masks_of(mask_image, sizes) if box is None else [box_mask(size, box) for size in sizes]
    grown = []
    for mask in masks:
        side = grow * math.ceil(min(n / g for n, g in zip(mask.shape, _grid(pipeline))))
        wide = F.max_pool2d(mask[None, None].float(), (2 * side + 1, 1), stride=1, padding=(side, 0))
        grown.append(F.max_pool2d(wide, (1, 2 * side + 1), stride=1, padding=(0, side))[0, 0] > 0)
    tensors = [(p + 1) / 2 for p in images]
    return inpaint(pipeline, tensors, grown, class_labels, **options)


@torch.no_grad()
def outpaint(
    pipeline: Any,
    image: Any,
    left: int = 0,
    top: int = 0,
    right: int = 0,
    bottom: int = 0,
    class_labels: Any = None,
    dilation: Dilation = 0,
    paste_back: bool = True,
    feather: int | None = None,
    **options: Any,
) -> Any:
    """Extend images by so many pixels on each side; beyond the trained size by sliding windows.

    The model sees the image with its shorter side at the trained size. The tokenizer is shown the image alone.

    Args:
        image: one, or several of one size.
        left, top, right, bottom: pixels, at the image's own scale.
        dilation, paste_back, feather, options: as :func:`inpaint` takes them; ``overlap`` too, the tokens that
            neighbouring windows share, half a window where None.

    Raises:
        ValueError: a negative side, or all of them 0; images of several sizes; too large a result.
    """
    sides = {"left": left, "top": top, "right": right, "bottom": bottom}
    if wrong := [f"{name} {n}" for name, n in sides.items() if n < 0]:
        raise ValueError(f"outpainting by {', '.join(wrong)} pixels; a side is extended by 0 or more")
    if not any(sides.values()):
        raise ValueError("outpainting by 0 pixels on every side: say how many of left, top, right, bottom")
    images = images_of(image, pipeline.tokenizer.channels)
    if len({p.shape for p in images}) > 1:
        raise ValueError("images of several sizes are outpainted one by one")
    scenes = [_border(pipeline, p, left, top, right, bottom, dilation) for p in images]
    return _drawn(pipeline, scenes, class_labels, paste_back, feather, **options)


@torch.no_grad()
def vary(pipeline: Any, image: Any, strength: float = 0.5, class_labels: Any = None, **options: Any) -> Any:
    """Images like this one: a random share `strength` of its tokens is drawn anew, by the whole schedule.

    With the same seed a greater strength hides the same tokens and more. The result has the model's size: the image's
    middle is fitted to it. 0 is the tokenizer's reconstruction, 1 is generation.

    Raises:
        ValueError: a strength outside [0, 1]; what :func:`images_of` raises.
    """
    check_share(strength)
    canvas = pipeline.tokenizer.eval().encode(_fitted(pipeline, image))
    copies = options.get("num_images_per_prompt", 1)
    mask = share_mask(len(canvas) * copies, tuple(pipeline.transformer.grid), strength, options.get("generator"))
    return _tokens_drawn(pipeline, canvas, mask.to(canvas.device), class_labels, **options)


@torch.no_grad()
def interpolate(
    pipeline: Any,
    image: Any,
    image_2: Any,
    num_frames: int = 8,
    strength: float = 0.5,
    class_labels: Any = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Any:
    """Frames from one image to another through tokens of both.

    At t from 0 to 1 a token comes from the second image if its place in a random order is below t, so that none ever
    changes back. Of the places where the two differ a share ``strength * 4 t (1 - t)`` is hidden and drawn anew, with
    the same random numbers in every frame. The first and the last frame are the images as the tokenizer has them.

    Raises:
        ValueError: fewer than 2 frames, a strength outside [0, 1], more than one image at an end.
    """
    if num_frames < 2:
        raise ValueError(f"num_frames is {num_frames}; an interpolation has at least its 2 ends")
    check_share(strength)
    if options.pop("num_images_per_prompt", 1) != 1 or isinstance(generator, list):
        raise ValueError("an interpolation is one row of frames: one generator, num_images_per_prompt 1")
    ends = [pipeline.tokenizer.eval().encode(_fitted(pipeline, end)) for end in (image, image_2)]
    if len(ends[0]) != 1 or len(ends[1]) != 1:
        raise ValueError("give one image at either end")
    grid = tuple(pipeline.transformer.grid)
    places = math.prod(grid)
    a, b = (end.reshape(1, places, -1) for end in ends)
    order, draw = (r.to(a.device) for r in ranks(2, places, generator).split(1))
    differ = (a != b).any(-1)
    draw = (draw + ~differ * places).argsort(1).argsort(1)  # among the places that differ
    seed = torch.randint(2**31, (1,), generator=generator, device="cpu" if generator is None else generator.device)
    t = torch.linspace(0, 1, num_frames, device=a.device)[:, None]
    canvas = torch.where((order < t * places)[..., None], b, a).view(num_frames, *ends[0].shape[1:])
    mask = (draw < strength * 4 * t * (1 - t) * differ.sum()).view(num_frames, *grid)
    same = [torch.Generator().manual_seed(int(seed)) for _ in range(num_frames)]
    return _tokens_drawn(pipeline, canvas, mask, class_labels, generator=same, **options)


@torch.no_grad()
def join(
    pipeline: Any,
    image: Any,
    image_2: Any,
    gap: int,
    keep: int | None = None,
    class_labels: Any = None,
    paste_back: bool = True,
    feather: int | None = None,
    **options: Any,
) -> Any:
    """The left part of one image, the right part of another, and what the model puts into the gap between them.

    Both are resized to the model's height first; widths are rounded up to whole tokens. Beyond the trained width
    windows slide.

    Args:
        gap: pixels to be drawn.
        keep: pixels of each image; all where None. ``gap`` and twice ``keep`` of the model's width make an image of
            that width.

    Raises:
        ValueError: a gap or a part of no pixels; a result narrower than the trained width.
    """
    if gap < 1 or (keep is not None and keep < 1):
        raise ValueError(f"a gap of {gap} pixels and {keep} kept; both must be at least 1")
    tokenizer, (rows, columns), (factor, _) = pipeline.tokenizer.eval(), _grid(pipeline), _factor(pipeline)
    parts = []
    for given, last in ((image, False), (image_2, True)):
        images = images_of(given, tokenizer.channels)
        if len(images) != 1:
            raise ValueError("give one image on either side")
        (image,) = images
        width = max(1, round(image.shape[2] * rows / image.shape[1]))
        pixels = resized(image[None], (rows * factor, width * factor))
        count = width if keep is None else min(width, math.ceil(keep / factor))
        parts.append(pixels[..., -count * factor :] if last else pixels[..., : count * factor])
    between = math.ceil(gap / factor)
    width = sum(part.shape[3] // factor for part in parts) + between
    if width < columns:
        raise ValueError(
            f"the result would be {width * factor} pixels wide; the model has {columns * factor}: keep more"
        )
    space = parts[0].new_zeros(*parts[0].shape[:3], between * factor)
    codes = [tokenizer.encode(part.to(pipeline.device)) for part in parts]
    hole = codes[0].new_zeros(1, rows, between, *codes[0].shape[3:])
    mask = torch.zeros(1, rows, width, dtype=torch.bool, device=pipeline.device)
    mask[:, :, codes[0].shape[2] : codes[0].shape[2] + between] = True
    pixels = torch.cat([parts[0], space, parts[1]], 3)
    hidden = mask.cpu().repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    view = (slice(0, pixels.shape[2]), slice(0, pixels.shape[3]))
    scene = Scene(pixels, hidden, torch.cat([codes[0], hole, codes[1]], 2), mask, view)
    return _drawn(pipeline, [scene], class_labels, paste_back, feather, **options)


# ------------------------------------------------------------------------------------------------------ from images


def _grid(pipeline: Any) -> tuple[int, int]:
    grid = tuple(pipeline.transformer.grid)
    if len(grid) != 2:
        raise ValueError("this model's tokens are a 1-D sequence, with no place in the image: it can generate and vary")
    return grid


def _factor(pipeline: Any) -> tuple[int, int]:
    """Pixels a token is high and wide."""
    rows, columns = _grid(pipeline)
    height, width = pipeline.size
    return height // rows, width // columns


def _hole(
    pipeline: Any,
    image: Float[Tensor, "c H W"],
    hidden: Bool[Tensor, "H W"],
    margin: int | None,
    dilation: Dilation,
    fill: Fill,
) -> Scene:
    grid, size = _grid(pipeline), pipeline.size
    view = view_of(hidden, size, margin)
    seen, hole = image[None, :, view[0], view[1]], hidden[None, view[0], view[1]]
    _say(tuple(image.shape[1:]), view, size)
    canvas = pipeline.tokenizer.eval().encode(filled(seen, hole, size, fill).to(pipeline.device))
    mask = token_mask(hole, grid, _tokens(pipeline, dilation))
    if mask.all():
        logger.warning("no token is known: the image is drawn from the class alone")
    return Scene(image[None], hidden[None], canvas, mask.to(pipeline.device), view)


def view_of(hidden: Bool[Tensor, "H W"], size: tuple[int, int], margin: int | None = None) -> tuple[slice, slice]:
    """Where the model looks: the largest box of its shape that fits, or one with `margin` around the hole, placed with
    the hole in its middle as far as the image allows; the whole image where the hole does not fit into the box.

    Raises:
        ValueError: a negative margin.
    """
    if margin is not None and margin < 0:
        raise ValueError(f"padding_mask_crop is {margin}; give the pixels around the hole, from 0")
    whole = tuple(hidden.shape)
    places = hidden.nonzero()
    if len(places) == 0:
        places = torch.tensor([[0, 0], [whole[0] - 1, whole[1] - 1]])
    first, last = places.min(0).values.tolist(), (places.max(0).values + 1).tolist()
    largest = min(n / s for n, s in zip(whole, size))
    scale = largest
    if margin is not None:
        scale = min(largest, max((b - a + 2 * margin) / s for a, b, s in zip(first, last, size)))
    sides = [min(n, round(s * scale)) for n, s in zip(whole, size)]
    if hidden.any() and any(b - a > side for a, b, side in zip(first, last, sides)):
        return slice(0, whole[0]), slice(0, whole[1])
    starts = [min(max(0, (a + b - side) // 2), n - side) for a, b, side, n in zip(first, last, sides, whole)]
    return slice(starts[0], starts[0] + sides[0]), slice(starts[1], starts[1] + sides[1])


def _border(
    pipeline: Any, image: Float[Tensor, "c H W"], left: int, top: int, right: int, bottom: int, dilation: Dilation
) -> Scene:
    """The image's own tokens in the middle of a larger canvas; sides are rounded up to whole tokens, then cropped."""
    (height, width), trained, factor = image.shape[1:], _grid(pipeline), _factor(pipeline)
    density = max(trained[0] / height, trained[1] / width)  # tokens a pixel
    rows, columns = max(trained[0], round(height * density)), max(trained[1], round(width * density))
    high, wide = height / rows, width / columns  # pixels a token
    tokens = [math.ceil(n / side) for n, side in ((left, wide), (right, wide), (top, high), (bottom, high))]
    count = (rows + tokens[2] + tokens[3]) * (columns + tokens[0] + tokens[1])
    if count > MOST_WINDOWS * trained[0] * trained[1]:
        raise ValueError(
            f"a canvas of {count} tokens; at most {MOST_WINDOWS} times the trained {trained[0]}x{trained[1]}: "
            "extend by less, or a less narrow image"
        )
    _say((height, width), (slice(0, height), slice(0, width)), (rows * factor[0], columns * factor[1]))
    pad = [round(n * side) for n, side in zip(tokens, (wide, wide, high, high))]
    codes = pipeline.tokenizer.eval().encode(
        resized(image[None], (rows * factor[0], columns * factor[1])).to(pipeline.device)
    )
    mask = F.pad(torch.zeros(codes.shape[:3], dtype=torch.bool, device=codes.device), tokens, value=True)
    mask = token_mask(mask, (mask.shape[1], mask.shape[2]), _tokens(pipeline, dilation))
    pixels = F.pad(image[None], pad)
    hidden = F.pad(torch.zeros(1, height, width, dtype=torch.bool), pad, value=True)
    crop = (slice(pad[2] - top, pad[2] + height + bottom), slice(pad[0] - left, pad[0] + width + right))
    view = (slice(0, pixels.shape[2]), slice(0, pixels.shape[3]))
    beyond = [0, 0] * (codes.ndim - 3)  # what a place holds is not padded
    return Scene(pixels, hidden, F.pad(codes, [*beyond, *tokens]), mask, view, crop)


def _tokens(pipeline: Any, dilation: Dilation) -> int:
    return receptive_radius(pipeline.tokenizer, pipeline.size) if dilation == "auto" else int(dilation)


def _fitted(pipeline: Any, image: Any) -> Float[Tensor, "b c h w"]:
    """The middle of each image at the model's size."""
    made = []
    for pixels in images_of(image, pipeline.tokenizer.channels):
        view = view_of(torch.zeros(pixels.shape[1:], dtype=torch.bool), pipeline.size)
        _say(tuple(pixels.shape[1:]), view, pipeline.size)
        made.append(resized(pixels[None, :, view[0], view[1]], pipeline.size))
    return torch.cat(made).to(pipeline.device)


def _say(image: tuple[int, ...], view: tuple[slice, slice], size: tuple[int, int]) -> None:
    if tuple(image) != tuple(size):
        (y, x), (h, w) = view, size
        logger.info(
            "of a %dx%d image (w x h) the model sees %d..%d x %d..%d, resized to %dx%d",
            *(image[1], image[0], x.start, x.stop, y.start, y.stop, w, h),
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- to images


def _completed(
    pipeline: Any,
    canvas: Tensor,
    mask: Tensor,
    class_labels: Any,
    num_images_per_prompt: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    generator: Generators = None,
    trace: Any = None,
    overlap: int | None = None,
) -> Tensor:
    """Tokens (n * copies, h, w, ...); a mask may have a row an image or a row a copy."""
    if num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
    n, copies = len(canvas), num_images_per_prompt
    if isinstance(class_labels, Tensor):
        class_labels = class_labels.tolist()
    if class_labels is None:
        labels, _ = pipeline.labels_of(None, n * copies)
    else:
        each = [class_labels] * n if isinstance(class_labels, (int, str)) else list(class_labels)
        if len(each) != n:
            raise ValueError(f"{len(each)} class_labels for {n} images; give one, or one an image")
        labels, _ = pipeline.labels_of(each, copies)
    if isinstance(generator, list) and len(generator) != n * copies:
        raise ValueError(f"{len(generator)} generators for {n * copies} images; give one, or one an image")
    canvas = canvas.repeat_interleave(copies, 0)
    mask = mask if len(mask) == len(canvas) else mask.repeat_interleave(copies, 0)
    return pipeline.complete(
        canvas, mask, labels, num_inference_steps, guidance_scale, generator, trace=trace, overlap=overlap
    )


def _tokens_drawn(
    pipeline: Any,
    canvas: Tensor,
    mask: Tensor,
    class_labels: Any,
    output_type: str = "pil",
    return_dict: bool = True,
    **options: Any,
) -> Any:
    """Completed tokens as images, nothing pasted."""
    pipeline.check_output_type(output_type)
    return pipeline.output(_completed(pipeline, canvas, mask, class_labels, **options), output_type, return_dict)


def _drawn(
    pipeline: Any,
    scenes: list[Scene],
    class_labels: Any,
    paste_back: bool,
    feather: int | None,
    output_type: str = "pil",
    return_dict: bool = True,
    **options: Any,
) -> Any:
    """Complete the scenes in one batch, and put what was made into their images."""
    pipeline.check_output_type(output_type)
    canvas, mask = (torch.cat([getattr(scene, name) for scene in scenes]) for name in ("canvas", "mask"))
    codes = _completed(pipeline, canvas, mask, class_labels, **options)
    if output_type == "codes":
        return pipeline.output(codes, output_type, return_dict)
    made = pipeline.tokenizer.decode(codes).float().cpu()
    copies = len(codes) // len(scenes)
    images = [_placed(scenes[i // copies], made[i : i + 1], paste_back, feather) for i in range(len(made))]
    return pipeline.output(images, output_type, return_dict)


def _placed(
    scene: Scene, made: Float[Tensor, "1 c h w"], paste_back: bool, feather: int | None
) -> Float[Tensor, "1 c H W"]:
    y, x = scene.view
    size = (y.stop - y.start, x.stop - x.start)
    if feather is None:
        feather = round(size[0] / scene.canvas.shape[1])
    made = resized(made.clamp(-1, 1), size)
    result = scene.pixels.clone()
    if paste_back:
        made = pasted(scene.pixels[:, :, y, x], scene.hidden[:, y, x], made, feather)
    result[:, :, y, x] = made
    return result[:, :, scene.crop[0], scene.crop[1]]
