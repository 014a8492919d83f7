"""Negative controls: models of which it is known that they did not forget, or are of no use. An audit that passes one
can't be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._caller import Caller
from .._causal import answers
from .._data import Source, source
from .._labels import CLASSES, TOKENS
from .._modules import copy_of, dense_gradients, refuse_half, refuse_kind
from .._outputs import reading
from .._random import own_randomness
from .._trial import explained, least_of, refuse_single_gradients
from .._weights import device_of, eval_mode, training_mode
from .figures import ControlOutcome, ModelRow
from .measure import probes
from .measure.oracles import logits_of
from .measure.weights import head, layer_rows
from .names import CONTROL_MEANING, must_pass

# A little: Adam's steps are about this long whatever the loss, so the weights hardly leave the original's.
FINE_TUNE_LR, FINE_TUNE_EPOCHS, FINE_TUNE_STEPS, FINE_TUNE_BATCH = 1e-4, 2, 200, 64
Forward = Callable[[nn.Module, Any], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def controls(
    original: nn.Module,
    *,
    retain: Any,
    forget: Any,
    classes: Any = None,
    seed: int = 0,
    make_random: Callable[[], nn.Module] | None = None,
    forward: Forward | None = None,
    unpack: Callable[[Any], tuple[Any, Any]] | None = None,
    sequences: bool = False,
) -> dict[str, nn.Module]:
    """Models that an audit of ``original`` must not pass; ``ff.audit(..., controls=True)`` makes and audits them itself.

    Args:
        original: the model before unlearning; it isn't changed.
        retain, forget: as for :func:`fastforget.audit`.
        classes: ids of the classes forgotten as a whole. Without it: those that ``forget`` holds and ``retain`` lacks.
        seed: of the random weights and of the fine-tuning's order.
        make_random: makes a fresh network of the same kind. Without it the copy's modules are reset
            (``reset_parameters``); what that leaves as it was is drawn from a normal distribution of its own mean and
            deviation.
        forward: (model, inputs) -> logits, where calling the model doesn't give them.
        unpack: batch -> (inputs, labels), for batches that are not (x, y), (x, _, y) or dicts with "labels".
        sequences: whether ``original`` is a language model, and labels are token ids [N, T].

    Returns:
        ``{"untouched", "random", "fine_tuned", "suppressed"}``: see :data:`CONTROL_MEANING`. "suppressed" only where classes are
        forgotten as a whole and the network has a layer with a row for each class.

    Raises:
        TypeError: ``original`` is no module, or can't be copied.
        ValueError: it has no parameters, or ``classes`` aren't classes of it.

    >>> import torch, fastforget as ff
    >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
    >>> net, keep = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)), y != 0
    >>> list(ff.audit.controls(net, retain=(x[keep], y[keep]), forget=(x[~keep], y[~keep])))
    ['untouched', 'random', 'fine_tuned', 'suppressed']
    """
    refuse_kind("original", original)
    if not isinstance(original, nn.Module):
        raise TypeError(f"original: got {type(original).__name__}; accepted is a torch.nn.Module")
    if next(original.parameters(), None) is None:
        raise ValueError("original: has no parameters, so no control can be made of it; audit without controls")
    with Caller() as caller, caller.aside("controls", seed):
        labels, loss = (TOKENS, answers.mean_loss) if sequences else (CLASSES, _cross_entropy)
        sets = (("retain", retain), ("forget", forget))
        kept, gone = (source(data, name=name, unpack=unpack, reading=labels) for name, data in sets)
        wanted = [] if sequences else _classes(classes, kept, gone)
        call = reading(caller.own(forward))
        result = {"untouched": _copy(original), "random": caller.own(make_random)() if make_random else _random(original, seed)}
        result["fine_tuned"] = _fine_tuned(original, kept, seed, call, loss)
        if wanted:
            suppressed = _suppressed(original, gone, wanted, call)
            result |= {"suppressed": suppressed} if suppressed is not None else {}
    return result


def chosen(
    given: bool | Mapping[str, nn.Module] | None,
    models: Mapping[str, nn.Module],
    sets: Mapping[str, Source],
    seed: int,
    forward: Forward | None,
    *,
    sequences: bool,
) -> dict[str, nn.Module]:
    """The controls of one audit: none, the ones of :func:`controls`, or the caller's own."""
    if given is None or given is False:
        return {}
    if given is True:
        if "original" not in models:
            raise ValueError('controls: True needs the model named "original", of which they are made; or give a dict of models')
        of = models["original"]
        made = controls(of, retain=sets["retain"], forget=sets["forget"], seed=seed, forward=forward, sequences=sequences)
    elif isinstance(given, Mapping) and all(isinstance(n, str) and isinstance(m, nn.Module) for n, m in given.items()):
        made = dict(given)
    else:
        raise TypeError(f"controls: got {type(given).__name__}; accepted is True, False or a dict of name: torch.nn.Module")
    twice = sorted(set(made) & set(models))
    if twice:
        raise ValueError(f"controls: {twice[0]!r} is also the name of a model; accepted are names of their own")
    return made


