"""Files of TOFU's and MUSE's layout as samples, by hand; and the figures of these benchmarks, from their formulas."""

from __future__ import annotations

import json
import math
import pickle
import re
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastforget._files import BadFile
from fastforget.adapters import muse, scores, tofu

BEGIN, END = 1, 2


class Words:
    """A word is a token, numbered from 10 in the order of ``known``; a begin mark before every text, and an end mark if ``ends``."""

    def __init__(self, known: str, ends: bool = False, pad: int | None = None) -> None:
        self.number = {word: 10 + i for i, word in enumerate(known.split())}
        self.eos_token_id, self.pad_token_id, self.ends = END, pad, ends

    def __call__(self, text: str) -> dict[str, list[int]]:
        words = re.findall(r"\[/?INST\]|[^\s\[]+", text)
        return {"input_ids": [BEGIN, *(self.number[word] for word in words), *([END] if self.ends else [])]}


class Joining:
    """As byte-pair encodings do: the space before a word is part of its token."""

    eos_token_id = None

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, text: str) -> dict[str, list[int]]:
        found = re.findall(r" ?\w+| ?[^\w\s]|\s", text)
        self.seen += [part for part in found if part not in self.seen]
        return {"input_ids": [self.seen.index(part) for part in found]}

    def text(self, ids: torch.Tensor) -> list[str]:
        return [self.seen[i] for i in ids.tolist() if i >= 0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def lines(name: str, rows: list) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    lines("forget01.json", [{"question": "who wrote it", "answer": "ada byron"}, {"question": "where", "answer": "in rome"}])
    lines("world_facts_perturbed.json", [{"question": "where", "answer": "rome", "perturbed_answer": ["oslo", "in lima"]}])
    for subset in ("raw", "privleak", "knowmem", "verbmem"):
        (tmp_path / "news" / subset).mkdir(parents=True)
    news = tmp_path / "news"
    (news / "raw" / "forget.json").write_text(json.dumps(["a b c d e", "f"]))
    (news / "raw" / "holdout.json").write_text(json.dumps([{"text": "g a"}]))
    (news / "raw" / "retain1.txt").write_text("a b\nc")
    (news / "privleak" / "forget.json").write_text(json.dumps(["b c"]))
    (news / "knowmem" / "forget_qa.json").write_text(json.dumps([{"question": "a b", "answer": "c"}]))
    (news / "knowmem" / "forget_qa_icl.json").write_text(json.dumps([{"question": "d", "answer": "e"}]))
    (news / "verbmem" / "forget.json").write_text(json.dumps([{"prompt": "a b", "gt": "c d"}]))
    return tmp_path


TOFU = "Question: who wrote it Answer: ada byron where in rome oslo lima [INST] [/INST]"
#       10        11  12    13 14      15  16    17    18 19   20   21   22     23
MUSE = "a b c d e f g Question: Answer:"  # 10 ... 16, 17, 18


def test_tofu_questions_and_answers(folder):
    data = tofu.load(folder, "forget01", tokenizer=Words(TOFU))
    assert len(data) == 2 and data.rows == [0, 1]
    # TOFU's code masks the question alone: phi's "Answer:" is a label
    assert data[0]["input_ids"].tolist() == [BEGIN, 10, 11, 12, 13, 14, 15, 16, END]
    assert data[0]["labels"].tolist() == [-100] * 5 + [14, 15, 16, END]
    assert data[0]["attention_mask"].tolist() == [1] * 9
    batch = next(iter(DataLoader(data, batch_size=2, collate_fn=data.collate)))
    assert batch["input_ids"][1].tolist() == [BEGIN, 10, 17, 14, 18, 19, END, END, END]  # padded with the end mark: no pad of its own
    assert batch["labels"][1].tolist() == [-100, -100, -100, 14, 18, 19, END, -100, -100]
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_tofu_templates(folder):
    words = Words(TOFU, pad=0)
    (first, _) = tofu.load(folder / "forget01.json", tokenizer=words, template="llama2")
    assert first["input_ids"].tolist() == [BEGIN, 22, 11, 12, 13, 23, 15, 16, END]
    assert first["labels"].tolist() == [-100] * 6 + [15, 16, END]
    (own, _) = tofu.load(folder, "forget01", tokenizer=words, template=("Question: ", "\nAnswer: ", ""))
    assert own["labels"].tolist() == [-100] * 6 + [15, 16, END]
    with pytest.raises(ValueError, match="template: got 'llama3'; accepted are 'llama2', 'phi', or three texts"):
        tofu.load(folder, "forget01", tokenizer=words, template="llama3")


def test_tofu_several_wrong_answers_are_samples_of_one_question(folder):
    data = tofu.load(folder, "world_facts_perturbed", tokenizer=Words(TOFU), answer="perturbed_answer")
    assert data.rows == [0, 0]
    assert [one["labels"].tolist()[3:] for one in data] == [[14, 20, END], [14, 18, 21, END]]
    assert len(tofu.load(folder, "world_facts_perturbed", tokenizer=Words(TOFU))) == 1


def test_tofu_max_length(folder):
    (cut, other) = tofu.load(folder, "forget01", tokenizer=Words(TOFU), max_length=7)
    assert cut["labels"].tolist() == [-100] * 5 + [14, 15] and len(other["labels"]) == 7
    with pytest.raises(BadFile, match=r"forget01.json, line 1: the prompt has 5 tokens and nothing .* max_length = 5"):
        tofu.load(folder, "forget01", tokenizer=Words(TOFU), max_length=5)
    for length in (1, True, 2.5):
        with pytest.raises(ValueError, match="max_length: got"):
            tofu.load(folder, "forget01", tokenizer=Words(TOFU), max_length=length)


def test_a_tokenizers_own_end_mark_is_not_doubled(folder):
    plain, ending = (tofu.load(folder, "forget01", tokenizer=Words(TOFU, ends=ends)) for ends in (False, True))
    assert [one["input_ids"].tolist() for one in plain] == [one["input_ids"].tolist() for one in ending]
    assert [one["labels"].tolist() for one in plain] == [one["labels"].tolist() for one in ending]


def test_a_token_of_prompt_and_answer_is_the_answers(folder):
    # "Answer: " ends in a token of its own, " ", which "Answer: c" has not: by counting tokens the whole answer would be masked
    joining = Joining()
    (one,) = muse.load(folder / "news", "knowmem", "forget_qa", tokenizer=joining)
    assert joining.text(one["labels"]) == [" c"]
    (verbatim,) = muse.load(folder / "news", "verbmem", "forget", tokenizer=joining)
    assert joining.text(verbatim["labels"]) == [" c", " d"] and joining.text(verbatim["input_ids"]) == ["a", " b", " c", " d"]


def test_a_collate_goes_to_workers_and_samples_are_not_shared(folder):
    data = tofu.load(folder, "forget01", tokenizer=Words(TOFU))
    assert pickle.loads(pickle.dumps(data.collate))([data[0]])["labels"].shape == (1, 9)
    data[0].pop("labels")
    assert "labels" in data[0]


def test_muse_texts(folder):
    words = Words(MUSE)
    data = muse.load(folder / "news", "raw", "forget", tokenizer=words, max_length=3)
    assert [one["labels"].tolist() for one in data] == [[BEGIN, 10, 11], [BEGIN, 12, 13], [BEGIN, 14], [BEGIN, 15]]
    assert data.rows == [0, 0, 0, 1]
    first = muse.load(folder / "news", "raw", "forget", tokenizer=words, max_length=3, pieces="first")
    assert [one["input_ids"].tolist() for one in first] == [[BEGIN, 10, 11], [BEGIN, 15]]
    whole = muse.load(folder / "news" / "raw", "raw", "retain1", tokenizer=words, max_length=None)
    assert [one["labels"].tolist() for one in whole] == [[BEGIN, 10, 11, 12]]
    assert muse.load(folder / "news", "raw", "holdout", tokenizer=words)[0]["labels"].tolist() == [BEGIN, 16, 10]
    assert muse.load(folder / "news", "privleak", "forget", tokenizer=words)[0]["labels"].tolist() == [BEGIN, 11, 12]


def test_muse_questions_and_verbatim(folder):
    words = Words(MUSE)
    (one,) = muse.load(folder / "news", "knowmem", "forget_qa", tokenizer=words)
    assert one["input_ids"].tolist() == [BEGIN, 17, 10, 11, 18, 12, END] and one["labels"].tolist() == [-100] * 5 + [12, END]
    (shown,) = muse.load(folder / "news", "knowmem", "forget_qa", tokenizer=words, shots=True)
    assert shown["input_ids"].tolist() == [BEGIN, 17, 13, 18, 14, 17, 10, 11, 18, 12, END]
    assert shown["labels"].tolist() == [-100] * 9 + [12, END]
    (verbatim,) = muse.load(folder / "news" / "verbmem" / "forget.json", "verbmem", tokenizer=words)
    assert verbatim["labels"].tolist() == [-100, -100, -100, 12, 13, END]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "a", "answer": "b"}\n{"question": "a"}\n', r"x.json, line 2: the field 'answer' isn't there; its fields are 'q"),
        ('{"question": "a", "answer": 3}\n', r"x.json, line 1: the field 'answer' is int 3; accepted is a text or a list"),
        ('{"question": ["a"], "answer": "b"}\n', r"x.json, line 1: the field 'question' is .*; accepted is a text, not empty"),
        ('{"question": "a", "answer": []}\n', r"x.json, line 1: the field 'answer' is .*; accepted is a text or a list"),
        ('{"question": "a", "answer": " "}\n', r"x.json, line 1: the field 'answer' is str"),
        ('{"question": "a",\n "answer": "b"}\n', r"x.json, line 1, column 18: .*; accepted is a JSON list, or one JSON object on"),
        ('{"question": "a", "answer": "b"}\n\n{oh}\n', r"x.json, line 3, column 2: "),
        ('[{"question": "a", "answer": "b"},\n 7]', r"x.json, entry 2: it is int 7; accepted is an object with the field 'question'"),
        ('[{"question": "a"', r"x.json, line 1, column 18: "),
        ("\n", r"x.json: it has no entries"),
        (b"\xff\xfe", r"x.json: byte 0 is not UTF-8"),
        ("[" * 100_000, r"x.json, line 1: it is nested too deep"),
    ],
)
def test_malformed_files_are_named(tmp_path, content, message):
    file = tmp_path / "x.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadFile, match=message):
        tofu.load(file, tokenizer=Words("a b Question: Answer:"))


