"""Tasks on videos as conditions in pixels (MAGVIT, Yu et al. 2023, arXiv:2212.05199, section 3.2 and appendix).

A condition is the video whose hidden pixels are replaced by padding, which depends on known pixels alone. Training
samples tasks from :data:`TASKS`; sampling uses the same padding by the name of the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maskgen.registry import Part, choose

BLACK = -1.0
Size = tuple[int, int, int]
Video = Float[Tensor, "b c T H W"]
Mask = Bool[Tensor, "T H W"]


def condition_video(task: str, pixels: Video, hidden: Mask) -> Video:
    """The condition of a task: known pixels are unchanged, and padding replaces the hidden ones.

    Prediction and outpainting repeat the edge of the known box in time and in space; if the known pixels are not a box,
    the padding is black. Interpolation blends linearly between the known frames. Inpainting and generation have black
    padding.

    Args:
        task: a name in :data:`PADDINGS`.
        pixels: float (b, c, T, H, W) in [-1, 1].
        hidden: bool (T, H, W), True = hidden.

    Raises:
        ValueError: the task is unknown, or an interpolation hides parts of frames.
    """
    return choose(PADDINGS, task, "task")(pixels, hidden.cpu())


def black(pixels: Video, hidden: Mask) -> Video:
    return torch.where(hidden.to(pixels.device), BLACK, pixels)


def edge(pixels: Video, hidden: Mask) -> Video:
    """Each hidden pixel takes the nearest one of the known box; black, if the known pixels are not a box."""
    known = ~hidden
    if not known.any():
        return black(pixels, hidden)
    axes = [known.any((1, 2)), known.any((0, 2)), known.any((0, 1))]
    spans = [(int(along.nonzero()[0]), int(along.nonzero()[-1])) for along in axes]
    if int(known.sum()) != prod(last - first + 1 for first, last in spans):
        return black(pixels, hidden)
    t, y, x = (torch.arange(len(along), device=pixels.device).clamp(*span) for along, span in zip(axes, spans))
    return pixels[:, :, t][:, :, :, y][..., x]


def blend(pixels: Video, hidden: Mask) -> Video:
    """Blend each frame linearly from the known frame before it to the one after it; the ends repeat the nearest one."""
    blind = hidden.flatten(1).all(1)
    if not torch.equal(hidden, blind[:, None, None].expand_as(hidden)) or blind.all():
        raise ValueError("interpolation hides whole frames between known ones; use inpainting for parts of frames")
    known, t = (~blind).nonzero()[:, 0], torch.arange(len(blind))
    after = torch.searchsorted(known, t).clamp(max=len(known) - 1)
    before = (torch.searchsorted(known, t, right=True) - 1).clamp(min=0)
    first, last = known[before], known[after]
    share = ((t - first) / (last - first).clamp(min=1)).clamp(0, 1).to(pixels)[:, None, None]
    mixed = torch.lerp(pixels[:, :, first.to(pixels.device)], pixels[:, :, last.to(pixels.device)], share)
    return torch.where(hidden.to(pixels.device), mixed, pixels)


PADDINGS = {"generation": black, "prediction": edge, "interpolation": blend, "outpainting": edge, "inpainting": black}


class Task:
    """A training task. A subclass defines which pixels are hidden; its `name` determines the padding and the prompt.

    Args:
        classes: the prompt includes the class, in a run with classes.
    """

    name: str

    def __init__(self, classes: bool = False):
        self.classes = classes

    @property
    def prompt(self) -> str:
        """The name of the prompt, see :class:`Prompts`."""
        return f"class_{self.name}" if self.classes else self.name

    def hidden(self, size: Size) -> Mask:
        """The mask of a video of `size` (T, H, W), True = hidden.

        Raises:
            ValueError: the task would hide nothing, or leave nothing known.
        """
        raise NotImplementedError


class Generation(Task):
    """Everything is hidden."""

    name = "generation"

    def hidden(self, size: Size) -> Mask:
        return torch.ones(size, dtype=torch.bool)


class Prediction(Task):
    """The first `frames` frames are known."""

    name = "prediction"

    def __init__(self, frames: int = 1, classes: bool = False):
        super().__init__(classes)
        self.frames = frames

    def hidden(self, size: Size) -> Mask:
        if not 0 < self.frames < size[0]:
            raise ValueError(
                f"task prediction: frames is {self.frames} and the video has {size[0]}; give 1 to {size[0] - 1}"
            )
        return (torch.arange(size[0]) >= self.frames)[:, None, None].expand(size)


class Interpolation(Task):
    """The first and the last `frames` frames are known."""

    name = "interpolation"

    def __init__(self, frames: int = 1, classes: bool = False):
        super().__init__(classes)
        self.frames = frames

    def hidden(self, size: Size) -> Mask:
        if not 0 < 2 * self.frames < size[0]:
            raise ValueError(
                f"task interpolation: frames is {self.frames} and the video has {size[0]}; give 1 to "
                f"{(size[0] - 1) // 2}"
            )
        t = torch.arange(size[0])
        return ((t >= self.frames) & (t < size[0] - self.frames))[:, None, None].expand(size)


class Outpainting(Task):
    """A region of half the side is known: a ``horizontal`` or ``vertical`` band, the ``central`` rectangle, or a
    vertical band that moves from left to right (``dynamic``)."""

    name = "outpainting"

    def __init__(
        self, region: Literal["horizontal", "vertical", "central", "dynamic"] = "central", classes: bool = False
    ):
        super().__init__(classes)
        self.region = region

    def hidden(self, size: Size) -> Mask:
        _, height, width = size
        rows, columns = _middle(height)[:, None], _middle(width)
        known = {
            "horizontal": rows,
            "vertical": columns,
            "central": rows & columns,
            "dynamic": _passing(size),
        }
        return ~known[self.region].expand(size)


class Inpainting(Task):
    """A rectangle of half the sides is hidden, in the middle (``central``) or moving to the right (``dynamic``)."""

    name = "inpainting"

    def __init__(self, region: Literal["central", "dynamic"] = "central", classes: bool = False):
        super().__init__(classes)
        self.region = region

    def hidden(self, size: Size) -> Mask:
        columns = _middle(size[2]) if self.region == "central" else _passing(size)
        return (_middle(size[1])[:, None] & columns).expand(size)


def _middle(n: int) -> Bool[Tensor, "n"]:
    """True from a quarter to three quarters of the side."""
    at = torch.arange(n)
    return (at >= n // 4) & (at < n * 3 // 4)


def _passing(size: Size) -> Bool[Tensor, "T 1 W"]:
    """True in a band of half the width, which is at the left in the first frame and at the right in the last."""
    frames, _, width = size
    start = torch.linspace(0, width // 2, frames).round().long()[:, None, None]
    return (torch.arange(width) >= start) & (torch.arange(width) < start + width // 2)


TASKS = {kind.name: kind for kind in (Generation, Prediction, Interpolation, Outpainting, Inpainting)}
TASK = Part(TASKS)


class Prompts:
    """The labels that stand for a task and, if the task has classes, for a class.

    A task without classes has one label. A task with classes has one label per class, and its name begins with
    ``class_``. Together they are the `num_classes` of the transformer, so that one token in context, or one modulation,
    is the prompt.

    Args:
        names: the names of the tasks, in the order of the labels; repeated names count once.
        classes: the number of classes.

    Raises:
        ValueError: there is no task, a task is unknown, or a task has classes in a run without classes.
    """

    def __init__(self, names: Sequence[str], classes: int = 0):
        self.names, self.classes = list(dict.fromkeys(names)), classes
        for name in self.names:
            choose(PADDINGS, name.removeprefix("class_"), "task")
        if not self.names or (classes == 0) == any(name.startswith("class_") for name in self.names):
            raise ValueError(
                f"tasks {', '.join(self.names) or 'none'} and {classes} classes: give one task or more, and "
                "conditional: true where, and only where, a task has classes: true"
            )
        sizes = [classes if name.startswith("class_") else 1 for name in self.names]
        self.first = {name: sum(sizes[:i]) for i, name in enumerate(self.names)}
        self.count = sum(sizes)

    def label(self, task: str, number: int | None = None) -> int:
        """The label of a task with class `number`, or of a task without a class.

        Raises:
            ValueError: the model was not trained on the task, or there is no such class.
        """
        name = task if number is None else f"class_{task}"
        if name not in self.first:
            raise ValueError(
                f"this model was not trained on {task} with{'out' if number is None else ''} a class; its tasks are "
                f"{', '.join(self.names)}"
            )
        if number is not None and not 0 <= number < self.classes:
            raise ValueError(f"class {number} is outside 0 to {self.classes - 1}")
        return self.first[name] + (number or 0)
