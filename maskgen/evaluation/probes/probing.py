"""Probes of a saved run on labelled images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maskgen.config import parse
from maskgen.data.subset import Subset
from maskgen.evaluation.probes.features import Features, extract
from maskgen.evaluation.probes.few_labels import lowshot
from maskgen.evaluation.probes.finetuning import finetune
from maskgen.evaluation.probes.heads import linear, sweep
from maskgen.evaluation.probes.neighbours import knn
from maskgen.evaluation.probes.result import ProbeResult
from maskgen.pipelines.backbone import Backbone, load_backbone
from maskgen.registry import choose
from maskgen.transformer.model import MaskTransformer

PROTOCOLS = {"linear": linear, "sweep": sweep, "knn": knn, "lowshot": lowshot, "finetune": finetune}
TEST_SHARE = 5  # without a test set, every fifth image is a test image


def train_and_test(dataset: Any) -> tuple[Subset, Subset]:
    """A split in which every fifth image *of each class* is a test image; it is the same for every model."""
    seen: dict[int, int] = {}
    sides: tuple[list[int], list[int]] = ([], [])
    for i, label in enumerate(int(x) for x in dataset.labels):
        seen[label] = seen.get(label, 0) + 1
        sides[seen[label] % TEST_SHARE == 0].append(i)
    return Subset(dataset, sides[0]), Subset(dataset, sides[1])


def features_of(backbone: Backbone, dataset: Any, pool: str = "mean", **options: Any) -> Features:
    """Features of a data set, with the facts that describe the backbone. For `options` see :func:`.extract`."""
    facts = {"layer": f"{backbone.layer} of 0 to {len(backbone.transformer.blocks) - 1}"}
    return extract(backbone, dataset, pool, prefix=backbone.prefix, facts=facts, **options)


def probe(
    model: str | Path | Backbone,
    train: Any,
    test: Any | None = None,
    protocol: str = "sweep",
    *,
    layer: int = -1,
    pool: str = "mean",
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    options: Mapping[str, Any] | None = None,
) -> ProbeResult:
    """Measure the features of a backbone with one of the published protocols.

    Args:
        model: the folder of a run or pipeline (of a generator or a representation), or a backbone.
        train, test: labelled data sets. Without a test set, every fifth image of each class of `train` is used.
        protocol: ``linear``, ``sweep``, ``knn``, ``lowshot`` or ``finetune``; see :mod:`maskgen.evaluation.probes`.
        layer: the layer whose features are used; negative numbers count from the last.
        pool: see :func:`maskgen.evaluation.probes.extract`. ``finetune`` always uses ``mean``.
        options: options of the protocol.

    Raises:
        ValueError: the protocol is unknown, or refuses its options or the data.
    """
    function = choose(PROTOCOLS, protocol, "protocol")
    backbone = model if isinstance(model, Backbone) else load_backbone(model, layer)
    backbone = backbone.to(device).eval()
    if test is None:
        train, test = train_and_test(train)
    if function is finetune:
        if pool != "mean":
            raise ValueError(f"pool is {pool!r}, but finetune always classifies the mean of the patches; leave it out")
        classifier = Classifier(backbone, len(train.class_names)).to(device)
        return finetune(classifier, classifier.by_depth(), train, test, device=device, **(options or {}))
    sides = [features_of(backbone, side, pool, device=device, batch_size=batch_size) for side in (train, test)]
    return function(*sides, device=device, **(options or {}))


def options_of(protocol: str, given: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` texts as options of a protocol.

    Raises:
        ValueError: the protocol or an option is unknown, or a value is no YAML.
    """
    known = inspect.signature(choose(PROTOCOLS, protocol, "protocol")).parameters.values()
    names = {p.name: None for p in known if p.kind is p.KEYWORD_ONLY and p.name not in ("device", "progress")}
    names |= {"share": None, "method": None} if protocol == "lowshot" else {}
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        choose(names, key, f"option of {protocol}")
        parsed, problems = parse(value)
        if not equals or problems:
            raise ValueError(f"option {text!r}: give key=value, as seed=1 ({'; '.join(problems) or 'no value'})")
        options[key] = parsed
    return options


class Classifier(nn.Module):
    """A backbone with a norm and a linear layer on the mean of its patch tokens (MAE's fine-tuning, global pooling)."""

    def __init__(self, backbone: Backbone, classes: int):
        super().__init__()
        self.backbone = backbone
        width = backbone.width
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Float[Tensor, "b c H W"]) -> Float[Tensor, "b k"]:
        tokens = self.backbone.layers(pixels)[self.backbone.layer]
        return self.head(self.norm(tokens[:, self.backbone.prefix :].mean(1)))

    def by_depth(self) -> list[list[nn.Parameter]]:
        """The parameters of the embeddings, of each block up to the layer, and of the head. All others are frozen.

        A relative bias belongs to its block, and a shared one to the last block, as in BEiT's fine-tuning.
        """
        transformer = self.backbone.transformer
        blocks = [list(block.parameters()) for block in transformer.blocks[: self.backbone.layer + 1]]
        biases = list(transformer.relative) if isinstance(transformer, MaskTransformer) else []
        for block, bias in zip(blocks if len(biases) > 1 else blocks[-1:], biases):
            block.extend(bias.parameters())
        named = dict(transformer.named_parameters())
        first = ("embedding", "register_tokens", "embedding_norm")
        embedding = [p for name, p in named.items() if name.split(".")[0].endswith(first)]
        used = {id(p) for group in (embedding, *blocks) for p in group}
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(id(parameter) in used)
        return [embedding, *blocks, [*self.norm.parameters(), *self.head.parameters()]]
