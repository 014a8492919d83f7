"""The methods for language models against their formulas by hand, and whole runs against plain loops."""

from __future__ import annotations

import copy

import language_world as w
import pytest
import torch
from torch.nn import functional as F

ONE = {"epochs": 1, "batch_size": 50, "lr": 0.5, "weight_decay": 0.01, "momentum": 0.0, "optimizer": "sgd"}
RUN = {"epochs": 3, "batch_size": 5, "lr": 0.01, "weight_decay": 0.02}


def stepped(net, gradient):
    """theta - lr * (gradient + weight decay * theta)."""
    start = net.table.weight.detach()
    return start - ONE["lr"] * (gradient + ONE["weight_decay"] * start)


@pytest.mark.parametrize("mean", ["sequences", "tokens"])
def test_gradient_difference_by_hand(mean):
    net, sets = w.bigram(), w.request("forget", "retain")

    def of_loss(ids, labels):
        grads, counts = w.logits_gradient(net, ids, labels), w.counts(labels)
        if mean == "tokens":
            return -sum(grads) / counts.sum()
        return -sum(g / n for g, n in zip(grads, counts, strict=True)) / len(grads)

    ours = w.run(net, "gradient_difference", sets, **ONE, mean=mean, retain_weight=0.3).model.table.weight
    expected = stepped(net, -of_loss(*sets["forget"]) + 0.3 * of_loss(*sets["retain"]))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    alone = w.run(net, "gradient_difference", w.request("forget"), **ONE, mean=mean, retain_weight=0).model.table.weight
    torch.testing.assert_close(alone, stepped(net, -of_loss(*sets["forget"])), rtol=0, atol=1e-13)


def test_npo_by_hand():
    """At the first step p = p_ref: the gradient is that of the mean sequence log-probability, whatever beta."""
    net, sets = w.bigram(), w.request("forget")
    gradient = sum(w.logits_gradient(net, *sets["forget"])) / len(sets["forget"][0])
    for beta in (0.1, 2.0):
        ours = w.run(net, "npo", sets, **ONE, beta=beta, retain_weight=0).model.table.weight
        torch.testing.assert_close(ours, stepped(net, gradient), rtol=0, atol=1e-13)


def test_npo_leaves_alone_what_became_improbable():
    """The second step weighs each sequence by 2 p^beta / (p^beta + p_ref^beta) (Zhang et al., section 3.1)."""
    net, (ids, labels) = w.bigram(), w.texts("forget")
    first = w.run(net, "npo", {"forget": (ids, labels)}, **ONE, beta=0.7, retain_weight=0).model
    with torch.no_grad():
        ratio = (w.log_probs(first, ids, labels) - w.log_probs(net, ids, labels)).sum(1)
    weights = 2 * (0.7 * ratio).sigmoid()
    assert bool((weights < 0.9).any())
    gradient = sum(weight * g for weight, g in zip(weights, w.logits_gradient(first, ids, labels), strict=True)) / len(ids)
    two = w.run(net, "npo", {"forget": (ids, labels)}, **ONE | {"epochs": 2}, beta=0.7, retain_weight=0).model
    torch.testing.assert_close(two.table.weight, stepped(first, gradient), rtol=0, atol=1e-13)


@pytest.mark.parametrize("capped", [False, True], ids=["by blocks", "from logits"])
@pytest.mark.parametrize("hold", ["labels", "anchor"])
@pytest.mark.parametrize("method", ["gradient_difference", "npo"])
def test_a_whole_run_is_the_plain_loop(method, hold, capped):
    net = w.recurrent(capped)
    teacher = copy.deepcopy(net)
    with torch.no_grad():
        reference = w.log_probs(net, *w.texts("forget")).sum(1)

    def loss(model, rows, forget, retain):
        log_p = w.log_probs(model, *forget).sum(1)
        kept = w.kl(model, teacher, *retain) if hold == "anchor" else w.nll(model, *retain)
        if method == "gradient_difference":
            return -w.nll(model, *forget) + 0.8 * kept
        return -2 / 0.3 * F.logsigmoid(-0.3 * (log_p - reference[rows])).mean() + 0.8 * kept

    special = {"beta": 0.3} if method == "npo" else {}
    result = w.run(net, method, w.request(), **RUN, **special, hold=hold, mean="tokens", retain_weight=0.8)
    plain = w.plain_loop(copy.deepcopy(net).train(), loss, RUN["batch_size"], RUN["epochs"], RUN["lr"], RUN["weight_decay"])
    w.agree(result.model, plain, net)
