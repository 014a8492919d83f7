"""What the LiRA and RMIA ops must give, for the tests of every GPU backend: LiRA in extended precision and as plain PyTorch
writes it in one dtype, draws with awkward values, and the checks that take an op as a function.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from tolerance import assert_two_times
from torch import Tensor

from fastforget.reference.membership import lira as reference_lira
from fastforget.reference.membership import rmia as reference_rmia
from fastforget.reference.membership import roc as reference_roc

Ops = dict[str, Callable[..., None]]
Shape = tuple[int, int, int]  # models, samples, queries
FLOATS = (torch.float32, torch.float64)
SHAPES: list[Shape] = [(0, 3, 1), (1, 5, 1), (2, 4, 3), (3, 0, 1), (4, 3, 0), (5, 300, 1), (8, 33, 3), (9, 40, 300), (33, 70, 2)]
SHAPES += [(64, 257, 1)]
# for where a step is slow
FEW_SHAPES: list[Shape] = [(0, 3, 1), (1, 5, 1), (2, 4, 3), (3, 0, 1), (4, 3, 0), (7, 150, 1), (20, 9, 2)]


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    if dtype.is_floating_point:
        return torch.full(shape, math.nan, dtype=dtype)
    return torch.full(shape, -(2**40), dtype=dtype)


def shadow(models: int, samples: int, queries: int, dtype: torch.dtype, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Scores and membership: IN scores lie higher, sides are unequal, and some samples have one side only."""
    member = torch.rand(models, samples) < 0.5
    if samples > 2:
        member[:, 0], member[:, 1] = True, False
    scores = 3.0 * torch.randn(models, samples, queries, dtype=torch.float64) + 4.0 * member[:, :, None] + 50.0
    return ((scores * 2).round() / 2 if ties else scores).to(dtype), member


