"""Which weights a model has, as a hash: the same for a wrapped model and a bare one, also where weights are packed or quantised."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What wrappers put into the names of weights: data parallelism, torch.compile, wrappers for per-sample gradients.
WRAPPERS = frozenset(("module", "_orig_mod", "_module"))
_BYTES = (torch.int8, torch.uint8)
_SCALARS = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.qscheme, type(None))


class Unhashable(TypeError):
    """Something among a model's weights has no bytes to be hashed; the message names it."""


def bare_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without the parts that wrappers put in; as they are where two would become one.

    >>> bare_names(["module.0.weight", "module.0.bias"])
    {'module.0.weight': '0.weight', 'module.0.bias': '0.bias'}
    >>> bare_names(["module.weight", "weight"])
    {'module.weight': 'module.weight', 'weight': 'weight'}
    """
    listed = list(names)
    bare = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) or name for name in listed}
    if len(set(bare.values())) == len(listed):
        return bare
    cut = 0
    while all((parts := name.split("."))[cut : cut + 1] and parts[cut] in WRAPPERS and len(parts) > cut + 1 for name in listed):
        cut += 1
    return {name: ".".join(name.split(".")[cut:]) for name in listed}


def fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters, buffers and packed weights.

    Raises:
        Unhashable: packed weights of an unknown kind.
    """
    return digest(contents(model))


def contents(model: nn.Module) -> dict[str, Any]:
    """Everything that :func:`fingerprint` is about, by name: parameters, buffers, and :func:`packed` weights."""
    # buffers outside the state_dict (persistent=False) count too: they change what a model answers
    return {**dict(model.named_parameters()), **dict(model.named_buffers()), **packed(model)}


def packed(model: nn.Module) -> dict[str, Any]:
    """The entries of a state_dict with weights that are neither parameters nor buffers, as in quantised layers."""
    known = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    rest = {name: value for name, value in model.state_dict().items() if name not in known and _weighs(name, value)}
    if any(isinstance(value, Tensor) for value in rest.values()):  # a state_dict may name weights otherwise than the model does
        places = {(value.data_ptr(), value.shape) for value in known.values() if _has_place(value)}
        rest = {n: v for n, v in rest.items() if not (isinstance(v, Tensor) and _has_place(v) and (v.data_ptr(), v.shape) in places)}
    return rest


def _has_place(value: Tensor) -> bool:
    return type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_meta


def of_state(state: Mapping[str, Any], *, bare: bool = True) -> str:
    """sha256 of a state_dict: its tensors and packed weights; lone numbers and texts (an epoch, say) are left out.

    Raises:
        Unhashable: packed weights of an unknown kind.
    """
    return digest({name: value for name, value in state.items() if _weighs(name, value)}, bare=bare)


def of_contents(state: Mapping[str, Any]) -> str:
    """sha256 of a state_dict whatever its tensors are called: over the sorted sha256 of each different one (shape, dtype, bytes).

    Two names of one tensor count once, as files that leave tied weights out have it. Which tensor stands where isn't in it.

    Raises:
        Unhashable: packed weights of an unknown kind.

    >>> one = {"a.weight": torch.eye(2), "b.weight": torch.zeros(3), "tied": torch.eye(2)}
    >>> of_contents(one) == of_contents({"x": torch.zeros(3), "y": torch.eye(2)}), of_contents(one) == of_contents({"x": torch.zeros(3)})
    (True, False)
    """
    each = {digest({"": value}, bare=False) for name, value in state.items() if _weighs(name, value)}
    return hashlib.sha256("".join(sorted(each)).encode()).hexdigest()


def of_names(state: Mapping[str, Any]) -> str:
    """sha256 of the sorted names of a state_dict's weights, without the parts that wrappers put in."""
    names = bare_names([name for name, value in state.items() if _weighs(name, value)]).values()
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode("utf-8", "surrogatepass")).hexdigest()


def _weighs(name: str, value: Any) -> bool:
    return not isinstance(value, _SCALARS) or (name.endswith("_extra_state") and value is not None)


