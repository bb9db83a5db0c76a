"""What the generator and the representation stage share: a network and the masked modeling that trains it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from maskgen.mim.core import Learner, MaskedModeling
from maskgen.mim.targets import CentredSoftmax
from maskgen.registry import Part, build, choose, split
from maskgen.transformer.hiera import NETWORKS
from maskgen.transformer.model import TRANSFORMERS

GIVEN = ("codebook_size", "grid", "num_classes", "token_dim", "predictions", "action_dim", "code_dim")
MODEL = Part(TRANSFORMERS, given=GIVEN, default="mask_transformer")
NETWORK = Part(NETWORKS, given=GIVEN, default="mask_transformer")  # those that make no images too
MASKING = Part({"masked_modeling": MaskedModeling}, given=("width",), default="masked_modeling")

Model = Annotated[Any, MODEL]
Network = Annotated[Any, NETWORK]
Masking = Annotated[Any, MASKING]


def setting(model: Any, name: str) -> Any:
    """An argument of the network that `model`, a spec or a network, asks for; 1 where it has no such one (`groups`)."""
    if not isinstance(model, (str, Mapping)):
        return model.config.get(name, 1)
    kind, given = split(model, NETWORK.default)
    argument = inspect.signature(choose(NETWORKS, kind, "part")).parameters.get(name)
    return given.get(name, 1 if argument is None else argument.default)


def build_masking(masking: Any, model: Any) -> MaskedModeling:
    """The masked modeling for a transformer's spec."""
    return build(MASKING, masking, width=setting(model, "width"))


def learner(
    model: Any, masking: MaskedModeling, wanted: Tensor | None, codes: int, part: Part = MODEL, **given: Any
) -> Learner:
    """Build the network and join it with its masked modeling.

    Args:
        model: the network's spec.
        wanted: an example of the target, (b, n) codes or (b, n, d) values; None where it is the teacher's softmax.
        codes: how many there are, of a target of codes.
        part: the networks among which `model` chooses.
        given: what else the network is told.
    """
    if isinstance(masking.target, CentredSoftmax):
        predictions = len(masking.target.centre)
    elif wanted is None:
        predictions = setting(model, "width")  # a teacher's features, the student's own average
    elif wanted.is_floating_point():
        predictions = masking.objective.outputs(wanted.shape[-1])
    else:
        predictions = codes * setting(model, "groups")
    return Learner(build(part, model, predictions=predictions, **given), masking)


def by_view(batch: dict[str, Any]) -> tuple[Tensor, int, Tensor | None]:
    """Images (views * b, c, h, w), view by view, or videos (b, c, t, h, w); how many views; and small views' pixels,
    or None."""
    if "views" not in batch:
        return batch["pixels"], 1, None
    views, small = batch["views"], batch.get("small_pixels")
    by_row = None if small is None else small.transpose(0, 1).flatten(0, 1)
    return views.transpose(0, 1).flatten(0, 1), views.shape[1], by_row
