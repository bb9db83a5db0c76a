"""The decode settings of published systems, as options of MaskScheduler (docs/decoding.md)."""

from __future__ import annotations

from typing import Any

TITOK = {
    "mask_schedule": "arccos",
    "confidence": "logit",
    "temperature_anneal": "linear",
    "num_inference_steps": 8,
}

PRESETS: dict[str, dict[str, Any]] = {
    "maskgit": {"num_inference_steps": 8},
    "mage": {"choice_temperature": 6.0, "num_inference_steps": 20},
    "amused": {"choice_temperature": 2.0, "choice_anneal": "linspace", "guidance_scale": 10.0},
    "titok-l32": {
        **TITOK, "choice_temperature": 9.5, "temperature": 9.5, "guidance_schedule": "power", "guidance_scale": 5.5,
    },
    "titok-b64": {
        **TITOK, "choice_temperature": 11.0, "temperature": 11.0, "guidance_schedule": "power", "guidance_scale": 4.0,
    },
    "titok-s128": {
        **TITOK, "choice_temperature": 2.8, "temperature": 2.8, "guidance_schedule": "cosine", "guidance_scale": 6.9,
        "guidance_power": 3.0, "num_inference_steps": 64,
    },
    "maskbit-14bit": {
        "mask_schedule": "arccos", "choice_temperature": 7.8, "guidance_schedule": "cosine", "guidance_scale": 8.1,
        "guidance_power": 3.0, "num_inference_steps": 64,
    },
    "halton": {
        "mask_schedule": "arccos", "counting": "halton", "order": "halton", "roll": True,
        "temperature": [1.0, 1 / 1.2], "temperature_anneal": "reciprocal", "guidance_scale": 3.0,
        "num_inference_steps": 32,
    },
}  # fmt: skip
