"""Requests about sequences: how batches are read, what is refused, evidence by sequences, seeds, budget, and a run that is interrupted."""

from __future__ import annotations

import copy
import math
from typing import Any

import language_world as w
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import fastforget as ff
from fastforget._causal.head import find_head
from fastforget.methods.language.states import States
from fastforget.ops import membership

METHODS = ("gradient_difference", "npo", "simnpo", "rmu")
FEW = {"epochs": 2, "batch_size": 5, "lr": 0.01}


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, saved: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_ragged_batches_are_the_sequences_one_by_one():
    """Padding to the longest of a batch changes nothing of a causal model's answers: the same as without padding."""
    net = w.recurrent()
    ours = w.run(net, "gradient_difference", {name: w.ragged(name) for name in ("forget", "retain")}, **FEW, mean="sequences")
    alone = {name: [w.padded([sample]) for sample in w.ragged(name).dataset] for name in ("forget", "retain")}  # type: ignore[attr-defined]

    def mean(model, name, rows):
        return sum(w.nll(model, alone[name][i]["input_ids"], alone[name][i]["labels"]) for i in rows.tolist()) / len(rows)

    plain = copy.deepcopy(net).train()
    optimizer = torch.optim.AdamW(plain.parameters(), FEW["lr"], weight_decay=0.01)
    kept = w.cycled(12, FEW["batch_size"])
    for epoch in range(FEW["epochs"]):
        for rows in w.order(12, w.EPOCHS + 1_000 * epoch).split(FEW["batch_size"]):
            optimizer.zero_grad()
            (mean(plain, "retain", next(kept)) - mean(plain, "forget", rows)).backward()
            optimizer.step()
    w.agree(ours.model, plain, net)


def test_forms_of_one_set_give_the_same_bytes():
    """A pair of tensors, a data set of them, a loader over dicts."""
    net = w.recurrent()

    def dicts(name):
        samples = [{"input_ids": ids, "labels": labels} for ids, labels in zip(*w.texts(name), strict=True)]
        return DataLoader(samples, batch_size=4)  # type: ignore[arg-type]

    forms: list[Any] = [w.texts, lambda name: TensorDataset(*w.texts(name)), dicts]
    hashes = {w.run(net, "npo", {n: form(n) for n in ("forget", "retain")}, **FEW).receipt["weights_sha256"]["after"] for form in forms}
    assert len(hashes) == 1


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bytes(method):
    net = w.recurrent()
    before = bits(net)
    first, second = (w.run(net, method, w.request(), **FEW) for _ in range(2))
    assert first.receipt == second.receipt
    assert first.receipt["weights_sha256"]["after"] != first.receipt["weights_sha256"]["before"]
    assert same(net, before)


def test_the_head_is_found_where_its_product_is_all():
    net, capped = w.recurrent(), w.recurrent(capped=True)
    ids, _ = w.texts("forget")

    def found(model, forward=lambda model, x: model(x)):
        with torch.no_grad():
            return find_head(model, forward, ids, forward(model, ids))

    assert found(net) == "head"
    assert found(capped) is None and found(w.bigram()) is None
    assert found(net, lambda model, x: model(x) * 2) is None
    assert found(net, lambda model, x: torch.relu(model(x))) is None
    assert "forward" not in vars(net.head)
    net.head.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    assert found(net) == "head"  # what comes before the product is part of the hidden states
    net.head.register_forward_hook(lambda module, args, out: out + 1)
    assert found(net) is None
    assert found(torch.compile(w.recurrent(), backend="eager")) is None


def test_no_table_of_logits_is_made():
    """Where the head's product is found, nothing of size [N, T, V] is computed."""
    net = w.recurrent()
    seen = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            leaves = [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor) and x.dim() == 3]
            seen.extend(x.shape[-1] for x in leaves if len(x) > 2)  # the first check looks at two sequences
            return out

    def one_table(model):
        seen.clear()
        with Sizes():
            w.run(model, "gradient_difference", w.request(), **FEW, hold="anchor")
        return seen.count(w.WORDS)

    capped = w.recurrent(capped=True)
    assert one_table(net) == 0 < 30 < one_table(capped)


def losses(model, name):
    ids, labels = w.texts(name)
    with torch.no_grad():
        return -w.log_probs(model, ids, labels).sum(1) / w.counts(labels)


def auc(model, unseen="nonmember"):
    gone, others = losses(model, "forget"), losses(model, unseen)
    return ((gone[:, None] < others).double() + 0.5 * (gone[:, None] == others)).mean().item()


