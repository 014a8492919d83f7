"""Our methods by name in SUPREME (github.com/pedroandreou/supreme-unlearning), a pipeline that trains, unlearns and evaluates.

    import supreme
    from fastforget.adapters import supreme as ours
    ours.register()                                       # before the pipeline starts
    supreme.run_unlearning(["-method", "fastforget_sweep", "-net", "ResNet18", "-dataset", "Cifar10", ...])

Written from SUPREME 0.1.5's public sources (``registry.py``, ``utils/unlearning/unlearn_main.py``), and **not run against the package**:
it pins torch 2.1.0, and fastforget needs 2.10. A registered method is a function of keyword arguments: a model of its own to change, the
loaders by name, ``type_of_unlearning_strategy`` and ``forget_label_id``; it returns the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from ..methods import registry, unlearn

PREFIX = "fastforget_"
STRATEGIES = ("fullclass", "subclass", "random_")


def register(*, prefix: str = PREFIX) -> list[str]:
    """Gives SUPREME every method of ours by ``prefix`` + its name; returns the names to pass as ``-method``."""
    import supreme

    names = [name for name in registry.names() if name != registry.AUTO]
    for name in names:
        supreme.register_unlearning_method(prefix + name, f"{__name__}:{PREFIX}{name}")
    return [prefix + name for name in names]


def method(name: Any, *, unseen: str | None = "test_dataloader", **options: Any) -> Callable[..., nn.Module]:
    """A method as SUPREME calls it. For options of your own, put one into a module and register that.

    Args:
        name: of our method, or an instance.
        unseen: which of SUPREME's loaders is data never seen. Its test set is all that there is, and the methods that need unseen data
            learn from it: figures on it are then no longer those of unseen data. ``None``: none, which Forsaken, Lightweight and, for
            samples, the sweep refuse.
        **options: of :func:`fastforget.unlearn` and of the method.

    >>> import torch
    >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
    >>> loader = lambda keep: torch.utils.data.DataLoader(list(zip(x[keep], y[keep], y[keep], strict=True)), batch_size=30)
    >>> run = method("sweep", unseen=None, progress=False)
    >>> net = torch.nn.Linear(4, 3)
    >>> sets = {"retain_train_dataloader": loader(y != 0), "forget_train_dataloader": loader(y == 0)}
    >>> run(model=net, type_of_unlearning_strategy="fullclass", forget_label_id=0, **sets) is net
    True
    """

    def run(
        *,
        model: nn.Module,
        retain_train_dataloader: Any,
        forget_train_dataloader: Any,
        type_of_unlearning_strategy: str,
        forget_label_id: int | None = None,
        fabric: Any = None,
        **rest: Any,
    ) -> nn.Module:
        if getattr(fabric, "world_size", 1) > 1:
            raise RuntimeError(f"fabric: got {fabric.world_size} processes; accepted is one: fastforget doesn't share a run between them")
        if unseen is not None and unseen not in rest:
            raise ValueError(f"unseen: got {unseen!r}; accepted are None or one of the loaders, {', '.join(sorted(rest))}")
        if type_of_unlearning_strategy not in STRATEGIES:
            raise ValueError(f"type_of_unlearning_strategy: got {type_of_unlearning_strategy!r}; accepted are {', '.join(STRATEGIES)}")
        # a subclass lies within a class that stays: its samples go, not the label
        classes = [forget_label_id] if type_of_unlearning_strategy == "fullclass" else None
        unlearn(
            getattr(model, "module", model),  # inside of Fabric's wrapper
            name,
            classes=classes,
            retain=_inside(retain_train_dataloader),
            forget=_inside(forget_train_dataloader),
            nonmember=None if unseen is None else _inside(rest[unseen]),
            inplace=True,
            **{"unpack": _ends, **options},
        )
        return model

    return functools.update_wrapper(run, method, assigned=(), updated=())


def _ends(batch: Any) -> tuple[Any, Any]:
    """SUPREME's data sets give (image, fine label, label)."""
    return batch[0], batch[-1]


def _inside(loader: Any) -> Any:
    """Fabric's loader wraps the one that was given to it."""
    return getattr(loader, "_dataloader", loader)


def __getattr__(name: str) -> Callable[..., nn.Module]:
    """``fastforget_sweep`` and the like, which SUPREME reads from this module."""
    if name.startswith(PREFIX) and name.removeprefix(PREFIX) in registry.names():
        return method(name.removeprefix(PREFIX))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