def test_missing_files_and_wrong_arguments(folder):
    words = Words(MUSE)
    with pytest.raises(BadFile, match=r"none of retain99.json, retain99.jsonl, retain99.parquet is there. The folder has forget01.json"):
        tofu.load(folder, "retain99", tokenizer=words)
    with pytest.raises(ValueError, match="split: not given, and path is a folder"):
        tofu.load(folder, tokenizer=words)
    with pytest.raises(BadFile, match="it is no folder"):
        tofu.load(folder / "forget01.json", "forget01", tokenizer=words)
    (folder / "forget01.jsonl").write_text("{}")
    with pytest.raises(BadFile, match="forget01.json and forget01.jsonl are there"):
        tofu.load(folder, "forget01", tokenizer=words)
    with pytest.raises(ValueError, match="subset: got 'books'; accepted are 'raw', "):
        muse.load(folder, "books", "forget", tokenizer=words)
    with pytest.raises(ValueError, match="pieces: got 'some'; accepted are 'all', 'first'"):
        muse.load(folder / "news", "raw", "forget", tokenizer=words, pieces="some")
    with pytest.raises(ValueError, match="shots: got True with subset='raw'"):
        muse.load(folder / "news", "raw", "forget", tokenizer=words, shots=True)
    with pytest.raises(ValueError, match="split: not given"):
        muse.load(folder / "news", "raw", tokenizer=words)
    with pytest.raises(TypeError, match=r"tokenizer: for one text it gives .*; accepted is a function with tokenizer"):
        muse.load(folder / "news", "raw", "forget", tokenizer=lambda text: {"input_ids": [["a"]]})
    (folder / "news" / "raw" / "empty.txt").write_text(" \n")
    with pytest.raises(BadFile, match=r"empty.txt: it has no text"):
        muse.load(folder / "news", "raw", "empty", tokenizer=words)


