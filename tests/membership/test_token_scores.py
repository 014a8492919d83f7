"""Token scores by chunks against the reference's [N, T, V] table in float64, and their gradients against autograd's."""

from __future__ import annotations

import math

import pytest
import torch
from tolerance import FLOATS, assert_two_times, drawn_once
from torch import Tensor

from fastforget.ops import _head, membership
from fastforget.reference.membership import tokens as reference

SHAPES = {  # N, T, V, D
    "no sequence": (0, 5, 7, 3),
    "no token": (2, 0, 7, 3),
    "one token": (3, 1, 7, 3),
    "two words": (1, 2, 2, 1),
    "odd": (3, 13, 101, 5),
    "large": (3, 21, 900, 16),
}
K = (0.1, 0.25, 1.0)
FIELDS = ("log_prob", "mean", "variance", "loss", "min_k", "min_k_plus")


@drawn_once
def drawn(shape: str, dtype: torch.dtype, draw: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, labels with ignored ones (of the second sequence all), and a head."""
    n, t, v, d = SHAPES[shape]
    labels = torch.randint(0, v, (n, t)).masked_fill(torch.rand(n, t) < 0.3, -100)
    labels[1:2] = -100
    hidden, weight, bias = torch.randn(n, t, d), 2 * torch.randn(v, d) / max(d, 1) ** 0.5, torch.randn(v)
    return hidden.to(dtype), labels, weight.to(dtype), bias.to(dtype)


def plain(logits: Tensor, labels: Tensor, shift: bool) -> dict[str, Tensor]:
    """The reference's results by name."""
    n, t = labels.shape
    tokens, sequences = (torch.full((rows, n, *more), math.nan, dtype=logits.dtype) for rows, more in ((3, (t,)), (1 + 2 * len(K), ())))
    count = torch.full((n,), -1)
    reference.token_scores(logits, labels, K, -100, shift, tokens, sequences, count)
    halves = sequences[1:].T.split(len(K), dim=1)
    return dict(zip(FIELDS, (*tokens, sequences[0], *halves), strict=True)) | {"count": count}


def assert_close(ours: Tensor, theirs: list[Tensor], exact: list[Tensor], what: str) -> None:
    """By the house's rule; where float64 is the dtype itself, both are one computation and only the last digits may differ."""
    if ours.dtype == torch.float64:
        torch.testing.assert_close(ours, exact[0], rtol=1e-12, atol=1e-13, equal_nan=True, msg=lambda text: f"{what}: {text}")
    else:
        assert_two_times(ours, theirs, exact, what)


def in_dtype(hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, shift: bool) -> dict[str, Tensor]:
    """What plain PyTorch gives in the inputs' own dtype."""
    return plain(hidden @ weight.T + bias, labels, shift)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [(1, 3), (7, 64), (512, 4096)], ids=str)
