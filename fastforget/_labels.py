"""Labels as people have them, read as int64[N]; and which part of a batch they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ._tree import describe, tensors

ONE_OF_TWO = "unpack=lambda batch: (batch[0], batch[1])"


def as_tensor(value: Any) -> Any:
    """A numpy array, or a list of numbers, as a tensor; anything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value if all(stride >= 0 for stride in value.strides) else value.copy())
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in value):
        return torch.tensor([int(v) for v in value])
    return value


def check_labels(name: str, labels: Any, read_from: str = "") -> Tensor:
    """Labels as int64[N], or an error that says what came instead, and from where in a batch (``read_from``)."""
    labels = as_tensor(labels)
    about = f"{name}: labels{f' ({read_from})' if read_from else ''} are {describe(labels)}"
    if not isinstance(labels, Tensor):
        number = "Number names of classes as in training. " if isinstance(labels, np.ndarray) else ""
        raise TypeError(f"{about}; accepted is an integer tensor [N]. {number}{_other_element(read_from)}".rstrip())
    if _one_hot(labels):
        kind = TypeError if labels.is_floating_point() or labels.dtype == torch.bool else ValueError
        raise kind(f"{about}: one-hot rows; accepted are integer class ids [N]. Pass labels.argmax(1)")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        if _zeros_and_ones(labels):
            raise TypeError(f"{about}: rows with several classes, or none; accepted is one class id a sample, integers [N]")
        raise TypeError(
            f"{about}; accepted are integer class ids [N]. Convert class ids by labels.long(), one-hot rows by labels.argmax(1)"
        )
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1:
        methods = ", ".join(FOR_TOKENS)
        tokens = f" Token ids [N, T] are read by ff.unlearn for {methods}, and with sequences=True by ff.audit and ff.audit.controls"
        raise ValueError(
            f"{about}; accepted is one class id a sample, shape [N]. {_other_element(read_from)}"
            f"(A list of ready batches is no set of samples: pass the DataLoader itself){tokens if labels.dim() == 2 else ''}"
        )
    return labels.to(torch.int64)


def _one_hot(labels: Tensor) -> bool:
    return _zeros_and_ones(labels) and bool((labels.sum(dim=1) == 1).all())


def _zeros_and_ones(labels: Tensor) -> bool:
    return labels.dim() == 2 and labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all())


FOR_TOKENS = ("gradient_difference", "npo", "simnpo", "rmu")  # methods
IGNORED = -100  # in the place of a token that isn't scored, as Hugging Face's collators write it


def check_tokens(name: str, labels: Any, read_from: str = "") -> Tensor:
    """Labels of sequences as int64[N, T], or an error that says what came instead."""
    labels = as_tensor(labels)
    about = f"{name}: labels{f' ({read_from})' if read_from else ''} are {describe(labels)}"
    accepted = f"accepted are token ids [N, T], with {IGNORED} where a token isn't to be scored"
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{about}; {accepted}")
    if labels.dim() == 1:
        raise ValueError(f"{about}: class ids? This method is for language models; {accepted}. For classifiers: docs/methods.md")
    if labels.dim() != 2:
        raise ValueError(f"{about}; {accepted}")
    return labels.to(torch.int64)


def stack_sequences(name: str, samples: list[Any]) -> Any:
    """torch's own way to make a batch, of sequences: lists of token ids, as tokenizers give them, are tensors.

    Raises:
        ValueError: they are of different lengths.
    """
    try:
        return default_collate([_with_tensors(sample) for sample in samples])
    except RuntimeError as error:
        raise ValueError(
            f"{name}: samples can't be made a batch ({error}); accepted are sequences of one length, or a DataLoader whose collate_fn pads "
            "input_ids, attention_mask (with 0) and labels (with -100), as transformers.DataCollatorForSeq2Seq does"
        ) from error


