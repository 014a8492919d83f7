"""What stands beside the words: padding on either side, masks, labels of another length."""

from __future__ import annotations

from typing import Any

import language_world as w
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import fastforget as ff
from fastforget.ops import mask as masks

STEP = {"epochs": 1, "batch_size": 50, "lr": 0.5, "weight_decay": 0.0, "momentum": 0.0, "optimizer": "sgd"}


class Bigram(w.Bigram):
    """Answers by the last word alone, so that padding changes no answer of a word."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table(input_ids)


def bigram() -> Bigram:
    torch.manual_seed(3)
    return Bigram().double()


def sequences() -> list[Tensor]:
    return [ids[: 4 + i % 4] for i, ids in enumerate(w.texts("forget")[0])]


def padded(side: str, *, more: int = 0, end: bool = False, pads: int = -100) -> DataLoader[Any]:
    """Every word is scored. ``end``: so is a padding token as the end of the text, which the mask hides, as TOFU's loader has it."""

    def filled(x: Tensor, to: int, value: int) -> Tensor:
        missing = to - len(x)
        return F.pad(x, (0, missing) if side == "right" else (missing, 0), value=value)

    def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        texts = [s["input_ids"] for s in samples]
        to = max(map(len, texts)) + more
        labels = [F.pad(x, (0, 1), value=w.PAD) if end else x for x in texts]
        columns = ((texts, w.PAD), ([torch.ones_like(x) for x in texts], 0), (labels, pads))
        ids, mask, scored = (torch.stack([filled(x, to, value) for x in part]) for part, value in columns)
        return {"input_ids": ids, "attention_mask": mask, "labels": scored}

    return DataLoader([{"input_ids": x} for x in sequences()], batch_size=5, collate_fn=collate)  # type: ignore[arg-type]


def ascended(net: Bigram, texts: list[Tensor]) -> Tensor:
    """A step up the mean over sequences of their tokens' mean loss, by hand, each sequence without padding."""
    grads = [w.logits_gradient(net, x[None], x[None])[0] / (len(x) - 1) for x in texts]
    return net.table.weight.detach() - 0.5 * sum(grads) / len(grads)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("more", [0, 3])
def test_padding_on_either_side_changes_nothing(side: str, more: int) -> None:
    """The first word after padding isn't scored, as the first of all isn't: what would answer it is padding."""
    net = bigram()
    result = w.run(net, "gradient_difference", {"forget": padded(side, more=more)}, **STEP, mean="sequences", retain_weight=0)
    torch.testing.assert_close(result.model.table.weight, ascended(net, sequences()), rtol=0, atol=1e-13)


