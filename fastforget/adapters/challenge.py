"""The signature that the NeurIPS 2023 unlearning challenge asked for, and many repositories took over since."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..methods import UnlearnResult, unlearn


class Unlearning:
    """``unlearning(net, retain_loader, forget_loader, val_loader)``; made by :func:`unlearning`.

    Attributes:
        method, options: what every call runs.
        result: of the last call, with its receipt; None before the first.
    """

    def __init__(self, method: Any, options: dict[str, Any]) -> None:
        self.method, self.options = method, options
        self.result: UnlearnResult | None = None

    def __call__(self, net: nn.Module, retain_loader: Any, forget_loader: Any, val_loader: Any) -> nn.Module:
        """Unlearns in ``net`` itself, leaves it in eval mode, and returns it, as the challenge's starting kit does."""
        sets = {"retain": retain_loader, "forget": forget_loader, "nonmember": val_loader}
        self.result = unlearn(net, self.method, **sets, inplace=True, **self.options)
        return net.eval()

    def __repr__(self) -> str:
        return f"Unlearning({self.method!r}, {self.options})"


def unlearning(method: Any = "sweep", **options: Any) -> Unlearning:
    """A function with the signature of the NeurIPS 2023 challenge: Triantafillou et al., *Are we making progress in unlearning?*, arXiv
    2406.09073.

    Args:
        method: a name or an instance, as in :func:`fastforget.unlearn`.
        **options: of that call and of the method: ``seed=``, ``budget=``, ``unpack=`` (for batches that are dicts), ``preset=`` ...
            Without ``classes=`` the single samples of the forget loader are forgotten, as in the challenge.

    Returns:
        A function of ``net`` (an ``nn.Module``, changed in place) and three loaders: data to keep, data to forget, and validation data,
        which the model was never trained on (our non-members). It returns ``net`` in eval mode. Where a run fails, ``net`` is bit for bit
        as it was. ``.result`` has the last call's receipt.

    >>> import torch, fastforget as ff
    >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
    >>> retain, forget, val = [(x[part], y[part]) for part in (slice(0, 50), slice(50, 60), slice(60, 90))]
    >>> unlearning = ff.adapters.unlearning("sweep", classes=[0], drop_forget=True, seed=1, progress=False)
    >>> net = torch.nn.Linear(4, 3)
    >>> unlearning(net, retain, forget, val) is net, unlearning.result.receipt["seed"]
    (True, 1)
    """
    refused = sorted({"retain", "forget", "nonmember", "inplace"} & set(options))
    if refused:
        raise TypeError(f"options: got {', '.join(refused)}, which the function sets by its own arguments; accepted are other options")
    return Unlearning(method, options)
