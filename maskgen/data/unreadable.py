"""Files that cannot be read: passed over, named and counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch

from maskgen.data.pixels import UnreadableImage

log = logging.getLogger(__name__)
Item = TypeVar("Item")


class UnreadableVideo(ValueError):
    """A video which cannot be decoded; the message names it and says why."""


class Unreadable:
    """Which files of a data set cannot be read, over the whole run and all DataLoader workers.

    Each is logged once by name and counted; more than `limit` altogether is an error that lists them.

    Args:
        where: the data set's place, for the message.
        what: its files: "image" or "video".
        limit: how many may be passed over; a data set's ``max_unreadable``.
    """

    def __init__(self, where: Path, what: str, limit: int) -> None:
        self.where, self.what, self.limit = where, what, limit
        self.reasons: dict[str, str] = {}  # name -> reason: those met in this process

    def leave_out(self, name: str, problem: str) -> None:
        """`name` is not read when the data set is made.

        Raises:
            ValueError: one too many.
        """
        self._note(name, problem, len(self.reasons) + 1)

    def watch(self, names: Sequence[str], places: Sequence[str]) -> None:
        """These are the data set's; `places` tell a user where each is."""
        self._names, self._places, self._left_out = names, places, len(self.reasons)
        # In shared memory: DataLoader workers see each other's, and every later epoch's workers inherit it.
        self._failed = torch.zeros(len(names), dtype=torch.bool).share_memory_()

    def first(self, start: int, read: Callable[[int], Item]) -> Item:
        """`read(i)` of the first readable i from `start` on, and then from 0: the same at every reading.

        Raises:
            ValueError: none is, or one too many is not.
        """
        count = len(self._names)
        for i in chain(range(start, count), range(start)):
            if self._failed[i]:
                continue
            try:
                return read(i)
            except (UnreadableImage, UnreadableVideo) as error:
                self._failed[i] = True
                self._note(self._names[i], str(error), self._left_out + int(self._failed.sum()))
        raise ValueError(f"none of the {count} {self.what}s in {self.where} can be read")

    def _note(self, name: str, problem: str, count: int) -> None:
        """Log the `count`-th of the run; ValueError past the limit."""
        self.reasons[name] = problem
        log.warning("unreadable %s passed over (%d so far): %s", self.what, count, problem)
        if count > self.limit:
            problems = list(self.reasons.values())
            if count > len(problems):  # the rest were met by other workers; their reasons are in the log
                others = self._failed.nonzero().flatten().tolist()
                problems += [self._places[i] for i in others if self._names[i] not in self.reasons]
            raise ValueError(
                f"{count} unreadable {self.what}s in {self.where}, more than max_unreadable={self.limit}; "
                "remove or replace them, or raise max_unreadable:\n  " + "\n  ".join(problems)
            )