def _with_tensors(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return {key: as_tensor(value) for key, value in sample.items()}
    return tuple(map(as_tensor, sample)) if isinstance(sample, (tuple, list)) else sample


LABELS = ("labels", "label", "label_ids")  # as Hugging Face's data sets, collators and models name them


def labelled(name: str, batch: Mapping[Any, Any]) -> tuple[Any, Any, str]:
    """Inputs, labels and the place of the labels in a batch that is a mapping. The inputs are all other entries that hold tensors (texts
    beside tensors are nothing a model takes), without their name where there is only one.

    Raises:
        TypeError: none of the usual names is there, or several are.
    """
    found = [key for key in LABELS if key in batch]
    if len(found) != 1:
        why = f"{' and '.join(map(repr, found))} could both be the labels" if found else "its labels can't be found"
        raise TypeError(
            f"{name}: a batch is {describe(batch)}, so {why}; accepted are (x, y), (x, _, y), and dicts with one of "
            f"{', '.join(map(repr, LABELS))}. For anything else pass unpack=lambda batch: (batch['image'], batch['label'])"
        )
    inputs = {key: value for key, value in batch.items() if key not in found and next(tensors(value), None) is not None}
    if not inputs:
        raise TypeError(f"{name}: a batch is {describe(batch)}, in which no other entry holds tensors; accepted are numbers, as trained on")
    return inputs if len(inputs) > 1 else next(iter(inputs.values())), batch[found[0]], f"the entry {found[0]!r} of a batch"


def _other_element(read_from: str) -> str:
    return f"If another element is the label, pass {ONE_OF_TWO} " if "3" in read_from else ""


def refuse_two_labels(name: str, second: Any, third: Any) -> None:
    """Refuses (x, second, third) where either could be the label."""
    if _could_be_labels(as_tensor(second)) and _integers(as_tensor(third)):
        raise TypeError(
            f"{name}: a batch has 3 elements, and the second ({describe(second)}) as well as the third ({describe(third)}) could be the "
            f"label; accepted are (x, y), and (x, _, y) where only the last could be. Pass {ONE_OF_TWO}, or batch[2]"
        )


def _integers(value: Any) -> bool:
    shaped = isinstance(value, Tensor) and (value.dim() == 1 or (value.dim() == 2 and value.shape[1] == 1))
    return shaped and not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def _could_be_labels(value: Any) -> bool:
    """Integers, and what people write labels as: floats without a fraction, truth values, one-hot rows."""
    if not isinstance(value, Tensor) or value.is_complex() or value.dim() not in (1, 2):
        return False
    if _integers(value):
        return True
    if value.dim() == 2 and value.shape[1] > 1:
        return bool(((value == 0) | (value == 1)).all()) and bool((value.sum(dim=1) == 1).all())
    numbers = value.reshape(-1)
    constant = len(numbers) == 0 or bool((numbers == numbers[0]).all())
    return not constant and (value.dtype == torch.bool or bool((numbers == numbers.round()).all()))


def refuse_three(name: str, second: Any, third: Any) -> None:
    """Refuses a batch of three where labels are sequences: masks look like labels, and stand in either place."""
    raise TypeError(
        f"{name}: a batch has 3 elements, and which of them are labels can't be told of sequences ({describe(as_tensor(second))} and "
        f"{describe(as_tensor(third))}); accepted are (input_ids, labels), and dicts with 'labels'. For others pass "
        "unpack=lambda batch: ({'input_ids': batch[0], 'attention_mask': batch[1]}, batch[2])"
    )


def shown(inputs: Any, shape: Any) -> Tensor | None:
    """bool[N, T]: which tokens ``attention_mask`` among the inputs shows; None where there is no such mask of ones (or numbers of packed
    texts) and zeros: numbers that are added to scores are none.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.shape != shape or mask.numel() == 0 or mask.is_complex():
        return None
    return mask != 0 if bool((mask >= 0).all()) and bool((mask > 0).any()) else None


def without_padding(name: str, inputs: Any, labels: Tensor) -> Tensor:
    """Token ids [N, T] with -100 in place of those that a hidden token (padding on the left) would answer: nothing comes before them.

    Raises:
        ValueError: padding itself is scored. One token of it may be, after the last that is shown: it is the end of the text.
    """
    mask = shown(inputs, labels.shape)
    if mask is None:
        return labels
    nothing_before = torch.cat((torch.zeros_like(mask[:, :1]), ~mask[:, :-1]), dim=1)
    padding = (nothing_before & ~mask & (labels != IGNORED)).nonzero()
    if len(padding):
        n, t = padding[0].tolist()
        raise ValueError(
            f"{name}: labels score padding, first token {t} of sequence {n} of a batch, which attention_mask hides as the one before it; "
            f"accepted is {IGNORED} there: labels[attention_mask == 0] = {IGNORED}"
        )
    return labels.masked_fill(nothing_before, IGNORED)


def as_they_are(name: str, inputs: Any, labels: Tensor) -> Tensor:
    return labels


@dataclass(frozen=True)
class Reading:
    """How labels are read: ``check`` gives them as int64, or an error; ``three`` refuses batches of three; ``beside`` takes out labels that
    by the inputs aren't any; ``collate`` makes batches where the user gave no way, torch's own where it is None.
    """

    check: Callable[..., Tensor]
    three: Callable[[str, Any, Any], None]
    beside: Callable[[str, Any, Tensor], Tensor]
    collate: Callable[[str, list[Any]], Any] | None = None


def classes_alone(what: str, instead: str) -> Reading:
    """Class ids, for ``what`` doesn't serve sequences: their token ids are refused, with what serves them."""

    def check(name: str, labels: Any, read_from: str = "") -> Tensor:
        given = as_tensor(labels)
        whole = isinstance(given, Tensor) and not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
        if whole and given.dim() == 2 and given.shape[1] > 1 and not _one_hot(given):
            raise ValueError(
                f"{name}: labels{f' ({read_from})' if read_from else ''} are {describe(given)}, token ids of sequences; {what} serves "
                f"classifiers alone, whose labels are class ids [N]. Of language models, {instead} (docs/language.md)"
            )
        return check_labels(name, labels, read_from)

    return Reading(check, refuse_two_labels, as_they_are)


CLASSES = Reading(check_labels, refuse_two_labels, as_they_are)
TOKENS = Reading(check_tokens, refuse_three, without_padding, stack_sequences)
