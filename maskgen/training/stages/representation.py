"""Stage 2 for representations: masked modeling of images with any tokens, target and loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor, nn

from maskgen.evaluation.reconstruction.measures import spread
from maskgen.evaluation.visualise import Inputs, visualise
from maskgen.images import grid as image_grid
from maskgen.mim.core import Learner, grid_of
from maskgen.mim.targets import Pixels
from maskgen.pipelines.backbone import save_backbone
from maskgen.pipelines.store import load_tokenizer
from maskgen.registry import Part, build
from maskgen.tokenizer.losses import frames_of
from maskgen.tokenizer.model import Tokenizer
from maskgen.training.batches import MapDataset
from maskgen.training.masked import NETWORK, Masking, Network, build_masking, by_view, learner
from maskgen.training.teachers import TEACHER, EMATeacher


def patches(patch: int = 4, channels: int = 3, frames: int = 1) -> Tokenizer:
    """A tokenizer whose tokens are patches of pixels; for videos, cubes of several frames (2 in VideoMAE)."""
    part = {"type": "patch", "patch": patch, "channels": channels, "frames": frames}
    return Tokenizer(part, {"type": "none", "dim": channels * frames * patch**2}, part)


TOKENS = Part({"patches": patches, "codes": load_tokenizer}, default="patches")


class RepresentationStage:
    """Hides some tokens and predicts a target from the others. MAE, BEiT, MaskFeat, iBOT and others are choices of its
    parts.

    Args:
        dataset: the training images (set by the run); labels are not used.
        holdout: data held out from training (set by the run); its loss is reported.
        tokens: the input of the network: ``patches`` of pixels, or the ``codes`` of a tokenizer (at ``path``).
        model: the network, ``mask_transformer`` or ``hiera``.
        masking: the MIM core.
        target_tokenizer: the run of a tokenizer whose codes are the target if the tokens are patches (BEiT).
        teacher: provides the features, attention or predicted losses that target and sampler need; ``ema`` is the
            moving average of the student.

    Raises:
        ValueError: the parts do not go together; the message names the option to change.
    """

    takes_views = True

    def __init__(
        self,
        dataset: MapDataset,
        holdout: MapDataset | None = None,
        tokens: Annotated[Any, TOKENS] = {},  # noqa: B006
        model: Network = {},  # noqa: B006
        masking: Masking = {},  # noqa: B006
        target_tokenizer: str | None = None,
        teacher: Annotated[Any, TEACHER] | None = None,
    ):
        self.tokenizer = build(TOKENS, tokens).eval().requires_grad_(False)
        self.target_tokenizer = load_tokenizer(target_tokenizer).requires_grad_(False) if target_tokenizer else None
        self.teacher = None if teacher is None else build(TEACHER, teacher)
        self.dataset, self.holdout, self.progress = dataset, holdout, 0.0
        own = isinstance(self.teacher, EMATeacher)
        core = build_masking(masking, model).eval()  # the example must not change the statistics of a target
        self.reconstructs = core.corruption.source == "reconstruction"
        example, sources = self._sources(dataset[0]["pixels"][None], follow=False)
        codes = self.target_tokenizer or self.tokenizer
        continuous = self.tokenizer.codebook_size == 0
        learned = learner(
            model,
            core,
            None if own and core.target.source == "features" else core.wanted(example, **sources),
            codes.codebook_size,
            NETWORK,
            grid=grid_of(example),
            tokens={
                "codebook_size": self.tokenizer.codebook_size,
                "dim": example.shape[-1] if continuous else 0,
            },
        )
        self.modules: dict[str, nn.Module] = {"model": learned.train()}
        self.student, self.state = learned.network, {}
        if isinstance(self.teacher, EMATeacher):
            self.teacher.follow(self.student)
            self.state = {"teacher": self.teacher}

    @torch.no_grad()
    def _sources(self, pixels: Tensor, follow: bool = True) -> tuple[Tensor, dict[str, Any]]:
        """The tokens, and the inputs of targets and samplers; with `follow` also those from the EMA teacher."""
        with torch.autocast(pixels.device.type, enabled=False):
            tokens = self._encode(pixels)
            sources: dict[str, Any] = {"pixels": pixels}
            if self.target_tokenizer:
                codes = self.target_tokenizer.to(pixels.device)
                sources["codes"] = codes.encode(pixels)
                if self.reconstructs:
                    sources["reconstruction"] = self.tokenizer.encode(codes.decode(sources["codes"]))
            if self.teacher is not None and not isinstance(self.teacher, EMATeacher):
                grid = tuple(self.tokenizer.grid((pixels.shape[2], pixels.shape[3])))
                sources |= self.teacher.to(pixels.device).sources(pixels, grid)
        if follow and isinstance(self.teacher, EMATeacher):
            sources |= self.teacher.to(pixels.device).sources(tokens)
        return tokens, sources

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            return self.tokenizer.to(pixels.device).encode(pixels)

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        pixels, views, small_pixels = by_view(batch)
        tokens, sources = self._sources(pixels)
        small = None if small_pixels is None else self._encode(small_pixels)
        yield "model", self.modules["model"](tokens, progress=self.progress, views=views, small=small, **sources)

    def stepped(self) -> None:
        """Updates the EMA teacher after an optimizer step."""
        if isinstance(self.teacher, EMATeacher):
            self.teacher.update(self.student, self.progress)

    @torch.no_grad()
    def evaluate(self, model: Learner) -> dict[str, float]:
        """The loss of the objective on held-out images, always with the same masks; empty without a holdout."""
        if self.holdout is None:
            return {}
        pixels = next(spread(self.holdout, 256, 256)).to(next(model.parameters()).device)
        tokens, sources = self._sources(pixels)
        generator = torch.Generator().manual_seed(0)
        terms = model.masking.main_losses(model.network, tokens, generator=generator, **sources)
        return {f"holdout/{name}": float(terms[name]) for name in ("loss", "accuracy") if name in terms}

    def inputs(self, batch: dict[str, Any]) -> Inputs:
        """The inputs of the network for a batch of images."""
        tokens, sources = self._sources(batch["pixels"])
        return Inputs(tokens, self.tokenizer, batch["pixels"], sources, self.target_tokenizer)

    @torch.no_grad()
    def image(self, model: Learner) -> Image.Image:
        """A sheet of images and predictions, see :func:`maskgen.evaluation.visualise.visualise`. For videos it shows
        the frames, their visible parts and, if the target is pixels, these filled with predictions."""
        videos = self.dataset[0]["pixels"].ndim == 4
        pixels = next(spread(self.holdout or self.dataset, 2 if videos else 16)).to(next(model.parameters()).device)
        inputs = self.inputs({"pixels": pixels})
        return self._frames(model, inputs) if videos else visualise(model, inputs).draw()

    def _frames(self, model: Learner, inputs: Inputs) -> Image.Image:
        """The sheet of a video. Normalised predictions get mean and contrast from visible patches only."""
        pixels, core = inputs.pixels, model.masking
        assert pixels is not None
        size, grid = tuple(pixels.shape[2:]), grid_of(inputs.tokens)
        plan = core.plan(len(pixels), grid, torch.Generator().manual_seed(0), **inputs.sources)
        cover = plan.hidden.to(pixels.device)
        for axis, (pixels_long, tokens_long) in enumerate(zip(size, grid), 1):
            cover = cover.repeat_interleave(pixels_long // tokens_long, axis)
        rows, names = [pixels, torch.where(cover[:, None], 0.0, pixels)], ["image", "seen"]
        if isinstance(core.target, Pixels):
            output, keep, _ = core.outputs(model.network, inputs.tokens, plan, **inputs.sources)
            if keep is None:  # otherwise dropped tokens are not predicted
                hidden = plan.hidden.flatten(1).to(pixels.device)
                rows.append(core.target.image(output.predictions.float(), pixels, hidden))
                names.append("predicted")
        frames = [frames_of(row.cpu()) for row in rows]
        return image_grid(torch.cat(frames), len(frames[0]), row_names=names)

    def export(self, model: Learner, folder: Path) -> None:
        save_backbone(self.tokenizer, model.network, folder)
