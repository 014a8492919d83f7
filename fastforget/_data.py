"""One view of the data that users have: a DataLoader, a Dataset, or an ``(inputs, labels)`` pair of tensors.

Everything that reads data (unlearning, the audit, the demo) goes through :func:`source`, so that batches, labels, splits and errors are
the same everywhere. Shuffles take their own generator: reading data never moves the global random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

Unpack = Callable[[Any], tuple[Any, Any]]
ACCEPTED = "a DataLoader, a Dataset or an (inputs, labels) pair of tensors"
DEFAULT_BATCH = 256


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)[:6]}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: ({', '.join(type(v).__name__ for v in value[:4])})"
    return f"{type(value).__name__} {value!r}"[:120]


def move(value: Any, device: torch.device | str | None) -> Any:
    """``value`` with every tensor in it on ``device``."""
    if device is None:
        return value
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {k: move(v, device) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(move(v, device) for v in value)
    return value


def check_labels(name: str, labels: Any) -> Tensor:
    """Labels as int64[N], or an error that says what came instead."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: labels are {_describe(labels)}; accepted is an integer tensor [N]")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"{name}: labels are {_describe(labels)}; accepted are integer class ids [N]. "
            "Convert class ids by labels.long(), one-hot rows by labels.argmax(1)"
        )
    if labels.dim() != 1:
        raise ValueError(f"{name}: labels are {_describe(labels)}; accepted is one class id a sample, shape [N]")
    return labels.to(torch.int64)


