"""Where the head's product is skipped: only where it is all that makes the logits, in either mode, whatever the weights become."""

from __future__ import annotations

import copy
from collections.abc import Callable

import language_world as w
import pytest
import torch
from torch import Tensor, nn

from fastforget._causal.head import find_head

Answer = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """A layer, and logits made by ``answer(net, hidden states)``."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.embedding = nn.Embedding(w.WORDS, 8)
        self.layer = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, w.WORDS)
        self.scale = nn.Parameter(torch.ones(()))
        self.answer = [answer]

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.answer[0](self, self.layer(self.embedding(input_ids))[0])


def net(answer: Answer) -> nn.Module:
    torch.manual_seed(2)
    model = w.trained(Net(answer).double(), 30)
    nn.init.ones_(model.scale)
    return model


def unsure(model: nn.Module, x: Tensor) -> Tensor:
    """Looks at the logits of a first answer, and makes others."""
    return model.head(x) if model.head(x).std() < 100 else model.head(2 * x)


# what each does with the head's product is nothing, for the weights and the mode in which it is looked at
NOTHING_YET: dict[str, Answer] = {
    "scale": lambda model, x: model.head(x) * model.scale,
    "scale in place": lambda model, x: model.head(x).mul_(model.scale),
    "limit": lambda model, x: model.head(x).clamp(-60, 60),
    "asked twice": unsure,
}


def found(model: nn.Module) -> str | None:
    ids, _ = w.texts("forget")
    with torch.no_grad():
        return find_head(model, lambda net, x: net(x), ids, model(ids))


@pytest.mark.parametrize("case", NOTHING_YET)
def test_what_does_nothing_yet_is_no_plain_product(case: str) -> None:
    assert found(net(lambda model, x: model.head(x))) == "head"
    assert found(net(NOTHING_YET[case])) is None


IN_TRAINING: dict[str, Answer] = {
    "temperature": lambda model, x: model.head(x) / (2 if model.training else 1),
    "scale": NOTHING_YET["scale"],
}


@pytest.mark.parametrize("case", IN_TRAINING)
@pytest.mark.parametrize("hold", ["labels", "anchor"])
def test_what_is_done_to_logits_is_trained_through(hold: str, case: str) -> None:
    """As in a plain loop."""
    model = net(IN_TRAINING[case])
    teacher = copy.deepcopy(model)

    def loss(plain: nn.Module, rows: Tensor, forget: tuple[Tensor, Tensor], retain: tuple[Tensor, Tensor]) -> Tensor:
        return (w.kl(plain, teacher, *retain) if hold == "anchor" else w.nll(plain, *retain)) - w.nll(plain, *forget)

    few = {"epochs": 2, "batch_size": 5, "lr": 0.02, "weight_decay": 0.01}
    ours = w.run(model, "gradient_difference", w.request(), **few, hold=hold, mean="tokens").model
    w.agree(ours, w.plain_loop(copy.deepcopy(model).train(), loss, 5, 2, 0.02, 0.01), model)


def test_a_model_that_cannot_name_its_head() -> None:
    model = net(lambda model, x: model.head(x))

    def unknown() -> nn.Module:
        raise NotImplementedError

    model.get_output_embeddings = unknown
    assert found(model) == "head"
