"""What the readers of language benchmarks share: rows of files by path, texts as tokens with labels, and padding."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._files import BadFile, read_whole
from .._text import visible
from .._tree import describe

UNREAD = -100  # the label that no loss reads
MOST = 1 << 32  # bytes of a file
ENDINGS = (".json", ".jsonl", ".parquet")
Tokenizer = Callable[[str], Mapping[str, Any]]
Sample = dict[str, Tensor]


class Row(NamedTuple):
    """One entry of a file, and where it stands, for errors."""

    where: str
    value: Any


class Texts(Dataset[Sample]):
    """Samples of a language model, made by a reader.

    Item ``i`` is a dict of int64 tensors ``[T_i]``: ``input_ids``, ``attention_mask`` (1) and ``labels``, which equal ``input_ids`` where
    the loss reads them and are -100 elsewhere. A causal model's logits at a position belong to the label after it.

    Attributes:
        rows: for each sample, which entry of the file it is from (counted from 0): a question with several answers gives several samples.
        pad: the id that :meth:`collate` pads with.
    """

    def __init__(self, samples: Sequence[Sample], rows: Sequence[int], pad: int) -> None:
        self.samples, self.rows, self.pad = list(samples), list(rows), pad

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return dict(self.samples[index])

    def collate(self, samples: Sequence[Sample]) -> Sample:
        """A batch: the samples padded on the right to the longest, ``[B, T]`` each; the mask is 0 and the label -100 where padded.

        >>> two = Texts([sample([5, 6, 7], 1), sample([8, 9], 1)], [0, 1], pad=0)
        >>> batch = torch.utils.data.DataLoader(two, batch_size=2, collate_fn=two.collate)
        >>> {name: rows.tolist() for name, rows in next(iter(batch)).items()}["labels"]
        [[-100, 6, 7], [-100, 9, -100]]
        """
        filled = {"input_ids": self.pad, "attention_mask": 0, "labels": UNREAD}
        return {
            name: torch.nn.utils.rnn.pad_sequence([one[name] for one in samples], batch_first=True, padding_value=value)
            for name, value in filled.items()
        }


def sample(ids: Sequence[int], unread: int) -> Sample:
    """Token ids as a sample; the first ``unread`` of them are no labels."""
    tokens = torch.tensor(ids, dtype=torch.int64)
    labels = tokens.clone()
    labels[:unread] = UNREAD
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """``tokenizer(text)["input_ids"]`` without an end mark that the tokenizer itself may have put behind.

    Raises:
        TypeError: that isn't one list of ints.
    """
    found = tokenizer(text)
    ids = found.get("input_ids") if isinstance(found, Mapping) else None
    ids = ids.tolist() if isinstance(ids, Tensor) else ids
    if not isinstance(ids, (list, tuple)) or not all(isinstance(one, int) for one in ids):
        got = describe(found if ids is None else ids)
        raise TypeError(f"tokenizer: for one text it gives {got}; accepted is a function with tokenizer(text)['input_ids'] a list of ints")
    end = end_of(tokenizer)
    return list(ids[:-1] if end is not None and ids and ids[-1] == end else ids)


def end_of(tokenizer: Any) -> int | None:
    """The id that ends an answer, ``tokenizer.eos_token_id``; None where the tokenizer has none."""
    return getattr(tokenizer, "eos_token_id", None)


def pad_of(tokenizer: Any) -> int:
    """``tokenizer.pad_token_id``, else the end mark, else 0: what stands there is masked and no label."""
    pads = (getattr(tokenizer, "pad_token_id", None), end_of(tokenizer), 0)
    return next(int(pad) for pad in pads if pad is not None)


def answered(tokenizer: Tokenizer, prompt: str, answer: str, where: str, max_length: int | None) -> Sample:
    """Prompt and answer as one sample. Labels are the answer's tokens and the end mark. A token with letters of both (" Paris" after a
    prompt that ends in a space) is the answer's: counting the prompt's own tokens, as the benchmarks' codes do, would lose it.

    Raises:
        BadFile: nothing of the answer is left within ``max_length`` tokens.
    """
    alone, ids, end = tokens(tokenizer, prompt), tokens(tokenizer, prompt + answer), end_of(tokenizer)
    first = next((i for i, (one, other) in enumerate(zip(alone, ids, strict=False)) if one != other), min(len(alone), len(ids)))
    ids = [*ids, *([] if end is None else [end])][:max_length]
    if len(ids) <= first:
        raise BadFile(
            f"{where}: the prompt has {first} tokens and nothing of the answer is within max_length = {max_length}; "
            "raise max_length or leave the entry out"
        )
    return sample(ids, first)


def checked_length(max_length: int | None, least: int = 2) -> None:
    """Refuses a ``max_length`` that no sample fits in."""
    if max_length is not None and (not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < least):
        raise ValueError(f"max_length: got {max_length!r}; accepted is an int of at least {least}, or None")


def text_of(row: Row, field: str) -> str:
    """A row's text in one field.

    Raises:
        BadFile: the row is no object, the field isn't there, is no text, or is empty.
    """
    (text,) = texts_of(row, field, several=False)
    return text


def texts_of(row: Row, field: str, several: bool = True) -> list[str]:
    """A row's text, or list of texts, in one field; else as :func:`text_of`."""
    if not isinstance(row.value, Mapping):
        raise BadFile(f"{row.where}: it is {describe(row.value)}; accepted is an object with the field {field!r}")
    if field not in row.value:
        there = ", ".join(repr(visible(name)) for name in row.value) or "none"
        raise BadFile(f"{row.where}: the field {field!r} isn't there; its fields are {there}")
    value = row.value[field]
    texts = value if several and isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        accepted = "a text or a list of texts" if several else "a text"
        raise BadFile(f"{row.where}: the field {field!r} is {describe(value)}; accepted is {accepted}, not empty")
    return texts


