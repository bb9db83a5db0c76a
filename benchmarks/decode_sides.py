"""Our sides of decode.py: the usual decode, without single savings, with dropped hidden tokens, and autoregressive."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.conditioning import stack
from maskgen.decoding.autoregressive import decode_raster
from maskgen.decoding.loop import Step, decode
from maskgen.pipelines.base import given_of
from maskgen.pipelines.predictor import NextPredictor, Predictor
from maskgen.transformer.autoregressive import CausalTransformer
from maskgen.transformer.model import MaskTransformer


@dataclass(frozen=True)
class Size:
    """The size of every side's network."""

    width: int = 256
    depth: int = 8
    heads: int = 8
    side: int = 16  # tokens along an edge of the image
    codes: int = 1024


@dataclass(frozen=True)
class Case:
    """The task of every side. Guidance is ``u + s (c - u)``, so 1 is none; only our sides have a guidance schedule."""

    batch: int
    steps: int
    guidance: float
    schedule: str = "constant"


@dataclass(frozen=True)
class Side:
    """A side. `generate` turns a case into codes (batch, tokens); calls of the network's `method` are counted."""

    about: str
    network: nn.Module
    generate: Callable[[Case], Tensor]
    method: str = "forward"


def our_network(size: Size, place: dict, **options: Any) -> MaskTransformer:
    shape = {**shape_of(size), "tokens": {"codebook_size": size.codes}, **options}
    return awake(MaskTransformer((size.side, size.side), **shape), place)


def shape_of(size: Size) -> dict[str, Any]:
    """What the masked and the causal transformer have in common."""
    label = {"type": "class", "count": 1000}
    return {
        "width": size.width,
        "depth": size.depth,
        "block": {"heads": size.heads},
        "conditioning": {"inputs": {"label": label}},
    }


def awake(network: Any, place: dict) -> Any:
    """Give random values to the heads and gates that start at zero, as training would."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.to(**place).eval()


def complete(predict: Callable[[Step], Tensor], size: Size, case: Case, place: dict) -> Tensor:
    canvas = torch.zeros(case.batch, size.side**2, dtype=torch.long, device=place["device"])
    options: Any = {"guidance_scale": case.guidance, "guidance_schedule": case.schedule}
    return decode(predict, canvas, canvas == 0, steps=case.steps, **options)


def all_places(predict: Callable[[Step], Tensor], step: Step) -> Tensor:
    """The last block and the head at every token, known ones too."""
    everywhere = torch.arange(step.tokens.shape[1], device=step.tokens.device).expand_as(step.tokens)
    logits = predict(replace(step, positions=everywhere))
    return logits.gather(1, step.positions[..., None].expand(-1, -1, logits.shape[-1]))


def own_first_step(predict: Callable[[Step], Tensor], step: Step) -> Tensor:
    """The blank canvas computed for every row."""
    return predict(replace(step, blank=False))


def both_passes(predict: Callable[[Step], Tensor], step: Step) -> Tensor:
    """The unconditional pass where guidance is none, too; the scale rounds to 1 again."""
    return predict(replace(step, guidance_scale=math.nextafter(step.guidance_scale, 2)))


Saving = Callable[[Callable[[Step], Tensor], Step], Tensor]
OFF: list[Saving] = [all_places, own_first_step, both_passes]


def ours(size: Size, place: dict, same_label: bool = False, off: Saving | None = None) -> Side:
    """`off`: undoes one of the savings."""
    network = our_network(size, place)

    def generate(case: Case) -> Tensor:
        labels = [7] * case.batch if same_label else list(range(case.batch))
        predict = Predictor(network, (size.side, size.side), given_of(labels), case.batch)
        return complete(predict if off is None else partial(off, predict), size, case, place)

    about = "one class for all rows" if same_label else "each row its own class"
    return Side(about if off is None else str(off.__doc__).split(".")[0].lower(), network, generate)


def dropping(size: Size, place: dict, drop: bool) -> Side:
    """MAGE's shape, 5 blocks in the encoder and 3 in the decoder of 8; with `drop` the encoder sees known tokens only.

    Not exact: the network computes something else, and must be trained so (`masking.dropping`)."""
    decoder = 3 * size.depth // 8 or 1
    shape: dict[str, Any] = {
        "depth": size.depth - decoder,
        "num_registers": 1,
        "decoder": {"depth": decoder, "pad": "class_token"},
    }
    network = our_network(size, place, **shape)
    grid = (size.side, size.side)

    def generate(case: Case) -> Tensor:
        given = {"label": torch.arange(case.batch, device=place["device"])}
        conditioner = network.conditioner
        with torch.no_grad():
            both = stack([part(given, case.batch, grid) for part in (conditioner, conditioner.null)])

        @torch.no_grad()
        def predict(step: Step) -> Tensor:
            copies = 1 if step.guidance_scale == 1 else 2
            tokens, hidden, positions = (torch.cat([x] * copies) for x in (step.tokens, step.hidden, step.positions))
            keep = None
            if drop:  # as many in every row
                keep = hidden.long().argsort(dim=1, stable=True)[:, : tokens.shape[1] - positions.shape[1]]
            logits = network(
                tokens.unflatten(1, grid),
                hidden.unflatten(1, grid),
                both.rows(slice(0, len(tokens))),
                predict_at=positions,
                keep=keep,
            ).predictions
            c, u = (logits, logits) if copies == 1 else logits.chunk(2)
            return c if copies == 1 else torch.lerp(u, c, step.guidance_scale)

        return complete(predict, size, case, place)

    return Side(
        f"encoder of {shape['depth']} blocks over {'known' if drop else 'all'} tokens, decoder of {decoder}",
        network,
        generate,
    )


def autoregressive(size: Size, place: dict) -> Side:
    """One token after the other with cached keys and values, on the same blocks."""
    network = awake(CausalTransformer(size.codes, (size.side, size.side), **shape_of(size)), place)

    def generate(case: Case) -> Tensor:
        canvas = torch.zeros(case.batch, size.side**2, dtype=torch.long, device=place["device"])
        predict = NextPredictor(network, given_of(list(range(case.batch))), case.batch, case.guidance != 1)
        return decode_raster(predict, canvas, canvas == 0, guidance_scale=case.guidance)

    return Side("one token after the other, keys and values cached", network, generate, "step")


def plain(size: Size, place: dict) -> Side:
    """Our network without our savings: every token's logits, all rows, both passes, at every step."""
    network = our_network(size, place)

    def generate(case: Case) -> Tensor:
        labels = torch.arange(case.batch, device=place["device"])

        def logits_of(step: Step, given: dict[str, Tensor]) -> Tensor:
            shape = (case.batch, size.side, size.side)
            conditioning = network.conditioner(given, case.batch, shape[1:])
            logits = network(step.tokens.view(shape), step.hidden.view(shape), conditioning).predictions
            return logits.gather(1, step.positions[..., None].expand(-1, -1, size.codes))

        def predict(step: Step) -> Tensor:
            c = logits_of(step, {"label": labels})
            if step.guidance_scale == 1:
                return c
            u = logits_of(step, {})
            return u + step.guidance_scale * (c - u)

        return complete(predict, size, case, place)

    return Side("the same network and loop; all tokens, rows and passes at every step", network, generate)
