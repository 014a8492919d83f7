"""MUSE (Shi et al., arXiv 2407.06460), News and Books, from files on this machine.

    from fastforget.adapters import muse
    forget = muse.load("muse/data/news", "raw", "forget", tokenizer=tokenizer, max_length=2048)
    loader = DataLoader(forget, batch_size=4, collate_fn=forget.collate)

A corpus is a folder (``news``, ``books``; ``bbc``, ``hp`` in older copies) with a folder for each subset and a file a split in it:

- ``raw/`` ``forget`` ``retain1`` ``retain2`` ``holdout``, ``privleak/`` ``forget`` ``retain`` (``retain2``) ``holdout``, ``scal/`` and
  ``sust/`` ``forget_1`` ... ``forget_4``, ``train/``: texts. A ``.json`` list of texts or of objects with ``text``, or a ``.txt``;
- ``knowmem/`` ``forget_qa`` ``retain_qa`` (``retain2_qa``) and ``forget_qa_icl`` ``retain_qa_icl``: ``question``, ``answer``;
- ``verbmem/`` ``forget``: ``prompt``, ``gt``, the text that goes on from it.

Copies from the Hugging Face hub have ``SPLIT-00000-of-00001.parquet`` instead. Sources: github.com/swj0419/muse_bench (``constants.py``,
``eval.py``) and github.com/jaechan-repo/muse_bench, its older copy (``data/``, ``baselines/baselines/dataset.py``,
``knowmem/get_rouge_qa.py``, ``verbmem/get_rouge.py``). Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from .._files import BadFile, read_whole
from ._texts import ENDINGS, MOST, Row, Sample, Texts, answered, checked_length, find, pad_of, rows, sample, text_of, tokens

QUESTIONS, VERBATIM = "knowmem", "verbmem"  # every other subset is texts
TEXTS = ("raw", "privleak", "scal", "sust", "train")
SUBSETS = (*TEXTS, QUESTIONS, VERBATIM)


def load(
    path: str | PathLike[str],
    subset: str,
    split: str | None = None,
    *,
    tokenizer: Any,
    max_length: int | None = 2048,
    pieces: str = "all",
    shots: bool = False,
) -> Texts:
    """One split of MUSE.

    Texts: every token is a label. A text longer than ``max_length`` is cut into pieces of it, the last one shorter; a token that the
    tokenizer puts before every text (a begin mark) stands before every piece. MUSE's code pads with labels and fills a file's last piece
    from its first, which is not done here. Questions: the prompt is ``"Question: {question}\\nAnswer: "``; labels are the answer and the
    tokenizer's end mark. Verbatim: ``prompt``, a space where neither has one, and ``gt``, whose tokens and the end mark are the labels.

    Args:
        path: a file, or the corpus's folder, or the subset's.
        subset: ``"raw"``, ``"privleak"``, ``"scal"``, ``"sust"``, ``"train"``, ``"knowmem"`` or ``"verbmem"``: what is in it.
        split: such as ``"forget"`` or ``"retain_qa"``; needed for a folder.
        tokenizer: a function like Hugging Face's tokenizers: ``tokenizer(text)["input_ids"]`` is a list of ints; ``eos_token_id`` and
            ``pad_token_id`` are used where it has them.
        max_length: tokens of a sample at most; None: no limit.
        pieces: of a text: ``"all"``, or ``"first"``, as MUSE reads ``.json`` files.
        shots: puts the questions and answers of ``SPLIT_icl`` before every question, as MUSE's evaluation does (``knowmem`` alone).

    Returns:
        A data set of dicts, with ``collate`` for a DataLoader; ``.rows`` says which text or question a sample is of.

    Raises:
        BadFile: (a ValueError) a file is missing or malformed; the message names file, line and field.
        ImportError: a Parquet file, without pyarrow.
        ValueError, TypeError: an argument isn't one of those above.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "forget.json").write_text('["abcde"]')
    >>> letters = lambda text: {"input_ids": [ord(letter) for letter in text]}
    >>> ["".join(map(chr, one["labels"])) for one in load(folder, "raw", "forget", tokenizer=letters, max_length=3)]
    ['abc', 'de']
    """
    checked_length(max_length)
    if subset not in SUBSETS or pieces not in ("all", "first"):
        name, got, accepted = ("pieces", pieces, ("all", "first")) if subset in SUBSETS else ("subset", subset, SUBSETS)
        raise ValueError(f"{name}: got {got!r}; accepted are {', '.join(map(repr, accepted))}")
    if shots and (subset != QUESTIONS or split is None):
        raise ValueError(f"shots: got {shots!r} with subset={subset!r}, split={split!r}; accepted for 'knowmem' with a folder and a split")
    file = _file(path, subset, split)
    samples: list[Sample] = []
    of: list[int] = []
    before = "".join(_shot(row) for row in rows(_file(path, subset, f"{split}_icl"))) if shots else ""
    for i, row in enumerate(_rows(file, subset)):
        found = _samples(row, subset, before, tokenizer, max_length)
        for j, one in enumerate(found):
            if j == 0 or pieces == "all":
                samples.append(one)
                of.append(i)
    return Texts(samples, of, pad_of(tokenizer))


def _file(path: str | PathLike[str], subset: str, split: str | None) -> Path:
    place = Path(path)
    if not place.is_dir():
        return place
    if split is None:
        raise ValueError(f"split: not given, and path is a folder ({fspath(path)}); accepted is the name of a split, such as 'forget'")
    return find(place / subset if (place / subset).is_dir() else place, split, (*ENDINGS, ".txt") if subset in TEXTS else ENDINGS)


def _rows(file: Path, subset: str) -> list[Row]:
    if file.suffix != ".txt" or subset not in TEXTS:
        return rows(file)
    try:
        text = read_whole(file, MOST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"{file}: byte {error.start} is not UTF-8") from error
    if not text.strip():
        raise BadFile(f"{file}: it has no text")
    return [Row(str(file), {"text": text})]


def _shot(row: Row) -> str:
    return f"Question: {text_of(row, 'question')}\nAnswer: {text_of(row, 'answer')}\n\n"


def _samples(row: Row, subset: str, before: str, tokenizer: Any, most: int | None) -> Iterator[Sample]:
    if subset == QUESTIONS:
        prompt = f"{before}Question: {text_of(row, 'question')}\nAnswer: "
        yield answered(tokenizer, prompt, text_of(row, "answer"), row.where, most)
    elif subset == VERBATIM:
        prompt, rest = text_of(row, "prompt"), text_of(row, "gt")
        space = "" if prompt[-1].isspace() or rest[0].isspace() else " "
        yield answered(tokenizer, prompt, space + rest, row.where, most)
    else:
        row = Row(row.where, {"text": row.value}) if isinstance(row.value, str) else row
        ids, head = tokens(tokenizer, text_of(row, "text")), tokens(tokenizer, "")
        head = head if head == ids[: len(head)] else []
        body, room = ids[len(head) :], max(1, (most or len(ids)) - len(head))
        for start in range(0, len(body), room):
            yield sample([*head, *body[start : start + room]], 0)
