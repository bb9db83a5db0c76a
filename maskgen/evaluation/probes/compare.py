"""What a probe's accuracy is to be compared with: raw pixels and networks with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from maskgen.evaluation.probes.features import Features
from maskgen.evaluation.probes.result import ProbeResult

Sides = tuple[Features, Features]  # of the training and of the test set


def controls(
    probe: Callable[[Features, Features], ProbeResult], pixels: Sides, networks: Mapping[str, Sides]
) -> dict[str, ProbeResult]:
    """The same probe of what has learnt nothing, by name.

    On small data a random network's features do nearly as well as a badly trained one's, and so may pixels.

    Args:
        probe: a protocol with its options, the same as the one compared (``functools.partial(sweep, steps=500)``).
        pixels: training and test set by :func:`.features.raw_pixels`.
        networks: name -> the features of the network untrained, extracted in the same way; two seeds are usual.

    Raises:
        ValueError: a network called "raw pixels".
    """
    if "raw pixels" in networks:
        raise ValueError("a network is called 'raw pixels', as the control without a network is; give another name")
    return {name: probe(*sides) for name, sides in {"raw pixels": pixels, **networks}.items()}


def gain(result: ProbeResult, compared: Mapping[str, ProbeResult]) -> tuple[float, str]:
    """Top-1 minus the best control's, in [-1, 1], and that control's name.

    Raises:
        ValueError: no controls, or one of another protocol or other sets of images.
    """
    if not compared:
        raise ValueError("nothing to compare with; make the controls by `controls`")
    for name, control in compared.items():
        for what, here, there in (
            ("protocol", result.protocol, control.protocol),
            *((key, result.counts.get(key), control.counts.get(key)) for key in ("train", "test", "classes")),
            *((key, result.settings.get(key), control.settings.get(key)) for key in ("steps", "epochs", "share")),
        ):
            if here != there:
                raise ValueError(f"control {name!r} has {what} {there}, the probe {here}; run both alike")
    best = max(compared, key=lambda name: compared[name].accuracy["top1"])
    return result.accuracy["top1"] - compared[best].accuracy["top1"], best
