"""Models whose answers are more than their head's product, and models built so that an audit reads what it shouldn't."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import language_world as w
import pytest
import sequences_world
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastforget as ff
from fastforget._causal.answers import outputs
from fastforget._causal.checks import look
from fastforget._causal.head import find_head
from fastforget.auditing.proof.check import check
from fastforget.auditing.provenance import Case
from fastforget.auditing.sequence_rule import check_losses


@pytest.fixture(scope="module")
def world() -> sequences_world.World:
    return sequences_world.world()


class Net(sequences_world.Net):
    """The same, with a head that is made first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, later = nn.Linear(32, sequences_world.WORDS), self.head
        del self.head
        self._modules = {"head": later, **self._modules}


class Capped(sequences_world.Net):
    """Limits its logits, but not in batches of two."""

    def forward(self, input_ids: Tensor) -> Tensor:
        logits = super().forward(input_ids)
        return logits if len(input_ids) == 2 else 5 * torch.tanh(logits / 5)


def as_a(kind: type[nn.Module], net: nn.Module) -> nn.Module:
    made = kind()
    made.load_state_dict(net.state_dict())
    return made.eval()


def test_logits_to_which_more_is_done_in_other_batches_are_read_as_they_are(world):
    """The head is looked for in a batch of two."""
    net, words = as_a(Capped, world.again), world.words["forget"]
    head = find_head(net, lambda model, x: model(x), words[:2], net(words[:2]))
    assert head == "head" and outputs(net, head, lambda model, x: model(x), words[:2]).weight is net.head.weight
    with torch.no_grad():
        loss = float(F.cross_entropy(net(words)[:, :-1].flatten(0, 1), words[:, 1:].flatten()))
    row = world.audit(unlearned=net).figures_of("unlearned")
    assert row.mean_loss["forget"].value == pytest.approx(loss, abs=1e-6)


def test_the_divergence_of_a_narrower_model_is_from_the_reference_as_it_is(world):
    """The retrained model's weights in bfloat16 differ from it by their rounding alone, which rounding the reference too would hide."""
    narrow, words = copy.deepcopy(world.retrained).bfloat16(), world.words["forget"]
    with torch.no_grad():
        hidden = narrow.body(narrow.embedding(words))[0].double()
        q = (hidden @ narrow.head.weight.double().T + narrow.head.bias.double()).log_softmax(2)[:, :-1]
        p = world.retrained(words).double().log_softmax(2)[:, :-1]
    expected = float((p.exp() * (p - q)).sum(2).mean())
    found = world.audit(unlearned=narrow).figures_of("unlearned").probes["kl_to_retrained"].value
    assert 0 < expected == pytest.approx(found, rel=0.02)


def hooked(world: sequences_world.World) -> nn.Module:
    """Knows all it knew, and a hook gives the retrained model's answers."""
    net = world.changed(lambda p: p * 1.01)
    net.register_forward_hook(lambda module, args, out: world.retrained(*args).detach() + 0.01 * (out - out.detach()))
    return net


def replaced(world: sequences_world.World) -> nn.Module:
    net = world.changed(lambda p: p * 1.01)
    own = net.forward
    net.forward = lambda ids: world.retrained(ids).detach() + 0.01 * (own(ids) - own(ids).detach())
    return net


def called_otherwise(world: sequences_world.World) -> nn.Module:
    """Below ``forward``: what a call of any module runs through."""
    net = world.changed(lambda p: p * 1.01)
    net._call_impl = lambda ids: world.retrained(ids).detach()
    return net


@pytest.mark.parametrize("made", [hooked, replaced, called_otherwise])
def test_answers_that_are_put_on_a_model_are_no_pass(world, made):
    report = world.audit(unlearned=made(world))
    row = report.figures_of("unlearned")
    assert report.verdict == "PARTIAL"
    first = next(why for why in row.reasons if not why.startswith("PASS"))
    assert first.startswith("PARTIAL: built otherwise than the original (the model: ")


