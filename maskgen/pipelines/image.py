"""MaskedImagePipeline: images from a tokenizer, a masked transformer and a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from maskgen.decoding.loop import Trace
from maskgen.decoding.noise import Generators
from maskgen.decoding.scheduler import MaskScheduler
from maskgen.images import to_pil
from maskgen.pipelines import editing
from maskgen.pipelines.predictor import CriticScores, Predictor, given_of
from maskgen.pipelines.store import pipeline_folder
from maskgen.pipelines.tokens import TokenLayout
from maskgen.pipelines.trace import Tracer, Watch
from maskgen.registry import nearest
from maskgen.tasks.windows import Place, complete_by_windows
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.model import MaskTransformer

OUTPUT_TYPES = ("pil", "np", "pt", "codes")


@dataclass
class MaskedImageOutput(BaseOutput):
    """images: list of PIL images, float array (n, h, w, c) in [0, 1], float tensor (n, c, h, w) in [0, 1], or
    int64 codes (n, h, w), by `output_type`."""

    images: Any


def bundled_pipeline() -> Path:
    """The pretrained emoji pipeline that comes with maskgen.

    Raises:
        FileNotFoundError: this installation has none.
    """
    folder = Path(__file__).parents[1] / "pretrained" / "emoji"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"no bundled pipeline at {folder}; give the folder or Hub name of one")
    return folder


class MaskedImagePipeline(DiffusionPipeline):
    """Class-conditional and unconditional generation by iterative parallel decoding (MaskGIT, arXiv:2202.04200).

    Called, it generates; :mod:`maskgen.pipelines.editing` has its other tasks, which are its methods too.

    Args:
        tokenizer, transformer, scheduler: the parts; the transformer's codebook must be the tokenizer's.
        class_names: a name a class, in the order of the labels.
        critic: scores drawn tokens for the scheduler's order ``critic`` (stage ``critic`` trains one); else not needed.
    """

    _optional_components = ["critic"]  # noqa: RUF012

    def __init__(
        self,
        tokenizer: Tokenizer,
        transformer: MaskTransformer,
        scheduler: MaskScheduler,
        class_names: list[str] | None = None,
        critic: MaskTransformer | None = None,
    ):
        super().__init__()
        TokenLayout(tokenizer, transformer)  # refuses what was not trained together
        if len(transformer.grid) > 2:
            raise ValueError(
                f"this transformer is of videos, with a grid {tuple(transformer.grid)} (t, h, w): take "
                "MaskedVideoPipeline, `maskgen predict-video` or `maskgen edit-video`"
            )
        self.register_modules(tokenizer=tokenizer, transformer=transformer, scheduler=scheduler, critic=critic)
        self.register_to_config(class_names=class_names)

    inpaint, outpaint, edit = editing.inpaint, editing.outpaint, editing.edit
    vary, interpolate, join = editing.vary, editing.interpolate, editing.join

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any) -> Any:
        """Load a pipeline from a folder, a run, or the Hub; the bundled emoji pipeline where no name is given.

        Raises:
            OSError: nothing there.
        """
        path = bundled_pipeline() if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        return super().from_pretrained(str(pipeline_folder(path)), **kwargs)

    @property
    def num_classes(self) -> int | None:
        """How many classes (or prompts of tasks) the transformer is conditioned on; None where it takes none."""
        conditioner = self.transformer.conditioner
        return conditioner["label"].count if "label" in conditioner else None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; their numbers as text where the pipeline has none; empty if unconditional."""
        names = self.config.get("class_names")
        return list(names) if names else [str(i) for i in range(self.num_classes or 0)]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that the transformer was trained on, in pixels."""
        return self.tokenizer.size(tuple(self.transformer.grid))

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        output_type: Literal["pil", "np", "pt", "codes"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("codes",),
        trace: Tracer | None = None,
    ) -> MaskedImageOutput | tuple[Any]:
        """Generate images.

        Args:
            class_labels: numbers or names of classes, one an image; None draws without a class.
            num_images_per_prompt: images of each label.
            num_inference_steps: decode steps; the scheduler's default where None.
            guidance_scale: ``u + s (c - u)``, 1 is none; the scheduler's default where None.
            generator: one, or a list of one an image.
            output_type: ``pil``, ``np``, ``pt`` or ``codes``.
            return_dict: give :class:`MaskedImageOutput`, or a tuple.
            callback_on_step_end: ``(pipeline, step, timestep, tensors) -> None`` after each step; `timestep` is
                progress in (0, 1].
            callback_on_step_end_tensor_inputs: of ``codes`` (n, h, w) and ``hidden`` (n, h, w).
            trace: told of the tokens after each step, see :class:`maskgen.pipelines.trace.DecodeTrace`.

        Raises:
            ValueError: unknown class, output type or tensor input; a class for an unconditional model.
        """
        self.check_output_type(output_type)
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        unknown = set(callback_on_step_end_tensor_inputs) - {"codes", "hidden"}
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs takes codes and hidden, not {sorted(unknown)}")
        labels, count = self.labels_of(class_labels, num_images_per_prompt)
        canvas = TokenLayout(self.tokenizer, self.transformer).blank(count, self.device)
        codes = self.complete(
            canvas,
            torch.ones(count, *self.transformer.grid, dtype=torch.bool, device=self.device),
            labels,
            num_inference_steps,
            guidance_scale,
            generator,
            self._on_step(callback_on_step_end, callback_on_step_end_tensor_inputs, num_inference_steps),
            trace,
        )
        return self.output(codes, output_type, return_dict)

    def complete(
        self,
        canvas: Tensor,
        mask: Tensor,
        labels: list[int] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        callback: Callable[[int, Tensor, Tensor], None] | None = None,
        trace: Tracer | None = None,
        overlap: int | tuple[int, ...] | None = None,
        actions: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> Tensor:
        """Complete the tokens of `canvas` where `mask` (n, *grid) is True: what every task comes to.

        The canvas is as the tokenizer has it: codes (n, *grid) or (n, *grid, levels), or vectors (n, *grid, d).
        One larger than the trained grid is completed by windows of that size which share at least `overlap` tokens
        (half a window where None), each in `num_inference_steps` steps. `callback` gets ``(step, tokens, mask)`` of a
        window, `trace` the whole canvas (see :class:`maskgen.pipelines.trace.Watch`). `actions` (n, t, a) stand beside
        the frames of a video, the first axis of its grid. Where `shown` (n, *grid) is True the transformer sees the
        canvas' token, not the mask token, as long as the place is hidden (a condition's, MAGVIT).

        Raises:
            ValueError: guidance of continuous tokens: the predictions are no logits that it could mix; order ``critic``
                without a critic.
        """
        places = TokenLayout(self.tokenizer, self.transformer)
        steps = num_inference_steps or self.scheduler.config.num_inference_steps
        scale = self.scheduler.config.guidance_scale if guidance_scale is None else guidance_scale
        if places.draw is not None and labels is not None and scale > 1:
            raise ValueError(
                f"guidance_scale {scale}: mixtures of continuous tokens cannot be mixed; take 1, no guidance"
            )
        critic = self._critic(labels, places, len(canvas))
        watch = None if trace is None else Watch(trace, canvas, mask, places)

        def window(tokens: Tensor, hidden: Tensor, place: Place) -> Tensor:
            like, mask = tokens, hidden
            acts = None if actions is None else actions[:, place[0]]
            here = None if shown is None else (places.flat(like), places.hidden(shown[(slice(None), *place)]))
            with self.progress_bar(total=steps) as bar:

                def advance(step: int, tokens: Tensor, hidden: Tensor) -> None:
                    bar.update()
                    if callback is not None:
                        callback(step, places.canvas(tokens, like), places.mask(hidden).view(mask.shape))

                def told(done: Trace) -> None:
                    if watch is not None:
                        watch.after(done, place)

                made = self.scheduler.decode(
                    Predictor(self.transformer.eval(), places.shape, given_of(labels, acts), len(like), here),
                    places.flat(like),
                    places.hidden(mask),
                    num_inference_steps,
                    guidance_scale,
                    generator,
                    advance,
                    grid=places.grid,
                    critic=critic,
                    draw=places.draw,
                    trace=None if watch is None else told,
                )
            return places.canvas(made, like)

        share = min(places.grid) // 2 if overlap is None else overlap
        return complete_by_windows(window, canvas, mask, places.grid, share)

    def _critic(self, labels: list[int] | None, places: TokenLayout, rows: int) -> CriticScores | None:
        """The scores of order ``critic``, for rows of `labels`."""
        if self.scheduler.config.order != "critic":
            return None
        if self.critic is None:
            raise ValueError(
                "the scheduler's order is 'critic' and this pipeline has no critic: train one (`maskgen train "
                "generation/critic_emoji`), give one (critic=...), or take another order"
            )
        return CriticScores(self.critic.eval(), places.shape, given_of(labels), rows)

    def check_output_type(self, output_type: str) -> None:
        """Before anything is drawn."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")

    def output(self, made: Tensor | list[Tensor], output_type: str, return_dict: bool) -> Any:
        """Codes, or pixels (1, c, h, w) an image in [-1, 1], as the output that was asked for."""
        images: Any = made
        if isinstance(made, Tensor) and output_type != "codes":
            made = list(self.tokenizer.eval().decode(made).float().split(1))
        if output_type == "pil":
            images = [image for pixels in made for image in to_pil(pixels)]
        elif output_type != "codes":
            if len({pixels.shape for pixels in made}) > 1:
                raise ValueError(f"images of several sizes are no one array: output_type='pil', not {output_type!r}")
            unit = ((torch.cat(list(made)) + 1) / 2).clamp(0, 1)
            images = unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()
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

    def labels_of(self, given: Any, copies: int) -> tuple[list[int] | None, int]:
        """A label an image, and how many images."""
        if given is None:
            null = self.num_classes
            return (None if null is None else [null] * copies), copies
        if self.num_classes is None:
            raise ValueError("this pipeline is unconditional: it takes no class_labels")
        if isinstance(given, Tensor):
            given = given.tolist()
        single = isinstance(given, (int, str))
        numbers = [self._number(label) for label in ([given] if single else given)]
        return [number for number in numbers for _ in range(copies)], len(numbers) * copies

    def _number(self, label: int | str) -> int:
        names = self.class_names
        if isinstance(label, str):
            if label not in names:
                raise ValueError(f"unknown class {label!r}: {nearest(label, names)}choose one of {', '.join(names)}")
            return names.index(label)
        if not 0 <= label < (self.num_classes or 0):
            raise ValueError(f"class {label} is outside 0 to {(self.num_classes or 0) - 1}")
        return label
