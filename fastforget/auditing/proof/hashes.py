"""What an audit was about, as hashes: models, and sets of samples whatever their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..._data import Source
from ..._hashes import set_hashes
from ..._random import own_randomness
from ..._weights import device_of, digest, fingerprint

SCHEMES = {
    "weights_sha256": "sha256 over name, shape, dtype and bytes of every parameter and buffer, in the order of the names; as in the "
    "result of ff.unlearn",
    "state_dict_sha256": "the same over the tensors of model.state_dict(): what a weights file holds",
    "samples_sha256": "sha256 over the sorted sha256 of each sample (label, then dtype, shape and bytes of its input), so the order "
    "doesn't matter",
    "ids_sha256": "sha256 over the sorted ids as text, each followed by a line feed",
}


def of_model(model: nn.Module) -> dict[str, Any]:
    """A model's hashes and size; where its tensors have no plain bytes (quantised, sparse), None and a reason."""
    about = {"parameters": sum(p.numel() for p in model.parameters()), "device": str(device_of(model)), "reason": None}
    try:
        return {"weights_sha256": fingerprint(model), "state_dict_sha256": of_state(model.state_dict()), **about}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return {"weights_sha256": None, "state_dict_sha256": None, **about, "reason": f"can't be hashed: {error}"}


def of_set(source: Source, seed: int) -> dict[str, Any]:
    """A set's size and :func:`of_samples`; None and a reason where its samples have no plain bytes."""
    about = {"samples": len(source), "reason": None}
    try:
        return {**about, "samples_sha256": of_samples(source, seed)}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return {**about, "samples_sha256": None, "reason": f"can't be hashed: {error}"}


def of_state(state: Mapping[str, Any]) -> str:
    """sha256 of a state_dict's tensors; what is not a tensor is left out."""
    return digest({name: value for name, value in state.items() if isinstance(value, Tensor)})


def of_samples(source: Source, seed: int = 0) -> str:
    """sha256 of a set's samples, the same for every order and every batch size.

    >>> import torch
    >>> from fastforget._data import source
    >>> x, y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])
    >>> of_samples(source((x, y), name="a")) == of_samples(source((x.flip(0), y.flip(0)), name="b"))
    True
    """
    with own_randomness(seed):
        digests = list(set_hashes(source))
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def of_ids(ids: Iterable[Any]) -> tuple[str, int]:
    """sha256 of ids (as text, sorted), and how many they are."""
    text = sorted(str(one) for one in ids)
    if any("\n" in one for one in text):
        raise ValueError("ids: one of them holds a line feed; accepted are ids that fit on one line")
    return hashlib.sha256("".join(f"{one}\n" for one in text).encode()).hexdigest(), len(text)