def test_from_hidden_states(shape: str, dtype: torch.dtype, block: tuple[int, int]) -> None:
    if shape == "large" and block[1] == 3:
        block = (21, 300)  # its own size is a multiple of the columns'
    shift = block[0] != 7
    hidden, labels, weight, bias = drawn(shape, dtype, 0)
    ours = membership.token_scores(hidden, labels, weight, bias, k=K, shift=shift, rows=block[0], columns=block[1])
    draws = [drawn(shape, dtype, draw) for draw in range(4)]
    exact = [in_dtype(*(x.double() if x.is_floating_point() else x for x in draw), shift) for draw in draws]
    theirs = [in_dtype(*draw, shift) for draw in draws]
    assert torch.equal(ours.length, exact[0]["count"])
    for name in FIELDS:
        assert_close(getattr(ours, name), [x[name] for x in theirs], [x[name] for x in exact], f"{name} {shape}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [(5, 300), (512, 4096)], ids=str)
def test_from_logits(shape: str, dtype: torch.dtype, block: tuple[int, int]) -> None:
    draws = [(h @ w.T + b, y) for h, y, w, b in (drawn(shape, dtype, draw) for draw in range(4))]
    ours = membership.token_scores(*draws[0], k=K, rows=block[0], columns=block[1])
    exact = [plain(z.double(), y, True) for z, y in draws]
    theirs = [plain(z, y, True) for z, y in draws]
    for name in FIELDS:
        assert_close(getattr(ours, name), [x[name] for x in theirs], [x[name] for x in exact], f"{name} {shape}")


def test_by_hand() -> None:
    """p = (1/2, 1/4, 1/4) at both tokens."""
    logits = torch.tensor([4.0, 2.0, 2.0]).log().expand(1, 3, 3)
    s = membership.token_scores(logits, torch.tensor([[-100, 0, 1]]), k=(0.5,))
    log2 = math.log(2)
    assert s.log_prob[0, 1:].tolist() == pytest.approx([-log2, -2 * log2])
    assert s.mean[0, 1].item() == pytest.approx(-1.5 * log2)
    assert s.variance[0, 1].item() == pytest.approx(0.25 * log2**2)
    assert s.loss.item() == pytest.approx(1.5 * log2)
    assert s.min_k.item() == pytest.approx(-2 * log2)
    assert s.min_k_plus.item() == pytest.approx(-1.0)  # (-2 + 1.5) log 2 / (log 2 / 2)
    assert math.isnan(s.log_prob[0, 0].item())


@pytest.mark.parametrize("columns", [1, 2, 3, 50])
def test_first_is_argmax(columns: int) -> None:
    """Of several words that are as probable the first: a model that answers all alike isn't right everywhere."""
    logits = torch.randint(0, 3, (4, 40, 5)).float()
    logits[0] = 0.0
    labels = torch.randint(0, 5, (4, 40))
    s = membership.token_scores(logits, labels, columns=columns, rows=7)
    assert torch.equal(s.first[:, 1:], logits.argmax(2)[:, :-1] == labels[:, 1:]) and not bool(s.first[:, 0].any())


def test_a_sequence_without_scored_tokens_is_nan_alone() -> None:
    s = membership.token_scores(torch.randn(2, 4, 5), torch.tensor([[-100] * 4, [1, 2, 3, 4]]))
    assert s.length.tolist() == [0, 3]
    for name in ("loss", "min_k", "min_k_plus"):
        assert getattr(s, name).isnan().reshape(2, -1).all(dim=1).tolist() == [True, False]


def test_the_lowest_k_are_the_authors_number() -> None:
    """int(length * k), and one at least."""
    labels = torch.randint(0, 9, (3, 31))
    labels[1, 11:], labels[2, 5:] = -100, -100  # 30, 10 and 4 tokens
    s = membership.token_scores(torch.randn(3, 31, 9, dtype=torch.float64), labels, k=(0.1, 0.2))
    for n, numbers in enumerate([(3, 6), (1, 2), (1, 1)]):
        own = s.log_prob[n][~s.log_prob[n].isnan()].sort().values
        assert s.min_k[n].tolist() == pytest.approx([own[:m].mean().item() for m in numbers])


def test_words_that_cannot_come() -> None:
    """-inf among the logits weighs nothing, also where a whole block is -inf; NaN makes its token NaN."""
    logits = torch.randn(1, 4, 9, dtype=torch.float64)
    logits[0, 0, :6] = -math.inf
    logits[0, 1, 8] = math.nan
    labels = torch.tensor([[0, 7, 1, 2]])
    s = membership.token_scores(logits, labels, columns=3)
    short = membership.token_scores(logits[:, :, 6:], torch.tensor([[0, 1, -100, -100]]))
    assert s.log_prob[0, 1].item() == pytest.approx(short.log_prob[0, 1].item())
    assert s.variance[0, 1].item() == pytest.approx(short.variance[0, 1].item())
    assert s.log_prob.isnan().tolist() == [[True, False, True, False]]
    labels[0, 1] = 2
    assert membership.token_scores(logits, labels, columns=3).log_prob[0, 1].item() == -math.inf


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_token_without_a_probability_makes_its_sequence_nan(broken: float) -> None:
    """Sorted, NaN comes last: the lowest k would be those of the other tokens, or none. Ours and the reference."""
    logits = torch.randn(2, 5, 6, dtype=torch.float64)
    logits[0, 2] = broken
    labels = torch.tensor([[0, 1, 2, 3, 4]] * 2)
    ours, theirs = membership.token_scores(logits, labels, k=K, columns=4), plain(logits, labels, True)
    for name in ("loss", "min_k", "min_k_plus"):
        for one in (getattr(ours, name), theirs[name]):
            assert one.isnan().reshape(2, -1).tolist() == [[True] * one[0].numel(), [False] * one[0].numel()], name
    for name in ("log_prob", "mean", "variance"):
        assert getattr(ours, name)[0].isnan().tolist() == [True, False, False, True, False], name
    short = membership.token_scores(logits[:1, :1].expand(1, 2, 6) * 0 - math.inf, labels[:1, :2])
    assert all(bool(one.isnan().all()) for one in short[4:7])


def test_hidden_states_without_a_width() -> None:
    """The bias is all there is: log p = log softmax(bias)."""
    bias, labels = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64).requires_grad_(), torch.tensor([[0, 1, 2]])
    hidden, weight = torch.zeros(1, 3, 0, dtype=torch.float64), torch.zeros(3, 0, dtype=torch.float64)
    log_p = membership.token_log_probs(hidden, labels, weight, bias)
    torch.testing.assert_close(log_p[0, 1:], bias.log_softmax(0)[1:])
    (grad,) = torch.autograd.grad(log_p.sum(), bias)
    torch.testing.assert_close(grad, torch.tensor([0.0, 1.0, 1.0]) - 2 * bias.softmax(0))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("block", [(1, 3), (7, 64), (512, 4096)], ids=str)
