"""``unlearn``: one call for every method. Checks, works on a copy, measures, writes the receipt; a failed
run changes nothing.
"""

from __future__ import annotations

import dataclasses
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import _weights
from .._data import Source, source
from .._text import percent
from . import checks as _checks
from . import overlap as _overlap
from .perturb import match as _match
from .perturb.forsaken import Forsaken
from .perturb.lightweight import Lightweight
from .task import Task, derived_seed
from .unsir.train import UNSIR

GONE_AT = 0.01
LOST = 0.20  # more than this of the accuracy on the data to keep gone: a wrecked model, not one that forgot
USE_SAMPLES, USE = 256, 51  # how many retain samples show that, and the purpose of their seed
UNDECIDED = "it couldn't tell them before either"
METHODS: dict[str, Callable[..., Any]] = {"unsir": UNSIR, "forsaken": Forsaken, "lightweight": Lightweight}


class Method(Protocol):
    name: str
    scope: str  # "classes": classes as a whole; "samples": also any set of samples, given as forget=
    learns_noise: bool  # in the inputs' place: they must be floating point

    def run(self, task: Task) -> dict[str, Any]: ...

    def receipt(self) -> dict[str, Any]: ...


@dataclasses.dataclass
class Nothing:
    """The negative control: returns the model as it is, so that an audit of it must fail."""

    name = "none"
    scope = "samples"
    learns_noise = False

    def run(self, task: Task) -> dict[str, Any]:
        return {}

    def receipt(self) -> dict[str, Any]:
        return {}


METHODS["none"] = Nothing


@dataclasses.dataclass
class UnlearnResult:
    """What :func:`unlearn` returns."""

    model: nn.Module
    history: list[dict[str, Any]]
    seconds: float
    receipt: dict[str, Any]
    forgot: bool
    why: str

    def __repr__(self) -> str:
        return f"UnlearnResult(forgot={self.forgot}, seconds={self.seconds:.1f}, why={self.why!r})"


class NotForgottenWarning(UserWarning):
    """The classes are still there, or nothing shows that they are gone."""


def _method(method: Any, options: dict[str, Any]) -> Method:
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method: got {method!r}; accepted are {', '.join(map(repr, METHODS))} or an instance from ff.methods")
        return METHODS[method](**options)
    if not (hasattr(method, "run") and hasattr(method, "receipt")) or isinstance(method, type):
        raise TypeError(f"method: got {method!r}; accepted are {', '.join(map(repr, METHODS))} or an instance, e.g. UNSIR()")
    if options:
        raise TypeError(f"options {', '.join(options)}: give them to {type(method).__name__}(...) when the method is an instance")
    return method


def _call(model: nn.Module, inputs: Any) -> Tensor:
    return model(inputs)


