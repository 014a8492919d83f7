"""Calls that several ranks make together: compared at the start and at the end, and no waiting for the dead.

Every rank of a DDP or FSDP2 model works on a whole copy with the same data and seed, and those that share shadow models out do it through a
folder, so the ranks needn't talk while they work. What they tell each other (what they were given, what came out, why one of them stopped)
goes through the process group's store, by polling: a collective would wait for a rank that has left until the group's timeout, half an hour
by default.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DistributedSampler

from . import _unwrapped
from ._data import Source, source
from ._hashes import sample_hashes
from ._labels import CLASSES, Reading
from ._random import own_randomness
from ._weights import fingerprint

BEAT = 1.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one, after which a rank counts as dead
LINGER = 3.0  # seconds that a failure takes longer on the first rank
POLL = 0.02
OTHER_BYTES = "The same work gave other bytes: do processors, numbers of threads or versions differ?"
COMPARED = 256  # samples of a set that is read one by one, whose bytes are compared

MODEL_AS_IT_WAS = "so this rank stops too, and its model is as it was"
ALL_THAT_HOLD_IT = "Every rank that holds the model must make the call. To work on one rank alone, pass a plain model (DDP: model.module)"

_calls: dict[tuple[int, ...], int] = {}  # how many calls these ranks have made together


class RankError(RuntimeError):
    """Another rank stopped, died, or did something else."""


class Ranks:
    """The ranks that make one call together. A context: what stops this rank inside of it is told to the others.

    Args:
        call, ranks: its name, and theirs in the default process group.
        stops: what another rank's end means for this one.
        required: who must make the call.
    """

    def __init__(self, call: str, ranks: list[int], *, stops: str = MODEL_AS_IT_WAS, required: str = ALL_THAT_HOLD_IT) -> None:
        import torch.distributed as dist

        self.call, self.ranks, self.rank, self.stops, self.required = call, ranks, dist.get_rank(), stops, required
        self.store: Any = dist.distributed_c10d._get_default_store()
        self.timeout = _timeout()
        number = _calls[tuple(ranks)] = _calls.get(tuple(ranks), -1) + 1
        group = hashlib.sha256(repr(ranks).encode()).hexdigest()[:12]
        self.prefix = f"fastforget/{group}/{number}"
        self._seen: dict[int, tuple[bytes | None, float]] = {}  # each one's last sign of life, and when it was seen first
        self._checked = time.monotonic()
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="fastforget-ranks", daemon=True)

    @property
    def first(self) -> bool:
        return self.rank == self.ranks[0]

    def __enter__(self) -> Ranks:
        self._beats.start()
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if error is None:
            with contextlib.suppress(Exception):  # the ranks have agreed: nothing that happens now changes that
                self.store.set(self._key("end", self.rank), "")
                for rank in self.ranks if self.first else ():  # the first one may keep the store, which the others still read
                    self._await("end", rank)
        self._ended.set()
        self._beats.join()
        if error is not None:
            with contextlib.suppress(Exception):  # the store may be what has failed
                self.store.set(self._key("failed", self.rank), f"{type(error).__name__}: {error}"[:2000])
                self._linger()

    def _linger(self) -> None:
        """The first rank may keep the store: before it goes, the others read why."""
        until = time.monotonic() + LINGER
        others = [rank for rank in self.ranks if rank != self.rank] if self.first else []
        while others and time.monotonic() < until:
            others = [rank for rank in others if not self.store.check([self._key("failed", rank)])]
            time.sleep(POLL)

    def _key(self, what: str, rank: int) -> str:
        return f"{self.prefix}/{what}/{rank}"

    def _beat(self) -> None:
        count = 0
        while True:
            try:
                self.store.set(self._key("beat", self.rank), str(count))
            except Exception:
                return  # without a store the main thread finds out by itself
            count += 1
            if self._ended.wait(BEAT):
                return

    def exchange(self, what: str, value: Any) -> list[Any]:
        """What each rank says, in the order of the ranks.

        Raises:
            RankError: one of them stopped, gave no sign of life for 30 s, or hasn't come within the process group's timeout.
        """
        try:
            self.store.set(self._key(what, self.rank), pickle.dumps(value))
            for rank in self.ranks:
                self._await(what, rank)
            return [pickle.loads(self.store.get(self._key(what, rank))) for rank in self.ranks]
        except torch.distributed.DistError as error:
            raise RankError(f"{self.call}: the process that keeps the ranks' store is gone ({error})") from error

    def check(self) -> None:
        """Looks, at most once a second, whether the others are at work; between exchanges, where nothing else would show it.

        Raises:
            RankError: one of them stopped, or gave no sign of life for 30 s.
        """
        if time.monotonic() - self._checked < BEAT:
            return
        self._checked = time.monotonic()
        try:
            self._look_for_failures()
            for rank in self.ranks:
                self._look_for_life(rank)
        except torch.distributed.DistError as error:
            raise RankError(f"{self.call}: the process that keeps the ranks' store is gone ({error})") from error

    def _look_for_failures(self) -> None:
        for other in self.ranks:
            if self.store.check([self._key("failed", other)]):
                reason = self.store.get(self._key("failed", other)).decode()
                raise RankError(f"{self.call}: rank {other} stopped ({reason}); {self.stops}")

    def _look_for_life(self, rank: int) -> bool:
        """Whether a rank has come to the call at all."""
        now = time.monotonic()
        latest = self.store.get(self._key("beat", rank)) if self.store.check([self._key("beat", rank)]) else None
        beat, since = self._seen.get(rank, (None, now))
        if latest != beat:
            beat, since = latest, now
        self._seen[rank] = (beat, since)
        if beat is not None and now - since > SILENCE:
            raise RankError(
                f"{self.call}: rank {rank} has given no sign of life for {SILENCE:.0f} s (killed, stopped, or its machine is gone); "
                f"{self.stops}"
            )
        return beat is not None

    def _await(self, what: str, rank: int) -> None:
        began, pause = time.monotonic(), POLL
        while not self.store.check([self._key(what, rank)]):
            self._look_for_failures()
            state = "is still at work" if self._look_for_life(rank) else "hasn't begun the call"
            if time.monotonic() - began > self.timeout:
                late = f"after {self.timeout:.0f} s, the process group's timeout"
                raise RankError(f"{self.call}: rank {rank} {state} {late}. {self.required}")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def agree(self, what: str, value: Any, advice: str) -> None:
        """Raises:
        RankError: the ranks' values differ.
        """
        values = self.exchange(what, value)
        for rank, other in zip(self.ranks, values, strict=True):
            if other != values[0]:
                raise RankError(
                    f"{self.call}: {what} differs: rank {self.ranks[0]} has {values[0]!r:.200}, rank {rank} has {other!r:.200}. {advice}"
                )

    def options(self, **options: Any) -> None:
        """Refuses a call that the ranks don't make alike."""
        said = self.exchange("options", {"call": self.call} | {name: _said(value) for name, value in options.items()})
        for rank, other in zip(self.ranks, said, strict=True):
            for name in said[0].keys() | other.keys():
                if said[0].get(name) != other.get(name):
                    raise RankError(
                        f"{self.call}: {name}: rank {self.ranks[0]} was given {said[0].get(name)}, rank {rank} {other.get(name)}; accepted "
                        "is the same on every rank"
                    )

    def models(self, models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Plain copies of those that ranks hold together, the others as they are; all with the same weights on each rank."""
        with torch.inference_mode(False):
            made = {name: _unwrapped.plain_copy(model) if _unwrapped.is_shared(model) else model for name, model in models.items()}
        for name, model in made.items():
            advice = "Make them equal first: DDP does so for parameters when it is made, and for buffers in each forward pass"
            self.agree(f"{name}'s weights", fingerprint(model), advice)
        return made

    def sets(
        self, given: Mapping[str, Any], *, unpack: Any = None, batch_size: int | None = None, reading: Reading = CLASSES
    ) -> dict[str, Source]:
        """The sets as every rank sees them: of loaders that show each rank a part of one data set (DistributedSampler) the union.

        Raises:
            RankError: ranks were given other data.
        """
        how: dict[str, Any] = {"unpack": unpack, "batch_size": batch_size, "reading": reading}
        own = {name: source(value, name=name, **how) for name, value in given.items() if value is not None}
        said = self.exchange("sets", {name: (len(s.samples), _contents(s), s.indices) for name, s in own.items()})
        shared: dict[str, Source] = {}
        for name, mine in own.items():
            shown = []
            for rank, other in zip(self.ranks, said, strict=True):
                if name not in other or name not in said[0] or other[name][:2] != said[0][name][:2]:
                    counts = [f"{one[name][0]} samples" if name in one else "none" for one in (other, said[0])]
                    raise RankError(
                        f"{self.call}: {name}: rank {rank} was given other data than rank {self.ranks[0]} ({counts[0]}; there "
                        f"{counts[1]}); accepted is the same set on every rank, or a DataLoader over the same Dataset with a "
                        "DistributedSampler, whose parts are put together. Pass the whole set on each rank"
                    )
                shown.append(torch.arange(len(mine.samples)) if other[name][2] is None else other[name][2])
            # in the data set's order where parts are put together, also of one rank: the result doesn't depend on their number
            parted = isinstance(getattr(given[name], "sampler", None), DistributedSampler)
            equal = all(torch.equal(one, shown[0]) for one in shown)
            union = shown[0] if equal and not parted else torch.cat(shown).unique()
            whole = torch.equal(union, torch.arange(len(mine.samples)))
            shared[name] = Source(
                mine.samples, name=name, batch_size=mine.batch_size, indices=None if whole else union, longest=mine.longest
            )
        missing = {name for other in said for name in other} - own.keys()
        if missing:
            raise RankError(f"{self.call}: {sorted(missing)[0]}: given on another rank but not here; accepted is the same on every rank")
        return shared


def _timeout() -> float:
    """The process group's, as the user set it."""
    import torch.distributed as dist

    group: Any = dist.distributed_c10d._get_default_group()
    for device in ("cpu", "cuda"):
        with contextlib.suppress(Exception):
            return float(group._get_backend(torch.device(device)).options._timeout.total_seconds())
    return dist.distributed_c10d.default_pg_timeout.total_seconds()


def _said(value: Any) -> str:
    """A value in words that are the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:2000]


def _contents(data: Source) -> str:
    """sha256 over labels and bytes of samples: of a pair of tensors all, of a set that is read one by one some that lie evenly in it."""
    whole = Source(data.samples, name=data.name, batch_size=data.batch_size)
    count = len(whole)
    places = torch.arange(count) if hasattr(data.samples, "labels") else torch.arange(0, count, max(1, count // COMPARED))
    digest = hashlib.sha256()
    with own_randomness(0):
        for inputs, labels in whole.at(places.split(whole.batch_size)):
            try:
                for one in sample_hashes(inputs, labels):
                    digest.update(one)
            except TypeError:  # inputs of a kind that has no bytes: their labels
                digest.update(repr(labels.tolist()).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def together(call: str, *models: Any) -> Iterator[Ranks | None]:
    """The ranks that hold one of the models, about to make a call together; None where none is held by several."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield None
        return
    for model in models:
        _unwrapped.refuse_flattened(model)
    shared = next((model for model in models if _unwrapped.is_shared(model)), None)
    if shared is None:
        yield None
        return
    with Ranks(call, _unwrapped.ranks_of(shared)) as ranks:
        yield ranks


@contextlib.contextmanager
def everyone(call: str, *, stops: str, required: str) -> Iterator[Ranks | None]:
    """All ranks of the default process group, about to make a call together; None where there is one rank, or no group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_world_size() == 1:
        yield None
        return
    with Ranks(call, list(range(torch.distributed.get_world_size())), stops=stops, required=required) as ranks:
        yield ranks