def outside(model: nn.Module) -> str | None:
    """What of a model a state_dict can't hold, where its answers clearly rest on it; None where nothing is."""
    registered = [*model.parameters(), *model.buffers()]
    plain = [
        (f"{name}.{key}".lstrip("."), value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    if not registered and not packed(model):
        held = f"; tensors that are plain attributes: {plain[0][0]}" if plain else ""
        return f"the model has no parameters and no buffers{held}"
    # what a module keeps from a forward pass is floating, and its tables of indices are of wider integers
    quantised = next((name for name, value in plain if value.is_quantized or (value.dtype in _BYTES and value.dim() > 1)), None)
    return f"{quantised} is a plain attribute, neither parameter nor buffer, so no weights file holds it" if quantised else None


def digest(entries: Mapping[str, Any], *, bare: bool = True) -> str:
    """sha256 over names, shapes, dtypes and bytes, in the order of the names; ``bare``: without wrappers' prefixes.

    Raises:
        Unhashable: a value that is neither a tensor nor made of tensors and numbers.
    """
    whole = hashlib.sha256()
    names = bare_names(entries) if bare else {name: name for name in entries}
    for name, value in sorted(((names[key], value) for key, value in entries.items()), key=lambda item: item[0]):
        _add(whole, name, value)
    return whole.hexdigest()


def _add(whole: Any, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        _add_tensor(whole, name, value)
    elif isinstance(value, Mapping):
        _head(whole, f"{name}|mapping|{len(value)}|")
        for key in sorted(value, key=str):
            _add(whole, f"{name}.{key}", value[key])
    elif isinstance(value, (tuple, list)):
        _head(whole, f"{name}|list|{len(value)}|")
        for place, one in enumerate(value):
            _add(whole, f"{name}.{place}", one)
    elif isinstance(value, (bytes, bytearray, io.BytesIO)):
        raw = value.getvalue() if isinstance(value, io.BytesIO) else bytes(value)
        _head(whole, f"{name}|bytes|{len(raw)}|")
        whole.update(raw)
    elif isinstance(value, (np.ndarray, np.generic)):
        _add_array(whole, name, np.asarray(value))
    elif isinstance(value, _SCALARS):
        _head(whole, f"{name}|{type(value).__name__}|{value!r}|")
    elif isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
        _head(whole, f"{name}|object|")
        _add(whole, name, value.__getstate__())
    else:
        raise Unhashable(f"{name} is of {type(value).__module__}.{type(value).__qualname__}, which has no bytes to be hashed")


def _add_array(whole: Any, name: str, array: np.ndarray) -> None:
    if array.dtype.hasobject:
        raise Unhashable(f"{name} is an array of Python objects, which has no bytes to be hashed")
    _head(whole, f"{name}|{array.shape}|{array.dtype.str}|")
    whole.update(np.ascontiguousarray(array).tobytes())


def _add_tensor(whole: Any, name: str, value: Tensor) -> None:
    plain = value.detach()
    if plain.is_quantized:
        _head(whole, f"{name}|{tuple(plain.shape)}|{plain.dtype}|{plain.qscheme()}|")
        per_channel = plain.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        if per_channel:
            scale: tuple[Any, ...] = (plain.q_per_channel_scales(), plain.q_per_channel_zero_points(), plain.q_per_channel_axis())
        else:
            scale = (plain.q_scale(), plain.q_zero_point())
        _add(whole, f"{name}.scale", scale)
        _add_tensor(whole, f"{name}.values", plain.int_repr())
        return
    if type(plain) is not Tensor and hasattr(plain, "__tensor_flatten__"):  # a tensor made of others, such as a quantised one
        inner, _ = plain.__tensor_flatten__()
        _head(whole, f"{name}|{tuple(plain.shape)}|{plain.dtype}|{type(plain).__qualname__}|")
        for attribute in inner:
            _add(whole, f"{name}.{attribute}", getattr(plain, attribute))
        return
    _head(whole, f"{name}|{tuple(plain.shape)}|{plain.dtype}|")
    raw = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    whole.update(raw.numpy().data)


def _head(whole: Any, text: str) -> None:
    whole.update(text.encode("utf-8", "surrogatepass"))
