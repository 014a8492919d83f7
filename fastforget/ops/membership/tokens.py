"""Membership-inference scores of texts, from a causal language model's answers or from what comes before its last product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _arguments as arg
from .._head import COLUMNS, ROWS, LogProb, Table, chunks, computed_in, sums

__all__ = ["TokenScores", "perplexity_ratio", "token_log_probs", "token_scores"]

IGNORED = -100


class TokenScores(NamedTuple):
    """Per token [N, T] (NaN where it isn't scored) and per sequence [N] or [N, len(k)] (NaN where none of its tokens is, or one has no
    probability): float32, or float64 for float64 inputs. ``first`` is bool [N, T], ``length`` int64 [N].
    """

    log_prob: Tensor
    mean: Tensor
    variance: Tensor
    first: Tensor
    loss: Tensor
    min_k: Tensor
    min_k_plus: Tensor
    length: Tensor


def token_scores(
    outputs: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    k: Sequence[float] = (0.1, 0.2),
    shift: bool = True,
    ignore_index: int = IGNORED,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> TokenScores:
    """Scores of every token and every sequence in one pass over the vocabulary, without a second [N, T, V] table.

    With p the model's distribution at a token and y the token:

    - ``log_prob`` = log p_y; ``mean`` = sum_v p_v log p_v; ``variance`` = sum_v p_v (log p_v - mean)^2
    - ``first``: y is what argmax gives: no word is more probable, none before it as probable (False where it isn't scored)
    - ``loss``: minus the mean of ``log_prob`` over the sequence's scored tokens (the log of its perplexity)
    - ``min_k``: the mean of the lowest k of ``log_prob`` (Shi et al., ICLR'24)
    - ``min_k_plus``: the mean of the lowest k of (log_prob - mean) / sqrt(variance) (Zhang et al., Min-K%++, ICLR'25)
    - ``length``: scored tokens

    The lowest k are int(k * length) tokens, as in the code of Min-K%++'s authors, and at least one. A variance below the smallest normal
    number counts as that. Higher ``min_k`` and lower ``loss`` mean more member-like.

    Args:
        outputs: logits [N, T, V]; or hidden states [N, T, D] where ``weight`` is given: the logits are then made block by block, and
            memory depends neither on T nor on V. float32, bfloat16, float16 or float64; narrower than float32 is computed in float32.
        labels: int64 or int32 [N, T]: ``labels[:, t]`` is the token at t, as Hugging Face gives them. After padding on the left the
            first token has nothing before it either: give it ``ignore_index``.
        weight, bias: of the head, [V, D] and [V].
        k: shares in (0, 1].
        shift: the token at t is answered by ``outputs[:, t - 1]``, so the first has no score; else by ``outputs[:, t]``.
        ignore_index: labels that aren't scored.
        rows, columns: of a block.

    Returns:
        :class:`TokenScores`.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range.
        RuntimeError: an input requires grad outside ``torch.no_grad()``; for a gradient see :func:`token_log_probs`.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> s = membership.token_scores(torch.tensor([[[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0, 1, 0]]), k=(0.5,))
    >>> s.length.item(), [round(v, 4) for v in s.log_prob[0, 1:].tolist()], round(s.loss.item(), 4), round(s.min_k.item(), 4)
    (2, [-0.6931, -0.1269], 0.41, -0.6931)
    """
    named = _checked("token_scores", outputs, labels, weight, bias, shift, ignore_index, rows, columns)
    arg.not_differentiable("token_scores", **named)
    shares = _shares(k)
    scored = _scored(labels, shift, ignore_index)
    dtype = computed_in(outputs.dtype)
    tokens = torch.full((3, *labels.shape), math.nan, dtype=dtype, device=outputs.device)
    first = torch.zeros_like(scored)
    with torch.no_grad():
        table, wanted = _table(outputs, labels, scored, weight, bias, shift, columns)
        flat = torch.empty((3, len(table)), dtype=dtype, device=outputs.device)
        best = torch.empty(len(table), dtype=torch.bool, device=outputs.device)
        for start, stop in chunks(len(table), rows):
            own = sums(table, table.rows(start, stop), wanted[start:stop], moments=True)
            assert own.mean is not None and own.squares is not None and own.first is not None
            best[start:stop] = own.first
            mean = torch.where(own.total > 0, own.mean - own.log_total, math.nan)  # 0: all logits are -inf
            flat[:, start:stop] = torch.stack((own.log_prob, mean, own.squares / own.total))
        tokens[:, scored], first[scored] = flat, best
        return _by_sequence(tokens, first, scored, shares)


def _shares(k: Sequence[float]) -> tuple[float, ...]:
    accepted = "accepted are shares above 0 and at most 1, e.g. (0.1, 0.2)"
    try:
        shares = tuple(float(share) for share in k)
    except (TypeError, ValueError):
        raise TypeError(f"k: got {arg.describe(k)}; {accepted}") from None
    if not all(0.0 < share <= 1.0 for share in shares):
        raise ValueError(f"k: got {tuple(k)}; {accepted}")
    return shares


def _by_sequence(tokens: Tensor, first: Tensor, scored: Tensor, shares: Sequence[float]) -> TokenScores:
    log_prob, mean, variance = tokens
    count = scored.sum(dim=1)
    none = torch.where(count > 0, 0.0, math.nan).to(log_prob.dtype)
    loss = -torch.where(scored, log_prob, 0.0).sum(dim=1) / count.clamp_min(1) + none
    standard = (log_prob - mean) / variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
    lowest = [_mean_of_lowest(values, scored, count, shares) + none[:, None] for values in (log_prob, standard)]
    return TokenScores(log_prob, mean, variance, first, loss, lowest[0], lowest[1], count)


def _mean_of_lowest(values: Tensor, scored: Tensor, count: Tensor, shares: Sequence[float]) -> Tensor:
    """[N, len(shares)]; NaN where any value is."""
    unknown = (values.isnan() & scored).any(dim=1)
    ordered = values.masked_fill(~scored, math.inf).sort(dim=1).values
    place = torch.arange(values.shape[1], device=values.device)
    out = values.new_zeros((len(values), len(shares)))
    for i, share in enumerate(shares):
        most = (count.double() * share).floor().clamp_min(1)
        out[:, i] = ordered.masked_fill(place >= most[:, None], 0.0).sum(dim=1) / most.to(values.dtype)
    return out.masked_fill(unknown[:, None], math.nan)


def token_log_probs(
    outputs: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    shift: bool = True,
    ignore_index: int = IGNORED,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> Tensor:
    """log p of every token from hidden states and the head, with a gradient; the [N, T, V] table is never made.

    The backward pass makes each block of logits again. A sum over a row is the log-probability of its sequence.

    Args:
        outputs: hidden states [N, T, D].
        labels, weight, bias, shift, ignore_index, rows, columns: as in :func:`token_scores`.

    Returns:
        [N, T], 0 where a token isn't scored; float32, or float64 for float64 inputs. Differentiable once in ``outputs``, ``weight`` and
        ``bias``.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> hidden, weight = torch.zeros(1, 2, 3, requires_grad=True), torch.eye(4, 3)
    >>> membership.token_log_probs(hidden, torch.tensor([[0, 2]]), weight).sum().backward()
    >>> hidden.grad[0].tolist()
    [[-0.25, -0.25, 0.75], [0.0, 0.0, 0.0]]
    """
    _checked("token_log_probs", outputs, labels, arg.tensor("weight", weight), bias, shift, ignore_index, rows, columns)
    scored = _scored(labels, shift, ignore_index)
    table, wanted = _table(outputs, labels, scored, weight, bias, shift, columns)
    picked = table.outputs if table.places is None else table.outputs[table.places]
    flat: Tensor = LogProb.apply(picked, weight, bias, wanted, rows, columns)
    return flat.new_zeros(labels.shape).masked_scatter(scored, flat)


def perplexity_ratio(loss: Tensor, reference: Tensor) -> Tensor:
    """exp(loss - reference): a sequence's perplexity over that of a reference model, which takes out how hard the text is (Carlini et al.,
    "Extracting training data from large language models", USENIX Security'21, compare perplexities). Lower is more member-like.

    Args:
        loss: ``token_scores(...).loss`` of the model, [N].
        reference: that of a model which never saw the texts, or of another one: [N].

    >>> import torch
    >>> from fastforget.ops import membership
    >>> membership.perplexity_ratio(torch.tensor([1.0]), torch.tensor([1.0])).item()
    1.0
    """
    arg.same("reference", reference, "loss", arg.floating("loss", loss))
    return (loss - reference).exp()


def _scored(labels: Tensor, shift: bool, ignore_index: int) -> Tensor:
    """bool[N, T]."""
    scored = labels != ignore_index
    if shift and labels.shape[1]:
        scored[:, 0] = False
    return scored


def _table(
    outputs: Tensor, labels: Tensor, scored: Tensor, weight: Tensor | None, bias: Tensor | None, shift: bool, columns: int
) -> tuple[Table, Tensor]:
    """The rows that answer scored tokens, and these tokens int64[R]."""
    wanted = labels[scored].to(torch.int64)
    places = scored.flatten().nonzero()[:, 0] - int(shift)
    return Table(outputs.flatten(0, 1), weight, bias, places, columns), wanted


def _checked(
    op: str, outputs: Tensor, labels: Tensor, weight: Tensor | None, bias: Tensor | None, shift: bool, ignored: int, rows: int, columns: int
) -> dict[str, Tensor]:
    """The floating arguments by name."""
    arg.floating("outputs", outputs)
    arg.integer("rows", rows, 1, 2**31)
    arg.integer("columns", columns, 1, 2**31)
    arg.integer("ignore_index", ignored, -(2**63), 2**63)
    if not isinstance(shift, bool):
        raise TypeError(f"shift: got {arg.describe(shift)}; accepted are True and False")
    if outputs.dim() != 3 or (weight is None and outputs.shape[2] < 2):
        raise ValueError(f"outputs: got {arg.describe(outputs)}; accepted are logits [N, T, V], or hidden states [N, T, D] with weight=")
    if arg.tensor("labels", labels).dtype not in (torch.int64, torch.int32):
        raise TypeError(f"labels: got {arg.describe(labels)}; accepted dtypes are int64 and int32 (token ids)")
    if labels.shape != outputs.shape[:2] or labels.device != outputs.device:
        raise ValueError(
            f"labels: got {arg.describe(labels)}; accepted is one token id for each of outputs, shape {tuple(outputs.shape[:2])}, on "
            f"{outputs.device}"
        )
    given = {"outputs": outputs}
    vocabulary = outputs.shape[2]
    if weight is not None:
        given["weight"] = arg.floating("weight", weight)
        if weight.dim() != 2 or weight.shape[1] != outputs.shape[2] or weight.device != outputs.device:
            raise ValueError(f"weight: got {arg.describe(weight)}; accepted is [V, {outputs.shape[2]}] on {outputs.device}")
        vocabulary = weight.shape[0]
    if bias is not None:
        given["bias"] = arg.floating("bias", bias)
        if weight is None or bias.shape != weight.shape[:1] or bias.device != outputs.device:
            raise ValueError(f"bias: got {arg.describe(bias)}; accepted is [V] beside a weight [V, D], on {outputs.device}")
    wrong = _scored(labels, shift, ignored) & ((labels < 0) | (labels >= vocabulary))
    if bool(wrong.any()):
        n, t = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"labels: labels[{n}, {t}] is {int(labels[n, t])}; accepted are 0 to {vocabulary - 1}, and {ignored} where nothing is scored"
        )
    return given
