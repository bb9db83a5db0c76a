"""A token critic: which tokens of an image are a generator's, so that decoding takes back the wrong ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Generator, Tensor, nn

from maskgen.decoding.loop import decode
from maskgen.decoding.scheduler import MaskScheduler
from maskgen.mim.ratios import RATIOS
from maskgen.mim.samplers import RandomSampler
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.predictor import Predictor
from maskgen.pipelines.store import replace_folder
from maskgen.pipelines.tokens import TokenLayout
from maskgen.registry import Part, build, split
from maskgen.training.batches import MapDataset
from maskgen.training.masked import GIVEN
from maskgen.training.sheets import sample_sheet
from maskgen.training.stages.generator import SCHEDULER, check_cache, held_out, tokens_of
from maskgen.transformer.model import TRANSFORMERS, MaskTransformer
from maskgen.upgrade import earlier_names

RATIO = Part(RATIOS)
NETWORK = Part(TRANSFORMERS, given=GIVEN, default="mask_transformer")


class Critic(nn.Module):
    """A network whose forward pass is a step's loss: the cross-entropy of "is this token real?" over all tokens
    (Token-Critic, Lezama et al. 2022, arXiv:2209.04439, section 3.2).

    A sampled token counts as the generator's even where it equals the real one, as in the paper.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def earlier_names(self) -> dict[str, list[str]]:
        """The parameters in the order of earlier versions, see :func:`maskgen.upgrade.upgrade_optimizer`."""
        return earlier_names(self.network, "network.")

    def forward(
        self, tokens: Int[Tensor, "b *grid"], sampled: Bool[Tensor, "b n"], given: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """``loss``, and ``ranking`` of :func:`ranking`.

        Args:
            tokens: real ones, and the generator's where `sampled` is True.
        """
        nothing = torch.zeros_like(tokens, dtype=torch.bool)
        network: Any = self.network
        grid = tuple(tokens.shape[1:-1] if network.codes_per_position > 1 else tokens.shape[1:])
        conditioning = network.conditioner(given, len(tokens), grid)
        scores = network(tokens, nothing, conditioning).predictions[..., 0].float()
        loss = F.binary_cross_entropy_with_logits(scores, (~sampled).float())
        return {"loss": loss, "ranking": ranking(scores.detach(), sampled)}


def ranking(scores: Float[Tensor, "b n"], sampled: Bool[Tensor, "b n"]) -> Float[Tensor, ""]:
    """How often an image's real token scores above one of its sampled tokens (the area under the ROC curve, of the pairs
    within an image, ties as half); 0.5 is chance, NaN where no image has both."""
    pairs = ~sampled[:, :, None] & sampled[:, None, :]
    above = scores[:, :, None] > scores[:, None, :]
    level = scores[:, :, None] == scores[:, None, :]
    return ((above + 0.5 * level) * pairs).sum() / pairs.sum()


def started_from(generator: MaskTransformer, predictions: int) -> MaskTransformer:
    """A network like the generator, with its weights and a head of zeros for so many predictions a place."""
    arguments = {k: generator.config[k] for k in inspect.signature(MaskTransformer.__init__).parameters if k != "self"}
    network = MaskTransformer(**{**arguments, "out_dim": predictions, "head": "linear"})
    weights = {k: v for k, v in generator.state_dict().items() if not k.startswith("head.")}
    network.load_state_dict(weights, strict=False)
    return network


class CriticStage:
    """Train a critic of a trained generator on the generator's own data.

    Real tokens are hidden as decoding will hide them, the frozen generator fills the holes in one step at temperature
    1, and the critic, which sees no mask, tells which tokens were filled in. The run's pipeline is the generator's with
    the critic beside it, decoding in order ``critic``.

    Args:
        generator: the run or pipeline whose draws are judged.
        dataset: the training set (given by the run), with ``codes`` of the generator's tokenizer or ``pixels``.
        holdout: kept out of training (given by the run); its loss and ranking are reported.
        model: the critic's transformer; None is the generator's own with its weights to start from and a new head (the
            paper's critic is as large as the generator, from random weights).
        ratio: how much is hidden; the paper's is the generator's own schedule.
        scheduler: how the pipeline decodes; None is the generator's with order ``critic``.
        samples_per_class: columns of the image grid; `sample_classes` at most are its rows.

    Raises:
        ValueError: continuous tokens, or data of other classes or another tokenizer than the generator's.
    """

    def __init__(
        self,
        generator: str,
        dataset: MapDataset,
        holdout: MapDataset | None = None,
        model: Annotated[Any, NETWORK] | None = None,
        ratio: Annotated[Any, RATIO] = "cosine",
        scheduler: Annotated[Any, SCHEDULER] | None = None,
        samples_per_class: int = 8,
        sample_classes: int = 16,
    ):
        judged: Any = MaskedImagePipeline.from_pretrained(generator)
        self.tokenizer, self.generator = judged.vqvae, judged.transformer.eval().requires_grad_(False)
        self.layout = TokenLayout(self.tokenizer, self.generator)
        if not self.layout.codebook_size:
            raise ValueError(f"stage.generator {generator} draws continuous tokens; a critic judges codes")
        check_cache(dataset, self.tokenizer)
        inputs = {name: dict(part) for name, part in self.generator.specs.conditioning.inputs.items()}
        if "label" in inputs and list(dataset.class_names) != judged.class_names:
            raise ValueError(
                f"the data has {len(dataset.class_names)} classes and the generator's {inputs['label']['count']} are "
                "not these: train the critic on the generator's data"
            )
        self.class_names = judged.config.class_names
        self.ratio, self.sampler, self.holdout = build(RATIO, ratio), RandomSampler(), holdout
        if model is None:
            network = started_from(self.generator, self.layout.codes_per_position)
        else:
            own = split(model, NETWORK.default)[1]
            tokens = {"codebook_size": self.layout.codebook_size, "codes_per_position": self.layout.codes_per_position}
            network = MaskTransformer(
                **{
                    **own,
                    "grid": self.layout.grid,
                    "out_dim": self.layout.codes_per_position,
                    "tokens": {**own.get("tokens", {}), **tokens},
                    "conditioning": {**own.get("conditioning", {}), "inputs": inputs},
                }
            )
        self.modules: dict[str, nn.Module] = {"model": Critic(network)}
        changes = {"order": "critic", "remask": "none", "roll": False}
        self.scheduler = (
            MaskScheduler.from_config(judged.scheduler.config, **changes)
            if scheduler is None
            else build(SCHEDULER, scheduler)
        )
        self.columns, self.rows = samples_per_class, sample_classes

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        yield "model", self.modules["model"](*self.examples(batch))

    @torch.no_grad()
    def examples(
        self, batch: dict[str, Any], generator: Generator | None = None
    ) -> tuple[Int[Tensor, "b *grid"], Bool[Tensor, "b n"], dict[str, Tensor]]:
        """Real tokens with the generator's in the holes, which these are, and the classes.

        Args:
            generator: CPU generator of masks and draws.
        """
        real = tokens_of(batch, self.tokenizer, self.layout.codes_per_position)
        given = {name: batch[name] for name in self.generator.conditioner}
        ratio = self.ratio(len(real), generator)
        hidden = self.sampler(ratio, tuple(real.shape[1:]), None, generator).flatten(1).to(real.device)
        predict = Predictor(self.generator.to(real.device), self.layout.shape, given, len(real))
        filled = decode(predict, real.flatten(1), hidden, steps=1, choice_temperature=0.0, generator=generator)
        return filled.view(real.shape), hidden, given

    @torch.no_grad()
    def evaluate(self, model: Critic) -> dict[str, float]:
        """Loss and ranking on held-out images, with the same masks and draws each time; nothing without a holdout."""
        if self.holdout is None:
            return {}
        batch = held_out(self.holdout, next(model.parameters()).device)
        terms = model(*self.examples(batch, torch.Generator().manual_seed(0)))
        return {f"holdout/{name}": float(value) for name, value in terms.items()}

    def pipeline(self, model: Critic) -> MaskedImagePipeline:
        """The generator's pipeline with the critic."""
        parts: Any = (self.tokenizer, self.generator, self.scheduler, self.class_names, model.network)
        pipeline: Any = MaskedImagePipeline(*parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def image(self, model: Critic) -> Image.Image:
        """A row of samples a class."""
        return sample_sheet(self.pipeline(model), self.columns, self.rows)

    def export(self, model: Critic, folder: Path) -> None:
        replace_folder(folder, lambda part: self.pipeline(model).save_pretrained(part))