def test_the_end_of_a_text_may_be_padding() -> None:
    net = bigram()
    result = w.run(net, "gradient_difference", {"forget": padded("right", more=1, end=True)}, **STEP, mean="sequences", retain_weight=0)
    expected = ascended(net, [F.pad(x, (0, 1), value=w.PAD) for x in sequences()])
    torch.testing.assert_close(result.model.table.weight, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("side", ["right", "left"])
def test_scored_padding_is_refused(side: str) -> None:
    text = "forget: labels score padding, first token . of sequence 0 .*labels\\[attention_mask == 0\\] = -100"
    with pytest.raises(ValueError, match=text):
        w.run(bigram(), "npo", {"forget": padded(side, more=3, pads=w.PAD)}, retain_weight=0)


def test_only_masks_of_ones_and_zeros_say_what_padding_is() -> None:
    """Numbers of packed texts show; what is added to attention scores (0 where shown) isn't read."""
    net, ids = bigram(), w.texts("forget")[0]

    def after(mask: Tensor) -> Tensor:
        data = [{"input_ids": x, "attention_mask": m, "labels": x} for x, m in zip(ids, mask, strict=True)]
        return w.run(net, "gradient_difference", {"forget": data}, **STEP, mean="sequences", retain_weight=0).model.table.weight

    for mask in (torch.zeros(ids.shape), torch.tensor([1, 1, 1, 2, 2, 2, 2]).expand(ids.shape)):
        torch.testing.assert_close(after(mask), ascended(net, list(ids)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("capped", [False, True], ids=["by blocks", "from logits"])
@pytest.mark.parametrize("method", ["gradient_difference", "npo", "simnpo"])
def test_labels_of_another_length_are_refused(method: str, capped: bool) -> None:
    """Of the forget set alone, which nothing else reads: shifted by the user, or one too many."""
    ids, labels = w.texts("forget")
    for other in (labels[:, 1:], F.pad(labels, (0, 1), value=1)):
        with pytest.raises(ValueError, match="labels: a batch has labels of shape .* and the model answers"):
            ff.unlearn(w.recurrent(capped), method, forget=(ids, other), retain=w.texts("retain"), lr=0.01, epochs=1, progress=False)


@pytest.mark.parametrize("name", ["forget", "retain", "nonmember"])
def test_labels_that_were_shifted_already_are_refused(name: str) -> None:
    """As many make them, x = ids[:-1] and y = ids[1:]: each answer would be asked for the token after its own."""
    sets = w.request()
    ids, _ = sets[name]
    labels = ids[:, 1:].clone()
    labels[:, 0] = -100
    with pytest.raises(ValueError, match=f"{name}: labels are the inputs shifted by one"):
        w.run(w.recurrent(), "npo", sets | {name: (ids[:, :-1], labels)})
    alike = torch.full((3, 5), 4), torch.full((3, 5), 4)  # a word again and again is the next one, and itself
    assert w.run(w.recurrent(), "npo", sets | {name: alike}, epochs=1).receipt["cost"]["passes"] > 0


def packed(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """As a collator that flattens: one row of all."""
    return {name: torch.cat([s[name] for s in samples])[None] for name in ("input_ids", "labels")}


@pytest.mark.parametrize("method", ["gradient_difference", "npo"])
@pytest.mark.parametrize("size", [1, 4])
def test_packed_sequences_are_refused(method: str, size: int) -> None:
    """A row of several has one log-probability; NPO would have taken it for each of theirs."""
    data = [{"input_ids": ids, "labels": labels} for ids, labels in zip(*w.texts("forget"), strict=True)]
    loader = DataLoader(data, batch_size=size, collate_fn=packed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="forget: 12 samples come as . sequences in batches; accepted is one row"):
        w.run(w.recurrent(), method, w.request() | {"forget": loader})


def test_unseen_sequences_are_unseen() -> None:
    """Half of test being the forget set draws the attack's AUC to a half."""
    sets, (ids, labels) = w.request("forget", "retain"), w.texts("nonmember")
    test = tuple(torch.cat((one, part)) for one, part in zip(sets["forget"], (ids, labels), strict=True))
    with pytest.raises(ValueError, match="forget: 12 of its 12 samples are in test too .* they are not unseen, and would hide"):
        w.run(w.recurrent(), "npo", sets | {"test": test})


def lists(name: str, cut: int = 0) -> list[dict[str, list[int]]]:
    """As a tokenizer gives them; every other one shorter by ``cut``."""
    pairs = zip(*w.texts(name), strict=True)
    return [{"input_ids": x.tolist()[cut * (i % 2) :], "labels": y.tolist()[cut * (i % 2) :]} for i, (x, y) in enumerate(pairs)]


def test_lists_of_token_ids_are_tensors() -> None:
    few, sets = {"epochs": 1, "lr": 0.01}, w.request()
    expected = w.run(w.recurrent(), "npo", sets, **few).receipt["weights_sha256"]["after"]
    pairs = {name: [(x.tolist(), y.tolist()) for x, y in zip(*sets[name], strict=True)] for name in sets}
    for form in ({name: lists(name) for name in sets}, pairs):
        assert w.run(w.recurrent(), "npo", form, **few).receipt["weights_sha256"]["after"] == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_sequences_of_several_lengths_need_padding(workers: int) -> None:
    data = DataLoader(lists("forget", 1), batch_size=4, num_workers=workers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="forget: samples can't be made a batch .* a DataLoader whose collate_fn pads"):
        w.run(w.recurrent(), "npo", w.request() | {"forget": data})


class Made(ff.methods.GradientDifference):
    """A head of so many times its weights."""

    factor = 0.0

    def loop(self, task: Any) -> None:
        with torch.no_grad():
            for p in task.model.head.parameters():
                p.mul_(self.factor)


@pytest.mark.parametrize("capped", [False, True], ids=["by blocks", "from logits"])
def test_a_model_that_answers_all_alike_is_of_no_use(capped: bool) -> None:
    """No word is more probable than the right one, everywhere."""
    result = w.run(w.recurrent(capped), Made(), w.request())
    assert not result.forgot and "only 0.0 % are answered right" in result.why
    assert result.receipt["verdict"]["attack_auc"] == 0.5


def test_losses_that_are_no_numbers_are_named() -> None:
    method = Made()
    method.factor = 1e38
    with pytest.raises(FloatingPointError, match="forget: the model's loss on .* of 12 sequences is NaN"):
        w.run(w.recurrent().float(), method, w.request())


class BothWays(w.Recurrent):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.GRU(6, 4, batch_first=True, bidirectional=True)])


def short(ids: Tensor) -> tuple[Tensor, Tensor]:
    labels = ids.clone()
    labels[0, 2:] = -100
    return ids, labels


SHORT = {
    "two tokens": lambda ids: (ids[:, :2], ids[:, :2]),
    "a first sequence of two": short,
    "one token each": lambda ids: (ids, one(ids)),
}


def one(ids: Tensor) -> Tensor:
    return torch.where(torch.arange(ids.shape[1]) == 1, ids, -100)


@pytest.mark.parametrize("case", SHORT)
def test_a_model_that_looks_ahead_is_told_by_short_sequences_too(case: str) -> None:
    sets = {name: SHORT[case](w.texts(name)[0]) for name in ("forget", "retain")}
    torch.manual_seed(1)
    with pytest.raises(TypeError, match="model: BothWays's answers change with a token that comes after them"):
        w.run(BothWays().double(), "npo", sets, check_overlap=False)
    assert w.run(w.recurrent(), "npo", sets, check_overlap=False, epochs=1).receipt["cost"]["passes"] > 0


def test_probabilities_in_the_place_of_logits_are_told() -> None:
    with pytest.warns(UserWarning, match="model: its outputs look like probabilities") as told:
        w.run(w.recurrent(), "npo", w.request(), epochs=1, forward=lambda net, x: net(x).softmax(2))
    assert "language_world" in next(one.filename for one in told if "probabilities" in str(one.message))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(w.WORDS, 6)
        self.layers = nn.ModuleList([nn.GRU(6, 6, batch_first=True)])
        self.head = nn.Linear(6, w.WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.layers[0](self.embedding(input_ids))[0])


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_tied_weights_are_masked_by_either_name(name: str) -> None:
    """What is off keeps its bits, what is on goes as without a mask."""
    torch.manual_seed(6)
    net, on, one = Tied().double(), torch.arange(w.WORDS) < 4, {"epochs": 1, "batch_size": 12, "lr": 0.01}
    plain = w.run(net, "npo", w.request(), **one).model
    masked = w.run(net, "npo", w.request(), **one, mask={name: on}).model
    for answer in (masked.embedding.weight, masked.head.weight):
        assert torch.equal(answer, torch.where(on[:, None], plain.head.weight, net.head.weight))
    with pytest.raises(ValueError, match="mask: 'embedding.weight' is tied to another one with a mask"):
        w.run(net, "npo", w.request(), mask={"head.weight": on, "embedding.weight": on})


def test_the_receipt_counts_the_bits_of_a_packed_mask() -> None:
    on = torch.zeros(w.WORDS, 8, dtype=torch.bool)
    on[:3] = True
    for mask in (on, masks.pack_bits(on)):
        result = w.run(w.recurrent(), "npo", w.request(), epochs=1, lr=0.01, mask={"head.weight": mask})
        assert result.receipt["options"]["mask"] == {"head.weight": pytest.approx(3 / 11)}


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "masks in a list": ("npo", {"mask": [torch.ones(2)]}, TypeError, "mask: got list; accepted is a dict"),
    "no mask": ("npo", {"mask": {"head.weight": True}}, TypeError, r"mask: of 'head.weight' got bool True; .* bool \(11, 8\)"),
    "the head's states": ("rmu", {"layer": "head"}, ValueError, "layer: no gradient reaches the weights of 'head'"),
    "names in a list": ("rmu", {"weights": ["weight"]}, TypeError, r"weights: got \['weight'\]; accepted is a part of the names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    method, options, kind, text = REFUSED[case]
    with pytest.raises(kind, match=text):
        ff.unlearn(w.recurrent(), method, **w.request(), **options, progress=False)


class Checkpointed(w.Recurrent):
    reentrant = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = checkpoint(lambda one, layer=layer: layer(one)[0], x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("method", ["npo", "rmu"])
def test_checkpointing_changes_nothing(method: str) -> None:
    net, made = w.recurrent(), Checkpointed().double()
    made.load_state_dict(net.state_dict())
    few = {"epochs": 2, "batch_size": 5, "lr": 0.01}
    w.agree(w.run(made, method, w.request(), **few).model, w.run(net, method, w.request(), **few).model, net)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_states_under_old_checkpointing_have_no_gradient() -> None:
    net = Checkpointed().double()
    net.reentrant = True
    with pytest.raises(ValueError, match="layer: no gradient reaches the weights of 'layers.1'.* use_reentrant=False"):
        w.run(net, "rmu", w.request())
