"""``unlearn``: one call for every method. Checks, works on a copy, measures, writes the receipt; a failed run changes nothing."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .. import _ranks, _weights
from .._caller import Caller
from .._labels import CLASSES, Reading
from .._modules import dense_gradients
from .._outputs import call
from .._random import own_randomness
from . import checks, plugs
from .engine.precision import Formats
from .registry import method_of, suitable
from .request import Sets, count_overlap, kind_of, make_task
from .result import NotForgottenWarning, UnlearnResult, versions
from .task import derived_seed

READ, BEFORE = 52, 53  # purposes of seeds


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
    budget: int | str | None = None,
    precision: str | None = None,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    **options: Any,
) -> UnlearnResult:
    """Makes a trained classifier forget classes, or single samples; or a causal language model sequences.

    Args:
        model: maps a batch to logits [batch, classes], or [N, T, vocabulary] for ``"gradient_difference"``, ``"npo"``, ``"simnpo"`` and
            ``"rmu"``, whose labels are token ids [N, T] with -100 where nothing is scored (docs/language.md). Of a DDP or FSDP2 model
            every rank makes the call; each works on a whole plain copy, the result is plain (``inplace``: written into the shards), and
            parts of a ``DistributedSampler`` are put together.
        method: ``"unsir"`` (Tarun et al., arXiv 2111.08947), ``"forsaken"`` (Liu et al., arXiv 2003.10933), ``"lightweight"`` (Chen et
            al., arXiv 2111.05528), ``"sweep"`` (our own: everything in one run on a budget, see :class:`fastforget.methods.Sweep`),
            ``"auto"`` (chosen by what is asked and given; the receipt says why), ``"none"`` (negative control: nothing is done, all is
            measured), or an instance such as ``ff.methods.UNSIR(preset="paper")``. The standard methods that papers compare with
            (``"salun"``, ``"scrub"``, ``"ssd"`` and more: docs/methods.md) and other packages' methods go by their names, too;
            :func:`fastforget.methods.available` lists all.
        forget: data of the classes to forget, if there is any: UNSIR and the sweep can do without, but know by it
            when they are gone. Without ``classes``, Forsaken and Lightweight forget just these samples.
        retain: data to keep: a DataLoader, a Dataset or an ``(inputs, labels)`` pair. Samples must be
            prepared as for training.
        nonmember: data never trained on, needed by Forsaken, Lightweight, LoTUS and KDE, and by the sweep for samples; not used by UNSIR.
        test: test data; its samples of ``classes`` only measure the result, they never steer the run.
        classes: ids of the classes to forget (taken from ``forget`` when not given).
        seed: same seed, data, machine and number of torch's threads: same bytes.
        inplace: writes the result into ``model``, at the very end; else ``model`` isn't touched.
        progress: bars on a terminal.
        drop_forget: leaves samples of ``classes`` out of ``retain`` instead of refusing them.
        check_overlap: where samples (not classes) are to be forgotten, counts those that ``retain``, ``nonmember`` or ``test`` hold too
            (same bytes and label, of sequences the same scored tokens; same index in parts of one data set) and refuses more than 1 % of
            them, plus twice what the twins within that set lead to expect. Real data has twins; the count is in the receipt. Costs one pass
            over the sets (0.15 s for 55,000 images of 28x28); sets that are read sample by sample are compared up to 20,000 samples.
        budget: sample passes (samples that go forward and backward; a third of those that only go forward) that the method may use: a
            number, or epochs over ``retain`` as text, ``"2 epochs"``. A run that it ends says so in ``why``. Looks before and after the
            method aren't part of it.
        precision: of training passes: ``"float32"``, ``"bfloat16"`` (with channels_last for nets with convolutions), or ``"auto"``: one
            step of each is tried, and what is clearly faster and gives the same gradient is taken. ``None``: ``"auto"`` for ``"sweep"``,
            ``"float32"`` for the published methods. Weights stay as they are, in their own memory format.
        unpack: makes ``(inputs, labels)`` of a batch that isn't ``(x, y)``, ``(x, _, y)`` or a dict with an entry ``"labels"``.
        forward: ``forward(model, inputs) -> logits`` for models that aren't called that way.
        **options: the method's own, e.g. ``preset="paper"``; see :class:`fastforget.methods.UNSIR`.

    Returns:
        UnlearnResult. ``forgot`` is measured, before and after: on ``forget`` and ``test`` data where given (each class known before, that
        is answered right clearly more often than by chance, and now for at most 1 % of its samples; samples that the loss attack told from
        unseen ones of their classes before and now can't tell, either way round), else by rehearsal (``why`` says on what it rests). More
        than 20 points of accuracy lost on unseen data to keep (on ``retain``, where there is none that tells) are no forgetting; ``why``
        names more than 2 on either. If it is False, a :class:`NotForgottenWarning` says so.

    Raises:
        TypeError, ValueError: an argument can't serve; it is named, with what is accepted.
        FloatingPointError, RuntimeError: a loss became NaN, or logits are. As after any failure, interrupt or warning raised as an error,
            ``model`` is bit for bit as given: it is never called, and written last.
        RuntimeError: the model's forward failed on one of the sets, which is named.
        RuntimeError: called inside a transform of ``torch.func``; another rank stopped, died, or was given something else.

    What surrounds the call doesn't count: autocast, inference mode, ``no_grad`` and a default device are set aside until it ends.
    torch's, Python's and numpy's random generators start from ``seed`` and are put back; calls in several threads take turns. Batch norm
    that is frozen (all its parameters, or its module in eval mode while the model isn't) keeps its statistics.

    >>> import torch, fastforget as ff
    >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
    >>> net, keep = torch.nn.Linear(4, 3), y != 0
    >>> result = ff.unlearn(net, preset="paper", classes=[0], retain=(x[keep], y[keep]), forget=(x, y))
    >>> result.receipt["options"]["impair_lr"]
    0.02
    """
    data = {"forget": forget, "retain": retain, "nonmember": nonmember, "test": test}
    settings: dict[str, Any] = {
        "classes": classes, "seed": seed, "drop_forget": drop_forget, "check_overlap": check_overlap, "budget": budget,
        "precision": precision, **options,
    }  # fmt: skip
    with _ranks.together("unlearn", model) as ranks:
        if ranks is not None:
            ranks.options(method=method, inplace=inplace, unpack=unpack, forward=forward, **settings)
            work = ranks.models({"model": model})["model"]
            sets: dict[str, Any] = {**data, **ranks.sets(data, unpack=unpack, reading=_reading(method, options))}
            # not in place: the copy is this call's own, and goes when the result is there
            result = _unlearn(work, method, **sets, progress=progress and ranks.first, unpack=unpack, forward=forward, **settings)
            write = _weights.overwriting(model, result.model) if inplace else None
            after = (result.receipt["weights_sha256"], result.forgot)
            ranks.agree("the result", after, _ranks.OTHER_BYTES)
            result.receipt["ranks"] = len(ranks.ranks)
            result.model = model if inplace else result.model
    # outside of the block: nothing runs after the given model was written
    if ranks is None:
        return _unlearn(model, method, **data, inplace=inplace, progress=progress, unpack=unpack, forward=forward, **settings)
    return result if write is None else write.give(result)


def _reading(method: Any, options: dict[str, Any]) -> Reading:
    """How the method reads labels; ``"auto"`` chooses among those for classifiers."""
    return CLASSES if method == "auto" else kind_of(method_of(method, options)).labels


def _unlearn(
    model: nn.Module,
    method: Any,
    *,
    forget: Any,
    retain: Any,
    nonmember: Any,
    test: Any,
    classes: Any,
    seed: int,
    progress: bool,
    drop_forget: bool,
    check_overlap: bool,
    budget: int | str | None,
    precision: str | None,
    unpack: Callable[[Any], tuple[Any, Any]] | None,
    forward: Callable[[nn.Module, Any], Tensor] | None,
    inplace: bool = False,
    **options: Any,
) -> UnlearnResult:
    """:func:`unlearn` of a model that this process holds alone."""
    began = time.perf_counter()
    if method == "auto":
        method, reason = suitable(classes, forget=forget, retain=retain, nonmember=nonmember)
    else:
        reason = None
    chosen = method_of(method, options)
    origin = plugs.provenance(method, chosen)
    seed = checks.seed(seed)
    with Caller() as caller, caller.aside("unlearn", derived_seed(seed, READ)):
        # check
        device = checks.model_device(model)
        kind = kind_of(chosen)
        sets = Sets.read(unpack, kind.labels, retain=retain, forget=forget, nonmember=nonmember, test=test)
        wanted = kind.wanted(chosen, classes, sets.forget)
        # what draws from this is dropout and the data's own augmentation; the methods have generators of their own
        with own_randomness(derived_seed(seed, 0)):
            task = make_task(
                model, chosen, wanted, sets,
                forward=caller.own(forward or call), device=device, seed=seed, progress=progress, drop_forget=drop_forget,
                budget=budget, precision=precision,
            )  # fmt: skip
            overlap = count_overlap(task) if check_overlap else {"how": "not checked: check_overlap=False"}
            with own_randomness(derived_seed(seed, BEFORE)), task.looking("before"):
                before = kind.look_before(task, _weights.fingerprint(model))
            # work on the copy
            formats = Formats(task.model)
            with _weights.flags_kept(task.model), dense_gradients(task.model):
                details = plugs.entries(chosen, chosen.run(task))
            proxy = details.pop("proxy", None)
            for parameter in task.model.parameters():
                parameter.grad = None
            formats.restore(task.model)
            # measure
            with task.looking("verdict"):
                verdict = kind.judge(task, before, proxy)
        checks.finite_weights(task.model)
        receipt = {
            "method": chosen.name,
            "options": chosen.receipt(),
            "classes": wanted,
            "seed": seed,
            "versions": versions(),
            "device": str(device),
            "weights_sha256": {"before": before.weights_sha256, "after": _weights.fingerprint(task.model)},
            "verdict": verdict.receipt(),
            "cost": task.cost.receipt(),
            "overlap": overlap,
            **({"method_chosen": reason} if reason else {}),
            **origin,
        }
        receipt = plugs.joined(chosen, receipt, details)
        write = _weights.overwriting(model, task.model) if inplace else None
    changed = model if inplace else task.model
    result = UnlearnResult(changed, task.history, time.perf_counter() - began, receipt, verdict.forgot, verdict.why, task.cost)
    if not verdict.forgot:
        about = f"the model did NOT verifiably forget {wanted or 'the samples'}: {verdict.why}"
        warnings.warn(f"fastforget: {about}", NotForgottenWarning, stacklevel=3)
    # the last thing that is done: whatever stops the call before, a warning as an error included, finds the model as it was
    return write.give(result) if write is not None else result
