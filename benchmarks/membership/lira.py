"""LiRA: scores of a target from shadow models (stored, leave-one-out, streamed) against the procedures in use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastforget.ops import membership

from ..cases import Case, Judge, Options, Place, Work, compiled, limit

SHAPES = {"16x50000": (16, 50_000), "64x50000": (64, 50_000), "256x20000": (256, 20_000)}
LOO_SHAPE = (32, 5000)
FLOOR = 1e-12
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
Scorer = Callable[[Tensor, Tensor, Tensor], Tensor]


def masked_means(target: Tensor, scores: Tensor, member: Tensor) -> Tensor:
    """Masked sums in two passes over [models, samples], as one writes them in PyTorch."""
    inside = member.to(scores.dtype)
    outside = 1.0 - inside
    n_in, n_out = inside.sum(0), outside.sum(0)
    mean_in, mean_out = (scores * inside).sum(0) / n_in, (scores * outside).sum(0) / n_out
    var_in = ((scores - mean_in).square() * inside).sum(0) / n_in + FLOOR
    var_out = ((scores - mean_out).square() * outside).sum(0) / n_out + FLOOR
    return 0.5 * ((target - mean_out).square() / var_out - (target - mean_in).square() / var_in + (var_out / var_in).log())


def masked_medians(target: Tensor, scores: Tensor, member: Tensor) -> Tensor:
    """torch's nanmedian is the lower of the middle two; that of the negative scores is the upper."""
    terms = []
    for on in (~member, member):
        chosen = torch.where(on, scores, math.nan)
        middle = 0.5 * (chosen.nanmedian(0).values - (-chosen).nanmedian(0).values)
        variance = (chosen - chosen.nanmean(0)).square().nanmean(0) + FLOOR
        terms.append((target - middle).square() / variance + variance.log())
    return 0.5 * (terms[0] - terms[1])


