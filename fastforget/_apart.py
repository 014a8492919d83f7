"""Whether what an op changes lies apart from everything else that it was given.

The compiled ops ask themselves (``csrc/common/apart.h``, the same rule). This is for the ops in Python, and for strided tensors, of which
the compiled ops see a contiguous copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Ops whose arguments are worked on element by element, so that one of them may be read and changed at once, as in x += x ...
ELEMENTWISE = frozenset(
    ("normal_", "add_normal_", "perturb_step_", "error_max_step_", "dampen_", "accumulate_importance_", "soft_threshold_",
     "masked_sgd_", "masked_adam_")
)  # fmt: skip
# ... but for these of theirs
_WHOLE = frozenset(("masks", "count", "l1", "nnz", "sum_sq"))
_ALONE, _SINGLE = -1, -2
_MOST_MARKS = 1 << 28  # bytes of a table of marks; views of more are taken to share


class _Place(NamedTuple):
    begin: int  # of the bytes it touches
    end: int
    tensor: Tensor
    name: str
    position: int  # in its list, _SINGLE without one; _ALONE for a tensor that may not even be the same as another one
    written: bool


def _place(x: Tensor, name: str, index: int, written: bool) -> _Place | None:
    """None for a tensor without bytes of its own."""
    if x.numel() == 0 or x.device.type == "meta":
        return None
    try:
        begin = x.data_ptr()
    except RuntimeError:  # fake, or within a transform
        return None
    if begin == 0:
        return None
    reach = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return _Place(begin, begin + (reach + 1) * x.element_size(), x, name, index, written)


def _dense(x: Tensor) -> bool:
    """Whether it fills the memory from its first to its last element."""
    return 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) <= x.numel()


def _share(a: _Place, b: _Place) -> bool:
    """Whether two views whose spans overlap have a byte in common."""
    if _dense(a.tensor) and _dense(b.tensor):
        return True
    begin, end = min(a.begin, b.begin), max(a.end, b.end)
    if end - begin > _MOST_MARKS:
        return True
    marks = torch.zeros(end - begin, dtype=torch.uint8, device="cpu")

    def view(place: _Place) -> Tensor:
        x, size = place.tensor, place.tensor.element_size()
        strides = [stride * size for stride in x.stride()]
        return marks.as_strided((*x.shape, size), (*strides, 1), place.begin - begin)

    view(a).fill_(1)
    return bool(view(b).any())


def _same(a: _Place, b: _Place) -> bool:
    x, y = a.tensor, b.tensor
    alike = x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride()
    return a.begin == b.begin and a.position == b.position != _ALONE and alike


def refuse_shared(op: str, arguments: Sequence[Any], values: Sequence[Any]) -> None:
    """Raises RuntimeError if a tensor that is changed shares memory with another one.

    Args:
        op: the op's name.
        arguments: its schema's arguments.
        values: theirs, or the first few; other things than tensors and lists of them are passed over.
    """
    places: list[_Place] = []
    for argument, value in zip(arguments, values, strict=False):
        written = argument.alias_info is not None and argument.alias_info.is_write
        alone = op not in ELEMENTWISE or argument.name in _WHOLE
        listed = isinstance(value, (list, tuple))
        for i, x in enumerate(value if listed else (value,)):
            if isinstance(x, Tensor):
                place = _place(x, argument.name, _ALONE if alone else i if listed else _SINGLE, written)
                if place is not None:
                    places.append(place)
    places.sort(key=lambda place: place.begin)
    for i, a in enumerate(places):
        for b in places[i + 1 :]:
            if b.begin >= a.end:
                break
            if not (a.written or b.written) or (_same(a, b) and not (a.written and b.written)):
                continue
            with torch.utils._python_dispatch._disable_current_modes():
                shared = _share(a, b)
            if shared:
                to, other = (a, b) if a.written else (b, a)
                raise RuntimeError(
                    f"fastforget.{op}: {_words(to)}, which is changed, shares memory with {_words(other)}; accepted are tensors that lie "
                    "apart, or one that is read and changed element by element. Use .clone(), and give a tensor once in a list"
                )


def _words(place: _Place) -> str:
    return place.name if place.position < 0 else f"{place.name}[{place.position}]"