def test_gradients(dtype: torch.dtype, block: tuple[int, int]) -> None:
    """Of a weighted sum, in hidden states, weight and bias."""
    draws = [drawn("odd", dtype, draw) for draw in range(4)]
    way = torch.randn(draws[0][1].shape, dtype=torch.float64)

    def gradients(draw: tuple[Tensor, Tensor, Tensor, Tensor], to: torch.dtype, chunked: bool) -> list[Tensor]:
        hidden, labels, weight, bias = (x.to(to, copy=True).requires_grad_() if x.is_floating_point() else x for x in draw)
        if chunked:
            log_p = membership.token_log_probs(hidden, labels, weight, bias, rows=block[0], columns=block[1])
        else:
            table = (hidden @ weight.T + bias).log_softmax(2)[:, :-1].gather(2, labels[:, 1:].clamp_min(0)[..., None])[..., 0]
            log_p = torch.nn.functional.pad(torch.where(labels[:, 1:] >= 0, table, 0.0), (1, 0))
        return [log_p.detach(), *torch.autograd.grad((log_p * way.to(log_p.dtype)).sum(), (hidden, weight, bias))]

    ours = gradients(draws[0], dtype, True)
    exact = [gradients(draw, torch.float64, False) for draw in draws]
    theirs = [gradients(draw, dtype, False) for draw in draws]
    for i, name in enumerate(("log p", "hidden", "weight", "bias")):
        assert_close(ours[i], [x[i] for x in theirs], [x[i] for x in exact], name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("block", [(1, 3), (7, 64), (512, 4096)], ids=str)
def test_divergence_and_its_gradients(dtype: torch.dtype, block: tuple[int, int]) -> None:
    """KL(teacher || model) of each token by chunks, against two whole tables."""
    draws = [drawn("odd", dtype, draw) for draw in range(4)]
    way = torch.randn(39, dtype=torch.float64)

    def both(draw: tuple[Tensor, Tensor, Tensor, Tensor], to: torch.dtype, chunked: bool) -> list[Tensor]:
        hidden, _, weight, bias = (x.to(to) for x in draw)
        teacher = hidden.flatten(0, 1).flip(0), weight.flip(0), bias.flip(0)
        own = [x.clone().requires_grad_() for x in (hidden.flatten(0, 1), weight, bias)]
        if chunked:
            kl = _head.Divergence.apply(*own, _head.Table(*teacher, columns=block[1]), *block)
        else:
            q, p = ((x @ w.T + b).log_softmax(1) for x, w, b in (own, teacher))
            kl = (p.exp() * (p - q)).sum(1)
        return [kl.detach(), *torch.autograd.grad((kl * way.to(kl.dtype)).sum(), own)]

    ours = both(draws[0], dtype, True)
    exact, theirs = ([both(draw, to, False) for draw in draws] for to in (torch.float64, dtype))
    for i, name in enumerate(("KL", "hidden", "weight", "bias")):
        assert_close(ours[i], [x[i] for x in theirs], [x[i] for x in exact], name)


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, labels, weight, _ = drawn("odd", torch.float32, 0)
    weight = weight.clone().requires_grad_()
    membership.token_log_probs(hidden, labels, weight).sum().backward()
    assert weight.grad is not None and hidden.grad is None
    with torch.no_grad():
        assert not membership.token_log_probs(hidden, labels, weight).requires_grad


def test_autocast_changes_nothing() -> None:
    """float32 stays float32, in the gradient too."""
    hidden, labels, weight, bias = drawn("odd", torch.float32, 0)

    def both() -> list[Tensor]:
        own = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        log_p = membership.token_log_probs(own[0], labels, own[1], own[2])
        return [log_p.detach(), *torch.autograd.grad(log_p.sum(), own), membership.token_scores(hidden, labels, weight, bias).loss]

    plain = both()
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(both(), plain, strict=True):
            assert torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0))


