"""Stage 2: train a masked transformer on a tokenizer's codes."""

from __future__ import annotations

from collections.abc import Iterator
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
from maskgen.registry import Part, build
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.batches import MapDataset
from maskgen.training.masked import Masking, Model, build_masking, by_view, learner, setting
from maskgen.training.sheets import prediction_sheet, sample_sheet, task_sheet
from maskgen.transformer.groups import group_size, split_codes

SCHEDULER = Part({"mask_scheduler": MaskScheduler}, default="mask_scheduler")


class GeneratorStage:
    """Masked-token modeling on codes or continuous tokens, from a token cache or from images encoded as they come.

    With ``model.groups`` codes are cut into groups of bits, hidden and predicted each by itself (MaskBit); a tokenizer
    of several codes a place needs as many groups. Of videos the grid is (t, h, w): masking.sampler ``frames`` learns to
    predict what follows its `context` (MaskViT, arXiv:2206.11894, section 3.2).

    Several `tasks` (MAGVIT, arXiv:2212.05199, section 3.2): each row of a step is given one of them, its condition's
    tokens by masking.corruption ``condition``, and its prompt, which stands in the class' stead.

    Args:
        dataset: the training set (given by the run); its items have ``codes`` or ``pixels``.
        holdout: kept out of training (given by the run); its loss is reported.
        tokenizer: a run, pipeline or tokenizer folder.
        model: the transformer.
        masking: the MIM core.
        scheduler: how the images of this run are decoded; saved with the pipeline.
        conditional: condition on the data's classes.
        actions: condition on the actions beside the data's frames.
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
        conditional: bool = True,
        actions: bool = False,
        code_vectors: bool = False,
        samples_per_class: int = 8,
        sample_classes: int = 16,
        tasks: Tasks = (),
    ):
        self.tokenizer = load_tokenizer(tokenizer).requires_grad_(False)
        self.groups = setting(model, "groups")
        _check_tokenizer(self.tokenizer, self.groups)
        self.class_names = list(dataset.class_names) if conditional else None
        self.conditional, self.actions, self.progress = conditional, actions, 0.0
        self.dataset, self.holdout = dataset, holdout
        self.columns, self.rows = samples_per_class, sample_classes
        check_cache(dataset, self.tokenizer)
        first = {k: v[None] for k, v in dataset[0].items() if isinstance(v, Tensor)}
        tokens, acts = self._tokens(first), self._actions(first)
        core = build_masking(masking, model)
        classes = len(dataset.class_names) if conditional else None
        self.conditions = Conditions(tasks, classes or 0) if tasks else None
        if (self.conditions is None) == isinstance(core.corruption, Condition):
            raise ValueError("stage.tasks and masking.corruption condition go together; set both, or neither")
        size, grid = codes_of_a_group(self.tokenizer, self.groups), grid_of(tokens)
        learned = learner(
            model,
            core,
            core.wanted(tokens),
            size,
            codebook_size=size,
            grid=grid[:-1] if self.groups > 1 else grid,
            num_classes=classes if self.conditions is None else self.conditions.prompts.count,
            token_dim=0 if size else tokens.shape[-1],
            action_dim=0 if acts is None else acts.shape[-1],
            code_dim=self.tokenizer.quantizer.dim if code_vectors else 0,
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
        labels = batch["label"].repeat(views) if self.conditional else None
        labels, sources = self._conditioned(batch, labels)
        options = {"progress": self.progress, "views": views, "groups": self.groups, "actions": self._actions(batch)}
        yield "model", self.modules["model"](self._tokens(batch), labels, **options, **sources)

    def _tokens(self, batch: dict[str, Any]) -> Shaped[Tensor, "b *grid"]:
        return tokens_of(batch, self.tokenizer, self.groups)

    @torch.no_grad()
    def _conditioned(
        self, batch: dict[str, Any], labels: Tensor | None, in_turn: bool = False
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """With tasks, the rows' prompts and their condition's tokens; a task is drawn for each row, or taken in turn.

        Raises:
            ValueError: a token cache: conditions are made in pixels.
        """
        if self.conditions is None:
            return labels, {}
        if "pixels" not in batch:
            raise ValueError("stage.tasks makes its conditions in pixels; a token cache has none: train on the videos")
        pixels, count = batch["pixels"], len(self.conditions.tasks)
        drawn = [i % count for i in range(len(pixels))] if in_turn else self.conditions.sample(len(pixels))
        videos, hidden = self.conditions.videos(pixels, drawn)
        tokens, region = self._tokens({"pixels": videos}), condition_region(self.tokenizer, hidden)
        prompts = self.conditions.labels(drawn, labels).to(pixels.device)
        return prompts, {"condition_tokens": tokens, "condition_region": region}

    def _actions(self, batch: dict[str, Any]) -> Float[Tensor, "b t a"] | None:
        """Those of each token's frames.

        Raises:
            ValueError: the data has none.
        """
        if not self.actions:
            return None
        if "actions" not in batch:
            raise ValueError("stage.actions is true and the data has no actions beside its frames; set it to false")
        return actions_of_tokens(batch["actions"].float(), self.tokenizer.temporal_downsampling)

    @torch.no_grad()
    def evaluate(self, model: Learner) -> dict[str, float]:
        """Loss and accuracy on the held-out images, with the same masks every time; nothing without a holdout."""
        if self.holdout is None:
            return {}
        batch = held_out(self.holdout, next(model.parameters()).device)
        labels, sources = self._conditioned(batch, batch["label"] if self.conditional else None, in_turn=True)
        tokens, network = self._tokens(batch), model.acting(self._actions(batch))
        generator = torch.Generator().manual_seed(0)
        terms = model.masking.main_losses(network, tokens, labels, generator, self.groups, **sources)
        return {f"holdout/{name}": float(terms[name]) for name in ("loss", "accuracy") if name in terms}

    def inputs(self, batch: dict[str, Any]) -> Inputs:
        """What the network is given for a batch of ``pixels`` or ``codes``, with a ``label`` or without."""
        labels, sources = self._conditioned(batch, batch.get("label") if self.conditional else None, in_turn=True)
        pixels, tokens = batch.get("pixels"), self._tokens(batch)
        return Inputs(tokens, self.tokenizer, pixels, sources, condition=labels, groups=self.groups)

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
            return prediction_sheet(pipeline, data, context, self.conditional, self.actions)
        return sample_sheet(pipeline, self.columns, self.rows)

    def _of_videos(self, model: Learner) -> bool:
        grid: Any = model.network.grid
        return len(grid) == 3

    def export(self, model: Learner, folder: Path) -> None:
        replace_folder(folder, lambda part: self.pipeline(model).save_pretrained(part))


@torch.no_grad()
def tokens_of(batch: dict[str, Any], tokenizer: Tokenizer, groups: int = 1) -> Shaped[Tensor, "b *grid"]:
    """A batch's codes (b, *grid), or (b, *grid, groups), or continuous tokens (b, *grid, d); pixels are encoded."""
    if "codes" in batch:
        tokens = batch["codes"]
    else:
        pixels = batch["pixels"]
        with torch.autocast(pixels.device.type, enabled=False):
            tokens = tokenizer.to(pixels.device).encode(pixels)
    if groups > 1 and tokenizer.levels == 1:
        tokens = split_codes(tokens, codes_of_a_group(tokenizer, groups), groups)
    return tokens


