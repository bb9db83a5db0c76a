"""Files that cannot be read are skipped, logged by name and counted."""

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
    """A video cannot be decoded; the message gives its name and the reason."""


class Unreadable:
    """Counts the files of a data set that cannot be read, over the whole run and all DataLoader workers.

    Each is logged once by name; more than `limit` in total are an error that lists them.

    Args:
        where: the path of the data set, for messages.
        what: the kind of its files, "image" or "video".
        limit: how many may be skipped; the ``max_unreadable`` of a data set.
    """

    def __init__(self, where: Path, what: str, limit: int) -> None:
        self.where, self.what, self.limit = where, what, limit
        self.reasons: dict[str, str] = {}  # name -> reason: those that this process has met

    def leave_out(self, name: str, problem: str) -> None:
        """Leave `name` out while the data set is constructed.

        Raises:
            ValueError: more than `limit` files are unreadable.
        """
        self._note(name, problem, len(self.reasons) + 1)

    def watch(self, names: Sequence[str], paths: Sequence[str]) -> None:
        """Begin to count failures of these files of the data set; messages give their `paths`."""
        self._names, self._paths, self._left_out = names, paths, len(self.reasons)
        # In shared memory, so that DataLoader workers and the workers of later epochs see each other's failures.
        self._failed = torch.zeros(len(names), dtype=torch.bool).share_memory_()

    def first(self, start: int, read: Callable[[int], Item]) -> Item:
        """`read(i)` for the first readable i from `start` on, then from 0; it is the same i each time.

        Raises:
            ValueError: no file is readable, or more than `limit` are unreadable.
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
        """Log the `count`-th unreadable file of the run; ValueError beyond the limit."""
        self.reasons[name] = problem
        log.warning("unreadable %s skipped (%d so far): %s", self.what, count, problem)
        if count > self.limit:
            problems = list(self.reasons.values())
            if count > len(problems):  # other workers met the rest and logged the reasons
                others = self._failed.nonzero().flatten().tolist()
                problems += [self._paths[i] for i in others if self._names[i] not in self.reasons]
            raise ValueError(
                f"{count} unreadable {self.what}s in {self.where}, more than max_unreadable={self.limit}; "
                "remove or replace them, or raise max_unreadable:\n  " + "\n  ".join(problems)
            )