def unlearn(
    model: nn.Module,
    method: Any = "unsir",
    *,
    forget: Any = None,
    retain: Any = None,
    nonmember: Any = None,
    test: Any = None,
    classes: Any = None,
    seed: int = 0,
    inplace: bool = False,
    progress: bool = True,
    drop_forget: bool = False,
    check_overlap: bool = True,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    **options: Any,
) -> UnlearnResult:
    """Makes a trained classifier forget classes, or single samples.

    Args:
        model: maps a batch to logits [batch, classes].
        method: ``"unsir"`` (Tarun et al., arXiv 2111.08947), ``"forsaken"`` (Liu et al., arXiv 2003.10933), ``"lightweight"`` (Chen et
            al., arXiv 2111.05528), ``"none"`` (negative control: nothing is done, all is measured), or an instance such as
            ``ff.methods.UNSIR(preset="paper")``.
        forget: data of the classes to forget, if there is any: UNSIR needs none, but looks at it to know
            when they are gone. Without ``classes``, Forsaken and Lightweight forget just these samples.
        retain: data to keep: a DataLoader, a Dataset or an ``(inputs, labels)`` pair. Samples must be
            prepared as for training.
        nonmember: data never trained on, needed by Forsaken and Lightweight; not used by UNSIR.
        test: test data; its samples of ``classes`` only measure the result, they never steer the run.
        classes: ids of the classes to forget (taken from ``forget`` when not given).
        seed: same seed, data and machine: same bytes.
        inplace: writes the result into ``model``, at the very end; else ``model`` isn't touched.
        progress: bars on a terminal.
        drop_forget: leaves samples of ``classes`` out of ``retain`` instead of refusing them.
        check_overlap: where samples (not classes) are to be forgotten, counts those that ``retain`` or ``nonmember`` hold too (same bytes
            and label; same index in parts of one data set) and refuses more than 1 % of them, plus twice what the twins within that set
            lead to expect. Real data has twins; the count is in the receipt. Costs one pass over the sets (0.15 s for 55,000 images of
            28x28); sets that are read sample by sample are compared up to 20,000 samples.
        unpack: makes ``(inputs, labels)`` of a batch that isn't ``(x, y)`` or ``(x, _, y)``.
        forward: ``forward(model, inputs) -> logits`` for models that aren't called that way.
        **options: the method's own, e.g. ``preset="paper"``; see :class:`fastforget.methods.UNSIR`.

    Returns:
        UnlearnResult. ``forgot`` is measured: on ``forget`` and ``test`` data where given (each class
        answered right for at most 1 % of its samples), else by rehearsal (``why`` says on what it rests).
        If it is False, a :class:`NotForgottenWarning` says so.

    Raises:
        TypeError, ValueError: an argument can't serve; it is named, with what is accepted.
        FloatingPointError, RuntimeError: a loss became NaN. As after any failure or interrupt, ``model`` is
            bit for bit as given.

    >>> import torch, fastforget as ff
    >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
    >>> net, keep = torch.nn.Linear(4, 3), y != 0
    >>> result = ff.unlearn(net, preset="paper", classes=[0], retain=(x[keep], y[keep]), forget=(x, y))
    >>> result.receipt["options"]["impair_lr"]
    0.02
    """
    began = time.perf_counter()
    chosen = _method(method, options)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: got {seed!r}; accepted is an int from 0 to 2**63 - 1")
    device = _checks.model_device(model)
    sets: dict[str, Source | None] = {
        name: None if data is None else source(data, name=name, unpack=unpack)
        for name, data in (("retain", retain), ("forget", forget), ("nonmember", nonmember), ("test", test))
    }
    if chosen.scope == "samples" and classes is None and sets["forget"] is not None:
        wanted = []
    else:
        wanted = _checks.class_list(classes, sets["forget"])
    if chosen.scope == "samples" and chosen.name != "none" and sets["forget"] is None:
        raise ValueError(f"forget: not given; {chosen.name} needs the data to forget (for whole classes: samples of them)")
    cuda = [device] if device.type == "cuda" else []
    # the fork keeps the caller's random state; what is seeded inside is dropout and the data's own
    # augmentation
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(derived_seed(seed, 0))
        noisy = getattr(chosen, "learns_noise", True)
        task = _task(model, wanted, device, seed, progress, drop_forget, sets, forward or _call, noisy)
        overlap = _overlapping(task) if check_overlap else {"how": "not checked: check_overlap=False"}
        before = _weights.fingerprint(model)
        with _weights.flags_kept(task.model):
            details = chosen.run(task)
        for parameter in task.model.parameters():
            parameter.grad = None
        forgot, why, measured = _usable(task, *_verdict(task, details.pop("proxy", None)))
    _refuse_nan(task.model)
    receipt = {
        "method": chosen.name,
        "options": chosen.receipt(),
        "classes": wanted,
        "seed": seed,
        "versions": _versions(),
        "device": str(device),
        "weights_sha256": {"before": before, "after": _weights.fingerprint(task.model)},
        "verdict": {"forgot": forgot, "why": why, **measured},
        "overlap": overlap,
        **details,
    }
    if inplace:
        _weights.overwrite(model, task.model)
    if not forgot:
        warnings.warn(
            f"fastforget: the model did NOT verifiably forget {wanted or 'the samples'}: {why}",
            NotForgottenWarning,
            stacklevel=2,
        )
    result = model if inplace else task.model
    return UnlearnResult(result, task.history, time.perf_counter() - began, receipt, forgot, why)


def _task(
    model: nn.Module,
    classes: list[int],
    device: torch.device,
    seed: int,
    progress: bool,
    drop_forget: bool,
    sets: dict[str, Source | None],
    forward: Callable[[nn.Module, Any], Tensor],
    noisy: bool,
) -> Task:
    given = [s for s in sets.values() if s is not None]
    if not given:
        raise ValueError("retain: not given; accepted is a DataLoader, a Dataset or an (inputs, labels) pair of data to keep")
    work = _weights.working_copy(model)
    outputs = _checks.probe(work, forward, given[0], device, noisy)
    _checks.known_classes(classes, outputs)
    for one in given:
        _checks.label_range(one, outputs)
    keep, forget, test, other = sets["retain"], sets["forget"], sets["test"], sets["nonmember"]
    if classes:
        if keep is not None:
            keep = _checks.clean_retain(keep, classes, drop_forget)
        if forget is not None:
            forget = _only(forget, classes, required=True)
        if test is not None:
            test = _only(test, classes, required=False)
        if other is not None:
            other = _without(other, classes)
    return Task(work, forward, classes, outputs, device, seed, progress, keep, forget, test, other, model)