def test_evidence_is_the_loss_attack_by_sequences():
    net = w.recurrent()
    result = w.run(net, "npo", w.request(), **FEW)
    told = result.receipt["verdict"]
    assert told["attack_auc_before"] == pytest.approx(auc(net), abs=1e-6) and told["known_before"]
    assert told["attack_auc"] == pytest.approx(auc(result.model), abs=1e-6)
    assert told["attack_auc_limit"] == pytest.approx(0.5 + 2 * math.sqrt(25 / (12 * 12 * 12)))
    assert result.forgot == (told["attack_auc_low_limit"] <= told["attack_auc"] <= told["attack_auc_limit"])


def right(model, name):
    ids, labels = w.texts(name)
    with torch.no_grad():
        hit = model(ids)[:, :-1].argmax(2) == labels[:, 1:]
    return (hit.sum(1) / w.counts(labels)).double().mean().item()  # each sequence counts once, however long it is


def test_forgotten_and_still_of_use():
    """Some rate makes the attack fail while retain tokens are still answered right: the first such run says forgot."""
    net = w.recurrent()
    runs = [w.run(net, "npo", w.request(), epochs=epochs, batch_size=12, lr=0.01, beta=0.5) for epochs in range(6, 31, 4)]
    forgotten = [run for run in runs if run.forgot]
    assert forgotten
    for run in runs:
        inside = abs(auc(run.model) - 0.5) <= run.receipt["verdict"]["attack_auc_limit"] - 0.5
        assert run.forgot == (inside and right(run.model, "retain") >= 0.8 * right(net, "retain"))
    told = forgotten[0].receipt["verdict"]
    assert told["retain_accuracy"] == pytest.approx(right(forgotten[0].model, "retain"))
    assert told["retain_accuracy_before"] == pytest.approx(right(net, "retain"))


def test_a_wrecked_model_has_not_forgotten():
    """The loss attack fails on a model that answers everything alike; retain tokens tell."""
    net = w.recurrent()

    class Wreck(ff.methods.GradientDifference):
        def loop(self, task):
            with torch.no_grad():
                for p in task.model.parameters():
                    p.mul_(1e-6)

    result = w.run(net, Wreck(), w.request())
    assert not result.forgot and "the model lost more than it was to forget" in result.why


def test_without_unseen_sequences_it_says_so():
    result = w.run(w.recurrent(), "npo", w.request("forget", "retain"), **FEW)
    assert not result.forgot and "no unseen data was given to compare with" in result.why
    result = w.run(w.recurrent(), "npo", w.request("forget", "retain") | {"test": w.texts("nonmember")}, **FEW)
    assert "12 test samples" in result.why


def test_what_was_not_known_is_not_forgotten():
    torch.manual_seed(9)
    result = w.run(w.Recurrent().double(), "npo", w.request(), **FEW)
    assert not result.forgot and not result.receipt["verdict"]["known_before"] and "couldn't tell them before either" in result.why


def test_the_budget_counts_sequences_and_ends_the_run():
    net = w.recurrent()
    whole = w.run(net, "npo", w.request(), **FEW, hold="anchor").receipt["cost"]
    assert whole["phases"]["npo"] == {"trained": 2 * (12 + 12), "forward": 2 * 12}  # forget and retain; the teacher
    assert whole["phases"]["reference"] == {"trained": 0, "forward": 12}
    assert whole["passes"] == 48 + 8 + 4
    cut = w.run(net, "npo", w.request(), **FEW, hold="anchor", budget=4 + 2 * 12)  # a step: 5 + 5 + a third of 5, at most
    assert cut.receipt["cost"]["phases"]["npo"] == {"trained": 2 * 10, "forward": 2 * 5}
    assert "the budget of 28 sample passes ended the run" in cut.why


def test_a_budget_too_small_for_a_step_changes_nothing():
    net = w.recurrent()
    for method in METHODS:
        result = w.run(net, method, w.request(), **FEW, budget=3)
        assert same(result.model, bits(net)), method
        assert "the budget of 3 sample passes ended the run" in result.why, method


class Interrupting(torch.utils.data.Dataset):
    """Reads that are stopped after some."""

    def __init__(self, name, reads):
        self.name, self.left = name, reads

    def __len__(self):
        return 12

    def __getitem__(self, at):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return tuple(part[at] for part in w.texts(self.name))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("inplace", [False, True])
