"""The configuration of runs begun with earlier versions, translated when such a run is read or resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskgen.decoding import scheduler as schedulers
from maskgen.registry import split
from maskgen.tokenizer import numbered
from maskgen.tokenizer.model import PARTS
from maskgen.transformer import hiera, specs

FORMAT = 2  # of the config.yaml of runs; earlier files have no such key


def network(model: Any) -> Any:
    """The spec of a network of version 0.1 -> its present spec."""
    if not isinstance(model, Mapping):
        return model
    kind, given = split(model, "mask_transformer")
    upgraded = hiera.from_flat(given) if kind == "hiera" else specs.upgraded(given)
    if upgraded.get("head") == {"type": "linear"} and "head_type" not in given:
        del upgraded["head"]
    return {"type": kind, **upgraded} if "type" in model else upgraded


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run's ``config.yaml``, with every option at its present place, and without the format."""
    if config.get("format") == FORMAT:
        return {key: value for key, value in config.items() if key != "format"}
    stage = dict(config["stage"])
    kind = stage.get("type")
    model = stage.get("model")
    if kind in ("generator", "autoregressive"):
        stage["conditioning"] = _conditioning(stage, model or {})
        for old in ("conditional", "actions"):
            stage.pop(old, None)
    if kind in ("generator", "autoregressive", "representation", "critic") and isinstance(model, Mapping):
        model = {name: value for name, value in model.items() if name != "class_dropout"}
        stage["model"] = network(model)
    if isinstance(stage.get("scheduler"), Mapping):
        stage["scheduler"] = schedulers.upgraded(dict(stage["scheduler"]))
    if isinstance(stage.get("tokenizer"), Mapping):
        stage["tokenizer"] = numbered.upgraded(stage["tokenizer"], PARTS)
    return {**config, "stage": stage, "augment": config.get("augment") or None}


def _conditioning(stage: Mapping[str, Any], model: Mapping[str, Any]) -> list[Any]:
    """The conditioners of a stage that had `conditional`, `actions` and ``model.class_dropout``."""
    made: list[Any] = []
    if stage.get("actions", False):
        made.append("actions")
    dropout = model.get("class_dropout", 0.1)
    if stage.get("conditional", True):
        made.append({"type": "class", "dropout": dropout})
    elif stage.get("tasks"):
        made.append({"type": "task", "dropout": dropout})
    return made
