"""Data sources: the same samples and labels whatever the user gives, and a clear refusal of what can't serve."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from fastforget._data import source
from fastforget._progress import progress

X, Y = torch.arange(30.0).reshape(10, 3), torch.arange(10) % 4
ROWS = [(X[i], int(Y[i])) for i in range(10)]
DICTS = [{"image": X[i], "label": int(Y[i])} for i in range(10)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


def take(batch):
    return batch["image"], batch["label"]


@pytest.mark.parametrize(
    ("data", "unpack"),
    [
        ((X, Y), None),
        ([X, Y.int()], None),
        ((X.numpy(), Y.numpy()), None),
        ((X, Y[:, None]), None),
        (TensorDataset(X, Y), None),
        (TensorDataset(X, torch.zeros(10), Y), None),
        (ROWS, None),
        ([(x, "name", y) for x, y in ROWS], None),
        (DICTS, take),
        (DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True), None),
        (DataLoader(ROWS, batch_size=4), None),
        (DataLoader(DICTS, batch_size=4), take),
        (DataLoader(TensorDataset(X, Y, torch.zeros(10)), batch_size=4), lambda batch: batch[:2]),
        (DataLoader(ROWS, batch_sampler=[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]), None),
        (DataLoader(ROWS, batch_size=4, num_workers=1), None),
    ],
    ids=[
        "pair", "int32", "numpy", "column", "tensors", "three_tensors", "list", "triples", "dicts", "shuffling_loader", "loader",
        "dict_loader", "unpacked_loader", "batch_sampler", "workers",
    ],
)  # fmt: skip
def test_every_form_gives_the_same_samples(data, unpack):
    held = source(data, name="retain", unpack=unpack)
    assert len(held) == 10
    assert torch.equal(held.labels(), Y)
    got = list(held.batches(batch_size=4))
    assert [len(y) for _, y in got] == [4, 4, 2]
    assert torch.equal(torch.cat([x for x, _ in got]), X)
    assert torch.cat([y for _, y in got]).dtype == torch.int64


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([7, 2])),
        DataLoader(ROWS, sampler=SubsetRandomSampler([7, 2])),
        Subset(TensorDataset(X, Y), [7, 2]),
        DataLoader(Subset(Subset(TensorDataset(X, Y), [0, 2, 7]), [2, 1]), batch_size=2),
        DataLoader(Subset(TensorDataset(X, Y), [1, 7, 2]), sampler=SubsetRandomSampler([1, 2])),
    ],
    ids=["sampler", "sampler_on_list", "subset", "nested_subsets", "sampler_on_subset"],
)
def test_a_split_stays_a_split(data):
    held = source(data, name="retain")
    assert held.labels().tolist() == [3, 2]
    assert torch.equal(next(iter(held.batches(batch_size=2)))[0], X[[7, 2]])


def test_shuffles_follow_their_generator_and_leave_the_global_state():
    held = source(ROWS, name="retain")
    before = torch.get_rng_state()
    orders = [
        torch.cat([y for _, y in held.batches(generator=torch.Generator().manual_seed(s), batch_size=3)]).tolist()
        for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(Y.tolist())
    assert torch.equal(torch.get_rng_state(), before)


def test_split_and_subset_partition():
    held = source((X, Y), name="retain")
    rest, back = held.split(3, torch.Generator().manual_seed(0))
    rows = torch.cat([next(iter(s.batches()))[0] for s in (rest, back)])
    assert (len(rest), len(back)) == (7, 3)
    assert sorted(rows[:, 0].tolist()) == X[:, 0].tolist()
    inner = rest.subset([0, 6]).subset([1])
    assert torch.equal(next(iter(inner.batches()))[0], next(iter(rest.batches()))[0][6:])
    with pytest.raises(ValueError, match="can't hold back 10 of 10"):
        held.split(10, torch.Generator())


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ((X[:0], Y[:0]), ValueError, "retain: the set is empty"),
        ([], ValueError, "retain: the set is empty"),
        (X, TypeError, "without labels"),
        (None, TypeError, "accepted is a DataLoader"),
        ("retain", TypeError, "accepted is a DataLoader"),
        ({"x": X}, TypeError, "accepted is a DataLoader"),
        ((Y.numpy().astype(str), Y.numpy()), TypeError, "accepted are numbers"),
        ((X, Y.float()), TypeError, "integer class ids"),
        ((X, torch.nn.functional.one_hot(Y).float()), TypeError, "argmax"),
        ((X, Y[:4]), ValueError, "both must have N rows"),
        ((X, Y.to("meta")), ValueError, "one device"),
        ([{"image": X[0], "target": 1}], TypeError, "unpack="),
        ([(x,) for x, _ in ROWS], TypeError, "unpack="),
        (Stream(), TypeError, "IterableDataset"),
        (DataLoader(Stream()), TypeError, "IterableDataset"),
        (DataLoader(ROWS, batch_size=None), TypeError, "batch_size=None"),
    ],
)
def test_refusals_name_the_argument_and_the_way_out(data, error, says):
    with pytest.raises(error, match=says) as caught:
        source(data, name="retain").labels()
    assert str(caught.value).startswith("retain: ")


def test_unpack_must_give_a_pair():
    with pytest.raises(TypeError, match=r"accepted is \(inputs, labels\)"):
        source(DICTS, name="forget", unpack=lambda b: b["image"]).labels()


def test_progress_is_silent_without_a_terminal(capfd):
    assert sum(progress([1, 2], "adding")) == 3
    with progress(3, "steps") as bar:
        bar.step(3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_several_shapes_need_a_collate_fn(workers):
    samples = [(torch.zeros(3 + i % 2), i % 2) for i in range(6)]
    given = DataLoader(samples, batch_size=2, num_workers=workers) if workers else samples
    named = "" if workers else "retain: "  # a worker doesn't know whose samples it reads
    with pytest.raises(ValueError, match=f"{named}samples can't be made a batch .*or a DataLoader whose collate_fn pads them"):
        list(source(given, name="retain").batches())
