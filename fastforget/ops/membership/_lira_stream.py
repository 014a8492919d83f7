"""LiRA from a stream of shadow models: the moments of their scores as a state that can be merged."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _schema
from .. import _arguments as arg
from ._lira import VAR_FLOOR, _members, _one_variance, _ratio, _rule, _targets, _working_dtype

__all__ = ["Lira"]

_lira_update = _schema.overload("lira_update_")

class Lira:
    """LiRA from a stream of shadow models: running moments, 32 bytes a sample and query whatever the number of models.

    The state is float64 and mergeable, so processes can each take some of the models. Streamed scores equal :func:`lira`'s on stored
    scores up to rounding, and so do merges in any order. The median needs all scores: use :func:`lira` for that.

    Args:
        n_samples: N, the samples in question.
        queries: A, scores a sample and model.
        device: where the state lives, and where scores must be.

    Raises:
        TypeError, ValueError: sizes out of range.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> a, b = membership.Lira(1), membership.Lira(1)
    >>> for score, member in ((0.0, False), (4.0, True)):
    ...     _ = a.update(torch.tensor([score]), torch.tensor([member]))
    >>> _ = b.update(torch.tensor([[2.0], [6.0]]), torch.tensor([[False], [True]]))
    >>> a.merge(b).score(torch.tensor([5.0])).item(), a.count.tolist()
    (8.0, [[2], [2]])
    """

    def __init__(self, n_samples: int, queries: int = 1, device: torch.device | str = "cpu") -> None:
        self.n_samples = arg.integer("n_samples", n_samples, 0, 2**48)
        self.queries = arg.integer("queries", queries, 1, 2**31)
        shape = (2, self.n_samples, self.queries)
        self._count = torch.zeros(shape[:2], dtype=torch.int64, device=device)
        self._mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self._m2 = torch.zeros(shape, dtype=torch.float64, device=device)

    @property
    def count(self) -> Tensor:
        """int64[2, N]: OUT and IN models seen of each sample."""
        return self._count

    @property
    def device(self) -> torch.device:
        return self._count.device

    def __repr__(self) -> str:
        return f"Lira(n_samples={self.n_samples}, queries={self.queries}, device='{self.device}')"

    def _state(self) -> dict[str, Tensor]:
        return {"count": self._count, "mean": self._mean, "m2": self._m2}

    def update(self, scores: Tensor, member: Tensor) -> Lira:
        """Takes in one model's scores, [N] ([N, A] with queries > 1), or several models', [B, N] ([B, N, A]).

        Args:
            scores: any float dtype (16-bit types are widened). A NaN makes that sample's group NaN for good: skip it with -1 instead.
            member: bool or int8 with scores' shape less queries: 1 = trained with the sample (IN), 0 = without (OUT), -1 = skip.

        Returns:
            self.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device (the state stays as it was).
            RuntimeError: scores requires grad outside ``torch.no_grad()``.
        """
        arg.floating("scores", scores)
        arg.not_differentiable("Lira.update", scores=scores)
        one = (self.n_samples,) if self.queries == 1 else (self.n_samples, self.queries)
        got = tuple(scores.shape)
        if got != one and (got[1:] not in (one, (self.n_samples, self.queries)) or not got):
            raise ValueError(f"scores: got shape {got}; accepted is {one}, or (B, *{one}) for several models")
        models = 1 if got == one else got[0]
        lead = (self.n_samples,) if got == one else got[:2]
        if scores.device != self.device:
            raise ValueError(f"scores: on {scores.device}, but the state is on {self.device}; move one of them")
        member = _members(member, lead, self.device, (torch.bool, torch.int8), "bool, or int8 of 1, 0 and -1")
        full = scores.to(_working_dtype(scores)).reshape(models, self.n_samples, self.queries).contiguous()
        groups = member.to(torch.int8).reshape(models, self.n_samples).contiguous()
        state = list(self._state().values())
        arg.run("lira_update_", _lira_update, state, (full, groups, *state))
        return self

    def merge(self, other: Lira) -> Lira:
        """Adds the models that ``other`` has seen (Chan et al., 1979); ``other`` stays as it is.

        Returns:
            self.

        Raises:
            TypeError, ValueError: not a :class:`Lira`, other sizes, or another device.
        """
        if not isinstance(other, Lira):
            raise TypeError(f"other: got {arg.describe(other)}; accepted is a Lira")
        facts, others = ((x.n_samples, x.queries, x.device) for x in (self, other))
        if facts != others:
            raise ValueError(f"other: got {other!r}; accepted is one like this, {self!r}")
        total = self._count + other._count
        share = (other._count.to(torch.float64) / total.clamp_min(1)).unsqueeze(-1)
        distance = other._mean - self._mean
        self._m2 += other._m2 + distance.square() * share * self._count.unsqueeze(-1)
        # from the larger side, so that the result does not depend on which of the two is self
        self._mean = torch.where(share > 0.5, other._mean - distance * (1.0 - share), self._mean + distance * share)
        self._count = total
        return self

    def score(
        self,
        target: Tensor,
        *,
        mode: str = "online",
        location: str = "mean",
        variance: str = "per_example",
        tail: str = "one_sided",
        var_floor: float = VAR_FLOOR,
        min_count: int | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """:func:`lira`'s score of one target, [N] ([N, A]), or several, [T, N] ([T, N, A]), from the moments so far.

        With ``index``, int64[n], the target holds these samples only (n in place of N); a variance that is not per example is still that of
        all samples.

        Options and result as in :func:`lira`, in the target's dtype (float32 for 16-bit ones); computed in float64. "auto" goes by the
        sample with the most models.

        Raises:
            TypeError, ValueError: as :func:`lira`; ``location="median"``, which moments don't tell.

        """
        if location == "median":
            raise ValueError(
                "location: got 'median'; accepted is 'mean': the state holds moments, which do not tell a median. Keep the scores and "
                "use lira()"
            )
        most = int(self._count.sum(dim=0).max()) if variance == "auto" and self.n_samples else 0
        rule = _rule(mode, location, variance, tail, var_floor, min_count, most)
        if index is not None and (arg.tensor("index", index).dtype != torch.int64 or index.dim() != 1):
            raise TypeError(f"index: got {arg.describe(index)}; accepted is int64[n], positions of samples")
        samples = self.n_samples if index is None else len(index)
        shape = (samples,) if self.queries == 1 else (samples, self.queries)
        if self.queries == 1 and isinstance(target, Tensor) and target.dim() == 3 and target.shape[2] == 1:
            target = target.squeeze(-1)
        targets, single = _targets(target, shape, self.device)
        n = self._count.to(torch.float64).unsqueeze(-1)
        spread = self._m2 / n
        if rule[1] != "per_example":
            spread = _one_variance(rule[1], self._mean, spread, self._count).view(2, 1, 1).contiguous()
        mean, count = self._mean, self._count
        if index is not None:
            mean, count = mean[:, index], count[:, index]
            spread = spread[:, index] if rule[1] == "per_example" else spread
        return _ratio(targets, mean, spread, count, rule, single).to(_working_dtype(target))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the state's tensors: "count", "mean", "m2"."""
        return {name: x.clone() for name, x in self._state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> Lira:
        """Takes over what :meth:`state_dict` of a state with the same sizes returned (any device).

        Returns:
            self.

        Raises:
            ValueError: missing or foreign entries, another shape or dtype (the state stays as it was).
        """
        own = self._state()
        if not isinstance(state, dict) or set(state) != set(own):
            got = sorted(state) if isinstance(state, dict) else arg.describe(state)
            raise ValueError(f"state: got {got}; accepted are the entries {', '.join(own)} of state_dict()")
        for name, x in own.items():
            given = arg.tensor(f"state['{name}']", state[name])
            if given.shape != x.shape or given.dtype != x.dtype:
                raise ValueError(f"state['{name}']: got {arg.describe(given)}; accepted is shape {tuple(x.shape)}, {x.dtype}")
        self._count, self._mean, self._m2 = (state[name].to(self.device, copy=True).contiguous() for name in own)
        return self
