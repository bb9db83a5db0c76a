"""A simulated world with actions: an environment of gymnasium, rendered on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from maskgen.data.pixels import fit


class Simulator:
    """An environment of gymnasium (the extra ``video``) with continuous actions, rendered as small images.

    A torque in [-2, 2] swings the pendulum (Pendulum-v1). Gymnasium renders the last torque as an arrow; the arrow is
    left out here, because it would show the action that a model receives as its input.

    Args:
        environment: its name in gymnasium.
        size: side of the images in pixels.
        repeat: number of steps for which an action is held, between two images.
        zoom: the images show the middle 1/zoom of the rendered image.
        options: options of the environment; ``{"g": 0.0}`` removes the gravity of the pendulum.

    Raises:
        ValueError: gymnasium is missing, it has no such environment, or the environment has no continuous actions.
    """

    def __init__(
        self,
        environment: str = "Pendulum-v1",
        size: int = 64,
        repeat: int = 2,
        zoom: float = 1.8,
        options: Mapping[str, float] | None = None,
    ) -> None:
        if size < 1 or repeat < 1 or zoom < 1:
            raise ValueError(f"size {size} and repeat {repeat} must be at least 1, zoom {zoom} at least 1.0")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no display needed
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import gymnasium
        except ImportError as error:
            raise ValueError("the simulator needs gymnasium: pip install 'maskgen[video]'") from error
        try:
            settings: dict[str, Any] = {"render_mode": "rgb_array", "max_episode_steps": -1, **(options or {})}
            self.world: Any = gymnasium.make(environment, **settings)
        except (gymnasium.error.Error, TypeError) as error:  # TypeError: no such option
            raise ValueError(
                f"gymnasium cannot make {environment!r} with {options or 'no options'}: {error}"
            ) from error
        space = self.world.action_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(f"{environment} has actions {space}; only continuous ones (Box) are supported")
        self.environment, self.size, self.repeat, self.zoom = environment, size, repeat, zoom
        self.low, self.high = space.low.astype(np.float32), space.high.astype(np.float32)

    def reset(self, seed: int) -> UInt8[np.ndarray, "s s 3"]:
        """Start a new episode and return its first image."""
        self.state, _ = self.world.reset(seed=seed)
        return self.image()

    def step(self, action: Float32[np.ndarray, " a"]) -> UInt8[np.ndarray, "s s 3"]:
        """Hold `action` (in [-1, 1], scaled to the range of the environment) for `repeat` steps and return the image.

        Raises:
            ValueError: the episode ended.
        """
        own = self.low + (np.clip(action, -1, 1) + 1) / 2 * (self.high - self.low)
        for _ in range(self.repeat):
            self.state, _, ended, _, _ = self.world.step(own)
            if ended:
                raise ValueError(f"{self.environment} ended within a video; choose an environment that does not end")
        return self.image()

    def image(self) -> UInt8[np.ndarray, "s s 3"]:
        """The image of the current state."""
        if hasattr(self.world.unwrapped, "last_u"):
            self.world.unwrapped.last_u = None  # the pendulum's arrow
        full = Image.fromarray(self.world.render())
        side = round(min(full.size) / self.zoom)
        left, top = (full.width - side) // 2, (full.height - side) // 2
        return np.asarray(fit(full.crop((left, top, left + side, top + side)), (self.size, self.size)))


def simulate(
    count: int,
    seed: int,
    frames: int = 16,
    environment: str = "Pendulum-v1",
    size: int = 64,
    repeat: int = 2,
    options: Mapping[str, float] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Videos with random actions, uniform in [-1, 1] of their range, and the facts of how they were made.

    Video i depends only on (seed, i).

    Returns:
        ``videos`` uint8 (n, t, s, s, 3); ``actions`` float32 (n, t, a): row k leads from frame k to frame k + 1;
        ``states`` float32 (n, t, s): the state of the environment at each frame, for tests of planning.

    Raises:
        ValueError: see :class:`Simulator`.
    """
    if count < 1 or frames < 2:
        raise ValueError(f"count is {count} and frames {frames}; give at least 1 video of 2 frames")
    world = Simulator(environment, size, repeat, options=options)
    videos, actions, states = [], [], []
    for i in range(count):
        generator = np.random.default_rng([seed, i])
        chosen = generator.uniform(-1, 1, (frames, len(world.low))).astype(np.float32)
        images, seen = [world.reset(int(generator.integers(2**31)))], [world.state]
        for action in chosen[:-1]:
            images.append(world.step(action))
            seen.append(world.state)
        videos.append(np.stack(images))
        actions.append(chosen)
        states.append(np.stack(seen).astype(np.float32))
    facts = {
        "made": f"gymnasium {environment} under random actions",
        "seed": seed,
        "options": dict(options or {}),
        "repeat": repeat,
        "zoom": world.zoom,
        "action_low": world.low.tolist(),
        "action_high": world.high.tolist(),
    }
    return {"videos": np.stack(videos), "actions": np.stack(actions), "states": np.stack(states)}, facts


def read_options(texts: Sequence[str]) -> dict[str, float]:
    """``key=number`` texts as options of :class:`Simulator`; ValueError for others."""
    found = {}
    for text in texts:
        key, _, number = text.partition("=")
        try:
            found[key] = float(number)
        except ValueError:
            raise ValueError(f"{text!r} is not an option; write key=number, as g=0") from None
    return found
