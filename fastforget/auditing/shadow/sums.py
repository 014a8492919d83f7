"""What shadow models answered about samples, as running sums, and the attacks that need no more than those.

Models are taken in one after another. Each gives its scores of all samples, and for each sample the side it is on: trained without the
sample (OUT, 0) or with it (IN, 1). Memory depends on the samples and the queries, not on the number of models. The same sums serve a pool
of samples while shadow models are trained on it, and a chunk of the samples whose scores are read from files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...ops.membership import Lira, rmia
from ...ops.membership._rmia import log_reference, vote_shares

_PARTS = ("lira", "unlearned", "probabilities", "larger_losses")
_TRAINED_ON = torch.tensor([[False], [True]])  # the OUT and the IN side


class Probabilities:
    """RMIA's sums: the probabilities of the label, added up in logarithms over the models of each side.

    Attributes:
        log_sum: float64[sides, n, A]. A population that no model was trained on has one side, OUT.
    """

    def __init__(self, n_samples: int, queries: int = 1, sides: int = 2) -> None:
        self.log_sum = torch.full((sides, n_samples, queries), -torch.inf, dtype=torch.float64)

    def __len__(self) -> int:
        return self.log_sum.shape[1]

    def add(self, loss: Tensor, side: Tensor) -> None:
        """Takes in one model: its losses [n, A], and the side it is on for each sample, [n]; any other number than 0 and 1 is left out."""
        for number, log_sum in enumerate(self.log_sum):
            chosen = side == number
            log_sum[chosen] = torch.logaddexp(log_sum[chosen], -loss[chosen].double())

    def merge(self, other: Probabilities) -> None:
        self.log_sum = torch.logaddexp(self.log_sum, other.log_sum)

    def log_mean(self, count: Tensor, index: Tensor | None = None) -> Tensor:
        """Logarithms of the mean probabilities, [sides, n, A], of ``count`` models [sides, n]; NaN where there is no model."""
        times = count.double().unsqueeze(-1)
        log_sum = self.log_sum if index is None else self.log_sum[:, index]
        return torch.where(times > 0, log_sum - times.log(), torch.nan)


class LargerLosses:
    """Attack R's sums: how many of the models trained without a sample have a larger loss on it than the target has.

    Attributes:
        count: float64[n, A].
    """

    def __init__(self, target_loss: Tensor) -> None:
        self.target_loss = target_loss
        self.count = torch.zeros(target_loss.shape, dtype=torch.float64)

    def add(self, loss: Tensor, side: Tensor) -> None:
        self.count += ((side == 0)[:, None] & (loss > self.target_loss)).double()

    def merge(self, other: LargerLosses) -> None:
        self.count += other.count

    def share(self, models: Tensor) -> Tensor:
        """Attack R's scores float64[n]: the share among ``models`` [n], the mean over the queries; NaN where the target's loss is NaN."""
        share = (self.count / models.double()[:, None]).mean(dim=1)
        return torch.where(torch.isnan(self.target_loss).any(dim=1), torch.nan, share)


class ShadowSums:
    """The sums of all attacks over n samples.

    Args:
        n_samples, queries: n, and A scores a sample and model.
        probabilities: keep RMIA's sums.
        unlearned: keep U-LiRA's moments.
        target_loss: [n, A], the losses of the target, for attack R. They must be known before the first model comes.

    Attributes:
        lira: moments of the logit-scaled confidences.
        unlearned: moments of those of models that were trained with the sample and unlearned it (1), against models that never had it (0).
        probabilities, larger_losses: RMIA's and attack R's sums. All three are ``None`` if they are not kept.

    >>> import torch
    >>> sums = ShadowSums(2)
    >>> for score, member in ((0.0, [False, True]), (2.0, [False, True]), (4.0, [True, False]), (6.0, [True, False])):
    ...     scores = torch.full((2, 1), score)
    ...     sums.add(scores, torch.nn.functional.softplus(-scores), torch.tensor(member))
    >>> sums.count.tolist(), sums.lira_scores(torch.tensor([[5.0], [5.0]])).tolist()
    ([[2, 2], [2, 2]], [8.0, -8.0])
    """

    def __init__(
        self, n_samples: int, queries: int = 1, *, probabilities: bool = True, unlearned: bool = False, target_loss: Tensor | None = None
    ) -> None:
        self.lira = Lira(n_samples, queries)
        self.unlearned = Lira(n_samples, queries) if unlearned else None
        self.probabilities = Probabilities(n_samples, queries) if probabilities else None
        self.larger_losses = None if target_loss is None else LargerLosses(target_loss)

    @property
    def count(self) -> Tensor:
        """int64[2, n]: OUT and IN models of each sample."""
        return self.lira.count

    def add(self, logit_confidence: Tensor, loss: Tensor, side: Tensor, unlearned: tuple[Tensor, Tensor] | None = None) -> None:
        """Takes in one model.

        Args:
            logit_confidence, loss: [n, A]. A NaN makes the sample's sums NaN for good: leave the sample out with -1.
            side: bool or int8 [n], 1 for a sample the model was trained on, 0 for another, -1 to leave the sample out.
            unlearned: int8[n] of 1 for a sample that was unlearned, 0 for one the model never had, and -1 for one that it still has; and
                the logit-scaled confidences [n, A] after unlearning.
        """
        self.lira.update(logit_confidence[None], side[None])
        if self.probabilities is not None:
            self.probabilities.add(loss, side)
        if self.larger_losses is not None:
            self.larger_losses.add(loss, side)
        if unlearned is not None:
            assert self.unlearned is not None
            self.unlearned.update(unlearned[1][None], unlearned[0][None])

    def merge(self, other: ShadowSums) -> None:
        """Adds the models that ``other`` has seen of the same samples; ``other`` stays as it is.

        Raises:
            ValueError: other sizes, or not the sums of the same attacks.
        """
        pairs: list[tuple[Any, Any]] = [(getattr(self, name), getattr(other, name)) for name in _PARTS]
        if any((ours is None) != (theirs is None) for ours, theirs in pairs):
            raise ValueError(f"other: it keeps the sums {other._kept()}; accepted are the same as here, {self._kept()}")
        for ours, theirs in pairs:
            if ours is not None:
                ours.merge(theirs)

    def _kept(self) -> list[str]:
        return [name for name in _PARTS if getattr(self, name) is not None]

    def _moments(self) -> Iterator[tuple[str, Lira]]:
        yield "lira", self.lira
        if self.unlearned is not None:
            yield "unlearned", self.unlearned

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all sums, by name."""
        state = {f"{name}.{entry}": value for name, lira in self._moments() for entry, value in lira.state_dict().items()}
        if self.probabilities is not None:
            state["log_p"] = self.probabilities.log_sum.clone()
        if self.larger_losses is not None:
            state["larger_losses"] = self.larger_losses.count.clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what :meth:`state_dict` of sums for the same attacks and sizes returned; foreign entries are passed over.

        Raises:
            KeyError, ValueError: a missing entry, or one of another shape.
        """
        for name, lira in self._moments():
            lira.load_state_dict({key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{name}.")})
        if self.probabilities is not None:
            self.probabilities.log_sum = _like(self.probabilities.log_sum, state["log_p"], "log_p")
        if self.larger_losses is not None:
            self.larger_losses.count = _like(self.larger_losses.count, state["larger_losses"], "larger_losses")

    def lira_scores(self, target: Tensor, *, unlearned: bool = False, index: Tensor | None = None, **options: Any) -> Tensor:
        """LiRA's scores of the target's logit-scaled confidences [n, A]; with ``unlearned`` U-LiRA's.

        ``index`` and ``options`` are those of :meth:`fastforget.ops.membership.Lira.score`.
        """
        lira = self.unlearned if unlearned else self.lira
        assert lira is not None
        return lira.score(target if lira.queries > 1 else target[:, 0], index=index, **options)

    def log_means(self, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Two reference models for RMIA, which answer with the mean probabilities of the OUT and of the IN models.

        Returns:
            Their log probabilities [2, n, A], NaN where a side has no model, and bool[2, n]: which of them was trained on the samples.
        """
        assert self.probabilities is not None
        count = self.count if index is None else self.count[:, index]
        means = self.probabilities.log_mean(count, index)
        return means, _TRAINED_ON.expand(2, means.shape[1])

    def log_reference(self, a: float | None, *, never_in: bool = False) -> Tensor:
        """Logarithms of RMIA's reference probability p, [n, A]: offline with ``a``, online with ``None``.

        Args:
            never_in: no model was trained on any of the samples, so that their online p is the mean of the OUT models.
        """
        means, online = self.log_means()[0], a is None
        flat, shape = means.reshape(2, -1), means.shape[1:]
        member = _TRAINED_ON.expand(flat.shape)
        return log_reference(flat, member, online and not never_in, [] if a is None else [a], online)[0].view(shape)

    def attack_r_scores(self) -> Tensor:
        """Attack R's scores float64[n] of the target whose losses were given at the start."""
        assert self.larger_losses is not None
        return self.larger_losses.share(self.count[0])