def _overlapping(task: Task) -> dict[str, Any]:
    """Counts of forget samples in other sets. Whole classes can't be there: samples of them have been refused or left out by label."""
    if task.classes or task.forget is None:
        return {}
    return _overlap.check(task.forget, [s for s in (task.retain, task.nonmember) if s is not None])


def _only(data: Source, classes: list[int], *, required: bool) -> Source | None:
    """The set's samples of these classes."""
    inside = torch.isin(data.labels(), torch.tensor(classes)).nonzero()[:, 0]
    if len(inside) == 0 and required:
        raise ValueError(f"{data.name}: holds no sample of classes={classes}; accepted is data of the classes to forget")
    return data.subset(inside) if len(inside) else None


def _without(data: Source, classes: list[int]) -> Source:
    """The set's samples of other classes: a model that never saw the classes wouldn't answer with them."""
    outside = (~torch.isin(data.labels(), torch.tensor(classes))).nonzero()[:, 0]
    if len(outside) == 0:
        raise ValueError(f"{data.name}: holds only samples of classes={classes}; accepted is data of other classes, never trained on")
    return data.subset(outside)


def _verdict(task: Task, proxy: dict[str, Any] | None) -> tuple[bool, str, dict[str, Any]]:
    """Forgotten or not, why, and the numbers: real data of the classes if there is any, else what the
    method measured.
    """
    if not task.classes:
        return _samples_verdict(task)
    shares, said, gone = {}, [], True
    for data in (task.forget, task.test):
        if data is None:
            continue
        by_class = task.right_by_class(data, task.classes)
        missing = [c for c in task.classes if c not in by_class]
        shares[f"{data.name}_accuracy"] = {str(c): v for c, v in by_class.items()}
        gone = gone and not missing and max(by_class.values()) <= GONE_AT
        counts = ", ".join(f"class {c}: {percent(v)}" for c, v in by_class.items())
        said.append(f"on {len(data)} {data.name} samples still right {counts}" + (f", none of {missing}" if missing else ""))
    if said:
        return (
            gone,
            f"{'; '.join(said)} (forgotten: at most {percent(GONE_AT)})",
            {"rests_on": "data", **shares},
        )
    if proxy is not None:
        return proxy["gone"], proxy["why"], {"rests_on": "rehearsal"}
    why = "not shown: no data of the classes was given. Pass forget= or test= with samples of them"
    return False, why, {"rests_on": "nothing"}


def _samples_verdict(task: Task) -> tuple[bool, str, dict[str, Any]]:
    """Forgotten when the loss attack could tell the samples from unseen data before and can't any more."""
    assert task.forget is not None and task.original is not None
    unseen = task.test or task.nonmember
    if unseen is None:
        return False, "not shown: no unseen data was given to compare with. Pass test= or nonmember=", {"rests_on": "nothing"}
    auc, error = _match.attack_auc(task, task.forget, unseen)
    before, _ = _match.attack_auc(dataclasses.replace(task, model=task.original, history=[]), task.forget, unseen)
    limit = 0.5 + 2 * error
    figures = {"rests_on": "data", "attack_auc_before": before, "attack_auc": auc, "attack_auc_limit": limit}
    text = f"loss attack of {len(task.forget)} forget against {len(unseen)} {unseen.name} samples: AUC {before:.3f} before, {auc:.3f} now"
    if _weights.fingerprint(task.model) == _weights.fingerprint(task.original):
        return False, f"the weights are unchanged; {text}", figures
    if before <= limit:
        why = f"not shown: {text}; {UNDECIDED} (limit {limit:.3f}), so it can't show that they are gone"
        return False, why, figures
    return auc <= limit, f"{text} (forgotten: at most {limit:.3f})", figures


def _usable(task: Task, forgot: bool, why: str, measured: dict[str, Any]) -> tuple[bool, str, dict[str, Any]]:
    """A model that answers nothing right has not forgotten something: the data to keep must still be known."""
    if not forgot or task.retain is None:
        return forgot, why, measured
    assert task.original is not None
    some = _match.at_most(task.retain, USE_SAMPLES, task.generator(USE))
    before, after = dataclasses.replace(task, model=task.original, history=[]).right(some), task.right(some)
    measured = measured | {"retain_accuracy_before": before, "retain_accuracy": after}
    if before - after <= LOST:
        return True, why, measured
    right = f"only {percent(after)} are answered right, {percent(before)} before (at most {percent(LOST)} less)"
    text = f"but of {len(some)} retain samples {right}"
    return False, f"{why}; {text}: the model lost more than it was to forget", measured


def _refuse_nan(model: nn.Module) -> None:
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise FloatingPointError(f"the run made {name} NaN or inf; the given model is unchanged. Lower the rates")


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"fastforget": __version__, "torch": torch.__version__, "python": platform.python_version()}
