"""ff.audit.shadows: attacks on the sums against stored scores and against their formulas, and what is refused."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from shadows_world import POOL, POPULATION, RECIPE, forget_half_way, make_model, models_of, query, scores_of, train
from torch import nn

import fastforget as ff
from fastforget._random import own_randomness
from fastforget.auditing.shadow import design as shadow_design
from fastforget.ops import membership

N = len(POOL[1])
EVERY = torch.arange(N)


@pytest.fixture(scope="module")
def held() -> ff.audit.Shadows:
    return train(population=POPULATION, keep_scores=True)


@pytest.fixture(scope="module")
def stored(held):
    """(phi, loss, population loss, target's), of models trained again one by one."""
    models = models_of(held)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        target = make_model(5)
    phi, loss = (x[..., 0] for x in scores_of(models, POOL))
    t_phi, t_loss = (x[0, :, 0] for x in scores_of([target], POOL))
    return {
        "phi": phi, "loss": loss, "z": scores_of(models, POPULATION)[1][..., 0],
        "t_phi": t_phi, "t_loss": t_loss, "t_z": scores_of([target], POPULATION)[1][0, :, 0],
    }  # fmt: skip


# ------------------------------------------------------------------ streamed equals stored


def test_members_were_learned(held, stored):
    """The design is the truth: a model's own samples have a lower loss than the others."""
    inside, outside = stored["loss"][held.member].mean(), stored["loss"][~held.member].mean()
    assert inside < outside


@pytest.mark.parametrize("options", [{}, {"variance": "per_example"}, {"variance": "pooled"}, {"variance": "global_in", "var_floor": 0.1}])
@pytest.mark.parametrize("attack", ["lira", "lira_offline"])
def test_lira_equals_that_of_stored_scores(held, stored, attack, options):
    got = held.score(attack, index=EVERY, logit_confidence=stored["t_phi"], **options)
    mode = {"mode": "offline" if attack.endswith("offline") else "online", "variance": "auto", **options}
    expected = membership.lira(stored["t_phi"].double(), stored["phi"].double(), held.member, **mode)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    some = torch.tensor([7, 3, 3, 39])
    torch.testing.assert_close(held.score(attack, index=some, logit_confidence=stored["t_phi"][some], **options), got[some], rtol=0, atol=0)


def test_lira_equals_the_formula(held, stored):
    got = held.score("lira", index=EVERY, logit_confidence=stored["t_phi"], variance="per_example", var_floor=0.0)
    for i in range(N):
        ratio = 0.0
        for sign, side in ((1, held.member[:, i]), (-1, ~held.member[:, i])):
            x = stored["phi"][side, i].double().tolist()
            mean = math.fsum(x) / len(x)
            variance = math.fsum((v - mean) ** 2 for v in x) / len(x)
            t = stored["t_phi"][i].item()
            ratio += sign * (-((t - mean) ** 2) / (2 * variance) - 0.5 * math.log(2 * math.pi * variance))
        assert got[i].item() == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"gamma": 1.0, "strict": True}, {"soft": True}])
def test_rmia_equals_that_of_stored_scores(held, stored, options):
    for attack, mode in (("rmia", {"mode": "online"}), ("rmia_offline", {"mode": "offline", "a": 0.4})):
        extra = {"a": 0.4} if attack == "rmia_offline" else {}
        got = held.score(attack, index=EVERY, loss=stored["t_loss"], population_loss=stored["t_z"], **options, **extra)
        wide = [-stored[k].double() for k in ("t_loss", "loss", "t_z", "z")]
        expected = membership.rmia(*wide, member=held.member, **mode, **options)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_rmia_equals_the_formula(held, stored):
    got = held.score("rmia", index=EVERY, loss=stored["t_loss"], population_loss=stored["t_z"])
    p, z = (-stored["loss"].double()).exp(), (-stored["z"].double()).exp()
    r_z = (-stored["t_z"].double()).exp() / z.mean(0)
    for i in range(N):
        mean = (p[held.member[:, i], i].mean() + p[~held.member[:, i], i].mean()) / 2
        ratio = (-stored["t_loss"][i].double()).exp() / mean
        assert got[i].item() == pytest.approx((ratio / r_z >= 2.0).double().mean().item(), abs=1e-12)