def _like(there: Tensor, given: Tensor, name: str) -> Tensor:
    if given.shape != there.shape or given.dtype != there.dtype:
        raise ValueError(f"{name}: got {given.dtype}{list(given.shape)}; accepted is {there.dtype}{list(there.shape)}")
    return given.clone()


def rmia_of_log_ratios(log_ratio: Tensor, log_ratio_z: Tensor | None, gamma: float, strict: bool) -> Tensor:
    """RMIA's scores [n] from log(p_target / p) [A, n], in whose memory it works, and of the population [A, Z].

    Without a population the samples are compared with one another: of one query, each is left out of its own comparison.
    """
    itself = log_ratio_z is None
    others = log_ratio if log_ratio_z is None else log_ratio_z
    if len(log_ratio) > 1:
        ratio = log_ratio.exp_()
        return vote_shares(ratio, ratio if itself else others.exp_(), gamma, strict)
    # the ratio is the target's probability beside that of a reference model which always answers with probability 1
    ones, ones_z = (torch.zeros((), dtype=torch.float64).expand(1, r.shape[1]) for r in (log_ratio, others))
    own = torch.ones(log_ratio.shape[1], dtype=torch.bool) if itself and log_ratio.shape[1] > 1 else None
    return rmia(log_ratio[0], ones, others[0], ones_z, mode="offline", a=1.0, gamma=gamma, strict=strict, self_in_z=own)


