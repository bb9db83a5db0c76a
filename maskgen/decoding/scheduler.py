"""MaskScheduler: the settings of the decode loop, saved with a pipeline."""

from __future__ import annotations

from typing import Literal

from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Int
from torch import Tensor

from maskgen.decoding.guidance import GUIDANCE_SCHEDULES
from maskgen.decoding.loop import Callback, Generators, Predict, decode
from maskgen.mim.ratios import SCHEDULES
from maskgen.parts import choose


class MaskScheduler(SchedulerMixin, ConfigMixin):
    """A saved configuration of :func:`maskgen.decoding.loop.decode`, and nothing more.

    Args:
        mask_schedule: share still hidden against progress.
        temperature: of the choice of the tokens to keep (4.5 in MaskGIT).
        guidance_schedule: ``constant`` or ``linear`` (rising from none).
        num_inference_steps, guidance_scale: the defaults of a pipeline that has this scheduler.
    """

    config_name = "scheduler_config.json"

    @register_to_config
    def __init__(
        self,
        mask_schedule: Literal["cosine", "arccos", "linear", "square", "cubic", "sqrt"] = "cosine",
        temperature: float = 4.5,
        guidance_schedule: Literal["constant", "linear"] = "constant",
        num_inference_steps: int = 12,
        guidance_scale: float = 1.0,
    ):
        choose(SCHEDULES, mask_schedule, "mask schedule")
        choose(GUIDANCE_SCHEDULES, guidance_schedule, "guidance schedule")

    def decode(
        self,
        predict: Predict,
        canvas: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Int[Tensor, "b n"]:
        """:func:`maskgen.decoding.loop.decode` with the saved settings where None is given."""
        c = self.config
        return decode(
            predict,
            canvas,
            mask,
            steps=c.num_inference_steps if num_inference_steps is None else num_inference_steps,
            schedule=c.mask_schedule,
            temperature=c.temperature,
            guidance_scale=c.guidance_scale if guidance_scale is None else guidance_scale,
            guidance_schedule=c.guidance_schedule,
            generator=generator,
            callback=callback,
        )
