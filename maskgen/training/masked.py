"""Functions that the generator and the representation stage share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from maskgen.conditioning import CONDITIONERS
from maskgen.mim.core import Learner, MaskedModeling
from maskgen.mim.targets import CentredSoftmax
from maskgen.registry import Part, build, choose, split
from maskgen.training.batches import MapDataset
from maskgen.transformer.hiera import NETWORKS
from maskgen.transformer.model import TRANSFORMERS

GIVEN = ("grid", "out_dim")
MODEL = Part(TRANSFORMERS, given=GIVEN, default="mask_transformer")
NETWORK = Part(NETWORKS, given=GIVEN, default="mask_transformer")  # also networks that do not generate
MASKING = Part({"masked_modeling": MaskedModeling}, given=("width",), default="masked_modeling")

CONDITIONER = Part(CONDITIONERS, given=("width", "count", "dim"))

Model = Annotated[Any, MODEL]
Network = Annotated[Any, NETWORK]
Masking = Annotated[Any, MASKING]


def setting(model: Any, name: str) -> Any:
    """The argument `name` of a network, given as a spec or as a network."""
    if not isinstance(model, (str, Mapping)):
        return model.config[name]
    kind, given = split(model, NETWORK.default)
    argument = inspect.signature(choose(NETWORKS, kind, "part")).parameters[name]
    return given.get(name, argument.default)


def codes_per_position(model: Any) -> int:
    """The number of codes per position of a network, given as a spec or as a network."""
    return int(setting(model, "tokens").get("codes_per_position", 1))


def first_batch(dataset: MapDataset) -> dict[str, Tensor]:
    """The tensors and numbers of the first item of a data set, as a batch of one."""
    there = {name: value for name, value in dataset[0].items() if isinstance(value, (Tensor, int, float))}
    return {name: torch.as_tensor(value)[None] for name, value in there.items()}


def conditioner_inputs(
    conditioning: Sequence[Any], dataset: MapDataset, example: Mapping[str, Any], **known: Any
) -> dict[str, Any]:
    """The specs of a run's conditioners by the name of their input, with the arguments that follow from the data.

    Args:
        conditioning: specs, see :data:`maskgen.conditioning.CONDITIONERS`.
        dataset: the training set.
        example: one of its batches.
        known: arguments that the stage sets, for conditioners that have them.

    Raises:
        ValueError: two conditioners read the same input, or the data lacks an input.
    """
    inputs: dict[str, Any] = {}
    for spec in conditioning:
        name, arguments = split(spec)
        kind = choose(CONDITIONERS, name, "conditioner")
        if kind.reads in inputs:
            raise ValueError(f"stage.conditioning: two conditioners read {kind.reads!r}; keep one")
        if kind.reads not in example and not known:
            raise ValueError(
                f"stage.conditioning: {name} reads {kind.reads!r}, but the data has {', '.join(example)}: leave {name} "
                f"out, or use data with {kind.reads}"
            )
        found = {**kind.known(dataset, example), **{k: v for k, v in known.items() if k in arguments_of(kind)}}
        inputs[kind.reads] = {"type": name, **arguments, **found}
    return inputs


def arguments_of(kind: Any) -> set[str]:
    """The names of a constructor's arguments."""
    return set(inspect.signature(kind).parameters)


def build_masking(masking: Any, model: Any) -> MaskedModeling:
    """Builds the masked modeling for a network's spec."""
    return build(MASKING, masking, width=setting(model, "width"))


def learner(
    model: Any, masking: MaskedModeling, wanted: Tensor | None, codes: int, part: Part = MODEL, **given: Any
) -> Learner:
    """Builds the network and joins it with its masked modeling.

    Args:
        model: the network's spec.
        masking: the masked modeling.
        wanted: an example of the target, codes (b, n) or values (b, n, d); None if an EMA teacher makes the target.
        codes: number of codes, if the target is codes.
        part: the networks that `model` chooses from.
        given: further arguments of the network. A mapping is merged into the nested spec of the same name.
    """
    if isinstance(masking.target, CentredSoftmax):
        predictions = len(masking.target.centre)
    elif wanted is None:
        predictions = setting(model, "width")  # a teacher's features, the student's own average
    elif wanted.is_floating_point():
        predictions = masking.objective.outputs(wanted.shape[-1])
    else:
        predictions = codes * codes_per_position(model)
    if isinstance(model, (str, Mapping)):
        _, own = split(model, part.default)
        given = {k: {**own.get(k, {}), **v} if isinstance(v, Mapping) else v for k, v in given.items()}
        nested = [name for name, value in given.items() if isinstance(value, Mapping)]
        if isinstance(model, Mapping):
            model = {name: value for name, value in model.items() if name not in nested}
    return Learner(build(part, model, out_dim=predictions, **given), masking)


def by_view(batch: dict[str, Any]) -> tuple[Tensor, int, Tensor | None]:
    """The images (views * b, c, h, w), view by view, or videos (b, c, t, h, w); the number of views; and the pixels of
    small views, or None."""
    if "views" not in batch:
        return batch["pixels"], 1, None
    views, small = batch["views"], batch.get("small_pixels")
    by_row = None if small is None else small.transpose(0, 1).flatten(0, 1)
    return views.transpose(0, 1).flatten(0, 1), views.shape[1], by_row
