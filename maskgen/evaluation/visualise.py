"""Images of what a masked model sees and predicts: the image, the mask and the prediction, alone and pasted in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from maskgen.evaluation.hog_glyphs import glyphs
from maskgen.images import grid as image_grid
from maskgen.mim.core import Learner, MaskedModeling, grid_of
from maskgen.mim.hog import HOG
from maskgen.mim.objective import GaussianMixture
from maskgen.mim.plan import MaskPlan
from maskgen.mim.targets import Bits, CentredSoftmax, Codes, Latents, Pixels
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.several_codes import group_size, join_codes

Rows = dict[str, Tensor]
SIDE = 96  # smallest side of an image on the sheet, in pixels


@dataclass
class Inputs:
    """The inputs of a stage's network.

    Args:
        tokens: codes (b, *grid) or continuous tokens (b, *grid, d) of `tokenizer`; several codes per position are the
            last axis.
        tokenizer: the tokenizer that made them.
        pixels: (b, c, H, W) in [-1, 1]; None where a token cache has only codes.
        sources: the inputs of the sampler, the corruption and the target, by name.
        target_tokenizer: makes the codes of the target where these are not the tokens.
        given: the inputs of the conditioners of the network, by name.
        codes_per_position: number of codes per position.
    """

    tokens: Tensor
    tokenizer: Tokenizer
    pixels: Tensor | None = None
    sources: dict[str, Any] = field(default_factory=dict)
    target_tokenizer: Tokenizer | None = None
    given: dict[str, Tensor] = field(default_factory=dict)
    codes_per_position: int = 1


@dataclass
class Sheet:
    """Rows of images by name, float (b, c, H, W) in [-1, 1], each of its own size, and sentences that explain them."""

    rows: Rows
    legend: list[str]

    def draw(self) -> Image.Image:
        """One image of all rows, enlarged to one size without smoothing, with the legend below."""
        size = [max(row.shape[axis] for row in self.rows.values()) for axis in (2, 3)]
        same = [enlarged(row.float().cpu(), size).expand(-1, 3, -1, -1) for row in self.rows.values()]
        scale = -(-SIDE // max(size))
        return image_grid(torch.cat(same), len(same[0]), scale, list(self.rows), self.legend)


@torch.no_grad()
def visualise(learner: Learner, inputs: Inputs, seed: int = 0, peek: bool = False) -> Sheet:
    """Show one step of masked modeling as images.

    The first rows are the image and the mask. The others depend on the target: predicted pixels are shown, predicted
    codes and latents are decoded, and predicted HOG features are painted as glyphs; for any other target a heat map
    shows how well the prediction agrees with it.

    The rows `image`, `target` and `agreement` use the truth. No other row depends on what is hidden from the network
    (which sees the content of replaced tokens); normalised pixels take their mean and contrast from visible patches.

    Args:
        learner: the learner, in evaluation mode.
        inputs: its inputs, as its stage makes them.
        seed: seed of the mask.
        peek: give normalised pixels the hidden patches' own mean and contrast; the legend then states it.

    Raises:
        ValueError: `peek` is true and the target is not normalised pixels.
    """
    core, generator = learner.masking, torch.Generator().manual_seed(seed)
    grid, codes_per_position = grid_of(inputs.tokens), inputs.codes_per_position
    plan = core.plan(len(inputs.tokens), grid, generator, codes_per_position=codes_per_position, **inputs.sources)
    output, keep, there = core.outputs(
        learner.conditioned, inputs.tokens, plan, inputs.given, generator, codes_per_position, **inputs.sources
    )
    painting = keep is None and isinstance(core.target, Pixels)
    if peek and not (painting and core.target.normalise != "none"):
        raise ValueError(
            "peek uses the hidden patches' own mean and contrast, but the target of this run is not normalised pixels; "
            "leave it out"
        )
    view = _View(core, inputs, plan, mean(core, output.predictions.float()))
    rows, legend = view.given()
    if keep is not None:
        more, sentences = view.agreement(keep, there)
    elif painting:
        more, sentences = view.painted(core.target, peek)
    elif isinstance(core.target, HOG):
        more, sentences = view.glyphs(core.target)
    elif view.decodes:
        more, sentences = view.decoded()
    else:
        more, sentences = view.agreement()
    return Sheet({**rows, **more}, legend + sentences)


class _View:
    """The parts of a step, and the rows that can be made from them."""

    def __init__(self, core: MaskedModeling, inputs: Inputs, plan: MaskPlan, predictions: Tensor):
        self.core, self.inputs, self.predictions = core, inputs, predictions
        self.hidden = plan.hidden.to(predictions.device)
        positions = self.hidden.float().flatten(1).unflatten(1, (-1, inputs.codes_per_position)).mean(-1)
        grid = grid_of(inputs.tokens)[: -1 if inputs.codes_per_position > 1 else None]
        self.flat = len(grid) == 1  # 1-D tokens have no position in the image
        self.grid = (1, *grid) if self.flat else grid
        self.share = positions.unflatten(1, self.grid)[:, None]  # share of each position's codes that is hidden
        self.own = (
            core.target.source != "codes" or "codes" not in inputs.sources
        )  # whether the target's tokens are the network's
        self.tokenizer = inputs.tokenizer if self.own else inputs.target_tokenizer
        self.image = self._pixels(inputs.tokens) if inputs.pixels is None else inputs.pixels

    @property
    def decodes(self) -> bool:
        """Whether predictions are tokens that a decoder turns into pixels."""
        tokens = isinstance(self.core.target, (Codes, Bits, Latents))
        pixels = self.tokenizer is not None and self.tokenizer.config["target"] == "pixels"
        return tokens and pixels and not self.tokenizer.reads_text  # type: ignore[union-attr]

    @property
    def trained(self) -> str:
        """Which predictions are trained."""
        kinds = {"masked": "Only hidden ones are", "visible": "Only visible ones are", "all": "All are"}
        return f"{kinds[self.core.objective.support]} trained."

    @property
    def seen(self) -> Float[Tensor, "b c H W"]:
        """The image, grey (0) where hidden."""
        return self.image * (1 - enlarged(self.share, self.image.shape[2:]))

    def given(self) -> tuple[Rows, list[str]]:
        """The image, and what is hidden in it."""
        rows, hidden = {"image": self.image}, f"{self.hidden.float().mean():.0%} of {self.hidden[0].numel()} tokens"
        if self.inputs.pixels is None:
            rows = {"codes, decoded": self.image}
        given = ["The class is given."] if "label" in self.inputs.given else []
        if self.flat:
            return rows, [f"Hidden: {hidden}, which have no position in the image.", *given]
        return {**rows, "mask": self.seen}, [f"Grey: {hidden}, hidden.", *given]

    def painted(self, target: Pixels, peek: bool) -> tuple[Rows, list[str]]:
        arguments = (self.predictions, self.image, self.hidden.flatten(1), peek)
        rows = {"predicted": target.image(*arguments, everywhere=True), "pasted": target.image(*arguments)}
        sentences = [f"Predicted: every patch. Pasted: the hidden ones only. {self.trained}"]
        if target.normalise != "none" and peek:
            sentences.append("PEEKED: with the hidden patches' own mean and contrast.")
        elif target.normalise != "none":
            sentences.append("The mean and contrast of hidden patches are estimated from visible patches.")
        return rows, sentences

    def glyphs(self, target: HOG) -> tuple[Rows, list[str]]:
        wanted, made = (
            glyphs(values, target, self.image.shape[1], self.grid) for values in (target(self.image), self.predictions)
        )
        size = made.shape[2:]
        pasted = torch.where(enlarged(self.share, size) > 0, made, enlarged(self.image, size))
        rows = {"target": wanted, "predicted": made, "pasted": pasted}
        return rows, [
            "A line shows an edge; a brighter line has more of the gradients across it (HOG, mean over channels).",
            f"Predicted: every patch. Pasted: the hidden ones only. {self.trained}",
        ]

    def decoded(self) -> tuple[Rows, list[str]]:
        """Decoded predictions, once for all tokens and once for the hidden tokens only."""
        tokens = self.inputs.tokens if self.own else self.inputs.sources["codes"]
        made = predicted_tokens(self.core, self.predictions, tokens)
        visible = tokens if self.own else self._codes_of_the_visible()
        hidden = self.hidden.view(self.hidden.shape + (1,) * (tokens.ndim - self.hidden.ndim))
        rows = {"predicted": self._pixels(made), "pasted": self._pixels(torch.where(hidden, made, visible))}
        if self.inputs.pixels is not None:
            rows = {"target": self._pixels(tokens), **rows}
        what = "mean" if isinstance(self.core.target, Latents) else "most likely code"
        sentences = f"Predicted: the {what} of every token, decoded. Pasted: the hidden ones only. {self.trained}"
        return rows, [sentences]

    def agreement(self, keep: Tensor | None = None, there: Tensor | None = None) -> tuple[Rows, list[str]]:
        """A heat map of how similar prediction and target are; tokens without a prediction are grey."""
        target = self.core.wanted(self.inputs.tokens, **self.inputs.sources)
        if keep is not None and there is not None:
            rows = torch.arange(len(keep), device=keep.device)[:, None]
            found, meaning = likeness(self.core, self.predictions, target[rows, keep])
            values = torch.full(target.shape[:2], torch.nan, device=found.device)
            values[rows.expand_as(keep)[there], keep[there]] = found[there]
        else:
            values, meaning = likeness(self.core, self.predictions, target)
        values = values.unflatten(1, (-1, self.inputs.codes_per_position)).mean(-1).unflatten(1, self.grid)
        grey = "." if keep is None else ", grey: dropped, not predicted."
        sentences = f"Agreement: {meaning}; yellow 1, violet 0 or less{grey}"
        return {"agreement": enlarged(heat(values), self.image.shape[2:])}, [sentences]

    def _codes_of_the_visible(self) -> Tensor:
        """Codes by the target's tokenizer, of an image that is grey where it is hidden from the network."""
        return self.tokenizer.encode(self.seen)  # type: ignore[union-attr]

    def _pixels(self, tokens: Tensor) -> Float[Tensor, "b c H W"]:
        tokenizer: Any = self.tokenizer
        if self.inputs.codes_per_position > 1 and tokenizer.codes_per_position == 1:
            tokens = join_codes(tokens, group_size(tokenizer.codebook_size, self.inputs.codes_per_position))
        return tokenizer.decode(tokens).float()


