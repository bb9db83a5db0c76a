"""Tasks on videos as conditions in pixels: what is known, and what stands in the stead of the rest (MAGVIT, Yu et al.
2023, arXiv:2212.05199, section 3.2 and appendix).

A condition is the video with its hidden pixels replaced by padding, which is made of known pixels alone. Training draws
tasks from :data:`TASKS`; in use the same padding goes by the task's name.
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
    """The condition of a task: known pixels as they are, and its padding where `hidden`.

    Prediction and outpainting repeat the edge of the known box, in time and in space (what is known and is no box has
    black around it); interpolation blends linearly between the known frames; inpainting and generation have black.

    Args:
        task: name in :data:`PADDINGS`.
        pixels: in [-1, 1].
        hidden: True = not to be seen.

    Raises:
        ValueError: an unknown task; interpolation of frames that are hidden in part.
    """
    return choose(PADDINGS, task, "task")(pixels, hidden.cpu())


def black(pixels: Video, hidden: Mask) -> Video:
    return torch.where(hidden.to(pixels.device), BLACK, pixels)


def edge(pixels: Video, hidden: Mask) -> Video:
    """Each place takes the nearest pixel of the known box; black, where what is known is none."""
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
    """Each frame lies on the line from the last known one to the next; at the ends the nearest is repeated."""
    blind = hidden.flatten(1).all(1)
    if not torch.equal(hidden, blind[:, None, None].expand_as(hidden)) or blind.all():
        raise ValueError("interpolation hides whole frames between known ones; take inpainting for parts of frames")
    known, t = (~blind).nonzero()[:, 0], torch.arange(len(blind))
    after = torch.searchsorted(known, t).clamp(max=len(known) - 1)
    before = (torch.searchsorted(known, t, right=True) - 1).clamp(min=0)
    first, last = known[before], known[after]
    share = ((t - first) / (last - first).clamp(min=1)).clamp(0, 1).to(pixels)[:, None, None]
    mixed = torch.lerp(pixels[:, :, first.to(pixels.device)], pixels[:, :, last.to(pixels.device)], share)
    return torch.where(hidden.to(pixels.device), mixed, pixels)


PADDINGS = {"generation": black, "prediction": edge, "interpolation": blend, "outpainting": edge, "inpainting": black}


class Task:
    """A task of training: a subclass says which pixels it hides, and its `name` which padding and prompt it has.

    Args:
        classes: tell the class too, in a run with classes.
    """

    name: str

    def __init__(self, classes: bool = False):
        self.classes = classes

    @property
    def prompt(self) -> str:
        """What the transformer is told, see :class:`Prompts`."""
        return f"class_{self.name}" if self.classes else self.name

    def hidden(self, size: Size) -> Mask:
        """What is to be made of a video (T, H, W), True = hidden.

        Raises:
            ValueError: it hides nothing, or leaves nothing to start from.
        """
        raise NotImplementedError


class Generation(Task):
    """All is hidden."""

    name = "generation"

    def hidden(self, size: Size) -> Mask:
        return torch.ones(size, dtype=torch.bool)


class Prediction(Task):
    """The first `frames` are known."""

    name = "prediction"

    def __init__(self, frames: int = 1, classes: bool = False):
        super().__init__(classes)
        self.frames = frames

    def hidden(self, size: Size) -> Mask:
        if not 0 < self.frames < size[0]:
            raise ValueError(f"task prediction: frames {self.frames} of {size[0]}; give 1 to {size[0] - 1}")
        return (torch.arange(size[0]) >= self.frames)[:, None, None].expand(size)


class Interpolation(Task):
    """The first and the last `frames` are known."""

    name = "interpolation"

    def __init__(self, frames: int = 1, classes: bool = False):
        super().__init__(classes)
        self.frames = frames

    def hidden(self, size: Size) -> Mask:
        if not 0 < 2 * self.frames < size[0]:
            raise ValueError(
                f"task interpolation: frames {self.frames} at each end of {size[0]}; give 1 to {(size[0] - 1) // 2}"
            )
        t = torch.arange(size[0])
        return ((t >= self.frames) & (t < size[0] - self.frames))[:, None, None].expand(size)


class Outpainting(Task):
    """A part of half the side is known: a ``horizontal`` band, a ``vertical`` one, the ``central`` rectangle, or
    (``dynamic``) a vertical band that goes from left to right."""

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
    """The ``central`` rectangle of half the sides is hidden; ``dynamic``: it goes from left to right."""

    name = "inpainting"

    def __init__(self, region: Literal["central", "dynamic"] = "central", classes: bool = False):
        super().__init__(classes)
        self.region = region

    def hidden(self, size: Size) -> Mask:
        columns = _middle(size[2]) if self.region == "central" else _passing(size)
        return (_middle(size[1])[:, None] & columns).expand(size)


def _middle(n: int) -> Bool[Tensor, "n"]:
    """From a quarter to three quarters."""
    at = torch.arange(n)
    return (at >= n // 4) & (at < n * 3 // 4)


def _passing(size: Size) -> Bool[Tensor, "T 1 W"]:
    """A band of half the width, at the left in the first frame and at the right in the last."""
    frames, _, width = size
    start = torch.linspace(0, width // 2, frames).round().long()[:, None, None]
    return (torch.arange(width) >= start) & (torch.arange(width) < start + width // 2)


TASKS = {kind.name: kind for kind in (Generation, Prediction, Interpolation, Outpainting, Inpainting)}
TASK = Part(TASKS)


class Prompts:
    """Labels that tell a transformer its task and, where the task takes one, the class.

    A task without classes has one label, one with classes (its name begins with ``class_``) a label a class. They are
    the transformer's `num_classes`, so that one token in context, or one modulation, is the prompt.

    Args:
        names: of the tasks, in the order of the labels; repeated ones count once.
        classes: how many there are.

    Raises:
        ValueError: an unknown task, none, or a task with classes where there are none.
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
        """Of a task, and class `number` or none.

        Raises:
            ValueError: not a task of this model; no such class.
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
