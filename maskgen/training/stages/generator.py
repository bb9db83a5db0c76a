"""Stage 2: train a masked transformer on a tokenizer's codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor, nn

from maskgen.decoding.scheduler import MaskScheduler
from maskgen.evaluation.visualise import Inputs
from maskgen.mim.core import Learner, grid_of
from maskgen.mim.corruption import Condition
from maskgen.pipelines.conditions import Conditions, Tasks, condition_region
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.store import fingerprint, load_tokenizer, replace_folder
from maskgen.pipelines.tokens import actions_of_tokens
from maskgen.pipelines.video import MaskedVideoPipeline
from maskgen.registry import Part, build, split
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.batches import MapDataset
from maskgen.training.masked import (
    CONDITIONER,
    Masking,
    Model,
    build_masking,
    by_view,
    codes_per_position,
    conditioner_inputs,
    first_batch,
    learner,
)
from maskgen.training.sheets import prediction_sheet, sample_sheet, task_sheet
from maskgen.transformer.several_codes import group_size, split_codes

SCHEDULER = Part({"mask_scheduler": MaskScheduler}, default="mask_scheduler")


class GeneratorStage:
    """Masked-token modeling on codes or continuous tokens, from a token cache or from images encoded as they come.

    With ``model.tokens.codes_per_position`` each code is cut into groups of bits, which are hidden and predicted one by
    one (MaskBit); a tokenizer with several codes per position needs that number. The grid of videos is (t, h, w):
    masking.sampler ``frames`` learns to predict what follows its `context` (MaskViT, arXiv:2206.11894, section 3.2).

    Several `tasks` (MAGVIT, arXiv:2212.05199, section 3.2): each row of a step is given one of them, its condition's
    tokens by masking.corruption ``condition``, and its prompt, which stands in the class' stead.

    Args:
        dataset: the training set (given by the run); its items have ``codes`` or ``pixels``.
        holdout: kept out of training (given by the run); its loss is reported.
        tokenizer: a run, pipeline or tokenizer folder.
        model: the transformer.
        masking: the MIM core.
        scheduler: how the images of this run are decoded; saved with the pipeline.
        conditioning: the conditioners, see :data:`maskgen.conditioning.CONDITIONERS`: ``[class]`` conditions on the
            data's classes, ``[actions]`` on the actions of its frames, an empty list on nothing.
        code_vectors: show the transformer the tokenizer's code vectors, and let it predict by them.
        tasks: on videos, see :data:`maskgen.tasks.conditions.TASKS`; each is drawn as often.
        samples_per_class: columns of the image grid; `sample_classes` at most are its rows.
    """

    takes_views = True

    def __init__(
        self,
        tokenizer: str,
        dataset: MapDataset,
        holdout: MapDataset | None = None,
        model: Model = {},  # noqa: B006
        masking: Masking = {},  # noqa: B006
        scheduler: Annotated[Any, SCHEDULER] = {},  # noqa: B006
        conditioning: Sequence[Annotated[Any, CONDITIONER]] = ("class",),
        code_vectors: bool = False,
        samples_per_class: int = 8,
        sample_classes: int = 16,
        tasks: Tasks = (),
    ):
        self.tokenizer = load_tokenizer(tokenizer).requires_grad_(False)
        self.codes_per_position = codes_per_position(model)
        _check_tokenizer(self.tokenizer, self.codes_per_position)
        self.progress = 0.0
        self.dataset, self.holdout = dataset, holdout
        self.columns, self.rows = samples_per_class, sample_classes
        check_cache(dataset, self.tokenizer)
        first = first_batch(dataset)
        tokens = self._tokens(first)
        core = build_masking(masking, model)
        names = [split(spec)[0] for spec in conditioning]
        self.class_names = list(dataset.class_names) if "class" in names else None
        self.conditions = Conditions(tasks, len(self.class_names or ())) if tasks else None
        known = {}
        if self.conditions is not None:  # prompt and class are one label
            labels = [split(spec)[1] for spec in conditioning if split(spec)[0] in ("class", "task")]
            others = [spec for spec in conditioning if split(spec)[0] not in ("class", "task")]
            conditioning = [*others, {"type": "task", **(labels[0] if labels else {})}]
            known = {"count": self.conditions.prompts.count}
        if "actions" in first:
            first["actions"] = self._actions(first["actions"])
        inputs = conditioner_inputs(conditioning, dataset, {**dataset[0], **first}, **known)
        self.reads = tuple(inputs)
        if (self.conditions is None) == isinstance(core.corruption, Condition):
            raise ValueError("stage.tasks and masking.corruption condition go together; set both, or neither")
        size, grid = codes_of_a_group(self.tokenizer, self.codes_per_position), grid_of(tokens)
        learned = learner(
            model,
            core,
            core.wanted(tokens),
            size,
            grid=grid[:-1] if self.codes_per_position > 1 else grid,
            tokens={
                "codebook_size": size,
                "dim": 0 if size else tokens.shape[-1],
                "code_dim": self.tokenizer.quantizer.dim if code_vectors else 0,
            },
            conditioning={"inputs": inputs},
        )
        if code_vectors:
            network: Any = learned.network
            network.code_vectors.take(self.tokenizer.quantizer.embed(torch.arange(size)[None])[0].T)
        self.modules: dict[str, nn.Module] = {"model": learned}
        self.scheduler = build(SCHEDULER, scheduler)

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        views = 1
        if "codes" not in batch:
            pixels, views, _ = by_view(batch)
            batch = {**batch, "pixels": pixels}
        given, sources = self._given(batch, views)
        options = {"progress": self.progress, "views": views, "codes_per_position": self.codes_per_position}
        yield "model", self.modules["model"](self._tokens(batch), given, **options, **sources)

    def _tokens(self, batch: dict[str, Any]) -> Shaped[Tensor, "b *grid"]:
        return tokens_of(batch, self.tokenizer, self.codes_per_position)

    @torch.no_grad()
    def _given(
        self, batch: dict[str, Any], views: int = 1, in_turn: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The inputs of the conditioners, and with tasks the tokens of their conditions. The task of a row is sampled,
        or taken in turn.

        Raises:
            ValueError: an input that the data lacks; a token cache, as conditions are made in pixels.
        """
        given = {name: batch[name] for name in self.reads if name in batch}
        for name in self.reads:
            if name not in given and (name != "label" or self.class_names is not None) and not in_turn:
                raise ValueError(f"stage.conditioning reads {name!r}, which this batch lacks: leave it out")
        if "actions" in given:
            given["actions"] = self._actions(given["actions"])
        if views > 1:
            given = {name: value.repeat(views, *[1] * (value.ndim - 1)) for name, value in given.items()}
        labels = given.get("label") if self.class_names is not None else None
        if self.conditions is None:
            return given, {}
        if "pixels" not in batch:
            raise ValueError("stage.tasks makes its conditions in pixels; a token cache has none: train on the videos")
        pixels, count = batch["pixels"], len(self.conditions.tasks)
        drawn = [i % count for i in range(len(pixels))] if in_turn else self.conditions.sample(len(pixels))
        videos, hidden = self.conditions.videos(pixels, drawn)
        tokens, region = self._tokens({"pixels": videos}), condition_region(self.tokenizer, hidden)
        given["label"] = self.conditions.labels(drawn, labels).to(pixels.device)
        return given, {"condition_tokens": tokens, "condition_region": region}

    def _actions(self, actions: Float[Tensor, "b T a"]) -> Float[Tensor, "b t a"]:
        """The actions of the frames of each token."""
        return actions_of_tokens(actions.float(), self.tokenizer.temporal_downsampling)

    @torch.no_grad()
    def evaluate(self, model: Learner) -> dict[str, float]:
        """Loss and accuracy on the held-out images, with the same masks every time; nothing without a holdout."""
        if self.holdout is None:
            return {}
        batch = held_out(self.holdout, next(model.parameters()).device)
        given, sources = self._given(batch, in_turn=True)
        generator, tokens = torch.Generator().manual_seed(0), self._tokens(batch)
        terms = model.masking.main_losses(
            model.conditioned, tokens, given, generator, self.codes_per_position, **sources
        )
        return {f"holdout/{name}": float(terms[name]) for name in ("loss", "accuracy") if name in terms}

    def inputs(self, batch: dict[str, Any]) -> Inputs:
        """What the network is given for a batch of ``pixels`` or ``codes``, with a ``label`` or without."""
        given, sources = self._given(batch, in_turn=True)
        pixels, tokens = batch.get("pixels"), self._tokens(batch)
        return Inputs(tokens, self.tokenizer, pixels, sources, given=given, codes_per_position=self.codes_per_position)

    def pipeline(self, model: Learner) -> MaskedImagePipeline | MaskedVideoPipeline:
        kind: Any = MaskedVideoPipeline if self._of_videos(model) else MaskedImagePipeline
        options: dict[str, Any] = {}
        if self.conditions is not None:
            corruption: Any = model.masking.corruption
            options = {"tasks": self.conditions.prompts.names, "condition_mode": corruption.mode}
        pipeline: Any = kind(self.tokenizer, model.network, self.scheduler, self.class_names, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def image(self, model: Learner) -> Image.Image:
        """A row of samples a class; of videos, clips above what follows their first frames by the model, or of several
        tasks above each task's condition and result."""
        pipeline, data = self.pipeline(model), self.holdout or self.dataset
        if self.conditions is not None:
            return task_sheet(pipeline, data, self.conditions)
        if self._of_videos(model):
            context = getattr(model.masking.sampler, "context", 1) or 1
            return prediction_sheet(pipeline, data, context, self.class_names is not None, "actions" in self.reads)
        return sample_sheet(pipeline, self.columns, self.rows)

    def _of_videos(self, model: Learner) -> bool:
        grid: Any = model.network.grid
        return len(grid) == 3

    def export(self, model: Learner, folder: Path) -> None:
        replace_folder(folder, lambda part: self.pipeline(model).save_pretrained(part))


@torch.no_grad()
def tokens_of(batch: dict[str, Any], tokenizer: Tokenizer, codes_per_position: int = 1) -> Shaped[Tensor, "b *grid"]:
    """A batch's codes (b, *grid), or (b, *grid, codes_per_position), or continuous tokens (b, *grid, d); pixels are encoded."""
    if "codes" in batch:
        tokens = batch["codes"]
    else:
        pixels = batch["pixels"]
        with torch.autocast(pixels.device.type, enabled=False):
            tokens = tokenizer.to(pixels.device).encode(pixels)
    if codes_per_position > 1 and tokenizer.codes_per_position == 1:
        tokens = split_codes(tokens, codes_of_a_group(tokenizer, codes_per_position), codes_per_position)
    return tokens


def held_out(holdout: MapDataset, device: torch.device, most: int = 256) -> dict[str, Any]:
    """The first held-out items as one batch."""
    items = [holdout[i] for i in range(min(len(holdout), most))]
    return {k: v.to(device) for k, v in torch.utils.data.default_collate(items).items()}


def codes_of_a_group(tokenizer: Tokenizer, codes_per_position: int) -> int:
    """Codes that the transformer chooses among; 0 where tokens are continuous."""
    size = int(tokenizer.codebook_size)
    return (
        group_size(size, codes_per_position)
        if size and codes_per_position > 1 and tokenizer.codes_per_position == 1
        else size
    )


def _check_tokenizer(tokenizer: Tokenizer, codes_per_position: int) -> None:
    """Its samples are decoded to pixels, and each of a place's codes is a group."""
    if tokenizer.config.target != "pixels":
        raise ValueError(
            "stage.tokenizer decodes to a teacher's features; a generator needs pixels from its decoder: train it on a "
            "tokenizer with target pixels"
        )
    if tokenizer.codes_per_position > 1 and codes_per_position != tokenizer.codes_per_position:
        raise ValueError(
            f"stage.tokenizer has {tokenizer.codes_per_position} codes per position: set "
            f"stage.model.tokens.codes_per_position={tokenizer.codes_per_position}; each code is hidden by itself"
        )


def check_cache(dataset: MapDataset, tokenizer: nn.Module) -> None:
    meta = getattr(dataset, "meta", None)
    if meta is not None and meta["tokenizer"] != fingerprint(tokenizer):
        raise ValueError(
            f"the token cache was made by tokenizer {meta['tokenizer']}, this run's is {fingerprint(tokenizer)}; "
            "encode the data again with `maskgen encode`, or name the tokenizer that made the cache"
        )
