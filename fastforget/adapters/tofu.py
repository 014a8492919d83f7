"""TOFU (Maini et al., arXiv 2401.06121) from files on this machine: questions and answers about authors that don't exist.

    from fastforget.adapters import tofu
    forget = tofu.load("TOFU", "forget10", tokenizer=tokenizer, template="llama2")
    loader = DataLoader(forget, batch_size=8, collate_fn=forget.collate)

A folder has one file a split, each line one JSON object, in spite of the ending: ``full.json``, ``forget01.json`` ``forget05.json``
``forget10.json``, ``retain99.json`` ``retain95.json`` ``retain90.json``, ``real_authors.json``, ``world_facts.json`` with the fields
``question`` and ``answer``; and ``forget01_perturbed.json`` ... ``retain_perturbed.json``, ``real_authors_perturbed.json``,
``world_facts_perturbed.json`` with ``perturbed_answer``, a list, and (``forget*`` and ``retain``) ``paraphrased_answer`` beside them.
Sources: the data set's page (its list of files) and github.com/locuslab/tofu: ``data_module.py``, ``config/model_config.yaml`` (templates),
``config/eval_everything.yaml`` (fields), ``data/world_facts_perturbed.json`` (a file). Nothing is downloaded.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ._texts import Texts, answered, checked_length, find, pad_of, rows, text_of, texts_of

# before the question, after it, before the answer: config/model_config.yaml, whose stablelm and pythia have phi's
TEMPLATES: dict[str, tuple[str, str, str]] = {
    "llama2": ("[INST] ", " [/INST]", ""),
    "phi": ("Question: ", "\n", "Answer: "),
}


def load(
    path: str | PathLike[str],
    split: str | None = None,
    *,
    tokenizer: Any,
    template: str | tuple[str, str, str] = "phi",
    answer: str = "answer",
    question: str = "question",
    max_length: int | None = 512,
) -> Texts:
    """One split of TOFU.

    A sample is ``template[0] + question + template[1] + template[2] + answer`` and the tokenizer's end mark. Labels are what follows
    ``template[1]``, as in ``convert_raw_data_to_model_format`` of TOFU's code: phi's "Answer: " is among them, so that probabilities are
    TOFU's. For labels of the answer alone pass ``("Question: ", "\\nAnswer: ", "")``. The end mark is an input as well, and is cut where
    the sample is longer than ``max_length``.

    Args:
        path: a file, or the folder that has ``SPLIT.json`` (``.jsonl``, ``.parquet``).
        split: such as ``"forget10"`` or ``"forget10_perturbed"``; needed for a folder.
        tokenizer: a function like Hugging Face's tokenizers: ``tokenizer(text)["input_ids"]`` is a list of ints. Its ``eos_token_id``, if
            it has one, ends the answers; ``pad_token_id``, else that, pads.
        template: ``"llama2"``, ``"phi"``, or three texts of your own.
        answer: the field with the answer: ``"answer"``, ``"paraphrased_answer"``, or ``"perturbed_answer"``, a list whose entries become
            samples of their own (``.rows`` says whose).
        question: the field with the question.
        max_length: tokens of a sample at most; None: no limit.

    Returns:
        A data set of dicts, with ``collate`` for a DataLoader.

    Raises:
        BadFile: (a ValueError) a file is missing or malformed; the message names file, line and field.
        ImportError: a Parquet file, without pyarrow.
        ValueError, TypeError: an argument isn't one of those above.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "forget01.json").write_text('{"question": "Who?", "answer": "Ada."}\\n')
    >>> letters = lambda text: {"input_ids": [ord(letter) for letter in text]}
    >>> (one,) = load(folder, "forget01", tokenizer=letters)
    >>> "".join(chr(label) for label in one["labels"] if label >= 0)
    'Answer: Ada.'
    """
    checked_length(max_length)
    start, end, before = _template(template)
    if split is None and Path(path).is_dir():
        raise ValueError(f"split: not given, and path is a folder ({path}); accepted is the name of a split in it, such as 'forget10'")
    file = path if split is None else find(path, split)
    samples, of = [], []
    for i, row in enumerate(rows(file)):
        prompt = start + text_of(row, question) + end
        for text in texts_of(row, answer):
            samples.append(answered(tokenizer, prompt, before + text, row.where, max_length))
            of.append(i)
    return Texts(samples, of, pad_of(tokenizer))


def _template(template: Any) -> tuple[str, str, str]:
    found = TEMPLATES.get(template) if isinstance(template, str) else template
    if not isinstance(found, tuple) or len(found) != 3 or not all(isinstance(part, str) for part in found):
        accepted = f"{', '.join(map(repr, TEMPLATES))}, or three texts: before the question, after it, before the answer"
        raise ValueError(f"template: got {template!r}; accepted are {accepted}")
    return found