def test_a_is_tuned_on_a_model_whose_members_are_known(held, stored):
    tuned = held.tune_a()
    rest = [-stored[k].double() for k in ("loss", "z")]
    expected = {}
    for a in (0.0, 0.5, 1.0):
        score = membership.rmia(rest[0][0], rest[0][1:], rest[1][0], rest[1][1:], member=held.member[1:], mode="offline", a=a)
        inside = held.member[0]
        expected[a] = membership.roc_stats(score[inside], score[~inside], fprs=()).auc.item()
    for a, auc in expected.items():
        assert tuned.auc[a] == pytest.approx(auc, abs=1e-12)
    assert tuned.auc[tuned.a] == max(tuned.auc.values()) and len(tuned.auc) == 11
    default = held.score("rmia_offline", index=EVERY, loss=stored["t_loss"], population_loss=stored["t_z"])
    given = held.score("rmia_offline", index=EVERY, loss=stored["t_loss"], population_loss=stored["t_z"], a=tuned.a)
    assert torch.equal(default, given)
    assert held.conventions("rmia_offline")["a"] == tuned.a


def test_attack_r_counts_out_models(held, stored):
    got = held.score("attack_r", index=EVERY, loss=stored["t_loss"])
    for i in range(N):
        others = stored["loss"][~held.member[:, i], i]
        assert got[i].item() == pytest.approx((others > stored["t_loss"][i]).double().mean().item())
    torch.testing.assert_close(held.losses, stored["loss"], rtol=0, atol=0)


def test_several_queries(stored):
    held = train(6, queries=query, n_queries=3, population=POPULATION)
    models = models_of(held)
    phi, loss = scores_of(models, POOL, 3)
    z = scores_of(models, POPULATION, 3)[1]
    target, target_z = scores_of(models[:1], POOL, 3), scores_of(models[:1], POPULATION, 3)[1][0]
    got = held.score("lira", index=EVERY, logit_confidence=target[0][0], variance="per_example")
    expected = membership.lira(target[0][0].double(), phi.double(), held.member)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    got = held.score("rmia", index=EVERY, loss=target[1][0], population_loss=target_z)
    turned = [-x.double().transpose(-1, -2).contiguous() for x in (target[1][0], loss, target_z, z)]
    torch.testing.assert_close(got, membership.rmia_vote(*turned, member=held.member), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"logit_confidence: got \(40,\); accepted is a tensor \(40, 3\).*3 queries"):
        held.score("lira", index=EVERY, logit_confidence=stored["t_phi"])
    with pytest.raises(ValueError, match="soft: .*majority vote"):
        held.score("rmia", index=EVERY, loss=target[1][0], population_loss=target_z, soft=True)


def test_u_lira_groups():
    """1: trained with it and unlearned, 0: never had it, and those still in stand aside."""
    some = torch.arange(0, N, 2)
    held = train(6, unlearn=forget_half_way, unlearn_pool=some)
    models, scores, groups = models_of(held), [], []
    for i, model in enumerate(models):
        member, allowed = held.member[i], torch.zeros(N, dtype=torch.bool).index_fill_(0, some, True)
        forget = shadow_design.half_to_forget(member, allowed, 0, i)
        own = int((member & allowed).sum())
        assert int(forget.sum()) == (own + 1) // 2 and not bool((forget & ~(member & allowed)).any())
        forget_half_way(model, (POOL[0][forget], POOL[1][forget]), None, 0)
        scores.append(scores_of([model], POOL)[0][0, :, 0])
        groups.append(torch.where(member, torch.where(forget, 1, -1), 0))
    expected = membership.Lira(N).update(torch.stack(scores), torch.stack(groups).to(torch.int8))
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(held.unlearned.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = held.score("u_lira", index=some, logit_confidence=scores[0][some])
    torch.testing.assert_close(got, expected.score(scores[0].double(), variance="global")[some], rtol=1e-9, atol=1e-9, equal_nan=True)
    assert bool(torch.isfinite(got).any())


# ------------------------------------------------------------------ finding samples


def test_locate_finds_samples_by_content(held):
    order = torch.tensor([5, 39, 0])
    assert held.locate((POOL[0][order], POOL[1][order])).tolist() == [5, 39, 0]
    dataset = torch.utils.data.TensorDataset(*POOL)
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(dataset, [8, 2]), batch_size=1)
    assert held.locate(loader).tolist() == [8, 2]
    listed = [{"image": POOL[0][i], "label": int(POOL[1][i])} for i in (3, 4)]
    assert held.locate(listed, unpack=lambda b: (b["image"], b["label"])).tolist() == [3, 4]


