"""What earlier requests made the model forget, and data that would bring it back.

Classes are told by their labels. Of single samples the journal keeps hashes alone, so it tells them by their content.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._data import Source
from .._hashes import set_hashes
from .._overlap import allowed, twins
from .._random import own_randomness
from .._text import visible
from ..auditing.shadow.design import augments, digests
from .store import DIGESTS, FORGET, Done, Store


def sample_hashes(data: Source) -> list[bytes]:
    """The sha256 of each sample, in the set's order.

    Raises:
        TypeError: samples without plain bytes, or with other bytes at each reading (random augmentation).
    """
    if augments(data):
        raise TypeError("its samples are others at each reading (random augmentation), so no hash can name them")
    with own_randomness(0):
        return list(set_hashes(data))


def prints(found: Tensor) -> Tensor:
    """int64[N]: eight bytes of each of a set's digests, enough to tell samples apart."""
    return found[:, :8].contiguous().view(torch.int64)[:, 0]


def of_classes(data: Source, classes: list[int]) -> Source | None:
    """A set's samples of these classes (of none named: the set); ``None`` where it holds none."""
    if not classes:
        return data
    inside = torch.isin(data.labels(), torch.tensor(classes)).nonzero()[:, 0]
    return data.subset(inside) if len(inside) else None


@dataclass
class Past:
    """Which request first forgot each class, and the forgotten samples of each request by their :func:`prints`."""

    classes: dict[int, str]
    samples: dict[str, Tensor]

    @classmethod
    def of(cls, store: Store, done: Iterable[Done]) -> Past:
        past = cls({}, {})
        for one in done:
            for c in one.request["classes"]:
                past.classes.setdefault(int(c), one.id)
            if not one.request["classes"]:
                past.samples[one.id] = prints(store.tensors(one, FORGET)[DIGESTS])
        return past

    def with_(self, classes: list[int], id: str) -> Past:
        """With the classes of one request more."""
        return Past({**dict.fromkeys(classes, id), **self.classes}, self.samples)

    def gone(self, data: Source) -> Tensor:
        """bool[N]: which samples of a set are of classes forgotten so far."""
        if not self.classes:
            return torch.zeros(len(data), dtype=torch.bool)
        return torch.isin(data.labels(), torch.tensor(list(self.classes), dtype=torch.int64))

    def unseen(self, data: Source | None) -> Source | None:
        """A set that only measures, without those classes: the model doesn't answer them as it answers what it never saw."""
        if data is None or not bool((gone := self.gone(data)).any()):
            return data
        return None if bool(gone.all()) else data.subset((~gone).nonzero()[:, 0])

    def clean(self, data: Source, *, drop: bool, by_content: bool) -> tuple[Source, dict[str, Any]]:
        """A set to train on, without what was forgotten; and what was found in it, for the receipt.

        Raises:
            ValueError: it holds such samples and ``drop`` isn't set.
        """
        out = self.gone(data)
        found: dict[str, Any] = {}
        if bool(out.any()):
            if not drop:
                held = {c: int((data.labels() == c).sum()) for c in self.classes}
                which = ", ".join(f"{n} of class {c} (request {visible(self.classes[c])!r})" for c, n in held.items() if n)
                raise ValueError(
                    f"{data.name}: it holds samples of classes that the journal forgot: {which}. Training on them would bring them back. "
                    "Take them out, or pass drop_forget=True to have them left out here"
                )
            found["of_forgotten_classes"] = int(out.sum())
        if self.samples and not by_content:
            found["forgotten_samples"] = "not looked for: check_overlap=False"
        elif self.samples:
            shared, about = self._shared(data, drop)
            out, found["forgotten_samples"] = out | shared, about
        if bool(out.all()):
            raise ValueError(f"{data.name}: all its {len(data)} samples were forgotten by earlier requests; accepted is a set of others")
        return (data.subset((~out).nonzero()[:, 0]) if bool(out.any()) else data), found

    def _shared(self, data: Source, drop: bool) -> tuple[Tensor, dict[str, Any]]:
        """bool[N]: which samples are to be left out as their content was forgotten; refused by the rule of ``_overlap.py``."""
        try:
            here = prints(digests(sample_hashes(data)))
        except TypeError as error:
            raise TypeError(
                f"{data.name}: {error}. So samples forgotten earlier can't be found in it. Give it as it is before augmentation, or pass "
                "check_overlap=False if you know that none of them is in it"
            ) from error
        counts = {id: int(torch.isin(there, here).sum()) for id, there in self.samples.items()}
        share = twins(here)
        limits = {id: allowed(len(there), share) for id, there in self.samples.items()}
        if not drop and (over := [id for id, n in counts.items() if n > limits[id]]):
            which = ", ".join(f"{counts[id]} of the {len(self.samples[id])} of request {visible(id)!r}" for id in over)
            raise ValueError(
                f"{data.name}: it holds samples that the journal forgot (same contents): {which}. Training on them would bring them back. "
                "Take them out, pass drop_forget=True to have them left out here, or check_overlap=False if they are different samples "
                "that look the same"
            )
        forgotten = torch.cat(list(self.samples.values()))
        left_out = torch.isin(here, forgotten) if drop else torch.zeros(len(here), dtype=torch.bool)
        return left_out, {"shared": counts, "allowed": limits, "left_out": int(left_out.sum())}