def test_perplexity_ratio() -> None:
    loss, other = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0])
    assert membership.perplexity_ratio(loss, other).tolist() == pytest.approx([math.exp(-1), 1.0])


Z, Y = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2], [3, 0, 1]])
REFUSED = {
    "no sequences": (lambda: membership.token_scores(Z[0], Y), ValueError, "outputs: got .*accepted are logits"),
    "integer logits": (lambda: membership.token_scores(Z.long(), Y), TypeError, "outputs: .*int64"),
    "float labels": (lambda: membership.token_scores(Z, Y.float()), TypeError, "labels: .*token ids"),
    "other labels": (lambda: membership.token_scores(Z, Y[:, 1:]), ValueError, r"labels: .*shape \(2, 3\)"),
    "k": (lambda: membership.token_scores(Z, Y, k=(0.0,)), ValueError, "k: got"),
    "one k": (lambda: membership.token_scores(Z, Y, k=0.1), TypeError, "k: got float 0.1; accepted are shares"),  # type: ignore[arg-type]
    "shift by two": (lambda: membership.token_scores(Z, Y, shift=2), TypeError, "shift: got int 2; accepted are True and False"),
    "ignored": (lambda: membership.token_scores(Z, Y, ignore_index=None), TypeError, "ignore_index: got"),  # type: ignore[arg-type]
    "weight": (lambda: membership.token_scores(Z, Y, torch.zeros(9, 5)), ValueError, r"weight: .*accepted is \[V, 4\]"),
    "bias alone": (lambda: membership.token_scores(Z, Y, bias=torch.zeros(4)), ValueError, "bias: .*beside a weight"),
    "rows": (lambda: membership.token_scores(Z, Y, rows=0), ValueError, "rows: got 0"),
    "gradient": (lambda: membership.token_scores(Z.clone().requires_grad_(), Y), RuntimeError, "outputs requires grad"),
    "no weight": (lambda: membership.token_log_probs(Z, Y, None), TypeError, "weight: got None"),  # type: ignore[arg-type]
    "ratio": (lambda: membership.perplexity_ratio(Z[0, 0], Z[0]), ValueError, "reference: .*shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, kind, text = REFUSED[case]
    with pytest.raises(kind, match=text):
        call()


def test_a_label_out_of_range_is_named_where_it_is_scored() -> None:
    labels = torch.tensor([[9, 1, 2], [3, 0, 4]])  # the first of a sequence isn't scored
    with pytest.raises(ValueError, match=r"labels\[1, 2\] is 4; accepted are 0 to 3, and -100 where nothing is scored"):
        membership.token_scores(Z, labels)
