"""RMIA by pairs, and by votes of several queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastforget.ops import membership

from ..cases import Case, Judge, Options, Place, Work, compiled, limit

GAMMA = 2.0
PAIRS = {"1000x2500": (1000, 2500), "10000x10000": (10_000, 10_000), "50000x25000": (50_000, 25_000)}
VOTES = {"18x1000x2500": (18, 1000, 2500), "18x10000x10000": (18, 10_000, 10_000)}
CHUNK = 1 << 24  # pairs at a time, where a user would run out of memory
PUBLISHED_VOTE = "the comparisons of all queries stacked as booleans, torch.mode over the queries, mean over z"
def _by_rows(n: int, z: int, part: Callable[[slice], Tensor]) -> Tensor:
    step = max(1, CHUNK // max(1, z))
    return torch.cat([part(slice(i, i + step)) for i in range(0, n, step)])


def pairs(x: Tensor, z: Tensor) -> Tensor:
    """Equation 3 of RMIA as it is written: every ratio against every other."""
    return ((x[:, None] / z) >= GAMMA).sum(1)


def eager_pairs(x: Tensor, z: Tensor) -> Tensor:
    return _by_rows(len(x), len(z), lambda rows: pairs(x[rows], z))


def sorted_pairs(x: Tensor, z: Tensor) -> Tensor:
    """The fast plain form: z sorted, x / gamma searched for. It rounds elsewhere, so a pair at the border may count differently."""
    return torch.searchsorted(z.sort().values, x / GAMMA, right=True)


def _count_work(place: Place, n: int, z_count: int, options: Options) -> Work:
    x, z = place.normal(n).exp_(), place.normal(z_count).exp_()
    run: dict[str, Callable[[], Any]] = {
        "ours": lambda: membership.rmia_counts(x, z, gamma=GAMMA),
        "eager": lambda: eager_pairs(x, z),
        "sort": lambda: sorted_pairs(x, z),
        **limit([z], "read"),
    }
    if options.compiled:
        form = compiled(pairs)
        run["compiled"] = lambda: form(x, z)
    truth = eager_pairs(x, z)
    return Work(run, Judge([truth], lambda _name, result: [result], exact=True), unjudged=frozenset({"limit", "sort"}))


def rmia_counts(label: str, n: int, z: int, options: Options, large: bool) -> Case:
    return Case(
        "rmia_counts",
        label,
        f"{n}x{z}",
        "float32",
        n * z,
        lambda place: _count_work(place, n, z, options),
        bytes_touched=4 * (n + z) + 8 * n,
        unit="pair",
        family="membership",
        large=large,
    )


def eager_votes(x: Tensor, z: Tensor) -> Tensor:
    """Votes added up query by query in a block of pairs."""

    def part(rows: slice) -> Tensor:
        votes = torch.zeros(len(x[0, rows]), z.shape[1], dtype=torch.int8, device=x.device)
        for x_q, z_q in zip(x, z, strict=True):
            votes += (x_q[rows, None] / z_q) >= GAMMA
        return (votes > len(x) // 2).sum(1)

    return _by_rows(x.shape[1], z.shape[1], part)


def published_votes(x: Tensor, z: Tensor) -> Tensor:
    """The published majority in our words; of an even split, torch.mode takes the smaller value."""
    stacked = torch.stack([(x_q[:, None] / z_q) >= GAMMA for x_q, z_q in zip(x, z, strict=True)])
    return stacked.to(torch.uint8).mode(dim=0).values.double().mean(1)


def _vote_work(place: Place, queries: int, n: int, z_count: int, large: bool) -> Work:
    x, z = place.normal(queries, n), place.normal(queries, z_count)
    # queries of a sample agree more often than not
    x = x.mul_(0.5).add_(place.normal(n)).exp_()
    z = z.mul_(0.5).add_(place.normal(z_count)).exp_()
    counts = place.empty(n, dtype=torch.int64)
    op = torch.ops.fastforget.rmia_vote.default

    def ours() -> Tensor:
        op(x, z, GAMMA, False, counts)
        return counts

    run: dict[str, Callable[[], Any]] = {"ours": ours, "eager": lambda: eager_votes(x, z), **limit([z], "read")}
    if not large:  # its booleans would take queries x n x z bytes, twice
        run["published"] = lambda: published_votes(x, z)
    truth = eager_votes(x, z)
    return Work(run, Judge([truth], lambda _name, result: [result], exact=True), unjudged=frozenset({"limit", "published"}))


def rmia_vote(label: str, queries: int, n: int, z: int, large: bool) -> Case:
    return Case(
        "rmia_vote",
        label,
        f"{queries}x{n}x{z}",
        "float32",
        queries * n * z,
        lambda place: _vote_work(place, queries, n, z, large),
        bytes_touched=4 * queries * (n + z) + 8 * n,
        unit="comparison",
        family="membership",
        large=large,
        published=PUBLISHED_VOTE,
    )


def cases(options: Options) -> list[Case]:
    rows = [rmia_counts(label, *shape, options, label == "50000x25000") for label, shape in PAIRS.items()]
    return rows + [rmia_vote(label, *shape, label == "18x10000x10000") for label, shape in VOTES.items()]
