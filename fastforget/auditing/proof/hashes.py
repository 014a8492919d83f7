"""What an audit was about, as hashes: models, and sets of samples whatever their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..._data import Source
from ..._hashes import set_hashes
from ..._identity import WRAPPERS, bare_names, fingerprint, of_contents, of_names, of_state, outside
from ..._random import own_randomness
from ..._weights import device_of

SCHEMES = {
    "weights_sha256": "sha256 over name, shape, dtype and bytes of every parameter, buffer and packed weight, in the order of the names, "
    "without the parts of a name that wrappers put in (module, _orig_mod, _module); as in the result of ff.unlearn",
    "state_dict_sha256": "the same over model.state_dict(), without lone numbers and texts: what a weights file holds",
    "contents_sha256": "sha256 over the sorted sha256 of each different tensor of model.state_dict() (shape, dtype, bytes), whatever it is "
    "called: a library may rename weights, or leave one of two tied ones out, when it writes them",
    "names_sha256": "sha256 over the sorted names in model.state_dict(), each followed by a line feed",
    "samples_sha256": "sha256 over the sorted sha256 of each sample (label, then dtype, shape and bytes of its input), so the order "
    "doesn't matter",
    "ids_sha256": "sha256 over the sorted ids as text, each followed by a line feed",
}


def of_model(model: nn.Module) -> dict[str, Any]:
    """A model's hashes and size; None and a reason where its weights have no plain bytes (sparse), or lie where no hash finds them."""
    about = {"parameters": sum(p.numel() for p in model.parameters()), "device": str(device_of(model)), "reason": None}
    try:
        elsewhere = outside(model)
        if elsewhere is None:
            state = model.state_dict()
            named = {"contents_sha256": of_contents(state), "names_sha256": of_names(state)}
            return {"weights_sha256": fingerprint(model), "state_dict_sha256": of_state(state), **named, **about}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        elsewhere = str(error)
    return {"weights_sha256": None, "state_dict_sha256": None, **about, "reason": f"can't be hashed: {elsewhere}"}


def of_set(source: Source, seed: int) -> dict[str, Any]:
    """A set's size and :func:`of_samples`; None and a reason where its samples have no plain bytes."""
    about = {"samples": len(source), "reason": None}
    try:
        return {**about, "samples_sha256": of_samples(source, seed)}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return {**about, "samples_sha256": None, "reason": f"can't be hashed: {error}"}


def same_state(stated: str, state: Mapping[str, Any]) -> bool:
    """Whether a stated hash is that of a state_dict, whatever wrapper the model was in when it was hashed.

    Receipts from before wrappers' prefixes were left out hold the hash with the prefix, and over tensors alone.

    >>> import torch
    >>> plain = {"weight": torch.eye(2)}
    >>> same_state(of_state(plain), {"module.weight": torch.eye(2)}), same_state(of_state(plain), {"weight": torch.ones(2, 2)})
    (True, False)
    """
    if stated == of_state(state) or stated == of_state(state, bare=False):
        return True
    bare = {name: state[key] for key, name in bare_names(state).items()}
    return any(stated == of_state({f"{prefix}.{name}": value for name, value in bare.items()}, bare=False) for prefix in sorted(WRAPPERS))


def same_contents(stated: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether a state_dict holds the tensors of a model's entry in a receipt under other names, or without one of two tied ones. Under the
    same names it doesn't: then some of them were exchanged. Receipts from before this was put down can't say.
    """
    if not stated.get("contents_sha256") or stated.get("names_sha256") == of_names(state):
        return False
    return stated["contents_sha256"] == of_contents(state)


def of_samples(source: Source, seed: int = 0) -> str:
    """sha256 of a set's samples, the same for every order and every batch size.

    >>> import torch
    >>> from fastforget._data import source
    >>> x, y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])
    >>> of_samples(source((x, y), name="a")) == of_samples(source((x.flip(0), y.flip(0)), name="b"))
    True
    """
    with own_randomness(seed):
        return of_digests(set_hashes(source))


def of_digests(digests: Iterable[bytes]) -> str:
    """:func:`of_samples`, from the sha256 of each sample."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def of_ids(ids: Iterable[Any]) -> tuple[str, int]:
    """sha256 of ids (as text, sorted), and how many they are."""
    text = sorted(str(one) for one in ids)
    if any("\n" in one for one in text):
        raise ValueError("ids: one of them holds a line feed; accepted are ids that fit on one line")
    return hashlib.sha256("".join(f"{one}\n" for one in text).encode("utf-8", "surrogatepass")).hexdigest(), len(text)