def test_an_interrupted_run_leaves_the_model_as_it_was(method, inplace):
    net = w.recurrent().train()
    before, flags = bits(net), [p.requires_grad for p in net.parameters()]
    reads = []
    for count in (45, 30):
        data = Interrupting("retain", count)
        sets = w.request("forget", "nonmember") | {"retain": data}
        with pytest.raises(KeyboardInterrupt):
            w.run(net, method, sets, **FEW | {"epochs": 9}, inplace=inplace, check_overlap=False)
        reads.append(data.left)
        assert same(net, before) and net.training and [p.requires_grad for p in net.parameters()] == flags
        assert "forward" not in vars(net.head) and not net.layers[1]._forward_hooks
    assert reads == [-1] * 2


@pytest.mark.parametrize("method", METHODS)
def test_in_place_is_the_same_result(method):
    net = w.recurrent()
    apart = w.run(net, method, w.request(), **FEW)
    result = w.run(net, method, w.request(), **FEW, inplace=True)
    assert result.model is net and same(net, bits(apart.model))


def test_training_in_bfloat16_is_near_float32():
    net = w.recurrent().float()
    full, low = (w.run(net, "npo", w.request(), **FEW, precision=precision).model for precision in ("float32", "bfloat16"))
    moved, apart = (
        max(float((a - b).detach().abs().max()) for a, b in zip(full.parameters(), other.parameters(), strict=True)) for other in (net, low)
    )
    assert 0 < apart < 0.5 * moved
    result = w.run(net, "npo", w.request(), **FEW, precision="auto")
    assert result.receipt["standard"]["form"]["precision"] in ("float32", "bfloat16")


@pytest.mark.parametrize("form", [w.texts, w.ragged], ids=["pair", "ragged"])
def test_forget_sequences_in_another_set_are_refused(form):
    with pytest.raises(ValueError, match="forget: 12 of its 12 samples are in retain too"):
        w.run(w.recurrent(), "npo", {"forget": form("forget"), "retain": form("forget")})


def test_one_other_label_is_another_sequence():
    ids, labels = w.texts("forget")
    other = labels.clone()
    other[:, -1] = -100
    result = w.run(w.recurrent(), "npo", {"forget": (ids, labels), "retain": (ids, other)}, **FEW)
    assert result.receipt["overlap"]["retain"]["shared"] == 0


CLASSIFIED = torch.randn(12, 4), torch.arange(12) % 3
THREE = TensorDataset(*w.texts("forget"), w.texts("forget")[1])


class Encoder(w.Recurrent):
    config = type("Config", (), {"is_encoder_decoder": True})


class BothWays(w.Recurrent):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.GRU(6, 4, batch_first=True, bidirectional=True)])