def log_density(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """scipy.stats.norm.logpdf, without its checks of the arguments."""
    z = (x - mean) / std
    return -0.5 * z * z - HALF_LOG_TWO_PI - np.log(std)


def numpy_nan(target: Tensor, scores: Tensor, member: Tensor) -> Tensor:
    """nanmean and nanstd over the models, then the two log-densities."""
    t, s, m = target.numpy(), scores.numpy(), member.numpy()
    logs = []
    for on in (m, ~m):
        chosen = np.where(on, s, np.float32(np.nan))
        logs.append(log_density(t, np.nanmean(chosen, axis=0), np.nanstd(chosen, axis=0) + 1e-30))
    return torch.from_numpy(logs[0] - logs[1])


def lists(target: Tensor, scores: Tensor, member: Tensor) -> Tensor:
    """The paper's code: a list of IN and one of OUT scores a sample, all cut to the shortest, medians, two log-densities."""
    t, s, m = target.numpy(), scores.numpy(), member.numpy()
    inside, outside = [], []
    for j in range(s.shape[1]):
        inside.append(s[m[:, j], j])
        outside.append(s[~m[:, j], j])
    logs = []
    for group in (inside, outside):
        size = min(map(len, group))
        table = np.array([x[:size] for x in group])
        logs.append(log_density(t, np.median(table, 1), np.std(table, 1) + 1e-30))
    return torch.from_numpy(logs[0] - logs[1])


def _draw(place: Place, models: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every sample in exactly half of the models, as the attack's shadow models are drawn."""
    scores, target = place.normal(models, samples), place.normal(samples)
    order = place.uniform(models, samples).argsort(0)
    member = place.empty(models, samples, dtype=torch.bool)
    member.copy_(order.argsort(0) < models // 2)
    scores.add_(member, alpha=1.5)
    return target, scores, member


def _stored_work(place: Place, models: int, samples: int, location: str, options: Options) -> Work:
    data = _draw(place, models, samples)
    target, scores, member = data
    plain: Scorer = masked_medians if location == "median" else masked_means
    run: dict[str, Callable[[], Any]] = {
        "ours": lambda: membership.lira(target, scores, member, location=location),
        "eager": lambda: plain(*data),
        **limit([scores], "read"),
    }
    if scores.device.type == "cpu":
        if location == "median":
            run["published"] = lambda: lists(*data)
        else:
            run["numpy"] = lambda: numpy_nan(*data)
    if options.compiled and location == "mean":
        form = compiled(plain)
        run["compiled"] = lambda: form(*data)
    truth = plain(target.double(), scores.double(), member)
    return Work(run, Judge([truth], lambda _name, result: [result]))


def lira(label: str, models: int, samples: int, location: str, options: Options, large: bool) -> Case:
    return Case(
        "lira_stats",
        label,
        f"{models}x{samples}",
        "float32",
        models * samples,
        lambda place: _stored_work(place, models, samples, location, options),
        bytes_touched=5 * models * samples + 8 * samples,
        unit="score",
        family="membership",
        large=large,
        published="the paper's lists and medians" if location == "median" else "",
    )


def _loo_work(place: Place, models: int, samples: int) -> Work:
    _, scores, member = _draw(place, models, samples)

    def loop(scores: Tensor) -> Tensor:
        """Each model against the others, one after the other."""
        keep = torch.arange(models, device=scores.device)
        parts = [masked_means(scores[i], scores[keep != i], member[keep != i]) for i in range(models)]
        return torch.stack(parts)

    run: dict[str, Callable[[], Any]] = {
        "ours": lambda: membership.lira("loo", scores, member),
        "eager": lambda: loop(scores),
        **limit([scores], "read"),
    }
    return Work(run, Judge([loop(scores.double())], lambda _name, result: [result]))


def loo(label: str, models: int, samples: int, large: bool) -> Case:
    return Case(
        "lira_loo",
        label,
        f"{models}x{samples}",
        "float32",
        models * samples,
        lambda place: _loo_work(place, models, samples),
        bytes_touched=9 * models * samples,
        unit="score",
        family="membership",
        large=large,
    )


def _stream_work(place: Place, samples: int) -> Work:
    mean = place.zeros(2, samples, 1, dtype=torch.float64)
    m2, count = torch.zeros_like(mean), torch.zeros(2, samples, dtype=torch.int64, device=mean.device)
    state = membership.Lira(samples, device=mean.device)
    state._count, state._mean, state._m2 = count, mean, m2
    scores, member = place.normal(samples), place.uniform(samples) < 0.5

    def eager() -> Tensor:
        """Welford's step, a side after the other."""
        for side, on in enumerate((~member, member)):
            count[side] += on
            distance = scores.double() - mean[side, :, 0]
            moved = mean[side, :, 0] + distance / count[side].clamp_min(1)
            m2[side, :, 0] += torch.where(on, distance * (scores - moved), 0.0)
            mean[side, :, 0] = torch.where(on, moved, mean[side, :, 0])
        return mean

    def reset() -> None:
        for x in (mean, m2, count):
            x.zero_()

    truth = torch.stack((torch.where(member, 0.0, scores.double()), torch.where(member, scores.double(), 0.0))).unsqueeze(-1)

    def ours() -> Tensor:
        state.update(scores, member)
        return mean

    return Work({"ours": ours, "eager": eager}, Judge([truth], lambda _name, result: [result]), reset)


def update(label: str, samples: int, large: bool) -> Case:
    return Case(
        "lira_update_",
        label,
        f"{samples}",
        "float32",
        samples,
        lambda place: _stream_work(place, samples),
        bytes_touched=101 * samples,
        unit="score",
        family="membership",
        large=large,
    )


def cases(options: Options) -> list[Case]:
    rows = [lira(label, *shape, "mean", options, shape[0] > 16) for label, shape in SHAPES.items()]
    rows += [lira(f"median {label}", *shape, "median", options, True) for label, shape in SHAPES.items()]
    return [*rows, loo("32x5000", *LOO_SHAPE, True), update("50000", 50_000, False)]
