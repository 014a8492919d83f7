"""Checks that every public op shares. One fact a check; each error names the argument, what came, what is accepted, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _schema, backend

FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))

_SCALARS = {dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64, torch.int64)}

# A list of parameters is judged as a whole by passes that stay inside the interpreter's C code: a third of the time of a loop
# over the tensors. Only where such a pass finds something does the loop run that says what and where. Tracing gets the loop,
# which it understands.
_TYPES = {Tensor, torch.nn.Parameter}
_STRIDED = {torch.strided}
_dtype, _layout, _device = attrgetter("dtype"), attrgetter("layout"), attrgetter("device")
_is_cpu, _requires_grad = attrgetter("is_cpu"), attrgetter("requires_grad")
_is_compiling = torch.compiler.is_compiling
_in_force = backend.in_force
# what torch.autograd.graph.increment_version calls with a list of tensors
increment_version = getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version)


def _plain(xs: list[Tensor]) -> bool:
    """Whether all are floating strided tensors on one device; False may also mean that only the loop can tell."""
    return (
        not _is_compiling()
        and set(map(type, xs)) <= _TYPES
        and set(map(_dtype, xs)) <= FLOATS
        and set(map(_layout, xs)) <= _STRIDED
        and (all(map(_is_cpu, xs)) or len(set(map(_device, xs))) == 1)
    )


def _alike(xs: list[Tensor], like: list[Tensor]) -> bool:
    """Whether each tensor has the shape, dtype and device of its partner; False may also mean that only the loop can tell."""
    return (
        not _is_compiling()
        and set(map(type, xs)) <= _TYPES
        and list(map(Tensor.size, xs)) == list(map(Tensor.size, like))
        and list(map(_dtype, xs)) == list(map(_dtype, like))
        and ((all(map(_is_cpu, xs)) and like[0].is_cpu) or list(map(_device, xs)) == list(map(_device, like)))
    )


def _dense(x: Tensor) -> bool:
    """Whether a kernel may read its memory as it is: in order, and no lazily negated view of a complex tensor (tracing can't ask)."""
    return x.is_contiguous() and (_is_compiling() or not x.is_neg())


def _all_dense(xs: list[Tensor]) -> bool:
    return not _is_compiling() and all(map(Tensor.is_contiguous, xs)) and not any(map(Tensor.is_neg, xs))


def _any_requires_grad(xs: list[Tensor]) -> bool:
    return _is_compiling() or any(map(_requires_grad, xs))


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
    return f"{type(value).__name__} {value!r}"[:120]


def tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {describe(value)}; accepted is a torch.Tensor")
    return value


def floating(name: str, value: Any) -> Tensor:
    tensor(name, value)
    if value.dtype not in FLOATS:
        raise TypeError(
            f"{name}: got {describe(value)}; accepted dtypes are float32, bfloat16, float16 and float64. Convert it first, e.g. "
            f"{name.split('[')[0]}.float()"
        )
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}; accepted is torch.strided (use .to_dense())")
    return value


