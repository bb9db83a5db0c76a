"""MaskScheduler: the settings of the decode loop, saved with a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Shaped
from torch import Tensor

from maskgen.decoding.guidance import guidance_scales
from maskgen.decoding.loop import Callback, Critic, Predict, Trace, decode
from maskgen.decoding.noise import Generators, Noise
from maskgen.decoding.orders import ORDERS
from maskgen.decoding.presets import PRESETS
from maskgen.decoding.remasking import remasked
from maskgen.decoding.schedules import Temperature, annealed, hidden_after
from maskgen.decoding.token_samplers import Draw, categorical, check_categorical
from maskgen.registry import choose

Schedule = Literal["cosine", "arccos", "linear", "square", "cubic", "sqrt", "exponential", "logarithmic"]
Anneal = Literal["constant", "linear", "linspace", "reciprocal"]


class MaskScheduler(SchedulerMixin, ConfigMixin):
    """A saved configuration of :func:`maskgen.decoding.loop.decode`, and nothing more; the defaults are MaskGIT's.

    Args:
        mask_schedule: share still hidden against progress.
        temperature: of the noise in the choice of the tokens to keep (4.5 in MaskGIT); a number or (start, end).
        guidance_schedule: how guidance rises from none, see :mod:`maskgen.decoding.guidance`.
        num_inference_steps, guidance_scale: the defaults of a pipeline that has this scheduler.
        guidance_power: of the guidance schedules ``power`` and ``cosine``.
        counting: how the schedule becomes numbers of tokens.
        order: which tokens go first; ``critic`` needs a critic when decoding.
        roll: start order ``halton`` at a random point, each row its own.
        confidence: what order ``confidence`` ranks: the ``probability`` of a drawn code or its ``logit`` (TiTok).
        anneal: how `temperature` changes with the steps.
        draw_temperature, draw_anneal: of the codes' distribution.
        top_k, top_p: of it, 0 and 1 for all codes.
        remask, remask_eta: ReMDM's remasking and its strength in [0, 1].

    Raises:
        ValueError: an unknown name or a number outside its range.
    """

    config_name = "scheduler_config.json"

    @register_to_config
    def __init__(
        self,
        mask_schedule: Schedule = "cosine",
        temperature: Temperature = 4.5,
        guidance_schedule: Literal["constant", "linear", "cosine", "power"] = "constant",
        num_inference_steps: int = 12,
        guidance_scale: float = 1.0,
        guidance_power: float = 1.0,
        counting: Literal["maskgit", "halton", "halton_confidence", "halton_v1"] = "maskgit",
        order: Literal["confidence", "critic", "random", "halton", "raster"] = "confidence",
        roll: bool = False,
        confidence: Literal["probability", "logit"] = "probability",
        anneal: Anneal = "linear",
        draw_temperature: Temperature = 1.0,
        draw_anneal: Anneal = "constant",
        top_k: int = 0,
        top_p: float = 1.0,
        remask: Literal["none", "cap", "rescale", "confidence"] = "none",
        remask_eta: float = 1.0,
    ):
        hidden_after(mask_schedule, 2, 2, counting)  # each of these refuses what it does not know
        annealed(temperature, anneal, 1)
        annealed(draw_temperature, draw_anneal, 1)
        guidance_scales(guidance_scale, guidance_schedule, 1, guidance_power)
        check_categorical(top_k, top_p, confidence)
        remasked(remask, remask_eta, [0], 1)
        choose(ORDERS, order, "order")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MaskScheduler:
        """What a published system decodes with (:data:`maskgen.decoding.presets.PRESETS`), with `changes`.

        Raises:
            ValueError: unknown name.
        """
        return cls(**{**choose(PRESETS, name, "preset"), **changes})

    def decode(
        self,
        predict: Predict,
        canvas: Shaped[Tensor, "b n *d"],
        mask: Bool[Tensor, "b n"],
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        callback: Callback | None = None,
        *,
        grid: tuple[int, ...] | None = None,
        critic: Critic | None = None,
        draw: Draw | None = None,
        noise: Noise | None = None,
        trace: Callable[[Trace], None] | None = None,
    ) -> Shaped[Tensor, "b n *d"]:
        """:func:`maskgen.decoding.loop.decode` with the saved settings where None is given.

        Args:
            draw: of other tokens than codes; `confidence`, `top_k` and `top_p` are then the draw's own business.
        """
        c = self.config
        return decode(
            predict,
            canvas,
            mask,
            steps=c.num_inference_steps if num_inference_steps is None else num_inference_steps,
            schedule=c.mask_schedule,
            counting=c.counting,
            order=c.order,
            grid=grid,
            roll=c.roll,
            critic=critic,
            temperature=c.temperature,
            anneal=c.anneal,
            draw=draw or partial(categorical, top_k=c.top_k, top_p=c.top_p, confidence=c.confidence),
            draw_temperature=c.draw_temperature,
            draw_anneal=c.draw_anneal,
            remask=c.remask,
            remask_eta=c.remask_eta,
            guidance_scale=c.guidance_scale if guidance_scale is None else guidance_scale,
            guidance_schedule=c.guidance_schedule,
            guidance_power=c.guidance_power,
            generator=generator,
            noise=noise,
            callback=callback,
            trace=trace,
        )