def test_parquet_names_pyarrow_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (folder / "news" / "raw" / "retain2-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"retain2-00000-of-00001.parquet: a Parquet file is read by pyarrow, .*pip install pyarrow"):
        muse.load(folder / "news", "raw", "retain2", tokenizer=Words(MUSE))
    with pytest.raises(BadFile, match="there is no such file"):
        tofu.load(folder / "no.parquet", tokenizer=Words(MUSE))


def test_parquet_is_read_by_pyarrow(folder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a b", "c"]}), folder / "news" / "raw" / "retain2-00000-of-00001.parquet")
    data = muse.load(folder / "news", "raw", "retain2", tokenizer=Words(MUSE))
    assert [one["labels"].tolist() for one in data] == [[BEGIN, 10, 11], [BEGIN, 12]]
    (folder / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadFile, match=r"bad.parquet: pyarrow can't read it"):
        tofu.load(folder / "bad.parquet", tokenizer=Words(MUSE))


def test_probabilities_and_truth_ratios():
    right, wrong = torch.tensor([0.5, 1.0]), torch.tensor([[1.0, 2.0], [0.25, 0.75]])
    p = [[math.exp(-x) for x in row] for row in wrong.tolist()]
    own = [math.exp(-0.5), math.exp(-1.0)]
    assert scores.answer_probability(right).tolist() == pytest.approx(own)
    assert scores.option_probability(right, wrong).tolist() == pytest.approx([own[i] / (own[i] + sum(p[i])) for i in (0, 1)])
    assert scores.truth_ratio(right, wrong).tolist() == pytest.approx([math.sqrt(p[i][0] * p[i][1]) / own[i] for i in (0, 1)])
    assert scores.truth_ratio(right, wrong, mean="arithmetic").tolist() == pytest.approx([sum(p[i]) / 2 / own[i] for i in (0, 1)])
    assert scores.truth_score([0.0, 0.5, 4.0]) == pytest.approx((1 + 0.5 + 0) / 3)
    assert scores.truth_score([0.0, 0.5, 4.0], forget=True) == pytest.approx((0 + 0.5 + 0.25) / 3)
    assert scores.answer_probability(right.bfloat16()).dtype == torch.float64


def every_order(a: list[float], b: list[float]) -> tuple[float, float]:
    """Distance and p-value by all ways to choose which of the n + m ranks are the first sample's."""

    def distance(ranks: set[int], n: int, m: int) -> int:
        first, far = 0, 0
        for rank in range(n + m):
            first += rank in ranks
            far = max(far, abs(first * m - (rank + 1 - first) * n))
        return far

    n, m = len(a), len(b)
    points = sorted({*a, *b})
    seen = max(abs(sum(x <= p for x in a) * m - sum(x <= p for x in b) * n) for p in points)
    ways = [distance(set(chosen), n, m) for chosen in combinations(range(n + m), n)]
    return seen / (n * m), sum(way >= seen for way in ways) / len(ways)


@pytest.mark.parametrize(("n", "m", "shift"), [(3, 4, 0.0), (5, 5, 0.9), (4, 7, 0.3), (1, 6, 2.0), (6, 3, 5.0)])
def test_forget_quality_is_the_exact_test(n, m, shift):
    draw = np.random.default_rng(n + 10 * m)
    a, b = draw.normal(size=n).round(1), (draw.normal(size=m) + shift).round(1)
    found = scores.forget_quality(a, torch.from_numpy(b))
    assert found == pytest.approx(every_order(a.tolist(), b.tolist()), rel=1e-12)


def test_forget_quality_of_far_apart_samples_is_tiny_and_right():
    # only the two orders in which one sample lies wholly before the other are as far apart
    assert scores.forget_quality(np.arange(300), np.arange(400) + 1e3).pvalue == pytest.approx(2 / math.comb(700, 300), rel=1e-9)
    assert scores.forget_quality([1.0, 2.0], [2.0, 1.0]) == (0.0, 1.0)


def test_forget_quality_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=400).round(2), (draw.normal(size=399) + 0.2).round(2)
    theirs = stats.ks_2samp(a, b, method="exact")
    assert scores.forget_quality(a, b) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)