def test_locate_counts_what_is_not_there(held):
    labels = POOL[1].clone()
    labels[1] = (labels[1] + 1) % 4
    with pytest.raises(ValueError, match="source: 1 of 40 samples are not in the shadow models' pool of 40 .the first at position 1"):
        held.locate((POOL[0], labels))
    with pytest.raises(ValueError, match="40 of 40"):
        held.locate((POOL[0].double(), POOL[1]))


def test_equal_samples_get_places_of_their_own():
    twice = (POOL[0][[0, 1, 0, 2]], POOL[1][[0, 1, 0, 2]])
    held = ff.audit.shadows(make_model, twice, 2, **RECIPE)
    assert held.locate((POOL[0][[0, 0, 0]], POOL[1][[0, 0, 0]])).tolist() == [0, 2, 0]


# ------------------------------------------------------------------ stated, counted, refused


def test_conventions_say_what_holds(held):
    stated = held.conventions("lira", var_floor=0.5)
    assert stated["var_floor"] == 0.5 and stated["variance"] == "global (auto, at most 8 models a sample)" and stated["shadow_models"] == 8
    assert "algorithm 1" in stated["source"] and stated["higher_means"] == "member"
    assert held.conventions("rmia")["population"] == 24 and held.conventions("rmia", gamma=1.0)["gamma"] == 1.0


def test_samples_never_in_are_counted():
    held = ff.audit.Shadows({**train(2).settings}, train(2).digests)
    whole = train(4)
    for i, phi in enumerate(torch.randn(4, N, 1)):
        member = whole.member[i].clone()
        member[:3] = False
        held.add(i, i, member, phi, torch.nn.functional.softplus(-phi))
    with pytest.warns(UserWarning, match="lira: 3 of 40 samples score NaN .0 have no model without them, 3 none with them"):
        scores = held.score("lira", index=EVERY, logit_confidence=torch.randn(N))
    assert torch.isnan(scores).nonzero()[:, 0].tolist() == [0, 1, 2]
    assert not torch.isnan(held.score("lira_offline", index=EVERY, logit_confidence=torch.randn(N))).any()


def one_model() -> ff.audit.Shadows:
    whole = train(2)
    held = ff.audit.Shadows(whole.settings, whole.digests)
    held.add(0, 1, whole.member[0], torch.randn(N, 1), torch.rand(N, 1))
    return held