def listed(name: str, value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One tensor or a sequence of tensors, as a list of floating tensors on one device."""
    if isinstance(value, Tensor):
        if value.dtype not in FLOATS or value.layout is not torch.strided:
            floating(name, value)
        return [value]
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: got {describe(value)}; accepted is a tensor or a list of tensors")
    xs = list(value)
    if _plain(xs):
        return xs
    device = None
    for i, x in enumerate(xs):
        if not isinstance(x, Tensor) or x.dtype not in FLOATS or x.layout is not torch.strided:
            floating(name if len(xs) == 1 else f"{name}[{i}]", x)
        if device is None:
            device = x.device
        elif x.device != device:
            raise ValueError(
                f"{name}: {name}[0] is on {device} but {name}[{i}] is on {x.device}; accepted is one device a call. "
                "Call once for each device"
            )
    return xs


def same(name: str, value: Any, like_name: str, like: Tensor) -> Tensor:
    """A tensor with the shape, dtype and device of another argument."""
    if not isinstance(value, Tensor):
        tensor(name, value)
    if value.shape != like.shape or value.dtype is not like.dtype or value.device != like.device:
        fact = next(f for f in ("device", "dtype", "shape") if getattr(value, f) != getattr(like, f))
        raise ValueError(f"{name}: got {describe(value)}; its {fact} must be that of {like_name}, which is {describe(like)}")
    return value


def same_list(name: str, value: Any, like_name: str, like: list[Tensor]) -> list[Tensor]:
    if isinstance(value, Tensor):
        xs = [value]
        if len(like) == 1:
            return [same(f"{name}[0]", value, f"{like_name}[0]", like[0])]
    elif isinstance(value, (list, tuple)):
        xs = list(value)
    else:
        raise TypeError(f"{name}: got {describe(value)}; accepted is a tensor or a list of tensors, one for each of {like_name}")
    if len(xs) != len(like):
        raise ValueError(f"{name}: got {len(xs)} tensors; accepted are {len(like)}, one for each of {like_name}")
    if len(xs) > 1 and _alike(xs, like):
        return xs
    for i, (x, other) in enumerate(zip(xs, like, strict=True)):
        if not isinstance(x, Tensor) or x.shape != other.shape or x.dtype is not other.dtype or x.device != other.device:
            same(f"{name}[{i}]", x, f"{like_name}[{i}]", other)
    return xs


def writable(name: str, xs: Sequence[Tensor]) -> list[Tensor]:
    """Refuses what an in-place kernel would silently get wrong; returns contiguous stand-ins where a kernel needs them."""
    if len(xs) == 1 and _dense(xs[0]) and not (xs[0].requires_grad and torch.is_grad_enabled()):
        return list(xs)
    xs = xs if isinstance(xs, list) else list(xs)
    if torch.is_grad_enabled() and _any_requires_grad(xs):
        for i, x in enumerate(xs):
            if x.requires_grad:
                where = name if len(xs) == 1 else f"{name}[{i}]"
                raise RuntimeError(
                    f"{where}: {describe(x)} requires grad and is changed in place; autograd can't follow that. "
                    "Call inside torch.no_grad()"
                )
    if _all_dense(xs):
        return xs
    return [x if _dense(x) else _stand_in(name if len(xs) == 1 else f"{name}[{i}]", x) for i, x in enumerate(xs)]


def _stand_in(where: str, x: Tensor) -> Tensor:
    if _overlaps(x):
        raise ValueError(
            f"{where}: {describe(x)} with strides {x.stride()} shows one memory cell as several elements (expand?); "
            "accepted is a tensor whose elements are distinct. Use .clone()"
        )
    return x.resolve_neg().contiguous()


def _overlaps(x: Tensor) -> bool:
    """Whether sorted strides could make two elements share memory (exact for views made by slicing, permuting, expanding)."""
    if x.numel() < 2:
        return False
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _flat(args: Sequence[Any]) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _flat(value)


def apart(op: str, *args: Any) -> None:
    """Refuses tensors that share memory with one that is changed. ``args``: the op's first arguments, as the caller gave them. A compiled
    op asks the same of contiguous tensors itself, but of others it is given copies."""
    if not _is_compiling() and not (
        _in_force() in (None, "native") and all(map(_dense, _flat(args)))
    ):
        _schema.refuse_shared(op, args)


def readable(xs: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous inputs, outside autograd's sight (no op records a gradient for them)."""
    if len(xs) == 1 and _dense(xs[0]) and not xs[0].requires_grad:
        return list(xs)
    xs = xs if isinstance(xs, list) else list(xs)
    if torch.is_grad_enabled() and _any_requires_grad(xs):
        # a tangent stays, so that run() refuses it
        xs = [x if not x.requires_grad or _dual(x) else x.detach() for x in xs]
    if _all_dense(xs):
        return xs
    return [x if _dense(x) else x.resolve_neg().contiguous() for x in xs]


def _dual(x: Tensor) -> bool:
    return forward_ad._current_level >= 0 and not _is_compiling() and _schema.has_tangent(x)


def no_tangents(op: str, *tensors: Tensor) -> None:
    """For what a function computes before its op is called."""
    if any(map(_dual, tensors)):
        raise _schema.no_rule_for_tangents(op)


def not_differentiable(op: str, **tensors: Tensor) -> None:
    no_tangents(op, *tensors.values())
    if torch.is_grad_enabled():
        for name, x in tensors.items():
            if x.requires_grad:
                raise RuntimeError(
                    f"{op}: {name} requires grad, but {op} has no gradient. Call inside torch.no_grad(), or pass {name}.detach()"
                )


def no_gradient(op: str, name: str, xs: Sequence[Tensor]) -> None:
    """:func:`not_differentiable` for a tensor or each tensor of a list."""
    no_tangents(op, *xs)
    if torch.is_grad_enabled():
        for i, x in enumerate(xs):
            if x.requires_grad:
                not_differentiable(op, **{name if len(xs) == 1 else f"{name}[{i}]": x})


def integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {describe(value)}; accepted is an int from {low} to {high - 1}")
    if not low <= value < high:
        raise ValueError(f"{name}: got {value}; accepted is an int from {low} to {high - 1}")
    return value


def signed64(seed: int) -> int:
    """The int64 with the bits of an unsigned 64-bit seed (schemas know no unsigned integers)."""
    return seed - 2**64 if seed >= 2**63 else seed


# The fast path. The op of the CPU library checks its tensors itself and changes nothing when it refuses them (``_schema.py``), so a public
# function tries the op first. If the op refuses, the slow path finds the words for what is wrong, or makes the contiguous copies that the
# op needs. Asked here is only what the op can't see: which backend is in force, and what autograd would have to record.


def plain(first: Any, *others: Any) -> bool:
    """Whether the fast path may be tried with these arguments."""
    if type(first) not in _TYPES or _is_compiling() or _in_force() is not None or not backend.native_cpu:
        return False
    if torch.is_grad_enabled():
        for x in (first, *others):
            if not isinstance(x, Tensor) or x.requires_grad:
                return False
    return first.is_cpu  # another one that is elsewhere makes the op refuse the call


def plain_lists(*values: Any) -> list[Sequence[Tensor]] | None:
    """The arguments as lists of tensors, a tensor alone as a list of one; None if the fast path may not be tried with them."""
    if _is_compiling() or _in_force() is not None or not backend.native_cpu:
        return None
    lists: list[Sequence[Tensor]] = []
    for value in values:
        kind = type(value)
        if kind in _TYPES:
            lists.append((value,))
        elif kind is list or kind is tuple:
            lists.append(value)
        else:
            return None
    try:
        if torch.is_grad_enabled():
            for tensors in lists:
                if any(map(_requires_grad, tensors)):
                    return None
        # of a DTensor's op torch would first look for a rule, which takes longer than the op
        return lists if lists[0] and type(lists[0][0]) in _TYPES and lists[0][0].is_cpu else None
    except AttributeError:  # something that is no tensor
        return None


def accepted(op: Callable[..., None], args: tuple[Any, ...], *mutated: Sequence[Tensor]) -> bool:
    """Whether the op took the call. If so, autograd is told what has changed; ``mutated`` are lists of tensors."""
    try:
        op(*args)
    except RuntimeError:
        return False
    for tensors in mutated:
        increment_version(tensors)
    return True


def unset_scalar(dtype: torch.dtype) -> Tensor:
    """A 0-d CPU tensor for a result."""
    return torch.empty_like(_SCALARS[dtype])  # half the time of torch.empty((), ...)


def run(name: str, op: Callable[..., None], mutated: list[Tensor], args: tuple[Any, ...]) -> None:
    """Calls the op on the backend in force and tells autograd what it changed."""
    compiling = _is_compiling()
    if not compiling:
        _schema.refuse_tangents(name, args)
    if (backend.forced_in_trace() if compiling else _in_force()) is not None:
        backend.call_forced(name, mutated[0].device.type, args)
    elif compiling:
        op(*args)
    else:
        getattr(op, "_op", op)(*args)
    if not compiling:
        increment_version(mutated)


def write_back(xs: Sequence[Tensor], staged: Sequence[Tensor]) -> None:
    """Copies the results of contiguous stand-ins into the caller's strided tensors."""
    if not _is_compiling() and staged is xs:  # torch.compile of torch 2.10 can't compare lists so
        return
    for x, s in zip(xs, staged, strict=True):
        if s is not x:
            x.copy_(s)


def label_vector(labels: Any, shape: torch.Size, logits: Tensor) -> Tensor:
    """Class ids as contiguous int64 with the batch's shape, on the logits' device."""
    tensor("labels", labels)
    if labels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"labels: got {describe(labels)}; accepted dtypes are int64 and int32 (class ids)")
    if labels.shape != shape:
        raise ValueError(f"labels: got shape {tuple(labels.shape)}; accepted is {tuple(shape)}, one for each row of logits")
    if labels.device != logits.device:
        raise ValueError(f"labels: on {labels.device}, but logits is on {logits.device}; move one of them")
    return labels if labels.dtype == torch.int64 and labels.is_contiguous() else labels.to(torch.int64).contiguous()
