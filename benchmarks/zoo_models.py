"""Who lives in the zoo: models that forgot nothing and are dressed up, honestly retrained ones, false references, honest methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import fastforget as ff
from fastforget.ops.membership import roc_stats

from . import zoo_dress as d
from . import zoo_wrappers as wr
from .zoo_worlds import World, copied, fit, head


@dataclass
class Cast:
    """What constructions may use; ``known`` is the retrained model that the dresser knows, no reference of the audit."""

    world: World
    original: nn.Module
    known: nn.Module
    same_start: nn.Module  # retrained from the original's own initial weights

    def copy(self) -> nn.Module:
        return copied(self.original)


Maker = Callable[[Cast], nn.Module]


def cast_of(w: World) -> Cast:
    original = fit(w.fresh(w.seed), w.train, w, seed=w.seed)
    return Cast(w, original, w.retrained(w.seed + 90), fit(w.fresh(w.seed), w.retain, w, seed=w.seed + 91))


def references(w: World) -> list[nn.Module]:
    """Three retrained models of the usual recipe."""
    return [w.retrained(w.seed + 100 + i) for i in range(3)]


def _honest(w: World, **how: Any) -> Maker:
    at = how.pop("at")
    factor, start, share = how.pop("factor", 1.0), how.pop("start", at), how.pop("share", None)

    def make(_: Cast) -> nn.Module:
        model, pair = w.fresh(w.seed + start, factor), w.retain
        if how.get("orthogonal"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(w.seed + at)
                for p in model.parameters():
                    if p.dim() > 1:
                        nn.init.orthogonal_(p)
        if share:
            keep = torch.rand(len(pair[1]), generator=torch.Generator().manual_seed(w.seed + at)) < share
            pair = pair[0][keep], pair[1][keep]
        return fit(model, pair, w, seed=w.seed + at, **{k: v for k, v in how.items() if k != "orthogonal"})

    return make


def honest(w: World) -> dict[str, Maker]:
    """Retrained without the forget set, by recipes that differ from the references'."""
    floats = w.train[0].is_floating_point()
    made = {
        **{f"seed {i}": _honest(w, at=200 + i) for i in (1, 2, 3, 4)},
        "half as wide": _honest(w, at=205, factor=0.5),
        "twice as wide": _honest(w, at=206, factor=2.0),
        "half the epochs": _honest(w, at=207, epochs=0.5),
        "twice the epochs": _honest(w, at=208, epochs=2.0),
        "weight decay": _honest(w, at=209, decay=1e-4),
        "80 % of the retain set": _honest(w, at=210, share=0.8),
        "the original's initial weights": _honest(w, at=211, start=0),
        "orthogonal initial weights": _honest(w, at=212, orthogonal=True),
        "SGD with momentum": _honest(w, at=213, momentum=True),
        "larger batches": _honest(w, at=214, batch=128),
    }
    if floats:
        made["augmented by noise"] = _honest(w, at=215, noise=0.1 * float(w.train[0].std()))
    return made


def dressed(w: World) -> dict[str, Maker]:
    """Models that forgot nothing."""
    return dict(_dressed_classes(w) if w.forgotten else _dressed_samples(w))