class Pair:
    """Inputs and labels already in memory: batches by one indexing, without a per-sample collate."""

    def __init__(self, name: str, inputs: Tensor, labels: Tensor) -> None:
        labels = check_labels(name, labels)
        if inputs.dim() == 0 or len(inputs) != len(labels):
            raise ValueError(f"{name}: inputs are {_describe(inputs)} but labels {_describe(labels)}; both must have N rows")
        if inputs.device != labels.device:
            raise ValueError(f"{name}: inputs are on {inputs.device} but labels on {labels.device}; accepted is one device")
        self.inputs, self.labels = inputs.detach(), labels

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: list[Tensor]) -> Iterator[tuple[Any, Tensor]]:
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
        workers: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.dataset, self.unpack, self.collate, self.workers = name, dataset, unpack, collate, workers or {}

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, order: list[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        # the loader's own generator: without one it would draw its workers' seed from the global state
        generator = torch.Generator().manual_seed(0)
        batches = [indices.tolist() for indices in order]
        loader = DataLoader(self.dataset, batch_sampler=batches, collate_fn=self.collate, generator=generator, **self.workers)
        for batch in loader:
            yield self._inputs_and_labels(batch)

    def _inputs_and_labels(self, batch: Any) -> tuple[Any, Tensor]:
        if self.unpack is not None:
            unpacked = self.unpack(batch)
            if not (isinstance(unpacked, (tuple, list)) and len(unpacked) == 2):
                raise TypeError(f"{self.name}: unpack returned {_describe(unpacked)}; accepted is (inputs, labels)")
            inputs, labels = unpacked
        elif isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
            inputs, labels = batch[0], batch[-1]
        else:
            hint = "unpack=lambda batch: (batch['image'], batch['label'])"
            if not isinstance(batch, Mapping):
                hint = "unpack=lambda batch: (inputs, labels)"
            raise TypeError(
                f"{self.name}: a batch is {_describe(batch)}, so its labels can't be found; accepted are (x, y) and (x, _, y). "
                f"For anything else pass {hint}"
            )
        labels = check_labels(self.name, labels)
        if isinstance(inputs, Tensor) and len(inputs) != len(labels):
            raise ValueError(f"{self.name}: a batch has {len(inputs)} inputs but {len(labels)} labels")
        return inputs, labels


class Source:
    """A finite labelled set that can be read many times, in any order. Made by :func:`source`."""

    def __init__(self, samples: Pair | Loaded, *, name: str, batch_size: int = DEFAULT_BATCH, indices: Tensor | None = None) -> None:
        self.samples, self.name, self.batch_size, self.indices = samples, name, batch_size, indices
        self._labels: Tensor | None = None
        if len(self) == 0:
            raise ValueError(f"{name}: the set is empty; accepted is at least one sample")

    def __len__(self) -> int:
        return len(self.samples) if self.indices is None else len(self.indices)

    def __repr__(self) -> str:
        return f"Source({self.name}: {len(self)} samples, batches of {self.batch_size})"

    def batches(
        self,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        batch_size: int | None = None,
    ) -> Iterator[tuple[Any, Tensor]]:
        """Every sample once, as ``(inputs, labels int64)``.

        Args:
            generator: a CPU generator; shuffles when given, else the set's own order.
            device: moves inputs and labels there.
            batch_size: instead of the set's own.
        """
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        yield from self.at(order.split(batch_size or self.batch_size), device=device)

    def at(self, order: Iterable[Tensor | Sequence[int]], *, device: torch.device | str | None = None) -> Iterator[tuple[Any, Tensor]]:
        """The samples with these positions, one batch for each item of ``order`` (none of them empty)."""
        positions = [torch.as_tensor(batch, dtype=torch.int64) for batch in order]
        indices = positions if self.indices is None else [self.indices[batch] for batch in positions]
        for inputs, labels in self.samples.batches(indices):
            yield move(inputs, device), move(labels, device)

    def cycle(self, batch_size: int, generator: torch.Generator, device: torch.device) -> Iterator[tuple[Any, Tensor]]:
        """Shuffled batches without end, each pass in a new order."""
        while True:
            yield from self.batches(generator=generator, device=device, batch_size=min(batch_size, len(self)))

    def labels(self) -> Tensor:
        """All labels in the set's own order, int64[N] on the CPU: one pass, then remembered."""
        if self._labels is None:
            if isinstance(self.samples, Pair):
                labels = self.samples.labels
                self._labels = (labels if self.indices is None else labels[self.indices.to(labels.device)]).cpu()
            else:
                self._labels = torch.cat([labels.cpu() for _, labels in self.batches()])
        return self._labels

    def subset(self, indices: Tensor | Sequence[int]) -> Source:
        """The samples at these positions, as a set of its own."""
        positions = torch.as_tensor(indices, dtype=torch.int64)
        inner = positions if self.indices is None else self.indices[positions]
        part = Source(self.samples, name=self.name, batch_size=self.batch_size, indices=inner)
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


def source(data: Any, *, name: str, unpack: Unpack | None = None, batch_size: int | None = None) -> Source:
    """What the user gave, as a :class:`Source`.

    Args:
        data: a DataLoader (its dataset, collate function, batch size, workers and choice of samples are used; its order isn't), a
            Dataset with a length (also a list of samples), or an ``(inputs, labels)`` pair of tensors.
        name: the argument's name, for errors.
        unpack: makes ``(inputs, labels)`` of a batch; needed unless batches are ``(x, y)`` or ``(x, _, y)``.
        batch_size: instead of the loader's (default 256).

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
    if isinstance(data, DataLoader):
        return _from_loader(data, name, unpack, batch_size)
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return Source(Pair(name, *data), name=name, batch_size=batch_size or DEFAULT_BATCH)
    if isinstance(data, IterableDataset):
        raise TypeError(f"{name}: got an IterableDataset ({type(data).__name__}); accepted is {ACCEPTED}, read more than once")
    if isinstance(data, Tensor):
        raise TypeError(f"{name}: got {_describe(data)} without labels; accepted is {ACCEPTED}")
    listlike = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, (str, bytes, Mapping)) or not (isinstance(data, Dataset) or listlike):
        raise TypeError(f"{name}: got {_describe(data)}; accepted is {ACCEPTED}")
    if isinstance(data, tuple) and len(data) and not isinstance(data[0], (tuple, list)):
        raise TypeError(f"{name}: got {_describe(data)}; accepted is {ACCEPTED} (numpy arrays: torch.from_numpy)")
    if not hasattr(data, "__len__"):
        raise TypeError(f"{name}: got {type(data).__name__}, which has no length; accepted is {ACCEPTED}")
    return _source(data, name, unpack, batch_size or DEFAULT_BATCH)


def _from_loader(loader: DataLoader[Any], name: str, unpack: Unpack | None, batch_size: int | None) -> Source:
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(f"{name}: got a DataLoader over an IterableDataset; accepted is a Dataset with a length, read more than once")
    if loader.batch_size is None and loader.batch_sampler is None:
        raise TypeError(f"{name}: got a DataLoader with batch_size=None; accepted is one that makes the batches itself")
    size = batch_size or loader.batch_size
    indices = _sampled(loader)
    if size is None:
        size = max((len(list(batch)) for batch in loader.batch_sampler), default=DEFAULT_BATCH)  # type: ignore[union-attr]
    data = _source(loader.dataset, name, unpack, size, loader.collate_fn, _workers(loader))
    return data if indices is None else data.subset(indices)


def _workers(loader: DataLoader[Any]) -> dict[str, Any]:
    """How the user's loader reads: torch refuses the settings of workers where there are none."""
    workers: dict[str, Any] = {"num_workers": loader.num_workers, "worker_init_fn": loader.worker_init_fn}
    if loader.num_workers:
        for name in ("prefetch_factor", "multiprocessing_context", "timeout"):
            workers[name] = getattr(loader, name)
    return workers


def _sampled(loader: DataLoader[Any]) -> Tensor | None:
    """Which samples a loader shows; ``None`` for all. A SubsetRandomSampler is a split: ignoring it would mix the user's sets."""
    sampler = loader.sampler
    if loader.batch_size is None:
        if loader.batch_sampler is None:
            return None
        with torch.random.fork_rng(devices=[]):
            return torch.tensor([i for batch in loader.batch_sampler for i in batch], dtype=torch.int64)
    if isinstance(sampler, (SequentialSampler, RandomSampler)):
        return None
    if isinstance(sampler, SubsetRandomSampler):
        return torch.as_tensor(list(sampler.indices), dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        return torch.tensor(list(sampler), dtype=torch.int64)


def _source(
    dataset: Any,
    name: str,
    unpack: Unpack | None,
    batch_size: int,
    collate: Callable[[list[Any]], Any] = default_collate,
    workers: dict[str, Any] | None = None,
) -> Source:
    """A TensorDataset (or a Subset of one) as a pair of tensors, where nothing of the user's stands between; else read by sample."""
    inner, indices = unwrap_subsets(dataset)
    if type(inner) is TensorDataset and len(inner.tensors) in (2, 3) and unpack is None and collate is default_collate:
        inputs, labels = inner.tensors[0], inner.tensors[-1]
        if inputs.device == labels.device:
            return Source(Pair(name, inputs, labels), name=name, batch_size=batch_size, indices=indices)
    return Source(Loaded(name, dataset, unpack, collate, workers), name=name, batch_size=batch_size)


def unwrap_subsets(dataset: Any) -> tuple[Any, Tensor | None]:
    """The data set inside of Subsets, and which of its samples they show; None for all."""
    indices: Tensor | None = None
    while type(dataset) is Subset:
        inner = torch.as_tensor(list(dataset.indices), dtype=torch.int64)
        indices = inner if indices is None else inner[indices]
        dataset = dataset.dataset
    return dataset, indices
