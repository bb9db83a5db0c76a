"""MaskedImagePipeline: generation and editing of images. Every task builds a canvas of tokens and a mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.utils import BaseOutput
from jaxtyping import Bool, Float
from torch import Tensor

from maskgen.decoding.noise import Generators
from maskgen.decoding.scheduler import MaskScheduler
from maskgen.images import to_pil
from maskgen.pipelines.base import MaskedPipeline, to_unit
from maskgen.pipelines.editing import (
    Dilation,
    Scene,
    border_scene,
    fitted,
    gap_scene,
    grid_of,
    grown,
    hole_scene,
)
from maskgen.pipelines.inputs import images_of, masks_of
from maskgen.pipelines.trace import Tracer
from maskgen.tasks.images import Fill
from maskgen.tasks.masks import box_mask, check_share, ranks, share_mask
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.model import MaskTransformer

OutputType = Literal["pil", "np", "pt", "pixels", "codes"]


@dataclass
class MaskedImageOutput(BaseOutput):
    """The result of a task.

    images: by `output_type`: a list of PIL images; a float array (n, h, w, c) in [0, 1]; a float tensor (n, c, h, w) in
        [0, 1] (``pt``) or in [-1, 1] (``pixels``); or tokens (n, h, w), int64.
    """

    images: Any


def bundled_pipeline() -> Path:
    """The folder of the pretrained emoji pipeline that comes with maskgen.

    Raises:
        FileNotFoundError: this installation does not contain it.
    """
    folder = Path(__file__).parents[1] / "pretrained" / "emoji"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"no bundled pipeline at {folder}; give the folder or Hub name of one")
    return folder


class MaskedImagePipeline(MaskedPipeline):
    """Generate and edit images by iterative parallel decoding (MaskGIT, Chang et al. 2022, arXiv:2202.04200).

    A call generates. The other tasks are methods; docs/editing.md shows them. Images may be files, PIL images, arrays
    or tensors, one or several: :func:`maskgen.pipelines.inputs.images_of`. A mask is True or white where the image is
    hidden: :func:`maskgen.pipelines.inputs.masks_of`. All tasks take these keywords, named as in diffusers:

        class_labels: number or name of a class, one for all images or one per image; with None no class is given.
        num_images_per_prompt: results per image.
        num_inference_steps, guidance_scale: the scheduler's defaults if None.
        generator: one generator, or a list with one per result.
        output_type: ``pil``, ``np``, ``pt``, ``pixels`` or ``codes``, see :class:`MaskedImageOutput`.
        return_dict: return a :class:`MaskedImageOutput`, or a tuple.
        trace: called after every step, see :class:`maskgen.pipelines.trace.DecodeTrace`.
        conditions: inputs of the transformer's other conditioners by name, one entry per image.

    Args:
        vqvae: the tokenizer.
        transformer: predicts the tokens of `vqvae`.
        scheduler: the settings of the decode loop.
        class_names: one name per class, in the order of the labels.
        critic: scores sampled tokens; the scheduler's order ``critic`` needs it (the stage ``critic`` trains one).

    Raises:
        ValueError: the components were not trained together, or the transformer is one of videos.
    """

    _optional_components = ["critic"]  # noqa: RUF012

    def __init__(
        self,
        vqvae: Tokenizer,
        transformer: MaskTransformer,
        scheduler: MaskScheduler,
        class_names: list[str] | None = None,
        critic: MaskTransformer | None = None,
    ):
        super().__init__()
        if len(transformer.grid) > 2:
            raise ValueError(
                f"the grid of this transformer is {tuple(transformer.grid)} (t, h, w), so it is one of videos: use "
                "MaskedVideoPipeline, `maskgen predict-video` or `maskgen edit-video`"
            )
        self._compose(vqvae, transformer, scheduler=scheduler, critic=critic)
        self.register_to_config(class_names=class_names)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any) -> Any:
        """Load a pipeline from a folder, a run, or the Hub; without a name, the bundled emoji pipeline.

        Raises:
            OSError: there is no pipeline at this path.
        """
        path = bundled_pipeline() if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        return super().from_pretrained(path, **kwargs)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the images that the transformer was trained on, in pixels."""
        height, width = self.vqvae.size(self.layout.grid)
        return height, width

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("codes",),
        trace: Tracer | None = None,
        conditions: Mapping[str, Tensor] | None = None,
    ) -> MaskedImageOutput | tuple[Any]:
        """Generate images.

        Args:
            class_labels: numbers or names of classes, one per image; with None no class is given.
            num_images_per_prompt: images per label.
            callback_on_step_end: ``(pipeline, step, timestep, tensors) -> None``, called after each step; `timestep` is
                the progress in (0, 1].
            callback_on_step_end_tensor_inputs: which of ``codes`` (n, h, w) and ``hidden`` (n, h, w) it gets.
            num_inference_steps, guidance_scale, generator, output_type, return_dict, trace, conditions: see the
                class.

        Raises:
            ValueError: a class, an output type or a tensor input is unknown, or the model is unconditional and a class
                is given.
        """
        self.check_output_type(output_type)
        unknown = set(callback_on_step_end_tensor_inputs) - {"codes", "hidden"}
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs takes codes and hidden, not {sorted(unknown)}")
        labels, given, count = self.rows_of(class_labels, conditions, num_images_per_prompt)
        codes = self.complete(
            self.layout.blank(count, self.device),
            torch.ones(count, *self.layout.grid, dtype=torch.bool, device=self.device),
            labels,
            num_inference_steps,
            guidance_scale,
            generator,
            self._on_step(callback_on_step_end, callback_on_step_end_tensor_inputs, num_inference_steps),
            trace,
            conditions=given,
        )
        return self._output(codes, output_type, return_dict)

    @torch.no_grad()
    def inpaint(
        self,
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
        """Generate what the mask hides. The result has the size of the image, and its known pixels are unchanged.

        The model sees an image of another size than its own through the largest box of its proportions, around the
        hole, resized; if the hole does not fit into that box, it sees the whole image, stretched.

        Args:
            image, mask_image: of one size.
            padding_mask_crop: the model sees the hole and so many pixels around it instead, enlarged or reduced.
            dilation: hide so many more tokens around the hole; ``auto`` is the measured
                :func:`~maskgen.tasks.masks.receptive_radius` of the encoder. Their pixels are still pasted back.
            fill: how the hole is filled before the image is encoded, see :func:`maskgen.tasks.images.filled`.
            paste_back: put the known pixels back; with False, the whole box is what the decoder gives.
            feather: pixels inside the hole over which the paste fades; None is the side of a token, 0 a hard edge.
            options: the keywords of all tasks, see the class.

        Raises:
            ValueError: an image is unreadable or too large, or a mask does not fit its image or hides nothing.
        """
        images = images_of(image, self.vqvae.channels)
        masks = masks_of(mask_image, [(p.shape[1], p.shape[2]) for p in images])
        return self._inpaint(
            images, masks, class_labels, padding_mask_crop, dilation, fill, paste_back, feather, **options
        )

    @torch.no_grad()
    def edit(
        self,
        image: Any,
        class_labels: Any,
        mask_image: Any = None,
        box: Sequence[int] | None = None,
        grow: int = 1,
        **options: Any,
    ) -> Any:
        """Generate another class in a box or a mask: class-conditional editing (MaskGIT, section 4.3).

        Args:
            mask_image, box: one of the two; a box is (left, top, right, bottom) in pixels, right and bottom excluded.
            grow: tokens by which the region grows on every side, so that no rim of the old object is left.
            options: those of :meth:`inpaint`.

        Raises:
            ValueError: no class is given; neither or both of mask and box are given; the box is not inside the image;
                see also :meth:`inpaint`.
        """
        if class_labels is None:
            raise ValueError("edit generates another class: give class_labels, or use inpaint without one")
        if (mask_image is None) == (box is None):
            raise ValueError("give either mask_image or box, the region to edit")
        if grow < 0:
            raise ValueError(f"grow is {grow}; give the tokens by which the region grows, at least 0")
        images = images_of(image, self.vqvae.channels)
        sizes = [(p.shape[1], p.shape[2]) for p in images]
        masks = masks_of(mask_image, sizes) if box is None else [box_mask(size, box) for size in sizes]
        larger = [grown(mask, grid_of(self), grow) for mask in masks]
        return self._inpaint(images, larger, class_labels, **options)

    @torch.no_grad()
    def outpaint(
        self,
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
        """Extend images by so many pixels on each side. Beyond the trained size, the model completes window by window.

        The model sees the image with its shorter side at the trained size. The tokenizer sees the image alone.

        Args:
            image: one, or several of one size.
            left, top, right, bottom: pixels, at the scale of the image.
            dilation, paste_back, feather, options: those of :meth:`inpaint`; and ``overlap``, the tokens that
                neighbouring windows share, half a window if None.

        Raises:
            ValueError: a side is negative, or all are 0; the images differ in size; the result is too large.
        """
        sides = {"left": left, "top": top, "right": right, "bottom": bottom}
        if wrong := [f"{name} {n}" for name, n in sides.items() if n < 0]:
            raise ValueError(f"outpaint by {', '.join(wrong)} pixels: give 0 or more for each side")
        if not any(sides.values()):
            raise ValueError("outpaint by 0 pixels on every side: give at least one of left, top, right, bottom")
        images = images_of(image, self.vqvae.channels)
        if len({p.shape for p in images}) > 1:
            raise ValueError("the images differ in size: outpaint them one by one")
        scenes = [border_scene(self, p, left, top, right, bottom, dilation) for p in images]
        return self._completed_scenes(scenes, class_labels, paste_back, feather, **options)

    @torch.no_grad()
    def vary(self, image: Any, strength: float = 0.5, class_labels: Any = None, **options: Any) -> Any:
        """Generate images like this one: the share `strength` of its tokens, at random positions, is sampled again.

        The whole schedule runs. With the same seed, a greater strength hides the same tokens and more. The result has
        the model's size, and the middle of the image is fitted to it. Strength 0 is the reconstruction by the
        tokenizer, and 1 is generation.

        Raises:
            ValueError: the strength is not in [0, 1]; see also :func:`maskgen.pipelines.inputs.images_of`.
        """
        check_share(strength)
        canvas = self.encode(fitted(self, images_of(image, self.vqvae.channels)))
        copies = options.get("num_images_per_prompt", 1)
        mask = share_mask(len(canvas) * copies, self.layout.grid, strength, options.get("generator"))
        return self._completed_tokens(canvas, mask.to(canvas.device), class_labels, **options)

    @torch.no_grad()
    def interpolate(
        self,
        image: Any,
        image_2: Any,
        num_frames: int = 8,
        strength: float = 0.5,
        class_labels: Any = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Any:
        """Generate frames from one image to another, through tokens of both.

        In the frame at time t from 0 to 1, a token comes from the second image if its rank in a random order is below
        t, so that no token changes back. Of the positions at which the two images differ, the share
        ``strength * 4 t (1 - t)`` is hidden and sampled again, with the same random numbers in every frame. The first
        and the last frame are the reconstructions of the images.

        Raises:
            ValueError: there are fewer than 2 frames, the strength is not in [0, 1], or an end is not one image.
        """
        if num_frames < 2:
            raise ValueError(f"num_frames is {num_frames}; an interpolation has at least its 2 ends")
        check_share(strength)
        if options.pop("num_images_per_prompt", 1) != 1 or isinstance(generator, list):
            raise ValueError("an interpolation is one row of frames: give one generator and num_images_per_prompt 1")
        ends = [self.encode(fitted(self, images_of(end, self.vqvae.channels))) for end in (image, image_2)]
        if len(ends[0]) != 1 or len(ends[1]) != 1:
            raise ValueError("give one image for each end")
        count = math.prod(self.layout.grid)
        a, b = (end.reshape(1, count, -1) for end in ends)
        order, resample = (r.to(a.device) for r in ranks(2, count, generator).split(1))
        differ = (a != b).any(-1)
        resample = (resample + ~differ * count).argsort(1).argsort(1)  # positions that differ come first
        seed = torch.randint(2**31, (1,), generator=generator, device="cpu" if generator is None else generator.device)
        t = torch.linspace(0, 1, num_frames, device=a.device)[:, None]
        canvas = torch.where((order < t * count)[..., None], b, a).view(num_frames, *ends[0].shape[1:])
        mask = (resample < strength * 4 * t * (1 - t) * differ.sum()).view(num_frames, *self.layout.grid)
        same = [torch.Generator().manual_seed(int(seed)) for _ in range(num_frames)]
        return self._completed_tokens(canvas, mask, class_labels, generator=same, **options)

    @torch.no_grad()
    def join(
        self,
        image: Any,
        image_2: Any,
        gap: int,
        keep: int | None = None,
        class_labels: Any = None,
        paste_back: bool = True,
        feather: int | None = None,
        **options: Any,
    ) -> Any:
        """Put the left part of one image and the right part of another side by side, and generate a gap between them.

        Both images are first resized to the model's height, and widths are rounded up to whole tokens. Beyond the
        trained width, the model completes window by window.

        Args:
            gap: pixels to generate.
            keep: pixels of each image; None keeps all. If `gap` and twice `keep` are the model's width, the result has
                that width.

        Raises:
            ValueError: the gap or a part has no pixels; the result is narrower than the trained width.
        """
        if gap < 1 or (keep is not None and keep < 1):
            raise ValueError(f"gap is {gap} and keep is {keep}; both must be at least 1 pixel")
        parts = [images_of(given, self.vqvae.channels) for given in (image, image_2)]
        if any(len(images) != 1 for images in parts):
            raise ValueError("give one image on either side")
        scene = gap_scene(self, parts[0][0], parts[1][0], gap, keep)
        return self._completed_scenes([scene], class_labels, paste_back, feather, **options)

    def _inpaint(
        self,
        images: Sequence[Float[Tensor, "c _ _"]],
        masks: Sequence[Bool[Tensor, "_ _"]],
        class_labels: Any,
        padding_mask_crop: int | None = None,
        dilation: Dilation = 0,
        fill: Fill = "smooth",
        paste_back: bool = True,
        feather: int | None = None,
        **options: Any,
    ) -> Any:
        """:meth:`inpaint` for pixels in [-1, 1] and boolean masks."""
        scenes = [hole_scene(self, p, m, padding_mask_crop, dilation, fill) for p, m in zip(images, masks)]
        return self._completed_scenes(scenes, class_labels, paste_back, feather, **options)

    def _completed_scenes(
        self,
        scenes: list[Scene],
        class_labels: Any,
        paste_back: bool,
        feather: int | None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Complete the scenes in one batch, and put the results into their images."""
        self.check_output_type(output_type)
        canvas, mask = (torch.cat([getattr(scene, name) for scene in scenes]) for name in ("canvas", "mask"))
        codes = self._completed(canvas, mask, class_labels, **options)
        if output_type == "codes":
            return self._output(codes, output_type, return_dict)
        made = self.decode(codes).cpu()
        copies = len(codes) // len(scenes)
        images = [scenes[i // copies].placed(made[i : i + 1], paste_back, feather) for i in range(len(made))]
        return self._output(images, output_type, return_dict)

    def _completed_tokens(
        self,
        canvas: Tensor,
        mask: Tensor,
        class_labels: Any,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Complete tokens and give them as images, without pasting."""
        self.check_output_type(output_type)
        return self._output(self._completed(canvas, mask, class_labels, **options), output_type, return_dict)

    def _completed(
        self,
        canvas: Tensor,
        mask: Tensor,
        class_labels: Any,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        trace: Tracer | None = None,
        overlap: int | None = None,
        conditions: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Tokens (n * copies, h, w, ...) of n images; the mask has one row per image or one per result."""
        n, copies = len(canvas), num_images_per_prompt
        labels, given, _ = self.rows_of(class_labels, conditions, copies, n)
        if isinstance(generator, list) and len(generator) != n * copies:
            raise ValueError(f"{len(generator)} generators for {n * copies} images; give one, or one per image")
        canvas = canvas.repeat_interleave(copies, 0)
        mask = mask if len(mask) == len(canvas) else mask.repeat_interleave(copies, 0)
        settings = (num_inference_steps, guidance_scale, generator)
        return self.complete(canvas, mask, labels, *settings, trace=trace, overlap=overlap, conditions=given)

    def _output(self, made: Tensor | list[Tensor], output_type: str, return_dict: bool) -> Any:
        """Tokens, or one tensor of pixels (1, c, h, w) in [-1, 1] per image -> the output type."""
        images: Any = made
        if output_type != "codes":
            parts = list(self.decode(made).split(1)) if isinstance(made, Tensor) else made
            if output_type == "pil":
                images = [image for pixels in parts for image in to_pil(pixels)]
            elif len({pixels.shape for pixels in parts}) > 1:
                raise ValueError(
                    f"the images differ in size and do not fit one array: use output_type='pil', not {output_type!r}"
                )
            else:
                images = torch.cat(parts)
                images = images.clamp(-1, 1) if output_type == "pixels" else to_unit(images)
                images = images.permute(0, 2, 3, 1).cpu().numpy() if output_type == "np" else images
        return MaskedImageOutput(images) if return_dict else (images,)

    def _on_step(
        self, user: Callable[..., Any] | None, inputs: Sequence[str], steps: int | None
    ) -> Callable[[int, Tensor, Tensor], None] | None:
        if user is None:
            return None
        total = steps or self.scheduler.config.num_inference_steps

        def call(step: int, tokens: Tensor, hidden: Tensor) -> None:
            tensors = {"codes": tokens, "hidden": hidden}
            user(self, step, (step + 1) / total, {name: tensors[name] for name in inputs})

        return call
