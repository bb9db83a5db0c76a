"""MaskedPipeline: what the image and the video pipeline share, above all the completion of a canvas of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Shaped
from torch import Tensor

from maskgen.decoding.loop import Trace
from maskgen.decoding.noise import Generators
from maskgen.pipelines.predictor import CriticScores, Predictor
from maskgen.pipelines.store import pipeline_folder
from maskgen.pipelines.tokens import TokenLayout
from maskgen.pipelines.trace import Tracer, Watch
from maskgen.registry import nearest
from maskgen.tasks.windows import Window, complete_by_windows
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.model import MaskTransformer

OUTPUT_TYPES = ("pil", "np", "pt", "pixels", "codes")


class MaskedPipeline(DiffusionPipeline):
    """A tokenizer (`vqvae`), a masked transformer and a scheduler, which together complete canvases of tokens.

    A subclass builds canvases and masks (its tasks) and turns completed canvases into its output.
    """

    vqvae: Tokenizer
    transformer: MaskTransformer
    scheduler: Any
    critic: MaskTransformer | None = None

    def _compose(self, vqvae: Tokenizer, transformer: MaskTransformer, **others: Any) -> None:
        """Register the components.

        Raises:
            ValueError: tokenizer and transformer were not trained together.
        """
        self.layout = TokenLayout(vqvae, transformer)
        self.register_modules(vqvae=vqvae, transformer=transformer, **others)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a pipeline from a folder, a run, or the Hub.

        Args:
            kwargs: see :meth:`diffusers.DiffusionPipeline.from_pretrained`.

        Raises:
            OSError: there is no pipeline at this path.
        """
        folder = pipeline_folder(pretrained_model_name_or_path)
        if "vqvae" not in kwargs and _has_old_names(folder):
            dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
            dtype = dtype.get("vqvae", dtype.get("default")) if isinstance(dtype, dict) else dtype
            kwargs["vqvae"] = Tokenizer.from_pretrained(Path(folder) / "tokenizer", dtype=dtype).eval()
        return super().from_pretrained(str(folder), **kwargs)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read ``model_index.json``; one of an earlier version calls the component `vqvae` ``tokenizer``."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if "tokenizer" in config and "vqvae" not in config:
            config["vqvae"] = config.pop("tokenizer")
        return loaded

    @property
    def num_classes(self) -> int | None:
        """The number of labels that the transformer is conditioned on; None if it takes no labels."""
        conditioner: Any = self.transformer.conditioner
        return conditioner["label"].count if "label" in conditioner else None

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; their numbers as text if the pipeline has no names; empty if unconditional."""
        names = self.config.get("class_names")
        return list(names) if names else [str(i) for i in range(self.num_classes or 0)]

    def encode(self, pixels: Float[Tensor, "b c *size"]) -> Shaped[Tensor, "b *tokens"]:
        """Pixels in [-1, 1], of any float dtype and device -> tokens on the pipeline's device."""
        return self.vqvae.eval().encode(pixels.to(self.device, self.vqvae.dtype))

    def decode(self, tokens: Shaped[Tensor, "b *tokens"]) -> Float[Tensor, "b c *size"]:
        """Tokens -> float32 pixels in about [-1, 1], not clipped, on the pipeline's device."""
        return self.vqvae.eval().decode(tokens).float()

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
        conditions: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Complete the tokens of `canvas` where `mask` is True. Every task calls this method.

        A canvas that is larger than the trained grid is completed by windows of the trained grid, each in
        `num_inference_steps` steps.

        Args:
            canvas: tokens as the tokenizer gives them: int64 codes (n, *grid) or (n, *grid, q), or float vectors
                (n, *grid, d).
            mask: bool (n, *grid), True = hidden.
            labels: one class per row, or None if the model is unconditional.
            num_inference_steps, guidance_scale: the scheduler's defaults if None.
            generator: one generator, or a list with one per row.
            callback: ``(step, tokens, mask) -> None``, called after each step with a window of the canvas.
            trace: called after each step with the whole canvas, see :class:`maskgen.pipelines.trace.Watch`.
            overlap: tokens that neighbouring windows share at least; half a window if None.
            actions: float (n, t, a), the actions of each frame of tokens, along the first axis of the grid.
            shown: bool (n, *grid); where it is True, the transformer sees the token of the canvas instead of the mask
                token, as long as the position is hidden (the condition of MAGVIT).
            conditions: further inputs of the transformer's conditioners by name, each with one entry per row.

        Returns:
            The completed canvas.

        Raises:
            ValueError: guidance is asked for continuous tokens, whose predictions are not logits; or the scheduler's
                order is ``critic`` and the pipeline has no critic.
        """
        layout = self.layout
        steps = num_inference_steps or self.scheduler.config.num_inference_steps
        scale = self.scheduler.config.guidance_scale if guidance_scale is None else guidance_scale
        if layout.token_sampler is not None and (labels is not None or conditions) and scale > 1:
            raise ValueError(
                f"guidance_scale {scale}: guidance cannot mix the predictions of continuous tokens; set it to 1"
            )
        given = {**(conditions or {}), **given_of(labels)}
        critic = self._critic(given, len(canvas))
        watch = None if trace is None else Watch(trace, canvas, mask, layout)

        def complete_window(like: Tensor, mask: Tensor, window: Window) -> Tensor:
            own = given if actions is None else {**given, "actions": actions[:, window[0]]}
            seen = None if shown is None else (layout.flat(like), layout.flat_mask(shown[(slice(None), *window)]))
            with self.progress_bar(total=steps) as bar:

                def advance(step: int, tokens: Tensor, hidden: Tensor) -> None:
                    bar.update()
                    if callback is not None:
                        callback(step, layout.canvas(tokens, like), layout.mask(hidden, mask))

                def traced(done: Trace) -> None:
                    if watch is not None:
                        watch.after(done, window)

                tokens = self.scheduler.decode(
                    Predictor(self.transformer.eval(), layout.shape, own, len(like), seen),
                    layout.flat(like),
                    layout.flat_mask(mask),
                    num_inference_steps,
                    guidance_scale,
                    generator,
                    advance,
                    grid=layout.grid,
                    critic=critic,
                    sample_tokens=layout.token_sampler,
                    trace=None if watch is None else traced,
                )
            return layout.canvas(tokens, like)

        share = min(layout.grid) // 2 if overlap is None else overlap
        return complete_by_windows(complete_window, canvas, mask, layout.grid, share)

    def _critic(self, given: Mapping[str, Tensor], rows: int) -> CriticScores | None:
        """The scores of order ``critic`` for rows under these conditions."""
        if self.scheduler.config.order != "critic":
            return None
        if self.critic is None:
            raise ValueError(
                "the scheduler's order is 'critic' and this pipeline has no critic: train one (`maskgen train "
                "generation/critic_emoji`), give one (critic=...), or set another order"
            )
        return CriticScores(self.critic.eval(), self.layout.shape, given, rows)

    def check_output_type(self, output_type: str) -> None:
        """Raise ValueError for an unknown output type, before any work is done."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output_type {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}")

    def labels_of(self, given: Any, copies: int) -> tuple[list[int] | None, int]:
        """One label per result, and the number of results.

        Args:
            given: a number or name of a class, several of them, or None.
            copies: results per label.

        Raises:
            ValueError: a class is unknown, or the pipeline is unconditional and a class is given.
        """
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

    def rows_of(
        self, labels: Any, conditions: Mapping[str, Tensor] | None, copies: int, images: int | None = None
    ) -> tuple[list[int] | None, dict[str, Tensor], int]:
        """The labels and the further conditions of each result, and the number of results.

        Args:
            labels: number or name of a class for all images, or one per image, or None.
            conditions: one entry per image.
            copies: results per image.
            images: their number; None is as many as there are labels or conditions.

        Raises:
            ValueError: the numbers differ; see also :meth:`labels_of`.
        """
        if copies < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {copies}")
        given = {name: torch.as_tensor(value) for name, value in (conditions or {}).items()}
        for name, value in given.items():
            if images is not None and len(value) != images:
                raise ValueError(
                    f"{len(value)} entries of the condition {name!r} for {images} images; give one per image"
                )
            images = len(value)
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        if images is None:
            own, count = self.labels_of(labels, copies)
            return own, {}, count
        each = [labels] * images if isinstance(labels, (int, str)) else labels
        if each is not None and len(each) != images:
            raise ValueError(f"{len(each)} class_labels for {images} images; give one, or one per image")
        own, _ = self.labels_of(None, images * copies) if each is None else self.labels_of(each, copies)
        return own, {name: value.repeat_interleave(copies, 0) for name, value in given.items()}, images * copies

    def _number(self, label: int | str) -> int:
        names = self.class_names
        if isinstance(label, str):
            if label not in names:
                raise ValueError(f"unknown class {label!r}: {nearest(label, names)}choose one of {', '.join(names)}")
            return names.index(label)
        if not 0 <= label < (self.num_classes or 0):
            raise ValueError(f"class {label} is outside 0 to {(self.num_classes or 0) - 1}")
        return label


def given_of(labels: list[int] | None) -> dict[str, Tensor]:
    """The input of a conditioner of labels, one per row; empty where there are none."""
    return {} if labels is None else {"label": torch.tensor(labels)}


def to_unit(pixels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Pixels in [-1, 1] -> pixels in [0, 1], clipped: what users of ``np`` and ``pt`` expect."""
    return ((pixels + 1) / 2).clamp(0, 1)


def _has_old_names(folder: str | Path) -> bool:
    """Whether a pipeline's folder was saved with the component name ``tokenizer`` for the `vqvae`."""
    index = Path(folder) / "model_index.json"
    return index.is_file() and "vqvae" not in (names := json.loads(index.read_text())) and "tokenizer" in names