def held_out(holdout: MapDataset, device: torch.device, most: int = 256) -> dict[str, Any]:
    """The first held-out items as one batch."""
    items = [holdout[i] for i in range(min(len(holdout), most))]
    return {k: v.to(device) for k, v in torch.utils.data.default_collate(items).items()}


def codes_of_a_group(tokenizer: Tokenizer, groups: int) -> int:
    """Codes that the transformer chooses among; 0 where tokens are continuous."""
    size = int(tokenizer.codebook_size)
    return group_size(size, groups) if size and groups > 1 and tokenizer.levels == 1 else size


def _check_tokenizer(tokenizer: Tokenizer, groups: int) -> None:
    """Its samples are decoded to pixels, and each of a place's codes is a group."""
    if tokenizer.config.target != "pixels":
        raise ValueError(
            "stage.tokenizer decodes to a teacher's features; a generator needs pixels from its decoder: train it on a "
            "tokenizer with target pixels"
        )
    if tokenizer.levels > 1 and groups != tokenizer.levels:
        raise ValueError(
            f"stage.tokenizer has {tokenizer.levels} codes a place: set stage.model.groups={tokenizer.levels}, so that "
            "each is hidden and predicted by itself"
        )


def check_cache(dataset: MapDataset, tokenizer: nn.Module) -> None:
    meta = getattr(dataset, "meta", None)
    if meta is not None and meta["tokenizer"] != fingerprint(tokenizer):
        raise ValueError(
            f"the token cache was made by tokenizer {meta['tokenizer']}, this run's is {fingerprint(tokenizer)}; "
            "encode the data again with `maskgen encode`, or name the tokenizer that made the cache"
        )