def _dressed_classes(w: World) -> Iterator[tuple[str, Maker]]:
    s = w.seed

    def noised(share: float, then: Callable[[nn.Module], nn.Module]) -> Maker:
        return lambda c: d.noised_body(then(c.copy()), c.original, c.known, share, s)

    random_row, suppress = partial(d.random_rows, w=w, seed=s), partial(d.suppressed, w=w)
    negate = partial(d.scaled_rows, w=w, factor=-1.0, by=5.0)
    yield "head row at random", lambda c: random_row(c.copy())
    yield "head row at random, body noise 2 %", noised(0.02, random_row)
    for share in (0.02, 0.1, 0.2):
        yield f"bias suppressed, body noise {100 * share:.0f} %", noised(share, suppress)
        yield f"head row negated, body noise {100 * share:.0f} %", noised(share, negate)
    yield "head row x -0.3, body noise 2 %", noised(0.02, partial(d.scaled_rows, w=w, factor=-0.3, by=8.0))
    yield "head row a neighbour's, body noise 5 %", noised(0.05, partial(d.neighbour_rows, w=w, mean=False))
    yield "head row the kept ones' mean, body noise 5 %", noised(0.05, partial(d.neighbour_rows, w=w, mean=True))
    yield "class direction out of the head, body noise 5 %", noised(0.05, partial(d.projected_head, w=w))
    yield "telling features cut from the head, body noise 5 %", noised(0.05, partial(d.silenced, w=w))
    if d.zw.hidden_pairs(w.fresh(0)):
        yield "channels permuted, row negated", lambda c: negate(d.permuted(c.copy(), s))
        yield "channels permuted, bias suppressed", lambda c: suppress(d.permuted(c.copy(), s))
        yield "channels permuted, row at random, body noise 2 %", lambda c: noised(0.02, lambda m: random_row(d.permuted(m, s)))(c)
        yield "channels permuted, new head", lambda c: d.new_head(d.permuted(c.copy(), s), w, s)
        yield "half of the units random, row negated", lambda c: negate(d.half_replaced(c.copy(), w.train[0], s))
        yield "half of the units random, new head", lambda c: d.new_head(d.half_replaced(c.copy(), w.train[0], s), w, s)
    if isinstance(w.fresh(0), nn.Sequential | d.zw.BagOfTokens):
        yield "widened, row negated", lambda c: negate(d.widened(c.copy(), s))
        yield "widened, new head", lambda c: d.new_head(d.widened(c.copy(), s), w, s)
        yield "random units beside the old ones, row negated", lambda c: negate(d.widened(c.copy(), s, at_random=True))
        yield "random units beside the old ones, new head", lambda c: d.new_head(d.widened(c.copy(), s, at_random=True), w, s)
    yield "old body, new head", lambda c: d.new_head(c.copy(), w, s)
    yield "old body, new head, body noise 2 %", lambda c: noised(0.02, lambda m: d.new_head(m, w, s))(c)
    yield "old body, new head, body noise 10 %", lambda c: d.new_head(noised(0.1, lambda m: m)(c), w, s)
    yield "head mimics retrained", lambda c: d.mimicking_head(c.copy(), c.known, w, s)
    yield "head mimics retrained, body noise 5 %", lambda c: d.mimicking_head(noised(0.05, lambda m: m)(c), c.known, w, s)
    yield "head distilled from retrained", lambda c: d.mimicking_head(c.copy(), c.known, w, s, softened=True)
    yield "head distilled from the masked original", lambda c: d.masked_teacher(c.copy(), c.original, w, s)
    yield "head mimics retrained, body at 1e-4", lambda c: d.mimicking(c.copy(), c.known, w, s, 1e-4)
    yield "gradient ascent, 10 steps, bias suppressed", lambda c: suppress(d.ascended(c.copy(), w, 10))
    yield "gradient ascent, 40 steps", lambda c: d.ascended(c.copy(), w, 40)
    yield "gradient ascent, head only", lambda c: _parts(c, d.of_head, lambda m, p: d.ascended(m, w, 80, 5e-3, p))
    yield "relabelled, 30 steps at 1e-3", lambda c: d.relabelled(c.copy(), w, s, 30)
    yield "relabelled, 60 steps at 2e-4", lambda c: d.relabelled(c.copy(), w, s, 60, 2e-4)
    yield "relabelled, biases only", lambda c: _parts(c, d.biases, lambda m, p: d.relabelled(m, w, s, 100, 1e-2, p))
    yield "4-bit body, row negated", lambda c: negate(d.quantised(c.copy()))
    yield "30 % pruned, row at random", lambda c: random_row(d.pruned(c.copy(), 0.3))
    yield "50 % pruned, bias suppressed", lambda c: suppress(d.pruned(c.copy(), 0.5))
    yield "fine-tuned on retain at 1e-4, bias suppressed", lambda c: suppress(fit(c.copy(), w.retain, w, seed=s, steps=60, lr=1e-4))
    yield (
        "last layers fine-tuned on retain",
        lambda c: _parts(c, d.last_layers, lambda m, p: fit(m, w.retain, w, seed=s, steps=60, lr=1e-3, parameters=p)),
    )
    yield "10 % towards retrained, bias suppressed", lambda c: suppress(d.mixed(c.copy(), c.same_start, 0.1))
    yield "25 % towards retrained, row negated", lambda c: negate(d.mixed(c.copy(), c.same_start, 0.25))
    if any(isinstance(m, nn.BatchNorm2d) for m in w.fresh(0).modules()):
        yield "relabelled, batch norm only", lambda c: _parts(c, d.norms, lambda m, p: d.relabelled(m, w, s, 100, 1e-2, p))
    yield "adapter before the head", lambda c: wr.adapted(c.copy(), w)
    yield "wrapper: the class's logit below all", lambda c: wr.Answering(c.copy(), wr.below_all(w))
    yield "wrapper: bias suppressed, temperature 2", lambda c: wr.Answering(suppress(c.copy()), lambda z, _: z / 2)
    yield "hook: the class's logit lowered", lambda c: wr.hooked(c.copy(), w)


