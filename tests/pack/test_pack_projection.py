"""SVD projection against its formula, against a plain loop with singular values, and the rows that it takes of each layer's inputs."""

from __future__ import annotations

import pack_world as w
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastforget._data import source
from fastforget.methods.engine import projection
from fastforget.methods.pack.svd_projection import by_class


def scaled(x, alpha):
    """U diag(alpha q / ((alpha - 1) q + 1)) U^T of the rows x, as the paper writes it."""
    u, s, _ = torch.linalg.svd(x.T, full_matrices=False)
    q = s**2 / (s**2).sum()
    return u @ torch.diag(alpha * q / ((alpha - 1) * q + 1)) @ u.T


def test_by_hand():
    """Retain inputs along the first axis, forget inputs along the second: M_f = diag(0, 1), M_r = diag(1, 0), so the second column goes."""
    x, y = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]], dtype=torch.float64), torch.tensor([0, 0, 1])
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    sets = {"classes": [1], "forget": (x[2:], y[2:]), "retain": (x[:2], y[:2]), "check_overlap": False}
    ours = w.run(w.softmax_regression(weight), "svd_projection", sets).model.weight
    torch.testing.assert_close(ours, torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=torch.float64))


def test_a_direction_that_both_use_is_scaled_by_hand():
    """Both sets along (1, 1) and (1, -1), in shares of .9 and .1 (forget) and .5 and .5 (retain): with alphas 3 and 100, M_f has
    27/28 and 1/4, M_r 100/101 twice, and what is left of each direction is 1 - m_f / 101."""
    a, b = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    forget, retain = torch.stack([3 * a, b]), torch.stack([a, b])
    sets = {"classes": [1], "forget": (forget, torch.tensor([1, 1])), "retain": (retain, torch.tensor([0, 0])), "check_overlap": False}
    ours = w.run(w.softmax_regression(torch.eye(2, dtype=torch.float64)), "svd_projection", sets).model.weight
    torch.testing.assert_close(ours @ a, a * (1 - 27 / 28 / 101))
    torch.testing.assert_close(ours @ b, b * (1 - 1 / 4 / 101))


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0, 3.0, 1000.0])
def test_the_solve_gives_what_singular_values_give(alpha):
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # fewer rows than columns
    (ours,) = projection.important((x.T @ x)[None], alpha)
    torch.testing.assert_close(ours, scaled(x, alpha), rtol=1e-10, atol=1e-12)


def plain_svd_projection(net, sets):
    (fx, _), (rx, ry) = sets["forget"], sets["retain"]
    assert len(rx) < 900 and len(fx) < 900 and len(ry.unique()) == 2
    net.eval()
    shown = {}
    for at, layer in enumerate(net):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_pre_hook(lambda m, args, at=at: shown.setdefault(at, []).append(args[0].detach()))
    with torch.no_grad():
        net(rx), net(fx)
        for at, (kept, gone) in shown.items():
            layer = net[at]
            if isinstance(layer, nn.Conv2d):
                kept, gone = (F.unfold(x, layer.kernel_size, padding=layer.padding).transpose(1, 2).flatten(0, 1) for x in (kept, gone))
                assert len(kept) < 10_000
            m_r, m_f = scaled(kept, 100), scaled(gone, 3)
            flat = layer.weight.flatten(1)
            layer.weight.copy_((flat @ (torch.eye(len(m_f)) - (m_f - m_f @ m_r)).T).view_as(layer.weight))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_engine_goes_the_way_of_a_plain_loop(kind):
    """With the published constants."""
    net = getattr(w, kind)()
    sets, plain = w.class_request(net), w.plain_copy(net)
    plain_svd_projection(plain, sets)
    result = w.run(net, "svd_projection", sets)
    w.agree(result.model, plain, net)
    assert all(torch.equal(a, b) for (n, a), b in zip(net.named_parameters(), result.model.parameters(), strict=True) if "bias" in n)
    assert result.receipt["cost"]["phases"]["inputs"] == {"trained": 0, "forward": 90}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv1d(4, 6, 3, padding=1),
        nn.Conv1d(4, 6, 2, stride=2, dilation=2, groups=2),
        nn.Conv2d(4, 8, 3, padding="same", groups=4),
        nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=(1, 0), padding_mode="circular"),
        nn.Conv2d(4, 4, 3, dilation=2, padding=1, padding_mode="reflect", groups=2),
    ],
    ids=str,
)
def test_a_layers_rows_times_its_weight_are_its_outputs(layer):
    """Which shows that they are what its weight is multiplied with, in every form a layer has."""
    layer = layer.double()
    shape = (5, 6) if isinstance(layer, nn.Linear) else (5, 4, 6) if isinstance(layer, nn.Conv1d) else (5, 4, 6, 5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = projection._rows(layer, x, 10_000, torch.Generator())
    groups = rows.shape[0]
    weight = layer.weight.reshape(groups, len(layer.weight) // groups, -1)
    ours = (rows @ weight.transpose(1, 2)).permute(1, 0, 2).flatten(1) + layer.bias
    theirs = layer(x) if isinstance(layer, nn.Linear) else layer(x).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(ours, theirs)
    before = layer.weight.detach().clone()
    eye = torch.eye(rows.shape[2], dtype=torch.float64).expand(groups, -1, -1)
    projection.project(layer, eye, 0.25 * eye)
    torch.testing.assert_close(layer.weight.detach(), 0.25 * before)


def test_patches_come_from_a_part_three_kernels_wide_and_are_so_many():
    layer = nn.Conv2d(1, 1, 2)
    image = torch.arange(400.0).view(1, 1, 20, 20)
    rows = projection._rows(layer, image, 10_000, torch.Generator().manual_seed(3))[0]
    assert rows.shape == (25, 4)
    corner = rows.min()
    assert rows.max() - corner == 5 * 20 + 5
    assert not torch.equal(rows, projection._rows(layer, image, 10_000, torch.Generator().manual_seed(4))[0])
    some = projection._rows(layer, image, 7, torch.Generator().manual_seed(3))[0]
    assert some.shape == (7, 4)
    assert len({tuple(row.tolist()) for row in some}) == 7
    assert {tuple(row.tolist()) for row in some} <= {tuple(row.tolist()) for row in rows}


def test_samples_are_drawn_evenly_from_the_classes_that_stay():
    labels = torch.tensor([0] * 30 + [2] * 4 + [3] * 20)
    drawn = by_class(source((torch.zeros(54, 1), labels), name="retain"), 20, torch.Generator())
    assert drawn.labels().bincount().tolist() == [6, 0, 4, 6]


class Attention(nn.Module):
    """Weights that another module than their own multiplies with."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        x = x[:, None]
        return self.head(self.attend(x, x, x)[0][:, 0])


def test_what_is_left_is_said():
    net = Attention().double()
    result = w.run(net, "svd_projection", w.class_request(w.mlp()))
    assert result.receipt["measured"] == {"projected": 1, "left": ["attend.in_proj_weight", "attend.out_proj.weight"]}
    changed = [name for name, p in net.named_parameters() if not torch.equal(p, result.model.get_parameter(name))]
    assert changed == ["head.weight"]
    for p in net.head.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="^model: no linear or convolution layer was called whose weight may change"):
        w.run(net, "svd_projection", w.class_request(w.mlp()))