def test_how_a_model_is_built_stands_in_its_receipt(world):
    receipt = world.audit(unlearned=hooked(world)).receipt()
    assert [one for one in check(receipt, weights={}) if one.why] == []
    original, row = (next(one for one in receipt["rows"] if one["model"] == name) for name in ("original", "unlearned"))
    original["sequences"]["structure"], row["sequences"]["structure"], row["sequences"]["head"] = "a hook", None, "body"
    said = " | ".join(one.why for one in check(receipt, weights={}) if one.why)
    assert "give another status" in said and "sequences.structure: the original is built as itself" in said
    row["sequences"]["head"] = "another"
    assert any("sequences.head is no layer of weight_distance" in one.why for one in check(receipt, weights={}))


def test_a_further_retrained_model_is_not_held_against_itself(world):
    """Its own distance doesn't widen what it may lie apart; that of another does."""
    report = world.audit(unlearned=world.again, **{"retrained 2": world.again})
    original, retrained, second = (report.figures_of(name) for name in ("original", "retrained", "retrained 2"))
    far = replace(second, probes={**second.probes, "ks_to_retrained": replace(second.probes["ks_to_retrained"], value=0.9)})
    references = (retrained, far)
    assert [status for status, _ in check_losses(Case(far, original, retrained, references))] == ["PARTIAL"]
    beside = replace(far, model="unlearned")
    assert [status for status, _ in check_losses(Case(beside, original, retrained, references))] == ["PASS"]


def test_compare_shows_what_sequences_are_judged_by(world):
    said = str(ff.audit.compare([world.audit(unlearned=world.again).receipt()]))
    assert "perplexity-ratio attack, AUC 0." in said and "loss attack after steps on the other half, AUC 0." in said
    assert "noised" not in said and " - " not in said


class Tied(sequences_world.Net):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(32, 16)
        self.head = nn.Linear(16, sequences_world.WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.down(self.body(self.embedding(input_ids))[0]))


@pytest.mark.parametrize(("kind", "layer"), [(Net, "head"), (Tied, "embedding")], ids=["made first", "tied"])
def test_the_last_layer_is_the_one_that_makes_the_logits(kind, layer):
    torch.manual_seed(0)
    models = {name: kind() for name in ("original", "unlearned", "retrained")}
    models["unlearned"] = copy.deepcopy(models["original"])
    assert list(dict(models["original"].named_parameters()))[-1].rpartition(".")[0] != "head"
    with torch.no_grad():
        models["unlearned"].head.weight.add_(torch.randn_like(models["unlearned"].head.weight))
    words = {name: (sequences_world.texts(9, i),) * 2 for i, name in enumerate(("forget", "retain", "test"))}
    row = ff.audit(models, **words, sequences=True, progress=False).figures_of("unlearned")
    assert row.sequences.head == layer and f"FAIL: only the last layer ({layer}) was changed" in row.reasons[0]


def test_an_unknown_word_among_the_inputs_is_named(world):
    sets: dict[str, Any] = {**world.sets, "forget": (world.words["forget"] + 5, world.words["forget"])}
    with pytest.raises(RuntimeError, match="model 'original', forget set, sequences 0 to 1: its forward failed with IndexError"):
        world.audit(sets=sets)


def test_a_model_that_sees_later_words_is_told_beside_padding_that_is_nan():
    """Attention over nothing but padding, on the left, is NaN in some models."""
    torch.manual_seed(0)
    table = torch.randn(w.WORDS, w.WORDS)

    def answers(model: nn.Module, ids: Tensor) -> Tensor:
        logits = table[ids] + table[ids].mean(dim=1, keepdim=True)
        logits[:, 0] = torch.nan
        return logits

    ids, labels = w.texts("forget")
    with pytest.raises(TypeError, match="answers change with a token that comes after them"):
        look("model", nn.Identity(), answers, ids[:2], labels[:2], "forget", stacklevel=1)
