"""What surrounds a call: random generators and torch's modes are the caller's. A call sets them aside, works with its own, and puts them
back whatever happens."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ._random import own_randomness
from ._threads import sleep_while_waiting

AUTOCAST = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla")
F = TypeVar("F", bound=Callable[..., Any] | None)


class Caller:
    """The caller's state. Two context managers in one statement, so that an interrupt in one's clean-up meets the other's::

        with Caller() as caller, caller.aside("unlearn", seed):
            ...

    Inside, the generators start from ``seed`` (see :class:`fastforget._random.own_randomness`), gradients are on, and these don't count:

    - autocast: it would keep low-precision copies of weights that change
    - inference mode and ``no_grad``
    - a default device: new tensors are on the CPU, but for those that the caller's own functions make, see :meth:`own`

    Threads that wait for work sleep, from the first call on (see :mod:`fastforget._threads`).

    The default dtype is the caller's choice for his own models and data; nothing here relies on it.
    """

    def __init__(self) -> None:
        self._randomness: own_randomness | None = None
        self._modes: contextlib.ExitStack | None = None
        self._autocast: dict[str, bool] = {}
        self._cache = torch.is_autocast_cache_enabled()
        self._gradients = torch.is_grad_enabled()
        self._device: torch.device | None = None

    def __enter__(self) -> Caller:
        sleep_while_waiting()
        return self

    def __exit__(self, *_: Any) -> None:
        self._put_back()

    def aside(self, call: str, seed: int) -> _Aside:
        """Sets the caller's state aside for the block. ``call`` is named where it can't be."""
        return _Aside(self, call, seed)

    def own(self, function: F) -> F:
        """One of the caller's functions, as he would see it: on his default device."""
        if self._device is None or function is None:
            return function
        device, inner = self._device, function

        @functools.wraps(inner)
        def on_device(*args: Any, **kwargs: Any) -> Any:
            with device:
                return inner(*args, **kwargs)

        return on_device  # type: ignore[return-value]

    def _take(self, seed: int) -> None:
        self._randomness = own_randomness(seed)
        self._randomness.__enter__()
        self._autocast = {device: True for device in AUTOCAST if torch.is_autocast_enabled(device)}
        self._modes = contextlib.ExitStack()
        if torch.is_inference_mode_enabled():
            self._modes.enter_context(torch.inference_mode(False))
        if torch._C._len_torch_function_stack() and torch.get_default_device().type != "cpu":
            self._device = torch.get_default_device()
            self._modes.enter_context(torch.device("cpu"))
        for device in self._autocast:
            torch.set_autocast_enabled(device, False)
        if self._autocast:
            torch.clear_autocast_cache()
            # inside the caller's block a model's own autocast doesn't clear the cache when it ends
            torch.set_autocast_cache_enabled(False)
        torch.set_grad_enabled(True)

    def _put_back(self) -> None:
        """Once or more often: what was put back already is left alone."""
        if self._modes is not None:
            self._modes.close()
        torch.set_grad_enabled(self._gradients)
        for device in self._autocast:
            torch.set_autocast_enabled(device, True)
        if self._autocast:
            torch.set_autocast_cache_enabled(self._cache)
        if self._randomness is not None:
            self._randomness.put_back()


class _Aside:
    def __init__(self, caller: Caller, call: str, seed: int) -> None:
        self.caller, self.call, self.seed = caller, call, seed

    def __enter__(self) -> None:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(
                f"{self.call}: called inside a transform of torch.func (vmap, grad, jvp, functionalize, ...), which can't follow a call "
                "that trains and measures; accepted is a call outside of it"
            )
        self.caller._take(self.seed)

    def __exit__(self, *_: Any) -> None:
        self.caller._put_back()
