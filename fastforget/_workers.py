"""A data set's worker processes: started once, and asked for any batches in any order, also for several passes at a time.

torch's loader starts its workers anew for each pass, which for a small set costs more than the pass. Here the loader's one pass never ends:
its sampler is a schedule that hands out what is wanted next. Each pass over the set is a *stream*: its batch ``j`` is read by worker
``j % workers``, whose random state for that stream begins as it was when the worker started and goes on from the stream's last batch. So a
data set that augments at random gives what it would give in a loader of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

Ticket = tuple[int, int, int, list[int], str] | None  # (stream, batch, oldest stream in use, positions, form); None: nothing to do
FORMS = ("batch", "single", "raw")  # the samples collated together, each alone, or as the data set gives them


def read(dataset: Any, positions: list[int]) -> list[Any]:
    """The samples at these positions, by one call where the data set has one for it."""
    many = getattr(dataset, "__getitems__", None)
    return many(positions) if callable(many) else [dataset[i] for i in positions]


def arranged(samples: list[Any], form: str, collate: Callable[[list[Any]], Any], name: str = "") -> Any:
    """The samples in one of :data:`FORMS`; ``name``: of the set, as errors begin."""
    if form == "raw":
        return samples
    if form == "single":
        return [collate([sample]) for sample in samples]
    try:
        return collate(samples)
    except RuntimeError as error:
        if collate is not default_collate:
            raise
        raise ValueError(
            f"{name}samples can't be made a batch ({error}); accepted are samples of one shape, or a DataLoader whose collate_fn pads them"
        ) from error


class _Served:
    """The data set as the workers see it: tickets in, batches out."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate
        self.started: Any = None  # this worker's random state at its start
        self.states: dict[int, Any] = {}

    def __getitems__(self, ticket: Ticket) -> Any:
        if ticket is None:
            return None
        stream, number, oldest, positions, form = ticket
        if self.started is None:
            self.started = _random_state()
        self.states = {key: state for key, state in self.states.items() if key >= oldest}
        _set_random_state(self.states.get(stream, self.started))
        batch = arranged(read(self.dataset, positions), form, self.collate)
        self.states[stream] = _random_state()
        return stream, number, batch


def _random_state() -> Any:
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _set_random_state(state: Any) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


def _as_it_is(value: Any) -> Any:
    return value


class _Stream:
    """One pass over the set: which batches are still to be asked for, and those that came before they were wanted."""

    def __init__(self, number: int, batches: Iterator[list[int]], form: str) -> None:
        self.number, self.batches, self.form = number, batches, form
        self.upcoming = next(batches, None)
        self.asked = self.given = 0
        self.ready: dict[int, Any] = {}

    def ticket(self, oldest: int) -> Ticket:
        assert self.upcoming is not None
        ticket = (self.number, self.asked, oldest, self.upcoming, self.form)
        self.upcoming = next(self.batches, None)
        self.asked += 1
        return ticket


class _Schedule:
    """The loader's sampler: the next ticket goes to the worker whose turn it is; it is empty where that worker isn't the stream's next."""

    def __init__(self, workers: int) -> None:
        self.workers, self.turn = workers, 0
        self.streams: dict[int, _Stream] = {}
        self.current: _Stream | None = None

    def __iter__(self) -> Iterator[Ticket]:
        return self

    def __next__(self) -> Ticket:
        worker, self.turn = self.turn, (self.turn + 1) % self.workers
        stream = self.current
        if stream is None or stream.upcoming is None or stream.asked % self.workers != worker:
            return None
        return stream.ticket(min(self.streams))


class Workers:
    """The running workers of one data set.

    Args:
        dataset, collate: of the user's loader.
        settings: its further settings, ``num_workers`` (at least 1) among them.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], settings: dict[str, Any]) -> None:
        self.served, self.settings = _Served(dataset, collate), settings
        self.schedule = _Schedule(settings["num_workers"])
        self.results: Iterator[Any] | None = None
        self.last = 0

    def read(self, batches: Iterable[list[int]], form: str = "batch") -> Iterator[Any]:
        """The batches at these positions, in order; another pass may begin and end while this one waits."""
        self.last += 1
        stream = _Stream(self.last, iter(batches), form)
        streams = self.schedule.streams
        streams[stream.number] = stream
        try:
            while stream.given < stream.asked or stream.upcoming is not None:
                while stream.given not in stream.ready:
                    self._receive(stream)
                batch = stream.ready.pop(stream.given)
                stream.given += 1
                yield batch
        finally:
            streams.pop(stream.number, None)
            if self.schedule.current is stream:
                self.schedule.current = None

    def _receive(self, stream: _Stream) -> None:
        """One result of the workers, kept for the stream that it belongs to."""
        if stream.number not in self.schedule.streams:
            raise RuntimeError("this pass over the set can't go on: its workers were stopped by an error in another pass")
        self.schedule.current = stream
        try:
            if self.results is None:
                self.results = iter(self._loader())
            result = next(self.results)
        except BaseException:
            self.stop()  # a batch is missing now: other streams would wait for it without end
            raise
        if result is not None:
            number, batch, samples = result
            if number in self.schedule.streams:
                self.schedule.streams[number].ready[batch] = samples

    def _loader(self) -> DataLoader[Any]:
        # its own generator: without one it would draw its workers' seed from the global state
        generator = torch.Generator().manual_seed(0)
        schedule: Any = self.schedule
        return DataLoader(self.served, batch_sampler=schedule, collate_fn=_as_it_is, generator=generator, **self.settings)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Ends the workers; the next pass starts new ones."""
        self.results = None
        self.schedule = _Schedule(self.settings["num_workers"])
