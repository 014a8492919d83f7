"""A folder of shadow models in use, by one process or by several that share its work and nothing else.

Each trains the groups of models that it has claimed, writes their scores, and adds to the sums whatever comes next in the order of the
models. So the sums have the same bytes whoever trained what, and everything trained is kept whoever is killed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..._files import write_once
from .claims import Claims, others_at_work, tidy
from .parts import Listing, Scores, first_name, listing, model_name, read_scores, steadily, write_scores
from .state import Shadows, refuse_difference

POLL, LONGEST_POLL = 0.05, 1.0  # seconds between two looks into the folder
SETTINGS = "shadows-settings.json"
Train = Callable[[Sequence[int]], Iterable[Scores]]
Show = Callable[[int, str], None]


class Folder:
    """The state of a run in a folder.

    Args:
        place: the folder, which is there.
        blank: makes a state without models.
        groups: models that are trained together, in order.
    """

    def __init__(self, place: Path, blank: Callable[[], Shadows], groups: Iterable[Sequence[int]]) -> None:
        self.place, self.blank = place, blank
        self._planned = [list(group) for group in groups]
        self.settings = blank().settings
        steadily(place, self._open)

    def _open(self, seen: Listing) -> None:
        first, self.others = Shadows.read_sums(seen, self._check)
        elsewhere = {index for part in self.others for index in part.index.tolist()}
        left = [[index for index in group if index not in elsewhere] for group in self._planned]
        self.groups = [group for group in left if group]
        self.order = [index for group in self.groups for index in group]
        self.state, self._written = self.blank(), 0
        if first is not None:
            self._adopt(first)

    def _check(self, path: Path, settings: dict[str, Any]) -> None:
        refuse_difference(f"out, {path}", self.settings, settings)

    def _adopt(self, first: Shadows) -> None:
        if first.index.tolist() != self.order[: first.n_models]:
            raise ValueError(
                f"out: {self.place} holds sums of models {first.index.tolist()!r:.100}, which are not the first of those that are missing "
                "elsewhere in it; was a file removed from it? Choose another folder"
            )
        self.state, self._written = first, first.n_models

    # ------------------------------------------------------------------ what is there

    def missing(self) -> list[int]:
        """The numbers of the groups of which a model isn't there yet."""
        there = self._there(listing(self.place))
        return [number for number, group in enumerate(self.groups) if not there.issuperset(group)]

    def count(self) -> int:
        """How many models there are."""
        return len(self._there(listing(self.place))) + sum(part.n_models for part in self.others)

    def _there(self, seen: Listing) -> set[int]:
        return {*self.order[: max(seen.latest, self.state.n_models)], *seen.models}

    # ------------------------------------------------------------------ what is new

    def settle(self) -> None:
        """Says what is being trained here, before there is a model to say it; refuses a folder where something else is, or was trained
        since it was opened.

        Raises:
            ValueError: that.
        """
        path, said, written = self.place / SETTINGS, json.dumps(self.settings, sort_keys=True), False
        with contextlib.suppress(FileNotFoundError):  # another process finishes right now: its models say the same
            written = write_once(path, said)
            self._check(path, json.loads(path.read_text()))
        try:
            steadily(self.place, self._add_up)
        except ValueError:
            if written:
                path.unlink(missing_ok=True)
            raise

    def put(self, group: Iterable[Scores]) -> None:
        """Writes models' scores as they come, and then adds to the sums whatever comes next in order."""
        for scores in group:
            index = scores.answers.model
            try:
                write_scores(self.place / model_name(index), scores)
            except FileNotFoundError:  # swept away by a process that has finished all, this model too
                if index not in self._there(listing(self.place)):
                    raise
        steadily(self.place, self._add_up)

    def _add_up(self, seen: Listing) -> None:
        if seen.latest > self.state.n_models:
            first = Shadows.read(seen.firsts[seen.latest])
            self._check(seen.firsts[seen.latest], first.settings)
            self._adopt(first)
        for index in self.order[self.state.n_models :]:
            if index not in seen.models:
                break
            scores = read_scores(seen.models[index])
            self._check(seen.models[index], scores.made.settings)
            self.state.take(scores)
        count = self.state.n_models
        if count > max(self._written, seen.latest):
            self.state.write(self.place / first_name(count), once=True)
            self._written = count
        self._remove(seen)

    def _remove(self, seen: Listing) -> None:
        """Files whose models are in the sums that were written last."""
        count = self.state.n_models
        summed = set(self.order[:count])
        for path in [
            *(path for models, path in seen.firsts.items() if models < count),
            *(path for index, path in seen.models.items() if index in summed),
        ]:
            path.unlink(missing_ok=True)

    def whole(self) -> Shadows:
        """All models, once none is missing."""
        steadily(self.place, self._add_up)
        self._sweep()
        whole, *others = [self.state, *self.others] if self.order else self.others
        for part in others:
            whole.merge(part)
        return whole

    def leave(self) -> None:
        """After an error: a folder in which nothing was trained yet is free for something else."""
        with contextlib.suppress(OSError):
            if not any(listing(self.place)) and not others_at_work(self.place):
                self._sweep()

    def _sweep(self) -> None:
        """Removes all that isn't state: claims, settings, and what the killed have left half written."""
        tidy(self.place)
        for path in [self.place / SETTINGS, *self.place.glob(".shadows-*")]:
            path.unlink(missing_ok=True)


def share(folder: Folder, train: Train, show: Show) -> Shadows:
    """Trains what no other process is at until everything is there.

    Args:
        folder: of the run.
        train: trains the models with these numbers.
        show: is told how many models there are, and what is waited for; what it raises ends the work.
    """
    if not folder.missing():
        return folder.whole()
    try:
        with Claims(folder.place) as claims:
            folder.settle()
            _work(folder, claims, train, show)
            return folder.whole()
    except BaseException:
        folder.leave()
        raise


def _work(folder: Folder, claims: Claims, train: Train, show: Show) -> None:
    pause = POLL
    while missing := folder.missing():
        number = claims.take(missing)
        if number is None:
            show(folder.count(), f"waiting for {claims.waits_for or 'other processes'}")
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_POLL)
        elif number in folder.missing():  # it may have been finished before it was claimed
            show(folder.count(), "")
            began, pause = time.monotonic(), POLL
            folder.put(train(folder.groups[number]))
            claims.longest = max(claims.longest, time.monotonic() - began)