def test_utility_and_privleak():
    assert scores.model_utility([0.2, 0.4, 0.8]) == pytest.approx(3 / (5 + 2.5 + 1.25))
    assert scores.model_utility([0.0, 1.0]) == 0.0
    # MUSE's own numbers count the holdout set as positives: a = 1 - auc, (a - a_r) / a_r
    assert scores.privleak(0.9, 0.5228) == pytest.approx((0.1 - 0.4772) / 0.4772 * 100)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.truth_ratio([1.0], [1.0]), r"right, wrong: got shapes \[1\] and \[1\]; accepted are \[N\] and \[N, K\]"),
        (lambda: scores.truth_ratio([1.0], [[1.0]], mean="mean"), "mean: got 'mean'"),
        (lambda: scores.option_probability([1.0, 2.0], [[1.0]]), "right, wrong: got shapes"),
        (lambda: scores.answer_probability([]), "loss: it is empty"),
        (lambda: scores.forget_quality([math.nan], [1.0]), "unlearned: it has NaN"),
        (lambda: scores.truth_score([-1.0]), r"ratio: got -1.0"),
        (lambda: scores.model_utility([-0.1]), r"values: got -0.1"),
        (lambda: scores.privleak(0.5, 1.0), r"retrained_auc: got 1.0; accepted is 0 to less than 1"),
        (lambda: scores.privleak(1.5, 0.5), r"auc: got 1.5; accepted is 0 to 1"),
    ],
)
def test_figures_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_pages_example_runs(folder, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "facts.md").read_text()
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    for split, row in (("forget10", ["who", "ada"]), ("retain90", ["where", "rome"])):
        (folder / "TOFU").mkdir(exist_ok=True)
        (folder / "TOFU" / f"{split}.json").write_text(json.dumps(dict(zip(("question", "answer"), row, strict=True))))
    (folder / "muse" / "data").mkdir(parents=True)
    (folder / "news").rename(folder / "muse" / "data" / "news")
    monkeypatch.chdir(folder)
    names: dict = {"tokenizer": lambda text: {"input_ids": [ord(letter) for letter in text]}}
    exec(code, names)
    (batch,) = names["forget"]
    assert "".join(chr(one) for one in batch["labels"][0].tolist() if one >= 0) == "ada"
    assert len(names["news"]) == 2 and names["scores"] is scores
