"""MaskedVideoPipeline: every task on videos says which pixels are hidden, and completes the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from maskgen.decoding.scheduler import MaskScheduler
from maskgen.images import to_pil
from maskgen.pipelines.base import MaskedPipeline, to_unit
from maskgen.pipelines.conditions import opened
from maskgen.pipelines.tokens import actions_of_tokens
from maskgen.tasks.conditions import Prompts
from maskgen.tasks.videos import held, video_token_mask
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.model import MaskTransformer


@dataclass
class MaskedVideoOutput(BaseOutput):
    """The result of a task.

    frames: by `output_type`: one list of PIL images per video; a float array (n, t, h, w, c) in [0, 1]; a float tensor
        (n, t, c, h, w) in [0, 1] (``pt``); a float tensor (n, c, t, h, w) in [-1, 1] (``pixels``), the layout that
        the tasks take; or int64 codes (n, t, h, w).
    """

    frames: Any


class MaskedVideoPipeline(MaskedPipeline):
    """Predict, interpolate, inpaint, outpaint and generate videos by iterative parallel decoding (MaskViT, Gupta et al.
    2022, arXiv:2206.11894, section 3.3).

    Videos are float tensors (c, t, H, W) or (n, c, t, H, W) in [-1, 1], of the trained size or larger. Known pixels
    come back unchanged. All tasks take these keywords:

        class_labels: number or name of a class, one for all videos or one per video; with None no class is given.
        actions: float (T, a) or (n, T, a), one per frame of the whole result, if the model reads actions.
        num_videos_per_prompt: results per video.
        num_inference_steps, guidance_scale: the scheduler's defaults if None.
        generator: one generator, or a list with one per result.
        overlap: tokens (time, height, width) that neighbouring windows share, beyond the trained size.
        output_type: ``pil``, ``np``, ``pt``, ``pixels`` or ``codes``, see :class:`MaskedVideoOutput`.
        return_dict: return a :class:`MaskedVideoOutput`, or a tuple.

    A model of several `tasks` (MAGVIT, Yu et al. 2023, arXiv:2212.05199) begins with the tokens of a condition; each
    method names its task. Such a model works at its trained size, and its prediction goes on from decoded frames.

    Args:
        vqvae: the tokenizer.
        transformer: predicts the tokens of `vqvae`, with a grid (t, h, w).
        scheduler: the settings of the decode loop.
        class_names: one name per class, in the order of the labels.
        tasks: the tasks that the model was trained on, see :class:`maskgen.tasks.conditions.Prompts`; None is one task.
        condition_mode: how it was trained on them, see :class:`maskgen.mim.corruption.Condition`.

    Raises:
        ValueError: the components were not trained together, or the transformer is one of images.
    """

    def __init__(
        self,
        vqvae: Tokenizer,
        transformer: MaskTransformer,
        scheduler: MaskScheduler,
        class_names: list[str] | None = None,
        tasks: list[str] | None = None,
        condition_mode: str = "cond_input",
    ):
        super().__init__()
        if len(transformer.grid) != 3:
            raise ValueError(f"a transformer of videos has a grid (t, h, w), this one {tuple(transformer.grid)}")
        self._compose(vqvae, transformer, scheduler=scheduler)
        self.register_to_config(class_names=class_names, tasks=tasks, condition_mode=condition_mode)
        if self.prompts is not None and self.prompts.count != self.num_classes:
            raise ValueError(
                f"tasks {', '.join(self.prompts.names)} have {self.prompts.count} labels and the transformer has "
                f"{self.num_classes}: they were not trained together"
            )

    @property
    def size(self) -> tuple[int, int, int]:
        """The number of frames, the height and the width of the videos that the transformer was trained on."""
        frames, height, width = self.vqvae.size(self.layout.grid)
        return frames, height, width

    @property
    def prompts(self) -> Prompts | None:
        """The labels of the tasks and classes of a model of several tasks, else None."""
        return None if self.config.tasks is None else Prompts(self.config.tasks, len(self.config.class_names or ()))

    @property
    def factor(self) -> int:
        """The number of frames of each token after the first."""
        return self.vqvae.temporal_downsampling

    @torch.no_grad()
    def __call__(self, class_labels: Any = None, num_frames: int | None = None, **options: Any) -> Any:
        """Generate videos, of the trained length if `num_frames` is None.

        Raises:
            ValueError: there are no frames; see also :meth:`inpaint`.
        """
        count = len(class_labels) if isinstance(class_labels, (list, tuple, Tensor)) else 1
        trained, height, width = self.size
        frames = trained if num_frames is None else num_frames
        if frames < 1:
            raise ValueError(f"num_frames is {frames}; generate at least 1")
        blank = torch.zeros(count, self.vqvae.channels, frames, height, width)
        everything = torch.ones_like(blank[:, 0], dtype=torch.bool)
        return self.inpaint(blank, everything, class_labels, **{"task": "generation", **options})

    @torch.no_grad()
    def predict(self, video: Tensor, num_frames: int, **options: Any) -> Any:
        """Give back the frames of `video` (at least 1) and `num_frames` more (any number).

        Beyond the trained length a window slides and keeps as many known frames in view as were given. If the tokenizer
        shortens time, or the model is one of several tasks, the last decoded frames are encoded again instead, because
        the first token of a video is special.

        Raises:
            ValueError: no frames are asked for; see also :meth:`inpaint`.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; predict at least 1")
        known = self._video(video)
        (t, h, w), given = self.layout.grid, known.shape[2]
        seen = min(1 + (given - 1) // self.factor, t - 1)  # tokens of the context
        several = self.config.tasks is not None
        whole = several or (given - 1) % self.factor == 0  # else a condition's last token holds frames of padding
        slides = self.factor == 1 and not several
        if not whole or (given + num_frames > self.size[0] and not slides):
            return self._rolled(known, num_frames, 1 + (seen - 1) * self.factor, **options)
        settings = {"overlap": (seen, h // 2, w // 2), "task": "prediction"}
        return self.outpaint(known, after=num_frames, **{**settings, **options})

    def interpolate(self, video: Tensor, video_2: Tensor, num_frames: int, **options: Any) -> Any:
        """Give one video, `num_frames` generated frames, and the other video.

        Raises:
            ValueError: no frame is asked for, or the videos differ in shape; see also :meth:`inpaint`.
        """
        first, last = self._video(video), self._video(video_2)
        if num_frames < 1 or first.shape[:2] != last.shape[:2] or first.shape[3:] != last.shape[3:]:
            raise ValueError(
                f"num_frames {num_frames} must be at least 1, and the videos {tuple(first.shape)} and "
                f"{tuple(last.shape)} must be of one number and one size"
            )
        pixels = torch.cat([first, first.new_zeros(*first.shape[:2], num_frames, *first.shape[3:]), last], 2)
        hidden = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
        hidden[:, first.shape[2] : first.shape[2] + num_frames] = True
        return self.inpaint(pixels, hidden, **{"task": "interpolation", **options})

    def outpaint(
        self,
        video: Tensor,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        before: int = 0,
        after: int = 0,
        **options: Any,
    ) -> Any:
        """Extend videos by pixels on each side and by frames before and after. The video may be smaller than the
        trained size; the result may not.

        Raises:
            ValueError: a number is negative, or all are 0; see also :meth:`inpaint`.
        """
        sides = (left, right, top, bottom, before, after)
        if min(sides) < 0 or not any(sides):
            raise ValueError(
                f"left, right, top, bottom, before, after are {sides}; give 0 or more, one of them above 0"
            )
        pixels = self._video(video, part=True)
        hidden = F.pad(torch.zeros_like(pixels[:, 0], dtype=torch.bool), sides, value=True)
        return self.inpaint(F.pad(pixels, sides), hidden, **{"task": "outpainting", **options})

    @torch.no_grad()
    def inpaint(
        self,
        video: Tensor,
        mask: Shaped[Tensor, "*b T H W"],
        class_labels: Any = None,
        actions: Float[Tensor, "*rows frames a"] | None = None,
        num_videos_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Any = None,
        overlap: Sequence[int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        task: str = "inpainting",
    ) -> Any:
        """Generate what `mask` hides. Every other task calls this one.

        Args:
            video: see the class.
            mask: bool (T, H, W) or (n, T, H, W), True = hidden.
            task: for a model of several tasks, the task whose prompt and padding
                (:func:`maskgen.tasks.conditions.condition_video`) are used; other models ignore it.
            class_labels, actions, num_videos_per_prompt, num_inference_steps, guidance_scale, generator, overlap,
                output_type, return_dict: see the class.

        Raises:
            ValueError: the video is not one, or its frames are smaller than the trained ones; the mask has another
                shape or hides nothing; labels, actions or options do not fit; a model of several tasks was not trained
                on the task, or the video is larger than its trained size.
        """
        self.check_output_type(output_type)
        pixels, copies = self._video(video), num_videos_per_prompt
        share = tuple(n // 2 for n in self.layout.grid) if overlap is None else overlap
        if copies < 1 or not isinstance(share, Sequence) or len(share) != 3:
            raise ValueError(
                f"num_videos_per_prompt {copies} must be at least 1, and overlap {overlap} be (time, height, width)"
            )
        hidden = mask.expand(len(pixels), -1, -1, -1) if mask.ndim == 3 else mask
        if hidden.dtype != torch.bool or hidden.shape != pixels[:, 0].shape or not hidden.any():
            raise ValueError(
                f"the mask, {mask.dtype} {tuple(mask.shape)}, must be bool (T, H, W) or (n, T, H, W), of the size of "
                f"{tuple(pixels.shape)}, and hide something: True is hidden"
            )
        whole, holes = self._whole(pixels), self._whole(hidden[:, None].float(), 1.0)[:, 0] > 0
        grid = self.vqvae.grid(tuple(whole.shape[2:]))
        if self.factor > 1 and grid[0] > self.layout.grid[0]:
            raise ValueError(
                f"the video has {pixels.shape[2]} frames, and no window can slide over the tokens of a tokenizer that "
                f"shortens time: give {self.size[0]} at most, or use predict, which goes on from decoded frames"
            )
        labels = self._labels(class_labels, len(pixels), copies, task)
        canvas, hide, shown = self._canvas(whole, holes, grid, task, copies)
        acts = self._actions(actions, pixels, whole.shape[2], copies)
        codes = torch.empty_like(canvas)
        for rows in self._alike(hide, generator):
            codes[rows] = self.complete(
                canvas[rows],
                hide[rows],
                None if labels is None else [labels[row] for row in rows],
                num_inference_steps,
                guidance_scale,
                [generator[row] for row in rows] if isinstance(generator, list) else generator,
                overlap=tuple(share),
                actions=None if acts is None else acts[rows],
                shown=None if shown is None else shown[rows],
            )
        if output_type == "codes":
            return self._output(codes, output_type, return_dict)
        made = self.decode(codes).clamp(-1, 1).cpu()
        made = made[:, :, : pixels.shape[2], : pixels.shape[3], : pixels.shape[4]]
        known = [x.repeat_interleave(copies, 0).cpu() for x in (pixels, hidden[:, None])]
        return self._output(torch.where(known[1], made, known[0]), output_type, return_dict)

    def _alike(self, hide: Bool[Tensor, "n t h w"], generator: Any) -> list[list[int]]:
        """The rows to complete together: all; or, if windows slide, those with one mask."""
        if isinstance(generator, list) and len(generator) != len(hide):
            raise ValueError(f"{len(generator)} generators for {len(hide)} rows; give one, or one per row")
        if tuple(hide.shape[1:]) == self.layout.grid:
            return [list(range(len(hide)))]
        kinds = torch.unique(hide.flatten(1), dim=0, return_inverse=True)[1]
        return [(kinds == kind).nonzero()[:, 0].tolist() for kind in kinds.unique()]

    def _canvas(
        self, pixels: Tensor, hidden: Tensor, grid: Any, task: str, copies: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The canvas, the mask, and the hidden positions at which the transformer sees the canvas, or None. The
        tokenizer sees nothing of the hidden pixels."""
        shown = None
        if self.config.tasks is None:
            canvas = self.encode(held(pixels, hidden))
            hide = video_token_mask(hidden, grid, self.factor).to(self.device)
        elif grid == self.layout.grid:
            canvas, hide, shown = opened(self, self.config.condition_mode, task, pixels, hidden)
        else:
            raise ValueError(
                f"the video is {tuple(pixels.shape[2:])} (t, h, w) and a model of several tasks works at its trained "
                f"size {self.size}; use predict to go beyond the trained length"
            )
        shown = None if shown is None else shown.repeat_interleave(copies, 0)
        return canvas.repeat_interleave(copies, 0), hide.repeat_interleave(copies, 0), shown

    def _rolled(
        self,
        video: Tensor,
        num_frames: int,
        keep: int,
        class_labels: Any = None,
        actions: Tensor | None = None,
        num_videos_per_prompt: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Predict up to the trained length from the last `keep` frames, again and again."""
        self.check_output_type(output_type)
        if output_type == "codes":
            raise ValueError("beyond the trained length the result is not one video of codes; set another output_type")
        total, copies = video.shape[2] + num_frames, num_videos_per_prompt
        if copies < 1:
            raise ValueError(f"num_videos_per_prompt {copies} must be at least 1")
        self._check_actions(actions, len(video), total)
        pixels = video.repeat_interleave(copies, 0)
        if actions is not None and actions.ndim == 3:
            actions = actions.repeat_interleave(copies, 0)
        if isinstance(class_labels, (list, tuple, Tensor)) and len(class_labels) > 1:
            class_labels = [label for label in class_labels for _ in range(copies)]
        while pixels.shape[2] < total:
            start = pixels.shape[2] - keep
            stop = min(total, start + self.size[0])
            part = None if actions is None else actions[..., start:stop, :]
            frames = stop - pixels.shape[2]
            settings = {
                "actions": part,
                "class_labels": class_labels,
                "output_type": "pixels",
                "task": "prediction",
                **options,
            }
            made = self.outpaint(pixels[:, :, start:], after=frames, **settings).frames
            pixels = torch.cat([pixels, made[:, :, -frames:].to(pixels)], 2)
        return self._output(pixels, output_type, return_dict)

    def _video(self, video: Tensor, part: bool = False) -> Float[Tensor, "n c T H W"]:
        """A video as a float32 batch. The frames of a `part` may be smaller than the trained ones.

        Raises:
            ValueError: the pipeline cannot take this video.
        """
        if not isinstance(video, Tensor) or not video.is_floating_point() or video.ndim not in (4, 5):
            raise ValueError("give videos as float tensors (c, t, H, W) or (n, c, t, H, W) in [-1, 1]")
        pixels = (video if video.ndim == 5 else video[None]).float()
        (_, height, width), channels = self.size, self.vqvae.channels
        small = (pixels.shape[3] < height or pixels.shape[4] < width) and not part
        if pixels.shape[1] != channels or min(pixels.shape[2:]) < 1 or small:
            raise ValueError(
                f"videos {tuple(pixels.shape)}: this model takes {channels} channels, 1 frame or more and frames of "
                f"{height}x{width} pixels (h x w) or larger; resize them"
            )
        if not (pixels.isfinite().all() and pixels.abs().max() <= 1 + 1e-3):
            raise ValueError("the videos hold values that are outside [-1, 1] or not finite")
        return pixels

    def _whole(self, x: Float[Tensor, "n c T H W"], value: float = 0.0) -> Float[Tensor, "n c T2 H2 W2"]:
        """Pad a video to the trained length and to whole tokens: frames at the end, pixels right and below."""
        frames, (_, h, w) = self.size, self.layout.grid
        length = max(x.shape[2], frames[0])
        length += -(length - frames[0]) % self.factor
        sides = [
            -(-n // (size // tokens)) * (size // tokens) for n, size, tokens in zip(x.shape[3:], frames[1:], (h, w))
        ]
        return F.pad(x, (0, sides[1] - x.shape[4], 0, sides[0] - x.shape[3], 0, length - x.shape[2]), value=value)

    def _labels(self, given: Any, videos: int, copies: int, task: str) -> list[int] | None:
        """One label per result; for a model of several tasks, the label of its prompt."""
        prompts = self.prompts
        if given is None and prompts is not None:
            return [prompts.label(task)] * (videos * copies)
        if given is None:
            return self.labels_of(None, videos * copies)[0]
        labels, count = self.labels_of(given, copies)
        if count not in (copies, videos * copies):
            raise ValueError(f"{count // copies} class labels for {videos} videos; give one, or one per video")
        labels = labels if labels is None or count == videos * copies else labels * videos
        return labels if prompts is None or labels is None else [prompts.label(task, number) for number in labels]

    def _actions(self, given: Tensor | None, pixels: Tensor, length: int, copies: int) -> Tensor | None:
        """The actions of the tokens of each result; frames of padding have zeros."""
        self._check_actions(given, len(pixels), pixels.shape[2])
        if given is None:
            return None
        actions = given.expand(len(pixels), -1, -1) if given.ndim == 2 else given
        padded = F.pad(actions.float(), (0, 0, 0, length - pixels.shape[2]))
        return actions_of_tokens(padded, self.factor).repeat_interleave(copies, 0).to(self.device)

    def _check_actions(self, given: Any, videos: int, frames: int) -> None:
        """Raise ValueError unless the actions are None, or finite and one per frame."""
        if given is None:
            return
        if not isinstance(given, Tensor) or given.ndim not in (2, 3) or not given.isfinite().all():
            raise ValueError("give actions as a tensor (T, a) or (n, T, a) of finite numbers")
        if given.shape[-2] != frames or (given.ndim == 3 and len(given) != videos):
            raise ValueError(
                f"actions {tuple(given.shape)} for {videos} videos of {frames} frames, generated ones too: give one "
                "per frame"
            )

    def _output(self, made: Tensor, output_type: str, return_dict: bool) -> Any:
        """Codes, or pixels (n, c, t, H, W) in [-1, 1] -> the output type."""
        frames: Any = made
        if output_type == "pil":
            frames = [to_pil(video.transpose(0, 1)) for video in made]
        elif output_type in ("pt", "np"):
            unit = to_unit(made.transpose(1, 2))
            frames = unit if output_type == "pt" else unit.permute(0, 1, 3, 4, 2).cpu().numpy()
        return MaskedVideoOutput(frames) if return_dict else (frames,)
