"""What published systems decode with, in our words: options of MaskScheduler, by name (docs/decoding.md)."""

from __future__ import annotations

from typing import Any

TITOK = {
    "mask_schedule": "arccos",
    "confidence": "logit",
    "draw_anneal": "linear",
    "num_inference_steps": 8,
}

PRESETS: dict[str, dict[str, Any]] = {
    "maskgit": {"num_inference_steps": 8},
    "mage": {"temperature": 6.0, "num_inference_steps": 20},
    "amused": {"temperature": 2.0, "anneal": "linspace", "guidance_scale": 10.0},
    "titok-l32": {
        **TITOK, "temperature": 9.5, "draw_temperature": 9.5, "guidance_schedule": "power", "guidance_scale": 5.5,
    },
    "titok-b64": {
        **TITOK, "temperature": 11.0, "draw_temperature": 11.0, "guidance_schedule": "power", "guidance_scale": 4.0,
    },
    "titok-s128": {
        **TITOK, "temperature": 2.8, "draw_temperature": 2.8, "guidance_schedule": "cosine", "guidance_scale": 6.9,
        "guidance_power": 3.0, "num_inference_steps": 64,
    },
    "maskbit-14bit": {
        "mask_schedule": "arccos", "temperature": 7.8, "guidance_schedule": "cosine", "guidance_scale": 8.1,
        "guidance_power": 3.0, "num_inference_steps": 64,
    },
    "halton": {
        "mask_schedule": "arccos", "counting": "halton", "order": "halton", "roll": True,
        "draw_temperature": [1.0, 1 / 1.2], "draw_anneal": "reciprocal", "guidance_scale": 3.0,
        "num_inference_steps": 32,
    },
}  # fmt: skip