def awkward(models: int, samples: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Columns with a NaN, infinities of one or both signs, zeros of both signs, equal values and one value far off."""
    scores, member = shadow(models, samples, 1, dtype)
    for column in range(samples):
        kind = column % 8
        if kind < 4 and models > 3:
            scores[column % models, column] = (math.nan, math.inf, -math.inf, 1e6)[kind]
        if kind == 4:
            scores[:, column] = torch.tensor([0.0, -0.0, 1.0])[torch.arange(models) % 3, None]
        if kind == 5:
            scores[:, column] = 7.25
        if kind == 6 and models > 3:
            scores[:2, column, 0] = torch.tensor([math.inf, -math.inf])
    return scores, member


class Plain:
    """LiRA in one numpy dtype, two passes, as one writes it without thinking about rounding."""

    def __init__(self, dtype: type) -> None:
        self.dtype = dtype

    def group(self, values: np.ndarray, median: bool) -> tuple[np.ndarray, np.ndarray]:
        """Location and variance over models [M, A]."""
        n = values.shape[0]
        if n == 0:
            return (np.full(values.shape[1], np.nan, self.dtype),) * 2
        mean = values.sum(0, dtype=self.dtype) / self.dtype(n)
        variance = np.square(values - mean).sum(0, dtype=self.dtype) / self.dtype(n)
        if not median:
            return mean, variance
        ordered = np.sort(values, axis=0)
        middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / self.dtype(2)
        return np.where(np.isnan(mean), mean, middle), variance

    def stats(self, scores: Tensor, member: Tensor, median: bool) -> tuple[Tensor, Tensor]:
        values, on = scores.double().numpy().astype(self.dtype), member.numpy()
        _, samples, queries = values.shape
        center, variance = (np.full((2, samples, queries), np.nan, self.dtype) for _ in range(2))
        for side, n in itertools.product((0, 1), range(samples)):
            center[side, n], variance[side, n] = self.group(values[on[:, n] == bool(side), n], median)
        return self.tensor(center), self.tensor(variance)

    def tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float64))

    def ratio(self, t: np.ndarray, c: np.ndarray, v: np.ndarray, count: np.ndarray, mode: int, floor: float, least: int):
        """t [..., N, A], c and v [2, N, A], count [2, N] -> [..., N]."""
        real = self.dtype
        enough = (count[0] >= least) & ((mode != reference_lira.ONLINE) | (count[1] >= least)) & (t.shape[-1] > 0)
        v = np.where(v < floor, real(floor), v)
        z = (t - c[0]) / np.sqrt(v[0]), (t - c[1]) / np.sqrt(v[1])
        if mode == reference_lira.ONE_SIDED:
            score = z[0]
        elif mode == reference_lira.DENSITY:
            score = z[0] * z[0] / real(2) + np.log(real(2) * real(np.pi) * v[0]) / real(2)
        else:
            score = (z[0] * z[0] - z[1] * z[1]) / real(2) + np.log(v[0] / v[1]) / real(2)
        return np.where(enough, score.sum(-1, dtype=real) / real(t.shape[-1]), real(np.nan))

    def ratios(self, target: Tensor, center: Tensor, variance: Tensor, count: Tensor, *rule) -> Tensor:
        t, c, v = (x.double().numpy().astype(self.dtype) for x in (target, center, variance.expand_as(center)))
        return self.tensor(self.ratio(t, c, v, count.numpy(), *rule))

    def loo(self, scores: Tensor, member: Tensor, median: bool, variance: Tensor, *rule) -> Tensor:
        values, on = scores.double().numpy().astype(self.dtype), member.numpy()
        fixed = variance.double().numpy().astype(self.dtype)
        out = np.full(values.shape[:2], np.nan, self.dtype)
        for s, n in np.ndindex(*values.shape[:2]):
            others, of = np.delete(values[:, n], s, 0), np.delete(on[:, n], s)
            groups = [self.group(others[of == bool(side)], median) for side in (0, 1)]
            center, own = (np.stack(pair) for pair in zip(*groups, strict=True))
            used = np.broadcast_to(fixed[:, None], own.shape) if len(fixed) else own
            count = np.array([[(~of).sum()], [of.sum()]])
            out[s, n] = self.ratio(values[s, n][None], center[:, None], used[:, None], count, *rule)[0]
        return self.tensor(out)


EXACT = Plain(np.longdouble)


def plain(dtype: torch.dtype) -> Plain:
    return Plain(np.float64 if dtype == torch.float64 else np.float32)


def check_stats(op: Callable[..., None], scores: Tensor, member: Tensor, median: bool, what: str) -> None:
    _, samples, queries = scores.shape
    center, variance = (poisoned(2, samples, queries, dtype=scores.dtype) for _ in range(2))
    count = poisoned(2, samples, dtype=torch.int64)
    op(scores, member, median, center, variance, count)
    exact, theirs = EXACT.stats(scores, member, median), plain(scores.dtype).stats(scores, member, median)
    assert torch.equal(count, torch.stack(((~member).sum(0), member.sum(0)))), what
    for name, got, p, e in zip(("center", "variance"), (center, variance), theirs, exact, strict=True):
        # a float32 quotient may be out of float32's range
        assert_two_times(got, p.to(scores.dtype), e.to(scores.dtype).double() if name == "center" else e, f"{name} {what}")


def check_all_stats(ops: Ops, shapes: list[Shape] = SHAPES) -> None:
    for shape, dtype, ties, median in itertools.product(shapes, FLOATS, (False, True), (False, True)):
        scores, member = shadow(*shape, dtype, ties)
        check_stats(ops["lira_stats"], scores, member, median, f"{shape} {dtype} ties={ties} median={median}")
    for models, dtype, median in itertools.product((1, 2, 7, 20), FLOATS, (False, True)):
        scores, member = awkward(models, 48, dtype)
        check_stats(ops["lira_stats"], scores, member, median, f"awkward {models} {dtype} median={median}")


def check_far_from_zero(ops: Ops) -> None:
    """A spread of 1e-3 around 1e4: E[x^2] - mean^2 in float32 has no digit of the variance left."""
    scores = (1e4 + 1e-3 * torch.randint(-9, 9, (50, 40, 1))).float()
    member = torch.rand(50, 40) < 0.5
    for median in (False, True):
        check_stats(ops["lira_stats"], scores, member, median, "far from zero")


RULES = [(0, 0.0, 1), (0, 1e-2, 2), (1, 0.0, 1), (1, 4.0, 3), (2, 1e-6, 0), (2, 0.0, 2)]


def check_all_ratios(ops: Ops, shapes: list[Shape] = SHAPES) -> None:
    for (models, samples, queries), dtype, rule in itertools.product(shapes, FLOATS, RULES):
        scores, member = shadow(models, samples, queries, dtype)
        center, variance = (x.to(dtype) for x in EXACT.stats(scores, member, median=False))
        count = torch.stack(((~member).sum(0), member.sum(0)))
        for targets, one in ((1, False), (11, True)):
            # more targets than ours: a few would measure plain arithmetic's luck
            target = 3.0 * torch.randn(max(64, targets), samples, queries, dtype=dtype) + 52.0
            used = torch.tensor([4.0, 9.0], dtype=dtype).view(2, 1, 1) if one else variance
            out = poisoned(targets, samples, dtype=dtype)
            ops["lira_ratio"](target[:targets], center, used, count, *rule, out)
            arguments = target, center, used, count, *rule
            what = f"ratio {models}x{samples}x{queries} {dtype} {rule} one={one}"
            assert_two_times(out, plain(dtype).ratios(*arguments).to(dtype), EXACT.ratios(*arguments), what)


def check_loo(op: Callable[..., None], scores: Tensor, member: Tensor, median: bool, variance: Tensor, rule: tuple, what: str) -> None:
    out = poisoned(*member.shape, dtype=scores.dtype)
    op(scores, member, median, variance, *rule, out)
    arguments = scores, member, median, variance, *rule
    exact, theirs = EXACT.loo(*arguments), plain(scores.dtype).loo(*arguments)
    assert_two_times(out, theirs.to(scores.dtype), exact, what)


def check_all_loo(ops: Ops, shapes: list[Shape] = SHAPES, awkward_models: tuple[int, ...] = (1, 2, 3, 7, 20)) -> None:
    cases = itertools.product([s for s in shapes if s[0] * s[1] * s[2] < 9000], FLOATS, (False, True), (False, True))
    for turn, (shape, dtype, median, ties) in enumerate(cases):
        scores, member = shadow(*shape, dtype, ties)
        rule = RULES[turn % len(RULES)]
        if ties and rule[1] == 0.0:
            rule = (rule[0], 1e-3, rule[2])  # equal values have variance 0, and what divides it by 0 is noise
        variance = torch.tensor([4.0, 9.0] if turn % 3 == 0 else [], dtype=dtype)
        check_loo(ops["lira_loo"], scores, member, median, variance, rule, f"loo {shape} {dtype} {rule} median={median}")
    for models, dtype, median in itertools.product(awkward_models, FLOATS, (False, True)):
        scores, member = awkward(models, 24, dtype)
        for variance in ([], [4.0, 9.0]):
            fixed = torch.tensor(variance, dtype=dtype)
            check_loo(ops["lira_loo"], scores, member, median, fixed, (0, 1e-3, 1), f"loo awkward {models} {dtype} median={median}")


def check_updates(ops: Ops, shapes: list[Shape] = SHAPES) -> None:
    for (models, samples, queries), dtype in itertools.product(shapes, FLOATS):
        scores, _ = shadow(models, samples, queries, dtype)
        member = torch.randint(-1, 2, (models, samples), dtype=torch.int8)
        empty = torch.zeros(2, samples, dtype=torch.int64), *torch.zeros(2, 2, samples, queries, dtype=torch.float64)
        state = [[x.clone() for x in empty] for _ in range(2)]
        for part in (slice(0, models // 2), slice(models // 2, models)):
            ops["lira_update_"](scores[part], member[part], *state[0])
            reference_lira.lira_update_(scores[part], member[part], *state[1])
        (count, mean, m2), (expected, p_mean, p_m2) = state
        assert torch.equal(count, expected)
        for side in (0, 1):
            only = [scores[member[:, n] == side, n].double().numpy().astype(np.longdouble) for n in range(samples)]
            groups = [EXACT.group(x, median=False) for x in only]
            n = count[side].numpy().astype(np.longdouble)[:, None]
            shape = samples, queries
            exact_mean = np.array([np.where(len(x), g[0], 0) for x, g in zip(only, groups, strict=True)]).reshape(shape)
            exact_m2 = np.array([np.where(len(x), g[1], 0) for x, g in zip(only, groups, strict=True)]).reshape(shape) * n
            assert_two_times(mean[side], p_mean[side], EXACT.tensor(exact_mean), f"mean {models}x{samples}x{queries} {dtype}")
            assert_two_times(m2[side], p_m2[side], EXACT.tensor(exact_m2), f"m2 {models}x{samples}x{queries} {dtype}")


# ---- counts


def ratios(rows: int, size: int, dtype: torch.dtype, ties: bool) -> Tensor:
    """Likelihood ratios >= 0, with zeros of both signs, infinities, NaN, the smallest and the largest numbers."""
    values = torch.randn(rows, size, dtype=torch.float64).mul(2).exp()
    values = ((values * 4).round() / 4 if ties else values).to(dtype)
    limits = torch.finfo(dtype)
    odd = torch.tensor([0.0, -0.0, math.inf, math.nan, -math.nan, limits.tiny, limits.tiny / 8, limits.max, 1.0, 2.0])
    places = torch.randperm(size)[: size // 4]
    values[:, places] = odd.to(dtype)[torch.randint(0, len(odd), (rows, len(places)))]
    return values


GAMMAS = [2.0, 1.0, 1.5, 0.1, 0.0, -1.0, math.inf, math.nan, 1e-40]
COUNTED: list[Shape] = [(1, 300, 500), (3, 70, 33), (2, 0, 5), (2, 5, 0), (0, 3, 3), (1, 1, 1), (5, 1, 2), (18, 40, 30)]


def check_rmia_counts(ops: Ops, shapes: list[Shape] = COUNTED) -> None:
    for (rows, n, zs), dtype, strict, ties in itertools.product(shapes, FLOATS, (False, True), (False, True)):
        x, z = ratios(rows, n, dtype, ties), ratios(rows, zs, dtype, ties)
        for gammas in ([], [1.0], GAMMAS * (8 if rows == 3 and n == 70 else 1)):
            got, expected = (poisoned(len(gammas), rows, n, dtype=torch.int64) for _ in range(2))
            ops["rmia_counts"](x, z, gammas, strict, got)
            reference_rmia.rmia_counts(x, z, gammas, strict, expected)
            assert torch.equal(got, expected), f"{rows}x{n}x{zs} {dtype} strict={strict} ties={ties}"


def check_rmia_vote(ops: Ops, shapes: list[Shape] = COUNTED) -> None:
    for (queries, n, zs), dtype, strict, ties in itertools.product(shapes, FLOATS, (False, True), (False, True)):
        x, z = ratios(queries, n, dtype, ties), ratios(queries, zs, dtype, ties)
        for gamma in GAMMAS:
            got, expected = (poisoned(n, dtype=torch.int64) for _ in range(2))
            ops["rmia_vote"](x, z, gamma, strict, got)
            reference_rmia.rmia_vote(x, z, gamma, strict, expected)
            assert torch.equal(got, expected), f"{queries}x{n}x{zs} {dtype} {gamma} strict={strict} ties={ties}"


def check_even_votes(ops: Ops) -> None:
    """One query for, one against: no majority. Two of three are one."""
    x, z = torch.tensor([[4.0], [1.0], [4.0]]), torch.ones(3, 7)
    for queries, due in ((2, 0), (3, 7)):
        got = poisoned(1, dtype=torch.int64)
        ops["rmia_vote"](x[:queries], z[:queries], 2.0, False, got)
        assert got.item() == due


def check_bootstraps(ops: Ops, sizes: list[tuple[int, int, int]]) -> None:
    rates = [0.0, 1e-3, 0.01, 0.1, 0.5, 1.0]
    for turn, ((n1, n0, resamples), dtype) in enumerate(itertools.product(sizes, FLOATS)):
        member, nonmember = torch.randn(n1, dtype=dtype) + 0.5, torch.randn(n0, dtype=dtype)
        if turn % 2:
            member, nonmember = (member * 3).round() / 3, (nonmember * 3).round() / 3  # also zeros of both signs
            member[0] = nonmember[0] = math.inf
        fprs = (rates, [], rates + [i / 23 for i in range(20)])[turn % 3]
        seed = (3, -1, 2**63 - 1)[turn % 3]
        got, expected = (poisoned(resamples, 1 + len(fprs), dtype=torch.float64) for _ in range(2))
        ops["roc_bootstrap"](member, nonmember, fprs, seed, got)
        reference_roc.roc_bootstrap(member, nonmember, fprs, seed, expected)
        assert torch.equal(got, expected), f"bootstrap {n1}+{n0} {dtype}"
