"""What an audit of language models refuses, and what serves classifiers alone: the argument is named, and what to take instead."""

from __future__ import annotations

import copy
import math
from typing import Any

import language_world as w
import pytest
import sequences_world
import torch
from torch import Tensor, nn

import fastforget as ff


@pytest.fixture(scope="module")
def world() -> sequences_world.World:
    return sequences_world.world()


class Ahead(nn.Module):
    """Answers from the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sequences_world.WORDS, sequences_world.WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        return x + x.mean(dim=1, keepdim=True)


def classifier() -> nn.Module:
    return nn.Sequential(nn.Embedding(sequences_world.WORDS, 4), nn.Flatten(), nn.Linear(40, 3))


def labels(world: sequences_world.World, name: str, change: Any) -> dict[str, Any]:
    """A set with other labels."""
    ids, same = world.sets[name]
    return {name: (ids, change(same))}


WITHOUT = "; of sequences it isn't measured, so accepted is an audit without it. Instead,"
# What of a call is another, and what is said.
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "token ids for a classifier": (lambda world: {"sequences": False}, ValueError, "sequences=True"),
    "class ids": (lambda world: labels(world, "forget", lambda y: y[:, 0]), ValueError, "token ids [N, T]"),
    "not a flag": (lambda world: {"sequences": "yes"}, TypeError, "sequences: got str"),
    "shadow models": (lambda world: {"shadows": object()}, ValueError, f"shadows: got object{WITHOUT} take the attacks 'min_k_plus' and"),
    "RMIA's samples": (lambda world: {"population": world.sets["test"]}, ValueError, f"population: got tuple{WITHOUT} take the attacks"),
    "oracles": (lambda world: {"oracles": {"one": max}}, ValueError, f"oracles: got dict{WITHOUT} read 'forgetting_rate'"),
    "a teacher": (lambda world: {"teacher": world.again}, ValueError, f"teacher: got Net{WITHOUT} read 'kl_to_retrained'"),
    "relearning": (lambda world: {"relearn": ["ain"], "train": world.sets["retain"]}, ValueError, f"relearn: got list{WITHOUT} read 'ot"),
    "an attack by shadow models": (
        lambda world: {"attacks": ["lira"]},
        ValueError,
        "'perplexity_ratio'. Shadow models aren't read: of sequences, take the attacks 'min_k_plus' and, beside a retrained",
    ),
    "an attack on classifiers": (lambda world: {"attacks": ["entropy"]}, ValueError, "'min_k_plus'"),
    "an attack on sequences": (lambda world: {"sequences": False, "attacks": ["min_k"]}, ValueError, "a list of 'loss', 'confidence'"),
    "a classifier": (lambda world: {"models": {"original": classifier()}}, TypeError, "models['original']: for labels of shape (2, 10)"),
    "looking ahead": (lambda world: {"models": {"original": Ahead()}}, TypeError, "Ahead's answers change with a token"),
    "no numbers": (
        lambda world: {"models": {"original": world.changed(lambda p: p * math.nan)}},
        ValueError,
        "models['original']: its logits on the first forget batch aren't finite",
    ),
    "an unknown word": (lambda world: labels(world, "test", lambda y: y + 1), ValueError, "accepted are 0 to 19"),
    "nothing scored": (lambda world: labels(world, "retain", lambda y: 0 * y - 100), ValueError, "retain: sequence 0 has no token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(world, case):
    change, kind, said = REFUSED[case]
    options = {"models": {"original": world.original}, **world.sets, "sequences": True, "progress": False, **change(world)}
    with pytest.raises(kind) as caught:
        ff.audit(options.pop("models"), **options)
    assert said in str(caught.value)


CLASSIFIERS_ALONE: dict[str, tuple[Any, str, str]] = {
    "shadow models": (lambda net, held: ff.audit.shadows(lambda seed: net, held, n=2, progress=False), "dataset", "take the attacks"),
    "relearn time": (
        lambda net, held: ff.audit.relearn_time(net, train=held, forget=held, original_accuracy=0.9, progress=False),
        "(train|forget)",
        "read 'other_half_auc' of ff.audit\\(..., sequences=True\\)",
    ),
    "a threshold": (lambda net, held: ff.audit.oracles.LossThreshold.calibrated(net, held, held), "data", "read 'forgetting_rate'"),
    "a regression": (lambda net, held: ff.audit.oracles.ShadowLogistic([(net, held, held)]), "shadows.0.", "read 'forgetting_rate'"),
}


@pytest.mark.parametrize("form", [w.texts, w.ragged], ids=["pair", "loader that pads"])
@pytest.mark.parametrize("case", CLASSIFIERS_ALONE)
def test_what_serves_classifiers_alone_says_what_serves_sequences(case, form):
    call, name, advice = CLASSIFIERS_ALONE[case]
    said = rf"^{name}: labels .*, token ids of sequences; .* serves classifiers alone, .* Of language models, {advice}"
    with pytest.raises(ValueError, match=said):
        call(w.recurrent(), form("forget"))


def test_one_hot_rows_are_no_token_ids():
    """They keep their own words, and class ids go on."""
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    with pytest.raises(ValueError, match="one-hot rows"):
        ff.audit.oracles.logits_of(nn.Linear(4, 3), (x, nn.functional.one_hot(y)))
    assert ff.audit.oracles.logits_of(nn.Linear(4, 3), (x, y[:, None]))[1].tolist() == y.tolist()


def test_logits_that_become_no_numbers_are_named(world):
    net = copy.deepcopy(world.original)
    rare = sequences_world.WORDS - 1
    sets = {name: (words.clamp_max(rare - 1),) * 2 for name, words in world.words.items()}
    late = sets["retain"][0].clone()
    late[50, 4] = rare
    with torch.no_grad():
        net.embedding.weight[rare] = math.nan
    with pytest.raises(ValueError, match=r"model 'unlearned', retain set: 1 of 120 samples have NaN"):
        world.audit(unlearned=net, sets={**sets, "retain": (late, late)})


def test_probabilities_are_told_where_the_call_is(world):
    with pytest.warns(UserWarning, match=r"models\['original'\]: its outputs look like probabilities") as caught:
        ff.audit({"original": world.original}, **world.sets, sequences=True, progress=False, forward=lambda model, x: model(x).softmax(2))
    assert caught[0].filename == __file__
