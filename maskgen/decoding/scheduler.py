"""MaskScheduler: the settings of the decode loop, saved with a pipeline."""

from __future__ import annotations

import inspect
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
from maskgen.decoding.token_samplers import TokenSampler, categorical, check_categorical
from maskgen.registry import choose, nearest
from maskgen.renamed import new_name

Schedule = Literal["cosine", "arccos", "linear", "square", "cubic", "sqrt", "exponential", "logarithmic"]
Anneal = Literal["constant", "linear", "linspace", "reciprocal"]


class MaskScheduler(SchedulerMixin, ConfigMixin):
    """The saved settings of :func:`maskgen.decoding.loop.decode`; the defaults are MaskGIT's.

    Args:
        mask_schedule: the share of hidden tokens as a function of progress.
        choice_temperature: of the Gumbel noise on the confidence, by which tokens are kept (4.5 in MaskGIT); a number
            or (start, end).
        guidance_schedule: how guidance rises with the steps, see :mod:`maskgen.decoding.guidance`.
        num_inference_steps, guidance_scale: the defaults of a pipeline with this scheduler.
        guidance_power: exponent of the guidance schedules ``power`` and ``cosine``.
        counting: how the schedule becomes numbers of tokens, see :mod:`maskgen.decoding.schedules`.
        order: which tokens are decided first, see :mod:`maskgen.decoding.orders`; ``critic`` needs a critic.
        roll: start order ``halton`` at a random point, another one for each row.
        confidence: what order ``confidence`` ranks: the ``probability`` of the sampled code or its ``logit`` (TiTok).
        choice_anneal: how `choice_temperature` changes with the steps, see
            :func:`maskgen.decoding.schedules.annealed`.
        temperature, temperature_anneal: of the distribution from which tokens are sampled.
        top_k, top_p: truncate that distribution; 0 and 1 keep all codes.
        remask, remask_eta: the variant of ReMDM's remasking and its strength in [0, 1].

    Raises:
        ValueError: a name is unknown or a number is out of range.
    """

    config_name = "scheduler_config.json"

    @register_to_config
    def __init__(
        self,
        mask_schedule: Schedule = "cosine",
        choice_temperature: Temperature = 4.5,
        guidance_schedule: Literal["constant", "linear", "cosine", "power"] = "constant",
        num_inference_steps: int = 12,
        guidance_scale: float = 1.0,
        guidance_power: float = 1.0,
        counting: Literal["maskgit", "halton", "halton_confidence", "halton_v1"] = "maskgit",
        order: Literal["confidence", "critic", "random", "halton", "raster"] = "confidence",
        roll: bool = False,
        confidence: Literal["probability", "logit"] = "probability",
        choice_anneal: Anneal = "linear",
        temperature: Temperature = 1.0,
        temperature_anneal: Anneal = "constant",
        top_k: int = 0,
        top_p: float = 1.0,
        remask: Literal["none", "cap", "rescale", "confidence"] = "none",
        remask_eta: float = 1.0,
    ):
        hidden_after(mask_schedule, 2, 2, counting)  # each of these calls checks its arguments
        annealed(choice_temperature, choice_anneal, 1)
        annealed(temperature, temperature_anneal, 1)
        guidance_scales(guidance_scale, guidance_schedule, 1, guidance_power)
        check_categorical(top_k, top_p, confidence)
        remasked(remask, remask_eta, [0], 1)
        choose(ORDERS, order, "order")

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read a saved configuration; one of an earlier version is translated, see :func:`upgraded`."""
        loaded = super().load_config(*args, **kwargs)
        return (upgraded(loaded[0]), *loaded[1:]) if isinstance(loaded, tuple) else upgraded(loaded)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **changes: Any) -> Any:
        """A scheduler with the settings of `config` and `changes`.

        Raises:
            ValueError: a change is not a setting of the scheduler.
        """
        settings = inspect.signature(cls.__init__).parameters
        for name in changes if not return_unused_kwargs else ():
            if name not in settings:
                renamed = new_name(cls, name)
                hint = f"it is now called {renamed!r}; " if renamed else nearest(name, settings)
                raise ValueError(f"unknown setting {name!r}: {hint}allowed: {', '.join(list(settings)[1:])}")
        return super().from_config(config, return_unused_kwargs, **changes)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MaskScheduler:
        """The settings of a published system (:data:`maskgen.decoding.presets.PRESETS`), with `changes`.

        Raises:
            ValueError: the name is unknown.
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
        sample_tokens: TokenSampler | None = None,
        noise: Noise | None = None,
        trace: Callable[[Trace], None] | None = None,
    ) -> Shaped[Tensor, "b n *d"]:
        """Call :func:`maskgen.decoding.loop.decode` with the saved settings; arguments that are not None override.

        Args:
            sample_tokens: a sampler for tokens other than codes; the settings `confidence`, `top_k` and `top_p` then
                have no effect.
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
            choice_temperature=c.choice_temperature,
            choice_anneal=c.choice_anneal,
            sample_tokens=sample_tokens or partial(categorical, top_k=c.top_k, top_p=c.top_p, confidence=c.confidence),
            temperature=c.temperature,
            temperature_anneal=c.temperature_anneal,
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


OLD_NAMES = {"temperature": "choice_temperature", "anneal": "choice_anneal"} | {
    "draw_temperature": "temperature", "draw_anneal": "temperature_anneal",
}  # fmt: skip


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration with the present names. A configuration of an earlier version is one that lacks
    ``choice_temperature``, which every present one has; in it ``temperature`` is the noise on the confidence."""
    if "choice_temperature" in config:
        return config
    return {OLD_NAMES.get(key, key): value for key, value in config.items()}
