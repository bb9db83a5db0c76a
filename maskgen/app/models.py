"""The pipelines that the page offers, and their schedulers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from maskgen.decoding.orders import ORDERS
from maskgen.decoding.scheduler import MaskScheduler
from maskgen.pipelines.generate import BUNDLED, load
from maskgen.pipelines.image import MaskedImagePipeline
from maskgen.registry import nearest

logger = logging.getLogger(__name__)


class Models:
    """The pipelines by name: those of `paths`, then the bundled one. Images keep the name of their pipeline.

    Args:
        paths: runs, pipeline folders or Hub names.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        OSError: there is no pipeline at a path.
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
        """The names; the first is the default of the page."""
        return list(self.pipelines)

    def __getitem__(self, name: str) -> Any:
        """The pipeline called `name`.

        Raises:
            ValueError: no pipeline has this name.
        """
        if name not in self.pipelines:
            raise ValueError(
                f"the model {name!r} is not open here: {nearest(name, self.names)}"
                f"choose one of {', '.join(self.names)}, or start the page with `maskgen app {name}`"
            )
        return self.pipelines[name]


def defaults(pipeline: Any) -> dict[str, Any]:
    """The scheduler's `steps`, `guidance`, `choice_temperature` (its first value, if it changes) and `order`."""
    config = pipeline.scheduler.config
    temperature = config.choice_temperature
    first = temperature if isinstance(temperature, (int, float)) else temperature[0]
    return {
        "steps": config.num_inference_steps,
        "guidance": config.guidance_scale,
        "choice_temperature": first,
        "order": config.order,
    }


def orders(pipeline: Any) -> list[str]:
    """The orders that the pipeline can decode in; ``critic`` needs a critic."""
    return [order for order in ORDERS if order != "critic" or pipeline.critic is not None]


def scheduled(pipeline: Any, choice_temperature: float, order: str) -> Any:
    """A pipeline of the same components with another scheduler. The given pipeline does not change.

    An annealed temperature stays annealed if `choice_temperature` is its first value.

    Raises:
        ValueError: an unknown order, or a negative temperature.
    """
    own = defaults(pipeline)
    changed: dict[str, Any] = {}
    if choice_temperature != own["choice_temperature"]:
        changed["choice_temperature"] = choice_temperature
    if order != own["order"]:
        changed["order"] = order
    scheduler = MaskScheduler.from_config({**pipeline.scheduler.config, **changed})
    names = pipeline.config.get("class_names")
    view = MaskedImagePipeline(**{**pipeline.components, "scheduler": scheduler}, class_names=names)
    view.set_progress_bar_config(disable=True)
    return view