def refusal(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_refused():
    net, pair = w.recurrent(), w.request()
    ids, labels = w.texts("forget")
    silent = labels.clone()
    silent[7, 1:] = -100
    far = labels.clone()
    far[2, 5] = w.WORDS

    def ask(method="npo", model=net, **sets):
        return lambda: ff.unlearn(model, method, progress=False, **pair | sets)

    refusal(ask("salun"), ValueError, r"retain: labels are .*\(12, 7\).*Token ids \[N, T\] are read by ff.unlearn for gradient_diff")
    refusal(ask(forget=CLASSIFIED), ValueError, r"forget: labels are .*class ids\? This method is for language models")
    refusal(ask(classes=[1]), ValueError, r"classes: got \[1\]; npo is for language models")
    refusal(ask(forget=None), ValueError, "forget: not given; npo needs the sequences to forget")
    refusal(ask(retain=None), ValueError, "retain: not given; npo needs data to keep")
    refusal(ask(forget=(ids, labels.float())), TypeError, r"forget: labels are .*float32; accepted are token ids \[N, T\]")
    refusal(ask(forget=THREE), TypeError, "forget: a batch has 3 elements, and which of them are labels can't be told of sequences")
    refusal(ask(forget=DataLoader(THREE, collate_fn=lambda rows: default_collate(rows))), TypeError, "forget: a batch has 3")
    refusal(ask(retain=(ids, far)), ValueError, "retain: the label of token 5 of sequence 2 is 11; accepted are 0 to 10")
    refusal(ask(nonmember=(ids, silent)), ValueError, "nonmember: sequence 7 has no token to score")
    classifier = nn.Sequential(nn.Embedding(w.WORDS, 4), nn.Flatten(), nn.Linear(28, 3))
    refusal(ask(model=classifier), TypeError, r"model: for labels of shape \(2, 7\) it gives a tensor of shape \(2, 3\)")
    refusal(ask(model=Encoder().double()), TypeError, "model: Encoder has an encoder; accepted are causal models")
    refusal(ask(model=BothWays().double()), TypeError, "model: BothWays's answers change with a token that comes after them")
    both_ways = {name: w.ragged(name) for name in ("forget", "retain", "nonmember")}
    refusal(ask(model=BothWays().double(), **both_ways), TypeError, "model: BothWays's answers change with a token")
    refusal(ask(hold="loss"), ValueError, "hold: got 'loss'; accepted are 'anchor', 'labels'")
    refusal(ask(beta=0.0), ValueError, "beta: got 0.0; accepted is a finite number > 0")
    refusal(ask("rmu", layer="layers.9"), ValueError, "layer: the model has no module 'layers.9'.*'layers.0'")
    refusal(ask("rmu", weights="nothing"), ValueError, "weights: no trainable parameter of layers.0, layers.1 has 'nothing'")
    refusal(ask("rmu", model=w.bigram()), ValueError, "layer: not given, and the model has no ModuleList")
    models = {"original": net, "unlearned": net}
    sets = {"forget": pair["forget"], "retain": pair["retain"], "test": pair["nonmember"]}
    refusal(lambda: ff.audit(models, **sets), ValueError, r"and with sequences=True by ff.audit and ff.audit.controls")


def test_listed():
    rows = {row.name: row for row in ff.methods.available()}
    assert all(rows[name].serves == ("sequences",) for name in METHODS)


def test_scores_of_a_model_are_those_of_its_logits():
    """What the verdict reads: by blocks of the head's product as from a table."""
    net, (ids, labels) = w.recurrent(), w.texts("retain")
    with torch.no_grad():
        plain = membership.token_scores(net(ids), labels)
    assert plain.loss.tolist() == pytest.approx(losses(net, "retain").tolist())
    assert float((plain.first.sum(1) / plain.length).mean()) == pytest.approx(right(net, "retain"))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_what_a_mask_leaves_out_keeps_its_bits(optimizer):
    """And what it leaves in goes as without one, at the first step."""
    net = w.recurrent()
    one = {"epochs": 1, "batch_size": 12, "lr": 0.01, "optimizer": optimizer}
    mask = {"layers.1.weight_ih_l0": torch.rand(24, 6 + 2) < 0.5, "embedding.weight": torch.zeros(w.WORDS, 6, dtype=torch.bool)}
    masked = w.run(net, "npo", w.request(), **one, mask=mask)
    plain = w.run(net, "npo", w.request(), **one).model.state_dict()
    for name, value in masked.model.state_dict().items():
        inside = mask.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, torch.where(inside, plain[name], net.state_dict()[name])), name
    assert masked.receipt["options"]["mask"]["embedding.weight"] == 0.0
    refusal(lambda: w.run(net, "npo", w.request(), mask={"body": mask["embedding.weight"]}), ValueError, "mask: 'body' is no trained par")


def test_nothing_done_is_measured_by_sequences_too():
    net = w.recurrent()
    result = w.run(net, "none", w.request(), sequences=True)
    assert same(result.model, bits(net)) and not result.forgot and "the weights are unchanged" in result.why
    assert result.receipt["verdict"]["attack_auc"] == pytest.approx(auc(net), abs=1e-6)
    assert result.receipt["options"] == {"sequences": True}


def test_layers_are_told_from_experts_within_them():
    """The longest list is the experts'; the middle layer is meant."""
    net = nn.Module()
    net.layers = nn.ModuleList(nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(9))}) for _ in range(4))
    states = States(net, None)
    assert states.name == "layers.1"
    assert {name.split(".")[1] for name in states.train_last(3, "weight")} == {"0", "1"}


def test_a_model_that_one_rank_holds_goes_the_same_way(tmp_path):
    """By the method's name, by itself, and where nothing is done; on several ranks: test_distributed_language.py."""
    sets = {"forget": w.texts("forget"), "retain": w.texts("retain"), "test": w.texts("nonmember")}
    alone = ff.audit({"original": w.recurrent()}, **sets, sequences=True, progress=False)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(w.recurrent())
        for method, options in (("npo", {"epochs": 1}), (ff.methods.NPO(epochs=1), {}), ("none", {"sequences": True})):
            expected = w.run(w.recurrent(), method, w.request(), **options)
            result = w.run(net, method, w.request(), **options)
            assert same(result.model, bits(expected.model)) and result.receipt["verdict"] == expected.receipt["verdict"]
        report = ff.audit({"original": net}, **sets, sequences=True, progress=False)
        assert repr(report.rows) == repr(alone.rows)
    finally:
        torch.distributed.destroy_process_group()


def test_a_compiled_model_goes_the_same_way():
    """Its logits are read; and a compiled module that has no length is one all the same."""
    net = w.recurrent()
    plain, compiled = (w.run(model, "npo", w.request(), **FEW) for model in (net, torch.compile(w.recurrent(), backend="eager")))
    w.agree(compiled.model._orig_mod, plain.model, net)
