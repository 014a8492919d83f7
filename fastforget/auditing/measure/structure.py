"""Whether two models are built alike: the modules' names and kinds, buffers, hooks, replaced methods. Sizes may differ.

A wrapper can hold anything: a rule for single inputs, the original asleep behind a trigger. No figure on given samples can rule that out,
so a model that isn't built like the original is never more than partly shown to have forgotten.
"""

from __future__ import annotations

from torch import nn

from .features import bare


def difference(model: nn.Module, other: nn.Module) -> str | None:
    """The first difference in kind between two models' module trees, or None. Data parallelism and ``torch.compile`` don't count.

    Compared are the modules' names and types, the names of their parameters and buffers, the number of forward hooks, and which methods
    (``forward``, or what it calls) were put on an instance in place of its type's. Not compared are sizes, numbers of any kind and what a
    type's own code does.

    >>> from torch import nn
    >>> narrow, wide = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 3)) for n in (8, 16))
    >>> difference(narrow, wide) is None, difference(nn.DataParallel(narrow), wide) is None
    (True, True)
    >>> difference(nn.Sequential(narrow, nn.Softmax(1)), wide)
    'module 0: Sequential, in the other Linear'
    """
    mine, theirs = _parts(bare(model)), _parts(bare(other))
    for name in [*theirs, *(n for n in mine if n not in theirs)]:
        a, b = mine.get(name), theirs.get(name)
        if a == b:
            continue
        where = f"module {name}" if name else "the model"
        if a is None or b is None:
            return f"{where} ({(a or b or [''])[0].rpartition('.')[2]}) is in one model only"
        if a[0] != b[0]:
            one, two = (kind.rpartition(".")[2] if a[0].rpartition(".")[2] != b[0].rpartition(".")[2] else kind for kind in (a[0], b[0]))
            return f"{where}: {one}, in the other {two}"
        what = next(i for i in range(len(a)) if a[i] != b[i])
        return f"{where}: {('', 'parameters', 'buffers', 'forward hooks', 'own methods')[what]} {a[what]}, in the other {b[what]}"
    return None


def _parts(model: nn.Module) -> dict[str, list[str]]:
    found = {}
    for name, module in model.named_modules():
        kind = type(module)
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        found[name] = [
            f"{kind.__module__}.{kind.__qualname__}",
            ", ".join(n for n, p in module._parameters.items() if p is not None) or "none",
            ", ".join(n for n, b in module._buffers.items() if b is not None) or "none",
            str(hooks),
            ", ".join(sorted(n for n in vars(module) if callable(getattr(kind, n, None)))) or "none",
        ]
    return found
