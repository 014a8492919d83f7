"""One view of the data that users have: a DataLoader, a Dataset, or an ``(inputs, labels)`` pair of tensors.

Everything that reads data (unlearning, the audit, the demo) goes through :func:`source`, so that batches, labels, splits and errors are
the same everywhere. Shuffles take their own generator: reading data never moves the global random state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from . import _samplers, _tree, _workers
from ._columns import Column
from ._labels import CLASSES, Reading, as_tensor, labelled
from ._random import own_randomness
from ._tree import describe, move

__all__ = ["Pair", "Source", "describe", "move", "source"]

Unpack = Callable[[Any], tuple[Any, Any]]
ACCEPTED = "a DataLoader, a Dataset or an (inputs, labels) pair of tensors"
DEFAULT_BATCH = 256
_SECOND = "the second of the pair"
NO_TENSORS = (None, "arrow", "pandas", "polars")  # formats of Hugging Face's data sets
_TRIED = 64  # samples that show whether a set's sizes vary


class Pair:
    """Inputs and labels already in memory: batches by one indexing, without a per-sample collate."""

    def __init__(self, name: str, inputs: Tensor, labels: Any, read_from: str = _SECOND, reading: Reading = CLASSES) -> None:
        self.read_from, self.reading = read_from, reading
        labels = reading.check(name, labels, "" if read_from.startswith("the second") else read_from)
        if inputs.dim() == 0 or len(inputs) != len(labels):
            raise ValueError(f"{name}: inputs are {describe(inputs)} but labels {describe(labels)}; both must have N rows")
        if inputs.device != labels.device:
            raise ValueError(f"{name}: inputs are on {inputs.device} but labels on {labels.device}; accepted is one device")
        self.inputs, self.labels = inputs.detach(), labels
        self.collated = False  # no sample's form depends on its batch

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Iterable[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        for indices in order:
            yield self.inputs[indices.to(self.inputs.device)], self.labels[indices.to(self.labels.device)]


class Loaded:
    """A data set that is read sample by sample, through torch's loader."""

    def __init__(
        self,
        name: str,
        dataset: Any,
        unpack: Unpack | None,
        collate: Callable[[list[Any]], Any] = default_collate,
        settings: dict[str, Any] | None = None,
        reading: Reading = CLASSES,
    ) -> None:
        self.name, self.dataset, self.unpack, self.collate, self.settings = name, dataset, unpack, collate, settings or {}
        self.reading = reading
        self.read_from = "what unpack returned"
        # what the user makes of a batch may depend on all of it, as padding does
        self.collated = unpack is not None or collate is not default_collate
        if collate is default_collate and reading.collate is not None:
            self.collate = functools.partial(reading.collate, name)
        self._workers: _workers.Workers | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, order: Iterable[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        for batch in self._read(order, "batch"):
            yield self.inputs_and_labels(batch)

    def singles(self, order: Iterable[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        """The samples as batches of one, each as it is without others beside it."""
        for group in self._read(order, "single"):
            for batch in group:
                yield self.inputs_and_labels(batch)

    def raw(self, order: Iterable[Tensor]) -> Iterator[Any]:
        """The samples as the data set gives them."""
        for group in self._read(order, "raw"):
            yield from group

    def _read(self, order: Iterable[Tensor], form: str) -> Iterator[Any]:
        positions = (indices.tolist() for indices in order)
        if self.settings.get("num_workers"):
            if self._workers is None:
                self._workers = _workers.Workers(self.dataset, self.collate, self.settings)
            return self._workers.read(positions, form)
        arranged = functools.partial(_workers.arranged, form=form, collate=self.collate, name=f"{self.name}: ")
        # the loader's own generator: without one it would draw its workers' seed from the global state
        generator = torch.Generator().manual_seed(0)
        batches: Any = list(positions)
        return iter(DataLoader(self.dataset, batch_sampler=batches, collate_fn=arranged, generator=generator, **self.settings))

    def inputs_and_labels(self, batch: Any) -> tuple[Any, Tensor]:
        """A batch's two parts, by ``unpack`` or by what is usual."""
        if self.unpack is not None:
            unpacked = self.unpack(batch)
            if not (isinstance(unpacked, (tuple, list)) and len(unpacked) == 2):
                raise TypeError(f"{self.name}: unpack returned {describe(unpacked)}; accepted is (inputs, labels)")
            inputs, labels = unpacked
        elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
            inputs, labels = batch[0], batch[-1]
            self.read_from = "the second element of a batch"
            if len(batch) == 3:
                self.read_from = "the last of a batch's 3 elements"
                self.reading.three(self.name, batch[1], batch[2])
        elif isinstance(batch, Mapping):
            inputs, labels, self.read_from = labelled(self.name, batch)
        else:
            raise TypeError(
                f"{self.name}: a batch is {describe(batch)}, so its labels can't be found; accepted are (x, y), (x, _, y), and dicts with "
                "an entry 'labels' or 'label'. For anything else pass unpack=lambda batch: (inputs, labels)"
            )
        labels = self.reading.check(self.name, labels, "" if self.read_from.startswith("the second") else self.read_from)
        if isinstance(inputs, Tensor) and len(inputs) != len(labels):
            raise ValueError(f"{self.name}: a batch has {len(inputs)} inputs but {len(labels)} labels")
        return inputs, self.reading.beside(self.name, inputs, labels)


class Source:
    """A finite labelled set that can be read many times, in any order. Made by :func:`source`."""

    def __init__(
        self,
        samples: Pair | Loaded,
        *,
        name: str,
        batch_size: int = DEFAULT_BATCH,
        indices: Tensor | None = None,
        longest: Tensor | None = None,
    ) -> None:
        self.samples, self.name, self.batch_size, self.indices = samples, name, batch_size, indices
        self.longest = longest  # positions in the data set of samples that are as long as any: see padded()
        self._labels: Tensor | None = None
        if len(self) == 0:
            raise ValueError(f"{name}: the set is empty; accepted is at least one sample")

    def __len__(self) -> int:
        return len(self.samples) if self.indices is None else len(self.indices)

    def __repr__(self) -> str:
        return f"Source({self.name}: {len(self)} samples, batches of {self.batch_size})"

    @property
    def read_from(self) -> str:
        """Which part of what the user gave is read as the labels."""
        return self.samples.read_from

    def batches(
        self,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        batch_size: int | None = None,
        least: int = 1,
    ) -> Iterator[tuple[Any, Tensor]]:
        """Every sample once, as ``(inputs, labels int64)``.

        Args:
            generator: a CPU generator; shuffles when given, else the set's own order.
            device: moves inputs and labels there.
            batch_size: instead of the set's own.
            least: 2 where a model can't train on a batch of one sample (:func:`cut`).
        """
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        yield from self.at(cut(order, batch_size or self.batch_size, least), device=device)

    def at(self, order: Iterable[Tensor | Sequence[int]], *, device: torch.device | str | None = None) -> Iterator[tuple[Any, Tensor]]:
        """The samples with these positions, one batch for each item of ``order`` (none of them empty)."""
        extra = self.longest
        indices = self._indices(order)
        for inputs, labels in self.samples.batches(indices if extra is None else (torch.cat((batch, extra)) for batch in indices)):
            if extra is not None:
                own = slice(0, len(labels) - len(extra))
                inputs, labels = _tree.index(inputs, own), labels[own]
            yield move(inputs, device), move(labels, device)

    def _indices(self, order: Iterable[Tensor | Sequence[int]]) -> Iterator[Tensor]:
        positions = (torch.as_tensor(batch, dtype=torch.int64) for batch in order)
        return positions if self.indices is None else (self.indices[batch] for batch in positions)

    def apart(self) -> Iterator[tuple[Any, Tensor]]:
        """Every sample once, in batches that don't change it: where the user's own function makes the batches (pads texts to the longest,
        say), each sample comes alone, so that it is the same whatever stands beside it.
        """
        order = torch.arange(len(self)).split(self.batch_size)
        if isinstance(self.samples, Loaded) and self.samples.collated:
            yield from self.samples.singles(self._indices(order))
        else:
            yield from self.at(order)

    def raw(self) -> Iterator[Any]:
        """The samples as the user's data set gives them, one after another."""
        assert isinstance(self.samples, Loaded)
        return self.samples.raw(self._indices(torch.arange(len(self)).split(self.batch_size)))

    def padded(self) -> Source:
        """The set with batches of one shape, where the user's own function pads each batch to its longest sample: a longest sample of the
        set is then put beside every batch, and left out of it again. The padding stays the user's.
        """
        if not (isinstance(self.samples, Loaded) and self.samples.collated) or self.longest is not None:
            return self
        first, rest = torch.arange(len(self)).split(_TRIED)[:1], torch.arange(len(self))[_TRIED:].split(self.batch_size)
        with own_randomness(0):
            sizes = [_tree.shapes(inputs) for inputs, _ in self.samples.singles(self._indices(first))]
            if len(set(sizes)) == 1:
                return self
            sizes += [_tree.shapes(inputs) for inputs, _ in self.samples.singles(self._indices([part for part in rest if len(part)]))]
        flat = torch.tensor([[size for shape in sample for size in shape] for sample in sizes])
        longest = flat.argmax(dim=0).unique()  # of each dimension of each tensor
        source = Source(self.samples, name=self.name, batch_size=self.batch_size, indices=self.indices)
        source._labels, source.longest = self._labels, next(self._indices([longest]))
        return source

    def longest_sample(self, device: torch.device) -> Any:
        """The inputs of a longest sample of a :meth:`padded` set."""
        assert self.longest is not None
        inputs, _ = next(iter(self.samples.batches([self.longest])))
        return move(_tree.index(inputs, 0), device)

    def cycle(self, batch_size: int, generator: torch.Generator, device: torch.device, least: int = 1) -> Iterator[tuple[Any, Tensor]]:
        """Shuffled batches without end, each pass in a new order."""
        while True:
            yield from self.batches(generator=generator, device=device, batch_size=min(batch_size, len(self)), least=least)

    def labels(self) -> Tensor:
        """All labels in the set's own order, int64[N] on the CPU: one pass, then remembered."""
        if self._labels is None:
            if isinstance(self.samples, Pair):
                labels = self.samples.labels
                self._labels = (labels if self.indices is None else labels[self.indices.to(labels.device)]).cpu()
            else:
                column = Column()
                for _, labels in self.batches():
                    column.add(labels.cpu())
                self._labels = column.joined()
        return self._labels

    def remember(self, labels: Tensor) -> None:
        """Takes labels that were seen in a pass over the whole set, in its order, so that :meth:`labels` needs none of its own."""
        if self._labels is None and len(labels) == len(self):
            self._labels = labels.cpu()

    def subset(self, indices: Tensor | Sequence[int]) -> Source:
        """The samples at these positions, as a set of its own."""
        positions = torch.as_tensor(indices, dtype=torch.int64)
        inner = positions if self.indices is None else self.indices[positions]
        part = Source(self.samples, name=self.name, batch_size=self.batch_size, indices=inner, longest=self.longest)
        if self._labels is not None:
            part._labels = self._labels[positions]
        return part

    def split(self, n: int, generator: torch.Generator) -> tuple[Source, Source]:
        """``(rest, held)``: ``held`` has ``n`` samples drawn at random, ``rest`` the others."""
        if not 0 < n < len(self):
            raise ValueError(f"{self.name}: can't hold back {n} of {len(self)} samples; accepted is 1 to {len(self) - 1}")
        order = torch.randperm(len(self), generator=generator)
        return self.subset(order[n:].sort().values), self.subset(order[:n].sort().values)

    def at_most(self, n: int, generator: torch.Generator) -> Source:
        """The set, or ``n`` of its samples drawn at random where it holds more."""
        return self if len(self) <= n else self.split(n, generator)[1]


def source(data: Any, *, name: str, unpack: Unpack | None = None, batch_size: int | None = None, reading: Reading = CLASSES) -> Source:
    """What the user gave, as a :class:`Source`.

    Args:
        data: a DataLoader (its dataset, collate function, batch size, workers and choice of samples are used; its order isn't), a
            Dataset with a length (also a list of samples, or Hugging Face's), or an ``(inputs, labels)`` pair of tensors.
        name: the argument's name, for errors.
        unpack: makes ``(inputs, labels)`` of a batch; needed unless batches are ``(x, y)``, ``(x, _, y)`` or dicts with ``"labels"``.
        batch_size: instead of the loader's (default 256).
        reading: how labels are read: as class ids, or as token ids [N, T] (``_labels.TOKENS``).

    Raises:
        TypeError: none of these, an IterableDataset, or labels that aren't class ids.
        ValueError: an empty set, or inputs and labels that don't fit together.

    >>> import torch
    >>> held = source((torch.zeros(5, 1, 2, 2), torch.arange(5)), name="retain")
    >>> len(held), held.labels().tolist(), len(list(held.batches(batch_size=2)))
    (5, [0, 1, 2, 3, 4], 3)
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; accepted is 1 or more")
    if isinstance(data, Source):
        return data
    data = _loader_inside(data)
    if isinstance(data, DataLoader):
        return _from_loader(data, name, unpack, batch_size, reading)
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, (Tensor, np.ndarray)) for part in data):
        inputs = as_tensor(data[0])
        if not isinstance(inputs, Tensor):
            raise TypeError(f"{name}: inputs are {describe(inputs)}; accepted are numbers")
        return Source(Pair(name, inputs, data[1], reading=reading), name=name, batch_size=batch_size or DEFAULT_BATCH)
    if isinstance(data, IterableDataset):
        raise TypeError(f"{name}: got an IterableDataset ({type(data).__name__}); accepted is {ACCEPTED}, read more than once")
    if isinstance(data, Tensor):
        raise TypeError(f"{name}: got {describe(data)} without labels; accepted is {ACCEPTED}")
    listlike = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, (str, bytes, Mapping)) or not (isinstance(data, Dataset) or listlike):
        splits = f". Pass one of its splits: {next(iter(data))!r}" if type(data).__name__ == "DatasetDict" else ""
        raise TypeError(f"{name}: got {describe(data)}; accepted is {ACCEPTED}{splits}")
    # a sample as a list has two or three entries, so lists of more are inputs and labels
    lists = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, list) and len(part) > 3 for part in data)
    if lists or (isinstance(data, tuple) and len(data) and not isinstance(data[0], (tuple, list))):
        raise TypeError(f"{name}: got {describe(data)}; accepted is {ACCEPTED} (lists: torch.tensor, numpy arrays: torch.from_numpy)")
    if not hasattr(data, "__len__"):
        raise TypeError(f"{name}: got {type(data).__name__}, which has no length; accepted is {ACCEPTED}")
    return _source(data, name, unpack, batch_size or DEFAULT_BATCH, reading=reading)


def _loader_inside(data: Any) -> Any:
    """The DataLoader that another package's loader reads from (Lightning Fabric's), or ``data`` itself."""
    inside = getattr(data, "_dataloader", None)
    return inside if isinstance(inside, DataLoader) and not isinstance(data, DataLoader) else data


def _from_loader(loader: DataLoader[Any], name: str, unpack: Unpack | None, batch_size: int | None, reading: Reading) -> Source:
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(f"{name}: got a DataLoader over an IterableDataset; accepted is a Dataset with a length, read more than once")
    if loader.batch_size is None and loader.batch_sampler is None:
        raise TypeError(f"{name}: got a DataLoader with batch_size=None; accepted is one that makes the batches itself")
    size = batch_size or loader.batch_size
    indices = _samplers.shown(loader, name)
    if size is None:
        size = max((len(list(batch)) for batch in loader.batch_sampler), default=DEFAULT_BATCH)  # type: ignore[union-attr]
    data = _source(loader.dataset, name, unpack, size, loader.collate_fn, _samplers.settings(loader), reading)
    return data if indices is None else data.subset(indices)


def _source(
    dataset: Any,
    name: str,
    unpack: Unpack | None,
    batch_size: int,
    collate: Callable[[list[Any]], Any] = default_collate,
    settings: dict[str, Any] | None = None,
    reading: Reading = CLASSES,
) -> Source:
    """A TensorDataset (or a Subset of one) as a pair of tensors, where nothing of the user's stands between; else read by sample."""
    if collate is default_collate:
        dataset = _as_tensors(dataset)
    inner, indices = unwrap_subsets(dataset)
    if type(inner) is TensorDataset and len(inner.tensors) in (2, 3) and unpack is None and collate is default_collate:
        inputs, labels = inner.tensors[0], inner.tensors[-1]
        read_from = _SECOND if len(inner.tensors) == 2 else "the last of 3 tensors"
        if len(inner.tensors) == 3:
            reading.three(name, inner.tensors[1], labels)
        if inputs.device == labels.device:
            return Source(Pair(name, inputs, labels, read_from, reading), name=name, batch_size=batch_size, indices=indices)
    return Source(Loaded(name, dataset, unpack, collate, settings, reading), name=name, batch_size=batch_size)


def _as_tensors(dataset: Any) -> Any:
    """A data set of Hugging Face's that gives tensors, of the columns that it shows: lists of numbers would be collated by place, one
    tensor for each, and of tables nothing can be made."""
    shown = getattr(dataset, "format", None)
    if callable(getattr(dataset, "with_format", None)) and isinstance(shown, Mapping) and shown.get("type", "") in NO_TENSORS:
        return dataset.with_format("torch", columns=shown.get("columns"))
    return dataset


def unwrap_subsets(dataset: Any) -> tuple[Any, Tensor | None]:
    """The data set inside of Subsets, and which of its samples they show; None for all."""
    indices: Tensor | None = None
    while type(dataset) is Subset:
        inner = torch.as_tensor(list(dataset.indices), dtype=torch.int64)
        indices = inner if indices is None else inner[indices]
        dataset = dataset.dataset
    return dataset, indices


def cut(order: Tensor, size: int, least: int = 1) -> list[Tensor]:
    """Batches of ``size``; none where ``order`` is empty. With ``least`` 2 none holds a single sample: the last joins the one before, and
    an only sample is shown twice.

    >>> import torch
    >>> [batch.tolist() for batch in cut(torch.arange(5), 2, least=2)], [batch.tolist() for batch in cut(torch.arange(1), 2, least=2)]
    ([[0, 1], [2, 3, 4]], [[0, 0]])
    """
    batches = list(order.split(size)) if len(order) else []  # torch splits nothing into one empty part
    if not batches or least < 2 or len(batches[-1]) > 1:
        return batches
    if len(batches) == 1 or size == 1:
        return [batch.repeat(2) if len(batch) == 1 else batch for batch in batches]
    return [*batches[:-2], torch.cat(batches[-2:])]
