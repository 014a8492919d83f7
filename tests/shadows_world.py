"""Tiny shadow models for the tests: blobs, a net of one hidden layer, and everything kept that the state only sums up."""

from __future__ import annotations

import torch
from audit_world import CLASSES, FEATURES, blobs
from torch import nn

import fastforget as ff
from fastforget._random import own_randomness
from fastforget.auditing.shadow.design import model_seed
from fastforget.auditing.shadow.stack import Recipe, train_one
from fastforget.ops.membership import membership_scores

POOL = blobs(40, 1)
POPULATION = blobs(24, 3)
RECIPE = {"epochs": 20, "lr": 1e-2, "batch_size": 8, "stack": False, "progress": False}


def make_model(seed: int) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def forget_half_way(model, forget, retain, seed):
    """One step of ascent on the forget set."""
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    (-nn.functional.cross_entropy(model(forget[0]), forget[1])).backward()
    optimiser.step()
    return model


def query(inputs: torch.Tensor, k: int) -> torch.Tensor:
    return inputs + 0.1 * k


def train(n: int = 8, pool=POOL, **options) -> ff.audit.Shadows:
    return ff.audit.shadows(make_model, pool, n, **{**RECIPE, **options})


def models_of(held: ff.audit.Shadows, pool=POOL) -> list[nn.Module]:
    """The models of a run, trained again one by one from the recorded seeds and members."""
    recipe = Recipe.for_pool(len(pool[1]), RECIPE["epochs"], RECIPE["lr"], RECIPE["batch_size"], None)
    models = []
    for index, seed, member in zip(held.index.tolist(), held.seeds.tolist(), held.member, strict=True):
        assert seed == model_seed(held.settings["seed"], index)
        with own_randomness(seed):
            model = make_model(seed)
        train_one(model, *pool, member.nonzero()[:, 0], seed, recipe, lambda _: None)
        models.append(model.eval())
    return models


@torch.no_grad()
def scores_of(models, data, queries: int = 1):
    """(logit confidence, loss), [M, n, queries] in float32."""
    rows = [[membership_scores(m(query(data[0], k)), data[1]) for k in range(queries)] for m in models]
    return tuple(torch.stack([torch.stack([getattr(s, f) for s in row], 1) for row in rows]) for f in ("logit_confidence", "loss"))


def tensors_equal(a, b) -> bool:
    one, two = a.tensors(), b.tensors()
    return a.settings == b.settings and one.keys() == two.keys() and all(torch.equal(x, two[k]) for k, x in one.items())