def find(folder: str | PathLike[str], name: str, endings: Sequence[str] = ENDINGS) -> Path:
    """The file of a split in a folder: ``NAME.json``, ``.jsonl``, ``.parquet``, or ``NAME-00000-of-00001.parquet`` as on the hub.

    Raises:
        BadFile: none is there, or several.
    """
    place = Path(folder)
    if not place.is_dir():
        raise BadFile(f"{fspath(folder)}: it is no folder; accepted is the folder with {name}{endings[0]}")
    there = [place / f"{name}{ending}" for ending in endings if (place / f"{name}{ending}").is_file()]
    there += sorted(place.glob(f"{name}-*-of-*.parquet")) if ".parquet" in endings else []
    if len(there) == 1:
        return there[0]
    if there:
        raise BadFile(f"{fspath(folder)}: {' and '.join(one.name for one in there)} are there; give the path of one of them")
    names = ", ".join(f"{name}{ending}" for ending in endings)
    others = ", ".join(sorted(visible(one.name) for one in place.iterdir())[:12]) or "nothing"
    raise BadFile(f"{fspath(folder)}: none of {names} is there. The folder has {others}")


def rows(path: str | PathLike[str]) -> list[Row]:
    """The entries of a file: a JSON list, JSON lines (whatever the file's ending: TOFU's ``.json`` files are lines), or Parquet.

    Raises:
        BadFile: it can't be read, or isn't one of these; the message names file and line.
        ImportError: a Parquet file, and pyarrow isn't installed.
    """
    name = fspath(path)
    if name.endswith(".parquet"):
        return _parquet(name)
    try:
        text = read_whole(path, MOST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f"{name}: byte {error.start} is not UTF-8; accepted is JSON in UTF-8") from error
    if text.lstrip()[:1] == "[":
        value = _json(text, name, 1)
        found = [Row(f"{name}, entry {i}", one) for i, one in enumerate(value, 1)]
    else:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        found = [Row(f"{name}, line {i}", _json(line, name, i)) for i, line in lines]
    if not found:
        raise BadFile(f"{name}: it has no entries; accepted is a JSON list or JSON lines, one entry at least")
    return found


def _json(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        raise BadFile(f"{name}, {place}: {error.msg}; accepted is a JSON list, or one JSON object on each line") from error
    except RecursionError as error:
        raise BadFile(f"{name}, line {line}: it is nested too deep") from error


def _parquet(name: str) -> list[Row]:
    if not Path(name).is_file():
        raise BadFile(f"{name}: there is no such file")
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"{name}: a Parquet file is read by pyarrow, which isn't installed: pip install pyarrow, or save the split as JSON lines"
        ) from error
    try:
        found = parquet.read_table(name).to_pylist()
    except Exception as error:  # pyarrow has many kinds of its own
        raise BadFile(f"{name}: pyarrow can't read it: {visible(error)}") from error
    return [Row(f"{name}, row {i}", value) for i, value in enumerate(found, 1)]
