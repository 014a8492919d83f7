"""A model's weights as they are kept: all parameters and buffers by name, without what wrappers put into the names."""

from __future__ import annotations

from torch import Tensor, nn

from .. import _identity, _weights
from .._identity import bare_names


def kept_of(model: nn.Module) -> dict[str, Tensor]:
    """What is kept of a model.

    Raises:
        TypeError: a part of its weights is no tensor, or of a dtype that files of weights don't have.
    """
    if held := _identity.packed(model):
        raise TypeError(
            f"model: {next(iter(held))} is neither a parameter nor a buffer (packed or quantised weights), so a journal can't keep it; "
            "accepted is a model all of whose weights are parameters and buffers"
        )
    saved = _weights.save(model)
    return {bare: saved[name] for name, bare in bare_names(saved).items()}


def fits(model: nn.Module, tensors: dict[str, Tensor]) -> str | None:
    """``None`` where a model has these names, shapes and dtypes and nothing else, else what it has otherwise."""
    if held := _identity.packed(model):
        return f"{next(iter(held))} is only in the model"
    own = kept_of(model)
    if names := sorted(own.keys() ^ tensors.keys()):
        return f"{names[0]} is only in the {'model' if names[0] in own else 'journal'}"
    about = {name: [f"{one.dtype} of shape {tuple(one.shape)}" for one in (own[name], tensors[name])] for name in own}
    return next((f"{name} is {here}, in the journal {there}" for name, (here, there) in about.items() if here != there), None)


def filled(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A copy of a model with these weights.

    Raises:
        ValueError: they are another architecture's.
    """
    if reason := fits(model, tensors):
        raise ValueError(f"model: it isn't built as the journal's model is: {reason}; accepted is that architecture, whatever its weights")
    copy = _weights.working_copy(model)
    _weights.put_back(copy, {name: tensors[bare] for name, bare in bare_names(_weights.save(copy)).items()})
    return copy