def behaviour(rows: list[ModelRow], retrained: ModelRow | None) -> dict[str, ControlOutcome]:
    """The outcomes of the controls' rows, and of the retrained model where there are controls."""
    outcomes = {}
    for row in [*rows, *([retrained] if retrained is not None and rows else [])]:
        behaved = None if row.status == "NO REFERENCE" else (row.status == "PASS") == must_pass(row.model)
        outcomes[row.model] = ControlOutcome(row.status, behaved)
    return outcomes


def distrust(outcomes: dict[str, ControlOutcome]) -> list[str]:
    """A reason for each control that did not behave."""
    reasons = []
    for name, outcome in outcomes.items():
        if outcome.behaved is False:
            about = "must pass" if must_pass(name) else f"must not pass{f' ({CONTROL_MEANING[name]})' if name in CONTROL_MEANING else ''}"
            reasons.append(f"control {name}: FAIL: it is {outcome.status}, but {about}; this audit can't be trusted")
    return reasons


def _classes(given: Any, kept: Source, gone: Source) -> list[int]:
    if given is not None:
        return [int(c) for c in given]
    return probes.only_in(gone.labels(), kept.labels()).tolist()


def _copy(model: nn.Module) -> nn.Module:
    try:
        work = copy_of(model)
    except Exception as error:
        raise TypeError(f"original: {type(model).__name__} can't be copied ({error}), and the controls are changed copies") from error
    for parameter in work.parameters():
        parameter.grad = None
    return work


def _random(original: nn.Module, seed: int) -> nn.Module:
    work = _copy(original)
    with own_randomness(seed), torch.no_grad():
        for module in work.modules():
            for reset in ("reset_parameters", "_reset_parameters"):
                if callable(getattr(module, reset, None)):
                    getattr(module, reset)()
                    break
        before = dict(original.named_parameters())
        for name, parameter in work.named_parameters():
            # parametrised or free-standing weights that no module resets
            if parameter.is_floating_point() and parameter.numel() > 1 and torch.equal(parameter, before[name]):
                deviation, mean = torch.std_mean(parameter.float(), correction=0)
                parameter.copy_(torch.randn_like(parameter, dtype=torch.float32) * deviation + mean)
    return work


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


def _fine_tuned(original: nn.Module, kept: Source, seed: int, forward: Forward, loss: Loss) -> nn.Module:
    work = _copy(original)
    device = device_of(work)
    weights = [p.requires_grad_(True) for p in work.parameters() if p.is_floating_point()]
    flags = {name: p.requires_grad for name, p in original.named_parameters()}
    least = least_of(work, kept, forward) if len(kept) == 1 else 1
    refuse_half("controls, original", work)
    optimiser = torch.optim.Adam(weights, FINE_TUNE_LR)
    order, step = torch.Generator().manual_seed(seed), 0
    with own_randomness(seed), torch.enable_grad(), eval_mode(work), dense_gradients(work):
        training_mode(work, original)
        for _ in range(FINE_TUNE_EPOCHS):
            for inputs, labels in kept.batches(generator=order, device=device, batch_size=FINE_TUNE_BATCH):
                if step >= FINE_TUNE_STEPS or (len(labels) == 1 and (step or least > 1)):
                    break  # a last batch of one sample is none for batch normalisation
                optimiser.zero_grad(set_to_none=True)
                with explained("controls, original"):
                    loss(forward(work, inputs), labels).backward()
                    refuse_single_gradients("controls, original", work)
                optimiser.step()
                step += 1
    for name, parameter in work.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(flags[name])
    return work


def _suppressed(original: nn.Module, gone: Source, classes: list[int], forward: Forward) -> nn.Module | None:
    """The trick that accuracy can't see: lower the forgotten classes' biases until no forget sample is answered with them;
    without a bias, their rows become the mean of the kept ones', which is never the largest logit.
    """
    work = _copy(original)
    logits, _ = logits_of(work, gone, "forget", forward)
    kept = _kept_classes(classes, logits.shape[1])
    last = head(layer_rows(work), logits.shape[1])
    if last is None:
        return None
    module = dict(work.named_modules())[last]  # scripted modules have no get_submodule
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    with torch.no_grad():
        if isinstance(bias, nn.Parameter):
            most = float((logits[:, classes].amax(1) - logits[:, kept].amax(1)).max())
            bias[classes] -= 2 * max(most, 0.0) + 1
        elif isinstance(weight, nn.Parameter):
            weight[classes] = weight[kept].mean(0, keepdim=True)
        else:
            return None
    return work


def _kept_classes(classes: list[int], outputs: int) -> list[int]:
    kept = [c for c in range(outputs) if c not in classes]
    if not kept or len(kept) + len(set(classes)) != outputs:
        raise ValueError(f"classes: got {classes}; accepted are ids from 0 to {outputs - 1}, and at least one class must stay")
    return kept