def mean(core: MaskedModeling, predictions: Float[Tensor, "b m e"]) -> Float[Tensor, "b m d"]:
    """The mean of a predicted mixture; other predictions are returned unchanged."""
    if not isinstance(core.objective, GaussianMixture):
        return predictions
    weights, means, _ = core.objective.split(predictions)
    return (weights.exp()[..., None] * means).sum(-2)


def predicted_tokens(core: MaskedModeling, predictions: Float[Tensor, "b n e"], like: Tensor) -> Tensor:
    """The most likely codes, or the predicted continuous tokens, in the shape of `like`."""
    if isinstance(core.target, Codes):
        return predictions.argmax(-1).view(like.shape)
    if isinstance(core.target, Bits):
        return ((predictions > 0).long() << torch.arange(core.target.bits, device=like.device)).sum(-1).view(like.shape)
    return predictions.view(like.shape)


def likeness(core: MaskedModeling, predictions: Float[Tensor, "b m e"], target: Tensor) -> tuple[Tensor, str]:
    """How similar prediction and target are at each token, (b, m), at most 1, and the name of this measure."""
    if not target.is_floating_point():
        return predictions.softmax(-1).gather(-1, target[..., None])[..., 0], "the probability of the right code"
    if isinstance(core.target, CentredSoftmax):
        predictions = (predictions / core.objective.temperature).softmax(-1)
    return F.cosine_similarity(predictions, target.float(), dim=-1), "the cosine of prediction and target"


def heat(values: Float[Tensor, "b h w"]) -> Float[Tensor, "b 3 h w"]:
    """Colours in [-1, 1] for values clipped to [0, 1]; NaN becomes grey."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["viridis"](values.clamp(0, 1).nan_to_num().cpu().numpy())[..., :3])
    pixels = colours.float().permute(0, 3, 1, 2) * 2 - 1
    return torch.where(values.cpu().isnan()[:, None], 0.0, pixels).to(values.device)


def enlarged(pixels: Float[Tensor, "b c h w"], size: Any) -> Float[Tensor, "b c H W"]:
    """Resize to `size` (H, W) without smoothing."""
    return F.interpolate(pixels, tuple(size), mode="nearest")