class CommonVariance:
    """LiRA with one variance a side for all samples, of samples that come in chunks.

    The variance is known only when all chunks were seen. Until then the samples' means and counts are kept, and sums of the spread.
    """

    def __init__(self, n_samples: int, queries: int) -> None:
        self.target = torch.empty((n_samples, queries), dtype=torch.float64)
        self.mean = torch.empty((2, n_samples, queries), dtype=torch.float64)
        self.count = torch.empty((2, n_samples), dtype=torch.int64)
        self.weight, self.grand, self.within, self.between, self.deviations, self.there = torch.zeros((6, 2), dtype=torch.float64)

    def add(self, low: int, target: Tensor, sums: ShadowSums) -> None:
        """Takes in a chunk: the samples from number ``low`` on, the target's scores [n, A] and the models' sums."""
        state, part = sums.lira.state_dict(), slice(low, low + len(target))
        self.target[part], self.mean[:, part], self.count[:, part] = target.double(), state["mean"], state["count"]
        n, queries = state["count"].double().unsqueeze(-1), target.shape[1]
        weight = n.sum(dim=(1, 2)) * queries
        grand = (n * state["mean"]).sum(dim=(1, 2)) / weight.clamp_min(1.0)
        between = (n * (state["mean"] - grand.view(2, 1, 1)).square()).sum(dim=(1, 2))
        # two parts' spreads about their common mean: Chan et al., 1979
        total, distance = (self.weight + weight).clamp_min(1.0), grand - self.grand
        self.between += between + distance.square() * self.weight * weight / total
        self.grand += distance * weight / total
        self.weight += weight
        self.within += state["m2"].sum(dim=(1, 2))
        self.deviations += (state["m2"] / n.clamp_min(1.0)).sqrt().sum(dim=(1, 2))
        self.there += (n > 0).sum(dim=(1, 2)) * queries

    def variance(self, rule: str) -> Tensor:
        """[2], as :func:`fastforget.ops.membership.lira` defines the rules."""
        if rule == "mean_std":
            return (self.deviations / self.there).square()
        if rule == "pooled":
            return self.within / self.weight
        both = (self.within + self.between) / self.weight
        return both[1:].expand(2) if rule == "global_in" else both

    def scores(self, rule: str, chunk: int, **options: Any) -> Tensor:
        """LiRA's scores float64[n]; ``options`` are those of :meth:`fastforget.ops.membership.Lira.score`."""
        common, (n, queries) = self.variance(rule).view(2, 1, 1), self.target.shape
        out = torch.empty(n, dtype=torch.float64)
        for low in range(0, n, chunk):
            part = slice(low, min(low + chunk, n))
            count, target = self.count[:, part], self.target[part]
            sums = ShadowSums(len(target), queries, probabilities=False)
            # moments of samples that all have the common variance
            m2 = (common * count.unsqueeze(-1)).expand_as(self.mean[:, part])
            sums.lira.load_state_dict({"count": count, "mean": self.mean[:, part], "m2": m2})
            out[part] = sums.lira_scores(target, min_count=1, **options)
        return out
