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
    """The second step weighs each sequence by 2 p^beta / (p^beta + p_ref^beta) (Zhang et al.)."""
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


def test_simnpo_by_hand():
    """Each sequence's gradient is weighed by 2 sigmoid(beta / |y| log p + gamma) / |y|."""
    net, (ids, labels) = w.bigram(), w.texts("forget")
    beta, gamma = 1.5, 0.4
    with torch.no_grad():
        counts, log_p = w.counts(labels).double(), w.log_probs(net, ids, labels).sum(1)
    weights = 2 * (beta / counts * log_p + gamma).sigmoid() / counts
    gradient = sum(weight * g for weight, g in zip(weights, w.logits_gradient(net, ids, labels), strict=True)) / len(ids)
    special = {"beta": beta, "gamma": gamma, "forget_weight": 0.6, "retain_weight": 0}
    ours = w.run(net, "simnpo", {"forget": (ids, labels)}, **ONE, **special).model.table.weight
    torch.testing.assert_close(ours, stepped(net, 0.6 * gradient), rtol=0, atol=1e-13)


class Hidden(torch.nn.Module):
    """The hidden state is a row of a table, in a list of one layer; the logits are its product with a head."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Embedding(w.WORDS, 4)])
        self.head = torch.nn.Linear(4, w.WORDS)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.blocks[0](input_ids))


def unit(size):
    u = torch.rand(size, generator=torch.Generator().manual_seed(w.derived_seed(w.SEED, 73)), dtype=torch.float64)
    return u / u.norm()


def test_rmu_by_hand():
    """d MSE / d row = 2 (row - c u) / D, weighed by how often the word stands in a sequence of so many tokens; at the first step retain
    states are where they were."""
    torch.manual_seed(4)
    net, (ids, _) = Hidden().double(), w.texts("forget")
    table = net.blocks[0].weight.detach()
    often = torch.stack([(ids == word).double().mean(1).mean() for word in range(w.WORDS)])
    gradient = often[:, None] * 2 * (table - 3.0 * unit(4)) / 4
    result = w.run(net, "rmu", w.request(), **ONE, steering=3.0, retain_weight=7.0)
    expected = table - ONE["lr"] * (gradient + ONE["weight_decay"] * table)
    torch.testing.assert_close(result.model.blocks[0].weight, expected, rtol=0, atol=1e-13)
    assert torch.equal(result.model.head.weight, net.head.weight)
    assert result.receipt["measured"] == {"layer": "blocks.0", "trained": ["blocks.0.weight"]}


def test_rmu_counts_what_the_mask_shows():
    """A padded word has no part in the forget term."""
    torch.manual_seed(4)
    net = Hidden().double()
    result = w.run(net, "rmu", {name: w.ragged(name, 12) for name in ("forget", "retain")}, **ONE, steering=3.0, retain_weight=0)
    moved = (result.model.blocks[0].weight.detach() - net.blocks[0].weight * (1 - ONE["lr"] * ONE["weight_decay"])).detach().abs().amax(1)
    assert float(moved[w.PAD]) < 1e-15 < 1e-3 < float(moved[1:].min())


def rmu_loss(net, teacher, steering, alpha, layer):
    def states(model, ids):
        x = model.embedding(ids)
        for one in model.layers[: layer + 1]:
            x = one(x)[0]
        return x

    def loss(model, rows, forget, retain):
        with torch.no_grad():
            before = states(teacher, retain[0])
        target = steering * unit(8)
        return (states(model, forget[0]) - target).square().mean() + alpha * (states(model, retain[0]) - before).square().mean()

    return loss


@pytest.mark.parametrize("capped", [False, True], ids=["by blocks", "from logits"])
def test_a_whole_run_of_rmu_is_the_plain_loop(capped):
    """Of the middle layer and those before it; what lies beyond keeps its bits."""
    net = w.recurrent(capped)
    teacher = copy.deepcopy(net)
    plain = copy.deepcopy(net).train()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.startswith(("layers.0.", "layers.1.")))
    result = w.run(net, "rmu", w.request(), **RUN, steering=2.0, retain_weight=3.0)
    w.plain_loop(plain, rmu_loss(plain, teacher, 2.0, 3.0, 1), RUN["batch_size"], RUN["epochs"], RUN["lr"], RUN["weight_decay"])
    w.agree(result.model, plain, net)
    for name, value in result.model.state_dict().items():
        assert name.startswith(("layers.0", "layers.1")) or torch.equal(value, net.state_dict()[name])
    assert all(p.requires_grad for p in result.model.parameters())


def test_rmu_trains_named_weights_of_a_named_layer_in_few_steps():
    net = w.recurrent()
    result = w.run(net, "rmu", w.request(), **RUN, layer="layers.3", weights="weight_ih", steps=2)
    changed = [name for name, value in result.model.state_dict().items() if not torch.equal(value, net.state_dict()[name])]
    assert changed == [f"layers.{i}.weight_ih_l0" for i in (1, 2, 3)] == result.receipt["measured"]["trained"]
    assert result.receipt["cost"]["phases"]["rmu"]["trained"] == 2 * (5 + 5)


@pytest.mark.parametrize("hold", ["labels", "anchor"])
def test_a_whole_run_of_simnpo_is_the_plain_loop(hold):
    net = w.recurrent()
    teacher = copy.deepcopy(net)

    def loss(model, rows, forget, retain):
        log_p = w.log_probs(model, *forget).sum(1) / w.counts(forget[1])
        kept = w.kl(model, teacher, *retain) if hold == "anchor" else w.nll(model, *retain)
        return -2 * 0.6 / 1.5 * F.logsigmoid(-1.5 * log_p - 0.2).mean() + kept

    result = w.run(net, "simnpo", w.request(), **RUN, beta=1.5, gamma=0.2, forget_weight=0.6, hold=hold)
    w.agree(result.model, w.plain_loop(copy.deepcopy(net).train(), loss, 5, 3, 0.01, 0.02), net)
