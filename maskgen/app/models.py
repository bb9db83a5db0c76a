"""The pipelines that the page offers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from maskgen.decoding.orders import ORDERS
from maskgen.decoding.scheduler import MaskScheduler
from maskgen.pipelines.generate import BUNDLED
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.pipelines.jobs import load
from maskgen.registry import nearest

logger = logging.getLogger(__name__)


class Models:
    """Pipelines by the name that their images keep: those that were given, then the bundled one.

    Args:
        paths: runs, pipeline folders or Hub names.
        device: as the commands take it.

    Raises:
        OSError: nothing there.
    """

    def __init__(self, paths: Sequence[str] = (), device: str = "auto"):
        self.pipelines: dict[str, Any] = {path: load(path, device) for path in paths}
        try:
            self.pipelines[BUNDLED] = load(None, device)
        except FileNotFoundError:
            if not paths:
                raise
            logger.warning("this installation has no bundled pipeline; the page offers %s", ", ".join(paths))

    @property
    def names(self) -> list[str]:
        """The first is the page's default."""
        return list(self.pipelines)

    def __getitem__(self, name: str) -> Any:
        """A pipeline.

        Raises:
            ValueError: it is not among them.
        """
        if name not in self.pipelines:
            raise ValueError(
                f"the model {name!r} is not open here: {nearest(name, self.names)}"
                f"choose one of {', '.join(self.names)}, or start the page with `maskgen app {name}`"
            )
        return self.pipelines[name]


def defaults(pipeline: Any) -> dict[str, Any]:
    """Its scheduler's `steps`, `guidance`, `temperature` (the first one, where it changes) and `order`."""
    config = pipeline.scheduler.config
    temperature = config.choice_temperature
    first = temperature if isinstance(temperature, (int, float)) else temperature[0]
    return {
        "steps": config.num_inference_steps,
        "guidance": config.guidance_scale,
        "temperature": first,
        "order": config.order,
    }


def orders(pipeline: Any) -> list[str]:
    """Those that it can decode in: ``critic`` needs a critic."""
    return [order for order in ORDERS if order != "critic" or pipeline.critic is not None]


def scheduled(pipeline: Any, temperature: float, order: str) -> Any:
    """The same models behind a scheduler that differs in these two; what is the default stays as it is.

    Raises:
        ValueError: an unknown order, a negative temperature.
    """
    own, changed = defaults(pipeline), dict[str, Any]()
    if temperature != own["temperature"]:
        changed["choice_temperature"] = temperature
    if order != own["order"]:
        changed["order"] = order
    scheduler = MaskScheduler.from_config({**pipeline.scheduler.config, **changed})
    names = pipeline.config.get("class_names")
    view = MaskedImagePipeline(**{**pipeline.components, "scheduler": scheduler}, class_names=names)
    view.set_progress_bar_config(disable=True)
    return view