X = torch.zeros(N)
REFUSED = {
    "one model": (lambda h: one_model().score("lira", index=EVERY, logit_confidence=X), ValueError, "there are 1; .*at least 2"),
    "attack": (lambda h: h.score("liar", index=EVERY, loss=X), ValueError, "attack: got 'liar'; accepted are 'lira'"),
    "convention": (lambda h: h.score("lira", index=EVERY, logit_confidence=X, gamma=1.0), ValueError, "gamma: not a convention of lira"),
    "mode": (lambda h: h.score("lira", index=EVERY, logit_confidence=X, mode="offline"), ValueError, "mode: not a convention of lira"),
    "shape": (lambda h: h.score("lira", index=EVERY[:3], logit_confidence=X), ValueError, r"logit_confidence: got \(40,\); .*\(3,\)"),
    "missing": (lambda h: h.score("rmia", index=EVERY, logit_confidence=X), ValueError, "loss: got NoneType; accepted is a tensor"),
    "no z": (lambda h: h.score("rmia", index=EVERY, loss=X), ValueError, "population_loss: got NoneType.*the population has 24"),
    "index": (lambda h: h.score("lira", index=EVERY + 1, logit_confidence=X), ValueError, "index: got positions 1 to 40; .*0 to 39"),
    "index dtype": (lambda h: h.score("lira", index=EVERY.int(), logit_confidence=X), TypeError, "index: got torch.int32"),
    "not unlearned": (lambda h: h.score("u_lira", index=EVERY, logit_confidence=X), ValueError, "u_lira: .*unlearn="),
    "no population": (lambda h: train(2).score("rmia", index=EVERY, loss=X), ValueError, "rmia: .*population="),
    "no losses": (lambda h: train(2).score("attack_r", index=EVERY, loss=X), ValueError, "attack_r: .*keep_scores=True"),
    "tuning": (lambda h: train(2, population=POPULATION).tune_a(), ValueError, "a: tuning it needs 3 shadow models.*there are 2"),
    "merge type": (lambda h: h.merge("x"), TypeError, "other: got str"),
    "merge twice": (lambda h: h.merge(train(8, population=POPULATION, keep_scores=True)), ValueError, "8 of its models are here already"),
    "merge other": (lambda h: h.merge(train(4, seed=9)), ValueError, "other: .*another configuration: population is None, not"),
    "n": (lambda h: train(1), ValueError, "n: got 1"),
    "lr": (lambda h: train(2, lr=0), ValueError, "lr: got 0; accepted is a number > 0"),
    "stack": (lambda h: train(2, stack=True), ValueError, "stack: got True; accepted are"),
    "stack and train": (lambda h: train(2, stack=2, train=lambda *_: None), ValueError, "stack: got 2 beside train="),
    "queries": (lambda h: train(2, n_queries=2), ValueError, "queries: got None with n_queries=2"),
    "pool": (lambda h: train(2, pool=(POOL[0][:1], POOL[1][:1])), ValueError, "dataset: got 1 sample"),
    "unlearn_pool": (lambda h: train(2, unlearn=forget_half_way, unlearn_pool=[40]), ValueError, "unlearn_pool: .*0 to 39"),
    "make_model": (lambda h: ff.audit.shadows(lambda s: None, POOL, 2), TypeError, "make_model: returned NoneType for seed"),
    "unlearn": (lambda h: train(2, unlearn=lambda *_: None), TypeError, "unlearn: returned NoneType"),
    "diverged": (lambda h: train(2, lr=1e30), ValueError, "shadow model 0, dataset: .* losses are NaN; its training diverged.*lr"),
    "inputs": (lambda h: train(2, pool=[("a text", 1)] * 4), TypeError, "dataset: inputs are a tuple"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, held):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call(held)


# ------------------------------------------------------------------ it finds members


def test_the_attacks_find_what_was_memorised():
    """Random labels can only be known by having been trained on them; a target that wasn't trained gives nothing away."""
    g = torch.Generator().manual_seed(11)
    pool = torch.randn(160, 6, generator=g), torch.randint(0, 4, (160,), generator=g)
    population = torch.randn(100, 6, generator=g), torch.randint(0, 4, (100,), generator=g)
    recipe = {"epochs": 60, "lr": 2e-2, "batch_size": 20, "stack": "auto", "progress": False}
    held = ff.audit.shadows(make_model, pool, 16, population=population, keep_scores=True, **recipe)
    # a model of another run, as target: its members are known and no shadow model has them
    inside = shadow_design.membership(2, 160, 77)[0]
    with own_randomness(1):
        target, fresh = make_model(1), make_model(2)
    optimiser = torch.optim.Adam(target.parameters(), 2e-2)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.cross_entropy(target(pool[0][inside]), pool[1][inside]).backward()
        optimiser.step()
    index = held.locate(pool)
    for model, low, high in ((target, 0.65, 1.0), (fresh, 0.35, 0.65)):
        phi, loss = (x[0, :, 0] for x in scores_of([model], pool))
        given = {"index": index, "logit_confidence": phi, "loss": loss, "population_loss": scores_of([model], population)[1][0, :, 0]}
        for attack in ("lira", "lira_offline", "rmia", "rmia_offline", "attack_r"):
            scores = held.score(attack, **given)
            auc = membership.roc_stats(scores[inside], scores[~inside], fprs=()).auc.item()
            assert low <= auc <= high, (attack, auc)