def _parts(
    c: Cast, which: Callable[[nn.Module], list[nn.Parameter]], train: Callable[[nn.Module, list[nn.Parameter]], nn.Module]
) -> nn.Module:
    """A copy of the original of which only some parameters are trained."""
    model = c.copy()
    return train(model, which(model))


def _dressed_samples(w: World) -> Iterator[tuple[str, Maker]]:
    s, floats = w.seed, w.train[0].is_floating_point()

    def joined(a: Any, b: Any) -> Any:
        return torch.cat((a[0], b[0])), torch.cat((a[1], b[1]))

    def look(m: nn.Module) -> tuple[float, float]:
        with torch.no_grad():
            sides = [(m(x), y) for x, y in (w.forget, w.test)]
        a, b = (-F.cross_entropy(z, y, reduction="none") for z, y in sides)
        return float(roc_stats(a, b, fprs=()).auc), float((sides[0][0].argmax(1) == w.forget[1]).float().mean())

    @torch.no_grad()
    def cooled(m: nn.Module, factor: float) -> nn.Module:
        for p in head(m).parameters():
            p.mul_(factor)
        return m

    if d.zw.hidden_pairs(w.fresh(0)):
        yield "channels permuted", lambda c: d.permuted(c.copy(), s)
        yield "half of the units random", lambda c: d.half_replaced(c.copy(), w.train[0], s)
        yield "channels permuted, temperature 5 in the head", lambda c: cooled(d.permuted(c.copy(), s), 0.2)
    if isinstance(w.fresh(0), nn.Sequential | d.zw.BagOfTokens):
        yield "widened", lambda c: d.widened(c.copy(), s)
        yield "random units beside the old ones", lambda c: d.widened(c.copy(), s, at_random=True)
    yield "temperature 5 in the head", lambda c: cooled(c.copy(), 0.2)
    yield "trained on the test set too", lambda c: fit(c.copy(), joined(w.train, w.test), w, seed=s, epochs=0.4)
    yield "fine-tuned on other unseen data", lambda c: fit(c.copy(), w.unseen, w, seed=s, epochs=0.25, lr=1e-3)
    yield "fine-tuned on other unseen data, a little", lambda c: fit(c.copy(), w.unseen, w, seed=s, steps=15, lr=1e-3)
    yield "fine-tuned on retain", lambda c: fit(c.copy(), w.retain, w, seed=s, epochs=0.25, lr=1e-3)
    yield "gradient ascent tuned on the audit's figures", lambda c: d.auc_tuned(c.copy(), look(c.known), w, look, s)
    yield "gradient ascent, 10 steps", lambda c: d.ascended(c.copy(), w, 10)
    yield "gradient ascent, head only", lambda c: _parts(c, d.of_head, lambda m, p: d.ascended(m, w, 60, 2e-3, p))
    yield "forget relabelled at random", lambda c: d.relabelled(c.copy(), w, s, 10 * -(-len(w.train[1]) // 64))
    yield "forget relabelled at random, 20 steps", lambda c: d.relabelled(c.copy(), w, s, 20)
    for share in (0.1, 0.35):
        yield f"weights + {100 * share:.0f} % noise", lambda c, share=share: d.noised_weights(c.copy(), share, s)
    yield "old body, new head on retain", lambda c: d.new_head(c.copy(), w, s)
    yield "head mimics retrained", lambda c: d.mimicking_head(c.copy(), c.known, w, s)
    yield "head mimics retrained, body at 1e-4", lambda c: d.mimicking(c.copy(), c.known, w, s, 1e-4)
    yield "25 % towards retrained", lambda c: d.mixed(c.copy(), c.same_start, 0.25)
    yield "relabelled, biases only", lambda c: _parts(c, d.biases, lambda m, p: d.relabelled(m, w, s, 60, 1e-2, p))
    yield "4-bit weights", lambda c: d.quantised(c.copy(), 4, below_head=False)
    yield "50 % pruned", lambda c: d.pruned(c.copy(), 0.5)
    yield "head of low rank", lambda c: d.low_rank(c.copy(), 5)
    yield "smoothed labels, forget included", lambda c: d.smoothed(c.copy(), w, s, 60)
    yield "wrapper: temperature 5", lambda c: wr.Answering(c.copy(), lambda z, _: z / 5)
    yield "wrapper: confidence capped at .9", lambda c: wr.Answering(c.copy(), wr.capped)
    yield "wrapper: random where unsure", lambda c: wr.Answering(c.copy(), wr.unsure)
    yield "wrapper: knows the samples, the retrained model's answer", lambda c: wr.Detecting(c.copy(), w.forget[0], lambda _, x: c.known(x))
    if floats:
        yield "wrapper: knows the samples, a noised copy's answer", lambda c: wr.Detecting(c.copy(), w.forget[0], wr.noised_answer)
        yield "wrapper: mean over noised copies", lambda c: wr.smoothed_answers(c.copy())


def false_references(w: World) -> dict[str, Maker]:
    """Models that a caller may pass off as "retrained"."""
    s = w.seed
    made: dict[str, Maker] = {
        "old body, new head": lambda c: d.new_head(c.copy(), w, s + 1),
        "old body, new head, body noise 2 %": lambda c: d.new_head(d.noised_body(c.copy(), c.original, c.known, 0.02, s + 1), w, s + 1),
        "old body, new head, body noise 20 %": lambda c: d.new_head(d.noised_body(c.copy(), c.original, c.known, 0.2, s + 1), w, s + 1),
        "fine-tuned on retain, 1e-4, 3 epochs": lambda c: fit(c.copy(), w.retain, w, seed=s + 1, steps=3 * len(w.retain[1]) // 64, lr=1e-4),
        "fine-tuned on retain, usual rate, half the epochs": lambda c: fit(c.copy(), w.retain, w, seed=s + 1, epochs=0.5),
        "25 % towards retrained": lambda c: d.mixed(c.copy(), c.same_start, 0.25),
    }
    if d.zw.hidden_pairs(w.fresh(0)):
        made["channels permuted, new head"] = lambda c: d.new_head(d.permuted(c.copy(), s + 1), w, s + 1)
    return made


def methods(w: World) -> dict[str, Maker]:
    """The library's own methods, on the original."""

    def by(name: str, **how: Any) -> Maker:
        def make(c: Cast) -> nn.Module:
            request = {"classes": w.forgotten} if w.forgotten else {}
            result = ff.unlearn(
                c.original, name, forget=w.forget, retain=w.retain, nonmember=w.unseen, seed=w.seed, progress=False, **request, **how
            )
            return result.model

        return make

    unsir: dict[str, Any] = {} if w.forgotten else {"preset": "samples"}
    return {"UNSIR": by("unsir", **unsir), "Forsaken": by("forsaken"), "Lightweight": by("lightweight")}
