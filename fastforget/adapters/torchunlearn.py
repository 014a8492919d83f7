"""Our methods as an unlearner of torchunlearn (github.com/Harry24k/machine-unlearning-pytorch), beside its own trainers.

    from fastforget.adapters.torchunlearn import Unlearner
    Unlearner(rmodel, method="sweep", nonmember=val_loader).fit(MergedLoaders({"Retain": retain, "Forget": forget}))
    rmodel.eval_accuracy(test_loader)

The release on PyPI, 0.1.0, has ``RobModel`` and ``MergedLoaders`` and no trainers: the tests run against that. :func:`register` is for the
registry of its later sources (``torchunlearn/api/registry.py``), which no release has; it is written from them and has not run.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..methods import UnlearnResult, registry, unlearn

PREFIX = "fastforget_"


class Unlearner:
    """``setup`` and ``fit`` as torchunlearn's trainers have them; the model is changed in place.

    Args:
        rmodel: a ``torchunlearn.RobModel``, or any ``nn.Module`` that gives logits.
        method: a name or an instance, as in :func:`fastforget.unlearn`.
        **options: of that call and of the method: ``classes=``, ``nonmember=`` (data never seen), ``seed=``, ``steps=`` ...

    Attributes:
        result: of the last ``fit``, with its receipt.

    >>> import torch
    >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
    >>> loaders = {"Retain": (x[y != 0], y[y != 0]), "Forget": (x[y == 0], y[y == 0])}
    >>> unlearner = Unlearner(torch.nn.Linear(4, 3), method="sweep", classes=[0], progress=False)
    >>> unlearner.setup().fit(loaders).result.receipt["method"]
    'sweep'
    """

    def __init__(self, rmodel: nn.Module, method: Any = "sweep", **options: Any) -> None:
        self.rmodel, self.method, self.options = rmodel, method, options
        self.result: UnlearnResult | None = None

    def setup(self, **options: Any) -> Unlearner:
        """More options, by our names: optimiser and rates are the method's own, so torchunlearn's are refused."""
        foreign = sorted({"optimizer", "scheduler", "scheduler_type", "minimizer", "n_epochs", "n_iters"} & set(options))
        if foreign:
            raise TypeError(f"setup: got {', '.join(foreign)}; a method of fastforget brings its own. Accepted are its options, or none")
        self.options |= options
        return self

    def fit(self, train_loaders: Any, **options: Any) -> Unlearner:
        """Unlearns.

        Args:
            train_loaders: a ``MergedLoaders``, or a dict, with ``"Retain"`` and ``"Forget"``.
            **options: for this run.
        """
        loaders = getattr(train_loaders, "loaders", train_loaders)
        if not isinstance(loaders, dict) or "Forget" not in loaders:
            got = sorted(loaders) if isinstance(loaders, dict) else type(train_loaders).__name__
            raise TypeError(f'train_loaders: got {got}; accepted is MergedLoaders or a dict with "Retain" and "Forget"')
        sets = {"retain": loaders.get("Retain"), "forget": loaders["Forget"], "inplace": True}
        self.result = unlearn(self.rmodel, self.method, **{**self.options, **options, **sets})
        return self


def register() -> list[str]:
    """Gives torchunlearn's registry every method of ours, ``fastforget_`` before its name; returns these names."""
    from torchunlearn.api import register_unlearner

    names = [name for name in registry.names() if name != registry.AUTO]
    for name in names:
        kind = type(PREFIX + name, (Unlearner,), {"__init__": _starting_with(name), "__doc__": f"fastforget's method {name!r}."})
        register_unlearner(PREFIX + name, kind="nontrainer", cls=kind)
    return [PREFIX + name for name in names]


def _starting_with(name: str) -> Any:
    def start(self: Unlearner, rmodel: nn.Module, **options: Any) -> None:
        Unlearner.__init__(self, rmodel, name, **options)

    return start
