"""MaskedVideoPipeline: a video is a canvas of tokens and a mask, and every task only says which pixels are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from maskgen.decoding.scheduler import MaskScheduler
from maskgen.images import to_pil
from maskgen.pipelines.conditions import opened
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.store import pipeline_folder
from maskgen.pipelines.tokens import TokenLayout, actions_of_tokens
from maskgen.tasks.conditions import Prompts
from maskgen.tasks.videos import held, video_token_mask
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.model import MaskTransformer


@dataclass
class MaskedVideoOutput(BaseOutput):
    """frames: a list of PIL images a video, float array (n, t, h, w, c) in [0, 1], float tensor (n, t, c, h, w) in
    [0, 1], or int64 codes (n, t, h, w), by `output_type`."""

    frames: Any


class MaskedVideoPipeline(DiffusionPipeline):
    """Prediction, interpolation, inpainting, outpainting and generation of videos (MaskViT, Gupta et al. 2022,
    arXiv:2206.11894, section 3.3): all hidden tokens at once, the most confident kept, step by step.

    Videos are float tensors (c, t, H, W) or (n, c, t, H, W) in [-1, 1], of the trained size or larger. The methods take
    these keywords:

        class_labels: number or name of a class, one for all videos or one each; None draws without a class.
        actions: float (T, a) or (n, T, a), one a frame of the whole result, where the model reads them.
        num_videos_per_prompt: results of each video.
        num_inference_steps, guidance_scale: the scheduler's defaults where None.
        generator: one, or a list of one a result.
        overlap: tokens (time, height, width) that neighbouring windows share, beyond the trained size.
        output_type: ``pil``, ``np``, ``pt`` or ``codes``; return_dict: give a :class:`MaskedVideoOutput`, or a tuple.

    Known pixels are given back as they were.

    A model of several `tasks` (MAGVIT, Yu et al. 2023, arXiv:2212.05199) begins with the condition's tokens, each
    method naming its task. It works at the trained size; prediction goes on from decoded frames.

    Args:
        tokenizer, transformer, scheduler: the parts; the transformer's grid is (t, h, w).
        class_names: a name a class, in the order of the labels.
        tasks: what the model was trained on, see :class:`maskgen.tasks.conditions.Prompts`; None is one task.
        condition_mode: how, see :class:`maskgen.mim.corruption.Condition`.

    Raises:
        ValueError: parts that were not trained together, or a transformer of images.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: MaskTransformer,
        scheduler: MaskScheduler,
        class_names: list[str] | None = None,
        tasks: list[str] | None = None,
        condition_mode: str = "cond_input",
    ):
        super().__init__()
        TokenLayout(tokenizer, transformer)  # refuses what was not trained together
        if len(transformer.grid) != 3:
            raise ValueError(f"a transformer of videos has a grid (t, h, w), this one {tuple(transformer.grid)}")
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler)
        self.register_to_config(class_names=class_names, tasks=tasks, condition_mode=condition_mode)
        if self.prompts is not None and self.prompts.count != self.num_classes:
            raise ValueError(
                f"{self.prompts.count} labels of tasks {', '.join(self.prompts.names)} for a transformer of "
                f"{self.num_classes}: they were not trained together"
            )

    # What is the same for images.
    complete, labels_of, _number = (
        MaskedImagePipeline.complete,
        MaskedImagePipeline.labels_of,
        MaskedImagePipeline._number,
    )
    class_names, check_output_type = MaskedImagePipeline.class_names, MaskedImagePipeline.check_output_type
    num_classes = MaskedImagePipeline.num_classes
    _critic, critic = MaskedImagePipeline._critic, None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a pipeline from a folder, a run, or the Hub.

        Raises:
            OSError: nothing there.
        """
        return super().from_pretrained(str(pipeline_folder(pretrained_model_name_or_path)), **kwargs)

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width that the transformer was trained on."""
        frames, height, width = self.tokenizer.size(tuple(self.transformer.grid))
        return frames, height, width

    @property
    def prompts(self) -> Prompts | None:
        """Of a model of several tasks."""
        return None if self.config.tasks is None else Prompts(self.config.tasks, len(self.config.class_names or ()))

    @property
    def factor(self) -> int:
        """Frames of a token behind the first."""
        return self.tokenizer.temporal_downsampling

    @torch.no_grad()
    def __call__(self, class_labels: Any = None, num_frames: int | None = None, **options: Any) -> Any:
        """Generate videos, of the trained length where `num_frames` is None.

        Raises:
            ValueError: no frames; what :meth:`inpaint` raises.
        """
        count = len(class_labels) if isinstance(class_labels, (list, tuple, Tensor)) else 1
        trained, height, width = self.size
        frames = trained if num_frames is None else num_frames
        if frames < 1:
            raise ValueError(f"num_frames is {frames}; generate at least 1")
        blank = torch.zeros(count, self.tokenizer.channels, frames, height, width)
        everything = torch.ones_like(blank[:, 0], dtype=torch.bool)
        return self.inpaint(blank, everything, class_labels, **{"task": "generation", **options})

    @torch.no_grad()
    def predict(self, video: Tensor, num_frames: int, **options: Any) -> Any:
        """The frames given and `num_frames` more: 1 or more in, any number out.

        Beyond the trained length a window slides, keeping as many known frames in view as were given. A tokenizer that
        shortens time keeps the first frame of a window apart, so there the last frames are encoded anew, as they are
        for a model of several tasks.

        Raises:
            ValueError: no frames to add; what :meth:`inpaint` raises.
        """
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; predict at least 1")
        known = self._video(video)
        (t, h, w), given = tuple(self.transformer.grid), known.shape[2]
        seen = min(1 + (given - 1) // self.factor, t - 1)  # tokens of the context
        several = self.config.tasks is not None
        whole = several or (given - 1) % self.factor == 0  # a condition's token may hold some frames of its padding
        slides = self.factor == 1 and not several
        if not whole or (given + num_frames > self.size[0] and not slides):
            return self._rolled(known, num_frames, 1 + (seen - 1) * self.factor, **options)
        settings = {"overlap": (seen, h // 2, w // 2), "task": "prediction"}
        return self.outpaint(known, after=num_frames, **{**settings, **options})

    def interpolate(self, video: Tensor, video_2: Tensor, num_frames: int, **options: Any) -> Any:
        """One video, `num_frames` between, and the other.

        Raises:
            ValueError: no frame between, videos of two shapes; what :meth:`inpaint` raises.
        """
        first, last = self._video(video), self._video(video_2)
        if num_frames < 1 or first.shape[:2] != last.shape[:2] or first.shape[3:] != last.shape[3:]:
            raise ValueError(
                f"num_frames {num_frames} must be at least 1, and both videos {tuple(first.shape)} and "
                f"{tuple(last.shape)} as many and of one size"
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
        """Extend in space by pixels on each side, in time by frames before and after. What is given may be smaller than
        the trained size, the result may not.

        Raises:
            ValueError: nothing to add, or less than that; what :meth:`inpaint` raises.
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
        """Draw anew what `mask` (T, H, W) or (n, T, H, W) hides, True = hidden: what every task comes to.

        Args:
            task: of a model of several: its prompt, and the padding of what is hidden
                (:func:`maskgen.tasks.conditions.condition_video`); other models do not look at it.

        Raises:
            ValueError: a video that is none, or smaller than the trained frames; a mask of another shape, or that hides
                nothing; labels, actions or options that do not fit; of several tasks one that was not trained, or a
                video larger than the trained one.
        """
        self.check_output_type(output_type)
        pixels, copies = self._video(video), num_videos_per_prompt
        share = tuple(n // 2 for n in self.transformer.grid) if overlap is None else overlap
        if copies < 1 or not isinstance(share, Sequence) or len(share) != 3:
            raise ValueError(
                f"num_videos_per_prompt {copies} must be at least 1, and overlap {overlap} be (time, height, width)"
            )
        hidden = mask.expand(len(pixels), -1, -1, -1) if mask.ndim == 3 else mask
        if hidden.dtype != torch.bool or hidden.shape != pixels[:, 0].shape or not hidden.any():
            raise ValueError(
                f"the mask, {mask.dtype} {tuple(mask.shape)}, must be bool (T, H, W) or (n, T, H, W), of the size of "
                f"{tuple(pixels.shape)}, and hide something: True is drawn anew"
            )
        whole, holes = self._whole(pixels), self._whole(hidden[:, None].float(), 1.0)[:, 0] > 0
        grid = self.tokenizer.grid(tuple(whole.shape[2:]))
        if self.factor > 1 and grid[0] > self.transformer.grid[0]:
            raise ValueError(
                f"{pixels.shape[2]} frames; this tokenizer shortens time, so no window can slide over its tokens: give "
                f"{self.size[0]} at most, or use predict, which goes on from decoded frames"
            )
        labels = self._labels(class_labels, len(pixels), copies, task)
        canvas, hide, shown = self._opened(whole, holes, grid, task, copies)
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
        made = self.tokenizer.decode(codes).float().cpu()
        made = made[:, :, : pixels.shape[2], : pixels.shape[3], : pixels.shape[4]]
        known = [x.repeat_interleave(copies, 0).cpu() for x in (pixels, hidden[:, None])]
        return self._output(torch.where(known[1], made, known[0]), output_type, return_dict)

    def _alike(self, hide: Bool[Tensor, "n t h w"], generator: Any) -> list[list[int]]:
        """Rows to be completed together: of one mask where windows slide, for the mask says in what order; else all."""
        if isinstance(generator, list) and len(generator) != len(hide):
            raise ValueError(f"{len(generator)} generators for {len(hide)} rows; give one, or one a row")
        if tuple(hide.shape[1:]) == tuple(self.transformer.grid):
            return [list(range(len(hide)))]
        kinds = torch.unique(hide.flatten(1), dim=0, return_inverse=True)[1]
        return [(kinds == kind).nonzero()[:, 0].tolist() for kind in kinds.unique()]

    def _opened(
        self, pixels: Tensor, hidden: Tensor, grid: Any, task: str, copies: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Canvas, mask, and the hidden places at which the canvas' token is seen, or None. The tokenizer sees nothing
        of hidden pixels."""
        shown = None
        if self.config.tasks is None:
            canvas = self.tokenizer.eval().encode(held(pixels, hidden).to(self.device, self.tokenizer.dtype))
            hide = video_token_mask(hidden, grid, self.factor).to(self.device)
        elif grid == tuple(self.transformer.grid):
            canvas, hide, shown = opened(self.tokenizer, self.config.condition_mode, task, pixels, hidden, self.device)
        else:
            raise ValueError(
                f"a video of {tuple(pixels.shape[2:])}: a model of several tasks works at its trained frames and size, "
                f"{self.size}; predict goes on beyond the trained length"
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
        """Predict as much as the trained length holds, again and again, from the last `keep` frames."""
        self.check_output_type(output_type)
        if output_type == "codes":
            raise ValueError("beyond the trained length this tokenizer's codes are no one video; take pixels")
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
                "output_type": "pt",
                "task": "prediction",
                **options,
            }
            made = self.outpaint(pixels[:, :, start:], after=frames, **settings).frames
            pixels = torch.cat([pixels, made.transpose(1, 2)[:, :, -frames:].to(pixels) * 2 - 1], 2)
        return self._output(pixels, output_type, return_dict)

    def _video(self, video: Tensor, part: bool = False) -> Float[Tensor, "n c T H W"]:
        """As a batch; a `part` may have smaller frames than the trained ones.

        Raises:
            ValueError: it is none that this pipeline can take.
        """
        if not isinstance(video, Tensor) or not video.is_floating_point() or video.ndim not in (4, 5):
            raise ValueError("give videos as float tensors (c, t, H, W) or (n, c, t, H, W) in [-1, 1]")
        pixels = video if video.ndim == 5 else video[None]
        (_, height, width), channels = self.size, self.tokenizer.channels
        small = (pixels.shape[3] < height or pixels.shape[4] < width) and not part
        if pixels.shape[1] != channels or min(pixels.shape[2:]) < 1 or small:
            raise ValueError(
                f"videos {tuple(pixels.shape)}: this model takes {channels} channels, 1 frame or more and frames of "
                f"{height}x{width} pixels (h x w) or larger; resize them"
            )
        if not (pixels.isfinite().all() and pixels.abs().max() <= 1 + 1e-3):
            raise ValueError("videos hold values outside [-1, 1] or not finite")
        return pixels

    def _whole(self, x: Float[Tensor, "n c T H W"], value: float = 0.0) -> Float[Tensor, "n c T2 H2 W2"]:
        """With frames behind it up to the trained length and to whole tokens, and pixels right and below."""
        frames, (_, h, w) = self.size, tuple(self.transformer.grid)
        length = max(x.shape[2], frames[0])
        length += -(length - frames[0]) % self.factor
        sides = [
            -(-n // (size // places)) * (size // places) for n, size, places in zip(x.shape[3:], frames[1:], (h, w))
        ]
        return F.pad(x, (0, sides[1] - x.shape[4], 0, sides[0] - x.shape[3], 0, length - x.shape[2]), value=value)

    def _labels(self, given: Any, videos: int, copies: int, task: str) -> list[int] | None:
        """A label a result, of several tasks the prompt."""
        prompts = self.prompts
        if given is None and prompts is not None:
            return [prompts.label(task)] * (videos * copies)
        if given is None:
            return self.labels_of(None, videos * copies)[0]
        labels, count = self.labels_of(given, copies)
        if count not in (copies, videos * copies):
            raise ValueError(f"{count // copies} class labels for {videos} videos; give one, or one a video")
        labels = labels if labels is None or count == videos * copies else labels * videos
        return labels if prompts is None or labels is None else [prompts.label(task, number) for number in labels]

    def _actions(self, given: Tensor | None, pixels: Tensor, length: int, copies: int) -> Tensor | None:
        """Those of each result's tokens; frames behind the video's last have none."""
        self._check_actions(given, len(pixels), pixels.shape[2])
        if given is None:
            return None
        actions = given.expand(len(pixels), -1, -1) if given.ndim == 2 else given
        padded = F.pad(actions.float(), (0, 0, 0, length - pixels.shape[2]))
        return actions_of_tokens(padded, self.factor).repeat_interleave(copies, 0).to(self.device)

    def _check_actions(self, given: Any, videos: int, frames: int) -> None:
        """ValueError unless there are none, or one finite row a frame, of all `videos` or of each."""
        if given is None:
            return
        if not isinstance(given, Tensor) or given.ndim not in (2, 3) or not given.isfinite().all():
            raise ValueError("give actions as a tensor (T, a) or (n, T, a) of finite numbers")
        if given.shape[-2] != frames or (given.ndim == 3 and len(given) != videos):
            raise ValueError(
                f"actions {tuple(given.shape)} for {videos} videos of {frames} frames, those to be drawn among them; "
                "give one a frame"
            )

    def _output(self, made: Tensor, output_type: str, return_dict: bool) -> Any:
        """Codes, or pixels (n, c, t, H, W) in [-1, 1], as the output that was asked for."""
        frames: Any = made
        if output_type == "pil":
            frames = [to_pil(video.transpose(0, 1)) for video in made]
        elif output_type != "codes":
            unit = ((made.transpose(1, 2) + 1) / 2).clamp(0, 1)
            frames = unit if output_type == "pt" else unit.permute(0, 1, 3, 4, 2).cpu().numpy()
        return MaskedVideoOutput(frames) if return_dict else (frames,)
