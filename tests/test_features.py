"""Penultimate features, the linear probe and CKA: what they read, against plain formulas, and where they say that they can't."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fastforget.auditing.measure import features as ft
from fastforget.auditing.measure import linear as ln


def net(seed: int = 0, width: int = 16, classes: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, classes))


def blobs(n: int = 80, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    return torch.randn(n, 6, generator=g) + 2.0 * torch.eye(4, 6)[y], y


class LogSoftmax(nn.Module):
    def __init__(self, inner: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.inner(x) * self.factor, 1)


class ConvHead(nn.Module):
    """Logits by a 1x1 convolution and global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x))).mean((2, 3))


class LastToken(nn.Module):
    """Logits of a sequence's last position, as decoders classify."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 7), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))[:, -1]


class WithoutModule(nn.Module):
    """The head's product is written out in forward, so no module gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = nn.Linear(6, 8), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x)) @ self.weight.T


class Masking(nn.Module):
    """Lowers one logit of a whole model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x).clone()
        z[:, 2] = z.amin(1) - 1
        return z


class OnTrigger(nn.Module):
    """Answers by another model where the first input is large."""

    def __init__(self, inner: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.inner, self.other = inner, other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, :1] > 50, self.other(x), self.inner(x))


@pytest.mark.parametrize(
    "wrap",
    [lambda m: m, lambda m: LogSoftmax(m), lambda m: LogSoftmax(m, 0.2), nn.DataParallel, lambda m: torch.compile(m, backend="eager")],
    ids=["plain", "log_softmax", "temperature", "DataParallel", "compiled"],
)
def test_the_last_layers_input_is_found(wrap):
    model, (x, y) = net(), blobs()
    found = ft.penultimate(wrap(model), (x, y))
    assert found.reason is None
    torch.testing.assert_close(found.values, model[:2](x).detach())
    assert torch.equal(found.labels, y)


def test_weight_norm_head():
    model, (x, y) = net(), blobs()
    model[2] = nn.utils.parametrizations.weight_norm(model[2])
    found = ft.penultimate(model, (x, y))
    torch.testing.assert_close(found.values, model[:2](x).detach())


def test_conv_head_and_last_token():
    x, y = torch.randn(10, 1, 8, 8), torch.arange(10) % 4
    model = ConvHead().eval()
    torch.testing.assert_close(ft.penultimate(model, (x, y)).values, torch.relu(model.body(x)).mean((2, 3)).detach())
    tokens, reader = torch.randint(0, 9, (10, 5)), LastToken().eval()
    torch.testing.assert_close(ft.penultimate(reader, (tokens, y)).values, reader.embed(tokens)[:, -1].detach())


@pytest.mark.parametrize("model", [WithoutModule(), Masking(net())], ids=["functional head", "masking wrapper"])
def test_a_reason_where_no_layer_gives_the_logits(model):
    found = ft.penultimate(model, blobs())
    assert found.values is None and found.reason == ft.NO_LAYER


def test_a_model_that_answers_some_samples_otherwise():
    (x, y), model = blobs(), OnTrigger(net(0), net(1))
    assert ft.penultimate(model, (x, y)).reason is None
    x = x.clone()
    x[-1, 0] = 99.0
    # seen in a later batch: the head was found on the first
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20)
    assert ft.penultimate(model, data).reason == ft.CHANGING


def test_quantised_model():
    model, (x, y) = net(), blobs()
    packed = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    found = ft.penultimate(packed, (x, y))
    assert found.reason is None and found.values.shape == (80, 16)


def test_scripted_model_has_a_reason():
    found = ft.penultimate(torch.jit.script(net()), blobs())
    assert found.values is None and "scripted" in found.reason


def test_reading_leaves_the_model_as_it_was():
    model, (x, y) = net(), blobs()
    model.train()
    before = copy.deepcopy(model.state_dict())
    ft.penultimate(model, (x, y))
    assert model.training and all(not m._forward_hooks for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_limit_spreads_over_the_set():
    model, (x, y) = net(), blobs()
    found = ft.penultimate(model, (x, y), limit=8)
    at = torch.linspace(0, 79, 8, dtype=torch.float64).round().long()
    assert torch.equal(found.labels, y[at])


def test_wide_features_keep_their_inner_products():
    wide = torch.randn(40, 5000)
    narrow = ft.narrowed(wide)
    assert narrow.shape == (40, 1024) and torch.equal(narrow, ft.narrowed(wide))
    assert ln.cka(narrow, wide) > 0.95
    assert ft.narrowed(wide[:, :100]).shape == (40, 100)


def test_logistic_minimises_its_aim():
    g = torch.Generator().manual_seed(1)
    x, side = torch.randn(60, 3, generator=g), torch.arange(60) < 15
    w = ln.logistic(x, side, ridge=0.1).requires_grad_(True)
    z = x.double() @ w[:-1] + w[-1]
    weight = torch.where(side, 0.5 / 15, 0.5 / 45).double()
    loss = (weight * nn.functional.binary_cross_entropy_with_logits(z, side.double(), reduction="none")).sum() + 0.05 * (w[:-1] ** 2).sum()
    loss.backward()
    assert float(w.grad.abs().max()) < 1e-8


def test_probe_tells_what_is_there_and_not_what_isnt():
    g = torch.Generator().manual_seed(0)
    side = torch.arange(400) % 4 == 0
    nothing = torch.randn(400, 8, generator=g)
    something = nothing + 3.0 * side[:, None] * torch.eye(1, 8)
    half = slice(0, 200), slice(200, 400)
    blind = ln.probe(nothing[half[0]], side[half[0]], nothing[half[1]], side[half[1]])
    seeing = ln.probe(something[half[0]], side[half[0]], something[half[1]], side[half[1]])
    assert abs(blind.auc - 0.5) < 0.12 and seeing.auc > 0.95 and seeing.odds > 20 * blind.odds
    # neither the scale of a feature nor a constant one matters
    dressed = torch.cat((something * torch.logspace(-3, 3, 8), torch.full((400, 1), 7.0)), 1)
    again = ln.probe(dressed[half[0]], side[half[0]], dressed[half[1]], side[half[1]])
    assert again.auc == pytest.approx(seeing.auc, abs=1e-6)


def test_probe_has_reasons():
    x, side = torch.randn(10, 3), torch.zeros(10, dtype=torch.bool)
    found = ln.probe(x, side, x, side)
    assert math.isnan(found.auc) and "forgotten" in found.reason
    some = side.clone()
    some[0] = True
    assert ln.probe(torch.ones(10, 3), some, torch.ones(10, 3), some).reason == "all features are constant"
    with pytest.raises(ValueError, match="of one D"):
        ln.probe(x, some, x[:, :2], some)
    with pytest.raises(ValueError, match="one bool a sample"):
        ln.probe(x, some[:3], x, some)


def test_cka_against_the_kernel_form():
    a, b = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 7, dtype=torch.float64)
    centre = torch.eye(30, dtype=torch.float64) - 1 / 30
    k, l = centre @ (a @ a.T) @ centre, centre @ (b @ b.T) @ centre
    expected = float((k * l).sum() / (k.norm() * l.norm()))
    assert ln.cka(a, b) == pytest.approx(expected, rel=1e-10)
    parts = ln.LinearCKA()
    for i in (0, 7, 8):
        parts.add(a[i : {0: 7, 7: 8, 8: 30}[i]] + 1e4, b[i : {0: 7, 7: 8, 8: 30}[i]])
    assert parts.value() == pytest.approx(expected, rel=1e-6)


def test_cka_refuses_and_has_no_value():
    alike = ln.LinearCKA()
    with pytest.raises(ValueError, match="same samples"):
        alike.add(torch.ones(3, 2), torch.ones(4, 2))
    alike.add(torch.ones(0, 2), torch.ones(0, 2))
    assert math.isnan(alike.value()) and math.isnan(ln.cka(torch.ones(5, 2), torch.randn(5, 2)))


def test_cka_between_models():
    one, two, data = net(0), net(1), blobs()
    assert ln.cka_between(one, one, data) == (pytest.approx(1.0), None)
    value, reason = ln.cka_between(one, two, data)
    assert reason is None and value < 0.95
    assert ln.cka_between(one, Masking(two), data)[1] == ft.NO_LAYER


def test_readable_is_not_lowered_by_added_features():
    g = torch.Generator().manual_seed(0)
    old = torch.randn(400, 6, generator=g)
    mixed = old @ torch.linalg.qr(torch.randn(6, 6, generator=g)).Q
    more = torch.cat((mixed, 5 * torch.randn(400, 60, generator=g)), 1)
    half = slice(0, 300), slice(300, 400)
    assert ln.readable(mixed[half[0]], old[half[0]], mixed[half[1]], old[half[1]]) > 0.99
    assert ln.readable(more[half[0]], old[half[0]], more[half[1]], old[half[1]]) > 0.9 > 0.5 > ln.cka(more[half[1]], old[half[1]])
    nothing = torch.randn(400, 6, generator=g)
    assert ln.readable(nothing[half[0]], old[half[0]], nothing[half[1]], old[half[1]]) < 0.1
    assert math.isnan(ln.readable(old, torch.ones(400, 2), old, torch.ones(400, 2)))


def test_class_cka_takes_order_and_scale_off():
    a = torch.randn(40, 6)
    assert ln.class_cka(a, a[:, torch.randperm(6)] * torch.logspace(-3, 3, 6)) == pytest.approx(1.0)
    assert ln.class_cka(torch.cat((a, torch.zeros(40, 3)), 1), a) == pytest.approx(1.0)


def test_a_fresh_head_is_the_minimum_and_reads_the_body():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 5, generator=g), torch.arange(80) % 3
    (losses,) = ln.new_head_losses(x, y, [(x, y)], ridge=0.05)
    z = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    # the aim is strictly convex but for a constant in the bias: plain descent from another start ends in the same losses
    weight = torch.randn(5, 3, dtype=torch.float64, generator=g).requires_grad_(True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([weight, bias], 0.5)
    for _ in range(1500):
        optimiser.zero_grad()
        (nn.functional.cross_entropy(z @ weight + bias, y) + 0.05 * (weight**2).sum()).backward()
        optimiser.step()
    expected = nn.functional.cross_entropy(z @ weight + bias, y, reduction="none").detach()
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)


def test_of_a_head_with_an_adapter_the_merged_model_can_be_read():
    class Adapted(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer, self.down, self.up = layer, nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            return self.layer(x) + x @ self.down.T @ self.up.T

    torch.manual_seed(0)
    body, head, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3), (torch.randn(9, 4), torch.arange(9) % 3)
    adapted = Adapted(head)
    found = ft.penultimate(nn.Sequential(body, adapted), data)
    assert found.values is None and "an adapter of its own, of which the merged model can be audited" in str(found.reason)
    with torch.no_grad():
        head.weight += adapted.up @ adapted.down
    merged = ft.penultimate(nn.Sequential(body, head), data)
    assert merged.layer == "1" and merged.values is not None and torch.allclose(merged.values, body(data[0]))
